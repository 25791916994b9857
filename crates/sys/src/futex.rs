//! Waking and waiting across processes, and the robust list that tells a borrowed task of our death (futex(2),
//! set_robust_list(2), Documentation/locking/robust-futex-ABI.rst).

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use crate::mapping::Mapping;
use crate::{Result, SysError};

/// Set by the kernel in a robust word whose owner died.
pub const OWNER_DIED: u32 = 0x4000_0000;
/// Says that somebody waits, so that the kernel wakes at the owner's death.
pub const WAITERS: u32 = 0x8000_0000;

/// Sleeps until `word` is woken while it still holds `value`, for at most `limit`. Returns at once when it differs.
pub fn wait(word: &AtomicU32, value: u32, limit: Duration) {
    let timeout = libc::timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: `word` and `timeout` outlive the call. Every outcome, errors too, means "look again".
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout) };
}

/// Wakes everybody who waits on `word`, in any process.
pub fn wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE does not touch memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Bytes that one entry of the robust list takes in shared memory: the link, then the word.
pub const ROBUST_ENTRY: usize = 16;
/// Where the word lies in an entry.
pub const ROBUST_WORD: usize = 8;

/// This thread's robust list: words in shared memory that the kernel marks [`OWNER_DIED`] when this thread dies.
///
/// It takes the place of the C library's list for this thread, which only robust pthread mutexes use; we have none.
#[derive(Debug)]
pub struct RobustList {
    head: Box<Head>,
    /// The thread that owns the list; its number is what the words hold.
    tid: u32,
    entries: Vec<*mut u64>,
}

#[derive(Debug)]
#[repr(C)]
struct Head {
    first: *mut u64,
    offset: i64,
    pending: *mut u64,
}

impl RobustList {
    /// Registers an empty list for this thread.
    ///
    /// # Errors
    /// What `set_robust_list` says.
    pub fn register() -> Result<Self> {
        let mut head = Box::new(Head { first: std::ptr::null_mut(), offset: 8, pending: std::ptr::null_mut() });
        head.first = (&raw mut *head).cast();
        // SAFETY: the head is boxed, so it stays where it is; Drop unregisters it.
        let ret = unsafe { libc::syscall(libc::SYS_set_robust_list, &raw mut *head, std::mem::size_of::<Head>()) };
        if ret < 0 {
            return Err(SysError::last("set_robust_list", ""));
        }
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        Ok(Self { head, tid, entries: Vec::new() })
    }

    /// What a word of this list holds while its owner lives.
    #[must_use]
    pub fn alive(&self) -> u32 {
        self.tid | WAITERS
    }

    /// Puts the 16 bytes at `at` of `memory` on the list and sets its word to [`Self::alive`].
    /// `memory` must be taken off with [`Self::remove`] before it is unmapped.
    pub fn add(&mut self, memory: &Mapping, at: usize) {
        memory.word(at + ROBUST_WORD).store(self.alive(), std::sync::atomic::Ordering::Release);
        let entry: *mut u64 = memory.address(at).cast();
        self.entries.push(entry);
        self.relink();
    }

    /// Takes the entry at `at` of `memory` off the list.
    pub fn remove(&mut self, memory: &Mapping, at: usize) {
        let entry: *mut u64 = memory.address(at).cast();
        self.entries.retain(|e| *e != entry);
        self.relink();
    }

    /// Writes the chain anew, last link first, so that the kernel always finds a whole list.
    fn relink(&mut self) {
        let end: *mut u64 = (&raw mut *self.head).cast();
        let mut next = end;
        for entry in self.entries.iter().rev() {
            // SAFETY: every entry lies in a live shared mapping (see `add`).
            unsafe { entry.write_volatile(next as u64) };
            next = *entry;
        }
        // SAFETY: the head is ours; volatile because the kernel reads it when this thread dies.
        unsafe { (&raw mut self.head.first).write_volatile(next) };
    }
}

impl Drop for RobustList {
    fn drop(&mut self) {
        // SAFETY: a null list is allowed; afterwards the kernel no longer looks at the head.
        unsafe { libc::syscall(libc::SYS_set_robust_list, std::ptr::null_mut::<Head>(), std::mem::size_of::<Head>()) };
    }
}
