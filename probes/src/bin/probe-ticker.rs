//! Counts aloud for as long as it lives and looks after itself at every step: memory, registers, a thread, a child,
//! clocks, and calls that nobody may interrupt. Any harm ends it.
#![allow(unsafe_code)]

use probe::{
    PAGE, Region, block_all, check_pattern, child, clock, expect, expect_that, fail, fill_pattern, map, own, say,
    transfer,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const PAGES: usize = 256;

struct State {
    step: u64,
    memory: Region,
    sum: f64,
    to_child: OwnedFd,
    from_child: OwnedFd,
    beats: Arc<AtomicU64>,
    last_beats: u64,
    time: i128,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    probe::ok("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) });
    (own("pipe2", ends[0]), own("pipe2", ends[1]))
}

/// Ten milliseconds that nobody may cut short but who asks for something.
fn nap() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let start = clock(libc::CLOCK_MONOTONIC);
    let result = unsafe { libc::syscall(libc::SYS_nanosleep, &time, std::ptr::null_mut::<u8>()) };
    if result != 0 && !probe::requested() {
        fail(&format!("nanosleep: {}", std::io::Error::last_os_error()));
    }
    let slept = clock(libc::CLOCK_MONOTONIC) - start;
    expect_that("sleep", slept >= 10_000_000 || probe::requested(), slept);
}

fn word_from(fd: &OwnedFd) -> Option<u64> {
    // A short read means that the other side is gone; EINTR ends the probe.
    probe::read_at_once(fd, 8)?.try_into().ok().map(u64::from_ne_bytes)
}

/// Answers every number with its square plus the count of answers, which only it knows.
fn answer(from: &OwnedFd, to: &OwnedFd) {
    let mut count = 0_u64;
    while let Some(number) = word_from(from) {
        count += 1;
        transfer(to, &(number.wrapping_mul(number) + count).to_ne_bytes());
    }
}

fn start() -> State {
    let ((child_in, to_child), (from_child, child_out)) = (pipe(), pipe());
    let pid = child(|| {
        // The copies of the parent's ends must go, or nobody would notice its end.
        for fd in [&to_child, &from_child] {
            unsafe { libc::close(std::os::fd::AsRawFd::as_raw_fd(fd)) };
        }
        answer(&child_in, &child_out);
    });
    expect_that("child", pid > 0, pid);
    let memory = map(PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    for page in 0..PAGES {
        fill_pattern(memory.at(page * PAGE), PAGE, 0);
    }
    let beats = Arc::new(AtomicU64::new(0));
    std::thread::spawn({
        let beats = beats.clone();
        move || {
            block_all();
            loop {
                nap();
                beats.fetch_add(1, SeqCst);
            }
        }
    });
    State { step: 0, memory, sum: 0.0, to_child, from_child, beats, last_beats: 0, time: clock(libc::CLOCK_MONOTONIC) }
}

fn step(state: &mut State) {
    state.step += 1;
    let step = state.step;
    // Each step sixteen pages go from the pattern of their last time to the one of this step.
    for number in 0..16 {
        let page = (step as usize * 16 + number) % PAGES;
        let rounds = (PAGES / 16) as u64;
        let (at, last) = (state.memory.at(page * PAGE), step.saturating_sub(rounds));
        check_pattern("memory", at, PAGE, last);
        fill_pattern(at, PAGE, step);
    }
    state.sum += 0.5;
    expect("sum", state.sum, step as f64 * 0.5);
    transfer(&state.to_child, &step.to_ne_bytes());
    expect("answer of the child", word_from(&state.from_child), Some(step.wrapping_mul(step) + step));
    let time = clock(libc::CLOCK_MONOTONIC);
    expect_that("monotonic clock", time >= state.time, (time, state.time));
    state.time = time;
    if step.is_multiple_of(100) {
        let beats = state.beats.load(SeqCst);
        expect_that("thread goes on", beats > state.last_beats, beats);
        state.last_beats = beats;
    }
    say(&format!("tick {step}\n"));
    nap();
}

fn main() {
    probe::run_working(start(), step, |state| {
        expect("descriptors", std::fs::read_dir("/proc/self/fd").map(|all| all.count() > 4).ok(), Some(state.step > 0))
    })
}
