//! Tracking what a running process writes: nobody notices, and nothing is left however it ends.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use yendor_sys::pagemap::{self, Page, Which};
use yendor_task::live::track::track;

/// Writes its memory all the time, from two threads, and checks it; says for every line that it reads how often it has, whether it
/// is alone, and what it has open.
const PROGRAM: &str = "
import ctypes, mmap, os, sys, threading
size = 4 << 20
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
count = 0
def write():
    global count
    while True:
        for at in range(0, size // 2, 4096):
            memory[at:at + 8] = (count + at).to_bytes(8, 'little')
        for at in range(0, size // 2, 4096):
            if int.from_bytes(memory[at:at + 8], 'little') != count + at: os._exit(3)
        count += 1
for at in range(size // 2, size, 4096): memory[at] = 7
threading.Thread(target=write, daemon=True).start()
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    before = count
    while count < before + 2: pass
    try: alone = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError: alone = 'alone'
    print(alone, sorted(os.listdir('/proc/self/fd')), flush=True)
";

struct Program {
    child: Child,
    said: BufReader<ChildStdout>,
    asked: ChildStdin,
    at: u64,
}

const SIZE: u64 = 4 << 20;

impl Program {
    fn new() -> Program {
        let mut command = Command::new("python3");
        let mut child =
            command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let asked = child.stdin.take().expect("piped");
        let mut line = String::new();
        said.read_line(&mut line).expect("its memory");
        Program { at: line.trim().parse().expect("an address"), child, said, asked }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    fn ask(&mut self) -> String {
        self.asked.write_all(b"go\n").expect("a line");
        let mut line = String::new();
        self.said.read_line(&mut line).expect("an answer");
        line.trim().to_owned()
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid())).expect("of a living process")
    }

    /// Whether something of its memory is tracked.
    fn is_tracked(&self) -> bool {
        self.file("smaps").lines().any(|line| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "uw"))
    }

    fn becomes_untracked(&self) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.is_tracked() {
            assert!(Instant::now() < end, "it is still tracked");
        }
    }

    fn children(&self) -> String {
        self.file(&format!("task/{}/children", self.pid()))
    }

    /// How many pages of each half are unwritten.
    fn unwritten(&self) -> [u64; 2] {
        let map = fs::File::open(format!("/proc/{}/pagemap", self.pid())).expect("pagemap");
        let mut out = [0; 2];
        for (i, half) in [self.at, self.at + SIZE / 2].into_iter().enumerate() {
            let mut at = half;
            while at < half + SIZE / 2 {
                let (runs, to) = pagemap::scan_tracked(map.as_fd(), at, half + SIZE / 2).expect("scan");
                let runs = runs.iter().filter(|r| Page::from_bits_retain(r.categories).is_unwritten());
                out[i] += runs.map(|r| (r.end - r.start) / 4096).sum::<u64>();
                at = to;
            }
        }
        out
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn protect(pid: i32, at: u64) {
    let map = fs::File::open(format!("/proc/{pid}/pagemap")).expect("pagemap");
    let mut from = at;
    while from < at + SIZE {
        from = pagemap::protect(map.as_fd(), from, at + SIZE, Which::Written).expect("protect").1;
    }
}

#[test]
fn nobody_notices() {
    let mut program = Program::new();
    let proc = fs::File::open("/proc").expect("/proc");
    let before = program.ask();
    for _ in 0..20 {
        let fault = track(proc.as_fd(), program.pid(), || true).expect("track").expect("a userfaultfd");
        assert_eq!(program.children(), "");
        fault.register(program.at, program.at + SIZE).expect("register");
        assert!(program.is_tracked());
        protect(program.pid(), program.at);
        assert_eq!(program.ask(), before);
        assert_eq!(program.unwritten(), [0, SIZE / 8192], "one half is written all the time");
        drop(fault);
        // Another test of this program may just have forked: its child has the descriptor until it executes.
        program.becomes_untracked();
        assert_eq!(program.ask(), before);
    }
    assert!(track(proc.as_fd(), program.pid(), || false).expect("track").is_none());
    assert_eq!(program.ask(), before);
}

/// This test's own program, as another process that tracks again and again until it is killed.
#[test]
#[ignore = "run by nothing_is_left_at_any_instant"]
fn tracker() {
    let word = |name: &str| std::env::var(name).expect("set by whoever runs this").parse::<u64>().expect("a number");
    let (pid, at) = (i32::try_from(word("TRACK_PID")).expect("pid"), word("TRACK_AT"));
    let proc = fs::File::open("/proc").expect("/proc");
    for _ in 0..10_000 {
        let fault = track(proc.as_fd(), pid, || true).expect("track").expect("a userfaultfd");
        fault.register(at, at + SIZE).expect("register");
        protect(pid, at);
    }
}

#[test]
fn nothing_is_left_at_any_instant() {
    let mut program = Program::new();
    let before = program.ask();
    let own = std::env::current_exe().expect("exe");
    // The short run draws the same instants every time.
    let (rounds, mut seed) = match std::env::var_os("YENDOR_SOAK") {
        Some(_) => (1000, std::time::UNIX_EPOCH.elapsed().map_or(1, |d| u64::from(d.subsec_nanos()))),
        None => (40, 1),
    };
    for round in 0..rounds {
        let mut command = Command::new(&own);
        command.args(["--ignored", "--exact", "tracker"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("TRACK_PID", program.pid().to_string()).env("TRACK_AT", program.at.to_string());
        let mut tracker = command.spawn().expect("spawn");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros((seed >> 33) % 12_000));
        assert!(tracker.try_wait().expect("wait").is_none(), "it has ended by itself");
        tracker.kill().expect("kill");
        tracker.wait().expect("wait");
        // Zombies of ours that are left nobody waits for but a later checkpoint.
        let end = Instant::now() + Duration::from_secs(5);
        let alive = |pid: &str| !fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default().contains(") Z ");
        while program.children().split_whitespace().any(alive) {
            assert!(Instant::now() < end, "round {round}: a child goes on: {}", program.children());
        }
        program.becomes_untracked();
        assert_eq!(program.ask(), before, "round {round}");
    }
    assert!(program.child.try_wait().expect("wait").is_none());
}
