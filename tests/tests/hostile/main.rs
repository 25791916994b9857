//! Images that lie, restored by an account without rights: each is refused as damaged (4) or denied (5), or what runs then
//! has nothing that `unshare -Ur` would not give its caller. Whatever happens, nothing outside the container differs.
#![allow(unsafe_code)]

mod claims;
mod mutated;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use yendor_tests::{Account, Bait, Census, Flavour, Forge, Machine, Orphans, Outcome, Yendor};

use claims::{CLAIMS, May, On};

const PROGRAM: &str = "echo file > /tmp/f; echo ghost > /tmp/g; exec 5< /etc/passwd 6< /tmp/f 7<> /tmp/g 8> /dev/null; \
                       rm /tmp/g; sleep 1000 & (sleep 1000; :) & echo ready; wait";

/// Seconds that dying takes at most on a busy machine.
const DYING: std::time::Duration = std::time::Duration::from_secs(20);

/// What is said of a process of ours that did not end by itself: the keeper, the loader.
const CRASHES: [&str; 4] = ["panicked", "keeper died", "its reader could not go on", "then the image is hostile"];

/// A place to restore in, a good image, and what must stay as it is.
struct Field {
    yendor: Yendor,
    good: Forge,
    bait: Bait,
    orphans: Orphans,
}

impl Field {
    fn new() -> Field {
        Field::of(PROGRAM, 1)
    }

    /// With the image of a script that makes somebody say `ready` so many times.
    fn of(script: &str, ready: usize) -> Field {
        let yendor = Yendor::new(Flavour::user()).expect("any account will do");
        let name = yendor.fresh("good");
        yendor.run_detached(&name, &["sh", "-c", script]);
        let is_ready = || yendor.logs(&name).lines().filter(|line| *line == "ready").count() >= ready;
        assert!(yendor_tests::wait_until(yendor_tests::PATIENCE, is_ready), "{}", yendor.logs(&name));
        let image = yendor.path("good");
        yendor.checkpoint(&name, &image);
        yendor.call(&["rm", "--force", &name]).exits(0);
        let (good, bait) = (Forge::open(&image), Bait::new(&yendor));
        Field { yendor, good, bait, orphans: Orphans::adopt() }
    }

    fn census(&self, image: &Path) -> Census {
        let home = self.yendor.path("home");
        Census::of(&[self.bait.path(), image, &home, &self.yendor.path("data"), &self.yendor.path("state/images")])
    }

    /// Restores an image; what is wrong with what happened, or nothing.
    fn restore(&self, what: &str, image: &Path, may: &dyn Fn(i32, &str) -> bool) -> Vec<String> {
        self.restored(what, image, &[], may).1
    }

    /// The same, and what the restore said.
    fn restored(
        &self,
        what: &str,
        image: &Path,
        options: &[&str],
        may: &dyn Fn(i32, &str) -> bool,
    ) -> (Outcome, Vec<String>) {
        let before = self.census(image);
        let name = self.yendor.fresh("hostile");
        let outcome = self.yendor.restore_with(image, &name, options);
        let mut wrong = Vec::new();
        let said = outcome.stderr.trim().to_owned();
        if !may(outcome.code, &said) {
            wrong.push(format!("exit code {}: {said}", outcome.code));
        }
        if CRASHES.iter().any(|words| said.contains(words)) || said.contains('\u{1b}') {
            wrong.push(format!("not an answer: {said}"));
        }
        if outcome.code == 0 {
            wrong.extend(self.more_than_unshare(&name));
            let log = self.yendor.call(&["logs", &name]).stdout;
            // Its tasks write there too, and those of a changed image may well panic: in code of their own.
            if log.contains("panicked at crates/") {
                wrong.push(format!("its keeper panicked: {log}"));
            }
        }
        self.yendor.call(&["rm", "--force", &name]);
        let left = self.yendor.tasks_left();
        if !left.is_empty() {
            wrong.push(format!("tasks are left: {left:?}"));
        }
        // Those that the image has given another environment, too.
        let left = self.orphans.left_or_lost(&name, DYING);
        if !left.is_empty() {
            wrong.push(format!("processes are left: {left:?}"));
        }
        let directory = self.yendor.path("state/run").join(&name);
        if directory.exists() {
            wrong.push("its directory is left".into());
        }
        wrong.extend(before.differs(&self.census(image), &self.bait.path().to_string_lossy()));
        (outcome, wrong.into_iter().map(|w| format!("{what}: {w}")).collect())
    }

    /// What the tasks of a container have that a new user namespace of the caller would not give them.
    fn more_than_unshare(&self, name: &str) -> Vec<String> {
        let list = self.yendor.call(&["ps", "-a", "--json"]).json();
        let found = list.as_array().into_iter().flatten().find(|c| c["name"] == name);
        let Some(container) = found else { return vec![format!("no container {name} in ps")] };
        if container["state"] == "lost" {
            return vec![format!("its keeper died: {container}")];
        }
        // One that has ended already has nothing.
        let Some(pid) = container["pid"].as_i64() else { return Vec::new() };
        let link = |pid: &str, ns: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}"));
        let Ok(user) = link(&pid.to_string(), "user") else { return Vec::new() };
        let mut wrong = Vec::new();
        // The keeper has what the container's root may have at most.
        let state = fs::read(self.yendor.path("state/run").join(name).join("state.json")).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap_or_default();
        let ceiling = capabilities(&state["keeper"].to_string(), "CapBnd");
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let task = entry.file_name().to_string_lossy().into_owned();
            if task.parse::<u32>().is_err() || link(&task, "user").ok().as_ref() != Some(&user) {
                continue;
            }
            // The keeper is in the container's user namespace, too.
            let is_keeper = link(&task, "pid").ok() == link("self", "pid").ok();
            let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
            let ids = status.lines().filter_map(|l| l.strip_prefix("Uid:").or_else(|| l.strip_prefix("Gid:")));
            for id in ids.flat_map(str::split_whitespace).filter_map(|id| id.parse::<u32>().ok()) {
                if !self.yendor.account().may_be(id) {
                    wrong.push(format!("task {task} has the id {id}"));
                }
            }
            let groups = status.lines().filter_map(|l| l.strip_prefix("Groups:")).flat_map(str::split_whitespace);
            for group in groups.filter_map(|id| id.parse::<u32>().ok()) {
                if !self.yendor.account().may_be(group) {
                    wrong.push(format!("task {task} is in the group {group}"));
                }
            }
            let all = ceiling;
            for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                let more = capabilities(&task, name) & !all;
                if more != 0 {
                    wrong.push(format!("task {task} has the capabilities {more:x} in {name}"));
                }
            }
            for ((name, theirs), (_, ours)) in hard_limits(&task).into_iter().zip(hard_limits("self")) {
                if theirs > ours {
                    wrong.push(format!("task {task} has the hard limit {name} {theirs}, and we {ours}"));
                }
            }
            if !is_keeper {
                let init = state["init"].to_string();
                wrong.extend(outside(&task, &init, &self.yendor.path("state/run").join(name).join("log")));
            }
            // The keeper alone shares more than the user namespace with the outside.
            for ns in ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"] {
                let own = link(&task, ns).ok() == link("self", ns).ok();
                if own && !(is_keeper && ns == "pid") {
                    wrong.push(format!("task {task} is in the host's {ns} namespace"));
                }
            }
        }
        wrong
    }
}

/// One of a task's sets.
fn capabilities(task: &str, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

/// What a task has open, or is in, that is not on one of its mounts, but for the log that its output goes to.
fn outside(task: &str, init: &str, log: &Path) -> Vec<String> {
    // Who has another root is told of the mounts below it only.
    let mounts = [task, init].map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default());
    if mounts[1].is_empty() {
        // With pid 1 all have ended.
        return Vec::new();
    }
    let own: BTreeSet<&str> = mounts.iter().flat_map(|all| all.lines()).filter_map(|l| l.split(' ').next()).collect();
    let is_own = |info: &str| info.lines().any(|l| l.strip_prefix("mnt_id:").is_some_and(|id| own.contains(id.trim())));
    // Queues are opened in a mount that no list has; their file system is the one that the container has mounted.
    let queues: BTreeSet<&str> = mounts
        .iter()
        .flat_map(|all| all.lines())
        .filter_map(|l| l.contains(" - mqueue ").then(|| l.split(' ').nth(2)).flatten())
        .collect();
    let is_queue = |path: PathBuf| {
        let device = fs::metadata(path).map_or(0, |found| found.dev());
        queues.contains(format!("{}:{}", libc::major(device), libc::minor(device)).as_str())
    };
    let mut wrong = Vec::new();
    for name in ["cwd", "root"] {
        let mut options = fs::OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_PATH).open(format!("/proc/{task}/{name}"));
        let Ok(opened) = opened else { continue };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", opened.as_raw_fd())).expect("our own");
        if !is_own(&info) {
            wrong.push(format!(
                "task {task} has its {name} outside: {:?}",
                fs::read_link(format!("/proc/{task}/{name}"))
            ));
        }
    }
    for entry in fs::read_dir(format!("/proc/{task}/fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let path = fs::read_link(entry.path()).unwrap_or_default();
        let info = fs::read_to_string(format!("/proc/{task}/fdinfo/{number}")).unwrap_or_default();
        if path.is_absolute()
            && !info.is_empty()
            && !is_own(&info)
            && path != log
            && !path.to_string_lossy().starts_with("/memfd:")
            && !is_queue(entry.path())
        {
            wrong.push(format!("task {task} has descriptor {number} outside: {path:?}"));
        }
    }
    wrong
}

/// Hard limits of a task, in the kernel's order (its columns have fixed widths).
fn hard_limits(task: &str) -> Vec<(String, u64)> {
    let text = fs::read_to_string(format!("/proc/{task}/limits")).unwrap_or_default();
    let of = |line: &str| {
        let hard = line.get(47..)?.split_whitespace().next()?;
        Some((line.get(..26)?.trim().to_owned(), if hard == "unlimited" { u64::MAX } else { hard.parse().ok()? }))
    };
    text.lines().skip(1).filter_map(of).collect()
}

#[test]
fn hard_limits_are_read() {
    let all = hard_limits("self");
    assert!(all.len() == 16 && all.iter().any(|(name, most)| name == "Max open files" && *most > 0), "{all:?}");
}

#[track_caller]
fn nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
}

fn root() -> bool {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        yendor_tests::skipped("a census of what other accounts own");
    }
    root
}

#[test]
fn the_good_image_is_good() {
    if !root() {
        return;
    }
    let field = Field::new();
    let image = field.yendor.path("again");
    field.good.write(&image);
    field.yendor.give(&image);
    nothing(&field.restore("the good image", &image, &|code, _| code == 0));
}

/// A root file system with a link to such a place for a working directory is no way out, either (runc has had that).
#[test]
fn the_keepers_descriptors_are_no_way_out() {
    if !root() {
        return;
    }
    let field = Field::new();
    let mine = field.bait.path().join("mine");
    let before = fs::read(&mine).expect("bait");
    let script = format!("echo owned > {}", mine.strip_prefix("/").expect("absolute").display());
    // Those by which it was one.
    for number in [5, 6, 10, 11, 12, 14, 15, 19, 24, 25, 26] {
        let directory = format!("/proc/self/fd/{number}/../../../../../../../..");
        let outcome = field.yendor.call(&["run", "--rm", "-w", &directory, "--", "sh", "-c", &script]);
        assert!(
            outcome.code == 1 && outcome.stderr.contains("no such directory in the container"),
            "{directory}: {outcome:?}"
        );
        assert_eq!(fs::read(&mine).expect("bait"), before, "{directory}");
    }
}

/// What only looks at an image prints it, too.
#[test]
fn words_of_an_image_steer_no_terminal() {
    if !root() {
        return;
    }
    let field = Field::new();
    let mut forge = field.good.clone();
    let words = || ciborium::Value::Text("\u{1b}[2J\u{9b}2J\u{7}owned".into());
    forge.list("lost").push(ciborium::Value::Array(vec![words(), words()]));
    let name = ciborium::Value::Bytes(b"/tmp/\x1b[2Jowned".to_vec());
    forge.set("processes/0/state/alive/directory/cwd", name);
    let image = field.yendor.path("words");
    forge.write(&image);
    field.yendor.give(&image);
    let image = image.to_str().expect("UTF-8");
    let mut seen = 0;
    for asked in [&["plan"][..], &["inspect"], &["inspect", "--tree"], &["inspect", "--lost"], &["inspect", "--files"]]
    {
        let said = field.yendor.call(&[asked, &[image]].concat()).exits(0);
        let all = said.stdout + &said.stderr;
        let steers = |c: char| c.is_control() && c != '\n';
        assert!(!all.contains(steers), "{asked:?}: {all:?}");
        seen += usize::from(all.contains("owned"));
    }
    assert!(seen >= 2, "nobody has printed them");
    // What an image is called is its maker's word, too.
    let called = field.yendor.path("good\x1b[2Jowned");
    std::os::unix::fs::symlink(field.yendor.path("good"), &called).expect("a link");
    let (name, called) = (field.yendor.fresh("words"), called.to_str().expect("UTF-8"));
    field.yendor.call(&["restore", "-d", "--name", &name, called]).exits(0);
    for asked in [&["ps"][..], &["inspect", called], &["plan", called]] {
        let said = field.yendor.call(asked).exits(0);
        let all = said.stdout + &said.stderr;
        assert!(!all.contains(|c: char| c.is_control() && c != '\n'), "{asked:?}: {all:?}");
        assert!(asked != ["ps"] || all.contains("owned"), "{all:?}");
    }
    field.yendor.call(&["rm", "--force", &name]).exits(0);
}

/// Connections that nobody is said to have made, and what was sent by them, must not lead to the keeper: by its pidfd root of the container
/// could take all that it has open.
#[test]
fn no_socket_leads_to_the_keeper() {
    const SCRIPT: &str = r"
import os, signal, socket, struct, time
a, b = socket.socketpair()
l = socket.socket(socket.AF_UNIX)
l.bind('\0owner')
l.listen()
c = socket.socket(socket.AF_UNIX)
c.connect('\0owner')
c.send(b'x')
def tell(what, fd):
    pid = [line.split()[1] for line in open('/proc/self/fdinfo/%d' % fd) if line.startswith('Pid:')]
    print(what, *pid, flush=True)
def peer(s):
    try: tell('peer', struct.unpack('i', s.getsockopt(1, 77, 4))[0])
    except OSError as error: print('peer', error.strerror, flush=True)
def ask(*_):
    s = l.accept()[0]
    s.setsockopt(1, 76, 1)
    for each in (a, b, c, s): peer(each)
    for _, kind, value in s.recvmsg(9, socket.CMSG_SPACE(4))[1]: tell('sender', struct.unpack('i', value[:4])[0])
    print('asked', flush=True)
signal.signal(signal.SIGUSR1, ask)
print('ready', flush=True)
while True: time.sleep(0.05)
";
    fn nobody(value: &mut ciborium::Value) {
        match value {
            ciborium::Value::Array(list) => list.iter_mut().for_each(nobody),
            ciborium::Value::Map(map) => {
                for (name, one) in map {
                    if matches!(name.as_text(), Some("peer" | "who")) {
                        *one = ciborium::Value::Null
                    } else {
                        nobody(one)
                    }
                }
            }
            _ => {}
        }
    }
    for flavour in [Flavour::RootUserns, Flavour::user()] {
        let Some(yendor) = Yendor::new(flavour) else { continue };
        let name = yendor.fresh("owner");
        yendor.run_detached(&name, &["python3", "-c", SCRIPT]);
        yendor.wait_for_log(&name, "ready", yendor_tests::PATIENCE);
        let (image, forged) = (yendor.path("image"), yendor.path("forged"));
        yendor.checkpoint(&name, &image);
        let mut forge = Forge::open(&image);
        let before = forge.clone();
        nobody(forge.at("files"));
        assert!(forge != before);
        forge.write(&forged);
        yendor.give(&forged);
        for image in [image, forged] {
            let again = yendor.fresh("again");
            yendor.restore(&image, &again);
            yendor.kill(&again, "USR1");
            yendor.wait_for_log(&again, "asked", yendor_tests::PATIENCE);
            let log = yendor.logs(&again);
            let outside = |line: &str| matches!(line, "peer 0" | "sender 0");
            assert!(log.lines().filter(|line| line.starts_with("peer")).count() == 4, "{log}");
            assert!(!log.lines().any(outside), "a process outside of the container: {log}");
            yendor.call(&["rm", "-f", &again]).exits(0);
        }
    }
}

#[test]
fn no_claim_of_an_image_is_believed() {
    if !root() {
        return;
    }
    assert!(CLAIMS.len() >= 60, "{}", CLAIMS.len());
    let names: BTreeSet<&str> = CLAIMS.iter().map(|c| c.name).collect();
    assert_eq!(names.len(), CLAIMS.len(), "a name is used twice");
    let machine = Machine::now();
    // The kernel makes us wait more than work.
    const WORKERS: usize = 3;
    let mut wrong = Vec::new();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || believed(worker, WORKERS))).collect();
        for worker in started {
            wrong.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    wrong.extend(machine.differs(&Machine::now()));
    nothing(&wrong);
}

/// Restores the images of one worker of several; what is wrong with what happened.
fn believed(worker: usize, workers: usize) -> Vec<String> {
    let field = Field::new();
    let mut wrong = Vec::new();
    for (index, claim) in CLAIMS.iter().enumerate().skip(worker).step_by(workers) {
        let image: PathBuf = field.yendor.path(&format!("claim-{index}"));
        let bait = field.bait.path();
        match claim.on {
            On::Records(_) | On::Kept(_) => {
                let mut forge = field.good.clone();
                match claim.on {
                    On::Records(change) => change(&mut forge, bait),
                    On::Kept(change) => change(&mut forge),
                    _ => {}
                }
                assert_ne!(forge, field.good, "{} changes nothing", claim.name);
                forge.write(&image);
            }
            On::Bytes(bytes) => field.good.write_with(&image, &bytes(&field.good)),
            On::Files(change) => {
                field.good.write(&image);
                change(&image, bait, &field.good);
            }
        }
        field.yendor.give(&image);
        let may = |code: i32, said: &str| match claim.may {
            May::Damaged => code == 4,
            // Of which record it is, or what it is about.
            May::Denied => {
                let first = said.lines().next().unwrap_or_default();
                code == 5
                    && ["task ", " file ", "namespace ", "/", "process tree"].iter().any(|word| first.contains(word))
            }
            May::Named(words) => code == 5 && said.contains(words),
            May::Run => code == 0,
        };
        let options: &[&str] = if matches!(claim.on, On::Kept(_)) { &["--keep-lsm"] } else { &[] };
        let (outcome, more) = field.restored(claim.name, &image, options, &may);
        wrong.extend(more);
        // Who reads no further has not seen what it claims.
        if matches!(claim.on, On::Records(_) | On::Kept(_)) && outcome.stderr.contains("not in the spelling") {
            wrong.push(format!("{}: fields are missing, or not in their order: {}", claim.name, outcome.stderr.trim()));
        }
        fs::remove_dir_all(&image).expect("our own");
    }
    wrong
}

#[test]
fn the_account_is_what_it_seems() {
    let user = Account::of(&Flavour::user()).expect("any account will do");
    assert!(!root() || !user.may_be(0));
}
