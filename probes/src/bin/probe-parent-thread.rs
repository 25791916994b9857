//! Whose child a process is: a thread's. When that ends, its children are told (`PR_SET_PDEATHSIG`), while the process and children of other threads
//! live; who waits with `__WNOTHREAD` waits for its own. And a grandchild is told of its parent's end.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, disown, expect, ok, succeeded, tid};
use std::thread::{JoinHandle, spawn};

const GO: usize = 0;
/// Words that count who has come so far.
const READY: usize = 1;
const LOOKED: usize = 2;
const TOLD: usize = 3;
/// The threads that have children end.
const END: usize = 4;
const DONE: usize = 5;
/// Ids: of the thread, of its child, of its zombie, of the grandchild.
const THREAD: usize = 8;
const BORNE: usize = 9;
const ENDED: usize = 10;
const WAITED: usize = 11;

fn urgent() -> libc::sigset_t {
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGURG);
        set
    }
}

fn is_pending() -> bool {
    unsafe {
        let mut set = std::mem::zeroed();
        ok("sigpending", libc::sigpending(&mut set));
        libc::sigismember(&set, libc::SIGURG) == 1
    }
}

/// Waits to be told of its parent's end, or that it is not.
fn mourns(board: Board, told: bool) {
    unsafe {
        ok("sigprocmask", libc::sigprocmask(libc::SIG_BLOCK, &urgent(), std::ptr::null_mut()));
        ok("prctl", libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGURG));
        board.add(READY, 1);
        board.wait(GO, 1);
        expect("told too early", is_pending(), false);
        board.add(LOOKED, 1);
        if told {
            let wait = libc::timespec { tv_sec: 20, tv_nsec: 0 };
            let signal = libc::sigtimedwait(&urgent(), std::ptr::null_mut(), &wait);
            expect("told of the parent's end", signal, libc::SIGURG);
            board.add(TOLD, 1);
        }
        board.wait(DONE, 1);
        expect("told without a reason", is_pending(), false);
    }
}

/// A thread that has a child and one that has ended.
fn thread(board: Board) -> JoinHandle<()> {
    spawn(move || {
        block_all();
        board.set(THREAD, tid() as u64);
        let borne = child(|| mourns(board, true));
        let ended = child(|| ());
        board.set(BORNE, borne as u64);
        board.set(ENDED, ended as u64);
        unsafe {
            let mut info = std::mem::zeroed();
            ok("waitid", libc::waitid(libc::P_PID, ended as u32, &mut info, libc::WEXITED | libc::WNOWAIT));
        }
        board.add(READY, 1);
        board.wait(GO, 1);
        let own = || unsafe { libc::waitpid(ended, std::ptr::null_mut(), libc::WNOHANG | libc::__WNOTHREAD) };
        expect("a zombie of a thread", own(), ended);
        disown(ended);
        board.set(WAITED, 1);
        board.wait(END, 1);
    })
}

/// A process that leaves the session of its thread's child.
fn leaves(board: Board) {
    block_all();
    let own = Board::new();
    let bearer = spawn(move || {
        disown(child(|| mourns(board, true)));
        own.set(READY, 1);
        board.wait(END, 1);
    });
    own.wait(READY, 1);
    ok("setsid", unsafe { libc::setsid() });
    // Of the new session, by the first thread.
    let second = child(|| mourns(board, false));
    board.add(READY, 1);
    board.wait(GO, 1);
    expect("bearer", bearer.join().is_ok(), true);
    board.wait(DONE, 1);
    succeeded("child of the new session", second);
    expect("child of the old session", unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0, true);
}

struct Held {
    board: Board,
    bearer: JoinHandle<()>,
    families: [i32; 2],
    own: i32,
}

fn setup() -> Held {
    let board = Board::new();
    let between = child(|| {
        disown(child(|| mourns(board, true)));
        board.wait(END, 1);
    });
    let leaving = child(|| leaves(board));
    let own = child(|| mourns(board, false));
    let bearer = thread(board);
    // Those who may be told, the thread, and who leaves.
    board.wait(READY, 7);
    Held { board, bearer, families: [between, leaving], own }
}

fn children(tid: u64) -> Vec<u64> {
    let text = probe::read_file(&format!("/proc/self/task/{tid}/children"));
    let mut ids: Vec<u64> = text.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

fn check(Held { board, bearer, families: [between, leaving], own }: Held) {
    let (borne, ended) = (board.get(BORNE), board.get(ENDED));
    let mut expected = [between, leaving, own].map(|pid| pid as u64);
    expected.sort_unstable();
    expect("children of the first thread", children(tid() as u64), expected.to_vec());
    let mut expected = vec![borne, ended];
    expected.sort_unstable();
    expect("children of the other", children(board.get(THREAD)), expected);
    let of_others =
        |pid: u64| unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::WNOHANG | libc::__WNOTHREAD) };
    expect("wait for a child of another thread", (of_others(borne), of_others(ended)), (-1, -1));
    board.set(GO, 1);
    board.wait(WAITED, 1);
    board.wait(LOOKED, 5);
    board.set(END, 1);
    expect("thread", bearer.join().is_ok(), true);
    succeeded("between", between);
    board.wait(TOLD, 3);
    board.set(DONE, 1);
    succeeded("child of a thread", borne as i32);
    succeeded("child of the first thread", own);
    succeeded("who has left", leaving);
}

fn main() {
    probe::run(setup, check)
}
