//! Signal actions of all signals: handlers, flags, masks, restorers, ignored ones.
#![allow(unsafe_code)]

use probe::{expect, ok, word};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// struct sigaction as the kernel has it (rt_sigaction(2)).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

static HEARD: AtomicU64 = AtomicU64::new(0);

extern "C" fn first(signal: i32) {
    HEARD.fetch_add(1 << (signal - 34), SeqCst);
}

extern "C" fn second(signal: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    expect("si_signo", unsafe { (*info).si_signo }, signal);
    HEARD.fetch_add(0x1_0000 << (signal - 34), SeqCst);
}

fn action(signal: i32) -> Action {
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    ok("rt_sigaction", unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, 0, &mut action, 8) });
    action
}

fn changeable(signal: i32) -> bool {
    // SIGKILL, SIGSTOP, requests, and what glibc keeps for itself.
    !matches!(
        signal,
        libc::SIGKILL | libc::SIGSTOP | libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGTERM | libc::SIGINT | 32 | 33
    )
}

fn set(signal: i32, restorer: usize) {
    // The kernel drops these two from every mask.
    let mask = word(signal as u64) & !(1 << (libc::SIGKILL - 1)) & !(1 << (libc::SIGSTOP - 1));
    let restoring = 0x0400_0000;
    let (handler, flags) = match signal % 6 {
        0 => (libc::SIG_IGN, 0),
        1 => (libc::SIG_DFL, 0),
        2 => (first as *const () as usize, libc::SA_RESTART | libc::SA_NODEFER),
        3 => (second as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK),
        4 => (first as *const () as usize, libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT),
        _ => (second as *const () as usize, libc::SA_SIGINFO | libc::SA_RESETHAND),
    };
    let action = Action { handler, flags: u64::from(flags as u32) | restoring, restorer, mask };
    ok("rt_sigaction", unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &action, 0, 8) });
}

fn setup() -> Vec<Action> {
    let restorer = action(libc::SIGUSR1).restorer;
    (1..=64).filter(|&signal| changeable(signal)).for_each(|signal| set(signal, restorer));
    HEARD.store(0, SeqCst);
    (1..=64).map(action).collect()
}

fn check(before: Vec<Action>) {
    for (signal, before) in (1..).zip(before) {
        expect(&format!("action of signal {signal}"), action(signal), before);
    }
    for signal in [36, 38, 39, 40, 41] {
        ok("raise", unsafe { libc::raise(signal) });
    }
    let heard = (1 << 4) + (1 << 6) + (0x1_0000 << 5) + (0x1_0000 << 7);
    expect("signals heard", HEARD.load(SeqCst), heard);
    expect("action that was reset", action(41).handler, libc::SIG_DFL);
    expect("action that stays", action(39).handler, second as *const () as usize);
}

fn main() {
    probe::run(setup, check)
}
