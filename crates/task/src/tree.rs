//! Freezing a process tree: every task seized and stopped, and let go again when the [`FrozenTree`] is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use yendor_sys::ptrace;
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};

use crate::end::{self, Undertaker};
use crate::live;
use crate::nr::Nr;
use crate::stop::{StopError, Stopped};

/// For how long a task may take to stop, while others are stopped already.
const PATIENCE: Duration = Duration::from_secs(10);

/// A frozen tree: processes by their id, each with its stopped threads, leader first.
#[derive(Debug)]
pub struct FrozenTree {
    /// The process it grows from.
    pub root: i32,
    /// In the order of their ids.
    pub processes: BTreeMap<i32, Vec<Stopped>>,
    /// Processes of it that have ended, whose parents have not waited for them yet.
    pub zombies: Vec<i32>,
    /// Processes whose first thread has ended, and others not or not yet: nobody can stop them by their id.
    pub headless: Vec<i32>,
    /// Others that stand still, run on and end with it, and are none of it.
    guests: BTreeMap<i32, Vec<Stopped>>,
}

/// Where a tree begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// A process, and all below it.
    Process(i32),
    /// All below a process that itself runs on: pid 1 of our own making, which adopts orphans and buries them.
    Below(i32),
}

/// Reads a small file of /proc beneath `proc`.
///
/// # Errors
/// What openat or read say; `ENOENT` and `ESRCH` mean that the task is gone.
pub fn read_proc(proc: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, SysError> {
    let mut out = Vec::with_capacity(4096);
    read_proc_into(proc, path, &mut out)?;
    Ok(out)
}

/// The same over what `out` holds: who reads many large files needs memory for one.
///
/// # Errors
/// What openat and read say.
pub fn read_proc_into(proc: BorrowedFd<'_>, path: &str, out: &mut Vec<u8>) -> Result<(), SysError> {
    use rustix::fs::{Mode, OFlags, openat};
    let fd = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| SysError::new("openat", format!("/proc/{path}"), e))?;
    out.clear();
    // There are many small files, and none of them knows its size: nothing is asked but the bytes.
    loop {
        if out.spare_capacity_mut().len() < 2048 {
            out.reserve(out.capacity().max(4096));
        }
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(out)) {
            Ok(0) => return Ok(()),
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
    match ids(proc, &format!("{pid}/task")) {
        Err(e) if gone(&e) => Ok(Vec::new()),
        tasks => children_of(proc, pid, tasks?),
    }
}

/// The children of threads of a process.
fn children_of(proc: BorrowedFd<'_>, pid: i32, tids: impl IntoIterator<Item = i32>) -> Result<Vec<i32>, SysError> {
    let mut out = Vec::new();
    for tid in tids {
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

/// What `stat` tells of a task.
struct Stat {
    state: u8,
    parent: i32,
    /// How many threads its process has.
    threads: u32,
}

impl Stat {
    /// `None` for a task that is gone.
    fn read(proc: BorrowedFd<'_>, task: &str) -> Result<Option<Stat>, SysError> {
        let stat = match read_proc(proc, &format!("{task}/stat")) {
            Err(e) if gone(&e) => return Ok(None),
            other => other?,
        };
        let unknown = || SysError::new("read", format!("/proc/{task}/stat"), Errno::PROTO);
        // The name before may have anything in it.
        let after = stat.iter().rposition(|b| *b == b')').map_or(&[][..], |i| &stat[i + 1..]);
        Stat::parse(&String::from_utf8_lossy(after)).map(Some).ok_or_else(unknown)
    }

    fn parse(after_name: &str) -> Option<Stat> {
        let mut words = after_name.split_ascii_whitespace();
        let state = *words.next()?.as_bytes().first()?;
        Some(Stat { state, parent: words.next()?.parse().ok()?, threads: words.nth(15)?.parse().ok()? })
    }
}

/// Whether a task that cannot be traced has ended: what seize says then means nothing else.
fn has_ended(proc: BorrowedFd<'_>, task: &str) -> Result<bool, SysError> {
    Ok(Stat::read(proc, task)?.is_none_or(|stat| matches!(stat.state, b'Z' | b'X')))
}

impl FrozenTree {
    /// Stops a whole tree; `root` is the process of it that everything grows from.
    ///
    /// # Errors
    /// `EPERM` when a task may not be traced, `ETIMEDOUT` when it does not stop. Everything stopped so far runs again.
    pub fn freeze(proc: BorrowedFd<'_>, top: Top, root: i32) -> Result<FrozenTree, SysError> {
        let mut tree = FrozenTree {
            root,
            processes: BTreeMap::new(),
            zombies: Vec::new(),
            headless: Vec::new(),
            guests: BTreeMap::new(),
        };
        let mut undertaker = Undertaker::default();
        let mut known = BTreeSet::new();
        let mut parents = Vec::new();
        let mut new = match top {
            Top::Process(pid) => vec![pid],
            Top::Below(pid) => children(proc, pid)?,
        };
        while !new.is_empty() {
            tree.descend(proc, new, &mut known, &mut parents, &mut undertaker)?;
            // Who ended meanwhile has left its children to somebody who had been looked at before. Orphans go up: those
            // below are looked at first. Who had no children when it was stopped gets none.
            new = Vec::new();
            for &pid in parents.iter().rev() {
                new.extend(tree.children(proc, pid)?);
            }
            if let Top::Below(pid) = top {
                new.extend(children(proc, pid)?);
            }
            new.retain(|pid| !known.contains(pid));
        }
        for pid in std::mem::take(&mut tree.zombies) {
            match Stat::read(proc, &pid.to_string())? {
                Some(Stat { threads: 2.., .. }) => tree.headless.push(pid),
                Some(Stat { state: b'Z', parent, .. }) if tree.processes.contains_key(&parent) => {
                    tree.zombies.push(pid)
                }
                // Nobody of the tree will wait for it.
                _ => {}
            }
        }
        Ok(tree)
    }

    /// Stops processes and all their descendants, level by level. Those with children are added to `parents`.
    fn descend(
        &mut self,
        proc: BorrowedFd<'_>,
        mut level: Vec<i32>,
        known: &mut BTreeSet<i32>,
        parents: &mut Vec<i32>,
        undertaker: &mut Undertaker,
    ) -> Result<(), SysError> {
        while !level.is_empty() {
            known.extend(&level);
            self.stop_all(proc, &level, undertaker)?;
            // A running process can fork until it is stopped: its children are looked at only afterwards.
            let mut next = Vec::new();
            for pid in level {
                let below = self.children(proc, pid)?;
                if !below.is_empty() {
                    parents.push(pid);
                }
                next.extend(below.into_iter().filter(|pid| !known.contains(pid)));
            }
            level = next;
        }
        Ok(())
    }

    /// The children of a process, if it is stopped.
    fn children(&self, proc: BorrowedFd<'_>, pid: i32) -> Result<Vec<i32>, SysError> {
        let threads = self.processes.get(&pid).map(Vec::as_slice).unwrap_or_default();
        children_of(proc, pid, threads.iter().map(Stopped::tid))
    }

    fn stop_all(&mut self, proc: BorrowedFd<'_>, pids: &[i32], undertaker: &mut Undertaker) -> Result<(), SysError> {
        // Ask all first, wait afterwards: the tasks stop side by side.
        let mut asked = Vec::with_capacity(pids.len());
        for &pid in pids {
            match ask(pid) {
                Ok(()) => asked.push(pid),
                // Who has ended cannot be traced: EPERM says that too.
                Err(e) => match has_ended(proc, &pid.to_string()) {
                    Ok(true) => self.zombies.push(pid),
                    other => {
                        release(&asked);
                        return Err(other.err().unwrap_or(e));
                    }
                },
            }
        }
        for (i, &pid) in asked.iter().enumerate() {
            let stopped = self.stop_threads(proc, pid, undertaker);
            undertaker.end();
            if let Err(e) = stopped {
                release(&asked[i + 1..]);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Waits for the asked leader, then seizes threads until no new one appears.
    fn stop_threads(&mut self, proc: BorrowedFd<'_>, pid: i32, undertaker: &mut Undertaker) -> Result<(), SysError> {
        let end = Instant::now() + PATIENCE;
        loop {
            if Instant::now() > end {
                let what = format!("PTRACE_SEIZE, {pid}: its threads execute one program after the other");
                return Err(SysError::new("ptrace", what, Errno::TIMEDOUT));
            }
            let leader = match wait_for_leader(proc, pid) {
                Ok(Some(leader)) => leader,
                // Another thread has executed a program, and is the first now.
                Err(StopError::Dead(_)) if has_executed(proc, pid, undertaker)? => continue,
                // It was about to end: from now on its parent can wait for it, or it has left other threads behind.
                Ok(None) | Err(StopError::Dead(_)) => {
                    self.zombies.push(pid);
                    return Ok(());
                }
                Err(StopError::Sys(e)) => return Err(e),
            };
            let mut threads = vec![leader];
            let stopped = stop_others(proc, pid, &mut threads, undertaker);
            let alone = matches!(stopped, Ok(false));
            if alone || threads[0].regs().is_ok() {
                self.processes.insert(pid, threads);
                return stopped.map(drop);
            }
            // Whoever is left goes, and all that have ended.
            threads.into_iter().skip(1).for_each(|thread| drop(thread.detach()));
            if !has_executed(proc, pid, undertaker)? {
                self.zombies.push(pid);
                return stopped.map(drop);
            }
        }
    }

    /// Takes the processes of another tree as guests of this one.
    pub fn adopt(&mut self, mut other: FrozenTree) {
        self.guests.append(&mut other.processes);
        self.guests.append(&mut other.guests);
    }

    /// From now on no process outlives us: half a tree is nobody's.
    ///
    /// The process that everything grows from first: in a container no other is left without it. If we die in the middle, those whose turn has
    /// not come run for the moment that takes, and a tree without a pid namespace of its own would be cut in two.
    #[must_use]
    pub fn bind(self) -> Bound {
        let first = self.processes.get(&self.root).into_iter().flatten();
        for thread in first.chain(self.threads()).chain(self.guests.values().flatten()) {
            // Those that are gone are gone.
            let _ = ptrace::set_options(thread.tid(), ptrace::O_TRACESYSGOOD | ptrace::O_EXITKILL);
        }
        Bound(self)
    }

    /// All stopped threads.
    pub fn threads(&self) -> impl Iterator<Item = &Stopped> {
        self.processes.values().flatten()
    }
}

/// A tree that dies with us, unless it is dropped: then it runs on.
#[derive(Debug)]
pub struct Bound(FrozenTree);

impl Bound {
    /// Ends every process of the tree: its state is safe elsewhere.
    ///
    /// # Errors
    /// What kill says, except for processes that are gone.
    pub fn kill(mut self) -> Result<(), SysError> {
        use rustix::process::{Pid, Signal, kill_process};
        let mut processes = std::mem::take(&mut self.0.processes);
        processes.append(&mut self.0.guests);
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
        // As their tracer we are told of every end; until we have listened, their parents are not. In no order of ours: a leader's end is only
        // told once its threads are gone, and that of pid 1 of a pid namespace once all others in it are.
        let mut left: Vec<i32> = processes.values().flat_map(|t| t.iter().rev()).map(Stopped::tid).collect();
        loop {
            left.retain(|tid| match yendor_sys::wait::wait(Some(*tid), false) {
                Ok(Some((_, Event::Exited(_) | Event::Killed(_)))) | Err(_) => false,
                Ok(_) => true,
            });
            if left.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
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

/// Waits for an asked leader. `None`: it has ended before its other threads, and nobody tells its tracer as long as they live.
/// We stay its tracer until we end, or they do.
fn wait_for_leader(proc: BorrowedFd<'_>, pid: i32) -> Result<Option<Stopped>, StopError> {
    /// Most leaders stop sooner; then nobody has to look.
    const MOMENT: Duration = Duration::from_millis(20);
    let end = Instant::now() + PATIENCE;
    loop {
        match Stopped::wait_for(pid, MOMENT) {
            Err(StopError::Sys(e)) if e.errno == Errno::TIMEDOUT => {
                if Stat::read(proc, &pid.to_string())?.is_some_and(|s| s.state == b'Z' && s.threads > 1) {
                    return Ok(None);
                }
                if Instant::now() > end {
                    let what = format!("PTRACE_INTERRUPT, {pid}: no stop in {} s", PATIENCE.as_secs());
                    return Err(SysError::new("ptrace", what, Errno::TIMEDOUT).into());
                }
            }
            other => return other.map(Some),
        }
    }
}

/// Of a process whose first thread has ended under our hands: whether another of its threads executes a program, and so becomes the first.
/// Then that is asked to stop.
fn has_executed(proc: BorrowedFd<'_>, pid: i32, undertaker: &mut Undertaker) -> Result<bool, SysError> {
    undertaker.begin(pid);
    let end = Instant::now() + PATIENCE;
    loop {
        match Stat::read(proc, &pid.to_string())? {
            None | Some(Stat { state: b'X', .. } | Stat { state: b'Z', threads: ..2, .. }) => return Ok(false),
            // It does so once all others are gone.
            Some(Stat { state: b'Z', .. }) => end::take_others(pid),
            Some(_) => match ask(pid) {
                // It was seized as another.
                Err(e) if e.errno == Errno::PERM && ptrace::interrupt(pid).is_ok() => return Ok(true),
                Err(e) if e.is_gone() => {}
                other => return other.map(|()| true),
            },
        }
        if Instant::now() > end {
            let what = format!("PTRACE_SEIZE, {pid}: it has not executed a program in {} s", PATIENCE.as_secs());
            return Err(SysError::new("ptrace", what, Errno::TIMEDOUT));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Stops the other threads of a process. Whether there are any.
fn stop_others(
    proc: BorrowedFd<'_>,
    pid: i32,
    threads: &mut Vec<Stopped>,
    undertaker: &mut Undertaker,
) -> Result<bool, SysError> {
    let mut known: BTreeSet<i32> = threads.iter().map(Stopped::tid).collect();
    loop {
        let mut new = match ids(proc, &format!("{pid}/task")) {
            Err(e) if gone(&e) => Vec::new(),
            other => other?,
        };
        new.retain(|tid| known.insert(*tid));
        if new.is_empty() {
            return Ok(known.len() > 1);
        }
        undertaker.begin(pid);
        let mut asked = Vec::new();
        for tid in new {
            match ask(tid) {
                Ok(()) => asked.push(tid),
                Err(e) => match has_ended(proc, &format!("{pid}/task/{tid}")) {
                    Ok(true) => {}
                    other => {
                        release(&asked);
                        return Err(other.err().unwrap_or(e));
                    }
                },
            }
        }
        for (i, &tid) in asked.iter().enumerate() {
            match Stopped::wait_for(tid, PATIENCE) {
                Ok(t) => threads.push(t),
                Err(StopError::Dead(_)) => {}
                Err(StopError::Sys(e)) => {
                    release(&asked[i + 1..]);
                    return Err(e);
                }
            }
        }
    }
}

fn ask(tid: i32) -> Result<(), SysError> {
    Stopped::seize(tid, ptrace::O_TRACESYSGOOD)?;
    ptrace::interrupt(tid)
}

/// Lets tasks go that were asked to stop but not waited for yet. Whoever does not stop goes when we end.
fn release(tids: &[i32]) {
    /// For all of them: whoever stops at all does it side by side.
    const MOMENT: Duration = Duration::from_millis(500);
    let end = Instant::now() + MOMENT;
    for &tid in tids {
        if let Ok(stopped) = Stopped::wait_for(tid, end.saturating_duration_since(Instant::now())) {
            // It may have died meanwhile; then there is nothing to let go.
            let _ = stopped.detach();
        }
    }
}

impl Drop for FrozenTree {
    /// Thaw: every task runs on.
    fn drop(&mut self) {
        let guests = std::mem::take(&mut self.guests);
        for threads in std::mem::take(&mut self.processes).into_values().chain(guests.into_values()) {
            // The first thread last: of its end nobody hears before that of the others.
            for stopped in threads.into_iter().rev() {
                // A task that was killed meanwhile is gone, which is all we could report.
                let _ = stopped.detach();
            }
        }
    }
}
