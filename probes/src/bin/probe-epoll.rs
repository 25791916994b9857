//! epoll: targets of all sorts, nested ones, edge-triggered, one-shot (fired), and a target whose number is closed.
#![allow(unsafe_code)]

use probe::{expect, fdinfo, ok, own, read_at_once, transfer};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const IN: u32 = libc::EPOLLIN as u32;
const ET: u32 = libc::EPOLLET as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;
const HIGH: i32 = 321;

fn epoll() -> OwnedFd {
    own("epoll_create1", unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

fn control(epoll: &OwnedFd, how: i32, target: &OwnedFd, events: u32, data: u64) {
    let mut event = libc::epoll_event { events, u64: data };
    ok("epoll_ctl", unsafe { libc::epoll_ctl(epoll.as_raw_fd(), how, target.as_raw_fd(), &mut event) });
}

/// What is ready now, in the order of data.
fn ready(epoll: &OwnedFd) -> Vec<(u64, u32)> {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
    let count = ok("epoll_wait", unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 16, 0) });
    let mut ready: Vec<(u64, u32)> = events[..count as usize].iter().map(|event| (event.u64, event.events)).collect();
    ready.sort_unstable();
    ready
}

fn eventfd() -> OwnedFd {
    own("eventfd", unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) })
}

struct State {
    pipe: (OwnedFd, OwnedFd),
    level: OwnedFd,
    edge: OwnedFd,
    shot: OwnedFd,
    armed: OwnedFd,
    hidden: OwnedFd,
    inner: OwnedFd,
    outer: OwnedFd,
    before: [Vec<String>; 2],
    polls: [[u8; 8]; 2],
}

/// The table of targets, in no special order and without the numbers of inodes and devices.
fn targets(epoll: &OwnedFd) -> Vec<String> {
    let mut lines: Vec<String> =
        fdinfo(epoll).iter().map(|line| line.split(" pos:").next().unwrap_or("").to_owned()).collect();
    lines.sort();
    lines
}

/// How it polls busily (struct epoll_params); zeros where the kernel does not know that.
fn busy_poll(epoll: &OwnedFd) -> [u8; 8] {
    let mut params = [0; 8];
    unsafe { libc::ioctl(epoll.as_raw_fd(), 0x8008_8a02, params.as_mut_ptr()) };
    params
}

fn setup() -> State {
    let mut ends = [0; 2];
    ok("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) });
    let pipe = (own("pipe2", ends[0]), own("pipe2", ends[1]));
    let (level, edge, shot, armed, hidden) = (eventfd(), eventfd(), eventfd(), eventfd(), eventfd());
    let (inner, outer) = (epoll(), epoll());
    let add = libc::EPOLL_CTL_ADD;
    control(&inner, add, &pipe.0, IN | libc::EPOLLRDHUP as u32, 0xdead_beef_0000_0001);
    control(&inner, add, &level, IN | libc::EPOLLPRI as u32, 0xdead_beef_0000_0002);
    control(&inner, add, &edge, IN | ET, 0xdead_beef_0000_0003);
    control(&inner, add, &shot, IN | ONCE, 0xdead_beef_0000_0004);
    control(&inner, add, &armed, IN | ONCE, 0xdead_beef_0000_0005);
    control(&outer, add, &inner, IN, u64::MAX);
    // Registered under a number that belongs to another file by now; only the copy keeps the target alive.
    let number = unsafe { OwnedFd::from_raw_fd(ok("dup2", libc::dup2(hidden.as_raw_fd(), HIGH))) };
    control(&outer, add, &number, IN, 6);
    drop(number);
    transfer(&shot, &1_u64.to_ne_bytes());
    transfer(&edge, &1_u64.to_ne_bytes());
    expect("first events", ready(&inner), vec![(0xdead_beef_0000_0003, IN), (0xdead_beef_0000_0004, IN)]);
    expect("no second events", ready(&inner), vec![]);
    // 77 microseconds, 8 packets at once, and it prefers to.
    unsafe { libc::ioctl(inner.as_raw_fd(), 0x4008_8a01, [77_u8, 0, 0, 0, 8, 0, 1, 0].as_ptr()) };
    let polls = [busy_poll(&inner), busy_poll(&outer)];
    let before = [targets(&inner), targets(&outer)];
    State { pipe, level, edge, shot, armed, hidden, inner, outer, before, polls }
}

fn check(state: State) {
    expect("busy polling", [busy_poll(&state.inner), busy_poll(&state.outer)], state.polls);
    expect("targets", [targets(&state.inner), targets(&state.outer)], state.before);
    // The edge may be told once more after a restore: a program must bear that (epoll(7)). One-shot may not.
    let spurious = ready(&state.inner);
    expect("events", spurious.into_iter().filter(|event| event.0 & 7 != 3).collect::<Vec<_>>(), vec![]);
    expect("no events", ready(&state.inner), vec![]);
    expect("no outer events", ready(&state.outer), vec![]);
    transfer(&state.pipe.1, b"x");
    transfer(&state.armed, &1_u64.to_ne_bytes());
    transfer(&state.edge, &1_u64.to_ne_bytes());
    expect("outer events", ready(&state.outer), vec![(u64::MAX, IN)]);
    let want = |numbers: &[u64]| numbers.iter().map(|number| (0xdead_beef_0000_0000 + number, IN)).collect::<Vec<_>>();
    expect("all events", ready(&state.inner), want(&[1, 3, 5]));
    expect("level-triggered events", ready(&state.inner), want(&[1]));
    expect("read", read_at_once(&state.pipe.0, 9), Some(b"x".to_vec()));
    transfer(&state.level, &1_u64.to_ne_bytes());
    control(&state.inner, libc::EPOLL_CTL_MOD, &state.shot, IN | ONCE, 7);
    expect("events after rearming", ready(&state.inner), [vec![(7, IN)], want(&[2])].concat());
    transfer(&state.hidden, &1_u64.to_ne_bytes());
    let outer = ready(&state.outer);
    expect("target without its number", outer.contains(&(6, IN)), true);
}

fn main() {
    probe::run(setup, check)
}
