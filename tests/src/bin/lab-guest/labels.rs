//! What the tests of all modules do: take images, restore them with and without labels, and look at every thread.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use yendor_tests::{Account, Flavour, Forge, Outcome, PATIENCE, Yendor, probe};

/// The account without rights.
pub fn user() -> Flavour {
    Flavour::User("yendor-test".into())
}

/// Whether [`both`] is one, that which may do less.
pub static ONCE: AtomicBool = AtomicBool::new(false);

/// Root and an account without rights, each in a user namespace of its own.
pub fn both(test: fn(Flavour)) {
    if !ONCE.load(Relaxed) {
        test(Flavour::RootUserns);
    }
    test(user());
}

/// The command with this flavour.
pub fn yendor(flavour: Flavour) -> Yendor {
    Yendor::new(flavour).expect("the guest is root")
}

/// Commands get this label from now on, as if their caller had it; none: the guest's own.
pub fn become_caller(yendor: &mut Yendor, label: Option<(&str, &str)>) {
    match label {
        Some((module, label)) => yendor.start_through(&["/lab/lab-guest", "enter", module, label]),
        None => yendor.start_through(&[]),
    }
}

/// Starts a probe in a container and waits until it is ready: the container's name.
pub fn start(yendor: &Yendor, name: &str, options: &[&str]) -> String {
    let container = yendor.fresh(name);
    let program = probe(name);
    let options = [&["-e", "PROBE_LABELS=show"], options].concat();
    yendor.run_detached_with(&container, &options, &[program.to_str().expect("UTF-8")]).exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

/// A bundle with one program, whose `config.json` asks for a label.
pub fn bundle(yendor: &Yendor, field: &str, label: &str) -> PathBuf {
    let place = yendor.path(&format!("bundle-{field}"));
    fs::create_dir_all(place.join("rootfs/bin")).expect("a directory of our own");
    fs::copy("/bin/busybox", place.join("rootfs/bin/sleep")).expect("a copy of our own");
    let kinds = ["pid", "network", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let mut config = serde_json::json!({
        "ociVersion": "1.0.2", "root": { "path": "rootfs" }, "linux": { "namespaces": kinds },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/sleep", "1000"], "cwd": "/" }
    });
    config["process"][field] = label.into();
    fs::write(place.join("config.json"), config.to_string()).expect("a file of our own");
    give(yendor, &place);
    give(yendor, &place.join("rootfs"));
    give(yendor, &place.join("rootfs/bin"));
    place
}

/// Whether the label that a bundle asks for is that of what runs in it, and of what is restored with it.
#[track_caller]
pub fn bundle_labels(yendor: &Yendor, field: &str, label: &str, (attr, wanted): (&str, &str)) {
    let place = bundle(yendor, field, label);
    let options = ["--bundle", place.to_str().expect("UTF-8")];
    let container = yendor.fresh("bundle");
    yendor.run_detached_with(&container, &options, &[]).exits(0);
    assert_eq!(seen(yendor, &container, attr).1, [wanted.to_owned()].into());
    let image = take(yendor, &container);
    let container = yendor.fresh("restored");
    yendor.restore_with(&image, &container, &options).exits(0);
    assert_eq!(seen(yendor, &container, attr).1, [wanted.to_owned()].into());
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// Takes an image of a container.
pub fn take(yendor: &Yendor, container: &str) -> PathBuf {
    let image = yendor.path(&format!("image-{container}"));
    yendor.checkpoint(container, &image);
    image
}

/// Restores an image, looks at what file `attr` says of every thread, pid 1 first, and ends the container. The probe
/// must have found everything else unchanged.
#[track_caller]
pub fn restored(yendor: &Yendor, image: &Path, options: &[&str], attr: &str) -> (String, BTreeSet<String>) {
    let container = yendor.fresh("restored");
    yendor.restore_with(image, &container, options).exits(0);
    let seen = seen(yendor, &container, attr);
    end(yendor, &container);
    seen
}

/// What file `attr` says of pid 1 of a container, and of all threads of its first process.
#[track_caller]
pub fn seen(yendor: &Yendor, container: &str, attr: &str) -> (String, BTreeSet<String>) {
    seen_by(yendor, container, |task| {
        let text = fs::read(format!("/proc/{task}/attr/{attr}")).unwrap_or_default();
        String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_owned()
    })
}

/// The same in whatever way one looks at a task.
#[track_caller]
pub fn seen_by(yendor: &Yendor, container: &str, look: impl Fn(&str) -> String) -> (String, BTreeSet<String>) {
    let state = yendor.path("state/run").join(container).join("state.json");
    let state = fs::read_to_string(&state).unwrap_or_else(|error| panic!("{}: {error}", state.display()));
    let state: serde_json::Value = serde_json::from_str(&state).expect("the state is JSON");
    let threads = fs::read_dir(format!("/proc/{}/task", state["main"])).expect("the container runs");
    let threads = threads.flatten().map(|thread| look(&thread.file_name().to_string_lossy()));
    (look(&state["init"].to_string()), threads.collect())
}

/// Where machines put images for each other: a disk that outlives them.
const DISK: &str = "/dev/nvme0n1";

/// Gives an image to the machines that come later.
#[track_caller]
pub fn hand_on(image: &Path) {
    let tar = Command::new("/bin/busybox").args(["tar", "-c", "-f", DISK, "-C"]).arg(image).arg(".").status();
    assert!(tar.expect("busybox").success());
    // SAFETY: no arguments.
    unsafe { libc::sync() };
}

/// The image that an earlier machine has handed on.
#[track_caller]
pub fn fetched(yendor: &Yendor) -> PathBuf {
    let image = yendor.path("fetched");
    fs::create_dir(&image).expect("a directory of our own");
    let tar = Command::new("/bin/busybox").args(["tar", "-x", "-f", DISK, "-C"]).arg(&image).status();
    assert!(tar.expect("busybox").success());
    give(yendor, &image);
    image
}

/// The image as a machine would have taken it that has another module in the place of this one.
#[track_caller]
pub fn of_another(yendor: &Yendor, image: &Path, module: &str, other: &str) -> PathBuf {
    fn rename(value: &mut ciborium::Value, (from, to): (&str, &str)) {
        match value {
            ciborium::Value::Text(text) if text == from => to.clone_into(text),
            ciborium::Value::Array(list) => list.iter_mut().for_each(|one| rename(one, (from, to))),
            ciborium::Value::Map(map) => map.iter_mut().for_each(|(_, one)| rename(one, (from, to))),
            _ => {}
        }
    }
    let mut forge = Forge::open(image);
    let before = forge.clone();
    rename(&mut forge.records, (module, other));
    assert!(forge != before, "no word of {module} in {}", image.display());
    let forged = yendor.path(&format!("of-{other}"));
    forge.write(&forged);
    give(yendor, &forged);
    forged
}

/// An image that says nothing of the labels that its tasks had.
#[track_caller]
pub fn unlabelled(yendor: &Yendor, image: &Path) -> PathBuf {
    fn strip(value: &mut ciborium::Value) {
        match value {
            ciborium::Value::Array(list) => list.iter_mut().for_each(strip),
            ciborium::Value::Map(map) => {
                for (name, one) in map {
                    match (name.as_text(), &mut *one) {
                        (Some("labels"), ciborium::Value::Array(labels)) => labels.clear(),
                        _ => strip(one),
                    }
                }
            }
            _ => {}
        }
    }
    let mut forge = Forge::open(image);
    let before = forge.clone();
    strip(&mut forge.records);
    assert!(forge != before, "no label in {}", image.display());
    let forged = yendor.path("unlabelled");
    forge.write(&forged);
    give(yendor, &forged);
    forged
}

/// Makes an image the tested account's own.
fn give(yendor: &Yendor, image: &Path) {
    let account = Account::of(yendor.flavour()).expect("the guest is root");
    account.owns(image);
    fs::read_dir(image).expect("a directory of our own").flatten().for_each(|file| account.owns(&file.path()));
    fs::set_permissions(image, fs::Permissions::from_mode(0o700)).expect("chmod of our own");
}

/// Ends a probe, which must have nothing to complain of.
#[track_caller]
pub fn end(yendor: &Yendor, container: &str) {
    yendor.kill(container, "USR1");
    let code = yendor.wait(container);
    let log = yendor.logs(container);
    assert_eq!(code, 0, "{log}");
}

/// Restores an image, which must be denied in these words, and leave nothing.
#[track_caller]
pub fn denied(yendor: &Yendor, image: &Path, options: &[&str], words: &[&str]) {
    let container = yendor.fresh("denied");
    let said = yendor.restore_with(image, &container, options);
    refused(yendor, &container, said, words);
}

/// Restores an image, which must be refused as something that Yendor cannot do, in these words, and leave nothing.
#[track_caller]
pub fn unsupported(yendor: &Yendor, image: &Path, options: &[&str], words: &[&str]) {
    let container = yendor.fresh("refused");
    let said = yendor.restore_with(image, &container, options);
    nothing_left(yendor, &container, said.exits(3), words);
}

/// Restores an image, and ends the container.
#[track_caller]
pub fn comes_back(yendor: &Yendor, image: &Path, options: &[&str]) {
    let container = yendor.fresh("restored");
    yendor.restore_with(image, &container, options).exits(0);
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// Does it while the host has this policy.
pub fn under_policy(text: &str, what: impl FnOnce()) {
    const FILE: &str = "/etc/yendor/policy.toml";
    fs::create_dir_all("/etc/yendor").expect("a directory of the guest's");
    fs::write(FILE, text).expect("a file of the guest's");
    what();
    fs::remove_file(FILE).expect("a file of the guest's");
}

/// What was said must be a denial in these words, and nothing may be left of the container.
#[track_caller]
pub fn refused(yendor: &Yendor, container: &str, said: Outcome, words: &[&str]) {
    nothing_left(yendor, container, said.exits(5), words);
}

#[track_caller]
fn nothing_left(yendor: &Yendor, container: &str, said: Outcome, words: &[&str]) {
    let said = said.stderr;
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    let left = yendor.tasks_left();
    assert!(left.is_empty(), "{left:?} are left after: {said}");
    let directory = yendor.path("state/run").join(container);
    assert!(!directory.exists(), "{} is left after: {said}", directory.display());
}
