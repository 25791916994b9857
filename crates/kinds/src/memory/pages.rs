//! Contents of private memory.
//! *Read from:* `PAGEMAP_SCAN` for what is there, process_vm_readv for what it holds; /proc/PID/mem where the task itself
//! may not read.
//! *Made again by:* pread from the image by the new task's script, straight into its memory.
//! *Lost:* nothing; pages of zeros are not stored, they come back as fresh memory.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_image::{Addr, PAGE_BYTES, PageRun};
use yendor_sys::pagemap::{self, Page};
use yendor_sys::{Errno, SysError, vm};
use yendor_task::{Nr, Script, Want, args};

use super::vma::{Backing, Record as Area};
use crate::{Named, Result};

/// Bytes that are copied at once.
const CHUNK: u64 = 256 * 1024;

/// A task whose pages are read.
pub struct Source<'a> {
    /// As the tracer sees it.
    pub pid: i32,
    /// Its /proc/PID/pagemap.
    pub pagemap: OwnedFd,
    /// Its /proc/PID/mem.
    pub mem: OwnedFd,
    /// /proc.
    pub proc: BorrowedFd<'a>,
}

impl<'a> Source<'a> {
    /// Opens a task's memory.
    ///
    /// # Errors
    /// `EACCES` when it may not be traced.
    pub fn open(proc: BorrowedFd<'a>, pid: i32) -> Result<Source<'a>> {
        use rustix::fs::{Mode, OFlags, openat};
        let open = |name: &str| {
            let path = format!("{pid}/{name}");
            openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .named("openat", || format!("/proc/{path}"))
        };
        Ok(Source { pid, pagemap: open("pagemap")?, mem: open("mem")?, proc })
    }

    /// Reads `buf.len()` bytes at `at`, whatever the protection.
    ///
    /// # Errors
    /// What /proc/PID/mem says.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if vm::read_exact(self.pid, at, buf).is_ok() {
            return Ok(());
        }
        let mut done = 0;
        while done < buf.len() {
            let n = rustix::io::pread(&self.mem, &mut buf[done..], at + done as u64)
                .named("pread64", || format!("/proc/{}/mem, {at:#x}", self.pid))?;
            if n == 0 {
                return Err(SysError::new("pread64", format!("/proc/{}/mem, {at:#x}", self.pid), Errno::IO).into());
            }
            done += n;
        }
        Ok(())
    }
}

/// Ranges of an area that must travel: what was written, without the zero page.
///
/// # Errors
/// What the scan says.
pub fn ranges(source: &Source<'_>, area: &Area) -> Result<Vec<(u64, u64)>> {
    if area.shared || area.is_kernel() {
        return Ok(Vec::new());
    }
    let found = pagemap::scan(source.pagemap.as_fd(), area.start.0, area.end.0)?;
    let private_only = !matches!(area.backing, Backing::Anonymous);
    let wanted = |categories: u64| {
        let c = Page::from_bits_retain(categories);
        !(c.contains(Page::PFNZERO) || private_only && c.contains(Page::FILE))
    };
    Ok(found.iter().filter(|r| wanted(r.categories)).map(|r| (r.start, r.end)).collect())
}

/// Ranges of a private file mapping that are copies of the task's own.
///
/// # Errors
/// What the scan says.
pub fn copied(source: &Source<'_>, start: u64, end: u64) -> Result<Vec<(u64, u64)>> {
    let found = pagemap::scan(source.pagemap.as_fd(), start, end)?;
    let own = |categories: u64| !Page::from_bits_retain(categories).contains(Page::FILE);
    Ok(found.iter().filter(|r| own(r.categories)).map(|r| (r.start, r.end)).collect())
}

/// What becomes of pages that hold only zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeros {
    /// They are left out: fresh memory holds zeros too.
    Leave,
    /// They are kept: something else would be there (a file's content, the parent's page).
    Keep,
}

/// Copies ranges into `out`, the pages file number `file`, and appends their runs. `offset`: where `out` stands.
///
/// # Errors
/// The task's memory cannot be read, or the image not be written.
pub fn copy(
    source: &Source<'_>,
    ranges: &[(u64, u64)],
    out: &mut impl Write,
    file: u16,
    offset: &mut u64,
    zeros: Zeros,
    runs: &mut Vec<PageRun>,
) -> Result<()> {
    // No larger than needed: most areas have a page or two.
    let largest = ranges.iter().map(|(start, end)| end - start).max().unwrap_or(0).min(CHUNK);
    let mut buffer = vec![0u8; usize::try_from(largest).unwrap_or(0)];
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let len = (end - at).min(CHUNK);
            let chunk = &mut buffer[..usize::try_from(len).unwrap_or(0)];
            source.read(at, chunk)?;
            let wanted = if zeros == Zeros::Leave { non_zero(chunk) } else { vec![(0, chunk.len() / PAGE)] };
            for (first, pages) in wanted {
                let bytes = &chunk[first * PAGE..(first + pages) * PAGE];
                out.write_all(bytes).map_err(|e| SysError::io("write", yendor_image::pages_name(file), &e))?;
                push(runs, at + (first * PAGE) as u64, pages as u64, file, *offset);
                *offset += bytes.len() as u64;
            }
            at += len;
        }
    }
    Ok(())
}

const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

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

/// Appends a run, or lengthens the last one.
fn push(runs: &mut Vec<PageRun>, addr: u64, pages: u64, file: u16, offset: u64) {
    if let Some(last) = runs.last_mut() {
        let bytes = last.pages * PAGE_BYTES;
        if last.file == file && last.addr.0 + bytes == addr && last.offset + bytes == offset {
            last.pages += pages;
            return;
        }
    }
    runs.push(PageRun { addr: Addr(addr), pages, file, offset });
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
