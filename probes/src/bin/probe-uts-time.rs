//! Host and domain name, and clocks that go on without a jump.
#![allow(unsafe_code)]

use probe::{clock, expect, expect_that, ok};

#[derive(Debug, PartialEq)]
struct Names {
    node: Vec<u8>,
    domain: Vec<u8>,
}

fn names() -> Names {
    let text = |bytes: &[libc::c_char]| bytes.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        ok("uname", libc::uname(&mut names));
        Names { node: text(&names.nodename), domain: text(&names.domainname) }
    }
}

const CLOCKS: [i32; 3] = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_REALTIME];

/// Only where the names are nobody else's: whoever starts the probe in a container asks for it.
fn set_names() {
    if std::env::var_os("PROBE_SET_NAMES").is_some() {
        let (node, domain) = (b"no\xfede-of probe", b"do main");
        ok("sethostname", unsafe { libc::sethostname(node.as_ptr().cast(), node.len()) });
        ok("setdomainname", unsafe { libc::setdomainname(domain.as_ptr().cast(), domain.len()) });
    }
}

fn setup() -> (Names, Vec<i128>) {
    set_names();
    (names(), CLOCKS.map(clock).to_vec())
}

fn check((before, times): (Names, Vec<i128>)) {
    expect("names", names(), before);
    let gone: Vec<i128> = CLOCKS.iter().zip(times).map(|(&id, before)| clock(id) - before).collect();
    // Time that nobody lived may be left out or counted, but not more than that.
    for (what, gone_here) in ["monotonic", "boottime"].iter().zip(&gone) {
        expect_that(&format!("time gone of {what}"), (1..=gone[2] + 1_000_000_000).contains(gone_here), &gone);
    }
    expect_that("both clocks go on alike", (gone[0] - gone[1]).abs() < 1_000_000_000, &gone);
    let uptime: f64 =
        probe::read_file("/proc/uptime").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let boot = clock(libc::CLOCK_BOOTTIME) as f64 / 1e9;
    expect_that("uptime is the boot clock", (uptime - boot).abs() < 1.0, (uptime, boot));
}

fn main() {
    probe::run(setup, check)
}
