//! The container's own policy, in every flavour: what it forbids is forbidden to new and to restored containers.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use yendor_tests::{Flavour, PATIENCE, Yendor, wait_until};

/// Runs it as every sort of user.
fn everybody(test: impl Fn(&Yendor)) {
    for flavour in [Flavour::Root, Flavour::RootUserns, Flavour::user()] {
        if let Some(yendor) = Yendor::new(flavour) {
            test(&yendor);
        }
    }
}

/// Runs a shell in a new container to its end; its output.
#[track_caller]
fn shell(yendor: &Yendor, options: &[&str], script: &str) -> String {
    let name = yendor.fresh("sh");
    yendor.run_detached_with(&name, options, &["sh", "-c", script]).exits(0);
    yendor.wait(&name);
    yendor.logs(&name)
}

/// A profile that makes mkdir and mkdirat fail with ENXIO, which nothing else here does.
fn no_mkdir(yendor: &Yendor) -> PathBuf {
    let path = yendor.path("profile.json");
    let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6 } ] }"#;
    std::fs::write(&path, text).expect("write a file of our own");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod of our own");
    path
}

fn utf8(path: &std::path::Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[test]
fn landlock_rules_hold_in_a_new_container() {
    everybody(|yendor| {
        let options =
            ["--landlock", "exec:/usr", "--landlock", "rw:/tmp", "--landlock", "rw:/dev", "--landlock", "scope:signal"];
        let said = shell(
            yendor,
            &options,
            "cat /etc/hostname; mkdir /tmp/d && echo made; mkdir /usr/d; sleep 60 & kill $! && echo killed; touch /tmp/p; /tmp/p",
        );
        for line in ["made", "killed"] {
            assert!(said.lines().any(|l| l == line), "{line}: {said}");
        }
        assert_eq!(said.matches("ermission denied").count(), 3, "{said}");
    });
}

/// Says what it may do to whom it has not started, and to files and ports, when it is asked: a signal.
const TO_OTHERS: &str = "import os,signal,socket,time
def may(what):
    try: what()
    except PermissionError: return 'denied'
    except OSError: pass
    return 'done'
def tries(*_):
    internet = lambda port: (socket.socket(), ('127.0.0.1', port))
    bind = lambda port: (lambda s, a: s.bind(a))(*internet(port))
    connect = lambda port: (lambda s, a: s.connect(a))(*internet(port))
    print('signal', may(lambda: os.kill(int(open('/tmp/pid').read()), 0)),
        'abstract', may(lambda: socket.socket(socket.AF_UNIX).connect('\\0outside')),
        'write', may(lambda: open('/mnt/file', 'w')), 'read', may(lambda: open('/mnt/there')),
        'bind', may(lambda: bind(2002)), may(lambda: bind(2003)),
        'connect', may(lambda: connect(1)), may(lambda: connect(2)), flush=True)
signal.signal(signal.SIGUSR1, tries)
print('ready', flush=True)
while True: time.sleep(0.05)
";

/// Somebody whom `exec` starts, in a domain beside that of the container's tasks: until a file is there.
const SOMEBODY: &str = "import os,socket,time
listener = socket.socket(socket.AF_UNIX)
listener.bind('\\0outside')
listener.listen()
if os.fork() == 0:
    os.setsid()
    open('/tmp/.pid', 'w').write(str(os.getpid()))
    os.rename('/tmp/.pid', '/tmp/pid')
    while not os.path.exists('/tmp/stop'): time.sleep(0.05)
    os.unlink('/tmp/pid')
";

#[test]
fn scopes_and_rules_hold_in_new_and_restored_containers() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let directory = yendor.path("volume");
    std::fs::create_dir(&directory).expect("a directory of our own");
    std::fs::write(directory.join("there"), "x").expect("write");
    yendor.owns(&directory);
    let rules =
        ["exec:/usr", "rw:/tmp", "rw:/dev", "ro:/proc", "ro:/etc", "ro:/mnt", "scope:signal", "scope:abstract-unix"];
    let rules = [&rules[..], &["bind:2002", "connect:1"]].concat();
    let rules: Vec<&str> = rules.into_iter().flat_map(|rule| ["--landlock", rule]).collect();
    let (new, filled) = (format!("d={}:/mnt", utf8(&directory)), format!("d={}", utf8(&directory)));
    let free = "signal done abstract done write done read done bind done done connect done done";
    let held = "signal denied abstract denied write denied read done bind done denied connect done denied";
    for (options, wanted) in [(&[][..], free), (&rules, held)] {
        let said = |name: &str| {
            yendor.call(&["exec", name, "--", "rm", "-f", "/tmp/stop"]).exits(0);
            // Its standard output stays open while somebody has it.
            yendor
                .call(&["exec", name, "--", "sh", "-c", "python3 -c \"$1\" >/dev/null 2>&1", "sh", SOMEBODY])
                .exits(0);
            let is = |script: &str| yendor.call(&["exec", name, "--", "sh", "-c", script]).code == 0;
            assert!(wait_until(PATIENCE, || is("test -e /tmp/pid")));
            let before = yendor.logs(name).matches("signal ").count();
            yendor.kill(name, "USR1");
            assert!(wait_until(PATIENCE, || yendor.logs(name).matches("signal ").count() > before));
            yendor.call(&["exec", name, "--", "touch", "/tmp/stop"]).exits(0);
            assert!(wait_until(PATIENCE, || is("! test -e /tmp/pid")));
            yendor.logs(name).lines().last().unwrap_or_default().to_owned()
        };
        let (name, again) = (yendor.fresh("a"), yendor.fresh("b"));
        let image = yendor.path(&name);
        yendor
            .run_detached_with(&name, &[options, &["--volume", &new]].concat(), &["python3", "-c", TO_OTHERS])
            .exits(0);
        yendor.wait_for_log(&name, "ready", PATIENCE);
        assert_eq!(said(&name), wanted);
        yendor.checkpoint(&name, &image);
        yendor.restore_with(&image, &again, &[options, &["--volume", &filled]].concat()).exits(0);
        assert_eq!(said(&again), wanted);
        yendor.call(&["rm", "-f", &again]).exits(0);
    }
}

/// Has sockets of somebody who has ended: a checkpoint asks inside who that was.
const HEIR: &str = "import os,resource,socket,time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
if os.fork() == 0:
    pairs = [socket.socketpair() for _ in range(400)]
    if os.fork() != 0: os._exit(0)
    while os.getppid() != 1: time.sleep(0.01)
    print('ready', flush=True)
    time.sleep(1000)
os.wait()
time.sleep(1000)
";

/// Somebody inside whom no checkpoint stops, as a command of `exec` would be: looks into whoever comes, and stops them.
const WATCHER: &str = "import os,signal
def may(what, path):
    try: return what(path) and 'open'
    except OSError: return 'closed'
known = set(os.listdir('/proc'))
print('watching', flush=True)
while True:
    for pid in set(os.listdir('/proc')) - known:
        if not pid.isdigit(): continue
        found = [may(os.listdir, f'/proc/{pid}/{name}') for name in ('root', 'cwd')]
        found += [may(lambda path: [os.stat(path + '/' + n) for n in os.listdir(path)], f'/proc/{pid}/fd')]
        found += [may(open, f'/proc/{pid}/{name}') for name in ('mem', 'environ')]
        try: os.kill(int(pid), signal.SIGSTOP)
        except OSError: continue
        print('met', *found, flush=True)
";

#[test]
fn nobody_looks_into_who_asks_inside() {
    for flavour in [Flavour::RootUserns, Flavour::user()] {
        let Some(yendor) = Yendor::new(flavour) else { continue };
        let name = yendor.fresh("heir");
        yendor.run_detached(&name, &["python3", "-c", HEIR]);
        yendor.wait_for_log(&name, "ready", PATIENCE);
        let pid = yendor.call(&["ps", "--json"]).exits(0).json()[0]["pid"].to_string();
        let mut watcher = yendor.program(std::path::Path::new("/usr/bin/nsenter"));
        watcher.args([
            "--target", &pid, "--user", "--mount", "--pid", "--net", "--ipc", "--uts", "python3", "-c", WATCHER,
        ]);
        let mut watcher = watcher.stdout(Stdio::piped()).spawn().expect("spawn");
        let mut lines = BufReader::new(watcher.stdout.take().expect("a pipe")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "watching");
        let (mut failed, end) = (0, std::time::Instant::now() + PATIENCE);
        // It may be too late for one that comes and goes.
        while failed == 0 {
            assert!(std::time::Instant::now() < end, "nobody was met");
            let image = yendor.path(&yendor.fresh("image"));
            let mut checkpoint = yendor.command(&["checkpoint", &name, "-o", utf8(&image), "--leave-running"]);
            let mut checkpoint = checkpoint.stderr(Stdio::piped()).spawn().expect("spawn");
            if !wait_until(PATIENCE, || checkpoint.try_wait().expect("wait").is_some()) {
                checkpoint.kill().expect("kill");
                panic!("it waits for who was stopped");
            }
            let said = checkpoint.wait_with_output().expect("wait");
            if !said.status.success() {
                let text = String::from_utf8_lossy(&said.stderr).into_owned();
                assert!(text.contains("was stopped or killed"), "{text}");
                failed += 1;
            }
        }
        // Who has ended meanwhile may be looked at, and has nothing open.
        let met = lines.next().expect("a line").expect("text").replace("[]", "closed");
        assert_eq!(met, "met closed closed closed closed closed");
        watcher.kill().expect("kill");
        watcher.wait().expect("wait");
    }
}

/// Where something is mounted in it, a directory is shown entry by entry.
#[test]
fn no_socket_or_pipe_of_the_host_is_shown() {
    let Some(mut yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let big = yendor.path("big");
    std::fs::create_dir_all(big.join("inner")).expect("mkdir");
    for number in 0..300 {
        std::fs::write(big.join(format!("file-{number}")), "x").expect("write");
    }
    let listener = std::os::unix::net::UnixListener::bind(big.join("socket")).expect("bind");
    let mounts =
        format!("mkfifo {0}/pipe && mount --bind {0} /mnt && mount -t tmpfs t /mnt/inner && exec \"$@\"", utf8(&big));
    yendor.start_through(&["unshare", "--mount", "sh", "-c", &mounts, "sh"]);
    let script = "ls -d /mnt/file-* | wc -l; cat /mnt/file-0; ls -d /mnt/socket /mnt/pipe; touch /mnt/inner/new";
    let said = yendor.call(&["run", "--rm", "--", "sh", "-c", script]).exits(0);
    assert_eq!(said.stdout, "300\nx", "{}", said.stderr);
    drop(listener);
}

/// Found by images that were changed at random: a directory of the image's where this host has a file.
#[test]
fn a_directory_where_the_host_has_a_file_is_a_hole() {
    let Some(mut yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let (host, image, name) = (yendor.path("host"), yendor.path("image"), yendor.fresh("made"));
    std::fs::create_dir_all(host.join("inner")).expect("mkdir");
    let mounts = format!("mount --bind {} /mnt && mount -t tmpfs t /mnt/inner && exec \"$@\"", utf8(&host));
    yendor.start_through(&["unshare", "--mount", "sh", "-c", &mounts, "sh"]);
    yendor.run_detached(&name, &["sh", "-c", "mkdir /mnt/new; echo ready; exec sleep 1000"]);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    yendor.checkpoint(&name, &image);
    std::fs::write(host.join("new"), "x").expect("write");
    let said = yendor.restore_with(&image, &yendor.fresh("there"), &[]).exits(5).stderr;
    assert!(said.contains("mnt/new") && said.contains("--rootfs"), "{said}");
    std::fs::remove_file(host.join("new")).expect("as it was");
    yendor.restore_with(&image, &yendor.fresh("again"), &[]).exits(0);
}

/// Somebody else may write the directory: what is exchanged or taken away meanwhile is shown as one of the two, or not.
#[test]
fn what_is_exchanged_while_a_container_starts_is_no_way_to_a_socket() {
    let Some(mut yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let (shared, new) = (yendor.path("shared"), yendor.path("new"));
    std::fs::create_dir_all(shared.join("inner")).expect("mkdir");
    let listener = std::os::unix::net::UnixListener::bind(shared.join("socket")).expect("bind");
    let exchange = |number: u32| {
        let there = shared.join(format!("entry{number}"));
        std::fs::write(&new, "x").and_then(|()| std::fs::rename(&new, &there)).expect("a file");
        std::os::unix::fs::symlink("/mnt/socket", &new).and_then(|()| std::fs::rename(&new, &there)).expect("a link");
    };
    let pass = |number: u32| {
        let there = shared.join(format!("passing{}", number % 8));
        std::fs::write(&there, "x").and_then(|()| std::fs::remove_file(&there)).expect("what is there for a moment");
    };
    (0..64).for_each(exchange);
    let mounts = format!("mount --bind {} /mnt && mount -t tmpfs t /mnt/inner && exec \"$@\"", utf8(&shared));
    yendor.start_through(&["unshare", "--mount", "sh", "-c", &mounts, "sh"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                (0..64).for_each(|number| {
                    exchange(number);
                    pass(number);
                });
            }
        });
        let script = "find /mnt -type s; ls /mnt | grep -c entry";
        let said: Vec<_> = (0..8).map(|_| yendor.call(&["run", "--rm", "--", "sh", "-c", script])).collect();
        over.store(true, Ordering::Relaxed);
        for said in said {
            // A directory may show neither the old nor the new entry of a name that is exchanged while it is read.
            assert!(said.stdout.trim().parse().is_ok_and(|n: u32| n > 32), "{}{}", said.stdout, said.stderr);
        }
    });
    drop(listener);
}

#[test]
fn landlock_rules_for_ports_hold() {
    everybody(|yendor| {
        let script = "import socket,errno\n\
            for port in (1, 2):\n\
            \x20   s = socket.socket(); print('bind', port, s.connect_ex(('127.0.0.1', port)))\n\
            \x20   try: s.bind(('127.0.0.1', port + 2000)); print('bound')\n\
            \x20   except OSError as e: print(errno.errorcode[e.errno])\n";
        let name = yendor.fresh("py");
        let options = ["--landlock", "connect:1", "--landlock", "bind:2002"];
        yendor.run_detached_with(&name, &options, &["python3", "-c", script]).exits(0);
        yendor.wait(&name);
        assert_eq!(yendor.logs(&name), "bind 1 111\nEACCES\nbind 2 13\nbound\n");
    });
}

#[test]
fn a_profile_holds_in_a_new_container_whoever_runs_in_it() {
    everybody(|yendor| {
        let profile = no_mkdir(yendor);
        let ask = "mkdir /tmp/d; grep -E '^(NoNewPrivs|Seccomp|CapEff)' /proc/self/status";
        for more in [&[][..], &["--cap-drop", "ALL"]] {
            let said = shell(yendor, &[&["--seccomp", utf8(&profile)], more].concat(), ask);
            assert!(said.contains("No such device or address"), "{said}");
            assert!(said.contains("Seccomp:\t2\n") && said.contains("NoNewPrivs:\t0\n"), "{said}");
            assert_eq!(said.contains("CapEff:\t0000000000000000\n"), !more.is_empty(), "{said}");
        }
    });
}

/// Asked with USR1 it tries everything; descriptor 5 is from before.
const TRIES: &str = "exec 5</etc/hostname; trap '\
    mkdir /tmp/d && echo made || echo no mkdir; cat /etc/hostname >/dev/null && echo read || echo no read; \
    cat <&5 >/dev/null && echo open || echo not open; grep CapBnd /proc/self/status; exit 7' USR1; \
    echo ready; while :; do sleep 0.1; done";

#[test]
fn the_callers_policy_holds_after_a_restore_and_what_was_open_stays_open() {
    everybody(|yendor| {
        let (first, image, profile) = (yendor.fresh("a"), yendor.path("image"), no_mkdir(yendor));
        yendor.run_detached(&first, &["sh", "-c", TRIES]);
        yendor.wait_for_log(&first, "ready", PATIENCE);
        yendor.checkpoint(&first, &image);
        let ask = |options: &[&str]| {
            let name = yendor.fresh("b");
            yendor.restore_with(&image, &name, options).exits(0);
            yendor.kill(&name, "USR1");
            assert_eq!(yendor.wait(&name), 7, "{}", yendor.logs(&name));
            yendor.logs(&name)
        };
        let free = ask(&[]);
        for line in ["made", "read", "open"] {
            assert!(free.lines().any(|l| l == line), "{line}: {free}");
        }
        let paths = ["exec:/usr", "rw:/tmp", "rw:/dev", "ro:/proc"].map(|rule| ["--landlock", rule]).concat();
        let name = yendor.fresh("noted");
        let said = yendor.restore_with(&image, &name, &["--cap-drop", "CHOWN", "--cap-drop", "SYSLOG"]).exits(0).stderr;
        let root = *yendor.flavour() != Flavour::Root || said.contains("CAP_SYSLOG");
        assert!(
            root && said.contains("tasks had capabilities that --cap-drop or the bundle takes away: CAP_CHOWN"),
            "{said}"
        );
        yendor.call(&["rm", "-f", &name]).exits(0);
        let confined = ask(&[&paths[..], &["--seccomp", utf8(&profile), "--cap-drop", "CHOWN"]].concat());
        for line in ["no mkdir", "no read", "open"] {
            assert!(confined.lines().any(|l| l == line), "{line}: {confined}");
        }
        assert!(confined.contains("No such device or address"), "{confined}");
        let dropped = confined.lines().find_map(|l| l.strip_prefix("CapBnd:\t")).expect("CapBnd");
        assert!(dropped.ends_with('e'), "CAP_CHOWN is bit 0: {dropped}");
    });
}

#[test]
fn what_cannot_be_enforced_is_refused_and_nothing_is_left() {
    everybody(|yendor| {
        let (first, image) = (yendor.fresh("a"), yendor.path("image"));
        yendor.run_detached(&first, &["sh", "-c", TRIES]);
        yendor.wait_for_log(&first, "ready", PATIENCE);
        yendor.checkpoint(&first, &image);
        let said = yendor.restore_with(&image, &yendor.fresh("b"), &["--landlock", "ro:/no/such"]).exits(1);
        assert!(said.stderr.contains("confine: landlock /no/such"), "{}", said.stderr);
        let bad = yendor.path("bad.json");
        std::fs::write(&bad, r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#).expect("write a file of our own");
        std::fs::set_permissions(&bad, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
        for options in [["--seccomp", utf8(&bad)], ["--landlock", "ro:relative"], ["--cap-drop", "NO_SUCH"]] {
            yendor.restore_with(&image, &yendor.fresh("b"), &options).exits(2);
        }
        // A filter that kills everything kills the program, not the command that started it.
        std::fs::write(&bad, r#"{ "defaultAction": "SCMP_ACT_KILL_PROCESS" }"#).expect("write a file of our own");
        let outcome = yendor.run_detached_with(&yendor.fresh("k"), &["--seccomp", utf8(&bad)], &["true"]);
        assert_ne!(outcome.code, 0, "{outcome:?}");
        assert!(yendor.tasks_left().is_empty(), "{:?}", yendor.tasks_left());
    });
}

/// Holds a file open that nobody may open any more.
const CLOSED: &str = "echo text >/tmp/closed; exec 5<>/tmp/closed; chmod 000 /tmp/closed; \
    trap 'cat <&5; exit 7' USR1; echo ready; while :; do sleep 0.1; done";

/// Holds a file and a directory that have no name any more, of /run, and a file whose directory is gone.
const UNNAMED: &str = "mkdir /run/dir /run/gone; echo text >/run/file; echo more >/run/gone/file; exec 5<>/run/file 6</run/dir 7<>/run/gone/file; \
    rm -r /run/file /run/dir /run/gone; trap 'cat <&5; cat <&7; exit 7' USR1; echo ready; while :; do sleep 0.1; done";

/// What no name leads to may be made anywhere, but not because a policy forbids the place that it had.
#[test]
fn a_deleted_file_is_not_made_elsewhere_because_the_policy_forbids_its_place() {
    everybody(|yendor| {
        let (first, image) = (yendor.fresh("a"), yendor.path("image"));
        yendor.run_detached(&first, &["sh", "-c", UNNAMED]);
        yendor.wait_for_log(&first, "ready", PATIENCE);
        yendor.checkpoint(&first, &image);
        let restores = |options: &[&str]| {
            let name = yendor.fresh("b");
            yendor.restore_with(&image, &name, options).exits(0);
            yendor.kill(&name, "USR1");
            assert_eq!(yendor.wait(&name), 7, "{}", yendor.logs(&name));
            assert_eq!(yendor.logs(&name), "text\nmore\n");
        };
        let rules = ["--landlock", "exec:/usr", "--landlock", "rw:/dev", "--landlock", "rw:/tmp"];
        let early = [&["--enforce", "early"], &rules[..]].concat();
        restores(&rules);
        restores(&[&early[..], &["--landlock", "rw:/run"]].concat());
        let refused = |options: &[&str], what: &str| {
            let said = yendor.restore_with(&image, &yendor.fresh("b"), options).exits(5).stderr;
            assert!(said.contains(what) && said.contains("denied by: Landlock"), "{said}");
            assert!(yendor.tasks_left().is_empty(), "{:?}", yendor.tasks_left());
        };
        refused(&early, "/run/file");
        // Where its directory is gone it goes to /tmp, if that is allowed.
        refused(&[&early[..4], &["--landlock", "rw:/dev", "--landlock", "rw:/run"]].concat(), "/tmp");
    });
}

#[test]
fn a_file_of_mode_000_comes_back_unless_the_policy_is_enforced_early_and_forbids_it() {
    everybody(|yendor| {
        let (first, image) = (yendor.fresh("a"), yendor.path("image"));
        yendor.run_detached(&first, &["sh", "-c", CLOSED]);
        yendor.wait_for_log(&first, "ready", PATIENCE);
        yendor.checkpoint(&first, &image);
        let restores = |options: &[&str]| {
            let name = yendor.fresh("b");
            yendor.restore_with(&image, &name, options).exits(0);
            yendor.kill(&name, "USR1");
            assert_eq!(yendor.wait(&name), 7, "{}", yendor.logs(&name));
            assert_eq!(yendor.logs(&name), "text\n");
        };
        let without_tmp = ["--landlock", "exec:/usr", "--landlock", "rw:/dev"];
        let with_tmp = [&without_tmp[..], &["--landlock", "rw:/tmp"]].concat();
        restores(&[]);
        restores(&without_tmp);
        restores(&["--enforce", "early"]);
        restores(&[&["--enforce", "early"], &with_tmp[..]].concat());
        let refused = |options: &[&str], by: &str| {
            let name = yendor.fresh("b");
            let outcome = yendor.restore_with(&image, &name, &[&["--enforce", "early"], options].concat()).exits(5);
            for word in ["rebuild", "/tmp/closed", "EACCES", by] {
                assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
            }
            assert!(yendor.tasks_left().is_empty(), "{:?}", yendor.tasks_left());
            assert!(!yendor.path("state/run").join(&name).exists(), "its directory is left");
        };
        refused(&without_tmp, "denied by: Landlock");
        refused(&["--cap-drop", "DAC_OVERRIDE"], "denied by: capabilities");
    });
}

/// Has sockets and a watch.
const OPENED: &str = r"
import ctypes, os, signal, socket, time
tcp = socket.socket(); tcp.bind(('127.0.0.1', 81)); tcp.listen()
unix = socket.socket(socket.AF_UNIX); unix.bind('/tmp/name'); unix.listen()
watch = ctypes.CDLL(None).inotify_init1(0)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(7 if watch >= 0 and tcp.getsockname()[1] == 81 else 1))
print('ready', flush=True)
while True: time.sleep(0.05)
";

/// Each policy judges what tasks have open with `--enforce early`, and not without it.
#[test]
fn what_early_enforcement_judges() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let (first, image) = (yendor.fresh("a"), yendor.path("image"));
    yendor.run_detached(&first, &["python3", "-c", OPENED]);
    yendor.wait_for_log(&first, "ready", PATIENCE);
    yendor.checkpoint(&first, &image);
    let restores = |options: &[&str]| {
        let name = yendor.fresh("b");
        yendor.restore_with(&image, &name, options).exits(0);
        yendor.kill(&name, "USR1");
        assert_eq!(yendor.wait(&name), 7, "{}", yendor.logs(&name));
    };
    let refused = |options: &[&str], words: &[&str]| {
        let name = yendor.fresh("b");
        let outcome = yendor.restore_with(&image, &name, &[&["--enforce", "early"], options].concat()).exits(5);
        for word in words {
            assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
        }
        assert!(yendor.tasks_left().is_empty(), "{:?}", yendor.tasks_left());
        assert!(!yendor.path("state/run").join(&name).exists(), "its directory is left");
    };
    let filter = |file: &str, names: &[&str], args: serde_json::Value| {
        let rule = serde_json::json!({ "names": names, "action": "SCMP_ACT_ERRNO", "args": args });
        let text = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        std::fs::write(yendor.path(file), text.to_string()).expect("write a file of our own");
        utf8(&yendor.path(file)).to_owned()
    };
    let inet = serde_json::json!([{ "index": 0, "value": 2, "op": "SCMP_CMP_EQ" }]);
    let none = serde_json::json!([]);
    let sockets = filter("sockets", &["socket"], inet);
    let listen = filter("listen", &["listen"], none.clone());
    let watches = filter("watches", &["inotify_init", "inotify_init1"], none.clone());
    let one_way = filter("one-way", &["inotify_init", "open", "creat", "eventfd"], none);
    let paths = ["--landlock", "exec:/usr", "--landlock", "rw:/dev"];
    restores(&["--seccomp", &sockets]);
    restores(&["--enforce", "early", "--seccomp", &one_way]);
    refused(&["--seccomp", &sockets], &["internet socket", "socket", "denied by: seccomp"]);
    refused(&["--seccomp", &listen], &["listen", "denied by: seccomp"]);
    refused(&["--seccomp", &watches], &["inotify", "denied by: seccomp"]);
    refused(&["--cap-drop", "NET_BIND_SERVICE"], &["bind", "81", "denied by: capabilities"]);
    refused(&paths, &["/tmp/name", "denied by: Landlock"]);
    refused(&["--landlock", "bind:82"], &["bind", "81", "denied by: Landlock"]);
}

/// Tries what takes a capability in the initial user namespace; asked with USR1, since it is about a restored task.
const POWERS: &str = r"
import os, signal, socket, time
def tried(name, what):
    try: what(); print('could', name, flush=True)
    except OSError as e: print('denied', name, flush=True)
def ask(*_):
    tried('mknod', lambda: os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)))
    tried('nice', lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
    tried('real time', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
    tried('memory', lambda: os.close(os.open('/dev/mem', os.O_RDONLY)))
    tried('ids', lambda: os.chown('/tmp', 4000000000, 4000000000))
    tried('own', lambda: socket.sethostname('mine'))
    os._exit(7)
signal.signal(signal.SIGUSR1, ask)
print('ready', flush=True)
while True: time.sleep(0.05)
";

/// Root of a container is root in there, also when real root has restored it without any option.
#[test]
fn a_container_that_real_root_restores_has_no_capability_outside() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let (first, second, image) = (yendor.fresh("a"), yendor.fresh("b"), yendor.path("image"));
    yendor.run_detached(&first, &["python3", "-c", POWERS]);
    yendor.wait_for_log(&first, "ready", PATIENCE);
    yendor.checkpoint(&first, &image);
    yendor.call(&["restore", "-d", "--name", &second, utf8(&image)]).exits(0);
    yendor.will_remove(&second);
    let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).expect("it lives");
    let state = std::fs::read(yendor.path("state/run").join(&second).join("state.json")).expect("it runs");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("the state is JSON");
    for task in ["keeper", "init", "main"].map(|who| &state[who]) {
        // The kernel asks for capabilities in a namespace: those of another one than ours count for nothing in ours.
        assert_ne!(link(&task.to_string()), link("self"), "task {task}");
    }
    yendor.kill(&second, "USR1");
    assert_eq!(yendor.wait(&second), 7, "{}", yendor.logs(&second));
    let said = yendor.logs(&second);
    assert_eq!(said.matches("denied ").count(), 5, "{said}");
    assert!(said.contains("could own"), "{said}");
}

/// Opens, without writing; after it has tried what a container's root can try against what stands in its way.
const SETTINGS: &str = r"
reach() { for f in $*; do if [ -e $f ] && (: >> $f) 2>/dev/null; then echo reached $f; fi; done; }
mount -o remount,bind,rw /mnt/volume 2>/dev/null
touch /mnt/volume/file 2>/dev/null && echo wrote
for under in /proc/sys /sys /sys/fs/cgroup; do
    mount -o remount,bind,rw $under 2>/dev/null
    umount -l $under 2>/dev/null && echo took away $under
done
mkdir /tmp/again
for kind in proc sysfs cgroup2; do
    if mount -t $kind none /tmp/again 2>/dev/null; then reach /tmp/again/sys/kernel/core_pattern /tmp/again/kernel/uevent_helper /tmp/again/cgroup.procs; umount /tmp/again; fi
done
unshare -C mount -t cgroup2 none /tmp/again 2>/dev/null && reach /tmp/again/cgroup.procs
reach /proc/sys/kernel/core_pattern /proc/sys/vm/swappiness /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper
umount -l /proc && mount -t proc none /proc 2>/dev/null && reach /proc/sys/kernel/core_pattern
true";

/// Id 0 of root's container is the host's: what asks for an owner only must be out of its reach, after a restore too. For an
/// account the same holds of a volume that it gives read-only.
#[test]
fn what_a_container_of_root_cannot_write() {
    everybody(|yendor| {
        if *yendor.flavour() == Flavour::Root {
            // Root itself, by its own wish.
            return;
        }
        let (first, second, image) = (yendor.fresh("a"), yendor.fresh("b"), yendor.path("image"));
        let volume = yendor.path("volume");
        std::fs::create_dir(&volume).expect("a directory of our own");
        std::fs::write(volume.join("file"), "").expect("a file of our own");
        yendor.owns(&volume);
        let option = format!("volume={}:/mnt/volume:ro", utf8(&volume));
        yendor.run_detached_with(&first, &["--volume", &option], &["sleep", "1000"]).exits(0);
        let holds = |name: &str| {
            let said = yendor.call(&["exec", name, "--", "sh", "-c", SETTINGS]).exits(0).stdout;
            assert_eq!(said, "");
        };
        yendor.checkpoint(&first, &image);
        yendor.restore_with(&image, &second, &["--volume", &format!("volume={}", utf8(&volume))]).exits(0);
        holds(&second);
        let third = yendor.fresh("c");
        yendor.run_detached_with(&third, &["--volume", &option], &["sleep", "1000"]).exits(0);
        holds(&third);
    });
}

/// What a container's root could do to files of the host that it is given with its devices, its program or its caller's descriptors.
#[test]
fn what_a_container_gets_of_the_host_cannot_be_changed() {
    everybody(|yendor| {
        if *yendor.flavour() == Flavour::Root {
            return;
        }
        let (first, second, image) = (yendor.fresh("a"), yendor.fresh("b"), yendor.path("image"));
        yendor.run_detached(&first, &["sleep", "1000"]);
        yendor.checkpoint(&first, &image);
        yendor.restore(&image, &second);
        // To what they have already, so that nothing is harmed if it can be done.
        let script = "for file in /dev/null /dev/zero /dev/tty /proc/2/fd/0; do chmod 666 $file 2>/dev/null && echo $file; done; \
                      readlink /proc/1/exe; ls /proc/self/fd; echo x >/dev/null && dd if=/dev/zero of=/dev/null count=1 2>/dev/null";
        let said = yendor.call(&["exec", &second, "--", "sh", "-c", script]).exits(0).stdout;
        assert_eq!(said, "/memfd:yendor-init (deleted)\n0\n1\n2\n3\n", "3 is that of the directory");
        let words = ["exec", &second, "--", "sh", "-c", "ls /proc/self/fd"];
        let Some(said) = yendor.call_between("exec 9</", &words, "") else { return };
        let said = said.exits(0).stdout;
        assert_eq!(said, "0\n1\n2\n3\n");
        // Nor does a link of the container's lead there while the command is looked for, or its interpreter, or where it is to run.
        let script = "cd /usr/local/bin && ln -s /proc/self/fd/9/true way-out && printf '#!/proc/self/fd/9/true\\n' >by-another && chmod 755 by-another \
                      && ln -s /proc/self/fd/9 /tmp/there";
        yendor.call(&["exec", &second, "--", "sh", "-c", script]).exits(0);
        for (words, code) in [(&["way-out"][..], 127), (&["by-another"], 127), (&["/tmp/there/true"], 127)] {
            let words = [&["exec", &second, "--"], words].concat();
            yendor.call_between("exec 9</usr/bin", &words, "").expect("as before").exits(code);
        }
        let words = ["exec", "-w", "/tmp/there", &second, "--", "true"];
        yendor.call_between("exec 9</usr/bin", &words, "").expect("as before").exits(1);
    });
}

/// What changes the program behind a process of this program's, once that has ended; prints whether there was one.
const CHANGE: &str = "for pid in /proc/[0-9]*; do \
        case \"$(readlink $pid/exe)\" in *'memfd:yendor (deleted)'|*/yendor-of-the-host) \
            echo found; chmod 0711 $pid/exe; exec 3<$pid/exe; kill -9 ${pid#/proc/}; sleep 0.2; echo x >>/proc/self/fd/3;; \
        esac; done";

/// A program in a container may be a link to /proc/self/exe: then `exec` runs the file of the host that it is itself.
#[test]
fn the_program_that_execs_cannot_be_changed() {
    everybody(|yendor| {
        if *yendor.flavour() == Flavour::Root {
            return;
        }
        let (name, program) = (yendor.fresh("a"), yendor.path("yendor-of-the-host"));
        std::fs::copy(yendor_tests::yendor_binary(), &program).expect("a file of our own");
        yendor.owns(&program);
        let about = || std::fs::metadata(&program).map(|m| (m.len(), m.permissions())).expect("a file of our own");
        let before = about();
        yendor.run_detached(&name, &["sleep", "1000"]);
        // It writes into a pipe that is full, and so stays.
        let (_reader, mut writer) = std::io::pipe().expect("a pipe");
        std::io::Write::write_all(&mut writer, &[b'x'; 65536]).expect("write to a pipe of our own");
        let mut command = yendor.program(&program);
        command.args(["exec", &name, "--", "/proc/self/exe", "--help"]).stdout(writer);
        let mut links = yendor_tests::Started::new(&mut command);
        let mut said = String::new();
        let found = wait_until(PATIENCE, || {
            said = yendor.call(&["exec", &name, "--", "sh", "-c", CHANGE]).stdout;
            !said.is_empty()
        });
        assert!(found && said == "found\n", "{said}");
        links.ended(PATIENCE).expect("it was killed");
        assert_eq!(about(), before);
    });
}

/// The whole road inside a container, where nobody has a cgroup namespace to give; in root's, why there is none.
#[test]
fn a_container_in_a_container() {
    everybody(|yendor| {
        let binary = yendor_tests::yendor_binary();
        let script = format!(
            "export YENDOR_ROOT=/tmp/in; inner() {{ {} \"$@\"; }}; inner run --name a -d -- sleep 1000 && \
             inner checkpoint a -o /tmp/image && inner restore /tmp/image -d --name b && inner exec b -- sh -c \"$1\" && inner rm -f b && \
             inner run --name c -d -- python3 -c \"$2\" && until inner logs c | grep domain; do sleep 0.1; done && \
             {{ inner checkpoint c -o /tmp/refused; echo it says $?; inner checkpoint c -o /tmp/lost --allow-lost landlock; }}",
            utf8(&binary)
        );
        let name = yendor.fresh("outer");
        // The innermost has no other cgroup namespace, either, to mount control groups in.
        let inside = "tr '\\0' ' ' </proc/2/cmdline; ! unshare -C true || echo a cgroup namespace";
        yendor.run_detached_with(&name, &[], &["sh", "-c", &script, "sh", inside, IN_A_DOMAIN]).exits(0);
        let code = yendor.wait(&name);
        let said = yendor.logs(&name);
        if *yendor.flavour() == Flavour::RootUserns {
            // Where the kernel's settings are out of reach, so are namespaces that would show them.
            assert_eq!(code, 5, "{said}");
            assert!(said.contains("denied by: the kernel: parts of /proc are covered here"), "{said}");
            return;
        }
        assert_eq!(code, 0, "{said}");
        assert!(said.lines().any(|line| line.starts_with("sleep 1000")), "{said}");
        if *yendor.flavour() != Flavour::Root {
            assert!(!said.contains("a cgroup namespace"), "{said}");
        }
        // The recorder of the outer one is in the way of another: who has entered a domain is not known, nor taken for free.
        for words in ["domain 0", "it says 3", "Landlock domain", "--allow-lost landlock"] {
            assert!(said.contains(words), "{words}: {said}");
        }
    });
}

/// Enters a Landlock domain that handles the removal of directories (call 444 makes a ruleset, 446 enters), and waits.
const IN_A_DOMAIN: &str = "import ctypes,os,struct,time
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
ruleset = libc.syscall(444, struct.pack('Q', 1 << 4), 8, 0)
entered = libc.syscall(446, ruleset, 0)
os.close(ruleset)
print('domain', entered, flush=True)
time.sleep(1000)
";

/// Makes directories in directories, more than descriptors can be had and than a path can name.
const DEEP: &str = "import os
os.chdir('/srv')
for depth in range(5000):
    if depth % 1000 == 0: os.mkdir('other', 0)
    os.mkdir('d')
    os.chdir('d')";

/// Who removes a container's directory does not go through what is mounted below it, and as deep as there is something.
#[test]
fn a_container_that_removes_itself_leaves_its_volumes_alone() {
    everybody(|yendor| {
        let tree = yendor.path("tree");
        for directory in ["", "usr", "proc", "dev", "sys", "data"] {
            std::fs::create_dir(tree.join(directory)).expect("a directory of our own");
            yendor.owns(&tree.join(directory));
        }
        for (link, to) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
            std::os::unix::fs::symlink(to, tree.join(link)).expect("a link of our own");
        }
        let volume = yendor.path("volume");
        std::fs::create_dir(&volume).expect("a directory of our own");
        yendor.owns(&volume);
        let files = [tree.join("file"), volume.join("file")];
        for file in &files {
            std::fs::write(file, "mine").expect("a file of our own");
            yendor.owns(file);
        }
        let data = format!("d={}:/data", utf8(&volume));
        let rootfs: &[&str] = &["--rootfs", utf8(&tree), "--volume", "u=/usr:/usr:ro"];
        for (root, command) in [(&[][..], &["python3", "-c", DEEP][..]), (rootfs, &["true"])] {
            let name = yendor.fresh("gone");
            let options = [&["--rm", "--volume", &data], root].concat();
            yendor.run_detached_with(&name, &options, command).exits(0);
            let gone = || std::fs::read_dir(yendor.path("state/run")).map_or(true, |mut all| all.next().is_none());
            assert!(wait_until(PATIENCE, gone), "{}", yendor.call(&["ps", "-a"]).stdout);
            for file in &files {
                assert_eq!(std::fs::read_to_string(file).ok().as_deref(), Some("mine"), "{}", file.display());
            }
        }
        let name = yendor.fresh("deep");
        yendor.run_detached(&name, &["python3", "-c", DEEP]);
        assert_eq!(yendor.wait(&name), 0, "{}", yendor.logs(&name));
        let Some(removed) = yendor.call_between("ulimit -n 32", &["rm", &name], "") else { return };
        removed.exits(0);
    });
}
