//! Mappings of files: private with changed pages, shared, of a deleted file, with an offset, beyond the end; programs whose
//! file was deleted, was replaced, or never had a name.
#![allow(unsafe_code)]

use probe::{Dir, PAGE, Region, check_pattern, expect, fill_pattern, ok, word};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const LEN: usize = 20 * PAGE;
const FAR: usize = 5 << 30;

fn file(path: &Path, seed: u64, at: usize) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.unwrap_or_else(|error| probe::fail(&format!("create: {error}")));
    let bytes: Vec<u8> = (0..LEN as u64).step_by(8).flat_map(|at| word(seed ^ at).to_ne_bytes()).collect();
    expect("write", file.write_all_at(&bytes, at as u64).is_ok(), true);
    file
}

fn view(file: &File, protection: i32, flags: i32, len: usize, offset: usize) -> Region {
    let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), offset as i64) };
    Region::adopt(address, len)
}

/// A file that is mapped by a name that was removed, and has another one.
fn linked(dir: &Dir) -> Region {
    let region = view(&file(&dir.at("one name"), 10, 0), RW, libc::MAP_SHARED, LEN, 0);
    expect("link", std::fs::hard_link(dir.at("one name"), dir.at("another name")).is_ok(), true);
    expect("unlink", std::fs::remove_file(dir.at("one name")).is_ok(), true);
    region
}

/// What the programs without a name are copies of.
const PROGRAM: &str = "/bin/sleep";

/// A child that runs a program that no name leads to.
struct Nameless {
    what: &'static str,
    child: Child,
    /// Of a memfd: its first description, which does not count as one that writes.
    memfd: Option<OwnedFd>,
    exe: PathBuf,
}

impl Nameless {
    fn new(what: &'static str, program: &Path, memfd: Option<OwnedFd>) -> Nameless {
        // Of a program that is many, the name tells which.
        let child = Command::new(program).arg0("sleep").arg("1000").spawn();
        let child = child.unwrap_or_else(|error| probe::fail(&format!("{what}: {error}")));
        Nameless { what, child, memfd, exe: PathBuf::new() }
    }

    fn exe(&self) -> PathBuf {
        let link = std::fs::read_link(format!("/proc/{}/exe", self.child.id()));
        link.unwrap_or_else(|error| probe::fail(&format!("{}: {error}", self.what)))
    }
}

fn nameless(dir: &Dir) -> Vec<Nameless> {
    let copy = |name| {
        let path = dir.at(name);
        expect("copy", std::fs::copy(PROGRAM, &path).is_ok(), true);
        path
    };
    let (gone, upgraded) = (copy("program"), copy("upgraded"));
    let memfd = |flags| {
        let fd = probe::own("memfd_create", unsafe { libc::memfd_create(c"program".as_ptr(), flags) });
        let program = std::fs::read(PROGRAM).unwrap_or_default();
        expect("write", File::from(fd.try_clone().unwrap()).write_all_at(&program, 0).is_ok(), true);
        fd
    };
    let of = |fd: &OwnedFd| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()));
    let (closed, held) = (memfd(libc::MFD_CLOEXEC), memfd(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING));
    let closed_path = of(&closed);
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK;
    ok("F_ADD_SEALS", unsafe { libc::fcntl(held.as_raw_fd(), libc::F_ADD_SEALS, seals) });
    let held_path = of(&held);
    let mut all = vec![
        Nameless::new("deleted", &gone, None),
        Nameless::new("replaced", &upgraded, None),
        Nameless::new("closed memfd", &closed_path, None),
        Nameless::new("held memfd", &held_path, Some(held)),
    ];
    drop(closed);
    expect("unlink", std::fs::remove_file(gone).is_ok(), true);
    expect("rename", std::fs::rename(copy("new"), upgraded).is_ok(), true);
    for one in &mut all {
        one.exe = one.exe();
    }
    all
}

fn check_nameless(all: Vec<Nameless>) {
    for mut one in all {
        // One that was replaced has lost its name, like any file that was.
        match one.what {
            "replaced" => probe::expect_that(one.what, one.exe().to_string_lossy().ends_with(" (deleted)"), "deleted"),
            what => expect(what, one.exe(), one.exe.clone()),
        }
        let program = std::fs::read(format!("/proc/{}/exe", one.child.id())).ok();
        probe::expect_that(one.what, program == std::fs::read(PROGRAM).ok(), "the same program");
        expect(one.what, one.child.try_wait().ok().flatten(), None);
        if let Some(memfd) = one.memfd {
            let again = format!("/proc/self/fd/{}", memfd.as_raw_fd());
            let code = Command::new(again).arg0("sleep").arg("0").status().ok().and_then(|status| status.code());
            expect("executed again", code, Some(0));
        }
        expect("kill", one.child.kill().is_ok() && one.child.wait().is_ok(), true);
    }
}

struct State {
    dir: Dir,
    linked: Region,
    nameless: Vec<Nameless>,
    private: Region,
    guarded: Region,
    shared: Region,
    constant: Region,
    deleted: [Region; 2],
    far: Region,
    last: Region,
    maps: Vec<String>,
}

/// Permissions, offset and name of every mapping.
fn maps(dir: &Dir) -> Vec<String> {
    let text = probe::read_file("/proc/self/maps");
    let ours = text.lines().filter(|line| line.contains(&dir.path().display().to_string()));
    // One that is mapped by a name that was removed has the other one afterwards.
    let ours = ours.filter(|line| !line.contains("/one name") && !line.contains("/another name"));
    ours.map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        [fields[0], fields[1], fields[2], &fields[5..].join(" ")].join(" ")
    })
    .collect()
}

fn setup() -> State {
    let dir = Dir::new();
    let ordinary = file(&dir.at("ordinary file"), 1, 0);
    let private = view(&ordinary, RW, libc::MAP_PRIVATE, LEN, 0);
    fill_pattern(private.at(3 * PAGE), 2 * PAGE, 2);
    let guarded = view(&ordinary, RW, libc::MAP_PRIVATE, LEN, 0);
    fill_pattern(guarded.at(PAGE), PAGE, 3);
    ok("mprotect", unsafe { libc::mprotect(guarded.at(0).cast(), LEN, libc::PROT_READ) });
    let shared = view(&file(&dir.at("shared"), 4, 0), RW, libc::MAP_SHARED, LEN, 0);
    fill_pattern(shared.at(5 * PAGE), PAGE, 5);
    let constant = view(&ordinary, libc::PROT_READ, libc::MAP_SHARED, 2 * PAGE, 7 * PAGE);
    let gone = file(&dir.at("gone"), 6, 0);
    let deleted = [view(&gone, RW, libc::MAP_SHARED, LEN, 0), view(&gone, RW, libc::MAP_PRIVATE, LEN, 0)];
    fill_pattern(deleted[1].at(PAGE), PAGE, 7);
    expect("unlink", std::fs::remove_file(dir.at("gone")).is_ok(), true);
    let far = view(&file(&dir.at("far"), 8, FAR), libc::PROT_READ, libc::MAP_PRIVATE, LEN, FAR);
    let short = file(&dir.at("short"), 9, 0);
    expect("truncate", short.set_len(PAGE as u64 + 100).is_ok(), true);
    // Its third and fourth page are beyond the end: nobody may touch them, but they are mapped.
    let last = view(&short, RW, libc::MAP_PRIVATE, 4 * PAGE, 0);
    let maps = maps(&dir);
    let linked = linked(&dir);
    let nameless = nameless(&dir);
    State { dir, linked, nameless, private, guarded, shared, constant, deleted, far, last, maps }
}

/// Pages of a file with the pattern of `seed` from the start on, other than the pages of `not`.
fn check_pages(what: &str, region: &Region, seed: u64, first: usize, not: std::ops::Range<usize>) {
    for page in (0..region.len() / PAGE).filter(|page| !not.contains(page)) {
        let offset = (first + page) * PAGE;
        for at in (0..PAGE).step_by(8) {
            let got = unsafe { region.at(page * PAGE + at).cast::<u64>().read_volatile() };
            expect(what, got, word(seed ^ (offset + at) as u64));
        }
    }
}

fn check(state: State) {
    expect("mappings", maps(&state.dir), state.maps);
    check_pages("private", &state.private, 1, 0, 3..5);
    check_pattern("private, changed", state.private.at(3 * PAGE), 2 * PAGE, 2);
    check_pages("guarded", &state.guarded, 1, 0, 1..2);
    check_pattern("guarded, changed", state.guarded.at(PAGE), PAGE, 3);
    check_pages("shared", &state.shared, 4, 0, 5..6);
    check_pattern("shared, changed", state.shared.at(5 * PAGE), PAGE, 5);
    check_pages("constant", &state.constant, 1, 7, 0..0);
    check_pages("deleted", &state.deleted[0], 6, 0, 0..0);
    check_pages("deleted, private", &state.deleted[1], 6, 0, 1..2);
    check_pattern("deleted, changed", state.deleted[1].at(PAGE), PAGE, 7);
    unsafe { state.deleted[0].at(9 * PAGE).write_volatile(0xee) };
    expect("both mappings are of one file", unsafe { state.deleted[1].at(9 * PAGE).read_volatile() }, 0xee);
    check_pages("far", &state.far, 8, 0, 0..0);
    let tail = unsafe { state.last.at(PAGE + 96).cast::<[u64; 2]>().read() };
    expect("end of a file", tail, [word(9 ^ (PAGE as u64 + 96)) & 0xffff_ffff, 0]);
    // What is written through a shared mapping is in the file; what is written to a private one is not.
    let mut read = [0; 8];
    let at = |name: &str, offset: usize, read: &mut [u8]| {
        File::open(state.dir.at(name)).and_then(|file| file.read_exact_at(read, offset as u64)).is_ok()
    };
    expect("read", at("shared", 5 * PAGE, &mut read), true);
    expect("shared, in the file", u64::from_ne_bytes(read), word(5));
    expect("read", at("ordinary file", 3 * PAGE, &mut read), true);
    expect("private, in the file", u64::from_ne_bytes(read), word(1 ^ (3 * PAGE) as u64));
    unsafe { state.shared.at(0).cast::<u64>().write_volatile(4711) };
    expect("read", at("shared", 0, &mut read), true);
    expect("shared is still shared", u64::from_ne_bytes(read), 4711);
    check_pages("mapped by a removed name", &state.linked, 10, 0, 0..0);
    unsafe { state.linked.at(0).cast::<u64>().write_volatile(4712) };
    expect("read", at("another name", 0, &mut read), true);
    expect("what the other name shows", u64::from_ne_bytes(read), 4712);
    check_nameless(state.nameless);
}

fn main() {
    probe::run(setup, check)
}
