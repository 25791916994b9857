//! SELinux, enforcing: domains, what is planned for files, sockets, keys and programs, and the image as an entry point.

use crate::labels::{
    become_caller, both, bundle_labels, comes_back, denied, end, fetched, refused, restored, seen, start, take,
    under_policy, unlabelled, unsupported, user, yendor,
};
use crate::table::{On, Test};
use std::ffi::CString;
use std::fs;
use std::path::Path;
use yendor_tests::{Flavour, PATIENCE, Yendor};

const CURRENT: &str = "current";
const TASK: &[&str] = &["--lsm-profile", "selinux:u:r:task_t"];
const KEEP: &[&str] = &["--keep-lsm"];
const EARLY: &[&str] = &["--enforce", "early"];
/// A named pipe is opened by nobody else while a container is made.
const FIFO: &[&str] = &["sh", "-c", "busybox mkfifo /tmp/p; exec 5<>/tmp/p; echo ready; read x <&5"];

/// Tests for machines with SELinux.
pub const TESTS: &[Test] = &[
    test("selinux: a container's domain holds for all its tasks", || both(profile)),
    test("selinux: a bundle's label holds", bundled),
    test("selinux: a label is not taken from the image unless asked", || both(not_kept)),
    test("selinux: labels are kept, also of what is to come", || both(kept)),
    test("selinux: sockets keep their labels, and what no kernel tells is said", || both(sockets)),
    test("selinux: threads in bounded domains keep them", || both(threads)),
    test("selinux: labels are not kept under another policy", || both(changed)),
    test("selinux: a domain that the caller may not enter", || both(forbidden)),
    test("selinux: a domain that the image is no entry point of", || both(entrypoint)),
    test("selinux: an image of a machine with AppArmor", || both(foreign)),
    test("selinux: exec joins the container's domain", || both(exec)),
    test("selinux: no label for one thread of a restore", || both(early)),
    test("selinux: denied socket", || both(|f| denies(f, &["inet-listen"], &[("no_socket_t", "socket(")]))),
    test("selinux: denied connect", || both(connect)),
    test("selinux: denied mount and ptrace", || {
        both(|f| denies(f, &["labels"], &[("no_mount_t", "mount"), ("no_ptrace_t", "ptrace(")]));
    }),
    test("selinux: denied open and exec", || {
        both(|f| denies(f, FIFO, &[("no_open_t", "open"), ("no_exec_t", "execve(")]));
    }),
    test("selinux: denied setuid", || setuid(Flavour::Root, &["setres"])),
    test("selinux: denied setuid, and so the map of ids", || setuid(Flavour::RootUserns, &["admit", "uid_map"])),
];

const fn test(name: &'static str, test: fn()) -> Test {
    Test { name, on: On::Module("selinux"), test }
}

/// Loads one of the two policies.
fn load(number: u32) {
    let policy = fs::read(format!("/lab/policy/selinux-{number}.bin")).expect("the policy was compiled");
    fs::write("/sys/fs/selinux/load", policy).expect("the policy is accepted");
    assert_eq!(fs::read_to_string("/sys/fs/selinux/enforce").expect("selinuxfs").trim(), "1");
}

fn domain(name: &str) -> String {
    format!("u:r:{name}")
}

fn profile(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", TASK);
    assert_eq!(seen(&yendor, &container, CURRENT), (domain("kernel_t"), [domain("task_t")].into()));
    let image = take(&yendor, &container);
    assert_eq!(restored(&yendor, &image, TASK, CURRENT), (domain("kernel_t"), [domain("task_t")].into()));
    let said = yendor.call(&["inspect", "--security", image.to_str().expect("UTF-8")]).exits(0).stdout;
    assert!(said.contains("u:r:task_t"), "{said}");
}

fn bundled() {
    load(1);
    bundle_labels(&yendor(user()), "selinuxLabel", "u:r:task_t", (CURRENT, "u:r:task_t"));
}

fn not_kept(flavour: Flavour) {
    load(1);
    let mut yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    become_caller(&mut yendor, Some(("selinux", "u:r:caller_t")));
    assert_eq!(restored(&yendor, &image, &[], CURRENT), (domain("caller_t"), [domain("caller_t")].into()));
    become_caller(&mut yendor, None);
}

/// A program plans labels for everything that can have one.
fn kept(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT), (domain("kernel_t"), [domain("task_t")].into()));
    // Who asks for labels does not get those of whoever restores instead (published of others: a flag that is skipped where no label is).
    denied(&yendor, &unlabelled(&yendor, &image), KEEP, &["confine", "selinux", "labels cannot be kept"]);
    let name = yendor.fresh("planner");
    let planned =
        ["fscreate=u:object_r:data_t", "sockcreate=u:r:task_t", "keycreate=u:object_r:image_t", "exec=u:r:task_t"];
    let words = [&["/lab/lab-guest", "hold-labels"], &planned[..]].concat();
    yendor.run_detached_with(&name, TASK, &words).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(&yendor, &name);
    let wanted = [
        ("current", domain("task_t")),
        ("exec", domain("task_t")),
        ("fscreate", "u:object_r:data_t".to_owned()),
        ("keycreate", "u:object_r:image_t".to_owned()),
        ("sockcreate", domain("task_t")),
    ];
    for (keep, options) in [(true, KEEP), (false, &[][..])] {
        let container = yendor.fresh("restored");
        yendor.restore_with(&image, &container, options).exits(0);
        for (attribute, label) in &wanted {
            let (_, found) = seen(&yendor, &container, attribute);
            let is = found.contains(label);
            assert_eq!(is, keep, "{attribute}: {found:?}");
        }
        yendor.call(&["rm", "-f", &container]).exits(0);
    }
}

/// One socket has a label that its maker chose for it, two have their maker's.
fn sockets(flavour: Flavour) {
    load(1);
    let mut yendor = yendor(flavour);
    let container = yendor.fresh("holder");
    yendor.run_detached_with(&container, TASK, &["/lab/lab-guest", "hold-sockets", "u:r:other_t"]).exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let wanted = ["other_t", "task_t", "task_t"].map(domain);
    assert_eq!(labels_of_sockets(&yendor, &container), wanted);
    let image = yendor.path("image-sockets");
    let words = ["checkpoint", &container, "-o", image.to_str().expect("UTF-8")];
    let said = yendor.call(&words).exits(0).stderr;
    for what in [
        "lost: label: under which label",
        "lost: label: the labels of 1 System V objects: SELinux tells nobody",
        "lost: label: the labels of 2 ends of pipes and queues: SELinux gives what is new that of its maker",
    ] {
        assert!(said.contains(what), "no `{what}` in: {said}");
    }
    let said = yendor.call(&["inspect", "--security", "--lost", image.to_str().expect("UTF-8")]).exits(0).stdout;
    assert!(said.contains("u:r:other_t") && said.contains("System V objects"), "{said}");
    for (options, labels) in
        [(KEEP, &wanted), (&[][..], &["kernel_t"; 3].map(domain)), (TASK, &["kernel_t"; 3].map(domain))]
    {
        let container = yendor.fresh("restored");
        yendor.restore_with(&image, &container, options).exits(0);
        assert_eq!(labels_of_sockets(&yendor, &container), *labels, "{options:?}");
        yendor.call(&["rm", "-f", &container]).exits(0);
    }
    become_caller(&mut yendor, Some(("selinux", &domain("no_sockcreate_t"))));
    denied(&yendor, &image, KEEP, &["confine", "label selinux:u:r:other_t (sockcreate)", "EACCES", "SELinux"]);
    become_caller(&mut yendor, None);
    // The host's policy is asked about each label, one of a socket, too.
    let by = "denied by: the host's policy, /etc/yendor/policy.toml:1:15 (keep-labels)";
    for (allowed, refused) in [("'selinux:u:r:other_t'", "task_t"), ("'selinux:u:r:task_t'", "other_t")] {
        let label = format!("label selinux:u:r:{refused}");
        under_policy(&format!("keep-labels = [{allowed}]\n"), || {
            denied(&yendor, &image, KEEP, &["confine", &label, by])
        });
    }
    under_policy("keep-labels = ['selinux:u:r:*']\n", || comes_back(&yendor, &image, KEEP));
    // What its tasks have the label of, nobody loses: as everything here that has no profile.
    let container = start(&yendor, "labels", &[]);
    let image = yendor.path("image-own");
    let words = ["checkpoint", &container, "-o", image.to_str().expect("UTF-8")];
    let said = yendor.call(&words).exits(0).stderr;
    assert!(!said.contains("lost:"), "{said}");
}

/// Of a container's first process: those with the numbers 3, 4 and 5.
fn labels_of_sockets(yendor: &Yendor, container: &str) -> [String; 3] {
    let state = fs::read(yendor.path("state/run").join(container).join("state.json")).expect("it runs");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("the state is JSON");
    [3, 4, 5].map(|number| {
        let path = CString::new(format!("/proc/{}/fd/{number}", state["main"])).expect("no NUL");
        let mut text = [0_u8; 256];
        // SAFETY: strings with their zeros, and a buffer with its length.
        let len = unsafe {
            libc::getxattr(path.as_ptr(), c"security.selinux".as_ptr(), text.as_mut_ptr().cast(), text.len())
        };
        let len = usize::try_from(len).unwrap_or_else(|_| panic!("{path:?}: {}", std::io::Error::last_os_error()));
        String::from_utf8_lossy(&text[..len]).trim_end_matches('\0').to_owned()
    })
}

/// One thread of the probe is in a domain that its process's domain bounds.
fn threads(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let options = [TASK, &["-e", "PROBE_LABELS_THREAD=current u:r:other_t"]].concat();
    let container = start(&yendor, "labels", &options);
    let (_, before) = seen(&yendor, &container, CURRENT);
    assert_eq!(before, [domain("other_t"), domain("task_t")].into());
    let image = take(&yendor, &container);
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, before);
}

/// The same policy, loaded again, is the same; one type more makes it another.
fn changed(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    load(1);
    assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, [domain("task_t")].into());
    load(2);
    denied(&yendor, &image, KEEP, &["confine", "selinux", "policy has changed"]);
    restored(&yendor, &image, &[], CURRENT);
    load(1);
}

fn forbidden(flavour: Flavour) {
    load(1);
    let mut yendor = yendor(flavour);
    let secret = take(&yendor, &start(&yendor, "labels", &["--lsm-profile", "selinux:u:r:secret_t"]));
    let task = take(&yendor, &start(&yendor, "labels", TASK));
    become_caller(&mut yendor, Some(("selinux", "u:r:caller_t")));
    denied(&yendor, &secret, KEEP, &["confine", "label selinux:u:r:secret_t", "EACCES", "SELinux"]);
    assert_eq!(restored(&yendor, &task, KEEP, CURRENT).1, [domain("task_t")].into());
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "selinux:u:r:secret_t"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["EACCES"]);
    let said = yendor.run_detached_with(&name, &["--lsm-profile", "selinux:no:such:context"], &["sleep", "100"]);
    refused(&yendor, &name, said, &["selinux:no:such:context", "EINVAL"]);
    become_caller(&mut yendor, None);
}

fn entrypoint(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    for (label, may) in [("u:object_r:image_t", true), ("u:object_r:data_t", false)] {
        for file in fs::read_dir(&image).expect("an image is a directory").flatten() {
            relabel(&file.path(), label);
        }
        if may {
            assert_eq!(restored(&yendor, &image, KEEP, CURRENT).1, [domain("task_t")].into());
        } else {
            denied(&yendor, &image, KEEP, &["confine", "label selinux:u:r:task_t", label, "no entry point"]);
        }
    }
    restored(&yendor, &image, &[], CURRENT);
}

fn relabel(file: &Path, label: &str) {
    let path = CString::new(file.to_str().expect("UTF-8")).expect("no NUL");
    let name = c"security.selinux";
    // SAFETY: strings with their zeros, and a buffer with its length.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), label.as_ptr().cast(), label.len(), 0) };
    assert_eq!(done, 0, "{}: {}", file.display(), std::io::Error::last_os_error());
}

/// It was made by the machine with AppArmor.
fn foreign(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = fetched(&yendor);
    denied(&yendor, &image, KEEP, &["apparmor", "selinux", "labels cannot be kept"]);
    assert_eq!(restored(&yendor, &image, &[], CURRENT).1, [domain("kernel_t")].into());
    assert_eq!(restored(&yendor, &image, TASK, CURRENT).1, [domain("task_t")].into());
}

fn exec(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let container = start(&yendor, "labels", TASK);
    let said = yendor.call(&["exec", &container, "--", "cat", "/proc/self/attr/current"]).exits(0).stdout;
    assert_eq!(said.trim_end_matches(['\0', '\n']), domain("task_t"));
    // Also where the label has come with the image.
    let image = take(&yendor, &container);
    let container = yendor.fresh("kept");
    yendor.restore_with(&image, &container, KEEP).exits(0);
    let said = yendor.call(&["exec", &container, "--", "cat", "/proc/self/attr/current"]).exits(0).stdout;
    assert_eq!(said.trim_end_matches(['\0', '\n']), domain("task_t"));
    end(&yendor, &container);
}

fn early(flavour: Flavour) {
    load(1);
    let yendor = yendor(flavour);
    let image = take(&yendor, &start(&yendor, "labels", &[]));
    unsupported(&yendor, &image, &[TASK, EARLY].concat(), &["--enforce early", "--lsm-profile", "SELinux"]);
    // Who has it already need not take it.
    comes_back(&yendor, &image, &[KEEP, EARLY].concat());
    let image = take(&yendor, &start(&yendor, "labels", TASK));
    unsupported(&yendor, &image, &[KEEP, EARLY].concat(), &["--enforce early", "--keep-lsm", "SELinux"]);
}

/// An image that nobody hinders from being taken cannot be restored by callers who may not do this or that.
fn denies(flavour: Flavour, program: &[&str], callers: &[(&str, &str)]) {
    load(1);
    let mut yendor = yendor(flavour);
    let image = match program {
        [probe] => take(&yendor, &start(&yendor, probe, &[])),
        words => take(&yendor, &ready(&yendor, words)),
    };
    for (caller, word) in callers {
        become_caller(&mut yendor, Some(("selinux", &domain(caller))));
        let by = format!("denied by: SELinux ({})", domain(caller));
        denied(&yendor, &image, &[], &[word, "EACCES", &by]);
    }
    become_caller(&mut yendor, None);
    let container = yendor.fresh("restored");
    yendor.restore_with(&image, &container, &[]).exits(0);
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// Root only: who has a single id never changes it.
fn setuid(flavour: Flavour, words: &[&str]) {
    load(1);
    let mut yendor = yendor(flavour);
    let name = yendor.fresh("other-user");
    yendor.run_detached_with(&name, &["-u", "1000"], &["/lab/lab-guest", "hold-udp"]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(&yendor, &name);
    become_caller(&mut yendor, Some(("selinux", &domain("no_setuid_t"))));
    denied(&yendor, &image, &[], &[words, &["EPERM", "denied by: SELinux (u:r:no_setuid_t)"]].concat());
    become_caller(&mut yendor, None);
}

fn ready(yendor: &Yendor, words: &[&str]) -> String {
    let container = yendor.fresh("holder");
    yendor.run_detached_with(&container, &[], words).exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn connect(flavour: Flavour) {
    denies(flavour, &["/lab/lab-guest", "hold-udp"], &[("no_connect_t", "connect(")]);
}
