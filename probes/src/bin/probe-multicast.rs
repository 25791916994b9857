//! Multicast groups of UDP sockets on the loopback device: one that hears everybody, one that hears one sender only, one that
//! hears all but one, and IPv6.
#![allow(unsafe_code)]

use probe::{expect, ok};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 254);
const SIX: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0xabcd, 0x1234);
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
static ZERO: i32 = 0;
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| probe::fail(&format!("{what}: {error}")))
}

/// `struct ip_mreq_source`: `IP_ADD_SOURCE_MEMBERSHIP` or `IP_BLOCK_SOURCE`.
fn source(socket: &UdpSocket, option: i32, group: Ipv4Addr, source: Ipv4Addr) {
    let value = [group.octets(), Ipv4Addr::LOCALHOST.octets(), source.octets()].concat();
    ok("setsockopt", unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, value.as_ptr().cast(), 12)
    });
}

fn socket(address: &str) -> UdpSocket {
    let socket = must("bind", UdpSocket::bind(address));
    // Only what it has joined itself, not what others on this machine have.
    ok("setsockopt", unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, 49, (&raw const ZERO).cast(), 4)
    });
    must("timeout", socket.set_read_timeout(Some(Duration::from_secs(5))));
    socket
}

/// Who of two senders is heard by a socket that is in the group. The last word is from a third way, which is always heard.
fn heard(socket: &UdpSocket, group: Ipv4Addr) -> Vec<u8> {
    let port = must("port", socket.local_addr()).port();
    for (from, word) in [(FIRST, b"1"), (SECOND, b"2")] {
        let sender = must("bind", UdpSocket::bind((from, 0)));
        let value = Ipv4Addr::LOCALHOST.octets();
        ok("setsockopt", unsafe {
            libc::setsockopt(sender.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MULTICAST_IF, value.as_ptr().cast(), 4)
        });
        must("send", sender.send_to(word, (group, port)));
    }
    must("send", socket.send_to(b".", (Ipv4Addr::LOCALHOST, port)));
    let mut all = Vec::new();
    while all.last() != Some(&b'.') {
        let mut word = [0; 9];
        let length = must("recv", socket.recv(&mut word));
        all.extend_from_slice(&word[..length]);
    }
    all
}

struct State {
    everybody: UdpSocket,
    one: UdpSocket,
    but_one: UdpSocket,
    six: UdpSocket,
}

fn check_all(State { everybody, one, but_one, six }: &State) {
    expect("everybody", heard(everybody, GROUP), b"12.".to_vec());
    expect("one", heard(one, GROUP), b"2.".to_vec());
    expect("all but one", heard(but_one, OTHER), b"1.".to_vec());
    // No route leads to it on the loopback device: seen, not heard.
    let inside = probe::read_file("/proc/self/net/igmp6").contains("ff0200000000000000000000abcd1234");
    expect("IPv6", (inside, six.local_addr().is_ok()), (true, true));
}

fn setup() -> State {
    let [everybody, one, but_one] = [(); 3].map(|()| socket("0.0.0.0:0"));
    must("join", everybody.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST));
    source(&one, libc::IP_ADD_SOURCE_MEMBERSHIP, GROUP, SECOND);
    must("join", but_one.join_multicast_v4(&OTHER, &Ipv4Addr::LOCALHOST));
    source(&but_one, libc::IP_BLOCK_SOURCE, OTHER, SECOND);
    let six = socket("[::]:0");
    must("join", six.join_multicast_v6(&SIX, 1));
    let state = State { everybody, one, but_one, six };
    check_all(&state);
    state
}

fn check(state: State) {
    check_all(&state);
    must("leave", state.everybody.leave_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST));
    expect("after leaving", heard(&state.everybody, GROUP), b".".to_vec());
}

fn main() {
    probe::run(setup, check)
}
