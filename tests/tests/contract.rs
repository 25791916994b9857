//! What the command line and its answers promise in numbers and names: clocks that go on, networks that are chosen, what `plan`,
//! `inspect` and `generate` say, what is shown while one waits.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ciborium::Value as Cbor;
use serde_json::Value;
use yendor_tests::{
    Flavour, Forge, Outcome, PATIENCE, Random, Started, Terminal, Yendor, cgroups, lead_a_session, probe, skipped,
    wait_until,
};

const HOUR: u64 = 3_600 * 1_000_000_000;

yendor_tests::flavours! {
    clocks_go_on_from_what_the_image_says
    clocks_go_on_from_one_time_namespace_to_another
}

yendor_tests::root_and_user! {
    a_network_is_what_is_asked_for
    a_tree_gets_the_network_it_had
    a_loopback_that_is_down_stays_down
    files_and_memory_are_of_one_instant
    what_is_in_an_image_is_shown
    a_plan_says_what_will_be_done
    holes_stay_holes
    half_filled_files_take_no_longer
    what_rings_meanwhile_rings
    a_command_of_exec_stands_still
    commands_begin_while_memory_is_read
    children_of_who_becomes_exec_live
    what_confined_it_is_said
    control_groups_are_lost_by_name
    zeros_are_not_stored
    long_work_is_shown_at_a_terminal_only
    standard_input_is_open_in_the_foreground
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn python(yendor: &Yendor, stem: &str, program: &str) -> String {
    let container = yendor.fresh(stem);
    yendor.run_detached(&container, &["python3", "-c", program]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn asleep(yendor: &Yendor, stem: &str) -> String {
    let container = yendor.fresh(stem);
    yendor.run_detached(&container, &["sh", "-c", "echo ready; exec sleep 1000"]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

/// With the options of the flavour, which `restore` and `plan` take.
fn plan(yendor: &Yendor, image: &Path, options: &[&str]) -> Outcome {
    yendor.call(&[&["plan"], yendor.flavour().options(), options, &[utf8(image)]].concat())
}

/// One host's clocks go on by themselves: the image says that they stood far ahead.
fn clocks_go_on_from_what_the_image_says(flavour: Flavour) {
    const PROGRAM: &str = "
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
uptime = float(open('/proc/uptime').read().split()[0])
print('clocks', int(time.monotonic()), int(time.clock_gettime(time.CLOCK_BOOTTIME)), int(uptime))
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = python(&yendor, "clocks", PROGRAM);
    let (image, ahead) = (yendor.path("image"), yendor.path("ahead"));
    yendor.checkpoint(&container, &image);
    let mut forge = Forge::open(&image);
    let mut stood = [0, 0];
    for (at, hours) in [(0, 1_000), (1, 3_000)] {
        let clock = forge.at(&format!("container/clocks/{at}"));
        let was = u64::try_from(clock.as_integer().expect("a time")).expect("a time");
        stood[at] = was / 1_000_000_000 + hours * 3_600;
        *clock = Cbor::from(was + hours * HOUR);
    }
    forge.write(&ahead);
    yendor.give(&ahead);
    let restored = yendor.fresh("ahead");
    yendor.restore(&ahead, &restored);
    yendor.kill(&restored, "USR1");
    assert_eq!(yendor.wait(&restored), 0, "{}", yendor.logs(&restored));
    let log = yendor.logs(&restored);
    let line = log.lines().find_map(|line| line.strip_prefix("clocks ")).unwrap_or_else(|| panic!("{log}"));
    let clocks: Vec<u64> = line.split(' ').map(|number| number.parse().expect("seconds")).collect();
    for (clock, stood) in clocks.iter().zip([stood[0], stood[1], stood[1]]) {
        assert!((stood..stood + 600).contains(clock), "{clocks:?} go on from {stood}");
    }
}

/// Offsets of a time namespace are the machine's, and clocks are read in one's own: whoever lives in one must not take one for the other.
fn clocks_go_on_from_one_time_namespace_to_another(flavour: Flavour) {
    const AHEAD: &str = "exec unshare --time --monotonic 1000 --boottime 3000 --fork -- \"$@\"";
    if !Path::new("/proc/self/ns/time").exists() {
        skipped("a kernel without time namespaces");
        return;
    }
    if Yendor::new(Flavour::Root).is_none() {
        return;
    }
    let Some(yendor) = Yendor::new(flavour) else { return };
    let call = |ahead, words: &[&str]| match ahead {
        true => yendor.to_its_end(yendor.sheltered(AHEAD, words), format!("ahead: yendor {}", words.join(" "))),
        false => yendor.call(words),
    };
    for name in ["uts-time", "timerfd", "posix-timers", "namespaces"] {
        for (from, to) in [(true, true), (true, false), (false, true)] {
            let [container, restored] = [yendor.fresh(name), yendor.fresh(name)];
            [&container, &restored].iter().for_each(|name| yendor.will_remove(name));
            let (image, program) = (yendor.path(&container), probe(name));
            let options = yendor.flavour().options();
            let start = ["run", "-d", "--name", &container, "-e", yendor.mark(), "-e", "PROBE_SET_NAMES=1"];
            call(from, &[&start, options, &["--", utf8(&program)]].concat()).exits(0);
            let said = |inside, container: &str| call(inside, &["logs", container]).exits(0).stdout;
            let is_ready = || said(from, &container).lines().any(|line| line == "ready");
            assert!(wait_until(PATIENCE, is_ready), "{name}: {}", said(from, &container));
            call(from, &["checkpoint", &container, "-o", utf8(&image)]).exits(0);
            call(to, &[&["restore", "-d", "--name", &restored], options, &[utf8(&image)]].concat()).exits(0);
            call(to, &["kill", "-s", "USR1", &restored]).exits(0);
            let code = call(to, &["wait", &restored]).code;
            assert_eq!(code, 0, "{name}, taken ahead: {from}, restored ahead: {to}: {}", said(to, &restored));
        }
    }
}

/// When a process was started is told by the clock of who asks: a container that runs does so whoever asks.
#[test]
fn who_has_other_clocks_finds_containers_alive() {
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    if !Path::new("/proc/self/ns/time").exists() {
        skipped("a kernel without time namespaces");
        return;
    }
    const RESTRICTED: &str = "
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
fd = libc.syscall(444, struct.pack('QQ', 1 << 13, 0), 16, 0)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, fd, 0) == 0
os.close(fd)
print('ready', flush=True)
time.sleep(1000)
";
    let container = yendor.fresh("clocks");
    yendor.run_detached(&container, &["sleep", "1000"]);
    let restricted = python(&yendor, "restricted", RESTRICTED);
    for boottime in ["3000", "-10"] {
        let script = format!("exec unshare --time --boottime {boottime} --fork -- \"$@\"");
        let call =
            |words: &[&str]| yendor.to_its_end(yendor.sheltered(&script, words), format!("{boottime}: {words:?}"));
        assert!(call(&["ps"]).exits(0).stdout.contains("running"));
        call(&["rm", &container]).exits(1);
        let image = yendor.path(&format!("image-{boottime}"));
        call(&["checkpoint", "--leave-running", &container, "-o", utf8(&image)]).exits(0);
        // Whose rules are known by when it began; without them it would be restored, free.
        let said =
            call(&["checkpoint", "--leave-running", &restricted, "-o", utf8(&yendor.path("none"))]).exits(3).stderr;
        assert!(said.contains("a time namespace with other clocks"), "{said}");
    }
    yendor.checkpoint(&restricted, &yendor.path("own"));
    assert!(yendor.call(&["ps"]).exits(0).stdout.contains("running"));
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// Maps memory of a tmpfs that no descriptor leads to then; how many pages of a mapping are there.
const CLOSED: &str = "
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
SHARED, PRIVATE, size = 1, 2, ctypes.c_size_t
def memfd(): return os.memfd_create('closed')
def file():
    fd = os.open('/dev/shm/closed', os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.unlink('/dev/shm/closed')
    return fd
def closed(fd, length, how, mapped=None):
    os.ftruncate(fd, length)
    os.pwrite(fd, b'file', 4096)
    at = libc.mmap(None, size(mapped or length), 3, how, fd, ctypes.c_long(0))
    assert at != 2 ** 64 - 1
    ctypes.memmove(at + length // 2, b'own', 3)
    os.close(fd)
    return at
def there(at, length):
    answer = ctypes.create_string_buffer(length // 4096)
    assert libc.mincore(ctypes.c_void_p(at), size(length), answer) == 0
    return sum(page & 1 for page in answer.raw)
def is_whole(at, length):
    return [ctypes.string_at(at + n, 4) for n in (4096, length // 2)] == [b'file', b'own\\0']
";

/// To read a hole of shared memory makes a page of it: a checkpoint does not, whoever has it mapped, and however.
fn holes_stay_holes(flavour: Flavour) {
    const PROGRAM: &str = "
N = 600 << 20
all = [(closed(fd(), N, how), N) for fd in (memfd, file) for how in (SHARED, PRIVATE)]
# What is mapped ends before its mapping.
all += [(closed(fd(), N, SHARED, 2 * N), N) for fd in (memfd, file)]
def say(*_): print('pages', *(there(at, length) for at, length in all), flush=True)
def end(*_):
    print('whole', *(is_whole(at, length) for at, length in all), flush=True)
    pids = []
    for at, length in all[-2:]:
        pid = os.fork()
        if pid == 0: os._exit(ctypes.string_at(at + length, 1)[0])
        pids.append(pid)
    print('beyond', *(os.waitpid(pid, 0)[1] & 0x7f for pid in pids), flush=True)
    os._exit(0)
signal.signal(signal.SIGUSR1, say), signal.signal(signal.SIGUSR2, end)
print('ready', flush=True)
while True: time.sleep(1)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = python(&yendor, "holes", &[CLOSED, PROGRAM].concat());
    let pages = |container: &str, nth: usize| {
        yendor.kill(container, "USR1");
        let said =
            || yendor.logs(container).lines().filter_map(|l| l.strip_prefix("pages ")).nth(nth).map(str::to_owned);
        assert!(wait_until(PATIENCE, || said().is_some()), "{}", yendor.logs(container));
        let said = said().expect("a line");
        said.split(' ').map(|number| number.parse::<u64>().expect("a number")).collect::<Vec<_>>()
    };
    let before = pages(&container, 0);
    // The pages are there, and beside them at most some that the kernel has made of its own accord.
    assert!(before.len() == 6 && before.iter().all(|pages| (2..=1024).contains(pages)), "{before:?}");
    // Who is not told where a file ends finds out.
    let few = if matches!(yendor.flavour(), Flavour::Root) { 0 } else { 64 };
    let image = yendor.path("image");
    for (nth, more) in [(1, &["--leave-running"][..]), (2, &["--leave-running", "--rounds", "2"])] {
        let image = yendor.path(&format!("image-{nth}"));
        yendor.call(&[&["checkpoint", &container, "-o", utf8(&image)], more].concat()).exits(0);
        let after = pages(&container, nth);
        assert!(
            after.iter().zip(&before).all(|(after, before)| *after <= before + few * nth as u64),
            "{after:?}, {before:?}"
        );
    }
    yendor.checkpoint(&container, &image);
    let restored = yendor.fresh("restored");
    yendor.restore(&image, &restored);
    let after = pages(&restored, 0);
    assert!(after.iter().zip(&before).all(|(after, before)| after <= before), "{after:?}, {before:?}");
    yendor.kill(&restored, "USR2");
    assert_eq!(yendor.wait(&restored), 0, "{}", yendor.logs(&restored));
    let log = yendor.logs(&restored);
    for line in ["whole True True True True True True".to_owned(), format!("beyond {0} {0}", libc::SIGBUS)] {
        assert!(log.lines().any(|one| one == line), "{line}: {log}");
    }
    // What becomes the area's own has no end.
    let program = "held = closed(memfd(), 8192, PRIVATE, 16384)\nprint('ready', flush=True)\ntime.sleep(1000)";
    let container = python(&yendor, "beyond", &[CLOSED, program].concat());
    let said = yendor.call(&["checkpoint", &container, "-o", utf8(&yendor.path("beyond"))]).exits(3).stderr;
    assert!(said.contains("a private mapping beyond the end of /memfd:closed"), "{said}");
}

/// Half of a file is holes, page by page: the tasks do not wait for longer than it takes to read it.
fn half_filled_files_take_no_longer(flavour: Flavour) {
    const PROGRAM: &str = "
N = 256 << 20
fd = file()
for at in range(8192, N, 8192): os.pwrite(fd, b'every second', at)
held = closed(fd, N, SHARED)
print('ready', flush=True)
time.sleep(1000)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = python(&yendor, "half", &[CLOSED, PROGRAM].concat());
    let image = yendor.path("image");
    let taken = yendor.call(&["checkpoint", "--json", &container, "-o", utf8(&image)]).exits(0).json();
    let stopped = taken["phases"]["stopped_us"].as_u64().unwrap_or_else(|| panic!("{taken}"));
    assert!(stopped < 5_000_000, "{taken}");
}

/// An image brings no policy; that its container had one is said.
fn what_confined_it_is_said(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let options = ["--landlock", "ro:/", "--landlock", "exec:/usr", "--cap-drop", "CAP_NET_RAW"];
    let container = yendor.fresh("confined");
    let all = [&["-e", yendor.mark()], &options[..]].concat();
    yendor.run_detached_with(&container, &all, &["/usr/bin/sleep", "1000"]).exits(0);
    let image = yendor.path("image");
    yendor.checkpoint(&container, &image);
    let said = yendor.call(&["inspect", utf8(&image)]).exits(0).stdout;
    assert!(said.contains("--cap-drop, --landlock"), "{said}");
    let notes = |options: &[&str]| {
        let again = yendor.fresh("again");
        let said = yendor.restore_with(&image, &again, &[options, &["--json"]].concat()).exits(0).json();
        yendor.call(&["rm", "-f", &again]).exits(0);
        said["notes"].to_string()
    };
    assert!(notes(&[]).contains("it ran under --cap-drop, --landlock, which nobody asks for now"));
    assert!(notes(&options[..4]).contains("it ran under --cap-drop, which nobody asks for now"));
    assert_eq!(notes(&options), "[]");
}

/// A control group of this test's own. Who is in it leaves it before it goes.
struct Group(PathBuf);

impl Group {
    /// None where there are no control groups, or not for us.
    fn new(yendor: &Yendor) -> Option<Group> {
        let all = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup"];
        let top = all.iter().find(|top| Path::new(top).join("cgroup.procs").exists())?;
        let path = Path::new(top).join(yendor.fresh("group"));
        fs::create_dir(&path).ok().map(|()| Group(path))
    }

    fn take(&self, pid: libc::pid_t) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("to move a process of ours");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(self.0.with_file_name("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// No image has control groups: who was in another one than the first task is named.
fn control_groups_are_lost_by_name(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let Some(group) = Group::new(&yendor) else {
        skipped("no control group can be made");
        return;
    };
    let child = |pid: libc::pid_t| {
        let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        assert!(wait_until(PATIENCE, || !children().is_empty()), "{pid} has no child");
        children().trim().parse::<libc::pid_t>().expect("one child")
    };
    let mut count = 0;
    let mut lost = |target: &[&str]| {
        count += 1;
        let image = yendor.path(&format!("image-{count}"));
        let words = [&["checkpoint", "--json", "--leave-running", "-o", utf8(&image)], target].concat();
        let json = yendor.call(&words).exits(0).json();
        let lost: Vec<String> = json["lost"].as_array().expect("a list").iter().map(Value::to_string).collect();
        let shown = yendor.call(&["inspect", "--lost", utf8(&image)]).exits(0).stdout;
        assert_eq!(lost.iter().any(|one| one.contains("cgroup")), shown.contains("cgroup"), "{shown}");
        lost
    };
    let script = ["sh", "-c", "sleep 1000 & wait"];
    let container = yendor.fresh("groups");
    yendor.run_detached(&container, &script);
    let all = yendor.call(&["ps", "--json"]).exits(0).json();
    let main = all.as_array().and_then(|all| all.iter().find(|one| one["name"] == *container));
    let main = main.and_then(|one| one["pid"].as_i64()).and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    let inside = child(main);
    assert_eq!(lost(&[&container]), [""; 0]);
    group.take(inside);
    let said = lost(&[&container]);
    let [one] = &said[..] else { panic!("{said:?}") };
    assert!(one.starts_with("[\"cgroup\",\"process 3: the control group /"), "{one}");
    // All of them are elsewhere than the container.
    group.take(main);
    let said = lost(&[&container]);
    let [one] = &said[..] else { panic!("{said:?}") };
    assert!(one.contains("\"process 2, process 3: the control group /"), "{one}");
    yendor.call(&["rm", "-f", &container]).exits(0);
    let mut command = yendor.program(Path::new("sh"));
    command.args(&script[1..]).stdout(yendor.output("output")).stderr(yendor.output("errors"));
    lead_a_session(&mut command);
    let tree = Started::new(&mut command);
    let (root, inside) = (tree.pid(), child(tree.pid()));
    let target = ["--pid", &root.to_string()];
    assert_eq!(lost(&target), [""; 0]);
    [root, inside].iter().for_each(|pid| group.take(*pid));
    assert_eq!(lost(&target), [""; 0], "all of it in one group");
    fs::write(group.0.with_file_name("cgroup.procs"), inside.to_string()).expect("to move a process of ours");
    let said = lost(&target);
    let [one] = &said[..] else { panic!("{said:?}") };
    assert!(one.starts_with(&format!("[\"cgroup\",\"process {inside}: the control group /")), "{one}");
}

/// A command of `exec` stands still while its container does, and is named as what no image has.
fn a_command_of_exec_stands_still(flavour: Flavour) {
    const PROGRAM: &str = "
import os
a, b = [os.open('/tmp/' + name, os.O_CREAT | os.O_RDWR) for name in 'ab']
print('ready', flush=True)
n = 0
while True:
    n += 1
    for fd in a, b: os.pwrite(fd, b'%d\\n' % n, 0)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = asleep(&yendor, "host");
    let mut command = yendor.command(&["exec", &container, "--", "python3", "-c", PROGRAM]);
    let mut counting = Started::new(command.stdout(yendor.output("counting")).stderr(yendor.output("errors")));
    let said = || fs::read_to_string(yendor.path("counting")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said() == "ready\n"));
    let numbers = |container: &str| {
        let said = yendor.call(&["exec", container, "--", "cat", "/tmp/a", "/tmp/b"]).exits(0).stdout;
        let numbers: Vec<u64> = said.lines().map(|line| line.parse().expect("a number")).collect();
        <[u64; 2]>::try_from(numbers).unwrap_or_else(|_| panic!("{said}"))
    };
    let mut before = [0, 0];
    for (round, ends) in [false, false, false, true].into_iter().enumerate() {
        let image = yendor.path(&format!("image-{round}"));
        let left: &[&str] = if ends { &[] } else { &["--leave-running"] };
        let taken = yendor.call(&[&["checkpoint", "--json", &container, "-o", utf8(&image)], left].concat());
        let lost = taken.exits(0).json()["lost"].to_string();
        assert!(lost.contains("python3") && lost.contains("a command of `yendor exec`"), "{lost}");
        let again = yendor.fresh("again");
        yendor.restore(&image, &again);
        let [a, b] = numbers(&again);
        assert!(a == b || a == b + 1, "of two instants: {a} {b}");
        assert!([a, b] > before, "{a} {b} after {before:?}");
        before = [a, b];
        let all = yendor.call(&["exec", &again, "--", "ps", "-eo", "args"]).exits(0).stdout;
        assert!(!all.contains("python3 -c"), "{all}");
        yendor.call(&["rm", "-f", &again]).exits(0);
    }
    assert!(counting.ended(PATIENCE).is_some());
}

/// A program that is left running takes commands again as soon as it runs, and not when the last page is written.
fn commands_begin_while_memory_is_read(flavour: Flavour) {
    const PROGRAM: &str = "import os, time; held = os.urandom(192 << 20); print('ready', flush=True); time.sleep(1000)";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = python(&yendor, "large", PROGRAM);
    let image = yendor.path("image");
    let words = ["checkpoint", "--json", "--leave-running", "--compress", "zstd:12", &container, "-o", utf8(&image)];
    let mut taking =
        Started::new(yendor.command(&words).stdout(yendor.output("taken")).stderr(yendor.output("errors")));
    let mut begun = 0;
    while taking.ended(Duration::ZERO).is_none() {
        yendor.call(&["exec", &container, "--", "true"]).exits(0);
        begun += usize::from(taking.ended(Duration::ZERO).is_none());
    }
    let taken = fs::read_to_string(yendor.path("taken")).expect("what it says");
    // One may begin before the program is stopped, and the one that waits meanwhile ends.
    assert!(begun >= 3, "{begun} commands while it took {taken}");
}

/// Whoever becomes `yendor exec` may have children already: those are no commands of the container, and nobody ends them.
fn children_of_who_becomes_exec_live(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = asleep(&yendor, "host");
    let mut command = yendor.program(Path::new("/bin/sh"));
    let script = "sleep 1000 & echo $!; exec \"$@\"";
    command.args(["-c", script, "sh"]).arg(yendor_tests::yendor_binary());
    command.args(["exec", &container, "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut session = Started::new(command.stdout(yendor.output("said")).stderr(yendor.output("errors")));
    let said = || fs::read_to_string(yendor.path("said")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let child: libc::pid_t = said().lines().next().and_then(|line| line.parse().ok()).expect("a pid");
    let image = yendor.path("image");
    let taken = yendor.call(&["checkpoint", "--json", &container, "-o", utf8(&image)]).exits(0).json();
    assert_eq!(taken["lost"].as_array().map(Vec::len), Some(1), "{taken}");
    assert!(session.ended(PATIENCE).is_some());
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(stat.contains(") S "), "{stat}");
    yendor_tests::kill(child);
}

/// Programs that set a timer anew each time it has rung, and do nothing else: whenever it rings, all of them go on.
fn what_rings_meanwhile_rings(flavour: Flavour) {
    const PROGRAM: &str = "
import ctypes, mmap, os, signal, struct, time
libc = ctypes.CDLL(None)
N = 24
seen = mmap.mmap(-1, 8 * N)
def counts(): return [struct.unpack_from('q', seen, 8 * i)[0] for i in range(N)]
def child(i):
    timer = ctypes.c_void_p()
    if i % 2: assert libc.timer_create(1, None, ctypes.byref(timer)) == 0
    def again():
        if i % 2: assert libc.timer_settime(timer, 0, struct.pack('4q', 0, 0, 0, 4_000_000 + i * 4_000_000), None) == 0
        else: signal.setitimer(signal.ITIMER_REAL, 0.004 + i * 0.004)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        again()
        signal.sigwait([signal.SIGALRM])
        struct.pack_into('q', seen, 8 * i, struct.unpack_from('q', seen, 8 * i)[0] + 1)
def look(*_):
    before = counts()
    time.sleep(1)
    print('standing still:', [i for i, (a, b) in enumerate(zip(before, counts())) if a == b])
    print('looked', flush=True)
signal.signal(signal.SIGUSR1, look)
for i in range(N):
    if os.fork() == 0: child(i)
time.sleep(0.2)
print('ready', flush=True)
while True: signal.pause()
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut container = python(&yendor, "ringing", PROGRAM);
    for generation in 0..8 {
        let image = yendor.path(&format!("image-{generation}"));
        yendor.checkpoint(&container, &image);
        container = yendor.fresh("ringing");
        yendor.restore(&image, &container);
        yendor.kill(&container, "USR1");
        yendor.wait_for_log(&container, "looked", PATIENCE);
        let said = yendor.logs(&container);
        assert!(said.contains("standing still: []"), "generation {generation}: {said}");
    }
}

/// The network that a container sees, and whether its loopback is up.
fn network(yendor: &Yendor, container: &str) -> (String, bool) {
    let look = "import os, socket; print(os.readlink('/proc/self/ns/net'))
try: s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9)); print('up')
except OSError: print('down')";
    let said = yendor.call(&["exec", container, "--", "python3", "-c", look]).exits(0).stdout;
    let (link, lo) = said.trim().split_once('\n').unwrap_or_else(|| panic!("{said}"));
    (link.to_owned(), lo == "up")
}

fn host_network() -> String {
    fs::read_link("/proc/self/ns/net").expect("a link").display().to_string()
}

#[track_caller]
fn has_network(yendor: &Yendor, image: &Path, options: &[&str], wanted: (bool, bool)) {
    let container = yendor.fresh("net");
    yendor.restore_with(image, &container, options).exits(0);
    let (link, up) = network(yendor, &container);
    assert_eq!((link == host_network(), up), wanted, "{options:?}: the host's, loopback up: {link}");
    yendor.call(&["rm", "-f", &container]).exits(0);
}

fn a_network_is_what_is_asked_for(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let image = yendor.path("image");
    yendor.checkpoint(&asleep(&yendor, "net"), &image);
    has_network(&yendor, &image, &[], (false, true));
    has_network(&yendor, &image, &["--net", "private"], (false, true));
    has_network(&yendor, &image, &["--net", "none"], (false, false));
    has_network(&yendor, &image, &["--net", "host"], (true, true));
}

fn a_tree_gets_the_network_it_had(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let image = yendor.path("image");
    let mut command = yendor.program(Path::new("/usr/bin/sleep"));
    command.arg("1000").stdout(yendor.output("output")).stderr(yendor.output("output"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    yendor.checkpoint_pid(started.pid(), &image);
    assert!(started.ended(PATIENCE).is_some());
    has_network(&yendor, &image, &[], (true, true));
    has_network(&yendor, &image, &["--net", "private"], (false, true));
    has_network(&yendor, &image, &["--net", "none"], (false, false));
}

/// A container whose loopback is down, at the second checkpoint, too: nobody asks for anything.
fn a_loopback_that_is_down_stays_down(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let [image, second] = [yendor.path("image"), yendor.path("second")];
    let container = yendor.fresh("alone");
    let options = ["-e", yendor.mark(), "--net", "none"];
    yendor.run_detached_with(&container, &options, &["/usr/bin/sleep", "1000"]).exits(0);
    assert!(!network(&yendor, &container).1);
    yendor.checkpoint(&container, &image);
    let again = yendor.fresh("again");
    yendor.restore(&image, &again);
    let (link, up) = network(&yendor, &again);
    assert!(!up && link != host_network(), "{link} {up}");
    yendor.checkpoint(&again, &second);
    has_network(&yendor, &second, &[], (false, false));
}

/// A counter in memory, one in the private layer, one in a tmpfs: wherever it is stopped, one that goes on finds all the same.
fn files_and_memory_are_of_one_instant(flavour: Flavour) {
    const PROGRAM: &str = "
import os, signal, sys
count, ended = 0, False
def end(*_):
    global ended
    ended = True
signal.signal(signal.SIGUSR1, end)
paths = ['/var/tmp/count', '/tmp/count']
def write():
    for path in paths:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.pwrite(fd, count.to_bytes(8, 'little'), 0)
        os.close(fd)
def read(path):
    with open(path, 'rb') as file: return int.from_bytes(file.read(), 'little')
write()
print('ready', flush=True)
while not ended:
    found = [read(path) for path in paths]
    if found != [count] * 2:
        print('WRONG', count, found, flush=True)
        sys.exit(1)
    count += 1
    write()
print('counted', count)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = python(&yendor, "counter", PROGRAM);
    let mut images = Vec::new();
    for number in 0..3 {
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
        let image = yendor.path(&format!("running-{number}"));
        yendor.call(&["checkpoint", &container, "--leave-running", "-o", utf8(&image)]).exits(0);
        images.push(image);
    }
    let ends_well = |name: &str| {
        yendor.kill(name, "USR1");
        assert_eq!(yendor.wait(name), 0, "{}", yendor.logs(name));
        assert!(yendor.logs(name).contains("counted"), "{}", yendor.logs(name));
    };
    for image in &images {
        let again = yendor.fresh("again");
        yendor.restore(image, &again);
        std::thread::sleep(Duration::from_millis(20));
        ends_well(&again);
        yendor.call(&["rm", &again]).exits(0);
    }
    ends_well(&container);
}

fn what_is_in_an_image_is_shown(flavour: Flavour) {
    const PROGRAM: &str = "
import ctypes, mmap, os, socket, time
held = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held[5000:5015] = b'planted-in-page'
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
file = open('/tmp/planted-file', 'w+b')
file.write(bytes(4096)); file.flush()
mapped = mmap.mmap(file.fileno(), 4096)
listening = socket.socket(socket.AF_UNIX); listening.bind('/tmp/planted-socket'); listening.listen()
ends = socket.socketpair(); ends[0].send(b'planted-in-queue')
print('at', os.getpid(), at, file.fileno(), listening.fileno(), flush=True)
print('ready', flush=True)
time.sleep(1000)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = python(&yendor, "planted", PROGRAM);
    let log = yendor.logs(&container);
    let line = log.lines().find_map(|line| line.strip_prefix("at ")).unwrap_or_else(|| panic!("{log}"));
    let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [pid, at, file, socket] = numbers[..] else { panic!("{line}") };
    let image = yendor.path("image");
    yendor.checkpoint(&container, &image);
    let inspect = |options: &[&str]| yendor.call(&[&["inspect", utf8(&image)], options].concat());
    let row = |section: &str, first: &[String], word: &str| {
        let said = inspect(&[section]).exits(0).stdout;
        let found = said.lines().any(|line| {
            line.split_whitespace().zip(first).filter(|(cell, wanted)| cell == *wanted).count() == first.len()
                && line.contains(word)
        });
        assert!(found, "{section}: no line of {first:?} with {word}:\n{said}");
    };
    row("--files", &[pid.to_string(), file.to_string()], "/tmp/planted-file");
    row("--files", &[pid.to_string(), socket.to_string()], "planted-socket");
    row("--memory", &[pid.to_string()], "/tmp/planted-file +0x0");
    let sockets = inspect(&["--sockets"]).exits(0).stdout;
    let listening = sockets.lines().find(|line| line.contains("planted-socket")).unwrap_or_else(|| panic!("{sockets}"));
    assert!(listening.contains(&format!("{pid}:{socket}")), "who holds it: {sockets}");
    assert!(!sockets.contains("planted-file"), "{sockets}");
    // The area that the address is in, with its page stored.
    let memory = inspect(&["--memory"]).exits(0).stdout;
    let number = |cell: Option<&str>| cell.and_then(|hex| u64::from_str_radix(hex.trim_start_matches("0x"), 16).ok());
    let area = memory.lines().find(|line| {
        let mut cells = line.split_whitespace().skip(1);
        let (start, end) = (number(cells.next()), number(cells.next()));
        start.zip(end).is_some_and(|(start, end)| start <= at && at < end)
    });
    assert!(area.is_some_and(|line| line.contains("rw-p") && line.contains("anonymous")), "{area:?}\n{memory}");

    let span = format!("{pid}:{at:#x}+65536");
    let said = inspect(&["--strings", &span]).exits(0).stdout;
    assert_eq!(said.trim(), format!("{:#x}  planted-in-page", at + 5000));
    let json = inspect(&["--json", "--strings", &span]).exits(0).json();
    assert_eq!(json["strings"][0]["address"], at + 5000);
    assert_eq!(json["strings"][0]["text"], "planted-in-page");
    inspect(&["--strings", &format!("{}:0x1000+1", pid + 1)]).exits(1);
    inspect(&["--strings", "nonsense"]).exits(2);

    has_keys(&json, "manifest signed_by records strings");
    has_keys(&json["manifest"], "created generation kind files");
    has_keys(&json["records"], "machine container processes files objects restrictions namespaces lost");
    assert!(
        json["manifest"]["created"].as_u64() > Some(1_700_000_000) && json["manifest"]["generation"] == 1,
        "{json}"
    );
}

/// All of these, and of the same object.
#[track_caller]
fn has_keys(value: &Value, keys: &str) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    for key in keys.split(' ') {
        assert!(object.contains_key(key), "no {key}: {:?}", object.keys().collect::<Vec<_>>());
    }
}

/// Lines of a plan as text; numbers that another kernel or build has otherwise are left out.
fn lines(outcome: &Outcome) -> Vec<String> {
    let json = outcome.json();
    let line = |one: &Value| {
        assert_eq!(one.as_object().map(serde_json::Map::len), Some(4), "{one}");
        let stops = one["why"].as_str().is_some_and(|why| why.contains("the restore would stop here"));
        assert_eq!(one["ok"], !stops, "{one}");
        let [step, what, why] = ["step", "what", "why"].map(|key| one[key].as_str().expect("a text"));
        format!("{step} | {} | {why}", steady(what))
    };
    json.as_array().expect("an array").iter().map(line).collect()
}

fn steady(what: &str) -> String {
    const VOLATILE: [&str; 4] = [" of the image, ", "clocks at ", " areas, ", ": {"];
    let is_volatile = VOLATILE.iter().any(|word| what.contains(word))
        || ["file ", "shared memory "].iter().any(|start| what.starts_with(start));
    if !is_volatile {
        return what.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    for word in what.split(' ') {
        let word = if word.bytes().any(|b| b.is_ascii_digit()) { "#" } else { word };
        kept.push(if word.contains('=') || word.contains('/') { "#" } else { word });
    }
    kept.dedup();
    kept.join(" ")
}

/// Which of two that fork at once gets the lower number is chance.
fn without_pids(line: &str) -> String {
    let mut pid = false;
    let word = |word: &str| {
        let masked = if pid { "#" } else { word };
        pid = matches!(word, "process" | "by" | "group");
        masked.to_owned()
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn a_plan_says_what_will_be_done(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("planned");
    yendor.run_detached(&container, &[utf8(&probe("tree"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("image");
    yendor.checkpoint(&container, &image);
    let plain = lines(&plan(&yendor, &image, &["--json"]).exits(0));
    let golden = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/golden/plan.txt")).expect("stored");
    let host = *yendor.flavour() == Flavour::Root;
    let wanted: Vec<String> = golden
        .lines()
        .map(|line| match line.strip_prefix("admit | ") {
            Some(_) if host => "admit | the caller's user namespace | asked for; only real root may".to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    let unnumbered = |lines: &[String]| lines.iter().map(|line| without_pids(line)).collect::<Vec<_>>();
    assert_eq!(unnumbered(&plain), unnumbered(&wanted), "it was, line by line:\n{}", plain.join("\n"));
    let volume = format!("more={}", yendor.path("tmp").display());
    let root = yendor.path("home").display().to_string();
    let changes: [(&[&str], &[&str], &[&str]); 8] = [
        (
            &["--net", "host"],
            &["contain | network: a new one, loopback up | never from the image"],
            &["contain | network: the caller's | the image's tree lived in it, or asked for"],
        ),
        (
            &["--net", "none"],
            &["contain | network: a new one, loopback up | never from the image"],
            &["contain | network: a new one, nothing up | asked for"],
        ),
        (
            &["--rootfs", &root],
            &["contain | root: the host's, read-only, below a private layer | from the caller"],
            &[&format!("contain | root: {root} | from the caller")],
        ),
        (
            &["--keep-lsm"],
            &["confine | other labels: the caller's own | a task gets what the caller's tasks get"],
            &[
                "confine | other labels: those of the image | asked for; if modules and policy are the same, and host and kernel permit each",
            ],
        ),
        (
            &["--volume", &(volume.clone() + ":/mnt")],
            &[],
            &[&format!("contain | volume more = {} | given by the caller", yendor.path("tmp").display())],
        ),
        (
            &["--volume", &volume],
            &[],
            &[
                &format!("contain | volume more = {} | given by the caller", yendor.path("tmp").display()),
                &format!(
                    "load | the image has no volume more: it has none; say where it belongs: --volume {volume}:PATH | the restore would stop here"
                ),
            ],
        ),
        (
            &["-d", "--pidfile", "p", "--lazy", "--checkpoint-every", "1h"],
            &[],
            &[
                "load | memory comes when it is touched, and all of it soon | asked for",
                "thaw | the root task's pid is written into p | asked for",
                "thaw | checkpoints are taken again and again from then on | asked for",
                "thaw | the command returns | asked for",
            ],
        ),
        (
            &["-d", "--count", "2", "--notify", "USR1", "--on-resume", "true"],
            &[],
            &["thaw | 2 containers | asked for", "thaw | the command returns | asked for"],
        ),
    ];
    for (options, gone, new) in changes {
        let code = i32::from(new.iter().any(|line| line.ends_with("would stop here")));
        let said = lines(&plan(&yendor, &image, &[options, &["--json"]].concat()).exits(code));
        let without = |all: &[String], others: &[String]| -> Vec<String> {
            all.iter().filter(|line| !others.contains(line)).cloned().collect()
        };
        assert_eq!(without(&plain, &said), gone, "{options:?} takes away");
        assert_eq!(without(&said, &plain), new, "{options:?} adds");
    }
    let table = plan(&yendor, &image, &[]).exits(0).stdout;
    assert!(table.lines().next().is_some_and(|head| head.split_whitespace().eq(["STEP", "WHAT", "WHY"])), "{table}");
    assert_eq!(table.lines().count(), plain.len() + 1, "{table}");
    assert!(yendor.tasks_left().is_empty(), "a plan starts something");
}

fn zeros_are_not_stored(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "
import mmap, time
held = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
shared = mmap.mmap(-1, 16 << 20)
for at in range(0, 64 << 20, 1 << 20): held[at:at + (1 << 20)] = bytes(1 << 20)
for at in range(0, 16 << 20, 1 << 20): shared[at:at + (1 << 20)] = bytes(1 << 20)
held[12345] = 7
resident = int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])
print('ready' if resident > 80 << 10 else resident, flush=True)
time.sleep(1000)
";
    let container = python(&yendor, "zeros", program);
    for (name, more) in
        [("running", &["--leave-running"][..]), ("rounds", &["--leave-running", "--rounds", "2"]), ("stopped", &[])]
    {
        let image = yendor.path(name);
        let words = [&["checkpoint", "--json", &container, "-o", utf8(&image)], more].concat();
        let taken = yendor.call(&words).exits(0).json();
        let stored: u64 = fs::read_dir(&image)
            .expect("an image")
            .flatten()
            .map(|file| file.metadata().expect("a file of an image").len())
            .sum();
        assert!(taken["bytes"].as_u64().is_some_and(|bytes| bytes < 16 << 20), "{taken}");
        assert!(stored < 16 << 20, "{name}: {stored} bytes");
    }
}

/// The keeper is asked before the copy begins, and made to answer late: no copy needs to be large.
fn long_work_is_shown_at_a_terminal_only(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = asleep(&yendor, "slow");
    let state = fs::read(yendor.path("state/run").join(&container).join("state.json")).expect("state");
    let state: Value = serde_json::from_slice(&state).expect("JSON");
    let keeper = state["keeper"].as_i64().expect("a pid").to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args(["-s", name, &keeper]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{name} for {keeper}");
    };
    let late = |start: &mut dyn FnMut(Command) -> Started, image: &str, more: &[&str]| {
        let image = yendor.path(image);
        let words = [&["checkpoint", "--leave-running", &container, "-o", utf8(&image)], more].concat();
        signal("STOP");
        let mut command = yendor.command(&words);
        command.env("TERM", "xterm");
        let mut started = start(command);
        // It has begun to count its seconds before it asks.
        let fds = format!("/proc/{}/fd", started.pid());
        let asks = || {
            let all = fs::read_dir(&fds).into_iter().flatten().flatten();
            all.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| link.to_string_lossy().starts_with("socket:"))
        };
        assert!(wait_until(PATIENCE, asks), "the keeper is not asked");
        std::thread::sleep(Duration::from_millis(1_100));
        signal("CONT");
        assert_eq!(started.ended(PATIENCE).map(Started::code), Some(0));
    };
    let mut terminal = Terminal::new(24, 100);
    late(&mut |mut command| terminal.start(&mut command), "one", &[]);
    terminal.wait_for("copied: ", PATIENCE);
    let mut quiet = Terminal::new(24, 100);
    late(&mut |mut command| quiet.start(&mut command), "two", &["-q"]);
    assert!(!quiet.text().contains("copied: "), "{}", quiet.text());
    let file = || yendor.output("errors");
    late(&mut |mut command| Started::new(command.stdout(Stdio::null()).stderr(file())), "three", &[]);
    let said = fs::read_to_string(yendor.path("errors")).expect("a file of our own");
    assert!(said.contains("freeze") && !said.contains("copied: ") && !said.contains(['\r', '\x1b']), "{said:?}");
}

fn standard_input_is_open_in_the_foreground(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    for options in [&["-i"][..], &[]] {
        let words = [&["run", "--rm"], yendor.flavour().options(), options, &["--", "cat"]].concat();
        let mut command = yendor.command(&words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
        use std::io::Write as _;
        child.stdin.take().expect("a pipe").write_all(b"through").expect("write");
        assert_eq!(child.wait_with_output().expect("wait").stdout, b"through", "{options:?}");
    }
    // Nobody is there to type.
    let refused = yendor.call(&[&["run", "-d", "-i"], yendor.flavour().options(), &["--", "cat"]].concat()).exits(3);
    assert!(refused.stderr.contains("--interactive with --detach"), "{}", refused.stderr);
    assert!(yendor.tasks_left().is_empty());
}

#[test]
fn the_hosts_user_namespace_is_for_real_root() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let refused = yendor.call(&["run", "--rm", "--userns", "host", "--", "true"]).exits(5);
    assert!(refused.stderr.contains("--userns host"), "{}", refused.stderr);
    let image = yendor.path("image");
    yendor.checkpoint(&asleep(&yendor, "mine"), &image);
    let name = yendor.fresh("host");
    let refused = yendor.restore_with(&image, &name, &["--userns", "host"]).exits(5);
    assert!(refused.stderr.contains("--userns host"), "{}", refused.stderr);
    assert!(yendor.tasks_left().is_empty());
}

/// A page for each verb that the help names, and what each of three shells reads.
#[test]
fn pages_and_completions_are_made() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let place = yendor.path("made");
    yendor.call(&["generate", utf8(&place)]).exits(0);
    let help = yendor.call(&["--help"]).exits(0).stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<&str> = listed
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() > 15 && verbs.contains(&"checkpoint"), "{verbs:?}");
    let read = |path: PathBuf| fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    for verb in &verbs {
        let page = read(place.join("man").join(format!("yendor-{verb}.1")));
        assert!(
            page.contains(".SH NAME") && page.contains(".SH SYNOPSIS") && page.contains("Example"),
            "{verb}: {page}"
        );
    }
    assert!(read(place.join("man/yendor.1")).contains(".TH YENDOR 1"));
    assert_eq!(fs::read_dir(place.join("man")).expect("pages").count(), verbs.len() + 1);
    for name in ["yendor.bash", "_yendor", "yendor.fish"] {
        let completions = read(place.join("completions").join(name));
        let missing: Vec<_> = verbs.iter().filter(|verb| !completions.contains(**verb)).collect();
        assert!(missing.is_empty() && completions.contains("leave-running"), "{name}: {missing:?}");
    }
    let parsed = Command::new("bash").arg("-n").arg(place.join("completions/yendor.bash")).status();
    assert!(parsed.is_ok_and(|status| status.success()));
}

/// A cgroup that somebody has given to an account without rights.
#[test]
fn limits_hold_where_a_cgroup_is_delegated() {
    let (Some(_), Some(yendor)) = (Yendor::new(Flavour::Root), Yendor::new(Flavour::user())) else { return };
    let Some(delegated) = Delegated::make(&yendor) else {
        return skipped("no cgroup with a limit of memory can be made here");
    };
    let script = format!("echo $$ > {}; exec \"$@\"", delegated.0.join("cgroup.procs").display());
    let run = |words: &[&str]| yendor.to_its_end(yendor.sheltered(&script, words), words.join(" "));
    let name = yendor.fresh("delegated");
    yendor.will_remove(&name);
    run(&["run", "-d", "--name", &name, "-e", yendor.mark(), "--memory", "48M", "--", "sleep", "1000"]).exits(0);
    assert!(!cgroups(&name).is_empty(), "no cgroup of the container's is to be seen");
    let dd = ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"];
    yendor.call(&[&["exec", &name, "--"], &dd[..]].concat()).exits(137);
    yendor.call(&["rm", "-f", &name]).exits(0);
    assert!(wait_until(PATIENCE, || cgroups(&name).is_empty()), "{:?}", cgroups(&name));
    run(&[&["run", "--rm", "--memory", "48M", "--"], &dd[..]].concat()).exits(137);
    run(&[&["run", "--rm", "--"], &dd[..]].concat()).exits(0);
    let left: Vec<_> =
        fs::read_dir(&delegated.0).expect("ours").flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A cgroup below the test's own, made by root for the account, and removed.
struct Delegated(PathBuf);

impl Delegated {
    fn make(yendor: &Yendor) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let v1 = own.lines().find_map(|line| line.split_once(":memory:"));
        let (top, inside) = match v1 {
            Some((_, inside)) => ("/sys/fs/cgroup/memory", inside),
            None => ("/sys/fs/cgroup", own.lines().find_map(|line| line.strip_prefix("0::"))?),
        };
        let path = Path::new(top).join(inside.trim_start_matches('/')).join(format!("test{}", std::process::id()));
        fs::DirBuilder::new().mode(0o755).create(&path).ok()?;
        let made = Self(path);
        let offered = fs::read_to_string(made.0.join("cgroup.controllers")).unwrap_or_default();
        if v1.is_none() && !offered.split_whitespace().any(|controller| controller == "memory") {
            return None;
        }
        yendor.owns(&made.0);
        for file in ["cgroup.procs", "cgroup.subtree_control"] {
            if made.0.join(file).exists() {
                yendor.owns(&made.0.join(file));
            }
        }
        let mode = fs::metadata(&made.0).expect("ours").permissions().mode() & 0o777;
        (mode == 0o755).then_some(made)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // The last of its tasks may just be going.
        wait_until(Duration::from_secs(10), || fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}
