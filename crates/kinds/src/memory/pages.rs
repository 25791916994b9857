//! Contents of private memory.
//! *Read from:* `PAGEMAP_SCAN` for what is there, process_vm_readv for what it holds; /proc/PID/mem where the task itself
//! may not read.
//! *Made again by:* pread from the image by the new task's script, straight into its memory.
//! *Lost:* nothing; pages of zeros are not stored, they come back as fresh memory.

use std::collections::BTreeMap;
use std::io::Write;

use yendor_image::{Addr, FileWriter, PAGE_BYTES, PageRun, Parent, Place, Search};
use yendor_sys::{SysError, vm};
use yendor_task::{Nr, Script, Want, args};

use super::source::Source;
use crate::Result;

/// The pages file that a checkpoint writes.
pub const PAGES: u16 = 0;
/// The pages file that is written before the tasks are stopped, if there is one: see [`super::early`].
pub const EARLY: u16 = 1;
/// Until [`Sink::settle`], the number of a parent's first file.
pub(super) const FOUND: u16 = 2;
/// Bytes that are copied at once.
pub(super) const CHUNK: u64 = 256 * 1024;

/// The end of a task's addresses, but for one that asks for more of them (x86_64).
pub const END: u64 = 0x7fff_ffff_f000;

/// What becomes of pages that hold only zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// They are left out: fresh memory holds zeros too.
    Leave,
    /// They are kept: something else would be there (a file's content, the parent's page).
    Keep,
}

/// A range of pages that travels.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What becomes of its zeros.
    pub zeros: Zeros,
    /// Whether it is the first of its area: no run crosses from one area into the next.
    pub first: bool,
}

impl Piece {
    fn len(&self) -> usize {
        usize::try_from(self.end - self.start).unwrap_or(0)
    }

    /// The pieces of one area.
    pub fn of(ranges: &[(u64, u64)], zeros: Zeros) -> impl Iterator<Item = Piece> {
        ranges.iter().enumerate().map(move |(i, &(start, end))| Piece { start, end, zeros, first: i == 0 })
    }
}

/// How many files of a parent an image takes over at most: each costs a restore a descriptor.
const MOST_SHARED: usize = 15;
/// Runs from which on nothing is looked for any more: records are bounded, and a parent must not be what makes them too large.
pub(super) const MOST_RUNS: usize = 1 << 20;

/// A pages file that is being written, number 0 of its image. Pages that a parent has are not written again.
#[derive(Debug)]
pub struct Sink<'p, W> {
    out: W,
    /// Where `out` stands.
    offset: u64,
    batch: Batch,
    parent: Option<Search<'p>>,
    /// How many runs there are.
    runs: usize,
    /// How many pages were found in each of the parent's files.
    found: BTreeMap<u16, u64>,
}

/// The run of a page that a parent has. Until [`Sink::settle`] it says which of the parent's files that is.
fn found_at(addr: Addr, place: Place) -> Option<PageRun> {
    Some(PageRun { addr, pages: 1, file: place.file.checked_add(FOUND)?, offset: place.offset() })
}

/// Where pages go.
pub trait Output: Write {
    /// Writes all of `bytes`, a buffer that may be exchanged for another one, of any content.
    ///
    /// # Errors
    /// As [`Write::write_all`].
    fn take(&mut self, bytes: &mut Vec<u8>) -> std::io::Result<()> {
        self.write_all(bytes)
    }
}

impl Output for FileWriter<'_> {
    fn take(&mut self, bytes: &mut Vec<u8>) -> std::io::Result<()> {
        FileWriter::take(self, bytes)
    }
}

impl<'p, W: Output> Sink<'p, W> {
    /// Empty.
    pub fn new(out: W, parent: Option<Search<'p>>) -> Sink<'p, W> {
        Sink { out, offset: 0, batch: Batch::default(), parent, runs: 0, found: BTreeMap::new() }
    }

    /// Bytes of pages that came, and were written or found.
    pub fn taken(&self) -> u64 {
        self.offset + self.found.values().sum::<u64>() * PAGE_BYTES
    }

    /// Takes note of runs that were not written by it.
    pub fn note(&mut self, runs: &[PageRun]) {
        self.runs += runs.len();
        for run in runs {
            if let Some(theirs) = run.file.checked_sub(FOUND) {
                *self.found.entry(theirs).or_default() += run.pages;
            }
        }
    }

    /// Nothing more comes.
    pub fn end(self) -> W {
        self.out
    }

    /// Decides which of the parent's files become files of this image: those of which at least half is needed, so that an image is at
    /// most twice as large as what it holds. What was found in others is written after all. `runs`: all that were given out.
    /// Says under which number each file is to be taken over, `first` or more, and how many pages are needed of them.
    ///
    /// # Errors
    /// The parent cannot be read, or the image not be written.
    pub fn settle<'r>(
        &mut self,
        (parent, first): (&Parent, u16),
        runs: impl Iterator<Item = &'r mut PageRun>,
    ) -> Result<(BTreeMap<u16, u16>, u64)> {
        let mut kept: Vec<(u16, u64)> = self.found.iter().map(|(file, pages)| (*file, *pages)).collect();
        kept.retain(|(file, pages)| pages.saturating_mul(2) >= parent.pages(*file));
        kept.sort_by_key(|(_, pages)| std::cmp::Reverse(*pages));
        kept.truncate(MOST_SHARED);
        let pages = kept.iter().map(|(_, pages)| *pages).sum();
        let numbers: BTreeMap<u16, u16> = kept.into_iter().map(|(file, _)| file).zip(first..).collect();
        let mut buffer = Vec::new();
        for run in runs {
            let Some(theirs) = run.file.checked_sub(FOUND) else { continue };
            if let Some(number) = numbers.get(&theirs) {
                run.file = *number;
                continue;
            }
            let bytes = run.pages * PAGE_BYTES;
            let from = std::mem::replace(&mut run.offset, self.offset);
            run.file = PAGES;
            let mut done = 0;
            while done < bytes {
                buffer.resize(usize::try_from((bytes - done).min(CHUNK)).unwrap_or(0), 0);
                parent.read_at(theirs, &mut buffer, from + done)?;
                write(&mut self.out, &buffer)?;
                done += buffer.len() as u64;
            }
            self.offset += bytes;
        }
        Ok((numbers, pages))
    }

    /// Appends pieces of a task's memory, and says in which runs.
    ///
    /// # Errors
    /// The task's memory cannot be read, or the image not be written.
    pub fn copy(&mut self, source: &Source<'_>, pieces: impl Iterator<Item = Piece>) -> Result<Vec<PageRun>> {
        let mut runs = Vec::new();
        for mut piece in pieces {
            while piece.start < piece.end {
                let end = piece.end.min(piece.start + CHUNK - self.batch.bytes);
                self.batch.bytes += end - piece.start;
                self.batch.pieces.push(Piece { end, ..piece });
                piece = Piece { start: end, first: false, ..piece };
                if self.batch.bytes == CHUNK || self.batch.pieces.len() == vm::RANGES {
                    self.store(source, &mut runs)?;
                }
            }
        }
        self.store(source, &mut runs)?;
        self.runs += runs.len();
        Ok(runs)
    }

    /// Takes what is in the batch, which is empty then.
    fn store(&mut self, source: &Source<'_>, runs: &mut Vec<PageRun>) -> Result<()> {
        let Sink { out, offset, batch: Batch { pieces, bytes, buffer }, parent, runs: before, found } = self;
        if *before + runs.len() > MOST_RUNS {
            *parent = None;
        }
        let mut rest = read(source, pieces, usize::try_from(std::mem::take(bytes)).unwrap_or(0), buffer)?;
        for piece in pieces.drain(..) {
            let (chunk, after) = rest.split_at(piece.len());
            rest = after;
            let wanted = if piece.zeros == Zeros::Leave { non_zero(chunk) } else { vec![(0, chunk.len() / PAGE)] };
            if chunk.len() as u64 == CHUNK && wanted == [(0, chunk.len() / PAGE)] && parent.is_none() {
                // It is all there is, and the buffer as long: that goes, and need not be copied.
                let run = PageRun { addr: Addr(piece.start), pages: CHUNK / PAGE_BYTES, file: PAGES, offset: *offset };
                push(runs, run, piece.first);
                *offset += CHUNK;
                out.take(buffer).map_err(|e| not_written(&e))?;
                break;
            }
            let mut apart = piece.first;
            let mut add = |run: PageRun| push(runs, run, std::mem::take(&mut apart));
            for (first, pages) in wanted {
                let bytes = &chunk[first * PAGE..(first + pages) * PAGE];
                let mut at = piece.start + (first * PAGE) as u64;
                // As a whole, or page by page where each may be known.
                let step = if parent.is_some() { PAGE } else { bytes.len() };
                for bytes in bytes.chunks(step) {
                    let addr = Addr(at);
                    at += bytes.len() as u64;
                    let known = parent.as_mut().map(|parent| parent.find(bytes)).transpose()?.flatten();
                    if let Some((place, run)) = known.and_then(|place| Some((place, found_at(addr, place)?))) {
                        *found.entry(place.file).or_default() += 1;
                        add(run);
                        continue;
                    }
                    write(out, bytes)?;
                    add(PageRun { addr, pages: (bytes.len() / PAGE) as u64, file: PAGES, offset: *offset });
                    *offset += bytes.len() as u64;
                }
            }
        }
        Ok(())
    }
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    Ok(out.write_all(bytes).map_err(|e| not_written(&e))?)
}

fn not_written(e: &std::io::Error) -> SysError {
    SysError::io("write", yendor_image::pages_name(PAGES), e)
}

/// Pieces that are read by one call: most areas have a page or two.
#[derive(Debug, Default)]
struct Batch {
    pieces: Vec<Piece>,
    bytes: u64,
    /// Used again and again: fresh memory costs more than what is copied there.
    buffer: Vec<u8>,
}

/// The `bytes` bytes of all pieces, one after the other, in a buffer that grows where it must.
fn read<'b>(source: &Source<'_>, pieces: &[Piece], bytes: usize, buffer: &'b mut Vec<u8>) -> Result<&'b [u8]> {
    if buffer.len() < bytes {
        buffer.resize(bytes, 0);
    }
    let buffer = &mut buffer[..bytes];
    let ranges: Vec<(u64, usize)> = pieces.iter().map(|p| (p.start, p.len())).collect();
    if !source.read_ranges(&ranges, buffer) {
        // Some of it the task itself may not read, or it is a copy.
        let mut rest = &mut *buffer;
        for (at, len) in ranges {
            let (chunk, after) = rest.split_at_mut(len);
            source.read(at, chunk)?;
            rest = after;
        }
    }
    Ok(buffer)
}

pub(super) const PAGE: usize = 4096;
pub(super) static ZEROS: [u8; PAGE] = [0; PAGE];

/// Runs of pages that are not all zero, as (first page, pages).
fn non_zero(chunk: &[u8]) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (i, page) in chunk.chunks(PAGE).enumerate() {
        if page == &ZEROS[..page.len()] {
            continue;
        }
        match out.last_mut() {
            Some((first, pages)) if *first + *pages == i => *pages += 1,
            _ => out.push((i, 1)),
        }
    }
    out
}

/// Appends a run, or lengthens the last one where it goes on and is not to be `apart`.
pub(super) fn push(runs: &mut Vec<PageRun>, run: PageRun, apart: bool) {
    if let Some(last) = runs.last_mut().filter(|_| !apart) {
        let bytes = last.pages * PAGE_BYTES;
        if last.file == run.file && last.addr.0 + bytes == run.addr.0 && last.offset + bytes == run.offset {
            last.pages += run.pages;
            return;
        }
    }
    runs.push(run);
}

/// The task reads its pages from the image: `fd` is its descriptor of pages file `run.file`.
pub fn rebuild(run: &PageRun, fd: i32, script: &mut Script) {
    /// What one read can transfer (read(2)), in whole huge pages.
    const AT_ONCE: u64 = 0x7fe0_0000;
    let bytes = run.pages * PAGE_BYTES;
    let mut done = 0;
    while done < bytes {
        let n = (bytes - done).min(AT_ONCE);
        let at = args![fd, run.addr.0 + done, n, run.offset + done];
        script.call_wanting(Nr::PREAD64, at, Want::Exactly(n));
        done += n;
    }
}
