//! Starting a program in a new user namespace whose id maps somebody else writes meanwhile (clone3(2), execve(2)).
//!
//! The standard library cannot do it: its `spawn` waits for the exec, which here has to wait for the maps.

use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::clone::CloneArgs;
use crate::{Result, SysError};

/// The first descriptor number that is given to the program.
pub const FIRST: RawFd = 3;

/// What is started.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program's path.
    pub program: &'a CStr,
    /// Its arguments, the name first.
    pub arguments: &'a [CString],
    /// Its environment.
    pub environment: &'a [CString],
    /// Whether it lives in a new user namespace.
    pub user_namespace: bool,
    /// The user and group id that it takes, as the new namespace names them.
    pub ids: Option<(u32, u32)>,
    /// Descriptors that it gets as [`FIRST`] and following; it gets no others but 0, 1, 2.
    pub descriptors: &'a [BorrowedFd<'a>],
}

/// A child that waits to be let go; dropping it ends the child.
#[derive(Debug)]
pub struct Waiting {
    pid: i32,
    pidfd: Option<OwnedFd>,
    gate: Option<OwnedFd>,
    report: OwnedFd,
}

/// The calls of the child, in order: what its report counts.
const STEPS: [&str; 9] =
    ["read", "setresgid", "setresuid", "capget", "capset", "prctl", "fcntl", "close_range", "execve"];

/// Starts the child up to the point where it waits for its id maps.
///
/// # Errors
/// `EPERM`, `ENOSPC`, `EUSERS` when user namespaces are not to be had; `EAGAIN` at a limit of tasks.
pub fn spawn(what: &Spawn<'_>) -> Result<Waiting> {
    let named = |e| SysError::new("pipe2", "O_CLOEXEC", e);
    let (gate_read, gate_write) = pipe_with(PipeFlags::CLOEXEC).map_err(named)?;
    let (report_read, report_write) = pipe_with(PipeFlags::CLOEXEC).map_err(named)?;
    let argv: Vec<*const c_char> = pointers(what.arguments);
    let envp: Vec<*const c_char> = pointers(what.environment);
    let mut scratch = vec![-1; what.descriptors.len()];
    let mut pidfd: RawFd = -1;
    let user = if what.user_namespace { libc::CLONE_NEWUSER } else { 0 };
    let args = CloneArgs {
        flags: u64::from((libc::CLONE_PIDFD | user).cast_unsigned()),
        pidfd: (&raw mut pidfd).addr() as u64,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM: the child has its own memory. It calls only `child`, which makes system calls, allocates
    // nothing, takes no lock, and ends in execve or _exit.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<CloneArgs>()) };
    match pid {
        0 => {
            // SAFETY: as above; the pointers are to CStrings that live in this frame's caller.
            unsafe {
                libc::close(gate_write.as_raw_fd());
                child(what, gate_read.as_raw_fd(), report_write.as_raw_fd(), &argv, &envp, &mut scratch)
            }
        }
        pid if pid > 0 => Ok(Waiting {
            pid: i32::try_from(pid).map_err(|_| SysError::new("clone3", "", Errno::OVERFLOW))?,
            // SAFETY: the kernel has just made it, and nobody else knows it.
            pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd) }),
            gate: Some(gate_write),
            report: report_read,
        }),
        _ => Err(SysError::last("clone3", if what.user_namespace { "CLONE_NEWUSER" } else { "" })),
    }
}

impl Waiting {
    /// The child's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets the child go and waits until the program runs.
    ///
    /// # Errors
    /// The call of the child that was refused; then the child is gone.
    pub fn release(mut self) -> Result<(i32, OwnedFd)> {
        let report = self.let_go()?;
        if let [step, errno @ ..] = report.as_slice() {
            let call = STEPS.get(usize::from(*step)).copied().unwrap_or("execve");
            let errno = <[u8; 4]>::try_from(errno).map_or(libc::EIO, i32::from_ne_bytes);
            return Err(SysError::new(call, "in the new process", Errno::from_raw_os_error(errno)));
        }
        let pidfd = self.pidfd.take().ok_or_else(|| SysError::new("clone3", "CLONE_PIDFD", Errno::BADF))?;
        Ok((self.pid, pidfd))
    }

    fn let_go(&mut self) -> Result<Vec<u8>> {
        let named = |e: &std::io::Error| SysError::io("write", "to the new process", e);
        if let Some(gate) = self.gate.take() {
            File::from(gate).write_all(&[1]).map_err(|e| named(&e))?;
        }
        let mut report = Vec::new();
        let fd = self.report.as_fd().try_clone_to_owned().map_err(|e| named(&e))?;
        File::from(fd).take(8).read_to_end(&mut report).map_err(|e| named(&e))?;
        Ok(report)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Still ours: it was not let go, it reported a failure, or nobody could hear what it reports.
        if let Some(pidfd) = self.pidfd.take() {
            let _ = crate::process::send_signal(&pidfd, libc::SIGKILL);
            let _ = crate::wait::wait(Some(self.pid), true);
        }
    }
}

/// Takes over an inherited descriptor, which becomes close-on-exec.
///
/// # Errors
/// `EBADF` if it is not open, `EBUSY` if it was taken before.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(SysError::last("fcntl", format!("{number}, F_GETFD")));
    }
    // Everything that this program opens is close-on-exec, so only a descriptor that came by exec is not.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(SysError::new("fcntl", format!("{number}, F_GETFD"), Errno::BUSY));
    }
    // SAFETY: takes no pointer.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(SysError::last("fcntl", format!("{number}, F_SETFD")));
    }
    // SAFETY: it is open, and the flag shows that nobody in this process has taken it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes all descriptors from this number on: what came by exec and nobody here knows. At the very beginning, when nobody owns one of them.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn close_inherited(first: u32) -> Result<()> {
    // SAFETY: takes numbers; nobody uses what they stand for.
    if unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } < 0 {
        return Err(SysError::last("close_range", format!("{first}, ~0")));
    }
    Ok(())
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// # Safety
/// Only in a fresh child; `argv` and `envp` end in null.
unsafe fn child(
    what: &Spawn<'_>,
    gate: RawFd,
    report: RawFd,
    argv: &[*const c_char],
    envp: &[*const c_char],
    scratch: &mut [RawFd],
) -> ! {
    // SAFETY: only system calls on memory of this frame; `fail` does not return.
    unsafe {
        // End of file: the parent has died or does not want it any more.
        let mut byte = 0_u8;
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(1);
        }
        if let Some((uid, gid)) = what.ids {
            // Raw: the wrappers of libc would signal threads that this copy does not have.
            check(report, 1, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
            check(report, 2, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
            if uid != 0 {
                keep_capabilities(report);
            }
        }
        let report = place(what.descriptors, report, scratch);
        libc::execve(what.program.as_ptr(), argv.as_ptr(), envp.as_ptr());
        fail(report, 8)
    }
}

/// Lets the capabilities in the new namespace survive the exec of a user that is not its root.
unsafe fn keep_capabilities(report: RawFd) {
    let header = CapHeader { version: 0x2008_0522, pid: 0 };
    let mut data = [CapData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: header and data have the kernel's layout (capget(2), version 3) and outlive the calls.
    unsafe {
        check(report, 3, libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()));
        for half in &mut data {
            half.inheritable = half.permitted;
        }
        check(report, 4, libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()));
        for capability in 0..64_u32 {
            let half = if capability < 32 { data[0].permitted } else { data[1].permitted };
            if half & (1 << (capability % 32)) != 0 {
                let raise = libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0);
                check(report, 5, raise.into());
            }
        }
    }
}

/// Gives the descriptors their numbers and marks all others to be closed by the exec. Where the report is now.
unsafe fn place(descriptors: &[BorrowedFd<'_>], report: RawFd, scratch: &mut [RawFd]) -> RawFd {
    let count = i32::try_from(descriptors.len()).unwrap_or(i32::MAX - FIRST);
    let end = FIRST + count;
    // SAFETY: only calls that take numbers.
    unsafe {
        // First all out of the way, then each to its place: a target number may be another one's source.
        let report_high = libc::fcntl(report, libc::F_DUPFD_CLOEXEC, end);
        check(report, 6, report_high.into());
        for (from, to) in descriptors.iter().zip(scratch.iter_mut()) {
            *to = libc::fcntl(from.as_raw_fd(), libc::F_DUPFD_CLOEXEC, end);
            check(report_high, 6, (*to).into());
        }
        for (to, from) in (FIRST..).zip(scratch.iter()) {
            check(report_high, 6, libc::dup2(*from, to).into());
        }
        const CLOEXEC: libc::c_uint = 1 << 2;
        check(report_high, 7, libc::syscall(libc::SYS_close_range, end, libc::c_uint::MAX, CLOEXEC));
        report_high
    }
}

unsafe fn check(report: RawFd, step: u8, ret: i64) {
    if ret < 0 {
        // SAFETY: as for `child`.
        unsafe { fail(report, step) }
    }
}

unsafe fn fail(report: RawFd, step: u8) -> ! {
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
    let bytes = [step, errno[0], errno[1], errno[2], errno[3]];
    // SAFETY: `bytes` is ours.
    unsafe {
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(1)
    }
}
