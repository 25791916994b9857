//! Smack: a task may label itself only where its caller was given a list of labels for that (relabel-self), or with a capability
//! that no container has. Whoever has the list of the caller inherits it.

use crate::labels::{comes_back, denied, end, of_another, refused, restored, seen, start, take, yendor};
use crate::table::{On, Test};
use std::ffi::CString;
use std::fs;
use yendor_tests::{Flavour, PATIENCE, Yendor};

const CURRENT: &str = "smack/current";
const TASK: &[&str] = &["--lsm-profile", "smack:Task"];
const KEEP: &[&str] = &["--keep-lsm"];
const EARLY: &[&str] = &["--enforce", "early"];
/// The label of everything that has no other.
const FLOOR: &str = "_";
/// What callers may become.
const LIST: &str = "Task Other";

/// Tests for the machine with Smack.
pub const TESTS: &[Test] = &[
    test("smack: a container's label holds for all its tasks, and the image's is not taken unless asked", || {
        both(profile)
    }),
    test("smack: labels are kept", || both(kept)),
    test("smack: threads with labels of their own keep them", || both(threads)),
    test("smack: labels are not kept under other rules", || both(changed)),
    test("smack: a label that the caller may not take", || both(forbidden)),
    test("smack: root without a user namespace may take any", any_label),
    test("smack: the host's root may label a socket, and a checkpoint says that it is lost", sockets),
    test("smack: an image of another module", || both(foreign)),
    test("smack: exec joins the container's label", || both(exec)),
    test("smack: denied open", || {
        both(|f| denies(f, "read x < /secret & exec 5</secret; echo ready; exec sleep 1000", "/secret", "open"));
    }),
    test("smack: denied exec", || {
        both(|f| denies(f, "echo ready; exec /busybox-secret sleep 1000", "/busybox-secret", "open"))
    }),
    test("smack: denied connect", || both(connect)),
    test("smack: open files are judged by a label early", || both(early)),
];

const fn test(name: &'static str, test: fn()) -> Test {
    Test { name, on: On::Module("smack"), test }
}

fn both(test: fn(Flavour)) {
    rules();
    crate::labels::both(test);
}

/// Who may do what to whom; everybody but `Blind` may do all to `Secret`.
fn rules() {
    for subject in [FLOOR, "Task", "Other", "Caller", "Blind"] {
        for object in [FLOOR, "Task", "Other", "Caller", "Blind", "Secret"] {
            let access = if (subject, object) == ("Blind", "Secret") { "-" } else { "rwxat" };
            load(subject, object, access);
        }
    }
}

fn load(subject: &str, object: &str, access: &str) {
    fs::write("/sys/fs/smackfs/load2", format!("{subject} {object} {access}")).expect("the guest may load rules");
}

/// Does it as somebody with this label, who may take those of the list. Commands inherit both from this thread.
fn as_caller(label: &str, list: &str, what: impl FnOnce()) {
    let become_one = |label: &str| fs::write("/proc/thread-self/attr/smack/current", label);
    become_one(label).expect("the guest has every capability");
    // Afterwards: a change of the label empties it.
    fs::write("/sys/fs/smackfs/relabel-self", list).expect("the guest has every capability");
    what();
    become_one(FLOOR).expect("the guest has every capability");
}

fn profile(flavour: Flavour) {
    let yendor = yendor(flavour);
    let label = |name: &str| name.to_owned();
    as_caller(FLOOR, LIST, || {
        let container = start(&yendor, "labels", TASK);
        assert_eq!(seen(&yendor, &container, CURRENT), (label(FLOOR), [label("Task")].into()));
        let image = take(&yendor, &container);
        let other = ["--lsm-profile", "smack:Other"];
        assert_eq!(restored(&yendor, &image, &other, CURRENT), (label(FLOOR), [label("Other")].into()));
        // In a file system that was mounted in a user namespace Smack lets nobody at files without its mounter's label.
        as_caller("Caller", LIST, || denied(&yendor, &image, &[], &["EACCES", "denied by: Smack (Caller)"]));
        let said = yendor.call(&["inspect", "--security", image.to_str().expect("UTF-8")]).exits(0).stdout;
        assert!(said.contains("Task") && said.contains("blake3"), "{said}");
    });
}

fn kept(flavour: Flavour) {
    let yendor = yendor(flavour);
    as_caller(FLOOR, LIST, || {
        let image = take(&yendor, &start(&yendor, "labels", TASK));
        assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, ["Task".to_owned()].into());
        assert_eq!(restored(&yendor, &image, &[], CURRENT).1, [FLOOR.to_owned()].into());
    });
}

/// One thread of the probe takes another label of its caller's list, the others do not.
fn threads(flavour: Flavour) {
    let yendor = yendor(flavour);
    as_caller(FLOOR, LIST, || {
        let container = start(&yendor, "labels", &["-e", "PROBE_LABELS_THREAD=smack/current Other"]);
        let (_, before) = seen(&yendor, &container, CURRENT);
        assert_eq!(before, [FLOOR.to_owned(), "Other".to_owned()].into());
        let image = take(&yendor, &container);
        assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, before);
    });
}

/// One rule more makes other rules, the same once more does not.
fn changed(flavour: Flavour) {
    let yendor = yendor(flavour);
    as_caller(FLOOR, LIST, || {
        let image = take(&yendor, &start(&yendor, "labels", TASK));
        rules();
        assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, ["Task".to_owned()].into());
        load("Task", "Secret", "r");
        denied(&yendor, &image, KEEP, &["confine", "smack", "labels cannot be kept", "changed"]);
        assert_eq!(restored(&yendor, &image, &[], CURRENT).1, [FLOOR.to_owned()].into());
        rules();
    });
}

fn forbidden(flavour: Flavour) {
    let yendor = yendor(flavour);
    let mut image = None;
    as_caller(FLOOR, LIST, || image = Some(take(&yendor, &start(&yendor, "labels", TASK))));
    let image = image.expect("an image");
    for list in ["", "Other"] {
        as_caller(FLOOR, list, || {
            let words = ["confine", "label smack:Task", "EPERM", "denied by: Smack", "relabel-self"];
            denied(&yendor, &image, KEEP, &words);
            denied(&yendor, &image, TASK, &words);
            let name = yendor.fresh("denied");
            let said = yendor.run_detached_with(&name, TASK, &["sleep", "100"]);
            refused(&yendor, &name, said, &["EPERM", "smack:Task"]);
        });
    }
}

/// Its tasks have the host's capabilities.
fn any_label() {
    rules();
    let yendor = yendor(Flavour::Root);
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, ["Task".to_owned()].into());
    assert_eq!(
        restored(&yendor, &image, &["--lsm-profile", "smack:Never-heard-of"], CURRENT).1,
        ["Never-heard-of".to_owned()].into()
    );
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "smack:-no"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["EINVAL", "smack:-no"]);
}

/// A socket has its maker's label, or what somebody with the host's CAP_MAC_ADMIN has given it: nobody in a container that has not.
fn sockets() {
    rules();
    let words = ["/lab/lab-guest", "hold-smack", "Other"];
    let lost = "lost: label: the labels of 1 sockets: Smack lets nobody give them without CAP_MAC_ADMIN of the host";
    let takes = |yendor: &Yendor, container: &str| {
        let image = yendor.path(&format!("image-{container}"));
        let said = yendor.call(&["checkpoint", container, "-o", image.to_str().expect("UTF-8")]).exits(0).stderr;
        (image, said)
    };
    let host = yendor(Flavour::Root);
    let (_, said) = takes(&host, &ready(&host, &words));
    assert!(said.contains(lost), "{said}");
    let yendor = yendor(Flavour::RootUserns);
    let said = yendor.call(&[&["run", "--rm", "--"], &words[..]].concat()).exits(1).stdout;
    assert!(said.contains("Operation not permitted"), "{said}");
    as_caller(FLOOR, LIST, || {
        let container = yendor.fresh("holder");
        yendor.run_detached_with(&container, TASK, &["/lab/lab-guest", "hold-udp"]).exits(0);
        yendor.wait_for_log(&container, "ready", PATIENCE);
        // What it sends says its label (IP_OPTIONS), which is no option of the program's.
        let (image, said) = takes(&yendor, &container);
        assert!(said.contains(lost), "{said}");
        comes_back(&yendor, &image, KEEP);
        comes_back(&yendor, &image, &[]);
    });
    let (_, said) = takes(&yendor, &ready(&yendor, &["/lab/lab-guest", "hold-udp"]));
    assert!(!said.contains("lost:"), "{said}");
}

/// As if it had been taken under AppArmor. (That of another machine was taken under another kernel: it comes back on none but that one.)
fn foreign(flavour: Flavour) {
    let yendor = yendor(flavour);
    as_caller(FLOOR, LIST, || {
        let image = of_another(&yendor, &take(&yendor, &start(&yendor, "labels", TASK)), "smack", "apparmor");
        denied(&yendor, &image, KEEP, &["apparmor", "smack", "labels cannot be kept"]);
        assert_eq!(restored(&yendor, &image, &[], CURRENT).1, [FLOOR.to_owned()].into());
        assert_eq!(restored(&yendor, &image, TASK, CURRENT).1, ["Task".to_owned()].into());
    });
}

/// Seen from outside: of a /proc that was mounted in a user namespace Smack shows a task only what has its mounter's label.
fn exec(flavour: Flavour) {
    let yendor = yendor(flavour);
    as_caller(FLOOR, LIST, || {
        let container = start(&yendor, "labels", TASK);
        let command = yendor.command(&["exec", &container, "--", "sleep", "1000"]).spawn();
        let mut command = command.expect("the command starts");
        let of = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let label = |pid: &str| fs::read_to_string(format!("/proc/{pid}/attr/smack/current")).unwrap_or_default();
        let inside = || {
            let all = fs::read_dir("/proc").expect("/proc").flatten();
            let all = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
            all.filter(|pid| of(pid) == b"sleep\x001000\0").map(|pid| label(&pid)).collect::<Vec<_>>()
        };
        assert!(yendor_tests::wait_until(PATIENCE, || !inside().is_empty()), "it does not start");
        assert_eq!(inside(), ["Task"]);
        command.kill().expect("a child of ours");
        command.wait().expect("a child of ours");
        end(&yendor, &container);
    });
}

fn ready(yendor: &Yendor, words: &[&str]) -> String {
    let container = yendor.fresh("holder");
    yendor.run_detached_with(&container, &[], words).exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

/// A program that has this file open, which one caller may not open.
fn denies(flavour: Flavour, script: &str, file: &str, word: &str) {
    let yendor = yendor(flavour);
    secret(file);
    let image = take(&yendor, &ready(&yendor, &["sh", "-c", script]));
    as_caller("Blind", "", || denied(&yendor, &image, &[], &[word, file, "EACCES", "denied by: Smack (Blind)"]));
    comes_back(&yendor, &image, &[]);
}

/// A program that has a file open which the container's label may not open.
fn early(flavour: Flavour) {
    let yendor = yendor(flavour);
    secret("/secret");
    let script = "read x < /secret & exec 5</secret; echo ready; exec sleep 1000";
    let image = take(&yendor, &ready(&yendor, &["sh", "-c", script]));
    as_caller(FLOOR, "Blind", || {
        let options = ["--lsm-profile", "smack:Blind"];
        let by = "denied by: Smack: the container's --lsm-profile Blind, in force from the start (--enforce early)";
        denied(&yendor, &image, &[&options, EARLY].concat(), &["open", "EACCES", by]);
        comes_back(&yendor, &image, &options);
    });
    comes_back(&yendor, &image, EARLY);
}

fn secret(file: &str) {
    if fs::metadata(file).is_err() {
        fs::copy("/bin/busybox", file).expect("a file of the guest's");
        relabel(file, "Secret");
    }
}

fn relabel(file: &str, label: &str) {
    let path = CString::new(file).expect("no NUL");
    let name = c"security.SMACK64";
    // SAFETY: strings with their zeros, and a buffer with its length.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), label.as_ptr().cast(), label.len(), 0) };
    assert_eq!(done, 0, "{file}: {}", std::io::Error::last_os_error());
}

/// The host at the other end has a label of its own.
fn connect(flavour: Flavour) {
    let label = |name: &str| fs::write("/sys/fs/smackfs/netlabel", format!("127.0.0.1/32 {name}"));
    let yendor = yendor(flavour);
    let image = take(&yendor, &ready(&yendor, &["/lab/lab-guest", "hold-udp"]));
    label("Secret").expect("the guest may label hosts");
    as_caller("Blind", "", || {
        denied(&yendor, &image, &[], &["connect(", "EACCES", "denied by: Smack (Blind)"]);
    });
    label(FLOOR).expect("the guest may label hosts");
}
