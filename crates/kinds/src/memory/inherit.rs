//! Memory that a child still shares with its parent since fork, copy on write.
//! *Read from:* the memory of both, page by page, where both have the same private mapping.
//! *Made again by:* fork: the child is born when its parent has its memory, and only differences are written.
//! *Lost:* sharing between processes that are not parent and child.

use serde::{Deserialize, Serialize};
use yendor_image::Addr;

use super::source::Source;
use super::vma::{self, Flag};
use crate::Result;

/// What a copy of the parent has too much.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Ranges of kept areas that the parent has written and the child has not: start and end.
    pub dropped: Vec<(Addr, Addr)>,
}

/// Whether a child's area is its parent's, as fork copied it. The protection may differ.
#[must_use]
pub fn is_copy(child: &vma::Record, parent: &vma::Record) -> bool {
    let vma::Record { start, end, protection: _, backing, shared, flags, name, policy, guards } = child;
    let forked = |f: &&Flag| matches!(f, Flag::DontFork | Flag::WipeOnFork);
    // Locks are not inherited: they do not make an area another one.
    let plain = |flags: &[Flag]| -> Vec<Flag> {
        flags.iter().copied().filter(|f| !matches!(f, Flag::Locked | Flag::LockedOnFault)).collect()
    };
    // An attachment can have several areas, which shmat(2) only makes all at once.
    let attached = matches!(backing, vma::Backing::Sysv { .. });
    !attached
        && (*start, *end, backing, *shared, name, policy)
            == (parent.start, parent.end, &parent.backing, parent.shared, &parent.name, &parent.policy)
        && plain(flags) == plain(&parent.flags)
        && *guards == parent.guards
        && !flags.iter().any(|f| forked(&f))
}

/// How the pages of a kept private area differ.
#[derive(Debug, Default)]
pub struct Difference {
    /// To be written: start and end.
    pub changed: Vec<(u64, u64)>,
    /// To be dropped.
    pub dropped: Vec<(u64, u64)>,
}

const PAGE: u64 = 4096;
const PAGE_BYTES: usize = 4096;
const CHUNK: u64 = 64 * PAGE;

/// Compares what parent and child have written (`ours`, `theirs`: ranges by address).
///
/// # Errors
/// The memory of either cannot be read.
pub fn compare(
    child: &Source<'_>,
    ours: &[(u64, u64)],
    parent: &Source<'_>,
    theirs: &[(u64, u64)],
) -> Result<Difference> {
    let mut difference = Difference { changed: subtract(ours, theirs), dropped: subtract(theirs, ours) };
    let both = intersect(ours, theirs);
    let largest = both.iter().map(|(start, end)| end - start).max().unwrap_or(0).min(CHUNK);
    let size = usize::try_from(largest).unwrap_or(0);
    let (mut a, mut b) = (vec![0; size], vec![0; size]);
    for (start, end) in both {
        let mut at = start;
        while at < end {
            let len = (end - at).min(CHUNK);
            let n = usize::try_from(len).unwrap_or(0);
            child.read(at, &mut a[..n])?;
            parent.read(at, &mut b[..n])?;
            if a[..n] != b[..n] {
                let pages = a[..n].chunks(PAGE_BYTES).zip(b[..n].chunks(PAGE_BYTES));
                for (i, _) in pages.enumerate().filter(|(_, (x, y))| x != y) {
                    let page = at + i as u64 * PAGE;
                    push(&mut difference.changed, (page, page + PAGE));
                }
            }
            at += len;
        }
    }
    difference.changed.sort_unstable();
    Ok(difference)
}

fn push(ranges: &mut Vec<(u64, u64)>, (start, end): (u64, u64)) {
    match ranges.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => ranges.push((start, end)),
    }
}

/// What is in `a` and not in `b`; both sorted.
#[must_use]
pub fn subtract(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for &(start, end) in a {
        let mut at = start;
        let first = b.partition_point(|(_, to)| *to <= start);
        for &(from, to) in b[first..].iter().take_while(|(from, _)| *from < end) {
            if at < from {
                out.push((at, from));
            }
            at = at.max(to);
        }
        if at < end {
            out.push((at, end));
        }
    }
    out
}

/// What is in both; both sorted.
fn intersect(a: &[(u64, u64)], b: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for &(start, end) in a {
        for &(from, to) in b.iter().filter(|(from, to)| *from < end && start < *to) {
            out.push((start.max(from), end.min(to)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sets() {
        let a = [(0, 4), (8, 12)];
        let b = [(2, 9), (11, 20)];
        assert_eq!(subtract(&a, &b), [(0, 2), (9, 11)]);
        assert_eq!(subtract(&b, &a), [(4, 8), (12, 20)]);
        assert_eq!(intersect(&a, &b), [(2, 4), (8, 9), (11, 12)]);
    }
}
