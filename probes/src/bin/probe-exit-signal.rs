//! Children of clone(2) that tell their parent of their end by another signal than SIGCHLD: by one of real time, by a usual one, by none. One has
//! ended before anybody asks.
#![allow(unsafe_code)]

use probe::{Board, expect, ok, wait_until};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

const GO: usize = 0;
static TOLD: [AtomicI32; 65] = [const { AtomicI32::new(0) }; 65];

extern "C" fn told(signal: libc::c_int) {
    TOLD[signal as usize & 63].fetch_add(1, SeqCst);
}

/// Field 38 of /proc/PID/stat.
fn exit_signal(pid: i32) -> String {
    let text = probe::read_file(&format!("/proc/{pid}/stat"));
    let behind = text.rsplit(')').next().unwrap_or("");
    behind.split_whitespace().nth(35).unwrap_or("").to_owned()
}

fn cloned(signal: i32, work: impl FnOnce()) -> i32 {
    let pid = ok("clone", unsafe { libc::syscall(libc::SYS_clone, signal, 0, 0, 0, 0) }) as i32;
    if pid == 0 {
        work();
        unsafe { libc::_exit(3) }
    }
    pid
}

struct Held {
    board: Board,
    children: Vec<(i32, i32)>,
}

fn signals() -> [i32; 4] {
    [libc::SIGRTMIN() + 5, libc::SIGURG, 0, libc::SIGCHLD]
}

fn setup() -> Held {
    for signal in signals().into_iter().filter(|signal| *signal != 0) {
        TOLD[signal as usize & 63].store(0, SeqCst);
        unsafe { libc::signal(signal, told as *const () as usize) };
    }
    let board = Board::new();
    let mut children: Vec<(i32, i32)> =
        signals().into_iter().map(|signal| (signal, cloned(signal, || board.wait(GO, 1)))).collect();
    let ended = cloned(libc::SIGRTMIN() + 5, || ());
    let word = &TOLD[(libc::SIGRTMIN() + 5) as usize & 63];
    wait_until("the first to end", || word.load(SeqCst) == 1);
    children.push((libc::SIGRTMIN() + 5, ended));
    for (signal, pid) in &children {
        expect("before", exit_signal(*pid), signal.to_string());
    }
    Held { board, children }
}

fn check(Held { board, children }: Held) {
    for (signal, pid) in &children {
        expect("the signal of a child's end", exit_signal(*pid), signal.to_string());
    }
    let before = signals().map(|signal| TOLD[signal as usize & 63].load(SeqCst));
    expect("told before", before[0], 1);
    board.set(GO, 1);
    for (signal, pid) in children {
        let mut status = 0;
        // Only who asks for it is told of those that do not end by SIGCHLD.
        if signal != libc::SIGCHLD {
            expect("a child that is another's", unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) }, -1);
        }
        expect("waitpid", ok("waitpid", unsafe { libc::waitpid(pid, &mut status, libc::__WALL) }), pid);
        expect("status", status, 3 << 8);
    }
    let now = signals().map(|signal| TOLD[signal as usize & 63].load(SeqCst));
    expect("told", now, [before[0] + 1, before[1] + 1, 0, before[3] + 1]);
}

fn main() {
    probe::run(setup, check)
}
