//! POSIX timers: ids with holes, every way to notify, overruns.
#![allow(unsafe_code)]

use probe::{clock, expect, expect_that, ok, sleep_ms, tid};

const RT: i32 = 42;
const HOUR: i64 = 3600;

fn create(clock: i32, notify: i32, signal: i32, value: usize, thread: i32) -> i32 {
    let mut id = -1_i32;
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = notify;
        event.sigev_signo = signal;
        event.sigev_value.sival_ptr = value as *mut _;
        event.sigev_notify_thread_id = thread;
        ok("timer_create", libc::syscall(libc::SYS_timer_create, clock, &mut event, &mut id));
    }
    id
}

fn delete(id: i32) {
    ok("timer_delete", unsafe { libc::syscall(libc::SYS_timer_delete, id) });
}

fn spec(value: i128, interval: i128) -> libc::itimerspec {
    let time = |nanos: i128| libc::timespec {
        tv_sec: (nanos / 1_000_000_000) as i64,
        tv_nsec: (nanos % 1_000_000_000) as i64,
    };
    libc::itimerspec { it_value: time(value), it_interval: time(interval) }
}

fn arm(id: i32, flags: i32, value: i128, interval: i128) {
    ok("timer_settime", unsafe { libc::syscall(libc::SYS_timer_settime, id, flags, &spec(value, interval), 0) });
}

/// Nanoseconds: what remains, and the interval.
fn get(id: i32) -> (i128, i128) {
    unsafe {
        let mut spec: libc::itimerspec = std::mem::zeroed();
        ok("timer_gettime", libc::syscall(libc::SYS_timer_gettime, id, &mut spec));
        let nanos = |time: libc::timespec| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        (nanos(spec.it_value), nanos(spec.it_interval))
    }
}

fn overrun(id: i32) -> i64 {
    ok("timer_getoverrun", unsafe { libc::syscall(libc::SYS_timer_getoverrun, id) })
}

/// Takes the pending signal; returns the timer's id, overrun and value.
fn take(signal: i32) -> Option<(i32, i32, usize)> {
    let (mut info, zero, set) = ([0_u32; 32], [0_u64; 2], 1_u64 << (signal - 1));
    let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, &mut info, &zero, 8) };
    (got == i64::from(signal)).then(|| {
        expect("si_code", info[2] as i32, libc::SI_TIMER);
        (info[4] as i32, info[5] as i32, info[6] as usize | (info[7] as usize) << 32)
    })
}

fn mask(how: i32) {
    let mask = 7_u64 << (RT - 1);
    ok("sigprocmask", unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &mask, 0, 8) });
}

struct State {
    start: i128,
    ids: Vec<i32>,
    overrun: i64,
}

fn setup() -> State {
    mask(libc::SIG_BLOCK);
    let made: Vec<i32> = [
        (libc::CLOCK_MONOTONIC, libc::SIGEV_SIGNAL, RT, 0x1234_5678_9abc),
        (libc::CLOCK_REALTIME, libc::SIGEV_NONE, 0, 0),
        (libc::CLOCK_BOOTTIME, libc::SIGEV_NONE, 0, 0),
        (libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0),
        (libc::CLOCK_MONOTONIC, libc::SIGEV_THREAD_ID, RT + 1, usize::MAX - 1),
        (libc::CLOCK_REALTIME, libc::SIGEV_SIGNAL, RT + 2, 9),
        (libc::CLOCK_PROCESS_CPUTIME_ID, libc::SIGEV_NONE, 0, 0),
    ]
    .map(|(clock, notify, signal, value)| create(clock, notify, signal, value, tid()))
    .to_vec();
    delete(made[1]);
    delete(made[3]);
    let ids = vec![made[0], made[2], made[4], made[5], made[6]];
    let start = clock(libc::CLOCK_MONOTONIC);
    let hour = i128::from(HOUR) * 1_000_000_000;
    arm(ids[0], 0, 1000 * hour + 7, hour + 1);
    arm(ids[1], libc::TIMER_ABSTIME, clock(libc::CLOCK_BOOTTIME) + 2000 * hour, 0);
    arm(ids[2], 0, 10_000_000, 10_000_000);
    // Its first signal is taken here with overruns; timer_getoverrun goes on telling how many those were.
    arm(ids[3], libc::TIMER_ABSTIME, clock(libc::CLOCK_REALTIME) - 5 * hour - 1, hour);
    probe::wait_until("expiry", || take(RT + 2).is_some());
    sleep_ms(250);
    State { start, overrun: overrun(ids[3]), ids }
}

fn check(state: State) {
    let hour = i128::from(HOUR) * 1_000_000_000;
    let elapsed = clock(libc::CLOCK_MONOTONIC) - state.start;
    let near = |what: &str, got: i128, want: i128| expect_that(what, (got - want).abs() < 10_000_000_000, (got, want));
    let (remains, interval) = get(state.ids[0]);
    near("long timer", remains + elapsed, 1000 * hour);
    expect("long interval", interval, hour + 1);
    let (remains, interval) = get(state.ids[1]);
    near("absolute timer", remains + elapsed, 2000 * hour);
    expect("interval of the absolute timer", interval, 0);
    expect("unarmed timer", get(state.ids[4]), (0, 0));
    expect("overruns when taken before", state.overrun, 5);
    expect("timer_getoverrun", overrun(state.ids[3]), 5);
    expect("interval of the hourly timer", get(state.ids[3]).1, hour);
    match take(RT + 1) {
        Some((id, overrun, value)) => {
            expect("timer and value in siginfo", (id, value), (state.ids[2], usize::MAX - 1));
            expect_that("pending overruns", overrun >= 15, overrun);
        }
        None => probe::fail("pending signal of a timer is gone"),
    }
    probe::wait_until("timer goes on", || take(RT + 1).is_some());
    state.ids.iter().for_each(|&id| delete(id));
    mask(libc::SIG_UNBLOCK);
    // Ids go on where they were, or at least collide with nothing.
    let next = create(libc::CLOCK_MONOTONIC, libc::SIGEV_NONE, 0, 0, 0);
    delete(next);
}

fn main() {
    probe::run(setup, check)
}
