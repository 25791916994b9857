//! `checkpoint --leave-running`: large memory is read while the program goes on, from a copy that fork makes. The probe
//! `writer` writes all the time and finds what is not of one instant.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use yendor_tests::{
    Flavour, PATIENCE, Random, Started, Yendor, kill, lead_a_session, probe, rounds, tick_gap, wait_until,
};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// What copies are called that processes of a test have as children, dead ones too.
fn copies(yendor: &Yendor) -> usize {
    all_copies(yendor).len()
}

fn copy_of(yendor: &Yendor) -> Option<libc::pid_t> {
    all_copies(yendor).first().copied()
}

fn all_copies(yendor: &Yendor) -> Vec<libc::pid_t> {
    let children =
        |pid: &libc::pid_t| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all: String = yendor.tasks_left().iter().map(children).collect();
    let comm = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    all.split_whitespace().filter(|pid| comm(pid) == "yendor-scratch\n").flat_map(str::parse).collect()
}

/// The probe in a container that it runs in.
fn writer(yendor: &Yendor) -> String {
    writer_with(yendor, &[], &[]).unwrap_or_else(|why| panic!("{why}"))
}

/// The same with options of the container and arguments of the probe; what was said, where such a container cannot be had.
fn writer_with(yendor: &Yendor, options: &[&str], arguments: &[&str]) -> Result<String, String> {
    let container = yendor.fresh("writer");
    let run = yendor.run_detached_with(&container, options, &[&[text(&probe("writer"))], arguments].concat());
    if run.code == 5 {
        return Err(run.stderr);
    }
    run.exits(0);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    Ok(container)
}

/// It finds nothing wrong.
fn ends_well(yendor: &Yendor, container: &str) {
    yendor.kill(container, "USR1");
    assert_eq!(yendor.wait(container), 0, "{}", yendor.logs(container));
}

/// A checkpoint of what runs on; it must have been read later.
fn read_later(yendor: &Yendor, what: &[&str], image: &Path) {
    let words = [&["checkpoint", "--json", "--leave-running", "-o", text(image)], what].concat();
    let json = yendor.call(&words).exits(0).json();
    let bytes = json["read_later"].as_u64().expect("a number");
    // Much of the memory of both processes: a thread may have just begun.
    assert!(bytes > 20 << 20, "{json}");
}

/// What was taken goes on from its instant and finds nothing wrong.
fn lives(yendor: &Yendor, image: &Path) {
    let restored = yendor.fresh("copy");
    yendor.restore(image, &restored);
    std::thread::sleep(Duration::from_millis(100));
    yendor.kill(&restored, "USR1");
    let code = yendor.wait(&restored);
    let said = fs::read_to_string(yendor.path("output")).unwrap_or_default() + &yendor.logs(&restored);
    assert_eq!(code, 0, "{said}");
    yendor.call(&["rm", &restored]).exits(0);
}

fn of_one_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = writer(&yendor);
    for round in 0..rounds(3, 100) {
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        let image = yendor.path(&format!("image-{round}"));
        read_later(&yendor, &[&container], &image);
        lives(&yendor, &image);
        fs::remove_dir_all(&image).expect("an image of our own");
    }
    ends_well(&yendor, &container);
}

/// All of it stands still after its checkpoint, and all of it goes on when it is told to.
fn stays_stopped(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("tree");
    yendor.run_detached(&container, &[text(&probe("tree"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    // Those that are stopped and those that have ended are not what is asked for.
    let states = || {
        let of = |pid: libc::pid_t| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        let stats = yendor.tasks_left().into_iter().filter_map(of).filter(|stat| stat.contains("(probe-tree)"));
        stats.filter_map(|stat| stat.rsplit(") ").next()?.chars().next()).filter(|s| *s != 'Z').collect::<String>()
    };
    let before = states();
    assert!(before.contains('S') && before.contains('T'), "{before}");
    let image = yendor.path("stopped");
    let said = yendor.call(&["checkpoint", &container, "--leave-stopped", "-o", text(&image)]).exits(0);
    assert!(said.stderr.contains(&format!("kill --all -s CONT {container}")), "{}", said.stderr);
    assert!(wait_until(PATIENCE, || states() == "T".repeat(before.len())), "{before}, then {}", states());
    yendor.call(&["kill", "--all", "-s", "CONT", &container]).exits(0);
    assert!(wait_until(PATIENCE, || !states().contains('T')), "{before}, then {}", states());
    yendor.kill(&container, "KILL");
    yendor.wait(&container);
    let restored = yendor.fresh("restored");
    yendor.restore(&image, &restored);
    ends_well(&yendor, &restored);
}

fn a_tree_of_one_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut command = yendor.program(&probe("writer"));
    command.env("TMPDIR", yendor.path("tmp")).stdout(yendor.output("output")).stderr(yendor.output("output"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let pid = started.pid();
    for round in 0..3 {
        let image = yendor.path(&format!("image-{round}"));
        read_later(&yendor, &["--pid", &pid.to_string()], &image);
        assert_eq!(copies(&yendor), 0);
        lives(&yendor, &image);
    }
    assert!(started.ended(Duration::ZERO).is_none(), "{}", said());
    started.kill();
}

/// Where copies may take no memory, or are killed for it, the tasks wait; the image is as good.
fn without_copies(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = writer(&yendor);
    let image = yendor.path("image");
    let words = ["checkpoint", "--json", "--leave-running", "-o", text(&image), &container];
    let json = yendor.call(&[&words[..], &["--max-extra-memory", "0"]].concat()).exits(0).json();
    assert_eq!(json["read_later"], 0, "{json}");
    assert_eq!(why(&json), ["its copy might take more memory than copies may"; 2], "{json}");
    lives(&yendor, &image);
    let mut killed = 0;
    for _ in 0..20 {
        fs::remove_dir_all(&image).expect("an image of our own");
        let mut command = yendor.command(&words);
        let mut started = Started::new(command.stdout(yendor.output("json")).stderr(yendor.output("json")));
        let copy = || copy_of(&yendor);
        if wait_until(PATIENCE, || copy().is_some() || started.ended(Duration::ZERO).is_some())
            && let Some(copy) = copy()
        {
            kill(copy);
            killed += 1;
        }
        let said = || fs::read_to_string(yendor.path("json")).unwrap_or_default();
        let code = started.ended(PATIENCE).map(Started::code);
        assert_eq!(code, Some(0), "{}", said());
        if killed > 2 {
            break;
        }
    }
    assert!(killed > 0, "no copy was seen");
    lives(&yendor, &image);
    assert_eq!(copies(&yendor), 0);
    ends_well(&yendor, &container);
}

/// Why processes were not copied.
fn why(json: &serde_json::Value) -> Vec<&str> {
    json["not_copied"].as_array().into_iter().flatten().flat_map(|one| one["why"].as_str()).collect()
}

/// Who may not fork is read while it stands still, and nothing is tried that could harm it.
fn who_may_not_fork(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let profile = yendor.path("profile.json");
    // A copy ends without a signal, what a program forks mostly does not.
    let calls = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["clone"],
        "action": "SCMP_ACT_KILL_PROCESS", "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }] }] }"#;
    fs::write(&profile, calls).expect("a file of our own");
    fs::set_permissions(&profile, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod of our own");
    let (filter, room) = ("its seccomp filter may forbid what a copy takes", "its copy might take more memory");
    let (limit, parent) = ("it may not fork: a limit of tasks", "it shares memory with a parent that has no copy");
    let cases: [(&[&str], &[&str], [&str; 2]); 4] = [
        (&["--seccomp", text(&profile)], &[], [filter, filter]),
        (&[], &["childless"], [filter, parent]),
        (&["--memory", "88M"], &[], [room, room]),
        (&["--pids", "3"], &[], [limit, limit]),
    ];
    for (number, (options, arguments, wanted)) in cases.into_iter().enumerate() {
        let container = match writer_with(&yendor, options, arguments) {
            Ok(container) => container,
            Err(said) => {
                assert!(options != cases[0].0 && !options.is_empty(), "{said}");
                yendor_tests::skipped(&format!("{options:?}: {}", said.trim()));
                continue;
            }
        };
        // The second time finds what the first has left.
        for round in 0..2 {
            let image = yendor.path(&format!("image-{number}-{round}"));
            let words = ["checkpoint", "--json", "--leave-running", "-o", text(&image), &container];
            let json = yendor.call(&words).exits(0).json();
            assert_eq!(json["read_later"], 0, "{options:?} {arguments:?}: {json}");
            let why = why(&json);
            let same = why.len() == 2 && why.iter().zip(wanted).all(|(why, wanted)| why.starts_with(wanted));
            assert!(same, "{options:?} {arguments:?}: {json}");
            assert_eq!(copies(&yendor), 0);
            lives(&yendor, &image);
        }
        ends_well(&yendor, &container);
    }
}

/// Calls that answer EINTR to any stop do not, twice in a row, and after a checkpoint that was refused.
fn no_call_is_interrupted(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("calls");
    yendor.run_detached(&container, &[text(&probe("syscalls-interrupted"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let checkpoint = |name: &str, target: &[&str]| {
        let image = yendor.path(name);
        yendor.call(&[&["checkpoint", "--leave-running", "-o", text(&image)], target].concat())
    };
    checkpoint("one", &[&container]).exits(0);
    checkpoint("two", &[&container]).exits(0);
    ends_well(&yendor, &container);
    // Whoever is notified of a message has been by us, and will be.
    let notified = yendor.fresh("notified");
    yendor.run_detached(&notified, &[text(&probe("mqueue"))]);
    yendor.wait_for_log(&notified, "ready", PATIENCE);
    checkpoint("notified", &[&notified]).exits(0);
    ends_well(&yendor, &notified);
    // It was going on with what the first one had interrupted.
    let restored = yendor.fresh("again");
    yendor.restore(&yendor.path("two"), &restored);
    ends_well(&yendor, &restored);
    // Of a foreign tree, beside somebody whom nobody can checkpoint.
    let mut command = yendor.program(Path::new("/bin/bash"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket of our own");
    let port = listener.local_addr().expect("its address").port().to_string();
    command.args(["-c", "exec 3<>/dev/tcp/127.0.0.1/$1; \"$0\"; exit", text(&probe("syscalls-interrupted")), &port]);
    command.env("TMPDIR", yendor.path("tmp")).stdout(yendor.output("output")).stderr(yendor.output("output"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let pid = started.pid().to_string();
    for name in ["three", "four"] {
        checkpoint(name, &["--pid", &pid]).exits(3);
    }
    let below = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
    let asked = std::process::Command::new("kill").args(["-s", "USR1", below.trim()]).status();
    assert!(asked.is_ok_and(|status| status.success()), "one child: {below}");
    assert_eq!(started.ended(PATIENCE).map(Started::code), Some(0), "{}", said());
}

/// A signal that comes before a restored task is in its call again ends the call, as it would have: who waits for nothing else
/// would wait for ever. It waits for SIGCONT here, so that the signal is surely first.
fn a_signal_that_is_first_ends_the_call(flavour: Flavour) {
    const CALLS: [&str; 4] = [
        "pause()",
        "clock_nanosleep(1, 0, ctypes.byref((ctypes.c_long * 2)(1000, 0)), ctypes.byref((ctypes.c_long * 2)()))",
        "read(ends[0], ctypes.create_string_buffer(1), 1)",
        "epoll_wait(poll.fileno(), ctypes.create_string_buffer(12), 1, -1)",
    ];
    let Some(yendor) = Yendor::new(flavour) else { return };
    for (number, call) in CALLS.iter().enumerate() {
        let program = format!(
            "import ctypes, os, select, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\n\
             ends, poll = os.pipe(), select.epoll()\nprint('ready', flush=True)\nctypes.CDLL(None).{call}\nprint('over', flush=True)"
        );
        let container = yendor.fresh("call");
        yendor.run_detached(&container, &["/usr/bin/python3", "-c", &program]);
        yendor.wait_for_log(&container, "ready", PATIENCE);
        std::thread::sleep(Duration::from_millis(100));
        yendor.kill(&container, "STOP");
        std::thread::sleep(Duration::from_millis(100));
        let image = yendor.path(&format!("image-{number}"));
        yendor.call(&["checkpoint", "-o", text(&image), &container]).exits(0);
        let restored = yendor.fresh("again");
        yendor.restore(&image, &restored);
        std::thread::sleep(Duration::from_millis(100));
        yendor.kill(&restored, "USR1");
        yendor.kill(&restored, "CONT");
        yendor.wait_for_log(&restored, "over", PATIENCE);
        assert!(yendor.logs(&restored).contains("handled"), "{call}");
        assert_eq!(yendor.wait(&restored), 0, "{call}");
        yendor.call(&["rm", &restored]).exits(0);
    }
}

/// SIGKILL for the checkpoint, mostly while it reads from copies: they go with it, and the next one finds nothing of them.
fn killed_while_it_reads(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = writer_with(&yendor, &[], &["killed"]).expect("a container");
    let image = yendor.path("image");
    let begin = Instant::now();
    read_later(&yendor, &[&container], &image);
    let duration = u64::try_from(begin.elapsed().as_micros()).expect("a short time");
    for _ in 0..rounds(10, 200) {
        // What the last one has made, or not.
        let _ = fs::remove_dir_all(&image);
        let mut command = yendor.command(&["checkpoint", "--leave-running", "-o", text(&image), &container]);
        let mut started = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(Duration::from_micros(random.below(duration)));
        started.kill();
    }
    let _ = fs::remove_dir_all(&image);
    // What is still about to end is no zombie yet, which the next one would bury.
    let ended = |pid: &libc::pid_t| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z"));
    assert!(wait_until(PATIENCE, || all_copies(&yendor).iter().all(ended)));
    read_later(&yendor, &[&container], &image);
    let tree = yendor.call(&["inspect", "--tree", text(&image)]).exits(0).stdout;
    assert!(!tree.contains("scratch") && !tree.contains("zombie"), "{tree}");
    lives(&yendor, &image);
    assert_eq!(copies(&yendor), 0);
    ends_well(&yendor, &container);
}

/// The disk is full when the program goes on already: it has nothing to do with that, and of its copy nothing stays.
fn a_disk_that_is_full_meanwhile(flavour: Flavour) {
    const PROGRAM: &str = "
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
held = bytearray(os.urandom(48 << 20))
whole = hash(bytes(held))
print('ready', flush=True)
n = 0
while True:
    n += 1
    held[n % len(held)] ^= 255
    print('tick', n, flush=True)
    held[n % len(held)] ^= 255
    if n % 64 == 0 and hash(bytes(held)) != whole: sys.exit('not what it held')
    time.sleep(0.002)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", PROGRAM]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("room");
    read_later(&yendor, &[&container], &image);
    let (place, list) = (yendor.path("full"), yendor.path("list"));
    fs::create_dir(&place).expect("mkdir");
    let before = format!("mount -t tmpfs -o size=20m,mode=777 none {}", text(&place));
    let after = format!("ls -A {} > {}", text(&place), text(&list));
    let full = place.join("image");
    for more in [&[][..], &["--compress", "lz4"], &["--rounds", "2"], &["--track"]] {
        let words = [&["checkpoint", &container, "--leave-running", "-o", text(&full)], more].concat();
        let Some(outcome) = yendor.call_between(&before, &words, &after) else { return };
        let said = outcome.exits(1).stderr;
        assert!(said.contains("No space left"), "{more:?}: {said}");
        assert_eq!(fs::read_to_string(&list).expect("a list").trim(), "", "{more:?}: something is left");
        let none = wait_until(PATIENCE, || copies(&yendor) == 0);
        assert!(none, "{more:?}: copies are left: {:?}", all_copies(&yendor));
        let ticks = || yendor.logs(&container).lines().count();
        let now = ticks();
        assert!(wait_until(PATIENCE, || ticks() > now), "{more:?}: it does not go on: {}", yendor.logs(&container));
    }
    let after = yendor.path("after");
    read_later(&yendor, &[&container], &after);
    lives(&yendor, &after);
    ends_well(&yendor, &container);
    assert_eq!(tick_gap(&yendor.logs(&container)), None);
}

yendor_tests::flavours! {
    stays_stopped
    killed_while_it_reads
    without_copies
    who_may_not_fork
    no_call_is_interrupted
    a_signal_that_is_first_ends_the_call
    of_one_instant
    a_tree_of_one_instant
    a_disk_that_is_full_meanwhile
}
