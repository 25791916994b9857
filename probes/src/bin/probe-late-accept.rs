//! Connections that somebody is about to accept: a checkpoint waits for that.
#![allow(unsafe_code)]

use probe::{expect, sleep_ms};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};

struct State {
    listener: JoinHandle<(TcpListener, TcpStream)>,
    client: TcpStream,
}

/// A checkpoint that starts at once finds the connection still waiting.
const LATE_MS: u64 = 1200;

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| probe::fail(&format!("{what}: {error}")))
}

fn setup() -> State {
    let listener = must("bind", TcpListener::bind("127.0.0.1:0"));
    let mut client = must("connect", TcpStream::connect(must("name", listener.local_addr())));
    must("write", client.write_all(b"early"));
    let listener = spawn(move || {
        sleep_ms(LATE_MS);
        let server = must("accept", listener.accept()).0;
        (listener, server)
    });
    State { listener, client }
}

fn check(state: State) {
    let State { listener, mut client } = state;
    let Ok((listener, mut server)) = listener.join() else { probe::fail("the listener's thread") };
    let mut text = [0; 5];
    must("read", server.read_exact(&mut text));
    expect("what was sent before", text, *b"early");
    must("write", server.write_all(b"reply"));
    must("read", client.read_exact(&mut text));
    expect("the answer", text, *b"reply");
    let late = must("connect again", TcpStream::connect(must("name", listener.local_addr())));
    must("accept again", listener.accept());
    drop(late);
}

fn main() {
    probe::run(setup, check)
}
