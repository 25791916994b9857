//! Landlock domains: one inside another, of a thread alone, inherited, with rules for paths, ports and scopes.
//!
//! Every task must be denied what it was denied, and no more; parent and child of one domain may still signal each other
//! although the domain forbids signals to others.
#![allow(unsafe_code)]

use probe::{Board, Dir, block_all, child, expect, ok, own, reaped, succeeded};
use std::ffi::CString;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

const GO: usize = 0;
const UP: usize = 1;
const PID: usize = 2;

const READ_FILE: u64 = 1 << 2;
const WRITE_FILE: u64 = 1 << 1;
const MAKE_REG: u64 = 1 << 8;
const BIND: u64 = 1;
const SIGNALS: u64 = 2;

/// Restricts the calling thread: accesses, scopes, and what stays allowed.
fn restrict(fs: u64, net: u64, scoped: u64, paths: &[(u64, &Path)], ports: &[u64]) {
    let attr = [fs, net, scoped];
    let ruleset = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &attr, 24, 0) };
    let ruleset = own("landlock_create_ruleset", ruleset as i32);
    for (access, path) in paths {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("no NUL");
        let parent = own("open", unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) });
        let mut rule = access.to_ne_bytes().to_vec();
        rule.extend(parent.as_raw_fd().to_ne_bytes());
        let added = unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), 1, rule.as_ptr(), 0) };
        ok("landlock_add_rule", added);
    }
    for port in ports {
        let rule = [net, *port];
        ok("landlock_add_rule", unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), 2, &rule, 0)
        });
    }
    let rule = [1_u64 << 60, 0];
    let refused = unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), 2, &rule, 0) };
    probe::refused("landlock_add_rule", refused, libc::EINVAL);
    ok("landlock_restrict_self", unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) });
}

#[derive(Clone)]
struct Place {
    dir: PathBuf,
    open: u16,
    closed: u16,
}

/// What the calling thread may do: read and write in both directories, make a file, bind.
fn may(place: &Place) -> Vec<bool> {
    let file = |name: &str| place.dir.join(name);
    let read = |name: &str| std::fs::read(file(name)).is_ok();
    let write = |name: &str| std::fs::OpenOptions::new().write(true).open(file(name)).is_ok();
    let make =
        |name: &str| std::fs::File::create_new(file(name)).and_then(|_| std::fs::remove_file(file(name))).is_ok();
    // Others try at the same time: in use is not forbidden.
    let bind = |port| !TcpListener::bind(("127.0.0.1", port)).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied);
    let unique = format!("new-{}", probe::tid());
    vec![
        read("a/file"),
        read("b/file"),
        write("a/file"),
        write("b/file"),
        make(&format!("a/{unique}")),
        make(&format!("b/{unique}")),
        bind(place.open),
        bind(place.closed),
    ]
}

fn stays(board: Board, place: &Place) {
    let before = may(place);
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("what a child may do", may(place), before);
}

struct Family {
    board: Board,
    place: Place,
    dir: Dir,
    supervisor: i32,
    before: Vec<bool>,
    first: i32,
}

/// All domains are a child's, so that the next round starts without.
fn setup() -> Family {
    let (board, dir) = (Board::new(), Dir::new());
    for name in ["a", "b"] {
        std::fs::create_dir(dir.at(name)).expect("mkdir");
        std::fs::write(dir.at(name).join("file"), name).expect("write");
    }
    let place = Place { dir: dir.path().to_owned(), open: 20_001, closed: 20_002 };
    let first = child(|| stays(board, &place));
    let supervisor = child(|| supervise(board, &place));
    board.wait(UP, 7);
    let before = may(&place);
    expect("the parent", &before, &vec![true; 8]);
    Family { board, place, dir, supervisor, before, first }
}

fn supervise(board: Board, place: &Place) {
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    let unrestricted = child(|| stays(board, place));
    let (a, whole) = (place.dir.join("a"), place.dir.clone());
    restrict(WRITE_FILE | MAKE_REG, BIND, SIGNALS, &[(WRITE_FILE | MAKE_REG, &a)], &[u64::from(place.open)]);
    let inner = place.clone();
    let outer_only = child(|| {
        board.set(PID, u64::from(std::process::id()));
        stays(board, place);
    });
    let thread: JoinHandle<()> = std::thread::spawn(move || {
        block_all();
        restrict(READ_FILE, 0, SIGNALS, &[(READ_FILE, &inner.dir.join("b"))], &[]);
        let borne = child(|| stays(board, &inner));
        let before = may(&inner);
        expect("a thread", &before, &vec![false, true, true, false, false, false, true, false]);
        board.add(UP, 1);
        board.wait(GO, 1);
        expect("what a thread may do", may(&inner), before);
        // The domain is the thread's own, and its child's.
        expect("signal to the child of a thread", unsafe { libc::kill(borne, 0) }, 0);
        succeeded("a child of a thread", borne);
    });
    board.wait(UP, 5);
    restrict(READ_FILE, 0, 0, &[(READ_FILE, &a), (READ_FILE, &whole.join("b/file"))], &[]);
    let both = child(|| stays(board, place));
    board.wait(UP, 6);
    let before = may(place);
    expect("the supervisor", &before, &vec![true, true, true, false, true, false, true, false]);
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("what the supervisor may do", may(place), before);
    // One domain: the child that was made in it can be reached, the one from before and the parent cannot.
    let reaches = |pid: i32| unsafe { libc::kill(pid, 0) } == 0;
    expect(
        "signals",
        (reaches(both), reaches(outer_only), reaches(unrestricted), reaches(unsafe { libc::getppid() })),
        (true, true, false, false),
    );
    for pid in [unrestricted, outer_only, both] {
        succeeded("a child of the supervisor", pid);
    }
    if thread.join().is_err() {
        probe::fail("the thread has panicked");
    }
    // Still able to restrict itself further.
    restrict(READ_FILE, 0, 0, &[], &[]);
    expect("a new domain", may(place)[..2].to_vec(), vec![false, false]);
}

fn check(Family { board, place, dir, supervisor, before, first }: Family) {
    expect("what the parent may do", may(&place), before);
    board.set(GO, 1);
    succeeded("the first child", first);
    expect("the supervisor", reaped(supervisor), 0);
    drop(dir);
}

fn main() {
    probe::run(setup, check)
}
