//! Blocked and pending signals, of the process and of threads, with their siginfo and in their order.
#![allow(unsafe_code)]

use probe::{block_all, expect, ok, sleep_ms, tid, word};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

/// siginfo_t: signo, errno, code, padding, and a union that begins with pid, uid, value.
type Info = [u32; 32];

const RT: i32 = 40;

fn blocked() -> u64 {
    let bit = |signal: i32| 1_u64 << (signal - 1);
    bit(libc::SIGHUP) | bit(libc::SIGCHLD) | bit(libc::SIGWINCH) | bit(RT) | bit(RT + 1) | bit(RT + 5) | bit(64)
}

fn set_mask(how: i32, mask: u64) {
    ok("sigprocmask", unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &mask, 0, 8) });
}

fn mask() -> u64 {
    let mut mask = 0_u64;
    ok("sigprocmask", unsafe { libc::syscall(libc::SYS_rt_sigprocmask, 0, 0, &mut mask, 8) });
    mask
}

fn info(signal: i32, code: i32, value: u64) -> Info {
    let mut info = [0; 32];
    (info[0], info[1], info[2]) = (signal as u32, 7, code as u32);
    (info[4], info[5]) = (0x0123_4567, 0x7654_3210);
    (info[6], info[7]) = (value as u32, (value >> 32) as u32);
    info
}

/// To the process (or to one thread) a signal with these very bytes; only the own process may use any code.
fn queue(thread: Option<i32>, info: &Info) {
    let pid = std::process::id() as i32;
    ok("sigqueueinfo", unsafe {
        match thread {
            Some(tid) => libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, info[0], info),
            None => libc::syscall(libc::SYS_rt_sigqueueinfo, pid, info[0], info),
        }
    });
}

fn take(want: &Info) {
    let (mut got, zero, set): (Info, _, _) = ([0; 32], [0_u64; 2], 1_u64 << (want[0] - 1));
    let signal = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, &mut got, &zero, 8) };
    expect("pending signal", signal, i64::from(want[0]));
    expect("siginfo", got, *want);
}

fn pending(which: &str) -> String {
    probe::status(which)
}

fn for_thread() -> Vec<Info> {
    vec![
        info(RT, libc::SI_QUEUE, word(1)),
        info(RT, -77, word(2)),
        info(64, libc::SI_TKILL, word(3)),
        info(libc::SIGHUP, libc::SI_QUEUE, word(4)),
    ]
}

fn for_process() -> Vec<Info> {
    let mut all: Vec<Info> = (0..40).map(|number| info(RT + 1, libc::SI_QUEUE, word(number))).collect();
    all.push(info(RT + 5, libc::SI_USER, 0));
    all.push(info(RT + 5, libc::SI_MESGQ, word(50)));
    all.push(info(libc::SIGWINCH, libc::SI_KERNEL, word(51)));
    all
}

fn queue_all(thread: Option<i32>, all: &[Info]) -> String {
    all.iter().for_each(|info| queue(thread, info));
    pending(if thread.is_some() { "SigPnd" } else { "ShdPnd" })
}

struct State {
    go: Arc<AtomicU32>,
    thread: JoinHandle<()>,
    child: i32,
    pending: [String; 2],
    mask: u64,
}

fn setup() -> State {
    set_mask(libc::SIG_BLOCK, blocked());
    let (go, ready) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicI32::new(0)));
    let thread = spawn({
        let (go, ready) = (go.clone(), ready.clone());
        move || {
            block_all();
            let all: Vec<Info> = (0..5).map(|number| info(RT + 1, libc::SI_QUEUE, word(100 + number))).collect();
            let before = queue_all(Some(tid()), &all);
            ready.store(tid(), SeqCst);
            while go.load(SeqCst) == 0 {
                sleep_ms(3);
            }
            expect("SigPnd of a thread", pending("SigPnd"), before);
            all.iter().for_each(take);
        }
    });
    probe::wait_until("thread", || ready.load(SeqCst) != 0);
    let child = probe::child(|| unsafe { libc::_exit(5) });
    probe::wait_until("SIGCHLD", || pending("ShdPnd") == "0000000000010000");
    let pending = [queue_all(Some(tid()), &for_thread()), queue_all(None, &for_process())];
    State { go, thread, child, pending, mask: mask() }
}

fn check(state: State) {
    expect("mask", mask(), state.mask);
    expect("SigPnd", pending("SigPnd"), state.pending[0].clone());
    expect("ShdPnd", pending("ShdPnd"), state.pending[1].clone());
    state.go.store(1, SeqCst);
    expect("thread", state.thread.join().is_ok(), true);
    for_thread().iter().for_each(take);
    for_process().iter().for_each(take);
    let mut whole = [0_u32; 32];
    let (zero, set) = ([0_u64; 2], 1_u64 << (libc::SIGCHLD - 1));
    expect(
        "SIGCHLD",
        unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, &mut whole, &zero, 8) },
        i64::from(libc::SIGCHLD),
    );
    let uid = unsafe { libc::getuid() };
    expect(
        "siginfo of SIGCHLD",
        [whole[2], whole[4], whole[5], whole[6]],
        [libc::CLD_EXITED as u32, state.child as u32, uid, 5],
    );
    expect("status", probe::reaped(state.child), 5 << 8);
    expect(
        "nothing more is pending",
        [pending("SigPnd"), pending("ShdPnd")].map(|set| set == "0000000000000000"),
        [true; 2],
    );
    set_mask(libc::SIG_UNBLOCK, blocked());
}

fn main() {
    probe::run(setup, check)
}
