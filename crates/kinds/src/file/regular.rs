//! A regular file or a directory, opened by its name; also anything opened with `O_PATH`.
//! *Read from:* the link in /proc/PID/fd, fdinfo, fstat; a deleted file's content through the description itself.
//! *Made again by:* openat2 beneath the container's root; a deleted file is written anew and unlinked.
//! *Lost:* the inode number of a deleted file; the name of one that was replaced by another; that a name was removed while
//! the file has others: it is opened by one; a position in a directory that changed meanwhile means what it means then;
//! times, extended attributes and `O_NOFOLLOW` of a deleted file; what `F_NOTIFY` watches, which nobody can read.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_proc::status;
use yendor_sys::patience;
use yendor_task::tree::read_proc;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// A file with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its absolute path inside the container; of a deleted file, the path it had.
    pub path: Bytes,
    /// What kind of inode it is: the `S_IFMT` bits and permissions.
    pub mode: u32,
    /// The position in bytes (in a directory: the file system's cookie).
    pub position: u64,
    /// Size in bytes at checkpoint: a file that shrank since would misbehave, so restore refuses it.
    pub size: u64,
    /// A file that no name leads to any more travels in the image.
    pub ghost: Option<Ghost>,
}

/// A deleted file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ghost {
    /// Tells apart the ghosts of one image: descriptions of one file share it.
    #[serde(rename = "inode")]
    pub number: u64,
    /// The blob with its data extents, one after the other; `None` for a directory or an empty file.
    pub blob: Option<String>,
    /// `(offset in the file, bytes)` of each extent of the blob.
    pub extents: Vec<(u64, u64)>,
    /// Owner and group.
    pub owner: (u32, u32),
}

impl Record {
    /// Whether what is opened with these flags can be of its kind: a file or a directory, but for what is only a path to something
    /// (`O_PATH`).
    #[must_use]
    pub fn is_possible(&self, flags: u32) -> bool {
        let plain = matches!(FileType::from_raw_mode(self.mode), FileType::RegularFile | FileType::Directory);
        plain || flags & OFlags::PATH.bits() != 0
    }
}

impl Record {
    /// Where a file that no name leads to was.
    pub(super) fn ghost_directory(&self) -> Option<&[u8]> {
        self.ghost.as_ref().map(|_| parent(&self.path.0))
    }
}

impl FileKind for Record {
    const NAME: &'static str = "regular";

    fn claims(seen: &Seen) -> bool {
        let by_name = seen.link.0.starts_with(b"/");
        let kind = FileType::from_raw_mode(seen.stat.st_mode);
        by_name
            && (seen.info.flags & OFlags::PATH.bits() != 0
                || matches!(kind, FileType::RegularFile | FileType::Directory) && !seen.link.0.starts_with(b"/memfd:"))
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let (path, ghost) = if gather.leads_to(&seen.link.0, &seen.stat) {
            (seen.link.0.clone(), None)
        } else if let Some(other) = linked_elsewhere(seen, gather)? {
            (other, None)
        } else if seen.stat.st_nlink > 0 && !is_deleted(&seen.link.0) {
            return Err(Cause::unsupported(format!("{}: another file lies at this path now", seen.link)));
        } else {
            let path = seen.link.0.strip_suffix(b" (deleted)").unwrap_or(&seen.link.0).to_vec();
            (path, Some(Ghost::collect(seen, gather)?))
        };
        if ghost.is_none() {
            refuse_half_read(seen, &path, gather)?;
        }
        Ok(Record {
            path: Bytes(path),
            mode: seen.stat.st_mode,
            position: u64::try_from(seen.info.pos).unwrap_or(0),
            size: u64::try_from(seen.stat.st_size).unwrap_or(0),
            ghost,
        })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { path, mode, position, size, ghost } = self;
        let flags = reopen_flags(entry.flags);
        let fd = match ghost {
            Some(ghost) => ghost.open(self, entry.flags, workshop)?,
            None => workshop.find(&path.0, flags)?,
        };
        let stat = rustix::fs::fstat(&fd).named("fstat", || path.to_string())?;
        let kind = |m| FileType::from_raw_mode(m);
        if kind(stat.st_mode) != kind(*mode) {
            return Err(Cause::Hole {
                what: format!("{path} as it was: it is another kind of file now"),
                option: "--volume or --rootfs".into(),
            });
        }
        if flags.contains(OFlags::PATH) {
            return Ok(fd);
        }
        let is_file = kind(*mode) == FileType::RegularFile;
        if is_file && u64::try_from(stat.st_size).unwrap_or(0) < *size {
            return Err(Cause::Hole {
                what: format!("{path} with at least {size} bytes: it has {} now", stat.st_size),
                option: "the file as it was at the checkpoint".into(),
            });
        }
        if *position != 0 {
            rustix::fs::seek(&fd, SeekFrom::Start(*position)).named("lseek", || format!("{path}, {position}"))?;
        }
        Ok(fd)
    }
}

/// Flags for open: creation flags are over, and nothing becomes a controlling terminal.
pub(super) fn reopen_flags(flags: u32) -> OFlags {
    let over = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::NOCTTY;
    let mut flags = OFlags::from_bits_retain(flags) & !over;
    // O_TMPFILE contains O_DIRECTORY: fdinfo shows both for a file made so; a ghost is opened as a file.
    if flags.contains(OFlags::TMPFILE) {
        flags &= !OFlags::TMPFILE;
    }
    flags | OFlags::NOCTTY
}

/// Another name of a file whose name was removed, if it has any.
fn linked_elsewhere(seen: &Seen, gather: &Gather<'_>) -> Result<Option<Vec<u8>>> {
    let Some(gone) = seen.link.0.strip_suffix(b" (deleted)") else { return Ok(None) };
    if seen.stat.st_nlink == 0 || FileType::from_raw_mode(seen.stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    super::search::other_name(gather, gone, &seen.stat)
}

fn is_deleted(link: &[u8]) -> bool {
    link.ends_with(b" (deleted)")
}

/// A position in the middle of a directory means something only to a file system that is not made again. To read a directory
/// is over soon.
fn refuse_half_read(seen: &Seen, path: &[u8], gather: &Gather<'_>) -> Result<()> {
    const TMPFS: i64 = 0x0102_1994;
    const OVERLAY: i64 = 0x794c_7630;
    let position = u64::try_from(seen.info.pos).unwrap_or(0);
    let is_directory = FileType::from_raw_mode(seen.stat.st_mode) == FileType::Directory;
    if !is_directory || position == 0 || seen.info.flags & OFlags::PATH.bits() != 0 {
        return Ok(());
    }
    let system = rustix::fs::fstatfs(&seen.fd).named("fstatfs", || seen.link.to_string())?;
    if ![TMPFS, OVERLAY].contains(&system.f_type) {
        return Ok(());
    }
    // A description of our own: the position is its owner's.
    let again = gather.open_inside(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    rustix::fs::seek(&again, SeekFrom::Start(position)).named("lseek", || format!("{}, {position}", seen.link))?;
    let mut room = [std::mem::MaybeUninit::uninit(); 1024];
    match rustix::fs::RawDir::new(&again, &mut room).next() {
        None => Ok(()),
        Some(_) => Err(Cause::passing(format!("{}: a directory that somebody is reading", seen.link))),
    }
}

impl Ghost {
    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Ghost> {
        let number = gather.ghost(seen.stat.st_dev, seen.stat.st_ino);
        let owner = (seen.stat.st_uid, seen.stat.st_gid);
        if FileType::from_raw_mode(seen.stat.st_mode) == FileType::Directory {
            return Ok(Ghost { number, blob: None, extents: Vec::new(), owner });
        }
        if seen.stat.st_nlink > 0 {
            return Err(Cause::unsupported(format!("{}: the file has other names that are not known", seen.link)));
        }
        if gather.is_foreign && !is_read_by(seen) && !may_read(seen, &gather.proc)? {
            let what = "a deleted file that its task has open, but not for reading, and may not read";
            return Err(Cause::unsupported(format!("{}: {what}: the image would tell what is in it", seen.link)));
        }
        let name = format!("ghost-{number}");
        let extents = extents(&gather.proc, seen)?;
        if extents.is_empty() {
            return Ok(Ghost { number, blob: None, extents, owner });
        }
        if gather.recorded.insert(number) {
            let readable = readable(&gather.proc, seen)?;
            let mut out = gather.writer.file(&name)?;
            for (offset, bytes) in &extents {
                copy_out(&readable, *offset, *bytes, &mut out)?;
            }
            out.finish()?;
        }
        Ok(Ghost { number, blob: Some(name), extents, owner })
    }

    /// The description of a file that is made again and unlinked; further descriptions of it open the same inode.
    fn open(&self, file: &Record, flags: u32, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        // A file that never had a name (O_TMPFILE) shows it in its maker's flags.
        let maker = OFlags::from_bits_retain(flags);
        let nameless = maker.contains(OFlags::TMPFILE) && maker & OFlags::ACCMODE == OFlags::RDWR;
        let flags = reopen_flags(flags);
        if FileType::from_raw_mode(file.mode) == FileType::Directory {
            return self.open_directory(&file.path, flags, workshop);
        }
        let key = ("ghost", self.number);
        if !workshop.objects.contains_key(&key) {
            let made = self.make(file, nameless, workshop)?;
            // One that can write would keep the file from being anybody's program (ETXTBSY), in every stub that inherits it.
            let original = reopen(&workshop.proc, made.as_fd(), OFlags::PATH)?;
            workshop.objects.insert(key, vec![original]);
            if nameless {
                return Ok(made);
            }
        }
        let original = &workshop.objects[&key][0];
        reopen(&workshop.proc, original.as_fd(), flags)
    }

    fn make(&self, file: &Record, nameless: bool, workshop: &Workshop<'_>) -> Result<OwnedFd> {
        let Record { path, mode, size, .. } = file;
        let Ghost { number: _, blob, extents, owner } = self;
        let wanted = Mode::from_raw_mode(*mode & 0o7777);
        let fd = unnamed(path, nameless, workshop)?;
        rustix::fs::ftruncate(&fd, *size).named("ftruncate", || format!("{path}, {size}"))?;
        if let (Some(name), Some(reader)) = (blob, workshop.reader) {
            copy_blob(reader, name, extents, *size, &fd)?;
        }
        rustix::fs::fchown(&fd, Some(rustix::fs::Uid::from_raw(owner.0)), Some(rustix::fs::Gid::from_raw(owner.1)))
            .named("fchown", || format!("{path}, {owner:?}"))?;
        rustix::fs::fchmod(&fd, wanted).named("fchmod", || format!("{path}, {wanted:?}"))?;
        Ok(fd)
    }

    fn open_directory(&self, path: &Bytes, flags: OFlags, workshop: &Workshop<'_>) -> Result<OwnedFd> {
        // Nobody else's, also in a directory that other containers share.
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .named("getrandom", || "8".into())?;
        let name = format!(".yendor-ghost-{:x}", u64::from_ne_bytes(random));
        let make = |parent: &[u8]| {
            let directory = workshop.open(parent, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())?;
            let shown = || format!("{name} in \"{}\"", parent.escape_ascii());
            rustix::fs::mkdirat(&directory, &name, Mode::RWXU).named("mkdirat", shown)?;
            Ok(directory)
        };
        let parent = workshop.or_in_tmp(&path.0, make(parent(&path.0)), || make(b"/tmp"))?;
        let fd =
            rustix::fs::openat(&parent, &name, flags | OFlags::CLOEXEC, Mode::empty()).named("openat", || name.clone());
        rustix::fs::unlinkat(&parent, &name, rustix::fs::AtFlags::REMOVEDIR).named("unlinkat", || name.clone())?;
        Ok(fd?)
    }
}

/// A new file that no name leads to, remembered under its old name if that is free.
fn unnamed(path: &Bytes, nameless: bool, workshop: &Workshop<'_>) -> Result<OwnedFd> {
    let private = Mode::RUSR | Mode::WUSR;
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR;
    if !nameless {
        match workshop.open(&path.0, create, private) {
            Ok(fd) => {
                let directory = workshop.open(parent(&path.0), OFlags::DIRECTORY | OFlags::PATH, Mode::empty())?;
                let name = path.0.rsplit(|b| *b == b'/').next().unwrap_or_default();
                rustix::fs::unlinkat(&directory, name, rustix::fs::AtFlags::empty())
                    .named("unlinkat", || path.to_string())?;
                return Ok(fd);
            }
            Err(e) if workshop.forbids(&path.0, &e) => return Err(e.into()),
            // Another has the name, or the directory is gone, or is somebody else's.
            Err(_) => {}
        }
    }
    let make = |directory: &[u8]| workshop.open(directory, OFlags::TMPFILE | OFlags::RDWR, private);
    Ok(workshop.or_in_tmp(&path.0, make(parent(&path.0)), || make(b"/tmp"))?)
}

/// The directory part of a path.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|b| *b == b'/') {
        Some(0) | None => b"/",
        Some(i) => &path[..i],
    }
}

/// The same inode as a new description: through self/fd of a /proc that shows us, whatever root we have.
///
/// # Errors
/// What openat says.
pub fn reopen(proc: &OwnedFd, fd: std::os::fd::BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd as _;
    let path = format!("self/fd/{}", fd.as_raw_fd());
    // What is opened is a link by its nature.
    let flags = flags & !OFlags::NOFOLLOW;
    let open = || rustix::fs::openat(proc, path.as_str(), flags | OFlags::CLOEXEC, Mode::empty());
    Ok(patience::with("openat", 0, open).named("openat", || format!("/proc/{path}, {flags:?}"))?)
}

/// Whether a description can be read.
fn is_read_by(seen: &Seen) -> bool {
    seen.info.flags & 3 != OFlags::WRONLY.bits() && seen.info.flags & OFlags::PATH.bits() == 0
}

/// Whether whoever holds it could open it for reading, by its mode. Of what is on its way in a socket nobody knows.
fn may_read(seen: &Seen, proc: &OwnedFd) -> Result<bool> {
    const DAC_OVERRIDE_OR_READ_SEARCH: u64 = 1 << 1 | 1 << 2;
    let Some((pid, _)) = seen.holder else { return Ok(false) };
    let task = status::parse(&read_proc(proc.as_fd(), &format!("{pid}/status"))?)?;
    let user = |who: &str| {
        let path = format!("{who}/ns/user");
        rustix::fs::readlinkat(proc, path.as_str(), Vec::new()).named("readlinkat", || format!("/proc/{path}"))
    };
    // In a user namespace of its own it has none over our files.
    if task.cap_eff & DAC_OVERRIDE_OR_READ_SEARCH != 0 && user(&pid.to_string())? == user("self")? {
        return Ok(true);
    }
    let ([.., uid], [.., gid]) = (task.uid, task.gid);
    if seen.stat.st_uid != uid && has_acl(seen)? {
        // It may name this user, or a group, to let it or not; the mode does not say.
        return Ok(false);
    }
    let in_group = seen.stat.st_gid == gid || task.groups.contains(&seen.stat.st_gid);
    let needed = match (seen.stat.st_uid == uid, in_group) {
        (true, _) => Mode::RUSR,
        (false, true) => Mode::RGRP,
        (false, false) => Mode::ROTH,
    };
    Ok(Mode::from_raw_mode(seen.stat.st_mode).contains(needed))
}

/// Whether a file has an access control list (acl(5)) beyond its mode.
fn has_acl(seen: &Seen) -> Result<bool> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", seen.fd.as_raw_fd());
    match rustix::fs::getxattr(path.as_str(), "system.posix_acl_access", &mut [0u8; 0][..]) {
        Ok(_) => Ok(true),
        Err(yendor_sys::Errno::NODATA | yendor_sys::Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e).named("getxattr", || path).map_err(Cause::from),
    }
}

/// A description of the same file that can be read.
fn readable(proc: &OwnedFd, seen: &Seen) -> Result<OwnedFd> {
    if !is_read_by(seen) {
        return reopen(proc, seen.fd.as_fd(), OFlags::RDONLY);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&seen.fd, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?)
}

/// The extents that hold data.
pub(super) fn extents(proc: &OwnedFd, seen: &Seen) -> Result<Vec<(u64, u64)>> {
    let size = u64::try_from(seen.stat.st_size).unwrap_or(0);
    // Seeking moves the position: never on the task's own description.
    let own = reopen(proc, seen.fd.as_fd(), OFlags::RDONLY)?;
    let mut out = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&own, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(yendor_sys::SysError::new("lseek", format!("{}, SEEK_DATA", seen.link), e).into()),
        };
        let end =
            rustix::fs::seek(&own, SeekFrom::Hole(start)).named("lseek", || format!("{}, SEEK_HOLE", seen.link))?;
        out.push((start, end.min(size).saturating_sub(start)));
        at = end;
    }
    Ok(out)
}

/// Appends a range of a file to a blob.
pub(super) fn copy_out(from: &OwnedFd, offset: u64, bytes: u64, out: &mut impl std::io::Write) -> Result<()> {
    let mut buffer = vec![0u8; 256 * 1024];
    let mut done = 0;
    while done < bytes {
        let want = buffer.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
        let read = || rustix::io::pread(from, &mut buffer[..want], offset + done);
        let n = patience::with("pread64", 0, read).named("pread64", || format!("{offset}"))?;
        if n == 0 {
            return Err(Cause::unsupported("a deleted file that shrinks while it is read"));
        }
        out.write_all(&buffer[..n]).map_err(|e| yendor_sys::SysError::io("write", "ghost", &e))?;
        done += n as u64;
    }
    Ok(())
}

/// Writes the extents of a blob to their places in a file of `size` bytes.
pub(super) fn copy_blob(
    reader: &yendor_image::Reader,
    name: &str,
    extents: &[(u64, u64)],
    size: u64,
    to: &OwnedFd,
) -> Result<()> {
    reader.verify(name)?;
    let (blob, bytes) = reader.open_file(name)?;
    let mut from = 0u64;
    for (offset, len) in extents {
        if from.checked_add(*len).is_none_or(|end| end > bytes) || offset.checked_add(*len).is_none_or(|e| e > size) {
            return Err(Cause::corrupt(format!("{name}: an extent lies outside")));
        }
        copy_in((reader, name), blob.as_fd(), (from, *len), to, *offset)?;
        from += len;
    }
    Ok(())
}

fn copy_in(
    (reader, name): (&yendor_image::Reader, &str),
    blob: std::os::fd::BorrowedFd<'_>,
    (from, bytes): (u64, u64),
    to: &OwnedFd,
    offset: u64,
) -> Result<()> {
    let mut buffer = vec![0u8; 256 * 1024];
    let mut done = 0;
    while done < bytes {
        let want = buffer.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
        reader.wanted(name)?;
        let n = rustix::io::pread(blob, &mut buffer[..want], from + done).named("pread64", || format!("{from}"))?;
        if n == 0 {
            return Err(Cause::corrupt("a blob ends early"));
        }
        let mut file = &buffer[..n];
        let mut at = offset + done;
        while !file.is_empty() {
            let w = rustix::io::pwrite(to, file, at).named("pwrite64", || format!("{at}"))?;
            file = &file[w..];
            at += w as u64;
        }
        done += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::shared::tests::Awaited;

    #[test]
    fn no_deleted_file_is_filled_for_nobody() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd_create");
        Awaited::new("regular").while_awaited(|reader| {
            let (blob, bytes) = reader.open_file("pages-0")?;
            copy_in((reader, "pages-0"), blob.as_fd(), (0, bytes), &file, 0)
        });
    }
}
