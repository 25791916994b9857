//! Unix sockets: pairs with queued data, listeners with pending connections, descriptors in flight, half-closed ones; two of
//! one path in two roots (chroot).
#![allow(unsafe_code)]

use probe::{Board, Dir, child, expect, expect_that, ok, own, read_at_once, refused, succeeded, transfer};
use std::ffi::CString;
use std::io::{Error, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const OPTIONS: [i32; 8] = [
    libc::SO_SNDBUF,
    libc::SO_RCVBUF,
    libc::SO_PASSCRED,
    libc::SO_TYPE,
    libc::SO_ACCEPTCONN,
    libc::SO_DOMAIN,
    libc::SO_ERROR,
    libc::SO_RCVLOWAT,
];

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| probe::fail(&format!("{what}: {error}")))
}

fn pair(kind: i32) -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    ok("socketpair", unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0, ends.as_mut_ptr()) });
    (own("socketpair", ends[0]), own("socketpair", ends[1]))
}

fn option<T: Copy + Default>(fd: &impl AsRawFd, name: i32) -> T {
    let (mut value, mut length) = (T::default(), size_of::<T>() as u32);
    ok("getsockopt", unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut length)
    });
    value
}

fn set<T>(fd: &impl AsRawFd, name: i32, value: T) {
    ok("setsockopt", unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), size_of::<T>() as u32)
    });
}

type About = (Vec<i32>, [i32; 3], [i64; 2], [i32; 2]);

/// Options, peer's credentials, receive time-out, status and descriptor flags.
fn about(fd: &OwnedFd) -> About {
    let fcntl = |command| unsafe { libc::fcntl(fd.as_raw_fd(), command) };
    let options = OPTIONS.map(|name| option::<i32>(fd, name)).to_vec();
    (
        options,
        option(fd, libc::SO_PEERCRED),
        option(fd, libc::SO_RCVTIMEO),
        [fcntl(libc::F_GETFL), fcntl(libc::F_GETFD)],
    )
}

/// Sends a descriptor along with one byte.
fn send_fd(socket: &OwnedFd, fd: &OwnedFd) {
    unsafe {
        let (mut control, mut byte) = ([0_u64; 3], b'f');
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), libc::CMSG_SPACE(4) as _);
        let header = libc::CMSG_FIRSTHDR(&message);
        ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len) =
            (libc::SOL_SOCKET, libc::SCM_RIGHTS, libc::CMSG_LEN(4) as _);
        libc::CMSG_DATA(header).cast::<i32>().write(fd.as_raw_fd());
        ok("sendmsg", libc::sendmsg(socket.as_raw_fd(), &message, 0));
    }
}

fn receive_fd(socket: &OwnedFd) -> OwnedFd {
    unsafe {
        let (mut control, mut byte) = ([0_u64; 8], 0_u8);
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), 64);
        expect("recvmsg", ok("recvmsg", libc::recvmsg(socket.as_raw_fd(), &mut message, 0)), 1);
        let header = libc::CMSG_FIRSTHDR(&message);
        expect_that("descriptor in flight", !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS, byte);
        own("descriptor in flight", libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
    }
}

struct Listening {
    listener: UnixListener,
    client: UnixStream,
    address: SocketAddr,
}

fn listening(address: SocketAddr) -> Listening {
    let listener = must("bind", UnixListener::bind_addr(&address));
    let mut client = must("connect", UnixStream::connect_addr(&address));
    must("write", client.write_all(b"early"));
    Listening { listener, client, address }
}

const GO: usize = 0;
/// What a child with a root of its own listens to.
const JAILED: &str = "/jailed";

/// A child in a root of its own, which listens there.
struct Jailed {
    number: usize,
    child: i32,
    place: PathBuf,
    root: PathBuf,
}

const LISTENS: u64 = 1;
const CANNOT: u64 = 2;
const ASKS: u64 = 3;

impl Jailed {
    /// None for who may not have a root of its own.
    fn new(board: Board, number: usize, place: PathBuf) -> Option<Jailed> {
        must("mkdir", std::fs::create_dir(&place));
        let root = CString::new(place.as_os_str().as_bytes()).unwrap();
        let child = child(|| {
            if unsafe { libc::chroot(root.as_ptr()) } != 0 {
                board.set(number, CANNOT);
                return;
            }
            must("chdir", std::env::set_current_dir("/"));
            let state = listening(must("address", SocketAddr::from_pathname(JAILED)));
            board.set(number, LISTENS);
            board.wait(GO, 1);
            let listener = check_listening("listener in a root of its own", state);
            board.set(number, ASKS);
            let (mut server, _) = must("accept", listener.accept());
            must("write", server.write_all(&[number as u8]));
        });
        probe::wait_until("a child with its own root", || board.get(number) != 0);
        if board.get(number) == CANNOT {
            succeeded("child", child);
            return None;
        }
        let root = Jailed::root(child);
        Some(Jailed { number, child, place, root })
    }

    fn root(child: i32) -> PathBuf {
        must("root", std::fs::read_link(format!("/proc/{child}/root")))
    }

    fn check(self, board: Board) {
        expect("root", Jailed::root(self.child), self.root);
        board.wait(self.number, ASKS);
        let mut client =
            must("connect to it", UnixStream::connect(self.place.join(Path::new(JAILED.trim_start_matches('/')))));
        let mut who = [0; 1];
        must("read", client.read_exact(&mut who));
        expect("who listens there", usize::from(who[0]), self.number);
        succeeded("child with its own root", self.child);
    }
}

struct State {
    board: Board,
    jailed: Vec<Jailed>,
    dir: Dir,
    fds: Vec<OwnedFd>,
    path: Listening,
    hidden: Listening,
    mail: UnixDatagram,
    before: Vec<About>,
}

fn setup() -> State {
    let dir = Dir::new();
    let (stream, dgram, packet) = (pair(libc::SOCK_STREAM), pair(libc::SOCK_DGRAM), pair(libc::SOCK_SEQPACKET));
    let (flight, half, widow, creds) =
        (pair(libc::SOCK_STREAM), pair(libc::SOCK_STREAM), pair(libc::SOCK_STREAM), pair(libc::SOCK_DGRAM));
    set(&stream.0, libc::SO_SNDBUF, 30_000_i32);
    set(&stream.1, libc::SO_RCVTIMEO, [3_i64, 500_000]);
    set(&creds.1, libc::SO_PASSCRED, 1_i32);
    transfer(&stream.0, &[b's'; 5000]);
    transfer(&stream.0, b"tail");
    transfer(&stream.1, b"back");
    [b"one".as_slice(), b"", b"three"].iter().for_each(|text| transfer(&dgram.0, text));
    [b"first".as_slice(), &[b'p'; 3000]].iter().for_each(|text| transfer(&packet.1, text));
    let event = own("eventfd", unsafe { libc::eventfd(41, libc::EFD_NONBLOCK) });
    send_fd(&flight.0, &event);
    drop(event);
    transfer(&half.0, b"left");
    ok("shutdown", unsafe { libc::shutdown(half.0.as_raw_fd(), libc::SHUT_WR) });
    transfer(&widow.1, b"legacy");
    drop(widow.1);
    let pid = std::process::id();
    let path = listening(must("address", SocketAddr::from_pathname(dir.at("socket"))));
    let hidden = listening(must("address", SocketAddr::from_abstract_name(format!("probe\0 {pid}"))));
    let mail = must("bind", UnixDatagram::bind(dir.at("mail")));
    let sender = must(
        "bind",
        UnixDatagram::bind_addr(&must("address", SocketAddr::from_abstract_name(format!("sender {pid}")))),
    );
    must("send", sender.send_to(b"letter", dir.at("mail")));
    let fds = vec![
        stream.0, stream.1, dgram.0, dgram.1, packet.0, packet.1, flight.0, flight.1, half.0, half.1, widow.0, creds.0,
        creds.1,
    ];
    let before = fds.iter().map(about).collect();
    let board = Board::new();
    let jailed = [1, 2].map(|number| Jailed::new(board, number, dir.at(&format!("root {number}"))));
    let jailed = jailed.into_iter().flatten().collect();
    State { board, jailed, dir, fds, path, hidden, mail, before }
}

fn check_listening(what: &str, mut state: Listening) -> UnixListener {
    expect(
        what,
        state.listener.local_addr().ok().map(|name| format!("{name:?}")),
        Some(format!("{:?}", state.address)),
    );
    let (mut server, _) = must("accept", state.listener.accept());
    let mut text = [0; 5];
    must("read", server.read_exact(&mut text));
    expect(what, text, *b"early");
    must("write", server.write_all(b"reply"));
    must("read", state.client.read_exact(&mut text));
    expect(what, text, *b"reply");
    let late = must("connect again", UnixStream::connect_addr(&state.address));
    must("accept again", state.listener.accept());
    drop(late);
    state.listener
}

fn check(state: State) {
    for (number, (now, before)) in state.fds.iter().map(about).zip(&state.before).enumerate() {
        expect(&format!("options, peer and flags of socket {number}"), &now, before);
    }
    let fd = |number: usize| &state.fds[number];
    let holds = |number: usize, want: &[u8]| {
        let got = read_at_once(fd(number), 10_000);
        expect_that(&format!("data of socket {number}"), got.as_deref() == Some(want), got.map(|got| got.len()));
    };
    holds(1, &[[b's'; 5000].as_slice(), b"tail"].concat());
    holds(0, b"back");
    [b"one".as_slice(), b"", b"three"].iter().for_each(|text| holds(3, text));
    holds(4, b"first");
    holds(4, &[b'p'; 3000]);
    for (from, to) in [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4), (9, 8)] {
        transfer(fd(from), b"new");
        holds(to, b"new");
        expect("nothing more", read_at_once(fd(to), 1), None);
    }
    let event = receive_fd(fd(7));
    expect("value of the eventfd in flight", read_at_once(&event, 8), Some(41_u64.to_ne_bytes().to_vec()));
    holds(9, b"left");
    holds(9, b"");
    refused(
        "write after shutdown",
        unsafe { libc::send(fd(8).as_raw_fd(), b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) },
        libc::EPIPE,
    );
    holds(10, b"legacy");
    holds(10, b"");
    state.board.set(GO, 1);
    state.jailed.into_iter().for_each(|jailed| jailed.check(state.board));
    check_listening("listener with a path", state.path);
    check_listening("abstract listener", state.hidden);
    let mut text = [0; 20];
    let (length, from) = must("recvfrom", state.mail.recv_from(&mut text));
    let sender = format!("sender {}", std::process::id());
    expect("letter", (&text[..length], from.as_abstract_name()), (b"letter".as_slice(), Some(sender.as_bytes())));
    expect(
        "name of a socket",
        state.mail.local_addr().ok().and_then(|name| name.as_pathname().map(Into::into)),
        Some(state.dir.at("mail")),
    );
    let spare = must("socket", UnixDatagram::unbound());
    expect_that("send by path", spare.send_to(b"x", state.dir.at("mail")).is_ok(), Error::last_os_error());
}

fn main() {
    probe::run(setup, check)
}
