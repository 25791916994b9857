//! Many open descriptors (first argument, 2000 unless told): eventfds, pipes, files, copies.
#![allow(unsafe_code)]

use probe::{Dir, at_most_hard, expect, fdinfo, ok, own, read_at_once, transfer, word};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};

enum Kind {
    Event,
    Pipe(OwnedFd),
    File,
    Copy,
}

struct One {
    fd: OwnedFd,
    kind: Kind,
}

fn one(number: usize, dir: &Dir, last: Option<&One>) -> One {
    let text = word(number as u64).to_ne_bytes();
    match (number % 5, last) {
        (0, _) => {
            let mut ends = [0; 2];
            ok("pipe2", unsafe { libc::pipe2(ends.as_mut_ptr(), 0) });
            let write = own("pipe2", ends[1]);
            // All tests that run at once share what a user gets of pages in pipes.
            ok("fcntl", unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) });
            transfer(&write, &text);
            One { fd: own("pipe2", ends[0]), kind: Kind::Pipe(write) }
        }
        (1, _) => {
            let file =
                OpenOptions::new().create(true).append(true).read(true).open(dir.at(&format!("file-{}", number % 50)));
            let fd: OwnedFd = file.map(Into::into).unwrap_or_else(|error| probe::fail(&format!("open: {error}")));
            ok("lseek", unsafe { libc::lseek(fd.as_raw_fd(), number as i64, libc::SEEK_SET) });
            One { fd, kind: Kind::File }
        }
        (2, Some(last)) => One { fd: own("dup", unsafe { libc::dup(last.fd.as_raw_fd()) }), kind: Kind::Copy },
        _ => {
            let fd = own("eventfd", unsafe {
                libc::eventfd(0, libc::EFD_NONBLOCK | if number.is_multiple_of(2) { libc::EFD_CLOEXEC } else { 0 })
            });
            transfer(&fd, &(word(number as u64) >> 1).to_ne_bytes());
            One { fd, kind: Kind::Event }
        }
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or(0)
}

fn setup() -> (Dir, Vec<One>, usize) {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2000);
    let limit = at_most_hard(libc::RLIMIT_NOFILE, count + 100);
    let all = libc::rlimit { rlim_cur: limit, rlim_max: at_most_hard(libc::RLIMIT_NOFILE, u64::MAX) };
    ok("setrlimit", unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &all) });
    let dir = Dir::new();
    let mut all: Vec<One> = Vec::new();
    // A pipe takes two.
    for number in 0..(count * 5 / 6) as usize {
        let next = one(number, &dir, all.last());
        all.push(next);
    }
    (dir, all, descriptors())
}

fn check((_dir, all, before): (Dir, Vec<One>, usize)) {
    expect("descriptors", descriptors(), before);
    for (number, one) in all.iter().enumerate() {
        let want = word(number as u64);
        let cloexec = ok("fcntl", unsafe { libc::fcntl(one.fd.as_raw_fd(), libc::F_GETFD) });
        match &one.kind {
            Kind::Pipe(write) => {
                expect("pipe", read_at_once(&one.fd, 100), Some(want.to_ne_bytes().to_vec()));
                transfer(write, b"x");
                expect("pipe, new content", read_at_once(&one.fd, 100), Some(b"x".to_vec()));
            }
            Kind::File => expect(
                "offset",
                ok("lseek", unsafe { libc::lseek(one.fd.as_raw_fd(), 0, libc::SEEK_CUR) }),
                number as i64,
            ),
            Kind::Event => {
                expect("close on exec", cloexec, i32::from(number.is_multiple_of(2)));
                expect("eventfd", read_at_once(&one.fd, 8), Some((want >> 1).to_ne_bytes().to_vec()));
            }
            Kind::Copy => {
                let about =
                    |one: &One| (fdinfo(&one.fd)[0].clone(), unsafe { libc::fcntl(one.fd.as_raw_fd(), libc::F_GETFL) });
                expect("offset and flags of a copy", about(one), about(&all[number - 1]));
            }
        }
    }
}

fn main() {
    probe::run(setup, check)
}
