//! What prctl(2) and arch_prctl(2) switch on for a process and its threads: memory that is never written and executed, merged
//! pages, timers under chosen ids; counters and `cpuid` that fault, machine checks, speculation. What this machine does not
//! have nobody switches on, and that stays so.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, expect, expect_that, map, smaps_flags, succeeded};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

const GO: usize = 0;
const UP: usize = 1;
static RELEASE: AtomicBool = AtomicBool::new(false);

fn prctl(code: i32, two: u64, three: u64, four: u64) -> i64 {
    i64::from(unsafe { libc::prctl(code, two, three, four, 0) })
}

fn arch(code: u64, argument: u64) -> i64 {
    unsafe { libc::syscall(libc::SYS_arch_prctl, code, argument) }
}

/// `PR_GET_MDWE`, `PR_GET_MEMORY_MERGE`, `PR_TIMER_CREATE_RESTORE_IDS`.
fn process() -> [i64; 3] {
    [prctl(66, 0, 0, 0), prctl(68, 0, 0, 0), prctl(77, 2, 0, 0)]
}

/// `PR_GET_TSC`, `ARCH_GET_CPUID`, `PR_MCE_KILL_GET`, `PR_GET_IO_FLUSHER`, `PR_GET_SPECULATION_CTRL`.
fn thread() -> [i64; 7] {
    let mut tsc = 0_u32;
    prctl(25, (&raw mut tsc).cast::<u8>() as u64, 0, 0);
    let speculation = |which| prctl(52, which, 0, 0);
    let [a, b, c] = [0, 1, 2].map(speculation);
    [i64::from(tsc), arch(0x1011, 0), prctl(34, 0, 0, 0), prctl(58, 0, 0, 0), a, b, c]
}

/// A thread that has `change`d something of its own. It makes no call that reads the counter meanwhile.
fn changed(name: &'static str, change: fn()) -> JoinHandle<()> {
    let up = std::sync::Arc::new(AtomicBool::new(false));
    let own = up.clone();
    let made = spawn(move || {
        block_all();
        change();
        let before = thread();
        own.store(true, SeqCst);
        while !RELEASE.load(SeqCst) {
            // Not std's, which looks at the clock.
            unsafe { libc::usleep(2000) };
        }
        let now = thread();
        // PR_SET_TSC: messages take the time.
        prctl(26, 1, 0, 0);
        arch(0x1012, 1);
        expect(name, now, before);
    });
    probe::wait_until("thread", || up.load(SeqCst));
    made
}

struct Held {
    process: [i64; 3],
    thread: [i64; 7],
    maps: [probe::Region; 2],
    flags: [(String, String); 2],
    board: Board,
    children: [i32; 2],
    threads: Vec<JoinHandle<()>>,
}

fn may_write_and_execute() -> bool {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let got = unsafe { libc::mmap(std::ptr::null_mut(), 4096, all, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    got != libc::MAP_FAILED
}

fn setup() -> Held {
    RELEASE.store(false, SeqCst);
    let board = Board::new();
    let relative = |number: u64, denies: u64| {
        child(move || {
            if denies != 0 {
                prctl(65, denies, 0, 0);
            }
            let own = process();
            board.set(UP, number);
            board.wait(GO, 1);
            expect("child", process(), own);
        })
    };
    // The second denies, but its own children may.
    let first = relative(1, 0);
    board.wait(UP, 1);
    let second = relative(2, 3);
    board.wait(UP, 2);
    // In this order: a merged area, then everything, then one that is not.
    let maps =
        [(); 2].map(|()| map(3 * 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS));
    prctl(67, 1, 0, 0);
    unsafe { libc::madvise(maps[1].at(0).cast(), 3 * 4096, libc::MADV_UNMERGEABLE) };
    prctl(77, 1, 0, 0);
    prctl(65, 1, 0, 0);
    // PR_MCE_KILL: late.
    prctl(33, 1, 0, 0);
    let threads = vec![
        changed("counter", || {
            prctl(26, 2, 0, 0);
        }),
        changed("cpuid", || {
            arch(0x1012, 0);
        }),
        changed("machine checks", || {
            prctl(33, 1, 1, 0);
        }),
        changed("buffers", || {
            prctl(57, 1, 0, 0);
        }),
        changed("speculation", || {
            [0, 1, 2].into_iter().for_each(|which| {
                prctl(53, which, 4, 0);
            })
        }),
        changed("no speculation again", || {
            [0, 1].into_iter().for_each(|which| {
                prctl(53, which, 8, 0);
            })
        }),
    ];
    let flags = maps.each_ref().map(|map| smaps_flags(map.at(0)));
    let held = Held { process: process(), thread: thread(), maps, flags, board, children: [first, second], threads };
    expect("no machine check ends it early", held.thread[2], 0);
    held
}

fn check(held: Held) {
    let Held { process: before, thread: own, maps, flags, board, children, threads } = held;
    expect("process", process(), before);
    expect("thread", thread(), own);
    expect_that("what may be executed", may_write_and_execute() == (before[0] <= 0), before[0]);
    let now = maps.each_ref().map(|map| smaps_flags(map.at(0)));
    expect("areas", now, flags);
    RELEASE.store(true, SeqCst);
    for thread in threads {
        expect("thread", thread.join().is_ok(), true);
    }
    board.set(GO, 1);
    children.into_iter().for_each(|pid| succeeded("child", pid));
}

fn main() {
    probe::run(setup, check)
}
