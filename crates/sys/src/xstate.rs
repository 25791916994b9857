//! The extended state of a thread (x87, SSE, AVX ...) in the processor's standard layout (Intel SDM, volume 1, chapter 13;
//! arch/x86/include/uapi/asm/sigcontext.h): 512 old bytes, a header that says which components hold something, and the
//! components, each at a place of its own that the processor tells.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the header lies, which begins with the components in use.
const HEADER: usize = 512;
/// Bytes of the old part and the header, which every state has.
pub const LEAST: usize = 576;
/// Bytes of the old part that hold something: x87, SSE.
pub const OLD_BYTES: usize = 416;
/// Where the kernel says which components there can be.
const SOFTWARE: usize = 464;
/// The component that holds AMX's tiles.
pub const TILES: u32 = 18;
/// Components that a process may use only when it has asked for them (`ARCH_REQ_XCOMP_PERM`).
pub const LARGE: u64 = 1 << TILES;
/// Components that lie in the old part: x87, SSE.
pub const OLD: u64 = 0b11;

fn word(state: &[u8], at: usize) -> u64 {
    state.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// The components that hold something, bit `n` for number `n`. The others are as in a new thread.
#[must_use]
pub fn in_use(state: &[u8]) -> u64 {
    word(state, HEADER)
}

/// A state of `len` bytes with this old part, and room for the components in use.
#[must_use]
pub fn with(in_use: u64, old: &[u8; OLD_BYTES], len: usize) -> Vec<u8> {
    let mut state = vec![0; len.max(LEAST)];
    state[..OLD_BYTES].copy_from_slice(old);
    state[HEADER..HEADER + 8].copy_from_slice(&in_use.to_ne_bytes());
    state
}

/// The components that a state which ptrace(2) brought could hold here.
#[must_use]
pub fn possible(state: &[u8]) -> u64 {
    word(state, SOFTWARE)
}

/// The components beyond the old part that are in use.
pub fn components(in_use: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |n| in_use & !OLD & 1 << n != 0)
}

/// Bytes of a state with these components in use, on this processor.
#[must_use]
pub fn length(in_use: u64) -> usize {
    components(in_use).map(|n| place(n).end).max().unwrap_or(0).max(LEAST)
}

/// Where a component lies on this processor; nowhere if it has none. Asking the processor takes a virtual machine tens of
/// microseconds: once each.
#[must_use]
pub fn place(component: u32) -> Range<usize> {
    static PLACES: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    let known = &PLACES[component as usize & 63];
    let mut place = known.load(Ordering::Relaxed);
    if place == 0 {
        const LEAF: u32 = 0xd;
        let told = std::arch::x86_64::__cpuid_count(LEAF, component);
        place = u64::from(told.ebx) << 32 | u64::from(told.eax);
        known.store(place, Ordering::Relaxed);
    }
    let (start, len) = ((place >> 32) as usize, (place & 0xffff_ffff) as usize);
    start..start + len
}

/// What a component is called.
#[must_use]
pub fn name(component: u32) -> &'static str {
    match component {
        0 => "x87",
        1 => "SSE",
        2 => "AVX",
        3 | 4 => "MPX",
        5..=7 => "AVX-512",
        9 => "protection keys",
        11 | 12 => "shadow stacks",
        17 | 18 => "AMX",
        19 => "APX",
        _ => "components that are not known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_used_counts() {
        assert_eq!([0, 1, 3].map(length), [LEAST; 3]);
        // AVX: sixteen halves of 16 bytes, behind the header on every processor that has it.
        if std::arch::is_x86_feature_detected!("avx") {
            assert_eq!(length(0b111), LEAST + 256);
            assert_eq!(length(0b100), LEAST + 256);
        }
    }
}
