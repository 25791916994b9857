//! Classic BPF as seccomp uses it (kernel/seccomp.c `seccomp_check_filter`, net/core/filter.c `bpf_check_classic`): an
//! interpreter that also knows what it does not know.

use super::{Call, Instruction, MAX_INSTRUCTIONS};

/// Operations (linux/bpf_common.h, linux/filter.h).
pub mod op {
    /// `A = data[k]`, a 32-bit word.
    pub const LD_ABS: u16 = 0x20;
    /// `A = sizeof(seccomp_data)`.
    pub const LD_LEN: u16 = 0x80;
    /// `A = k`.
    pub const LD_IMM: u16 = 0x00;
    /// `A = M[k]`.
    pub const LD_MEM: u16 = 0x60;
    /// `X = sizeof(seccomp_data)`.
    pub const LDX_LEN: u16 = 0x81;
    /// `X = k`.
    pub const LDX_IMM: u16 = 0x01;
    /// `X = M[k]`.
    pub const LDX_MEM: u16 = 0x61;
    /// `M[k] = A`.
    pub const ST: u16 = 0x02;
    /// `M[k] = X`.
    pub const STX: u16 = 0x03;
    /// `A &= k`.
    pub const AND: u16 = 0x54;
    /// Jump.
    pub const JA: u16 = 0x05;
    /// Jump if `A == k`.
    pub const JEQ: u16 = 0x15;
    /// Jump if `A > k`.
    pub const JGT: u16 = 0x25;
    /// Jump if `A >= k`.
    pub const JGE: u16 = 0x35;
    /// Return `k`.
    pub const RET: u16 = 0x06;
    /// Return `A`.
    pub const RET_A: u16 = 0x16;
    /// `X = A`.
    pub const TAX: u16 = 0x07;
    /// `A = X`.
    pub const TXA: u16 = 0x87;
    /// `A = -A`.
    pub const NEG: u16 = 0x84;
}

const CLASS: u16 = 0x07;
const ALU: u16 = 0x04;
const JMP: u16 = 0x05;
/// The operand is X, not k.
const FROM_X: u16 = 0x08;
/// Bytes of `struct seccomp_data`.
const DATA: u32 = 64;
const SCRATCH: usize = 16;

/// What the program returns for the call; `None` for what is no filter, or one whose answer hangs on something that is not
/// known. Ends always: a program only jumps forward.
#[must_use]
pub fn run(program: &[Instruction], call: &Call) -> Option<u32> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return None;
    }
    let (mut a, mut x) = (Some(0), Some(0));
    // The kernel refuses programs that read what they have not written.
    let mut scratch: [Option<u32>; SCRATCH] = [None; SCRATCH];
    let mut at = 0;
    loop {
        let i = *program.get(at)?;
        at += 1;
        let cell = || usize::try_from(i.k).ok().filter(|k| *k < SCRATCH);
        match i.code {
            op::LD_ABS => a = load(call, i.k)?,
            op::LD_LEN => a = Some(DATA),
            op::LDX_LEN => x = Some(DATA),
            op::LD_IMM => a = Some(i.k),
            op::LDX_IMM => x = Some(i.k),
            op::LD_MEM => a = scratch[cell()?],
            op::LDX_MEM => x = scratch[cell()?],
            op::ST => scratch[cell()?] = a,
            op::STX => scratch[cell()?] = x,
            op::TAX => x = a,
            op::TXA => a = x,
            op::NEG => a = a.map(u32::wrapping_neg),
            op::RET => return Some(i.k),
            op::RET_A => return a,
            op::JA => at = at.checked_add(usize::try_from(i.k).ok()?)?,
            code if code & CLASS == ALU => a = alu(code, a, if code & FROM_X == 0 { Some(i.k) } else { x })?,
            code if code & CLASS == JMP => {
                let taken = jumps(code, a?, if code & FROM_X == 0 { i.k } else { x? })?;
                at += usize::from(if taken { i.jt } else { i.jf });
            }
            _ => return None,
        }
    }
}

/// A word of `struct seccomp_data`: the outer `None` when there is none, the inner when it is not known.
fn load(call: &Call, offset: u32) -> Option<Option<u32>> {
    let half = |value: Option<u64>, high: bool| {
        value.map(|v| u32::try_from(if high { v >> 32 } else { v & 0xffff_ffff }).unwrap_or(0))
    };
    let high = offset & 4 != 0;
    match offset {
        _ if !offset.is_multiple_of(4) => None,
        0 => Some(Some(call.nr)),
        4 => Some(Some(call.arch)),
        8 | 12 => Some(half(call.ip, high)),
        16..DATA => {
            let index = usize::try_from((offset - 16) / 8).ok()?;
            Some(half(*call.args.get(index)?, high))
        }
        _ => None,
    }
}

/// `A op operand`; the outer `None` for what is no operation.
fn alu(code: u16, a: Option<u32>, operand: Option<u32>) -> Option<Option<u32>> {
    let both = |f: fn(u32, u32) -> u32| a.zip(operand).map(|(a, b)| f(a, b));
    Some(match code & !(CLASS | FROM_X) {
        0x00 => both(u32::wrapping_add),
        0x10 => both(u32::wrapping_sub),
        0x20 => both(u32::wrapping_mul),
        // Division by zero ends a filter with 0, that is KILL_THREAD; by k = 0 the kernel refuses it.
        0x30 => match operand {
            Some(0) => return None,
            _ => both(|a, b| a / b.max(1)),
        },
        0x40 => both(|a, b| a | b),
        0x50 => both(|a, b| a & b),
        0x60 => both(u32::wrapping_shl),
        0x70 => both(u32::wrapping_shr),
        0xa0 => both(|a, b| a ^ b),
        _ => return None,
    })
}

fn jumps(code: u16, a: u32, operand: u32) -> Option<bool> {
    Some(match code & !(CLASS | FROM_X) {
        0x10 => a == operand,
        0x20 => a > operand,
        0x30 => a >= operand,
        0x40 => a & operand != 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{ARCH, action, allows, program, verdict};

    fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    fn call(nr: u32, args: [Option<u64>; 6]) -> Call {
        Call { nr, arch: ARCH, ip: None, args }
    }

    #[test]
    fn it_computes() {
        let sum = [
            i(op::LD_IMM, 0, 0, 40),
            i(op::TAX, 0, 0, 0),
            i(op::LD_IMM, 0, 0, 2),
            i(0x0c, 0, 0, 0),
            i(op::RET_A, 0, 0, 0),
        ];
        assert_eq!(run(&sum, &call(0, [None; 6])), Some(42));
        let kept = [
            i(op::LD_ABS, 0, 0, 0),
            i(op::ST, 0, 0, 3),
            i(op::LD_IMM, 0, 0, 0),
            i(op::LD_MEM, 0, 0, 3),
            i(op::RET_A, 0, 0, 0),
        ];
        assert_eq!(run(&kept, &call(77, [None; 6])), Some(77));
        let high = [i(op::LD_ABS, 0, 0, 28), i(op::RET_A, 0, 0, 0)];
        assert_eq!(run(&high, &call(0, [None, Some(5 << 32 | 6), None, None, None, None])), Some(5));
    }

    #[test]
    fn what_is_not_known_gives_no_answer_only_where_it_matters() {
        let looks = [i(op::LD_ABS, 0, 0, 16), i(op::JEQ, 0, 1, 1), i(op::RET, 0, 0, 1), i(op::RET, 0, 0, 2)];
        assert_eq!(run(&looks, &call(0, [None; 6])), None);
        assert_eq!(run(&looks, &call(0, [Some(1), None, None, None, None, None])), Some(1));
        let ignores = [i(op::LD_ABS, 0, 0, 16), i(op::RET, 0, 0, 9)];
        assert_eq!(run(&ignores, &call(0, [None; 6])), Some(9));
    }

    #[test]
    fn the_worst_answer_counts() {
        let say = |k| [i(op::RET, 0, 0, k)];
        let (allow, errno, kill, process) =
            (say(action::ALLOW), say(action::ERRNO | 1), say(action::KILL_THREAD), say(action::KILL_PROCESS));
        let of = |list: &[&[Instruction]]| verdict(list.iter().copied(), &call(0, [None; 6]));
        assert_eq!(of(&[]), Some(action::ALLOW));
        assert_eq!(of(&[&allow, &errno]), Some(action::ERRNO | 1));
        assert_eq!(of(&[&kill, &errno]), Some(action::KILL_THREAD));
        assert_eq!(of(&[&kill, &process]), Some(action::KILL_PROCESS));
        assert!(allows(action::LOG) && allows(action::ALLOW) && !allows(action::USER_NOTIF) && !allows(action::TRACE));
    }

    /// Any bytes: it ends, and does not panic.
    #[test]
    fn any_bytes_are_no_harm() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let codes = [
            0x20, 0x80, 0x00, 0x60, 0x81, 0x01, 0x61, 0x02, 0x03, 0x54, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06, 0x16, 0x07,
            0x87, 0x84, 0x34, 0x3c, 0x64, 0x6c,
        ];
        let mut answers = 0;
        for round in 0..20_000 {
            let len = usize::try_from(next() % 24).unwrap() + 1;
            let bytes: Vec<u8> = (0..len)
                .flat_map(|_| {
                    let mut b = next().to_ne_bytes();
                    if round % 2 == 0 {
                        b[..2].copy_from_slice(&u16::to_ne_bytes(codes[usize::try_from(next() % 24).unwrap()]));
                        (b[2], b[3]) = (b[2] % 4, b[3] % 4);
                        b[4..].copy_from_slice(&(u32::try_from(next() % 72).unwrap()).to_ne_bytes());
                    }
                    b
                })
                .collect();
            let program = program(&bytes).unwrap();
            answers += usize::from(run(&program, &call(1, [Some(next()), None, Some(0), None, None, None])).is_some());
        }
        assert!(answers > 500, "{answers}");
        assert!(program(&[]).is_none() && program(&[0; 7]).is_none() && program(&vec![0; 8 * 4097]).is_none());
    }
}
