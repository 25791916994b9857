//! Signals as readable events, signals to other processes by number, and commands that lead a session of their own.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::{Result, SysError};

/// Signals that do not act on this process while this lives, but can be read (signalfd(2)). Take it before any thread is
/// started: threads inherit the mask.
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Blocks these signals and opens a descriptor for them, which never blocks.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal, `EMFILE`.
    pub fn block(numbers: &[i32]) -> Result<Signals> {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigemptyset fills the whole set, which makes it initialised for the calls after it; sigprocmask fills
        // `before` when it succeeds. All pointers are to this frame.
        let (set, before) = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for number in numbers {
                if libc::sigaddset(&raw mut set, *number) < 0 {
                    return Err(SysError::last("sigaddset", number.to_string()));
                }
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) < 0 {
                return Err(SysError::last("rt_sigprocmask", "SIG_BLOCK"));
            }
            (set, before.assume_init())
        };
        // SAFETY: the set is initialised and outlives the call.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            let error = SysError::last("signalfd4", "SFD_CLOEXEC|SFD_NONBLOCK");
            restore(&before);
            return Err(error);
        }
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) }, before })
    }

    /// The command's process starts with the mask of before: else what is blocked here would never reach it.
    pub fn spare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let before = self.before;
        let prepare = move || {
            // SAFETY: `before` is what the kernel gave; it outlives the call.
            let ret = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
            if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: `prepare` makes one async-signal-safe call.
        unsafe { command.pre_exec(prepare) }
    }

    /// The number of a signal that has come, if any.
    ///
    /// # Errors
    /// What read says.
    pub fn next(&self) -> Result<Option<i32>> {
        let mut info = [0; std::mem::size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            // The number is the first field, a u32 (signalfd(2)).
            Ok(n) if n == info.len() => Ok(info.first_chunk().map(|b| i32::from_ne_bytes(*b))),
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(SysError::new("read", "signalfd", e)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(mask: &libc::sigset_t) {
    // SAFETY: `mask` is what the kernel gave; it outlives the call. It cannot fail with a valid pointer.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Sends a signal by its number, real-time signals too (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` when the process is gone, `EPERM`, `EINVAL` for a number that is no signal.
pub fn send_signal(pidfd: &impl AsFd, number: i32) -> Result<()> {
    let raw = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null info asks the kernel to fill it in; no memory is touched.
    let ret =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, raw, number, std::ptr::null::<libc::siginfo_t>(), 0) };
    if ret < 0 { Err(SysError::last("pidfd_send_signal", format!("{raw}, {number}"))) } else { Ok(()) }
}

/// Makes the command's process the leader of a new session. Without a terminal, it cannot reach that of ours through `/dev/tty`, nor type into
/// it (`TIOCSTI`), nor take it from us (tcsetpgrp(3)). Until it runs its command nobody looks into it: with `fs.suid_dumpable` 1 a change of
/// its ids would have let them.
pub fn lead_session(command: &mut Command, terminal: Terminal) -> &mut Command {
    let prepare = move || {
        // SAFETY: system calls that take no pointers, allocate nothing and take no lock.
        let ret = unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            match (libc::setsid(), terminal) {
                (leader @ ..0, _) | (leader, Terminal::None) => leader,
                (_, Terminal::StandardInput) => libc::ioctl(0, libc::TIOCSCTTY, 0),
            }
        };
        if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: `prepare` is async-signal-safe, see there.
    unsafe { command.pre_exec(prepare) }
}

/// The controlling terminal of a new session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// It has none.
    None,
    /// Its standard input.
    StandardInput,
}

/// A pidfd of a process that has ended and was waited for.
///
/// # Errors
/// What fork, pidfd_open and waitpid say.
pub fn ended() -> Result<OwnedFd> {
    // SAFETY: the child makes one system call, on nobody's memory.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(SysError::last("fork", "")),
        // SAFETY: ends the child without running anything of ours.
        0 => unsafe { libc::_exit(0) },
        pid => pid,
    };
    // SAFETY: takes no pointer; the child cannot be reaped before the call below.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let opened = match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor; nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(SysError::last("pidfd_open", format!("{pid}"))),
    };
    // SAFETY: a null pointer asks for no status.
    let waited = unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
    if waited < 0 { Err(SysError::last("wait4", format!("{pid}"))) } else { opened }
}

/// No program that is executed from here gets any descriptor but the standard ones.
///
/// # Errors
/// `ENOSYS` or `EINVAL` before Linux 5.11.
pub fn close_on_exec() -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: close_range with this flag closes nothing now; who owns a descriptor here keeps it.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if ret < 0 { Err(SysError::last("close_range", "3, CLOSE_RANGE_CLOEXEC")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_blocked_signal_can_be_read_and_acts_again_afterwards() {
        let signals = Signals::block(&[libc::SIGURG]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // SAFETY: takes no pointer; to this thread, whose mask it is.
        unsafe { libc::raise(libc::SIGURG) };
        assert_eq!(signals.next().unwrap(), Some(libc::SIGURG));
        assert!(Signals::block(&[-1]).is_err());
    }

    #[test]
    fn a_command_can_be_spared_what_is_blocked_here() {
        let ask = || {
            let mut command = Command::new("grep");
            command.args(["SigBlk", "/proc/self/status"]);
            command
        };
        let before = ask().output().unwrap().stdout;
        let signals = Signals::block(&[libc::SIGURG, libc::SIGWINCH]).unwrap();
        assert_ne!(ask().output().unwrap().stdout, before);
        assert_eq!(signals.spare(&mut ask()).output().unwrap().stdout, before);
    }

    #[test]
    fn a_signal_is_sent_by_number() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        assert!(send_signal(&pidfd, 999).is_err());
        send_signal(&pidfd, libc::SIGRTMIN() + 1).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGRTMIN() + 1));
        assert!(send_signal(&pidfd, libc::SIGTERM).unwrap_err().is_gone());
    }

    #[test]
    fn a_command_can_lead_a_session_with_a_terminal() {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&master).unwrap();
        let peer = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", ": < /dev/tty"]).stdin(peer);
        assert!(lead_session(&mut command, Terminal::StandardInput).status().unwrap().success());
    }
}
