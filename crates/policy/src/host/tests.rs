use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn person(uid: u32, gids: &[u32]) -> Person {
    let passwd = b"root:x:0:0::/:/bin/sh\nalice:x:1001:1001::/:/bin/sh\nbroken\n:x:7:7\n".to_vec();
    let group = b"dev:x:50:alice\nempty::\n".to_vec();
    Person { uid, gids: gids.to_vec(), names: (passwd, group), known: true }
}

fn ask(verb: Verb) -> Ask<'static> {
    Ask {
        verb,
        network: Some("private"),
        userns_host: false,
        volumes: &[],
        rootfs: None,
        own_view: false,
        memory: None,
        pids: None,
    }
}

fn policy(text: &str) -> Policy {
    Policy::parse(text.as_bytes()).expect("a good policy")
}

#[track_caller]
fn refused(text: &str, asked: &Ask<'_>) -> String {
    policy(text).decide(&person(1001, &[1001]), asked).expect_err("denied").what
}

#[test]
fn an_empty_policy_narrows_nothing() {
    let all = Ask { network: Some("host"), userns_host: true, memory: Some(1), pids: Some(2), ..ask(Verb::Restore) };
    for policy in [Policy::default(), policy("")] {
        let granted = policy.decide(&person(1001, &[]), &all).expect("allowed");
        assert_eq!(granted, Granted { memory: Some(1), pids: Some(2), ..Granted::default() });
        assert!(granted.may_keep("smack", "anything"));
    }
}

#[test]
fn people_are_meant_by_name_number_and_group() {
    let rules = policy("restore = { users = ['alice', 7], groups = ['dev'] }\nrun = { users = ['nobody-has-it'] }\n");
    for (uid, gids, may) in
        [(1001, &[1001][..], true), (7, &[7], true), (9, &[50], true), (9, &[51], false), (0, &[0], false)]
    {
        assert_eq!(rules.admits(&person(uid, gids), Verb::Restore).is_ok(), may, "{uid} {gids:?}");
        assert!(rules.admits(&person(uid, gids), Verb::Run).is_err());
        assert!(rules.admits(&person(uid, gids), Verb::Checkpoint).is_ok());
    }
    let said = refused("\n  restore = { users = [0] }", &ask(Verb::Restore));
    assert_eq!(said, "host policy /etc/yendor/policy.toml:2:13: restore: alice is not among users 0");
    assert!(refused("restore = {}", &ask(Verb::Restore)).contains("not among nobody"));
    // In a user namespace everybody is whoever they like.
    let stranger = Person { known: false, ..person(1001, &[50]) };
    for verb in [Verb::Restore, Verb::Run] {
        let said = rules.admits(&stranger, verb).expect_err("unknown").what;
        assert!(said.contains("outside of your user namespace cannot be told"), "{said}");
    }
    assert!(rules.admits(&stranger, Verb::Checkpoint).is_ok());
    assert!(rules.explain(&stranger).iter().all(|line| line.forbids));
}

#[test]
fn networks_user_namespaces_and_limits() {
    let said = refused("networks = ['none', 'private']", &Ask { network: Some("host"), ..ask(Verb::Run) });
    assert!(said.ends_with("1:12: networks: --net host is not among: none, private"), "{said}");
    let said = refused("userns-host = false", &Ask { userns_host: true, ..ask(Verb::Run) });
    assert!(said.contains("userns-host"), "{said}");
    let limits = "[limits]\nmemory = 1000\n";
    assert!(refused(limits, &Ask { memory: Some(1001), ..ask(Verb::Run) }).contains("memory 1001 is more than 1000"));
    let granted = policy(limits).decide(&person(1, &[]), &Ask { pids: Some(9), ..ask(Verb::Run) }).expect("allowed");
    assert_eq!((granted.memory, granted.pids), (Some(1000), Some(9)));
}

#[test]
fn volumes_are_judged_by_where_they_really_are() {
    let text = "[volumes]\nread-only = ['/usr']\nread-write = ['/usr/share']\n";
    let volume = |path: &str, read_only| [HostPath { name: "data".into(), path: path.into(), read_only }];
    for (path, read_only, may) in [
        ("/usr/share/x", false, true),
        ("/usr/share", false, true),
        ("/usr/lib", true, true),
        ("/usr/lib", false, false),
        ("/usr/sharex", false, false),
        ("/usrx", true, false),
        ("/", true, false),
    ] {
        let volumes = volume(path, read_only);
        let asked = Ask { volumes: &volumes, ..ask(Verb::Run) };
        assert_eq!(policy(text).decide(&person(1, &[]), &asked).is_ok(), may, "{path} {read_only}");
    }
    let asked = Ask { rootfs: Some(Path::new("/etc")), ..ask(Verb::Run) };
    assert!(refused("rootfs = ['/usr']", &asked).contains("--rootfs /etc"));
    // The caller's own files are those of the host, from its root.
    let asked = Ask { own_view: true, ..ask(Verb::Restore) };
    for (text, may) in [
        ("rootfs = ['/usr']", false),
        ("rootfs = ['/']", true),
        (text, false),
        ("[volumes]\nread-only = ['/']\n", false),
        ("[volumes]\nread-write = ['/']\n", true),
        ("rootfs = ['/']\n[volumes]\n", true),
        ("rootfs = []\n[volumes]\nread-write = ['/']\n", false),
        ("networks = ['private']", true),
    ] {
        let answer = policy(text).decide(&person(1, &[]), &asked);
        assert_eq!(answer.is_ok(), may, "{text}");
        assert!(may || answer.expect_err("denied").what.contains("checkpoint --pid"), "{text}");
    }
}

#[test]
fn labels_and_signatures() {
    let text = "keep-labels = ['apparmor:web-*', 'smack:Lab']\nsigned-by = ['KEY']\n";
    let granted = policy(text).decide(&person(1, &[]), &ask(Verb::Restore)).expect("allowed");
    for (lsm, label, may) in
        [("apparmor", "web-1", true), ("apparmor", "we", false), ("smack", "Lab", true), ("smack", "Lab2", false)]
    {
        assert_eq!(granted.may_keep(lsm, label), may, "{lsm}:{label}");
    }
    assert_eq!(granted.signed_by, ["KEY"]);
    let at = |place: &str| format!("/etc/yendor/policy.toml:{place}");
    assert_eq!(granted.places, Places { signed_by: at("2:13"), keep_labels: at("1:15") });
    // A new container has no image that could be signed.
    assert!(policy(text).decide(&person(1, &[]), &ask(Verb::Run)).expect("allowed").signed_by.is_empty());
}

#[test]
fn what_is_not_understood_denies_everything_and_says_where() {
    for (text, place) in [
        ("networks = [\"wifi\"]", ":1:"),
        ("\n\nnetwork = [\"none\"]", ":3:1:"),
        ("restore = { user = [] }", ":1:"),
        ("restore = { users = [-1] }", ":1:"),
        ("[limits]\nmemory = \"much\"\n", ":2:10:"),
        ("[limits]\nmemory = -5\n", ":2:10:"),
        ("volumes = { read-only = ['relative'] }", ":1:"),
        ("volumes = { read-only = ['/a/../etc'] }", ":1:"),
        ("keep-labels = ['nocolon']", ":1:"),
        ("signed-by = []", ":1:"),
        ("a = ", ":1:"),
        ("userns-host = false\nuserns-host = true\n", ":2:"),
        ("x = \"\u{1b}[2J", ":1:"),
    ] {
        let denial = Policy::parse(text.as_bytes()).expect_err(text);
        assert!(denial.what.contains(&format!("/etc/yendor/policy.toml{place}")), "{text:?}: {}", denial.what);
        assert!(!denial.what.contains('\u{1b}') && !denial.what.contains('\n'), "{:?}", denial.what);
    }
    assert!(Policy::parse(b"ok = \xff").expect_err("bytes").what.contains(":1:6: not UTF-8"));
}

#[test]
fn a_file_that_cannot_be_read_denies_and_one_that_is_not_there_does_not() {
    let top = std::env::temp_dir().join(format!("yendor-policy-{}", std::process::id()));
    std::fs::create_dir(&top).expect("mkdir");
    let at = |name: &str| top.join(name);
    std::fs::set_permissions(&top, PermissionsExt::from_mode(0o755)).expect("chmod");
    let me = rustix::process::geteuid().as_raw();
    let roots = [me];
    assert!(!Policy::load_from(&at("missing"), &roots).expect("no file").is_present());
    assert!(!Policy::load_from(&at("no-directory/policy.toml"), &roots).expect("no directory").is_present());
    std::fs::write(at("good"), "userns-host = false\n").expect("write");
    std::fs::set_permissions(at("good"), PermissionsExt::from_mode(0o644)).expect("chmod");
    assert!(Policy::load_from(&at("good"), &roots).expect("good").is_present());
    symlink("good", at("link")).expect("symlink");
    assert!(Policy::load_from(&at("link"), &roots).expect("a link to a file").is_present());
    symlink("nowhere", at("dangling")).expect("symlink");
    symlink("nowhere", at("dangling-directory")).expect("symlink");
    std::fs::write(at("shared"), "").expect("write");
    std::fs::set_permissions(at("shared"), PermissionsExt::from_mode(0o666)).expect("chmod");
    std::fs::write(at("large"), vec![b'#'; 2 << 20]).expect("write");
    std::fs::set_permissions(at("large"), PermissionsExt::from_mode(0o600)).expect("chmod");
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("mkfifo");
    for name in ["dangling", "dangling-directory/policy.toml", "shared", "large", "fifo", ".", "good/policy.toml"] {
        let denial = Policy::load_from(&at(name), &roots).expect_err(name);
        assert!(denial.what.starts_with("host policy ") && !denial.hint.is_empty(), "{denial:?}");
    }
    for path in ["good", "missing"] {
        let denial = Policy::load_from(&at(path), &[me + 1]).expect_err("somebody's");
        assert!(denial.what.ends_with("its directory does not belong to root"), "{denial:?}");
    }
    let denial = Policy::load_from(Path::new("/proc/self/status"), &[]).expect_err("somebody's");
    assert!(denial.what.contains("does not belong to root"), "{denial:?}");
    for mode in [0o775, 0o757, 0o1777] {
        std::fs::set_permissions(&top, PermissionsExt::from_mode(mode)).expect("chmod");
        for path in ["good", "missing"] {
            let denial = Policy::load_from(&at(path), &roots).expect_err("everybody's directory");
            assert!(denial.what.ends_with("others than its owner may write its directory"), "{denial:?}");
        }
    }
    std::fs::remove_dir_all(&top).expect("rm");
}

#[test]
fn everything_is_explained() {
    let text = "restore = { users = [0] }\nnetworks = ['none']\nuserns-host = false\nrootfs = ['/srv']\n\
                keep-labels = ['smack:x']\nsigned-by = ['K']\n[volumes]\nread-only = ['/usr']\n[limits]\npids = 5\n";
    let lines = policy(text).explain(&person(1001, &[]));
    let rules: Vec<&str> = lines.iter().map(|l| l.rule).collect();
    assert_eq!(
        rules,
        ["restore", "networks", "userns-host", "volumes", "rootfs", "keep-labels", "signed-by", "limits"]
    );
    assert!(lines[0].forbids && lines[0].meaning.contains("you may not (line 1)"), "{:?}", lines[0]);
}
