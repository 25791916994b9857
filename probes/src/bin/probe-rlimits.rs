//! Resource limits: all of them, soft and hard, none a round number.
#![allow(unsafe_code)]

use probe::{expect, ok};

const LIMITS: [(u32, &str, u64); 16] = [
    (libc::RLIMIT_CPU, "cpu", 1_000_003),
    (libc::RLIMIT_FSIZE, "fsize", 0x1_0000_0000_0003),
    (libc::RLIMIT_DATA, "data", 0x7_0000_1003),
    (libc::RLIMIT_STACK, "stack", 0x70_1003),
    (libc::RLIMIT_CORE, "core", 4099),
    (libc::RLIMIT_RSS, "rss", 0x3_0000_0003),
    (libc::RLIMIT_NPROC, "nproc", 20_011),
    (libc::RLIMIT_NOFILE, "nofile", 1237),
    (libc::RLIMIT_MEMLOCK, "memlock", 0x7f_0001),
    (libc::RLIMIT_AS, "as", 0x4000_0000_1003),
    (libc::RLIMIT_LOCKS, "locks", 77),
    (libc::RLIMIT_SIGPENDING, "sigpending", 3001),
    (libc::RLIMIT_MSGQUEUE, "msgqueue", 80_001),
    (libc::RLIMIT_NICE, "nice", 3),
    (libc::RLIMIT_RTPRIO, "rtprio", 2),
    (libc::RLIMIT_RTTIME, "rttime", u64::MAX),
];

fn get(resource: u32) -> (u64, u64) {
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        ok("getrlimit", libc::getrlimit(resource as _, &mut limit));
        (limit.rlim_cur, limit.rlim_max)
    }
}

fn setup() -> Vec<(u64, u64)> {
    for (resource, name, value) in LIMITS {
        let hard = get(resource).1.min(value.saturating_add(value / 7));
        let limit = libc::rlimit { rlim_cur: value.min(hard), rlim_max: hard };
        ok(name, unsafe { libc::setrlimit(resource as _, &limit) });
    }
    LIMITS.map(|(resource, ..)| get(resource)).to_vec()
}

fn check(before: Vec<(u64, u64)>) {
    for ((resource, name, _), before) in LIMITS.into_iter().zip(before) {
        expect(name, get(resource), before);
    }
    // The limit is in force, not only shown.
    let (mut files, limit) = (Vec::new(), get(libc::RLIMIT_NOFILE).0);
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
        probe::expect_that("open files", files.len() as u64 <= limit, files.len());
    }
    expect("error of the limit", std::io::Error::last_os_error().raw_os_error(), Some(libc::EMFILE));
}

fn main() {
    probe::run(setup, check)
}
