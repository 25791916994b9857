//! Threads.

use std::time::{Duration, Instant};

/// Id of the calling thread.
pub fn tid() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Keeps all signals from the calling thread, so that requests reach the main thread.
pub fn block_all() {
    // SAFETY: the set is filled before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// comm of a thread of ours.
pub fn name_of(tid: i32) -> Vec<u8> {
    let mut name = std::fs::read(format!("/proc/self/task/{tid}/comm")).unwrap_or_default();
    name.pop();
    name
}

/// Sleeps, whatever interrupts.
pub fn sleep_ms(milliseconds: u64) {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    // std sleeps on after EINTR with what remains.
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}
