//! POSIX timers of a process, with their ids (timer_create(2)).
//! *Read from:* /proc/PID/timers; timer_gettime in the task.
//! *Made again by:* timer_create under `PR_TIMER_CREATE_RESTORE_IDS`, timer_settime.
//! *Lost:* the overrun count of a signal that was not yet taken.

use serde::{Deserialize, Serialize};
use yendor_proc::timers::Timer;
use yendor_task::script::{Memory, bytes, out};
use yendor_task::{Arg, Nr, Script, args};

use super::{Inquiry, Question, words};
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
}

/// Asks for the settings of the timers that /proc lists.
pub fn ask(inquiry: &mut Inquiry, timers: &[Timer]) -> Vec<Question> {
    timers.iter().map(|t| inquiry.ask(Nr::TIMER_GETTIME, args![t.id, out(32)])).collect()
}

/// Reads them. `inside` translates a thread id as /proc shows it.
///
/// # Errors
/// A call's own; a timer for a thread outside is refused by name.
pub fn collect(
    inquiry: &Inquiry,
    timers: &[Timer],
    asked: &[Question],
    inside: impl Fn(i32) -> Option<i32>,
) -> Result<Record> {
    let mut out = Vec::new();
    for (timer, question) in timers.iter().zip(asked) {
        let mut setting = [0; 4];
        for (i, word) in setting.iter_mut().enumerate() {
            *word = inquiry.word(*question, i)?;
        }
        out.push(one(timer, setting, &inside)?);
    }
    Ok(Record { timers: out })
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
    Ok(One { id: timer.id, clock: timer.clock, notify, signal: timer.signal, value: timer.value, thread, setting })
}

const PR_TIMER_CREATE_RESTORE_IDS: u32 = 77;

/// Makes them with their ids, disarmed or armed as they were.
pub fn rebuild(record: &Record, script: &mut Script) {
    let Record { timers } = record;
    if timers.is_empty() {
        return;
    }
    script.call(Nr::PRCTL, args![PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0]);
    for One { id, clock, notify, signal, value, thread, .. } in timers {
        // struct sigevent: value, signal, notify, thread.
        let mut event = words(&[*value]);
        for half in [*signal, *notify, thread.unwrap_or(0)] {
            event.extend_from_slice(&half.to_ne_bytes());
        }
        event.resize(64, 0);
        let wanted = Memory { bytes: id.to_ne_bytes().to_vec(), ..Memory::default() };
        script.call(Nr::TIMER_CREATE, [Arg::from(*clock), bytes(event), Arg::from(wanted)]);
    }
    script.call(Nr::PRCTL, args![PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0]);
}

/// Arms them, last of all.
pub fn arm(record: &Record, script: &mut Script) {
    for One { id, setting, .. } in &record.timers {
        if *setting != [0; 4] {
            script.call(Nr::TIMER_SETTIME, args![*id, 0, bytes(words(setting)), 0]);
        }
    }
}
