//! What the container's root has mounted in its container's own mount namespace: tmpfs with content, in each other and over a directory with
//! files; a directory that is bound and cannot be written, a file, a part, a tree with mounts that may be locked; a ramfs, a proc, and a bind of one;
//! other attributes of a mount of the container's, and one that is removed, where that can be had; what is open and mapped there, the working
//! directory, a deleted file, a socket. Outside of a container, where it would mount on the host, it does nothing.
#![allow(unsafe_code)]

use probe::{Dir, Region, check_pattern, expect, expect_that, fill_pattern, ok, own, read_file, refused};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::ptr::null;

const PAGES: usize = 3 * probe::PAGE;

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn mount(source: &Path, target: &Path, kind: &str, flags: u64, data: &str) -> i32 {
    let [kind, data] = [kind, data].map(|text| CString::new(text).unwrap_or_default());
    unsafe { libc::mount(c(source).as_ptr(), c(target).as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) }
}

fn tmpfs(target: &Path, flags: u64, data: &str) {
    ok("mount tmpfs", mount(Path::new("none"), target, "tmpfs", flags, data));
}

fn bind(source: &Path, target: &Path, flags: u64) {
    ok("mount --bind", mount(source, target, "", libc::MS_BIND | flags, ""));
}

fn remount(target: &Path, flags: u64) {
    let flags = flags | libc::MS_BIND | libc::MS_REMOUNT;
    ok("mount -o remount,bind", mount(Path::new("none"), target, "", flags, ""));
}

fn put(path: &Path, text: &str) {
    if let Err(error) = std::fs::write(path, text) {
        probe::fail(&format!("write {}: {error}", path.display()));
    }
}

fn directories(paths: &[PathBuf]) {
    for path in paths {
        expect("mkdir", std::fs::create_dir_all(path).map_err(|e| e.to_string()), Ok(()));
    }
}

fn text(path: &Path) -> String {
    read_file(path.to_str().unwrap_or_default())
}

/// Every mount: its place, that of the one it is on, its options, type, those of its file system; below `dir` also what of it is shown.
fn mounts(dir: &Path) -> Vec<String> {
    let all = read_file("/proc/self/mountinfo");
    let lines: Vec<Vec<&str>> = all.lines().map(|line| line.split(' ').collect()).collect();
    let place = |id: &str| lines.iter().find(|line| line[0] == id).map_or("", |line| line[4]);
    let one = |line: &Vec<&str>| {
        let rest: Vec<&str> = line.iter().skip_while(|word| **word != "-").copied().collect();
        let shown = if Path::new(line[4]).starts_with(dir) { line[3] } else { "" };
        let fs_options = if shown.is_empty() { "" } else { rest[3] };
        let [point, options, kind, on] = [line[4], line[5], rest[1], place(line[1])];
        format!("{point} on {on} {options} {kind} {shown} {fs_options}")
    };
    let mut out: Vec<String> = lines.iter().map(one).collect();
    out.sort_unstable();
    out
}

struct Mounted {
    deep: File,
    deleted: File,
    mapped: Region,
    listener: UnixListener,
    peer: (UnixStream, UnixStream),
    below: (u32, i64),
}

struct State {
    dir: Dir,
    mounted: Option<Mounted>,
    before: Vec<String>,
}

/// On a host nobody but the kernel has a number as small as this.
fn in_a_container() -> bool {
    std::process::id() < 8 && unsafe { libc::getppid() } == 1
}

fn make(dir: &Dir) -> Mounted {
    let at = |name: &str| dir.path().join(name);
    directories(&["fs", "data/sub", "shown", "part", "ram", "over/in", "bound"].map(at));
    put(&at("data/file"), "of the container");
    put(&at("over/in/under"), "covered");
    tmpfs(&at("fs"), libc::MS_NOSUID | libc::MS_NOEXEC, "size=2m,mode=751");
    directories(
        &["fs/in", "fs/sub", "fs/dev", "fs/proc", "fs/processes", "fs/pts", "fs/ram", "fs/sys", "fs/queues"].map(at),
    );
    put(&at("fs/sub/file"), "in a part");
    put(&at("fs/name"), "");
    let permissions = std::fs::Permissions::from_mode(0o640);
    expect("chmod", std::fs::set_permissions(at("fs/sub/file"), permissions).is_ok(), true);
    tmpfs(&at("fs/in"), 0, "");
    ok("mount -t devpts", mount(Path::new("none"), &at("fs/pts"), "devpts", libc::MS_NOEXEC, "ptmxmode=620"));
    ok("mount -t ramfs", mount(Path::new("none"), &at("fs/ram"), "ramfs", libc::MS_NODEV, "mode=711"));
    directories(&["fs/ram/sub"].map(at));
    put(&at("fs/ram/sub/file"), "in a ramfs");
    tmpfs(&at("over"), libc::MS_NOATIME, "nr_inodes=100");
    put(&at("over/new"), "above");
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOATIME;
    ok("mount -o remount,ro", mount(Path::new("none"), &at("over"), "tmpfs", flags, ""));
    bind(&at("data"), &at("shown"), 0);
    remount(&at("shown"), libc::MS_RDONLY | libc::MS_NODEV | libc::MS_NOSUID);
    bind(&at("data/file"), &at("fs/name"), 0);
    bind(&at("fs/sub"), &at("part"), 0);
    bind(&at("fs/ram/sub"), &at("ram"), 0);
    // Not where it is locked; before it is shown elsewhere, too.
    if unsafe { libc::umount2(c"/dev/mqueue".as_ptr(), libc::MNT_DETACH) } != 0 {
        ok("mount -t mqueue", mount(Path::new("none"), &at("fs/queues"), "mqueue", libc::MS_NOSUID, ""));
    }
    // Where it can be had, it is the container's.
    mount(Path::new("none"), &at("fs/sys"), "sysfs", libc::MS_RDONLY, "");
    bind(Path::new("/dev"), &at("fs/dev"), libc::MS_REC);
    bind(Path::new("/proc"), &at("fs/processes"), libc::MS_REC);
    // Not where something of /proc is covered.
    mount(Path::new("none"), &at("fs/proc"), "proc", libc::MS_NODEV, "");
    remount(Path::new("/dev/shm"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
    // It comes last, and is known as the configuration's in the next image as well.
    remount(Path::new("/proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY);
    let create = |name: &str| File::options().read(true).write(true).create_new(true).open(at(name));
    let create = |name: &str| create(name).unwrap_or_else(|e| probe::fail(&format!("{name}: {e}")));
    let mut deep = create("fs/in/deep");
    expect("write", deep.write_all(b"0123456789").and_then(|()| deep.seek(SeekFrom::Start(4))).ok(), Some(4));
    let mut deleted = create("fs/deleted");
    expect("write", deleted.write_all(b"nameless").is_ok(), true);
    expect("unlink", std::fs::remove_file(at("fs/deleted")).is_ok(), true);
    let file = create("fs/in/map");
    expect("ftruncate", file.set_len(PAGES as u64).is_ok(), true);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let start = unsafe { libc::mmap(std::ptr::null_mut(), PAGES, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    expect_that("mmap", start != libc::MAP_FAILED, start);
    fill_pattern(start.cast(), PAGES, 7);
    let listener = UnixListener::bind(at("fs/sub/socket"));
    let listener = listener.unwrap_or_else(|e| probe::fail(&format!("bind: {e}")));
    let peer = UnixStream::connect(at("fs/sub/socket")).and_then(|peer| Ok((peer, listener.accept()?.0)));
    let peer = peer.unwrap_or_else(|e| probe::fail(&format!("connect: {e}")));
    expect("chdir", std::env::set_current_dir(at("fs/in")).is_ok(), true);
    let below = metadata(&at("over"));
    Mounted { deep, deleted, mapped: Region::adopt(start, PAGES), listener, peer, below }
}

fn metadata(path: &Path) -> (u32, i64) {
    std::fs::metadata(path).map_or((0, 0), |data| (data.mode(), data.mtime()))
}

fn setup() -> State {
    let dir = Dir::new();
    let mounted = in_a_container().then(|| make(&dir));
    let before = if mounted.is_some() { mounts(dir.path()) } else { Vec::new() };
    State { dir, mounted, before }
}

fn look(dir: &Dir, mounted: Mounted) {
    let at = |name: &str| dir.path().join(name);
    let Mounted { mut deep, mut deleted, mapped, listener, peer, below } = mounted;
    expect("working directory", std::env::current_dir().ok(), Some(at("fs/in")));
    expect("relative", text(Path::new("deep")).as_str(), "0123456789");
    let mut rest = String::new();
    expect("read", deep.read_to_string(&mut rest).ok().map(|_| rest.as_str()), Some("456789"));
    expect("write", deep.write_all(b"ab").is_ok(), true);
    expect("the same file", text(&at("fs/in/deep")).as_str(), "0123456789ab");
    let mut all = String::new();
    expect("seek", deleted.seek(SeekFrom::Start(0)).ok(), Some(0));
    expect("deleted", deleted.read_to_string(&mut all).ok().map(|_| all.as_str()), Some("nameless"));
    check_pattern("mapped", mapped.at(0), mapped.len(), 7);
    unsafe { mapped.at(5).write_volatile(b'!') };
    let content = std::fs::read(at("fs/in/map")).unwrap_or_default();
    expect("the mapped file", content.get(5).copied(), Some(b'!'));
    ok("munmap", unsafe { libc::munmap(mapped.at(0).cast(), mapped.len()) });
    let (mut ours, mut theirs) = peer;
    let mut word = [0; 2];
    expect(
        "connection",
        ours.write_all(b"hi").and_then(|()| theirs.read_exact(&mut word)).ok().map(|()| word),
        Some(*b"hi"),
    );
    let late = UnixStream::connect(at("part/socket")).and_then(|_| listener.accept());
    expect_that("a socket by the part", late.is_ok(), &late);
    for (name, what) in [
        ("fs/sub/file", "in a part"),
        ("part/file", "in a part"),
        ("ram/file", "in a ramfs"),
        ("over/new", "above"),
        ("shown/file", "of the container"),
        ("fs/name", "of the container"),
    ] {
        expect(name, text(&at(name)).as_str(), what);
    }
    expect("mode", metadata(&at("fs/sub/file")).0 & 0o7777, 0o640);
    expect("mode of a tmpfs", metadata(&at("fs")).0 & 0o7777, 0o751);
    expect("mode of a ramfs", metadata(&at("fs/ram")).0 & 0o7777, 0o711);
    expect("top of a tmpfs", metadata(&at("over")), below);
    let same = |one: &str, other: &str| {
        let [one, other] =
            [one, other].map(|name| std::fs::metadata(at(name)).map(|data| (data.dev(), data.ino())).ok());
        one.is_some() && one == other
    };
    expect("the same files", same("fs/name", "data/file") && same("part/file", "fs/sub/file"), true);
    let space = unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        ok("statvfs", libc::statvfs(c(&at("fs")).as_ptr(), &mut space));
        space.f_blocks * space.f_frsize
    };
    expect("size", space, 2 << 20);
    let written = unsafe { libc::open(c(&at("shown/new")).as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600) };
    refused("a file in what is read-only", written, libc::EROFS);
    let written = unsafe { libc::open(c(&at("over/later")).as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600) };
    refused("a file in a tmpfs that is read-only", written, libc::EROFS);
    put(&at("fs/sub/later"), "");
    let own_numbers = text(&at("fs/processes/self/stat"));
    let own_number = format!("{} ", std::process::id());
    expect_that("a bound proc", own_numbers.starts_with(&own_number), &own_numbers);
    let null_device = own("open", unsafe { libc::open(c(&at("fs/dev/null")).as_ptr(), libc::O_WRONLY) });
    ok("write", unsafe { libc::write(null_device.as_raw_fd(), null::<u8>().wrapping_add(1).cast(), 0) });
}

fn clean(dir: &Dir) {
    expect("chdir", std::env::set_current_dir("/").is_ok(), true);
    for name in ["part", "ram", "shown", "over", "fs"] {
        ok(name, unsafe { libc::umount2(c(&dir.path().join(name)).as_ptr(), libc::MNT_DETACH) });
    }
    expect("what was covered", text(&dir.path().join("over/in/under")).as_str(), "covered");
    expect("nothing else is left", std::fs::read_dir(dir.path().join("fs")).map(Iterator::count).ok(), Some(0));
}

fn check(State { dir, mounted, before }: State) {
    if let Some(mounted) = mounted {
        let now = mounts(dir.path());
        let differ: Vec<&String> = now.iter().filter(|one| !before.contains(one)).collect();
        expect_that("mounts", now == before, differ);
        look(&dir, mounted);
        clean(&dir);
    }
}

fn main() {
    probe::run(setup, check)
}
