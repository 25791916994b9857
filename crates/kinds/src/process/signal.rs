//! Blocked and pending signals, and the alternate signal stack.
//! *Read from:* `PTRACE_GETSIGMASK`, `PTRACE_PEEKSIGINFO`, sigaltstack in the task.
//! *Made again by:* `PTRACE_SETSIGMASK`, rt_sigqueueinfo and rt_tgsigqueueinfo by the task to itself, sigaltstack.
//! *Lost:* nothing.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::ptrace;
use yendor_task::script::{bytes, out};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question, half_at, word_at, words};
use crate::{Cause, Result};

/// A thread's signals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Blocked, bit n-1 for signal n.
    pub mask: u64,
    /// Pending for this thread.
    pub pending: Queue,
    /// The alternate stack.
    pub stack: AltStack,
}

/// `stack_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AltStack {
    /// Its lowest address.
    pub address: u64,
    /// `SS_*`.
    pub flags: u32,
    /// Its size in bytes.
    pub size: u64,
}

/// Queued `siginfo_t`s, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// 128 bytes each.
    pub infos: Vec<Bytes>,
}

/// `si_code` of a POSIX timer's signal (sigaction(2)).
const SI_TIMER: i32 = -2;

impl Queue {
    /// The queue of a thread, or with `shared` of its process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn collect(tid: i32, shared: bool) -> Result<Queue> {
        let infos = ptrace::queued_signals(tid, shared)?;
        Ok(Queue { infos: infos.into_iter().map(|i| Bytes(i.to_vec())).collect() })
    }

    /// The signals in it, as a mask.
    #[must_use]
    pub fn mask(&self) -> u64 {
        let number = |i: &Bytes| half_at(&i.0, 0);
        self.infos.iter().map(number).filter(|n| (1..=64).contains(n)).fold(0, |m, n| m | 1 << (n - 1))
    }

    /// The POSIX timers whose signals wait in it, and the signals.
    pub fn timers(&self) -> impl Iterator<Item = (i32, i32)> + '_ {
        self.infos.iter().filter_map(Queue::timer)
    }

    /// The POSIX timer that a signal is of, and its number.
    #[must_use]
    pub fn timer(info: &Bytes) -> Option<(i32, i32)> {
        let number = |at: usize| half_at(&info.0, at).cast_signed();
        (number(8) == SI_TIMER).then(|| (number(16), number(0)))
    }

    /// What waits in it and did not `then`.
    pub fn since(self, then: &Queue) -> impl Iterator<Item = Bytes> + use<> {
        let mut then = then.infos.clone();
        self.infos.into_iter().filter(move |info| match then.iter().position(|old| old == info) {
            Some(place) => {
                then.swap_remove(place);
                false
            }
            None => true,
        })
    }

    /// How many signals of this number wait in it.
    #[must_use]
    pub fn count(&self, signal: i32) -> usize {
        self.infos.iter().filter(|i| half_at(&i.0, 0).cast_signed() == signal).count()
    }

    /// Takes out the signals of these POSIX timers: they will queue them again.
    pub fn without_timers(&mut self, ids: &[(i32, u64)]) {
        let is_theirs = |i: &Bytes| {
            let id = half_at(&i.0, 16).cast_signed();
            half_at(&i.0, 8).cast_signed() == SI_TIMER && ids.iter().any(|(timer, _)| *timer == id)
        };
        self.infos.retain(|i| !is_theirs(i));
    }

    /// The task queues them to itself: to the thread `tid` of `pid`, or to the process.
    ///
    /// # Errors
    /// `Corrupt` for something that is no siginfo.
    pub fn rebuild(&self, pid: i32, tid: Option<i32>, script: &mut Script) -> Result<()> {
        for info in &self.infos {
            let signal = half_at(&info.0, 0);
            if info.0.len() != ptrace::SIGINFO || !(1..=64).contains(&signal) {
                return Err(Cause::corrupt(format!("a queued signal with {} bytes, number {signal}", info.0.len())));
            }
            match tid {
                Some(tid) => {
                    script.call(Nr::RT_TGSIGQUEUEINFO, args![pid, tid, signal, bytes(info.0.clone())]);
                }
                None => {
                    script.call(Nr::RT_SIGQUEUEINFO, args![pid, signal, bytes(info.0.clone())]);
                }
            }
        }
        Ok(())
    }
}

/// Asks for the alternate stack.
pub fn ask(inquiry: &mut Inquiry) -> Question {
    inquiry.ask(Nr::SIGALTSTACK, args![0, out(24)])
}

/// Puts together what is known. `pending`: of the thread.
///
/// # Errors
/// The call's own.
pub fn collect(mask: u64, pending: Queue, inquiry: &Inquiry, asked: Question) -> Result<Record> {
    let stack = inquiry.bytes(asked)?;
    Ok(Record {
        mask,
        pending,
        stack: AltStack { address: word_at(stack, 0), flags: half_at(stack, 8), size: word_at(stack, 16) },
    })
}

const SS_ONSTACK: u32 = 1;
const SS_DISABLE: u32 = 2;

/// Sets the alternate stack. The mask is set last of all, by ptrace.
pub fn rebuild(record: &Record, script: &mut Script) {
    let Record { mask: _, pending: _, stack } = record;
    let AltStack { address, flags, size } = *stack;
    if flags & SS_DISABLE != 0 {
        return;
    }
    // Whether the task is on it the kernel sees from the stack pointer.
    script.call(Nr::SIGALTSTACK, args![bytes(words(&[address, u64::from(flags & !SS_ONSTACK), size])), 0]);
}
