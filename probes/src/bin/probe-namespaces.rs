//! Namespaces inside the container that tasks, and a thread, have made for themselves: names, System V objects with the ids and keys of the
//! container's own, a network with and one without its loopback; descriptors of them; a task that has gone back.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, expect, expect_that, ok, own, read_file, succeeded};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::null;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

const UP: usize = 0;
const GO: usize = 1;
const KEY: i32 = 0x7eed_0001;
const SIZE: usize = 3 * 4096 - 5;
const KINDS: [&str; 3] = ["ipc", "net", "uts"];

/// The inodes of the calling thread's namespaces.
fn inodes() -> [u64; 3] {
    KINDS.map(|kind| match std::fs::metadata(format!("/proc/thread-self/ns/{kind}")) {
        Ok(namespace) => namespace.ino(),
        Err(error) => probe::fail(&format!("ns/{kind}: {error}")),
    })
}

fn descriptor(kind: &str) -> OwnedFd {
    File::open(format!("/proc/thread-self/ns/{kind}"))
        .map_or_else(|e| probe::fail(&format!("ns/{kind}: {e}")), OwnedFd::from)
}

fn leads_to(fd: &OwnedFd) -> u64 {
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        ok("fstat", libc::fstat(fd.as_raw_fd(), &mut stat));
        stat.st_ino
    }
}

fn enter(fd: &OwnedFd, kind: i32) {
    ok("setns", unsafe { libc::setns(fd.as_raw_fd(), kind) });
}

fn leave(kinds: i32) {
    ok("unshare", unsafe { libc::unshare(kinds) });
}

#[derive(Debug, PartialEq)]
struct Names(Vec<u8>, Vec<u8>);

fn names() -> Names {
    let text = |bytes: &[libc::c_char]| bytes.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        ok("uname", libc::uname(&mut names));
        Names(text(&names.nodename), text(&names.domainname))
    }
}

fn set_names(node: &[u8], domain: &[u8]) {
    ok("sethostname", unsafe { libc::sethostname(node.as_ptr().cast(), node.len()) });
    ok("setdomainname", unsafe { libc::setdomainname(domain.as_ptr().cast(), domain.len()) });
}

#[derive(Debug, Clone, PartialEq)]
struct Objects {
    segment: i32,
    byte: u8,
    semaphore: i32,
    queued: Vec<u8>,
}

/// A segment, a semaphore, and a queue with a message, all with the same key whoever makes them.
fn make_objects(byte: u8) -> (Objects, usize) {
    let mode = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
    unsafe {
        let segment = ok("shmget", libc::shmget(KEY, SIZE, mode));
        let at = libc::shmat(segment, null(), 0);
        expect_that("shmat", at != libc::MAP_FAILED, at);
        at.cast::<u8>().add(4097).write_volatile(byte);
        let semaphore = ok("semget", libc::semget(KEY, 1, mode));
        ok("semctl", libc::semctl(semaphore, 0, libc::SETVAL, i32::from(byte)));
        let queue = ok("msgget", libc::msgget(KEY, mode));
        let mut message = [0_u8; 13];
        message[..8].copy_from_slice(&i64::MAX.to_ne_bytes());
        message[8..].fill(byte);
        ok("msgsnd", libc::msgsnd(queue, message.as_ptr().cast(), 5, 0));
        (Objects { segment, byte, semaphore: i32::from(byte), queued: vec![byte; 5] }, at as usize)
    }
}

/// What the key leads to; the message is sent again.
fn objects(at: usize) -> Objects {
    unsafe {
        let segment = ok("shmget", libc::shmget(KEY, 0, 0));
        let attached = libc::shmat(segment, null(), libc::SHM_RDONLY);
        expect_that("shmat", attached != libc::MAP_FAILED, attached);
        let byte = attached.cast::<u8>().add(4097).read_volatile();
        // What was attached before is the same memory.
        let word = (at as *mut u8).add(4098);
        word.write_volatile(byte ^ 0x55);
        expect("the same segment", attached.cast::<u8>().add(4098).read_volatile(), byte ^ 0x55);
        ok("shmdt", libc::shmdt(attached));
        let semaphore = ok("semctl", libc::semctl(ok("semget", libc::semget(KEY, 1, 0)), 0, libc::GETVAL));
        let queue = ok("msgget", libc::msgget(KEY, 0));
        let mut message = [0_u8; 40];
        let got = ok("msgrcv", libc::msgrcv(queue, message.as_mut_ptr().cast(), 32, 0, libc::IPC_NOWAIT));
        expect("type of the message", i64::from_ne_bytes(message[..8].try_into().unwrap_or_default()), i64::MAX);
        ok("msgsnd", libc::msgsnd(queue, message.as_ptr().cast(), got as usize, 0));
        Objects { segment, byte, semaphore, queued: message[8..8 + got as usize].to_vec() }
    }
}

fn remove_objects() {
    unsafe {
        ok("shmctl", libc::shmctl(ok("shmget", libc::shmget(KEY, 0, 0)), libc::IPC_RMID, std::ptr::null_mut()));
        ok("semctl", libc::semctl(ok("semget", libc::semget(KEY, 1, 0)), 0, libc::IPC_RMID));
        ok("msgctl", libc::msgctl(ok("msgget", libc::msgget(KEY, 0)), libc::IPC_RMID, std::ptr::null_mut()));
    }
}

/// Whether `lo` is up; it is set so first, if that is wanted.
fn loopback(set_up: bool) -> bool {
    unsafe {
        let socket = own("socket", libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0));
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        ok("SIOCGIFFLAGS", libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request));
        if set_up {
            request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
            ok("SIOCSIFFLAGS", libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request));
        }
        i32::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    }
}

const TTL: &str = "/proc/sys/net/ipv4/ip_default_ttl";
const MESSAGES: &str = "/proc/sys/fs/mqueue/msg_max";

fn setting(path: &str, value: &str) {
    // Where /proc/sys cannot be written the setting stays as it is.
    let _ = std::fs::write(path, value);
}

/// Of names and System V objects; a child of it lives there too, another has gone back to the container's names.
fn first(board: Board, home: [u64; 3], home_names: &OwnedFd) {
    leave(libc::CLONE_NEWUTS | libc::CLONE_NEWIPC);
    set_names(b"in\xff ner", b"");
    let (objects_then, at) = make_objects(7);
    setting(MESSAGES, "19");
    let messages = read_file(MESSAGES);
    let (then, queue) = (inodes(), descriptor("uts"));
    expect_that("other namespaces", then[0] != home[0] && then[1] == home[1] && then[2] != home[2], (then, home));
    let heir = child(|| {
        board.add(UP, 1);
        board.wait(GO, 1);
        expect("names of the heir", names(), Names(b"in\xff ner".to_vec(), Vec::new()));
        expect("the heir's segment", unsafe { (at as *const u8).add(4097).read_volatile() }, 7);
    });
    let back = child(|| {
        enter(home_names, libc::CLONE_NEWUTS);
        board.add(UP, 1);
        board.wait(GO, 1);
        expect_that("names of who went back", names() != Names(b"in\xff ner".to_vec(), Vec::new()), names());
        expect("objects of who went back", objects(at), Objects { queued: vec![7; 5], ..objects_then.clone() });
    });
    board.add(UP, 1);
    board.wait(GO, 1);
    succeeded("heir", heir);
    succeeded("who went back", back);
    let now = inodes();
    expect("names", names(), Names(b"in\xff ner".to_vec(), Vec::new()));
    expect("a descriptor of it", leads_to(&queue), now[2]);
    expect("messages of a queue", read_file(MESSAGES), messages);
    expect("objects", objects(at), objects_then);
    remove_objects();
}

/// Of a network.
fn second(board: Board, home: [u64; 3]) {
    leave(libc::CLONE_NEWNET);
    expect("lo", loopback(true), true);
    setting(TTL, "77");
    let (ttl, namespace) = (read_file(TTL), descriptor("net"));
    let then = inodes();
    expect_that("another network", then[0] == home[0] && then[1] != home[1] && then[2] == home[2], (then, home));
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("lo", loopback(false), true);
    expect("time to live", read_file(TTL), ttl);
    expect("a descriptor of it", leads_to(&namespace), inodes()[1]);
    let listener = std::net::TcpListener::bind("[::1]:0").and_then(|l| std::net::TcpStream::connect(l.local_addr()?));
    expect_that("a connection", listener.is_ok(), listener);
}

/// What the thread sees: namespaces, names, whether `lo` is up.
type Seen = ([u64; 3], Names, bool);

struct State {
    board: Board,
    children: [i32; 2],
    thread: (Sender<()>, JoinHandle<Seen>),
    objects: Objects,
    at: usize,
    home: OwnedFd,
    names: Names,
    ttl: String,
    messages: String,
}

fn setup() -> State {
    let (board, home, names, home_names) = (Board::new(), inodes(), names(), descriptor("uts"));
    let (objects, at) = make_objects(9);
    // They hold what they do not use, too.
    let children = [
        child(|| {
            ok("shmdt", unsafe { libc::shmdt(at as *const _) });
            first(board, home, &home_names);
        }),
        child(|| second(board, home)),
    ];
    board.wait(UP, 4);
    let (ask, asked) = channel();
    let (up, is_up) = channel();
    let thread = std::thread::spawn(move || {
        block_all();
        leave(libc::CLONE_NEWNET | libc::CLONE_NEWUTS);
        set_names(b"", &[0xfe; 64]);
        let _ = up.send(inodes());
        let _ = asked.recv();
        (inodes(), crate::names(), loopback(false))
    });
    let there = is_up.recv().unwrap_or_default();
    expect_that("the thread is elsewhere", there[0] == home[0] && there[1] != home[1] && there[2] != home[2], there);
    State {
        board,
        children,
        thread: (ask, thread),
        objects,
        at,
        home: home_names,
        names,
        ttl: read_file(TTL),
        messages: read_file(MESSAGES),
    }
}

fn check(state: State) {
    let State { board, children, thread: (ask, thread), objects: before, at, home, names: own, ttl, messages } = state;
    expect("names", names(), own);
    expect("objects", objects(at), before);
    expect("time to live", read_file(TTL), ttl);
    expect("messages of a queue", read_file(MESSAGES), messages);
    let now = inodes();
    expect("a descriptor of the container's names", leads_to(&home), now[2]);
    let _ = ask.send(());
    match thread.join() {
        Ok((there, names, loopback)) => {
            expect_that("the thread", there[0] == now[0] && there[1] != now[1] && there[2] != now[2], (there, now));
            expect("names of the thread", names, Names(Vec::new(), vec![0xfe; 64]));
            expect("lo of the thread", loopback, false);
        }
        Err(_) => probe::fail("the thread has failed"),
    }
    board.set(GO, 1);
    succeeded("names and objects", children[0]);
    succeeded("network", children[1]);
    remove_objects();
    ok("shmdt", unsafe { libc::shmdt(at as *const _) });
}

fn main() {
    // Outside of a container an account may do so in a user namespace only.
    if probe::caps() & 1 << 21 == 0 {
        leave(libc::CLONE_NEWUSER | libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWUTS);
    }
    probe::run(setup, check)
}
