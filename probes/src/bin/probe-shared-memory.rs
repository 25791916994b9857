//! Shared memory: anonymous, memfd with seals, POSIX, SysV attached twice; parent and child both write; the parts of one
//! mapping out of order, and some that only the child has; large ones with little in them, also of what has no descriptor any more.
#![allow(unsafe_code)]

use probe::{Board, PAGE, Region, check_pattern, child, expect, fill_pattern, map, ok, own, present, succeeded};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};

const GO: usize = 0;
const UP: usize = 1;
const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const LEN: usize = 37 * PAGE;
/// Of which a page is touched here and there: to read all of it would cost as much memory.
const SPARSE: usize = 3 << 30;
const TOUCHED: [usize; 3] = [0, 5 << 20, SPARSE - PAGE];
const VAST: usize = 1 << 40;
const SEALS: i32 = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK;

fn share(fd: &impl AsRawFd, len: usize, offset: usize) -> Region {
    Region::adopt(unsafe { libc::mmap(null_mut(), len, RW, libc::MAP_SHARED, fd.as_raw_fd(), offset as i64) }, len)
}

struct State {
    board: Board,
    child: i32,
    anonymous: Region,
    /// Its first page is behind its second.
    moved: Region,
    /// What is left here of pages that the child has all of.
    parts: Region,
    memfd: OwnedFd,
    views: [Region; 2],
    posix: (CString, OwnedFd, Region),
    unlinked: (OwnedFd, Region),
    sysv: (i32, usize, usize, i32),
    sparse: Region,
    vast: (i32, usize),
    closed: Vec<Closed>,
}

/// Memory that no descriptor leads to, by its flags, with two pages in it, which have the seed; beyond its end, if it is longer, there
/// is nothing.
struct Closed {
    what: &'static str,
    region: Region,
    seed: u64,
}

/// Bytes of such, and where pages of it are.
const CLOSED: usize = 1 << 30;
const HELD: [usize; 2] = [PAGE, CLOSED - PAGE];

impl Closed {
    fn new(what: &'static str, fd: OwnedFd, flags: i32, seed: u64) -> Closed {
        ok("ftruncate", unsafe { libc::ftruncate(fd.as_raw_fd(), CLOSED as i64) });
        let shared = share(&fd, CLOSED, 0);
        fill_pattern(shared.at(HELD[0]), PAGE, seed);
        let at = unsafe { libc::mmap(null_mut(), CLOSED, RW, flags, fd.as_raw_fd(), 0) };
        let region = Region::adopt(at, CLOSED);
        drop((fd, shared));
        fill_pattern(region.at(HELD[1]), PAGE, seed);
        Closed { what, region, seed }
    }

    fn check(&self) {
        expect(self.what, present(self.region.at(0), CLOSED), HELD.len());
        HELD.iter().for_each(|&at| check_pattern(self.what, self.region.at(at), PAGE, self.seed));
        expect(self.what, unsafe { self.region.at(CLOSED / 2).read_volatile() }, 0);
    }
}

fn closed(unlinked: impl Fn(&str) -> OwnedFd) -> Vec<Closed> {
    let memfd = || own("memfd_create", unsafe { libc::memfd_create(c"closed".as_ptr(), libc::MFD_CLOEXEC) });
    vec![
        Closed::new("closed memfd", memfd(), libc::MAP_SHARED, 10),
        Closed::new("closed memfd, private", memfd(), libc::MAP_PRIVATE, 11),
        Closed::new("closed file of a tmpfs", unlinked("closed"), libc::MAP_SHARED, 12),
        Closed::new("closed file of a tmpfs, private", unlinked("private"), libc::MAP_PRIVATE, 13),
    ]
}

fn posix(name: &CString) -> (OwnedFd, Region) {
    let fd =
        own("shm_open", unsafe { libc::shm_open(name.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o640) });
    ok("ftruncate", unsafe { libc::ftruncate(fd.as_raw_fd(), LEN as i64 + 5) });
    let region = share(&fd, LEN, 0);
    (fd, region)
}

fn sysv() -> (i32, usize, usize, i32) {
    // An awkward key, and a size that is no whole number of pages.
    let key = (0x5eed_0000 + std::process::id()) as i32;
    unsafe {
        let id = ok("shmget", libc::shmget(key, LEN - 100, libc::IPC_CREAT | libc::IPC_EXCL | 0o642));
        let (writable, constant) = (libc::shmat(id, null(), 0), libc::shmat(id, null(), libc::SHM_RDONLY));
        expect("shmat", [writable, constant].contains(&libc::MAP_FAILED), false);
        (id, writable as usize, constant as usize, key)
    }
}

fn sparse() -> Region {
    let region = map(SPARSE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // The last one the child touches, and it alone.
    TOUCHED[..2].iter().for_each(|&at| fill_pattern(region.at(at), PAGE, at as u64));
    region
}

fn vast() -> (i32, usize) {
    unsafe {
        let id = ok("shmget", libc::shmget(libc::IPC_PRIVATE, VAST, 0o600 | libc::SHM_NORESERVE));
        let at = libc::shmat(id, null(), 0);
        expect("shmat", at == libc::MAP_FAILED, false);
        fill_pattern(at.cast::<u8>().add(1 << 30), PAGE, 9);
        (id, at as usize)
    }
}

/// Two pages of an object, of which the first comes later in the address space.
fn moved() -> Region {
    let room = map(4 * PAGE, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let placed = unsafe { libc::mmap(room.at(0).cast(), 2 * PAGE, RW, flags, -1, 0) };
    expect("mmap", placed, room.at(0).cast());
    fill_pattern(room.at(0), 2 * PAGE, 6);
    let (fixed, to) = (libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE, room.at(3 * PAGE));
    let placed = unsafe { libc::mremap(room.at(0).cast(), PAGE, PAGE, fixed, to) };
    expect("mremap", placed, to.cast());
    room
}

fn setup() -> State {
    let (board, pid) = (Board::new(), std::process::id());
    let anonymous = map(LEN, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    let memfd = own("memfd_create", unsafe {
        libc::memfd_create(c"na\xffme of it".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC)
    });
    ok("ftruncate", unsafe { libc::ftruncate(memfd.as_raw_fd(), LEN as i64) });
    let views = [share(&memfd, LEN, 0), share(&memfd, PAGE, 2 * PAGE)];
    ok("seal", unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) });
    let name = |kind: &str| CString::new(format!("/probe-{kind}-{pid}")).unwrap();
    let (fd, region) = posix(&name("named"));
    let unlinked = posix(&name("unlinked"));
    ok("shm_unlink", unsafe { libc::shm_unlink(name("unlinked").as_ptr()) });
    let closed = closed(|kind| {
        let (fd, region) = posix(&name(kind));
        drop(region);
        ok("shm_unlink", unsafe { libc::shm_unlink(name(kind).as_ptr()) });
        fd
    });
    let sysv = sysv();
    let (sparse, vast) = (sparse(), vast());
    let (moved, parts) = (moved(), map(6 * PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS));
    fill_pattern(parts.at(0), 6 * PAGE, 7);
    fill_pattern(anonymous.at(0), LEN, 1);
    fill_pattern(views[0].at(0), LEN, 2);
    fill_pattern(region.at(0), LEN, 3);
    fill_pattern(unlinked.1.at(0), LEN, 4);
    fill_pattern(sysv.1 as *mut u8, LEN - PAGE, 5);
    let child = child(|| {
        let word = |address: *mut u8| address.cast::<u64>();
        let all = [
            word(anonymous.at(8)),
            word(views[0].at(8)),
            word(region.at(8)),
            word(unlinked.1.at(8)),
            (sysv.1 + 8) as *mut u64,
        ];
        all.iter().for_each(|&at| unsafe { at.write_volatile(at.read_volatile() ^ 1) });
        fill_pattern(sparse.at(TOUCHED[2]), PAGE, TOUCHED[2] as u64);
        board.set(UP, 1);
        board.wait(GO, 1);
        all.iter().for_each(|&at| unsafe { at.write_volatile(at.read_volatile() ^ 1) });
        check_pattern("parts, in the child", parts.at(0), 6 * PAGE, 7);
    });
    board.wait(UP, 1);
    for page in [0, 3] {
        ok("munmap", unsafe { libc::munmap(parts.at(page * PAGE).cast(), PAGE) });
    }
    let posix = (name("named"), fd, region);
    State { board, child, anonymous, moved, parts, memfd, views, posix, unlinked, sysv, sparse, vast, closed }
}

fn check_memfd(state: &State) {
    let fd = state.memfd.as_raw_fd();
    expect("seals", ok("seals", unsafe { libc::fcntl(fd, libc::F_GET_SEALS) }), SEALS);
    probe::refused("growth of a sealed file", unsafe { libc::ftruncate(fd, LEN as i64 + 1) }, libc::EPERM);
    expect("close on exec", unsafe { libc::fcntl(fd, libc::F_GETFD) }, libc::FD_CLOEXEC);
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
    expect(
        "name of the memfd",
        std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str()),
        b"/memfd:na\xffme of it (deleted)",
    );
    unsafe { state.views[1].at(16).cast::<u64>().write_volatile(77) };
    expect("second view shows the same", unsafe { state.views[0].at(2 * PAGE + 16).cast::<u64>().read_volatile() }, 77);
    fill_pattern(state.views[0].at(0), LEN, 2);
}

fn check_sysv((id, writable, constant, key): (i32, usize, usize, i32)) {
    unsafe {
        let mut about: libc::shmid_ds = std::mem::zeroed();
        ok("shmctl", libc::shmctl(id, libc::IPC_STAT, &mut about));
        expect(
            "segment",
            (about.shm_segsz, about.shm_nattch, about.shm_perm.mode & 0o777, about.shm_perm.__key),
            (LEN - 100, 2, 0o642, key),
        );
        expect("id of the key", libc::shmget(key, 0, 0), id);
        check_pattern("SysV", constant as *const u8, LEN - PAGE, 5);
        (writable as *mut u64).write_volatile(99);
        expect("both show the same", (constant as *const u64).read_volatile(), 99);
        let (permissions, _) = probe::smaps_flags(constant as *const u8);
        expect("permissions of the second", permissions.as_str(), "r--s");
        ok("shmdt", libc::shmdt(writable as *const _));
        ok("shmdt", libc::shmdt(constant as *const _));
        ok("shmctl", libc::shmctl(id, libc::IPC_RMID, null_mut()));
    }
}

fn check_sparse(sparse: &Region, (id, vast): (i32, usize)) {
    let vast = vast as *mut u8;
    expect("pages of a large mapping with three", present(sparse.at(0), SPARSE), TOUCHED.len());
    TOUCHED.iter().for_each(|&at| check_pattern("sparse", sparse.at(at), PAGE, at as u64));
    expect("pages of a vast segment with one", present(vast, 2 << 30), 1);
    check_pattern("vast", unsafe { vast.add(1 << 30) }, PAGE, 9);
    ok("shmdt", unsafe { libc::shmdt(vast.cast()) });
    ok("shmctl", unsafe { libc::shmctl(id, libc::IPC_RMID, null_mut()) });
}

fn check(state: State) {
    check_sparse(&state.sparse, state.vast);
    state.closed.iter().for_each(Closed::check);
    state.board.set(GO, 1);
    succeeded("child that writes", state.child);
    check_pattern("anonymous", state.anonymous.at(0), LEN, 1);
    let halves = [state.moved.at(3 * PAGE), state.moved.at(PAGE)];
    for (page, at) in halves.into_iter().enumerate() {
        let words = (0..PAGE).step_by(8).map(|offset| unsafe { at.add(offset).cast::<u64>().read_volatile() });
        let want = (0..PAGE).step_by(8).map(|offset| probe::word(6 ^ (page * PAGE + offset) as u64));
        probe::expect_that("a page that was moved", words.eq(want), page);
    }
    for page in [1, 2, 4, 5] {
        let got = unsafe { state.parts.at(page * PAGE).cast::<u64>().read_volatile() };
        expect("parts", got, probe::word(7 ^ (page * PAGE) as u64));
    }
    check_pattern("memfd", state.views[0].at(0), LEN, 2);
    check_memfd(&state);
    let (name, fd, region) = &state.posix;
    check_pattern("POSIX", region.at(0), LEN, 3);
    for fd in [fd, &state.unlinked.0] {
        let length = File::from(fd.try_clone().unwrap()).metadata().map(|data| data.len());
        expect("length", length.ok(), Some(LEN as u64 + 5));
    }
    let again = own("shm_open", unsafe { libc::shm_open(name.as_ptr(), libc::O_RDWR, 0) });
    check_pattern("POSIX, opened again", share(&again, LEN, 0).at(0), LEN, 3);
    ok("shm_unlink", unsafe { libc::shm_unlink(name.as_ptr()) });
    check_pattern("POSIX, unlinked", state.unlinked.1.at(0), LEN, 4);
    check_sysv(state.sysv);
}

fn main() {
    probe::run(setup, check)
}
