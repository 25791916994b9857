//! System calls through the vdso of a stopped task, with a frame on its stack to fall back to.

use yendor_sys::{Errno, SysError, ptrace, vm};

use super::frame::{UCONTEXT, frame};
use super::twin::STATUS;
use super::{Begun, Entry, Saved, stop_error};
use crate::arena::RunError;
use crate::nr::Nr;
use crate::regs::{Regs, resumable};
use crate::stop::Stopped;

/// What the scratch memory is called: [`super::SCRATCH`] without what the kernel adds.
const NAME: &[u8] = b"yendor-scratch\0";

/// As many bytes as a frame without extended state takes, and the word before it.
const TWIN_ROOM: usize = 8 + UCONTEXT + 64 + 32;

/// Registers with which a task ends itself.
fn ending(from: &Regs, entry: Entry, stack: u64) -> Regs {
    Regs { rip: entry.syscall, rsp: stack, rax: Nr::EXIT_GROUP.raw(), rdi: STATUS, ..*from }
}

/// A leader whose registers are ready for calls.
#[derive(Debug)]
pub struct Injection {
    regs: Regs,
    /// The address of the scratch memory's name in the task.
    name: u64,
    /// Where the stack of a twin begins: beneath it is what ends the twin.
    twin: u64,
    /// The bytes of the stack that were overwritten.
    stack: Vec<u8>,
}

impl Injection {
    /// Lays the frame down and makes the registers ready.
    pub fn begin(leader: &Stopped, saved: &Saved, entry: Entry) -> Result<Injection, RunError> {
        let room = (8 + UCONTEXT + 64 + saved.own.extended.len() + 8 + NAME.len() + TWIN_ROOM) as u64;
        let at = match entry.stack {
            Some(bottom) => bottom + 64,
            None => saved.own.general.rsp.wrapping_sub(128 + room) & !63,
        };
        // The return address, then the ucontext: as a signal's frame lies.
        let mut image = entry.sigreturn.to_ne_bytes().to_vec();
        image.extend_from_slice(&frame(at + 8, &resumable(&saved.own.general), saved.own.mask, &saved.own.extended));
        let name = at + image.len() as u64;
        image.extend_from_slice(NAME);
        // Likewise for a child of the leader: it has the same memory.
        let twin = (at + image.len() as u64).next_multiple_of(16) + 8;
        image.resize(usize::try_from(twin - at).unwrap_or(image.len()), 0);
        image.extend_from_slice(&entry.sigreturn.to_ne_bytes());
        image.extend_from_slice(&frame(twin + 8, &ending(&saved.own.general, entry, twin), u64::MAX, &[]));
        let mut stack = vec![0u8; image.len()];
        if entry.stack.is_none() {
            // The stack may end in between.
            ptrace::peek(leader.tid(), at)?;
        }
        vm::read_exact(leader.tid(), at, &mut stack)?;
        vm::write_all(leader.tid(), at, &image)?;
        let mut regs = saved.own.general;
        regs.rip = entry.syscall;
        regs.rsp = at;
        regs.orig_rax = u64::MAX;
        regs.eflags &= !0x500;
        // A harmless call until the first real one: getpid.
        regs.rax = Nr::GETPID.raw();
        leader.set_regs(&regs)?;
        ptrace::set_sigmask(leader.tid(), u64::MAX)?;
        Ok(Injection { regs, name, twin, stack })
    }

    /// The address of the scratch memory's name in the task.
    pub fn name(&self) -> u64 {
        self.name
    }

    /// The address of the frame's `ucontext`.
    pub fn context(&self) -> u64 {
        self.regs.rsp + 8
    }

    /// Makes one call.
    pub fn call(&self, leader: &Stopped, nr: Nr, args: [u64; 6]) -> Result<u64, RunError> {
        let mut results = call_all([(leader, self, nr, args)].into_iter());
        results.pop().unwrap_or_else(|| Err(SysError::new(nr.name(), "", Errno::SRCH).into()))
    }

    /// Where a child of the leader must have its stack.
    pub fn twin_stack(&self) -> u64 {
        self.twin
    }

    /// Makes one call in such a child.
    pub fn call_twin(&self, twin: &Stopped, nr: Nr, args: [u64; 6]) -> Result<u64, RunError> {
        let own = Injection { regs: Regs { rsp: self.twin, ..self.regs }, stack: Vec::new(), ..*self };
        own.call(twin, nr, args)
    }

    /// Leaves such a child where it makes a call as soon as it runs.
    pub fn call_begins(&self, twin: &Stopped, nr: Nr, argument: u64) -> Result<(), RunError> {
        Ok(twin.set_regs(&Regs { rsp: self.twin, rax: nr.raw(), rdi: argument, ..self.regs })?)
    }

    /// Gives such a child back the bytes of the stack that were overwritten.
    pub fn own_stack(&self, twin: i32) -> Result<(), RunError> {
        Ok(vm::write_all(twin, self.regs.rsp, &self.stack)?)
    }

    /// Starts one call.
    pub fn start(&self, leader: &Stopped, nr: Nr, args: [u64; 6]) -> Result<(), RunError> {
        let mut regs = self.regs;
        regs.rax = nr.raw();
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        leader.set_regs(&regs)?;
        Ok(leader.to_syscall()?)
    }

    /// The leader's own registers and stack again.
    pub fn end(&self, leader: &Stopped, saved: &Saved) -> Result<(), RunError> {
        ptrace::set_sigmask(leader.tid(), saved.own.mask)?;
        leader.set_regs(&saved.own.general)?;
        Ok(vm::write_all(leader.tid(), self.regs.rsp, &self.stack)?)
    }
}

/// A call to be made.
type Call<'c> = (&'c Stopped, &'c Injection, Nr, [u64; 6]);

/// Makes calls in several tasks, side by side: what each returned. Whatever happens to one, the others have made theirs.
pub fn call_all<'c>(calls: impl Iterator<Item = Call<'c>>) -> Vec<Result<u64, RunError>> {
    let started: Vec<(Call<'_>, Result<(), RunError>)> =
        calls.map(|call @ (leader, injection, nr, args)| (call, injection.start(leader, nr, args))).collect();
    let wait = |leader: &Stopped| leader.await_syscall().map_err(|e| stop_error(leader.tid(), e));
    let entered: Vec<_> = started
        .into_iter()
        .map(|(call, result)| (call, result.and_then(|()| wait(call.0)).and_then(|()| Ok(call.0.to_syscall()?))))
        .collect();
    let returned = entered.into_iter().map(|((leader, _, nr, args), result)| {
        result.and_then(|()| wait(leader))?;
        let returned = leader.regs()?.rax.cast_signed();
        if (-4095..0).contains(&returned) {
            let errno = Errno::from_raw_os_error(i32::try_from(-returned).unwrap_or(0));
            return Err(SysError::new(nr.name(), format!("{:#x}, {:#x}", args[0], args[1]), errno).into());
        }
        Ok(returned.cast_unsigned())
    });
    returned.collect()
}

/// The same call, but for its arguments, in each of several leaders.
pub fn each(all: &[Begun<'_>], call: impl Fn(&Begun<'_>) -> (Nr, [u64; 6])) -> Vec<Result<u64, RunError>> {
    call_all(all.iter().map(|b| {
        let ((leader, injection), (nr, args)) = (b.leader(), call(b));
        (leader, injection, nr, args)
    }))
}
