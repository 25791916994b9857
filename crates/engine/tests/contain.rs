//! A new container from both sides: made as root and as an unprivileged user, then looked at by its own first task.
//!
//! One program in five roles, by its first argument: none (the tests), `front` (as the user), `usher` (by admit), `keeper` (which that
//! becomes), `inside` (pid 1 of the container).

use std::fmt::Debug;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};
use yendor_engine::admit::{KEEPER, OUTER, admit};
use yendor_engine::contain::{self, Given};
use yendor_engine::front::{Spec, Startup, Stdio as Standard, outer_main};
use yendor_engine::keeper::{Inherited, inherit};
use yendor_engine::request::{Net, Request, Root, Userns, Volume};

const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let word = |n: usize| arguments.get(n).map(String::as_str);
    match word(1) {
        Some(OUTER) => outer_main(),
        Some(KEEPER) => keeper(),
        Some("front") => front(word(2).expect("case"), Path::new(word(3).expect("directory"))),
        Some("inside") => inside(word(2).expect("case"), word(3).expect("host facts")),
        _ => tests(),
    }
}

// ---- the tests

const CASES: [&str; 6] = ["layered", "host-net", "no-net", "directory", "caller", "limits"];

fn tests() -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    // With subordinate ids (the project's test user), and without any.
    let named = user("yendor-test");
    let mut users: Vec<(&str, Option<u32>)> = vec![(if root { "root" } else { "caller" }, None)];
    if root {
        users.extend(named.map(|uid| ("subordinate ids", Some(uid))));
        users.push(("one id", Some(64321)));
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, uid) in users {
        for case in CASES.iter().chain(root.then_some(&"host-userns").filter(|_| uid.is_none())) {
            let begin = Instant::now();
            let ok = run(case, uid);
            println!("test {name}: {case} ... {} ({:?})", if ok { "ok" } else { "FAILED" }, begin.elapsed());
            if ok { passed += 1 } else { failed += 1 }
        }
    }
    println!("{passed} passed, {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

fn user(name: &str) -> Option<u32> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":x:")?.split(':').next()?.parse().ok())
}

/// Runs a case as a user, in a directory that everybody reaches; the host must be the same afterwards.
fn run(case: &str, uid: Option<u32>) -> bool {
    let directory = std::env::temp_dir().join(format!("yendor-contain-{}", std::process::id()));
    fs::create_dir(&directory).expect("directory");
    let program = directory.join("contain");
    fs::copy("/proc/self/exe", &program).expect("copy of the program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    for name in ["state", "volume", "read-only", "tree"] {
        fs::create_dir(directory.join(name)).expect("directory");
        std::os::unix::fs::chown(directory.join(name), uid, uid).expect("chown");
    }
    fs::write(directory.join("read-only/file"), "host").expect("file");
    let before = (host_names("/"), host_names("/etc"), host_names("/var/lib"));
    let mut command = Command::new(&program);
    command.arg("front").arg(case).arg(&directory).env("SECRET", "of the caller").current_dir("/");
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let mut child = command.spawn().expect("front");
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().expect("wait") {
            Some(status) => break status.success(),
            None if begin.elapsed() > LIMIT => {
                eprintln!("  {case}: time limit");
                child.kill().expect("kill");
                child.wait().expect("wait");
                break false;
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let same = before == (host_names("/"), host_names("/etc"), host_names("/var/lib"));
    if !same {
        eprintln!("  {case}: the host has changed");
    }
    if fs::remove_dir_all(&directory).is_err() {
        // A plain user's subordinate ids own some of it.
        let mut remove = Command::new("unshare");
        remove.args(["--map-root-user", "--map-auto", "rm", "-rf"]).arg(&directory);
        assert!(remove.status().expect("unshare").success(), "{} stays", directory.display());
    }
    status && same
}

fn host_names(directory: &str) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory).expect("directory").map(|e| e.expect("entry").path()).collect();
    names.sort();
    names
}

// ---- the front

fn request(case: &str, directory: &Path) -> Request {
    let volume = |name: &str, inside: Option<&str>, read_only| Volume {
        name: name.into(),
        host: directory.join(name),
        inside: inside.map(PathBuf::from),
        read_only,
    };
    let mut volumes = Vec::new();
    if case != "caller" {
        volumes.push(volume("volume", Some("/data/deep/volume"), false));
        volumes.push(volume("read-only", None, true));
        volumes.push(volume("contain", Some("/contain"), true));
    }
    if case == "directory" {
        for name in ["usr", "etc"] {
            let host = PathBuf::from("/").join(name);
            volumes.push(Volume { name: name.into(), inside: Some(host.clone()), host, read_only: true });
        }
    }
    Request {
        name: "tested".into(),
        root: match case {
            "directory" => Root::Dir(directory.join("tree")),
            "caller" => Root::Caller,
            _ => Root::Layered,
        },
        volumes,
        net: match case {
            "host-net" => Net::Host,
            "no-net" => Net::None,
            _ => Net::Private,
        },
        userns: if case == "host-userns" { Userns::Host } else { Userns::Auto },
        hostname: (case == "layered").then(|| "inner".into()),
        memory: (case == "limits").then_some(64 << 20),
        pids: (case == "limits").then_some(20),
        cap_drop: Vec::new(),
        policy: yendor_engine::request::Policy::default(),
        layout: None,
        any_cpu: false,
    }
}

fn front(case: &str, directory: &Path) -> ExitCode {
    if case == "directory" {
        // A hostile tree: its /dev and /data lead out of it.
        std::os::unix::fs::symlink("/outside", directory.join("tree/dev")).expect("symlink");
        std::os::unix::fs::symlink("../../../..", directory.join("tree/data")).expect("symlink");
        fs::create_dir(directory.join("tree/outside")).expect("directory");
        for (to, name) in [("usr/lib", "lib"), ("usr/lib64", "lib64"), ("usr/bin", "bin")] {
            std::os::unix::fs::symlink(to, directory.join("tree").join(name)).expect("symlink");
        }
    }
    // Something that must not be inherited.
    let leak = rustix::io::dup(std::io::stderr()).expect("dup");
    let request = request(case, directory);
    let begin = Instant::now();
    let admitted = match admit(&request, yendor_policy::host::Verb::Run) {
        Ok(admitted) => admitted,
        Err(e) => {
            eprintln!("  {case}: {e}");
            return ExitCode::FAILURE;
        }
    };
    drop(leak);
    let given = Given::new(admitted.handed, &directory.join("state")).expect("given");
    let facts = facts();
    let program = directory.join("contain");
    let startup = startup(request, [case, &facts, &program.display().to_string()]);
    let state = fs::File::open(directory.join("state")).expect("state");
    let parent = fs::File::open(directory).expect("directory");
    let mut all = vec![state.as_fd(), parent.as_fd()];
    all.extend(given.descriptors());
    admitted.control.send(&startup, &all).expect("send");
    let answer = admitted.control.receive::<serde_json::Value>().expect("answer").map(|(answer, _)| answer);
    let refused = answer.as_ref().and_then(|answer| answer.get("Failed")).map(ToString::to_string);
    let answer = match (answer, refused) {
        (_, Some(refused)) if case == "limits" && refused.contains("delegate") => {
            println!("  limits are refused: {refused}");
            return ExitCode::SUCCESS;
        }
        (Some(answer), None) => serde_json::from_value::<(bool, u64, String)>(answer),
        (answer, _) => {
            eprintln!("  {case}: the keeper died: {answer:?}");
            return ExitCode::FAILURE;
        }
    };
    let (ok, made, text) = answer.expect("the keeper's answer");
    let status =
        rustix::process::waitpid(rustix::process::Pid::from_raw(admitted.pid), rustix::process::WaitOptions::empty());
    let ended = status.expect("wait").is_some_and(|(_, s)| s.exit_status() == Some(0));
    let all = begin.elapsed();
    print!("{text}");
    println!("  {case}: contained after {made} us, gone after {all:?}");
    ExitCode::from(u8::from(!(ok && ended)))
}

/// What the front of a real container would send; the words are for [`keeper`].
fn startup(request: Request, words: [&str; 3]) -> Startup {
    Startup {
        request,
        granted: Default::default(),
        trust: Default::default(),
        spec: Some(Spec {
            command: words.iter().map(|word| yendor_image::Bytes(word.as_bytes().to_vec())).collect(),
            ..Spec::default()
        }),
        stdio: Standard::Inherit,
        image: None,
        seal: None,
        plain: None,
        window: None,
        remove: false,
        cloning: None,
        lazy: None,
    }
}

/// What the container has to differ from: namespaces, device of the root, uid.
fn facts() -> String {
    let mut text = String::new();
    for name in NAMESPACES {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).expect("namespace");
        text.push_str(&format!("{}\n", link.display()));
    }
    text.push_str(&rustix::process::geteuid().as_raw().to_string());
    text
}

const NAMESPACES: [&str; 8] = ["user", "mnt", "ipc", "uts", "net", "cgroup", "pid", "time"];

// ---- the keeper

fn keeper() -> ExitCode {
    let begin = Instant::now();
    let names: Vec<String> = fd_names();
    let inherited = inherit().expect("a front and an usher");
    assert!(inherit().is_err(), "only once");
    let control = inherited.control.socket().try_clone().expect("dup");
    let words: Vec<_> = inherited.startup.spec.iter().flat_map(|spec| spec.command.clone()).collect();
    let words: Vec<String> = words.into_iter().map(|word| String::from_utf8(word.0).expect("text")).collect();
    let [case, facts, program] = words.try_into().expect("three words");
    let result = keep(&case, &facts, Path::new(&program), inherited, begin);
    let mut answer = result.unwrap_or_else(|e| (false, 0, format!("  {case}: {e}\n")));
    // Standard input, output and error, the front and the usher.
    if names.len() != 5 {
        answer.0 = false;
        answer.2.push_str(&format!("  {case}: descriptors came along: {names:?}\n"));
    }
    if std::env::vars_os().any(|(name, _)| name == "SECRET") {
        answer.0 = false;
        answer.2.push_str("  the environment came along\n");
    }
    yendor_engine::control::Control::from(control).send(&answer, &[]).expect("answer");
    ExitCode::SUCCESS
}

fn fd_names() -> Vec<String> {
    let fds = fs::read_dir("/proc/self/fd").expect("fd").map(|e| e.expect("entry").path());
    // The one that reads the directory is gone by now.
    fds.filter_map(|p| fs::read_link(p).ok()).map(|p| p.display().to_string()).filter(|p| !p.ends_with("/fd")).collect()
}

fn keep(
    case: &str,
    facts: &str,
    program: &Path,
    inherited: Inherited,
    begin: Instant,
) -> Result<(bool, u64, String), String> {
    let Inherited { control, startup, descriptors, cgroup, usher } = inherited;
    drop(control);
    let request = &startup.request;
    // After the container's directory and the one that it lies in.
    let given = Given::received(request, &mut descriptors.into_iter().skip(2)).map_err(|e| e.to_string())?;
    let mut contained = contain::prepare(request, &given, usher, cgroup).map_err(|e| e.to_string())?;
    let made = u64::try_from(begin.elapsed().as_micros()).expect("time");
    let hour = Timespec { tv_sec: 3600, tv_nsec: 5 };
    contained.set_time_offsets(hour, hour);
    contained.begin().map_err(|e| e.to_string())?;
    let facts = format!("{facts}\n{}", clock_gettime(ClockId::Monotonic).tv_sec);
    let program = if case == "caller" { program } else { Path::new("/contain") };
    if case != "caller" {
        contained.attach_volume("read-only", Path::new("/later"), false).map_err(|e| e.to_string())?;
        assert!(contained.attach_volume("read-only", Path::new("/later"), false).is_err(), "only once");
    }
    let child = Command::new(program)
        .arg("inside")
        .arg(case)
        .arg(facts)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = child.map_err(|e| format!("{}: {e}", program.display()))?;
    if let Some(cgroup) = &contained.cgroup {
        cgroup.adopt(i32::try_from(child.id()).expect("pid")).map_err(|e| e.to_string())?;
    }
    let mut output = BufReader::new(child.stdout.take().expect("stdout"));
    let mut line = String::new();
    let mut input = child.stdin.take().expect("stdin");
    contained.finish().map_err(|e| e.to_string())?;
    assert!(contained.finish().is_err(), "only once");
    writeln!(input, "go").expect("write");
    output.read_line(&mut line).expect("read");
    drop(input);
    let mut text = String::new();
    output.read_to_string(&mut text).expect("read");
    let seen = rustix::fs::statat(&contained.host_proc, child.id().to_string(), rustix::fs::AtFlags::empty()).is_ok();
    let ok = child.wait().expect("wait").success() && line == "ready\n" && seen;
    Ok((ok, made, text))
}

// ---- pid 1 of the container

struct Checks {
    failed: u32,
}

impl Checks {
    fn equal<T: PartialEq + Debug>(&mut self, what: &str, is: T, wanted: T) {
        if is != wanted {
            println!("  {what}: is {is:?}, not {wanted:?}");
            self.failed += 1;
        }
    }

    fn yes(&mut self, what: &str, is: bool) {
        self.equal(what, is, true);
    }

    fn done(&mut self, what: &str, result: std::io::Result<()>) {
        self.equal(what, result.map_err(|e| e.to_string()), Ok(()));
    }
}

fn inside(case: &str, facts: &str) -> ExitCode {
    let mut input = std::io::stdin().lines();
    let go = input.next().transpose().expect("line");
    assert_eq!(go.as_deref(), Some("go"));
    println!("ready");
    let rest = input.count();
    let mut checks = Checks { failed: u32::try_from(rest).expect("count") };
    common(&mut checks, case, facts);
    if case != "caller" {
        own_root(&mut checks, case);
        volumes(&mut checks);
    }
    if !["caller", "host-userns"].contains(&case) {
        locked(&mut checks, case);
    }
    match case {
        "layered" | "host-net" | "no-net" | "host-userns" => layered(&mut checks, facts),
        "directory" => directory(&mut checks),
        "caller" => {
            let uid = facts.lines().nth(NAMESPACES.len()).unwrap_or_default();
            checks.equal("uid", rustix::process::geteuid().as_raw().to_string(), uid.to_owned());
            checks.yes("/tmp is the caller's", fs::metadata("/proc/self/exe").is_ok_and(|m| m.nlink() > 0));
        }
        _ => limits(&mut checks),
    }
    ExitCode::from(u8::from(checks.failed > 0))
}

fn common(checks: &mut Checks, case: &str, facts: &str) {
    let facts: Vec<&str> = facts.lines().collect();
    for (name, outside) in NAMESPACES.iter().zip(&facts) {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).map(|p| p.display().to_string()).unwrap_or_default();
        let shared = (*name == "net" && case == "host-net") || (*name == "user" && case == "host-userns");
        checks.equal(&format!("namespace {name} is the host's"), own == *outside, shared);
    }
    checks.equal("pid", std::process::id(), 1);
    let pids: Vec<_> =
        host_names("/proc").into_iter().filter(|p| p.to_string_lossy().ends_with(char::is_numeric)).collect();
    checks.equal("processes", pids, vec![PathBuf::from("/proc/1")]);
    let fds = fd_names();
    checks.yes(&format!("three descriptors, not {fds:?}"), fds.len() == 3);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    checks.equal("host name", name.as_str(), if case == "layered" { "inner" } else { "tested" });
    let groups = rustix::process::getgroups().unwrap_or_default();
    checks.yes(
        &format!("no groups of the caller, not {groups:?}"),
        case == "caller" || groups.iter().all(|g| g.as_raw() == 65534) || groups.is_empty(),
    );
    let capabilities = rustix::thread::capabilities(None).expect("capabilities");
    checks.yes("root's capabilities", capabilities.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
    let outer: i64 = facts.last().and_then(|t| t.parse().ok()).unwrap_or_default();
    let own = clock_gettime(ClockId::Monotonic).tv_sec;
    checks.yes("the clock is an hour ahead", (3600..3620).contains(&(own - outer)));
    if case != "host-net" {
        let connected = TcpListener::bind("127.0.0.1:0").and_then(|l| TcpStream::connect(l.local_addr()?));
        // A new network is as the kernel makes it, until the tasks that it is for are known.
        checks.equal("loopback", connected.is_ok(), false);
    }
}

fn own_root(checks: &mut Checks, case: &str) {
    checks.equal("uid", rustix::process::geteuid().as_raw(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let foreign: Vec<&str> =
        mounts.lines().filter(|l| l.contains("yendor-contain-") && !l.contains("/state/") && is_outside(l)).collect();
    checks.yes(&format!("nothing of the old root, not {foreign:?}"), foreign.is_empty());
    checks.yes("one root", mounts.lines().filter(|l| l.split(' ').nth(4) == Some("/")).count() == 1);
    checks.yes("no way up", fs::read_dir("/../..").is_ok_and(|_| same("/../..", "/")));
    for (path, what) in
        [("/dev/null", 0o020_000), ("/dev/tty", 0o020_000), ("/dev/shm", 0o040_000), ("/dev/pts/ptmx", 0o020_000)]
    {
        checks.equal(path, fs::metadata(path).map(|m| m.mode() & 0o170_000).unwrap_or_default(), what);
    }
    checks.done("write to /dev/null", fs::write("/dev/null", "x"));
    let mut random = [0; 8];
    checks.done("read of /dev/urandom", fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)));
    let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).and_then(|fd| {
        rustix::pty::grantpt(&fd)?;
        rustix::pty::unlockpt(&fd)?;
        rustix::pty::ptsname(fd.as_fd(), Vec::new())
    });
    checks.yes(
        &format!("a terminal of its own, not {terminal:?}"),
        terminal.is_ok_and(|t| t.as_bytes() == b"/dev/pts/0"),
    );
    checks.done("/dev/shm", fs::write("/dev/shm/file", "x"));
    checks.yes("/sys", Path::new("/sys/class/net").exists());
    checks.yes("/sys is read-only", fs::write("/sys/kernel/uevent_seqnum", "1").is_err());
    let links = fs::read_dir("/sys/class/net").map(Iterator::count).unwrap_or_default();
    checks.yes("only the own links in /sys", case == "host-net" || links == 1);
}

/// A mount whose root is in the test's directory on the host but that is neither a volume nor the program.
fn is_outside(line: &str) -> bool {
    let point = line.split(' ').nth(4).unwrap_or_default();
    !matches!(point, "/" | "/contain" | "/later") && !point.ends_with("/volume")
}

fn same(a: &str, b: &str) -> bool {
    let of = |p| fs::metadata(p).map(|m| (m.dev(), m.ino())).expect("stat");
    of(a) == of(b)
}

fn volumes(checks: &mut Checks) {
    checks.done("write to the volume", fs::write("/data/deep/volume/file", "x"));
    checks.equal("volume", fs::read_to_string("/later/file").unwrap_or_default(), "host".into());
    let refused = fs::write("/later/file", "x").map_err(|e| e.kind());
    checks.equal("write to the read-only volume", refused, Err(std::io::ErrorKind::ReadOnlyFilesystem));
}

/// What was mounted from outside stays as it is, and the host's settings are out of reach: by capability, owner or mount.
fn locked(checks: &mut Checks, case: &str) {
    use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
    // What came late, as /proc itself, can be taken away as a whole: nothing is below it.
    for covered in
        ["/proc/sys", "/proc/sysrq-trigger", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/data/deep/volume"]
    {
        checks.yes(&format!("{covered} stays mounted"), unmount(covered, UnmountFlags::DETACH).is_err());
    }
    for read_only in ["/sys", "/sys/fs/cgroup", "/later"] {
        let writable = mount_remount(read_only, MountFlags::BIND, "");
        checks.yes(&format!("{read_only} stays read-only"), writable.is_err());
    }
    fs::create_dir("/dev/shm/again").expect("directory");
    checks.yes("no cgroups", mount("c", "/dev/shm/again", "cgroup2", MountFlags::empty(), None).is_err());
    masked(checks, case);
    out_of_reach(checks, Path::new("/proc"), case);
    out_of_reach(checks, Path::new("/sys"), case);
    for kind in ["proc", "sysfs"] {
        for flags in [MountFlags::empty(), MountFlags::RDONLY] {
            // Where it is permitted, as nothing is covered, it shows no more than the other.
            if mount(kind, "/dev/shm/again", kind, flags, None).is_ok() {
                let _ = mount_remount("/dev/shm/again", MountFlags::BIND, "");
                out_of_reach(checks, Path::new("/dev/shm/again"), case);
                unmount("/dev/shm/again", UnmountFlags::DETACH).expect("unmount of our own");
            }
        }
    }
}

/// What the host's root alone may read shows nothing, also where root has the same id; there, what other runtimes mask does not either.
fn masked(checks: &mut Checks, case: &str) {
    let shows = |path: &Path| {
        let mut byte = [0];
        fs::File::open(path).and_then(|mut file| file.read(&mut byte)).is_ok_and(|count| count > 0)
    };
    let mut seen = 0;
    for name in
        ["kpageflags", "kpagecount", "kpagecgroup", "slabinfo", "timer_list", "vmallocinfo", "pagetypeinfo", "kcore"]
    {
        seen += u32::from(Path::new("/proc").join(name).exists());
        checks.yes(&format!("/proc/{name} shows nothing"), !shows(&Path::new("/proc").join(name)));
    }
    checks.yes("the host has some of them", seen > 3);
    if fs::metadata("/proc/sys").map_or(0, |data| data.uid()) != 0 {
        return;
    }
    for name in ["keys", "latency_stats", "sched_debug", "timer_stats"] {
        checks.yes(&format!("/proc/{name} shows nothing"), !shows(&Path::new("/proc").join(name)));
    }
    if case == "host-net" {
        checks.yes("no key of the host's network", !shows(Path::new("/proc/sys/net/ipv4/tcp_fastopen_key")));
    }
    let mut places = vec![];
    for place in [
        "/proc/acpi",
        "/proc/asound",
        "/proc/scsi",
        "/proc/tty/driver",
        "/sys/firmware",
        "/sys/kernel/slab",
        "/sys/devices/virtual/powercap",
    ] {
        places.push(PathBuf::from(place));
    }
    let devices = fs::read_dir("/sys/devices").expect("/sys is there").flatten().map(|entry| entry.path());
    places.extend(devices.filter(|path| path.to_string_lossy().contains("/pci")));
    for place in places {
        let there = fs::read_dir(&place).map(Iterator::count);
        checks.yes(
            &format!("nothing in {}, not {there:?}", place.display()),
            there.is_ok_and(|n| n == 0) || !place.exists(),
        );
    }
}

/// Tries every file, without writing anything.
fn out_of_reach(checks: &mut Checks, top: &Path, case: &str) {
    let mut left = vec![top.to_owned()];
    let mut seen = 0;
    while let Some(directory) = left.pop() {
        let inside = directory.strip_prefix(top).expect("below").display().to_string();
        let first = inside.split('/').next().unwrap_or_default();
        // Processes; triggers that are for everybody; settings that belong to own namespaces.
        if first.parse::<u32>().is_ok()
            || first == "pressure"
            || (inside == "sys/net" && case != "host-net")
            || own_setting(&inside)
        {
            continue;
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("type");
            let path = entry.path();
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_file() && !own_setting(&path.strip_prefix(top).expect("below").display().to_string()) {
                seen += 1;
                let mode = fs::metadata(&path).map_or(0, |data| data.mode());
                if mode & 0o170_000 == 0o020_000 {
                    // What lies over it is the null device.
                    continue;
                }
                let open = fs::OpenOptions::new().write(true).open(&path);
                // Root may open a file that nobody can write: the kernel then has no use for what is written.
                let refused =
                    if mode & 0o222 == 0 { open.and_then(|mut f| f.write(b"")).is_err() } else { open.is_err() };
                checks.yes(&format!("{} cannot be written", path.display()), refused);
            }
        }
    }
    checks.yes(&format!("{} has files", top.display()), seen > 20);
}

/// Settings of the user, ipc, pid and network namespaces (sysctl(8)), which are the container's.
fn own_setting(path: &str) -> bool {
    const KERNEL: [&str; 14] = [
        "auto_msgmni",
        "msgmax",
        "msgmnb",
        "msgmni",
        "msg_next_id",
        "ns_last_pid",
        "pid_max",
        "sem",
        "sem_next_id",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_next_id",
        "shm_rmid_forced",
    ];
    path.starts_with("sys/user/")
        || path.starts_with("sys/fs/mqueue/")
        || path.strip_prefix("sys/kernel/").is_some_and(|name| KERNEL.contains(&name))
        || ["class/net", "devices/virtual/net"].contains(&path)
}

fn layered(checks: &mut Checks, _facts: &str) {
    for path in
        ["/new", "/etc/new", "/var/new", "/var/lib/new", "/usr/local/bin/new", "/opt/new", "/root/new", "/home/new"]
    {
        checks.done(path, fs::write(path, "new"));
    }
    for directory in
        host_names("/var/lib").into_iter().chain(host_names("/etc")).filter(|p| p.is_dir() && !p.is_symlink())
    {
        checks.done(&format!("{directory:?}"), fs::write(directory.join("new"), "new"));
    }
    checks.done("/tmp", fs::write("/tmp/file", "x"));
    checks.done("/run/lock", fs::write("/run/lock/file", "x"));
    checks.equal("mode of /tmp", fs::metadata("/tmp").map(|m| m.mode() & 0o7777).unwrap_or_default(), 0o1777);
    checks.yes("/run is empty", !Path::new("/run/user").exists());
    checks.done("remove of a host file", fs::remove_file("/etc/hostname"));
    checks.done("rename over a host file", fs::rename("/etc/new", "/etc/passwd"));
    let status = Command::new("/bin/sh").args(["-c", "test -x /usr/bin/env && ls / >/dev/null"]).status();
    checks.yes("a program of the host", status.is_ok_and(|s| s.success()));
}

fn directory(checks: &mut Checks) {
    checks.yes("the tree's own link is followed inside it", Path::new("/outside/null").exists());
    checks.yes("no /tmp where there is none", !Path::new("/tmp").exists());
    checks.yes("the tree's way out ends at its root", Path::new("/deep/volume/file").exists());
}

fn limits(checks: &mut Checks) {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    checks.yes("in a cgroup of its own", groups.lines().filter(|l| l.contains("/yendor-tested-")).count() >= 1);
    let children: Vec<_> = (0..40).map(|_| Command::new("/bin/sleep").arg("5").spawn()).collect();
    let made = children.iter().filter(|c| c.is_ok()).count();
    checks.yes(&format!("at most 20 tasks, not {made}"), made <= 20);
    for mut child in children.into_iter().flatten() {
        checks.done("kill", child.kill());
        checks.yes("wait", child.wait().is_ok());
    }
}
