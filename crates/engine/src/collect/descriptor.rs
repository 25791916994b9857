//! The descriptors of one process: which description each number means, and whether it is closed on exec.

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use yendor_image::FdNum;
use yendor_kinds::file::{Descriptor, Gather};
use yendor_kinds::process::{Inquiry, Question, lock};
use yendor_kinds::{Cause, Named};
use yendor_task::{Nr, args};

use crate::error::{At, Error, Result, Step, With};

type Caused<T> = std::result::Result<T, Cause>;

/// Collects the descriptors of a process, in the order of their numbers, and the locks that it holds through them.
///
/// # Errors
/// What the kind of one refuses.
pub fn collect(gather: &mut Gather<'_>, pid: i32) -> Result<(Vec<Descriptor>, Vec<lock::Record>)> {
    let raw = Pid::from_raw(pid).ok_or_else(|| Error::new(Step::Collect, Cause::unsupported("process 0")))?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).named("pidfd_open", || format!("{pid}")).at(Step::Collect)?;
    let numbers = numbers(gather, pid).at(Step::Collect)?;
    let mut out = Vec::with_capacity(numbers.len());
    let mut locked = Vec::new();
    for number in numbers {
        let shown = format!("descriptor {number}");
        let file = gather.descriptor(pid, &pidfd, number).at(Step::Collect).kind("file", shown)?;
        let info = gather.read(&format!("{pid}/fdinfo/{number}")).at(Step::Collect)?;
        let info = yendor_proc::fdinfo::parse(&info).at(Step::Collect)?;
        let cloexec = info.flags & OFlags::CLOEXEC.bits() != 0;
        out.push(Descriptor { number, cloexec, file });
        if !info.locks.is_empty() {
            let stat = rustix::fs::fstat(gather.ours(file).at(Step::Collect)?);
            let stat = stat.named("fstat", || format!("{pid}, {number}")).at(Step::Collect)?;
            let first = gather.locked.insert(file);
            locked.push(lock::Held { number, info, inode: (stat.st_dev, stat.st_ino), first });
        }
    }
    let locks = lock::collect(&locked).at(Step::Collect)?;
    Ok((out, locks))
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

/// Questions about descriptors of which fdinfo does not tell whether they are closed on exec.
pub struct Doubts(Vec<(usize, Question)>);

impl Doubts {
    /// Where a description itself carries `O_CLOEXEC` (from `TIOCGPTPEER`, `mq_open`, `fanotify_init`: whatever opens by the
    /// kernel's dentry_open), fdinfo shows it for every descriptor. Only its owner can say.
    pub fn ask(list: &[Descriptor], gather: &Gather<'_>, inquiry: &mut Inquiry) -> Caused<Doubts> {
        const F_GETFD: u32 = 1;
        let mut doubts = Vec::new();
        for (index, one) in list.iter().enumerate().filter(|(_, d)| d.cloexec) {
            let flags = rustix::fs::fcntl_getfl(gather.ours(one.file)?).named("fcntl", || "F_GETFL".into())?;
            if flags.contains(OFlags::CLOEXEC) {
                doubts.push((index, inquiry.ask(Nr::FCNTL, args![one.number.0, F_GETFD, 0])));
            }
        }
        Ok(Doubts(doubts))
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
