//! Everything of Yendor that parses what others wrote, as functions of bytes that must not fail: any bytes are a value or an
//! error, in time and memory that the bytes account for.
//!
//! The same targets run in two ways: for seconds, over the same mutations every time, in the tests (`tests/short.rs`); for as
//! long as one likes, guided by coverage, with `cargo xtask fuzz` (`src/bin/fuzz.rs`, libFuzzer). Both begin with the files in
//! `seeds/TARGET` and with [`seeds::made`].

mod image;
mod policy;
pub mod seeds;

use ciborium::Value;
use yendor_tests::{Dice, mutate};

/// What a target's bytes are, for whoever changes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No more than bytes.
    Bytes,
    /// CBOR: also changed in ways that leave it CBOR.
    Records,
}

/// A function that any bytes may be given to.
pub struct Target {
    /// What it is asked for by, and the name of its directory of seeds.
    pub name: &'static str,
    /// What its bytes are.
    pub shape: Shape,
    /// Takes them, says whether they were accepted, and panics when something holds no more that always must.
    pub run: fn(&[u8]) -> bool,
}

macro_rules! targets {
    ($($name:ident: $shape:ident $run:expr,)*) => {
        /// All of them.
        pub const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), shape: Shape::$shape, run: |bytes| $run(bytes) },)*];
    };
}

/// A parser that promises no more than an answer.
macro_rules! answers {
    ($parser:path) => {
        |bytes| $parser(bytes).is_ok()
    };
}

targets! {
    host_policy: Bytes policy::host,
    image_blocks: Bytes image::blocks,
    image_directory: Bytes image::directory,
    image_manifest: Bytes image::manifest,
    image_records: Records image::records,
    image_signature: Bytes image::signature,
    image_snapshot: Records image::snapshot,
    loader_answer: Bytes image::answer,
    proc_auxv: Bytes answers!(yendor_proc::auxv::parse),
    proc_cgroup: Bytes answers!(yendor_proc::cgroup::parse),
    proc_children: Bytes answers!(yendor_proc::children::parse),
    proc_fdinfo: Bytes answers!(yendor_proc::fdinfo::parse),
    proc_id_map: Bytes answers!(yendor_proc::id_map::parse),
    proc_limits: Bytes answers!(yendor_proc::limits::parse),
    proc_locks: Bytes answers!(yendor_proc::locks::parse),
    proc_maps: Bytes answers!(yendor_proc::maps::parse),
    proc_mountinfo: Bytes answers!(yendor_proc::mountinfo::parse),
    proc_net_dev: Bytes answers!(yendor_proc::net_config::parse_devices),
    proc_net_fib_trie: Bytes answers!(yendor_proc::net_config::parse_addresses),
    proc_net_if_inet6: Bytes answers!(yendor_proc::net_config::parse_addresses6),
    proc_net_route: Bytes answers!(yendor_proc::net_config::parse_routes),
    proc_net_ipv6_route: Bytes answers!(yendor_proc::net_config::parse_routes6),
    proc_net_igmp: Bytes answers!(yendor_proc::multicast::parse_igmp),
    proc_net_igmp6: Bytes answers!(yendor_proc::multicast::parse_igmp6),
    proc_net_unix: Bytes answers!(yendor_proc::net_unix::parse),
    proc_personality: Bytes answers!(yendor_proc::personality::parse),
    proc_smaps: Bytes answers!(yendor_proc::smaps::parse),
    proc_stat: Bytes answers!(yendor_proc::stat::parse),
    proc_meminfo: Bytes answers!(yendor_proc::meminfo::parse),
    proc_status: Bytes answers!(yendor_proc::status::parse),
    proc_syscall: Bytes answers!(yendor_proc::syscall::parse),
    proc_sysvipc_msg: Bytes answers!(yendor_proc::sysvipc::parse_msg),
    proc_sysvipc_sem: Bytes answers!(yendor_proc::sysvipc::parse_sem),
    proc_sysvipc_shm: Bytes answers!(yendor_proc::sysvipc::parse_shm),
    proc_timens_offsets: Bytes answers!(yendor_proc::timens_offsets::parse),
    proc_timers: Bytes answers!(yendor_proc::timers::parse),
    seccomp_profile: Bytes policy::profile,
    seccomp_program: Bytes policy::program,
}

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Words that /proc and images are made of, and numbers at which something begins or ends.
const WORDS: [&[u8]; 20] = [
    b"\n",
    b" ",
    b"\t",
    b"-1",
    b"0",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775808",
    b"4294967296",
    b"ffffffffffffffff",
    b"2147483648",
    b"7fffffffffff-800000000000",
    b"\\012",
    b"\\777",
    b" (deleted)",
    b"unlimited",
    b"EOF",
    b"\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
];

/// Bytes that are nearly those of a seed; the same for the same dice.
#[must_use]
pub fn changed(seed: &[u8], shape: Shape, dice: &mut Dice) -> Vec<u8> {
    let as_records = shape == Shape::Records && dice.below(4) > 0;
    let whole = as_records.then(|| ciborium::from_reader::<Value, _>(seed).ok()).flatten();
    if let Some(mut value) = whole {
        mutate(&mut value, dice);
        let mut bytes = Vec::new();
        if ciborium::into_writer(&value, &mut bytes).is_ok() {
            return bytes;
        }
    }
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(6) {
        change(&mut bytes, dice);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    let to = (at + dice.below(16)).min(bytes.len());
    match dice.below(7) {
        0 => drop(bytes.splice(at..at, WORDS[dice.below(WORDS.len())].iter().copied())),
        1 => drop(bytes.splice(at..to, WORDS[dice.below(WORDS.len())].iter().copied())),
        2 => drop(bytes.drain(at..to)),
        3 => bytes.truncate(at),
        4 => {
            let piece = bytes[at..to].to_vec();
            let there = dice.below(bytes.len() + 1);
            drop(bytes.splice(there..there, piece));
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
    }
}
