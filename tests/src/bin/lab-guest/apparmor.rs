//! AppArmor: profiles, stacks, hats, plans for the next program; and what a profile of the caller's denies.

use crate::labels::{
    become_caller, both, bundle_labels, comes_back, denied, end, hand_on, of_another, refused, restored, seen, start,
    take, under_policy, unlabelled, unsupported, user, yendor,
};
use crate::table::{On, Test};
use std::fs;
use yendor_tests::{Flavour, PATIENCE, probe};

const CURRENT: &str = "apparmor/current";
const FILE_ONLY: &[&str] = &["--lsm-profile", "apparmor:file_only"];
const KEEP: &[&str] = &["--keep-lsm"];
const EARLY: &[&str] = &["--enforce", "early"];

/// Tests for machines with AppArmor.
pub const TESTS: &[Test] = &[
    test("apparmor: a container's profile holds for all its tasks", || both(profile)),
    test("apparmor: a bundle's profile holds", bundled),
    test("apparmor: a label is not taken from the image unless asked", || both(not_kept)),
    test("apparmor: the container's profile wins over an image that has none", || both(profile_wins)),
    test("apparmor: labels are kept, those of another module not", || both(kept)),
    test("apparmor: stacks are kept", || both(stack)),
    test("apparmor: hats are kept", || both(hat)),
    test("apparmor: a plan for the next program is kept", || both(plan)),
    test("apparmor: threads with labels of their own keep them", || both(threads)),
    test("apparmor: labels are not kept under another policy", || both(changed)),
    test("apparmor: a label that the caller may not enter", || both(forbidden)),
    test("apparmor: no_new_privs does not hinder a label", || both(no_new_privs)),
    test("apparmor: a profile that is not there", || both(unknown)),
    test("apparmor: a module that is not there", || both(inactive)),
    test("apparmor: exec joins the container's profile", || both(exec)),
    test("apparmor: open files are judged by a label early", || both(early)),
    test("apparmor: open files are judged by no label early where tasks have several", || both(early_several)),
    test("apparmor: denied socket", || both(socket)),
    test("apparmor: denied mount, ptrace and exec", || both(mount_ptrace_exec)),
    test("apparmor: denied setuid, and so the host's own ids", || setuid(Flavour::Root, &["admit", "only root"])),
    test("apparmor: denied setuid, and so the map of ids", || setuid(Flavour::RootUserns, &["confine", "setres"])),
    test("apparmor: denied open", || both(open)),
    Test { name: "apparmor: an image for other machines is handed-on", on: On::Asked("apparmor"), test: handed_on },
];

const fn test(name: &'static str, test: fn()) -> Test {
    Test { name, on: On::Module("apparmor"), test }
}

/// Loads one of the two policies.
fn load(number: u32) {
    let policy = fs::read(format!("/lab/policy/apparmor-{number}.bin")).expect("the policy was compiled");
    fs::write("/sys/kernel/security/apparmor/.replace", policy).expect("the policy is accepted");
}

fn enforced(profile: &str) -> String {
    if profile == "unconfined" { profile.to_owned() } else { format!("{profile} (enforce)") }
}

fn profile(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", FILE_ONLY);
    let (init, threads) = seen(&yendor, &container, CURRENT);
    assert_eq!((init, threads), (enforced("unconfined"), [enforced("file_only")].into()));
    // It may not get signals from outside: only from those who are confined like it, or from a checkpoint.
    let image = take(&yendor, &container);
    let (init, threads) = seen_only(&yendor, &image, FILE_ONLY);
    assert_eq!((init, threads), (enforced("unconfined"), [enforced("file_only")].into()));
    let said = yendor.call(&["inspect", "--security", image.to_str().expect("UTF-8")]).exits(0).stdout;
    assert!(said.contains("file_only") && said.contains("sha256"), "{said}");
}

fn bundled() {
    load(1);
    bundle_labels(&yendor(user()), "apparmorProfile", "other", (CURRENT, "other (enforce)"));
}

/// As `restored`, for profiles under which a probe cannot be asked.
fn seen_only(
    yendor: &yendor_tests::Yendor,
    image: &std::path::Path,
    options: &[&str],
) -> (String, std::collections::BTreeSet<String>) {
    let container = yendor.fresh("restored");
    yendor.restore_with(image, &container, options).exits(0);
    let seen = seen(yendor, &container, CURRENT);
    yendor.call(&["rm", "-f", &container]).exits(0);
    seen
}

fn not_kept(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", FILE_ONLY));
    assert_eq!(restored(&yendor, &image, &[], CURRENT), (enforced("unconfined"), [enforced("unconfined")].into()));
}

fn profile_wins(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", &[]));
    let options = ["--keep-lsm", "--lsm-profile", "apparmor:other"];
    for options in [&options[1..], &options] {
        assert_eq!(restored(&yendor, &image, options, CURRENT), (enforced("unconfined"), [enforced("other")].into()));
    }
}

fn kept(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", &["--lsm-profile", "apparmor:other"]));
    // Pid 1 is not of the image.
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT), (enforced("unconfined"), [enforced("other")].into()));
    let foreign = of_another(&yendor, &image, "apparmor", "smack");
    denied(&yendor, &foreign, KEEP, &["apparmor", "smack", "labels cannot be kept"]);
    assert_eq!(restored(&yendor, &foreign, &[], CURRENT).1, [enforced("unconfined")].into());
    // Who asks for labels does not get those of whoever restores instead (published of others: a flag that is skipped where no label is).
    denied(&yendor, &unlabelled(&yendor, &image), KEEP, &["confine", "apparmor", "labels cannot be kept"]);
    under_policy("keep-labels = ['apparmor:oth*']\n", || comes_back(&yendor, &image, KEEP));
    let by = "denied by: the host's policy, /etc/yendor/policy.toml:1:15 (keep-labels)";
    under_policy("keep-labels = ['apparmor:file_only']\n", || {
        denied(&yendor, &image, KEEP, &["confine", "label apparmor:other", by]);
    });
}

fn handed_on() {
    load(1);
    let yendor = yendor(user());
    hand_on(&take(&yendor, &start(&yendor, "labels", &["--lsm-profile", "apparmor:other"])));
}

fn stack(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", &["--lsm-profile", "apparmor:other//&parent"]);
    let (_, before) = seen(&yendor, &container, CURRENT);
    assert!(before.iter().all(|label| label.contains("//&")), "{before:?}");
    let image = take(&yendor, &container);
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, before);
}

fn hat(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", &["--lsm-profile", "apparmor:parent//hat"]);
    assert_eq!(seen(&yendor, &container, CURRENT).1, [enforced("parent//hat")].into());
    let image = take(&yendor, &container);
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, [enforced("parent//hat")].into());
}

/// A shell plans a label for its next program.
fn plan(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let name = yendor.fresh("planner");
    let words =
        "echo 'exec file_only' >/proc/self/attr/apparmor/exec && echo ready; while :; do read -t 1 x; done </dev/zero";
    let options = ["--lsm-profile", "apparmor:planner"];
    yendor.run_detached_with(&name, &options, &["sh", "-c", words]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(&yendor, &name);
    let look = |options: &[&str]| {
        let container = yendor.fresh("restored");
        yendor.restore_with(&image, &container, options).exits(0);
        let planned = seen(&yendor, &container, "apparmor/exec").1;
        yendor.call(&["rm", "-f", &container]).exits(0);
        planned
    };
    assert_eq!(look(KEEP), [enforced("file_only")].into());
    assert_eq!(look(&[]), [String::new()].into());
}

/// One thread of the probe is confined, the others are not.
fn threads(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", &["-e", "PROBE_LABELS_THREAD=apparmor/current changeprofile other"]);
    let (_, before) = seen(&yendor, &container, CURRENT);
    assert_eq!(before, [enforced("other"), enforced("unconfined")].into());
    let image = take(&yendor, &container);
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, before);
}

fn changed(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", FILE_ONLY));
    let other = take(&yendor, &start(&yendor, "labels", &["--lsm-profile", "apparmor:other"]));
    load(2);
    denied(&yendor, &image, KEEP, &["confine", "apparmor", "file_only has changed"]);
    // A profile that the image does not need may have changed; then only digests can tell.
    assert_eq!(restored(&yendor, &other, KEEP, CURRENT).1, [enforced("other")].into());
    restored(&yendor, &image, &[], CURRENT);
    load(1);
}

fn forbidden(flavour: Flavour) {
    load(1);
    let mut yendor = yendor(flavour);
    let file_only = take(&yendor, &start(&yendor, "labels", FILE_ONLY));
    let other = take(&yendor, &start(&yendor, "labels", &["--lsm-profile", "apparmor:other"]));
    become_caller(&mut yendor, Some(("apparmor", "caller")));
    denied(&yendor, &file_only, KEEP, &["confine", "label", "apparmor:file_only", "EACCES", "AppArmor"]);
    let (init, threads) = restored(&yendor, &file_only, &[], CURRENT);
    assert_eq!((init, threads), (enforced("caller"), [enforced("caller")].into()));
    assert_eq!(restored(&yendor, &other, KEEP, CURRENT).1, [enforced("other")].into());
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, FILE_ONLY, &["sleep", "100"]);
    refused(&yendor, &name, said, &["apparmor:file_only"]);
    become_caller(&mut yendor, None);
}

fn no_new_privs(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", &["-e", "PROBE_NO_NEW_PRIVS=1", "--lsm-profile", "apparmor:other"]);
    let image = take(&yendor, &container);
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, [enforced("other")].into());
}

fn unknown(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "apparmor:no_such"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["apparmor:no_such", "ENOENT"]);
}

fn inactive(flavour: Flavour) {
    let yendor = yendor(flavour);
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "smack:x"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["smack is not active"]);
}

fn exec(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", &["--lsm-profile", "apparmor:other"]);
    let said = yendor.call(&["exec", &container, "--", "cat", "/proc/self/attr/apparmor/current"]).exits(0).stdout;
    assert_eq!(said.trim(), enforced("other"));
    // Also where the label has come with the image.
    let image = take(&yendor, &container);
    let container = yendor.fresh("kept");
    yendor.restore_with(&image, &container, KEEP).exits(0);
    let said = yendor.call(&["exec", &container, "--", "cat", "/proc/self/attr/apparmor/current"]).exits(0).stdout;
    assert_eq!(said.trim(), enforced("other"));
    end(&yendor, &container);
}

/// What a program had open before it was confined, its profile forbids.
fn early(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let name = yendor.fresh("holder");
    let words = "echo x >/tmp/forbidden; exec 5</tmp/forbidden; echo 'changeprofile no_open' >/proc/self/attr/apparmor/current && \
                 echo ready; while :; do read -t 1 x; done </dev/zero";
    yendor.run_detached_with(&name, &[], &["sh", "-c", words]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(&yendor, &name);
    let no_open = ["--lsm-profile", "apparmor:no_open"];
    for (options, by) in [
        (
            KEEP,
            "denied by: AppArmor: the image's label no_open (--keep-lsm), in force from the start (--enforce early)",
        ),
        (
            &no_open,
            "denied by: AppArmor: the container's --lsm-profile no_open, in force from the start (--enforce early)",
        ),
    ] {
        denied(&yendor, &image, &[options, EARLY].concat(), &["open", "forbidden", "EACCES", by]);
        comes_back(&yendor, &image, options);
    }
    comes_back(&yendor, &image, &[EARLY, &["--lsm-profile", "apparmor:other"]].concat());
    comes_back(&yendor, &image, EARLY);
}

/// Nobody knows which of them has a file.
fn early_several(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", &["-e", "PROBE_LABELS_THREAD=apparmor/current changeprofile other"]);
    let image = take(&yendor, &container);
    unsupported(&yendor, &image, &[KEEP, EARLY].concat(), &["--enforce early", "--keep-lsm", "AppArmor"]);
    restored(&yendor, &image, &[KEEP, EARLY, &["--lsm-profile", "apparmor:other"]].concat(), CURRENT);
}

/// Who must be named.
fn by(caller: &str) -> String {
    format!("denied by: AppArmor ({caller})")
}

/// An image that nobody hinders from being taken cannot be restored by callers who may not do this or that.
fn denies(flavour: Flavour, name: &str, callers: &[(&str, &str)]) {
    load(1);
    let mut yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, name, &[]));
    for (caller, word) in callers {
        become_caller(&mut yendor, Some(("apparmor", caller)));
        denied(&yendor, &image, &[], &[word, &by(caller)]);
    }
    become_caller(&mut yendor, None);
    restored(&yendor, &image, &[], CURRENT);
}

fn socket(flavour: Flavour) {
    denies(flavour, "inet-listen", &[("no_socket", "socket(")]);
}

fn mount_ptrace_exec(flavour: Flavour) {
    denies(flavour, "labels", &[("no_mount", "mount"), ("no_ptrace", "ptrace("), ("no_exec", "execve(")]);
}

/// Root only: who has a single id never changes it. The kernel denies no call here: AppArmor hides the capability from capget(2).
fn setuid(flavour: Flavour, words: &[&str]) {
    load(1);
    let mut yendor = yendor(flavour);
    let name = yendor.fresh("other-user");
    let program = probe("labels");
    yendor.run_detached_with(&name, &["-u", "1000"], &[program.to_str().expect("UTF-8")]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(&yendor, &name);
    become_caller(&mut yendor, Some(("apparmor", "no_setuid")));
    denied(&yendor, &image, &[], &[words, &[&by("no_setuid")]].concat());
    become_caller(&mut yendor, None);
}

fn open(flavour: Flavour) {
    load(1);
    let mut yendor = yendor(flavour);
    let name = yendor.fresh("holder");
    let words = "echo x >/tmp/forbidden; exec 5</tmp/forbidden; echo ready; while :; do read -t 1 x; done </dev/zero";
    yendor.run_detached_with(&name, &[], &["sh", "-c", words]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(&yendor, &name);
    become_caller(&mut yendor, Some(("apparmor", "no_open")));
    // The machine has BPF LSM, too, and nobody could tell its answer from AppArmor's.
    let by = by("no_open") + ", or a BPF LSM program";
    denied(&yendor, &image, &[], &["open", "forbidden", "EACCES", &by]);
    become_caller(&mut yendor, None);
}
