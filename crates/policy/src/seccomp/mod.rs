//! Seccomp: filters as programs, what they say to a call, and the OCI form that callers write them in.

pub mod bpf;
mod compile;
pub mod profile;

use serde::{Deserialize, Serialize};

/// The most instructions of a filter (linux/filter.h, `BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
pub const ARCH: u32 = 0xc000_003e;

/// Values that a filter returns (linux/seccomp.h): the high half is the action, the low half its data.
pub mod action {
    /// Ends the process.
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    /// Ends the thread.
    pub const KILL_THREAD: u32 = 0;
    /// SIGSYS.
    pub const TRAP: u32 = 0x0003_0000;
    /// Fails with the errno in the low half.
    pub const ERRNO: u32 = 0x0005_0000;
    /// Asks a supervisor.
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    /// Asks a tracer.
    pub const TRACE: u32 = 0x7ff0_0000;
    /// Logs and allows.
    pub const LOG: u32 = 0x7ffc_0000;
    /// Allows.
    pub const ALLOW: u32 = 0x7fff_0000;
    /// The part of a value that is the action.
    pub const MASK: u32 = 0xffff_0000;
}

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when true.
    pub jt: u8,
    /// Instructions to skip when false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Instruction {
    /// Its eight bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let mut out = [0; 8];
        out[..2].copy_from_slice(&self.code.to_ne_bytes());
        out[2] = self.jt;
        out[3] = self.jf;
        out[4..].copy_from_slice(&self.k.to_ne_bytes());
        out
    }

    /// From its eight bytes.
    #[must_use]
    pub fn from_bytes(b: [u8; 8]) -> Instruction {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = b;
        Instruction { code: u16::from_ne_bytes([c0, c1]), jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
    }
}

/// A program from its bytes; `None` unless they are whole instructions, at least one, at most [`MAX_INSTRUCTIONS`].
#[must_use]
pub fn program(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (whole, rest) = bytes.as_chunks::<8>();
    let good = rest.is_empty() && !whole.is_empty() && whole.len() <= MAX_INSTRUCTIONS;
    good.then(|| whole.iter().map(|b| Instruction::from_bytes(*b)).collect())
}

/// A filter's bytes.
#[must_use]
pub fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    program.iter().flat_map(|i| i.to_bytes()).collect()
}

/// A system call as a filter sees it (`struct seccomp_data`), as far as it is known. What is not known decides nothing:
/// a filter that looks at it gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Number.
    pub nr: u32,
    /// Architecture.
    pub arch: u32,
    /// Where it is called from.
    pub ip: Option<u64>,
    /// Arguments.
    pub args: [Option<u64>; 6],
}

/// What filters together say to a call: of all answers the one that forbids most (seccomp(2)). `None` when a filter
/// is no filter, or looks at what is not known.
#[must_use]
pub fn verdict<'p>(filters: impl IntoIterator<Item = &'p [Instruction]>, call: &Call) -> Option<u32> {
    let mut worst = action::ALLOW;
    for filter in filters {
        let answer = bpf::run(filter, call)?;
        // As signed numbers the actions are in the order of their precedence.
        if (answer & action::MASK).cast_signed() < (worst & action::MASK).cast_signed() {
            worst = answer;
        }
    }
    Some(worst)
}

/// Whether a filter may leave a call to a supervisor. One that computes what it returns may.
#[must_use]
pub fn may_notify(filter: &[Instruction]) -> bool {
    filter.iter().any(|i| match i.code {
        bpf::op::RET => i.k & action::MASK == action::USER_NOTIF,
        code => code == bpf::op::RET_A,
    })
}

/// Whether an answer lets the call happen.
#[must_use]
pub fn allows(answer: u32) -> bool {
    matches!(answer & action::MASK, action::ALLOW | action::LOG)
}
