//! Small settings: names, personality, what prctl(2) keeps, membarrier(2) registrations.
//! *Read from:* /proc/PID/{status,personality,coredump_filter,oom_score_adj}; prctl in the task.
//! *Made again by:* prctl and personality in the task; /proc by the keeper.
//! *Lost:* that cores go to root alone (`dumpable` 2, which only `fs.suid_dumpable` makes): there are none then. Where a process becomes the child of
//! another thread of its parent than it was, whose end its death signal is about. Both are said.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_task::script::{Want, cstr, out};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question, half_at};
use crate::Result;

/// Of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// `PR_GET_DUMPABLE`.
    pub dumpable: u64,
    /// `PR_GET_CHILD_SUBREAPER`.
    pub subreaper: bool,
    /// `PR_GET_THP_DISABLE`.
    pub thp_disable: u64,
    /// Bits of /proc/PID/coredump_filter.
    pub coredump_filter: u32,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// `MEMBARRIER_CMD_REGISTER_*` that it has made.
    pub membarrier: u64,
}

/// Of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Its name, at most 15 bytes.
    pub name: Bytes,
    /// personality(2).
    pub personality: u32,
    /// The signal it gets when its parent dies; 0 for none.
    pub death_signal: u32,
}

/// `SUID_DUMP_ROOT` (prctl(2), `PR_SET_DUMPABLE`).
const DUMPABLE_BY_ROOT: u64 = 2;
const MEMBARRIER_GET_REGISTRATIONS: u32 = 1 << 9;
const PR_SET_PDEATHSIG: u32 = 1;
const PR_GET_PDEATHSIG: u32 = 2;
const PR_GET_DUMPABLE: u32 = 3;
const PR_SET_DUMPABLE: u32 = 4;
const PR_SET_NAME: u32 = 15;
const PR_SET_CHILD_SUBREAPER: u32 = 36;
const PR_GET_CHILD_SUBREAPER: u32 = 37;
const PR_SET_THP_DISABLE: u32 = 41;
const PR_GET_THP_DISABLE: u32 = 42;

/// Questions to a process.
#[derive(Debug, Clone, Copy)]
pub struct AskedProcess([Question; 4]);

/// Asks for a process's.
pub fn ask_process(inquiry: &mut Inquiry) -> AskedProcess {
    AskedProcess([
        inquiry.ask(Nr::PRCTL, args![PR_GET_DUMPABLE, 0, 0, 0, 0]),
        inquiry.ask(Nr::PRCTL, args![PR_GET_CHILD_SUBREAPER, out(8), 0, 0, 0]),
        inquiry.ask(Nr::PRCTL, args![PR_GET_THP_DISABLE, 0, 0, 0, 0]),
        inquiry.ask(Nr::MEMBARRIER, args![MEMBARRIER_GET_REGISTRATIONS, 0, 0]),
    ])
}

/// Asks for a thread's.
pub fn ask_thread(inquiry: &mut Inquiry) -> Question {
    inquiry.ask(Nr::PRCTL, args![PR_GET_PDEATHSIG, out(8), 0, 0, 0])
}

/// Reads a process's.
///
/// # Errors
/// A call's own.
pub fn collect_process(
    inquiry: &Inquiry,
    asked: AskedProcess,
    coredump_filter: u32,
    oom_score_adj: i32,
) -> Result<Process> {
    let AskedProcess([dumpable, subreaper, thp, membarrier]) = asked;
    Ok(Process {
        dumpable: inquiry.value(dumpable)?,
        subreaper: half_at(inquiry.bytes(subreaper)?, 0) != 0,
        thp_disable: inquiry.value(thp)?,
        coredump_filter,
        oom_score_adj,
        // Linux 6.3; before, nobody can tell.
        membarrier: inquiry.value(membarrier).unwrap_or(0),
    })
}

/// Reads a thread's.
///
/// # Errors
/// The call's own.
pub fn collect_thread(inquiry: &Inquiry, asked: Question, name: Bytes, personality: u32) -> Result<Thread> {
    Ok(Thread { name, personality, death_signal: half_at(inquiry.bytes(asked)?, 0) })
}

/// What a restore cannot give back.
#[must_use]
pub fn lost(record: &Process) -> Option<&'static str> {
    (record.dumpable == DUMPABLE_BY_ROOT)
        .then_some("that its cores go to root alone (PR_GET_DUMPABLE: 2): it will leave none")
}

/// Sets a process's, but for `dumpable`, which comes after the credentials.
pub fn rebuild_process(record: &Process, script: &mut Script) {
    let Process { dumpable: _, subreaper, thp_disable, coredump_filter: _, oom_score_adj: _, membarrier } = record;
    for command in (0..u64::BITS).map(|bit| 1u64 << bit).filter(|command| membarrier & command != 0) {
        script.call(Nr::MEMBARRIER, args![command, 0, 0]);
    }
    if *subreaper {
        adopt(1, script);
    }
    if *thp_disable != 0 {
        script.call(Nr::PRCTL, args![PR_SET_THP_DISABLE, *thp_disable & 1, *thp_disable & !1, 0, 0]);
    }
}

/// Whether a process adopts orphans below it.
pub fn adopt(yes: u32, script: &mut Script) {
    script.call(Nr::PRCTL, args![PR_SET_CHILD_SUBREAPER, yes, 0, 0, 0]);
}

/// Sets a thread's name and personality.
pub fn rebuild_thread(record: &Thread, script: &mut Script) {
    let Thread { name, personality, death_signal: _ } = record;
    script.call(Nr::PRCTL, args![PR_SET_NAME, cstr(&name.0), 0, 0, 0]);
    script.call_wanting(Nr::PERSONALITY, args![*personality], Want::Success);
}

/// Sets what a change of credentials takes away: call it after them.
pub fn after_credentials(process: Option<&Process>, thread: &Thread, script: &mut Script) {
    if thread.death_signal != 0 {
        script.call(Nr::PRCTL, args![PR_SET_PDEATHSIG, thread.death_signal, 0, 0, 0]);
    }
    if let Some(process) = process {
        // DUMPABLE_BY_ROOT cannot be set by prctl; 0 is the stricter neighbour.
        script.call(Nr::PRCTL, args![PR_SET_DUMPABLE, u64::from(process.dumpable == 1), 0, 0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prctl_does_not_take_is_lost_and_said() {
        let record = |dumpable| Process {
            dumpable,
            subreaper: false,
            thp_disable: 0,
            coredump_filter: 0x33,
            oom_score_adj: 0,
            membarrier: 0,
        };
        let thread = Thread { name: Bytes(Vec::new()), personality: 0, death_signal: 0 };
        for (dumpable, set, is_lost) in [(0, 0, false), (1, 1, false), (2, 0, true)] {
            let mut script = Script::new();
            after_credentials(Some(&record(dumpable)), &thread, &mut script);
            assert_eq!(script.calls[0].shown_args(), format!("{PR_SET_DUMPABLE}, {set}, 0, 0, 0"));
            assert_eq!(lost(&record(dumpable)).is_some(), is_lost, "{dumpable}");
        }
    }
}
