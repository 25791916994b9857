//! Children, and the page through which a family talks.

use crate::{expect, fail, map, ok, sleep_ms};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

static CHILDREN: Mutex<Vec<libc::pid_t>> = Mutex::new(Vec::new());

pub(crate) fn end_children() {
    if let Ok(children) = CHILDREN.try_lock() {
        for &child in children.iter() {
            // SAFETY: only children that nobody has waited for are in the list.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
    }
}

/// Forks; the child does its work and exits with status 0.
pub fn child(work: impl FnOnce()) -> libc::pid_t {
    // SAFETY: probes fork before they make threads, or the child uses nothing that a thread could hold locked.
    let pid = ok("fork", unsafe { libc::fork() });
    if pid == 0 {
        if let Ok(mut children) = CHILDREN.try_lock() {
            children.clear();
        }
        work();
        // SAFETY: always allowed.
        unsafe { libc::_exit(0) }
    }
    if let Ok(mut children) = CHILDREN.lock() {
        children.push(pid);
    }
    pid
}

/// Takes the child off the list of those that are killed when the probe fails.
pub fn disown(pid: libc::pid_t) {
    if let Ok(mut children) = CHILDREN.lock() {
        children.retain(|&one| one != pid);
    }
}

/// The wait status of a child that ends within 30 seconds.
pub fn reaped(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    let start = Instant::now();
    // SAFETY: status is valid for writing.
    while ok("waitpid", unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) }) == 0 {
        if start.elapsed() > Duration::from_secs(30) {
            fail(&format!("child {pid} does not end"));
        }
        sleep_ms(1);
    }
    disown(pid);
    status
}

/// The child must exit with 0.
pub fn succeeded(what: &str, pid: libc::pid_t) {
    expect(what, reaped(pid), 0);
}

/// A page of words shared by a family.
#[derive(Clone, Copy)]
pub struct Board(&'static [AtomicU64; 512]);

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// A new page of zeros.
    pub fn new() -> Self {
        let page = map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let page = std::mem::ManuallyDrop::new(page);
        // SAFETY: the page stays mapped for ever and is as large as the array.
        Self(unsafe { &*(page.at(0) as *const [AtomicU64; 512]) })
    }

    /// One word.
    pub fn get(&self, slot: usize) -> u64 {
        self.0[slot].load(SeqCst)
    }

    /// Writes one word.
    pub fn set(&self, slot: usize, value: u64) {
        self.0[slot].store(value, SeqCst);
    }

    /// Adds to one word.
    pub fn add(&self, slot: usize, value: u64) -> u64 {
        self.0[slot].fetch_add(value, SeqCst)
    }

    /// The lower half of a word, for futex(2).
    pub fn word(&self, slot: usize) -> *const u32 {
        (&raw const self.0[slot]).cast()
    }

    /// Waits until the word is at least this. A child whose family has forgotten it ends.
    pub fn wait(&self, slot: usize, value: u64) {
        let start = Instant::now();
        while self.get(slot) < value {
            if start.elapsed() > crate::PATIENCE {
                fail("waited in vain for the family");
            }
            sleep_ms(2);
        }
    }
}
