//! Unix sockets.

mod law;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use law::{Place, again, collect, law, refusal, twin};
use rustix::io::{Errno, read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, recv, shutdown, socketpair, sockopt};
use rustix::net::{RecvFlags, Shutdown};
use yendor_kinds::file::Record;
use yendor_kinds::file::unix::State;
use yendor_kinds::file::unix::backlog::Client;
use yendor_sys::sock;

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None).unwrap()
}

fn take(fd: &OwnedFd, most: usize) -> Vec<u8> {
    let mut buffer = vec![0; most];
    let n = read(fd, &mut buffer[..]).unwrap();
    buffer.truncate(n);
    buffer
}

/// Takes a message with its descriptors, for good.
fn receive(fd: &OwnedFd) -> (Vec<u8>, usize, Vec<u8>) {
    let seen = sock::peek(fd.as_fd(), 1 << 20).unwrap().expect("a message");
    recv(fd, &mut vec![0u8; seen.data.len().max(1)][..], RecvFlags::DONTWAIT).unwrap();
    (seen.data, seen.files.len(), seen.from)
}

fn counter(n: u64) -> OwnedFd {
    let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    write(&fd, &n.to_ne_bytes()).unwrap();
    fd
}

#[test]
fn stream_pairs_with_data_in_both_directions() {
    let (a, b) = pair(SocketType::STREAM);
    let many: Vec<u8> = (0..150_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    assert_eq!(write(&a, &many).unwrap(), many.len());
    write(&b, b"small").unwrap();
    let image = collect(&[a.as_fd(), b.as_fd()]);
    let made = again(&image);
    let mut got = Vec::new();
    while got.len() < many.len() {
        got.extend(take(&made[1], 1 << 20));
    }
    assert!(got == many);
    assert_eq!(take(&made[0], 99), b"small");
    assert_eq!(read(&made[0], &mut [0u8; 1][..]), Err(Errno::AGAIN));
    // The original is as it was.
    assert_eq!(take(&a, 99), b"small");
    assert_eq!(sock::option(b.as_fd(), 42).unwrap(), Some(-1));
    assert_eq!(sock::waiting(b.as_fd()).unwrap(), many.len());
}

#[test]
fn many_small_writes_in_a_stream() {
    let (a, b) = pair(SocketType::STREAM);
    let mut n = 0;
    while write(&a, b"x").is_ok() {
        n += 1;
    }
    let made = law(vec![a, b]);
    assert_eq!(sock::waiting(made[1].as_fd()).unwrap(), n);
}

#[test]
fn shutdowns() {
    for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
        let (a, b) = pair(SocketType::STREAM);
        write(&a, b"before").unwrap();
        shutdown(&a, how).unwrap();
        let made = law(vec![a, b]);
        assert_eq!(take(&made[1], 99), b"before");
        let end = read(&made[1], &mut [0u8; 1][..]);
        assert_eq!(end, if matches!(how, Shutdown::Read) { Err(Errno::AGAIN) } else { Ok(0) });
    }
}

#[test]
fn widowed_sockets() {
    let (a, b) = pair(SocketType::STREAM);
    write(&b, b"last words").unwrap();
    drop(b);
    let made = law(vec![a]);
    assert_eq!(take(&made[0], 99), b"last words");
    assert_eq!(read(&made[0], &mut [0u8; 1][..]), Ok(0));

    let (a, b) = pair(SocketType::STREAM);
    write(&a, b"never read").unwrap();
    drop(b);
    let made = law(vec![a]);
    assert_eq!(read(&made[0], &mut [0u8; 1][..]), Err(Errno::CONNRESET));

    let (a, b) = pair(SocketType::DGRAM);
    write(&b, b"one").unwrap();
    drop(b);
    let made = law(vec![a]);
    assert_eq!(take(&made[0], 99), b"one");
    assert_eq!(write(&made[0], b"x"), Err(Errno::CONNREFUSED));
}

#[test]
fn peers_outside_are_refused() {
    let (a, _b) = pair(SocketType::STREAM);
    assert!(refusal(&[a.as_fd()]).contains("is outside of the tree"));
    let path = name("outside");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    assert!(refusal(&[client.as_fd()]).contains("it waits to be accepted by"));
    assert!(refusal(&[listener.as_fd()]).contains("a connection from outside the tree"));
    drop_place(&path);
}

#[test]
fn packets_keep_their_boundaries() {
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let (a, b) = pair(kind);
        for data in [&b"one"[..], b"t", &[7; 100_000]] {
            write(&a, data).unwrap();
        }
        write(&b, b"back").unwrap();
        let made = law(vec![a, b]);
        assert_eq!(take(&made[1], 99), b"one");
        assert_eq!(take(&made[1], 99), b"t");
        assert_eq!(take(&made[1], 1 << 20).len(), 100_000);
        assert_eq!(take(&made[0], 99), b"back");
        assert_eq!(read(&made[0], &mut [0u8; 1][..]), Err(Errno::AGAIN));
    }
    let (a, b) = pair(SocketType::DGRAM);
    write(&a, b"").unwrap();
    write(&a, b"after").unwrap();
    let image = collect(&[a.as_fd(), b.as_fd()]);
    let made = image.rebuild();
    assert_eq!(take(&made[1], 99), b"");
    assert_eq!(take(&made[1], 99), b"after");
}

#[test]
fn descriptors_in_flight() {
    for kind in [SocketType::STREAM, SocketType::SEQPACKET, SocketType::DGRAM] {
        let (a, b) = pair(kind);
        let (e, f) = (counter(5), counter(6));
        sock::send(a.as_fd(), b"plain", &[], None).unwrap();
        sock::send(a.as_fd(), b"with", &[e.as_fd(), f.as_fd(), e.as_fd()], None).unwrap();
        sock::send(a.as_fd(), b"more", &[], None).unwrap();
        // A socket that holds itself, and its own peer.
        sock::send(a.as_fd(), b"self", &[a.as_fd(), b.as_fd()], None).unwrap();
        let image = collect(&[a.as_fd(), b.as_fd()]);
        assert_eq!(image.entries.len(), 4);
        drop((a, b, e, f));
        let made = again(&image);
        if kind == SocketType::STREAM {
            let Record::Unix(record) = &image.entries[1].record else { panic!("no unix socket") };
            let pieces = record.queue.iter().map(|m| (m.data.0.as_slice(), m.files.len())).collect::<Vec<_>>();
            assert_eq!(pieces, [(&b"plain"[..], 0), (b"with", 3), (b"more", 0), (b"self", 2)]);
            continue;
        }
        let seen: Vec<_> = (0..4).map(|_| receive(&made[1])).map(|(data, files, _)| (data, files)).collect();
        let expected = [(&b"plain"[..], 0), (b"with", 3), (b"more", 0), (b"self", 2)];
        assert_eq!(seen, expected.map(|(d, n)| (d.to_vec(), n)));
    }
}

/// A path in a fresh place that outlives the test; short, since sun_path is.
fn name(what: &str) -> std::path::PathBuf {
    let place = Place::new();
    let path = place.0.join(what);
    std::mem::forget(place);
    path
}

fn drop_place(path: &std::path::Path) {
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn listening_sockets_and_what_they_accepted() {
    let path = name("a\n\u{e4} name");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o706)).unwrap();
    rustix::net::listen(&listener, 7).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    let second = UnixStream::connect(&path).unwrap();
    let (server2, _) = listener.accept().unwrap();
    let waiting = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
    write(&client, b"request").unwrap();
    write(&server2, b"answer").unwrap();
    let [w1, w2] = waiting.map(OwnedFd::from);
    let fds: Vec<OwnedFd> = vec![client.into(), server.into(), w2, listener.into(), server2.into(), second.into(), w1];
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let image = collect(&borrowed);
    let Record::Unix(record) = &image.entries[3].record else { panic!("no unix socket") };
    let client = |i: usize| Client { socket: Some(image.ids[i]), queue: Vec::new(), who: None };
    assert_eq!(record.state, State::Listening { backlog: 7, waiting: [6, 2].map(client).to_vec() });
    drop(fds);
    let made = again(&image);
    assert_eq!(take(&made[1], 99), b"request");
    assert_eq!(take(&made[5], 99), b"answer");
    assert_eq!(sock::name(made[1].as_fd()).unwrap(), path.as_os_str().as_encoded_bytes());
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o706);
    let listener = UnixListener::from(twin(&made[3]));
    let (first, _) = listener.accept().unwrap();
    write(&made[6], b"I was first").unwrap();
    assert_eq!(take(&first.into(), 99), b"I was first");
    listener.accept().unwrap();
    // New clients find it.
    UnixStream::connect(&path).unwrap();
    drop_place(&path);
}

#[test]
fn accepted_sockets_whose_listener_has_gone_and_unlinked_names() {
    let path = name("gone");
    let listener = UnixListener::bind(&path).unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    for _ in 0..2 {
        fds.push(UnixStream::connect(&path).unwrap().into());
        fds.push(listener.accept().unwrap().0.into());
    }
    std::fs::remove_file(&path).unwrap();
    let with_listener: Vec<_> = fds.iter().map(twin).chain([twin(&listener)]).collect();
    let image = collect(&with_listener.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    drop((with_listener, listener));
    let first = law(fds);
    assert_eq!(sock::name(first[1].as_fd()).unwrap(), path.as_os_str().as_encoded_bytes());
    assert!(!path.exists());
    drop(first);
    let made = again(&image);
    write(&made[0], b"hello").unwrap();
    assert_eq!(take(&made[1], 9), b"hello");
    assert!(!path.exists());
    drop_place(&path);
}

#[test]
fn a_path_that_somebody_else_listens_to_is_left_alone() {
    let path = name("taken");
    let listener = UnixListener::bind(&path).unwrap();
    let image = collect(&[listener.as_fd()]);
    let error = image.try_rebuild(Default::default()).unwrap_err();
    assert!(error.to_string().contains("somebody has something already"), "{error}");
    UnixStream::connect(&path).unwrap();
    drop(listener);
    image.rebuild();
    drop_place(&path);
}

#[test]
fn abstract_names_and_autobind() {
    let unique = format!("yendor-law-{}-\u{fc}\0x", std::process::id());
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let address = [b"\0", unique.as_bytes()].concat();
    sock::bind(listener.as_fd(), &address).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let client = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    // Autobind: the kernel chooses.
    sock::bind(client.as_fd(), b"").unwrap();
    let chosen = sock::name(client.as_fd()).unwrap();
    assert_eq!(chosen.len(), 6);
    sock::connect(client.as_fd(), Some(&address)).unwrap();
    let server = rustix::net::accept(&listener).unwrap();
    let bound = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    sock::bind(bound.as_fd(), &[&address[..], b"2"].concat()).unwrap();
    let made = law(vec![client, server, listener, bound]);
    assert_eq!(sock::name(made[0].as_fd()).unwrap(), chosen);
    assert_eq!(sock::name(made[1].as_fd()).unwrap(), address);
}

#[test]
fn datagram_sockets_with_names_and_senders() {
    let (path, other) = (name("in"), name("out"));
    let inbox = UnixDatagram::bind(&path).unwrap();
    let sender = UnixDatagram::bind(&other).unwrap();
    let unnamed = UnixDatagram::unbound().unwrap();
    sender.send_to(b"from a name", &path).unwrap();
    unnamed.send_to(b"from nobody", &path).unwrap();
    let gone = UnixDatagram::bind(other.with_extension("gone")).unwrap();
    gone.send_to(b"from the dead", &path).unwrap();
    std::fs::remove_file(other.with_extension("gone")).unwrap();
    drop(gone);
    unnamed.connect(&path).unwrap();
    sender.connect(&path).unwrap();
    let made = law(vec![unnamed.into(), inbox.into(), sender.into()]);
    let out = other.as_os_str().as_encoded_bytes();
    let dead = other.with_extension("gone");
    assert_eq!(receive(&made[1]), (b"from a name".to_vec(), 0, out.to_vec()));
    assert_eq!(receive(&made[1]), (b"from nobody".to_vec(), 0, Vec::new()));
    assert_eq!(receive(&made[1]), (b"from the dead".to_vec(), 0, dead.as_os_str().as_encoded_bytes().to_vec()));
    write(&made[0], b"connected").unwrap();
    assert_eq!(receive(&made[1]).0, b"connected");
    drop_place(&path);
    drop_place(&other);
}

#[test]
fn options_come_back() {
    let (a, b) = pair(SocketType::STREAM);
    sockopt::set_socket_send_buffer_size(&a, 50_000).unwrap();
    sockopt::set_socket_recv_buffer_size(&a, 60_000).unwrap();
    sockopt::set_socket_passcred(&a, true).unwrap();
    sockopt::set_socket_keepalive(&b, true).unwrap();
    sockopt::set_socket_linger(&b, Some(std::time::Duration::from_secs(70_000))).unwrap();
    let long = std::time::Duration::from_secs(5_000_000);
    sockopt::set_socket_timeout(&b, sockopt::Timeout::Recv, Some(long)).unwrap();
    sock::set_options(b.as_fd(), 42, [3]).unwrap();
    write(&a, b"peeked at").unwrap();
    write(&b, b"").unwrap();
    let made = law(vec![a, b]);
    assert_eq!(sockopt::socket_send_buffer_size(&made[0]).unwrap(), 100_000);
    assert!(sockopt::socket_passcred(&made[0]).unwrap() && sockopt::socket_keepalive(&made[1]).unwrap());
    assert_eq!(sockopt::socket_timeout(&made[1], sockopt::Timeout::Recv).unwrap(), Some(long));
    assert_eq!(take(&made[1], 99), b"peeked at");
    let (a, b) = pair(SocketType::STREAM);
    sockopt::set_socket_passcred(&a, true).unwrap();
    write(&b, b"who").unwrap();
    assert!(refusal(&[a.as_fd(), b.as_fd()]).contains("SO_PASSCRED"));
}

#[test]
fn what_came_for_connections_that_nobody_has_accepted() {
    let path = name("embryo");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    write(&client, b"early").unwrap();
    rustix::net::shutdown(&client, rustix::net::Shutdown::Write).unwrap();
    let gone = UnixStream::connect(&path).unwrap();
    write(&gone, b"legacy").unwrap();
    drop(gone);
    let silent = UnixStream::connect(&path).unwrap();
    let fds = [listener.as_fd(), client.as_fd(), silent.as_fd()];
    let told = law::collect_from(&fds, false).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(told.contains("in a checkpoint that lets the tree live"), "{told}");
    let image = collect(&fds);
    drop((listener, client, silent));
    let made = image.rebuild();
    let at = |i: usize| &made[usize::try_from(image.ids[i].0).unwrap()];
    let accept = || rustix::net::accept(at(0)).unwrap();
    let server = accept();
    assert_eq!((take(&server, 99), take(&server, 99)), (b"early".to_vec(), Vec::new()));
    write(&server, b"reply").unwrap();
    assert_eq!(take(at(1), 99), b"reply");
    let server = accept();
    assert_eq!((take(&server, 99), take(&server, 99)), (b"legacy".to_vec(), Vec::new()));
    let server = accept();
    write(at(2), b"late").unwrap();
    assert_eq!(take(&server, 99), b"late");
    drop_place(&path);
}

#[test]
fn descriptors_for_a_connection_that_nobody_has_accepted_are_refused() {
    let path = name("embryo fds");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    sock::send(client.as_fd(), b"x", &[client.as_fd()], None).unwrap();
    assert!(refusal(&[listener.as_fd(), client.as_fd()]).contains("descriptors in flight"));
    // It is all still there.
    let (server, _) = listener.accept().unwrap();
    assert_eq!(sock::peek(server.as_fd(), 9).unwrap().unwrap().files.len(), 1);
    drop_place(&path);
}
