//! Which pages of a task hold what: `PAGEMAP_SCAN` (Documentation/admin-guide/mm/pagemap.rst, Linux 6.7).

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{Result, SysError};

bitflags::bitflags! {
    /// Properties of a page.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Page: u64 {
        /// The mapping may be write-protected asynchronously.
        const WPALLOWED = 1 << 0;
        /// Written since it was write-protected.
        const WRITTEN = 1 << 1;
        /// Belongs to a file or to shared memory (not a private copy).
        const FILE = 1 << 2;
        /// Is in memory.
        const PRESENT = 1 << 3;
        /// Is in swap.
        const SWAPPED = 1 << 4;
        /// Is the shared page of zeros.
        const PFNZERO = 1 << 5;
        /// Is part of a huge page.
        const HUGE = 1 << 6;
        /// Is guarded: nobody can touch it (`MADV_GUARD_INSTALL`; told since Linux 6.15).
        const GUARD = 1 << 8;
    }
}

impl Page {
    /// Whether it is certain that nothing was written there since it was protected.
    #[must_use]
    pub fn is_unwritten(self) -> bool {
        // A mark alone may have been left by somebody else, in a mapping that is not tracked (mremap before Linux 6.14).
        self.contains(Page::WPALLOWED) && !self.contains(Page::WRITTEN)
    }
}

/// A run of pages with the same properties, `end` exclusive, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// Of the asked properties, those that hold.
    pub categories: u64,
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// How many runs one call of the kernel brings at most.
const MOST: usize = 512;

/// The runs of pages in `start..end` that are in memory or in swap, through a descriptor of `/proc/PID/pagemap`: as many as
/// one call brings, and up to where they are all.
///
/// # Errors
/// `EPERM`, `ENOTTY` on a kernel before 6.7.
pub fn scan_some(pagemap: BorrowedFd<'_>, start: u64, end: u64) -> Result<(Vec<Region>, u64)> {
    call(pagemap, start, end, Scan { returned: IN_USE | Page::FILE | Page::PFNZERO, ..Scan::default() })
}

/// The runs of guarded pages, likewise.
///
/// # Errors
/// `EINVAL` from a kernel before 6.15, and as [`scan_some`].
pub fn scan_guards(pagemap: BorrowedFd<'_>, start: u64, end: u64) -> Result<(Vec<Region>, u64)> {
    call(pagemap, start, end, Scan { all: Page::GUARD, returned: Page::GUARD, ..Scan::default() })
}

/// The same with [`Page::is_unwritten`], and without [`Page::FILE`]: for that the kernel looks at each page itself, which takes several
/// times as long as to look at the page tables.
///
/// # Errors
/// As [`scan_some`].
pub fn scan_tracked(pagemap: BorrowedFd<'_>, start: u64, end: u64) -> Result<(Vec<Region>, u64)> {
    let tracked = Page::WRITTEN | Page::WPALLOWED;
    call(pagemap, start, end, Scan { returned: IN_USE | Page::PFNZERO | tracked, ..Scan::default() })
}

/// Which pages are to be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that were written since they were, or never were.
    Written,
    /// All, whatever marks they have.
    All,
}

/// Protects pages in `start..end` that are in memory or in swap: they are unwritten from now on, until somebody writes to them.
/// Those that it has protected, as many as one call brings, and how far it has come. All must be registered with a
/// [`crate::userfault::Userfault`].
///
/// # Errors
/// `EPERM` where they are not.
pub fn protect(pagemap: BorrowedFd<'_>, start: u64, end: u64, which: Which) -> Result<(Vec<Region>, u64)> {
    let all = if which == Which::Written { Page::WRITTEN } else { Page::empty() };
    // What is not there stays as it is: to mark it would take page tables for all of a large empty mapping.
    call(pagemap, start, end, Scan { flags: WP_MATCHING | CHECK_WPASYNC, all, returned: IN_USE | Page::PFNZERO })
}

/// Whether the mapping at an address can be protected so: somebody has registered it.
///
/// # Errors
/// As [`scan_some`], but for `EPERM`.
pub fn may_be_protected(pagemap: BorrowedFd<'_>, at: u64) -> Result<bool> {
    match call(pagemap, at, at + 4096, Scan { flags: CHECK_WPASYNC, ..Scan::default() }) {
        Err(e) if e.errno == crate::Errno::PERM => Ok(false),
        other => other.map(|_| true),
    }
}

const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

const IN_USE: Page = Page::PRESENT.union(Page::SWAPPED);

/// What is asked of the kernel beside where.
struct Scan {
    flags: u64,
    /// Pages must have all of these.
    all: Page,
    /// What is told of them.
    returned: Page,
}

impl Default for Scan {
    fn default() -> Scan {
        Scan { flags: 0, all: Page::empty(), returned: IN_USE }
    }
}

fn call(pagemap: BorrowedFd<'_>, start: u64, end: u64, scan: Scan) -> Result<(Vec<Region>, u64)> {
    let mut chunk: Vec<Region> = Vec::with_capacity(MOST);
    let mut arg = ScanArg {
        size: std::mem::size_of::<ScanArg>() as u64,
        flags: scan.flags,
        start,
        end,
        walk_end: 0,
        vec: chunk.as_mut_ptr() as u64,
        vec_len: MOST as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: scan.all.bits(),
        category_anyof_mask: IN_USE.bits(),
        return_mask: scan.returned.bits(),
    };
    // SAFETY: `arg` has the kernel's layout and size; `vec` describes the room of `chunk`, which outlives the call.
    let n = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    let Ok(n) = usize::try_from(n) else {
        return Err(SysError::last("ioctl", format!("PAGEMAP_SCAN, {start:#x}..{end:#x}")));
    };
    // SAFETY: the kernel has filled this many, of no more than there is room for.
    unsafe { chunk.set_len(n.min(MOST)) };
    Ok((chunk, arg.walk_end))
}

/// All runs of pages in `start..end` that are in memory or in swap.
///
/// # Errors
/// As [`scan_some`].
pub fn scan(pagemap: BorrowedFd<'_>, start: u64, end: u64) -> Result<Vec<Region>> {
    let mut out = Vec::new();
    let mut from = start;
    while from < end {
        let (some, to) = scan_some(pagemap, from, end)?;
        out.extend(some);
        if to <= from {
            break;
        }
        from = to;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn finds_the_written_pages_of_this_process() {
        let pages = 64usize;
        let mut memory = vec![0u8; (pages + 2) * 4096];
        let base = (memory.as_ptr() as usize).next_multiple_of(4096);
        let offset = base - memory.as_ptr() as usize;
        memory[offset + 5 * 4096] = 1;
        let map = std::fs::File::open("/proc/self/pagemap").expect("pagemap");
        let found = scan(map.as_fd(), base as u64, (base + pages * 4096) as u64).expect("scan");
        let page = (base + 5 * 4096) as u64;
        assert!(found.iter().any(|r| r.start <= page && page < r.end), "{found:x?}");
    }
}
