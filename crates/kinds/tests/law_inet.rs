//! TCP and UDP sockets, each test in a network of its own where nothing but the loopback exists.

mod law;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use law::{again, collect, law, refusal};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use rustix::net::{
    Shutdown, accept_with, bind, connect, getpeername, getsockname, listen, recv, recvfrom, send, sendto, shutdown,
    socket_with,
};
use yendor_kinds::Cause;
use yendor_kinds::file::Record;
use yendor_kinds::file::external::Filled;
use yendor_kinds::file::inet::State;
use yendor_sys::inet;
use yendor_sys::namespace::{Namespaces, unshare};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// IPv4 as an IPv6 socket sees it.
const MAPPED: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1));

/// Moves this thread (a test has one of its own) into a new network. Needs root, like everything that uses `TCP_REPAIR`.
/// False, and said so, where it cannot be had.
fn network() -> bool {
    if let Err(e) = unshare(Namespaces::NEWNET) {
        assert_eq!(e.errno, Errno::PERM, "{e}");
        let _ = writeln!(std::io::stderr(), "skipped: needs root: a network of its own (or run it with `unshare -rn`)");
        return false;
    }
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    // RTM_NEWLINK (16) with NLM_F_REQUEST | NLM_F_ACK: interface 1 gets IFF_UP.
    let words: [u32; 8] = [32, 16 | 5 << 16, 1, 0, 0, 1, 1, 1];
    let request: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    send(&netlink, &request, SendFlags::empty()).unwrap();
    let mut answer = [0; 256];
    recv(&netlink, &mut answer[..], RecvFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4]);
    true
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn socket(ip: IpAddr, kind: SocketType) -> OwnedFd {
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = if kind == SocketType::STREAM { ipproto::TCP } else { ipproto::UDP };
    socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol)).unwrap()
}

fn tcp(ip: IpAddr) -> OwnedFd {
    socket(ip, SocketType::STREAM)
}

fn udp(address: SocketAddr) -> OwnedFd {
    let fd = socket(address.ip(), SocketType::DGRAM);
    bind(&fd, &address).unwrap();
    fd
}

fn listener(address: SocketAddr) -> OwnedFd {
    let fd = tcp(address.ip());
    sockopt::set_socket_reuseaddr(&fd, true).unwrap();
    bind(&fd, &address).unwrap();
    listen(&fd, 17).unwrap();
    fd
}

fn local(fd: &OwnedFd) -> SocketAddr {
    getsockname(fd).unwrap().try_into().unwrap()
}

fn peer(fd: &OwnedFd) -> SocketAddr {
    getpeername(fd).unwrap().unwrap().try_into().unwrap()
}

fn take(fd: &OwnedFd, most: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; most];
    let (n, _) = recv(fd, &mut buffer[..], RecvFlags::DONTWAIT)?;
    buffer.truncate(n);
    Ok(buffer)
}

#[test]
fn multipath_without_a_connection() {
    if !network() {
        return;
    }
    let made = |ip: IpAddr| {
        let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP))
    };
    if matches!(made(V4), Err(Errno::PROTONOSUPPORT)) {
        let _ = writeln!(std::io::stderr(), "skipped: a kernel without MPTCP");
        return;
    }
    let [idle, bound, listening] = [V4, V6, V6].map(|ip| made(ip).unwrap());
    bind(&bound, &at(V6, 6000)).unwrap();
    sockopt::set_socket_reuseaddr(&listening, true).unwrap();
    sockopt::set_socket_keepalive(&listening, true).unwrap();
    bind(&listening, &at(V6, 6001)).unwrap();
    listen(&listening, 5).unwrap();
    let made = law(vec![idle, bound, listening]);
    for socket in &made {
        assert_eq!(sockopt::socket_protocol(socket), Ok(Some(ipproto::MPTCP)));
    }
    assert_eq!((local(&made[1]), local(&made[2])), (at(V6, 6000), at(V6, 6001)));
    assert_eq!(sockopt::socket_keepalive(&made[2]), Ok(true));
    let client = tcp(V6);
    connect(&client, &at(V6, 6001)).unwrap();
    let server = accept_with(&made[2], SocketFlags::CLOEXEC).unwrap();
    send(&client, b"plain", SendFlags::empty()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(take(&server, 9), Ok(b"plain".to_vec()));
}

#[test]
fn the_other_end_was_closed() {
    for ip in [V4, V6, MAPPED] {
        if !network() {
            return;
        }
        let server = listener(at(ip, 7000));
        let client = tcp(ip);
        connect(&client, &at(ip, 7000)).unwrap();
        let accepted = accept_with(&server, SocketFlags::CLOEXEC).unwrap();
        send(&client, b"ask", SendFlags::empty()).unwrap();
        assert_eq!(take(&accepted, 9), Ok(b"ask".to_vec()));
        send(&accepted, b"the last words", SendFlags::empty()).unwrap();
        drop(accepted);
        // One that has read it all, and one whose peer listens no more.
        let other = tcp(ip);
        connect(&other, &at(ip, 7000)).unwrap();
        drop(accept_with(&server, SocketFlags::CLOEXEC).unwrap());
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
        let made = law_of_connections(vec![client, other]);
        assert_eq!(peer(&made[0]), at(ip, 7000));
        assert_eq!(take(&made[0], 9), Ok(b"the last ".to_vec()));
        assert_eq!(take(&made[0], 9), Ok(b"words".to_vec()));
        assert_eq!(take(&made[0], 9), Ok(Vec::new()));
        assert_eq!(take(&made[1], 9), Ok(Vec::new()));
        // Nobody reads it any more: the first write is told so, the second fails.
        for socket in &made {
            assert_eq!(send(socket, b"too late", SendFlags::NOSIGNAL), Ok(8));
            std::thread::sleep(Duration::from_millis(50));
            assert!(send(socket, b"too late", SendFlags::NOSIGNAL).is_err());
        }
    }
}

#[test]
fn udp_bound_connected_and_options() {
    if !network() {
        return;
    }
    let plain = socket(V4, SocketType::DGRAM);
    let bound = udp(at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5000));
    sockopt::set_socket_broadcast(&bound, true).unwrap();
    sockopt::set_ip_ttl(&bound, 7).unwrap();
    sockopt::set_ip_tos(&bound, 0x10).unwrap();
    sockopt::set_socket_recv_buffer_size(&bound, 30_000).unwrap();
    let short = Duration::from_millis(1500);
    sockopt::set_socket_timeout(&bound, Timeout::Recv, Some(short)).unwrap();
    let connected = udp(at(V6, 0));
    connect(&connected, &at(V6, 9)).unwrap();
    sockopt::set_ipv6_unicast_hops(&connected, Some(3)).unwrap();
    let (port, peers) = (local(&connected), peer(&connected));
    let made = law(vec![plain, bound, connected]);
    assert_eq!(local(&made[0]), at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
    assert_eq!(local(&made[1]), at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5000));
    assert!(sockopt::socket_broadcast(&made[1]).unwrap());
    assert!(!sockopt::socket_reuseaddr(&made[1]).unwrap());
    assert_eq!(sockopt::ip_ttl(&made[1]), Ok(7));
    assert_eq!(sockopt::ip_tos(&made[1]), Ok(0x10));
    assert_eq!(sockopt::socket_recv_buffer_size(&made[1]), Ok(60_000));
    assert_eq!(sockopt::socket_timeout(&made[1], Timeout::Recv), Ok(Some(short)));
    assert_eq!((local(&made[2]), peer(&made[2])), (port, peers));
    assert_eq!(sockopt::ipv6_unicast_hops(&made[2]), Ok(3));
    send(&made[2], b"to nobody", SendFlags::empty()).unwrap();
}

#[test]
fn udp_queues() {
    for ip in [V4, V6, MAPPED] {
        if !network() {
            return;
        }
        let (a, b) = (udp(at(ip, 4000)), udp(at(ip, 4001)));
        connect(&b, &at(ip, 4000)).unwrap();
        let stranger = udp(at(ip, 4002));
        let long = vec![7; 60_000];
        for data in [&b"one"[..], b"", b"two", &long, b""] {
            send(&b, data, SendFlags::empty()).unwrap();
        }
        sendto(&stranger, b"three", SendFlags::empty(), &at(ip, 4000)).unwrap();
        sendto(&a, b"answer", SendFlags::empty(), &at(ip, 4001)).unwrap();
        drop(stranger);
        let image = collect(&[a.as_fd(), b.as_fd()]);
        // The originals keep what they have.
        for expected in [&b"one"[..], b"", b"two", &long, b"", b"three"] {
            assert_eq!(take(&a, 70_000).unwrap(), expected);
        }
        assert_eq!(inet::number(a.as_fd(), 1, 42).unwrap(), -1);
        drop((a, b));
        let made = again(&image);
        let mut from = Vec::new();
        for expected in [&b"one"[..], b"", b"two", &long, b"", b"three"] {
            let mut buffer = vec![0; 70_000];
            let (n, _, sender) = recvfrom(&made[0], &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
            assert_eq!(&buffer[..n], expected);
            from.push(SocketAddr::try_from(sender.unwrap()).unwrap().port());
        }
        assert_eq!(from, [4001, 4001, 4001, 4001, 4001, 4002]);
        assert_eq!(take(&made[0], 9), Err(Errno::AGAIN));
        assert_eq!(take(&made[1], 9).unwrap(), b"answer");
        send(&made[1], b"more", SendFlags::empty()).unwrap();
        assert_eq!(take(&made[0], 9).unwrap(), b"more");
        assert_eq!(peer(&made[1]), at(ip, 4000));
        assert!(getpeername(&made[0]).is_err());
    }
}

#[test]
fn udp_empty_datagrams_in_checkpoint_after_checkpoint() {
    if !network() {
        return;
    }
    for (data, later) in [
        (&[&b""[..], b"one", b"two"][..], &[&b""[..], b"one", b"two"][..]),
        (&[b""], &[b""]),
        // These are among what is lost.
        (&[b"one", b"", b"two"], &[b"one", b"two"]),
        (&[b"", b"", b"one", b""], &[b"", b"one"]),
    ] {
        let (a, b) = (udp(at(V4, 4000)), udp(at(V4, 4001)));
        for data in data {
            sendto(&b, data, SendFlags::empty(), &at(V4, 4000)).unwrap();
        }
        let queue = || {
            let image = collect(&[a.as_fd()]);
            let Record::Inet(record) = &image.entries[0].record else { panic!() };
            let State::Udp(udp) = &record.state else { panic!() };
            udp.queue.iter().map(|d| d.data.0.clone()).collect::<Vec<_>>()
        };
        assert_eq!(queue(), data);
        assert_eq!([queue(), queue()], [later; 2]);
        for data in data {
            assert_eq!(take(&a, 9).unwrap(), *data);
        }
    }
}

#[test]
fn udp_two_sockets_at_one_port() {
    if !network() {
        return;
    }
    let make = || {
        let fd = socket(V4, SocketType::DGRAM);
        sockopt::set_socket_reuseport(&fd, true).unwrap();
        bind(&fd, &at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 4000)).unwrap();
        fd
    };
    let (a, b, c) = (make(), make(), udp(at(V4, 4001)));
    for n in 0..20u8 {
        sendto(&c, &[n], SendFlags::empty(), &at(V4, 4000)).unwrap();
        // Other source ports may be sorted to the other socket.
        sendto(udp(at(V4, 4100 + u16::from(n))), &[n], SendFlags::empty(), &at(V4, 4000)).unwrap();
    }
    let image = collect(&[a.as_fd(), b.as_fd(), c.as_fd()]);
    let queues = |fds: [&OwnedFd; 2]| fds.map(|fd| std::iter::from_fn(|| take(fd, 9).ok()).collect::<Vec<_>>());
    let before = queues([&a, &b]);
    assert!(before.iter().all(|q| !q.is_empty()));
    drop((a, b, c));
    let made = again(&image);
    assert_eq!(queues([&made[0], &made[1]]), before);
}

#[test]
fn udp_refusals() {
    if !network() {
        return;
    }
    let corked = udp(at(V4, 4000));
    connect(&corked, &at(V4, 4001)).unwrap();
    send(&corked, b"half", SendFlags::MORE).unwrap();
    assert!(refusal(&[corked.as_fd()]).contains("not complete yet"));

    let refused = udp(at(V4, 4002));
    connect(&refused, &at(V4, 4003)).unwrap();
    send(&refused, b"x", SendFlags::empty()).unwrap();
    assert!(refusal(&[refused.as_fd()]).contains("a pending error"));
    assert_eq!(take(&refused, 9), Err(Errno::CONNREFUSED), "the error is still its owner's");
}

#[test]
fn udp_datagrams_that_came_as_one() {
    const UDP: i32 = 17;
    const SEGMENT: i32 = 103;
    const GRO: i32 = 104;
    for ip in [V4, V6, MAPPED] {
        if !network() {
            return;
        }
        let (a, b) = (udp(at(ip, 4000)), udp(at(ip, 4001)));
        inet::set_number(a.as_fd(), UDP, GRO, 1).unwrap();
        let send = |segment: i32, data: &[u8]| {
            inet::set_number(b.as_fd(), UDP, SEGMENT, segment).unwrap();
            sendto(&b, data, SendFlags::empty(), &at(ip, 4000)).unwrap();
        };
        send(0, b"alone");
        send(100, &[7; 250]);
        send(1000, &[8; 60_000]);
        let mut image = collect(&[a.as_fd()]);
        drop((a, b));
        let made = again(&image);
        for (data, segment) in [(&b"alone"[..], None), (&[7; 250], Some(100)), (&[8; 60_000], Some(1000))] {
            let look = inet::look(made[0].as_fd(), &mut [0; 70_000]).unwrap();
            assert_eq!(look, inet::Look { len: data.len(), from: Some(at(ip, 4001)), segment });
            assert_eq!(take(&made[0], 70_000).unwrap(), data);
        }
        drop(made);
        for lie in [0, 250, u16::MAX] {
            let Record::Inet(record) = &mut image.entries[0].record else { panic!() };
            let State::Udp(udp) = &mut record.state else { panic!() };
            udp.queue[1].segment = Some(lie);
            let told = image.try_rebuild(Filled::default()).unwrap_err();
            assert!(matches!(told, Cause::Corrupt { .. }), "{told}");
        }
    }
}

#[test]
fn udp_datagrams_to_many() {
    const JOIN: i32 = 42;
    if !network() {
        return;
    }
    let many: IpAddr = "239.1.2.3".parse().unwrap();
    let member = || {
        let fd = socket(V4, SocketType::DGRAM);
        sockopt::set_socket_reuseaddr(&fd, true).unwrap();
        bind(&fd, &at(many, 6000)).unwrap();
        inet::set(fd.as_fd(), 0, JOIN, &group(many, None)).unwrap();
        fd
    };
    let members = law(vec![member(), member(), member()]);
    let sender = udp(at(V4, 0));
    sockopt::set_socket_broadcast(&sender, true).unwrap();
    inet::set(sender.as_fd(), 0, 32, &Ipv4Addr::LOCALHOST.octets()).unwrap();
    sendto(&sender, b"once", SendFlags::empty(), &at(many, 6000)).unwrap();
    let all: Vec<_> = members.iter().map(AsFd::as_fd).collect();
    assert!(refusal(&all).contains("1 datagrams to 239.1.2.3:6000"));
    for member in &members {
        assert_eq!(take(member, 9), Ok(b"once".to_vec()));
        assert_eq!(take(member, 9), Err(Errno::AGAIN));
    }
    law(members);

    let everybody = at(IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255)), 6001);
    let bound = law(vec![udp(everybody)]);
    sendto(&sender, b"all", SendFlags::empty(), &everybody).unwrap();
    assert!(refusal(&[bound[0].as_fd()]).contains("1 datagrams to 127.255.255.255:6001"));
    assert_eq!(take(&bound[0], 9), Ok(b"all".to_vec()));
}

#[test]
fn tcp_idle_and_listening() {
    if !network() {
        return;
    }
    let plain = tcp(V6);
    sockopt::set_tcp_nodelay(&plain, true).unwrap();
    sockopt::set_tcp_user_timeout(&plain, 12_345).unwrap();
    sockopt::set_socket_linger(&plain, Some(Duration::from_secs(5))).unwrap();
    let bound = tcp(V4);
    bind(&bound, &at(V4, 7000)).unwrap();
    let listens = listener(at(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7001));
    sockopt::set_tcp_congestion(&listens, "reno").unwrap();
    let only6 = tcp(V6);
    sockopt::set_ipv6_v6only(&only6, true).unwrap();
    bind(&only6, &at(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7002)).unwrap();
    listen(&only6, 0).unwrap();
    let only4 = listener(at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7002));
    let made = law(vec![plain, bound, listens, only6, only4]);
    assert_eq!(sockopt::tcp_nodelay(&made[0]), Ok(true));
    assert_eq!(sockopt::tcp_user_timeout(&made[0]), Ok(12_345));
    assert_eq!(sockopt::socket_linger(&made[0]), Ok(Some(Duration::from_secs(5))));
    assert_eq!(local(&made[1]), at(V4, 7000));
    assert!(!sockopt::socket_reuseaddr(&made[1]).unwrap());
    assert!(sockopt::socket_reuseaddr(&made[2]).unwrap());
    assert_eq!(sockopt::tcp_congestion(&made[2]).as_deref(), Ok("reno"));
    for (ip, listens) in [(V4, &made[2]), (V6, &made[2])] {
        let client = tcp(ip);
        connect(&client, &at(ip, 7001)).unwrap();
        assert!(refusal(&[listens.as_fd()]).contains("1 TCP connections that wait to be accepted"));
        accept_with(listens, SocketFlags::CLOEXEC).unwrap();
    }
}

/// A connection: the client's end, the server's end, the listening socket.
fn connection(ip: IpAddr) -> (OwnedFd, OwnedFd, OwnedFd) {
    let listens = listener(at(ip, 0));
    let client = tcp(ip);
    connect(&client, &local(&listens)).unwrap();
    let server = accept_with(&listens, SocketFlags::CLOEXEC).unwrap();
    (client, server, listens)
}

/// Writes until the kernel takes no more; what it took.
fn flood(fd: &OwnedFd, seed: u8) -> Vec<u8> {
    let piece: Vec<u8> = (0..10_007u32).map(|i| seed.wrapping_add(u8::try_from(i % 251).unwrap())).collect();
    let mut all = Vec::new();
    while let Ok(n) = send(fd, &piece, SendFlags::DONTWAIT) {
        all.extend_from_slice(&piece[..n]);
    }
    all
}

/// Reads `wanted.len()` bytes and compares.
fn expect(fd: &OwnedFd, wanted: &[u8]) {
    let mut got = Vec::new();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while got.len() < wanted.len() {
        match take(fd, 1 << 16) {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => got.extend(piece),
            Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => panic!("{e} after {} bytes of {}", got.len(), wanted.len()),
        }
        assert!(std::time::Instant::now() < end, "{} bytes of {}", got.len(), wanted.len());
    }
    assert!(got == wanted, "{} bytes, not the same {}", got.len(), wanted.len());
}

/// Both ends talk and close in order.
fn alive(a: &OwnedFd, b: &OwnedFd) {
    for (from, to) in [(a, b), (b, a), (a, b)] {
        send(from, b"ping", SendFlags::empty()).unwrap();
        expect(to, b"ping");
    }
    shutdown(a, Shutdown::Write).unwrap();
    until_end(b);
    send(b, b"last", SendFlags::empty()).unwrap();
    expect(a, b"last");
    shutdown(b, Shutdown::Write).unwrap();
    until_end(a);
}

fn until_end(fd: &OwnedFd) {
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while take(fd, 9) == Err(Errno::AGAIN) {
        assert!(std::time::Instant::now() < end);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(take(fd, 9), Ok(Vec::new()));
}

/// Collected twice, equal but for clocks, what the kernel grows by itself, and windows, which any packet moves.
fn law_of_connections(fds: Vec<OwnedFd>) -> Vec<OwnedFd> {
    let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let image = collect(&borrowed);
    drop(fds);
    again_by(image)
}

fn again_by(image: law::Image) -> Vec<OwnedFd> {
    let made = image.rebuild();
    let borrowed: Vec<_> = made.iter().map(AsFd::as_fd).collect();
    let second = collect(&borrowed);
    for (a, b) in image.entries.iter().zip(&second.entries) {
        let (Record::Inet(mut a), Record::Inet(mut b)) = (a.record.clone(), b.record.clone()) else { panic!() };
        for r in [&mut a, &mut b] {
            if let State::TcpConnected(c) = &mut r.state {
                c.agreed.timestamp = c.agreed.timestamp.map(|t| t & 1);
                c.window =
                    yendor_kinds::file::inet::tcp::Window { update: 0, send: 0, largest: 0, receive: 0, told: 0 };
                // What was written and what was read stays; how much of it is on its way is the kernel's business.
                let written = c.sent.0.len() + c.unsent.0.len();
                c.send_sequence = c.send_sequence.wrapping_add(u32::try_from(written).unwrap());
                for queue in [&mut c.sent, &mut c.unsent, &mut c.received] {
                    queue.0.clear();
                }
                r.options.receive_buffer = 0;
                r.options.send_buffer = 0;
            }
        }
        assert_eq!(a, b);
    }
    made
}

#[test]
fn tcp_connections_talk_on() {
    for ip in [V4, V6, MAPPED] {
        if !network() {
            return;
        }
        let (client, server, listens) = connection(ip);
        sockopt::set_tcp_nodelay(&client, true).unwrap();
        sockopt::set_socket_keepalive(&server, true).unwrap();
        let names = (local(&client), peer(&client), local(&server), peer(&server));
        send(&client, b"to the server", SendFlags::empty()).unwrap();
        send(&server, b"to the client", SendFlags::empty()).unwrap();
        let image = collect(&[client.as_fd(), server.as_fd(), listens.as_fd()]);
        // The originals live on.
        assert!(sockopt::socket_reuseaddr(&server).unwrap());
        expect(&server, b"to the server");
        expect(&client, b"to the client");
        alive(&client, &server);
        drop((client, server, listens));
        let made = again_by(image);
        let (client, server, listens) = (&made[0], &made[1], &made[2]);
        assert_eq!((local(client), peer(client), local(server), peer(server)), names);
        assert!(!sockopt::socket_reuseaddr(client).unwrap() && sockopt::socket_reuseaddr(server).unwrap());
        assert!(sockopt::tcp_nodelay(client).unwrap() && sockopt::socket_keepalive(server).unwrap());
        expect(server, b"to the server");
        expect(client, b"to the client");
        alive(client, server);
        let next = tcp(ip);
        connect(&next, &local(listens)).unwrap();
        accept_with(listens, SocketFlags::CLOEXEC).unwrap();
    }
}

#[test]
fn tcp_full_queues_both_ways_in_any_order() {
    for reverse in [false, true] {
        if !network() {
            return;
        }
        let (client, server, listens) = connection(V4);
        let (there, back) = (flood(&client, 0), flood(&server, 100));
        assert!(there.len() > 100_000);
        let mut all = vec![client, server, listens];
        if reverse {
            all.reverse();
        }
        let borrowed: Vec<_> = all.iter().map(|fd| fd.as_fd()).collect();
        let image = collect(&borrowed);
        drop(all);
        let mut made = again_by(image);
        if reverse {
            made.reverse();
        }
        expect(&made[1], &there);
        expect(&made[0], &back);
        alive(&made[0], &made[1]);
    }
}

#[test]
fn tcp_half_closed() {
    if !network() {
        return;
    }
    let (client, server, listens) = connection(V6);
    send(&client, b"all that I have", SendFlags::empty()).unwrap();
    shutdown(&client, Shutdown::Write).unwrap();
    send(&server, b"and you", SendFlags::empty()).unwrap();
    let made = law_of_connections(vec![client, server, listens]);
    expect(&made[1], b"all that I have");
    until_end(&made[1]);
    expect(&made[0], b"and you");
    assert_eq!(take(&made[0], 9), Err(Errno::AGAIN));
    assert_eq!(send(&made[0], b"x", SendFlags::NOSIGNAL), Err(Errno::PIPE));
    send(&made[1], b"still here", SendFlags::empty()).unwrap();
    expect(&made[0], b"still here");
    shutdown(&made[1], Shutdown::Write).unwrap();
    until_end(&made[0]);
}

#[test]
fn tcp_an_urgent_mark_whose_byte_was_taken() {
    let taken = |fd: &OwnedFd| {
        let mut byte = [0; 1];
        recv(fd, &mut byte[..], RecvFlags::OOB).unwrap();
        byte[0]
    };
    for closed in [false, true] {
        if !network() {
            return;
        }
        let (client, server, listens) = connection(V4);
        send(&client, b"abc", SendFlags::empty()).unwrap();
        send(&client, b"X", SendFlags::OOB).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(taken(&server), b'X');
        let client = if closed {
            send(&client, b"defgh", SendFlags::empty()).unwrap();
            drop(client);
            std::thread::sleep(Duration::from_millis(50));
            assert!(refusal(&[server.as_fd(), listens.as_fd()]).contains("an urgent mark"));
            None
        } else {
            // Before what follows, too: the program may look for the mark.
            assert!(refusal(&[client.as_fd(), server.as_fd()]).contains("an urgent mark"));
            send(&client, b"defgh", SendFlags::empty()).unwrap();
            assert!(refusal(&[client.as_fd(), server.as_fd()]).contains("an urgent mark"));
            Some(client)
        };
        assert_eq!(inet::number(server.as_fd(), 1, 10), Ok(0));
        assert_eq!(take(&server, 99), Ok(b"abc".to_vec()));
        // The mark is at the head.
        let all: Vec<_> = client.iter().chain([&server]).map(AsFd::as_fd).collect();
        assert!(refusal(&all).contains("an urgent mark"));
        assert_eq!(take(&server, 99), Ok(b"defgh".to_vec()));
        let made = law_of_connections(client.into_iter().chain([server]).collect());
        if closed {
            assert_eq!(take(&made[0], 9), Ok(Vec::new()));
        } else {
            alive(&made[0], &made[1]);
        }
    }
}

#[test]
fn tcp_an_urgent_mark_with_nothing_behind() {
    if !network() {
        return;
    }
    let (client, server, _listens) = connection(V4);
    send(&client, b"X", SendFlags::OOB).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(refusal(&[client.as_fd(), server.as_fd()]).contains("urgent data"));
    recv(&server, &mut [0; 1][..], RecvFlags::OOB).unwrap();
    let made = law_of_connections(vec![client, server]);
    alive(&made[0], &made[1]);
}

#[test]
fn tcp_a_connect_that_was_refused() {
    for ip in [V4, V6, MAPPED] {
        if !network() {
            return;
        }
        let refused = || {
            let fd = tcp(ip);
            rustix::io::ioctl_fionbio(&fd, true).unwrap();
            assert_eq!(connect(&fd, &at(ip, 7000)), Err(Errno::INPROGRESS));
            fd
        };
        let (pending, told) = (refused(), refused());
        assert_eq!(sockopt::socket_error(&told), Ok(Err(Errno::CONNREFUSED)));
        let mut image = collect(&[pending.as_fd(), told.as_fd()]);
        drop((pending, told));
        let made = again(&image);
        for fd in &made {
            rustix::io::ioctl_fionbio(fd, true).unwrap();
        }
        assert_eq!(sockopt::socket_error(&made[0]), Ok(Err(Errno::CONNREFUSED)));
        let listens = listener(at(ip, 7000));
        for fd in &made {
            assert_eq!(sockopt::socket_error(fd), Ok(Ok(())));
            assert_eq!(connect(fd, &at(ip, 7000)), Err(Errno::CONNABORTED));
            assert_eq!(connect(fd, &at(ip, 7000)), Err(Errno::INPROGRESS));
            let server = accept_with(&listens, SocketFlags::CLOEXEC).unwrap();
            alive(fd, &server);
        }
        drop((made, listens));
        let Record::Inet(record) = &mut image.entries[0].record else { panic!() };
        let State::TcpEnded(ended) = &mut record.state else { panic!() };
        ended.received.0.push(0);
        let told = image.try_rebuild(Filled::default()).unwrap_err();
        assert!(matches!(told, Cause::Corrupt { .. }), "{told}");
    }
}

#[test]
fn tcp_a_connection_that_was_reset() {
    if !network() {
        return;
    }
    let reset = || {
        let (client, server, _listens) = connection(V4);
        send(&server, b"unread", SendFlags::empty()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        // With data that it has not read, closing resets.
        drop(client);
        std::thread::sleep(Duration::from_millis(20));
        server
    };
    let (pending, told) = (reset(), reset());
    assert_eq!(sockopt::socket_error(&told), Ok(Err(Errno::CONNRESET)));
    let made = law(vec![pending, told]);
    assert_eq!(sockopt::socket_error(&made[0]), Ok(Err(Errno::CONNRESET)));
    for fd in &made {
        assert_eq!(sockopt::socket_error(fd), Ok(Ok(())));
        assert_eq!(connect(fd, &at(V4, 7000)), Err(Errno::ISCONN));
    }
}

/// `struct group_req`, or with a source `struct group_source_req`.
fn group(group: IpAddr, source: Option<IpAddr>) -> Vec<u8> {
    let mut out = 1u64.to_ne_bytes().to_vec();
    for ip in std::iter::once(group).chain(source) {
        let mut address = [0; 128];
        match ip {
            IpAddr::V4(ip) => {
                address[0] = 2;
                address[4..8].copy_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                address[0] = 10;
                address[8..24].copy_from_slice(&ip.octets());
            }
        }
        out.extend_from_slice(&address);
    }
    out
}

#[test]
fn multicast_groups_and_their_sources() {
    const JOIN: i32 = 42;
    const BLOCK_SOURCE: i32 = 43;
    const JOIN_SOURCE: i32 = 46;
    if !network() {
        return;
    }
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let plain = udp(at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5000));
    inet::set(plain.as_fd(), 0, JOIN, &group(ip("239.1.2.3"), None)).unwrap();
    inet::set(plain.as_fd(), 0, JOIN, &group(ip("239.0.0.255"), None)).unwrap();
    inet::set(plain.as_fd(), 0, BLOCK_SOURCE, &group(ip("239.0.0.255"), Some(ip("10.1.2.3")))).unwrap();
    let only = udp(at(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5001));
    for source in ["127.0.0.1", "10.0.0.9"] {
        inet::set(only.as_fd(), 0, JOIN_SOURCE, &group(ip("239.1.2.3"), Some(ip(source)))).unwrap();
    }
    let six = udp(at(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 5002));
    inet::set(six.as_fd(), 41, JOIN, &group(ip("ff02::1234"), None)).unwrap();
    inet::set(six.as_fd(), 41, JOIN_SOURCE, &group(ip("ff05::8"), Some(ip("fe80::1")))).unwrap();
    // An IPv6 socket may be in groups of both.
    inet::set(six.as_fd(), 0, JOIN, &group(ip("239.9.9.9"), None)).unwrap();
    let none = udp(at(V4, 5003));
    let image = collect(&[plain.as_fd(), only.as_fd(), six.as_fd(), none.as_fd()]);
    let groups = |n: usize| match &image.entries[n].record {
        Record::Inet(record) => record.groups.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!([0, 1, 2, 3].map(|n| groups(n).len()), [2, 1, 3, 0]);
    assert_eq!((groups(1)[0].excludes, groups(1)[0].sources.len()), (false, 2));
    let blocking = groups(0).into_iter().find(|g| g.group == ip("239.0.0.255")).unwrap();
    assert_eq!((blocking.excludes, blocking.sources), (true, vec![ip("10.1.2.3")]));
    drop((plain, only, six, none));
    assert!(!std::fs::read_to_string("/proc/thread-self/net/igmp").unwrap().contains("030201EF"));
    let made = again(&image);
    // Heard by the one that hears everybody, and by the one that hears this sender.
    let sender = udp(at(V4, 0));
    inet::set(sender.as_fd(), 0, 32, &Ipv4Addr::LOCALHOST.octets()).unwrap();
    for (n, port) in [(0, 5000), (1, 5001)] {
        sendto(&sender, b"heard", SendFlags::empty(), &at(ip("239.1.2.3"), port)).unwrap();
        assert_eq!(take(&made[n], 99), Ok(b"heard".to_vec()));
    }
}
