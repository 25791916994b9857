//! A process whose parent is gone: it belongs to init now, or whoever adopts.
#![allow(unsafe_code)]

use probe::{Board, child, disown, expect, succeeded};

const GO: usize = 0;
const PID: usize = 1;
const DONE: usize = 2;

fn setup() -> (Board, i32) {
    let board = Board::new();
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
}

fn main() {
    probe::run(setup, check)
}
