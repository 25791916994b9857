//! A parent and three children that share 64 MiB copy-on-write, each with a few pages of its own.
#![allow(unsafe_code)]

use probe::{Board, PAGE, Region, child, expect, expect_that, fill_pattern, map, succeeded, word};

const GO: usize = 0;
const UP: usize = 1;
const LEN: usize = 64 << 20;

/// Page that member `who` has changed for the `number`th time.
fn changed(who: usize, number: usize) -> usize {
    (number * 2039 + who * 17) % (LEN / PAGE)
}

fn change(region: &Region, who: usize) {
    for number in 0..8 {
        fill_pattern(region.at(changed(who, number) * PAGE), PAGE, 1000 + who as u64);
    }
}

fn contents(region: &Region, who: usize) {
    let own: Vec<usize> = (0..8).map(|number| changed(who, number)).collect();
    for page in 0..LEN / PAGE {
        let (base, seed) = if own.contains(&page) { (0, 1000 + who as u64) } else { (page * PAGE, 1) };
        let mut good = true;
        for at in (0..PAGE).step_by(8) {
            let got = unsafe { region.at(page * PAGE + at).cast::<u64>().read_volatile() };
            good &= got == word(seed ^ (base + at) as u64);
        }
        expect_that(&format!("page {page} of member {who}"), good, "something else");
    }
}

/// KiB of the whole family.
fn proportional(children: &[i32]) -> u64 {
    let own = std::process::id() as i32;
    let of = |pid: &i32| {
        let text = probe::read_file(&format!("/proc/{pid}/smaps_rollup"));
        let size = probe::field(&text, "Pss");
        size.trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    children.iter().chain([&own]).map(of).sum()
}

struct State {
    board: Board,
    region: Region,
    children: Vec<i32>,
    size: u64,
}

fn setup() -> State {
    let board = Board::new();
    let region = map(LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // One page at a time is written by whoever changes it.
    unsafe { libc::madvise(region.at(0).cast(), LEN, libc::MADV_NOHUGEPAGE) };
    fill_pattern(region.at(0), LEN, 1);
    let children: Vec<i32> = (1..4)
        .map(|who| {
            child(|| {
                change(&region, who);
                board.add(UP, 1);
                board.wait(GO, 1);
                contents(&region, who);
            })
        })
        .collect();
    change(&region, 0);
    board.wait(UP, 3);
    let size = proportional(&children);
    expect_that("memory before", (LEN as u64 / 1024..2 * LEN as u64 / 1024).contains(&size), size);
    State { board, region, children, size }
}

fn check(state: State) {
    let size = proportional(&state.children);
    expect_that("memory of the family, KiB", size <= state.size + state.size / 4, (size, state.size));
    contents(&state.region, 0);
    state.board.set(GO, 1);
    for pid in state.children {
        succeeded("child", pid);
    }
    expect("own page", unsafe { state.region.at(changed(0, 0) * PAGE).cast::<u64>().read() }, word(1000));
}

fn main() {
    probe::run(setup, check)
}
