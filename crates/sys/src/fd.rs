//! What rustix lacks of fcntl(2).

use std::os::fd::{AsFd, AsRawFd};

use crate::{Result, SysError};

#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}

/// Who gets the signals of a description, as `(F_OWNER_* kind, pid, signal)`; `None` for nobody.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn owner(fd: &impl AsFd) -> Result<Option<(i32, i32, i32)>> {
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let mut ex = OwnerEx { kind: 0, pid: 0 };
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `ex` has the kernel's layout and outlives the call.
    if unsafe { libc::fcntl(raw, F_GETOWN_EX, &raw mut ex) } < 0 {
        return Err(SysError::last("fcntl", format!("{raw}, F_GETOWN_EX")));
    }
    // SAFETY: takes no pointer.
    let signal = unsafe { libc::fcntl(raw, F_GETSIG) };
    Ok((ex.pid != 0 || signal > 0).then_some((ex.kind, ex.pid, signal.max(0))))
}
