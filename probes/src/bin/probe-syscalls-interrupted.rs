//! Threads blocked in all kinds of calls: none may see EINTR, none may end early, each must end well.
#![allow(unsafe_code)]

use probe::{block_all, clock, expect, expect_that, ok, own, transfer};
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

const STEP: i64 = 400_000_000;
const RT: i32 = 45;

struct Shared {
    go: AtomicU32,
    word: AtomicU32,
    up: AtomicU32,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    ok("pipe", unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) });
    (own("pipe", ends[0]), own("pipe", ends[1]))
}

fn result(what: &str, got: i64, want: i64) {
    let error = Error::last_os_error();
    expect_that(what, got == want, (got, error));
}

/// A call with a time-out, again and again: each must last its time.
fn timed(
    what: &'static str,
    shared: &Arc<Shared>,
    want: (i64, i32),
    call: impl Fn() -> i64 + Send + 'static,
) -> JoinHandle<()> {
    thread(shared, move |shared| {
        while shared.go.load(SeqCst) == 0 {
            let start = clock(libc::CLOCK_MONOTONIC);
            let got = call();
            let errno = if got == -1 { Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
            expect(what, (got, errno), want);
            let elapsed = clock(libc::CLOCK_MONOTONIC) - start;
            expect_that(&format!("duration of {what}"), (STEP.into()..STEP as i128 * 25).contains(&elapsed), elapsed);
        }
    })
}

fn thread(shared: &Arc<Shared>, work: impl FnOnce(&Shared) + Send + 'static) -> JoinHandle<()> {
    let shared = shared.clone();
    spawn(move || {
        block_all();
        shared.up.fetch_add(1, SeqCst);
        work(&shared);
    })
}

fn step() -> libc::timespec {
    libc::timespec { tv_sec: 0, tv_nsec: STEP }
}

/// A monotonic clock's time one step from now.
fn deadline() -> libc::timespec {
    let at = clock(libc::CLOCK_MONOTONIC) + i128::from(STEP);
    libc::timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 }
}

fn sleepers(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    static NEVER: AtomicU32 = AtomicU32::new(0);
    let (sleep, rt) = ((0, 0), 1_u64 << RT);
    vec![
        timed("nanosleep with rem", shared, sleep, || unsafe {
            libc::syscall(libc::SYS_nanosleep, &step(), &mut step())
        }),
        timed("nanosleep without rem", shared, sleep, || unsafe {
            libc::syscall(libc::SYS_nanosleep, &step(), null_mut::<u8>())
        }),
        timed("clock_nanosleep to a time", shared, sleep, || unsafe {
            libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &deadline(), 0)
        }),
        timed("poll with time-out", shared, sleep, || unsafe {
            libc::syscall(libc::SYS_poll, null::<u8>(), 0, STEP / 1_000_000)
        }),
        timed("ppoll with time-out", shared, sleep, || unsafe {
            libc::syscall(libc::SYS_ppoll, null::<u8>(), 0, &step(), 0, 8)
        }),
        timed("select with time-out", shared, sleep, || {
            let mut time = libc::timeval { tv_sec: 0, tv_usec: STEP / 1000 };
            unsafe { libc::syscall(libc::SYS_select, 0, 0, 0, 0, &mut time) }
        }),
        timed("futex with time-out", shared, (-1, libc::ETIMEDOUT), || unsafe {
            libc::syscall(libc::SYS_futex, &NEVER, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, 0, &step())
        }),
        timed("sigtimedwait with time-out", shared, (-1, libc::EAGAIN), move || unsafe {
            libc::syscall(libc::SYS_rt_sigtimedwait, &rt, 0, &step(), 8)
        }),
    ]
}

/// Calls on sockets that have a time limit of one step.
fn limited(shared: &Arc<Shared>, place: &std::path::Path) -> Vec<JoinHandle<()>> {
    let late = (-1, libc::EAGAIN);
    let (stream, other) = UnixStream::pair().unwrap_or_else(|error| probe::fail(&format!("socketpair: {error}")));
    let listener = UnixListener::bind(place).unwrap_or_else(|error| probe::fail(&format!("bind: {error}")));
    let limit = |socket: i32| {
        let limit = libc::timeval { tv_sec: 0, tv_usec: STEP / 1000 };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let (at, size) = (std::ptr::from_ref(&limit).cast(), size_of_val(&limit) as u32);
            ok("setsockopt", unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, option, at, size) });
        }
    };
    [stream.as_raw_fd(), listener.as_raw_fd()].into_iter().for_each(limit);
    vec![
        timed("recv with time limit", shared, late, move || {
            let (mut byte, _open) = (0_u8, &other);
            unsafe { libc::recv(stream.as_raw_fd(), (&raw mut byte).cast(), 1, 0) as i64 }
        }),
        timed("accept with time limit", shared, late, move || unsafe {
            i64::from(libc::accept(listener.as_raw_fd(), null_mut(), null_mut()))
        }),
    ]
}

struct State {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    pipes: Vec<OwnedFd>,
    socket: std::path::PathBuf,
    dir: probe::Dir,
    semaphore: i32,
    child: i32,
    child_pipe: OwnedFd,
    /// A process with a single thread, in a call that knows no restart.
    alone: (i32, OwnedFd),
    tid: Arc<AtomicU32>,
}

/// It ends when the pipe has an event, and well if nothing else has ended its wait.
fn child_that_polls() -> (i32, OwnedFd) {
    let (read, write) = pipe();
    let pid = probe::child(|| {
        let epoll = own("epoll_create1", unsafe { libc::epoll_create1(0) });
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 1 };
        let (epoll, read) = (epoll.as_raw_fd(), read.as_raw_fd());
        ok("epoll_ctl", unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, read, &mut event) });
        let got = unsafe { libc::syscall(libc::SYS_epoll_wait, epoll, &mut event, 1, -1) };
        result("epoll_wait of a process alone", got, 1);
    });
    (pid, write)
}

fn setup() -> State {
    let alone = child_that_polls();
    let (child_read, child_pipe) = pipe();
    let child = probe::child(|| {
        let _ = probe::read_at_once(&child_read, 1);
    });
    let shared = Arc::new(Shared { go: AtomicU32::new(0), word: AtomicU32::new(0), up: AtomicU32::new(0) });
    let mut threads = sleepers(&shared);
    let (ends, pipes): (Vec<_>, Vec<_>) = (0..5).map(|_| pipe()).unzip();
    let mut ends = ends.into_iter();
    let mut end = || ends.next().unwrap();
    let (r, p, pp, e, s) = (end(), end(), end(), end(), end());
    threads.push(thread(&shared, move |_| expect("read", probe::read_at_once(&r, 9), Some(b"go".to_vec()))));
    let poll = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    threads.push(thread(&shared, move |_| result("poll", i64::from(unsafe { libc::poll(&mut poll(&p), 1, -1) }), 1)));
    threads.push(thread(&shared, move |_| {
        result("ppoll", i64::from(unsafe { libc::ppoll(&mut poll(&pp), 1, null(), null()) }), 1)
    }));
    threads.push(thread(&shared, move |_| {
        let epoll = own("epoll_create1", unsafe { libc::epoll_create1(0) });
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 1 };
        ok("epoll_ctl", unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, e.as_raw_fd(), &mut event) });
        result("epoll_wait", i64::from(unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, -1) }), 1);
    }));
    threads.push(thread(&shared, move |_| unsafe {
        let mut set: libc::fd_set = std::mem::zeroed();
        libc::FD_SET(s.as_raw_fd(), &mut set);
        result("select", i64::from(libc::select(s.as_raw_fd() + 1, &mut set, null_mut(), null_mut(), null_mut())), 1);
    }));
    threads.push(thread(&shared, |shared| {
        let got =
            unsafe { libc::syscall(libc::SYS_futex, &shared.word, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, 0, 0) };
        expect_that("futex", got == 0 && shared.word.load(SeqCst) == 1, (got, Error::last_os_error()));
    }));
    let tid = Arc::new(AtomicU32::new(0));
    threads.push(thread(&shared, {
        let tid = tid.clone();
        move |_| {
            tid.store(probe::tid() as u32, SeqCst);
            let set = 1_u64 << (RT - 1);
            result("sigwaitinfo", unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &set, 0, 0, 8) }, RT.into());
        }
    }));
    let semaphore = ok("semget", unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) });
    threads.push(thread(&shared, move |_| {
        let mut take = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        result("semop", i64::from(unsafe { libc::semop(semaphore, &mut take, 1) }), 0);
    }));
    let dir = probe::Dir::new();
    let socket = dir.at("socket");
    threads.extend(limited(&shared, &dir.at("limited")));
    let listener = UnixListener::bind(&socket).unwrap_or_else(|error| probe::fail(&format!("bind: {error}")));
    threads.push(thread(&shared, move |_| {
        let got = unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) };
        expect_that("accept", got >= 0, (got, Error::last_os_error()));
        drop(own("accept", got));
    }));
    threads.push(thread(&shared, move |_| {
        let mut status = -1;
        result("waitpid", i64::from(unsafe { libc::waitpid(child, &mut status, 0) }), child.into());
        expect("wait status", status, 0);
    }));
    let count = threads.len() as u32;
    probe::wait_until("threads", || shared.up.load(SeqCst) == count);
    probe::wait_until_blocked();
    State { shared, threads, pipes, socket, dir, semaphore, child, child_pipe, alone, tid }
}

fn check(state: State) {
    // Whoever was interrupted a moment ago waits again as soon as a processor is free.
    probe::wait_until_blocked();
    expect("threads that have ended early", state.threads.iter().filter(|thread| thread.is_finished()).count(), 0);
    state.shared.go.store(1, SeqCst);
    state.pipes.iter().for_each(|pipe| transfer(pipe, b"go"));
    state.shared.word.store(1, SeqCst);
    unsafe {
        expect(
            "sleepers on the futex",
            libc::syscall(libc::SYS_futex, &state.shared.word, libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 9),
            1,
        );
        let pid = std::process::id();
        ok("tgkill", libc::syscall(libc::SYS_tgkill, pid, state.tid.load(SeqCst), RT));
        let mut give = libc::sembuf { sem_num: 0, sem_op: 1, sem_flg: 0 };
        ok("semop", libc::semop(state.semaphore, &mut give, 1));
    }
    let client = UnixStream::connect(&state.socket);
    expect_that("connect", client.is_ok(), &client);
    transfer(&state.child_pipe, b"x");
    transfer(&state.alone.1, b"x");
    probe::succeeded("the process alone", state.alone.0);
    probe::disown(state.child);
    for (number, thread) in state.threads.into_iter().enumerate() {
        probe::wait_until(&format!("end of thread {number}"), || thread.is_finished());
        expect("thread", thread.join().is_ok(), true);
    }
    ok("semctl", unsafe { libc::semctl(state.semaphore, 0, libc::IPC_RMID) });
    drop(state.dir);
}

fn main() {
    probe::run(setup, check)
}
