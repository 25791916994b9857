//! The three interval timers of a process (setitimer(2)).
//! *Read from:* getitimer in the task.
//! *Made again by:* setitimer, last of all, so that no time is lost.
//! *Lost:* up to a tick of the kernel's clock (clock_getres(2), `CLOCK_MONOTONIC_COARSE`) of what remains of the two that measure processor time.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_task::script::{bytes, out};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question, half_at, words};
use crate::Result;

/// `ITIMER_REAL`, `ITIMER_VIRTUAL`, `ITIMER_PROF`: interval seconds and microseconds, then what remains.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// By number.
    pub timers: [[u64; 4]; 3],
}

/// Asks for all three.
pub fn ask(inquiry: &mut Inquiry) -> [Question; 3] {
    [0u32, 1, 2].map(|which| inquiry.ask(Nr::GETITIMER, args![which, out(32)]))
}

/// Reads them.
///
/// # Errors
/// A call's own.
pub fn collect(inquiry: &Inquiry, asked: [Question; 3]) -> Result<Record> {
    let mut record = Record::default();
    for (timer, question) in record.timers.iter_mut().zip(asked) {
        for (i, word) in timer.iter_mut().enumerate() {
            *word = inquiry.word(question, i)?;
        }
    }
    Ok(record)
}

impl Record {
    /// Whether a signal comes from one of them that is not armed any more: it has rung, once and for all.
    #[must_use]
    pub fn has_rung(&self, info: &Bytes) -> bool {
        const SI_KERNEL: u32 = 0x80;
        const SIGNALS: [u32; 3] = [14, 26, 27];
        let which = SIGNALS.iter().position(|signal| *signal == half_at(&info.0, 0));
        half_at(&info.0, 8) == SI_KERNEL && which.is_some_and(|which| self.timers[which] == [0; 4])
    }
}

/// `ITIMER_REAL`, which measures no processor time.
const REAL: usize = 0;

/// What remains, in seconds and microseconds, without a tick: the kernel adds one to what measures processor time
/// (kernel/time/itimer.c), at each restore another.
fn without_tick([seconds, micros]: [u64; 2], tick: u64) -> [u64; 2] {
    let left = seconds.saturating_mul(1_000_000).saturating_add(micros).saturating_sub(tick).max(1);
    [left / 1_000_000, left % 1_000_000]
}

/// The kernel's tick, in microseconds.
fn tick() -> u64 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(tick.tv_nsec / 1000).unwrap_or(0)
}

/// Arms those that were armed.
pub fn rebuild(record: &Record, script: &mut Script) {
    let Record { timers } = record;
    for (which, timer) in timers.iter().enumerate().filter(|(_, timer)| **timer != [0; 4]) {
        let mut timer = *timer;
        if timer[2..] == [0, 0] {
            // It has rung and waits for SIGALRM to be taken, which starts it anew (kernel/signal.c). A zero would disarm
            // it: let it ring again at once, beside the signal that is pending still.
            timer[3] = 1;
        } else if which != REAL {
            [timer[2], timer[3]] = without_tick([timer[2], timer[3]], tick());
        }
        script.call(Nr::SETITIMER, args![which, bytes(words(&timer)), 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_taken_off_and_the_timer_stays_armed() {
        assert_eq!(without_tick([3, 1000], 4000), [2, 997_000]);
        assert_eq!(without_tick([0, 4000], 4000), [0, 1]);
        assert_eq!(without_tick([0, 1], 4000), [0, 1]);
        // HZ is 100 to 1000.
        assert!((1000..=10_000).contains(&tick()));
    }
}
