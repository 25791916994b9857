//! What only a parent is told of its children (waitid(2)): whether it knows already that one is stopped, and how one has ended that
//! would not be looked into. The kernel keeps that from /proc, where it shows zero (`PR_SET_DUMPABLE`, prctl(2); Linux 6.18 and
//! kernels that have taken the change).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};

use yendor_image::Tid;
use yendor_kinds::process::{Inquiry, Question, half_at};
use yendor_kinds::{Cause, Result};
use yendor_proc::status;
use yendor_sys::Errno;
use yendor_task::script::out;
use yendor_task::tree::{FrozenTree, read_proc};
use yendor_task::{Nr, Stopped, args};

use super::{Facts, levels};

const P_PID: u32 = 1;
const WNOHANG: u32 = 1;
const WSTOPPED: u32 = 2;
const WEXITED: u32 = 4;
const WNOWAIT: u32 = 0x0100_0000;
const WALL: u32 = 0x4000_0000;

/// What is asked of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Whether its stop would still be reported.
    Stop,
    /// How it has ended.
    End,
}

/// A child to be asked about: its id inside, and as its parent knows it.
#[derive(Debug, Clone, Copy)]
pub struct Child {
    inside: i32,
    own: i32,
    what: What,
}

/// A question to a parent.
#[derive(Debug, Clone, Copy)]
pub struct Asked(Child, Question);

/// What parents have said, by the children's ids inside.
#[derive(Debug, Default)]
pub struct Said {
    unknown_stops: BTreeSet<i32>,
    ends: BTreeMap<i32, i32>,
}

/// Which thread of its parent has a process for a child, both as the tracer sees them; nothing where the kernel does not say. No more threads are
/// asked than have those of `order` together.
///
/// # Errors
/// A list that is none.
pub fn by_thread<'t>(
    parents: impl Iterator<Item = (&'t i32, &'t Vec<Stopped>)>,
    order: &[Facts],
    proc: BorrowedFd<'_>,
) -> Result<BTreeMap<i32, i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for facts in order {
        children.entry(facts.status.ppid).or_default().push(facts.pid);
    }
    let mut out = BTreeMap::new();
    for (pid, threads) in parents {
        let wanted = children.get(pid).map(Vec::as_slice).unwrap_or_default();
        for thread in threads {
            if wanted.iter().all(|child| out.contains_key(child)) {
                break;
            }
            let tid = thread.tid();
            let text = match read_proc(proc, &format!("{pid}/task/{tid}/children")) {
                // A kernel that has no such file, or a thread that has ended.
                Err(e) if matches!(e.errno, Errno::NOENT | Errno::SRCH) => continue,
                text => text?,
            };
            out.extend(yendor_proc::children::parse(&text)?.into_iter().map(|child| (child, tid)));
        }
    }
    Ok(out)
}

/// Of each process that another thread of its parent than the first has for a child: which, inside.
///
/// # Errors
/// What /proc says.
pub fn of_others(tree: &FrozenTree, order: &[Facts], proc: BorrowedFd<'_>) -> Result<BTreeMap<i32, Tid>> {
    let parents: BTreeSet<i32> = order.iter().map(|facts| facts.status.ppid).collect();
    let several = tree.processes.iter().filter(|(pid, threads)| threads.len() > 1 && parents.contains(pid));
    let home: BTreeMap<i32, usize> = order.iter().map(|facts| (facts.pid, facts.home)).collect();
    let mut out = BTreeMap::new();
    for (child, tid) in by_thread(several, order, proc)? {
        // The first thread's id is that of the process.
        if let Some(home) = home.get(&child).filter(|_| !tree.processes.contains_key(&tid)) {
            let status = status::parse(&read_proc(proc, &format!("{tid}/status"))?)?;
            out.insert(child, Tid(levels::at(*home, status.ns_pid.as_deref(), tid).0));
        }
    }
    Ok(out)
}

/// The children of a process that it is asked about.
pub fn of(tree: &FrozenTree, order: &[Facts], parent: &Facts, proc: BorrowedFd<'_>) -> Vec<Child> {
    let stopped =
        |pid: i32| tree.processes.get(&pid).is_some_and(|t| t.first().is_some_and(|l| l.group_stop().is_some()));
    let level = parent.status.ns_pid.as_ref().map_or(0, |ids| ids.len().saturating_sub(1));
    let mut children = Vec::new();
    for child in order.iter().filter(|f| f.status.ppid == parent.pid) {
        let what = if stopped(child.pid) {
            What::Stop
        } else if is_hidden(tree, child, proc) {
            What::End
        } else {
            continue;
        };
        let own = levels::at(level, child.status.ns_pid.as_deref(), child.pid).0;
        children.push(Child { inside: child.inside().0, own, what });
    }
    children
}

/// Whether the status that /proc shows of a zombie may be none: it has no program any more, but that is not said to everybody.
fn is_hidden(tree: &FrozenTree, facts: &Facts, proc: BorrowedFd<'_>) -> bool {
    let link = || rustix::fs::readlinkat(proc, format!("{}/exe", facts.pid), Vec::new());
    !tree.processes.contains_key(&facts.pid) && facts.stat.exit_code == 0 && link().err() == Some(Errno::ACCESS)
}

/// Asks a parent, without taking what it has not been told yet.
pub fn ask(children: &[Child], inquiry: &mut Inquiry) -> Vec<Asked> {
    let mut ask = |child: &Child| {
        let what = if child.what == What::Stop { WSTOPPED } else { WEXITED | WALL };
        let args = args![P_PID, child.own, out(128), WNOHANG | WNOWAIT | what, 0];
        Asked(*child, inquiry.ask(Nr::WAITID, args))
    };
    children.iter().map(&mut ask).collect()
}

impl Said {
    /// Takes up what a parent has answered.
    ///
    /// # Errors
    /// What it got from the kernel.
    pub fn hear(&mut self, asked: &[Asked], inquiry: &Inquiry) -> Result<()> {
        for Asked(child, question) in asked {
            // siginfo_t: si_code, si_pid, si_status.
            let told = inquiry.bytes(*question)?;
            let [code, pid, status] = [8, 16, 24].map(|at| half_at(told, at));
            match child.what {
                _ if pid == 0 => {}
                What::Stop => drop(self.unknown_stops.insert(child.inside)),
                What::End => drop(self.ends.insert(child.inside, wait_status(code, status))),
            }
        }
        Ok(())
    }

    /// Whether the parent of a stopped process has not waited for the stop yet.
    pub fn is_unknown_stop(&self, inside: i32) -> bool {
        self.unknown_stops.contains(&inside)
    }

    /// The wait status of a zombie.
    ///
    /// # Errors
    /// `Unsupported` where neither /proc nor a parent tells.
    pub fn status(&self, tree: &FrozenTree, facts: &Facts, proc: impl AsFd) -> Result<i32> {
        match self.ends.get(&facts.inside().0) {
            Some(status) => Ok(*status),
            None if is_hidden(tree, facts, proc.as_fd()) => {
                Err(Cause::unsupported("a zombie whose status the kernel tells its parent alone, which is not there"))
            }
            None => Ok(facts.stat.exit_code),
        }
    }
}

/// As wait(2) says it.
fn wait_status(code: u32, status: u32) -> i32 {
    const EXITED: u32 = 1;
    const DUMPED: u32 = 3;
    let status = match code {
        EXITED => (status & 0xff) << 8,
        DUMPED => status & 0x7f | 0x80,
        _ => status & 0x7f,
    };
    status.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::wait_status;

    #[test]
    fn what_waitid_tells_is_what_wait_would() {
        let all = [(1, 0, 0), (1, 37, 37 << 8), (1, 255, 255 << 8), (2, 9, 9), (2, 64, 64), (3, 11, 11 | 0x80)];
        for (code, status, wanted) in all {
            assert_eq!(wait_status(code, status), wanted, "{code} {status}");
        }
    }
}
