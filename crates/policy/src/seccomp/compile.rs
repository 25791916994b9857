//! A profile's meaning as a program: a search tree over the numbers of calls, and comparisons at its leaves.

use super::bpf::op;
use super::profile::{Meaning, Op, Test};
use super::{ARCH, Instruction, MAX_INSTRUCTIONS, action};

/// Numbers from here on are calls of the x32 architecture.
const X32: u32 = 0x4000_0000;

/// The most that one jump of a comparison skips.
const FAR: usize = 255;

type Alternatives = [(Vec<Test>, u32)];

/// Compiles it.
///
/// # Errors
/// When it is longer than the kernel takes.
pub fn compile(meaning: &Meaning) -> Result<Vec<Instruction>, String> {
    let mut out = vec![
        i(op::LD_ABS, 0, 0, 4),
        i(op::JEQ, 1, 0, ARCH),
        i(op::RET, 0, 0, action::KILL_PROCESS),
        i(op::LD_ABS, 0, 0, 0),
    ];
    let segments = segments(meaning);
    out.extend(tree(&segments, meaning.default));
    if out.len() > MAX_INSTRUCTIONS {
        return Err(format!("the profile becomes {} instructions; the kernel takes {MAX_INSTRUCTIONS}", out.len()));
    }
    Ok(out)
}

fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// Ranges of numbers that are treated alike: first number and alternatives.
fn segments(meaning: &Meaning) -> Vec<(u32, &Alternatives)> {
    const OTHER: &Alternatives = &[];
    let mut out: Vec<(u32, &Alternatives)> = vec![(0, OTHER)];
    let mut push = |from: u32, what| match out.last_mut() {
        Some(last) if last.0 == from => last.1 = what,
        Some(last) if last.1 == what => {}
        _ => out.push((from, what)),
    };
    for (nr, alternatives) in meaning.calls.range(..X32) {
        push(*nr, alternatives.as_slice());
        push(nr + 1, OTHER);
    }
    let mut out: Vec<_> = out.into_iter().filter(|s| s.0 < X32).collect();
    out.dedup_by(|b, a| a.1 == b.1);
    out
}

/// Code that decides among segments by the number in A, then x32 calls.
fn tree(segments: &[(u32, &Alternatives)], default: u32) -> Vec<Instruction> {
    let mut out = vec![i(op::JGE, 0, 1, X32), i(op::RET, 0, 0, action::KILL_PROCESS)];
    out.extend(split(segments, default));
    out
}

fn split(segments: &[(u32, &Alternatives)], default: u32) -> Vec<Instruction> {
    match segments {
        [] => vec![i(op::RET, 0, 0, default)],
        [(_, alternatives)] => leaf(alternatives, default),
        _ => {
            let (left, right) = segments.split_at(segments.len() / 2);
            let bound = right.first().map_or(0, |s| s.0);
            let (left, right) = (split(left, default), split(right, default));
            let mut out = match u8::try_from(left.len()) {
                Ok(skip) => vec![i(op::JGE, skip, 0, bound)],
                Err(_) => vec![i(op::JGE, 0, 1, bound), i(op::JA, 0, 0, u32::try_from(left.len()).unwrap_or(u32::MAX))],
            };
            out.extend(left);
            out.extend(right);
            out
        }
    }
}

/// One call's alternatives in order, then the default.
fn leaf(alternatives: &Alternatives, default: u32) -> Vec<Instruction> {
    let mut out = Vec::new();
    for (tests, answer) in alternatives {
        out.extend(rule(tests, *answer));
        if tests.is_empty() {
            return out;
        }
    }
    out.push(i(op::RET, 0, 0, default));
    out
}

/// Where a comparison goes on.
#[derive(Clone, Copy, PartialEq)]
enum To {
    /// The next instruction.
    Next,
    /// The condition holds.
    Holds,
    /// It does not.
    Fails,
}

/// All conditions, then the answer; falls out at the end when one fails.
fn rule(tests: &[Test], answer: u32) -> Vec<Instruction> {
    let blocks: Vec<Vec<(u16, To, To, u32)>> = tests.iter().map(comparison).collect();
    let total = blocks.iter().map(Vec::len).sum::<usize>() + 1;
    debug_assert!(total <= FAR, "six conditions of seven instructions");
    let mut out = Vec::with_capacity(total);
    for block in blocks {
        let end = out.len() + block.len();
        for (code, yes, no, k) in block {
            let after = out.len() + 1;
            let skip = |to| {
                let target = match to {
                    To::Next => after,
                    To::Holds => end,
                    To::Fails => total,
                };
                u8::try_from(target - after).unwrap_or(u8::MAX)
            };
            out.push(i(code, skip(yes), skip(no), k));
        }
    }
    out.push(i(op::RET, 0, 0, answer));
    out
}

/// A 64-bit comparison in 32-bit halves.
fn comparison(test: &Test) -> Vec<(u16, To, To, u32)> {
    use To::{Fails, Holds, Next};
    let at = 16 + 8 * u32::from(test.index);
    let half = |v: u64| (u32::try_from(v >> 32).unwrap_or(0), u32::try_from(v & 0xffff_ffff).unwrap_or(0));
    let (high, low) = half(test.value);
    let load = |offset| (op::LD_ABS, Next, Next, offset);
    let (load_high, load_low) = (load(at + 4), load(at));
    // A greater than (or equal to) the value, with what follows from it.
    let order = |last: u16, yes: To, no: To| {
        vec![load_high, (op::JGT, yes, Next, high), (op::JEQ, Next, no, high), load_low, (last, yes, no, low)]
    };
    match test.op {
        Op::Eq => vec![load_high, (op::JEQ, Next, Fails, high), load_low, (op::JEQ, Holds, Fails, low)],
        Op::Ne => vec![load_high, (op::JEQ, Next, Holds, high), load_low, (op::JEQ, Fails, Holds, low)],
        Op::Gt => order(op::JGT, Holds, Fails),
        Op::Ge => order(op::JGE, Holds, Fails),
        Op::Lt => order(op::JGE, Fails, Holds),
        Op::Le => order(op::JGT, Fails, Holds),
        Op::Masked(mask) => {
            let (mask_high, mask_low) = half(mask);
            vec![
                load_high,
                (op::AND, Next, Next, mask_high),
                (op::JEQ, Next, Fails, high),
                load_low,
                (op::AND, Next, Next, mask_low),
                (op::JEQ, Holds, Fails, low),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::profile::{compile as compile_json, number};
    use crate::seccomp::{Call, bpf};
    use std::collections::BTreeMap;

    /// What a profile says, read without any program.
    fn expected(meaning: &Meaning, call: &Call) -> u32 {
        if call.arch != ARCH || call.nr >= X32 {
            return action::KILL_PROCESS;
        }
        let holds = |t: &Test| {
            let a = call.args[usize::from(t.index)].unwrap();
            match t.op {
                Op::Ne => a != t.value,
                Op::Lt => a < t.value,
                Op::Le => a <= t.value,
                Op::Eq => a == t.value,
                Op::Ge => a >= t.value,
                Op::Gt => a > t.value,
                Op::Masked(mask) => a & mask == t.value,
            }
        };
        let list = meaning.calls.get(&call.nr).map_or(&[][..], Vec::as_slice);
        list.iter().find(|(tests, _)| tests.iter().all(holds)).map_or(meaning.default, |(_, answer)| *answer)
    }

    #[test]
    fn the_program_means_what_the_profile_says() {
        let mut state = 88_172_645_463_325_252u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let values = [0, 1, 2, 0xffff_ffff, 1 << 32, (1 << 32) + 1, u64::MAX, u64::MAX - 1, 0x8000_0000];
        for _ in 0..200 {
            let mut calls: BTreeMap<u32, Vec<(Vec<Test>, u32)>> = BTreeMap::new();
            for _ in 0..next(120) {
                let mut pick = || values[usize::try_from(next(9)).unwrap()];
                let (value, mask) = (pick(), pick());
                let ops = [Op::Ne, Op::Lt, Op::Le, Op::Eq, Op::Ge, Op::Gt, Op::Masked(mask)];
                let tests = (0..next(4))
                    .map(|index| {
                        let op = ops[usize::try_from(next(7)).unwrap()];
                        Test { index: u8::try_from(index).unwrap(), op, value }
                    })
                    .collect();
                let nr = u32::try_from(next(460)).unwrap();
                calls.entry(nr).or_default().push((tests, action::ERRNO | u32::try_from(next(9)).unwrap()));
            }
            let meaning = Meaning { default: action::ALLOW, calls };
            let program = compile(&meaning).unwrap();
            for _ in 0..400 {
                let nr = u32::try_from(next(470)).unwrap();
                let args = std::array::from_fn(|_| Some(values[usize::try_from(next(9)).unwrap()]));
                let call = Call { nr, arch: ARCH, ip: Some(0), args };
                assert_eq!(bpf::run(&program, &call), Some(expected(&meaning, &call)), "{call:?}");
            }
            for (nr, arch) in [(0, 0x4000_0003), (X32, ARCH), (X32 + 5, ARCH)] {
                let call = Call { nr, arch, ip: None, args: [None; 6] };
                assert_eq!(bpf::run(&program, &call), Some(action::KILL_PROCESS));
            }
        }
    }

    #[test]
    fn oci_profiles_are_read() {
        let json = r#"{ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
              { "names": ["read", "write", "_llseek"], "action": "SCMP_ACT_ALLOW" },
              { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }, { "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] },
              { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
              { "names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 } ] }"#;
        let filter = compile_json(json).unwrap();
        assert_eq!(filter.flags, 2);
        let ask = |name: &str, arg: u64| {
            let args = [Some(arg), Some(0), Some(0), Some(0), Some(0), Some(0)];
            bpf::run(&filter.program, &Call { nr: number(name).unwrap(), arch: ARCH, ip: None, args }).unwrap()
        };
        assert_eq!(["read", "write"].map(|n| ask(n, 5)), [action::ALLOW; 2]);
        assert_eq!([0, 8, 1].map(|v| ask("personality", v)), [action::ALLOW, action::ALLOW, action::ERRNO | 38]);
        assert_eq!([0x11, 0x1000_0000].map(|v| ask("clone", v)), [action::ALLOW, action::ERRNO | 38]);
        assert_eq!(ask("ptrace", 0), action::ERRNO | 1);
        assert_eq!(ask("openat", 0), action::ERRNO | 38);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let of = |rest: &str| compile_json(&format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", {rest} }}"#));
        for (rest, word) in [
            (r#""listenerPath": "/x""#, "listenerPath"),
            (r#""archMap": []"#, "archMap"),
            (r#""architectures": ["SCMP_ARCH_AARCH64"]"#, "x86_64"),
            (r#""flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]"#, "NEW_LISTENER"),
            (r#""syscalls": [{ "names": ["no_such_call"], "action": "SCMP_ACT_ERRNO" }]"#, "no_such_call"),
            (r#""syscalls": [{ "names": ["read"], "action": "SCMP_ACT_NOTIFY" }]"#, "NOTIFY"),
            (r#""syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000 }]"#, "5000"),
            (
                r#""syscalls": [{ "names": ["read"], "action": "SCMP_ACT_KILL", "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }]"#,
                "argument 6",
            ),
        ] {
            let error = of(rest).unwrap_err();
            assert!(error.contains(word), "{rest}: {error}");
        }
        assert!(compile_json("{}").is_err() && compile_json("").is_err());
    }
}
