//! pidfds: of a child, of itself, of a process that is no more; one that an epoll watches.
#![allow(unsafe_code)]

use probe::{Board, child, disown, expect, expect_that, field, ok, own, read_file, reaped};
use std::os::fd::{AsRawFd, OwnedFd};

const GO: usize = 0;

fn open(pid: i32, flags: u32) -> OwnedFd {
    own("pidfd_open", unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } as i32)
}

fn pid_of(fd: &OwnedFd) -> String {
    field(&read_file(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd())), "Pid")
}

fn readable(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    ok("poll", unsafe { libc::poll(&mut poll, 1, 0) }) == 1
}

struct State {
    board: Board,
    child: i32,
    zombie: i32,
    fds: [OwnedFd; 4],
    epoll: OwnedFd,
    before: [String; 4],
}

fn setup() -> State {
    let board = Board::new();
    let alive = child(|| board.wait(GO, 1));
    let zombie = child(|| ());
    let gone = child(|| ());
    let fds =
        [open(alive, libc::O_NONBLOCK as u32), open(std::process::id() as i32, 0), open(zombie, 0), open(gone, 0)];
    reaped(gone);
    probe::wait_until("zombie", || readable(&fds[2]));
    let epoll = own("epoll_create1", unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0x77 };
    ok("epoll_ctl", unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fds[0].as_raw_fd(), &mut event) });
    let before = fds.each_ref().map(pid_of);
    expect("pid of one that is no more", &before[3], &"-1".to_owned());
    State { board, child: alive, zombie, fds, epoll, before }
}

fn check(state: State) {
    let State { board, child, zombie, fds, epoll, before } = state;
    expect("pids", fds.each_ref().map(pid_of), before);
    expect("who has ended", fds.each_ref().map(readable), [false, false, true, true]);
    let flags = [0, 1].map(|n: usize| unsafe { libc::fcntl(fds[n].as_raw_fd(), libc::F_GETFL) } & libc::O_NONBLOCK);
    expect("blocking", flags, [libc::O_NONBLOCK, 0]);
    let send = |fd: &OwnedFd| unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), 0, 0, 0) };
    expect("signal 0 to the child and to itself", (send(&fds[0]), send(&fds[1])), (0, 0));
    expect_that("signal to one that is no more", send(&fds[3]) == -1, 0);
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let mut wait = |ms| unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, ms) };
    expect("events before the child ends", wait(0), 0);
    board.set(GO, 1);
    expect("events when it ends", wait(30_000), 1);
    let data = event.u64;
    expect("data of the event", data, 0x77);
    // P_PIDFD
    let waitid = |fd: &OwnedFd| unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        ok("waitid", libc::waitid(3, fd.as_raw_fd() as u32, &mut info, libc::WEXITED));
        info.si_pid()
    };
    expect("children by their pidfds", (waitid(&fds[0]), waitid(&fds[2])), (child, zombie));
    disown(child);
    disown(zombie);
}

fn main() {
    probe::run(setup, check)
}
