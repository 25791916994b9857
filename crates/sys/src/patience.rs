//! Calls on what somebody else answers for: a file of a FUSE server, a page of a userfaultfd. Such a call may never return, and nothing
//! but the end of its process ends it. Whoever makes one says so here, so that another thread can see for how long it takes.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::{Result, child};

/// A call that may never return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The system call.
    pub name: &'static str,
    /// The process whose file or memory it is about, 0 where that is not known.
    pub pid: i32,
}

type Slot = Mutex<Option<(Instant, Call)>>;

static SLOTS: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

thread_local! {
    static MINE: Arc<Slot> = {
        let slot = Arc::new(Slot::default());
        let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|other| other.strong_count() > 0);
        slots.push(Arc::downgrade(&slot));
        slot
    };
}

/// Makes a call.
pub fn with<T>(name: &'static str, pid: i32, call: impl FnOnce() -> T) -> T {
    let set = |what| MINE.with(|slot| *slot.lock().unwrap_or_else(PoisonError::into_inner) = what);
    set(Some((Instant::now(), Call { name, pid })));
    let done = call();
    set(None);
    done
}

/// Whether whoever answers for a file of a process does: asked by a child of ours, who waits in our place. A descriptor of our own would be
/// asked for once more when we end.
///
/// # Errors
/// clone's.
pub fn answers(pidfd: BorrowedFd<'_>, number: i32, limit: Duration) -> Result<bool> {
    let pidfd = pidfd.as_raw_fd();
    let child = child::spawn(libc::CLONE_UNTRACED, || {
        // SAFETY: plain system calls; the buffer is ours. What they say is asked again.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0);
            let mut stat: libc::stat = std::mem::zeroed();
            libc::fstat(i32::try_from(fd).unwrap_or(-1), &raw mut stat);
        }
        0
    })?;
    let until = Instant::now() + limit;
    loop {
        // SAFETY: our own child, which nobody else waits for.
        if unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
            return Ok(true);
        }
        if Instant::now() > until {
            // It goes when it can.
            // SAFETY: not waited for.
            unsafe { libc::kill(child, libc::SIGKILL) };
            return Ok(false);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// One that has not returned for so long.
#[must_use]
pub fn overdue(limit: Duration) -> Option<Call> {
    let slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    slots.iter().filter_map(Weak::upgrade).find_map(|slot| {
        let (since, call) = (*slot.lock().unwrap_or_else(PoisonError::into_inner))?;
        (since.elapsed() >= limit).then_some(call)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_return_is_seen() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let other = scope.spawn(move || with("wait", 7, || wait.recv()));
            while overdue(Duration::from_millis(20)).is_none() {
                std::thread::yield_now();
            }
            assert_eq!(overdue(Duration::ZERO), Some(Call { name: "wait", pid: 7 }));
            assert_eq!(overdue(Duration::from_secs(3600)), None);
            drop(go);
            assert!(other.join().unwrap().is_err());
        });
        assert_eq!(overdue(Duration::ZERO), None);
    }
}
