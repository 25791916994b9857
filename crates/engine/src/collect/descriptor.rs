//! The descriptors of one process: which description each number means, and whether it is closed on exec.

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use yendor_image::{FdNum, FileId};
use yendor_kinds::file::{Descriptor, Gather};
use yendor_kinds::process::{Inquiry, Question, lock};
use yendor_kinds::{Cause, Named};
use yendor_task::{Nr, args};

use super::notification::{self, Wanted};
use crate::error::{At, Error, Result, Step, With};

type Caused<T> = std::result::Result<T, Cause>;

/// What a process holds.
#[derive(Debug, Default)]
pub struct Held {
    /// Its descriptors, in the order of their numbers.
    pub descriptors: Vec<Descriptor>,
    /// The locks that it has through them.
    pub locks: Vec<lock::Record>,
    /// The message queues that notify it.
    pub notifying: Vec<Wanted>,
    /// The descriptors, by their place, of which only it can say whether they are closed on exec.
    doubtful: Vec<usize>,
}

/// Collects the descriptors of a process.
///
/// # Errors
/// What the kind of one refuses.
pub fn collect(gather: &mut Gather<'_>, pid: i32) -> Result<Held> {
    let raw = Pid::from_raw(pid).ok_or_else(|| Error::new(Step::Collect, Cause::unsupported("process 0")))?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).named("pidfd_open", || format!("{pid}")).at(Step::Collect)?;
    let numbers = numbers(gather, pid).at(Step::Collect)?;
    let mut held = Held::default();
    let mut locked = Vec::new();
    for number in numbers {
        let shown = format!("descriptor {number}");
        let found = gather.descriptor(pid, &pidfd, number).at(Step::Collect).kind("file", shown)?;
        let Some((file, info)) = found else { continue };
        let cloexec = info.flags & OFlags::CLOEXEC.bits() != 0;
        if cloexec && is_doubtful(gather, file).at(Step::Collect)? {
            held.doubtful.push(held.descriptors.len());
        }
        held.descriptors.push(Descriptor { number, cloexec, file });
        if !info.locks.is_empty() {
            let stat = rustix::fs::fstat(gather.ours(file).at(Step::Collect)?);
            let stat = stat.named("fstat", || format!("{pid}, {number}")).at(Step::Collect)?;
            let first = gather.locked.insert(file);
            locked.push(lock::Held { number, info, inode: (stat.st_dev, stat.st_ino), first });
        }
    }
    held.locks = lock::collect(&locked).at(Step::Collect)?;
    held.notifying = notification::claim(gather, pid, &held.descriptors).at(Step::Collect)?;
    Ok(held)
}

/// Where a description itself carries `O_CLOEXEC` (from `TIOCGPTPEER`, `mq_open`, `fanotify_init`: whatever opens by the
/// kernel's dentry_open), fdinfo shows it for every descriptor.
fn is_doubtful(gather: &Gather<'_>, file: FileId) -> Caused<bool> {
    let flags = rustix::fs::fcntl_getfl(gather.ours(file)?).named("fcntl", || "F_GETFL".into())?;
    Ok(flags.contains(OFlags::CLOEXEC))
}

fn numbers(gather: &Gather<'_>, pid: i32) -> Caused<Vec<FdNum>> {
    let path = format!("{pid}/fd");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(&gather.proc, path.as_str(), flags, Mode::empty()).named("openat", || format!("/proc/{path}"))?;
    let entries = Dir::new(fd).named("getdents64", || format!("/proc/{path}"))?;
    let mut numbers: Vec<FdNum> = entries
        .filter_map(std::result::Result::ok)
        .filter_map(|e| Some(FdNum(e.file_name().to_str().ok()?.parse().ok()?)))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Questions about the doubtful descriptors.
pub struct Doubts(Vec<(usize, Question)>);

impl Doubts {
    /// Asks the owner.
    pub fn ask(held: &Held, inquiry: &mut Inquiry) -> Doubts {
        const F_GETFD: u32 = 1;
        let ask = |i: &usize| {
            let number = held.descriptors.get(*i).map_or(-1, |d| d.number.0);
            (*i, inquiry.ask(Nr::FCNTL, args![number, F_GETFD, 0]))
        };
        Doubts(held.doubtful.iter().map(ask).collect())
    }

    /// The answers.
    pub fn settle(&self, list: &mut [Descriptor], inquiry: &Inquiry) -> Caused<()> {
        const FD_CLOEXEC: u64 = 1;
        for (index, question) in &self.0 {
            let flags = inquiry.value(*question)?;
            if let Some(one) = list.get_mut(*index) {
                one.cloexec = flags & FD_CLOEXEC != 0;
            }
        }
        Ok(())
    }
}
