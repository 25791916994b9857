//! POSIX timers of a process, with their ids (timer_create(2)).
//! *Read from:* /proc/PID/timers; timer_gettime and timer_getoverrun in the task. How often a timer has expired since its
//! waiting signal was queued is told only with the signal: it is taken, and the timer set to have expired as often again.
//! *Made again by:* timer_create under `PR_TIMER_CREATE_RESTORE_IDS`, timer_settime. Overruns: a first expiry so far in the
//! past, and where the signal was taken before, the new task takes it too.
//! *Lost:* overruns of CPU-time timers, of a waiting signal beside others of the same number, and of a signal taken before
//! while the next one waits.

use serde::{Deserialize, Serialize};
use yendor_proc::timers::Timer;
use yendor_task::script::{Done, Memory, Want, bytes, out};
use yendor_task::{Arg, Nr, Script, args};

use super::signal::Queue;
use super::{Inquiry, Question, half_at, word_at, words};
use crate::{Cause, Result};

/// All timers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// By id.
    pub timers: Vec<One>,
}

/// One timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct One {
    /// `timer_t`.
    pub id: i32,
    /// The clock.
    pub clock: i32,
    /// `SIGEV_*`, with `SIGEV_THREAD_ID` as 4.
    pub notify: i32,
    /// The signal.
    pub signal: i32,
    /// The value that comes with the signal.
    pub value: u64,
    /// For `SIGEV_THREAD_ID` the thread inside the container.
    pub thread: Option<i32>,
    /// Interval seconds and nanoseconds, then what remains; zero when disarmed.
    pub setting: [u64; 4],
    /// What timer_getoverrun tells.
    pub overrun: u64,
    /// Whether its signal waits to be taken, and how often it has expired meanwhile. The signal itself is in no queue then.
    pub waiting: Option<u64>,
}

/// What is asked about a timer.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    setting: Question,
    overrun: Question,
}

impl Asked {
    /// Whether it said that it will not expire any more.
    #[must_use]
    pub fn is_disarmed(&self, inquiry: &Inquiry) -> bool {
        (0..4).all(|i| inquiry.word(self.setting, i).is_ok_and(|word| word == 0))
    }
}

/// Asks for the settings of the timers that /proc lists.
pub fn ask(inquiry: &mut Inquiry, timers: &[Timer]) -> Vec<Asked> {
    let mut ask = |t: &Timer| Asked {
        setting: inquiry.ask(Nr::TIMER_GETTIME, args![t.id, out(32)]),
        overrun: inquiry.ask(Nr::TIMER_GETOVERRUN, args![t.id]),
    };
    timers.iter().map(&mut ask).collect()
}

/// Reads them. `inside` translates a thread id as /proc shows it; `waiting`: as [`Waiting`] found it, by timer.
///
/// # Errors
/// A call's own; a timer for a thread outside is refused by name.
pub fn collect(
    inquiry: &Inquiry,
    timers: &[Timer],
    asked: &[Asked],
    waiting: &[(i32, u64)],
    inside: impl Fn(i32) -> Option<i32>,
) -> Result<Record> {
    let mut out = Vec::new();
    for (timer, Asked { setting: question, overrun }) in timers.iter().zip(asked) {
        let mut setting = [0; 4];
        for (i, word) in setting.iter_mut().enumerate() {
            *word = inquiry.word(*question, i)?;
        }
        let waiting = waiting.iter().find(|(id, _)| *id == timer.id).map(|(_, overruns)| *overruns);
        let overrun = if has_wall_clock(timer.clock) { inquiry.value(*overrun)? } else { 0 };
        out.push(One { overrun, waiting, ..one(timer, setting, &inside)? });
    }
    // The kernel shows them in the order in which they were made last.
    out.sort_unstable_by_key(|timer| timer.id);
    Ok(Record { timers: out })
}

/// Whether times in the past can be told to the timer; CPU time starts anew.
#[must_use]
pub fn has_wall_clock(clock: i32) -> bool {
    clock >= 0 && clock != 2 && clock != 3
}

/// A signal of a timer that waits in a queue: of the process, or of the thread at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The timer.
    pub id: i32,
    /// Of which thread.
    pub thread: Option<usize>,
    signal: i32,
    clock: i32,
    /// Whether its overruns can be learned.
    exact: bool,
}

const SIG_BLOCK_ALL: u64 = u64::MAX;
const ABSOLUTE: u32 = 1;

impl Waiting {
    /// Those in the process's queue and in its threads' queues.
    #[must_use]
    pub fn find(timers: &[Timer], inquiry: &Inquiry, asked: &[Asked], shared: &Queue, own: &[Queue]) -> Vec<Waiting> {
        let mut found: Vec<Waiting> = Vec::new();
        let queues = std::iter::once((None, shared)).chain(own.iter().enumerate().map(|(i, q)| (Some(i), q)));
        for (thread, queue) in queues {
            for (id, signal) in queue.timers() {
                let known = timers.iter().zip(asked).find(|(t, _)| t.id == id && t.signal == signal);
                let Some((timer, asked)) = known.filter(|(t, _)| has_wall_clock(t.clock)) else { continue };
                let word = |i| inquiry.word(asked.setting, i).unwrap_or(0);
                let periodic = (word(0), word(1)) != (0, 0);
                let fresh = inquiry.value(asked.overrun).unwrap_or(1) == 0;
                let alone = queue.count(signal) == 1 && (thread.is_none() || shared.count(signal) == 0);
                let exact = periodic && fresh && alone;
                if !found.iter().any(|w| w.id == id) {
                    found.push(Waiting { id, thread, signal, clock: timer.clock, exact });
                }
            }
        }
        found
    }

    /// To be run before [`Self::take`]: the clock and the setting, read together.
    #[must_use]
    pub fn look(&self) -> Script {
        let mut script = Script::new();
        script.call(Nr::CLOCK_GETTIME, args![self.clock, out(16)]);
        script.call(Nr::TIMER_GETTIME, args![self.id, out(32)]);
        script
    }

    /// Takes the signal and at once has the timer queue it again, so that it is there whatever becomes of us. None where
    /// there is nothing to learn.
    #[must_use]
    pub fn take(&self, looked: &[Done]) -> Option<Script> {
        let (interval, next) = interval_and_next(looked).filter(|_| self.exact)?;
        let mut script = Script::new();
        script.call(Nr::RT_SIGTIMEDWAIT, args![bytes(mask(self.signal)), out(128), bytes([0u8; 16]), 8]);
        let again = setting(interval, first_expiry(next, interval, 0));
        script.call(Nr::TIMER_SETTIME, args![self.id, ABSOLUTE, bytes(again), 0]);
        Some(script)
    }

    /// The overruns that came with the signal, and the calls after which it comes with as many again.
    #[must_use]
    pub fn put_back(&self, looked: &[Done], taken: &[Done]) -> (u64, Script) {
        let mut script = Script::new();
        let info = taken.first().and_then(|d| d.out.first()).map_or(&[][..], |out| &out[..]);
        let overruns = u64::from(half_at(info, 20));
        if let Some((interval, next)) = interval_and_next(looked) {
            let again = setting(interval, first_expiry(next, interval, overruns));
            script.call(Nr::TIMER_SETTIME, args![self.id, ABSOLUTE, bytes(again), 0]);
        }
        (overruns, script)
    }
}

const SECOND: u64 = 1_000_000_000;

/// The word at an offset of what a call has filled in.
fn filled(done: Option<&Done>, offset: usize) -> u64 {
    done.and_then(|d| d.out.first()).map_or(0, |bytes| word_at(bytes, offset))
}

/// Seconds and nanoseconds at an offset of what a call has filled in, in nanoseconds.
fn time(done: Option<&Done>, offset: usize) -> u64 {
    filled(done, offset).saturating_mul(SECOND).saturating_add(filled(done, offset + 8))
}

/// From what [`Waiting::look`] saw: the interval, and when the timer expires next.
fn interval_and_next(looked: &[Done]) -> Option<(u64, u64)> {
    let (now, timer) = (looked.first(), looked.get(1));
    let (interval, rest) = (time(timer, 0), time(timer, 16));
    (interval > 0).then(|| (interval, time(now, 0).saturating_add(rest)))
}

/// When a timer that expires at `next` must have expired first to have `overruns` now; as many as fit after the clock's
/// beginning.
fn first_expiry(next: u64, interval: u64, overruns: u64) -> u64 {
    if interval == 0 {
        return 1;
    }
    let fitting = next.saturating_sub(1) / interval;
    next - interval * fitting.min(overruns.saturating_add(1))
}

fn mask(signal: i32) -> [u8; 8] {
    let bit = u32::try_from(signal - 1).ok().and_then(|n| 1u64.checked_shl(n));
    bit.unwrap_or(SIG_BLOCK_ALL).to_ne_bytes()
}

fn setting(interval: u64, value: u64) -> Vec<u8> {
    words(&[interval / SECOND, interval % SECOND, value / SECOND, value % SECOND])
}

fn one(timer: &Timer, setting: [u64; 4], inside: &impl Fn(i32) -> Option<i32>) -> Result<One> {
    use yendor_proc::timers::Notify;
    let (notify, thread) = match timer.notify {
        Notify::Signal => (0, None),
        Notify::None => (1, None),
        Notify::Thread => (2, None),
    };
    let (notify, thread) = if timer.to_thread {
        let tid = inside(timer.target).ok_or_else(|| {
            Cause::unsupported(format!("timer {} signals thread {}, which is outside", timer.id, timer.target))
        })?;
        (notify | 4, Some(tid))
    } else {
        (notify, thread)
    };
    let Timer { id, clock, signal, value, .. } = *timer;
    Ok(One { id, clock, notify, signal, value, thread, setting, overrun: 0, waiting: None })
}

const PR_TIMER_CREATE_RESTORE_IDS: u32 = 77;

/// Makes them with their ids, disarmed or armed as they were. `own`: a thread's id as its process knows it.
pub fn rebuild(record: &Record, own: impl Fn(i32) -> i32, script: &mut Script) {
    let Record { timers } = record;
    if timers.is_empty() {
        return;
    }
    script.call(Nr::PRCTL, args![PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0]);
    for One { id, clock, notify, signal, value, thread, .. } in timers {
        // struct sigevent: value, signal, notify, thread.
        let mut event = words(&[*value]);
        for half in [*signal, *notify, thread.map_or(0, &own)] {
            event.extend_from_slice(&half.to_ne_bytes());
        }
        event.resize(64, 0);
        let wanted = Memory { bytes: id.to_ne_bytes().to_vec(), ..Memory::default() };
        script.call(Nr::TIMER_CREATE, [Arg::from(*clock), bytes(event), Arg::from(wanted)]);
    }
    script.call(Nr::PRCTL, args![PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0]);
}

impl One {
    /// Whether it must have expired already.
    fn has_expired(&self) -> bool {
        self.waiting.is_some() || self.overrun > 0
    }

    fn nanos(&self, at: usize) -> u64 {
        self.setting[at].saturating_mul(SECOND).saturating_add(self.setting[at + 1])
    }
}

/// Reads the clock of each timer that [`expire`] is for.
#[must_use]
pub fn clocks(record: &Record) -> Script {
    let mut script = Script::new();
    for One { clock, .. } in record.timers.iter().filter(|t| t.has_expired()) {
        script.call(Nr::CLOCK_GETTIME, args![*clock, out(16)]);
    }
    script
}

/// Timers that had expired: they do so again, as often, and whoever took the signal takes it again. Calls, and the thread
/// that makes them (none: any). `now`: what [`clocks`] has read. Before any other signal is queued.
#[must_use]
pub fn expire(record: &Record, now: &[Done]) -> Vec<(Option<i32>, Script)> {
    let mut all = Vec::new();
    for (timer, now) in record.timers.iter().filter(|t| t.has_expired()).zip(now) {
        let One { id, signal, thread, overrun, waiting, .. } = timer;
        let next = time(Some(now), 0).saturating_add(timer.nanos(2));
        let first = first_expiry(next, timer.nanos(0), waiting.unwrap_or(*overrun));
        let mut script = Script::new();
        script.call(Nr::TIMER_SETTIME, args![*id, ABSOLUTE, bytes(setting(timer.nanos(0), first)), 0]);
        if waiting.is_none() {
            let patience = bytes(words(&[10, 0]));
            let want = Want::Exactly(u64::try_from(*signal).unwrap_or(0));
            script.call_wanting(Nr::RT_SIGTIMEDWAIT, args![bytes(mask(*signal)), 0, patience, 8], want);
        }
        all.push((*thread, script));
    }
    all
}

/// Arms the others, last of all.
pub fn arm(record: &Record, script: &mut Script) {
    for One { id, setting, .. } in record.timers.iter().filter(|t| !t.has_expired()) {
        if *setting != [0; 4] {
            script.call(Nr::TIMER_SETTIME, args![*id, 0, bytes(words(setting)), 0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::first_expiry;

    #[test]
    fn as_many_expiries_as_overruns_and_one() {
        assert_eq!(first_expiry(1000, 100, 0), 900);
        assert_eq!(first_expiry(1000, 100, 5), 400);
        assert_eq!(first_expiry(1000, 100, u64::MAX), 100, "not before the clock began");
        assert_eq!(first_expiry(50, 100, 3), 50);
        assert_eq!(first_expiry(7, 0, 3), 1, "once, long ago");
    }
}
