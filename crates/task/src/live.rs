//! Borrowing a live task: scratch memory is mapped into it, scripts run in its threads, and everything is undone.
//!
//! The dead-man rule: from the moment its registers differ from its own until they are its own again, the task returns
//! to its own state by itself if we die. Two mechanisms do it:
//! - while calls are injected through the vdso's `syscall` instruction, the stack pointer is at a signal frame whose
//!   return address is the program's own `rt_sigreturn` sequence: the instruction after the call runs into it;
//! - while a thread sits in the gadget it also waits for our death (a robust futex word in the scratch memory), and then
//!   executes `rt_sigreturn` on a frame in its slot.
//!
//! The first frame lies at the very bottom of the program's main stack, far below any stack pointer in use, or, where
//! there is none, below the thread's red zone, as a signal's frame would. The bytes there are put back.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use yendor_sys::futex::RobustList;
use yendor_sys::mapping::Mapping;
use yendor_sys::{Errno, SysError, ptrace, vm};

use crate::arena::{Arena, PAGE, RunError};
use crate::gadget;
use crate::nr::Nr;
use crate::regs::{Regs, resumable};
use crate::script::{Done, Script};
use crate::stop::{StopError, Stopped};
use crate::tree::read_proc;

/// Bytes of a slot for a live thread.
const SLOT: usize = 48 * 1024;
/// Bytes at the end of a slot for the frame.
const FRAME_ROOM: usize = 16 * 1024;
/// Bytes of `ucontext` on x86_64 without the extended state.
const UCONTEXT: usize = 304;

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

/// A borrowed process.
#[derive(Debug)]
pub struct Borrowed<'a> {
    pid: i32,
    threads: &'a [Stopped],
    entry: Entry,
    arena: Arena,
    saved: Vec<Saved>,
    /// Stack bytes under the first frame.
    stack_bytes: (u64, Vec<u8>),
    returned: bool,
}

#[derive(Debug)]
struct Saved {
    tid: i32,
    regs: Regs,
    mask: u64,
    /// Whether it waits in the gadget now.
    running: bool,
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
pub fn find_entry(pid: i32, regions: &[Region], stack_pointers: &[u64]) -> Result<Entry, SysError> {
    let missing = |what: &str| SysError::new("borrow", format!("{pid}: {what}"), Errno::NOENT);
    let vdso = regions.iter().find(|r| r.what == RegionKind::Vdso).ok_or_else(|| missing("it has no vdso"))?;
    let syscall = find_syscall(pid, vdso)?.ok_or_else(|| missing("its vdso has no plain system call"))?;
    let sigreturn = find_sigreturn(pid, regions)?.ok_or_else(|| missing("its code has no rt_sigreturn"))?;
    let stack = regions.iter().find(|r| r.what == RegionKind::Stack).and_then(|r| {
        let free = stack_pointers.iter().filter(|sp| (r.start..r.end).contains(sp)).min().copied().unwrap_or(r.end);
        (free.saturating_sub(r.start) > 2 * FRAME_ROOM as u64).then_some(r.start)
    });
    Ok(Entry { syscall, sigreturn, stack })
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
    let mut code = vec![0; usize::try_from(vdso.end - vdso.start).unwrap_or(0)];
    vm::read_exact(pid, vdso.start, &mut code)?;
    Ok((0..code.len().saturating_sub(2)).find(|&i| is_plain_syscall(&code[i..])).map(|i| vdso.start + i as u64))
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

/// The last answer: programs of one tree mostly share their C library at other addresses but the same offset; a cheap
/// hint only, always verified.
static HINT: AtomicU64 = AtomicU64::new(0);

fn find_sigreturn(pid: i32, regions: &[Region]) -> Result<Option<u64>, SysError> {
    let hint = HINT.load(Ordering::Relaxed);
    let mut probe = [0u8; 9];
    if hint != 0
        && regions.iter().any(|r| r.exec && r.start <= hint && hint + 9 <= r.end)
        && vm::read_exact(pid, hint, &mut probe).is_ok()
        && SIGRETURN.iter().any(|s| probe.starts_with(s))
    {
        return Ok(Some(hint));
    }
    for r in regions.iter().filter(|r| r.exec && r.what == RegionKind::Other) {
        let mut at = r.start;
        let mut window = vec![0u8; 256 * 1024];
        while at < r.end {
            let want = window.len().min(usize::try_from(r.end - at).unwrap_or(0));
            let n = match vm::read(pid, at, &mut window[..want]) {
                Ok(n) if n > 16 => n,
                // A hole in a sparse mapping: not where a C library keeps its code.
                _ => break,
            };
            if let Some(i) = find(&window[..n]) {
                HINT.store(at + i as u64, Ordering::Relaxed);
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

fn find(code: &[u8]) -> Option<usize> {
    // The rarer bytes first: the system call's number.
    (0..code.len()).find(|&i| {
        let b = code[i];
        (b == 0x48 || b == 0xb8) && SIGRETURN.iter().any(|s| code[i..].starts_with(s))
    })
}

/// The signal frame (`ucontext`, extended state) at `address` that returns a thread to `regs` with `mask` blocked.
fn frame(address: u64, regs: &Regs, mask: u64, xstate: &[u8]) -> Vec<u8> {
    let fp = (address + UCONTEXT as u64).next_multiple_of(64);
    let mut f = Vec::with_capacity(UCONTEXT + 64 + xstate.len());
    let mut word = |w: u64| f.extend_from_slice(&w.to_ne_bytes());
    // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS, no link.
    word(7);
    word(0);
    // An alternate stack that sigaltstack(2) refuses (unknown flags): the thread's own is left as it is.
    word(0);
    word(0x40);
    word(0);
    for w in [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.eflags,
    ] {
        word(w);
    }
    word(regs.cs & 0xffff | (regs.ss & 0xffff) << 48);
    for _ in 0..4 {
        word(0);
    }
    word(fp);
    for _ in 0..8 {
        word(0);
    }
    word(mask);
    f.resize(usize::try_from(fp - address).unwrap_or(UCONTEXT), 0);
    f.extend_from_slice(&signal_xstate(xstate));
    f
}

/// The extended state with the marks that the kernel wants in a signal frame (arch/x86/include/uapi/asm/sigcontext.h).
fn signal_xstate(xstate: &[u8]) -> Vec<u8> {
    const SW: usize = 464;
    let mut x = xstate.to_vec();
    if x.len() < 576 {
        return x;
    }
    let size = u32::try_from(x.len()).unwrap_or(0);
    x[SW..SW + 4].copy_from_slice(&0x4650_5853u32.to_ne_bytes());
    x[SW + 4..SW + 8].copy_from_slice(&(size + 4).to_ne_bytes());
    // The features that the state may hold stand where ptrace put them: XCR0, first word of the software bytes.
    let xcr0: [u8; 8] = xstate[SW..SW + 8].try_into().unwrap_or([0; 8]);
    x[SW + 8..SW + 16].copy_from_slice(&xcr0);
    x[SW + 16..SW + 20].copy_from_slice(&size.to_ne_bytes());
    x.extend_from_slice(&0x4650_5845u32.to_ne_bytes());
    x
}

impl<'a> Borrowed<'a> {
    /// Borrows the process of `threads` (leader first): maps scratch memory at `base`, which must be free for
    /// [`Self::size`] bytes.
    ///
    /// # Errors
    /// The kernel's refusals, or the death of the task. The task is as before.
    pub fn new(
        pid: i32,
        threads: &'a [Stopped],
        entry: Entry,
        base: u64,
        robust: &mut RobustList,
    ) -> Result<Borrowed<'a>, RunError> {
        let leader = threads.first().ok_or_else(|| SysError::new("borrow", format!("{pid}"), Errno::SRCH))?;
        let mut saved = Vec::with_capacity(threads.len());
        for t in threads {
            saved.push(Saved { tid: t.tid(), regs: t.regs()?, mask: ptrace::sigmask(t.tid())?, running: false });
        }
        let original = &saved[0];
        let (stack_bytes, injection) = Injection::begin(leader, original, entry)?;
        let mapped = map_scratch(pid, leader, &injection, base, threads.len());
        let arena = match mapped {
            Ok(memory) => Arena::new(memory, base, SLOT, robust.alive()),
            Err(e) => {
                injection.end(leader, original, &stack_bytes)?;
                return Err(e);
            }
        };
        robust.add(arena.memory(), Arena::alive_entry());
        injection.end(leader, original, &stack_bytes)?;
        Ok(Borrowed { pid, threads, entry, arena, saved, stack_bytes, returned: false })
    }

    /// Bytes of scratch memory for a process with `threads` threads.
    #[must_use]
    pub fn size(threads: usize) -> usize {
        Arena::size(threads, SLOT).next_multiple_of(PAGE)
    }

    /// Runs a script in thread number `index`.
    ///
    /// # Errors
    /// A failed call, or the death of the task.
    pub fn run(&mut self, index: usize, script: &Script) -> Result<Vec<Done>, RunError> {
        let (Some(thread), Some(saved)) = (self.threads.get(index), self.saved.get_mut(index)) else {
            return Err(SysError::new("borrow", format!("thread {index}"), Errno::SRCH).into());
        };
        if !saved.running {
            let at = self.arena.slot_address(index) + (SLOT - FRAME_ROOM) as u64;
            let xstate = ptrace::xstate(saved.tid)?;
            let offset = usize::try_from(at - self.arena.base()).unwrap_or(0);
            let image = frame(at, &resumable(&saved.regs, false), saved.mask, &xstate);
            if image.len() > FRAME_ROOM {
                return Err(RunError::TooLarge { call: "rt_sigreturn", bytes: image.len() });
            }
            self.arena.memory().write(offset, &image);
            let regs = self.arena.entry_regs(&saved.regs, index, gadget::WAIT, at);
            // Registers first: from here on the frame brings the old mask back if we die.
            thread.set_regs(&regs)?;
            saved.running = true;
            ptrace::set_sigmask(saved.tid, u64::MAX)?;
            ptrace::cont(saved.tid, 0)?;
        }
        self.arena.run(index, self.threads[index].tid(), script)
    }

    /// Ends the borrowing: scratch memory gone, every thread with its own registers in its stop.
    ///
    /// # Errors
    /// The kernel's refusals, or the death of the task.
    pub fn give_back(mut self, robust: &mut RobustList) -> Result<(), RunError> {
        self.undo(robust)
    }

    fn undo(&mut self, robust: &mut RobustList) -> Result<(), RunError> {
        if self.returned {
            return Ok(());
        }
        self.returned = true;
        for (thread, saved) in self.threads.iter().zip(&mut self.saved) {
            if saved.running {
                Stopped::interrupt(saved.tid).map_err(|e| stop_error(saved.tid, e))?;
                // The mask first: while the registers still lead to the frame, a death in between is harmless.
                ptrace::set_sigmask(saved.tid, saved.mask)?;
                thread.set_regs(&saved.regs)?;
                saved.running = false;
            }
        }
        let leader = &self.threads[0];
        let (stack_bytes, injection) = Injection::begin(leader, &self.saved[0], self.entry)?;
        self.stack_bytes = stack_bytes;
        let len = self.arena.memory().len() as u64;
        let unmapped = injection.call(leader, Nr::MUNMAP, [self.arena.base(), len, 0, 0, 0, 0]);
        robust.remove(self.arena.memory(), Arena::alive_entry());
        injection.end(leader, &self.saved[0], &self.stack_bytes)?;
        unmapped.map(drop)
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The general registers that a thread had when it was stopped.
    #[must_use]
    pub fn regs(&self, index: usize) -> Option<&Regs> {
        self.saved.get(index).map(|s| &s.regs)
    }
}

fn stop_error(tid: i32, e: StopError) -> RunError {
    match e {
        StopError::Dead(d) => RunError::Died { tid, event: d.event },
        StopError::Sys(e) => RunError::Sys(e),
    }
}

/// Bytes that were overwritten, and where.
type Overwritten = (u64, Vec<u8>);

/// A thread whose registers are ready for calls through the vdso, with a frame on its stack to fall back to.
struct Injection {
    regs: Regs,
}

impl Injection {
    fn begin(leader: &Stopped, saved: &Saved, entry: Entry) -> Result<(Overwritten, Injection), RunError> {
        let xstate = ptrace::xstate(leader.tid())?;
        let room = (8 + UCONTEXT + 64 + xstate.len() + 8) as u64;
        let at = match entry.stack {
            Some(bottom) => bottom + 64,
            None => (saved.regs.rsp - 128 - room) & !63,
        };
        // The return address, then the ucontext: as a signal's frame lies.
        let context = at + 8;
        let mut image = entry.sigreturn.to_ne_bytes().to_vec();
        image.extend_from_slice(&frame(context, &resumable(&saved.regs, false), saved.mask, &xstate));
        let mut old = vec![0u8; image.len() + NAME.len()];
        vm::read_exact(leader.tid(), at, &mut old)?;
        image.extend_from_slice(NAME);
        vm::write_all(leader.tid(), at, &image)?;
        let mut regs = saved.regs;
        regs.rip = entry.syscall;
        regs.rsp = at;
        regs.orig_rax = u64::MAX;
        regs.eflags &= !0x500;
        // A harmless call until the first real one: getpid.
        regs.rax = Nr::GETPID.raw();
        leader.set_regs(&regs)?;
        ptrace::set_sigmask(leader.tid(), u64::MAX)?;
        let name = at + (image.len() - NAME.len()) as u64;
        regs.rdi = name;
        Ok(((at, old), Injection { regs }))
    }

    fn call(&self, leader: &Stopped, nr: Nr, args: [u64; 6]) -> Result<u64, RunError> {
        let mut regs = self.regs;
        regs.rax = nr.raw();
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        leader.set_regs(&regs)?;
        let returned = leader.step_syscall().map_err(|e| stop_error(leader.tid(), e))?;
        if (-4095..0).contains(&returned) {
            let errno = Errno::from_raw_os_error(i32::try_from(-returned).unwrap_or(0));
            return Err(SysError::new(nr.name(), format!("{:#x}, {:#x}", args[0], args[1]), errno).into());
        }
        Ok(returned.cast_unsigned())
    }

    /// The address of the scratch memory's name in the task.
    fn name(&self) -> u64 {
        self.regs.rdi
    }

    fn end(self, leader: &Stopped, saved: &Saved, stack: &Overwritten) -> Result<(), RunError> {
        ptrace::set_sigmask(leader.tid(), saved.mask)?;
        leader.set_regs(&saved.regs)?;
        vm::write_all(leader.tid(), stack.0, &stack.1)?;
        Ok(())
    }
}

/// What the scratch memory is called in /proc/PID/maps.
const NAME: &[u8] = b"yendor-scratch\0";

fn map_scratch(
    pid: i32,
    leader: &Stopped,
    injection: &Injection,
    base: u64,
    threads: usize,
) -> Result<Mapping, RunError> {
    const SHARED_FIXED_NOREPLACE: u64 = 0x10_0001;
    const MFD_CLOEXEC: u64 = 1;
    let len = Borrowed::size(threads);
    let fd = injection.call(leader, Nr::MEMFD_CREATE, [injection.name(), MFD_CLOEXEC, 0, 0, 0, 0])?;
    let mapped = (|| {
        let ours = fetch(pid, fd)?;
        rustix::fs::ftruncate(&ours, len as u64).map_err(|e| SysError::new("ftruncate", "scratch", e))?;
        let mapping = Mapping::of(ours, len)?;
        let page = PAGE as u64;
        injection.call(leader, Nr::MMAP, [base, page, 5, SHARED_FIXED_NOREPLACE, fd, 0])?;
        let rest =
            injection.call(leader, Nr::MMAP, [base + page, len as u64 - page, 3, SHARED_FIXED_NOREPLACE, fd, page]);
        if let Err(e) = rest {
            injection.call(leader, Nr::MUNMAP, [base, page, 0, 0, 0, 0])?;
            return Err(e);
        }
        Ok(mapping)
    })();
    injection.call(leader, Nr::CLOSE, [fd, 0, 0, 0, 0, 0])?;
    mapped
}

/// A descriptor of the task, as one of ours.
fn fetch(pid: i32, fd: u64) -> Result<OwnedFd, SysError> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let number = i32::try_from(fd).map_err(|_| SysError::new("pidfd_getfd", format!("{pid}, {fd}"), Errno::BADF))?;
    let nobody = || SysError::new("pidfd_open", format!("{pid}"), Errno::SRCH);
    let pidfd = pidfd_open(Pid::from_raw(pid).ok_or_else(nobody)?, PidfdFlags::empty())
        .map_err(|e| SysError::new("pidfd_open", format!("{pid}"), e))?;
    pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())
        .map_err(|e| SysError::new("pidfd_getfd", format!("{pid}, {number}"), e))
}

/// Regions of a process from its /proc/PID/maps.
///
/// # Errors
/// What /proc says.
pub fn regions(proc: std::os::fd::BorrowedFd<'_>, pid: i32) -> Result<Vec<Region>, SysError> {
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
