//! A process whose parent is gone: it belongs to init now, or whoever adopts.
#![allow(unsafe_code)]

use probe::{Board, child, disown, expect, succeeded};

const GO: usize = 0;
const PID: usize = 1;
const DONE: usize = 2;
const EARLY: usize = 3;

/// Pid 1 of a container buries whom it is given; that of a host may leave it.
fn is_buried(orphan: i32) {
    if std::env::var_os("PROBE_SET_NAMES").is_some() {
        probe::wait_until("burial", || {
            // SAFETY: no signal is sent.
            unsafe { libc::kill(orphan, 0) == -1 && *libc::__errno_location() == libc::ESRCH }
        });
    }
}

/// An orphan that has ended.
fn ends_early(board: Board) {
    let middle = child(|| {
        let parent = std::process::id() as i32;
        let orphan = child(|| {
            probe::wait_until("adoption", || unsafe { libc::getppid() } != parent);
            board.set(EARLY, std::process::id().into());
        });
        disown(orphan);
    });
    succeeded("middle", middle);
    probe::wait_until("an end", || board.get(EARLY) != 0);
    is_buried(board.get(EARLY) as i32);
}

fn setup() -> (Board, i32) {
    let board = Board::new();
    ends_early(board);
    let middle = child(|| {
        let parent = std::process::id() as i32;
        let orphan = child(|| {
            probe::wait_until("adoption", || unsafe { libc::getppid() } != parent);
            let before = unsafe { (libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)) };
            board.set(PID, before.0 as u64);
            board.wait(GO, 1);
            expect(
                "ids of the orphan",
                unsafe { (libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)) },
                before,
            );
            board.set(DONE, 1);
        });
        disown(orphan);
    });
    succeeded("middle", middle);
    board.wait(PID, 1);
    (board, board.get(PID) as i32)
}

fn check((board, orphan): (Board, i32)) {
    expect("orphan is there", unsafe { libc::kill(orphan, 0) }, 0);
    board.set(GO, 1);
    probe::wait_until("the orphan's word", || board.get(DONE) == 1);
    is_buried(orphan);
    board.set(EARLY, 0);
    ends_early(board);
}

fn main() {
    probe::run(setup, check)
}
