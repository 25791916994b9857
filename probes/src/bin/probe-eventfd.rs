//! eventfd: values beyond 32 bits, zero, the largest one; semaphores; flags.
#![allow(unsafe_code)]

use probe::{expect, fdinfo, own, read_at_once, refused, transfer};
use std::os::fd::{AsRawFd, OwnedFd};

const MOST: u64 = u64::MAX - 1;
const KINDS: [(u64, i32); 6] = [
    (0x1234_5678_9abc_def0, libc::EFD_NONBLOCK),
    (0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC),
    (MOST, libc::EFD_NONBLOCK),
    (0x7_0000_0003, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK),
    (1, libc::EFD_SEMAPHORE | libc::EFD_NONBLOCK),
    (77, 0),
];

fn flags(fd: &OwnedFd) -> (i32, i32) {
    unsafe { (libc::fcntl(fd.as_raw_fd(), libc::F_GETFL), libc::fcntl(fd.as_raw_fd(), libc::F_GETFD)) }
}

/// All but the number that the kernel gives to each.
fn about(fd: &OwnedFd) -> (Vec<String>, (i32, i32)) {
    (fdinfo(fd).into_iter().filter(|line| !line.starts_with("eventfd-id")).collect(), flags(fd))
}

type State = (Vec<OwnedFd>, OwnedFd, Vec<(Vec<String>, (i32, i32))>);

fn setup() -> State {
    let all: Vec<OwnedFd> = KINDS
        .iter()
        .map(|&(value, flags)| {
            let fd = own("eventfd", unsafe { libc::eventfd(0, flags) });
            transfer(&fd, &value.to_ne_bytes());
            fd
        })
        .collect();
    let twin = own("dup", unsafe { libc::dup(all[5].as_raw_fd()) });
    let about = all.iter().map(about).collect();
    (all, twin, about)
}

fn value(fd: &OwnedFd) -> Option<u64> {
    Some(u64::from_ne_bytes(read_at_once(fd, 8)?.try_into().unwrap_or_default()))
}

fn check((all, twin, before): State) {
    for ((fd, before), (number, _)) in all.iter().zip(before).zip(KINDS) {
        expect(&format!("eventfd with {number:#x}"), about(fd), before);
    }
    refused(
        "addition to the largest",
        unsafe { libc::write(all[2].as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) },
        libc::EAGAIN,
    );
    for (fd, (number, flags)) in all.iter().zip(KINDS) {
        let semaphore = flags & libc::EFD_SEMAPHORE != 0;
        match number {
            0 => expect("read of zero", value(fd), None),
            _ if semaphore => expect("semaphore", value(fd), Some(1)),
            // The twin must see what is added here.
            77 => {
                transfer(fd, &3_u64.to_ne_bytes());
                expect("value by the twin", value(&twin), Some(80));
            }
            _ => expect("value", value(fd), Some(number)),
        }
    }
    let left = probe::fdinfo(&all[3]).into_iter().find(|line| line.starts_with("eventfd-count"));
    expect(
        "value of the semaphore",
        left.map(|line| line.split_whitespace().last().map(str::to_owned)),
        Some(Some("700000002".into())),
    );
    expect("semaphore that was one", value(&all[4]), None);
}

fn main() {
    probe::run(setup, check)
}
