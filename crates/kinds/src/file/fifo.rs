//! A named pipe.
//! *Read from:* the link in /proc/PID/fd; the rest as of any pipe.
//! *Made again by:* opening the container's inode of that name for both ways, then each end anew, the content written.
//! *Lost:* as of any pipe; a reader that came before the first writer sees its end as hung up.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};

use super::pipe::{self, Content};
use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// One description of one end, or of both (`O_RDWR`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its absolute path inside the container.
    pub path: Bytes,
    /// Which pipe: the id of its first description.
    pub pipe: FileId,
    /// What is in it; with the first description only.
    pub content: Option<Content>,
}

impl FileKind for Record {
    const NAME: &'static str = "fifo";

    fn claims(seen: &Seen) -> bool {
        let named = FileType::from_raw_mode(seen.stat.st_mode) == FileType::Fifo && seen.link.0.starts_with(b"/");
        named && seen.info.flags & OFlags::PATH.bits() == 0
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        if !gather.leads_to(&seen.link.0, &seen.stat) {
            return Err(Cause::unsupported(format!("{}: a named pipe that its name no longer leads to", seen.link)));
        }
        Ok(Record { path: seen.link.clone(), pipe: gather.object(Self::NAME, seen), content: None })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { path, pipe, content } = self;
        let key = (Self::NAME, u64::from(pipe.0));
        if !workshop.objects.contains_key(&key) {
            let both = workshop.find(&path.0, OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY)?;
            let stat = rustix::fs::fstat(&both).named("fstat", || path.to_string())?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
                return Err(Cause::Hole {
                    what: format!("{path} as a named pipe"),
                    option: "--volume or --rootfs".into(),
                });
            }
            let twin = rustix::io::fcntl_dupfd_cloexec(&both, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?;
            workshop.objects.insert(key, vec![both, twin]);
        }
        pipe::rebuild_end(&workshop.proc, workshop.object(key)?, content.as_ref(), entry.flags)
    }
}
