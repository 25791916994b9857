//! Freezing a process tree: every task seized and stopped, and let go again when the [`FrozenTree`] is dropped.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use yendor_sys::ptrace;
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};

use crate::live;
use crate::nr::Nr;
use crate::stop::{StopError, Stopped};

/// A frozen tree: processes by their id, each with its stopped threads, leader first.
#[derive(Debug)]
pub struct FrozenTree {
    /// The process it grows from.
    pub root: i32,
    /// In the order of their ids.
    pub processes: BTreeMap<i32, Vec<Stopped>>,
    /// Processes that have ended and wait for their parents.
    pub zombies: Vec<i32>,
}

/// Reads a small file of /proc beneath `proc`.
///
/// # Errors
/// What openat or read say; `ENOENT` and `ESRCH` mean that the task is gone.
pub fn read_proc(proc: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, SysError> {
    use rustix::fs::{Mode, OFlags, openat};
    let fd = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SysError::new("openat", format!("/proc/{path}"), e))?;
    // There are many small files, and none of them knows its size: nothing is asked but the bytes.
    let mut out = Vec::with_capacity(4096);
    loop {
        if out.spare_capacity_mut().len() < 2048 {
            out.reserve(out.capacity());
        }
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut out)) {
            Ok(0) => return Ok(out),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(SysError::new("read", format!("/proc/{path}"), e)),
        }
    }
}

/// Ids in a directory of /proc (`self/task`).
fn ids(proc: BorrowedFd<'_>, path: &str) -> Result<Vec<i32>, SysError> {
    use rustix::fs::{Dir, Mode, OFlags, openat};
    let fd = openat(proc, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SysError::new("openat", format!("/proc/{path}"), e))?;
    let dir = Dir::new(fd).map_err(|e| SysError::new("getdents64", format!("/proc/{path}"), e))?;
    let names = dir.filter_map(Result::ok).filter_map(|e| e.file_name().to_str().ok()?.parse().ok());
    let mut ids: Vec<i32> = names.collect();
    ids.sort_unstable();
    Ok(ids)
}

/// A task that ended while we looked is no error.
fn gone(e: &SysError) -> bool {
    matches!(e.errno, Errno::NOENT | Errno::SRCH)
}

/// The children of all threads of a process.
///
/// # Errors
/// What /proc says, except for tasks that are gone.
pub fn children(proc: BorrowedFd<'_>, pid: i32) -> Result<Vec<i32>, SysError> {
    let mut out = Vec::new();
    let tasks = match ids(proc, &format!("{pid}/task")) {
        Err(e) if gone(&e) => return Ok(out),
        other => other?,
    };
    for tid in tasks {
        match read_proc(proc, &format!("{pid}/task/{tid}/children")) {
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
            Ok(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                out.extend(text.split_ascii_whitespace().filter_map(|w| w.parse::<i32>().ok()));
            }
        }
    }
    Ok(out)
}

/// Whether the process is a zombie.
fn is_zombie(proc: BorrowedFd<'_>, pid: i32) -> bool {
    let Ok(stat) = read_proc(proc, &format!("{pid}/stat")) else { return false };
    let after = stat.iter().rposition(|b| *b == b')').map_or(&[][..], |i| &stat[i + 1..]);
    matches!(after.get(1), Some(b'Z' | b'X'))
}

impl FrozenTree {
    /// Stops `root` and all its descendants, without `except` (pid 1 of our own making).
    ///
    /// # Errors
    /// `EPERM` when a task may not be traced. Everything stopped so far runs again.
    pub fn freeze(proc: BorrowedFd<'_>, roots: &[i32], root: i32) -> Result<FrozenTree, SysError> {
        let mut tree = FrozenTree { root, processes: BTreeMap::new(), zombies: Vec::new() };
        let mut level: Vec<i32> = roots.to_vec();
        // A running process can fork until it is stopped: look at its children only afterwards.
        while !level.is_empty() {
            let mut next = Vec::new();
            tree.stop_all(proc, &level)?;
            for pid in level {
                if tree.processes.contains_key(&pid) {
                    next.extend(children(proc, pid)?);
                }
            }
            level = next;
        }
        Ok(tree)
    }

    fn stop_all(&mut self, proc: BorrowedFd<'_>, pids: &[i32]) -> Result<(), SysError> {
        // Ask all first, wait afterwards: the tasks stop side by side.
        let mut asked = Vec::with_capacity(pids.len());
        for &pid in pids {
            match ask(pid) {
                // Who has ended cannot be traced: EPERM says that too.
                Err(_) if is_zombie(proc, pid) => self.zombies.push(pid),
                Err(e) if gone(&e) => continue,
                Err(e) => {
                    release(&asked);
                    return Err(e);
                }
                Ok(()) => asked.push(pid),
            }
        }
        for (i, &pid) in asked.iter().enumerate() {
            if let Err(e) = self.stop_threads(proc, pid) {
                release(&asked[i + 1..]);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Waits for the asked leader, then seizes threads until no new one appears.
    fn stop_threads(&mut self, proc: BorrowedFd<'_>, pid: i32) -> Result<(), SysError> {
        let mut threads = match Stopped::wait(pid) {
            Ok(leader) => vec![leader],
            Err(StopError::Dead(_)) => return Ok(()),
            Err(StopError::Sys(e)) if gone(&e) => return Ok(()),
            Err(StopError::Sys(e)) => return Err(e),
        };
        loop {
            let known: Vec<i32> = threads.iter().map(Stopped::tid).collect();
            let new: Vec<i32> = match ids(proc, &format!("{pid}/task")) {
                Ok(all) => all.into_iter().filter(|t| !known.contains(t)).collect(),
                Err(e) => {
                    self.processes.insert(pid, threads);
                    return Err(e);
                }
            };
            let mut asked = Vec::new();
            for tid in new {
                match ask(tid) {
                    Ok(()) => asked.push(tid),
                    Err(e) if gone(&e) => {}
                    Err(e) => {
                        release(&asked);
                        self.processes.insert(pid, threads);
                        return Err(e);
                    }
                }
            }
            if asked.is_empty() {
                break;
            }
            for tid in asked {
                match Stopped::wait(tid) {
                    Ok(t) => threads.push(t),
                    Err(StopError::Dead(_)) => {}
                    Err(StopError::Sys(e)) if gone(&e) => {}
                    Err(StopError::Sys(e)) => {
                        self.processes.insert(pid, threads);
                        return Err(e);
                    }
                }
            }
        }
        self.processes.insert(pid, threads);
        Ok(())
    }

    /// Ends every process of the tree: its state is safe elsewhere.
    ///
    /// # Errors
    /// What kill says, except for processes that are gone.
    pub fn kill(mut self) -> Result<(), SysError> {
        use rustix::process::{Pid, Signal, kill_process};
        let processes = std::mem::take(&mut self.processes);
        for thread in processes.values().flatten() {
            // If we die in the middle, the rest dies with us: half a tree is nobody's. Those that are gone are gone.
            let _ = ptrace::set_options(thread.tid(), ptrace::O_TRACESYSGOOD | ptrace::O_EXITKILL);
        }
        for (pid, threads) in &processes {
            let Some(raw) = Pid::from_raw(*pid) else { continue };
            match (kill_process(raw, Signal::KILL), threads.first()) {
                (Ok(()) | Err(Errno::SRCH), _) => {}
                // A security module may forbid signals to whom it lets be traced.
                (Err(e @ (Errno::PERM | Errno::ACCESS)), Some(leader)) => {
                    // Who has been killed meanwhile, with the container's pid 1, is not in a stop any more.
                    let gone = || leader.regs().is_err_and(|e| e.is_gone());
                    if exit(leader).is_err() && !gone() {
                        return Err(SysError::new("kill", format!("{pid}, SIGKILL"), e));
                    }
                }
                (Err(e), _) => return Err(SysError::new("kill", format!("{pid}, SIGKILL"), e)),
            }
        }
        // As their tracer we are told of every end; until we have listened, their parents are not.
        // A leader's end is only told once its threads are gone.
        for tid in processes.values().flat_map(|t| t.iter().rev()).map(Stopped::tid) {
            loop {
                match yendor_sys::wait::wait(Some(tid), true) {
                    Ok(Some((_, Event::Exited(_) | Event::Killed(_)))) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
        Ok(())
    }

    /// All stopped threads.
    pub fn threads(&self) -> impl Iterator<Item = &Stopped> {
        self.processes.values().flatten()
    }
}

/// Has a stopped process end itself, as if SIGKILL had ended it in the eyes of a shell.
fn exit(leader: &Stopped) -> Result<(), SysError> {
    use rustix::fs::{Mode, OFlags};
    const KILLED: u64 = 128 + 9;
    let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SysError::new("open", "/proc", e))?;
    let regions = live::regions(proc.as_fd(), leader.tid())?;
    let mut regs = leader.regs()?;
    regs.rip = live::find_plain_syscall(leader.tid(), &regions)?;
    regs.rax = Nr::EXIT_GROUP.raw();
    regs.orig_rax = u64::MAX;
    regs.rdi = KILLED;
    leader.set_regs(&regs)?;
    ptrace::cont(leader.tid(), 0)
}

fn ask(tid: i32) -> Result<(), SysError> {
    Stopped::seize(tid, ptrace::O_TRACESYSGOOD)?;
    ptrace::interrupt(tid)
}

/// Lets tasks go that were asked to stop but not waited for yet.
fn release(tids: &[i32]) {
    for &tid in tids {
        if let Ok(stopped) = Stopped::wait(tid) {
            // It may have died meanwhile; then there is nothing to let go.
            let _ = stopped.detach();
        }
    }
}

impl Drop for FrozenTree {
    /// Thaw: every task runs on.
    fn drop(&mut self) {
        for threads in std::mem::take(&mut self.processes).into_values() {
            for stopped in threads {
                // A task that was killed meanwhile is gone, which is all we could report.
                let _ = stopped.detach();
            }
        }
    }
}
