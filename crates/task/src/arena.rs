//! Scratch memory shared by the tracer and the tasks it drives: code, one word that says the tracer lives, and a slot
//! per task where its script lies.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use thiserror::Error;
use yendor_sys::futex::{self, ROBUST_ENTRY, ROBUST_WORD};
use yendor_sys::mapping::Mapping;
use yendor_sys::ptrace::{self, event};
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};

use crate::gadget::{CODE, FLAGS, TILE_SHAPE, TILES, record, slot};
use crate::regs::Regs;
use crate::script::{Arg, Call, Done, Memory, Output, Script, Want};
use crate::stop::{self, SIGKILL, SIGSTOP};
use crate::{end, fault};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Where the tracer's robust-list entry lies.
const ALIVE_ENTRY: usize = PAGE;
/// The word in it.
const ALIVE: usize = ALIVE_ENTRY + ROBUST_WORD;
/// Where the slots start.
const SLOTS: usize = 2 * PAGE;
/// A script that needs longer than this has hung: it is a bug or a kernel that does not answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why a script did not run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RunError {
    /// A call failed; the rest was not executed.
    #[error("{error}")]
    Call {
        /// The call's place in the script.
        index: usize,
        /// The call and the kernel's answer.
        error: SysError,
    },
    /// The task died.
    #[error("task {tid} died ({event:?})")]
    Died {
        /// Which.
        tid: i32,
        /// How.
        event: Event,
    },
    /// The task got a signal in the middle of the script.
    #[error("task {tid} was stopped by signal {signal} while it executed a script")]
    Signal {
        /// Which.
        tid: i32,
        /// The signal.
        signal: i32,
    },
    /// The task executes another program now: its execve succeeded, and it is stopped.
    #[error("task {tid} has executed a program")]
    Executed {
        /// Which.
        tid: i32,
    },
    /// The task's calls are dispatched to itself (prctl(2), `PR_SET_SYSCALL_USER_DISPATCH`): ours would be, too, and the signal that tells
    /// of one resets its handler while it is blocked.
    #[error("task {tid} uses syscall user dispatch")]
    Dispatched {
        /// Which.
        tid: i32,
    },
    /// One call's data does not fit into a slot.
    #[error("{call} carries {bytes} bytes, more than the scratch memory holds")]
    TooLarge {
        /// The call.
        call: &'static str,
        /// Its data in bytes.
        bytes: usize,
    },
    /// No answer for ten minutes.
    #[error("task {tid} has not finished its script")]
    Hung {
        /// Which.
        tid: i32,
    },
    /// A call of our own failed.
    #[error("{0}")]
    Sys(#[from] SysError),
}

impl RunError {
    /// The same of a task that was in our hands: one that is gone was killed.
    #[must_use]
    pub fn of(self, tid: i32) -> RunError {
        match self {
            RunError::Sys(e) if e.is_gone() => RunError::Died { tid, event: Event::Killed(SIGKILL) },
            other => other,
        }
    }
}

/// The shared scratch memory.
#[derive(Debug)]
pub struct Arena {
    memory: Mapping,
    base: u64,
    slot_size: usize,
}

impl Arena {
    /// Bytes that an arena with `slots` slots of `slot_size` bytes takes.
    #[must_use]
    pub fn size(slots: usize, slot_size: usize) -> usize {
        SLOTS + slots * slot_size
    }

    /// An arena over `memory`, which tasks will find at `base`. Lays down code; `alive` is what the tracer's word holds
    /// while it lives (0 where nobody has to survive us).
    #[must_use]
    pub fn new(memory: Mapping, base: u64, slot_size: usize, alive: u32) -> Self {
        memory.write(0, CODE);
        memory.word(ALIVE).store(alive, Ordering::Release);
        let arena = Self { memory, base, slot_size };
        for i in 0..arena.slots() {
            arena.prepare_slot(i, alive);
        }
        arena
    }

    fn prepare_slot(&self, index: usize, alive: u32) {
        let at = self.at(index);
        let here = self.base + at as u64;
        let mut waiters = Vec::with_capacity(48);
        for (value, address) in [(0, here + slot::GO as u64), (u64::from(alive), self.base + ALIVE as u64)] {
            waiters.extend_from_slice(&value.to_ne_bytes());
            waiters.extend_from_slice(&address.to_ne_bytes());
            // FUTEX2_SIZE_U32, shared; a reserved word.
            waiters.extend_from_slice(&2u64.to_ne_bytes());
        }
        self.memory.write(at + slot::WAITERS, &waiters);
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        (self.memory.len() - SLOTS) / self.slot_size
    }

    /// Where tasks find it.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// One past its last byte, as tasks see it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.base + self.memory.len() as u64
    }

    /// The memory itself.
    #[must_use]
    pub fn memory(&self) -> &Mapping {
        &self.memory
    }

    /// Unmaps the memory of several, which nobody uses any more.
    pub fn unmap_all<'a>(all: impl Iterator<Item = &'a mut Arena>) {
        Mapping::unmap_all(all.map(|arena| &mut arena.memory).collect());
    }

    /// The offset of the robust-list entry that holds the tracer's word.
    #[must_use]
    pub fn alive_entry() -> usize {
        const { assert!(ALIVE_ENTRY + ROBUST_ENTRY <= SLOTS) };
        ALIVE_ENTRY
    }

    fn at(&self, index: usize) -> usize {
        SLOTS + index * self.slot_size
    }

    /// The address of a slot, as tasks see it.
    #[must_use]
    pub fn slot_address(&self, index: usize) -> u64 {
        self.base + self.at(index) as u64
    }

    /// A word of a slot.
    #[must_use]
    pub fn slot_word(&self, index: usize, offset: usize) -> u32 {
        self.memory.word(self.at(index) + offset).load(Ordering::Acquire)
    }

    /// Registers with which a task executes code at `entry` of the gadget for slot `index`; `frame` is the address of the
    /// `ucontext` to return to if the tracer dies.
    #[must_use]
    pub fn entry_regs(&self, from: &Regs, index: usize, entry: u64, frame: u64) -> Regs {
        let mut regs = *from;
        regs.rip = self.base + entry;
        regs.r12 = self.slot_address(index);
        regs.r13 = self.base + ALIVE as u64;
        regs.r14 = frame;
        regs.orig_rax = u64::MAX;
        regs.rax = 0;
        // Clear the direction and trap flags: the loop wants neither.
        regs.eflags &= !0x500;
        regs
    }

    /// Registers with which the task of slot `index`, stopped, loads `flags` by an instruction of its own and then makes a
    /// harmless call ([`crate::Stopped::step_syscall`]): the way to set those that ptrace(2) leaves as they are.
    #[must_use]
    pub fn flags_regs(&self, from: &Regs, index: usize, flags: u64) -> Regs {
        self.memory.write(self.at(index) + slot::RECORDS, &flags.to_ne_bytes());
        let mut regs = *from;
        regs.rip = self.base + FLAGS;
        regs.rsp = self.slot_address(index) + slot::RECORDS as u64;
        regs.orig_rax = u64::MAX;
        regs.rax = crate::Nr::GETPID.raw();
        regs
    }

    /// Registers with which the task of slot `index`, stopped, uses a tile (AMX) and gives it back, and then makes a
    /// harmless call ([`crate::Stopped::step_syscall`]).
    #[must_use]
    pub fn tiles_regs(&self, from: &Regs, index: usize) -> Regs {
        self.memory.write(self.at(index) + slot::RECORDS, &TILE_SHAPE);
        let mut regs = *from;
        regs.rip = self.base + TILES;
        regs.rdi = self.slot_address(index) + slot::RECORDS as u64;
        regs.orig_rax = u64::MAX;
        regs.rax = crate::Nr::GETPID.raw();
        regs
    }

    /// Makes a slot as new, for another task.
    pub fn reset_slot(&self, index: usize, alive: u32) {
        let at = self.at(index);
        self.memory.write(at, &[0; 16]);
        self.prepare_slot(index, alive);
    }

    /// Runs a script in the task that waits at slot `index`, in as many pieces as the slot needs.
    ///
    /// # Errors
    /// The first call that did not return what it had to, or the death of the task.
    pub fn run(&self, index: usize, tid: i32, script: &Script) -> Result<Vec<Done>, RunError> {
        let started = self.start(index, &script.calls)?;
        self.complete(index, tid, script, started)
    }

    /// Runs what is left of a script whose first `started` calls [`Self::start`] has started.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn complete(&self, index: usize, tid: i32, script: &Script, started: usize) -> Result<Vec<Done>, RunError> {
        let mut done = Vec::with_capacity(script.calls.len());
        let (mut rest, mut n) = (script.calls.as_slice(), started);
        while !rest.is_empty() {
            self.finish(index, tid, &rest[..n], script.calls.len() - rest.len(), &mut done)?;
            rest = &rest[n..];
            if !rest.is_empty() {
                n = self.start(index, rest)?;
            }
        }
        Ok(done)
    }

    /// Lays down as many calls as fit and starts them. How many.
    ///
    /// # Errors
    /// [`RunError::TooLarge`] when not even one fits.
    pub fn start(&self, index: usize, calls: &[Call]) -> Result<usize, RunError> {
        if calls.is_empty() {
            return Ok(0);
        }
        let at = self.at(index);
        let room = self.slot_size - slot::RECORDS - record::SIZE;
        let mut n = 0;
        let mut used = 0;
        for call in calls {
            let need = record::SIZE + data_size(call);
            if used + need > room {
                break;
            }
            used += need;
            n += 1;
        }
        if n == 0 {
            let (call, bytes) = calls.first().map_or(("", 0), |c| (c.nr.name(), data_size(c)));
            return Err(RunError::TooLarge { call, bytes });
        }
        let mut image = Vec::with_capacity(used + record::SIZE);
        image.resize((n + 1) * record::SIZE, 0);
        for (i, call) in calls[..n].iter().enumerate() {
            let words = self.record(index, call, &mut image);
            for (w, word) in words.iter().enumerate() {
                let from = i * record::SIZE + w * 8;
                image[from..from + 8].copy_from_slice(&word.to_ne_bytes());
            }
        }
        image[n * record::SIZE..n * record::SIZE + 8].copy_from_slice(&record::END.to_ne_bytes());
        self.memory.write(at + slot::RECORDS, &image);
        self.memory.word(at + slot::DONE).store(0, Ordering::Release);
        let go = self.memory.word(at + slot::GO);
        go.fetch_add(1, Ordering::AcqRel);
        futex::wake(go);
        Ok(n)
    }

    /// The ten words of a record; appends the call's data to `image`.
    fn record(&self, index: usize, call: &Call, image: &mut Vec<u8>) -> [u64; 10] {
        let origin = self.slot_address(index) + slot::RECORDS as u64;
        let mut words = [0u64; 10];
        words[0] = fault::number(call.nr.raw(), call.want);
        for (word, arg) in words[1..7].iter_mut().zip(&call.args) {
            *word = match arg {
                Arg::Value(v) => *v,
                Arg::Memory(m) | Arg::Back(m) => origin + lay_down(m, origin, image) as u64,
                Arg::Out(len) => origin + lay_zeros(*len, image) as u64,
            };
        }
        // A value that no call returns: tells a record that was not reached.
        words[7] = NOT_REACHED.cast_unsigned();
        (words[8], words[9]) = match call.want {
            Want::Success => (0, u64::MAX - 4095),
            Want::Exactly(v) => (v, 0),
            Want::Anything => (0, u64::MAX),
        };
        words
    }

    /// Waits for the end of the calls that [`Self::start`] started and reads what they returned into `done`.
    /// `first` is the index of `calls[0]` in the whole script.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn finish(
        &self,
        index: usize,
        tid: i32,
        calls: &[Call],
        first: usize,
        done: &mut Vec<Done>,
    ) -> Result<(), RunError> {
        self.await_done(index, tid)?;
        let at = self.at(index) + slot::RECORDS;
        let mut data_at = at + (calls.len() + 1) * record::SIZE;
        for (i, call) in calls.iter().enumerate() {
            let returned = self.memory.load64(at + i * record::SIZE + record::RETURNED).cast_signed();
            let good = match call.want {
                Want::Success => !(-4095..0).contains(&returned),
                Want::Exactly(v) => returned.cast_unsigned() == v,
                Want::Anything => true,
            };
            if returned == NOT_REACHED || !good {
                return Err(RunError::Call { index: first + i, error: call_error(call, returned) });
            }
            let mut out = SmallVec::new();
            for arg in &call.args {
                let back = match arg {
                    Arg::Out(len) => Some(*len),
                    Arg::Back(m) => Some(m.bytes.len()),
                    Arg::Value(_) | Arg::Memory(_) => None,
                };
                if let Some(len) = back {
                    let mut bytes = Output::from_elem(0, len);
                    self.memory.read(data_at, &mut bytes);
                    out.push(bytes);
                }
                data_at += size(arg);
            }
            done.push(Done { returned, out });
        }
        Ok(())
    }

    fn await_done(&self, index: usize, tid: i32) -> Result<(), RunError> {
        const LONGEST: Duration = Duration::from_millis(20);
        let word = self.memory.word(self.at(index) + slot::DONE);
        let start = Instant::now();
        // Whoever ends its script wakes us; whoever dies or executes a program is only found by looking.
        let mut pause = Duration::from_micros(100);
        loop {
            if word.load(Ordering::Acquire) == 1 {
                return Ok(());
            }
            futex::wait(word, 0, pause);
            pause = (pause * 2).min(LONGEST);
            if word.load(Ordering::Acquire) == 1 {
                return Ok(());
            }
            let on = match stop::already(tid)? {
                None => {
                    if pause == LONGEST {
                        end::take_others(tid);
                    }
                    Ok(())
                }
                // A group stop or another interrupt: it goes on with its script.
                Some(Event::Stopped { event: event::STOP, .. }) => ptrace::cont(tid, 0),
                // The one signal that nobody can block: the task will be in its group stop when we let it go.
                Some(Event::Stopped { signal: SIGSTOP, event: 0 }) => ptrace::cont(tid, SIGSTOP),
                Some(Event::Stopped { event: event::EXEC, .. }) => return Err(RunError::Executed { tid }),
                Some(Event::Stopped { signal, .. }) => return Err(RunError::Signal { tid, signal }),
                Some(event) => return Err(RunError::Died { tid, event }),
            };
            match on {
                // Its end is yet to be told.
                Err(e) if e.is_gone() => {}
                other => other?,
            }
            if start.elapsed() > PATIENCE {
                return Err(RunError::Hung { tid });
            }
        }
    }
}

const NOT_REACHED: i64 = i64::MIN;

fn call_error(call: &Call, returned: i64) -> SysError {
    let errno = i32::try_from(returned.saturating_neg()).ok().filter(|n| (1..4096).contains(n));
    let errno = errno.map_or(Errno::PROTO, Errno::from_raw_os_error);
    let mut args = call.shown_args();
    if errno == Errno::PROTO {
        args = format!("{args}) = {returned:#x}, wanted {:?} (", call.want);
    }
    SysError::new(call.nr.name(), args, errno)
}

fn data_size(call: &Call) -> usize {
    call.args.iter().map(size).sum()
}

/// Bytes of scratch memory that an argument takes.
#[must_use]
pub fn size(arg: &Arg) -> usize {
    match arg {
        Arg::Value(_) => 0,
        Arg::Memory(m) | Arg::Back(m) => memory_size(m),
        Arg::Out(len) => len.next_multiple_of(16),
    }
}

/// Bytes that [`lay_down`] appends.
fn memory_size(m: &Memory) -> usize {
    m.bytes.len().next_multiple_of(16) + m.pointers.iter().map(|(_, t)| memory_size(t)).sum::<usize>()
}

/// Appends zero bytes to an image; their offset.
pub fn lay_zeros(len: usize, image: &mut Vec<u8>) -> usize {
    let at = image.len();
    image.resize(at + len.next_multiple_of(16), 0);
    at
}

/// Appends `m` and what it points to, to an image that a task will find at `origin`; its offset.
pub fn lay_down(m: &Memory, origin: u64, image: &mut Vec<u8>) -> usize {
    let at = image.len();
    image.extend_from_slice(&m.bytes);
    image.resize(at + m.bytes.len().next_multiple_of(16), 0);
    let point = |offset: usize, address: u64, image: &mut Vec<u8>| {
        if let Some(place) = image.get_mut(at + offset..at + offset + 8) {
            place.copy_from_slice(&address.to_ne_bytes());
        }
    };
    for (offset, target) in &m.pointers {
        let address = origin + lay_down(target, origin, image) as u64;
        point(*offset, address, image);
    }
    m.inner.iter().for_each(|(offset, to)| point(*offset, origin + (at + to) as u64, image));
    at
}
