//! Listening TCP sockets (one of MPTCP) and bound UDP sockets on the loopback device, without connections.
#![allow(unsafe_code)]

use probe::{expect, ok};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

const OPTIONS: [(i32, i32); 9] = [
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
];

const KEY: [u8; 16] = *b"\0key\xff of its own";

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| probe::fail(&format!("{what}: {error}")))
}

fn set(socket: &impl AsRawFd, level: i32, name: i32, value: i32) {
    ok("setsockopt", unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) });
}

fn options(socket: &impl AsRawFd, more: &[(i32, i32)]) -> Vec<i32> {
    OPTIONS
        .iter()
        .chain(more)
        .map(|&(level, name)| {
            let (mut value, mut length) = (0_i32, 4);
            ok("getsockopt", unsafe {
                libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &mut length)
            });
            value
        })
        .collect()
}

const TCP: [(i32, i32); 3] = [
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
];

struct State {
    listener: TcpListener,
    datagrams: UdpSocket,
    multipath: Option<TcpListener>,
    names: (SocketAddr, SocketAddr),
    options: [Vec<i32>; 2],
}

/// As servers in Go listen: none where the kernel does not know it.
fn multipath() -> Option<TcpListener> {
    let fd = unsafe { libc::socket(libc::AF_INET6, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 262) };
    if fd < 0 {
        return None;
    }
    let listener = unsafe { TcpListener::from_raw_fd(fd) };
    set(&listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    set(&listener, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(&listener, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0);
    // Without a name it gets one.
    ok("listen", unsafe { libc::listen(fd, 9) });
    Some(listener)
}

fn option(socket: &impl AsRawFd, level: i32, name: i32) -> i32 {
    let (mut value, mut length) = (0_i32, 4);
    ok("getsockopt", unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &mut length)
    });
    value
}

/// It is one of MPTCP still, and a client of plain TCP is heard.
fn check_multipath(listener: &TcpListener) {
    expect("SO_PROTOCOL", option(listener, libc::SOL_SOCKET, libc::SO_PROTOCOL), 262);
    expect("SO_KEEPALIVE", option(listener, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    let port = must("getsockname", listener.local_addr()).port();
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let mut client = must("connect", TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    must("write", client.write_all(b"hello"));
    let (mut server, _) = must("accept", listener.accept());
    let mut text = [0; 5];
    must("read", server.read_exact(&mut text));
    expect("greeting over MPTCP's listener", text, *b"hello");
}

fn setup() -> State {
    let listener = must("bind", TcpListener::bind("127.0.0.1:0"));
    let datagrams = must("bind", UdpSocket::bind("127.0.0.1:0"));
    set(&listener, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, 20_000);
    set(&listener, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 77);
    set(&listener, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set(&datagrams, libc::SOL_SOCKET, libc::SO_BROADCAST, 1);
    set(&datagrams, libc::IPPROTO_IP, libc::IP_TTL, 3);
    ok("listen", unsafe { libc::listen(listener.as_raw_fd(), 7) });
    let multipath = multipath();
    let key = KEY;
    ok("TCP_FASTOPEN_KEY", unsafe {
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, 33, key.as_ptr().cast(), 16)
    });
    let names = (must("getsockname", listener.local_addr()), must("getsockname", datagrams.local_addr()));
    let options = [options(&listener, &TCP), options(&datagrams, &[])];
    State { listener, datagrams, multipath, names, options }
}

fn check(state: State) {
    let (mut key, mut length) = ([0_u8; 16], 16);
    ok("TCP_FASTOPEN_KEY", unsafe {
        libc::getsockopt(state.listener.as_raw_fd(), libc::IPPROTO_TCP, 33, key.as_mut_ptr().cast(), &mut length)
    });
    expect("TCP_FASTOPEN_KEY", (key, length), (KEY, 16));
    expect("options", [options(&state.listener, &TCP), options(&state.datagrams, &[])], state.options);
    let names = (must("getsockname", state.listener.local_addr()), must("getsockname", state.datagrams.local_addr()));
    expect("names", names, state.names);
    let mut client = must("connect", TcpStream::connect_timeout(&names.0, Duration::from_secs(5)));
    must("write", client.write_all(b"hello"));
    let (mut server, _) = must("accept", state.listener.accept());
    let mut text = [0; 5];
    must("read", server.read_exact(&mut text));
    expect("greeting", text, *b"hello");
    state.multipath.iter().for_each(check_multipath);
    let sender = must("bind", UdpSocket::bind("127.0.0.1:0"));
    must("send", sender.send_to(b"datagram", names.1));
    must("timeout", state.datagrams.set_read_timeout(Some(Duration::from_secs(5))));
    let mut text = [0; 20];
    expect("datagram", state.datagrams.recv(&mut text).ok(), Some(8));
    let inodes = std::fs::read_to_string("/proc/self/net/tcp").unwrap_or_default();
    let local = format!("0100007F:{:04X} 00000000:0000 0A", names.0.port());
    expect("listening sockets of this name", inodes.matches(&local).count(), 1);
}

fn main() {
    probe::run(setup, check)
}
