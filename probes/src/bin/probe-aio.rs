//! Asynchronous I/O: completions that nobody has read, in a ring that has come round and in one that takes no more; a context
//! that was destroyed between them; an eventfd that tells; a child with a ring and no context; a request at work afterwards; requests
//! that end one after the other while all this is looked at.
#![allow(unsafe_code)]

use probe::{Board, Dir, child, expect, expect_that, ok, own, read_at_once, succeeded, transfer};
use std::os::fd::{AsRawFd, OwnedFd};

const PREAD: u16 = 0;
const POLL: u16 = 5;
const RESFD: u32 = 1;
/// Requests that end one after the other, and the time between two.
const LATE: usize = 60;
const APART: i64 = 6_000_000;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    tells: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    second: i64,
}

/// A context, and how many requests it was asked to have room for.
#[derive(Clone, Copy)]
struct Context(u64);

impl Context {
    fn new(requests: u32) -> Context {
        let mut id = 0_u64;
        ok("io_setup", unsafe { libc::syscall(libc::SYS_io_setup, requests, &mut id) });
        Context(id)
    }

    /// Number, slots, head, tail, magic number and the rest of the ring's head.
    fn header(self) -> [u32; 7] {
        let ring = self.0 as *const u32;
        [1, 2, 3, 4, 5, 6, 7].map(|i| unsafe { ring.add(i).read_volatile() })
    }

    /// Whether there was room.
    fn submit(self, request: &mut Request) -> bool {
        let mut requests = [request as *mut Request];
        unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, requests.as_mut_ptr()) == 1 }
    }

    fn read(self, most: usize) -> Vec<Event> {
        let mut events = vec![Event::default(); most];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let count = unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 0, most, events.as_mut_ptr(), &at_once) };
        events.truncate(ok("io_getevents", count) as usize);
        events
    }

    fn destroy(self) {
        ok("io_destroy", unsafe { libc::syscall(libc::SYS_io_destroy, self.0) });
        expect("io_getevents of what is gone", self.is_alive(), false);
    }

    fn is_alive(self) -> bool {
        unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 0, 0, 0, 0) == 0 }
    }
}

/// Requests that wait for timers.
struct Late {
    context: Context,
    told: OwnedFd,
    _requests: Vec<Request>,
    _timers: Vec<OwnedFd>,
}

impl Late {
    fn new() -> Late {
        let told = own("eventfd", unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) });
        let context = Context::new(LATE as u32);
        let timer = || own("timerfd_create", unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) });
        let timers: Vec<OwnedFd> = (0..LATE).map(|_| timer()).collect();
        let base =
            Request { opcode: POLL, buffer: 1, flags: RESFD, tells: told.as_raw_fd() as u32, ..Request::default() };
        let request =
            |(n, timer): (usize, &OwnedFd)| Request { data: n as u64, file: timer.as_raw_fd() as u32, ..base };
        let mut requests: Vec<Request> = timers.iter().enumerate().map(request).collect();
        for (n, timer) in timers.iter().enumerate() {
            expect("room", context.submit(&mut requests[n]), true);
            let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let time = libc::timespec { tv_sec: 0, tv_nsec: APART * (n as i64 + 1) };
            let once = libc::itimerspec { it_interval: never, it_value: time };
            let set = unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &once, std::ptr::null_mut()) };
            ok("timerfd_settime", set);
        }
        Late { context, told, _requests: requests, _timers: timers }
    }

    fn check(&self) {
        let mut ended = Vec::new();
        probe::wait_until("what ended late", || {
            ended.extend(self.context.read(2 * LATE).into_iter().map(|event| (event.data as usize, event.result)));
            ended.len() >= LATE
        });
        ended.sort_unstable();
        expect("what ended late", ended, (0..LATE).map(|n| (n, 1)).collect());
        expect("no more of it", self.context.read(9).len(), 0);
        let count = (LATE as u64).to_ne_bytes().to_vec();
        expect("how often it told", read_at_once(&self.told, 8), Some(count));
        self.context.destroy();
    }
}

struct State {
    turning: Context,
    full: Context,
    idle: Context,
    headers: [[u32; 7]; 3],
    unread: [Vec<Event>; 2],
    file: std::fs::File,
    told: OwnedFd,
    blocked: OwnedFd,
    buffer: Box<[u8; 16]>,
    request: Box<Request>,
    board: Board,
    heir: libc::pid_t,
    late: Late,
    _dir: Dir,
}

fn setup() -> State {
    let dir = Dir::new();
    let path = dir.at("file");
    std::fs::write(&path, b"0123456789").expect("a file");
    let file = std::fs::File::open(&path).expect("a file");
    let told = own("eventfd", unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) });
    let blocked = own("eventfd", unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) });
    let (turning, between, full, idle) = (Context::new(1), Context::new(9), Context::new(200), Context::new(3));
    between.destroy();
    let mut buffer = Box::new([0; 16]);
    let base = Request {
        opcode: PREAD,
        file: file.as_raw_fd() as u32,
        buffer: buffer.as_mut_ptr() as u64,
        ..Request::default()
    };
    let mut request = Box::new(base);
    let slots = turning.header()[0];
    for n in 0..slots + slots / 2 {
        *request = Request { data: n.into(), bytes: 1, ..base };
        expect("room", turning.submit(&mut request), true);
        expect("a completion", turning.read(2).len(), 1);
    }
    let at = &raw const *request as u64;
    let mut expected = Vec::new();
    // More than the data of the file, beyond its end, nothing to read, a descriptor that is ready.
    let cases = [
        (u64::MAX, Request { bytes: 16, offset: 3, ..base }, 7),
        (0, Request { bytes: 16, offset: 1 << 40, ..base }, 0),
        (1 << 63, Request { file: blocked.as_raw_fd() as u32, bytes: 8, ..base }, -i64::from(libc::EAGAIN)),
        (7, Request { opcode: POLL, file: blocked.as_raw_fd() as u32, buffer: 4, ..Request::default() }, 4),
    ];
    let cases: Vec<_> = cases.iter().cycle().take(slots as usize / 2 + 5).collect();
    for (data, with, result) in cases {
        *request = Request { data: *data, flags: RESFD, tells: told.as_raw_fd() as u32, ..*with };
        expect("room", turning.submit(&mut request), true);
        expected.push(Event { data: *data, object: at, result: *result, second: 0 });
    }
    let mut all = Vec::new();
    loop {
        *request = Request { data: !(all.len() as u64), bytes: 2, ..base };
        if !full.submit(&mut request) {
            break;
        }
        all.push(Event { data: request.data, object: at, result: 2, second: 0 });
    }
    expect_that("a ring that is full", all.len() as u32 > full.header()[0] / 2, all.len());
    let board = Board::new();
    let heir = child(|| {
        board.wait(0, 1);
        expect("a parent's context", turning.is_alive(), false);
        expect("a parent's ring", turning.header()[3], 0xa10a_10a1);
    });
    let headers = [turning.header(), full.header(), idle.header()];
    State {
        turning,
        full,
        idle,
        headers,
        unread: [expected, all],
        file,
        told,
        blocked,
        buffer,
        request,
        board,
        heir,
        late: Late::new(),
        _dir: dir,
    }
}

fn check(mut state: State) {
    let State { turning, full, idle, .. } = state;
    expect("rings", [turning.header(), full.header(), idle.header()], state.headers);
    expect("room in a full ring", full.submit(&mut state.request), false);
    let slots = full.header()[0] as usize;
    let count = (state.unread[0].len() as u64).to_ne_bytes().to_vec();
    expect("the eventfd", read_at_once(&state.told, 8), Some(count));
    state.late.check();
    // As many as do not fit once round, in two pieces.
    let first = turning.read(3);
    expect("completions", [first, turning.read(1000)].concat(), state.unread[0].clone());
    expect("completions of a full ring", full.read(slots), state.unread[1].clone());
    expect("no more completions", [turning, full, idle].map(|context| context.read(9).len()), [0; 3]);
    let at = &raw const *state.request as u64;
    for context in [turning, full, idle] {
        for round in 0..300 {
            let (file, buffer) = (state.file.as_raw_fd() as u32, state.buffer.as_mut_ptr() as u64);
            *state.request = Request { data: round, file, buffer, bytes: 4, offset: 5, ..Request::default() };
            expect("room", context.submit(&mut state.request), true);
            expect("completion", context.read(9), vec![Event { data: round, object: at, result: 4, second: 0 }]);
            expect("what was read", &state.buffer[..4], b"5678");
        }
    }
    // A request that has to wait.
    let waits =
        Request { data: 1, opcode: POLL, file: state.blocked.as_raw_fd() as u32, buffer: 1, ..Request::default() };
    *state.request = waits;
    expect("room", idle.submit(&mut state.request), true);
    expect("a request that waits", idle.read(1).len(), 0);
    transfer(&state.blocked, &1_u64.to_ne_bytes());
    probe::wait_until("a completion", || idle.read(1) == [Event { data: 1, object: at, result: 1, second: 0 }]);
    state.board.set(0, 1);
    succeeded("the child", state.heir);
    for context in [turning, full, idle] {
        context.destroy();
    }
}

fn main() {
    probe::run(setup, check)
}
