//! A system call by number, for the calls that neither rustix nor libc wraps and that touch no memory of ours.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::{Result, SysError};

/// Calls `nr` with arguments that are numbers, never addresses of our own memory.
///
/// # Errors
/// The kernel's errno under the name `call`.
pub fn numbers(call: &'static str, nr: i64, args: [u64; 6]) -> Result<i64> {
    let [a, b, c, d, e, f] = args;
    debug_assert!(HARMLESS.contains(&nr), "{call} may touch memory");
    // SAFETY: only the calls listed in HARMLESS come here; they take no pointers.
    let ret = unsafe { libc::syscall(nr, a, b, c, d, e, f) };
    if ret < 0 { Err(SysError::last(call, format!("{a}, {b}, {c:#x}"))) } else { Ok(ret) }
}

/// The same for a call that makes a descriptor.
///
/// # Errors
/// As [`numbers`].
pub fn descriptor(call: &'static str, nr: i64, args: [u64; 6]) -> Result<OwnedFd> {
    let fd = numbers(call, nr, args)?;
    let fd = i32::try_from(fd).map_err(|_| SysError::new(call, format!("{fd}"), crate::Errno::BADF))?;
    // SAFETY: the kernel has made it for this call, and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls whose arguments are plain numbers.
const HARMLESS: &[i64] = &[
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_kcmp,
    // Only as `session_keyring` calls it.
    libc::SYS_keyctl,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_userfaultfd,
];

/// `ioprio_get(IOPRIO_WHO_PROCESS, tid)`: class and level packed as the kernel does (ioprio_get(2)).
///
/// # Errors
/// `ESRCH` when the task is gone.
pub fn ioprio_get(tid: i32) -> Result<u32> {
    let ret = numbers("ioprio_get", libc::SYS_ioprio_get, [1, word(tid), 0, 0, 0, 0])?;
    Ok(u32::try_from(ret).unwrap_or(0))
}

/// The caller's session keyring (`KEYCTL_GET_KEYRING_ID`, which makes none).
///
/// # Errors
/// `ENOSYS` from a kernel without keys, `EKEYREVOKED`.
pub fn session_keyring() -> Result<i32> {
    const GET_KEYRING_ID: u64 = 0;
    const SESSION_KEYRING: i32 = -3;
    let id = numbers("keyctl", libc::SYS_keyctl, [GET_KEYRING_ID, word(SESSION_KEYRING), 0, 0, 0, 0])?;
    Ok(i32::try_from(id).unwrap_or(0))
}

/// A signed number as a register holds it.
#[must_use]
pub fn word(n: i32) -> u64 {
    i64::from(n).cast_unsigned()
}
