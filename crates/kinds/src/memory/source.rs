//! What of a task's memory is there, by the page tables, and what it holds.
//! *Read from:* `PAGEMAP_SCAN`; process_vm_readv, and /proc/PID/mem where the task itself may not read and of copies.
//! *Made again by:* its pages, see [`super::pages`].
//! *Lost:* nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_image::Addr;
use yendor_sys::pagemap::{self, Page, Region, Which};
use yendor_sys::patience;
use yendor_sys::{Errno, SysError, vm};

use super::vma::{Backing, Record as Area};
use crate::{Named, Result};

/// A task whose pages are read.
pub struct Source<'a> {
    /// As the tracer sees it.
    pub pid: i32,
    /// Its /proc/PID/pagemap.
    pub pagemap: OwnedFd,
    /// Its /proc/PID/mem, of a copy that shares its pages with who goes on writing: whoever else reads them, parts them.
    mem: Option<OwnedFd>,
    /// /proc.
    pub proc: BorrowedFd<'a>,
    scanned: Stretch,
}

/// What one scan has found: it serves all areas that lie in the stretch.
#[derive(Debug, Default)]
struct Stretch {
    start: u64,
    end: u64,
    runs: Vec<Region>,
}

impl<'a> Source<'a> {
    /// Opens a task's memory.
    ///
    /// # Errors
    /// `EACCES` when it may not be traced.
    pub fn open(proc: BorrowedFd<'a>, pid: i32) -> Result<Source<'a>> {
        Source::new(proc, pid, false)
    }

    /// Opens the memory of a task that fork has made of another.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_copy(proc: BorrowedFd<'a>, pid: i32) -> Result<Source<'a>> {
        Source::new(proc, pid, true)
    }

    fn new(proc: BorrowedFd<'a>, pid: i32, copy: bool) -> Result<Source<'a>> {
        let mem = copy.then(|| open(proc, pid, "mem")).transpose()?;
        let pagemap = open(proc, pid, "pagemap")?;
        Ok(Source { pid, pagemap, mem, proc, scanned: Stretch::default() })
    }

    /// The runs of pages in `start..end` that hold something. A scan may go on until `until`, which helps with what is asked
    /// for next.
    fn scan(&mut self, start: u64, end: u64, until: u64) -> Result<Vec<Region>> {
        let mut found = Vec::new();
        let mut at = start;
        while at < end {
            if !(self.scanned.start..self.scanned.end).contains(&at) {
                let (runs, to) = pagemap::scan_some(self.pagemap.as_fd(), at, until.max(end))?;
                self.scanned = Stretch { start: at, end: to.max(at), runs };
            }
            let to = self.scanned.end.min(end);
            if to <= at {
                let what = format!("PAGEMAP_SCAN, {at:#x}: it does not go on");
                return Err(SysError::new("ioctl", what, Errno::IO).into());
            }
            let first = self.scanned.runs.partition_point(|r| r.end <= at);
            let inside = self.scanned.runs[first..].iter().take_while(|r| r.start < to);
            found.extend(inside.map(|r| Region { start: r.start.max(at), end: r.end.min(to), ..*r }));
            at = to;
        }
        Ok(found)
    }

    /// Reads ranges by one call, one after the other, where the task itself may read all of them; whether it has.
    pub(super) fn read_ranges(&self, ranges: &[(u64, usize)], buffer: &mut [u8]) -> bool {
        self.mem.is_none() && vm::read_ranges(self.pid, ranges, buffer).is_ok_and(|n| n == buffer.len())
    }

    /// Reads `buf.len()` bytes at `at`, whatever the protection.
    ///
    /// # Errors
    /// What /proc/PID/mem says.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let opened;
        let mem = match &self.mem {
            Some(mem) => mem,
            None if vm::read_exact(self.pid, at, buf).is_ok() => return Ok(()),
            // Pages that nobody may read.
            None => {
                opened = open(self.proc, self.pid, "mem")?;
                &opened
            }
        };
        let mut done = 0;
        while done < buf.len() {
            let n = patience::with("pread64", self.pid, || rustix::io::pread(mem, &mut buf[done..], at + done as u64))
                .named("pread64", || format!("/proc/{}/mem, {at:#x}", self.pid))?;
            if n == 0 {
                return Err(SysError::new("pread64", format!("/proc/{}/mem, {at:#x}", self.pid), Errno::IO).into());
            }
            done += n;
        }
        Ok(())
    }
}

fn open(proc: BorrowedFd<'_>, pid: i32, name: &str) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    let path = format!("{pid}/{name}");
    let opened = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    Ok(opened.named("openat", || format!("/proc/{path}"))?)
}

/// Ranges of an area that must travel: what was written, without the zero page. `until`: how far the kernel may look beyond
/// the area; what it finds there serves the areas that are asked for next.
///
/// # Errors
/// What the scan says.
pub fn ranges(source: &mut Source<'_>, area: &Area, until: u64) -> Result<Vec<(u64, u64)>> {
    if area.shared || area.is_kernel() {
        return Ok(Vec::new());
    }
    let mut found = source.scan(area.start.0, area.end.0, until)?;
    let private_only = !matches!(area.backing, Backing::Anonymous);
    let wanted = |categories: u64| {
        let c = Page::from_bits_retain(categories);
        !(c.contains(Page::PFNZERO) || private_only && c.contains(Page::FILE))
    };
    found.retain(|r| wanted(r.categories));
    let found: Vec<_> = found.iter().map(|r| (r.start, r.end)).collect();
    Ok(if area.guards.is_empty() { found } else { area.without_guards(&found) })
}

/// The pages of an area that nobody can touch: start and end.
///
/// # Errors
/// What the scan says.
pub fn guards(source: &Source<'_>, start: u64, end: u64) -> Result<Vec<(Addr, Addr)>> {
    let mut found: Vec<(Addr, Addr)> = Vec::new();
    let mut at = start;
    while at < end {
        let (some, to) = pagemap::scan_guards(source.pagemap.as_fd(), at, end)?;
        for region in some {
            match found.last_mut().filter(|last| last.1.0 == region.start) {
                Some(last) => last.1 = Addr(region.end),
                None => found.push((Addr(region.start), Addr(region.end))),
            }
        }
        if to <= at {
            let what = format!("PAGEMAP_SCAN, {at:#x}: it does not go on");
            return Err(SysError::new("ioctl", what, Errno::IO).into());
        }
        at = to;
    }
    Ok(found)
}

/// The same of an anonymous area that is tracked, with what was written since it was protected.
///
/// # Errors
/// What the scan says.
pub fn tracked(source: &Source<'_>, area: &Area) -> Result<Vec<Region>> {
    let mut found = Vec::new();
    let (mut at, end) = (area.start.0, area.end.0);
    while at < end {
        let (some, to) = pagemap::scan_tracked(source.pagemap.as_fd(), at, end)?;
        found.extend(some.into_iter().filter(|r| !Page::from_bits_retain(r.categories).contains(Page::PFNZERO)));
        if !area.guards.is_empty() {
            let plain = |r: Region| {
                let left = area.without_guards(&[(r.start, r.end)]);
                left.into_iter().map(move |(start, end)| Region { start, end, ..r })
            };
            found = found.into_iter().flat_map(plain).collect();
        }
        if to <= at {
            let what = format!("PAGEMAP_SCAN, {at:#x}: it does not go on");
            return Err(SysError::new("ioctl", what, Errno::IO).into());
        }
        at = to;
    }
    Ok(found)
}

/// Protects an area that is tracked, all of it: what was written since it was protected is, again. Whether it could be.
#[must_use]
pub fn protect(source: &Source<'_>, area: &Area) -> bool {
    let (mut at, end) = (area.start.0, area.end.0);
    while at < end {
        match pagemap::protect(source.pagemap.as_fd(), at, end, Which::Written) {
            Ok((_, to)) if to > at => at = to,
            _ => return false,
        }
    }
    true
}

/// Ranges of a private file mapping that are copies of the task's own.
///
/// # Errors
/// What the scan says.
pub fn copied(source: &mut Source<'_>, start: u64, end: u64) -> Result<Vec<(u64, u64)>> {
    let found = source.scan(start, end, end)?;
    let own = |categories: u64| !Page::from_bits_retain(categories).contains(Page::FILE);
    Ok(found.iter().filter(|r| own(r.categories)).map(|r| (r.start, r.end)).collect())
}
