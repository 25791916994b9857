//! What a process does on each signal (rt_sigaction(2)).
//! *Read from:* rt_sigaction in the task, one call per signal.
//! *Made again by:* the same call.
//! *Lost:* nothing.

use serde::{Deserialize, Serialize};
use yendor_task::script::{bytes, out};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question, word_at, words};
use crate::Result;

/// The actions that differ from the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// By signal.
    pub actions: Vec<Action>,
}

/// One action (`struct kernel_sigaction`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// 1 to 64.
    pub signal: u32,
    /// 0 default, 1 ignore, else an address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// The address that returns from the handler.
    pub restorer: u64,
    /// Blocked while it runs.
    pub mask: u64,
}

const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;

fn signals() -> impl Iterator<Item = u32> {
    (1..=64).filter(|s| *s != SIGKILL && *s != SIGSTOP)
}

/// Asks for all actions.
pub fn ask(inquiry: &mut Inquiry) -> Vec<(u32, Question)> {
    signals().map(|s| (s, inquiry.ask(Nr::RT_SIGACTION, args![s, 0, out(32), 8]))).collect()
}

/// Reads them.
///
/// # Errors
/// A call's own.
pub fn collect(inquiry: &Inquiry, asked: &[(u32, Question)]) -> Result<Record> {
    let mut actions = Vec::new();
    for (signal, question) in asked {
        let b = inquiry.bytes(*question)?;
        let a = Action {
            signal: *signal,
            handler: word_at(b, 0),
            flags: word_at(b, 8),
            restorer: word_at(b, 16),
            mask: word_at(b, 24),
        };
        if (a.handler, a.flags, a.mask) != (0, 0, 0) {
            actions.push(a);
        }
    }
    Ok(Record { actions })
}

/// Sets them; the task has the defaults.
pub fn rebuild(record: &Record, script: &mut Script) {
    for Action { signal, handler, flags, restorer, mask } in &record.actions {
        script.call(Nr::RT_SIGACTION, args![*signal, bytes(words(&[*handler, *flags, *restorer, *mask])), 0, 8]);
    }
}

/// Sets every action to the default: a new task has the keeper's.
pub fn reset(script: &mut Script) {
    for s in signals() {
        script.call(Nr::RT_SIGACTION, args![s, bytes(words(&[0, 0, 0, 0])), 0, 8]);
    }
}
