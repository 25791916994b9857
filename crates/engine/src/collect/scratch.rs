//! Where the scratch memory of a process that is asked lies.

use yendor_proc::maps::Label;
use yendor_proc::smaps::Smap;
use yendor_task::live::{Region, RegionKind};

const PAGE: u64 = 4096;
/// What one page table spans (x86_64).
const TABLE: u64 = 1 << 21;
/// The main stack may grow so far: the kernel keeps its own mappings away, too (`mmap_base` in arch/x86/mm/mmap.c).
const GROWTH: u64 = 128 << 20;

/// What the borrowing of a process has to know of its memory.
pub fn regions(smaps: &[Smap]) -> Vec<Region> {
    let region = |Smap { map, .. }: &Smap| Region {
        start: map.start,
        end: map.end,
        exec: map.perms.exec,
        what: match map.label() {
            Label::Stack => RegionKind::Stack,
            Label::Heap => RegionKind::Heap,
            Label::Vdso => RegionKind::Vdso,
            Label::Vvar | Label::VvarVclock | Label::Vsyscall => RegionKind::Special,
            _ => RegionKind::Other,
        },
    };
    smaps.iter().map(region).collect()
}

/// Where scratch memory of `size` bytes has room, and behind it a page for a moment that is not part of it.
pub fn places(regions: &[Region], size: u64) -> Option<(u64, u64)> {
    hole(regions, size + 2 * PAGE).map(|base| (base, base + size + PAGE))
}

/// A free address range of `size` bytes. Best is where a page table has room that is there already: with one that is made for the
/// scratch memory and freed with it, every processor that knows the process must be interrupted. Not where the heap or the stack
/// grows, and with a free page on either side. Else far from where programs and the kernel map things.
fn hole(regions: &[Region], size: u64) -> Option<u64> {
    let beside = regions.windows(2).rev().find_map(|pair| {
        let [before, after] = pair else { return None };
        let next = if after.what == RegionKind::Stack { after.start.saturating_sub(GROWTH) } else { after.start };
        let (from, to) = (before.end + PAGE, next.min(before.end.next_multiple_of(TABLE)));
        (before.what != RegionKind::Heap && from + size + PAGE <= to).then_some(from)
    });
    beside.or_else(|| far(regions, size))
}

fn far(regions: &[Region], size: u64) -> Option<u64> {
    const FIRST: u64 = 0x5959_0000_0000;
    const LAST: u64 = 0x7000_0000_0000;
    let mut at = FIRST;
    loop {
        match regions.iter().find(|r| r.start < at + size && at < r.end) {
            None => return Some(at),
            Some(r) => at = r.end.next_multiple_of(TABLE),
        }
        if at + size > LAST {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GROWTH, PAGE, TABLE, hole};
    use yendor_task::live::{Region, RegionKind};

    const SIZE: u64 = 14 * PAGE;
    const LIBRARY: u64 = 0x7f00_0000_0000;

    fn region(start: u64, end: u64, what: RegionKind) -> Region {
        Region { start, end, exec: false, what }
    }

    #[test]
    fn beside_what_is_there_but_not_where_it_grows() {
        let heap = region(0x5500_0000_0000, 0x5500_0000_2000, RegionKind::Heap);
        let library = region(LIBRARY, LIBRARY + PAGE, RegionKind::Other);
        let stack = region(LIBRARY + 2 * GROWTH, LIBRARY + 2 * GROWTH + PAGE, RegionKind::Stack);
        assert_eq!(hole(&[heap, library, stack], SIZE), Some(LIBRARY + 2 * PAGE));
        // The table has no room for it, or just enough.
        let edge = |pages| region(LIBRARY, LIBRARY + TABLE - pages * PAGE, RegionKind::Other);
        assert!(hole(&[heap, edge(15), stack], SIZE).is_some_and(|at| at >> 32 == 0x5959));
        assert_eq!(hole(&[heap, edge(16), stack], SIZE), Some(LIBRARY + TABLE - 15 * PAGE));
        // The stack may come down to it; the heap may come up.
        let near = region(LIBRARY + GROWTH, LIBRARY + GROWTH + PAGE, RegionKind::Stack);
        assert!(hole(&[heap, library, near], SIZE).is_some_and(|at| at >> 32 == 0x5959));
        // Something else is in the way.
        let other = region(LIBRARY + 16 * PAGE, LIBRARY + 17 * PAGE, RegionKind::Other);
        assert_eq!(hole(&[heap, library, other, near], SIZE).map(|at| at >> 32), Some(0x5959));
    }

    #[test]
    fn far_away_it_goes_around() {
        let there = region(0x5959_0000_1000, 0x5959_0000_2000, RegionKind::Heap);
        assert_eq!(hole(&[there], SIZE), Some(0x5959_0020_0000));
        assert_eq!(hole(&[region(0x5000_0000_0000, 0x7100_0000_0000, RegionKind::Heap)], SIZE), None);
    }
}
