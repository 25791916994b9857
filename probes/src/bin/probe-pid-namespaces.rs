//! Pid namespaces inside the container, one in the other: all ids on all levels, of processes, threads, groups and sessions that began inside
//! and outside; a zombie, a stopped child, an orphan; a pidfd, a queued signal, a timer of a thread; who bears children there from outside.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, expect, expect_that, field, ok, own, read_file, reaped, status, succeeded, tid};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

const UP: usize = 0;
const GO: usize = 1;
const ORPHAN: usize = 2;
/// How many say that they are there: makers and pids 1 of both, the worker, its child, its thread, the orphan.
const ALL: u64 = 8;

/// What a task is called by itself, and by the /proc that it sees.
#[derive(Debug, Clone, PartialEq)]
struct Ids {
    own: [i32; 5],
    all: [String; 4],
}

fn ids() -> Ids {
    let own = unsafe { [libc::getpid(), tid(), libc::getppid(), libc::getpgid(0), libc::getsid(0)] };
    Ids { own, all: ["NStgid", "NSpid", "NSpgid", "NSsid"].map(status) }
}

fn inode(path: &str) -> u64 {
    std::fs::metadata(path).map_or_else(|e| probe::fail(&format!("{path}: {e}")), |namespace| namespace.ino())
}

/// Says that it is there, waits, and is who it was.
fn stay(board: Board, who: &str) {
    let before = ids();
    board.add(UP, 1);
    board.wait(GO, 1);
    expect(who, ids(), before);
}

/// In how many pid namespaces that are seen the calling process is.
fn depth() -> usize {
    status("NSpid").split(' ').count()
}

/// Bears pid 1 of a new namespace, and would bear others there.
fn maker(board: Board, who: &str, init: impl FnOnce()) {
    let (depth_here, leave) = (depth(), Board::new());
    ok("unshare", unsafe { libc::unshare(libc::CLONE_NEWPID) });
    let first = child(|| {
        expect("pid 1 and its parent", ids().own[..3].to_vec(), vec![1, 1, 0]);
        expect("one more namespace", depth(), depth_here + 1);
        init();
        expect("pid 1 and its parent", ids().own[..3].to_vec(), vec![1, 1, 0]);
        leave.wait(GO, 1);
    });
    stay(board, who);
    expect("its namespaces", depth(), depth_here);
    expect_that("its children's", inode("/proc/self/ns/pid_for_children") != inode("/proc/self/ns/pid"), who);
    let another = child(|| expect("who comes later", (depth(), unsafe { libc::getppid() }), (depth_here + 1, 0)));
    succeeded("who comes later", another);
    leave.set(GO, 1);
    succeeded(who, first);
}

fn timer(thread: i32) -> libc::timer_t {
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_notify_thread_id = thread;
        event.sigev_signo = libc::SIGUSR2;
        let mut timer = std::mem::zeroed();
        ok("timer_create", libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer));
        timer
    }
}

fn arm(timer: libc::timer_t) {
    let soon = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let soon = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: soon };
    ok("timer_settime", unsafe { libc::timer_settime(timer, 0, &soon, std::ptr::null_mut()) });
}

/// The signal of this number that waits for the calling thread, or comes soon.
fn taken(signal: i32) -> libc::siginfo_t {
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let patience = libc::timespec { tv_sec: 30, tv_nsec: 0 };
        expect("signal", ok("sigtimedwait", libc::sigtimedwait(&set, &mut info, &patience)), signal);
        info
    }
}

/// Leads a session with a group in it, and has a thread with a timer.
fn worker(board: Board) {
    ok("setsid", unsafe { libc::setsid() });
    block_all();
    let grouped = child(|| {
        ok("setpgid", unsafe { libc::setpgid(0, 0) });
        stay(board, "child of the worker");
    });
    let (say, said) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = say.send(tid());
        stay(board, "thread of the worker");
        expect("SI_TIMER", taken(libc::SIGUSR2).si_code, -2);
    });
    let timer = timer(said.recv().unwrap_or(0));
    // To itself: its own id is in the signal.
    let value = libc::sigval { sival_ptr: 0x1234 as *mut _ };
    ok("sigqueue", unsafe { libc::sigqueue(libc::getpid(), libc::SIGRTMIN() + 3, value) });
    stay(board, "worker");
    let info = taken(libc::SIGRTMIN() + 3);
    expect(
        "its signal",
        unsafe { (info.si_pid(), info.si_value().sival_ptr as usize) },
        (unsafe { libc::getpid() }, 0x1234),
    );
    arm(timer);
    expect_that("thread of the worker", thread.join().is_ok(), 0);
    succeeded("child of the worker", grouped);
}

fn wait_id(pid: i32, how: i32) {
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        ok("waitid", libc::waitid(libc::P_PID, pid as u32, &mut info, how));
    }
}

fn first(board: Board) {
    let zombie = child(|| unsafe { libc::_exit(7) });
    wait_id(zombie, libc::WEXITED | libc::WNOWAIT);
    let stopped = child(|| {
        let before = ids();
        ok("raise", unsafe { libc::raise(libc::SIGSTOP) });
        expect("who was stopped", ids(), before);
    });
    wait_id(stopped, libc::WSTOPPED);
    let worker = child(|| worker(board));
    let between = child(|| {
        let parent = unsafe { libc::getpid() };
        // Its child is left to pid 1.
        board.set(ORPHAN, unsafe { libc::fork() } as u64);
        if unsafe { libc::getpid() } != parent {
            probe::wait_until("an orphan", || unsafe { libc::getppid() } == 1);
            stay(board, "orphan");
            unsafe { libc::_exit(0) };
        }
    });
    succeeded("parent of the orphan", between);
    let second = child(|| maker(board, "maker of the second", || stay(board, "pid 1 of the second")));
    let pidfd: OwnedFd = own("pidfd_open", unsafe { libc::syscall(libc::SYS_pidfd_open, worker, 0) } as i32);
    let of_worker = || field(&read_file(&format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())), "NSpid");
    let before = of_worker();
    stay(board, "pid 1 of the first");
    expect("pidfd of the worker", of_worker(), before);
    let ids = |of: unsafe extern "C" fn(i32) -> i32| unsafe { of(worker) };
    expect("the worker's session and group", (ids(libc::getsid), ids(libc::getpgid)), (worker, worker));
    expect("a zombie", reaped(zombie), 7 << 8);
    ok("kill", unsafe { libc::kill(stopped, libc::SIGCONT) });
    succeeded("who was stopped", stopped);
    succeeded("worker", worker);
    succeeded("second", second);
    succeeded("orphan", board.get(ORPHAN) as i32);
}

struct State {
    board: Board,
    maker: i32,
}

fn setup() -> State {
    let board = Board::new();
    let maker = child(|| {
        // A group that those inside inherit and do not see.
        ok("setpgid", unsafe { libc::setpgid(0, 0) });
        maker(board, "maker", || first(board));
    });
    board.wait(UP, ALL);
    State { board, maker }
}

fn check(State { board, maker }: State) {
    expect("group of the maker", unsafe { libc::getpgid(maker) }, maker);
    board.set(GO, 1);
    succeeded("maker", maker);
}

fn main() {
    // Outside of a container an account may do so in a user namespace only.
    if probe::caps() & 1 << 21 == 0 {
        ok("unshare", unsafe { libc::unshare(libc::CLONE_NEWUSER) });
    }
    probe::run(setup, check)
}
