//! Orphans that somebody adopted who is not the parent of their session's leader: a grandparent, above one who does not adopt; the first thread of a
//! process, of which another bore the leader; and one whose leader has ended.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, disown, expect, ok, succeeded, tid};
use std::thread::{JoinHandle, spawn};

const GO: usize = 0;
const UP: usize = 1;
const DONE: usize = 2;
/// Ids of the three.
const ORPHANS: usize = 8;

fn ids() -> [i32; 4] {
    unsafe { [libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)] }
}

/// In a session of its own: its grandchild, left by the child, stays in that. `ends`: so does the leader.
fn leader(board: Board, slot: usize, adopter: i32, ends: bool) {
    ok("setsid", unsafe { libc::setsid() });
    let session = std::process::id() as i32;
    let between = child(|| {
        disown(child(|| {
            ok("prctl", unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGWINCH) });
            probe::wait_until("adoption", || unsafe { libc::getppid() } == adopter);
            if slot == 1 {
                ok("setpgid", unsafe { libc::setpgid(0, 0) });
            }
            let before = ids();
            expect("session", before[3], session);
            board.set(ORPHANS + slot, before[0] as u64);
            board.add(UP, 1);
            board.wait(GO, 1);
            expect("ids of an orphan", ids(), before);
        }));
    });
    succeeded("who leaves an orphan", between);
    if !ends {
        board.wait(DONE, 1);
    }
}

fn children() -> Vec<u64> {
    let text = probe::read_file(&format!("/proc/self/task/{}/children", tid()));
    let mut ids: Vec<u64> = text.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

struct Held {
    board: Board,
    family: i32,
    bearer: JoinHandle<()>,
    before: Vec<u64>,
}

fn setup() -> Held {
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) });
    let (board, own) = (Board::new(), std::process::id() as i32);
    // Who does not adopt, with a leader that lives and one that ends.
    let family = child(|| {
        let lives = child(|| leader(board, 0, own, false));
        let ends = child(|| leader(board, 1, own, true));
        succeeded("a leader that ends", ends);
        board.add(UP, 1);
        board.wait(DONE, 1);
        succeeded("a leader", lives);
    });
    let bearer = spawn(move || {
        block_all();
        let borne = child(|| leader(board, 2, own, false));
        board.wait(DONE, 1);
        succeeded("a leader that a thread bore", borne);
    });
    board.wait(UP, 4);
    Held { board, family, bearer, before: children() }
}

fn check(Held { board, family, bearer, before }: Held) {
    let orphans = [0, 1, 2].map(|slot| board.get(ORPHANS + slot));
    let mut expected = [&orphans[..], &[family as u64]].concat();
    expected.sort_unstable();
    expect("children of the first thread", (children(), &before), (expected.clone(), &expected));
    board.set(GO, 1);
    orphans.iter().for_each(|orphan| succeeded("an orphan", *orphan as i32));
    board.set(DONE, 1);
    expect("bearer", bearer.join().is_ok(), true);
    succeeded("family", family);
}

fn main() {
    probe::run(setup, check)
}
