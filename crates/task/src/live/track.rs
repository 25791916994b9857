//! Tracking which memory a running process writes: see [`yendor_sys::userfault`].
//!
//! A userfaultfd is of the memory of whoever makes it, so it is made by a child of the process that shares its memory and nothing
//! else (see [`super::twin`]), and that ends at once. The process itself never has the descriptor, not for an instant: whenever we
//! die, the last one is closed, and the kernel forgets what was tracked.

use std::os::fd::BorrowedFd;

use yendor_sys::userfault::{self, Userfault};

use super::fetch;
use super::twin::{Twin, briefly};
use crate::arena::RunError;
use crate::nr::Nr;

/// The calls that it takes beside those of a twin: a seccomp filter of the program must allow them.
pub const CALL: Nr = Nr::USERFAULTFD;

/// Has a running process make one. Its leader is stopped for a moment, its other threads run on. `may`: asked when the leader
/// stands still. `None` where it cannot be had: the process may not bear a child, or has no stack to do it on, or the kernel
/// refuses; it has ended, or `may` said no.
///
/// # Errors
/// The process cannot be traced, or not be stopped in time: then it is still seized.
pub fn track(proc: BorrowedFd<'_>, pid: i32, may: impl FnOnce() -> bool) -> Result<Option<Userfault>, RunError> {
    let made = briefly(proc, pid, may, |leader, injection, entry| {
        // Elsewhere than at the bottom of its main stack the process itself, should we die, could overwrite what ends the child.
        if entry.stack.is_none() {
            return Ok(None);
        }
        let Some((twin, born)) = Twin::share(leader, injection)? else { return Ok(None) };
        let fd = injection
            .call_twin(&born, Nr::USERFAULTFD, [userfault::FLAGS, 0, 0, 0, 0, 0])
            .and_then(|fd| Ok(fetch(twin.tid(), fd)?));
        twin.end(leader, injection)?;
        Ok(fd.ok())
    })?;
    Ok(made.flatten().and_then(|fd| Userfault::begin(fd).ok()))
}
