//! Namespaces inside the container that tasks, and a thread, have made for themselves: names, System V objects with the ids and keys of the
//! container's own, a network with and one without its loopback, and with sockets of names that the container has, too; descriptors of them; a task that has gone back; clocks that are
//! ahead, and control groups where they can be had.
#![allow(unsafe_code)]

use probe::{Board, Dir, block_all, child, expect, expect_that, ok, own, read_file, succeeded};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

const UP: usize = 0;
const GO: usize = 1;
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

/// The key of all objects: that of the probe, whose relatives and threads have it, too. Where namespaces cannot be had they are the host's.
fn key() -> i32 {
    static KEY: OnceLock<i32> = OnceLock::new();
    *KEY.get_or_init(|| (0x7eed_0000 + std::process::id()) as i32)
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
        let segment = ok("shmget", libc::shmget(key(), SIZE, mode));
        let at = libc::shmat(segment, null(), 0);
        expect_that("shmat", at != libc::MAP_FAILED, at);
        at.cast::<u8>().add(4097).write_volatile(byte);
        let semaphore = ok("semget", libc::semget(key(), 1, mode));
        ok("semctl", libc::semctl(semaphore, 0, libc::SETVAL, i32::from(byte)));
        let queue = ok("msgget", libc::msgget(key(), mode));
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
        let segment = ok("shmget", libc::shmget(key(), 0, 0));
        let attached = libc::shmat(segment, null(), libc::SHM_RDONLY);
        expect_that("shmat", attached != libc::MAP_FAILED, attached);
        let byte = attached.cast::<u8>().add(4097).read_volatile();
        // What was attached before is the same memory.
        let word = (at as *mut u8).add(4098);
        word.write_volatile(byte ^ 0x55);
        expect("the same segment", attached.cast::<u8>().add(4098).read_volatile(), byte ^ 0x55);
        ok("shmdt", libc::shmdt(attached));
        let semaphore = ok("semctl", libc::semctl(ok("semget", libc::semget(key(), 1, 0)), 0, libc::GETVAL));
        let queue = ok("msgget", libc::msgget(key(), 0));
        let mut message = [0_u8; 40];
        let got = ok("msgrcv", libc::msgrcv(queue, message.as_mut_ptr().cast(), 32, 0, libc::IPC_NOWAIT));
        expect("type of the message", i64::from_ne_bytes(message[..8].try_into().unwrap_or_default()), i64::MAX);
        ok("msgsnd", libc::msgsnd(queue, message.as_ptr().cast(), got as usize, 0));
        Objects { segment, byte, semaphore, queued: message[8..8 + got as usize].to_vec() }
    }
}

fn remove_objects() {
    unsafe {
        ok("shmctl", libc::shmctl(ok("shmget", libc::shmget(key(), 0, 0)), libc::IPC_RMID, std::ptr::null_mut()));
        ok("semctl", libc::semctl(ok("semget", libc::semget(key(), 1, 0)), 0, libc::IPC_RMID));
        ok("msgctl", libc::msgctl(ok("msgget", libc::msgget(key(), 0)), libc::IPC_RMID, std::ptr::null_mut()));
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

/// Sockets at work in a network: an abstract name and a port that the container's network has, too.
struct Sockets {
    listener: TcpListener,
    pair: (TcpStream, TcpStream),
    datagrams: (UdpSocket, UdpSocket),
    named: UnixListener,
    accepted: (UnixStream, UnixStream),
    news: OwnedFd,
}

/// The same name whoever asks.
fn address() -> SocketAddr {
    let name = format!("probe-namespaces-{}", key());
    SocketAddr::from_abstract_name(name).unwrap_or_else(|e| probe::fail(&format!("a name: {e}")))
}

fn done<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|e| probe::fail(&format!("{what}: {e}")))
}

fn open_sockets(port: u16) -> Sockets {
    let listener = done("bind", TcpListener::bind(("127.0.0.1", port)));
    let client = done("connect", TcpStream::connect(("127.0.0.1", port)));
    let server = done("accept", listener.accept()).0;
    let (one, two) = (done("bind", UdpSocket::bind("[::1]:0")), done("bind", UdpSocket::bind("[::1]:0")));
    done("send", one.send_to(b"a datagram", done("name", two.local_addr())));
    done("write", (&client).write_all(&[7; 70_000]));
    done("write", (&server).write_all(b"back"));
    let named = done("bind", UnixListener::bind_addr(&address()));
    let their = done("connect", UnixStream::connect_addr(&address()));
    let accepted = done("accept", named.accept()).0;
    done("write", (&their).write_all(b"an abstract name"));
    let news = own("socket", unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_NONBLOCK, libc::NETLINK_ROUTE)
    });
    Sockets { listener, pair: (client, server), datagrams: (one, two), named, accepted: (their, accepted), news }
}

fn check_sockets(sockets: Sockets, port: u16) {
    let Sockets { listener, pair: (client, server), datagrams: (one, two), named, accepted, news } = sockets;
    let mut bytes = vec![0; 70_000];
    done("read", (&server).read_exact(&mut bytes));
    expect("what was sent", bytes, vec![7; 70_000]);
    let mut back = [0; 4];
    done("read", (&client).read_exact(&mut back));
    expect("what was sent back", &back, b"back");
    let mut room = [0; 32];
    let (count, from) = done("recv", two.recv_from(&mut room));
    expect("the datagram", (&room[..count], from), (&b"a datagram"[..], done("name", one.local_addr())));
    let mut room = [0; 16];
    done("read", (&accepted.1).read_exact(&mut room));
    expect("by an abstract name", &room, b"an abstract name");
    // Both names lead to who is here.
    let again = done("connect", UnixStream::connect_addr(&address()));
    done("write", (&done("accept", named.accept()).0).write_all(b"x"));
    done("read", (&again).read_exact(&mut room[..1]));
    let again = done("connect", TcpStream::connect(("127.0.0.1", port)));
    let other = done("accept", listener.accept()).1;
    expect("who was accepted", other, done("name", again.local_addr()));
    // A question that the network answers: its devices, of which lo is the first.
    let mut question = [0_u8; 32];
    question[0] = 32;
    question[4..8].copy_from_slice(&[18, 0, 1, 0]);
    question[20] = 1;
    probe::transfer(&news, &question);
    let answer = probe::read_at_once(&news, 4096).unwrap_or_default();
    expect_that("lo", answer.windows(3).any(|name| name == b"lo\0"), answer.len());
}

/// Of a network.
fn second(board: Board, home: [u64; 3], port: u16, path: &Path) {
    leave(libc::CLONE_NEWNET);
    expect("lo", loopback(true), true);
    setting(TTL, "77");
    let (ttl, namespace) = (read_file(TTL), descriptor("net"));
    let sockets = open_sockets(port);
    // A path leads into another network; what is accepted there is in this one.
    let beyond = done("connect", UnixStream::connect(path));
    done("write", (&beyond).write_all(b"from within"));
    let then = inodes();
    expect_that("another network", then[0] == home[0] && then[1] != home[1] && then[2] == home[2], (then, home));
    board.add(UP, 1);
    board.wait(GO, 1);
    expect("lo", loopback(false), true);
    expect("time to live", read_file(TTL), ttl);
    expect("a descriptor of it", leads_to(&namespace), inodes()[1]);
    check_sockets(sockets, port);
    done("write", (&beyond).write_all(b", later"));
}

/// How far each clock of the third is ahead, in seconds.
const AHEAD: [(i32, &str, i128); 2] =
    [(libc::CLOCK_MONOTONIC, "monotonic", 7_000_000), (libc::CLOCK_BOOTTIME, "boottime", 3_000_000_000)];
/// Where the first task shows its clocks, and the inodes of its namespaces.
const CLOCKS: usize = 2;
const HOME: [(usize, &str); 2] = [(4, "time"), (5, "cgroup")];

fn show_clocks(board: &Board) {
    HOME.iter().for_each(|(slot, kind)| board.set(*slot, leads_to(&descriptor(kind))));
    (CLOCKS..).zip(AHEAD).for_each(|(slot, (clock, ..))| board.set(slot, probe::clock(clock) as u64));
}

fn check_clocks(board: &Board) {
    for (slot, (clock, name, seconds)) in (CLOCKS..).zip(AHEAD) {
        let gone = probe::clock(clock) - i128::from(board.get(slot)) - seconds * 1_000_000_000;
        expect_that(&format!("time since the first task showed its {name}"), (0..60_000_000_000).contains(&gone), gone);
    }
}

/// Of clocks, and of control groups; a child of it, with a thread, lives there too.
fn third(board: Board) {
    let inode = |kind: &str| leads_to(&descriptor(kind));
    leave(libc::CLONE_NEWTIME);
    let line = |(_, name, more): &(i32, &str, i128)| {
        let (seconds, nanos) = offset(name);
        format!("{name} {} {nanos}\n", seconds + more)
    };
    let lines: String = AHEAD.iter().map(line).collect();
    done("timens_offsets", std::fs::write("/proc/self/timens_offsets", lines));
    enter(&descriptor("time_for_children"), libc::CLONE_NEWTIME);
    // Containers of users of their own may have none.
    let groups = unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } == 0;
    let there = |what: &str| {
        let now = HOME.map(|(_, kind)| inode(kind));
        expect(what, [0, 1].map(|i| now[i] != board.get(HOME[i].0)), [true, groups]);
        expect("its children's time", inode("time_for_children"), now[0]);
        if groups {
            let text = read_file("/proc/self/cgroup");
            expect_that("the root of its control groups", text.lines().all(|line| line.ends_with(":/")), &text);
        }
        now
    };
    let time = descriptor("time");
    there("other namespaces");
    check_clocks(&board);
    let heir = child(|| {
        let thread = std::thread::spawn(move || {
            block_all();
            board.add(UP, 1);
            board.wait(GO, 1);
            check_clocks(&board);
        });
        expect_that("the heir's thread", thread.join().is_ok(), ());
        check_clocks(&board);
    });
    let until = probe::clock(libc::CLOCK_MONOTONIC) + 1_000_000;
    board.add(UP, 1);
    board.wait(GO, 1);
    let at = libc::timespec { tv_sec: (until / 1_000_000_000) as i64, tv_nsec: (until % 1_000_000_000) as i64 };
    expect(
        "a time that has come",
        unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 1, &at, std::ptr::null_mut()) },
        0,
    );
    let now = there("other namespaces still");
    expect("a descriptor of it", leads_to(&time), now[0]);
    check_clocks(&board);
    succeeded("heir", heir);
}

/// How far the calling task's clock is ahead of the host's: seconds, and nanoseconds beside.
fn offset(name: &str) -> (i128, i128) {
    let text = read_file("/proc/self/timens_offsets");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What the thread sees: namespaces, names, whether `lo` is up.
type Seen = ([u64; 3], Names, bool);

struct State {
    board: Board,
    children: [i32; 3],
    thread: (Sender<()>, JoinHandle<Seen>),
    objects: Objects,
    at: usize,
    home: OwnedFd,
    names: Names,
    ttl: String,
    messages: String,
    listener: TcpListener,
    named: UnixListener,
    beyond: (UnixListener, UnixStream),
    _dir: Dir,
}

fn setup() -> State {
    let (board, home, names, home_names) = (Board::new(), inodes(), names(), descriptor("uts"));
    let (objects, at) = make_objects(9);
    let (listener, named) =
        (done("bind", TcpListener::bind("0.0.0.0:0")), done("bind", UnixListener::bind_addr(&address())));
    let port = done("name", listener.local_addr()).port();
    let dir = Dir::new();
    let path = dir.at("socket");
    let doors = done("bind", UnixListener::bind(&path));
    show_clocks(&board);
    // They hold what they do not use, too.
    let children = [
        child(|| {
            ok("shmdt", unsafe { libc::shmdt(at as *const _) });
            first(board, home, &home_names);
        }),
        child(|| second(board, home, port, &path)),
        child(|| third(board)),
    ];
    let beyond = done("accept", doors.accept()).0;
    board.wait(UP, 6);
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
        listener,
        named,
        beyond: (doors, beyond),
        _dir: dir,
    }
}

fn check(state: State) {
    let State { board, children, thread: (ask, thread), objects: before, at, home, names: own, ttl, .. } = state;
    let State { messages, listener, named, beyond: (doors, beyond), _dir, .. } = state;
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
    for silent in [listener.as_raw_fd(), named.as_raw_fd()] {
        let mut poll = libc::pollfd { fd: silent, events: libc::POLLIN, revents: 0 };
        expect("connections from another network", unsafe { libc::poll(&mut poll, 1, 0) }, 0);
    }
    show_clocks(&board);
    board.set(GO, 1);
    succeeded("names and objects", children[0]);
    succeeded("network", children[1]);
    succeeded("clocks", children[2]);
    let mut text = String::new();
    done("read", (&beyond).read_to_string(&mut text));
    expect("from another network", text.as_str(), "from within, later");
    expect(
        "where it was accepted",
        done("name", beyond.local_addr()).as_pathname(),
        done("name", doors.local_addr()).as_pathname(),
    );
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
