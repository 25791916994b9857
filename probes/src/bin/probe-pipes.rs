//! Pipes and FIFOs: contents, sizes, flags, packets, ends that are gone.
#![allow(unsafe_code)]

use probe::{Dir, expect, fdinfo, ok, own, read_at_once, refused, transfer, word};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

fn pipe(flags: i32, size: i32) -> Pipe {
    let mut ends = [0; 2];
    ok("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), flags) });
    let pipe = Pipe { read: own("pipe2", ends[0]), write: own("pipe2", ends[1]) };
    if size > 0 {
        ok("F_SETPIPE_SZ", unsafe { libc::fcntl(ends[0], libc::F_SETPIPE_SZ, size) });
    }
    pipe
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    (0..count as u64).map(|at| word(seed ^ at) as u8).collect()
}

fn size(fd: &OwnedFd) -> i32 {
    ok("F_GETPIPE_SZ", unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETPIPE_SZ) })
}

fn about(fd: &OwnedFd) -> (Vec<String>, i32, i32) {
    (fdinfo(fd), size(fd), ok("F_GETFD", unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }))
}

struct State {
    plain: Pipe,
    small: Pipe,
    stuffed: (Pipe, usize),
    packets: Pipe,
    no_writer: OwnedFd,
    no_reader: OwnedFd,
    fifo: (OwnedFd, OwnedFd),
    both: OwnedFd,
    dir: Dir,
    before: Vec<(Vec<String>, i32, i32)>,
}

fn descriptors(state: &State) -> [&OwnedFd; 12] {
    [
        &state.plain.read,
        &state.plain.write,
        &state.small.read,
        &state.small.write,
        &state.stuffed.0.read,
        &state.stuffed.0.write,
        &state.packets.read,
        &state.packets.write,
        &state.no_writer,
        &state.no_reader,
        &state.fifo.0,
        &state.both,
    ]
}

fn open(path: &CString, flags: i32) -> OwnedFd {
    own("open", unsafe { libc::open(path.as_ptr(), flags) })
}

fn setup() -> State {
    let plain = pipe(libc::O_CLOEXEC, 0);
    transfer(&plain.write, &bytes(12_345, 1));
    let small = pipe(0, 4096);
    transfer(&small.write, b"small");
    // One end alone does not block.
    ok("F_SETFL", unsafe { libc::fcntl(small.read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) });
    let stuffed = pipe(libc::O_NONBLOCK, 256 << 10);
    let count = probe::full(&stuffed.write, 0xa5);
    let packets = pipe(libc::O_DIRECT, 0);
    [10, 200, 3000].into_iter().for_each(|length| transfer(&packets.write, &bytes(length, length as u64)));
    let Pipe { read: no_writer, write } = pipe(0, 0);
    transfer(&write, b"last words");
    drop(write);
    let Pipe { read, write: no_reader } = pipe(0, 0);
    drop(read);
    let dir = Dir::new();
    let name = |name: &str| CString::new(dir.at(name).as_os_str().as_bytes()).unwrap();
    for fifo in ["fifo", "both"] {
        ok("mkfifo", unsafe { libc::mkfifo(name(fifo).as_ptr(), 0o600) });
    }
    let fifo_read = open(&name("fifo"), libc::O_RDONLY | libc::O_NONBLOCK);
    let fifo_write = open(&name("fifo"), libc::O_WRONLY);
    transfer(&fifo_write, b"named content");
    let both = open(&name("both"), libc::O_RDWR | libc::O_CLOEXEC);
    transfer(&both, b"both ways");
    let mut state = State {
        plain,
        small,
        stuffed: (stuffed, count),
        packets,
        no_writer,
        no_reader,
        fifo: (fifo_read, fifo_write),
        both,
        dir,
        before: vec![],
    };
    state.before = descriptors(&state).map(about).to_vec();
    state
}

fn holds(what: &str, fd: &OwnedFd, want: &[u8]) {
    let got = read_at_once(fd, want.len() + 1).unwrap_or_default();
    probe::expect_that(what, got == want, got.len());
}

fn check(state: State) {
    for (number, (now, before)) in descriptors(&state).map(about).iter().zip(&state.before).enumerate() {
        expect(&format!("descriptor {number}"), now, before);
    }
    holds("plain pipe", &state.plain.read, &bytes(12_345, 1));
    transfer(&state.plain.write, b"more");
    holds("plain pipe, new content", &state.plain.read, b"more");
    holds("small pipe", &state.small.read, b"small");
    expect("small pipe is empty", read_at_once(&state.small.read, 1), None);
    let (stuffed, count) = &state.stuffed;
    refused(
        "write to a full pipe",
        unsafe { libc::write(stuffed.write.as_raw_fd(), [0_u8; 4096].as_ptr().cast(), 4096) },
        libc::EAGAIN,
    );
    let mut total = 0;
    while let Some(bytes) = read_at_once(&stuffed.read, 65_536) {
        expect("content of the full pipe", bytes.iter().all(|&byte| byte == 0xa5), true);
        total += bytes.len();
    }
    expect("bytes in the full pipe", total, *count);
    for length in [10, 200, 3000] {
        let got = read_at_once(&state.packets.read, 65_536);
        expect("packet", got, Some(bytes(length, length as u64)));
    }
    holds("pipe without writer", &state.no_writer, b"last words");
    expect("end of the pipe without writer", read_at_once(&state.no_writer, 1), Some(vec![]));
    refused(
        "write without reader",
        unsafe { libc::write(state.no_reader.as_raw_fd(), b"x".as_ptr().cast(), 1) },
        libc::EPIPE,
    );
    holds("fifo", &state.fifo.0, b"named content");
    let path = CString::new(state.dir.at("fifo").as_os_str().as_bytes()).unwrap();
    transfer(&open(&path, libc::O_WRONLY | libc::O_NONBLOCK), b"by name");
    holds("fifo, by its name", &state.fifo.0, b"by name");
    transfer(&state.fifo.1, b"by descriptor");
    holds("fifo, by its descriptor", &state.fifo.0, b"by descriptor");
    holds("fifo of both ways", &state.both, b"both ways");
    drop(state.plain.write);
    holds("end of the plain pipe", &state.plain.read, b"");
}

fn main() {
    probe::run(setup, check)
}
