//! Writes all of its memory all the time, page after page in turn, and looks at every page before: it must hold what the last
//! turn left. Memory that is not of one instant, or not of the instant of the registers, shows at once. Two threads and a
//! child, which has some of its memory from its parent; private, shared and file-backed memory, some that fork leaves out, and the
//! unused end of the main stack.
//!
//! With the argument `childless` a seccomp filter of the first thread kills it for having a child. With `killed` nobody looks at
//! the end of the stack: it belongs to nobody, and a checkpoint that is killed may leave something there. With `alone` there is no
//! child, but two threads more, which unmap, drop, move and protect what they have all the time, and know what must be there.
#![allow(unsafe_code)]

use probe::{Board, Dir, PAGE, Region, check_pattern, child, expect, fill_pattern, map, ok, own, present, sleep_ms};
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
/// Of which one page is touched: a checkpoint that reads the others makes them.
const SPARSE: usize = 512 << 20;
/// Pages.
const CHURNED: usize = 1024;

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

fn move_page(from: *mut libc::c_void, to: *mut libc::c_void, flags: i32) {
    let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    expect("mremap", unsafe { libc::mremap(from, PAGE, PAGE, flags, to) }, to);
}

/// Memory that changes its place, comes and goes, and what each of its pages must hold.
struct Churn {
    region: Region,
    holds: Vec<u64>,
    other: Region,
    seed: u64,
}

impl Churn {
    fn new(seed: u64) -> Churn {
        let other = map(PAGE, RW, PRIVATE);
        fill_pattern(other.at(0), PAGE, 8);
        Churn { region: map(CHURNED * PAGE, RW, PRIVATE), holds: vec![0; CHURNED], other, seed }
    }

    fn below(&mut self, end: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % end
    }

    /// So many pages, somewhere.
    fn some(&mut self) -> (usize, usize) {
        let len = 1 + self.below(CHURNED / 4);
        (self.below(CHURNED - len), len)
    }

    fn at(&self, page: usize) -> *mut libc::c_void {
        self.region.at(page * PAGE).cast()
    }

    fn is_zero(&mut self, first: usize, len: usize) {
        self.holds[first..first + len].fill(0);
    }

    fn change(&mut self) {
        let (first, len) = self.some();
        let (at, bytes) = (self.at(first), len * PAGE);
        match self.below(6) {
            0 => {
                ok("madvise", unsafe { libc::madvise(at, bytes, libc::MADV_DONTNEED) });
                self.is_zero(first, len);
            }
            1 => {
                // What was there is gone in the same instant: no other thread's memory comes in between.
                let flags = PRIVATE | libc::MAP_FIXED;
                expect("mmap", unsafe { libc::mmap(at, bytes, RW, flags, -1, 0) }, at);
                self.is_zero(first, len);
                // Elsewhere a whole mapping goes, and another one comes.
                let len = (64 + self.below(64)) * PAGE;
                self.other = map(len, RW, PRIVATE);
                fill_pattern(self.other.at(0), len, 8);
            }
            2 => {
                // Away, and back to another place: page by page, as no two need be of one mapping.
                let (len, away) = (len.min(16), map(16 * PAGE, libc::PROT_NONE, PRIVATE));
                let to = self.below(CHURNED - len);
                let from = |page| self.at(first + page);
                let there = |page| away.at(page * PAGE).cast::<libc::c_void>();
                (0..len).for_each(|page| move_page(from(page), there(page), libc::MREMAP_DONTUNMAP));
                (0..len).for_each(|page| move_page(there(page), self.at(to + page), libc::MREMAP_DONTUNMAP));
                let were = self.holds[first..first + len].to_vec();
                self.is_zero(first, len);
                self.holds[to..to + len].copy_from_slice(&were);
            }
            3 => {
                ok("mprotect", unsafe { libc::mprotect(at, bytes, libc::PROT_READ) });
                ok("mprotect", unsafe { libc::mprotect(at, bytes, RW) });
            }
            _ => {
                for page in first..first + len {
                    self.holds[page] = self.holds[page].wrapping_add(page as u64 + 1);
                    unsafe { self.at(page).cast::<u64>().write_volatile(self.holds[page]) };
                }
            }
        }
    }

    fn go_round(&mut self) {
        for page in 0..CHURNED {
            let found = unsafe { self.at(page).cast::<u64>().read_volatile() };
            expect("what the page held", found, self.holds[page]);
        }
        check_pattern("the other mapping", self.other.at(0), self.other.len(), 8);
        self.change();
    }
}

fn told(word: &str) -> bool {
    std::env::args().any(|one| one == word)
}

/// The end of the main stack, far below where anybody works, filled with a pattern.
fn stack() -> *mut u8 {
    #[inline(never)]
    fn deep(depth: usize) -> u8 {
        let mut room = [depth as u8; 16 * PAGE];
        std::hint::black_box(&mut room);
        if depth == 0 { room[0] } else { deep(depth - 1) ^ std::hint::black_box(&room)[1] }
    }
    std::hint::black_box(deep(8));
    let maps = probe::read_file("/proc/self/maps");
    let line = maps.lines().find(|line| line.ends_with("[stack]")).unwrap_or_else(|| probe::fail("no stack"));
    let start = line.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok());
    let end = start.unwrap_or_else(|| probe::fail("no stack")) as *mut u8;
    fill_pattern(end, SMALL, 6);
    end
}

fn check_stack(end: *const u8) {
    if !told("killed") {
        check_pattern("the stack", end, SMALL, 6);
    }
}

/// No child for the calling thread from now on.
fn stay_childless() {
    let i = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let calls = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork, libc::SYS_vfork].map(|nr| nr as u32);
    let mut program = [
        i(0x20, 0, 0, 0),
        i(0x15, 4, 0, calls[0]),
        i(0x15, 3, 0, calls[1]),
        i(0x15, 2, 0, calls[2]),
        i(0x15, 1, 0, calls[3]),
        i(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        i(0x06, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_SECCOMP, 2, &header) });
}

struct State {
    child: Option<i32>,
    stack: *mut u8,
    inherited: Region,
    sparse: Region,
    turns: Turns,
    rounds: Arc<AtomicU64>,
    other: std::thread::JoinHandle<()>,
    _dir: Dir,
}

fn setup() -> State {
    let (board, dir) = (Board::new(), Dir::new());
    let stack = stack();
    let inherited = map(LARGE, RW, PRIVATE);
    fill_pattern(inherited.at(0), LARGE, 5);
    let mut shared_with_child = Turns::new(vec![map(LARGE, RW, PRIVATE)]);
    let parent = unsafe { libc::getpid() };
    let alone = told("alone");
    let bear = |work: &mut dyn FnMut()| if alone { None } else { Some(child(work)) };
    let child = bear(&mut || {
        board.set(UP, 1);
        // Its own from the first turn on, page by page. It ends with its parent.
        while unsafe { libc::getppid() } == parent {
            shared_with_child.go_round();
            if shared_with_child.turn.is_multiple_of(16) {
                check_pattern("inherited memory", inherited.at(0), LARGE, 5);
                check_stack(stack);
            }
            sleep_ms(1);
        }
    });
    if child.is_some() {
        board.wait(UP, 1);
    }
    let sparse = map(SPARSE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    fill_pattern(sparse.at(SPARSE / 2), PAGE, 9);
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
    for seed in (1..=2).filter(|_| alone) {
        let mut churn = Churn::new(seed);
        std::thread::spawn(move || {
            loop {
                churn.go_round();
            }
        });
    }
    let turns = Turns::new(own);
    if told("childless") {
        stay_childless();
    }
    State { child, stack, inherited, sparse, turns, rounds, other, _dir: dir }
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
            check_stack(state.stack);
            expect("pages of a mapping with one", present(state.sparse.at(0), SPARSE), 1);
            check_pattern("a mapping with one page", state.sparse.at(SPARSE / 2), PAGE, 9);
            let mut status = 0;
            let ended = state.child.map(|child| unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) });
            expect("the child goes on", (ended.unwrap_or(0), status), (0, 0));
        },
    )
}
