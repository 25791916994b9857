//! Memory nodes of single mappings (mbind), of the thread, and of a child that changed what it inherited.
#![allow(unsafe_code)]

use probe::{Board, PAGE, Region, check_pattern, child, expect, fill_pattern, map, ok, succeeded};

const GO: usize = 0;
const UP: usize = 1;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const LEN: usize = 24 * PAGE;
const PREFERRED: i32 = 1;
const BIND: i32 = 2;
const INTERLEAVE: i32 = 3;
const LOCAL: i32 = 4;
const STATIC_NODES: i32 = 1 << 15;
/// Of a machine with one node there is none else; a policy is seen and kept all the same.
const NODE: u64 = 1;
/// Mode and node mask of each of the pages that are looked at.
type Policies = Vec<(i32, u64)>;

/// A kernel without NUMA says ENOSYS, and then there is no policy to keep.
fn bind(region: &Region, first: usize, pages: usize, mode: i32) {
    let nodes = [if mode == LOCAL { 0 } else { NODE }];
    let (at, len, bits) = (region.at(first * PAGE), pages * PAGE, 65);
    let done = unsafe { libc::syscall(libc::SYS_mbind, at, len, mode, nodes.as_ptr(), bits, 0) };
    expect("mbind", done == 0 || probe_errno() == libc::ENOSYS, true);
}

fn probe_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn of(at: *mut u8, flags: i32) -> (i32, u64) {
    let (mut mode, mut nodes) = (0_i32, [0_u64; 16]);
    unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, &mut nodes, 1024, at, flags) };
    (mode, nodes[0])
}

fn policies(regions: &[Region]) -> Policies {
    let mut all = vec![of(std::ptr::null_mut(), 0)];
    for region in regions {
        all.extend((0..LEN).step_by(PAGE).map(|offset| of(region.at(offset), 2)));
    }
    all
}

struct State {
    board: Board,
    child: i32,
    regions: [Region; 3],
    policies: Policies,
}

fn setup() -> State {
    let board = Board::new();
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let regions = [map(LEN, RW, private), map(LEN, RW, private), map(LEN, RW, shared)];
    for (region, seed) in regions.iter().zip(1..) {
        fill_pattern(region.at(0), LEN, seed);
    }
    // In the middle of the first; all of the second, which nobody may write; some of the shared one.
    bind(&regions[0], 3, 5, INTERLEAVE | STATIC_NODES);
    bind(&regions[0], 8, 1, LOCAL);
    bind(&regions[1], 0, 24, BIND);
    ok("mprotect", unsafe { libc::mprotect(regions[1].at(0).cast(), LEN, libc::PROT_READ) });
    bind(&regions[2], 11, 2, PREFERRED);
    unsafe { libc::syscall(libc::SYS_set_mempolicy, PREFERRED, &NODE, 65) };
    let before = policies(&regions);
    expect("policies that differ, or a kernel without", [1, 5].contains(&distinct(&before)), true);
    let child = child(|| {
        // One is taken back, one is changed, the others are inherited.
        bind(&regions[0], 4, 2, BIND);
        unsafe { libc::syscall(libc::SYS_mbind, regions[1].at(0), 12 * PAGE, 0, std::ptr::null::<u64>(), 0, 0) };
        unsafe { libc::syscall(libc::SYS_set_mempolicy, 0, std::ptr::null::<u64>(), 0) };
        let own = policies(&regions);
        expect("what the child changed shows", own == before && distinct(&before) > 1, false);
        board.set(UP, 1);
        board.wait(GO, 1);
        expect("policies of the child", policies(&regions), own);
        patterns(&regions);
    });
    board.wait(UP, 1);
    State { board, child, policies: before, regions }
}

fn distinct(policies: &Policies) -> usize {
    policies.iter().collect::<std::collections::BTreeSet<_>>().len()
}

fn patterns(regions: &[Region]) {
    for (region, seed) in regions.iter().zip(1..) {
        check_pattern("memory", region.at(0), LEN, seed);
    }
}

fn main() {
    probe::run(setup, |state| {
        expect("policies", policies(&state.regions), state.policies);
        patterns(&state.regions);
        state.board.set(GO, 1);
        succeeded("child", state.child);
    })
}
