//! TCP connections on the loopback device whose other end was closed by its process, as servers have them all the time: with something to read
//! yet, without, and one whose own end sends no more either. Nobody has the other end; the kernel remembers it for a while.
#![allow(unsafe_code)]

use probe::{expect, expect_that, ok, wait_until};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// `TCP_CLOSE_WAIT`: the other end has said that it sends no more.
const CLOSE_WAIT: u8 = 8;

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| probe::fail(&format!("{what}: {error}")))
}

fn state(stream: &TcpStream) -> u8 {
    let (mut info, mut length) = ([0_u8; 104], 104);
    ok("getsockopt", unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut length)
    });
    info[0]
}

struct Held {
    unread: TcpStream,
    read: TcpStream,
    large: TcpStream,
    /// The server's end of a connection whose client has gone: the listener is there still.
    accepted: TcpStream,
    listener: TcpListener,
    names: [(SocketAddr, SocketAddr); 4],
}

fn names(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (must("getsockname", stream.local_addr()), must("getpeername", stream.peer_addr()))
}

/// A client's end and the server's.
fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let at = must("getsockname", listener.local_addr());
    let client = must("connect", TcpStream::connect_timeout(&at, Duration::from_secs(5)));
    must("timeout", client.set_read_timeout(Some(Duration::from_secs(5))));
    (client, must("accept", listener.accept()).0)
}

fn setup() -> Held {
    let listener = must("bind", TcpListener::bind("127.0.0.1:0"));
    let gone = must("bind", TcpListener::bind("[::1]:0"));
    let (unread, mut server) = pair(&listener);
    must("write", server.write_all(b"the last words"));
    drop(server);
    let (mut read, mut server) = pair(&gone);
    must("write", server.write_all(b"x"));
    drop(server);
    must("read", read.read_exact(&mut [0]));
    let (mut large, mut server) = pair(&gone);
    must("write", large.write_all(b"ask"));
    must("read", server.read_exact(&mut [0; 3]));
    must("write", server.write_all(&[7; 40_000]));
    must("shutdown", server.shutdown(Shutdown::Write));
    drop(server);
    // Nobody listens there any more.
    drop(gone);
    let (client, accepted) = pair(&listener);
    must("timeout", accepted.set_read_timeout(Some(Duration::from_secs(5))));
    drop(client);
    let all = [&unread, &read, &large, &accepted];
    wait_until("all have said their last word", || all.iter().all(|stream| state(stream) == CLOSE_WAIT));
    let names = all.map(names);
    Held { unread, read, large, accepted, listener, names }
}

/// What is left is read, then the end. To write works once; then it is known that nobody reads.
fn over(what: &str, stream: &mut TcpStream, left: &[u8]) {
    let mut rest = Vec::new();
    must(what, stream.read_to_end(&mut rest));
    expect_that(what, rest == left, rest.len());
    must(what, stream.write_all(b"too late"));
    let refused = |e: &std::io::Error| matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
    wait_until(what, || stream.write_all(b"too late").is_err_and(|e| refused(&e)));
}

fn check(held: Held) {
    let Held { mut unread, mut read, mut large, mut accepted, listener, names: before } = held;
    expect("states", [&unread, &read, &large, &accepted].map(state), [CLOSE_WAIT; 4]);
    expect("names", [&unread, &read, &large, &accepted].map(names), before);
    over("unread", &mut unread, b"the last words");
    over("read", &mut read, b"");
    over("large", &mut large, &[7; 40_000]);
    over("accepted", &mut accepted, b"");
    let (mut client, mut server) = pair(&listener);
    must("write", client.write_all(b"new"));
    must("read", server.read_exact(&mut [0; 3]));
}

fn main() {
    probe::run(setup, check)
}
