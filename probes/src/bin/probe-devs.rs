//! Devices that everybody has: null, zero, full, random, urandom.
#![allow(unsafe_code)]

use probe::{expect, expect_that, fdinfo, own, read_at_once, refused, transfer};
use std::os::fd::{AsRawFd, OwnedFd};

const NAMES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

type State = (Vec<OwnedFd>, Vec<(Vec<String>, Option<(u64, u32)>)>, probe::Region);

fn about(fd: &OwnedFd) -> (Vec<String>, Option<(u64, u32)>) {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    (fdinfo(fd), data.map(|data| (data.rdev(), data.mode() & libc::S_IFMT)).ok())
}

fn setup() -> State {
    let flags = [
        libc::O_RDWR,
        libc::O_RDWR | libc::O_CLOEXEC,
        libc::O_RDWR | libc::O_NONBLOCK,
        libc::O_RDONLY | libc::O_NONBLOCK,
        libc::O_RDONLY,
    ];
    let all: Vec<OwnedFd> = NAMES
        .iter()
        .zip(flags)
        .map(|(name, flags)| {
            let path = std::ffi::CString::new(format!("/dev/{name}")).unwrap();
            own(name, unsafe { libc::open(path.as_ptr(), flags) })
        })
        .collect();
    // A private mapping of /dev/zero is anonymous memory with a name.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4 * probe::PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE,
            all[1].as_raw_fd(),
            0,
        )
    };
    let region = probe::Region::adopt(address, 4 * probe::PAGE);
    probe::fill_pattern(region.at(probe::PAGE), probe::PAGE, 3);
    let before = all.iter().map(about).collect();
    (all, before, region)
}

fn check((all, before, region): State) {
    for (name, (fd, before)) in NAMES.iter().zip(all.iter().zip(before)) {
        expect(name, about(fd), before);
    }
    let [null, zero, full, random, urandom] = &all[..] else { probe::fail("five devices") };
    transfer(null, b"gone");
    expect("read of null", read_at_once(null, 10), Some(vec![]));
    expect("read of zero", read_at_once(zero, 10), Some(vec![0; 10]));
    expect("read of full", read_at_once(full, 10), Some(vec![0; 10]));
    refused("write to full", unsafe { libc::write(full.as_raw_fd(), b"x".as_ptr().cast(), 1) }, libc::ENOSPC);
    for fd in [random, urandom] {
        let (first, second) = (read_at_once(fd, 32), read_at_once(fd, 32));
        expect_that("random bytes", first != second && first.is_some(), first);
    }
    probe::check_pattern("mapping of zero", region.at(probe::PAGE), probe::PAGE, 3);
    expect("untouched page of zero", unsafe { *region.at(3 * probe::PAGE).cast::<[u64; 512]>() }, [0; 512]);
}

fn main() {
    probe::run(setup, check)
}
