//! Processes that a test starts, and those that carry its mark.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Waits until something holds. False when it does not in time.
pub fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process of ours, killed when dropped.
pub struct Started(Child);

impl Started {
    /// Starts it.
    pub fn new(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Its id.
    pub fn pid(&self) -> libc::pid_t {
        libc::pid_t::try_from(self.0.id()).expect("a pid is positive")
    }

    /// How it ended; `None` when it does not in time.
    pub fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait_until(limit, || {
            status = self.0.try_wait().expect("a child of ours can be waited for");
            status.is_some()
        });
        status
    }

    /// Kills it, if it has not ended yet, and waits.
    pub fn kill(&mut self) -> ExitStatus {
        // An error means that it has ended already.
        let _ = self.0.kill();
        self.0.wait().expect("a child of ours can be waited for")
    }

    /// Somebody else has waited for it.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }

    /// Exit code, or 128 and the signal as a shell would say.
    pub fn code(status: ExitStatus) -> i32 {
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A signal for a process that was not waited for.
pub fn signal(pid: libc::pid_t, number: libc::c_int) {
    // SAFETY: takes numbers.
    unsafe { libc::kill(pid, number) };
}

/// SIGKILL for a process that this test has started, directly or not.
pub fn kill(pid: libc::pid_t) {
    // SAFETY: takes no pointer.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Makes a command begin a session of its own, as a daemon does.
pub fn lead_a_session(command: &mut Command) {
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// Ids of living processes whose environment has this line.
pub fn marked(mark: &str) -> Vec<libc::pid_t> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| *pid != own() && carries(*pid, mark)).collect()
}

fn own() -> libc::pid_t {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getpid() }
}

fn carries(pid: libc::pid_t, mark: &str) -> bool {
    // Who is gone meanwhile, or a zombie, has no environment.
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|&byte| byte == 0).any(|line| line == mark.as_bytes())
}

/// Kills processes with the mark, one by one, until none is left.
pub(crate) fn kill_marked(mark: &str) -> bool {
    wait_until(Duration::from_secs(10), || {
        let left = marked(mark);
        for &pid in &left {
            // SAFETY: a process with a mark that only this test gives.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        left.is_empty()
    })
}
