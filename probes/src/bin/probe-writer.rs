//! Writes all of its memory all the time, page after page in turn, and looks at every page before: it must hold what the last
//! turn left. Memory that is not of one instant, or not of the instant of the registers, shows at once. Two threads and a
//! child, which has some of its memory from its parent; private, shared and file-backed memory, and some that fork leaves out.
#![allow(unsafe_code)]

use probe::{Board, Dir, PAGE, Region, check_pattern, child, expect, fill_pattern, map, ok, own, sleep_ms};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const UP: usize = 1;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const SMALL: usize = 64 * PAGE;
/// Enough that a checkpoint copies it while the program runs.
const LARGE: usize = 3072 * PAGE;

fn word(turn: u64, page: usize) -> u64 {
    turn << 32 | page as u64
}

/// Memory that one thread writes.
struct Turns {
    regions: Vec<Region>,
    turn: u64,
}

impl Turns {
    fn new(regions: Vec<Region>) -> Turns {
        let mut turns = Turns { regions, turn: 0 };
        turns.each(|at, page| unsafe { Turns::write(at, word(0, page)) });
        turns
    }

    fn each(&mut self, mut work: impl FnMut(*mut u64, usize)) {
        for region in &self.regions {
            for page in 0..region.len() / PAGE {
                work(region.at(page * PAGE).cast(), page);
            }
        }
    }

    /// The first word of the page and the last.
    unsafe fn write(at: *mut u64, value: u64) {
        unsafe {
            at.write_volatile(value);
            at.add(PAGE / 8 - 1).write_volatile(value);
        }
    }

    fn go_round(&mut self) {
        let (before, now) = (self.turn, self.turn + 1);
        self.each(|at, page| unsafe {
            let found = (at.read_volatile(), at.add(PAGE / 8 - 1).read_volatile());
            let wanted = word(before, page);
            expect("what the last turn left", found, (wanted, wanted));
            Turns::write(at, word(now, page));
        });
        self.turn = now;
    }
}

fn mapped(len: usize, flags: i32, fd: i32) -> Region {
    Region::adopt(unsafe { libc::mmap(null_mut(), len, RW, flags, fd, 0) }, len)
}

fn advised(advice: i32) -> Region {
    let region = map(SMALL, RW, PRIVATE);
    ok("madvise", unsafe { libc::madvise(region.at(0).cast(), region.len(), advice) });
    region
}

fn file(dir: &Dir, name: &str, gone: bool) -> Region {
    let path = dir.path().join(name);
    std::fs::write(&path, vec![7; SMALL]).expect("a file of our own");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("a file of our own");
    let region = mapped(SMALL, libc::MAP_PRIVATE, file.as_raw_fd());
    if gone {
        std::fs::remove_file(&path).expect("a file of our own");
    }
    region
}

fn memfd() -> Region {
    let fd = own("memfd_create", unsafe { libc::memfd_create(c"writer".as_ptr(), libc::MFD_CLOEXEC) });
    ok("ftruncate", unsafe { libc::ftruncate(fd.as_raw_fd(), SMALL as i64) });
    mapped(SMALL, libc::MAP_SHARED, fd.as_raw_fd())
}

struct State {
    child: i32,
    inherited: Region,
    turns: Turns,
    rounds: Arc<AtomicU64>,
    other: std::thread::JoinHandle<()>,
    _dir: Dir,
}

fn setup() -> State {
    let (board, dir) = (Board::new(), Dir::new());
    let inherited = map(LARGE, RW, PRIVATE);
    fill_pattern(inherited.at(0), LARGE, 5);
    let mut shared_with_child = Turns::new(vec![map(LARGE, RW, PRIVATE)]);
    let parent = unsafe { libc::getpid() };
    let child = child(|| {
        board.set(UP, 1);
        // Its own from the first turn on, page by page. It ends with its parent.
        while unsafe { libc::getppid() } == parent {
            shared_with_child.go_round();
            if shared_with_child.turn.is_multiple_of(16) {
                check_pattern("inherited memory", inherited.at(0), LARGE, 5);
            }
            sleep_ms(1);
        }
    });
    board.wait(UP, 1);
    let shared = mapped(SMALL, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    let mut own = vec![file(&dir, "kept", false), file(&dir, "gone", true), shared, memfd()];
    own.extend([advised(libc::MADV_DONTFORK), advised(libc::MADV_WIPEONFORK)]);
    own.append(&mut shared_with_child.regions);
    let rounds = Arc::new(AtomicU64::new(0));
    let mut theirs = Turns::new(vec![map(LARGE, RW, PRIVATE), advised(libc::MADV_DONTFORK)]);
    let count = rounds.clone();
    let other = std::thread::spawn(move || {
        loop {
            theirs.go_round();
            count.fetch_add(1, SeqCst);
        }
    });
    State { child, inherited, turns: Turns::new(own), rounds, other, _dir: dir }
}

fn main() {
    let state = setup();
    probe::run_working(
        state,
        |state| {
            state.turns.go_round();
            sleep_ms(1);
        },
        |state| {
            expect("the other thread goes on", state.rounds.load(SeqCst) > 0, true);
            expect("it has not ended", state.other.is_finished(), false);
            check_pattern("inherited memory", state.inherited.at(0), LARGE, 5);
            let mut status = 0;
            let ended = unsafe { libc::waitpid(state.child, &mut status, libc::WNOHANG) };
            expect("the child goes on", (ended, status), (0, 0));
        },
    )
}
