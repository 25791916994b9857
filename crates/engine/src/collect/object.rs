//! Shared memory that no descriptor leads to: its pages are read through whoever has them mapped, each of them once.

use std::collections::BTreeMap;

use yendor_image::{Bytes, ShmId};
use yendor_kinds::Result;
use yendor_kinds::memory::pages::{Output, Piece, Sink, Zeros};
use yendor_kinds::memory::shared;
use yendor_kinds::memory::source::Source;
use yendor_kinds::memory::vma::Backing;
use yendor_proc::maps::Map;

use super::sparse::Readable;

/// What was found so far, by device and inode.
#[derive(Debug, Default)]
pub struct Objects(BTreeMap<(u64, u64), Object>);

#[derive(Debug)]
struct Object {
    record: shared::Record,
    read: Ranges,
}

/// Ranges of offsets, in order and apart from each other.
#[derive(Debug, Default)]
pub struct Ranges(Vec<(u64, u64)>);

impl Objects {
    /// What is behind a mapping; takes from the task's memory what no other mapping has shown before.
    ///
    /// # Errors
    /// The task's memory cannot be read, or the image not be written.
    pub fn mapped<'p>(
        &mut self,
        map: &Map,
        source: &Source<'_>,
        readable: impl FnOnce() -> Result<Readable<'p>>,
        out: &mut Sink<'_, impl Output>,
    ) -> Result<Backing> {
        let next = ShmId(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        let Object { record, read } = self.0.entry((map.dev.st_dev(), map.inode)).or_insert_with(|| Object {
            record: shared::Record { id: next, name: Bytes(map.name.clone()), size: 0, pages: Vec::new() },
            read: Ranges::default(),
        });
        let end = map.offset + map.len();
        let new = read.add(map.offset, end);
        if new.is_empty() {
            return Ok(Backing::Object(record.id, map.offset));
        }
        let readable = readable()?;
        for (from, to) in new {
            let at = |offset: u64| map.start + (offset - map.offset);
            let (from, to) = (at(from), at(to));
            let there = readable.within(from, to);
            let mut runs = out.copy(source, Piece::of(&there, Zeros::Leave))?;
            for run in &mut runs {
                run.addr.0 = run.addr.0 - map.start + map.offset;
            }
            record.pages.extend(runs);
        }
        // What is mapped may end before, or not reach to here at all.
        if readable.end > map.start {
            record.size = record.size.max(map.offset + (readable.end - map.start));
        }
        Ok(Backing::Object(record.id, map.offset))
    }

    /// All that were found.
    pub fn finish(self) -> Vec<shared::Record> {
        self.0.into_values().map(|object| object.record).collect()
    }
}

impl Ranges {
    /// Adds a range; what of it was not there.
    pub fn add(&mut self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.0.partition_point(|(_, end)| *end < start);
        let last = self.0.partition_point(|(start, _)| *start <= end);
        let mut new = Vec::new();
        let mut at = start;
        for (from, to) in &self.0[first..last] {
            if at < *from {
                new.push((at, *from));
            }
            at = at.max(*to);
        }
        if at < end {
            new.push((at, end));
        }
        let met = self.0[first..last].iter().fold((start, end), |all, one| (all.0.min(one.0), all.1.max(one.1)));
        self.0.splice(first..last, [met]);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    #[test]
    fn what_was_not_there_is_told_once() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(10, 20), [(10, 20)]);
        assert_eq!(ranges.add(0, 5), [(0, 5)], "below what is there");
        assert_eq!(ranges.add(12, 18), []);
        assert_eq!(ranges.add(30, 40), [(30, 40)]);
        assert_eq!(ranges.add(3, 35), [(5, 10), (20, 30)], "holes in the middle");
        assert_eq!(ranges.0, [(0, 40)]);
        assert_eq!(ranges.add(40, 50), [(40, 50)]);
        assert_eq!(ranges.0, [(0, 50)]);
        assert_eq!(ranges.add(0, 60), [(50, 60)]);
    }
}
