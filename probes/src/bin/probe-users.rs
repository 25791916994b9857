//! User namespaces inside the container, as unshare(1) makes them: of one id with a network, with names and System V objects that belong
//! to it; with several ranges; without any map; under limits; a task that has given up what it had there. Outside of a container where
//! nobody may have any it checks only that.
#![allow(unsafe_code)]

use probe::{Board, child, expect, expect_that, field, ok, own, read_file, refused, succeeded};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::null_mut;

const UP: usize = 0;
const GO: usize = 1;

fn own_ids() -> [u32; 2] {
    unsafe { [libc::geteuid(), libc::getegid()] }
}

fn leave(kinds: i32) {
    ok("unshare", unsafe { libc::unshare(kinds) });
}

fn put(path: &str, text: &str) {
    if let Err(error) = std::fs::write(path, text) {
        probe::fail(&format!("write {path}: {error}"));
    }
}

fn inode(kind: &str) -> u64 {
    match std::fs::metadata(format!("/proc/self/ns/{kind}")) {
        Ok(namespace) => namespace.ino(),
        Err(error) => probe::fail(&format!("ns/{kind}: {error}")),
    }
}

/// The user namespace that a namespace belongs to, by its inode.
fn belongs_to(kind: &str) -> u64 {
    const NS_GET_USERNS: u64 = 0xb701;
    let file = File::open(format!("/proc/self/ns/{kind}"))
        .map_or_else(|e| probe::fail(&format!("{kind}: {e}")), OwnedFd::from);
    unsafe {
        let owner = own("NS_GET_USERNS", libc::ioctl(file.as_raw_fd(), NS_GET_USERNS));
        let mut stat: libc::stat = std::mem::zeroed();
        ok("fstat", libc::fstat(owner.as_raw_fd(), &mut stat));
        stat.st_ino
    }
}

/// What a task there sees of itself, and of its namespace.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    ids: Vec<String>,
    capabilities: Vec<String>,
    securebits: i32,
    maps: Vec<String>,
    limits: Vec<String>,
    dumpable: i32,
    no_new_privs: i32,
}

fn seen() -> Seen {
    let text = read_file("/proc/self/status");
    let fields = |names: &[&str]| names.iter().map(|name| field(&text, name)).collect();
    let words = |path: &str| read_file(path).split_whitespace().collect::<Vec<_>>().join(" ");
    let prctl = |what| ok("prctl", unsafe { libc::prctl(what, 0, 0, 0, 0) });
    Seen {
        ids: fields(&["Uid", "Gid", "Groups"]),
        capabilities: fields(&["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]),
        securebits: prctl(libc::PR_GET_SECUREBITS),
        maps: ["uid_map", "gid_map", "setgroups"].map(|name| words(&format!("/proc/self/{name}"))).to_vec(),
        limits: ["max_user_namespaces", "max_inotify_watches"]
            .map(|name| words(&format!("/proc/sys/user/{name}")))
            .to_vec(),
        dumpable: prctl(libc::PR_GET_DUMPABLE),
        no_new_privs: prctl(libc::PR_GET_NO_NEW_PRIVS),
    }
}

/// As `unshare -r` does; `inside`: the ids there.
fn map_one([uid, gid]: [u32; 2], inside: [u32; 2]) {
    put("/proc/self/setgroups", "deny");
    put("/proc/self/uid_map", &format!("{} {uid} 1\n", inside[0]));
    put("/proc/self/gid_map", &format!("{} {gid} 1\n", inside[1]));
}

/// A shell of `unshare -r -n -u -i`.
fn rootless(board: Board) {
    let ids = own_ids();
    leave(libc::CLONE_NEWUSER | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC);
    map_one(ids, [0, 0]);
    // Not before: its files would be nobody's.
    leave(libc::CLONE_NEWNET);
    ok("sethostname", unsafe { libc::sethostname(c"rootl\xffss".as_ptr(), 8) });
    let segment = ok("shmget", unsafe { libc::shmget(5, 4096, libc::IPC_CREAT | 0o600) });
    let at = unsafe { libc::shmat(segment, std::ptr::null(), 0) }.cast::<u8>();
    unsafe { at.add(7).write_volatile(77) };
    let before = seen();
    // Like a shell that waits for its command.
    let command = child(|| {
        board.add(UP, 1);
        board.wait(GO, 1);
        expect("the command's", seen(), before.clone());
    });
    board.wait(GO, 1);
    succeeded("the command", command);
    expect("of one id", seen(), before);
    for kind in ["net", "uts", "ipc"] {
        expect(&format!("who owns the {kind} namespace"), belongs_to(kind), inode("user"));
    }
    expect("the segment", unsafe { at.add(7).read_volatile() }, 77);
    expect("the same segment", ok("shmget", unsafe { libc::shmget(5, 0, 0) }), segment);
    // Root there still: of names, of the network, of more namespaces.
    ok("sethostname", unsafe { libc::sethostname(c"x".as_ptr(), 1) });
    leave(libc::CLONE_NEWNET | libc::CLONE_NEWNS);
}

/// A user of other ids there, with limits, who has given up most.
fn humble(board: Board) {
    let ids = own_ids();
    leave(libc::CLONE_NEWUSER);
    // Where /proc/sys cannot be written they stay as they are.
    let _ = std::fs::write("/proc/sys/user/max_user_namespaces", "1");
    let _ = std::fs::write("/proc/sys/user/max_inotify_watches", "4321");
    map_one(ids, [4_000_000_000, 1000]);
    unsafe {
        for capability in [0, 5, 21, 40] {
            ok("prctl", libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0));
        }
        ok("prctl", libc::prctl(libc::PR_SET_SECUREBITS, 0x2f, 0, 0, 0));
        // CAP_DAC_OVERRIDE and CAP_SETPCAP inheritable, CAP_NET_RAW and CAP_SETPCAP permitted, the first effective.
        let header = [0x2008_0522_u32, 0];
        let data = [1_u32 << 13, 1 << 13 | 1 << 8, 1 << 1 | 1 << 8, 0, 0, 0];
        ok("capset", libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()));
        ok("prctl", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    }
    let before = seen();
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("of a humble user", seen(), before);
    refused("sethostname", unsafe { libc::sethostname(c"x".as_ptr(), 1) }, libc::EPERM);
}

/// Nobody has said who anybody is.
fn unmapped(board: Board) {
    leave(libc::CLONE_NEWUSER);
    let before = seen();
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("without maps", seen(), before);
    expect("its id", own_ids(), [65534; 2]);
}

/// Of several ranges, as rootless engines have them, where the container has many ids: written from outside.
fn ranges(board: Board) {
    leave(libc::CLONE_NEWUSER);
    board.set(2, u64::from(std::process::id()));
    board.wait(3, 1);
    unsafe {
        ok("setgroups", libc::setgroups(2, [7, 3].as_ptr()));
        ok("setresgid", libc::setresgid(5, 6, 7));
        ok("setresuid", libc::setresuid(1, 100, 10));
    }
    let before = seen();
    expect("ids", before.ids.clone(), ["1 100 10 100", "5 6 7 6", "3 7"].map(str::to_owned).to_vec());
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("of several ranges", seen(), before);
    refused("setuid", unsafe { libc::setuid(2) }, libc::EPERM);
}

struct State {
    board: Board,
    children: Vec<(&'static str, i32)>,
    seen: Seen,
}

fn possible() -> bool {
    let child = child(|| {
        // Without a namespace there is nothing to be checked.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER) } < 0 {
            unsafe { libc::_exit(1) }
        }
    });
    probe::reaped(child) == 0
}

fn setup() -> State {
    let board = Board::new();
    let mut children = Vec::new();
    if possible() {
        children.push(("rootless", child(|| rootless(board))));
        children.push(("humble", child(|| humble(board))));
        children.push(("unmapped", child(|| unmapped(board))));
        let last = read_file("/proc/self/uid_map")
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
                Some(words.next()? + words.nth(1)?)
            })
            .max();
        let many = last.is_some_and(|last| last >= 60_000) && probe::caps() & 1 << 7 != 0;
        if many {
            children.push(("ranges", child(|| ranges(board))));
            board.wait(2, 1);
            let pid = board.get(2);
            put(&format!("/proc/{pid}/uid_map"), "0 0 1\n1 1001 99\n100 30000 1000\n");
            put(&format!("/proc/{pid}/gid_map"), "0 0 1\n1 2001 99\n");
            board.set(3, 1);
        }
        board.wait(UP, 3 + u64::from(many));
    }
    State { board, children, seen: seen() }
}

fn check(State { board, children, seen: before }: State) {
    board.set(GO, 1);
    for (what, pid) in children {
        succeeded(what, pid);
    }
    expect("of the container", seen(), before);
    expect_that("children", unsafe { libc::waitpid(-1, null_mut(), libc::WNOHANG) } <= 0, "one that nobody knows");
}

fn main() {
    probe::run(setup, check)
}
