//! Calls on what somebody else answers for: a file of a FUSE server, a page of a userfaultfd. Such a call may never return, and nothing
//! but the end of its process ends it. Whoever makes one says so here, so that another thread can see for how long it takes.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::{Result, SysError, child};

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
/// asked for once more when we close it.
///
/// # Errors
/// clone's; eventfd2's.
pub fn answers(pidfd: BorrowedFd<'_>, number: i32, limit: Duration) -> Result<bool> {
    let done = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| SysError::new("eventfd2", "0", e))?;
    let (pidfd, told) = (pidfd.as_raw_fd(), done.as_raw_fd());
    let child = child::spawn(libc::CLONE_UNTRACED, || {
        // SAFETY: plain system calls; the buffers are ours. What they say is asked again.
        unsafe {
            // It may be here for long, and must hold nothing that others wait for.
            let (low, high) = (pidfd.min(told), pidfd.max(told));
            for (first, last) in [(0, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
                if first <= last {
                    libc::syscall(libc::SYS_close_range, first, last, 0);
                }
            }
            let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0);
            let mut stat: libc::statx = std::mem::zeroed();
            let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
            libc::statx(i32::try_from(fd).unwrap_or(-1), c"".as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut stat);
            let one = 1_u64;
            libc::write(told, (&raw const one).cast(), 8);
        }
        0
    })?;
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::new(&done, PollFlags::IN)];
    let answered = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).is_ok_and(|ready| ready > 0);
    // It goes when it can: to close what it has asked about may take as long as its server likes.
    // SAFETY: our own child, which nobody else waits for.
    unsafe {
        if !answered {
            libc::kill(child, libc::SIGKILL);
        }
        libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG);
    }
    Ok(answered)
}

/// One that has not returned for so long, and when it began.
#[must_use]
pub fn overdue(limit: Duration) -> Option<(Instant, Call)> {
    let slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    slots.iter().filter_map(Weak::upgrade).find_map(|slot| {
        let (since, call) = (*slot.lock().unwrap_or_else(PoisonError::into_inner))?;
        (since.elapsed() >= limit).then_some((since, call))
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
            assert_eq!(overdue(Duration::ZERO).map(|(_, call)| call), Some(Call { name: "wait", pid: 7 }));
            assert_eq!(overdue(Duration::from_secs(3600)), None);
            drop(go);
            assert!(other.join().unwrap().is_err());
        });
        assert_eq!(overdue(Duration::ZERO), None);
    }
}
