//! Children that are just ending when somebody looks, what they end with, and whom they leave behind.
//!
//! At almost any instant one child of each family is on its way out: the kernel takes a while for its watches.
#![allow(unsafe_code)]

use probe::{Board, child, disown, expect, ok, reaped, succeeded};

const GO: usize = 0;
const ROUND: usize = 1;
const WATCHES: usize = 5;

/// Every round a child ends, with another status each time, and leaves one of its own to whoever adopts it.
fn family(board: Board, adopts: bool) {
    if adopts {
        ok("prctl", unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) });
    }
    let mut round = 0;
    let slot = if adopts { 10 } else { 20 };
    while board.get(GO) == 0 {
        round += 1;
        let ending = child(|| {
            let orphan = child(|| {
                board.wait(slot, round);
                board.set(slot + 1, round);
            });
            board.set(slot + 2, orphan as u64);
            disown(orphan);
            for _ in 0..WATCHES {
                let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
                if fd < 0 {
                    // A user may have only so many at a time: then this end is a quick one.
                    break;
                }
                ok("inotify_add_watch", unsafe { libc::inotify_add_watch(fd, c"/".as_ptr(), libc::IN_DELETE_SELF) });
            }
            unsafe { libc::_exit((round % 200) as i32 + 1) }
        });
        expect("wait status of a child", reaped(ending), ((round % 200) as i32 + 1) << 8);
        board.set(slot, round);
        if adopts {
            succeeded("orphan", board.get(slot + 2) as i32);
        }
        probe::wait_until("the orphan's word", || board.get(slot + 1) == round);
        board.add(ROUND, 1);
    }
}

fn setup() -> (Board, Vec<i32>) {
    let board = Board::new();
    let mut families = vec![child(|| family(board, true))];
    // In a container orphans belong to its init; elsewhere they would not be of the tree any more.
    if std::env::var_os("PROBE_SET_NAMES").is_some() {
        families.push(child(|| family(board, false)));
    }
    board.wait(ROUND, 5);
    (board, families)
}

fn check((board, families): (Board, Vec<i32>)) {
    let now = board.get(ROUND);
    board.wait(ROUND, now + 6);
    board.set(GO, 1);
    families.into_iter().for_each(|family| succeeded("family", family));
}

fn main() {
    probe::run(setup, check)
}
