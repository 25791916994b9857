//! The extended state of a thread (x87, SSE, AVX ...) in the processor's standard layout (Intel SDM, volume 1, chapter 13;
//! arch/x86/include/uapi/asm/sigcontext.h): 512 old bytes, a header that says which components hold something, and the
//! components, each at a place of its own that the processor tells.

use std::sync::atomic::{AtomicU32, Ordering};

/// Where the header lies, which begins with the components in use.
const HEADER: usize = 512;
/// Bytes of the old part and the header, which every state has.
pub const LEAST: usize = 576;
/// Where the kernel says which components there can be.
const SOFTWARE: usize = 464;
/// Components that lie in the old part.
const OLD: u64 = 0b11;

fn word(state: &[u8], at: usize) -> u64 {
    state.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// The components that hold something, bit `n` for number `n`. The others are as in a new thread.
#[must_use]
pub fn in_use(state: &[u8]) -> u64 {
    word(state, HEADER)
}

/// The components that a state which ptrace(2) brought could hold here.
#[must_use]
pub fn possible(state: &[u8]) -> u64 {
    word(state, SOFTWARE)
}

/// Bytes of a state with these components in use, on this processor.
#[must_use]
pub fn length(in_use: u64) -> usize {
    let component = |n: u32| if in_use & !OLD & 1 << n == 0 { 0 } else { end_of(n) };
    (2..63).map(component).max().unwrap_or(0).max(LEAST)
}

/// Where a component ends. Asking the processor takes a virtual machine tens of microseconds: once each.
fn end_of(component: u32) -> usize {
    static ENDS: [AtomicU32; 64] = [const { AtomicU32::new(0) }; 64];
    let known = &ENDS[component as usize & 63];
    let mut end = known.load(Ordering::Relaxed);
    if end == 0 {
        const LEAF: u32 = 0xd;
        let told = std::arch::x86_64::__cpuid_count(LEAF, component);
        end = told.ebx + told.eax;
        known.store(end, Ordering::Relaxed);
    }
    end as usize
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
