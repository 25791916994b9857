//! Guarded pages (madvise(2), `MADV_GUARD_INSTALL`), as the C library guards the stacks of threads: at the ends and in the middle of areas, of memory
//! that was written before, of a private file mapping, of an area that was guarded once and is not any more; in a child that has
//! its parent's, and in one that has taken some away.
#![allow(unsafe_code)]

use probe::{Board, PAGE, Region, child, expect, expect_that, map, ok, succeeded};
use std::fs::File;
use std::os::fd::AsRawFd;

const GO: usize = 0;
const UP: usize = 1;
const INSTALL: i32 = 102;
const REMOVE: i32 = 103;
const PAGES: usize = 40;

fn advise(region: &Region, pages: std::ops::Range<usize>, advice: i32) -> bool {
    unsafe { libc::madvise(region.at(pages.start * PAGE).cast(), pages.len() * PAGE, advice) == 0 }
}

/// Of each page its first byte, none where it cannot be touched: asked by a call that says so.
fn look(region: &Region) -> Vec<Option<u8>> {
    let mut ends = [0; 2];
    ok("pipe", unsafe { libc::pipe(ends.as_mut_ptr()) });
    let byte = |page: usize| {
        let mut got = 0_u8;
        let from = region.at(page * PAGE);
        if unsafe { libc::write(ends[1], from.cast(), 1) } != 1 {
            return None;
        }
        ok("read", unsafe { libc::read(ends[0], (&raw mut got).cast(), 1) });
        Some(got)
    };
    let seen = (0..region.len() / PAGE).map(byte).collect();
    for end in ends {
        unsafe { libc::close(end) };
    }
    seen
}

fn private(len: usize) -> Region {
    map(len * PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
}

fn write(region: &Region, pages: std::ops::Range<usize>, value: u8) {
    pages.for_each(|page| unsafe { region.at(page * PAGE).write_volatile(value) });
}

struct Held {
    regions: Vec<Region>,
    seen: Vec<Vec<Option<u8>>>,
    board: Board,
    children: Vec<i32>,
}

fn setup() -> Held {
    // A stack: guarded below, used above. Then both ends, middles next to each other, everything, nothing any more.
    let regions: Vec<Region> = (0..5).map(|_| private(PAGES)).collect();
    write(&regions[0], 30..40, 1);
    advise(&regions[0], 0..8, INSTALL);
    write(&regions[1], 0..40, 2);
    advise(&regions[1], 0..1, INSTALL);
    advise(&regions[1], 39..40, INSTALL);
    advise(&regions[1], 10..12, INSTALL);
    advise(&regions[1], 12..13, INSTALL);
    advise(&regions[1], 14..15, INSTALL);
    unsafe { libc::mprotect(regions[1].at(20 * PAGE).cast(), 5 * PAGE, libc::PROT_READ) };
    advise(&regions[2], 0..40, INSTALL);
    write(&regions[3], 0..40, 3);
    advise(&regions[3], 0..40, INSTALL);
    advise(&regions[3], 0..40, REMOVE);
    write(&regions[3], 5..6, 4);
    let own = File::open("/proc/self/exe").unwrap_or_else(|error| probe::fail(&format!("open: {error}")));
    let (fd, all) = (own.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
    let file = unsafe { libc::mmap(std::ptr::null_mut(), 4 * PAGE, all, libc::MAP_PRIVATE, fd, 0) };
    let file = Region::adopt(file, 4 * PAGE);
    write(&file, 1..2, 7);
    advise(&file, 2..3, INSTALL);
    let mut regions = regions;
    regions.push(file);
    let seen: Vec<_> = regions.iter().map(look).collect();
    let board = Board::new();
    let mut children = Vec::new();
    for number in [1, 2] {
        let regions = &regions;
        children.push(child(move || {
            if number == 2 {
                advise(&regions[0], 3..8, REMOVE);
                write(&regions[0], 4..5, 9);
            }
            write(&regions[1], 3..4, 5);
            let seen: Vec<_> = regions.iter().map(look).collect();
            board.set(UP, number);
            board.wait(GO, 1);
            expect("in a child", regions.iter().map(look).collect::<Vec<_>>(), seen);
        }));
        board.wait(UP, number);
    }
    Held { regions, seen, board, children }
}

fn check(Held { regions, seen, board, children }: Held) {
    expect("pages", regions.iter().map(look).collect::<Vec<_>>(), seen);
    // They can be taken away, and there is nothing behind them.
    let known = advise(&regions[2], 3..4, REMOVE);
    expect_that("a page again", !known || look(&regions[2])[3] == Some(0), known);
    board.set(GO, 1);
    children.into_iter().for_each(|pid| succeeded("child", pid));
}

fn main() {
    probe::run(setup, check)
}
