//! Printable text in the memory of an image.

use std::os::unix::fs::FileExt;

use yendor_image::{PAGE_BYTES, Reader, pages_name};
use yendor_kinds::memory::{inherit, vma};
use yendor_kinds::process::{Alive, State};
use yendor_kinds::snapshot::Snapshot;

use crate::failure::Failure;

/// The shortest text that counts, as in strings(1).
const SHORTEST: usize = 4;
/// The most bytes that are read for one question.
const MOST: u64 = 256 << 20;

/// Some bytes of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The process, as numbered inside.
    pub pid: i32,
    /// The first byte.
    pub start: u64,
    /// How many.
    pub bytes: u64,
}

impl Span {
    /// `PID:ADDR+LEN`.
    pub fn parse(text: &str) -> Result<Span, String> {
        let form = || "the form is PID:ADDR+LEN, as in 2:0x7ffd0000+4096".to_owned();
        let (pid, rest) = text.split_once(':').ok_or_else(form)?;
        let (start, bytes) = rest.split_once('+').ok_or_else(form)?;
        let number = |t: &str| match t.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => t.parse(),
        };
        let pid = pid.parse().map_err(|_| form())?;
        let (start, bytes) = (number(start).map_err(|_| form())?, number(bytes).map_err(|_| form())?);
        if bytes == 0 || bytes > MOST || start.checked_add(bytes).is_none() {
            return Err(format!("a length is 1 to {MOST} bytes, and ends below 2^64"));
        }
        Ok(Span { pid, start, bytes })
    }
}

/// The texts in a span, with their addresses.
pub fn find(reader: &Reader, snapshot: &Snapshot, span: &Span) -> Result<Vec<(u64, String)>, Failure> {
    let mut finder = Finder::default();
    finder.take(span.start, &content(reader, snapshot, span)?);
    finder.flush();
    Ok(finder.found)
}

/// The bytes of a span as the process had them; what is not stored is zeros. A child that still shared memory with its
/// parent stores only how its own differs, so the oldest ancestor comes first.
fn content(reader: &Reader, snapshot: &Snapshot, span: &Span) -> Result<Vec<u8>, Failure> {
    let mut family: Vec<(i32, &Alive)> = Vec::new();
    let mut next = span.pid;
    // A family of a hostile image may be a circle.
    while !family.iter().any(|(pid, _)| *pid == next) {
        let process = snapshot.processes.iter().find(|p| p.pid.0 == next);
        let Some((process, State::Alive(alive))) = process.map(|p| (p, &p.state)) else {
            return Err(Failure::Failed(format!("the image has no living process {next}")));
        };
        family.push((next, alive));
        if alive.memory.inherits.is_none() {
            break;
        }
        next = process.parent.0;
    }
    let is_mapped = |alive: &Alive| alive.memory.areas.iter().any(|a| within(span, a.start.0, a.end.0).is_some());
    if !family.first().is_some_and(|(_, alive)| is_mapped(alive)) {
        let Span { pid, start, bytes } = span;
        return Err(Failure::Failed(format!("process {pid} has no memory at {start:#x}+{bytes}")));
    }
    let mut bytes = vec![0; usize::try_from(span.bytes).unwrap_or(0)];
    let mut parent: Option<&Alive> = None;
    for (_, alive) in family.into_iter().rev() {
        if let Some(parent) = parent {
            forget(&mut bytes, span, alive, parent);
        }
        for run in &alive.memory.pages {
            reader.check_run(run)?;
            if let Some((range, skipped)) = within(span, run.addr.0, run.addr.0 + run.pages * PAGE_BYTES) {
                let (file, _) = reader.open_file(&pages_name(run.file))?;
                let into = bytes.get_mut(range).unwrap_or_default();
                let read = file.read_exact_at(into, run.offset + skipped);
                read.map_err(|e| Failure::Failed(format!("read {}: {e}", pages_name(run.file))))?;
            }
        }
        parent = Some(alive);
    }
    Ok(bytes)
}

/// Zeros what the child does not have of its parent's.
fn forget(bytes: &mut [u8], span: &Span, child: &Alive, parent: &Alive) {
    let copied = |area: &&vma::Record| parent.memory.areas.iter().any(|theirs| inherit::is_copy(area, theirs));
    let mut kept: Vec<(u64, u64)> =
        child.memory.areas.iter().filter(copied).map(|area| (area.start.0, area.end.0)).collect();
    kept.sort_unstable();
    let mut gaps: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    for (start, end) in kept {
        gaps.push((at, start));
        at = end.max(at);
    }
    gaps.push((at, u64::MAX));
    let dropped = child.memory.inherits.iter().flat_map(|i| &i.dropped).map(|(start, end)| (start.0, end.0));
    for (start, end) in gaps.into_iter().chain(dropped) {
        if let Some((range, _)) = within(span, start, end) {
            bytes.get_mut(range).unwrap_or_default().fill(0);
        }
    }
}

/// Which part of the span a range of addresses covers, and how far into the range that begins.
fn within(span: &Span, start: u64, end: u64) -> Option<(std::ops::Range<usize>, u64)> {
    let (from, to) = (start.max(span.start), end.min(span.start + span.bytes));
    let place = |at: u64| usize::try_from(at - span.start).ok();
    if from < to { Some((place(from)?..place(to)?, from - start)) } else { None }
}

#[derive(Debug, Default)]
struct Finder {
    found: Vec<(u64, String)>,
    text: String,
    next: u64,
}

impl Finder {
    fn take(&mut self, at: u64, bytes: &[u8]) {
        self.next = at;
        for byte in bytes {
            if matches!(byte, b' '..=b'~' | b'\t') {
                self.text.push(char::from(*byte));
            } else {
                self.flush();
            }
            self.next += 1;
        }
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        if text.len() >= SHORTEST {
            self.found.push((self.next - u64::try_from(text.len()).unwrap_or(0), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!(Span::parse("2:0x10+16"), Ok(Span { pid: 2, start: 16, bytes: 16 }));
        for bad in ["", "2", "2:1", "x:1+1", "2:1+0", "2:0xffffffffffffffff+1", "2:1+99999999999", "2:-1+1"] {
            assert!(Span::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn texts_have_addresses() {
        let mut finder = Finder::default();
        finder.take(0x1000, b"\0abcd\0abc\0hello");
        finder.flush();
        let found: Vec<_> = finder.found.iter().map(|(a, t)| (*a, t.as_str())).collect();
        assert_eq!(found, [(0x1001, "abcd"), (0x100a, "hello")]);
    }

    #[test]
    fn a_span_is_cut_to_what_is_there() {
        let span = Span { pid: 2, start: 100, bytes: 50 };
        assert_eq!(within(&span, 90, 110), Some((0..10, 10)));
        assert_eq!(within(&span, 140, u64::MAX), Some((40..50, 0)));
        assert_eq!((within(&span, 0, 100), within(&span, 150, 160)), (None, None));
    }
}
