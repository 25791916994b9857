//! Writing an image that appears whole or not at all.

mod amend;
mod publish;

pub use publish::Durable;

use crate::MANIFEST_FILE;
use crate::Watcher;
use crate::compress::{Compression, Press};
use crate::crypt::{Output, Recipients};
use crate::disk::Disk;
use crate::manifest::{Codec, Compressed, stored_name};
use crate::page::is_pages_name;
use crate::partial::{check_vacant, make_partial, remove, sweep};
use crate::pieces::{self, Value};
use crate::reader::open_regular;
use crate::tree::{self, Tree, tree_name};
use crate::upgrade::NEWEST_LINE;
use crate::{Digest, Error, FORMAT_FILE, FileEntry, Kind, Limits, RECORDS_FILE, Result, SIGNATURE_FILE};
use crate::{cbor, is_file_name};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// An image that is being written, in a hidden directory next to its final place.
///
/// [`Writer::commit`] makes it visible; to drop the writer removes it. All work goes through descriptors that are
/// opened at the beginning, so the process may change its directory and root. The hidden directory is locked (flock(2))
/// for as long as its writer lives: one without a holder is what a killed writer has left, and goes when the next image of
/// the same name is begun.
#[derive(Debug)]
pub struct Writer {
    parent: OwnedFd,
    dir: OwnedFd,
    partial: OsString,
    /// The directory of an image whose place it takes.
    replaces: Option<OwnedFd>,
    /// Whether it is committed: nothing is left to remove.
    visible: AtomicBool,
    name: OsString,
    shown: String,
    limits: Limits,
    generation: u64,
    kind: Kind,
    recipients: Option<Recipients>,
    compression: Option<Compression>,
    watcher: Watcher,
    files: Mutex<BTreeMap<String, Slot>>,
}

/// A file of the image, by its name.
#[derive(Debug)]
struct Slot {
    codec: Option<Codec>,
    /// Kept open: an error of writing back is told to descriptors that were open when it happened.
    file: File,
    /// What is known of it once it is complete.
    done: Option<Done>,
    /// Who has the disk take it, while other files are written.
    syncing: Option<JoinHandle<io::Result<()>>>,
}

/// Bytes from which on a file is worth a thread that waits for the disk.
const LARGE: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Done {
    /// Size on the disk.
    bytes: u64,
    /// Digest of what is on the disk.
    digest: Digest,
    /// Size of what is in it: of what was encrypted, and of what was compressed.
    encrypted: u64,
    content: u64,
}

impl Writer {
    /// Begins an image that will be at `dir`, which must not exist or be an empty directory; its parent must exist.
    pub fn create(dir: &Path) -> Result<Writer> {
        let shown = dir.to_string_lossy().into_owned();
        let Some(name) = dir.file_name() else {
            return Err(Error::Name { name: shown });
        };
        if name.as_bytes().starts_with(b".") {
            return Err(Error::Name { name: shown });
        }
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let refused = |op| move |errno: Errno| Error::io(&parent.to_string_lossy(), op, errno);
        let parent_fd = openat(CWD, parent, flags, Mode::empty()).map_err(refused("open"))?;
        check_vacant(&parent_fd, name, &shown)?;
        sweep(&parent_fd, name);
        let (partial, dir) = make_partial(&parent_fd, name).map_err(refused("mkdir"))?;
        Ok(Writer {
            parent: parent_fd,
            dir,
            partial,
            replaces: None,
            visible: AtomicBool::new(false),
            name: name.to_owned(),
            shown,
            limits: Limits::default(),
            generation: 1,
            kind: Kind::default(),
            recipients: None,
            compression: None,
            watcher: Watcher::default(),
            files: Mutex::default(),
        })
    }

    /// Sets how many checkpoints lie behind the image (1 when this is not called).
    pub fn generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Sets what the image was taken from ([`Kind::Container`] when this is not called).
    pub fn kind(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// Encrypts every file that is begun from now on; to be called before there is any.
    pub fn encrypt_to(&mut self, recipients: Recipients) {
        self.recipients = Some(recipients);
    }

    /// Compresses every file that is begun from now on but the records and what others write; to be called before there is any.
    pub fn compress(&mut self, compression: Compression) {
        self.compression = Some(compression);
    }

    /// Tells somebody of the bytes of files that are begun from now on.
    pub fn watch(&mut self, watcher: Watcher) {
        self.watcher = watcher;
    }

    /// Writes the records, the one file that every image has. What a reader would refuse is refused here.
    pub fn records<T: Serialize + ?Sized>(&self, records: &T) -> Result<()> {
        let document = cbor::encode(records, &self.limits)?;
        let mut writer = self.hashing(RECORDS_FILE, None)?;
        writer.write_all(&document).map_err(|source| Error::io(RECORDS_FILE, "write", source))?;
        writer.finish()
    }

    /// Begins a file that is written through the result, which hashes on the way. It must be finished before commit.
    pub fn file(&self, name: &str) -> Result<FileWriter<'_>> {
        self.check_name(name, self.codec())?;
        self.hashing(name, self.compression)
    }

    /// Begins a file that others write by descriptor (open for reading and writing). It must be given back by
    /// [`Writer::adopt`] before commit. What others write is not encrypted: an image that is has no such files. Nor is it compressed.
    pub fn raw(&self, name: &str) -> Result<File> {
        self.check_name(name, None)?;
        if self.recipients.is_some() {
            return Err(Error::Plain { file: name.to_owned() });
        }
        self.begin(name, None)
    }

    /// Takes a file of [`Writer::raw`] that is complete: reads it and keeps size and digest.
    pub fn adopt(&self, name: &str) -> Result<()> {
        let file = match self.slots().get(name) {
            Some(slot) => slot.file.try_clone().map_err(|source| Error::io(name, "dup", source))?,
            None => return Err(Error::missing(name)),
        };
        let (bytes, digest, values) = pieces::of_file(&file).map_err(|source| Error::io(name, "read", source))?;
        self.end(name, Done { bytes, digest, encrypted: bytes, content: bytes })?;
        self.tree(name, bytes, &values)
    }

    /// Writes what a long file of pages is made of, by blocks.
    fn tree(&self, name: &str, bytes: u64, values: &[Value]) -> Result<()> {
        if !is_pages_name(name) || !Tree::is_of(bytes) {
            return Ok(());
        }
        let name = tree_name(name);
        self.check_name(&name, None)?;
        let mut writer = self.hashing(&name, None)?;
        writer.write_all(&tree::encode(values)).map_err(|source| Error::io(&name, "write", source))?;
        writer.finish()
    }

    /// Takes a complete file of another image, which is open, as file `name` of this one: the same file by one more name, or a copy
    /// where that cannot be.
    /// `tree`: what it is made of, if that is known.
    pub fn share(
        &self,
        name: &str,
        directory: &OwnedFd,
        (entry, open): (&FileEntry, &File),
        tree: Option<&Tree>,
    ) -> Result<()> {
        let codec = entry.compressed.map(|compressed| compressed.codec);
        self.check_name(name, codec)?;
        if self.recipients.is_some() {
            return Err(Error::Plain { file: name.to_owned() });
        }
        let [ours, theirs] = [name, &entry.name].map(|name| stored_name(name, codec, false));
        let failed = |op| move |source: io::Error| Error::io(name, op, source);
        let file = match self.link(&ours, directory, &theirs, open) {
            Some(file) => file,
            None => {
                let mut copy = self.create_new(&ours)?;
                let mut from = open.try_clone().map_err(failed("dup"))?;
                from.rewind().and_then(|()| io::copy(&mut from, &mut copy)).map_err(failed("copy"))?;
                if Digest::of_file(&copy, entry.bytes).map_err(failed("read"))? != (entry.bytes, entry.blake3) {
                    return Err(Error::Digest { file: entry.name.clone(), bytes: entry.bytes });
                }
                copy
            }
        };
        self.slots().insert(name.to_owned(), Slot { codec, file, done: None, syncing: None });
        let (bytes, digest) = (entry.bytes, entry.blake3);
        self.end(name, Done { bytes, digest, encrypted: bytes, content: entry.content_bytes() })?;
        tree.map_or(Ok(()), |tree| self.tree(name, bytes, tree.values()))
    }

    /// One more name for a file that is open. None: it cannot have one, or what lies by its name is another one now (on an overlay,
    /// a copy of it).
    fn link(&self, name: &str, directory: &OwnedFd, theirs: &str, open: &File) -> Option<File> {
        linkat(directory, theirs, &self.dir, name, AtFlags::empty()).ok()?;
        let file = open_regular(self.dir.as_fd(), name).map(|(file, _)| file).ok();
        let id = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
        let same = file.filter(|file| id(file).is_some() && id(file) == id(open));
        if same.is_none() {
            // What is left of it would be in the way of the copy, which says so.
            let _ = unlinkat(&self.dir, name, AtFlags::empty());
        }
        same
    }

    fn sync_files(&self) -> Result<Vec<FileEntry>> {
        let mut entries = Vec::new();
        for (name, slot) in self.slots().iter_mut() {
            if let Some(syncing) = slot.syncing.take() {
                let synced = syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                synced.map_err(|source| Error::io(name, "fsync", source))?;
            }
            let unfinished = || Error::Unfinished { file: name.clone() };
            let Done { bytes, digest, encrypted, content } = slot.done.ok_or_else(unfinished)?;
            slot.file.sync_all().map_err(|source| Error::io(name, "fsync", source))?;
            let length = slot.file.metadata().map_err(|source| Error::io(name, "stat", source))?.len();
            if length != bytes {
                // Somebody still wrote after it was adopted.
                return Err(unfinished());
            }
            let compressed = slot.codec.map(|codec| Compressed { codec, content });
            let content = self.recipients.as_ref().map(|_| encrypted);
            entries.push(FileEntry { name: name.clone(), bytes, blake3: digest, content, compressed });
        }
        Ok(entries)
    }

    fn write_synced(&self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = self.create_new(name)?;
        file.write_all(content).map_err(|source| Error::io(name, "write", source))?;
        file.sync_all().map_err(|source| Error::io(name, "fsync", source))
    }

    fn check_name(&self, name: &str, codec: Option<Codec>) -> Result<()> {
        let special = [FORMAT_FILE, MANIFEST_FILE, RECORDS_FILE, SIGNATURE_FILE].contains(&name);
        if !is_file_name(name) || !is_file_name(&self.stored_name(name, codec)) || special {
            return Err(Error::Name { name: name.to_owned() });
        }
        Ok(())
    }

    fn hashing(&self, name: &str, compression: Option<Compression>) -> Result<FileWriter<'_>> {
        let watcher = self.watcher.clone();
        let codec = compression.map(Compression::codec);
        let watched = Watched { disk: Disk::new(self.begin(name, codec)?), watcher };
        let output = match &self.recipients {
            None => Output::Plain(watched),
            Some(recipients) => {
                let encrypted = recipients.begin(watched).map_err(|source| Error::io(name, "write", source))?;
                Output::Encrypted(Box::new(encrypted))
            }
        };
        let press = compression.map(Press::new).transpose().map_err(|source| Error::io(name, "compress", source))?;
        Ok(FileWriter { writer: self, name: name.to_owned(), output: Counted { output, bytes: 0 }, press, offset: 0 })
    }

    fn begin(&self, name: &str, codec: Option<Codec>) -> Result<File> {
        let file = self.create_new(&self.stored_name(name, codec))?;
        let kept = file.try_clone().map_err(|source| Error::io(name, "dup", source))?;
        self.slots().insert(name.to_owned(), Slot { codec, file: kept, done: None, syncing: None });
        Ok(file)
    }

    fn end(&self, name: &str, done: Done) -> Result<()> {
        let mut slots = self.slots();
        let slot = slots.get_mut(name).ok_or_else(|| Error::missing(name))?;
        slot.done = Some(done);
        if done.bytes >= LARGE {
            let file = slot.file.try_clone().map_err(|source| Error::io(name, "dup", source))?;
            // Without a thread it waits until the commit.
            slot.syncing = std::thread::Builder::new().spawn(move || file.sync_all()).ok();
        }
        Ok(())
    }

    fn stored_name(&self, name: &str, codec: Option<Codec>) -> String {
        stored_name(name, codec, self.recipients.is_some())
    }

    fn codec(&self) -> Option<Codec> {
        self.compression.map(Compression::codec)
    }

    fn create_new(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::EXIST) => Err(Error::Exists { file: name.to_owned() }),
            Err(errno) => Err(Error::io(name, "open", errno)),
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        // The map is never left half changed: a panic elsewhere does not spoil it.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    /// Removes what was not committed. Errors have nowhere to go: the name that remains is not an image's.
    fn drop(&mut self) {
        if self.visible.load(Relaxed) {
            return;
        }
        remove(&self.parent, &self.partial, &self.dir);
    }
}

/// A file of an image that is being written and hashed.
#[derive(Debug)]
pub struct FileWriter<'w> {
    writer: &'w Writer,
    name: String,
    output: Counted,
    /// What compresses on the way.
    press: Option<Press>,
    offset: u64,
}

impl FileWriter<'_> {
    /// How many bytes were written: where the next one will be, in what a reader gets to see.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes all of `bytes`, a buffer that may be exchanged for another one, of any content: whole pieces of 256 KiB are not copied.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        match (&mut self.press, &mut self.output) {
            (Some(press), output) => press.take(bytes, output)?,
            (None, Counted { output: Output::Plain(watched), bytes: all }) => {
                watched.disk.take(bytes)?;
                watched.watcher.tell(length);
                *all = all.saturating_add(length);
            }
            (None, output) => output.write_all(bytes)?,
        }
        self.offset = self.offset.saturating_add(length);
        Ok(())
    }

    /// Ends the file; without this the image cannot be committed.
    pub fn finish(self) -> Result<()> {
        let FileWriter { writer, name, mut output, press, offset } = self;
        let failed = |source| Error::io(&name, "write", source);
        let is_plain = press.is_none() && writer.recipients.is_none();
        press.map_or(Ok(()), |press| press.finish(&mut output)).map_err(failed)?;
        let Counted { output, bytes: encrypted } = output;
        let (bytes, digest, values) = output.finish().and_then(|watched| watched.disk.finish()).map_err(failed)?;
        writer.end(&name, Done { bytes, digest, encrypted, content: offset })?;
        if is_plain { writer.tree(&name, bytes, &values) } else { Ok(()) }
    }
}

impl Write for FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = match &mut self.press {
            Some(press) => press.write_all(bytes, &mut self.output).map(|()| bytes.len())?,
            None => self.output.write(bytes)?,
        };
        self.offset = self.offset.saturating_add(u64::try_from(length).map_err(io::Error::other)?);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Where a file is written to, and how many bytes that were: before they are encrypted.
#[derive(Debug)]
struct Counted {
    output: Output<Watched>,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.output.write(bytes)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(length).map_err(io::Error::other)?);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Tells somebody of the bytes that the file gets.
#[derive(Debug)]
struct Watched {
    disk: Disk,
    watcher: Watcher,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write_all(bytes)?;
        self.watcher.tell(u64::try_from(bytes.len()).map_err(io::Error::other)?);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
