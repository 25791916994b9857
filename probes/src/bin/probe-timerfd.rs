//! timerfd: far, with interval, absolute, expired and not yet read, disarmed, of several clocks.
#![allow(unsafe_code)]

use probe::{clock, expect, expect_that, fdinfo, ok, own, read_at_once, sleep_ms};
use std::os::fd::{AsRawFd, OwnedFd};

const SECOND: i128 = 1_000_000_000;
const HOUR: i128 = 3600 * SECOND;

fn timer(clock: i32, flags: i32, how: i32, value: i128, interval: i128) -> OwnedFd {
    let time = |nanos: i128| libc::timespec { tv_sec: (nanos / SECOND) as i64, tv_nsec: (nanos % SECOND) as i64 };
    let spec = libc::itimerspec { it_value: time(value), it_interval: time(interval) };
    let fd = own("timerfd_create", unsafe { libc::timerfd_create(clock, flags) });
    ok("timerfd_settime", unsafe { libc::timerfd_settime(fd.as_raw_fd(), how, &spec, std::ptr::null_mut()) });
    fd
}

/// Nanoseconds: what remains, and the interval.
fn get(fd: &OwnedFd) -> (i128, i128) {
    unsafe {
        let mut spec: libc::itimerspec = std::mem::zeroed();
        ok("timerfd_gettime", libc::timerfd_gettime(fd.as_raw_fd(), &mut spec));
        let nanos = |time: libc::timespec| i128::from(time.tv_sec) * SECOND + i128::from(time.tv_nsec);
        (nanos(spec.it_value), nanos(spec.it_interval))
    }
}

fn ticks(fd: &OwnedFd) -> Option<u64> {
    Some(u64::from_ne_bytes(read_at_once(fd, 8)?.try_into().unwrap_or_default()))
}

fn about(fd: &OwnedFd) -> (Vec<String>, i32) {
    let constant = |line: &String| ["flags:", "clockid:", "settime flags:"].iter().any(|name| line.starts_with(name));
    (fdinfo(fd).into_iter().filter(constant).collect(), unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) })
}

struct State {
    start: i128,
    far: OwnedFd,
    absolute: OwnedFd,
    real: OwnedFd,
    hourly: OwnedFd,
    once: OwnedFd,
    idle: OwnedFd,
    quick: OwnedFd,
    before: Vec<(Vec<String>, i32)>,
}

fn all(state: &State) -> [&OwnedFd; 7] {
    [&state.far, &state.absolute, &state.real, &state.hourly, &state.once, &state.idle, &state.quick]
}

fn setup() -> State {
    let (absolute, nonblock) = (libc::TFD_TIMER_ABSTIME, libc::TFD_NONBLOCK);
    let (boot, real) = (clock(libc::CLOCK_BOOTTIME), clock(libc::CLOCK_REALTIME));
    let mut state = State {
        start: clock(libc::CLOCK_MONOTONIC),
        far: timer(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC, 0, 1000 * HOUR + 1, 3 * HOUR + 5),
        absolute: timer(libc::CLOCK_BOOTTIME, nonblock, absolute, boot + 500 * HOUR, 0),
        real: timer(libc::CLOCK_REALTIME, nonblock, absolute | libc::TFD_TIMER_CANCEL_ON_SET, real + 700 * HOUR, 7),
        // Expired three times, and never read.
        hourly: timer(libc::CLOCK_REALTIME, nonblock, absolute, real - 2 * HOUR - SECOND, HOUR),
        once: timer(libc::CLOCK_MONOTONIC, nonblock, 0, 1, 0),
        idle: timer(libc::CLOCK_MONOTONIC, nonblock | libc::TFD_CLOEXEC, 0, 0, 0),
        quick: timer(libc::CLOCK_MONOTONIC, nonblock, 0, SECOND / 20, SECOND / 20),
        before: vec![],
    };
    sleep_ms(210);
    state.before = all(&state).map(about).to_vec();
    state
}

fn check(state: State) {
    let elapsed = clock(libc::CLOCK_MONOTONIC) - state.start;
    for (number, (now, before)) in all(&state).map(about).iter().zip(&state.before).enumerate() {
        expect(&format!("timer {number}"), now, before);
    }
    let near = |what: &str, got: i128, want: i128| expect_that(what, (got - want).abs() < 10 * SECOND, (got, want));
    near("far", get(&state.far).0 + elapsed, 1000 * HOUR);
    expect("interval of far", get(&state.far).1, 3 * HOUR + 5);
    near("absolute", get(&state.absolute).0 + elapsed, 500 * HOUR);
    near("real", get(&state.real).0 + elapsed, 700 * HOUR);
    expect("intervals", [get(&state.absolute).1, get(&state.real).1, get(&state.hourly).1], [0, 7, HOUR]);
    expect("ticks of hourly", ticks(&state.hourly), Some(3));
    near("hourly goes on", get(&state.hourly).0 + elapsed, HOUR - SECOND);
    expect("ticks of once", (ticks(&state.once), get(&state.once)), (Some(1), (0, 0)));
    expect("once, again", ticks(&state.once), None);
    expect("idle", (ticks(&state.idle), get(&state.idle)), (None, (0, 0)));
    let quick = ticks(&state.quick).unwrap_or(0);
    expect_that("ticks of quick", (4..=(elapsed / (SECOND / 20) + 200) as u64).contains(&quick), quick);
    probe::wait_until("quick goes on", || ticks(&state.quick).is_some());
}

fn main() {
    probe::run(setup, check)
}
