//! The host's policy: any bytes are a policy, or deny everything in one line that steers no terminal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yendor_policy::host::{Person, Policy};

fuzz_target!(|bytes: &[u8]| {
    let person = Person {
        uid: 1,
        gids: vec![1],
        names: (bytes.to_vec(), bytes.to_vec()),
    };
    match Policy::parse(bytes) {
        Ok(policy) => drop(policy.explain(&person)),
        Err(denial) => assert!(denial.what.chars().all(|c| !c.is_control())),
    }
});
