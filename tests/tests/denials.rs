//! Who denied: a restore, a start or a checkpoint that somebody forbids ends with exit code 5, names the call and who it was,
//! and leaves nothing. What the kernel at hand has: filters, Landlock, capabilities, permissions of files, cgroups; settings
//! and the host's policy are in `policy`, AppArmor, SELinux and TOMOYO in `cargo xtask lab`.
#![allow(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use yendor_tests::{Flavour, Outcome, PATIENCE, Started, Yendor, probe, skipped};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Exit code 5, these words, and nothing that runs or is kept.
#[track_caller]
fn denied(yendor: &Yendor, outcome: Outcome, words: &[&str]) {
    let outcome = outcome.exits(5);
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
    }
    assert_eq!(yendor.tasks_left(), [] as [i32; 0], "{}", outcome.stderr);
    let left: Vec<_> = fs::read_dir(yendor.path("state/run")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn image_of(yendor: &Yendor, options: &[&str], command: &[&str]) -> PathBuf {
    let container = yendor.fresh("original");
    yendor.run_detached_with(&container, options, command).exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path(&container);
    yendor.checkpoint(&container, &image);
    yendor.call(&["rm", &container]).exits(0);
    image
}

/// A denial as fields, of which none is missing.
#[track_caller]
fn fields(outcome: &Outcome) -> Value {
    let said: Value = serde_json::from_str(outcome.stderr.trim()).unwrap_or_else(|e| panic!("{e}: {}", outcome.stderr));
    let error = &said["error"];
    for key in ["message", "step", "task", "kind", "object", "call", "args", "errno", "hint", "by", "exit_code"] {
        assert!(error.get(key).is_some(), "no {key}: {said}");
    }
    for key in ["message", "step", "call", "args", "by"] {
        assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {said}");
    }
    assert!(error["exit_code"] == 5 && error["errno"] == libc::EPERM, "{said}");
    error.clone()
}

/// A restore whose caller gets `EPERM` from one call, and what it starts likewise.
fn restore_without(yendor: &Yendor, image: &Path, call: libc::c_long) -> Outcome {
    restore_with(yendor, image, &[], call)
}

fn restore_with(yendor: &Yendor, image: &Path, more: &[&str], call: libc::c_long) -> Outcome {
    let container = yendor.fresh("denied");
    yendor.will_remove(&container);
    let start = ["restore", "--detach", "--name", &container];
    let options = [&start, yendor.flavour().options(), more, &[text(image)]].concat();
    let mut command = yendor.command(&options);
    refuse(&mut command, call);
    yendor.to_its_end(command, format!("restore without call {call}"))
}

fn by_a_filter(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let sockets = image_of(&yendor, &[], &[text(&probe("inet-listen"))]);
    let connected = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); \
                     s.connect(('127.0.0.1', 9)); print('ready', flush=True); time.sleep(1000)";
    let connected = image_of(&yendor, &[], &["python3", "-c", connected]);
    let file = "echo x > /tmp/file; exec 5< /tmp/file; echo ready; sleep 1000 & wait";
    let file = image_of(&yendor, &[], &["sh", "-c", file]);
    let cases = [
        (&sockets, libc::SYS_socket, "socket("),
        (&sockets, libc::SYS_bind, "bind("),
        (&connected, libc::SYS_connect, "connect("),
        (&file, libc::SYS_openat2, "openat2("),
        (&file, libc::SYS_mount, "mount("),
        (&file, libc::SYS_ptrace, "ptrace("),
    ];
    let by = "denied by: seccomp: a filter of the caller";
    for (image, call, word) in cases {
        denied(&yendor, restore_without(&yendor, image, call), &[word, by]);
    }
    let error = fields(&restore_with(&yendor, &sockets, &["--json"], libc::SYS_bind).exits(5));
    assert_eq!((&error["call"], &error["kind"]), (&json!("bind"), &json!("internet socket")), "{error}");
    assert!(
        error["object"].is_string()
            && error["by"].as_str().is_some_and(|who| who.starts_with(by.trim_start_matches("denied by: "))),
        "{error}"
    );
    // Who has a single id never changes it.
    if !matches!(yendor.flavour(), Flavour::User(_)) {
        let sleep = "echo ready; sleep 1000 & wait";
        let other = image_of(&yendor, &["-u", "1000"], &["sh", "-c", sleep]);
        denied(&yendor, restore_without(&yendor, &other, libc::SYS_setresuid), &["setresuid(", by]);
        let error = fields(&restore_with(&yendor, &other, &["--json"], libc::SYS_setresuid).exits(5));
        // In a user namespace it is the container's own start that fails; else the shell or its sleep.
        let task = error["task"].as_i64();
        let wanted = if *yendor.flavour() == Flavour::Root { &[Some(2), Some(3)][..] } else { &[None] };
        assert!(error["call"] == "setresuid" && wanted.contains(&task), "{error}");
    }
    let again = yendor.fresh("again");
    yendor.restore(&connected, &again);
}

/// A filter that kills who makes a call, or sends it a signal, denies as well as one that answers.
fn by_a_filter_that_kills(flavour: Flavour) {
    const TRAP: u32 = 0x0003_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    let Some(yendor) = Yendor::new(flavour) else { return };
    let image =
        image_of(&yendor, &[], &["sh", "-c", "echo x > /tmp/file; exec 5< /tmp/file; echo ready; sleep 1000 & wait"]);
    // Of the front and the keeper, of the reader, and of tasks alone.
    let calls = [libc::SYS_mount, libc::SYS_ptrace, libc::SYS_pivot_root, libc::SYS_seccomp, libc::SYS_mremap];
    for (call, action) in calls.into_iter().flat_map(|call| [(call, TRAP), (call, KILL_PROCESS)]) {
        let container = yendor.fresh("killed");
        yendor.will_remove(&container);
        let options =
            [&["restore", "--detach", "--name", &container], yendor.flavour().options(), &[text(&image)]].concat();
        let mut command = yendor.command(&options);
        answer(&mut command, call, action);
        let outcome = yendor.to_its_end(command, format!("restore without call {call}, {action:#x}"));
        denied(
            &yendor,
            outcome,
            &["a seccomp filter ends who makes a call", "denied by: seccomp: a filter of the caller"],
        );
    }
    yendor.restore(&image, &yendor.fresh("again"));
}

/// A domain with a rule for files lets nobody mount, not even in a namespace of its own.
fn by_landlock(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let image = image_of(&yendor, &[], &["sh", "-c", "echo ready; sleep 1000 & wait"]);
    let start = ["run", "--rm"];
    let restore = ["restore", "--detach"];
    let options = yendor.flavour().options();
    for words in [[&start, options, &["--", "true"]].concat(), [&restore, options, &[text(&image)]].concat()] {
        let mut command = yendor.command(&words);
        enter_domain(&mut command);
        let outcome = yendor.to_its_end(command, words.join(" "));
        denied(&yendor, outcome, &["contain: ", "denied by: Landlock: a domain of the caller"]);
    }
}

fn by_permissions(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    // Root may, everywhere that is its own.
    if !matches!(yendor.flavour(), Flavour::User(_)) {
        return;
    }
    let closed = yendor.path("closed");
    fs::create_dir_all(closed.join("inner")).expect("a directory of our own");
    let image = image_of(&yendor, &[], &["sh", "-c", "echo ready; sleep 1000 & wait"]);
    yendor.owns(&closed);
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).expect("chmod of our own");
    let volume = format!("data={}:/mnt", text(&closed.join("inner")));
    let dac = "denied by: permissions of the file (DAC)";
    denied(&yendor, yendor.call(&["run", "--rm", "--volume", &volume, "--", "true"]), &["open(", dac]);
    denied(&yendor, yendor.call(&["restore", "-d", "--volume", &volume, text(&image)]), &["open(", dac]);
    let container = yendor.fresh("kept");
    yendor.run_detached(&container, &["sh", "-c", "echo ready; sleep 1000 & wait"]);
    let said = yendor.call(&["checkpoint", &container, "-o", text(&closed.join("image"))]).exits(5).stderr;
    assert!(said.contains(dac), "{said}");
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).expect("chmod of our own");
    assert!(!closed.join("image").exists() && !yendor.tasks_left().is_empty());
}

/// Before any container is made, too, a denial says which call it was, about what, and who.
fn of_one_form(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut command = yendor.program(Path::new("/usr/bin/sleep"));
    yendor_tests::lead_a_session(&mut command);
    command.arg("1000").stdout(yendor.output("out")).stderr(yendor.output("err"));
    let tree = Started::new(&mut command);
    let image = yendor.path("tree");
    yendor.checkpoint_pid(tree.pid(), &image);
    let elsewhere = yendor.path("other-state");
    let json = |outcome: Outcome| -> Value {
        let outcome = outcome.exits(5);
        serde_json::from_str(outcome.stderr.trim()).unwrap_or_else(|e| panic!("{e}: {}", outcome.stderr))
    };
    let words = [&["restore", "-d", "--json"], yendor.flavour().options(), &[text(&image)]].concat();
    let said = json(yendor.call_with(&words, &[("YENDOR_ROOT", text(&elsewhere))]));
    let error = &said["error"];
    assert!(error["by"].as_str().is_some_and(|by| by.starts_with("yendor: ")), "{said}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.contains("--rootfs DIR")), "{said}");
    if !matches!(yendor.flavour(), Flavour::User(_)) {
        return;
    }
    let closed = yendor.path("closed");
    fs::write(&closed, "untrusted comment: none\n").expect("a file");
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).expect("chmod of our own");
    yendor.owns(&closed);
    let dac = |said: &Value, call: &str, path: &Path| {
        let error = &said["error"];
        assert_eq!((&error["call"], &error["errno"]), (&json!(call), &json!(libc::EACCES)), "{said}");
        assert!(error["args"].as_str().is_some_and(|args| args.contains(text(path))), "{said}");
        assert_eq!(error["by"], "permissions of the file (DAC)", "{said}");
    };
    dac(&json(yendor.call(&["restore", "-d", "--json", "--verify", text(&closed), text(&image)])), "open", &closed);
    dac(&json(yendor.call(&["restore", "-d", "--json", "--identity", text(&closed), text(&image)])), "open", &closed);
    fs::set_permissions(&image, Permissions::from_mode(0o000)).expect("chmod of our own");
    dac(&json(yendor.call(&["restore", "-d", "--json", text(&image)])), "open", &image);
    dac(&json(yendor.call(&["inspect", "--json", text(&image)])), "open", &image);
    fs::set_permissions(&image, Permissions::from_mode(0o700)).expect("chmod of our own");
}

/// A task of somebody else.
fn by_capabilities(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    if !matches!(yendor.flavour(), Flavour::User(_)) {
        // Root is told nothing like it.
        return;
    }
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return yendor_tests::skipped("a task of another account");
    }
    let mut other = Started::new(Command::new("sleep").arg("1000"));
    let pid = other.pid().to_string();
    let image = yendor.path("image");
    let words = ["checkpoint", "--pid", &pid, "-o", text(&image)];
    denied(&yendor, yendor.call(&words), &["ptrace(", "denied by: capabilities: CAP_SYS_PTRACE is not there"]);
    let error = fields(&yendor.call(&[&words[..], &["--json"]].concat()).exits(5));
    assert_eq!((&error["call"], &error["step"]), (&json!("ptrace"), &json!("freeze")), "{error}");
    assert!(error["args"].as_str().is_some_and(|args| args.contains(&pid)), "whose task it is: {error}");
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("another user") && hint.contains("/proc/sys/kernel/yama/ptrace_scope"), "{error}");
    assert!(error["by"].as_str().is_some_and(|by| by.starts_with("capabilities: CAP_SYS_PTRACE")), "{error}");
    assert!(!image.exists() && other.ended(std::time::Duration::ZERO).is_none());
}

fn by_a_limit(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let image = image_of(&yendor, &[], &[text(&probe("many-tasks"))]);
    let restored = yendor.restore_with(&image, &yendor.fresh("few"), &["--pids", "4"]);
    if restored.stderr.contains("is not to be had here") {
        denied(&yendor, restored, &["denied by: cgroup: none with this controller is delegated to the caller"]);
        skipped("a limit of tasks that a restore reaches");
        return;
    }
    denied(&yendor, restored, &["clone", "denied by: cgroup: the container's limit of 4 tasks (--pids)"]);
}

/// A socket that lingers when it is closed, with what its peer does not take, held up the end of a failed restore as long as the image said.
fn without_waiting(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let script = "import socket, struct, threading, time\nl = socket.create_server(('127.0.0.1', 0))\n\
                  a = socket.create_connection(l.getsockname()); b, _ = l.accept()\n\
                  a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60)); a.setblocking(False)\n\
                  try:\n  while True: a.send(b'x' * 65536)\nexcept BlockingIOError: pass\n\
                  for _ in range(12): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n\
                  print('ready', flush=True); time.sleep(1000)";
    let image = image_of(&yendor, &[], &["python3", "-c", script]);
    let begin = std::time::Instant::now();
    let restored = yendor.restore_with(&image, &yendor.fresh("few"), &["--pids", "6"]);
    assert_eq!(restored.code, 5, "{}", restored.stderr);
    assert!(begin.elapsed() < std::time::Duration::from_secs(20), "{:?}", begin.elapsed());
    // Restored it lingers as before.
    let (name, again) = (yendor.fresh("all"), yendor.path("again"));
    yendor.restore_with(&image, &name, &[]).exits(0);
    yendor.checkpoint(&name, &again);
    let said = yendor.call(&["inspect", "--json", text(&again)]).exits(0).stdout;
    assert!(said.contains("\"linger\":60") || said.contains("\"linger\": 60"), "it does not linger");
}

yendor_tests::flavours! {
    without_waiting
    by_a_filter
    by_a_filter_that_kills
    of_one_form
    by_landlock
    by_permissions
    by_capabilities
    by_a_limit
}

/// What starts with `install` in force.
fn confine(command: &mut Command, install: impl Fn() -> bool + Send + Sync + 'static) {
    let install = move || if install() { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    // SAFETY: the closures make system calls only and take no lock.
    unsafe { command.pre_exec(install) };
}

/// The command gets `EPERM` from one system call.
fn refuse(command: &mut Command, call: libc::c_long) {
    answer(command, call, 0x0005_0001);
}

/// A filter answers to one of the command's system calls.
fn answer(command: &mut Command, call: libc::c_long, with: u32) {
    let call = u32::try_from(call).expect("a small number");
    let filter = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: call },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: with },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
    ];
    confine(command, move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the filter lives as long as the closure, which outlives the calls; system calls only.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program) == 0
        }
    });
}

/// The command may not make block devices, and what comes with being in a Landlock domain.
fn enter_domain(command: &mut Command) {
    const MAKE_BLOCK: u64 = 1 << 11;
    confine(command, || {
        let attribute = [MAKE_BLOCK];
        // SAFETY: the attribute is as long as said; system calls only.
        unsafe {
            let ruleset = libc::syscall(libc::SYS_landlock_create_ruleset, attribute.as_ptr(), 8, 0);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && ruleset >= 0
                && libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0
        }
    });
}
