//! A file system of the container's own: its copy-on-write layer over the host's root, or a tmpfs.
//! *Read from:* the layer's upper directory, or the tmpfs, while the tasks are stopped.
//! *Made again by:* the same changes to the new container's root: writing, and for what the layer hides, unlinking.
//! *Lost:* inode numbers, times of access and change; hints for writing (`F_SET_RW_HINT`); labels of files (see [`attribute`]); other extended attributes that the container's
//! root may not set are refused.

pub mod attribute;
mod clear;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Timespec, Timestamps, Uid, fstat, openat,
    openat2, seek,
};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, RECORDS_FILE, Reader, Writer};
use yendor_sys::{Errno, SysError};

use self::clear::remove;
use crate::extent::are_apart;
use crate::{Cause, Named, Result};

/// A file system's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Where it is mounted, inside.
    pub mount: Bytes,
    /// The blob with the data of its files.
    pub blob: Option<String>,
    /// Its entries, directories before what is in them.
    pub entries: Vec<Entry>,
}

/// A name in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Relative to the mount; empty for its root.
    pub path: Bytes,
    /// What is there.
    pub what: What,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Extended attributes.
    pub attributes: attribute::Attributes,
    /// Of a file or a directory the flags that chattr(1) sets, as far as they are kept.
    pub flags: u32,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A directory; `true` when it hides one of the lower layer.
    Directory(bool),
    /// A file: its size and `(offset, bytes)` of its extents, whose data follow each other in the blob from `start`.
    File {
        /// Where in the blob.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// Where it holds data.
        extents: Vec<(u64, u64)>,
    },
    /// Another name of an earlier entry, by its path.
    Link(Bytes),
    /// A symbolic link.
    Symlink(Bytes),
    /// A FIFO.
    Fifo,
    /// A socket's name.
    Socket,
    /// A name of the lower layer that is gone.
    Whiteout,
}

/// Collects what is beneath `top`; data go to `blob`.
///
/// # Errors
/// What cannot be captured is refused by its path.
pub fn collect(top: &OwnedFd, mount: Bytes, blob: &str, writer: &Writer) -> Result<Record> {
    let mut out = Walk { entries: Vec::new(), links: BTreeMap::new(), blob: None, name: blob, writer, at: 0 };
    let own = openat(top, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .named("openat", || mount.to_string())?;
    out.directory(&own, &mut Vec::new())?;
    let blob = match out.blob {
        Some(file) => {
            file.finish()?;
            Some(blob.to_owned())
        }
        None => None,
    };
    Ok(Record { mount, blob, entries: out.entries })
}

struct Walk<'w> {
    entries: Vec<Entry>,
    /// Inodes with several names, by number.
    links: BTreeMap<u64, Bytes>,
    blob: Option<yendor_image::FileWriter<'w>>,
    name: &'w str,
    writer: &'w Writer,
    at: u64,
}

impl<'w> Walk<'w> {
    fn directory(&mut self, dir: &OwnedFd, path: &mut Vec<u8>) -> Result<()> {
        let shown = || path.escape_ascii().to_string();
        if path.iter().filter(|b| **b == b'/').count() > 500 {
            return Err(Cause::unsupported(format!("directories more than 500 deep, in {}", shown())));
        }
        let stat = fstat(dir).named("fstat", shown)?;
        let (attributes, opaque) = attribute::collect(dir)?;
        self.push(path, What::Directory(opaque), &stat, attributes);
        self.flag(dir)?;
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in Dir::read_from(dir).named("getdents64", shown)? {
            let entry = entry.named("getdents64", shown)?;
            names.push(entry.file_name().to_bytes().to_vec());
        }
        names.sort_unstable();
        for name in names.into_iter().filter(|name| name != b"." && name != b"..") {
            let before = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.entry(dir, &name, path)?;
            path.truncate(before);
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &mut Vec<u8>) -> Result<()> {
        let shown = |p: &[u8]| p.escape_ascii().to_string();
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).named("fstatat", || shown(path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let sub = openat(dir, name, flags, Mode::empty()).named("openat", || shown(path))?;
            if fstat(&sub).named("fstat", || shown(path))?.st_dev != fstat(dir).named("fstat", || shown(path))?.st_dev {
                // Another file system: captured on its own or not the container's.
                return Ok(());
            }
            return self.directory(&sub, path);
        }
        // Whiteouts are names of one inode, and no file.
        let is_whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
        if stat.st_nlink > 1 && !is_whiteout {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let first = first.clone();
                self.push(path, What::Link(first), &stat, Vec::new());
                return Ok(());
            }
            self.links.insert(stat.st_ino, Bytes(path.clone()));
        }
        let (mut kept, mut regular) = (Vec::new(), None);
        let what = match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = openat(dir, name, flags, Mode::empty()).named("openat", || shown(path))?;
                kept = attribute::collect(&file)?.0;
                let what = self.file(&file, &stat)?;
                regular = Some(file);
                what
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).named("readlinkat", || shown(path))?;
                What::Symlink(Bytes(target.into_bytes()))
            }
            FileType::Fifo => What::Fifo,
            FileType::Socket => What::Socket,
            _ if is_whiteout => What::Whiteout,
            other => {
                return Err(Cause::unsupported(format!("{}: {other:?} in the container's file system", shown(path))));
            }
        };
        self.push(path, what, &stat, kept);
        regular.map_or(Ok(()), |file| self.flag(&file))
    }

    /// The last entry's flags.
    fn flag(&mut self, file: &OwnedFd) -> Result<()> {
        if let Some(last) = self.entries.last_mut() {
            last.flags = attribute::flags(file)?;
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, stat: &rustix::fs::Stat) -> Result<What> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let start = self.at;
        let mut extents = Vec::new();
        let mut at = 0;
        while at < size {
            let from = match seek(file, SeekFrom::Data(at)) {
                Ok(from) => from,
                Err(Errno::NXIO) => break,
                Err(e) => return Err(SysError::new("lseek", "SEEK_DATA", e).into()),
            };
            let to = seek(file, SeekFrom::Hole(from)).named("lseek", || "SEEK_HOLE".into())?.min(size).max(from);
            self.copy(file, from, to - from)?;
            extents.push((from, to - from));
            at = to;
        }
        Ok(What::File { start, size, extents })
    }

    fn copy(&mut self, file: &OwnedFd, from: u64, bytes: u64) -> Result<()> {
        let blob = match &mut self.blob {
            Some(blob) => blob,
            none => none.insert(self.writer.file(self.name)?),
        };
        let mut buffer = vec![0u8; 256 * 1024];
        let mut done = 0;
        while done < bytes {
            let want = buffer.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
            let n = rustix::io::pread(file, &mut buffer[..want], from + done).named("pread64", || "layer".into())?;
            if n == 0 {
                return Err(Cause::unsupported("a file of the container's layer that shrinks while it is read"));
            }
            blob.write_all(&buffer[..n]).map_err(|e| SysError::io("write", self.name, &e))?;
            done += n as u64;
        }
        self.at += bytes;
        Ok(())
    }

    fn push(&mut self, path: &[u8], what: What, stat: &rustix::fs::Stat, attributes: attribute::Attributes) {
        self.entries.push(Entry {
            path: Bytes(path.to_vec()),
            what,
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            modified: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            attributes,
            flags: 0,
        });
    }
}

/// Makes the changes beneath `top`, the new mount. What is at or below a path of `keep`, absolute ones without symbolic
/// links, is the caller's own and stays as it is.
///
/// # Errors
/// The kernel's refusals; `Corrupt` for paths that leave the mount or data outside the blob.
pub fn rebuild(record: &Record, top: &OwnedFd, keep: &[Vec<u8>], reader: &Reader) -> Result<()> {
    let Record { mount, blob, entries } = record;
    let data = match blob {
        Some(name) => {
            reader.verify(name)?;
            let (file, bytes) = reader.open_file(name)?;
            Some(Data { reader, name, file, bytes })
        }
        None => None,
    };
    let hidden = |entry: &&Entry| entry.what == What::Whiteout;
    let gone: BTreeSet<&[u8]> = entries.iter().filter(hidden).map(|entry| entry.path.0.as_slice()).collect();
    let ours = |entry: &&Entry| !keep.iter().any(|kept| is_within(&mount.0, &entry.path.0, kept));
    for entry in entries.iter().filter(ours) {
        reader.wanted(RECORDS_FILE)?;
        make(entry, top, data.as_ref(), &gone).map_err(|e| at(mount, entry, e))?;
    }
    // Directories last and deepest first: making what is in them changed their times.
    for entry in entries.iter().filter(ours).rev().filter(|e| matches!(e.what, What::Directory(_))) {
        let (parent, name) = place(top, &entry.path.0)?;
        match furnish(&parent, &name, entry).and_then(|()| stamp(&parent, &name, entry)) {
            // Something of the host is mounted on it, read-only: not the container's to change.
            Err(Cause::Sys(e)) if e.errno == Errno::ROFS => {}
            other => other.map_err(|e| at(mount, entry, e))?,
        }
    }
    // A file may be such that nobody can change it any more, nor its directory.
    for entry in entries.iter().filter(ours).rev().filter(|entry| entry.flags != 0) {
        let (parent, name) = place(top, &entry.path.0)?;
        attribute::set_flags(&parent, &name, entry.flags)?;
    }
    Ok(())
}

/// Says of a call which entry it was for.
fn at(mount: &Bytes, entry: &Entry, e: Cause) -> Cause {
    match e {
        Cause::Sys(mut s) => {
            s.args = format!("{mount}/{}: {}", entry.path, s.args);
            s.into()
        }
        other => other,
    }
}

/// Whether it is what [`collect`] writes: each name once, in a directory that comes before it, a link to something, and data of each
/// file's own.
///
/// # Errors
/// `Corrupt` with the path that cannot be.
pub fn check(record: &Record) -> Result<()> {
    let mut seen: BTreeMap<&[u8], &What> = BTreeMap::new();
    let mut data = Vec::new();
    for entry in &record.entries {
        let path = entry.path.0.as_slice();
        let wrong = |what: &str| Err(Cause::corrupt(format!("{} in a layer: {what}", path.escape_ascii())));
        if !is_plain(path) {
            return wrong("no path of a file in it");
        }
        let directory = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
        if !directory.is_empty() && !matches!(seen.get(directory), Some(What::Directory(_))) {
            return wrong("no directory before it has it");
        }
        if path.is_empty() && !matches!(entry.what, What::Directory(_)) {
            return wrong("its root is no directory");
        }
        if let What::Link(to) = &entry.what
            && matches!(seen.get(to.0.as_slice()), None | Some(What::Directory(_)))
        {
            return wrong("another name of what is not there");
        }
        if let What::File { start, size: _, extents } = &entry.what {
            if !are_apart(extents.iter().copied()) {
                return wrong("what is in it overlaps");
            }
            data.push((*start, extents.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))));
        }
        if seen.insert(path, &entry.what).is_some() {
            return wrong("it is there twice");
        }
    }
    if are_apart(data) { Ok(()) } else { Err(Cause::corrupt("two files of a layer have the same data")) }
}

/// Whether a path of a mount is `kept` or below it.
fn is_within(mount: &[u8], path: &[u8], kept: &[u8]) -> bool {
    let mount = if mount == b"/" { &b""[..] } else { mount };
    let whole = if path.is_empty() { mount.to_vec() } else { [mount, b"/", path].concat() };
    whole.strip_prefix(kept).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Whether a path leads to nothing but what is beneath.
fn is_plain(path: &[u8]) -> bool {
    let leaves = path.starts_with(b"/") || path.split(|b| *b == b'/').any(|part| part == b".." || part == b".");
    !leaves && !path.contains(&0)
}

/// The directory of a path, opened without following any link, and the last name; "." for the mount itself.
fn place(top: &OwnedFd, path: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
    if !is_plain(path) {
        return Err(Cause::corrupt(format!("the path {} in a layer", path.escape_ascii())));
    }
    let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (&b"."[..], path),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let parent =
        openat2(top, dir, flags, Mode::empty(), resolve).named("openat2", || dir.escape_ascii().to_string())?;
    Ok((parent, if name.is_empty() { b".".to_vec() } else { name.to_vec() }))
}

/// Older images have all whiteouts but the first as links to it, which is `gone`.
fn make(entry: &Entry, top: &OwnedFd, data: Option<&Data<'_>>, gone: &BTreeSet<&[u8]>) -> Result<()> {
    let Entry { path, what, mode, owner: _, modified: _, attributes, flags: _ } = entry;
    let mut written = None;
    let (parent, name) = place(top, &path.0)?;
    let permissions = Mode::from_raw_mode(*mode);
    if !matches!(what, What::Directory(false)) && name != b"." && !remove(&parent, &name)? {
        // Something of the host is mounted there, in the new container as in the old one.
        return Ok(());
    }
    match what {
        What::Whiteout => return Ok(()),
        What::Directory(_) => {
            let mut made = rustix::fs::mkdirat(&parent, name.as_slice(), Mode::RWXU);
            // What is no directory is hidden by one, as in a layer.
            if made == Err(Errno::EXIST) && !is_directory(&parent, &name)? {
                if !remove(&parent, &name)? {
                    return Err(Cause::Hole {
                        what: format!("a directory {path}, where a file of this host is"),
                        option: "--rootfs".into(),
                    });
                }
                made = rustix::fs::mkdirat(&parent, name.as_slice(), Mode::RWXU);
            }
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(SysError::new("mkdirat", "", e).into()),
            }
        }
        What::File { start, size, extents } => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&parent, name.as_slice(), flags, Mode::RUSR | Mode::WUSR).named("openat", String::new)?;
            fill(&file, *start, *size, extents, data)?;
            written = Some(file);
        }
        What::Link(to) if gone.contains(to.0.as_slice()) => return Ok(()),
        What::Link(to) => {
            let (old_parent, old_name) = place(top, &to.0)?;
            rustix::fs::linkat(&old_parent, old_name.as_slice(), &parent, name.as_slice(), AtFlags::empty())
                .named("linkat", || to.to_string())?;
            return Ok(());
        }
        What::Symlink(target) => {
            rustix::fs::symlinkat(target.0.as_slice(), &parent, name.as_slice()).named("symlinkat", String::new)?;
        }
        What::Fifo | What::Socket => {
            let kind = if *what == What::Fifo { FileType::Fifo } else { FileType::Socket };
            rustix::fs::mknodat(&parent, name.as_slice(), kind, permissions, 0).named("mknodat", String::new)?;
        }
    }
    if matches!(what, What::Directory(_)) {
        return Ok(());
    }
    stamp(&parent, &name, entry)?;
    written.map_or(Ok(()), |file| attribute::rebuild(&file, attributes))
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> Result<bool> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).named("fstatat", String::new)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// The extended attributes of a directory, which must be one.
fn furnish(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty()).named("openat", String::new)?;
    attribute::rebuild(&directory, &entry.attributes)
}

/// Owner, permissions, time: in this order, since a change of owner clears bits.
fn stamp(parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    let Entry { path: _, what, mode, owner: (uid, gid), modified: (seconds, nanoseconds), attributes: _, flags: _ } =
        entry;
    let now = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).named("fstatat", String::new)?;
    if (now.st_uid, now.st_gid) != (*uid, *gid) {
        let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .named("fchownat", || format!("{uid:?}, {gid:?}"))?;
    }
    if now.st_mode & 0o7777 != *mode && !matches!(what, What::Symlink(_)) {
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(*mode), AtFlags::empty())
            .named("fchmodat", String::new)?;
    }
    let time = Timespec { tv_sec: *seconds, tv_nsec: *nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).named("utimensat", String::new)?;
    Ok(())
}

/// What is in the files of a layer.
struct Data<'r> {
    reader: &'r Reader,
    name: &'r str,
    file: std::fs::File,
    bytes: u64,
}

fn fill(file: &OwnedFd, start: u64, size: u64, extents: &[(u64, u64)], data: Option<&Data<'_>>) -> Result<()> {
    rustix::fs::ftruncate(file, size).named("ftruncate", || format!("{size}"))?;
    let mut from = start;
    let mut buffer = vec![0u8; 256 * 1024];
    for (offset, len) in extents {
        let outside = || Cause::corrupt("a file of a layer has data outside the blob or itself");
        let Data { reader, name, file: blob, bytes } = data.ok_or_else(outside)?;
        let end = from.checked_add(*len).filter(|end| end <= bytes).ok_or_else(outside)?;
        offset.checked_add(*len).filter(|end| *end <= size).ok_or_else(outside)?;
        let mut at = *offset;
        while from < end {
            reader.wanted(name)?;
            let want = buffer.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
            let n = rustix::io::pread(blob.as_fd(), &mut buffer[..want], from).named("pread64", || "layer".into())?;
            let w = rustix::io::pwrite(file, &buffer[..n], at).named("pwrite64", || format!("{at}"))?;
            if w == 0 {
                return Err(outside());
            }
            from += w as u64;
            at += w as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::shared::tests::Awaited;

    #[test]
    fn no_file_of_a_layer_is_filled_for_nobody() {
        let to = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd_create");
        Awaited::new("layer").while_awaited(|reader| {
            let (file, bytes) = reader.open_file("pages-0")?;
            fill(&to, 0, bytes, &[(0, bytes)], Some(&Data { reader, name: "pages-0", file, bytes }))
        });
    }
}
