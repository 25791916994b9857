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

mod entry;
mod frame;

use std::os::fd::OwnedFd;

use yendor_sys::futex::RobustList;
use yendor_sys::mapping::Mapping;
use yendor_sys::{Errno, SysError, ptrace, vm};

use crate::arena::{Arena, PAGE, RunError};
use crate::gadget;
use crate::nr::Nr;
use crate::regs::{Regs, resumable};
use crate::script::{Done, Script};
use crate::stop::{StopError, Stopped};

pub use entry::{Entry, Region, RegionKind, find_entry, find_plain_syscall, regions};
use frame::{UCONTEXT, frame};

/// Bytes of a slot for a live thread.
const SLOT: usize = 48 * 1024;
/// Bytes at the end of a slot for the frame.
pub(crate) const FRAME_ROOM: usize = 16 * 1024;
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
        if entry.stack.is_none() {
            // The stack may end in between.
            ptrace::peek(leader.tid(), at)?;
        }
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
