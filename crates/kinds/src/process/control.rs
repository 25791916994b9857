//! What prctl(2) and arch_prctl(2) switch on, allow or forbid: counters and `cpuid` that fault, machine checks, speculation,
//! memory that is never written and executed, merged pages, large registers (AMX).
//! *Read from:* prctl and arch_prctl in the task.
//! *Made again by:* the same calls; those that forbid what a restore does come last.
//! *Lost:* `PR_SET_PTRACER` and `PR_FUTEX_HASH`, which nobody can read.

use serde::{Deserialize, Serialize};
use yendor_sys::xstate;
use yendor_task::script::out;
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question, half_at, word_at};
use crate::Result;
use crate::memory::vma;

/// Of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// `PR_GET_MDWE`.
    pub deny_write_execute: u64,
    /// `PR_GET_MEMORY_MERGE`.
    pub merge: bool,
    /// Whether timers are made under chosen ids (`PR_TIMER_CREATE_RESTORE_IDS`).
    pub timer_ids: bool,
    /// The large components of the extended state that it may use, bit `n` for number `n`: itself, and its virtual machines.
    pub large: [u64; 2],
}

/// Of a thread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// `PR_GET_TSC`.
    pub tsc: u32,
    /// Whether it may ask the processor what it is (`ARCH_GET_CPUID`).
    pub cpuid: bool,
    /// `PR_MCE_KILL_GET`.
    pub machine_check: u64,
    /// `PR_GET_IO_FLUSHER`, which takes `CAP_SYS_RESOURCE`.
    pub io_flusher: bool,
    /// `PR_GET_SPECULATION_CTRL`: of stores, of indirect branches, and the flush of the cache; 0 for what there is not.
    pub speculation: [u64; 3],
}

impl Process {
    /// Whether a kernel can have told it.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        // PR_MDWE_REFUSE_EXEC_GAIN, with or without PR_MDWE_NO_INHERIT.
        matches!(self.deny_write_execute, 0 | 1 | 3)
    }
}

impl Thread {
    /// Whether a kernel can have told it.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        // Up to PR_TSC_SIGSEGV, PR_MCE_KILL_DEFAULT; PR_SPEC_DISABLE_NOEXEC is the highest bit.
        self.tsc <= 2 && self.machine_check <= 2 && self.speculation.iter().all(|state| *state < 32)
    }
}

const PR_GET_TSC: u32 = 25;
const PR_SET_TSC: u32 = 26;
const PR_MCE_KILL: u32 = 33;
const PR_MCE_KILL_SET: u32 = 1;
const PR_MCE_KILL_GET: u32 = 34;
const PR_GET_SPECULATION_CTRL: u32 = 52;
const PR_SET_SPECULATION_CTRL: u32 = 53;
const PR_SET_IO_FLUSHER: u32 = 57;
const PR_GET_IO_FLUSHER: u32 = 58;
const PR_SET_MDWE: u32 = 65;
const PR_GET_MDWE: u32 = 66;
const PR_SET_MEMORY_MERGE: u32 = 67;
const PR_GET_MEMORY_MERGE: u32 = 68;
const PR_TIMER_CREATE_RESTORE_IDS: u32 = 77;
const ON: u32 = 1;
const GET: u32 = 2;
const ARCH_GET_CPUID: u32 = 0x1011;
const ARCH_SET_CPUID: u32 = 0x1012;
/// `ARCH_GET_XCOMP_PERM`, `ARCH_GET_XCOMP_GUEST_PERM`.
const GET_LARGE: [u32; 2] = [0x1022, 0x1024];
/// `ARCH_REQ_XCOMP_PERM`, `ARCH_REQ_XCOMP_GUEST_PERM`.
const REQUEST_LARGE: [u32; 2] = [0x1023, 0x1025];
const MADV_UNMERGEABLE: u32 = 13;
/// `PR_SPEC_PRCTL`: the thread may choose.
const CHOICE: u64 = 1;

/// Questions to a process.
#[derive(Debug, Clone, Copy)]
pub struct AskedProcess {
    deny: Question,
    merge: Question,
    timer_ids: Question,
    /// Only where the processor has large components.
    large: Option<[Question; 2]>,
}

/// Questions to a thread.
#[derive(Debug, Clone, Copy)]
pub struct AskedThread {
    tsc: Question,
    cpuid: Question,
    machine_check: Question,
    io_flusher: Question,
    speculation: [Question; 3],
}

/// Asks for a process's.
pub fn ask_process(inquiry: &mut Inquiry) -> AskedProcess {
    let large = !xstate::place(xstate::TILES).is_empty();
    AskedProcess {
        deny: inquiry.ask(Nr::PRCTL, args![PR_GET_MDWE, 0, 0, 0, 0]),
        merge: inquiry.ask(Nr::PRCTL, args![PR_GET_MEMORY_MERGE, 0, 0, 0, 0]),
        timer_ids: inquiry.ask(Nr::PRCTL, args![PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0]),
        large: large.then(|| GET_LARGE.map(|get| inquiry.ask(Nr::ARCH_PRCTL, args![get, out(8)]))),
    }
}

/// Asks for a thread's.
pub fn ask_thread(inquiry: &mut Inquiry) -> AskedThread {
    AskedThread {
        tsc: inquiry.ask(Nr::PRCTL, args![PR_GET_TSC, out(8), 0, 0, 0]),
        cpuid: inquiry.ask(Nr::ARCH_PRCTL, args![ARCH_GET_CPUID, 0]),
        machine_check: inquiry.ask(Nr::PRCTL, args![PR_MCE_KILL_GET, 0, 0, 0, 0]),
        io_flusher: inquiry.ask(Nr::PRCTL, args![PR_GET_IO_FLUSHER, 0, 0, 0, 0]),
        speculation: [0, 1, 2].map(|which| inquiry.ask(Nr::PRCTL, args![PR_GET_SPECULATION_CTRL, which, 0, 0, 0])),
    }
}

/// Reads a process's. What the kernel does not know nobody has switched on.
#[must_use]
pub fn collect_process(inquiry: &Inquiry, asked: AskedProcess) -> Process {
    let AskedProcess { deny, merge, timer_ids, large } = asked;
    let number = |question| inquiry.value(question).unwrap_or(0);
    let components = |question| inquiry.bytes(question).map_or(0, |bytes| word_at(bytes, 0) & xstate::LARGE);
    Process {
        deny_write_execute: number(deny),
        merge: number(merge) != 0,
        timer_ids: number(timer_ids) != 0,
        large: large.map_or([0; 2], |questions| questions.map(components)),
    }
}

/// Reads a thread's.
///
/// # Errors
/// A call's own.
pub fn collect_thread(inquiry: &Inquiry, asked: AskedThread) -> Result<Thread> {
    let AskedThread { tsc, cpuid, machine_check, io_flusher, speculation } = asked;
    Ok(Thread {
        tsc: half_at(inquiry.bytes(tsc)?, 0),
        cpuid: inquiry.value(cpuid)? != 0,
        machine_check: inquiry.value(machine_check)?,
        // EPERM: it could not have been switched on either.
        io_flusher: inquiry.value(io_flusher).unwrap_or(0) != 0,
        speculation: speculation.map(|question| inquiry.value(question).unwrap_or(0)),
    })
}

/// Asks for permission to use large registers.
pub fn rebuild_process(record: &Process, script: &mut Script) {
    let Process { deny_write_execute: _, merge: _, timer_ids: _, large } = record;
    for (request, components) in REQUEST_LARGE.into_iter().zip(large) {
        for number in (0..u64::BITS).filter(|n| components & 1 << n != 0) {
            script.call(Nr::ARCH_PRCTL, args![request, number]);
        }
    }
}

/// Sets a thread's where they differ from `now`, which a fresh task has.
pub fn rebuild_thread(record: &Thread, now: &Thread, script: &mut Script) {
    let Thread { tsc, cpuid, machine_check, io_flusher, speculation } = record;
    if *tsc != now.tsc {
        script.call(Nr::PRCTL, args![PR_SET_TSC, *tsc, 0, 0, 0]);
    }
    if *cpuid != now.cpuid {
        script.call(Nr::ARCH_PRCTL, args![ARCH_SET_CPUID, u32::from(*cpuid)]);
    }
    if *machine_check != now.machine_check {
        script.call(Nr::PRCTL, args![PR_MCE_KILL, PR_MCE_KILL_SET, *machine_check, 0, 0]);
    }
    if *io_flusher != now.io_flusher {
        script.call(Nr::PRCTL, args![PR_SET_IO_FLUSHER, u32::from(*io_flusher), 0, 0, 0]);
    }
    for (which, (state, now)) in (0u32..).zip(speculation.iter().zip(&now.speculation)) {
        if must_set(*state, *now) {
            script.call(Nr::PRCTL, args![PR_SET_SPECULATION_CTRL, which, *state & !CHOICE, 0, 0]);
        }
    }
}

/// Whether a thread has chosen what a fresh one here does not have. On a processor that does not need it, or a machine where
/// all have it, there is nothing to choose; where it cannot be chosen, the call says so.
fn must_set(state: u64, now: u64) -> bool {
    const ENABLE: u64 = 2;
    const ALL_DISABLED: u64 = 4;
    let chosen = state & CHOICE != 0 && state != now;
    let nothing_to_do = now & CHOICE == 0 && (matches!(now, 0 | ALL_DISABLED) || state & !CHOICE == ENABLE);
    chosen && !nothing_to_do
}

/// The task switches on what hinders a restore, or would change what it made.
pub fn last(record: &Process, areas: &[vma::Record], script: &mut Script) {
    let Process { deny_write_execute, merge, timer_ids, large: _ } = record;
    if *merge {
        script.call(Nr::PRCTL, args![PR_SET_MEMORY_MERGE, 1, 0, 0, 0]);
        for area in areas.iter().filter(|area| area.is_own_unmerged()) {
            script.call(Nr::MADVISE, args![area.start.0, area.len(), MADV_UNMERGEABLE]);
        }
    }
    if *timer_ids {
        script.call(Nr::PRCTL, args![PR_TIMER_CREATE_RESTORE_IDS, ON, 0, 0, 0]);
    }
    if *deny_write_execute != 0 {
        script.call(Nr::PRCTL, args![PR_SET_MDWE, *deny_write_execute, 0, 0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculation_is_set_where_it_was_chosen_and_matters() {
        const ENABLED: u64 = 3;
        const DISABLED: u64 = 5;
        const FORCED: u64 = 9;
        assert!(must_set(DISABLED, ENABLED) && must_set(FORCED, ENABLED) && must_set(ENABLED, DISABLED));
        assert!(!must_set(DISABLED, DISABLED) && !must_set(0, ENABLED) && !must_set(2, ENABLED));
        // A processor without the fault, or one where all are safe; but not one where nobody can be.
        assert!(!must_set(DISABLED, 0) && !must_set(DISABLED, 4) && !must_set(ENABLED, 2));
        assert!(must_set(DISABLED, 2) && must_set(FORCED, 2));
    }
}
