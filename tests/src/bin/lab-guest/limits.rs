//! Limits in cgroups of version 2 (cgroups(7)), which a machine with a hierarchy of version 1 does not show: root's, and those of an
//! account to which a cgroup is delegated, as systemd does it for `systemd-run --user --scope -p Delegate=yes`.

use crate::labels::{refused, take, user, yendor};
use crate::table::{On, Test};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use yendor_tests::{Flavour, PATIENCE, Yendor, wait_until};

const TOP: &str = "/sys/fs/cgroup";
/// Its children and what is in them are the account's.
const DELEGATED: &str = "/sys/fs/cgroup/delegated";
const LIMITS: &[&str] = &["--memory", "48M", "--pids", "8"];
/// Takes more memory than that at once.
const HOG: &str = "exec busybox dd if=/dev/zero of=/dev/null bs=100M count=1";
/// Wants to be ten tasks and one.
const FORKS: &str = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1 & done; wait";

/// Tests for the machine without modules.
pub const TESTS: &[Test] = &[
    Test { name: "limits: of root's containers", on: On::Checkpoints, test: || limits(&yendor(Flavour::RootUserns)) },
    Test { name: "limits: where a cgroup is delegated to an account", on: On::Checkpoints, test: delegated },
];

/// Every command is started in a cgroup of its own.
fn delegated() {
    let mut yendor = yendor(user());
    let name = yendor.fresh("denied");
    let said = yendor.run_detached_with(&name, LIMITS, &["sleep", "100"]);
    refused(&yendor, &name, said, &["a limit of memory is not to be had here", "denied by: cgroup"]);
    for controller in ["+memory", "+pids"] {
        fs::write(format!("{TOP}/cgroup.subtree_control"), controller).expect("the guest is root");
    }
    fs::create_dir(DELEGATED).expect("the guest is root");
    for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
        chown(Path::new(DELEGATED).join(file), Some(1000), Some(1000)).expect("the guest is root");
    }
    let (guest, me) = (format!("{DELEGATED}/guest"), std::process::id().to_string());
    fs::create_dir(&guest).expect("the guest is root");
    fs::write(format!("{guest}/cgroup.procs"), &me).expect("the guest is root");
    for controller in ["+memory", "+pids"] {
        fs::write(format!("{DELEGATED}/cgroup.subtree_control"), controller).expect("the guest is root");
    }
    yendor.start_through(&["/lab/lab-guest", "delegated"]);
    limits(&yendor);
    yendor.start_through(&[]);
    fs::write(format!("{TOP}/cgroup.procs"), &me).expect("the guest is root");
    let mut left = below(Path::new(DELEGATED));
    left.retain(|path| fs::remove_dir(path).is_err());
    assert_eq!(left, Vec::<PathBuf>::new(), "somebody is in them still");
    fs::remove_dir(DELEGATED).expect("the guest is root");
}

/// Becomes a command in a cgroup of its own below the delegated one.
pub fn enter(command: &[&str]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(2) };
    let place = format!("{DELEGATED}/scope-{}", std::process::id());
    let entered = fs::create_dir(&place).and_then(|()| fs::write(format!("{place}/cgroup.procs"), "0"));
    if let Err(error) = entered {
        eprintln!("{place}: {error}");
        return ExitCode::from(125);
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{program}: {error}");
    ExitCode::from(126)
}

fn limits(yendor: &Yendor) {
    let run = |script: &str| {
        let words = [&["run", "--rm"], yendor.flavour().options(), LIMITS, &["--", "sh", "-c", script]].concat();
        yendor.call(&words)
    };
    run(HOG).exits(137);
    run("exec busybox dd if=/dev/zero of=/dev/null bs=8M count=1").exits(0);
    let said = run(FORKS);
    assert!(said.code != 0 && said.stderr.contains("can't fork"), "{}", said.stderr);
    let name = yendor.fresh("limited");
    let words = "for i in 1 2 3 4; do sleep 1000 & done; echo ready; wait";
    yendor.run_detached_with(&name, LIMITS, &["sh", "-c", words]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    hold(yendor, &name);
    let image = take(yendor, &name);
    assert_eq!(of(&name), Vec::<PathBuf>::new(), "cgroups outlive their container");
    let again = yendor.fresh("again");
    yendor.restore_with(&image, &again, LIMITS).exits(0);
    hold(yendor, &again);
    yendor.call(&["rm", "-f", &again]).exits(0);
    assert_eq!(of(&again), Vec::<PathBuf>::new(), "cgroups outlive their container");
    // A limit of tasks alone, which the kernel hands down also where tasks sit.
    let words = [&["run", "--rm"], yendor.flavour().options(), &["--pids", "8", "--", "true"]].concat();
    yendor.call(&words).exits(0);
    // Less than the image takes.
    let name = yendor.fresh("denied");
    let said = yendor.restore_with(&image, &name, &["--pids", "3"]);
    refused(yendor, &name, said, &["denied by: cgroup: the container's limit of 3 tasks (--pids)"]);
    assert_eq!(of(&name), Vec::<PathBuf>::new(), "cgroups outlive a refusal");
    let name = yendor.fresh("large");
    yendor.run_detached_with(&name, LIMITS, &["/lab/lab-guest", "hold-memory", "30"]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = take(yendor, &name);
    let name = yendor.fresh("denied");
    let said = yendor.restore_with(&image, &name, &["--memory", "16M"]);
    let by = "denied by: cgroup: the container's limit of 16777216 bytes of memory (--memory)";
    refused(yendor, &name, said, &["rebuild", "killed for its memory", by]);
    assert_eq!(of(&name), Vec::<PathBuf>::new(), "cgroups outlive a refusal");
}

/// Limits that are in force: the kernel has them, and who comes later is within them.
#[track_caller]
fn hold(yendor: &Yendor, name: &str) {
    let groups = of(name);
    let [group] = groups.as_slice() else { panic!("not one cgroup: {groups:?}") };
    let file = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default().trim().to_owned();
    // Pid 1 is no task of the caller's.
    assert_eq!((file("memory.max"), file("pids.max")), ((48 << 20).to_string(), "9".to_owned()));
    let tasks = file("pids.current");
    let exec = |script: &str| yendor.call(&["exec", name, "--", "sh", "-c", script]);
    exec(HOG).exits(137);
    let said = exec(FORKS);
    assert!(said.code != 0 && said.stderr.contains("can't fork"), "{}", said.stderr);
    // Nobody else was killed; and what the shell had started is a part of the container until it ends.
    let are_gone = || file("pids.current") == tasks;
    assert!(wait_until(PATIENCE, are_gone), "{} tasks, before {tasks}", file("pids.current"));
    exec("true").exits(0);
}

/// Cgroups of a container.
fn of(name: &str) -> Vec<PathBuf> {
    let start = format!("yendor-{name}-");
    let mut found = below(Path::new(TOP));
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)));
    found
}

/// All below this one, the innermost first.
fn below(top: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(below(&entry.path()));
            all.push(entry.path());
        }
    }
    all
}
