//! TOMOYO: domains of tasks, which follow what was executed, or the task's own word where its domain has a rule for that.

use crate::labels::{
    become_caller, both, comes_back, denied, end, of_another, refused, seen_by, start, take, unlabelled, user, yendor,
};
use crate::table::{On, Test};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use yendor_tests::{Flavour, PATIENCE, Yendor};

const POLICY: &str = "/sys/kernel/security/tomoyo";
const TASK: &[&str] = &["--lsm-profile", "tomoyo:<kernel> /task"];
/// A domain belongs to a thread: those that have children are there before their leader takes it.
const BEARING: &[&str] = &["--lsm-profile", "tomoyo:<kernel> /task", "-e", "PROBE_LABELS_CHILD=1"];
const KEEP: &[&str] = &["--keep-lsm"];
const EARLY: &[&str] = &["--enforce", "early"];

/// Tests for the machine with TOMOYO.
pub const TESTS: &[Test] = &[
    test("tomoyo: a container's domain holds for all its tasks, and the image's is not taken unless asked", || {
        both(profile);
    }),
    test("tomoyo: domains are kept, those of another module not", kept),
    test("tomoyo: a domain that could not be read, or of another module, is not kept", unread),
    test("tomoyo: domains are not kept under another policy", changed),
    test("tomoyo: a domain that the caller may not enter", || both(forbidden)),
    test("tomoyo: exec joins the container's domain", || both(exec)),
    test("tomoyo: denied connect, mount, open and exec", || both(denies)),
];

const fn test(name: &'static str, test: fn()) -> Test {
    Test { name, on: On::Module("tomoyo"), test }
}

/// Where nothing else is said, programs stay in the domain of whoever starts them; the guest's own is the first of all.
const EXCEPTIONS: &str = "keep_domain any from any\n";
/// Profile 0, which the first domain has, forbids nothing.
const PROFILES: &str = "\
PROFILE_VERSION=20150505
0-COMMENT=nothing is forbidden
0-CONFIG={ mode=disabled grant_log=no reject_log=no }
4-COMMENT=no connect
4-CONFIG={ mode=disabled grant_log=no reject_log=no }
4-CONFIG::network::inet_dgram_send={ mode=enforcing grant_log=no reject_log=no }
5-COMMENT=no mount
5-CONFIG={ mode=disabled grant_log=no reject_log=no }
5-CONFIG::file::mount={ mode=enforcing grant_log=no reject_log=no }
6-COMMENT=no open but by rule
6-CONFIG={ mode=disabled grant_log=no reject_log=no }
6-CONFIG::file::open={ mode=enforcing grant_log=no reject_log=no }
7-COMMENT=no program but by rule
7-CONFIG={ mode=disabled grant_log=no reject_log=no }
7-CONFIG::file::execute={ mode=enforcing grant_log=no reject_log=no }
";
/// Everybody may become a task, nobody but the guest a caller, and nobody at all `secret`. Who may not open may open everything but one
/// file, wherever that is; who may not start programs may start the command, but not have it start itself, which it calls otherwise.
const DOMAINS: &str = "\
<kernel> /task
use_profile 0
<kernel> /other
use_profile 0
<kernel> /secret
use_profile 0
<kernel> /caller
use_profile 0
task manual_domain_transition <kernel> /task
<kernel> /no-connect
use_profile 4
<kernel> /no-mount
use_profile 5
<kernel> /no-open
use_profile 6
file read/write/append /
file read/write/append /\\*\\-forbidden
file read/write/append /\\{\\*\\}/
file read/write/append /\\{\\*\\}/\\*\\-forbidden
file read/write/append \\*
file read/write/append \\*:/
file read/write/append \\*:/\\*\\-forbidden
file read/write/append \\*:/\\{\\*\\}/
file read/write/append \\*:/\\{\\*\\}/\\*\\-forbidden
<kernel> /no-exec
use_profile 7
file execute /lab/yendor exec.argv[0]=\"/lab/yendor\"
";
const GUEST: &str = "\
task manual_domain_transition <kernel> /task
task manual_domain_transition <kernel> /other
task manual_domain_transition <kernel> /caller
task manual_domain_transition <kernel> /no-connect
task manual_domain_transition <kernel> /no-mount
task manual_domain_transition <kernel> /no-open
task manual_domain_transition <kernel> /no-exec
";

/// Before the tests: a policy, who may change it, and the program whose start makes it hold. Nothing where TOMOYO is not.
pub fn activate() -> std::io::Result<()> {
    if !Path::new(POLICY).is_dir() {
        return Ok(());
    }
    write("manager", "/lab/lab-guest\n")?;
    write("exception_policy", EXCEPTIONS)?;
    write("profile", PROFILES)?;
    write("domain_policy", DOMAINS)?;
    let own = fs::read_to_string(format!("{POLICY}/self_domain"))?;
    write("domain_policy", &format!("{own}\nuse_profile 0\n{GUEST}"))?;
    Command::new("/bin/true").status().map(drop)
}

fn write(file: &str, text: &str) -> std::io::Result<()> {
    let path = format!("{POLICY}/{file}");
    let done = fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(text.as_bytes()));
    done.inspect_err(|error| println!("lab: init: {path}: {error}"))
}

/// The domain of a task, as root may ask for it.
fn domain(task: &str) -> String {
    let file = fs::OpenOptions::new().read(true).write(true).open(format!("{POLICY}/.process_status"));
    let mut file = file.expect("the guest is root");
    file.write_all(format!("{task}\n").as_bytes()).expect("a task can be asked for");
    let mut text = vec![0; 4096];
    let count = file.read(&mut text).expect("there is an answer");
    let text = String::from_utf8_lossy(&text[..count]).into_owned();
    text.trim_end().splitn(3, ' ').nth(2).unwrap_or_default().to_owned()
}

fn own() -> String {
    domain(&std::process::id().to_string())
}

fn named(name: &str) -> String {
    format!("<kernel> /{name}")
}

fn seen(yendor: &Yendor, container: &str) -> (String, BTreeSet<String>) {
    seen_by(yendor, container, domain)
}

/// Restores an image, looks at its domains and ends it.
#[track_caller]
fn restored(yendor: &Yendor, image: &Path, options: &[&str]) -> (String, BTreeSet<String>) {
    let container = yendor.fresh("restored");
    yendor.restore_with(image, &container, options).exits(0);
    let seen = seen(yendor, &container);
    end(yendor, &container);
    seen
}

fn profile(flavour: Flavour) {
    let mut yendor = yendor(flavour.clone());
    let container = start(&yendor, "labels", BEARING);
    assert_eq!(seen(&yendor, &container), (own(), [named("task")].into()));
    let image = take(&yendor, &container);
    let other = ["--lsm-profile", "tomoyo:<kernel> /other"];
    assert_eq!(restored(&yendor, &image, &other), (own(), [named("other")].into()));
    become_caller(&mut yendor, Some(("tomoyo", &named("caller"))));
    assert_eq!(restored(&yendor, &image, &[]), (named("caller"), [named("caller")].into()));
    assert_eq!(restored(&yendor, &image, TASK), (named("caller"), [named("task")].into()));
    become_caller(&mut yendor, None);
    if flavour == Flavour::RootUserns {
        let said = yendor.call(&["inspect", "--security", image.to_str().expect("UTF-8")]).exits(0).stdout;
        assert!(said.contains("<kernel> /task") && said.contains("blake3"), "{said}");
    }
}

fn kept() {
    let mut yendor = yendor(Flavour::RootUserns);
    let image = take(&yendor, &start(&yendor, "labels", BEARING));
    assert_eq!(restored(&yendor, &image, KEEP), (own(), [named("task")].into()));
    become_caller(&mut yendor, Some(("tomoyo", &named("caller"))));
    assert_eq!(restored(&yendor, &image, KEEP), (named("caller"), [named("task")].into()));
    become_caller(&mut yendor, None);
    foreign(&yendor, &image);
}

/// Whose domain a task is in is told to root alone.
fn unread() {
    let yendor = yendor(user());
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    denied(&yendor, &image, KEEP, &["confine", "tomoyo", "labels cannot be kept"]);
    foreign(&yendor, &image);
}

/// As if it had been taken under Smack.
fn foreign(yendor: &Yendor, image: &Path) {
    let image = of_another(yendor, image, "tomoyo", "smack");
    denied(yendor, &image, KEEP, &["tomoyo", "smack", "labels cannot be kept"]);
    assert_eq!(restored(yendor, &image, &[]).1, [own()].into());
}

/// A rule more for the task's own domain makes another policy, one for somebody else's does not.
fn changed() {
    let yendor = yendor(Flavour::RootUserns);
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    write("domain_policy", "<kernel> /secret\nfile read /etc/passwd\n").expect("the guest may write its policy");
    assert_eq!(restored(&yendor, &image, KEEP).1, [named("task")].into());
    write("domain_policy", "<kernel> /task\nfile read /etc/passwd\n").expect("the guest may write its policy");
    denied(&yendor, &image, KEEP, &["confine", "tomoyo", "domain <kernel> /task has changed"]);
    // Who asks for labels does not get those of whoever restores instead (published of others: a flag that is skipped where no label is).
    denied(&yendor, &unlabelled(&yendor, &image), KEEP, &["confine", "tomoyo", "labels cannot be kept"]);
    assert_eq!(restored(&yendor, &image, &[]).1, [own()].into());
    write("domain_policy", "<kernel> /task\ndelete file read /etc/passwd\n").expect("the guest may write its policy");
    assert_eq!(restored(&yendor, &image, KEEP).1, [named("task")].into());
}

fn forbidden(flavour: Flavour) {
    let root = flavour == Flavour::RootUserns;
    let mut yendor = yendor(flavour);
    let other = take(&yendor, &start(&yendor, "labels", &["--lsm-profile", "tomoyo:<kernel> /other"]));
    become_caller(&mut yendor, Some(("tomoyo", &named("caller"))));
    let words = ["confine", "label tomoyo:<kernel> /other", "EPERM", "TOMOYO"];
    denied(&yendor, &other, &["--lsm-profile", "tomoyo:<kernel> /other"], &words);
    if root {
        denied(&yendor, &other, KEEP, &words);
    }
    become_caller(&mut yendor, None);
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "tomoyo:<kernel> /secret"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["EPERM", "tomoyo:<kernel> /secret"]);
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "tomoyo:no domain"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["EINVAL", "tomoyo:no domain"]);
}

fn exec(flavour: Flavour) {
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", TASK);
    let command = yendor.command(&["exec", &container, "--", "sleep", "1000"]).spawn();
    let mut command = command.expect("the command starts");
    // It is in the container, but not its first process.
    let inside = || {
        let of = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let all = fs::read_dir("/proc").expect("/proc").flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        all.filter(|pid| of(pid) == b"sleep\x001000\0").map(|pid| domain(&pid)).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    yendor_tests::wait_until(PATIENCE, || {
        found = inside();
        !found.is_empty()
    });
    command.kill().expect("a child of ours");
    command.wait().expect("a child of ours");
    assert_eq!(found, [named("task")]);
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// An image that nobody hinders from being taken cannot be restored by callers whose domain forbids this or that.
fn denies(flavour: Flavour) {
    let mut yendor = yendor(flavour);
    let container = yendor.fresh("holder");
    yendor.run_detached_with(&container, &[], &["/lab/lab-guest", "hold-udp"]).exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = take(&yendor, &container);
    for (caller, words) in [
        ("no-connect", ["connect(", ""]),
        ("no-mount", ["mount", ""]),
        ("no-open", ["open", "forbidden"]),
        ("no-exec", ["execve(", ""]),
    ] {
        become_caller(&mut yendor, Some(("tomoyo", &named(caller))));
        denied(&yendor, &image, &[], &[&words[..], &["EPERM", "denied by: TOMOYO ("]].concat());
    }
    become_caller(&mut yendor, None);
    comes_back(&yendor, &image, &[]);
    // The same as the container's own domain: it counts when files are opened, or from the first step of its tasks on.
    let profile = ["--lsm-profile", "tomoyo:<kernel> /no-open"];
    let by =
        "denied by: TOMOYO: the container's --lsm-profile <kernel> /no-open, in force from the start (--enforce early)";
    denied(&yendor, &image, &[&profile, EARLY].concat(), &["open", "forbidden", "EPERM", by]);
    comes_back(&yendor, &image, &profile);
}
