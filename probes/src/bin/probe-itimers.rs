//! Interval timers: real, virtual, profiling, with long values, and short ones that must go on: one that rings, and one
//! whose ring nobody has taken yet.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, clock, expect, expect_that, ok, sleep_ms, succeeded};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const TIMERS: [(i32, i64, i64); 3] =
    [(libc::ITIMER_REAL, 1_000_000, 3), (libc::ITIMER_VIRTUAL, 2_000_000, 5), (libc::ITIMER_PROF, 3_000_000, 7)];
const GO: usize = 0;
const UP: usize = 1;
const DEAF_UP: usize = 2;

static RINGS: AtomicU64 = AtomicU64::new(0);

extern "C" fn ring(_: i32) {
    RINGS.fetch_add(1, SeqCst);
}

fn arm(which: i32, value: (i64, i64), interval: (i64, i64)) {
    let time = |(tv_sec, tv_usec)| libc::timeval { tv_sec, tv_usec };
    let timer = libc::itimerval { it_value: time(value), it_interval: time(interval) };
    ok("setitimer", unsafe { libc::setitimer(which as _, &timer, std::ptr::null_mut()) });
}

/// Microseconds.
fn get(which: i32) -> (i128, i128) {
    unsafe {
        let mut timer: libc::itimerval = std::mem::zeroed();
        ok("getitimer", libc::getitimer(which as _, &mut timer));
        let micros = |time: libc::timeval| i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_usec);
        (micros(timer.it_value), micros(timer.it_interval))
    }
}

/// A child that is rung every 30 ms; `deaf`: it takes no ring before it is asked.
fn rung(board: &Board, up: usize, deaf: bool) -> i32 {
    child(|| {
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ring as *const () as usize;
        ok("sigaction", unsafe { libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()) });
        if deaf {
            block_all();
        }
        arm(libc::ITIMER_REAL, (0, 30_000), (0, 30_000));
        if deaf {
            sleep_ms(60);
        }
        board.set(up, 1);
        board.wait(GO, 1);
        let before = RINGS.load(SeqCst);
        let none: libc::sigset_t = unsafe { std::mem::zeroed() };
        ok("sigprocmask", unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) });
        sleep_ms(300);
        let rings = RINGS.load(SeqCst) - before;
        expect_that("rings in 300 ms with 30 ms between", (5..=12).contains(&rings), rings);
    })
}

fn setup() -> (i128, Board, [i32; 2]) {
    let board = Board::new();
    let ringing = [rung(&board, UP, false), rung(&board, DEAF_UP, true)];
    board.wait(UP, 1);
    board.wait(DEAF_UP, 1);
    for (which, seconds, interval) in TIMERS {
        arm(which, (seconds, 123_457), (interval, 1));
    }
    (clock(libc::CLOCK_MONOTONIC), board, ringing)
}

fn check((start, board, ringing): (i128, Board, [i32; 2])) {
    let elapsed = (clock(libc::CLOCK_MONOTONIC) - start) / 1000;
    for (which, seconds, interval) in TIMERS {
        let (value, period) = get(which);
        expect("interval", period, i128::from(interval) * 1_000_000 + 1);
        let gone = i128::from(seconds) * 1_000_000 + 123_457 - value;
        // The real timer goes with the clock (give or take what a restore takes), the others with work done.
        let most = elapsed + 10_000_000;
        let least = if which == libc::ITIMER_REAL { elapsed - 10_000_000 } else { -10_000 };
        expect_that(&format!("time gone of timer {which}"), (least..=most).contains(&gone), (gone, elapsed));
        arm(which, (0, 0), (0, 0));
    }
    board.set(GO, 1);
    succeeded("child that is rung", ringing[0]);
    succeeded("child that has a ring waiting", ringing[1]);
}

fn main() {
    probe::run(setup, check)
}
