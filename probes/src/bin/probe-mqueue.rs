//! POSIX message queues: one with messages of all sorts of priorities, opened twice; one that is full and that nobody has open, larger than
//! what may be made now; two without names, one of which has been taken by another; one that a child waits at; three that notify
//! their process of a message: by a signal that it blocks, by one that would end it, and not at all.
#![allow(unsafe_code)]

use probe::{Board, child, expect, expect_that, ok, own, read_file, refused, succeeded};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::null;

const UP: usize = 0;
const DONE: usize = 1;
const MOST: i64 = 9;
const SIZE: i64 = 100;
const LIMIT: &str = "/proc/sys/fs/mqueue/msg_max";

fn open(name: &CStr, flags: i32, mode: u32, most: i64) -> OwnedFd {
    let attributes = [0, most, SIZE, 0, 0, 0, 0, 0_i64];
    own("mq_open", unsafe { libc::syscall(libc::SYS_mq_open, name.as_ptr(), flags, mode, attributes.as_ptr()) } as i32)
}

fn attributes(queue: &OwnedFd) -> [i64; 4] {
    let mut now = [0_i64; 8];
    ok("mq_getsetattr", unsafe {
        libc::syscall(libc::SYS_mq_getsetattr, queue.as_raw_fd(), null::<u8>(), now.as_mut_ptr())
    });
    [now[0], now[1], now[2], now[3]]
}

fn send(queue: &OwnedFd, priority: u32, text: &[u8]) {
    ok("mq_send", unsafe {
        libc::syscall(libc::SYS_mq_timedsend, queue.as_raw_fd(), text.as_ptr(), text.len(), priority, null::<u8>())
    });
}

fn receive(queue: &OwnedFd) -> (u32, Vec<u8>) {
    let (mut text, mut priority) = (vec![0; SIZE as usize], 0);
    let got = ok("mq_receive", unsafe {
        libc::syscall(
            libc::SYS_mq_timedreceive,
            queue.as_raw_fd(),
            text.as_mut_ptr(),
            text.len(),
            &raw mut priority,
            null::<u8>(),
        )
    });
    text.truncate(got as usize);
    (priority, text)
}

fn receive_nothing(queue: &OwnedFd) {
    let got = unsafe {
        libc::syscall(
            libc::SYS_mq_timedreceive,
            queue.as_raw_fd(),
            [0_u8; 100].as_mut_ptr(),
            100_usize,
            null::<u32>(),
            null::<u8>(),
        )
    };
    refused("mq_receive", got, libc::EAGAIN);
}

fn unlink(name: &CStr) {
    ok("mq_unlink", unsafe { libc::syscall(libc::SYS_mq_unlink, name.as_ptr()) });
}

fn stat(queue: &OwnedFd) -> (u32, u32, u32, u64) {
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        ok("fstat", libc::fstat(queue.as_raw_fd(), &mut stat));
        (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink as u64)
    }
}

fn flags(queue: &OwnedFd) -> [i32; 2] {
    [libc::F_GETFD, libc::F_GETFL]
        .map(|what| ok("fcntl", unsafe { libc::fcntl(queue.as_raw_fd(), what) }) & !libc::O_CLOEXEC)
}

/// Asks to be notified: `SIGEV_SIGNAL` is 0, `SIGEV_NONE` 1.
fn notify(queue: &OwnedFd, signal: i32, how: i32, value: u64) -> i64 {
    let mut event = [0_u64; 8];
    (event[0], event[1]) = (value, signal as u64 | (how as u64) << 32);
    unsafe { libc::syscall(libc::SYS_mq_notify, queue.as_raw_fd(), event.as_ptr()) }
}

/// What a queue says of itself.
fn says(queue: &OwnedFd) -> String {
    let mut text = [0_u8; 128];
    let n = ok("pread", unsafe { libc::pread(queue.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), 0) });
    String::from_utf8_lossy(&text[..n as usize]).into_owned()
}

/// The signal that waits, if it is one of a queue: its value.
fn taken(signal: i32) -> u64 {
    unsafe {
        let (mut set, mut info): (libc::sigset_t, libc::siginfo_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigaddset(&mut set, signal);
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        expect("a signal", ok("sigtimedwait", libc::sigtimedwait(&set, &mut info, &at_once)), signal);
        expect("of a message queue", info.si_code, libc::SI_MESGQ);
        info.si_value().sival_ptr as u64
    }
}

/// `how`: `SIG_BLOCK` or `SIG_UNBLOCK`.
fn mask(how: i32, signal: i32) {
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, signal);
        ok("sigprocmask", libc::sigprocmask(how, &set, std::ptr::null_mut()));
    }
}

/// One that the process blocks, and one that would end it.
const BLOCKED: i32 = 63;
const DEADLY: i32 = libc::SIGALRM;
const VALUES: [u64; 2] = [0x8000_0001_7fff_fffe, 0x0102_0304_0506_0708];
const NOTIFIES: [&CStr; 3] = [c"notifies", c"notifies-too", c"notifies-nobody"];

const NEW: i32 = libc::O_CREAT | libc::O_EXCL;
const ABANDONED: &CStr = c"aban\xffdoned queue (deleted)";

struct State {
    reads: OwnedFd,
    writes: OwnedFd,
    gone: OwnedFd,
    taken: OwnedFd,
    waited_at: OwnedFd,
    epoll: OwnedFd,
    notify: [OwnedFd; 3],
    said: [String; 3],
    then: Vec<(u32, u32, u32, u64)>,
    flags: Vec<[i32; 2]>,
    limit: String,
    waiting: i32,
    board: Board,
}

fn setup() -> State {
    let reads = open(c"probe", libc::O_RDONLY | libc::O_NONBLOCK | NEW, 0o640, MOST);
    let writes = open(c"probe", libc::O_WRONLY | libc::O_CLOEXEC, 0, 0);
    for (priority, text) in
        [(0, &b"last"[..]), (7, &[7; SIZE as usize]), (32767, b""), (7, b"seven"), (0, b"the very last")]
    {
        send(&writes, priority, text);
    }
    let abandoned = open(ABANDONED, libc::O_RDWR | NEW, 0o617, MOST);
    for n in 0..MOST {
        send(&abandoned, 1, &[n as u8]);
    }
    ok("fchmod", unsafe { libc::fchmod(abandoned.as_raw_fd(), 0o617) });
    drop(abandoned);
    let gone = open(c"gone", libc::O_RDWR | libc::O_NONBLOCK | NEW, 0o600, 3);
    send(&gone, 5, b"of the first");
    unlink(c"gone");
    let taken = open(c"gone", libc::O_RDWR | libc::O_NONBLOCK | NEW, 0o600, 2);
    unlink(c"gone");
    send(&open(c"gone", libc::O_RDWR | NEW, 0o600, 1), 6, b"of the third");
    let waited_at = open(c"waited-at", libc::O_RDWR | NEW, 0o600, 1);
    // Where limits can be written they are too low now for what is there. Outside of a container they are the host's.
    if alone() {
        let _ = std::fs::write(LIMIT, "1");
    }
    let board = Board::new();
    let waiting = child(|| {
        board.set(UP, 1);
        expect("what was waited for", receive(&waited_at), (3, b"at last".to_vec()));
        board.set(DONE, 1);
    });
    board.wait(UP, 1);
    let epoll = own("epoll_create1", unsafe { libc::epoll_create1(0) });
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: u64::MAX };
    ok("epoll_ctl", unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, reads.as_raw_fd(), &mut event) });
    let notifying = NOTIFIES.map(|name| open(name, libc::O_RDONLY | NEW, 0o600, 1));
    mask(libc::SIG_BLOCK, BLOCKED);
    ok("mq_notify", notify(&notifying[0], BLOCKED, 0, VALUES[0]));
    ok("mq_notify", notify(&notifying[1], DEADLY, 0, VALUES[1]));
    ok("mq_notify", notify(&notifying[2], 0, 1, 7));
    let said = notifying.each_ref().map(says);
    let all = [&reads, &writes, &gone, &taken, &waited_at];
    let (then, flags) = (all.map(stat).to_vec(), all.map(flags).to_vec());
    let limit = read_file(LIMIT);
    let notify = notifying;
    State { then, flags, reads, writes, gone, taken, waited_at, epoll, notify, said, limit, waiting, board }
}

fn check_notifications(queues: &[OwnedFd; 3], said: &[String; 3]) {
    expect("whom they notify", &queues.each_ref().map(says), said);
    mask(libc::SIG_BLOCK, DEADLY);
    for (queue, name) in queues.iter().zip(NOTIFIES) {
        refused("another mq_notify", notify(queue, DEADLY, 0, 0), libc::EBUSY);
        send(&open(name, libc::O_WRONLY, 0, 0), 0, b"to be notified of");
    }
    expect("values", [taken(BLOCKED), taken(DEADLY)], VALUES);
    mask(libc::SIG_UNBLOCK, DEADLY);
    for queue in queues {
        ok("mq_notify, once it has notified", notify(queue, BLOCKED, 0, 0));
    }
    NOTIFIES.into_iter().for_each(unlink);
}

fn check(state: State) {
    check_notifications(&state.notify, &state.said);
    let State { reads, writes, gone, taken, waited_at, epoll, then, flags: before, limit, waiting, board, .. } = state;
    let all = [&reads, &writes, &gone, &taken, &waited_at];
    expect("queues", all.map(stat).to_vec(), then);
    expect("flags", all.map(flags).to_vec(), before);
    expect("limit", read_file(LIMIT), limit);
    expect("attributes", attributes(&reads), [i64::from(libc::O_NONBLOCK), MOST, SIZE, 5]);
    expect("attributes of its other end", attributes(&writes)[0], 0);
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    expect("ready", ok("epoll_wait", unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, 0) }), 1);
    let wanted = [
        (32767, Vec::new()),
        (7, vec![7; SIZE as usize]),
        (7, b"seven".to_vec()),
        (0, b"last".to_vec()),
        (0, b"the very last".to_vec()),
    ];
    for one in wanted {
        expect("a message", receive(&reads), one);
    }
    receive_nothing(&reads);
    send(&writes, 1, b"anew");
    expect("a new message", receive(&reads), (1, b"anew".to_vec()));
    let abandoned = open(ABANDONED, libc::O_RDWR | libc::O_NONBLOCK, 0, 0);
    let (mode, own_ids) = (stat(&abandoned).0, unsafe { (libc::geteuid(), libc::getegid()) });
    expect("its mode", mode & 0o7777, 0o617);
    expect("its owner", (stat(&abandoned).1, stat(&abandoned).2), own_ids);
    for n in 0..MOST {
        expect("what nobody had open", receive(&abandoned), (1, vec![n as u8]));
    }
    receive_nothing(&abandoned);
    expect("of one without a name", receive(&gone), (5, b"of the first".to_vec()));
    expect("of another", attributes(&taken)[1..].to_vec(), vec![2, SIZE, 0]);
    expect("of the one with that name", receive(&open(c"gone", libc::O_RDWR, 0, 0)), (6, b"of the third".to_vec()));
    expect_that("the child waits", board.get(DONE) == 0, board.get(DONE));
    send(&waited_at, 3, b"at last");
    succeeded("the child", waiting);
    [c"probe", ABANDONED, c"gone", c"waited-at"].into_iter().for_each(unlink);
    if alone() {
        let _ = std::fs::write(LIMIT, "10");
    }
}

/// Whether this is a container: its first task has the second id.
fn alone() -> bool {
    std::process::id() == 2
}

fn main() {
    probe::run(setup, check)
}
