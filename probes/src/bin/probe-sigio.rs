//! Signal-driven I/O: who is told, by which signal, and that it still is.
#![allow(unsafe_code)]

use probe::{expect, ok, own, transfer};
use std::os::fd::{AsRawFd, OwnedFd};

const RT: i32 = 45;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    kind: i32,
    pid: i32,
}

fn owner(fd: &OwnedFd) -> (Owner, i32, i32) {
    let mut owner = Owner { kind: -1, pid: -1 };
    unsafe {
        ok("F_GETOWN_EX", libc::fcntl(fd.as_raw_fd(), 16, &mut owner));
        (owner, libc::fcntl(fd.as_raw_fd(), 11), libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))
    }
}

fn pipe(owner: Option<Owner>, signal: i32) -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    ok("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) });
    let read = own("pipe", ends[0]);
    unsafe {
        if let Some(owner) = owner {
            ok("F_SETOWN_EX", libc::fcntl(ends[0], 15, &owner));
        }
        ok("F_SETSIG", libc::fcntl(ends[0], 10, signal));
        ok("F_SETFL", libc::fcntl(ends[0], libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK));
    }
    (read, own("pipe", ends[1]))
}

/// The waiting signal's descriptor.
fn told(signal: i32) -> Option<i32> {
    let (mut info, zero, set) = ([0_u32; 32], [0_u64; 2], 1_u64 << (signal - 1));
    let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, &mut info, &zero, 8) };
    // si_fd comes after si_band.
    (got == i64::from(signal)).then_some(info[6] as i32)
}

type Pipe = (OwnedFd, OwnedFd);

fn setup() -> ([Pipe; 3], Vec<(Owner, i32, i32)>) {
    let set = 3_u64 << (RT - 1);
    ok("sigprocmask", unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &set, 0, 8) });
    let pid = std::process::id() as i32;
    let group = unsafe { libc::getpgrp() };
    let all =
        [pipe(Some(Owner { kind: 1, pid }), RT), pipe(Some(Owner { kind: 2, pid: group }), RT + 1), pipe(None, RT)];
    let before = all.iter().map(|(read, _)| owner(read)).collect();
    (all, before)
}

fn check((all, before): ([Pipe; 3], Vec<(Owner, i32, i32)>)) {
    expect("owners, signals, flags", all.iter().map(|(read, _)| owner(read)).collect::<Vec<_>>(), before);
    expect("nobody was told anything", (told(RT), told(RT + 1)), (None, None));
    transfer(&all[2].1, b"x");
    expect("without owner nobody is told", told(RT), None);
    transfer(&all[0].1, b"x");
    expect("told", told(RT), Some(all[0].0.as_raw_fd()));
    transfer(&all[1].1, b"x");
    expect("the group is told", told(RT + 1), Some(all[1].0.as_raw_fd()));
    let set = 3_u64 << (RT - 1);
    ok("sigprocmask", unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_UNBLOCK, &set, 0, 8) });
}

fn main() {
    probe::run(setup, check)
}
