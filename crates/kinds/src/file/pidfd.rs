//! pidfd_open(2): a process of the tree, or one that has been waited for already.
//! *Read from:* fdinfo.
//! *Made again by:* pidfd_open when the process is born; for one that is no more, a process that ends at once.
//! *Lost:* how a process that was waited for had ended (`PIDFD_GET_INFO`). A pidfd of a thread that is no leader is refused.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use yendor_image::NsPid;
use yendor_proc::fdinfo::Detail;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// `O_EXCL`, by which the kernel tells pidfds of threads.
const PIDFD_THREAD: u32 = 0o200;

/// A pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The process inside; none if it has been waited for.
    pub process: Option<NsPid>,
    /// Whether it stands for the thread (`PIDFD_THREAD`).
    pub thread: bool,
}

impl FileKind for Record {
    const NAME: &'static str = "pidfd";
    const LATE: bool = true;

    fn claims(seen: &Seen) -> bool {
        matches!(seen.info.detail, Detail::Pidfd { .. })
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let Detail::Pidfd { pid, .. } = seen.info.detail else {
            return Err(Cause::unsupported(format!("{}: no pidfd", seen.link)));
        };
        let thread = seen.info.flags & PIDFD_THREAD != 0;
        let process = match pid {
            -1 => None,
            _ => Some(*gather.pids.get(&pid).ok_or_else(|| {
                let what = if thread { "a thread" } else { "a process outside of the tree" };
                Cause::unsupported(format!("a pidfd of {what} ({pid})"))
            })?),
        };
        Ok(Record { process, thread })
    }

    fn rebuild(&self, _entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { process, thread } = self;
        let Some(process) = process else { return Ok(yendor_sys::process::ended()?) };
        let pid = workshop.born(*process)?;
        let flags = PidfdFlags::from_bits_retain(if *thread { PIDFD_THREAD } else { 0 });
        let raw = Pid::from_raw(pid).ok_or_else(|| Cause::corrupt(format!("a pidfd of process {process}")))?;
        Ok(pidfd_open(raw, flags).named("pidfd_open", || format!("{pid}, {flags:?}"))?)
    }
}
