//! General registers and extended state (x87, SSE, AVX, PKRU ...) of a thread.
//! *Read from:* `PTRACE_GETREGSET` with `NT_PRSTATUS` and `NT_X86_XSTATE`; the critical section from rseq memory.
//! *Made again by:* `PTRACE_SETREGSET`, the extended state first; before, the flag that it leaves alone, by the task itself.
//! *Lost:* the remaining time of an interrupted poll, select, futex or semtimedop: it waits its whole time again.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::{ptrace, vm, xstate};
use yendor_task::Stopped;
use yendor_task::regs::{Regs, resumable};

use super::{half_at, word_at};
use crate::{Cause, Result};

/// Registers, in the order of `struct user_regs_struct`, and the XSAVE area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs.
    pub general: Vec<u64>,
    /// The processor's XSAVE layout, as far as components are in use.
    pub extended: Bytes,
}

const CS_64: u64 = 0x33;

/// The flag that a program can change but ptrace(2) does not set: `ID`, which some use to ask whether there is `cpuid`.
const ID: u64 = 1 << 21;

/// The flags that the thread, which has `now`, must load by itself before [`rebuild`]; none if all is well.
///
/// # Errors
/// `Corrupt`: as [`from_words`].
pub fn flags_to_load(record: &Record, now: u64) -> Result<Option<u64>> {
    let wanted = from_words(record)?.eflags & ID;
    Ok((now & ID != wanted).then_some(now & !ID | wanted))
}

/// Reads the registers as they must be for the thread to go on elsewhere; `signal_pending`: see [`resumable`].
///
/// # Errors
/// The kernel's refusal; a 32-bit task is refused by name.
pub fn collect(thread: &Stopped, regs: &Regs, signal_pending: bool) -> Result<Record> {
    if regs.cs != CS_64 {
        return Err(Cause::unsupported(format!("task {} runs 32-bit code (cs = {:#x})", thread.tid(), regs.cs)));
    }
    let mut regs = resumable(regs, signal_pending);
    abort_critical_section(thread.tid(), &mut regs)?;
    Ok(Record { general: to_words(&regs), extended: Bytes(ptrace::xstate(thread.tid())?) })
}

/// A restartable sequence that we interrupted must not go on: it starts at its abort handler (rseq(2)).
fn abort_critical_section(tid: i32, regs: &mut Regs) -> Result<()> {
    let area = ptrace::rseq(tid)?;
    if area.area == 0 {
        return Ok(());
    }
    let mut pointer = [0u8; 8];
    vm::read_exact(tid, area.area + 8, &mut pointer)?;
    let section = u64::from_ne_bytes(pointer);
    if section == 0 {
        return Ok(());
    }
    // struct rseq_cs { u32 version, flags; u64 start_ip, post_commit_offset, abort_ip }
    let mut cs = [0u8; 32];
    if vm::read_exact(tid, section, &mut cs).is_err() {
        return Ok(());
    }
    let (start, length, abort) = (word_at(&cs, 8), word_at(&cs, 16), word_at(&cs, 24));
    if half_at(&cs, 0) == 0 && regs.rip.wrapping_sub(start) < length {
        regs.rip = abort;
    }
    Ok(())
}

fn to_words(r: &Regs) -> Vec<u64> {
    vec![
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ]
}

/// The registers of a record.
///
/// # Errors
/// `Corrupt` when there are not 27, or when they are not those of 64-bit user code.
pub fn from_words(record: &Record) -> Result<Regs> {
    let Ok(
        [
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax,
            rip,
            cs,
            eflags,
            rsp,
            ss,
            fs_base,
            gs_base,
            ds,
            es,
            fs,
            gs,
        ],
    ) = <[u64; 27]>::try_from(record.general.as_slice())
    else {
        return Err(Cause::corrupt(format!("{} registers instead of 27", record.general.len())));
    };
    if cs != CS_64 {
        return Err(Cause::corrupt(format!("cs = {cs:#x}: not 64-bit user code")));
    }
    Ok(Regs {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    })
}

/// Gives a stopped thread these registers: the extended state first, the general registers last.
///
/// # Errors
/// The kernel's refusal of values that user code cannot have.
pub fn rebuild(tid: i32, record: &Record) -> Result<()> {
    let Record { general: _, extended } = record;
    let regs = from_words(record)?;
    check(&extended.0, ptrace::xstate_room(tid)?)?;
    ptrace::set_xstate(tid, &extended.0)?;
    ptrace::set_regs(tid, &regs)?;
    Ok(())
}

/// Whether this processor, which has room for `possible` components in `most` bytes, can hold an extended state.
fn check(state: &[u8], (possible, most): (u64, usize)) -> Result<()> {
    if state.len() < xstate::LEAST || state.len() > MOST {
        return Err(Cause::corrupt(format!("an extended state of {} bytes", state.len())));
    }
    let in_use = xstate::in_use(state);
    if let Some(lacking) = (0..63).find(|n| in_use & !possible & 1 << n != 0) {
        let name = xstate::name(lacking);
        return Err(Cause::unsupported(format!("registers of {name}, which this processor does not have")));
    }
    if state.len() != xstate::length(in_use) || state.len() > most {
        return Err(Cause::unsupported("an extended state that another processor has laid out"));
    }
    Ok(())
}

/// More than any processor needs.
const MOST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_processor_cannot_hold_is_refused() {
        let state = |in_use: u64, len: usize| {
            let mut state = vec![0; len];
            state[512..520].copy_from_slice(&in_use.to_ne_bytes());
            state
        };
        let room = (0b11, 576);
        check(&state(0b11, 576), room).expect("what every processor has");
        let said = |state: &[u8]| check(state, room).expect_err("it cannot be held").to_string();
        assert!(said(&state(1 << 18, 576)).contains("AMX"));
        assert!(said(&state(0b11, 640)).contains("another processor"));
        assert!(said(&[0; 64]).contains("64 bytes"));
    }
}
