//! A tree of many processes (first argument, 1000 unless told), every tenth with nine children of its own.
#![allow(unsafe_code)]

use probe::{Board, PAGE, child, expect, fill_pattern, map, ok, succeeded};

const GO: usize = 0;
const UP: usize = 1;

/// Sleeps in the kernel until the family is released: a thousand who poll would starve the rest.
fn wait_released(board: Board) {
    while board.get(GO) == 0 {
        let word = board.word(GO);
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, 0, std::ptr::null::<u8>()) };
    }
}

fn member(board: Board, number: u64, children: u64) {
    let ids = || unsafe { [libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)] };
    let page = map(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    fill_pattern(page.at(0), PAGE, number);
    let below: Vec<i32> = (1..=children).map(|more| child(|| member(board, number + more, 0))).collect();
    let before = ids();
    board.add(UP, 1);
    wait_released(board);
    expect("ids", ids(), before);
    probe::check_pattern("page", page.at(0), PAGE, number);
    for pid in below {
        succeeded("grandchild", pid);
    }
}

fn count() -> u64 {
    std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1000)
}

fn setup() -> (Board, Vec<i32>) {
    let board = Board::new();
    let total = count();
    let children =
        (0..total).step_by(10).map(|number| child(|| member(board, number, (total - number).min(10) - 1))).collect();
    board.wait(UP, total);
    (board, children)
}

fn check((board, children): (Board, Vec<i32>)) {
    board.set(GO, 1);
    ok("futex", unsafe { libc::syscall(libc::SYS_futex, board.word(GO), libc::FUTEX_WAKE, i32::MAX) });
    for pid in children {
        succeeded("child", pid);
    }
}

fn main() {
    probe::run(setup, check)
}
