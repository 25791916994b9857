//! Leaving namespaces and what else is shared with the caller (unshare(2), keyctl(2)).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
pub use rustix::thread::UnshareFlags as Namespaces;

use crate::{Result, SysError};

/// Enters new namespaces; of pid and time namespaces only the next child.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at a limit in `/proc/sys/user`, `EINVAL` for `FILES`.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    let named = |e| SysError::new("unshare", namespaces.iter_names().map(|n| n.0).collect::<Vec<_>>().join("|"), e);
    if namespaces.contains(Namespaces::FILES) {
        return Err(named(Errno::INVAL));
    }
    // SAFETY: unsound only with FILES, where descriptors of other threads could vanish.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(named)
}

/// Joins a new, empty session keyring, so that no key of the caller is reachable (keyctl(2)).
///
/// # Errors
/// `EDQUOT` when the caller has too many keys; a kernel without keys is no error.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
    // SAFETY: a null name means an anonymous keyring; no memory is touched.
    let ret = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0_u64) };
    let error = SysError::last("keyctl", "KEYCTL_JOIN_SESSION_KEYRING");
    if ret < 0 && error.errno != Errno::NOSYS { Err(error) } else { Ok(()) }
}

/// The user namespace that a namespace belongs to; of a user namespace its parent (ioctl_nsfs(2)).
///
/// # Errors
/// `EPERM` for one that is neither the caller's nor below it.
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd> {
    const NS_GET_USERNS: u64 = 0xb701;
    let raw = namespace.as_fd().as_raw_fd();
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::ioctl(raw, NS_GET_USERNS) };
    if ret < 0 {
        return Err(SysError::last("ioctl", format!("{raw}, NS_GET_USERNS")));
    }
    // SAFETY: the kernel has just made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}
