//! Seccomp's user notifications (seccomp_unotify(2)): a filter may leave calls of others to us.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::{Errno, Result, SysError};

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// Names it in answers.
    pub id: u64,
    /// The thread that makes it, in our pid namespace; 0 for one that is not in it.
    pub tid: i32,
    /// The call's number.
    pub nr: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel makes it after all.
    Continue,
    /// It returns this.
    Value(i64),
    /// It fails.
    Error(Errno),
}

#[repr(C)]
#[derive(Default)]
struct RawNotice {
    id: u64,
    pid: u32,
    flags: u32,
    nr: i32,
    arch: u32,
    ip: u64,
    args: [u64; 6],
}

#[repr(C)]
struct RawAnswer {
    id: u64,
    val: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct RawAddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

/// Takes the next call that waits. `None` when it is gone already (its thread was killed or got a signal).
///
/// # Errors
/// What the ioctl says.
pub fn receive(listener: &impl AsFd) -> Result<Option<Notice>> {
    // The kernel wants it zeroed.
    let mut raw = RawNotice::default();
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: `raw` has the kernel's layout (linux/seccomp.h) and outlives the call.
    if unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut raw) } < 0 {
        let error = SysError::last("ioctl", "SECCOMP_IOCTL_NOTIF_RECV");
        return if matches!(error.errno, Errno::NOENT | Errno::INTR) { Ok(None) } else { Err(error) };
    }
    let (tid, nr) = (i32::try_from(raw.pid).unwrap_or(0), raw.nr.cast_unsigned());
    Ok(Some(Notice { id: raw.id, tid, nr, args: raw.args }))
}

/// Whether a call still waits: as long as it does, its thread is there, and its number is nobody else's.
///
/// # Errors
/// What the ioctl says.
pub fn is_waiting(listener: &impl AsFd, id: u64) -> Result<bool> {
    let fd = listener.as_fd().as_raw_fd();
    loop {
        // SAFETY: the kernel reads one number, which outlives the call.
        if unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) } == 0 {
            return Ok(true);
        }
        let error = SysError::last("ioctl", "SECCOMP_IOCTL_NOTIF_ID_VALID");
        match error.errno {
            Errno::NOENT => return Ok(false),
            Errno::INTR => {}
            _ => return Err(error),
        }
    }
}

/// Answers. Nothing happens when the call is gone.
///
/// # Errors
/// What the ioctl says.
pub fn answer(listener: &impl AsFd, id: u64, answer: Answer) -> Result<()> {
    const CONTINUE: u32 = 1;
    let raw = match answer {
        Answer::Continue => RawAnswer { id, val: 0, error: 0, flags: CONTINUE },
        Answer::Value(val) => RawAnswer { id, val, error: 0, flags: 0 },
        Answer::Error(errno) => RawAnswer { id, val: 0, error: -errno.raw_os_error(), flags: 0 },
    };
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: `raw` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const raw) };
    gone_is_fine(ret, "SECCOMP_IOCTL_NOTIF_SEND")
}

/// Answers with a descriptor of ours, which the caller gets as the call's result, closed by execve.
///
/// # Errors
/// What the ioctl says, `EMFILE` of the caller among it.
pub fn answer_with(listener: &impl AsFd, id: u64, give: BorrowedFd<'_>) -> Result<()> {
    const SEND: u32 = 2;
    let srcfd = give.as_raw_fd().cast_unsigned();
    let raw = RawAddFd { id, flags: SEND, srcfd, newfd: 0, newfd_flags: libc::O_CLOEXEC.cast_unsigned() };
    let fd = listener.as_fd().as_raw_fd();
    // SAFETY: `raw` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const raw) };
    gone_is_fine(ret, "SECCOMP_IOCTL_NOTIF_ADDFD")
}

fn gone_is_fine(ret: i32, call: &'static str) -> Result<()> {
    if ret >= 0 {
        return Ok(());
    }
    let error = SysError::last("ioctl", call);
    if error.errno == Errno::NOENT { Ok(()) } else { Err(error) }
}

/// A descriptor of another process, as one of ours.
///
/// # Errors
/// `EBADF` when it has no such descriptor, `EPERM` when we may not trace it.
pub fn descriptor_of(pid: i32, number: i32) -> Result<OwnedFd> {
    descriptor_of_held(&hold(pid)?, number)
}

/// A process, by a descriptor: none that gets its number later is taken for it.
///
/// # Errors
/// `ESRCH`, `EMFILE`.
pub fn hold(pid: i32) -> Result<OwnedFd> {
    let raw = Pid::from_raw(pid).ok_or_else(|| SysError::new("pidfd_open", pid.to_string(), Errno::SRCH))?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|e| SysError::new("pidfd_open", pid.to_string(), e))
}

/// As [`descriptor_of`], of a process that is held.
///
/// # Errors
/// As there, `ESRCH` when it has ended.
pub fn descriptor_of_held(process: &OwnedFd, number: i32) -> Result<OwnedFd> {
    let shown = |e| SysError::new("pidfd_getfd", number.to_string(), e);
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).map_err(shown)
}

/// Installs a filter with a listener in the calling thread.
///
/// # Errors
/// As [`install`], `EBUSY` where a filter has a listener already.
pub fn install_listener(flags: u32, program: &[u8]) -> Result<OwnedFd> {
    let fd = install(flags, program, 0)?;
    // SAFETY: with a listener asked for, the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Installs a filter in the calling thread (seccomp(2)); `cookie` goes into the sixth argument, which the kernel ignores.
/// With `SECCOMP_FILTER_FLAG_NEW_LISTENER` the result is a descriptor.
///
/// # Errors
/// `EACCES` without `no_new_privs` or `CAP_SYS_ADMIN` in the own user namespace, `EINVAL` for what is no filter.
pub fn install(flags: u32, program: &[u8], cookie: u64) -> Result<i32> {
    const SET_MODE_FILTER: u32 = 1;
    let length = u16::try_from(program.len() / 8);
    let length = length.map_err(|_| SysError::new("seccomp", "a filter that is too long", Errno::INVAL))?;
    let mut aligned: Vec<MaybeUninit<libc::sock_filter>> = Vec::with_capacity(usize::from(length));
    for bytes in program.as_chunks::<8>().0 {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
        let (code, k) = (u16::from_ne_bytes([c0, c1]), u32::from_ne_bytes([k0, k1, k2, k3]));
        aligned.push(MaybeUninit::new(libc::sock_filter { code, jt, jf, k }));
    }
    let header = libc::sock_fprog { len: length, filter: aligned.as_mut_ptr().cast() };
    // SAFETY: header and instructions have the kernel's layout and outlive the call, which only reads them.
    let ret =
        unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const header, 0usize, 0usize, cookie) };
    let error = || SysError::last("seccomp", format!("SECCOMP_SET_MODE_FILTER, {flags:#x}"));
    if ret < 0 { Err(error()) } else { i32::try_from(ret).map_err(|_| error()) }
}
