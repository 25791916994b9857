//! Borrowing live tasks: scratch memory is mapped into each process, scripts run in its threads, and everything is undone.
//!
//! Several processes are borrowed side by side: what each has to do takes the kernel little time, but a while to begin.
//!
//! The dead-man rule: from the moment its registers differ from its own until they are its own again, a task returns
//! to its own state by itself if we die. Two mechanisms do it:
//! - while calls are injected through the vdso's `syscall` instruction, the stack pointer is at a signal frame whose
//!   return address is the program's own `rt_sigreturn` sequence: the instruction after the call runs into it;
//! - while a thread sits in the gadget it also waits for our death (a robust futex word in the scratch memory), and then
//!   executes `rt_sigreturn` on a frame: the leader on the same one, another thread on one in its slot.
//!
//! The leader's frame lies at the very bottom of the program's main stack, far below any stack pointer in use, or, where
//! there is none, below the thread's red zone, as a signal's frame would. The bytes there are put back.
//!
//! What our death can leave in a process is the scratch memory, as a mapping or as a descriptor that is closed on exec. Both
//! are called [`SCRATCH`]; a later checkpoint leaves them out. And bytes below all stack pointers, which belong to nobody.

mod entry;
mod frame;
mod injection;
mod section;
pub mod track;
pub mod twin;

use std::os::fd::OwnedFd;

use rustix::fs::SealFlags;
use yendor_sys::futex::RobustList;
use yendor_sys::mapping::Mapping;
use yendor_sys::{Errno, SysError, ptrace, vm};

use crate::arena::{Arena, PAGE, RunError};
use crate::nr::Nr;
use crate::regs::{Regs, is_resumed, name_resumed, resumable};
use crate::script::{Done, Script};
use crate::stop::{StopError, Stopped};
use crate::{gadget, limit};

pub use entry::{Entry, Region, RegionKind, find_plain_syscall, regions};
use frame::frame;
use injection::{Injection, call_all};
use twin::Twin;

/// What the scratch memory is called in /proc/PID/maps and fd.
pub const SCRATCH: &[u8] = b"/memfd:yendor-scratch";

/// Bytes of a slot for a live thread.
const SLOT: usize = 48 * 1024;
/// Bytes of scratch memory that every process needs: code, our word, and most of the questions to its leader.
const TOUCHED: usize = 6 * PAGE;
/// Bytes at the end of a slot for the frame.
pub(crate) const FRAME_ROOM: usize = 16 * 1024;
/// Where the leader's slot, which has no frame, ends with room for something else: only a very long script reaches it.
const SPARE: usize = SLOT - 512;

/// A process to be borrowed.
#[derive(Debug)]
pub struct Loan<'a> {
    pid: i32,
    threads: &'a [Stopped],
    entry: Entry,
    /// Where its scratch memory shall be.
    base: u64,
    saved: Vec<Saved>,
}

/// A borrowed process.
#[derive(Debug)]
pub struct Borrowed<'a> {
    loan: Loan<'a>,
    injection: Injection,
    arena: Arena,
    /// The leader's descriptor of the scratch memory, until it closes it.
    fd: Option<u64>,
}

/// Registers and the like of a thread that was stopped.
#[derive(Debug, Clone)]
pub struct Registers {
    /// The general ones, outside of any restartable sequence.
    pub general: Regs,
    /// The extended state.
    pub extended: Vec<u8>,
    /// Its registration for restartable sequences.
    pub rseq: ptrace::Rseq,
    /// The signals that it blocks.
    pub mask: u64,
}

#[derive(Debug)]
struct Saved {
    tid: i32,
    own: Registers,
    at: At,
}

/// Where a borrowed thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// In the stop that it was found in.
    #[default]
    Stop,
    /// In the gadget.
    Gadget,
    /// In the gadget, too, but stopped by a signal that its own instruction has caused, and that nobody delivers.
    Halt,
}

fn two_words(tid: i32, at: u64) -> Option<[u64; 2]> {
    let mut words = [[0; 8]; 2];
    vm::read_exact(tid, at, words.as_flattened_mut()).ok()?;
    Some(words.map(u64::from_ne_bytes))
}

/// What went wrong with one of several processes, and which.
pub type Failed = (usize, RunError);

impl<'a> Loan<'a> {
    /// Finds out how the process of `threads` (leader first) can be borrowed, with scratch memory at `base`, where
    /// [`Borrowed::size`] bytes must be free. `regions`: its mappings.
    ///
    /// # Errors
    /// `ENOENT` naming what is missing, a thread that must not make calls of ours, or the kernel's refusals.
    pub fn new(pid: i32, threads: &'a [Stopped], regions: &[Region], base: u64) -> Result<Loan<'a>, RunError> {
        if threads.is_empty() {
            return Err(SysError::new("borrow", format!("{pid}"), Errno::SRCH).into());
        }
        let mut saved = Vec::with_capacity(threads.len());
        for t in threads {
            let tid = t.tid();
            if ptrace::user_dispatch(tid)?.mode != 0 {
                return Err(RunError::Dispatched { tid });
            }
            let (mut general, rseq) = (t.regs()?, ptrace::rseq(tid)?);
            section::leave(tid, &rseq, &mut general)?;
            limit::forget_stop(tid, &mut general)?;
            if is_resumed(&general) {
                let mut code = [0; 24];
                // What cannot be read says nothing.
                let read = vm::read_exact(tid, general.rip.wrapping_sub(code.len() as u64), &mut code).is_ok();
                name_resumed(&mut general, if read { &code } else { &[] }, |at| two_words(tid, at));
            }
            let own = Registers { general, extended: ptrace::xstate(tid)?, rseq, mask: ptrace::sigmask(tid)? };
            saved.push(Saved { tid, own, at: At::Stop });
        }
        let pointers: Vec<u64> = saved.iter().map(|s| s.own.general.rsp).collect();
        let entry = entry::find(pid, regions, &pointers)?;
        Ok(Loan { pid, threads, entry, base, saved })
    }

    fn begin(self) -> Result<Begun<'a>, RunError> {
        let injection = Injection::begin(&self.threads[0], &self.saved[0], self.entry)?;
        Ok(Begun { loan: self, injection, fd: None, memory: None, mapped: 0 })
    }
}

/// A process that is being borrowed.
struct Begun<'a> {
    loan: Loan<'a>,
    injection: Injection,
    fd: Option<u64>,
    memory: Option<Mapping>,
    /// How much of the scratch memory it has mapped.
    mapped: u64,
}

impl<'a> Begun<'a> {
    fn leader(&self) -> (&'a Stopped, &Injection) {
        (&self.loan.threads[0], &self.injection)
    }

    fn len(&self) -> u64 {
        Borrowed::size(self.loan.threads.len()) as u64
    }

    /// The scratch memory, as we see it.
    fn map_ours(&mut self) -> Result<(), RunError> {
        let len = Borrowed::size(self.loan.threads.len());
        let ours = fetch(self.loan.pid, self.fd.unwrap_or(u64::MAX))?;
        rustix::fs::ftruncate(&ours, len as u64).map_err(|e| SysError::new("ftruncate", "scratch", e))?;
        // Others may have the descriptor, too: what is mapped must not become shorter.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&ours, seals)
            .map_err(|e| SysError::new("fcntl", format!("scratch, F_ADD_SEALS, {seals:?}"), e))?;
        let memory = Mapping::of(ours, len)?;
        memory.prepare(TOUCHED);
        self.memory = Some(memory);
        Ok(())
    }

    fn borrowed(self, robust: &mut RobustList) -> Option<Borrowed<'a>> {
        let arena = Arena::new(self.memory?, self.loan.base, SLOT, robust.alive());
        robust.add(arena.memory(), Arena::alive_entry());
        Some(Borrowed { loan: self.loan, injection: self.injection, arena, fd: self.fd })
    }

    /// Undoes what was done. An error changes nothing: there was one already.
    fn undo(self) {
        let (leader, injection) = (&self.loan.threads[0], &self.injection);
        if self.mapped > 0 {
            let _ = injection.call(leader, Nr::MUNMAP, [self.loan.base, self.mapped, 0, 0, 0, 0]);
        }
        if let Some(fd) = self.fd {
            let _ = injection.call(leader, Nr::CLOSE, [fd, 0, 0, 0, 0, 0]);
        }
        let _ = self.injection.end(leader, &self.loan.saved[0]);
    }
}

impl<'a> Borrowed<'a> {
    /// Borrows processes, side by side.
    ///
    /// # Errors
    /// The kernel's refusals, or the death of a task. All tasks are as before.
    pub fn all(loans: Vec<Loan<'a>>, robust: &mut RobustList) -> Result<Vec<Borrowed<'a>>, Failed> {
        let pids: Vec<i32> = loans.iter().map(|loan| loan.pid).collect();
        let mut begun = Vec::with_capacity(loans.len());
        let mapped = (|| {
            for (i, loan) in loans.into_iter().enumerate() {
                begun.push(loan.begin().map_err(|e| (i, e))?);
            }
            map_scratch(&mut begun)
        })();
        match mapped {
            Ok(()) => Ok(begun.into_iter().filter_map(|b| b.borrowed(robust)).collect()),
            Err((i, e)) => {
                begun.into_iter().for_each(Begun::undo);
                Err((i, e.of(pids[i])))
            }
        }
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
        let started = self.start(index, script)?;
        self.finish(index, script, started)
    }

    /// Starts a script in thread number `index`; how many of its calls.
    ///
    /// # Errors
    /// The kernel's refusals, or a script that is too large.
    pub fn start(&mut self, index: usize, script: &Script) -> Result<usize, RunError> {
        let tid = self.loan.saved.get(index).map_or(0, |s| s.tid);
        self.begin(index, script).map_err(|e| e.of(tid))
    }

    fn begin(&mut self, index: usize, script: &Script) -> Result<usize, RunError> {
        let (Some(thread), Some(saved)) = (self.loan.threads.get(index), self.loan.saved.get_mut(index)) else {
            return Err(SysError::new("borrow", format!("thread {index}"), Errno::SRCH).into());
        };
        let started = self.arena.start(index, &script.calls)?;
        if saved.at == At::Gadget {
            return Ok(started);
        }
        let frame = if index == 0 { self.injection.context() } else { lay_frame(&self.arena, index, saved)? };
        // Who has the descriptor closes it first.
        let fd = if index == 0 { self.fd.take() } else { None };
        let entry = if fd.is_some() { gadget::ENTER } else { gadget::WAIT };
        let mut regs = self.arena.entry_regs(&saved.own.general, index, entry, frame);
        regs.r8 = fd.unwrap_or(regs.r8);
        // Registers first: from here on the frame brings the old mask back if we die.
        thread.set_regs(&regs)?;
        saved.at = At::Gadget;
        // The leader blocks everything since its first call.
        if index != 0 {
            ptrace::set_sigmask(saved.tid, u64::MAX)?;
        }
        ptrace::cont(saved.tid, 0)?;
        Ok(started)
    }

    /// Waits for a script that was started, and runs what is left of it.
    ///
    /// # Errors
    /// A failed call, or the death of the task.
    pub fn finish(&mut self, index: usize, script: &Script, started: usize) -> Result<Vec<Done>, RunError> {
        let Some(saved) = self.loan.saved.get_mut(index) else {
            return Err(SysError::new("borrow", format!("thread {index}"), Errno::SRCH).into());
        };
        let done = self.arena.complete(index, saved.tid, script, started);
        if matches!(done, Err(RunError::Signal { .. })) {
            saved.at = At::Halt;
        }
        done
    }

    /// The address of a few hundred bytes in which the leader's calls may leave something for each other, and for [`Self::left`].
    #[must_use]
    pub fn spare(&self) -> u64 {
        self.arena.slot_address(0) + SPARE as u64
    }

    /// What lies there.
    pub fn left(&self, bytes: &mut [u8]) {
        let at = usize::try_from(self.spare() - self.arena.base()).unwrap_or(0);
        self.arena.memory().read(at, bytes);
    }

    /// Ends the borrowing of processes: scratch memory gone, every thread with its own registers in its stop. Before that those
    /// that are `copied` fork a [`Twin`], where they may: `born` gets it, with the place of its process.
    ///
    /// # Errors
    /// The kernel's refusals, or the death of a task: the first of them. The others are given back all the same.
    pub fn give_back(
        mut all: Vec<Borrowed<'a>>,
        copied: &[bool],
        mut born: impl FnMut(usize, Twin),
        robust: &mut RobustList,
    ) -> Result<(), Failed> {
        let mut outcome = Ok(());
        let pids: Vec<i32> = all.iter().map(|b| b.loan.pid).collect();
        let mut note = |i: usize, result: Result<(), RunError>| {
            if let (true, Err(e)) = (outcome.is_ok(), result) {
                outcome = Err((i, e.of(pids[i])));
            }
        };
        for (i, saved) in running(&mut all) {
            note(i, ptrace::interrupt(saved.tid).map_err(|e| RunError::from(e).of(saved.tid)));
        }
        for (i, saved) in running(&mut all) {
            note(i, Stopped::wait_blocked(saved.tid).map_err(|e| stop_error(saved.tid, e)));
        }
        for (i, borrowed) in all.iter_mut().enumerate() {
            note(i, borrowed.followers_return());
        }
        let calls = all.iter().map(|b| {
            let args = [b.arena.base(), b.arena.memory().len() as u64, 0, 0, 0, 0];
            (&b.loan.threads[0], &b.injection, Nr::MUNMAP, args)
        });
        for (i, unmapped) in call_all(calls).into_iter().enumerate() {
            note(i, unmapped.map(drop));
        }
        for (i, borrowed) in all.iter().enumerate() {
            if copied.get(i).copied().unwrap_or(false) {
                match Twin::fork(&borrowed.loan.threads[0], &borrowed.injection) {
                    Ok(twin) => twin.into_iter().for_each(|twin| born(i, twin)),
                    Err(e) => note(i, Err(e)),
                }
            }
        }
        all.iter().for_each(|b| robust.remove(b.arena.memory(), Arena::alive_entry()));
        Arena::unmap_all(all.iter_mut().map(|b| &mut b.arena));
        for (i, borrowed) in all.into_iter().enumerate() {
            let (leader, injection) = (&borrowed.loan.threads[0], &borrowed.injection);
            if let Some(fd) = borrowed.fd {
                note(i, injection.call(leader, Nr::CLOSE, [fd, 0, 0, 0, 0, 0]).map(drop));
            }
            note(i, borrowed.injection.end(leader, &borrowed.loan.saved[0]));
        }
        outcome
    }

    /// Every stopped thread but the leader has its own registers again.
    fn followers_return(&mut self) -> Result<(), RunError> {
        let mut outcome = Ok(());
        for (thread, saved) in self.loan.threads.iter().zip(&mut self.loan.saved) {
            if std::mem::take(&mut saved.at) != At::Stop && saved.tid != self.loan.pid {
                // The mask first: while the registers still lead to the frame, a death in between is harmless.
                let back =
                    ptrace::set_sigmask(saved.tid, saved.own.mask).and_then(|()| thread.set_regs(&saved.own.general));
                outcome = outcome.and(back.map_err(RunError::from));
            }
        }
        outcome
    }

    /// The registers that each thread had when it was stopped.
    pub fn registers(&self) -> impl Iterator<Item = Registers> {
        self.loan.saved.iter().map(|s| s.own.clone())
    }
}

impl Drop for Borrowed<'_> {
    /// Who is not given back would wait in the gadget until we die: better now than never.
    fn drop(&mut self) {
        if self.loan.saved.iter().any(|s| s.at != At::Stop) {
            std::process::abort();
        }
    }
}

/// Threads that run in the gadget, with the place of their process among `all`.
fn running<'b>(all: &'b mut [Borrowed<'_>]) -> impl Iterator<Item = (usize, &'b Saved)> {
    let threads = all.iter().enumerate().flat_map(|(i, b)| b.loan.saved.iter().map(move |s| (i, s)));
    threads.filter(|(_, saved)| saved.at == At::Gadget)
}

/// Lays a frame down in a thread's slot; its address.
fn lay_frame(arena: &Arena, index: usize, saved: &Saved) -> Result<u64, RunError> {
    let at = arena.slot_address(index) + (SLOT - FRAME_ROOM) as u64;
    let image = frame(at, &resumable(&saved.own.general), saved.own.mask, &saved.own.extended);
    if image.len() > FRAME_ROOM {
        return Err(RunError::TooLarge { call: "rt_sigreturn", bytes: image.len() });
    }
    arena.memory().write(usize::try_from(at - arena.base()).unwrap_or(0), &image);
    Ok(at)
}

fn stop_error(tid: i32, e: StopError) -> RunError {
    match e {
        StopError::Dead(d) => RunError::Died { tid, event: d.event },
        StopError::Sys(e) => RunError::Sys(e),
    }
}

/// Each process makes scratch memory of its own and maps it: code that it may execute, the rest that it may write.
fn map_scratch(all: &mut [Begun<'_>]) -> Result<(), Failed> {
    const SHARED_FIXED_NOREPLACE: u64 = 0x10_0001;
    const CLOEXEC_ALLOW_SEALING: u64 = 1 | 2;
    const READ_EXEC: u64 = 5;
    const READ_WRITE: u64 = 3;
    let made = injection::each(all, |b| (Nr::MEMFD_CREATE, [b.injection.name(), CLOEXEC_ALLOW_SEALING, 0, 0, 0, 0]));
    for (b, fd) in all.iter_mut().zip(&made) {
        b.fd = fd.as_ref().ok().copied();
    }
    first_failure(made)?;
    for (i, b) in all.iter_mut().enumerate() {
        b.map_ours().map_err(|e| (i, e))?;
    }
    for (from, protection) in [(0, READ_EXEC), (PAGE as u64, READ_WRITE)] {
        let to = |b: &Begun<'_>| if from == 0 { PAGE as u64 } else { b.len() };
        let done = injection::each(all, |b| {
            let fd = b.fd.unwrap_or(u64::MAX);
            (Nr::MMAP, [b.loan.base + from, to(b) - from, protection, SHARED_FIXED_NOREPLACE, fd, from])
        });
        for (b, done) in all.iter_mut().zip(&done) {
            b.mapped = if done.is_ok() { to(b) } else { b.mapped };
        }
        first_failure(done)?;
    }
    Ok(())
}

fn first_failure(results: Vec<Result<u64, RunError>>) -> Result<(), Failed> {
    results.into_iter().enumerate().find_map(|(i, r)| r.err().map(|e| (i, e))).map_or(Ok(()), Err)
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
