//! eventfd(2).
//! *Read from:* fdinfo, once more when all tasks have been asked.
//! *Made again by:* eventfd2, then a write of the counter.
//! *Lost:* nothing.

use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;
use serde::{Deserialize, Serialize};
use yendor_proc::fdinfo::Detail;

use super::{Entry, FileId, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// An eventfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The counter, at most 2^64 - 2.
    pub count: u64,
    /// `EFD_SEMAPHORE`.
    pub semaphore: bool,
}

impl FileKind for Record {
    const NAME: &'static str = "eventfd";

    fn claims(seen: &Seen) -> bool {
        matches!(seen.info.detail, Detail::Eventfd(_))
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        Record::read(&seen.info.detail)
    }

    fn rebuild(&self, _entry: &Entry, _workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { count, semaphore } = self;
        let mut flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        flags.set(EventfdFlags::SEMAPHORE, *semaphore);
        let fd = rustix::event::eventfd(0, flags).named("eventfd2", || format!("0, {flags:?}"))?;
        if *count > 0 {
            rustix::io::write(&fd, &count.to_ne_bytes()).named("write", || format!("{count} to an eventfd"))?;
        }
        Ok(fd)
    }
}

impl Record {
    fn read(detail: &Detail) -> Result<Record> {
        let Detail::Eventfd(info) = detail else {
            return Err(Cause::unsupported("an eventfd that is none"));
        };
        let Some(semaphore) = info.semaphore else {
            return Err(Cause::unsupported(
                "an eventfd of a kernel that does not tell about EFD_SEMAPHORE (before 6.5)",
            ));
        };
        if info.count == u64::MAX {
            return Err(Cause::unsupported("an eventfd that overflowed"));
        }
        Ok(Record { count: info.count, semaphore })
    }
}

/// Reads the counters again: a request of asynchronous I/O may have told one of its end since, before its task was asked.
///
/// # Errors
/// The kernel's.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let is_one = |entry: &&Entry| matches!(entry.record, super::Record::Eventfd(_));
    let all: Vec<FileId> = gather.entries.iter().filter(is_one).map(|entry| entry.id).collect();
    for id in all {
        let record = Record::read(&gather.info_of(gather.ours(id)?)?.detail)?;
        gather.fill(id, super::Record::Eventfd(record));
    }
    Ok(())
}
