//! A file or directory below /proc.
//! *Read from:* the link in /proc/PID/fd, fdinfo.
//! *Made again by:* opening it in the container's /proc when all processes are born.
//! *Lost:* text that was read in part: what follows is of the time after. A file of a process that is no more is refused.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom, fstatfs};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::Errno;

use super::{Entry, FileKind, Gather, Seen, Workshop, regular};
use crate::{Cause, Named, Result};

/// `PROC_SUPER_MAGIC` (statfs(2)).
const MAGIC: i64 = 0x9fa0;

/// A file of /proc.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its absolute path inside the container.
    pub path: Bytes,
    /// The position.
    pub position: u64,
}

/// Why a file of /proc is not there: that of a process is not in the image either, others are the kernel's.
fn lacking(path: &Bytes) -> Cause {
    let first = path.0.strip_prefix(b"/proc/").and_then(|rest| rest.first());
    if first.is_some_and(u8::is_ascii_digit) {
        return Cause::corrupt(format!("{path}: no process of it is in the image"));
    }
    Cause::of_machine(format!("{path}, which this kernel does not have"), "a kernel that has it")
}

impl FileKind for Record {
    const NAME: &'static str = "proc";
    const LATE: bool = true;

    fn claims(seen: &Seen) -> bool {
        seen.link.0.starts_with(b"/") && fstatfs(&seen.fd).is_ok_and(|s| s.f_type == MAGIC)
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        if !gather.leads_to(&seen.link.0, &seen.stat) {
            return Err(Cause::unsupported(format!("{}: its process is no more", seen.link)));
        }
        let writes = OFlags::from_bits_retain(seen.info.flags) & OFlags::ACCMODE != OFlags::RDONLY;
        if writes && seen.link.0.starts_with(b"/proc/pressure/") {
            return Err(Cause::unsupported(format!("{}: perhaps with a trigger, which nobody can read", seen.link)));
        }
        Ok(Record { path: seen.link.clone(), position: u64::try_from(seen.info.pos).unwrap_or(0) })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { path, position } = self;
        let fd = match workshop.open(&path.0, regular::reopen_flags(entry.flags), Mode::empty()) {
            Err(e) if matches!(e.errno, Errno::NOENT | Errno::NOTDIR) => return Err(lacking(path)),
            opened => opened?,
        };
        if fstatfs(&fd).named("fstatfs", || path.to_string())?.f_type != MAGIC {
            return Err(Cause::corrupt(format!("{path} is no file of /proc")));
        }
        if *position != 0 && entry.flags & OFlags::PATH.bits() == 0 {
            rustix::fs::seek(&fd, SeekFrom::Start(*position)).named("lseek", || format!("{path}, {position}"))?;
        }
        Ok(fd)
    }
}
