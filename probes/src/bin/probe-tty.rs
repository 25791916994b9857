//! Pseudo-terminals: a session with its controlling terminal, foreground group, modes, window size, buffered bytes.
#![allow(unsafe_code)]

use probe::{Board, child, expect, expect_that, ok, own, read_at_once, reaped, succeeded, transfer};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

const GO: usize = 0;
const UP: usize = 1;
const INTERRUPT: usize = 2;
const SIZE: [u16; 4] = [33, 177, 5, 6];

/// Two ends, and the name of the second one.
fn open_pty() -> (OwnedFd, OwnedFd, CString) {
    unsafe {
        let master =
            own("posix_openpt", libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC));
        ok("grantpt", libc::grantpt(master.as_raw_fd()));
        ok("unlockpt", libc::unlockpt(master.as_raw_fd()));
        let mut name = [0; 64];
        expect("ptsname", libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr(), name.len()), 0);
        let name = std::ffi::CStr::from_ptr(name.as_ptr()).to_owned();
        let slave = own("open", libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK));
        (master, slave, name)
    }
}

fn modes(fd: &OwnedFd) -> libc::termios {
    unsafe {
        let mut modes: libc::termios = std::mem::zeroed();
        ok("tcgetattr", libc::tcgetattr(fd.as_raw_fd(), &mut modes));
        modes
    }
}

fn set_modes(fd: &OwnedFd, modes: &libc::termios) {
    ok("tcsetattr", unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, modes) });
}

fn get(fd: &OwnedFd, what: libc::Ioctl) -> i32 {
    let mut value = -1;
    ok("ioctl", unsafe { libc::ioctl(fd.as_raw_fd(), what, &mut value) });
    value
}

/// Everything that is constant about a terminal: speeds, modes, characters, size, lock, packet mode, number.
fn about(master: &OwnedFd, slave: &OwnedFd) -> String {
    let (modes, mut size) = (modes(slave), [0_u16; 4]);
    ok("TIOCGWINSZ", unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCGWINSZ, &mut size) });
    let flags = [master, slave]
        .map(|fd| unsafe { (libc::fcntl(fd.as_raw_fd(), libc::F_GETFL), libc::fcntl(fd.as_raw_fd(), libc::F_GETFD)) });
    let numbers = [
        get(master, libc::TIOCGPTN),
        get(master, libc::TIOCGPTLCK),
        get(master, libc::TIOCGPKT),
        get(master, libc::TIOCGEXCL),
    ];
    let modes = (modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag, modes.c_line, modes.c_cc);
    format!("{modes:?} {size:?} {numbers:?} {flags:?}")
}

fn terminal_of_process() -> String {
    let text = probe::read_file("/proc/self/stat");
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or("").split(' ').collect();
    fields[2..6].join(" ")
}

/// What is open as /dev/tty: the device, whose terminal it is, and how it is open.
fn about_own(fd: &OwnedFd) -> (u64, [i32; 4], Option<std::path::PathBuf>) {
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        ok("fstat", libc::fstat(fd.as_raw_fd(), &mut stat));
        let flags = [libc::F_GETFL, libc::F_GETFD].map(|what| libc::fcntl(fd.as_raw_fd(), what));
        let session = [libc::tcgetpgrp(fd.as_raw_fd()), libc::tcgetsid(fd.as_raw_fd())];
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        (stat.st_rdev, [flags[0], flags[1], session[0], session[1]], path)
    }
}

/// Leader of a session on the terminal; its child is the foreground group.
fn session(board: Board, name: &CString) {
    ok("setsid", unsafe { libc::setsid() });
    let terminal = own("open", unsafe { libc::open(name.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK) });
    let front = child(|| {
        ok("setpgid", unsafe { libc::setpgid(0, 0) });
        // A shell ignores it for what it starts in the background.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        board.add(UP, 1);
        board.wait(GO, 1000);
    });
    board.wait(UP, 1);
    ok("tcsetpgrp", unsafe { libc::tcsetpgrp(terminal.as_raw_fd(), front) });
    let before = terminal_of_process();
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let held = own("/dev/tty", unsafe { libc::open(c"/dev/tty".as_ptr(), flags) });
    let held_before = about_own(&held);
    expect("the device /dev/tty", held_before.0, libc::makedev(5, 0));
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("what was open as /dev/tty", about_own(&held), held_before);
    transfer(&held, b"held\n");
    expect("group, session, terminal, foreground group", terminal_of_process(), before);
    expect("tcgetpgrp", unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) }, front);
    expect("tcgetsid", unsafe { libc::tcgetsid(terminal.as_raw_fd()) }, std::process::id() as i32);
    drop(own("/dev/tty", unsafe { libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR) }));
    board.set(INTERRUPT, 1);
    let status = reaped(front);
    expect_that(
        "foreground group is interrupted",
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGINT,
        status,
    );
}

struct State {
    board: Board,
    leader: i32,
    raw: (OwnedFd, OwnedFd),
    lines: (OwnedFd, OwnedFd),
    before: [String; 2],
    kept: [OwnedFd; 2],
}

/// One description, a descriptor that is closed on exec and one that is not. Opened like this the description itself
/// has O_CLOEXEC, which /proc then shows for both.
fn kept_on_exec(master: &OwnedFd) -> [OwnedFd; 2] {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let closed = own("TIOCGPTPEER", unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) });
    let kept = own("dup", unsafe { libc::dup(closed.as_raw_fd()) });
    [closed, kept]
}

fn setup() -> State {
    let board = Board::new();
    let (master, slave, name) = open_pty();
    let mut raw = modes(&slave);
    unsafe { libc::cfmakeraw(&mut raw) };
    (raw.c_cc[libc::VMIN], raw.c_cc[libc::VTIME], raw.c_cc[libc::VERASE]) = (3, 2, 0xfe);
    raw.c_cflag = raw.c_cflag & !libc::CBAUD | libc::B9600;
    set_modes(&slave, &raw);
    ok("TIOCSWINSZ", unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &SIZE) });
    let leader = child(|| session(board, &name));
    board.wait(UP, 2);
    transfer(&master, b"ty\0p\x03ed");
    transfer(&slave, b"printed\n");
    // Line by line: one whole line, and the begin of another.
    let (line_master, line_slave, _) = open_pty();
    transfer(&line_master, b"whole\npart");
    let before = [about(&master, &slave), about(&line_master, &line_slave)];
    let kept = kept_on_exec(&line_master);
    State { board, leader, raw: (master, slave), lines: (line_master, line_slave), before, kept }
}

fn check(state: State) {
    expect("terminals", [about(&state.raw.0, &state.raw.1), about(&state.lines.0, &state.lines.1)], state.before);
    let on_exec = state.kept.each_ref().map(|fd| unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) });
    expect("closed on exec, or kept", on_exec, [libc::FD_CLOEXEC, 0]);
    expect("printed bytes", read_at_once(&state.raw.0, 100), Some(b"printed\n".to_vec()));
    expect("nothing more is printed", read_at_once(&state.raw.0, 100), None);
    expect("echo", read_at_once(&state.lines.0, 100), Some(b"whole\r\npart".to_vec()));
    transfer(&state.lines.0, b"ial\n");
    expect("whole line", read_at_once(&state.lines.1, 100), Some(b"whole\n".to_vec()));
    expect("line that was begun before", read_at_once(&state.lines.1, 100), Some(b"partial\n".to_vec()));
    expect("typed bytes", read_at_once(&state.raw.1, 100), Some(b"ty\0p\x03ed".to_vec()));
    state.board.set(GO, 1);
    probe::wait_until("the leader's word", || state.board.get(INTERRUPT) == 1);
    expect("written to /dev/tty", read_at_once(&state.raw.0, 100), Some(b"held\n".to_vec()));
    let mut modes = modes(&state.raw.1);
    modes.c_lflag |= libc::ISIG;
    set_modes(&state.raw.1, &modes);
    transfer(&state.raw.0, b"\x03");
    succeeded("leader of the session", state.leader);
}

fn main() {
    probe::run(setup, check)
}
