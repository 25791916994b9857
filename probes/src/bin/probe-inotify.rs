//! inotify: watches with their numbers and masks on files and directories, and events that nobody has read.
#![allow(unsafe_code)]

use probe::{Dir, expect, expect_that, ok, own, read_at_once};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

struct State {
    dir: Dir,
    fd: OwnedFd,
    unread: OwnedFd,
    numbers: [i32; 3],
    before: Vec<String>,
}

fn watch(fd: &OwnedFd, path: &Path, mask: u32) -> i32 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    ok("inotify_add_watch", unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })
}

fn new() -> OwnedFd {
    own("inotify_init1", unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) })
}

/// Number and mask of each watch, as the kernel tells them, in order.
fn watches(fd: &OwnedFd) -> Vec<String> {
    let mut all: Vec<String> = probe::read_file(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
        .lines()
        .filter(|line| line.starts_with("inotify"))
        .map(|line| line.split(' ').filter(|w| w.starts_with("wd:") || w.starts_with("mask:")).collect())
        .collect();
    all.sort();
    all
}

/// Number, mask and name of each event.
fn events(fd: &OwnedFd) -> Vec<(i32, u32, String)> {
    let bytes = read_at_once(fd, 65_536).unwrap_or_default();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut out) = (0, vec![]);
    while at + 16 <= bytes.len() {
        let end = at + 16 + word(at + 12) as usize;
        let name = String::from_utf8_lossy(&bytes[at + 16..end]).trim_end_matches('\0').to_owned();
        out.push((word(at) as i32, word(at + 4), name));
        at = end;
    }
    out
}

fn setup() -> State {
    let dir = Dir::new();
    let (folder, file) = (dir.at("folder with \u{e4} space"), dir.at("file"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, b"x").unwrap();
    let fd = new();
    // Numbers with a hole, the highest above what one digit shows.
    let spare: Vec<i32> = (0..20)
        .map(|n| {
            let path = dir.at(&format!("spare {n}"));
            std::fs::write(&path, b"").unwrap();
            watch(&fd, &path, libc::IN_OPEN)
        })
        .collect();
    let numbers = [
        watch(&fd, &folder, libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_TO | libc::IN_ONLYDIR),
        watch(&fd, &file, libc::IN_MODIFY | libc::IN_ATTRIB | libc::IN_EXCL_UNLINK),
        watch(&fd, dir.at(".").as_path(), libc::IN_CREATE | libc::IN_ONESHOT),
    ];
    for number in spare {
        ok("inotify_rm_watch", unsafe { libc::inotify_rm_watch(fd.as_raw_fd(), number) });
    }
    expect_that("events of removed watches", !events(&fd).is_empty(), 0);
    let unread = new();
    watch(&unread, &folder, libc::IN_CREATE);
    std::fs::write(folder.join("early"), b"").unwrap();
    std::fs::remove_file(folder.join("early")).unwrap();
    events(&fd);
    let before = watches(&fd);
    State { dir, fd, unread, numbers, before }
}

fn check(state: State) {
    expect("watches", watches(&state.fd), state.before);
    expect("nothing has happened", events(&state.fd), vec![]);
    let [folder, file, dir] = state.numbers;
    std::fs::write(state.dir.at("folder with \u{e4} space").join("new \u{fc}"), b"").unwrap();
    std::fs::write(state.dir.at("file"), b"changed").unwrap();
    std::fs::write(state.dir.at("once"), b"").unwrap();
    let all = events(&state.fd);
    let told = |want: (i32, u32, &str)| all.iter().any(|(n, m, name)| (*n, *m, name.as_str()) == want);
    expect_that("file made in a folder", told((folder, libc::IN_CREATE, "new \u{fc}")), &all);
    expect_that("file changed", told((file, libc::IN_MODIFY, "")), &all);
    expect_that("watch for once", told((dir, libc::IN_CREATE, "once")) && told((dir, libc::IN_IGNORED, "")), &all);
    // What nobody had read is told as the kernel tells lost events, or, before any checkpoint, as it was.
    let late = events(&state.unread);
    let kept = late.first().is_some_and(|e| e.2 == "early");
    let lost = late.first().is_some_and(|e| (e.0, e.1) == (-1, libc::IN_Q_OVERFLOW));
    expect_that("unread event, or its loss", kept || lost, &late);
    expect_that("event after it", late.last().is_some_and(|e| e.2 == "new \u{fc}"), &late);
}

fn main() {
    probe::run(setup, check)
}
