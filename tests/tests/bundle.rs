//! OCI bundles: run, looked at from inside, checkpointed, restored with the bundle, and refused without it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use yendor_tests::{Flavour, Yendor, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// What `runc spec` writes, with a command, a read-only root, a tmpfs, a volume, limits and a ceiling of capabilities.
fn config(script: &str) -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE"]);
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0, "umask": 39 }, "args": ["sh", "-c", script],
            "env": ["PATH=/bin", "WHO=bundle"], "cwd": "/etc", "noNewPrivileges": true, "oomScoreAdj": 77,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "inheritable": capabilities, "permitted": capabilities,
                "ambient": capabilities
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1000, "soft": 500 }]
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "inside", "domainname": "dungeon",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
            { "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=4m"] },
            { "destination": "/srv/data", "type": "bind", "source": "data", "options": ["rbind"] },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" }
            ],
            "sysctl": { "kernel.shmmax": "1234567", "net.ipv4.ip_unprivileged_port_start": "77" },
            "maskedPaths": ["/proc/keys", "/proc/acpi", "/sys/firmware", "/not/there", "/etc/secret"],
            "readonlyPaths": ["/proc/sys", "/proc/irq"]
        }
    })
}

/// Says what it sees, then counts in memory and on its tmpfs.
const SCRIPT: &str = r#"
read() { while IFS= read -r line; do echo "$line"; done; }
trap 'echo "memory $i file $(cat /scratch/count)"; echo bye > /srv/data/end; exit 0' USR1
echo "id $(id -u):$(id -g) $WHO $(pwd) $(hostname).$(cat /proc/sys/kernel/domainname) $(umask)"
grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
echo "nofile $(ulimit -S -n) $(ulimit -H -n) oom $(cat /proc/self/oom_score_adj)"
echo "shmmax $(cat /proc/sys/kernel/shmmax) port $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"
echo "keys [$(cat /proc/keys)] secret [$(cat /etc/secret)]"
echo x 2>/dev/null > /etc/x && echo "root is writable"
echo 99 2>/dev/null > /proc/sys/kernel/shmmax && echo "/proc/sys is writable"
mknod /scratch/node c 1 3 2>/dev/null && echo "a device was made"
echo "data $(cat /srv/data/file)"
i=0
echo ready
while :; do i=$((i + 1)); echo $i > /scratch/count; sleep 0.01; done
"#;

/// A bundle in a place of the test's: one program in its root.
fn bundle(yendor: &Yendor, config: &Value) -> PathBuf {
    let top = yendor.path("bundle");
    for directory in
        ["rootfs/bin", "rootfs/etc", "rootfs/srv/data", "rootfs/scratch", "rootfs/proc", "rootfs/sys", "data"]
    {
        fs::create_dir_all(top.join(directory)).expect("a directory of our own");
    }
    fs::create_dir_all(top.join("rootfs/dev")).expect("a directory of our own");
    fs::copy("/bin/busybox", top.join("rootfs/bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "id", "cat", "grep", "hostname", "sleep", "mknod", "mkdir", "ls", "true"] {
        symlink("busybox", top.join("rootfs/bin").join(name)).expect("a link of our own");
    }
    fs::write(top.join("rootfs/etc/secret"), "hidden\n").expect("a file of our own");
    fs::write(top.join("data/file"), "of the host\n").expect("a file of our own");
    write(&top, config);
    own_all(yendor, &top);
    top
}

fn write(bundle: &Path, config: &Value) {
    fs::write(bundle.join("config.json"), config.to_string()).expect("a file of our own");
}

fn own_all(yendor: &Yendor, path: &Path) {
    let metadata = fs::symlink_metadata(path).expect("it is there");
    if metadata.is_symlink() {
        return;
    }
    yendor.owns(path);
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a directory of our own").flatten() {
            own_all(yendor, &entry.path());
        }
    }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn lives_and_lives_again(flavour: Flavour) {
    let host = flavour == Flavour::Root;
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut wanted = config(SCRIPT);
    if host {
        // Real root in its own user namespace could make devices: a bundle that forbids them cannot be had.
        wanted["linux"]["resources"] = json!({});
        wanted["linux"].as_object_mut().expect("an object").remove("sysctl");
    }
    let place = bundle(&yendor, &wanted);
    let (first, second) = (yendor.fresh("bundle"), yendor.fresh("again"));
    yendor.run_detached_with(&first, &["--bundle", utf8(&place)], &[]).exits(0);
    yendor.wait_for_log(&first, "ready", SOON);
    let log = yendor.logs(&first);
    let mut lines = vec![
        "id 0:0 bundle /etc inside.dungeon 0047",
        "CapEff:\t0000000020000420",
        "CapBnd:\t0000000020000420",
        "NoNewPrivs:\t1",
        "nofile 500 1000 oom 77",
        "keys [] secret []",
        "data of the host",
    ];
    if !host {
        lines.push("shmmax 1234567 port 77");
    }
    for line in lines {
        assert!(log.lines().any(|l| l == line), "no line {line:?} in:\n{log}");
    }
    assert!(!log.contains("writable") && !log.contains("was made"), "{log}");
    let image = yendor.path("image");
    yendor.checkpoint(&first, &image);

    let options: &[&str] = if host { &["--userns", "host"] } else { &[] };
    let restore = |more: &[&str]| yendor.call(&[&["restore", "-d", utf8(&image)], options, more].concat());
    for (without, option) in [(&[][..], "--bundle"), (&["--rootfs", "/"][..], "--bundle")] {
        let refused = restore(without).exits(5);
        assert!(refused.stderr.contains(option), "{}", refused.stderr);
    }
    let inspected = yendor.call(&["inspect", utf8(&image)]).exits(0).stdout;
    assert!(inspected.contains("srv-data at /srv/data"), "{inspected}");

    // The volume is filled by the bundle that the caller names, here with another directory in it.
    fs::create_dir(place.join("other")).expect("a directory of our own");
    fs::set_permissions(place.join("other"), Permissions::from_mode(0o700)).expect("chmod of our own");
    yendor.owns(&place.join("other"));
    wanted["mounts"][8]["source"] = json!("other");
    write(&place, &wanted);
    yendor.restore_with(&image, &second, &["--bundle", utf8(&place)]).exits(0);
    yendor.kill(&second, "USR1");
    assert_eq!(yendor.wait(&second), 0, "{}", yendor.logs(&second));
    let log = yendor.logs(&second);
    let counts: Vec<&str> = log.split_whitespace().collect();
    let of = |word| counts.iter().position(|w| *w == word).and_then(|at| counts.get(at + 1)).copied();
    let (memory, file) = (of("memory"), of("file"));
    assert!(memory.is_some() && memory.map(str::len) > Some(0), "{log}");
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok()).expect("a count");
    assert!((number(memory) - number(file)).abs() <= 1, "the tmpfs and the memory do not go together: {log}");
    assert_eq!(fs::read_to_string(place.join("other/end")).expect("written to the other volume"), "bye\n");
    let mode = fs::metadata(place.join("other")).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "a restore changes a directory of the host's");
}

#[test]
fn root() {
    lives_and_lives_again(Flavour::Root);
}

#[test]
fn userns() {
    lives_and_lives_again(Flavour::RootUserns);
}

/// Without subordinate ids, so without setgroups(2).
#[test]
fn an_account_with_one_id() {
    lives_and_lives_again(Flavour::User("65534".into()));
}

#[test]
fn user() {
    lives_and_lives_again(Flavour::user());
}

#[test]
fn what_is_not_supported_is_exit_3_and_named() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let plain = config("exit 7");
    let place = bundle(&yendor, &plain);
    let run = |more: &[&str]| yendor.call(&[&["run", "--bundle", utf8(&place)], more].concat());
    run(&[]).exits(7);
    run(&["-e", "WHO=me", "--", "sh", "-c", "test $WHO = me && exit 9"]).exits(9);
    for (pointer, value, path) in [
        ("/hooks", json!({ "poststop": [{ "path": "/bin/true" }] }), "hooks"),
        ("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x" }), "linux.seccomp"),
        ("/linux/cgroupsPath", json!("/x"), "linux.cgroupsPath"),
        ("/mounts/0/uidMappings", json!([{ "containerID": 0, "hostID": 0, "size": 1 }]), "mounts[0].uidMappings"),
        ("/linux/namespaces/1/path", json!("/proc/1/ns/pid"), "linux.namespaces[1].path"),
    ] {
        let mut config = plain.clone();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        config.pointer_mut(parent).expect("it is there")[name] = value;
        write(&place, &config);
        let said = run(&[]).exits(3).stderr;
        assert!(said.contains(path), "{said}");
    }
    fs::write(place.join("config.json"), "{ not json").expect("a file of our own");
    run(&[]).exits(1);
    fs::remove_file(place.join("config.json")).expect("a file of our own");
    run(&[]).exits(1);
    assert!(wait_until(SOON, || yendor.tasks_left().is_empty()), "tasks are left");
}

#[test]
fn a_terminal_is_given_when_the_bundle_wants_one() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let mut wanted = config("test -t 0 && test -t 1 && echo at a terminal");
    wanted["process"]["terminal"] = json!(true);
    let place = bundle(&yendor, &wanted);
    let name = yendor.fresh("terminal");
    yendor.run_detached_with(&name, &["--bundle", utf8(&place)], &[]).exits(0);
    assert_eq!(yendor.wait(&name), 0);
    assert!(yendor.logs(&name).contains("at a terminal"), "{}", yendor.logs(&name));
}

/// For a process that was there before as well, which has no filter of its own.
#[test]
fn its_seccomp_filter_holds() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let mut wanted = config("trap 'mkdir /scratch/d 2>&1; exit 0' USR1; echo ready; while :; do sleep 0.01; done");
    let plain = bundle(&yendor, &wanted);
    let (free, bound) = (yendor.fresh("free"), yendor.fresh("bound"));
    yendor.run_detached_with(&free, &["--bundle", utf8(&plain)], &[]).exits(0);
    yendor.wait_for_log(&free, "ready", SOON);
    let image = yendor.path("image");
    yendor.checkpoint(&free, &image);
    wanted["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }]
    });
    write(&plain, &wanted);
    yendor.restore_with(&image, &free, &["--bundle", utf8(&plain)]).exits(0);
    yendor.run_detached_with(&bound, &["--bundle", utf8(&plain)], &[]).exits(0);
    yendor.wait_for_log(&bound, "ready", SOON);
    for name in [&free, &bound] {
        yendor.kill(name, "USR1");
        assert_eq!(yendor.wait(name), 0, "{}", yendor.logs(name));
        let log = yendor.logs(name);
        assert!(log.contains("Operation not supported"), "{name}: {log}");
    }
}

/// For a process that was there before as well, which had not set it; and for what joins it.
#[test]
fn no_new_privileges_holds() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let script = "trap 'grep NoNewPrivs /proc/self/status; exit 0' USR1; echo ready; while :; do sleep 0.01; done";
    let mut wanted = config(script);
    wanted["process"]["noNewPrivileges"] = json!(false);
    let place = bundle(&yendor, &wanted);
    let (first, again) = (yendor.fresh("first"), yendor.fresh("again"));
    yendor.run_detached_with(&first, &["--bundle", utf8(&place)], &[]).exits(0);
    yendor.wait_for_log(&first, "ready", SOON);
    let image = yendor.path("image");
    yendor.checkpoint(&first, &image);
    wanted["process"]["noNewPrivileges"] = json!(true);
    write(&place, &wanted);
    yendor.restore_with(&image, &again, &["--bundle", utf8(&place)]).exits(0);
    let joined = yendor.call(&["exec", &again, "--", "grep", "NoNewPrivs", "/proc/self/status"]).exits(0).stdout;
    assert_eq!(joined, "NoNewPrivs:\t1\n");
    yendor.kill(&again, "USR1");
    assert_eq!(yendor.wait(&again), 0, "{}", yendor.logs(&again));
    assert_eq!(yendor.logs(&again), "NoNewPrivs:\t1\n");
}

/// This kernel has no such module: what it was asked to confine does not run unconfined.
#[test]
fn a_label_of_a_module_that_is_not_active_is_a_denial() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let active = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let modules = [("apparmor", "apparmorProfile", "acme"), ("selinux", "selinuxLabel", "u:r:x")];
    for (module, field, label) in modules.into_iter().filter(|(module, ..)| !active.contains(module)) {
        let mut wanted = config("true");
        wanted["process"][field] = json!(label);
        let place = bundle(&yendor, &wanted);
        let said = yendor.call(&["run", "--bundle", utf8(&place)]).exits(5);
        assert!(said.stderr.contains(module) && said.stdout.is_empty(), "{said:?}");
        fs::remove_dir_all(place).expect("a directory of our own");
    }
}
