//! Private memory that is written into the image while its task still runs, each page as often as it changes, always at the same
//! place of the file.
//! *Read from:* `PAGEMAP_SCAN` for what was written since it was protected, process_vm_readv for what it holds.
//! *Made again by:* as all pages.
//! *Lost:* nothing; what a page held before is overwritten, and what is no page any more is cut out of the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;
use yendor_image::{Addr, PAGE_BYTES, PageRun, Parent, Search, pages_name};
use yendor_sys::pagemap::{Page, Region};
use yendor_sys::{Errno, SysError, vm};

use super::pages::{CHUNK, EARLY, FOUND, MOST_RUNS, PAGE, ZEROS, push};
use super::source::Source;
use crate::Result;

/// Addresses of one block of [`Places`].
const BLOCK: u64 = 512 * PAGE_BYTES;

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nowhere, or who knows.
    Unknown,
    /// It holds zeros only.
    Zeros,
    /// In a file, whose number is as in a run before `Sink::settle`.
    At { file: u16, page: u32 },
}

impl Place {
    fn pack(self) -> u64 {
        match self {
            Place::Unknown => 0,
            Place::Zeros => 1,
            Place::At { file, page } => u64::from(file) << 32 | u64::from(page),
        }
    }

    fn unpack(packed: u64) -> Place {
        // No file has number 0 here: that one is written from its beginning to its end.
        match (u16::try_from(packed >> 32).unwrap_or(0), u32::try_from(packed & 0xffff_ffff).unwrap_or(0)) {
            (0, 0) => Place::Unknown,
            (0, _) => Place::Zeros,
            (file, page) => Place::At { file, page },
        }
    }
}

/// Where the pages of an address space are, as far as they are known.
#[derive(Debug, Default)]
pub struct Places(BTreeMap<u64, Box<[u64; 512]>>);

impl Places {
    fn get(&self, at: u64) -> Place {
        let block = self.0.get(&(at / BLOCK));
        block.map_or(Place::Unknown, |block| Place::unpack(block[index(at)]))
    }

    fn set(&mut self, at: u64, place: Place) {
        self.0.entry(at / BLOCK).or_insert_with(|| Box::new([0; 512]))[index(at)] = place.pack();
    }

    /// Of memory that is in an image, a parent's: what of `ranges` none of its `runs` has holds zeros.
    #[must_use]
    pub fn of_parent(ranges: &[(u64, u64)], runs: &[PageRun]) -> Places {
        let mut places = Places::default();
        for (start, end) in ranges {
            places.each_block_mut(*start, *end, |_, block| block.fill(Place::Zeros.pack()));
        }
        for run in runs {
            let Some(file) = run.file.checked_add(FOUND) else { continue };
            let end = run.addr.0.saturating_add(run.pages.saturating_mul(PAGE_BYTES));
            let first = run.offset / PAGE_BYTES;
            places.each_block_mut(run.addr.0, end, |at, block| {
                for (place, page) in block.iter_mut().zip(first + (at - run.addr.0) / PAGE_BYTES..) {
                    *place = u32::try_from(page).map_or(0, |page| Place::At { file, page }.pack());
                }
            });
        }
        places
    }

    /// Compares what is not to be read with what is there: how many bytes, or where the first page is that differs.
    ///
    /// # Errors
    /// The task's memory cannot be read, or the parent's pages.
    pub fn verify(
        &self,
        source: &Source<'_>,
        regions: &[Region],
        parent: &Parent,
    ) -> Result<std::result::Result<u64, u64>> {
        let (mut now, mut then) = ([0; PAGE], [0; PAGE]);
        let mut bytes = 0;
        for region in regions.iter().filter(|r| Page::from_bits_retain(r.categories).is_unwritten()) {
            for at in (region.start..region.end).step_by(PAGE) {
                match self.get(at) {
                    Place::Unknown => continue,
                    Place::Zeros => then.fill(0),
                    Place::At { file, page } => match file.checked_sub(FOUND) {
                        Some(file) => parent.read_at(file, &mut then, u64::from(page) * PAGE_BYTES)?,
                        // Of this image.
                        None => continue,
                    },
                }
                source.read(at, &mut now)?;
                if now != then {
                    return Ok(Err(at));
                }
                bytes += PAGE_BYTES;
            }
        }
        Ok(Ok(bytes))
    }

    /// Nothing is known any more.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Nothing is known of these addresses any more.
    pub fn forget_range(&mut self, start: u64, end: u64) {
        for (number, block) in self.0.range_mut(start / BLOCK..end.div_ceil(BLOCK)) {
            let base = number * BLOCK;
            let [from, to] = [start, end].map(|at| at.clamp(base, base + BLOCK) - base);
            let [from, to] = [from, to].map(|offset| usize::try_from(offset / PAGE_BYTES).unwrap_or(0));
            block[from..to].fill(0);
        }
    }

    /// Of pages that are there, those that must be read: they were written since, or are not known.
    #[must_use]
    pub fn changed(&self, regions: &[Region]) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        let mut add = |start, end| match out.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => out.push((start, end)),
        };
        for region in regions {
            if !Page::from_bits_retain(region.categories).is_unwritten() {
                add(region.start, region.end);
                continue;
            }
            self.each_block(region.start, region.end, |at, places| match places {
                None => add(at, (at / BLOCK + 1).saturating_mul(BLOCK).min(region.end)),
                Some(places) if places.iter().all(|place| *place != 0) => {}
                Some(places) => {
                    let unknown = places.iter().zip((at..).step_by(PAGE)).filter(|(place, _)| **place == 0);
                    unknown.for_each(|(_, at)| add(at, at + PAGE_BYTES));
                }
            });
        }
        out
    }

    /// The runs of pages that are there, each in one area.
    #[must_use]
    pub fn runs(&self, ranges: &[(u64, u64)]) -> Vec<PageRun> {
        let mut runs = Vec::new();
        let mut apart = true;
        for (start, end) in ranges {
            self.each_block(*start, *end, |at, places| {
                for (place, at) in places.unwrap_or_default().iter().zip((at..).step_by(PAGE)) {
                    let Place::At { file, page } = Place::unpack(*place) else { continue };
                    let offset = u64::from(page) * PAGE_BYTES;
                    push(&mut runs, PageRun { addr: Addr(at), pages: 1, file, offset }, std::mem::take(&mut apart));
                }
            });
        }
        runs
    }

    /// Calls back for the part of each block that lies in `start..end`, with where it begins.
    fn each_block(&self, start: u64, end: u64, mut with: impl FnMut(u64, Option<&[u64]>)) {
        let mut at = start;
        while at < end {
            let to = (at / BLOCK + 1).saturating_mul(BLOCK).min(end);
            let pages = index(at)..index(at) + usize::try_from((to - at) / PAGE_BYTES).unwrap_or(0);
            with(at, self.0.get(&(at / BLOCK)).and_then(|block| block.get(pages)));
            at = to;
        }
    }
}

impl Places {
    fn each_block_mut(&mut self, start: u64, end: u64, mut with: impl FnMut(u64, &mut [u64])) {
        let mut at = start;
        while at < end {
            let to = (at / BLOCK + 1).saturating_mul(BLOCK).min(end);
            let pages = index(at)..index(at) + usize::try_from((to - at) / PAGE_BYTES).unwrap_or(0);
            let block = self.0.entry(at / BLOCK).or_insert_with(|| Box::new([0; 512]));
            if let Some(block) = block.get_mut(pages) {
                with(at, block);
            }
            at = to;
        }
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at % BLOCK / PAGE_BYTES).unwrap_or(0)
}

/// Whether what cannot be read is an error, or has been unmapped meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// It runs.
    Runs,
    /// It stands still, or is a copy.
    Stands,
}

/// Reads ranges by one call, or page by page: those that cannot be read, of a task that runs.
fn read(source: &Source<'_>, batch: &[(u64, usize)], buffer: &mut [u8], task: Task) -> Result<Vec<u64>> {
    let mut gone = Vec::new();
    if source.read_ranges(batch, buffer) {
        return Ok(gone);
    }
    let pages = batch.iter().flat_map(|(at, len)| (*at..*at + *len as u64).step_by(PAGE));
    for (at, page) in pages.zip(buffer.chunks_mut(PAGE)) {
        match (source.read(at, page), task) {
            (Ok(()), _) => {}
            (Err(_), Task::Runs) => gone.push(at),
            (Err(e), Task::Stands) => return Err(e),
        }
    }
    Ok(gone)
}

/// Pages that were read while the task stood still, to be written when it runs again.
#[derive(Debug, Default)]
pub struct Kept {
    ranges: Vec<(u64, u64)>,
    bytes: Vec<u8>,
}

impl Kept {
    /// Reads ranges of a task's memory.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(source: &Source<'_>, ranges: Vec<(u64, u64)>) -> Result<Kept> {
        let mut bytes =
            vec![0; usize::try_from(ranges.iter().map(|(start, end)| end - start).sum::<u64>()).unwrap_or(0)];
        let mut rest = &mut *bytes;
        for ranges in ranges.chunks(vm::RANGES) {
            let batch: Vec<_> =
                ranges.iter().map(|(start, end)| (*start, usize::try_from(end - start).unwrap_or(0))).collect();
            let (now, after) = rest.split_at_mut(batch.iter().map(|(_, len)| len).sum());
            read(source, &batch, now, Task::Stands)?;
            rest = after;
        }
        Ok(Kept { ranges, bytes })
    }
}

/// The file of such pages: number [`EARLY`] of its image.
#[derive(Debug)]
pub struct Early<'p> {
    file: File,
    /// How many places it has.
    places: u32,
    /// Those that are free.
    free: Vec<u32>,
    parent: Option<Search<'p>>,
    /// Whether the last page was found there, and how often that has changed.
    found: (bool, usize),
    buffer: Vec<u8>,
}

impl<'p> Early<'p> {
    /// Of an empty file. Pages that a parent has are not written.
    #[must_use]
    pub fn new(file: File, parent: Option<Search<'p>>) -> Early<'p> {
        Early { file, places: 0, free: Vec::new(), parent, found: (false, 0), buffer: Vec::new() }
    }

    /// Reads ranges of a task's memory, and says where their pages are. How many bytes it has read.
    ///
    /// # Errors
    /// The file cannot be written. Memory of a task that stands still cannot be read.
    pub fn update(
        &mut self,
        source: &Source<'_>,
        ranges: &[(u64, u64)],
        places: &mut Places,
        task: Task,
    ) -> Result<u64> {
        let mut batch: Vec<(u64, usize)> = Vec::new();
        let (mut bytes, mut all) = (0, 0);
        for &(mut at, end) in ranges {
            while at < end {
                let len = (end - at).min(CHUNK - bytes);
                batch.push((at, usize::try_from(len).unwrap_or(0)));
                (at, bytes, all) = (at + len, bytes + len, all + len);
                if bytes == CHUNK || batch.len() == vm::RANGES {
                    self.store(source, &batch, places, task)?;
                    batch.clear();
                    bytes = 0;
                }
            }
        }
        self.store(source, &batch, places, task)?;
        Ok(all)
    }

    fn store(&mut self, source: &Source<'_>, batch: &[(u64, usize)], places: &mut Places, task: Task) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(batch.iter().map(|(_, len)| len).sum(), 0);
        let gone = read(source, batch, &mut buffer, task)?;
        let pages = batch.iter().flat_map(|(at, len)| (*at..*at + *len as u64).step_by(PAGE));
        self.put(pages, &buffer, &gone, places)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Takes pages that were read before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take(&mut self, kept: &Kept, places: &mut Places) -> Result<()> {
        let pages = kept.ranges.iter().flat_map(|(start, end)| (*start..*end).step_by(PAGE));
        self.put(pages, &kept.bytes, &[], places)
    }

    /// Writes pages, which lie in the buffer one after the other, but for those that are `gone`.
    fn put(
        &mut self,
        pages: impl Iterator<Item = u64>,
        buffer: &[u8],
        gone: &[u64],
        places: &mut Places,
    ) -> Result<()> {
        // What is to be written: where in the file, and where in the buffer it begins and ends.
        let mut write: Option<(u64, usize, usize)> = None;
        for (at, page) in pages.zip((0..buffer.len()).step_by(PAGE)) {
            let page = page..page + PAGE;
            if gone.contains(&at) {
                self.place(places, at, Place::Unknown);
                continue;
            }
            let Some(offset) = self.settle(places, at, &buffer[page.clone()])? else { continue };
            match &mut write {
                Some((begin, from, to)) if *begin + (*to - *from) as u64 == offset && *to == page.start => {
                    *to = page.end
                }
                other => {
                    let before = other.replace((offset, page.start, page.end));
                    self.write(before, buffer)?;
                }
            }
        }
        self.write(write, buffer)
    }

    /// Finds the place of a page with this content, and where it must be written, if it must.
    fn settle(&mut self, places: &mut Places, at: u64, content: &[u8]) -> Result<Option<u64>> {
        if content == ZEROS {
            self.place(places, at, Place::Zeros);
            return Ok(None);
        }
        let known = self.parent.as_mut().map(|parent| parent.find(content)).transpose()?.flatten();
        let found = known.and_then(|known| {
            let page = u32::try_from(known.offset() / PAGE_BYTES).ok()?;
            Some(Place::At { file: known.file.checked_add(FOUND)?, page })
        });
        if found.is_some() != self.found.0 {
            self.found = (found.is_some(), self.found.1 + 1);
            if self.found.1 > MOST_RUNS {
                self.parent = None;
            }
        }
        if let Some(found) = found {
            self.place(places, at, found);
            return Ok(None);
        }
        if let Place::At { file: EARLY, page } = places.get(at) {
            return Ok(Some(u64::from(page) * PAGE_BYTES));
        }
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let page = self.places;
                let full = || SysError::new("pwrite64", pages_name(EARLY), Errno::FBIG);
                self.places = page.checked_add(1).ok_or_else(full)?;
                page
            }
        };
        places.set(at, Place::At { file: EARLY, page });
        Ok(Some(u64::from(page) * PAGE_BYTES))
    }

    /// A page is somewhere else now: where it was is free.
    fn place(&mut self, places: &mut Places, at: u64, place: Place) {
        if let Place::At { file: EARLY, page } = places.get(at) {
            self.free.push(page);
        }
        places.set(at, place);
    }

    fn write(&self, what: Option<(u64, usize, usize)>, buffer: &[u8]) -> Result<()> {
        let Some((offset, from, to)) = what else { return Ok(()) };
        let written = self.file.write_all_at(&buffer[from..to], offset);
        Ok(written.map_err(|e| SysError::io("pwrite64", pages_name(EARLY), &e))?)
    }

    /// Nothing more comes: what none of these runs needs is cut out, so that nothing is left of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn end(self, runs: impl Iterator<Item = PageRun>) -> Result<()> {
        let bytes = |run: &PageRun| run.pages * PAGE_BYTES;
        let mut used: Vec<(u64, u64)> =
            runs.filter(|run| run.file == EARLY).map(|run| (run.offset, run.offset + bytes(&run))).collect();
        used.sort_unstable();
        let mut at = 0;
        for (start, end) in used {
            if at < start {
                self.cut(at, start)?;
            }
            at = at.max(end);
        }
        let failed = |e: std::io::Error| SysError::io("ftruncate", pages_name(EARLY), &e);
        Ok(self.file.set_len(at).map_err(failed)?)
    }

    fn cut(&self, start: u64, end: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, start, end - start) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            other => return Ok(other.map_err(|e| SysError::new("fallocate", pages_name(EARLY), e))?),
        }
        for at in (start..end).step_by(PAGE) {
            let written = self.file.write_all_at(&ZEROS, at);
            written.map_err(|e| SysError::io("pwrite64", pages_name(EARLY), &e))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, OFlags, memfd_create};

    fn file() -> File {
        File::from(memfd_create("early", MemfdFlags::CLOEXEC).expect("memfd"))
    }

    fn content(file: &File, run: &PageRun) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(run.pages).expect("small") * PAGE];
        file.read_exact_at(&mut bytes, run.offset).expect("read");
        bytes.into_iter().step_by(PAGE).collect()
    }

    /// Pages of this process that a test fills, each with one byte.
    struct Memory(Vec<u8>, usize);

    impl Memory {
        fn new(pages: usize) -> Memory {
            let memory = vec![0; (pages + 1) * PAGE];
            let first = memory.as_ptr().align_offset(PAGE);
            Memory(memory, first)
        }

        fn fill(&mut self, page: usize, byte: u8) {
            self.0[self.1 + page * PAGE..][..PAGE].fill(byte);
        }

        fn range(&self, from: usize, to: usize) -> (u64, u64) {
            let at = |page: usize| (self.0.as_ptr() as usize + self.1 + page * PAGE) as u64;
            (at(from), at(to))
        }
    }

    #[test]
    fn what_changes_stays_where_it_is() {
        let proc =
            rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY, rustix::fs::Mode::empty()).expect("/proc");
        let own = i32::try_from(std::process::id()).expect("pid");
        let source = Source::open(std::os::fd::AsFd::as_fd(&proc), own).expect("own memory");
        let (kept, mut places, mut memory) = (file(), Places::default(), Memory::new(8));
        let mut early = Early::new(kept.try_clone().expect("dup"), None);
        (0..8).for_each(|page| memory.fill(page, u8::try_from(page).expect("small")));
        let all = memory.range(0, 8);
        assert_eq!(early.update(&source, &[all], &mut places, Task::Runs).expect("update"), 8 * PAGE_BYTES);
        // Page 0 holds zeros.
        let runs = places.runs(&[all]);
        assert_eq!(runs.iter().map(|run| (run.addr.0, run.pages)).collect::<Vec<_>>(), [(all.0 + PAGE_BYTES, 7)]);
        assert_eq!(content(&kept, &runs[0]), [1, 2, 3, 4, 5, 6, 7]);
        // In place; what becomes zeros is free for what becomes something.
        memory.fill(3, 33);
        memory.fill(5, 0);
        memory.fill(0, 100);
        let changed = [memory.range(3, 4), memory.range(5, 6)];
        let kept_pages = Kept::read(&source, changed.to_vec()).expect("read");
        early.take(&kept_pages, &mut places).expect("take");
        early.update(&source, &[memory.range(0, 1)], &mut places, Task::Stands).expect("update");
        let runs = places.runs(&[all]);
        let found: Vec<u8> = runs.iter().flat_map(|run| content(&kept, run)).collect();
        assert_eq!(found, [100, 1, 2, 33, 4, 6, 7]);
        assert_eq!(kept.metadata().expect("stat").len(), 7 * PAGE_BYTES);
        // What is not there at the end is cut out.
        let runs = places.runs(&[memory.range(0, 1), memory.range(3, 7)]);
        early.end(runs.iter().copied()).expect("end");
        let found: Vec<u8> = runs.iter().flat_map(|run| content(&kept, run)).collect();
        assert_eq!(found, [100, 33, 4, 6]);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &kept, &mut bytes).expect("read");
        assert_eq!(bytes.iter().step_by(PAGE).copied().collect::<Vec<_>>(), [0, 0, 33, 4, 100, 6]);
    }

    #[test]
    fn a_parent_s_places_are_those_of_its_runs() {
        let page = |n: u64| BLOCK + n * PAGE_BYTES;
        let run =
            |at: u64, pages, file, from: u64| PageRun { addr: Addr(page(at)), pages, file, offset: from * PAGE_BYTES };
        let ranges = [(page(500), page(520)), (page(600), page(603))];
        let runs = [run(505, 10, 0, 3), run(602, 1, 4, 9)];
        let mut places = Places::of_parent(&ranges, &runs);
        let unwritten = |from, to| Region {
            start: page(from),
            end: page(to),
            categories: (Page::WPALLOWED | Page::PRESENT).bits(),
        };
        assert_eq!(
            places.changed(&[unwritten(499, 521), unwritten(598, 604)]),
            [(page(499), page(500)), (page(520), page(521)), (page(598), page(600)), (page(603), page(604)),]
        );
        let shifted = |run: PageRun| PageRun { file: run.file + FOUND, ..run };
        assert_eq!(places.runs(&ranges), runs.map(shifted));
        places.forget_range(page(506), page(602));
        assert_eq!(places.runs(&ranges), [run(505, 1, 0, 3), runs[1]].map(shifted));
    }

    #[test]
    fn what_has_vanished_is_not_known() {
        let proc =
            rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY, rustix::fs::Mode::empty()).expect("/proc");
        let own = i32::try_from(std::process::id()).expect("pid");
        let source = Source::open(std::os::fd::AsFd::as_fd(&proc), own).expect("own memory");
        let (mut places, mut memory) = (Places::default(), Memory::new(2));
        memory.fill(0, 1);
        memory.fill(1, 2);
        let mut early = Early::new(file(), None);
        // Nobody has the first page of all.
        let ranges = [(0x1000, 0x2000), memory.range(0, 2)];
        early.update(&source, &ranges, &mut places, Task::Runs).expect("update");
        assert_eq!(places.runs(&ranges).iter().map(|run| run.addr.0).collect::<Vec<_>>(), [memory.range(0, 1).0]);
        assert!(early.update(&source, &ranges, &mut places, Task::Stands).is_err());
        let region = |(start, end), page: Page| Region { start, end, categories: page.bits() };
        let unwritten = region(memory.range(0, 2), Page::WPALLOWED | Page::PRESENT);
        assert!(places.changed(&[unwritten]).is_empty());
        let written = region(memory.range(0, 2), Page::WPALLOWED | Page::WRITTEN | Page::PRESENT);
        assert_eq!(places.changed(&[written]), [memory.range(0, 2)]);
        // A mark without tracking says nothing.
        assert_eq!(places.changed(&[region(memory.range(0, 2), Page::PRESENT)]), [memory.range(0, 2)]);
        let (start, _) = memory.range(1, 2);
        places.forget_range(start, start + PAGE_BYTES);
        assert_eq!(places.changed(&[unwritten]), [memory.range(1, 2)]);
        places.forget();
        assert_eq!(places.changed(&[unwritten]), [memory.range(0, 2)]);
    }
}
