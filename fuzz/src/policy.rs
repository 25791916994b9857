//! What a host or a caller says is allowed.

use yendor_policy::host::{Person, Policy};
use yendor_policy::seccomp::{self, Call, bpf};

/// The host's policy: a policy, or a denial of everything in words that steer no terminal.
pub fn host(bytes: &[u8]) -> bool {
    // Names of users and groups come from files too.
    let person = Person { uid: 1, gids: vec![1], names: (bytes.to_vec(), bytes.to_vec()), known: true };
    match Policy::parse(bytes) {
        Ok(policy) => drop(policy.explain(&person)),
        Err(denial) => {
            assert!(denial.what.chars().all(|c| !c.is_control()), "{:?}", denial.what);
            return false;
        }
    }
    true
}

const CALL: Call = Call { nr: 101, arch: seccomp::ARCH, ip: Some(0x40_0000), args: [Some(1); 6] };

/// A filter that a program has installed, or an image says so: it ends, with an answer or without.
pub fn program(bytes: &[u8]) -> bool {
    let Some(program) = seccomp::program(bytes) else { return false };
    assert_eq!(seccomp::to_bytes(&program), bytes);
    let _ = seccomp::verdict([program.as_slice()], &Call { ip: None, args: [None; 6], ..CALL });
    bpf::run(&program, &CALL).is_some()
}

/// A profile: refused, or a filter that says something to every call.
pub fn profile(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(filter) = seccomp::profile::compile(text) else { return false };
    assert!(filter.program.len() <= seccomp::MAX_INSTRUCTIONS);
    for nr in [0, 1, 101, 135, 0x4000_0000, u32::MAX] {
        assert!(bpf::run(&filter.program, &Call { nr, ..CALL }).is_some(), "call {nr} has no answer");
    }
    true
}
