//! Reading an image that nobody has to trust, from one directory descriptor.

use crate::manifest::stored_name;
use crate::tree::{Tree, tree_name};
use crate::upgrade::{self, Version};
use crate::{
    Digest, Error, FORMAT_FILE, FileEntry, Limits, MANIFEST_FILE, Manifest, RECORDS_FILE, Result, SIGNATURE_FILE,
};
use crate::{PageRun, cbor, pages_name};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Seek;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where an image is: a descriptor of its directory, or a path that is opened once.
#[derive(Debug)]
pub enum Directory {
    /// An open directory; `O_PATH` is enough.
    Fd(OwnedFd),
    /// A path.
    Path(PathBuf),
}

impl From<OwnedFd> for Directory {
    fn from(fd: OwnedFd) -> Self {
        Directory::Fd(fd)
    }
}

impl From<&Path> for Directory {
    fn from(path: &Path) -> Self {
        Directory::Path(path.to_owned())
    }
}

impl From<&PathBuf> for Directory {
    fn from(path: &PathBuf) -> Self {
        Directory::Path(path.clone())
    }
}

/// An image whose manifest is right and whose files are all there with the right sizes.
///
/// After [`Reader::open`] no path is used any more, so the process may change its root. Contents are checked when they are
/// read: [`Reader::records`] does it itself, other files by [`Reader::verify`].
#[derive(Debug)]
pub struct Reader {
    dir: OwnedFd,
    version: Version,
    manifest: Manifest,
    limits: Limits,
    /// What is in the files that are not what lies on the disk, in their order, once somebody has decrypted and decoded them.
    content: Option<Vec<File>>,
    /// A connection with whoever wants it.
    caller: Option<OwnedFd>,
}

impl Reader {
    /// Opens an image with the default [`Limits`].
    pub fn open(dir: impl Into<Directory>) -> Result<Reader> {
        Reader::open_with(dir, Limits::default())
    }

    /// Opens an image.
    pub fn open_with(dir: impl Into<Directory>, limits: Limits) -> Result<Reader> {
        let dir = match dir.into() {
            Directory::Fd(fd) => fd,
            Directory::Path(path) => open_directory(&path)?,
        };
        let (version, manifest) = Documents::open_table(dir.as_fd())?.read(&limits)?;
        Reader::assemble(dir, version, manifest, limits)
    }

    /// An image whose table of contents somebody else has read. Every name and number in it is checked again.
    pub fn assemble(dir: OwnedFd, version: Version, manifest: Manifest, limits: Limits) -> Result<Reader> {
        manifest.check(&limits)?;
        let reader = Reader { dir, version, manifest, limits, content: None, caller: None };
        for entry in &reader.manifest.files {
            reader.open_stored(entry)?;
        }
        Ok(reader)
    }

    /// From now on files are compared as long as there is somebody at the other end of this connection.
    pub fn read_for(&mut self, caller: BorrowedFd<'_>) -> Result<()> {
        let caller = caller.try_clone_to_owned().map_err(|source| Error::io(MANIFEST_FILE, "dup", source))?;
        self.caller = Some(caller);
        Ok(())
    }

    /// Whether anybody wants what is read.
    pub fn is_wanted(&self) -> bool {
        let Some(caller) = &self.caller else { return true };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(caller, PollFlags::RDHUP)], Some(&now)) == Ok(0)
    }

    /// The same as an error, for whoever copies what is in a file: to be asked before each piece.
    pub fn wanted(&self, name: &str) -> Result<()> {
        if self.is_wanted() { Ok(()) } else { Err(Error::io(name, "read", Errno::INTR)) }
    }

    /// Gives the reader what is in the files that are encrypted or compressed: one for each, in the manifest's order, which somebody
    /// has decrypted and decoded, and compared with their digests before.
    pub fn unwrapped(&mut self, content: Vec<File>) -> Result<()> {
        if content.len() != self.wrapped().count() {
            return Err(Error::format(MANIFEST_FILE, 0, "not as many files as were decrypted or decoded"));
        }
        for (entry, file) in self.wrapped().zip(&content) {
            let bytes = file.metadata().map_err(|source| Error::io(&entry.name, "stat", source))?.len();
            check_size(&entry.name, entry.content_bytes(), bytes)?;
        }
        self.content = Some(content);
        Ok(())
    }

    /// Those files that are not what lies on the disk.
    fn wrapped(&self) -> impl Iterator<Item = &FileEntry> {
        self.manifest.files.iter().filter(|entry| self.manifest.is_wrapped(entry))
    }

    /// What is in a file that is encrypted or compressed, if somebody has made that.
    fn content(&self, entry: &FileEntry) -> Option<&File> {
        let at = self.wrapped().position(|other| other.name == entry.name)?;
        self.content.as_ref()?.get(at)
    }

    /// The table of contents.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The version that the image was written in.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The digest that stands for the whole image.
    pub fn seal(&self) -> Result<Digest> {
        self.manifest.seal(self.version)
    }

    /// The image's directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Whether the image has a file `name`.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.file(name).is_some()
    }

    /// Reads the records: size, digest, shape, types, spelling, in this order, of the same bytes in memory.
    pub fn records<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let (file, bytes) = self.open_file(RECORDS_FILE)?;
        decode_records(&file, bytes, self.version, &self.manifest, &self.limits)
    }

    /// Opens a file for reading, from its beginning; also says its size in bytes, which is the manifest's. The content is not
    /// checked: see [`Reader::verify`]. Of a file that is encrypted or compressed it is what is in it, and the place in it is shared by
    /// everybody who opens it.
    pub fn open_file(&self, name: &str) -> Result<(File, u64)> {
        let entry = self.entry(name)?;
        if !self.manifest.is_wrapped(entry) {
            return Ok((self.open_stored(entry)?, entry.bytes));
        }
        let closed = || {
            let file = self.manifest.stored_name(entry);
            if self.manifest.encryption.is_some() { Error::Encrypted { file } } else { Error::Compressed { file } }
        };
        let content = self.content(entry).ok_or_else(closed)?;
        let mut file = content.try_clone().map_err(|source| Error::io(name, "dup", source))?;
        file.rewind().map_err(|source| Error::io(name, "lseek", source))?;
        Ok((file, entry.content_bytes()))
    }

    /// Compares a file with its digest: what lies on the disk. What was decrypted or decoded was compared when that was done.
    pub fn verify(&self, name: &str) -> Result<()> {
        let entry = self.entry(name)?;
        if self.content(entry).is_some() {
            return Ok(());
        }
        let stored = &self.manifest.stored_name(entry);
        let file = self.open_stored(entry)?;
        let (bytes, digest) = Digest::of_file_while(&file, entry.bytes, || self.is_wanted())
            .map_err(|source| Error::io(stored, "read", source))?;
        check_size(stored, entry.bytes, bytes)?;
        if digest != entry.blake3 {
            return Err(Error::Digest { file: stored.clone(), bytes: entry.bytes });
        }
        Ok(())
    }

    /// Compares every file's content with its digest.
    pub fn verify_all(&self) -> Result<()> {
        self.manifest.files.iter().try_for_each(|entry| self.verify(&entry.name))
    }

    /// What a file of pages is made of, by blocks; none of one that is short, encrypted or compressed, or was written without.
    pub fn tree(&self, name: &str) -> Result<Option<Tree>> {
        let entry = self.entry(name)?;
        match self.tree_entry(entry) {
            Some(tree) => Tree::read(entry, &self.open_stored(tree)?).map(Some),
            None => Ok(None),
        }
    }

    /// Whether a file of pages has [`Reader::tree`].
    pub fn has_tree(&self, name: &str) -> bool {
        self.manifest.file(name).is_some_and(|entry| self.tree_entry(entry).is_some())
    }

    fn tree_entry(&self, entry: &FileEntry) -> Option<&FileEntry> {
        let tree = self.manifest.file(&tree_name(&entry.name))?;
        (!self.manifest.is_wrapped(entry) && !self.manifest.is_wrapped(tree)).then_some(tree)
    }

    /// The same of all these files of pages, by their numbers, as far as they have one. What is held of them together is bounded, and
    /// known before any is read.
    pub fn trees(&self, numbers: impl IntoIterator<Item = u16>) -> Result<BTreeMap<u16, Tree>> {
        let entries: BTreeMap<u16, &FileEntry> =
            numbers.into_iter().filter_map(|number| Some((number, self.manifest.file(&pages_name(number))?))).collect();
        let with_tree = || entries.iter().filter(|(_, entry)| self.tree_entry(entry).is_some());
        let (mut bytes, limit) = (0_u64, self.limits.tree_bytes);
        for (_, entry) in with_tree() {
            bytes = bytes.saturating_add(entry.bytes);
            if bytes > limit {
                return Err(Error::TooLarge { file: tree_name(&entry.name), bytes, limit });
            }
        }
        let tree = |(number, entry): (&u16, &&FileEntry)| Ok(self.tree(&entry.name)?.map(|tree| (*number, tree)));
        with_tree().filter_map(|one| tree(one).transpose()).collect()
    }

    /// Checks a run of pages: aligned, without overflow, within a pages file of this image.
    pub fn check_run(&self, run: &PageRun) -> Result<()> {
        run.check(self.entry(&pages_name(run.file))?.content_bytes())
    }

    fn entry(&self, name: &str) -> Result<&FileEntry> {
        self.manifest.file(name).ok_or_else(|| Error::missing(name))
    }

    /// Opens a file as it lies on the disk.
    pub fn open_stored(&self, entry: &FileEntry) -> Result<File> {
        let name = self.manifest.stored_name(entry);
        let (file, bytes) = open_regular(self.dir.as_fd(), &name)?;
        check_size(&name, entry.bytes, bytes)?;
        Ok(file)
    }
}

/// `format`, `manifest.json` and a signature that may be there, open and not yet read.
#[derive(Debug)]
pub struct Table {
    format: (File, u64),
    manifest: (File, u64),
    signature: Option<(File, u64)>,
}

/// The documents of an image, open and not yet read: who reads them needs no directory, and no right to open anything.
#[derive(Debug)]
pub struct Documents {
    table: Table,
    /// None: not there by that name, or not decrypted.
    records: Option<(File, u64)>,
    decrypted: bool,
}

/// A table of contents, the bytes that it was read from, and a signature that may be one of them.
#[derive(Debug)]
pub struct SignedTable {
    /// The version.
    pub version: Version,
    /// The table of contents.
    pub manifest: Manifest,
    /// The bytes of `manifest.json`.
    pub document: Vec<u8>,
    /// The bytes of `manifest.json.minisig`, if it is there.
    pub signature: Option<Vec<u8>>,
}

impl Table {
    /// The descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let signature = self.signature.as_ref().map(|(file, _)| file.as_fd());
        [self.format.0.as_fd(), self.manifest.0.as_fd()].into_iter().chain(signature).collect()
    }

    /// Reads them: spelling and version, then size, seal, names, order, spelling.
    pub fn read(&self, limits: &Limits) -> Result<(Version, Manifest)> {
        self.read_whole(limits).map(|(version, manifest, _)| (version, manifest))
    }

    /// The same, with what a signature is about.
    pub fn signed(&self, limits: &Limits) -> Result<SignedTable> {
        const MOST_BYTES: u64 = 4096;
        let (version, manifest, document) = self.read_whole(limits)?;
        let read = |(file, bytes): &(File, u64)| read_small(file, *bytes, SIGNATURE_FILE, MOST_BYTES);
        let signature = self.signature.as_ref().map(read).transpose()?;
        Ok(SignedTable { version, manifest, document, signature })
    }

    /// The same, and the bytes that the manifest was read from.
    fn read_whole(&self, limits: &Limits) -> Result<(Version, Manifest, Vec<u8>)> {
        let (file, bytes) = &self.format;
        let version = Version::parse(&read_small(file, *bytes, FORMAT_FILE, upgrade::LINE_BYTES)?)?;
        let (file, bytes) = &self.manifest;
        let document = read_small(file, *bytes, MANIFEST_FILE, limits.manifest_bytes)?;
        Ok((version, Manifest::decode(&document, version, limits)?, document))
    }
}

impl Documents {
    /// Opens them by their names. Of an encrypted image `records` is what somebody has decrypted.
    pub fn open(dir: BorrowedFd<'_>, records: Option<File>) -> Result<Documents> {
        let (table, decrypted) = (Documents::open_table(dir)?, records.is_some());
        let records = match records {
            Some(file) => {
                let bytes = file.metadata().map_err(|source| Error::io(RECORDS_FILE, "stat", source))?.len();
                Some((file, bytes))
            }
            None => optional(open_regular(dir, RECORDS_FILE))?,
        };
        Ok(Documents { table, records, decrypted })
    }

    /// Opens what says what else there is.
    pub fn open_table(dir: BorrowedFd<'_>) -> Result<Table> {
        Ok(Table {
            format: open_regular(dir, FORMAT_FILE)?,
            manifest: open_regular(dir, MANIFEST_FILE)?,
            signature: optional(open_regular(dir, SIGNATURE_FILE))?,
        })
    }

    /// What says what else there is.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The records: size, digest, shape, types, spelling, in this order, of the same bytes in memory.
    pub fn records<T: Serialize + DeserializeOwned>(
        &self,
        version: Version,
        manifest: &Manifest,
        limits: &Limits,
    ) -> Result<T> {
        if manifest.encryption.is_some() && !self.decrypted {
            return Err(Error::Encrypted { file: stored_name(RECORDS_FILE, None, true) });
        }
        let (file, bytes) = self.records.as_ref().ok_or_else(|| Error::missing(RECORDS_FILE))?;
        decode_records(file, *bytes, version, manifest, limits)
    }

    /// The descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let records = self.records.as_ref().map(|(file, _)| file.as_fd());
        self.table.descriptors().into_iter().chain(records).collect()
    }
}

fn optional<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Err(Error::Missing { .. }) => Ok(None),
        opened => opened.map(Some),
    }
}

fn decode_records<T: Serialize + DeserializeOwned>(
    file: &File,
    bytes: u64,
    version: Version,
    manifest: &Manifest,
    limits: &Limits,
) -> Result<T> {
    let entry = manifest.file(RECORDS_FILE).ok_or_else(|| Error::missing(RECORDS_FILE))?;
    let limit = limits.records_bytes;
    let expected = entry.content_bytes();
    if expected > limit {
        return Err(Error::TooLarge { file: entry.name.clone(), bytes: expected, limit });
    }
    let document = read_small(file, bytes, RECORDS_FILE, limit)?;
    check_size(RECORDS_FILE, expected, u64::try_from(document.len()).unwrap_or(u64::MAX))?;
    // Of an encrypted image the digest is that of what lies on the disk: whoever has decrypted it has compared.
    if manifest.encryption.is_none() && Digest::of(&document) != entry.blake3 {
        return Err(Error::Digest { file: entry.name.clone(), bytes: entry.bytes });
    }
    cbor::decode(&upgrade::records(version, &document)?, limits)
}

/// How much is read and hashed at a time: enough for the widest vectors, small enough for the cache.
pub(crate) const HASH_BYTES: usize = 256 << 10;

fn check_size(name: &str, expected: u64, bytes: u64) -> Result<()> {
    if bytes < expected {
        return Err(Error::truncated(name, bytes));
    }
    if bytes > expected {
        return Err(Error::format(name, expected, "longer than the manifest says"));
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let shown = path.to_string_lossy();
        match errno {
            Errno::NOENT => Error::missing(&shown),
            Errno::NOTDIR => Error::format(&shown, 0, "not a directory"),
            _ => Error::io(&shown, "open", errno),
        }
    })
}

/// Opens a regular file and says its size. Anything else is refused before it is opened, because to open a device or
/// a FIFO can have effects; the flags are for whoever swaps it in between.
pub fn open_regular(dir: BorrowedFd<'_>, name: &str) -> Result<(File, u64)> {
    let wrong = || Error::format(name, 0, "not a regular file");
    let refused = |op| {
        move |errno| match errno {
            Errno::NOENT => Error::missing(name),
            Errno::NOTDIR => Error::format(name, 0, "not in a directory"),
            Errno::LOOP | Errno::NXIO => Error::format(name, 0, "not a regular file"),
            _ => Error::io(name, op, errno),
        }
    };
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(refused("stat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(refused("open"))?;
    let stat = fstat(&file).map_err(refused("stat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong());
    }
    let bytes = u64::try_from(stat.st_size).map_err(|_| wrong())?;
    Ok((File::from(file), bytes))
}

/// Reads a whole file of at most `limit` bytes from its beginning; memory is taken for the bytes that are there, never for a
/// claim. `bytes` is what its inode says. Nothing but `pread` is called.
fn read_small(file: &File, bytes: u64, name: &str, limit: u64) -> Result<Vec<u8>> {
    let too_large = |bytes| Error::TooLarge { file: name.to_owned(), bytes, limit };
    if bytes > limit {
        return Err(too_large(bytes));
    }
    let mut content = Vec::new();
    let mut chunk = vec![0; usize::try_from(bytes.saturating_add(1)).unwrap_or(usize::MAX).min(HASH_BYTES)];
    loop {
        let offset = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if offset > limit {
            return Err(too_large(limit.saturating_add(1)));
        }
        match rustix::io::pread(file, &mut *chunk, offset) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io(name, "read", errno)),
            Ok(0) => return Ok(content),
            Ok(length) => content.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        }
    }
}
