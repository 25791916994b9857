//! The three interval timers of a process (setitimer(2)).
//! *Read from:* getitimer in the task.
//! *Made again by:* setitimer, last of all, so that no time is lost.
//! *Lost:* nothing.

use serde::{Deserialize, Serialize};
use yendor_task::script::{bytes, out};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question, words};
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

/// Arms those that were armed.
pub fn rebuild(record: &Record, script: &mut Script) {
    let Record { timers } = record;
    for (which, timer) in timers.iter().enumerate().filter(|(_, timer)| **timer != [0; 4]) {
        let mut timer = *timer;
        if timer[2..] == [0, 0] {
            // It has rung and waits for SIGALRM to be taken, which starts it anew (kernel/signal.c). A zero would disarm
            // it: let it ring again at once, beside the signal that is pending still.
            timer[3] = 1;
        }
        script.call(Nr::SETITIMER, args![which, bytes(words(&timer)), 0]);
    }
}
