//! A failed system call, as strace would print it.

use std::fmt;

use rustix::io::Errno;

/// A system call that failed: what was called, with what, and the kernel's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysError {
    /// The call's name, as in the manual (`openat2`).
    pub call: &'static str,
    /// Its arguments, as strace would show them.
    pub args: String,
    /// The kernel's answer.
    pub errno: Errno,
}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, SysError>;

impl SysError {
    /// A failure of `call` with `args`.
    pub fn new(call: &'static str, args: impl Into<String>, errno: Errno) -> Self {
        Self { call, args: args.into(), errno }
    }

    /// A failure of a libc function that left its reason in `errno`.
    #[must_use]
    pub fn last(call: &'static str, args: impl Into<String>) -> Self {
        Self::io(call, args, &std::io::Error::last_os_error())
    }

    /// A failure that the standard library reports; one without an errno counts as `EIO`.
    #[must_use]
    pub fn io(call: &'static str, args: impl Into<String>, error: &std::io::Error) -> Self {
        let raw = error.raw_os_error().filter(|n| (1..4096).contains(n));
        let errno = raw.map_or(Errno::IO, Errno::from_raw_os_error);
        Self::new(call, args, errno)
    }

    /// A failure whose number somebody else says, who may lie: what is no errno counts as `EIO`.
    #[must_use]
    pub fn said(call: &'static str, args: impl Into<String>, errno: i32) -> Self {
        let errno = Some(errno).filter(|n| (1..4096).contains(n));
        Self::new(call, args, errno.map_or(Errno::IO, Errno::from_raw_os_error))
    }

    /// Whether the kernel refused for lack of permission.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.errno, Errno::PERM | Errno::ACCESS)
    }

    /// Whether the kernel says that the task is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.errno == Errno::SRCH
    }
}

/// The symbolic name of an errno (`EPERM`), or its number.
#[must_use]
pub fn errno_name(errno: Errno) -> String {
    // `Errno`'s Debug prints rustix's own name; the table below is the manual's (errno(3)).
    let raw = errno.raw_os_error();
    NAMES.iter().find(|(n, _)| *n == raw).map_or_else(|| raw.to_string(), |(_, name)| (*name).to_owned())
}

const NAMES: &[(i32, &str)] = &[
    (libc::EPERM, "EPERM"),
    (libc::ENOENT, "ENOENT"),
    (libc::ESRCH, "ESRCH"),
    (libc::EINTR, "EINTR"),
    (libc::EIO, "EIO"),
    (libc::ENXIO, "ENXIO"),
    (libc::E2BIG, "E2BIG"),
    (libc::ENOEXEC, "ENOEXEC"),
    (libc::EBADF, "EBADF"),
    (libc::ECHILD, "ECHILD"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::EACCES, "EACCES"),
    (libc::EFAULT, "EFAULT"),
    (libc::EBUSY, "EBUSY"),
    (libc::EEXIST, "EEXIST"),
    (libc::EXDEV, "EXDEV"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::EISDIR, "EISDIR"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENFILE, "ENFILE"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ETXTBSY, "ETXTBSY"),
    (libc::EFBIG, "EFBIG"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ESPIPE, "ESPIPE"),
    (libc::EROFS, "EROFS"),
    (libc::EPIPE, "EPIPE"),
    (libc::ERANGE, "ERANGE"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::ENOTEMPTY, "ENOTEMPTY"),
    (libc::ELOOP, "ELOOP"),
    (libc::EOVERFLOW, "EOVERFLOW"),
    (libc::EUSERS, "EUSERS"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (libc::ENOTCONN, "ENOTCONN"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
];

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.errno.raw_os_error()).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        write!(f, "{}({}) = {} ({text})", self.call, self.args, errno_name(self.errno))
    }
}

impl std::error::Error for SysError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_like_strace() {
        let e = SysError::new("setns", "7, CLONE_NEWNET", Errno::PERM);
        assert_eq!(e.to_string(), "setns(7, CLONE_NEWNET) = EPERM (Operation not permitted)");
        assert!(e.is_denied());
    }
}
