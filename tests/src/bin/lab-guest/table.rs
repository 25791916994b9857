//! The tests of the lab: one table, one runner.

use crate::apparmor;
use crate::labels::{ONCE, user};
use crate::limits;
use crate::place::Place;
use crate::selinux;
use crate::smack;
use crate::tomoyo;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use yendor_tests::{Flavour, Via, Yendor, probe_survives};

/// One test.
pub struct Test {
    /// What holds.
    pub name: &'static str,
    /// Where.
    pub on: On,
    /// Panics when it does not hold.
    pub test: fn(),
}

/// The machines that a test is for.
pub enum On {
    /// All.
    Any,
    /// The one without modules, if it has PAGEMAP_SCAN, without which there are no checkpoints: the others' own tests take some.
    Checkpoints,
    /// Those without.
    NoCheckpoints,
    /// The one that is named like this module, and has it and checkpoints.
    Module(&'static str),
    /// The same, only where it is asked for.
    Asked(&'static str),
}

/// Linux with PAGEMAP_SCAN.
const CHECKPOINTS: (u32, u32) = (6, 7);

/// Those of AppArmor's and SELinux's that run every day: emulated, all of them take minutes.
const DAILY: &[&str] = &[
    "apparmor: a container's profile holds for all its tasks",
    "apparmor: a label is not taken from the image unless asked",
    "apparmor: labels are kept, those of another module not",
    "apparmor: a profile that is not there",
    "apparmor: denied setuid, and so the host's own ids",
    "apparmor: denied open",
    "selinux: a container's domain holds for all its tasks",
    "selinux: a label is not taken from the image unless asked",
    "selinux: labels are kept, also of what is to come",
    "selinux: denied open and exec",
];

/// And those of them that run every day as the account alone.
const DAILY_ONCE: &[&str] = &[
    "apparmor: stacks are kept",
    "apparmor: hats are kept",
    "apparmor: threads with labels of their own keep them",
    "apparmor: labels are not kept under another policy",
    "apparmor: a label that the caller may not enter",
    "apparmor: open files are judged by a label early",
    "apparmor: denied socket",
    "apparmor: denied mount, ptrace and exec",
    "selinux: threads in bounded domains keep them",
    "selinux: labels are not kept under another policy",
    "selinux: a domain that the caller may not enter",
    "selinux: a domain that the image is no entry point of",
    "selinux: denied connect",
    "selinux: denied mount and ptrace",
    "selinux: denied setuid",
];

/// And what not every day, of the other machines: the account's limits take the same way.
const NOT_DAILY: &[&str] = &["limits: of root's containers"];

/// What every machine shows; modules have their own tables.
const TESTS: &[Test] = &[
    Test { name: "run as root", on: On::Any, test: || runs(Flavour::RootUserns) },
    Test { name: "run as root on the host", on: On::Any, test: || runs(Flavour::Root) },
    Test { name: "run as a user", on: On::Any, test: || runs(user()) },
    Test { name: "a probe survives as root", on: On::Checkpoints, test: || survives(Flavour::RootUserns) },
    Test { name: "a probe survives as a user", on: On::Checkpoints, test: || survives(user()) },
    Test { name: "a checkpoint is refused by name", on: On::NoCheckpoints, test: refused },
];

fn runs(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { panic!("the guest is root") };
    yendor.call(&[&["run", "--rm"], yendor.flavour().options(), &["--", "true"]].concat()).exits(0);
}

fn survives(flavour: Flavour) {
    probe_survives("threads", flavour, Via::Container);
}

fn refused() {
    let Some(yendor) = Yendor::new(user()) else { panic!("the guest is root") };
    let name = yendor.fresh("sleeper");
    yendor.run_detached(&name, &["sleep", "1000"]);
    let image = yendor.path("image");
    let said = yendor.call(&["checkpoint", &name, "-o", &image.to_string_lossy()]).exits(3).stderr;
    assert!(said.contains("PAGEMAP_SCAN"), "{said}");
    assert!(!image.exists() && !yendor.tasks_left().is_empty());
}

/// Runs those of this machine: one line for each, and exit code 1 if one failed.
pub fn run() -> ExitCode {
    let place = Place::read();
    println!("lab: machine {} with {}", place.machine, place.modules.join(","));
    let (mut failed, mut later) = (0, 0);
    let tables = [TESTS, limits::TESTS, apparmor::TESTS, selinux::TESTS, smack::TESTS, tomoyo::TESTS];
    for test in tables.into_iter().flatten() {
        let wanted = place.only.as_ref().is_none_or(|word| test.name.contains(word.as_str()));
        let here = match test.on {
            On::Any => true,
            On::Checkpoints => place.kernel >= CHECKPOINTS && place.machine == "plain",
            On::NoCheckpoints => place.kernel < CHECKPOINTS,
            On::Asked(_) if place.only.is_none() => false,
            On::Module(name) | On::Asked(name) => {
                place.kernel >= CHECKPOINTS && place.machine == name && place.has(name)
            }
        };
        if !wanted || !here {
            continue;
        }
        let (both, once) = (DAILY.contains(&test.name), DAILY_ONCE.contains(&test.name));
        let is_slow = matches!(test.on, On::Module("apparmor" | "selinux")) && !both && !once;
        if place.daily && (is_slow || NOT_DAILY.contains(&test.name)) {
            later += 1;
            continue;
        }
        ONCE.store(place.daily && once, Relaxed);
        let begin = Instant::now();
        let passed = panic::catch_unwind(test.test).is_ok();
        println!("lab: {} {} ({})", if passed { "pass" } else { "FAIL" }, test.name, seconds(begin.elapsed()));
        failed += u32::from(!passed);
    }
    if later > 0 {
        println!("lab: skip {later} tests: `cargo xtask lab` has them");
    }
    ExitCode::from(u8::from(failed > 0))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in backquotes that begin with a module's are those of tests; no cell is empty.
    #[test]
    fn the_matrix_of_the_documentation_is_that_of_the_tests() {
        let text = include_str!("../../../../docs/lab.md");
        let tables = [apparmor::TESTS, selinux::TESTS, smack::TESTS, tomoyo::TESTS];
        let names: Vec<&str> = tables.into_iter().flatten().map(|test| test.name).collect();
        let mut rows = 0;
        for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 5, "{line}");
            rows += 1;
            for (cell, module) in cells.iter().skip(1).zip(["apparmor: ", "selinux: ", "smack: ", "tomoyo: "]) {
                let named: Vec<&str> = cell.split('`').skip(1).step_by(2).filter(|n| n.contains(": ")).collect();
                for name in &named {
                    assert!(name.starts_with(module) && names.contains(name), "no test `{name}`");
                }
                let why = cell.starts_with("cannot be") || *cell == "none";
                assert!(why || !named.is_empty(), "{line}: {cell}");
            }
        }
        assert_eq!(rows, 16);
        assert!(limits::TESTS.iter().any(|test| NOT_DAILY == [test.name]));
        assert!(DAILY.iter().chain(DAILY_ONCE).all(|name| names.contains(name)));
        let [both, once] = [DAILY, DAILY_ONCE].map(|list| list.len().to_string());
        let said = format!("{both} tests of AppArmor's and SELinux's and {once} more as the account alone");
        assert!(text.replace('\n', " ").contains(&said), "not said: {said}");
    }
}
