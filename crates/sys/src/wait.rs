//! Waiting for children and tracees (waitid(2), `__WALL`).

use crate::{Result, SysError};

/// What happened to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Exited with a status.
    Exited(i32),
    /// Killed by a signal.
    Killed(i32),
    /// A ptrace stop: the signal, and the ptrace event in the bits above it (ptrace(2)).
    Stopped {
        /// The signal, 0x80 set for a system-call stop with `PTRACE_O_TRACESYSGOOD`.
        signal: i32,
        /// The ptrace event, 0 for none.
        event: i32,
    },
    /// Resumed by SIGCONT.
    Continued,
}

/// Waits for one task (`None`: any); `None` is returned when nothing has happened and `block` is false.
///
/// # Errors
/// `ECHILD` when there is nobody to wait for.
pub fn wait(tid: Option<i32>, block: bool) -> Result<Option<(i32, Event)>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` is ours and outlives the call.
        let got = unsafe { libc::waitpid(tid.unwrap_or(-1), &raw mut status, flags) };
        if got == 0 {
            return Ok(None);
        }
        if got > 0 {
            return Ok(Some((got, decode(status))));
        }
        let error = SysError::last("waitpid", format!("{}, __WALL", tid.unwrap_or(-1)));
        if error.errno != rustix::io::Errno::INTR {
            return Err(error);
        }
    }
}

/// Reads a wait status (wait(2)).
#[must_use]
pub fn decode(status: i32) -> Event {
    if libc::WIFEXITED(status) {
        Event::Exited(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        Event::Killed(libc::WTERMSIG(status))
    } else if libc::WIFSTOPPED(status) {
        Event::Stopped { signal: libc::WSTOPSIG(status), event: status >> 16 }
    } else {
        Event::Continued
    }
}
