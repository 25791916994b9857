//! Seccomp filters: installed by prctl and by seccomp, one on top of another, for one thread and for all, inherited.
//!
//! Each filter makes one harmless call fail with an errno of its own. A thread with a filter of its own, a child from
//! before, children from in between, and one that installs its own. Every one must deny what it denied, and no more, and
//! still be able to install another.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, expect, field, ok, read_file, sleep_ms, status, succeeded};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::JoinHandle;

const GO: usize = 0;
const UP: usize = 1;

const FILTER: libc::c_ulong = 1;
const TSYNC: libc::c_ulong = 1;

/// `getpriority(which)` fails with `errno` for this `which`.
fn filter(which: u32, errno: u32) -> [libc::sock_filter; 6] {
    let i = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        i(0x20, 0, 0, 0),
        i(0x15, 0, 3, libc::SYS_getpriority as u32),
        i(0x20, 0, 0, 16),
        i(0x15, 0, 1, which),
        i(0x06, 0, 0, 0x0005_0000 | errno),
        i(0x06, 0, 0, 0x7fff_0000),
    ]
}

fn install(which: u32, errno: u32, flags: Option<libc::c_ulong>) {
    let mut program = filter(which, errno);
    let header = libc::sock_fprog { len: 6, filter: program.as_mut_ptr() };
    match flags {
        None => ok("prctl", unsafe { libc::prctl(libc::PR_SET_SECCOMP, 2, &header) }),
        Some(flags) => ok("seccomp", unsafe { libc::syscall(libc::SYS_seccomp, FILTER, flags, &header) }) as i32,
    };
}

/// The errno of `getpriority(which)`; 0 for none.
fn errno_of(which: u32) -> i32 {
    let failed = unsafe { libc::syscall(libc::SYS_getpriority, which, 0) } == -1;
    if failed { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 }
}

/// What the calling thread is denied, and how many filters it has that pid 1 has not: in a container that one has a filter, too.
fn denied() -> (Vec<i32>, i32) {
    let first = field(&read_file("/proc/1/status"), "Seccomp_filters");
    let count = |text: String| text.parse::<i32>().unwrap_or_else(|_| probe::fail("Seccomp_filters is no number"));
    ((1000..1006).map(errno_of).collect(), count(status("Seccomp_filters")) - count(first))
}

fn stays(board: Board) {
    let before = denied();
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("what a child is denied", denied(), before);
    // Without capabilities a filter takes this.
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    install(1005, 95, Some(0));
    expect("a new filter", errno_of(1005), 95);
}

struct Family {
    board: Board,
    before: (Vec<i32>, i32),
    children: Vec<i32>,
    thread: JoinHandle<()>,
}

static ROUND: AtomicU32 = AtomicU32::new(0);

fn setup() -> Family {
    let board = Board::new();
    let mut children = vec![child(|| stays(board))];
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    let round = ROUND.fetch_add(1, SeqCst);
    install(1000, 70 + round, None);
    children.push(child(|| stays(board)));
    // One that is no filter: it must not count.
    let nothing = libc::sock_fprog { len: 0, filter: std::ptr::null_mut() };
    expect("no filter", unsafe { libc::syscall(libc::SYS_seccomp, FILTER, 0, &nothing) }, -1);
    install(1001, 80, Some(0));
    children.push(child(|| {
        install(1004, 94, Some(0));
        stays(board);
    }));
    let thread = std::thread::spawn(move || {
        block_all();
        // For all threads, then for this one alone.
        install(1002, 82, Some(TSYNC));
        install(1003, 83, Some(0));
        let before = denied();
        board.add(UP, 1);
        board.wait(GO, 1);
        expect("what a thread is denied", denied(), before);
    });
    board.wait(UP, 4);
    children.push(child(|| stays(board)));
    board.wait(UP, 5);
    let before = denied();
    expect("errors before", &before.0[1..5], &[80, 82, 22, 22][..]);
    Family { board, before, children, thread }
}

fn check(Family { board, before, children, thread }: Family) {
    expect("what the parent is denied", denied(), before);
    expect("mode", status("Seccomp"), "2".to_owned());
    board.set(GO, 1);
    for pid in children {
        succeeded("a child", pid);
    }
    if thread.join().is_err() {
        probe::fail("the thread has panicked");
    }
    sleep_ms(1);
}

fn main() {
    probe::run(setup, check)
}
