use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::request::{Mount, Placed};

fn plain() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "env": ["A=b"], "cwd": "/" },
        "linux": { "namespaces": [
            { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }
        ] }
    })
}

fn set(value: &mut Value, path: &str, new: Value) {
    let mut at = value;
    for part in path.split('.') {
        at = match part.parse::<usize>() {
            Ok(n) => &mut at[n],
            Err(_) => &mut at[part],
        };
    }
    *at = new;
}

fn with(changes: &[(&str, Value)]) -> std::result::Result<Bundle, String> {
    let mut value = plain();
    for (path, new) in changes {
        set(&mut value, path, new.clone());
    }
    parse(value.to_string().as_bytes(), Path::new("/b"), Userns::Auto).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(changes: &[(&str, Value)], path: &str) {
    let said = with(changes).expect_err(path);
    assert!(said.contains(path), "{said}: does not name {path}");
    assert!(!said.ends_with(&format!("{path}: not supported")), "{said}: says it twice");
}

#[test]
fn a_plain_bundle_is_understood() {
    let bundle = with(&[]).unwrap();
    assert_eq!((bundle.root, bundle.net, bundle.terminal), (PathBuf::from("/b/rootfs"), Net::Private, false));
    let spec = bundle.spec.unwrap();
    assert_eq!((spec.command[0].0.as_slice(), spec.user, spec.capabilities), (&b"sh"[..], Some((0, 0)), Some([0; 5])));
}

/// The specification's own example of everything, one field at a time: each is either understood or refused by its path.
#[test]
fn what_is_not_supported_is_named_by_its_path() {
    for (path, value) in [
        ("hooks", json!({ "prestart": [{ "path": "/bin/x" }] })),
        ("linux.seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x" })),
        ("process.apparmorProfile", json!("acme\u{7}")),
        ("process.selinuxLabel", json!("x".repeat(5000))),
        ("process.ioPriority", json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 4 })),
        ("process.scheduler", json!({ "policy": "SCHED_FIFO" })),
        ("linux.devices", json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 }])),
        ("linux.cgroupsPath", json!("/myRuntime/myContainer")),
        ("linux.intelRdt", json!({ "closID": "guaranteed_group" })),
        ("linux.resources", json!({ "cpu": { "shares": 1024 } })),
        ("linux.resources", json!({ "memory": { "swappiness": 0 } })),
        ("linux.mountLabel", json!("system_u:object_r:svirt_sandbox_file_t:s0")),
        ("linux.personality", json!({ "domain": "LINUX32" })),
        ("linux.timeOffsets", json!({ "monotonic": { "secs": 1 } })),
        ("vm", json!({ "kernel": { "path": "/k" } })),
        ("solaris", json!({ "milestone": "x" })),
        ("nobodyKnowsThis", json!(1)),
        ("process.user.name", json!("me")),
    ] {
        refused(&[(path, value)], path);
    }
    refused(&[("linux.resources", json!({ "cpu": { "shares": 1024 } }))], "linux.resources.cpu");
    refused(&[("linux.namespaces.1.path", json!("/var/run/netns/other"))], "linux.namespaces[1].path");
    refused(&[("linux.namespaces", json!([{ "type": "pid" }]))], "linux.namespaces");
    refused(&[("linux.rootfsPropagation", json!("shared"))], "linux.rootfsPropagation");
    refused(&[("linux.sysctl", json!({ "kernel.core_pattern": "|/x" }))], "linux.sysctl.kernel.core_pattern");
    let bind = |options| json!([{ "destination": "/d", "type": "bind", "source": "/etc", "options": options }]);
    refused(&[("mounts", bind(json!(["rbind", "rshared"])))], "mounts[0].options");
    refused(&[("mounts", json!([{ "destination": "/d", "type": "ext4", "source": "/dev/sda" }]))], "mounts[0].type");
    refused(&[("mounts", json!([{ "destination": "/proc/x", "type": "tmpfs" }]))], "mounts[0].destination");
    let map = json!([{ "containerID": 0, "hostID": 4_000_000_000_u32, "size": 5 }]);
    refused(&[("linux.uidMappings", map)], "linux.uidMappings[0]");
    refused(&[("linux.resources", json!({ "devices": [{ "allow": true, "access": "rwm" }] }))], "devices[0]");
}

#[test]
fn what_asks_for_nothing_is_no_obstacle() {
    for (path, value) in [
        ("hooks", json!({})),
        ("linux.seccomp", Value::Null),
        ("process.apparmorProfile", json!("")),
        ("linux.devices", json!([])),
        ("annotations", json!({ "org.example": "x" })),
        ("linux.resources", json!({ "devices": [{ "allow": false, "access": "rwm" }] })),
        ("linux.resources", json!({ "memory": { "limit": -1 }, "pids": { "limit": 0 } })),
    ] {
        let bundle = with(&[(path, value)]).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!((bundle.memory, bundle.pids), (None, None));
    }
}

#[test]
fn mounts_become_file_systems_and_volumes_in_their_order() {
    let bundle = with(&[(
        "mounts",
        json!([
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/srv/data", "type": "bind", "source": "data", "options": ["rbind", "ro"] },
            { "destination": "/srv-data", "source": "/etc", "options": ["bind"] },
        ]),
    )])
    .unwrap();
    let dev = Mount { fs_type: "tmpfs".into(), target: "/dev".into(), flags: 2, data: "mode=755,size=65536k".into() };
    let volume = |name: &str| Placed::Volume(name.into());
    assert_eq!(bundle.layout.mounts, [Placed::FileSystem(dev), volume("srv-data"), volume("srv-data-2")]);
    let seen: Vec<_> = bundle.volumes.iter().map(|v| (v.host.to_str().unwrap(), v.read_only)).collect();
    assert_eq!(seen, [("/b/data", true), ("/etc", false)]);
}

#[test]
fn the_process_is_taken_over() {
    let bundle = with(&[
        ("process.user", json!({ "uid": 1, "gid": 2, "umask": 63, "additionalGids": [5, 6] })),
        ("process.capabilities", json!({ "bounding": ["CAP_KILL", "CAP_CHOWN"], "ambient": ["CAP_KILL"] })),
        ("process.rlimits", json!([{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512 }])),
        ("process.noNewPrivileges", json!(true)),
        ("process.oomScoreAdj", json!(100)),
        ("linux.seccomp", json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [] })),
        ("linux.resources", json!({ "memory": { "limit": 1_048_576 }, "pids": { "limit": 32 } })),
        ("process.apparmorProfile", json!("acme//&other")),
        ("process.selinuxLabel", json!("system_u:system_r:svirt_lxc_net_t:s0:c124,c675")),
    ])
    .unwrap();
    let labels: Vec<String> = bundle.profiles.iter().map(ToString::to_string).collect();
    assert_eq!(labels, ["apparmor:acme//&other", "selinux:system_u:system_r:svirt_lxc_net_t:s0:c124,c675"]);
    assert_eq!((bundle.memory, bundle.pids), (Some(1_048_576), Some(32)));
    assert!(bundle.seccomp.is_some_and(|filter| !filter.program.0.is_empty()));
    let spec = bundle.spec.unwrap();
    assert_eq!((spec.user, spec.umask, spec.groups), (Some((1, 2)), Some(0o77), Some(vec![5, 6])));
    assert_eq!(spec.capabilities, Some([0, 0, 0, 1 << 5 | 1, 1 << 5]));
    assert_eq!((spec.limits, spec.no_new_privs, spec.oom_score_adj), (vec![(7, 512, 1024)], true, Some(100)));
}

#[test]
fn bad_text_is_no_bundle() {
    for bad in ["", "{", "[]", "{\"ociVersion\":\"2.0\"}", "\u{0}"] {
        assert!(parse(bad.as_bytes(), Path::new("/b"), Userns::Auto).is_err(), "{bad}");
    }
    let mut deep = "[".repeat(100_000);
    deep.push_str(&"]".repeat(100_000));
    assert!(parse(deep.as_bytes(), Path::new("/b"), Userns::Auto).is_err());
}
