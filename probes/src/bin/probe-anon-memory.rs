//! Private anonymous memory in every condition: holes, protections, advice, locks, code, heap, stacks.
#![allow(unsafe_code)]

use probe::{PAGE, Region, check_pattern, child, expect, fill_pattern, map, ok, smaps_flags, succeeded};
use std::ptr::null_mut;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const LARGE: usize = 4000 * PAGE;
const STACK: usize = 2 << 20;
const ADVICE: [i32; 7] = [
    libc::MADV_DONTFORK,
    libc::MADV_WIPEONFORK,
    libc::MADV_DONTDUMP,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_MERGEABLE,
    libc::MADV_SEQUENTIAL,
];

struct State {
    sparse: Region,
    holed: Region,
    hidden: Region,
    constant: Region,
    code: Region,
    advised: Vec<Region>,
    locked: [Region; 2],
    down: Region,
    heap: usize,
    flags: Vec<(String, String)>,
}

fn protect(region: &Region, protection: i32) {
    ok("mprotect", unsafe { libc::mprotect(region.at(0).cast(), region.len(), protection) });
}

fn filled(pages: usize, seed: u64) -> Region {
    let region = map(pages * PAGE, RW, PRIVATE);
    fill_pattern(region.at(0), region.len(), seed);
    region
}

/// Far from everything, so that nothing else is ever put into its hole.
fn with_hole() -> Region {
    let (at, len) = (0x1234_5678_9000_usize, 64 * PAGE);
    let flags = PRIVATE | libc::MAP_FIXED_NOREPLACE;
    let region = Region::adopt(unsafe { libc::mmap(at as *mut _, len, RW, flags, -1, 0) }, len);
    fill_pattern(region.at(0), len, 10);
    ok("munmap", unsafe { libc::munmap(region.at(16 * PAGE).cast(), 5 * PAGE) });
    region
}

fn growing_down() -> Region {
    // Room below, so that it can grow.
    let room = map(8 << 20, libc::PROT_NONE, PRIVATE);
    let (at, len) = (room.at((8 << 20) - 16 * PAGE), 16 * PAGE);
    drop(room);
    let flags = PRIVATE | libc::MAP_FIXED_NOREPLACE | libc::MAP_GROWSDOWN;
    let region = Region::adopt(unsafe { libc::mmap(at.cast(), len, RW, flags, -1, 0) }, len);
    fill_pattern(region.at(0), len, 70);
    region
}

/// Flags but for accounting and dirt.
fn flags(state: &State) -> Vec<(String, String)> {
    let regions =
        [&state.sparse, &state.hidden, &state.constant, &state.code, &state.down, &state.locked[0], &state.locked[1]];
    regions
        .into_iter()
        .chain(&state.advised)
        .map(|region| {
            let (permissions, flags) = smaps_flags(region.at(0));
            let flags = flags.split(' ').filter(|flag| !["ac", "sd", "nr"].contains(flag)).collect::<Vec<_>>();
            (permissions, flags.join(" "))
        })
        .collect()
}

fn setup() -> State {
    let sparse = map(LARGE, RW, PRIVATE);
    for page in (0..LARGE).step_by(3 * PAGE) {
        fill_pattern(sparse.at(page), PAGE, page as u64);
    }
    let (holed, hidden, constant) = (with_hole(), filled(32, 20), filled(8, 30));
    protect(&hidden, libc::PROT_NONE);
    protect(&constant, libc::PROT_READ);
    let code = map(PAGE, RW, PRIVATE);
    // mov eax, 0x600dc0de; ret
    unsafe { code.at(64).cast::<[u8; 6]>().write([0xb8, 0xde, 0xc0, 0x0d, 0x60, 0xc3]) };
    protect(&code, libc::PROT_READ | libc::PROT_EXEC);
    let advised = ADVICE
        .iter()
        .zip(40..)
        .map(|(&advice, seed)| {
            let region = filled(8, seed);
            // Not every kernel has huge pages or merging; what it has is seen in the flags.
            unsafe { libc::madvise(region.at(0).cast(), region.len(), advice) };
            region
        })
        .collect();
    let locked = [filled(4, 60), map(4 * PAGE, RW, PRIVATE)];
    ok("mlock", unsafe { libc::mlock(locked[0].at(0).cast(), locked[0].len()) });
    ok("mlock2", unsafe { libc::mlock2(locked[1].at(0).cast(), locked[1].len(), libc::MLOCK_ONFAULT) });
    let heap = unsafe { libc::sbrk(256 * PAGE as isize) } as usize;
    fill_pattern(heap as *mut u8, 256 * PAGE, 80);
    let mut state =
        State { sparse, holed, hidden, constant, code, advised, locked, down: growing_down(), heap, flags: vec![] };
    state.flags = flags(&state);
    state
}

fn check(state: State) {
    let now = flags(&state);
    for (number, (now, before)) in now.iter().zip(&state.flags).enumerate() {
        expect(&format!("permissions and flags of mapping {number}"), now, before);
    }
    for page in (0..LARGE).step_by(PAGE) {
        if page % (3 * PAGE) == 0 {
            check_pattern("sparse memory", state.sparse.at(page), PAGE, page as u64);
        } else {
            expect("page that nobody wrote", unsafe { *state.sparse.at(page).cast::<[u64; 512]>() }, [0; 512]);
        }
    }
    for at in (0..64).filter(|at| !(16..21).contains(at)).map(|page| page * PAGE) {
        for word in (0..PAGE).step_by(8) {
            expect(
                "holed memory",
                unsafe { *state.holed.at(at + word).cast::<u64>() },
                probe::word(10 ^ (at + word) as u64),
            );
        }
    }
    let mut resident = 0;
    probe::refused(
        "mincore of a hole",
        unsafe { libc::mincore(state.holed.at(18 * PAGE).cast(), PAGE, &mut resident) },
        libc::ENOMEM,
    );
    protect(&state.hidden, libc::PROT_READ);
    check_pattern("hidden memory", state.hidden.at(0), state.hidden.len(), 20);
    check_pattern("constant memory", state.constant.at(0), state.constant.len(), 30);
    let call: extern "C" fn() -> u32 = unsafe { std::mem::transmute(state.code.at(64)) };
    expect("what the code returns", call(), 0x600d_c0de);
    for (region, seed) in state.advised.iter().zip(40..) {
        check_pattern("advised memory", region.at(0), region.len(), seed);
    }
    check_pattern("locked memory", state.locked[0].at(0), state.locked[0].len(), 60);
    check_pattern("memory that grows down", state.down.at(0), state.down.len(), 70);
    let below = (state.down.at(0) as usize - 6 * PAGE) as *mut u64;
    for page in (0..6).rev() {
        unsafe { below.add(512 * page).write_volatile(page as u64) };
    }
    let wiped = &state.advised[1];
    succeeded("child with wiped memory", child(|| expect("wiped", unsafe { *wiped.at(8).cast::<u64>() }, 0)));
    check_heap(state.heap);
    unsafe { libc::munmap(below.cast(), 6 * PAGE) };
}

fn check_heap(heap: usize) {
    check_pattern("heap", heap as *const u8, 256 * PAGE, 80);
    let end = unsafe { libc::sbrk(0) } as usize;
    expect("end of the heap", end >= heap + 256 * PAGE, true);
    let more = unsafe { libc::sbrk(64 * PAGE as isize) } as usize;
    expect("heap grows where it ended", more, end);
    fill_pattern(more as *mut u8, 64 * PAGE, 81);
    check_pattern("new heap", more as *const u8, 64 * PAGE, 81);
    let (end, old) = unsafe { (libc::sbrk(0) as usize, libc::syscall(libc::SYS_brk, null_mut::<u8>())) };
    expect("break of the kernel", old as usize, end);
}

/// A frame of 4 KiB for each level.
#[inline(never)]
fn deeper(levels: usize) -> u64 {
    let mut frame = [levels as u64; 500];
    if levels == 0 {
        return 0;
    }
    unsafe { (&raw mut frame[1]).write_volatile(7) };
    deeper(levels - 1) + std::hint::black_box(&frame)[1] / 7
}

fn main() {
    let mut stack = [0_u64; STACK / 8];
    let at = (&raw mut stack).cast::<u8>();
    fill_pattern(at, STACK, 90);
    probe::run(setup, |state| {
        check(state);
        check_pattern("stack", at, STACK, 90);
        expect("stack grows", deeper(1000), 1000);
    })
}
