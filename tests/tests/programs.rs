//! Real programs: each is run, checkpointed in the middle of its work, killed, restored, and asked whether it still has
//! everything. The scripts of `tests/programs` run and watch them from inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use yendor_tests::{Flavour, PATIENCE, Started, Yendor, lead_a_session, skipped, wait_until};

const START: Duration = Duration::from_secs(90);
/// Time in which a restored program works on before it is disturbed again.
const WORK: Duration = Duration::from_millis(300);

/// Rounds of checkpoint and restore: one more than the least that shows whether a restored program can be taken again.
fn rounds() -> u32 {
    if std::env::var_os("YENDOR_SOAK").is_some() { 20 } else { 2 }
}

/// A script of `tests/programs`, as an interpreter's arguments: the account may not be able to read our directories.
struct Script {
    name: &'static str,
    arguments: &'static [&'static str],
}

impl Script {
    fn command(&self) -> Vec<String> {
        let read = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name);
            fs::read_to_string(path).expect("a script of ours")
        };
        let text = read(self.name);
        let mut command = match Path::new(self.name).extension().and_then(|e| e.to_str()) {
            Some("py") => vec!["/usr/bin/python3".to_owned(), "-c".to_owned(), read("lib.py") + &text],
            _ => vec!["/bin/bash".to_owned(), "-c".to_owned(), text, self.name.to_owned()],
        };
        command.extend(self.arguments.iter().map(|&a| a.to_owned()));
        command
    }
}

/// Asks a container whether it has everything, and sees it to its end.
#[track_caller]
fn asks(yendor: &Yendor, name: &str) {
    std::thread::sleep(WORK);
    let asked = yendor.call(&["kill", "-s", "USR1", name]);
    assert_eq!(asked.code, 0, "{}\n{}", asked.stderr, yendor.logs(name));
    assert_eq!(yendor.wait(name), 0, "{}", yendor.logs(name));
}

/// Twice from one image, one after the other; the second goes round again before it is asked.
#[track_caller]
fn goes_on(flavour: Flavour, script: &Script) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let command = script.command();
    let (first, second) = (yendor.fresh("a"), yendor.fresh("b"));
    yendor.run_detached(&first, &command.iter().map(String::as_str).collect::<Vec<_>>());
    yendor.wait_for_log(&first, "ready", START);
    let image = yendor.path("image-1");
    yendor.checkpoint(&first, &image);
    yendor.restore(&image, &second);
    asks(&yendor, &second);
    assert!(says_ok(&yendor.logs(&second)), "{}", yendor.logs(&second));
    let mut last = yendor.fresh("c");
    yendor.restore(&image, &last);
    let mut usage = Vec::new();
    for round in 2..=rounds() {
        std::thread::sleep(WORK);
        usage.push(Usage::of(&yendor));
        let image = yendor.path(&format!("image-{round}"));
        yendor.checkpoint(&last, &image);
        // A container's directory would only be in the way.
        yendor.call(&["rm", &last]).exits(0);
        let _ = fs::remove_dir_all(yendor.path(&format!("image-{}", round - 1)));
        last = yendor.fresh("d");
        yendor.restore(&image, &last);
    }
    asks(&yendor, &last);
    assert!(says_ok(&yendor.logs(&last)), "{}", yendor.logs(&last));
    Usage::does_not_grow(&usage);
}

/// What the tasks of a test hold of the kernel.
#[derive(Debug)]
struct Usage {
    tasks: usize,
    descriptors: usize,
    mounts: usize,
    maps: usize,
}

impl Usage {
    fn of(yendor: &Yendor) -> Usage {
        let tasks = yendor.tasks_left();
        let lines = |name: &str| {
            let texts = tasks.iter().filter_map(|pid| fs::read(format!("/proc/{pid}/{name}")).ok());
            texts.map(|text| text.split(|&b| b == b'\n').count()).sum()
        };
        let open = tasks.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
        let descriptors = open.map(Iterator::count).sum();
        Usage { tasks: tasks.len(), descriptors, mounts: lines("mountinfo"), maps: lines("maps") }
    }

    /// Programs breathe: only what is more after every few rounds is a leak.
    fn does_not_grow(all: &[Usage]) {
        let Some((early, late)) = all.get(1).zip(all.last()) else { return };
        let slack = |n: usize| n + n / 5 + 4;
        let grown = late.tasks > slack(early.tasks)
            || late.descriptors > slack(early.descriptors)
            || late.mounts / late.tasks.max(1) > early.mounts / early.tasks.max(1)
            || late.maps > slack(early.maps);
        assert!(!grown, "something grows from round to round: {all:#?}");
    }
}

fn says_ok(log: &str) -> bool {
    log.lines().any(|line| line == "ok")
}

/// A tree that Yendor has not started, taken by its pid, and run on in two containers, one after the other.
#[track_caller]
fn goes_on_as_tree(flavour: Flavour, script: &Script) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let words = script.command();
    let mut command = yendor.program(Path::new(&words[0]));
    command.args(&words[1..]).env("TMPDIR", yendor.path("tmp"));
    command.stdout(yendor.output("output")).stderr(yendor.output("output"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(START, || said().lines().any(|line| line == "ready")), "{}", said());
    let image = yendor.path("image");
    yendor.checkpoint_pid(started.pid(), &image);
    assert!(started.ended(PATIENCE).is_some(), "the tree outlives its checkpoint");
    for time in 1..=2 {
        let name = yendor.fresh("tree");
        yendor.restore(&image, &name);
        asks(&yendor, &name);
        assert_eq!(said().lines().filter(|line| *line == "ok").count(), time, "{}", said());
    }
}

/// Whether programs of the system are there; says so when not.
fn has(places: &str) -> bool {
    let missing: Vec<_> = places.split(' ').filter(|place| !PathBuf::from(place).exists()).collect();
    if !missing.is_empty() {
        let all = missing.join(" ");
        skipped(&format!("{all} is not there: install it, or let `cargo xtask test` do so as root"));
    }
    missing.is_empty()
}

macro_rules! programs {
    ($($name:ident $place:literal $script:literal [$($argument:literal)*]: $($how:ident)+;)*) => {
        $(mod $name {
            const SCRIPT: super::Script = super::Script { name: $script, arguments: &[$($argument),*] };
            $(#[test] fn $how() { if super::has($place) { super::$how(&SCRIPT) } })+
        })*
        const SCRIPTS: &[&str] = &[$($script),*];
    };
}

fn userns(script: &Script) {
    goes_on(Flavour::RootUserns, script);
}

fn user(script: &Script) {
    goes_on(Flavour::user(), script);
}

fn tree_root(script: &Script) {
    goes_on_as_tree(Flavour::RootUserns, script);
}

fn tree_user(script: &Script) {
    goes_on_as_tree(Flavour::user(), script);
}

programs! {
    redis "/usr/bin/redis-server" "redis.py" ["1000000"]: userns user;
    redis_by_hand "/usr/bin/redis-server" "redis.py" ["1000"]: tree_root tree_user;
    postgres "/usr/lib/postgresql" "postgres.py" []: userns user;
    nginx "/usr/sbin/nginx" "nginx.py" []: userns user;
    python "/usr/bin/python3" "python.py" []: userns user tree_root tree_user;
    node "/usr/bin/node" "node.py" []: userns user;
    java "/usr/bin/javac" "java.py" []: userns user;
    shell "/bin/bash" "job.sh" []: userns user tree_root tree_user;
    terminal "/usr/bin/tmux /usr/bin/vim /usr/bin/less /usr/lib/games/nethack/nethack-console" "terminal.py" []: userns user;
    sqlite "/usr/bin/python3" "sqlite.py" []: userns user;
    ssh "/usr/sbin/sshd" "ssh.py" []: userns user;
    web "/usr/sbin/php-fpm8.2" "web.py" []: userns user;
    init "/usr/bin/s6-svscan" "init.py" []: userns user;
    rootless "/usr/bin/unshare" "unshare.sh" []: userns user;
    sandbox "/usr/bin/bwrap" "sandbox.sh" []: userns user;
    make "/usr/bin/make" "make.py" []: userns user;
    network "/usr/sbin/ip" "network.sh" []: userns user;
}

/// What a debugger holds cannot be had; both go on.
#[test]
fn gdb() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    if !has("/usr/bin/gdb") {
        return;
    }
    let name = yendor.fresh("gdb");
    let program = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";
    yendor.run_detached(&name, &["/usr/bin/gdb", "-q", "-batch", "-ex", "run", "--args", "/bin/bash", "-c", program]);
    yendor.wait_for_log(&name, "tick 3", START);
    let image = yendor.path("image");
    let refused = yendor.call(&["checkpoint", &name, "-o", image.to_str().expect("paths of tests are UTF-8")]);
    let refused = refused.exits(3);
    assert!(refused.stderr.contains("is traced by"), "{}", refused.stderr);
    assert!(!image.exists(), "half an image is left");
    let ticks = yendor.logs(&name).lines().filter(|line| line.starts_with("tick ")).count();
    yendor.wait_for_log(&name, &format!("tick {}", ticks + 5), START);
}

/// Who waits in vfork for a child that gets no further cannot be stopped; nobody is left stopped for it.
#[test]
fn vfork() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let name = yendor.fresh("vfork");
    let program = "import os, sys, time
os.mkfifo('/tmp/fifo')
if os.fork() == 0:
    actions = [(os.POSIX_SPAWN_OPEN, 0, '/tmp/fifo', os.O_RDONLY, 0)]
    os.posix_spawn('/bin/cat', ['cat'], {}, file_actions=actions)
    os._exit(os.wait()[1] >> 8)
for n in range(1, 100000):
    print('tick', n, flush=True); time.sleep(0.05)
    if os.path.exists('/tmp/go'): break
os.close(os.open('/tmp/fifo', os.O_WRONLY))
sys.exit(7 + (os.wait()[1] >> 8))";
    yendor.run_detached(&name, &["/usr/bin/python3", "-c", program]);
    yendor.wait_for_log(&name, "tick 5", START);
    let image = yendor.path("image");
    let refused = yendor.call(&["checkpoint", &name, "-o", image.to_str().expect("paths of tests are UTF-8")]);
    let refused = refused.exits(3);
    assert!(refused.stderr.contains("cannot be stopped"), "{}", refused.stderr);
    assert!(!image.exists(), "half an image is left");
    let ticks = yendor.logs(&name).lines().count();
    yendor.wait_for_log(&name, &format!("tick {}", ticks + 5), START);
    yendor.call(&["exec", &name, "--", "/usr/bin/touch", "/tmp/go"]).exits(0);
    assert_eq!(yendor.wait(&name), 7, "{}", yendor.logs(&name));
}

#[test]
fn no_script_is_forgotten() {
    let folder = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/programs")).expect("the scripts are there");
    let there = folder.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
    let forgotten: Vec<String> = there.filter(|name| name != "lib.py" && !SCRIPTS.contains(&name.as_str())).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
}
