//! Whether two tasks share a kernel object (kcmp(2)).

use std::cmp::Ordering;

use crate::{Result, raw};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Two open file descriptions, each by a descriptor of its task.
    File(i32, i32),
    /// Address spaces.
    Vm,
    /// Descriptor tables.
    Files,
    /// Root, working directory and umask.
    Fs,
    /// Signal actions.
    Sighand,
    /// I/O contexts.
    Io,
    /// System V semaphore adjustments.
    Sysvsem,
}

/// Orders the objects of two tasks; `Equal` means one shared object.
///
/// # Errors
/// `EPERM` when either may not be traced, `EBADF` for a descriptor that is not open, `ESRCH`.
pub fn compare(a: i32, b: i32, what: What) -> Result<Ordering> {
    let (kind, x, y) = match what {
        What::File(x, y) => (0, raw::word(x), raw::word(y)),
        What::Vm => (1, 0, 0),
        What::Files => (2, 0, 0),
        What::Fs => (3, 0, 0),
        What::Sighand => (4, 0, 0),
        What::Io => (5, 0, 0),
        What::Sysvsem => (6, 0, 0),
    };
    let n = raw::numbers("kcmp", libc::SYS_kcmp, [raw::word(a), raw::word(b), kind, x, y, 0])?;
    Ok(match n {
        0 => Ordering::Equal,
        1 => Ordering::Less,
        _ => Ordering::Greater,
    })
}

#[repr(C)]
struct Slot {
    epoll: u32,
    target: u32,
    index: u32,
}

/// Whether descriptor `file` of this process is the `index`th target that the epoll behind our descriptor `epoll` has
/// under the number `target` (`KCMP_EPOLL_TFD`).
///
/// # Errors
/// `ENOENT` for a target that the epoll does not have; `EOPNOTSUPP` from a kernel without it.
pub fn epoll_target(file: i32, epoll: i32, target: i32, index: u32) -> Result<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let me = std::process::id();
    let slot = Slot { epoll: epoll.cast_unsigned(), target: target.cast_unsigned(), index };
    // SAFETY: `slot` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_kcmp, me, me, KCMP_EPOLL_TFD, file, &raw const slot) };
    if ret < 0 {
        return Err(crate::SysError::last("kcmp", format!("{me}, {me}, KCMP_EPOLL_TFD, {file}, {target}[{index}]")));
    }
    Ok(ret == 0)
}
