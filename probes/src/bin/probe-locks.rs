//! File locks: of a process, of a description, flock, leases; somebody who waits for one.
#![allow(unsafe_code)]

use probe::{Board, Dir, child, expect, ok, own, succeeded};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const LOCKED: usize = 0;
const FREED: usize = 1;
const GO: usize = 2;
const ASKED: usize = 3;

fn open(dir: &Dir, name: &str) -> OwnedFd {
    let path = CString::new(dir.at(name).as_os_str().as_bytes()).unwrap();
    // A lease against writers wants no writers.
    let access = if name == "lease" { libc::O_RDONLY } else { libc::O_RDWR };
    own("open", unsafe { libc::open(path.as_ptr(), access | libc::O_CREAT, 0o600) })
}

fn lock(fd: &OwnedFd, command: i32, kind: i32, start: i64, length: i64) -> i32 {
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_start, lock.l_len) = (kind as i16, start, length);
    unsafe { libc::fcntl(fd.as_raw_fd(), command, &lock) }
}

/// The locks that fdinfo shows, without numbers that differ.
fn locks(fd: &OwnedFd) -> Vec<String> {
    let text = probe::read_file(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let words = |line: &str| {
        let all: Vec<&str> = line.split_whitespace().collect();
        [&all[2..5], &all[7..]].concat().join(" ")
    };
    let mut all: Vec<String> = text.lines().filter(|line| line.starts_with("lock:")).map(words).collect();
    all.sort();
    all
}

struct State {
    board: Board,
    _dir: Dir,
    files: [OwnedFd; 4],
    before: [Vec<String>; 4],
    waiter: i32,
}

fn setup() -> State {
    let (board, dir) = (Board::new(), Dir::new());
    let files = ["process", "description", "whole", "lease"].map(|name| open(&dir, name));
    let waiter = child(|| {
        let mine = open(&dir, "process");
        board.wait(LOCKED, 1);
        board.set(ASKED, 1);
        // Asleep in the kernel until the parent gives it up.
        ok("F_SETLKW", lock(&mine, libc::F_SETLKW, libc::F_WRLCK, 0, 10));
        board.set(FREED, 1);
        board.wait(GO, 1);
    });
    ok("F_SETLK", lock(&files[0], libc::F_SETLK, libc::F_WRLCK, 5, 100));
    ok("F_SETLK", lock(&files[0], libc::F_SETLK, libc::F_RDLCK, 1 << 40, 0));
    ok("F_OFD_SETLK", lock(&files[1], libc::F_OFD_SETLK, libc::F_RDLCK, 0, 7));
    ok("F_OFD_SETLK", lock(&files[1], libc::F_OFD_SETLK, libc::F_WRLCK, 7, 1));
    ok("flock", unsafe { libc::flock(files[2].as_raw_fd(), libc::LOCK_EX) });
    ok("F_SETLEASE", unsafe { libc::fcntl(files[3].as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) });
    board.set(LOCKED, 1);
    board.wait(ASKED, 1);
    let before = files.each_ref().map(locks);
    State { board, _dir: dir, files, before, waiter }
}

fn check(state: State) {
    expect("locks", state.files.each_ref().map(locks), state.before);
    let lease = unsafe { libc::fcntl(state.files[3].as_raw_fd(), libc::F_GETLEASE) };
    expect("lease", lease, libc::F_RDLCK);
    probe::sleep_ms(50);
    expect("who waits goes on waiting", state.board.get(FREED), 0);
    ok("F_SETLK", lock(&state.files[0], libc::F_SETLK, libc::F_UNLCK, 0, 0));
    state.board.wait(FREED, 1);
    expect("now the other has it", lock(&state.files[0], libc::F_SETLK, libc::F_WRLCK, 0, 10), -1);
    state.board.set(GO, 1);
    succeeded("who waited", state.waiter);
}

fn main() {
    probe::run(setup, check)
}
