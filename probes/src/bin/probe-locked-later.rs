//! What a process maps after mlockall(2) with `MCL_FUTURE`: locked at once, locked when it is touched, or not; also in one whose
//! other memory is locked and one that has taken it back. Children do not inherit it.
#![allow(unsafe_code)]

use probe::{Board, child, expect, map, ok, smaps_flags, succeeded};

const GO: usize = 0;
const UP: usize = 1;
/// `mlockall` with these flags, 0 for none; `munlockall` after it.
const WAYS: [(i32, bool); 5] = [
    (0, false),
    (libc::MCL_FUTURE, false),
    (libc::MCL_FUTURE | libc::MCL_ONFAULT, false),
    (libc::MCL_CURRENT | libc::MCL_ONFAULT, false),
    (libc::MCL_FUTURE, true),
];

/// Whether a new page is locked, and whether it is there before anybody has touched it.
fn fresh() -> (bool, bool) {
    let page = map(4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let mut there = 0;
    ok("mincore", unsafe { libc::mincore(page.at(0).cast(), 4096, &mut there) });
    (smaps_flags(page.at(0)).1.split(' ').any(|flag| flag == "lo"), there & 1 == 1)
}

struct Held {
    board: Board,
    children: Vec<i32>,
}

fn setup() -> Held {
    let board = Board::new();
    let mut children = Vec::new();
    for (number, (flags, taken_back)) in (1..).zip(WAYS) {
        children.push(child(move || {
            expect("in a new child", fresh(), (false, false));
            if flags != 0 {
                ok("mlockall", unsafe { libc::mlockall(flags) });
            }
            if taken_back {
                ok("munlockall", unsafe { libc::munlockall() });
            }
            let before = fresh();
            let later = flags & libc::MCL_FUTURE != 0 && !taken_back;
            expect("locked", before, (later, later && flags & libc::MCL_ONFAULT == 0));
            board.set(UP, number);
            board.wait(GO, 1);
            expect("new memory", fresh(), before);
            succeeded("a child", child(|| expect("of a child", fresh(), (false, false))));
        }));
        board.wait(UP, number);
    }
    Held { board, children }
}

fn check(Held { board, children }: Held) {
    board.set(GO, 1);
    children.into_iter().for_each(|pid| succeeded("child", pid));
}

fn main() {
    probe::run(setup, check)
}
