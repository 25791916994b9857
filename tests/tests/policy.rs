//! May this user have a container? Asked before anything of an image is opened: the kernel, then the host's policy.
//!
//! That an image has not been opened is seen with an image whose `format` is a FIFO in a directory that is watched by
//! inotify: not even the directory may be opened.

#![allow(unsafe_code)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use yendor_tests::{Flavour, Outcome, Started, Yendor, skipped};

/// The flavours that can prepare a mount namespace: all of them, where we are root.
fn flavours() -> Vec<Yendor> {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        skipped("a policy of the test's own");
        return Vec::new();
    }
    [Flavour::Root, Flavour::RootUserns, Flavour::user()].into_iter().filter_map(Yendor::new).collect()
}

/// An image that tells whether somebody looked at it.
struct Watched {
    path: PathBuf,
    inotify: i32,
}

impl Watched {
    fn new(yendor: &Yendor) -> Watched {
        let path = yendor.path("watched");
        fs::create_dir(&path).expect("mkdir");
        let fifo = std::ffi::CString::new(path.join("format").to_str().expect("UTF-8")).expect("no NUL");
        let directory = std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
        // SAFETY: strings that outlive the calls; the descriptor is ours.
        let inotify = unsafe {
            assert_eq!(libc::mkfifo(fifo.as_ptr(), 0o666), 0);
            libc::chmod(fifo.as_ptr(), 0o666);
            libc::chmod(directory.as_ptr(), 0o755);
            let inotify = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            assert!(libc::inotify_add_watch(inotify, directory.as_ptr(), libc::IN_OPEN | libc::IN_ACCESS) > 0);
            inotify
        };
        Watched { path, inotify }
    }

    fn was_opened(&self) -> bool {
        let mut buffer = [0_u8; 4096];
        // SAFETY: the buffer is ours and as long as said.
        unsafe { libc::read(self.inotify, buffer.as_mut_ptr().cast(), buffer.len()) > 0 }
    }

    fn name(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: ours, closed once.
        unsafe { libc::close(self.inotify) };
    }
}

/// Refused with exit code 5, in these words, and nothing is left.
#[track_caller]
fn denied(yendor: &Yendor, outcome: Outcome, words: &str) {
    let outcome = outcome.exits(5);
    assert!(outcome.stderr.contains(words), "{:?}: {}", yendor.flavour(), outcome.stderr);
    // Whoever it was is named: the host's policy with its line, or what of the kernel's.
    let by = if words.contains("policy.toml") {
        "denied by: the host's policy, /etc/yendor/policy.toml"
    } else {
        "denied by: "
    };
    assert!(outcome.stderr.contains(by), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: "), "{}", outcome.stderr);
    assert_eq!(yendor.tasks_left(), [] as [i32; 0]);
    let left: Vec<_> = fs::read_dir(yendor.path("state/run")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_watched_image_notices_who_is_allowed_to_look() {
    for yendor in flavours() {
        let image = Watched::new(&yendor);
        let outcome = yendor.call_under_policy(b"", &options(&yendor, &["restore", image.name()]));
        // A FIFO is no file of an image: refused as damage, without being opened; but the directory was.
        outcome.exits(4);
        assert!(image.was_opened());
    }
}

#[test]
fn a_policy_denies_before_the_image_is_opened() {
    for yendor in flavours() {
        let image = Watched::new(&yendor);
        for (policy, words) in [
            ("restore = { users = ['no-such-user'], groups = [4294967] }", "policy.toml:1:11: restore: "),
            ("\n  restor = {}", "policy.toml:2:3: "),
            ("networks = [\"wifi\"]", "policy.toml:1:"),
            ("[limits]\nmemory = \"x\"", "policy.toml:2:10: "),
            ("networks = ['none']", "policy.toml:1:12: networks: --net private is not among: none"),
            ("rootfs = ['/usr/share']", "policy.toml:1:10: rootfs: --rootfs /usr/lib"),
        ] {
            let asked = ["restore", image.name(), "--net", "private", "--rootfs", "/usr/lib"];
            let asked = options(&yendor, &asked);
            denied(&yendor, yendor.call_under_policy(policy.as_bytes(), &asked), words);
            assert!(!image.was_opened(), "{policy}");
        }
        if *yendor.flavour() == Flavour::Root {
            let asked = options(&yendor, &["restore", image.name()]);
            denied(&yendor, yendor.call_under_policy(b"userns-host = false", &asked), "userns-host: --userns host");
            assert!(!image.was_opened());
        }
    }
}

#[track_caller]
fn denied_to_checkpoint(outcome: &Outcome) {
    assert_eq!(outcome.code, 5, "{outcome:?}");
    assert!(outcome.stderr.contains("policy.toml:2:14: checkpoint: "), "{}", outcome.stderr);
}

/// With the options of the flavour.
fn options<'a>(yendor: &Yendor, words: &[&'a str]) -> Vec<&'a str> {
    [words, yendor.flavour().options()].concat()
}

#[test]
fn a_policy_that_cannot_be_read_denies_run_restore_and_checkpoint() {
    for yendor in flavours() {
        let image = Watched::new(&yendor);
        // A FIFO would block whoever opens it for reading; a file that all may write is nobody's policy.
        for (damage, words) in [
            ("mkfifo $F", "not a regular file"),
            ("ln -s nowhere $F", "a symbolic link that leads nowhere"),
            ("touch $F; chmod 666 $F", "others than its owner may write it"),
            ("touch $F; chown 12345 $F", "it does not belong to root"),
            ("touch $F; chown 12345 ${F%/*}", "its directory does not belong to root"),
            ("chmod 777 ${F%/*}", "others than its owner may write its directory"),
            ("mkdir $F", "not a regular file"),
        ] {
            let script = format!(
                "umask 022; mkdir -p $PLACE/etc; mount -t tmpfs etc $PLACE/etc; cp -a /etc/. $PLACE/etc; \
                 rm -rf $PLACE/etc/yendor; mkdir $PLACE/etc/yendor; F=$PLACE/etc/yendor/policy.toml; {damage}; \
                 mount --bind $PLACE/etc /etc; exec \"$@\""
            );
            // Never another process than our own: should the policy not hold, this one is frozen.
            let mut sleep = Command::new("sleep");
            let sleep = Started::new(sleep.arg("60"));
            let pid = sleep.pid().to_string();
            for asked in [
                vec!["restore", image.name()],
                vec!["run", "--", "true"],
                vec!["checkpoint", "--pid", &pid, "-o", "/nowhere"],
            ] {
                let host = if asked[0] == "checkpoint" { &[][..] } else { yendor.flavour().options() };
                let asked = [host, &asked[..]].concat();
                let asked = reordered(&asked);
                let outcome = yendor.to_its_end(yendor.sheltered(&script, &asked), asked.join(" "));
                denied(&yendor, outcome, words);
            }
            assert!(!image.was_opened(), "{damage}");
        }
    }
}

/// The verb first, then options.
fn reordered<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let verb = words.iter().position(|w| ["run", "restore", "checkpoint"].contains(w)).expect("a verb");
    let (options, rest) = words.split_at(verb);
    let (verb, rest) = rest.split_first().expect("a verb");
    [&[*verb], options, rest].concat()
}

#[test]
fn a_policy_narrows_what_a_container_gets() {
    for yendor in flavours() {
        let run = |policy: &str, words: &[&str]| {
            let asked = reordered(&[yendor.flavour().options(), &["run", "--rm"], words].concat());
            yendor.call_under_policy(policy.as_bytes(), &asked)
        };
        run("networks = ['private']\nuserns-host = true\n", &["--", "true"]).exits(0);
        denied(&yendor, run("networks = ['none']", &["--", "true"]), ":1:12: networks: --net private");
        denied(&yendor, run("run = {}", &["--", "true"]), "run: ");
        let (mine, other) = match yendor.flavour() {
            Flavour::User(name) => (name.clone(), "root"),
            _ => ("root".to_owned(), "daemon"),
        };
        run(&format!("run = {{ groups = ['{mine}'] }}"), &["--", "true"]).exits(0);
        run(&format!("run = {{ users = [77], groups = ['{other}', '{mine}'] }}"), &["--", "true"]).exits(0);
        let refused = run(&format!("run = {{ groups = ['{other}', 4294967] }}"), &["--", "true"]);
        denied(&yendor, refused, &format!("run: {mine} is not among groups {other}, 4294967"));
        let volumes = "[volumes]\nread-only = ['/usr/share']\n";
        run(volumes, &["--volume", "d=/usr/share:/mnt:ro", "--", "test", "-d", "/mnt"]).exits(0);
        denied(
            &yendor,
            run(volumes, &["--volume", "d=/usr/share:/mnt", "--", "true"]),
            "volumes: volume d: /usr/share",
        );
        // By another name it is still what it is.
        let link = yendor.path("link");
        std::os::unix::fs::symlink("/usr/lib", &link).expect("symlink");
        let volume = format!("d={}:/mnt:ro", link.display());
        denied(&yendor, run(volumes, &["--volume", &volume, "--", "true"]), "volume d: /usr/lib");
        fs::remove_file(link).expect("rm");
        denied(&yendor, run("[limits]\npids = 5\n", &["--pids", "6", "--", "true"]), "limits: pids 6 is more than 5");
    }
}

/// In a user namespace everybody has the ids of anybody: there a list means nobody.
#[test]
fn ids_of_a_user_namespace_admit_nobody() {
    for yendor in flavours().into_iter().filter(|yendor| *yendor.flavour() == Flavour::RootUserns) {
        let image = Watched::new(&yendor);
        let script = |list: &str| {
            format!(
                "umask 022; mkdir -p $PLACE/etc; mount -t tmpfs etc $PLACE/etc; cp -a /etc/. $PLACE/etc; mkdir -p $PLACE/etc/yendor; \
                 echo \"restore = {{ {list} = [12345] }}\" > $PLACE/etc/yendor/policy.toml; mount --bind $PLACE/etc /etc; \
                 exec unshare --user --map-user=12345 --map-group=12345 \"$@\""
            )
        };
        for list in ["users", "groups"] {
            let asked = ["restore", image.name()];
            let outcome = yendor.to_its_end(yendor.sheltered(&script(list), &asked), asked.join(" "));
            denied(&yendor, outcome, "policy.toml:1:11: restore: only ");
            assert!(!image.was_opened(), "{list}");
        }
    }
}

/// Restored without a root of its own, the image of a tree gets its caller's files, to write: as if they were handed in.
#[test]
fn who_narrows_roots_or_volumes_narrows_the_callers_own_view() {
    for yendor in flavours().into_iter().filter(|yendor| *yendor.flavour() != Flavour::RootUserns) {
        let image = yendor.path("tree");
        let mut command = yendor.program("/usr/bin/sleep".as_ref());
        command.arg("1000").stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        yendor_tests::lead_a_session(&mut command);
        let mut sleep = Started::new(&mut command);
        let image = image.to_str().expect("UTF-8");
        let pid = sleep.pid().to_string();
        for who in ["users = ['no-such-user']", "groups = [4294967]"] {
            let policy = format!("userns-host = true\ncheckpoint = {{ {who} }}");
            let asked = ["checkpoint", "--pid", &pid, "-o", image];
            denied_to_checkpoint(&yendor.call_under_policy(policy.as_bytes(), &asked));
            assert!(sleep.ended(Duration::ZERO).is_none() && !fs::exists(image).expect("stat"), "{who}");
        }
        yendor.call(&["checkpoint", "--pid", &pid, "-o", image]).exits(0);
        sleep.kill();
        for (policy, code) in
            [("rootfs = ['/usr']", 5), ("[volumes]\nread-only = ['/']\n", 5), ("rootfs = ['/']\n[volumes]\n", 0)]
        {
            let name = yendor.fresh("tree");
            yendor.will_remove(&name);
            let asked = options(&yendor, &["restore", "--detach", "--name", &name, image]);
            let outcome = yendor.call_under_policy(policy.as_bytes(), &asked);
            if code == 5 {
                denied(&yendor, outcome, "an image of a tree that saw its caller's files");
            } else {
                outcome.exits(0);
                yendor.call(&["rm", "-f", &name]).exits(0);
            }
        }
    }
}

/// Where nothing is asked for, the most that may be asked for holds: for what a restore brings back, too.
#[test]
fn the_hosts_limits_hold_where_nothing_is_asked_for() {
    const POLICY: &[u8] = b"[limits]\npids = 8\nmemory = 50000000\n";
    const FORKS: &str = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 5 & done; wait";
    for yendor in flavours().into_iter().filter(|yendor| *yendor.flavour() != Flavour::Root) {
        let run = |words: &[&str]| yendor.call_under_policy(POLICY, &[&["run", "--rm"], words].concat());
        let first = run(&["--", "true"]);
        if first.code == 5 {
            // Nobody has delegated a cgroup to this caller: no limit, no container.
            assert!(first.stderr.contains("cgroup"), "{}", first.stderr);
            skipped("limits of the host's policy that hold: nobody has delegated a cgroup");
            denied(&yendor, first, "");
            continue;
        }
        first.exits(0);
        let fails = |outcome: Outcome| {
            assert!(outcome.code != 0 && outcome.stderr.contains("fork"), "{}: {}", outcome.code, outcome.stderr);
        };
        fails(run(&["--", "sh", "-c", FORKS]));
        run(&["--pids", "4", "--", "sh", "-c", "sleep 0 & wait"]).exits(0);
        fails(run(&["--pids", "4", "--", "sh", "-c", "for i in 1 2 3 4 5; do sleep 5 & done; wait"]));
        run(&["--", "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]).exits(137);
        denied(&yendor, run(&["--memory", "48M", "--", "true"]), "limits: memory 50331648 is more than 50000000");
        let (name, again, image) = (yendor.fresh("free"), yendor.fresh("again"), yendor.path("image"));
        yendor.run_detached(&name, &["sleep", "1000"]);
        yendor.checkpoint(&name, &image);
        yendor.call(&["rm", &name]).exits(0);
        let image = image.to_str().expect("UTF-8");
        let restore = |words: &[&str]| {
            yendor.call_under_policy(POLICY, &[&["restore", "--detach", "--name", &again], words, &[image]].concat())
        };
        denied(&yendor, restore(&["--pids", "9"]), "limits: pids 9 is more than 8");
        yendor.will_remove(&again);
        restore(&[]).exits(0);
        fails(yendor.call(&["exec", &again, "--", "sh", "-c", FORKS]));
        yendor.call(&["rm", "-f", &again]).exits(0);
    }
}

#[test]
fn doctor_explains_the_policy() {
    for yendor in flavours() {
        let policy = b"restore = { users = ['no-such-user'] }\nnetworks = ['private']\n";
        let said = yendor.call_under_policy(policy, &["doctor"]).stdout;
        assert!(said.contains("NO  restore: only users no-such-user; you may not (line 1)"), "{said}");
        assert!(said.contains("networks: only private (line 2)"), "{said}");
        // Who may start none may restore; which network it takes is not the question.
        let said = yendor.call_under_policy(b"run = { users = ['no-such-user'] }\n", &["doctor"]).exits(0).stdout;
        assert!(said.contains("this user may restore containers, and not start any"), "{said}");
        assert!(said.contains("NO  run: only users no-such-user; you may not (line 1)"), "{said}");
        assert!(!said.contains("no container can be started or restored"), "{said}");
        let said = yendor.call_under_policy(b"networks = ['none']\n", &["doctor"]).exits(0).stdout;
        assert!(said.contains("this user may have containers") && said.contains("ran and ended"), "{said}");
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let said = yendor.call_under_policy(format!("signed-by = ['{key}']\n").as_bytes(), &["doctor"]).exits(0).stdout;
        assert!(said.contains(key), "{said}");
        let said =
            yendor.call_under_policy(b"run = { users = [] }\nrestore = { users = [] }\n", &["doctor"]).exits(5).stdout;
        assert!(said.contains("no container can be started or restored"), "{said}");
        let said = yendor.call_under_policy(b"x", &["doctor"]).exits(5).stdout;
        assert!(said.contains("denies everything") && said.contains("policy.toml:1:2: "), "{said}");
    }
}

/// In a user namespace of the test's own, where fewer may be made than a container takes.
#[test]
fn too_few_namespaces_left_deny_before_the_image_is_opened() {
    for yendor in flavours().into_iter().filter(|y| *y.flavour() != Flavour::Root) {
        let image = Watched::new(&yendor);
        let with = |kind: &str, limit: u32, words: &[&str]| {
            let mut command = yendor.program("unshare".as_ref());
            let script = format!("echo {limit} > /proc/sys/user/max_{kind}_namespaces; exec \"$@\"");
            command.args(["-Ur", "sh", "-ec", &script, "sh"]).arg(yendor_tests::yendor_binary()).args(words);
            yendor.to_its_end(command, format!("{words:?} with {limit} {kind} namespaces"))
        };
        for (kind, limit) in [("user", 0), ("user", 1), ("mnt", 1), ("pid", 0)] {
            denied(&yendor, with(kind, limit, &["restore", image.name()]), "denied by: sysctl: ");
            assert!(!image.was_opened());
        }
        let said = with("user", 1, &["doctor"]).exits(5).stdout;
        assert!(said.contains("raise /proc/sys/user/max_user_namespaces"), "{said}");
        // Two are enough: then the image is looked at, which is none.
        with("user", 2, &["restore", image.name()]).exits(4);
        assert!(image.was_opened());
    }
}

#[test]
fn a_filter_that_denies_namespaces_denies_before_the_image_is_opened() {
    for yendor in flavours() {
        let image = Watched::new(&yendor);
        for (call, name) in [(libc::SYS_unshare, "unshare"), (libc::SYS_clone3, "clone3")] {
            let mut command = yendor.command(&options(&yendor, &["restore", image.name()]));
            refuse(&mut command, call);
            let outcome = yendor.to_its_end(command, format!("restore without {name}"));
            assert!(outcome.stderr.contains("denied by: seccomp: a filter of the caller"), "{}", outcome.stderr);
            denied(&yendor, outcome, name);
            assert!(!image.was_opened(), "{name}");
        }
    }
}

/// The command gets `EPERM` from one system call.
fn refuse(command: &mut Command, call: libc::c_long) {
    let call = u32::try_from(call).expect("a small number");
    let filter = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: call },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0001 },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
    ];
    let install = move || {
        let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the filter lives as long as the closure, which outlives the calls; system calls only.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes system calls only and takes no lock.
    unsafe { command.pre_exec(install) };
}
