//! epoll(7): which descriptions it watches, under which numbers.
//! *Read from:* fdinfo; `KCMP_EPOLL_TFD` finds the description behind each number, which may be closed by now; `EPIOCGPARAMS`.
//! *Made again by:* epoll_ctl in the workshop, in a copy of its descriptor table where the targets have their numbers.
//! *Lost:* an edge that was delivered already is delivered again; `EPOLLWAKEUP` without `CAP_BLOCK_SUSPEND`; a one-shot
//! target that had fired and that is not ready for anything now may still tell a hang-up before it is armed again.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::epoll;
use serde::{Deserialize, Serialize};
use yendor_image::{FdNum, FileId};
use yendor_proc::fdinfo::{Detail, EpollTarget};
use yendor_sys::Errno;
use yendor_sys::event::{BusyPoll, Interest, busy_poll, register, set_busy_poll};
use yendor_sys::kcmp::epoll_target;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// `EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET`: all that is left of a one-shot target that has fired.
const PRIVATE: u32 = 0xf000_0000;
const ONESHOT: u32 = 0x4000_0000;

/// An epoll instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it watches, ordered by number.
    pub targets: Vec<Target>,
    /// How it polls devices busily: microseconds, packets at once, whether it prefers to. All zero: it does not.
    pub busy_poll: BusyPoll,
}

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The descriptor under which it was added: with the description, its key.
    pub number: FdNum,
    /// The description.
    pub file: FileId,
    /// `EPOLL*`.
    pub events: u32,
    /// User data.
    pub data: u64,
}

impl FileKind for Record {
    const NAME: &'static str = "epoll";

    fn claims(seen: &Seen) -> bool {
        matches!(seen.info.detail, Detail::Epoll(_)) || seen.link.0 == b"anon_inode:[eventpoll]"
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        // Which descriptions these are is known when all are: in `finish`.
        if let Detail::Epoll(targets) = &seen.info.detail {
            gather.epolls.insert(seen.id, targets.clone());
        }
        let busy_poll = match busy_poll(&seen.fd) {
            // Before Linux 6.9 nobody can have set it.
            Err(e) if matches!(e.errno, Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => (0, 0, 0),
            told => told?,
        };
        Ok(Record { targets: Vec::new(), busy_poll })
    }

    fn rebuild(&self, _entry: &Entry, _workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        // The targets follow in `register_all`: one of them may hold this epoll in its queue.
        let Record { targets: _, busy_poll } = self;
        let made = epoll::create(epoll::CreateFlags::CLOEXEC).named("epoll_create1", || "EPOLL_CLOEXEC".into())?;
        if *busy_poll != (0, 0, 0) {
            set_busy_poll(&made, *busy_poll)?;
        }
        Ok(made)
    }
}

/// Once all descriptions are known: which of them each epoll watches.
///
/// # Errors
/// `Unsupported` for a target that no process of the tree holds.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    for (id, raw) in std::mem::take(&mut gather.epolls) {
        let mut targets = Vec::with_capacity(raw.len());
        for (at, target) in raw.iter().enumerate() {
            // The kernel counts the targets of one number in the order in which it prints them.
            let index = raw[..at].iter().filter(|t| t.tfd == target.tfd).count();
            let file = find(gather, id, target, u32::try_from(index).unwrap_or(u32::MAX))?;
            targets.push(Target { number: FdNum(target.tfd), file, events: target.events, data: target.data });
        }
        targets.sort_unstable();
        if let Some(super::Record::Epoll(record)) = gather.entries.get_mut(id.0 as usize).map(|e| &mut e.record) {
            record.targets = targets;
        }
    }
    Ok(())
}

fn find(gather: &Gather<'_>, epoll: FileId, target: &EpollTarget, index: u32) -> Result<FileId> {
    let epoll = gather.ours(epoll)?.as_raw_fd();
    for id in gather.with_inode(target.dev.st_dev(), target.ino) {
        let candidate = gather.ours(*id)?.as_raw_fd();
        if epoll_target(candidate, epoll, target.tfd, index)? {
            return Ok(*id);
        }
    }
    let EpollTarget { tfd, ino, .. } = target;
    Err(Cause::unsupported(format!(
        "an epoll watches a file that nobody in the tree holds (number {tfd}, inode {ino})"
    )))
}

/// Registers the targets of every epoll that exist by now: the late ones, or all others.
///
/// # Errors
/// What epoll_ctl says; `Corrupt` for targets that it takes for impossible.
pub fn register_all(workshop: &Workshop<'_>, late: bool) -> Result<()> {
    for entry in workshop.entries() {
        let super::Record::Epoll(Record { targets, busy_poll: _ }) = &entry.record else { continue };
        let epoll = workshop.existing(entry.id)?;
        let mut interests = Vec::with_capacity(targets.len());
        for Target { number, file, events, data } in targets {
            if workshop.entry(*file)?.record.is_late() != late {
                continue;
            }
            let target = workshop.existing(*file)?;
            let spent = events & !PRIVATE == 0 && events & ONESHOT != 0;
            interests.push(Interest { target, number: number.0, events: *events, data: *data, spent });
        }
        interests.sort_by_key(|i| !i.spent);
        register(epoll, &interests)?;
    }
    Ok(())
}
