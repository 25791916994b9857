//! What programs forbid themselves in a container: around the probes `seccomp-filter` and `landlock`.

use std::time::{Duration, Instant};

use yendor_tests::{Flavour, PATIENCE, Started, Yendor, lead_a_session, probe, wait_until};

fn everybody(test: impl Fn(&Yendor)) {
    for flavour in [Flavour::Root, Flavour::RootUserns, Flavour::user()] {
        if let Some(yendor) = Yendor::new(flavour) {
            test(&yendor);
        }
    }
}

/// `install(nr)` makes call number `nr` fail with EDOM, and returns what seccomp said.
const INSTALL: &str = r"
import ctypes, errno, os, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def install(nr):
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, nr), (6, 0, 0, 0x50000 | errno.EDOM), (6, 0, 0, 0x7fff0000)]
    code = b''.join(struct.pack('HBBI', *i) for i in code)
    memory = ctypes.create_string_buffer(code)
    header = struct.pack('HxxxxxxQ', len(code) // 8, ctypes.addressof(memory))
    libc.prctl(38, 1, 0, 0, 0)
    return 0 if libc.syscall(317, 1, 0, header) == 0 else ctypes.get_errno()
def say(*words):
    print(*words, flush=True)
def wait():
    while True: time.sleep(0.05)
";

#[test]
fn a_filter_that_forbids_what_a_checkpoint_needs_refuses_it_by_name_and_harms_nobody() {
    const MEMFD_CREATE: u32 = 319;
    everybody(|yendor| {
        let name = yendor.fresh("f");
        let script = format!(
            "{INSTALL}\ndef asked(*_):\n    say('alive'); sys.exit(9)\n\
             signal.signal(signal.SIGUSR1, asked)\nsay('installed', install({MEMFD_CREATE}))\nwait()"
        );
        yendor.run_detached(&name, &["python3", "-c", &script]);
        yendor.wait_for_log(&name, "installed 0", PATIENCE);
        let image = yendor.path("image");
        let said = yendor.call(&["checkpoint", &name, "-o", image.to_str().expect("UTF-8")]).exits(3);
        assert!(said.stderr.contains("memfd_create"), "{}", said.stderr);
        assert!(!image.exists());
        yendor.kill(&name, "USR1");
        assert_eq!(yendor.wait(&name), 9, "{}", yendor.logs(&name));
    });
}

/// Who is in a domain may not look at the keeper, from which tasks have their sockets, pidfds and files of /proc.
#[test]
fn who_is_in_a_domain_has_its_sockets() {
    // A first thread that restricts itself, then has a child; another thread that does; one that has its caller's rules alone.
    let script = format!(
        "{INSTALL}
import socket, threading
def restrict():
    fd = libc.syscall(444, struct.pack('QQ', 1 << 13, 0), 16, 0)
    assert fd >= 0 and libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, fd, 0) == 0
    os.close(fd)
def serve(ends):
    status = open('/proc/self/status')
    me = os.pidfd_open(os.getpid())
    while True:
        for end in ends: end.send(end.recv(9).upper() + b'%d' % (len(status.read()) > 100 and os.fstat(me).st_size >= 0)); status.seek(0)
def bear():
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]]
    if os.fork() == 0: serve([b for _, b in pairs])
    return [a for a, _ in pairs]
others = []
def thread():
    if mode == 'thread': restrict()
    others.extend(bear())
    time.sleep(1000)
mode = sys.argv[1]
mine = bear()
threading.Thread(target=thread, daemon=True).start()
while len(others) < 3: time.sleep(0.01)
if mode == 'first': restrict(); mine += bear()
def asked(*_):
    for end in mine + others: end.send(b'asked')
    say(*[end.recv(9).decode() for end in mine + others]); os._exit(7)
signal.signal(signal.SIGUSR1, asked)
say('ready')
wait()"
    );
    let rules = ["--landlock", "ro:/", "--landlock", "exec:/usr", "--landlock", "rw:/dev"];
    everybody(|yendor| {
        for (mode, options) in [("first", &[][..]), ("thread", &[]), ("plain", &rules), ("first", &rules)] {
            let (mut name, generations) = (yendor.fresh("d"), 2);
            yendor.run_detached_with(&name, options, &["python3", "-c", &script, mode]).exits(0);
            yendor.wait_for_log(&name, "ready", PATIENCE);
            for generation in 0..generations {
                let image = yendor.path(&format!("{name}-{generation}"));
                yendor.checkpoint(&name, &image);
                name = yendor.fresh("d");
                yendor.restore_with(&image, &name, options).exits(0);
            }
            yendor.kill(&name, "USR1");
            assert_eq!(yendor.wait(&name), 7, "{mode} {options:?}: {}", yendor.logs(&name));
            let answers = yendor.logs(&name).matches("ASKED1").count();
            assert_eq!(answers, if mode == "first" { 9 } else { 6 }, "{mode} {options:?}: {}", yendor.logs(&name));
        }
    });
}

/// Whoever makes rules without end does not fill the keeper with them: what it enters is not recorded, and refused by name.
#[test]
fn more_rules_than_are_remembered_refuse_a_checkpoint_by_name() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let name = yendor.fresh("rules");
    // Call 444 is landlock_create_ruleset (of binding ports), 445 landlock_add_rule, 446 landlock_restrict_self.
    let script = format!(
        "{INSTALL}
fd = libc.syscall(444, struct.pack('QQ', 0, 1), 16, 0)
added = sum(libc.syscall(445, fd, 2, struct.pack('QQ', 1, port), 0) for port in range(4500))
libc.prctl(38, 1, 0, 0, 0)
entered = libc.syscall(446, fd, 0)
os.close(fd)
import socket
def bind(port):
    try: socket.socket().bind(('127.0.0.1', port))
    except PermissionError: return 'denied'
    return 'bound'
say('domain', added, entered, bind(4499), bind(4501))
wait()
"
    );
    yendor.run_detached(&name, &["python3", "-c", &script]);
    yendor.wait_for_log(&name, "domain 0 0 bound denied", PATIENCE);
    let image = yendor.path("image");
    let said = yendor.call(&["checkpoint", &name, "-o", image.to_str().expect("UTF-8")]).exits(3);
    assert!(said.stderr.contains("a Landlock ruleset with more rules than are remembered"), "{}", said.stderr);
    yendor.call(&["rm", "-f", &name]).exits(0);
}

/// A task that waits for the keeper's word on its filter does not wait for a dead one: the container ends with its keeper.
#[test]
fn without_the_keeper_nothing_hangs() {
    const GETPRIORITY: u32 = 140;
    everybody(|yendor| {
        let name = yendor.fresh("k");
        let script = format!("{INSTALL}\nsay('with', install({GETPRIORITY}))\nwhile True: install({GETPRIORITY})");
        yendor.run_detached(&name, &["python3", "-c", &script]);
        yendor.wait_for_log(&name, "with 0", PATIENCE);
        let state = yendor.path("state/run").join(&name).join("state.json");
        let state: serde_json::Value =
            serde_json::from_slice(&std::fs::read(state).expect("state.json")).expect("JSON");
        let keeper = i32::try_from(state["keeper"].as_i64().expect("pid")).expect("pid");
        yendor_tests::kill(keeper);
        assert!(wait_until(PATIENCE, || yendor.tasks_left().is_empty()), "{:?}", yendor.tasks_left());
    });
}

#[test]
fn a_command_that_is_executed_later_is_confined_and_recorded_likewise() {
    everybody(|yendor| {
        let (name, profile) = (yendor.fresh("e"), yendor.path("profile.json"));
        let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6 } ] }"#;
        std::fs::write(&profile, text).expect("write a file of our own");
        std::fs::set_permissions(&profile, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
        let program = probe("seccomp-filter");
        let program = program.to_str().expect("UTF-8");
        let directory = format!("exec:{}", std::path::Path::new(program).parent().expect("parent").display());
        let rules =
            ["exec:/usr", "rw:/dev", "rw:/proc", "rw:/tmp", &directory].map(|rule| ["--landlock", rule]).concat();
        let options = [&rules[..], &["--seccomp", profile.to_str().expect("UTF-8"), "--cap-drop", "CHOWN"]].concat();
        yendor.run_detached_with(&name, &options, &["sh", "-c", "while :; do sleep 0.1; done"]).exits(0);
        let exec = |script: &str| yendor.call(&["exec", &name, "--", "sh", "-c", script]);
        let said = exec("mkdir /tmp/d; cat /etc/hostname; grep CapBnd /proc/self/status");
        for word in ["No such device or address", "Permission denied"] {
            assert!(said.stderr.contains(word), "{word}: {said:?}");
        }
        assert!(said.stdout.trim_end().ends_with('e'), "CAP_CHOWN is bit 0: {said:?}");
        // A program that stays when the command has ended.
        exec(&format!("setsid {program} >/tmp/said 2>&1 </dev/null &")).exits(0);
        let up = || exec("cat /tmp/said").stdout == "ready\n";
        assert!(wait_until(PATIENCE, up), "{:?}", exec("cat /tmp/said"));
        let (image, restored) = (yendor.path("image"), yendor.fresh("r"));
        yendor.checkpoint(&name, &image);
        yendor.restore_with(&image, &restored, &options).exits(0);
        let exec = |script: &str| yendor.call(&["exec", &restored, "--", "sh", "-c", script]);
        exec(
            // The first of them in time, not in spelling: it is the parent of the others.
            "for p in $(ls /proc | grep '^[0-9]' | sort -n); do case $(cat /proc/$p/comm) in probe-*) kill -USR1 $p; \
             break;; esac; done",
        );
        let done = || exec("cat /tmp/said").stdout == "ready\nok\n";
        assert!(wait_until(Duration::from_secs(20), done), "{:?}", exec("cat /tmp/said"));
    });
}

/// What the recorder's filter costs each call: not 2 %, since any filter makes the kernel take its slow way into a call, but some 10 ns
/// (docs/bench.md). Here, where others run beside, only what is told to a supervisor would be noticed: that costs microseconds.
#[test]
fn what_the_filter_costs() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let script = "import os,time\n\
        f=os.open('/dev/zero',os.O_RDONLY)\n\
        def best(call):\n\
        \x20   r=[]\n\
        \x20   for _ in range(30):\n\
        \x20       t=time.perf_counter_ns()\n\
        \x20       for _ in range(3000): call()\n\
        \x20       r.append((time.perf_counter_ns()-t)/3000)\n\
        \x20   return round(min(r))\n\
        def opening():\n\
        \x20   os.close(os.open('/dev/null',os.O_RDONLY))\n\
        print(best(os.getppid),best(lambda: os.read(f,1)),best(opening))";
    let numbers = |text: &str| -> Vec<i64> { text.split_whitespace().map(|w| w.parse().expect("number")).collect() };
    let begin = Instant::now();
    let bare = yendor.program(std::path::Path::new("/usr/bin/python3")).args(["-c", script]).output().expect("python3");
    let bare = numbers(&String::from_utf8_lossy(&bare.stdout));
    let name = yendor.fresh("c");
    yendor.run_detached(&name, &["python3", "-c", script]);
    yendor.wait(&name);
    let inside = numbers(&yendor.logs(&name));
    println!("getppid, read, open+close in ns: {bare:?} outside, {inside:?} inside; {:?}", begin.elapsed());
    // Two calls in the last one; and Python's own time varies.
    assert!(bare.iter().zip(&inside).all(|(a, b)| b - a < 400), "outside {bare:?}, inside {inside:?}");
}

/// Of a tree that Yendor did not start nobody recorded the Landlock domains: a task that may be in one is refused by name,
/// and lost only by the caller's word. Neither a task without one, nor what it is allowed, is in the way.
#[test]
fn a_domain_that_nobody_recorded() {
    // Call 444 is landlock_create_ruleset (of a directory's removal), 446 landlock_restrict_self; one thread of two is in it.
    const CONFINED: &str = "
def confine():
    fd = libc.syscall(444, struct.pack('Q', 1 << 4), 8, 0)
    libc.prctl(38, 1, 0, 0, 0)
    say('domain', libc.syscall(446, fd, 0))
    os.close(fd)
    wait()
import threading
thread = threading.Thread(target=confine, daemon=True)
thread.start()
wait()
";
    const FREE: &str = "\nsay('domain', 0)\nwait()";
    let (Some(root), Some(user)) = (Yendor::new(Flavour::Root), Yendor::new(Flavour::user())) else { return };
    // Whose tree, and who takes its image.
    for (number, (theirs, ours)) in [(&root, &root), (&user, &user), (&user, &root)].into_iter().enumerate() {
        for (kind, program, code) in [("free", FREE, 0), ("confined", CONFINED, 3)] {
            let [output, image, lost] = ["output", "image", "lost"].map(|what| format!("{what}-{kind}-{number}"));
            let mut command = theirs.program("/usr/bin/python3".as_ref());
            command.args(["-c", &format!("{INSTALL}{program}")]);
            command.stdout(theirs.output(&output)).stderr(theirs.output(&output));
            lead_a_session(&mut command);
            let mut started = Started::new(&mut command);
            let said = || std::fs::read_to_string(theirs.path(&output)).unwrap_or_default();
            assert!(wait_until(PATIENCE, || said().contains("domain 0")), "{}", said());
            let [image, lost] = [ours.path(&image), ours.path(&lost)];
            let pid = started.pid().to_string();
            let words = ["checkpoint", "--pid", &pid, "-o", image.to_str().expect("UTF-8"), "--leave-running"];
            let outcome = ours.call(&words).exits(code);
            if code == 3 {
                assert!(outcome.stderr.contains("Landlock domain") && outcome.stderr.contains("--allow-lost landlock"));
                assert!(!image.exists());
                let lost = lost.to_str().expect("UTF-8");
                let words = ["checkpoint", "--pid", &pid, "-o", lost, "--leave-running", "--allow-lost", "landlock"];
                ours.call(&words).exits(0);
                let shown = ours.call(&["inspect", "--lost", lost]).exits(0).stdout;
                // Not of the thread that is free.
                assert_eq!(shown.matches("Landlock domain").count(), 1, "{shown}");
            }
            assert!(started.ended(Duration::ZERO).is_none(), "{}", said());
            started.kill();
        }
    }
}

/// From a pid namespace of its own a task cannot look at anybody outside: nobody takes another process for that one.
#[test]
fn a_domain_that_cannot_be_looked_for() {
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    let mut command = yendor.program("/usr/bin/unshare".as_ref());
    let script = format!("{INSTALL}\nsay('ready')\nwait()");
    let first = "setsid -w python3 -c \"$0\"; :";
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c", first, &script]);
    command.stdout(yendor.output("output")).stderr(yendor.output("output"));
    let mut started = Started::new(&mut command);
    let said = || std::fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let child =
        |of: &str| std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", of.trim())).expect("children");
    let init = child(&started.pid().to_string());
    let pid = child(&init);
    let checkpoint_of = |pid: &str, name: &str, more: &[&str]| {
        let image = yendor.path(name);
        let words = ["checkpoint", "--pid", pid.trim(), "--leave-running", "-o", image.to_str().expect("UTF-8")];
        yendor.call(&[&words, more].concat())
    };
    let checkpoint = |name: &str, more: &[&str]| checkpoint_of(&pid, name, more);
    // Its image would be refused as damaged.
    let first = checkpoint_of(&init, "first", &["--allow-lost", "landlock"]).exits(3).stderr;
    assert!(first.contains("pid 1 of its pid namespace"), "{first}");
    let refused = checkpoint("refused", &[]).exits(3).stderr;
    for words in ["Landlock domain", "it is in a pid namespace of its own", "--allow-lost landlock"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    checkpoint("lost", &["--allow-lost", "landlock"]).exits(0);
    assert!(started.ended(Duration::ZERO).is_none(), "{}", said());
    started.kill();
}

/// Of a tree that Yendor did not start the kernel tells root which filters it has; an account is refused by name, and so is
/// root where a supervisor answers, or a filter forbids what a checkpoint calls.
#[test]
fn a_filter_that_nobody_recorded() {
    const GETPRIORITY: u32 = 140;
    const MEMFD_CREATE: u32 = 319;
    // Flag 8 is SECCOMP_FILTER_FLAG_NEW_LISTENER, action 0x7fc00000 asks it.
    const SUPERVISED: &str = "
code = struct.pack('HBBI', 0x20, 0, 0, 0) + struct.pack('HBBI', 0x15, 0, 1, 140)
code += struct.pack('HBBI', 6, 0, 0, 0x7fc00000) + struct.pack('HBBI', 6, 0, 0, 0x7fff0000)
memory = ctypes.create_string_buffer(code)
header = struct.pack('HxxxxxxQ', 4, ctypes.addressof(memory))
libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(317, 1, 8, header)
if os.fork() == 0: wait()
os.close(listener)
say('installed', 0 if listener >= 0 else ctypes.get_errno())
";
    let (Some(root), Some(user)) = (Yendor::new(Flavour::Root), Yendor::new(Flavour::user())) else { return };
    let plain = format!("say('installed', install({GETPRIORITY}))\n");
    let forbids = format!("say('installed', install({MEMFD_CREATE}))\n");
    let cases = [
        ("plain", &user, plain.as_str(), "only root of the host who has no filter himself"),
        ("forbids", &root, forbids.as_str(), "may forbid memfd_create"),
        ("supervised", &root, SUPERVISED, "may leave calls to a supervisor"),
    ];
    for (name, yendor, program, words) in cases {
        let mut command = yendor.program("/usr/bin/python3".as_ref());
        command.args(["-c", &format!("{INSTALL}{program}wait()")]);
        command.stdout(yendor.output(name)).stderr(yendor.output(name));
        lead_a_session(&mut command);
        let mut started = Started::new(&mut command);
        let said = || std::fs::read_to_string(yendor.path(name)).unwrap_or_default();
        assert!(wait_until(PATIENCE, || said().contains("installed 0")), "{name}: {}", said());
        let image = yendor.path("image");
        let words_of = ["checkpoint", "--pid", &started.pid().to_string(), "-o", image.to_str().expect("UTF-8")];
        let refused = yendor.call(&words_of).exits(3).stderr;
        assert!(refused.contains("seccomp filter") && refused.contains(words), "{name}: {refused}");
        assert!(!image.exists() && started.ended(Duration::ZERO).is_none(), "{name}: {}", said());
        started.kill();
    }
}
