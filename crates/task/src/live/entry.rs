//! Code of a program that can be borrowed: a system call in its vdso, and its return from signal handlers.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use yendor_sys::{Errno, SysError, vm};

use super::FRAME_ROOM;
use crate::tree::read_proc;

/// Where code lies in the task that we may run: found once per process.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// A `syscall` that is followed by nothing but register clearing and `ret`.
    pub syscall: u64,
    /// `mov $15, %eax; syscall`: the program's own return from signal handlers.
    pub sigreturn: u64,
    /// The bottom of the main stack, when it is far below every stack pointer.
    pub stack: Option<u64>,
}

/// One mapping of a task, as far as this module looks at it.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Whether it can be executed.
    pub exec: bool,
    /// What it is.
    pub what: RegionKind,
}

/// Mappings that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// The main stack.
    Stack,
    /// What brk(2) makes larger.
    Heap,
    /// The vdso.
    Vdso,
    /// `[vvar]`, `[vsyscall]`: not readable by others.
    Special,
    /// Anything else.
    Other,
}

/// Finds what is needed to borrow a process.
///
/// # Errors
/// `ENOENT` naming what is missing: no vdso, or no `rt_sigreturn` sequence in its code.
pub fn find(pid: i32, regions: &[Region], stack_pointers: &[u64]) -> Result<Entry, SysError> {
    let missing = |what: &str| SysError::new("borrow", format!("{pid}: {what}"), Errno::NOENT);
    let vdso = regions.iter().find(|r| r.what == RegionKind::Vdso).ok_or_else(|| missing("it has no vdso"))?;
    let (syscall, sigreturn) = match hinted(pid, regions, vdso) {
        Some(both) => both,
        None => (
            find_syscall(pid, vdso)?.ok_or_else(|| missing("its vdso has no plain system call"))?,
            find_sigreturn(pid, regions)?.ok_or_else(|| missing("its code has no rt_sigreturn"))?,
        ),
    };
    let stack = regions.iter().find(|r| r.what == RegionKind::Stack).and_then(|r| {
        let free = stack_pointers.iter().filter(|sp| (r.start..r.end).contains(sp)).min().copied().unwrap_or(r.end);
        (free.saturating_sub(r.start) > 2 * FRAME_ROOM as u64).then_some(r.start)
    });
    Ok(Entry { syscall, sigreturn, stack })
}

/// Both where the last process had them, looked at by one call.
fn hinted(pid: i32, regions: &[Region], vdso: &Region) -> Option<(u64, u64)> {
    let code = regions.iter().filter(|r| r.exec && r.what == RegionKind::Other);
    let (syscall, sigreturn) = (SYSCALL_HINT.place(vdso)?, code.filter_map(|r| SIGRETURN_HINT.place(r)).next()?);
    let mut room = [0; 2 * LOOK];
    let bytes = &mut room[..syscall.1 + sigreturn.1];
    let read = vm::read_ranges(pid, &[syscall, sigreturn], bytes).ok()?;
    let (first, second) = bytes[..read].split_at_checked(syscall.1)?;
    (is_plain_syscall(first) && is_sigreturn(second)).then_some((syscall.0, sigreturn.0))
}

/// The address of a plain system call in a process's vdso.
///
/// # Errors
/// `ENOENT` when there is none.
pub fn find_plain_syscall(pid: i32, regions: &[Region]) -> Result<u64, SysError> {
    let missing = || SysError::new("borrow", format!("{pid}: no vdso with a plain system call"), Errno::NOENT);
    let vdso = regions.iter().find(|r| r.what == RegionKind::Vdso).ok_or_else(missing)?;
    find_syscall(pid, vdso)?.ok_or_else(missing)
}

fn find_syscall(pid: i32, vdso: &Region) -> Result<Option<u64>, SysError> {
    if let Some(at) = SYSCALL_HINT.at(pid, vdso, is_plain_syscall) {
        return Ok(Some(at));
    }
    /// No vdso is larger; who says where it is may be an image.
    const MOST: u64 = 256 * 1024;
    let mut code = vec![0; usize::try_from(vdso.end.saturating_sub(vdso.start).min(MOST)).unwrap_or(0)];
    vm::read_exact(pid, vdso.start, &mut code)?;
    let found =
        (0..code.len().saturating_sub(2)).find(|&i| is_plain_syscall(&code[i..])).map(|i| vdso.start + i as u64);
    Ok(found.inspect(|at| SYSCALL_HINT.keep(vdso, *at)))
}

/// `syscall`, any number of `xor reg, reg` of the same 32-bit register, `ret`.
fn is_plain_syscall(code: &[u8]) -> bool {
    let Some(mut rest) = code.strip_prefix(&[0x0f, 0x05]) else { return false };
    loop {
        rest = match rest {
            [0xc3, ..] => return true,
            [0x31, modrm, tail @ ..] | [0x45, 0x31, modrm, tail @ ..]
                if modrm >> 6 == 3 && modrm >> 3 & 7 == modrm & 7 =>
            {
                tail
            }
            _ => return false,
        };
    }
}

const SIGRETURN: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];

/// Where the last process had it: programs of one tree mostly share their code, at other addresses but the same offset. A
/// cheap hint only, always verified.
struct Hint {
    /// Of the mapping, 0 for no hint.
    len: AtomicU64,
    /// In the mapping.
    offset: AtomicU64,
}

static SYSCALL_HINT: Hint = Hint::none();
static SIGRETURN_HINT: Hint = Hint::none();
/// Bytes that are looked at to verify a hint.
const LOOK: usize = 64;

impl Hint {
    const fn none() -> Hint {
        Hint { len: AtomicU64::new(0), offset: AtomicU64::new(0) }
    }

    fn keep(&self, region: &Region, at: u64) {
        self.offset.store(at - region.start, Ordering::Relaxed);
        self.len.store(region.end - region.start, Ordering::Relaxed);
    }

    /// The place in a mapping of the same size, and how many bytes are looked at there.
    fn place(&self, region: &Region) -> Option<(u64, usize)> {
        if self.len.load(Ordering::Relaxed) != region.end - region.start {
            return None;
        }
        let at = region.start + self.offset.load(Ordering::Relaxed);
        Some((at, usize::try_from(region.end.saturating_sub(at)).unwrap_or(LOOK).min(LOOK)))
    }

    /// The place, if the code is good there.
    fn at(&self, pid: i32, region: &Region, good: impl Fn(&[u8]) -> bool) -> Option<u64> {
        let (at, there) = self.place(region)?;
        let mut code = [0; LOOK];
        vm::read_exact(pid, at, &mut code[..there]).ok()?;
        good(&code[..there]).then_some(at)
    }
}

fn is_sigreturn(code: &[u8]) -> bool {
    SIGRETURN.iter().any(|s| code.starts_with(s))
}

fn find_sigreturn(pid: i32, regions: &[Region]) -> Result<Option<u64>, SysError> {
    let code = || regions.iter().filter(|r| r.exec && r.what == RegionKind::Other);
    if let Some(at) = code().find_map(|r| SIGRETURN_HINT.at(pid, r, is_sigreturn)) {
        return Ok(Some(at));
    }
    for r in code() {
        let mut at = r.start;
        let mut window = vec![0u8; 256 * 1024];
        while at < r.end {
            let want = window.len().min(usize::try_from(r.end - at).unwrap_or(0));
            let n = match vm::read(pid, at, &mut window[..want]) {
                Ok(n) if n > 16 => n,
                // A hole in a sparse mapping: not where a C library keeps its code.
                _ => break,
            };
            if let Some(i) = sigreturn_in(&window[..n]) {
                SIGRETURN_HINT.keep(r, at + i as u64);
                return Ok(Some(at + i as u64));
            }
            if n < want {
                break;
            }
            at += (n - 16).max(1) as u64;
            if want < window.len() {
                break;
            }
        }
    }
    Ok(None)
}

fn sigreturn_in(code: &[u8]) -> Option<usize> {
    // The rarer bytes first: the system call's number.
    (0..code.len()).find(|&i| {
        let b = code[i];
        (b == 0x48 || b == 0xb8) && is_sigreturn(&code[i..])
    })
}

/// Regions of a process from its /proc/PID/maps.
///
/// # Errors
/// What /proc says.
pub fn regions(proc: BorrowedFd<'_>, pid: i32) -> Result<Vec<Region>, SysError> {
    let text = read_proc(proc, &format!("{pid}/maps"))?;
    Ok(text.split(|b| *b == b'\n').filter_map(region).collect())
}

fn region(line: &[u8]) -> Option<Region> {
    let mut words = line.split(|b| *b == b' ').filter(|w| !w.is_empty());
    let range = std::str::from_utf8(words.next()?).ok()?;
    let (start, end) = range.split_once('-')?;
    let perms = words.next()?;
    let what = match words.nth(3) {
        Some(b"[stack]") => RegionKind::Stack,
        Some(b"[heap]") => RegionKind::Heap,
        Some(b"[vdso]") => RegionKind::Vdso,
        Some(b"[vvar]" | b"[vvar_vclock]" | b"[vsyscall]") => RegionKind::Special,
        _ => RegionKind::Other,
    };
    Some(Region {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        exec: perms.get(2) == Some(&b'x'),
        what,
    })
}
