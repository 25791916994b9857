//! Common ground of the probes: programs that are checkpointed and then test themselves.
//!
//! A probe sets something up, prints `ready`, and waits. On `SIGUSR1` it checks everything, prints `ok` and exits
//! with 0; on `SIGUSR2` it checks, sets everything up anew, prints `ok`, and waits again. A value that is wrong is
//! told as `FAIL: what: expected X got Y` on stdout and stderr, and the exit status is 1.
#![allow(unsafe_code)]
// Probes are all about memory: a pointer that is wrong ends the probe, which is what it should.
#![allow(clippy::not_unsafe_ptr_arg_deref)]

mod family;
mod kernel;
mod memory;
mod report;
mod threads;

pub use family::{Board, child, disown, reaped, succeeded};
pub use kernel::{Dir, at_most_hard, caps, clock, fdinfo, field, full, own, read_at_once, read_file, status, transfer};
pub use memory::{PAGE, Region, check_pattern, fill_pattern, map, present, smaps_flags, word};
pub use report::{expect, expect_that, fail, ok, refused, say};
pub use threads::{block_all, name_of, sleep_ms, tid};

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Nobody who was forgotten waits for longer.
const PATIENCE: Duration = Duration::from_secs(900);

static FINISH: AtomicU32 = AtomicU32::new(0);
static AGAIN: AtomicU32 = AtomicU32::new(0);

extern "C" fn asked(signal: libc::c_int) {
    let word = if signal == libc::SIGUSR1 { &FINISH } else { &AGAIN };
    word.fetch_add(1, SeqCst);
}

/// The life of a probe. `setup` must be able to run again after `check` has consumed what it made.
pub fn run<S>(setup: impl Fn() -> S, check: impl Fn(S)) -> ! {
    listen();
    let program = program();
    let mut state = setup();
    say("ready\n");
    loop {
        let last = wait_for_request();
        same_program(program.as_deref());
        check(state);
        if last {
            say("ok\n");
            std::process::exit(0);
        }
        state = setup();
        say("ok\n");
    }
}

/// Like [`run`] for a probe that works all the time: `step` is called between the looks for a request.
pub fn run_working<S>(mut state: S, mut step: impl FnMut(&mut S), check: impl Fn(&mut S)) -> ! {
    listen();
    let program = program();
    say("ready\n");
    loop {
        step(&mut state);
        let finish = taken(&FINISH);
        if finish || taken(&AGAIN) {
            same_program(program.as_deref());
            check(&mut state);
            say("ok\n");
        }
        if finish {
            std::process::exit(0);
        }
    }
}

/// What could be seen before can be seen again. (Smack keeps even its own links from a task whose label is not that of /proc's mounter.)
fn same_program(before: Option<&std::path::Path>) {
    if before.is_some() {
        expect("program", program().as_deref(), before);
    }
}

/// Where the file is that we run.
fn program() -> Option<std::path::PathBuf> {
    std::fs::read_link("/proc/self/exe").ok()
}

fn listen() {
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: a zeroed sigaction is a valid one; the handler touches only atomics.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = asked as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            ok("sigaction", libc::sigaction(signal, &action, std::ptr::null_mut()));
        }
    }
}

/// Whether somebody has asked and was not answered yet.
pub fn requested() -> bool {
    FINISH.load(SeqCst) + AGAIN.load(SeqCst) > 0
}

fn taken(word: &AtomicU32) -> bool {
    word.try_update(SeqCst, SeqCst, |count| count.checked_sub(1)).is_ok()
}

/// True when this was the last request.
fn wait_for_request() -> bool {
    let start = Instant::now();
    loop {
        if taken(&FINISH) {
            return true;
        }
        if taken(&AGAIN) {
            return false;
        }
        if start.elapsed() > PATIENCE {
            fail("nobody asked");
        }
        sleep_ms(5);
    }
}

/// Waits until all threads of ours but the caller block in a system call, each where it is going to stay.
pub fn wait_until_blocked() {
    let own = tid().to_string();
    let blocks = |entry: std::fs::DirEntry| {
        // "running" without a number; -1 blocks elsewhere.
        let call = std::fs::read_to_string(entry.path().join("syscall")).unwrap_or_default();
        entry.file_name().to_str() == Some(&own) || call.starts_with(|first: char| first.is_ascii_digit())
    };
    wait_until("threads that block", || {
        std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.flatten().all(blocks))
    });
}

/// Waits until something holds; a probe that waits in vain has failed.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > Duration::from_secs(30) {
            fail(&format!("{what}: waited in vain"));
        }
        sleep_ms(1);
    }
}
