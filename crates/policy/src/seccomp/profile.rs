//! `linux.seccomp` of an OCI runtime configuration (runtime-spec, config-linux.md), as JSON of its own.
//!
//! Of several rules for one call, the first whose conditions hold decides; rules without conditions come after those
//! with, whatever their order in the file. A rule whose action is the default's is left out, as other runtimes do. Calls
//! of other architectures than x86_64 end the process.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;

use super::{Instruction, action, compile};

/// A profile as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// A comparison with an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    /// The argument under this mask.
    Masked(u64),
}

/// A condition of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// Which argument.
    pub index: u8,
    /// How it is compared.
    pub op: Op,
    /// With what.
    pub value: u64,
}

/// What a profile says: for each call, alternatives in order, each with all of its conditions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meaning {
    /// For all calls that are not named.
    pub default: u32,
    /// By number: conditions (all must hold) and answer.
    pub calls: BTreeMap<u32, Vec<(Vec<Test>, u32)>>,
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// The program.
    pub program: Vec<Instruction>,
}

/// `SECCOMP_FILTER_FLAG_LOG`.
const FLAG_LOG: u32 = 2;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
const FLAG_SPEC_ALLOW: u32 = 4;

/// Compiles a profile's JSON.
///
/// # Errors
/// What is wrong with it, or what of it is not supported.
pub fn compile(json: &str) -> Result<Filter, String> {
    let profile: Profile = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let flags = flags(&profile)?;
    let program = compile::compile(&meaning(&profile)?)?;
    Ok(Filter { flags, program })
}

fn flags(profile: &Profile) -> Result<u32, String> {
    if profile.listener_path.is_some() || profile.listener_metadata.is_some() {
        return Err("listenerPath: a supervisor for seccomp notifications is not supported".into());
    }
    let known = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
    if !profile.architectures.is_empty() && !profile.architectures.iter().any(|a| a == known[0]) {
        return Err(format!("architectures {:?}: the profile is not for x86_64", profile.architectures));
    }
    profile.flags.iter().try_fold(0, |flags, name| match name.as_str() {
        // A filter is installed in every thread anyway.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | FLAG_SPEC_ALLOW),
        _ => Err(format!("flag {name} is not supported")),
    })
}

/// What a profile says.
///
/// # Errors
/// Unknown words.
pub fn meaning(profile: &Profile) -> Result<Meaning, String> {
    let default = answer(&profile.default_action, profile.default_errno_ret)?;
    let mut meaning = Meaning { default, calls: BTreeMap::new() };
    let mut unconditional: BTreeMap<u32, u32> = BTreeMap::new();
    for rule in &profile.syscalls {
        let answer = answer(&rule.action, rule.errno_ret)?;
        let alternatives = alternatives(rule)?;
        if answer == default {
            continue;
        }
        for name in &rule.names {
            let Some(nr) = number(name) else {
                let narrows = (answer & action::MASK).cast_signed() < (default & action::MASK).cast_signed();
                if narrows {
                    return Err(format!("{name} is no system call of x86_64, but a rule means to forbid it"));
                }
                continue;
            };
            if alternatives.is_empty() {
                unconditional.entry(nr).or_insert(answer);
            }
            let list = meaning.calls.entry(nr).or_default();
            list.extend(alternatives.iter().map(|tests| (tests.clone(), answer)));
        }
    }
    for (nr, answer) in unconditional {
        meaning.calls.entry(nr).or_default().push((Vec::new(), answer));
    }
    Ok(meaning)
}

/// The number of a call by its name.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    syscalls::x86_64::Sysno::from_str(name).ok().and_then(|nr| u32::try_from(nr.id()).ok())
}

/// A rule's conditions: together, or, where one argument is named twice, each for itself.
fn alternatives(rule: &Rule) -> Result<Vec<Vec<Test>>, String> {
    let conditions = rule.args.as_deref().unwrap_or_default();
    let tests: Vec<Test> = conditions.iter().map(test).collect::<Result<_, _>>()?;
    let twice = tests.iter().enumerate().any(|(i, t)| tests[..i].iter().any(|u| u.index == t.index));
    Ok(match tests.is_empty() {
        true => Vec::new(),
        false if twice => tests.into_iter().map(|t| vec![t]).collect(),
        false => vec![tests],
    })
}

fn test(c: &Condition) -> Result<Test, String> {
    if c.index > 5 {
        return Err(format!("argument {}: there are six, from 0", c.index));
    }
    let (op, value) = match c.op.as_str() {
        "SCMP_CMP_NE" => (Op::Ne, c.value),
        "SCMP_CMP_LT" => (Op::Lt, c.value),
        "SCMP_CMP_LE" => (Op::Le, c.value),
        "SCMP_CMP_EQ" => (Op::Eq, c.value),
        "SCMP_CMP_GE" => (Op::Ge, c.value),
        "SCMP_CMP_GT" => (Op::Gt, c.value),
        // Here `value` is the mask.
        "SCMP_CMP_MASKED_EQ" => (Op::Masked(c.value), c.value_two),
        _ => return Err(format!("{} is no comparison", c.op)),
    };
    Ok(Test { index: c.index, op, value })
}

/// What a filter returns for an action.
fn answer(name: &str, data: Option<u16>) -> Result<u32, String> {
    const EPERM: u16 = 1;
    const MAX_ERRNO: u16 = 4095;
    let number = u32::from(data.unwrap_or(EPERM));
    if data.is_some() && !matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE") {
        return Err(format!("errnoRet with {name}"));
    }
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => action::KILL_PROCESS,
        "SCMP_ACT_TRAP" => action::TRAP,
        "SCMP_ACT_ERRNO" if number > u32::from(MAX_ERRNO) => return Err(format!("errnoRet {number}")),
        "SCMP_ACT_ERRNO" => action::ERRNO | number,
        "SCMP_ACT_TRACE" => action::TRACE | number,
        "SCMP_ACT_LOG" => action::LOG,
        "SCMP_ACT_ALLOW" => action::ALLOW,
        _ => return Err(format!("action {name} is not supported")),
    })
}
