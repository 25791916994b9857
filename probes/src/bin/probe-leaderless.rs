//! A group and a session whose leader is gone, with the member adopted by a subreaper.
#![allow(unsafe_code)]

use probe::{Board, child, disown, expect, ok, succeeded};

const GO: usize = 0;
const PID: usize = 1;

fn ids() -> [i32; 4] {
    unsafe { [libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)] }
}

fn setup() -> (Board, i32) {
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) });
    let board = Board::new();
    let own = std::process::id() as i32;
    let leader = child(|| {
        ok("setsid", unsafe { libc::setsid() });
        let leader = std::process::id() as i32;
        let member = child(|| {
            probe::wait_until("adoption", || unsafe { libc::getppid() } == own);
            let before = ids();
            expect("group and session", [before[2], before[3]], [leader, leader]);
            board.set(PID, before[0] as u64);
            board.wait(GO, 1);
            expect("ids of the member", ids(), before);
        });
        disown(member);
    });
    succeeded("leader", leader);
    board.wait(PID, 1);
    (board, board.get(PID) as i32)
}

fn check((board, member): (Board, i32)) {
    board.set(GO, 1);
    succeeded("member", member);
}

fn main() {
    probe::run(setup, check)
}
