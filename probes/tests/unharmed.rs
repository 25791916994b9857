//! Every probe must pass when nobody checkpoints it: as root and as a user without rights, asked once and twice.
#![allow(unsafe_code)]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65_534;
const PATIENCE: Duration = Duration::from_secs(60);

/// A probe in a process group of its own, killed with it when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
    place: PathBuf,
}

impl Running {
    fn start(program: &Path, uid: u32) -> Self {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        let place = std::env::temp_dir().join(format!("yendor-{name}-{}-{uid}", std::process::id()));
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o777)).unwrap();
        // The target directory may be closed to others.
        let copy = place.join(&name);
        fs::copy(program, &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(copy);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).env("TMPDIR", &place).current_dir("/").process_group(0);
        if uid != unsafe { libc::geteuid() } {
            // SAFETY: only calls that may follow fork.
            unsafe { command.pre_exec(move || become_user(uid)) };
        }
        let mut child = spawn(&mut command);
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, place }
    }

    fn says(&self, want: &str) {
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| format!("nothing: {error}"));
        assert_eq!(line, want);
    }

    fn ask(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Starts a program that was just copied. While another thread forks, the child has the copy open for writing.
fn spawn(command: &mut Command) -> Child {
    let end = Instant::now() + PATIENCE;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            spawned => return spawned.unwrap(),
        }
    }
}

fn become_user(uid: u32) -> std::io::Result<()> {
    let results = unsafe { [libc::setgroups(0, std::ptr::null()), libc::setgid(uid), libc::setuid(uid)] };
    // A change of credentials has made it undumpable until exec, which follows.
    if results == [0; 3] { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn passes_as(program: &str, uid: u32, works: bool) {
    let mut running = Running::start(Path::new(program), uid);
    let answer = |running: &Running| {
        while works && running.lines.recv_timeout(PATIENCE).is_ok_and(|line| line != "ok") {}
        if !works {
            running.says("ok");
        }
    };
    running.says("ready");
    std::thread::sleep(Duration::from_millis(50));
    running.ask(libc::SIGUSR2);
    answer(&running);
    running.ask(libc::SIGUSR1);
    answer(&running);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

fn passes(program: &str, works: bool) {
    let own = unsafe { libc::geteuid() };
    passes_as(program, own, works);
    if own == 0 {
        passes_as(program, NOBODY, works);
    } else {
        let _ = writeln!(std::io::stderr(), "skipped: as another user: needs root");
    }
}

macro_rules! probes {
    ($($test:ident $name:literal $(works $works:literal)?;)*) => {
        $(#[test] fn $test() { passes(env!(concat!("CARGO_BIN_EXE_probe-", $name)), false $(|| $works)?); })*

        #[test]
        fn no_probe_is_forgotten() {
            let folder = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin")).unwrap();
            let mut there: Vec<String> = folder.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
            let mut tested = vec![$(format!("probe-{}.rs", $name)),*];
            (there.sort(), tested.sort());
            assert_eq!(there, tested);
        }
    };
}

probes! {
    adopted "adopted";
    aio "aio";
    amx "amx";
    anon_memory "anon-memory";
    controls "controls";
    cow "cow";
    creds "creds";
    cwd "cwd";
    cwd_deleted "cwd-deleted";
    devs "devs";
    ending "ending";
    epoll "epoll";
    eventfd "eventfd";
    exit_signal "exit-signal";
    file_map "file-map";
    guards "guards";
    inet_listen "inet-listen";
    inotify "inotify";
    itimers "itimers";
    kernel_files "kernel-files";
    labels "labels";
    landlock "landlock";
    late_accept "late-accept";
    leaderless "leaderless";
    locked_later "locked-later";
    locks "locks";
    many_fds "many-fds";
    many_maps "many-maps";
    many_tasks "many-tasks";
    many_threads "many-threads";
    memory_policy "memory-policy";
    misc_prctl "misc-prctl";
    mounts "mounts";
    mqueue "mqueue";
    multicast "multicast";
    namespaces "namespaces";
    orphan "orphan";
    parent_thread "parent-thread";
    pid_namespaces "pid-namespaces";
    pidfds "pidfds";
    pipes "pipes";
    posix_timers "posix-timers";
    regs "regs";
    regular "regular";
    rlimits "rlimits";
    sched "sched";
    sealed "sealed";
    seccomp_filter "seccomp-filter";
    settings "settings";
    shared_memory "shared-memory";
    sigactions "sigactions";
    sigio "sigio";
    signalfd "signalfd";
    sigqueue "sigqueue";
    syscalls_interrupted "syscalls-interrupted";
    tcp_closed "tcp-closed";
    threads "threads";
    ticker "ticker" works true;
    timerfd "timerfd";
    tree "tree";
    tty "tty";
    unix_sockets "unix-sockets";
    users "users";
    uts_time "uts-time";
    vdso "vdso";
    writer "writer" works true;
}
