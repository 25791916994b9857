//! Resource limits (getrlimit(2)).
//! *Read from:* /proc/PID/limits, which needs no right over the task.
//! *Made again by:* prlimit64 in the task, after everything that a limit could hinder.
//! *Lost:* a hard limit above that of whoever restores: the lower one holds, and restore says so.

use serde::{Deserialize, Serialize};
use yendor_proc::limits::Limits;
use yendor_task::script::bytes;
use yendor_task::{Nr, Script, args};

use super::words;

/// Soft and hard limit of each resource, `u64::MAX` for none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// By `RLIMIT_*` number.
    pub limits: [(u64, u64); 16],
}

/// Takes them over.
#[must_use]
pub fn collect(limits: &Limits) -> Record {
    Record { limits: limits.limits.map(|l| (l.soft.unwrap_or(u64::MAX), l.hard.unwrap_or(u64::MAX))) }
}

/// Sets them; where a hard limit is above `ours`, ours holds. Returns the resources where that was so.
pub fn rebuild(record: &Record, ours: &Record, script: &mut Script) -> Vec<usize> {
    let Record { limits } = record;
    let mut lowered = Vec::new();
    for (resource, ((soft, hard), (our_soft, our_hard))) in limits.iter().zip(&ours.limits).enumerate() {
        if hard > our_hard {
            lowered.push(resource);
        }
        let hard = hard.min(our_hard);
        let soft = soft.min(hard);
        if (soft, hard) != (our_soft, our_hard) {
            script.call(Nr::PRLIMIT64, args![0, resource, bytes(words(&[*soft, *hard])), 0]);
        }
    }
    lowered
}
