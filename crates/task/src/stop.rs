//! A task in a ptrace stop. What can only be done to a stopped task is a method here; letting it go consumes it.

use std::time::{Duration, Instant};

use yendor_sys::ptrace::{self, event};
use yendor_sys::wait::{self, Event};
use yendor_sys::{Errno, SysError};

use crate::regs::{Interrupted, Regs, interrupted, portable};
use crate::{end, limit};

/// A task that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("task {tid} died ({event:?})")]
pub struct Dead {
    /// Its id.
    pub tid: i32,
    /// How it ended.
    pub event: Event,
}

/// Why a task could not be stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// It ended first.
    #[error("{0}")]
    Dead(#[from] Dead),
    /// The kernel refused.
    #[error("{0}")]
    Sys(#[from] SysError),
}

/// A stopped, seized task.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
    /// The stop signal of the group stop it is in, if it is in one.
    group_stop: Option<i32>,
}

impl Stopped {
    /// Seizes a task, without stopping it yet.
    ///
    /// # Errors
    /// `EPERM` when it may not be traced, `ESRCH`.
    pub fn seize(tid: i32, options: u64) -> Result<(), SysError> {
        ptrace::seize(tid, options)
    }

    /// Waits until a seized and interrupted task stops. Signals that come in between are put back where they came from
    /// by the kernel once the task runs again: the stop asked for comes first.
    ///
    /// # Errors
    /// Its death, or the kernel's refusal.
    pub fn wait(tid: i32) -> Result<Stopped, StopError> {
        loop {
            if let Some(stopped) = Self::after(tid, next(tid)?)? {
                return Ok(stopped);
            }
        }
    }

    /// Waits until a task that was asked to stop, and blocks all signals, does. One that comes all the same its own instruction has caused,
    /// as a filter can: the task is stopped, and whoever lets it go does not deliver it.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub(crate) fn wait_blocked(tid: i32) -> Result<(), StopError> {
        loop {
            let what = next(tid)?;
            match what {
                Event::Stopped { signal, event: 0 } if signal != SIGSTOP => return Ok(()),
                _ => {}
            }
            if Self::after(tid, what)?.is_some() {
                return Ok(());
            }
        }
    }

    /// As [`Self::wait`], but not for longer than `limit`: a task may wait in the kernel for what never comes, as a parent
    /// does in vfork(2).
    ///
    /// # Errors
    /// `ETIMEDOUT`; the task is still seized, until we end. Otherwise as [`Self::wait`].
    pub fn wait_for(tid: i32, limit: Duration) -> Result<Stopped, StopError> {
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let Some(what) = next_within(tid, left)? else {
                let what = format!("PTRACE_INTERRUPT, {tid}: no stop in {} s", limit.as_secs());
                return Err(SysError::new("ptrace", what, Errno::TIMEDOUT).into());
            };
            if let Some(stopped) = Self::after(tid, what)? {
                return Ok(stopped);
            }
        }
    }

    /// What it means for a task that was asked to stop. `None`: it has not stopped yet.
    fn after(tid: i32, what: Event) -> Result<Option<Stopped>, StopError> {
        match what {
            Event::Stopped { signal, event: event::STOP } => {
                let group_stop = (signal & 0x7f != libc_sigtrap()).then_some(signal & 0x7f);
                return Ok(Some(Stopped { tid, group_stop }));
            }
            // A signal was on its way: let it be delivered and go on waiting for our own stop.
            Event::Stopped { signal, event } => match ptrace::cont(tid, if event == 0 { signal } else { 0 }) {
                // Killed in its stop; its end is yet to be told, and its parent learns of it only after us.
                Err(e) if e.is_gone() => {}
                other => other?,
            },
            Event::Continued => {}
            event => return Err(Dead { tid, event }.into()),
        }
        Ok(None)
    }

    /// Interrupts a seized, running task and waits for the stop.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn interrupt(tid: i32) -> Result<Stopped, StopError> {
        ptrace::interrupt(tid)?;
        Self::wait(tid)
    }

    /// A task that the caller knows to be in a ptrace stop.
    #[must_use]
    pub fn already(tid: i32) -> Stopped {
        Stopped { tid, group_stop: None }
    }

    /// Its id as the tracer sees it.
    #[must_use]
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The stop signal of the group stop (SIGSTOP, SIGTSTP ...) it was in when we stopped it.
    #[must_use]
    pub fn group_stop(&self) -> Option<i32> {
        self.group_stop
    }

    /// The general registers.
    ///
    /// # Errors
    /// `ESRCH` when it was killed.
    pub fn regs(&self) -> Result<Regs, SysError> {
        ptrace::regs(self.tid)
    }

    /// Sets the general registers.
    ///
    /// # Errors
    /// As [`Self::regs`], or `EIO` for values that the kernel does not allow.
    pub fn set_regs(&self, regs: &Regs) -> Result<(), SysError> {
        ptrace::set_regs(self.tid, regs)
    }

    /// Lets it run, still traced.
    ///
    /// # Errors
    /// `ESRCH` when it was killed.
    pub fn resume(self) -> Result<(), SysError> {
        ptrace::cont(self.tid, 0)
    }

    /// Lets it go for good. A task that was in a group stop stays stopped. A call that returned only because of our stop is made
    /// again.
    ///
    /// # Errors
    /// None for a task that is gone.
    pub fn detach(self) -> Result<(), SysError> {
        // Who cannot be asked goes as it is.
        let _ = self.hide_stop();
        match ptrace::detach(self.tid, 0) {
            Err(e) if e.is_gone() => {
                // Whoever else waits for its end hears of it after us.
                end::take(self.tid);
                Ok(())
            }
            other => other,
        }
    }

    fn hide_stop(&self) -> Result<(), SysError> {
        let mut own = self.regs()?;
        if limit::forget_stop(self.tid, &mut own)? {
            return self.set_regs(&own);
        }
        if !matches!(interrupted(&own, false), Interrupted::Bare(_)) || limit::signal_waits(self.tid)? {
            return Ok(());
        }
        self.set_regs(&portable(&own, false))
    }

    /// Lets it run to its next entry into a system call, or the exit from one.
    ///
    /// # Errors
    /// `ESRCH` when it was killed.
    pub fn to_syscall(&self) -> Result<(), SysError> {
        ptrace::syscall(self.tid, 0)
    }

    /// Waits until it is where [`Self::to_syscall`] leads.
    ///
    /// # Errors
    /// Its death, or a signal that came in between.
    pub fn await_syscall(&self) -> Result<(), StopError> {
        loop {
            let on = match next(self.tid)? {
                Event::Stopped { signal, event: 0 } if signal == libc_sigtrap() | 0x80 => return Ok(()),
                // Interrupts and group stops in between: go on to the system-call stop.
                Event::Stopped { event: event::STOP, .. } => ptrace::syscall(self.tid, 0),
                // The one signal that nobody can block: the task will be in its group stop when we let it go.
                Event::Stopped { signal: SIGSTOP, event: 0 } => ptrace::syscall(self.tid, SIGSTOP),
                Event::Stopped { signal, .. } => {
                    return Err(SysError::new("ptrace", format!("stopped by signal {signal}"), Errno::INTR).into());
                }
                Event::Continued => Ok(()),
                event => return Err(Dead { tid: self.tid, event }.into()),
            };
            match on {
                // Its end is yet to be told.
                Err(e) if e.is_gone() => {}
                other => other?,
            }
        }
    }

    /// Runs the one system call that its registers describe (`rip` at a `syscall` instruction) and returns its result.
    ///
    /// # Errors
    /// Its death, or the kernel's refusal to step it.
    pub fn step_syscall(&self) -> Result<i64, StopError> {
        for _ in 0..2 {
            self.to_syscall()?;
            self.await_syscall()?;
        }
        Ok(self.regs()?.rax.cast_signed())
    }
}

/// What happens next to a task that we trace. Who of its process has ended is no reason to wait for ever.
pub(crate) fn next(tid: i32) -> Result<Event, SysError> {
    loop {
        if let Some(what) = next_within(tid, Duration::MAX)? {
            return Ok(what);
        }
    }
}

/// The same, if it happens in time.
fn next_within(tid: i32, limit: Duration) -> Result<Option<Event>, SysError> {
    /// Most happens sooner than anybody can sleep.
    const SOON: Duration = Duration::from_micros(200);
    /// From then on something may be in its way.
    const LATE: Duration = Duration::from_millis(5);
    let begin = Instant::now();
    loop {
        if let Some(what) = already(tid)? {
            return Ok(Some(what));
        }
        match begin.elapsed() {
            waited if waited > limit => return Ok(None),
            waited if waited < SOON => std::thread::yield_now(),
            waited => {
                if waited > LATE {
                    end::take_others(tid);
                }
                std::thread::sleep((waited / 8).min(Duration::from_millis(10)));
            }
        }
    }
}

/// What has happened to a task that we trace. One that is nobody's has ended: somebody has heard of that already while waiting for
/// another of its process, and nothing but SIGKILL ends who is stopped or blocks all signals.
pub(crate) fn already(tid: i32) -> Result<Option<Event>, SysError> {
    match wait::wait(Some(tid), false) {
        Err(e) if e.errno == Errno::CHILD => Ok(Some(Event::Killed(SIGKILL))),
        other => Ok(other?.map(|(_, what)| what)),
    }
}

/// What ends who cannot block it.
pub(crate) const SIGKILL: i32 = 9;

/// What stops every task, and cannot be blocked.
pub(crate) const SIGSTOP: i32 = 19;

const fn libc_sigtrap() -> i32 {
    5
}
