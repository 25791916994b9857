//! A copy of a process's memory: a child that it forks, and that never runs a line of the program.
//!
//! The kernel shares the pages of both until one of them is written. The child stays in the stop that it is born in, and is
//! killed when its memory has been read. Should its tracer die before it can be told to die with it, it runs into a frame
//! that ends it (see [`super`], the dead-man rule).
//!
//! The program does not notice: the child ends without a signal, and wait(2) knows it only with `__WALL` or `__WCLONE`. What
//! can be seen while it lives: a child called `yendor-scratch`, which counts as a task against limits, keeps the working
//! directory in use and System V segments attached. Its descriptors are closed at once: no pipe stays open through it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use yendor_sys::ptrace::{self, event};
use yendor_sys::wait::{self, Event};
use yendor_sys::{Errno, SysError};

use super::injection::Injection;
use super::{Entry, Loan, regions, stop_error};
use crate::arena::RunError;
use crate::nr::Nr;
use crate::stop::{StopError, Stopped};

/// What it is called: see [`super::SCRATCH`].
pub const NAME: &[u8] = b"yendor-scratch";

/// The calls that it takes: a seccomp filter of the program must allow them.
pub const CALLS: [Nr; 5] = [Nr::CLONE, Nr::PRCTL, Nr::CLOSE_RANGE, Nr::EXIT_GROUP, Nr::WAIT4];

/// The exit status of one that has ended itself, as a wait status.
pub const ENDED: i32 = 89 << 8;
/// The exit status of one that ends itself.
pub(super) const STATUS: u64 = 89;

/// The copy of a process.
#[derive(Debug)]
pub struct Twin {
    tid: i32,
    inside: i32,
}

impl Twin {
    /// Has a borrowed leader fork. `None` where it may not (limits of tasks or of memory).
    pub(super) fn fork(leader: &Stopped, injection: &Injection) -> Result<Option<Twin>, RunError> {
        // Its options go to the child, too.
        ptrace::set_options(leader.tid(), ptrace::O_TRACESYSGOOD | ptrace::O_TRACECLONE)?;
        let born = clone(leader, injection, 0);
        ptrace::set_options(leader.tid(), ptrace::O_TRACESYSGOOD)?;
        let Some(twin) = born? else { return Ok(None) };
        if twin.settle(injection).and_then(|_| injection.own_stack(twin.tid)).is_ok() {
            return Ok(Some(twin));
        }
        // It was killed, or may not do without what it holds: not worth a failure of the whole.
        twin.end(leader, injection).map(|()| None)
    }

    /// Has a borrowed leader bear a child that shares its memory, and nothing else. As [`Twin::fork`]; it must not outlive the
    /// borrowing.
    pub(super) fn share(leader: &Stopped, injection: &Injection) -> Result<Option<(Twin, Stopped)>, RunError> {
        const CLONE_VM: u64 = 0x100;
        ptrace::set_options(leader.tid(), ptrace::O_TRACESYSGOOD | ptrace::O_TRACECLONE)?;
        let born = clone(leader, injection, CLONE_VM);
        ptrace::set_options(leader.tid(), ptrace::O_TRACESYSGOOD)?;
        let Some(twin) = born? else { return Ok(None) };
        match twin.settle(injection) {
            Ok(born) => Ok(Some((twin, born))),
            Err(_) => twin.end(leader, injection).map(|()| None),
        }
    }

    /// It ends, and the borrowed leader buries it at once.
    pub(super) fn end(self, leader: &Stopped, injection: &Injection) -> Result<(), RunError> {
        let inside = self.inside;
        drop(self);
        injection.call(leader, Nr::WAIT4, wait_arguments(inside)).map(drop)
    }

    /// Its id as the tracer sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Its id in the pid namespace of its parent.
    #[must_use]
    pub fn inside(&self) -> i32 {
        self.inside
    }

    /// Whether somebody has killed it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // Its end stays to be told to `drop`.
        ptrace::regs(self.tid).is_err()
    }

    /// From its birth to its rest: has a name, dies with us, holds nothing open.
    fn settle(&self, injection: &Injection) -> Result<Stopped, RunError> {
        const PR_SET_NAME: u64 = 15;
        let born = Stopped::wait(self.tid).map_err(|e| stop_error(self.tid, e))?;
        // Until it has its name, it may only end itself: killed with us, it would be a zombie that nobody knows for ours.
        injection.call_twin(&born, Nr::PRCTL, [PR_SET_NAME, injection.name(), 0, 0, 0, 0])?;
        ptrace::set_options(self.tid, ptrace::O_TRACESYSGOOD | ptrace::O_EXITKILL)?;
        injection.call_twin(&born, Nr::CLOSE_RANGE, [0, u64::from(u32::MAX), 0, 0, 0, 0])?;
        // Whatever lets it run ends it; its memory is the program's, without our frames.
        injection.call_begins(&born, Nr::EXIT_GROUP, STATUS)?;
        Ok(born)
    }
}

impl Drop for Twin {
    /// It ends. Its parent has yet to bury it: see [`bury`].
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        // Ours until we have waited for it, so its id is nobody else's.
        if Pid::from_raw(self.tid).is_some_and(|pid| kill_process(pid, Signal::KILL).is_err()) {
            // A security module may forbid signals to whom it lets be traced: then it ends itself.
            let _ = ptrace::cont(self.tid, 0);
        }
        while let Ok(what) = wait::wait(Some(self.tid), true) {
            if matches!(what, Some((_, Event::Exited(_) | Event::Killed(_)))) {
                break;
            }
        }
    }
}

/// Makes the call, and follows it to its end: the child, or `None` where it failed.
fn clone(leader: &Stopped, injection: &Injection, flags: u64) -> Result<Option<Twin>, RunError> {
    injection.start(leader, Nr::CLONE, [flags, injection.twin_stack(), 0, 0, 0, 0])?;
    leader.await_syscall().map_err(|e| stop_error(leader.tid(), e))?;
    leader.to_syscall()?;
    let mut twin = loop {
        let on = match crate::stop::next(leader.tid())? {
            Event::Stopped { event: event::CLONE, .. } => {
                break Twin { tid: ptrace::event_message(leader.tid())?, inside: 0 };
            }
            Event::Stopped { signal, event: 0 } if signal == SYSCALL_STOP => return Ok(None),
            // As in `Stopped::await_syscall`.
            Event::Stopped { event: event::STOP, .. } => leader.to_syscall(),
            Event::Stopped { signal: crate::stop::SIGSTOP, event: 0 } => {
                ptrace::syscall(leader.tid(), crate::stop::SIGSTOP)
            }
            Event::Stopped { signal, .. } => {
                return Err(SysError::new("ptrace", format!("stopped by signal {signal}"), Errno::INTR).into());
            }
            Event::Continued => Ok(()),
            event => return Err(RunError::Died { tid: leader.tid(), event }),
        };
        match on {
            Err(e) if e.is_gone() => {}
            other => other?,
        }
    };
    leader.to_syscall()?;
    leader.await_syscall().map_err(|e| stop_error(leader.tid(), e))?;
    // What the call returns is the id as the leader knows it.
    twin.inside = i32::try_from(leader.regs()?.rax).unwrap_or(0);
    Ok(Some(twin))
}

/// SIGTRAP with the mark of `PTRACE_O_TRACESYSGOOD`.
const SYSCALL_STOP: i32 = 5 | 0x80;

/// The arguments of a wait4(2) that takes a twin's end, if it has ended.
fn wait_arguments(inside: i32) -> [u64; 6] {
    const WALL_WNOHANG: u64 = 0x4000_0001;
    [i64::from(inside).cast_unsigned(), 0, WALL_WNOHANG, 0, 0, 0]
}

/// Has a running process bury its twin, which has ended. `inside`: the twin's id as the process knows it. `may`: asked when the
/// process stands still, whether it is still who it was, and may make the call.
///
/// # Errors
/// Whatever hinders it: then the twin is a zombie until the process ends. One that has ended is nothing to do.
pub fn bury(proc: BorrowedFd<'_>, pid: i32, inside: i32, may: impl FnOnce() -> bool) -> Result<(), RunError> {
    briefly(proc, pid, may, |leader, injection, _| injection.call(leader, Nr::WAIT4, wait_arguments(inside)).map(drop))
        .map(drop)
}

/// Borrows the leader of a running process for a few calls; the other threads run on. `None`: it has ended, or `may` said no.
pub(super) fn briefly<T>(
    proc: BorrowedFd<'_>,
    pid: i32,
    may: impl FnOnce() -> bool,
    calls: impl FnOnce(&Stopped, &Injection, Entry) -> Result<T, RunError>,
) -> Result<Option<T>, RunError> {
    /// For as long the process is waited for: it may be in a call that nobody can interrupt.
    const PATIENCE: Duration = Duration::from_secs(1);
    match Stopped::seize(pid, ptrace::O_TRACESYSGOOD) {
        Err(e) if e.is_gone() => return Ok(None),
        other => other?,
    }
    ptrace::interrupt(pid)?;
    let stopped = match Stopped::wait_for(pid, PATIENCE) {
        Err(StopError::Dead(_)) => return Ok(None),
        other => [other.map_err(|e| stop_error(pid, e))?],
    };
    let done = (|| {
        if !may() {
            return Ok(None);
        }
        // No scratch memory: calls through the vdso are all.
        let loan = Loan::new(pid, &stopped, &regions(proc, pid)?, 0)?;
        let begun = loan.begin()?;
        let (leader, injection) = begun.leader();
        let made = calls(leader, injection, begun.loan.entry);
        let ended = begun.injection.end(leader, &begun.loan.saved[0]);
        made.and_then(|made| ended.map(|()| Some(made)))
    })();
    let [leader] = stopped;
    let detached = leader.detach();
    done.and_then(|done| Ok(detached.map(|()| done)?))
}
