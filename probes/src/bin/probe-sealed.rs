//! Sealed memory (mseal): content, protection, and that the seal still holds.
#![allow(unsafe_code)]

use probe::{PAGE, expect, ok, refused, smaps_flags};

struct State {
    at: *mut u8,
    sealed: bool,
}

/// Pages of a seal in the middle of a mapping.
const FROM: usize = 2;
const PAGES: usize = 3;

fn setup() -> State {
    unsafe {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), 8 * PAGE, both, kind, -1, 0).cast::<u8>();
        (0..8).for_each(|page| at.add(page * PAGE + 7).write(page as u8 + 1));
        let middle = at.add(FROM * PAGE).cast::<libc::c_void>();
        ok("mprotect", libc::mprotect(middle, PAGES * PAGE, libc::PROT_READ));
        // mseal; Linux 6.10
        let sealed = libc::syscall(462, middle, PAGES * PAGE, 0) == 0;
        expect("kernel with mseal", sealed, true);
        State { at, sealed }
    }
}

fn check(state: State) {
    let State { at, sealed } = state;
    unsafe {
        (0..8).for_each(|page| expect("content", at.add(page * PAGE + 7).read(), page as u8 + 1));
        let middle = at.add(FROM * PAGE);
        expect("flag", smaps_flags(middle).1.split(' ').any(|flag| flag == "sl"), sealed);
        refused("munmap", libc::munmap(middle.cast(), PAGE), libc::EPERM);
        refused("mprotect", libc::mprotect(middle.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE), libc::EPERM);
        ok("munmap before the seal", libc::munmap(at.cast(), FROM * PAGE));
    }
}

fn main() {
    probe::run(setup, check)
}
