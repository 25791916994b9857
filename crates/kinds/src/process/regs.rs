//! General registers and extended state (x87, SSE, AVX, PKRU ...) of a thread.
//! *Read from:* `PTRACE_GETREGSET` with `NT_PRSTATUS` and `NT_X86_XSTATE`; the critical section from rseq memory.
//! *Made again by:* `PTRACE_SETREGSET`, the extended state first; before, the flag that it leaves alone, by the task itself.
//! *Lost:* the remaining time of an interrupted poll, select, futex or semtimedop: it waits its whole time again; so does a call on a socket
//! with a time limit (`SO_RCVTIMEO`, `SO_SNDTIMEO`). One that went on after
//! an earlier stop, and that neither its arguments nor the code before it tell from another call, ends with `EINTR`.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::{ptrace, xstate};
use yendor_task::live::Registers;
use yendor_task::regs::{Regs, portable};

use crate::{Cause, Result};

/// Registers, in the order of `struct user_regs_struct`, and the extended state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs.
    /// In an interrupted system call `orig_rax` is its number and `rax` one of `-512`, `-513`, `-514`: as the kernel does, restart it.
    pub general: Vec<u64>,
    /// What XSAVE keeps.
    pub extended: Extended,
}

/// The extended state as its components, whose sizes are the same on all processors and whose places are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extended {
    /// The components in use, bit `n` for number `n` (Intel SDM, volume 1, 13.1).
    pub in_use: u64,
    /// x87 and SSE: the first 416 bytes of the FXSAVE layout.
    pub old: Bytes,
    /// The others in use, in the order of their numbers.
    pub components: Vec<Bytes>,
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

/// Whether there are tiles (AMX) among them, which a thread must have used before it can be given them.
#[must_use]
pub fn has_tiles(record: &Record) -> bool {
    record.extended.in_use & xstate::LARGE != 0
}

/// The registers as they must be for the thread to go on elsewhere; `signal_pending`: see [`portable`].
///
/// # Errors
/// The kernel's refusal; a 32-bit task is refused by name.
pub fn collect(tid: i32, registers: &Registers, signal_pending: bool) -> Result<Record> {
    let Registers { general: regs, extended, rseq: _, mask: _ } = registers;
    if regs.cs != CS_64 {
        return Err(Cause::unsupported(format!("task {tid} runs 32-bit code (cs = {:#x})", regs.cs)));
    }
    let regs = portable(regs, signal_pending);
    Ok(Record { general: to_words(&regs), extended: split(extended) })
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
    let extended = join(extended, ptrace::xstate_room(tid)?)?;
    ptrace::set_xstate(tid, &extended)?;
    ptrace::set_regs(tid, &regs)?;
    Ok(())
}

fn split(state: &[u8]) -> Extended {
    let in_use = xstate::in_use(state);
    let part = |place: std::ops::Range<usize>| Bytes(state.get(place).unwrap_or_default().to_vec());
    let components = xstate::components(in_use).map(|n| part(xstate::place(n))).collect();
    Extended { in_use, old: part(0..xstate::OLD_BYTES), components }
}

/// Lays components out for this processor, which has the `possible` ones, all of them in `len` bytes.
fn join(record: &Extended, (possible, len): (u64, usize)) -> Result<Vec<u8>> {
    let Extended { in_use, old, components } = record;
    let numbers: Vec<u32> = xstate::components(*in_use).collect();
    let old = old.0.as_slice().try_into().ok().filter(|_| numbers.len() == components.len());
    let old = old.ok_or_else(|| Cause::corrupt("an extended state that is not what it says"))?;
    if let Some(lacking) = (0..64).find(|n| in_use & !possible & 1 << n != 0) {
        let name = xstate::name(lacking);
        let what = format!("registers of {name}, which this processor does not have");
        return Err(Cause::of_machine(what, "a machine that has them"));
    }
    let mut state = xstate::with(*in_use, old, len);
    for (number, bytes) in numbers.into_iter().zip(components) {
        let place = state.get_mut(xstate::place(number)).filter(|place| place.len() == bytes.0.len());
        let name = xstate::name(number);
        let place = place.ok_or_else(|| Cause::corrupt(format!("{name} registers of {} bytes", bytes.0.len())))?;
        place.copy_from_slice(&bytes.0);
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_processor_cannot_hold_is_refused() {
        let old = || Bytes(vec![7; xstate::OLD_BYTES]);
        let record = |in_use, components: &[usize]| Extended {
            in_use,
            old: old(),
            components: components.iter().map(|len| Bytes(vec![0; *len])).collect(),
        };
        let room = (0b111, 1024);
        let said = |record: &Extended| join(record, room).expect_err("it cannot be held").to_string();
        assert_eq!(join(&record(0b11, &[]), room).expect("what every processor has").len(), 1024);
        assert!(said(&record(1 << 18, &[8192])).contains("AMX"));
        assert!(said(&record(1 << 63, &[])).contains("not known"));
        assert!(said(&record(0b111, &[])).contains("not what it says"));
        assert!(said(&record(0b111, &[255])).contains("AVX registers of 255 bytes"));
        assert!(said(&Extended { old: Bytes(Vec::new()), ..record(0b11, &[]) }).contains("not what it says"));
    }

    #[test]
    fn what_is_split_is_joined() {
        let mut state = xstate::with(0b11, &[9; xstate::OLD_BYTES], 2048);
        if std::arch::is_x86_feature_detected!("avx") {
            state[512] = 0b111;
            state[576..576 + 256].fill(5);
        }
        assert_eq!(join(&split(&state), (0b111, 2048)).expect("join"), state);
    }
}
