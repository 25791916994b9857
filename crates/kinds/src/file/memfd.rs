//! memfd_create(2).
//! *Read from:* the link, `F_GET_SEALS`, and the data extents through a description opened anew.
//! *Made again by:* memfd_create; every description but the first one that writes is opened anew; seals last, when all mappings
//! exist.
//! *Lost:* the inode number, timestamps.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};
use yendor_sys::Errno;

use super::{Entry, FileKind, Gather, Seen, Workshop, regular};
use crate::{Cause, Named, Result};

const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;
/// What fdinfo shows of it on x86_64.
const LARGEFILE: u32 = 0o100_000;
/// Among the workshop's objects: the first description of a memfd is somebody's.
const FIRST: &str = "first description of a memfd";

/// A memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which: the id of its first description.
    pub memfd: FileId,
    /// The name that it was made with.
    pub name: Bytes,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// `F_SEAL_*`.
    pub seals: u32,
    /// Bytes.
    pub size: u64,
    /// The position of this description, bytes.
    pub position: u64,
    /// The blob with its data extents, one after the other; none for an empty file.
    pub blob: Option<String>,
    /// `(offset in the file, bytes)` of each extent of the blob.
    pub extents: Vec<(u64, u64)>,
}

impl FileKind for Record {
    const NAME: &'static str = "memfd";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::RegularFile
            && seen.stat.st_nlink == 0
            && name(&seen.link.0).is_some()
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let fs = rustix::fs::fstatfs(&seen.fd).named("fstatfs", || seen.link.to_string())?;
        if fs.f_type == HUGETLBFS_MAGIC {
            return Err(Cause::unsupported(format!("{}: a memfd of huge pages (MFD_HUGETLB)", seen.link)));
        }
        let memfd = gather.object(Self::NAME, seen);
        let own = regular::reopen(&gather.proc, seen.fd.as_fd(), OFlags::RDONLY)?;
        let seals = rustix::fs::fcntl_get_seals(&own).named("fcntl", || format!("{}, F_GET_SEALS", seen.link))?;
        let extents = regular::extents(&gather.proc, seen)?;
        let blob = if extents.is_empty() { None } else { Some(format!("memfd-{memfd}")) };
        if let Some(name) = &blob
            && memfd == seen.id
        {
            let mut out = gather.writer.file(name)?;
            for (offset, bytes) in &extents {
                regular::copy_out(&own, *offset, *bytes, &mut out)?;
            }
            out.finish()?;
        }
        Ok(Record {
            memfd,
            name: Bytes(name(&seen.link.0).unwrap_or_default().to_vec()),
            mode: seen.stat.st_mode & 0o7777,
            owner: (seen.stat.st_uid, seen.stat.st_gid),
            seals: seals.bits(),
            size: u64::try_from(seen.stat.st_size).unwrap_or(0),
            position: u64::try_from(seen.info.pos).unwrap_or(0),
            blob,
            extents,
        })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let key = (Self::NAME, u64::from(self.memfd.0));
        if !workshop.objects.contains_key(&key) {
            let made = self.make(workshop)?;
            workshop.objects.insert(key, vec![made]);
        }
        let flags = regular::reopen_flags(entry.flags);
        let takes_first = may_be_first(flags) && workshop.objects.insert((FIRST, key.1), Vec::new()).is_none();
        let [made] = workshop.object(key)? else { return Err(Cause::corrupt("an object that is no memfd")) };
        let fd = if takes_first {
            rustix::io::fcntl_dupfd_cloexec(made, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?
        } else {
            regular::reopen(&workshop.proc, made.as_fd(), flags)?
        };
        if self.position != 0 && !flags.contains(OFlags::PATH) {
            let to = SeekFrom::Start(self.position);
            rustix::fs::seek(&fd, to).named("lseek", || format!("{}, {}", self.name, self.position))?;
        }
        Ok(fd)
    }
}

impl Record {
    fn make(&self, workshop: &Workshop<'_>) -> Result<OwnedFd> {
        let Record { memfd: _, name, mode, owner, seals, size, position: _, blob, extents } = self;
        // One that was sealed while it could be executed gets that seal like the others.
        let fd = create(name, SealFlags::from_bits_retain(*seals).contains(SealFlags::EXEC) && mode & 0o111 == 0)?;
        rustix::fs::ftruncate(&fd, *size).named("ftruncate", || format!("{name}, {size}"))?;
        if let (Some(blob), Some(reader)) = (blob, workshop.reader) {
            regular::copy_blob(reader, blob, extents, *size, &fd)?;
        }
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).named("fchown", || format!("{name}, {owner:?}"))?;
        let wanted = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::fchmod(&fd, wanted).named("fchmod", || format!("{name}, {wanted:?}"))?;
        Ok(fd)
    }
}

/// The name in a link of the form `/memfd:NAME (deleted)`.
fn name(link: &[u8]) -> Option<&[u8]> {
    link.strip_prefix(b"/memfd:")?.strip_suffix(b" (deleted)")
}

/// Whether a description has the flags of memfd_create's own, but for those that fcntl can change. That one does not count as one
/// that writes: who has it can execute the file all the same. Nobody's program has another one that writes.
fn may_be_first(flags: OFlags) -> bool {
    let changed = OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::DIRECT | OFlags::NOCTTY;
    flags & !changed == OFlags::RDWR | OFlags::from_bits_retain(LARGEFILE)
}

/// Only what is sealed so may be made so; a mode without execute bits alone comes by fchmod.
fn create(name: &Bytes, sealed: bool) -> Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = base | if sealed { MemfdFlags::NOEXEC_SEAL } else { MemfdFlags::EXEC };
    match rustix::fs::memfd_create(&*name.0, flags) {
        // A kernel before 6.3: executable is a matter of the mode alone.
        Err(Errno::INVAL) => {
            Ok(rustix::fs::memfd_create(&*name.0, base).named("memfd_create", || format!("\"{name}\""))?)
        }
        made => Ok(made.named("memfd_create", || format!("\"{name}\", {flags:?}"))?),
    }
}

/// Puts the seals on; every mapping exists by now, also writable ones made before `F_SEAL_FUTURE_WRITE`.
///
/// # Errors
/// `EBUSY` when the image claims a seal against writing and maps it writable all the same.
pub fn seal_all(workshop: &Workshop<'_>) -> Result<()> {
    for entry in workshop.entries() {
        let super::Record::Memfd(record) = &entry.record else { continue };
        if record.memfd != entry.id {
            continue;
        }
        let Some([made]) = workshop.objects.get(&(Record::NAME, u64::from(record.memfd.0))).map(Vec::as_slice) else {
            continue;
        };
        let wanted = SealFlags::from_bits_retain(record.seals);
        let now = rustix::fs::fcntl_get_seals(made).named("fcntl", || "F_GET_SEALS".into())?;
        if now != wanted {
            let add = wanted - now;
            rustix::fs::fcntl_add_seals(made, add).named("fcntl", || format!("F_ADD_SEALS, {add:?}"))?;
        }
    }
    Ok(())
}
