//! Address spaces of which writes are tracked: what of them is known, what has changed, and what the next checkpoint shall know.

use std::borrow::Cow;
use std::collections::BTreeSet;

use yendor_image::{Addr, Parent};
use yendor_kinds::memory::early::{Early, Kept, Places, Task};
use yendor_kinds::memory::source::{self, Source};
use yendor_kinds::memory::vma;
use yendor_kinds::{Cause, Result};
use yendor_proc::smaps::{Smap, VmFlag};

use super::rounds::Tracked;

/// What of a tracked address space is known, and what has changed: nothing is written while the task stands still.
#[derive(Debug, Default)]
pub struct Late {
    pub(super) places: Places,
    /// Of each area what is there.
    pub(super) all: Vec<Vec<(u64, u64)>>,
    /// To be read at once.
    now: Vec<(u64, u64)>,
    /// What was read at once.
    pub(super) kept: Kept,
    /// To be read from a copy, if there is one.
    pub(super) later: Vec<(u64, u64)>,
    /// Bytes that are not read: they were not written since they were.
    pub(super) unread: u64,
    /// Bytes of those that were compared all the same.
    pub(super) verified: u64,
}

impl Late {
    pub(super) fn of(tracked: &mut Tracked) -> Late {
        Late { places: std::mem::take(&mut tracked.places), ..Late::default() }
    }

    /// Takes an area; `later`: what has changed of it is read from a copy. `verify`: what has not is compared with that parent.
    pub(super) fn add(
        &mut self,
        source: &Source<'_>,
        area: &vma::Record,
        later: bool,
        verify: Option<&Parent>,
    ) -> Result<()> {
        let regions = source::tracked(source, area)?;
        let changed = self.places.changed(&regions);
        let there: u64 = regions.iter().map(|r| r.end - r.start).sum();
        self.unread += there - changed.iter().map(|(start, end)| end - start).sum::<u64>();
        if let Some(parent) = verify {
            self.verified += self.places.verify(source, &regions, parent)?.map_err(|at| {
                let message = format!("a write to {at:#x} was not seen: nothing of what was tracked is used");
                Cause::Reported { message, code: 1 }
            })?;
        }
        if later { &mut self.later } else { &mut self.now }.extend(changed);
        self.all.push(regions.iter().map(|r| (r.start, r.end)).collect());
        Ok(())
    }

    /// Reads what is to be read at once. What there is no room for is written at once, too.
    pub(super) fn read(&mut self, source: &Source<'_>, early: Option<&mut Early<'_>>, room: &mut u64) -> Result<()> {
        let now = std::mem::take(&mut self.now);
        let bytes: u64 = now.iter().map(|(start, end)| end - start).sum();
        match (room.checked_sub(bytes), early) {
            (None, Some(early)) => early.update(source, &now, &mut self.places, Task::Stands).map(drop),
            (left, _) => {
                *room = left.unwrap_or(0);
                Kept::read(source, now).map(|kept| self.kept = kept)
            }
        }
    }
}

/// A process of which writes are tracked when it runs again.
#[derive(Debug)]
pub struct Shadowed {
    /// As the tracer sees it.
    pub pid: i32,
    /// Its id inside.
    pub inside: i32,
    /// What of its memory is protected, and in the image.
    pub ranges: Vec<(u64, u64)>,
    /// What tracks it; none as long as it stands still.
    pub tracked: Option<Tracked>,
}

/// What tracking since the image before has spared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spared {
    /// Bytes of memory that were not read.
    pub unread: u64,
    /// Bytes of those that were compared all the same.
    pub verified: u64,
}

/// A mapping as it is when nobody tracks it, and whether we do.
pub(super) fn without_tracking<'s>(smap: &'s Smap, tracked: Option<&Tracked>) -> (Cow<'s, Smap>, bool) {
    let ours = |tracked: &Tracked| smap.vm_flags.has(VmFlag::UffdWp) && tracked.is_of(smap.map.start, smap.map.end);
    if !tracked.is_some_and(ours) {
        return (Cow::Borrowed(smap), false);
    }
    let mut smap = smap.clone();
    smap.vm_flags.remove(VmFlag::UffdWp);
    (Cow::Owned(smap), true)
}

/// Where an address space may have come apart because only some of it is tracked.
#[derive(Debug, Default)]
pub(super) struct Seams {
    /// Where areas that are tracked begin.
    pub(super) tracked: BTreeSet<Addr>,
    /// Where areas begin that no other ever merges with: there is a file behind them.
    pub(super) others: BTreeSet<Addr>,
}

impl Seams {
    /// Puts together what would be one without tracking.
    pub(super) fn close(&self, areas: Vec<vma::Record>) -> Vec<vma::Record> {
        let mut out: Vec<vma::Record> = Vec::with_capacity(areas.len());
        let (mut before, mut other) = (false, true);
        for area in areas {
            let now = (self.tracked.contains(&area.start), self.others.contains(&area.start));
            let may = (before || now.0) && !other && !now.1;
            (before, other) = now;
            let is_next = |last: &vma::Record| {
                last.end == area.start && vma::Record { start: last.start, end: last.end, ..area.clone() } == *last
            };
            match out.last_mut().filter(|last| may && is_next(last)) {
                Some(last) => last.end = area.end,
                None => out.push(area),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_kinds::memory::vma::Backing;

    fn area(start: u64, end: u64, protection: u32) -> vma::Record {
        let (start, end, backing) = (Addr(start), Addr(end), Backing::Anonymous);
        vma::Record {
            start,
            end,
            protection,
            backing,
            shared: false,
            flags: Vec::new(),
            name: None,
            policy: None,
            guards: Vec::new(),
        }
    }

    #[test]
    fn seams_are_closed_where_tracking_has_made_them() {
        let areas = vec![area(1, 2, 3), area(2, 3, 3), area(3, 4, 1), area(4, 5, 3), area(6, 7, 3), area(7, 8, 3)];
        let close = |tracked: &[u64], others: &[u64]| {
            let set = |starts: &[u64]| starts.iter().copied().map(Addr).collect();
            let seams = Seams { tracked: set(tracked), others: set(others) };
            seams.close(areas.clone()).iter().map(|a| (a.start.0, a.end.0)).collect::<Vec<_>>()
        };
        let apart = [(1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8)];
        // The program's own.
        assert_eq!(close(&[], &[]), apart);
        let both = [(1, 3), (3, 4), (4, 5), (6, 8)];
        assert_eq!(close(&[1, 7], &[]), both);
        assert_eq!(close(&[2, 3, 4, 6], &[]), both);
        assert_eq!(close(&[1, 2, 3, 4, 6, 7], &[2, 6]), apart);
    }
}
