//! Memory with a pattern that tells every page from every other.

use crate::{expect, fail, ok};

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// A mapping of one's own; unmapped when dropped.
pub struct Region {
    start: usize,
    len: usize,
}

impl Region {
    /// Address of a byte.
    pub fn at(&self, offset: usize) -> *mut u8 {
        (self.start + offset) as *mut u8
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing of it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes over what somebody else has mapped.
    pub fn adopt(start: *mut libc::c_void, len: usize) -> Self {
        if start == libc::MAP_FAILED {
            fail(&format!("mmap: {}", std::io::Error::last_os_error()));
        }
        Self { start: start as usize, len }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is ours.
        unsafe { libc::munmap(self.start as *mut _, self.len) };
    }
}

/// Anonymous memory.
pub fn map(len: usize, protection: i32, flags: i32) -> Region {
    // SAFETY: a new mapping at a place of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    Region::adopt(start, len)
}

/// How many pages are there, of whoever has them mapped.
pub fn present(address: *const u8, len: usize) -> usize {
    const AT_ONCE: usize = 1 << 30;
    let mut answer = vec![0u8; AT_ONCE / PAGE];
    let mut count = |at: usize| {
        let bytes = (len - at).min(AT_ONCE);
        let from = address.wrapping_add(at).cast_mut().cast();
        // SAFETY: `answer` has a byte for each page that is asked for.
        ok("mincore", unsafe { libc::mincore(from, bytes, answer.as_mut_ptr()) });
        answer[..bytes / PAGE].iter().filter(|page| **page & 1 == 1).count()
    };
    (0..len).step_by(AT_ONCE).map(&mut count).sum()
}

/// A word that depends on all bits of its seed (splitmix64).
pub fn word(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills whole pages.
pub fn fill_pattern(start: *mut u8, len: usize, seed: u64) {
    for at in (0..len).step_by(8) {
        // SAFETY: the caller owns this memory.
        unsafe { start.add(at).cast::<u64>().write_volatile(word(seed ^ at as u64)) };
    }
}

/// Every word must be as [`fill_pattern`] left it.
pub fn check_pattern(what: &str, start: *const u8, len: usize, seed: u64) {
    for at in (0..len).step_by(8) {
        // SAFETY: the caller owns this memory.
        let got = unsafe { start.add(at).cast::<u64>().read_volatile() };
        if got != word(seed ^ at as u64) {
            fail(&format!("{what} at +{at:#x}: expected {:#x} got {got:#x}", word(seed ^ at as u64)));
        }
    }
}

/// Permissions and `VmFlags` of the mapping at an address, as smaps prints them (proc(5)).
pub fn smaps_flags(address: *const u8) -> (String, String) {
    let text = crate::read_file("/proc/self/smaps");
    let mut permissions = None;
    for line in text.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        if let Some((low, high)) = range.split_once('-') {
            let bounds = usize::from_str_radix(low, 16).and_then(|low| Ok(low..usize::from_str_radix(high, 16)?));
            if let Ok(bounds) = bounds {
                permissions = bounds.contains(&(address as usize)).then(|| rest[..4].to_owned());
            }
        } else if let (Some(permissions), Some(flags)) = (&permissions, line.strip_prefix("VmFlags:")) {
            return (permissions.clone(), flags.trim().to_owned());
        }
    }
    expect("mapping in smaps", None, Some(address));
    unreachable!()
}
