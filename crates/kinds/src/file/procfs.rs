//! A file or directory below /proc.
//! *Read from:* the link in /proc/PID/fd, fdinfo.
//! *Made again by:* opening it in the container's /proc when all processes are born.
//! *Lost:* text that was read in part: what follows is of the time after. A file of a process that is no more is refused.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom, fstatfs};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;

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
        let fd = workshop.open(&path.0, regular::reopen_flags(entry.flags), Mode::empty())?;
        if fstatfs(&fd).named("fstatfs", || path.to_string())?.f_type != MAGIC {
            return Err(Cause::corrupt(format!("{path} is no file of /proc")));
        }
        if *position != 0 && entry.flags & OFlags::PATH.bits() == 0 {
            rustix::fs::seek(&fd, SeekFrom::Start(*position)).named("lseek", || format!("{path}, {position}"))?;
        }
        Ok(fd)
    }
}
