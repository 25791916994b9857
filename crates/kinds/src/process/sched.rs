//! How a thread is scheduled: policy, nice, CPU affinity, I/O priority, timer slack, utilisation clamps, memory policy.
//! *Read from:* sched_getattr, getpriority, sched_getaffinity, ioprio_get, get_mempolicy and prctl in the task.
//! *Made again by:* their counterparts, where the value differs from the one that the new task has already.
//! *Lost:* what it has used: its CPU clocks, getrusage(2), times(2), /proc/PID/io begin anew, and so does the time of its start; the nice value of a session's group (/proc/PID/autogroup); CPUs in the affinity that this machine does not have.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_task::script::{bytes, out};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question};
use crate::Result;
use crate::memory::policy;

/// The settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `struct sched_attr` as the kernel gave it.
    pub attributes: Bytes,
    /// The nice value of a policy that has none (real-time, idle): it counts when that is left.
    #[serde(default)]
    pub nice: Option<i32>,
    /// CPU mask, lowest CPUs first.
    pub affinity: Bytes,
    /// Class and level (ioprio_get(2)).
    pub io_priority: u64,
    /// Nanoseconds.
    pub timer_slack: u64,
    /// On which memory nodes its pages are put, where set_mempolicy(2) has said so.
    pub memory: Option<policy::Record>,
}

/// The questions.
#[derive(Debug, Clone, Copy)]
pub struct Asked([Question; 6]);

const PR_SET_TIMERSLACK: u32 = 29;
const PR_GET_TIMERSLACK: u32 = 30;
const ATTR: usize = 56;
const MASK: usize = 128;

/// Asks.
pub fn ask(inquiry: &mut Inquiry) -> Asked {
    Asked([
        inquiry.ask(Nr::SCHED_GETATTR, args![0, out(ATTR), ATTR, 0]),
        inquiry.ask(Nr::SCHED_GETAFFINITY, args![0, MASK, out(MASK)]),
        inquiry.ask(Nr::IOPRIO_GET, args![1, 0]),
        inquiry.ask(Nr::PRCTL, args![PR_GET_TIMERSLACK, 0, 0, 0, 0]),
        policy::ask(inquiry),
        inquiry.ask(Nr::GETPRIORITY, args![0, 0]),
    ])
}

/// Reads.
///
/// # Errors
/// A call's own.
pub fn collect(inquiry: &Inquiry, asked: Asked) -> Result<Record> {
    let Asked([attributes, affinity, io, slack, memory, nice]) = asked;
    let size = usize::try_from(inquiry.value(affinity)?).unwrap_or(0).min(MASK);
    let attributes = Bytes(inquiry.bytes(attributes)?.to_vec());
    // The system call itself answers 1 to 40 (getpriority(2)).
    let nice = 20 - i32::try_from(inquiry.value(nice)?).unwrap_or(20);
    Ok(Record {
        nice: (!is_nice(&attributes)).then_some(nice),
        attributes,
        affinity: Bytes(inquiry.bytes(affinity)?.get(..size).unwrap_or_default().to_vec()),
        io_priority: inquiry.value(io)?,
        timer_slack: inquiry.value(slack)?,
        memory: policy::collect(inquiry, memory),
    })
}

/// Whether the policy is one that the attributes have a nice value of: `SCHED_OTHER`, `SCHED_BATCH`.
fn is_nice(attributes: &Bytes) -> bool {
    matches!(attributes.0.get(4..8), Some([0 | 3, 0, 0, 0]))
}

/// The attributes as sched_setattr wants them: it takes utilisation clamps only when told so.
fn settable(attributes: &Bytes, now: &Bytes) -> Vec<u8> {
    const FLAGS: usize = 8;
    const CLAMPS: std::ops::Range<usize> = 48..56;
    const CLAMP_MIN_MAX: u8 = 0x60;
    let mut out = attributes.0.clone();
    if out.get(CLAMPS) != now.0.get(CLAMPS)
        && let Some(flags) = out.get_mut(FLAGS)
    {
        *flags |= CLAMP_MIN_MAX;
    }
    out
}

/// Sets what differs from `now`, which a fresh task has.
pub fn rebuild(record: &Record, now: &Record, script: &mut Script) {
    let Record { attributes, nice, affinity, io_priority, timer_slack, memory } = record;
    let fresh = now.attributes.0.get(16..20).and_then(|nice| nice.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if let Some(nice) = nice.filter(|nice| *nice != fresh) {
        script.call(Nr::SETPRIORITY, args![0, 0, nice]);
    }
    if *attributes != now.attributes {
        script.call(Nr::SCHED_SETATTR, args![0, bytes(settable(attributes, &now.attributes)), 0]);
    }
    if *affinity != now.affinity {
        script.call(Nr::SCHED_SETAFFINITY, args![0, affinity.0.len(), bytes(affinity.0.clone())]);
    }
    if *io_priority != now.io_priority {
        script.call(Nr::IOPRIO_SET, args![1, 0, *io_priority]);
    }
    if *timer_slack != now.timer_slack {
        script.call(Nr::PRCTL, args![PR_SET_TIMERSLACK, *timer_slack, 0, 0, 0]);
    }
    if let Some(policy) = memory {
        policy.rebuild(script);
    }
}
