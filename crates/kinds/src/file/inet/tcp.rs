//! TCP: which state a socket is in, and who is connected to whom.
//! *Read from:* `TCP_INFO`, the addresses of both ends.
//! *Made again by:* bind and listen; a connection as [`super::repair`] does it; one that is over by a reset one; a
//! connect that was refused by another one.
//! *Lost:* what the parent module says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, Shutdown, bind as bind_plain, connect, listen as listen_plain, recv, shutdown, sockopt};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId, NsId};
use yendor_sys::undo::{self, Held, Undo};
use yendor_sys::{Errno, SysError, inet};

use super::{Family, State, departed, events, options, peer, repair};
use crate::file::{Gather, Record as AnyRecord, Seen};
use crate::{Cause, Named, Result};

const SOCKET: i32 = 1;
const PEEK_OFF: i32 = 42;
pub(super) const OOB_INLINE: i32 = 10;
const TCP: i32 = 6;
const INFO: i32 = 11;

const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
pub(super) const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
pub(super) const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// How long the FIN of one end may take to the other, both in this machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection, seen from one end. Sequence numbers and windows do not count FINs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// The other end's address.
    pub peer: SocketAddr,
    /// How this end was shut down.
    pub closing: Closing,
    /// The sequence number of the first byte that the peer has not acknowledged.
    pub send_sequence: u32,
    /// Bytes sent and not acknowledged.
    pub sent: Bytes,
    /// Bytes written and not sent yet.
    pub unsent: Bytes,
    /// The sequence number of the first byte of `received`.
    pub receive_sequence: u32,
    /// Bytes that wait to be read.
    pub received: Bytes,
    /// The windows.
    pub window: Window,
    /// What the ends agreed on.
    pub agreed: Agreed,
    /// The other end is in no process: it was closed, and has sent all it had.
    pub peer_is_closed: bool,
}

/// Which directions of a connection are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// This end sends no more: shutdown(2) with `SHUT_WR`.
    pub sends_no_more: bool,
    /// The peer said so of itself, by a FIN.
    pub peer_sends_no_more: bool,
    /// This end wants to read no more: `SHUT_RD`.
    pub reads_no_more: bool,
}

/// Windows as in `struct tcp_repair_window` (linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The sequence number of the segment that told `send`.
    pub update: u32,
    /// Bytes that the peer takes.
    pub send: u32,
    /// The most that it ever took.
    pub largest: u32,
    /// Bytes that this end takes.
    pub receive: u32,
    /// What was received when that was told.
    pub told: u32,
}

/// TCP options of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreed {
    /// The largest segment that the peer takes, bytes.
    pub mss: u16,
    /// Window scales for sending and receiving, if any.
    pub scales: Option<(u8, u8)>,
    /// Selective acknowledgements.
    pub sack: bool,
    /// This end's clock (`TCP_TIMESTAMP`), if timestamps are on.
    pub timestamp: Option<u32>,
}

/// A connection that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Whether the next call tells an error, `ECONNRESET`; `ECONNREFUSED` of one that was refused.
    pub reset: bool,
    /// Bytes that can still be read.
    pub received: Bytes,
    /// It never was one: nobody listened where connect(2) led without waiting.
    #[serde(default)]
    pub refused: bool,
}

/// What `TCP_INFO` tells (struct tcp_info, linux/tcp.h).
#[derive(Debug, Clone, Copy)]
pub(super) struct Info {
    pub(super) state: u8,
    pub(super) options: u8,
    /// Low nibble: for sending.
    pub(super) scales: u8,
    /// Of a listening socket: connections that wait.
    waiting: u32,
    /// Of a listening socket: how many may wait.
    most: u32,
    /// Packets that came.
    came: u32,
}

pub(super) fn info(fd: BorrowedFd<'_>) -> Result<Info> {
    let mut raw = [0u8; 144];
    inet::get(fd, TCP, INFO, &mut raw)?;
    let word = |at: usize| raw.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Ok(Info { state: raw[0], options: raw[5], scales: raw[6], waiting: word(24), most: word(28), came: word(140) })
}

/// What the socket does. Connections are read in [`finish`], both ends close together.
///
/// # Errors
/// `Unsupported` for what is under way: a handshake, urgent data, connections that nobody accepted yet.
pub fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<State> {
    let fd = seen.fd.as_fd();
    let refuse = |what: String| Err(Cause::unsupported(format!("{}: {what}", seen.link)));
    let passing = |what: String| Err(Cause::passing(format!("{}: {what}", seen.link)));
    let info = info(fd)?;
    match info.state {
        LISTEN if info.waiting > 0 => passing(format!("{} TCP connections that wait to be accepted", info.waiting)),
        LISTEN => Ok(State::TcpListening { backlog: info.most }),
        CLOSE if !events(fd, PollFlags::RDHUP)?.contains(PollFlags::RDHUP) => Ok(State::TcpIdle),
        CLOSE => {
            let reset = events(fd, PollFlags::empty())?.contains(PollFlags::ERR);
            let refused = match repair::never_was(fd) {
                // Who may not know it guesses: a peer agrees on something, but for the oldest.
                Err(Cause::Sys(e)) if matches!(e.errno, Errno::PERM | Errno::NOPROTOOPT | Errno::OPNOTSUPP) => {
                    info.options == 0
                }
                known => known?,
            };
            if refused && reset && info.came == 0 {
                return refuse("a connect(2) that failed, but was not refused, and whose error nobody has read".into());
            }
            Ok(State::TcpEnded(Ended { reset, received: waiting(fd)?.data, refused }))
        }
        ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING => {
            let told = events(fd, PollFlags::PRI)?;
            if told.contains(PollFlags::PRI) {
                return refuse("urgent data (MSG_OOB) in a TCP connection".into());
            }
            if told.contains(PollFlags::ERR) {
                gather.lose("tcp", format!("{}: a pending error", seen.link))?;
            }
            let Some(peer) = peer(fd)? else { return refuse("a TCP connection without a peer".into()) };
            Ok(State::TcpConnected(Box::new(Connection::new(peer))))
        }
        other => passing(format!("a TCP connection that is being made (state {other})")),
    }
}

impl Connection {
    /// Fresh, to `peer`.
    pub(super) fn new(peer: SocketAddr) -> Self {
        let window = Window { update: 0, send: 0, largest: 0, receive: 0, told: 0 };
        let agreed = Agreed { mss: 536, scales: None, sack: false, timestamp: None };
        let closing = Closing { sends_no_more: false, peer_sends_no_more: false, reads_no_more: false };
        let none = || Bytes(Vec::new());
        let (sent, unsent, received) = (none(), none(), none());
        Self {
            peer,
            closing,
            send_sequence: 0,
            sent,
            unsent,
            receive_sequence: 0,
            received,
            window,
            agreed,
            peer_is_closed: false,
        }
    }
}

impl Closing {
    pub(super) fn of(fd: BorrowedFd<'_>, info: &Info) -> Result<Self> {
        let peer_sends_no_more = matches!(info.state, CLOSE_WAIT | LAST_ACK | CLOSING);
        Ok(Self {
            sends_no_more: matches!(info.state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING),
            peer_sends_no_more,
            reads_no_more: !peer_sends_no_more && events(fd, PollFlags::RDHUP)?.contains(PollFlags::RDHUP),
        })
    }
}

/// Whether this end's FIN waits to be sent or acknowledged, or to be acknowledged.
pub(super) fn has_fin_queued(info: &Info) -> bool {
    matches!(info.state, FIN_WAIT1 | LAST_ACK | CLOSING)
}

/// What waits to be read.
pub(super) struct Unread {
    pub(super) data: Bytes,
    /// How far the queue reaches: one byte more than `data` where nothing but an urgent byte, which was taken, is in it.
    pub(super) reach: usize,
}

/// What waits to be read, left where it is.
///
/// # Errors
/// `Unsupported` for a queue with an urgent mark: no call but one at a time looks past it.
pub(super) fn waiting(fd: BorrowedFd<'_>) -> Result<Unread> {
    let (bytes, reach) = lengths(fd)?;
    if bytes != reach && (bytes, reach) != (0, 1) {
        return Err(Cause::unsupported(format!(
            "a TCP socket with an urgent mark (MSG_OOB) in the queue, after {bytes} bytes of {reach}"
        )));
    }
    if bytes == 0 {
        return Ok(Unread { data: Bytes(Vec::new()), reach });
    }
    let mut data = vec![0; bytes];
    let value = inet::number(fd, SOCKET, PEEK_OFF).unwrap_or(-1);
    let held = if value >= 0 {
        let held = undo::hold(fd, &[Undo { level: SOCKET, option: PEEK_OFF, value }])?;
        inet::set_number(fd, SOCKET, PEEK_OFF, -1)?;
        Some(held)
    } else {
        None
    };
    let peeked = recv(fd, &mut data[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    held.map_or(Ok(()), Held::end)?;
    let (n, _) = peeked.named("recvfrom", || format!("{bytes}, MSG_PEEK"))?;
    if n != bytes {
        return Err(Cause::unsupported(format!("a TCP socket with {bytes} bytes of which {n} can be read")));
    }
    Ok(Unread { data: Bytes(data), reach })
}

/// How many bytes wait up to an urgent mark, and how many in all. Without `SO_OOBINLINE` the kernel counts to the mark,
/// even when the byte there was taken.
fn lengths(fd: BorrowedFd<'_>) -> Result<(usize, usize)> {
    let count = || yendor_sys::sock::waiting(fd);
    let value = inet::number(fd, SOCKET, OOB_INLINE)?;
    if value != 0 {
        let bytes = count()?;
        return Ok((bytes, bytes));
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let before = count()?;
        let held = undo::hold(fd, &[Undo { level: SOCKET, option: OOB_INLINE, value }])?;
        inet::set_number(fd, SOCKET, OOB_INLINE, 1)?;
        let reach = count();
        held.end()?;
        if count()? == before {
            return Ok((before, reach?));
        }
        // Some came meanwhile.
        if Instant::now() > end {
            return Err(Cause::passing("a TCP connection that does not come to rest"));
        }
    }
}

/// An end of a connection in the tree.
struct End {
    id: FileId,
    network: Option<NsId>,
    local: SocketAddr,
    peer: SocketAddr,
}

/// Once all descriptions are known: reads the connections, whose both ends must be in the tree.
///
/// # Errors
/// `Unsupported` for a peer outside, unless the caller allows to lose `tcp`.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let mut ends = Vec::new();
    for entry in &gather.entries {
        let AnyRecord::Inet(record) = &entry.record else { continue };
        let (State::TcpConnected(connection), Some(local)) = (&record.state, record.local) else { continue };
        let network = entry.network;
        ends.push(End { id: entry.id, network, local: canonical(local), peer: canonical(connection.peer) });
    }
    let by_address: BTreeMap<_, _> = ends.iter().map(|e| ((e.network, e.local, e.peer), e.id)).collect();
    let networks = gather.networks.clone();
    for End { id, network, local, peer } in &ends {
        let Some(other) = by_address.get(&(*network, *peer, *local)) else {
            if networks.within(*network, || departed::is_so(*local, *peer))? {
                let connection = repair::read_alone(gather.ours(*id)?)?;
                set(gather, *id, Connection { peer_is_closed: true, ..connection });
            } else {
                lose(gather, *id, *local, *peer)?;
            }
            continue;
        };
        if other < id {
            continue;
        }
        let (one, two) = repair::read_both(gather.ours(*id)?, gather.ours(*other)?)?;
        set(gather, *id, one);
        if other != id {
            set(gather, *other, two);
        }
    }
    Ok(())
}

/// A connection whose peer is not in the tree: after a restore it will have been reset.
fn lose(gather: &mut Gather<'_>, id: FileId, local: SocketAddr, peer: SocketAddr) -> Result<()> {
    let what = format!("the TCP connection from {local} to {peer}, whose other end is outside of the tree,");
    gather.lose("tcp", what).map_err(|e| gather.held(id, e))?;
    let received = waiting(gather.ours(id)?)?.data;
    if let Some(AnyRecord::Inet(record)) = gather.entries.get_mut(id.0 as usize).map(|e| &mut e.record) {
        record.state = State::TcpEnded(Ended { reset: true, received, refused: false });
    }
    Ok(())
}

fn set(gather: &mut Gather<'_>, id: FileId, connection: Connection) {
    if let Some(AnyRecord::Inet(record)) = gather.entries.get_mut(id.0 as usize).map(|e| &mut e.record) {
        record.state = State::TcpConnected(Box::new(connection));
    }
}

/// An IPv6 socket sees IPv4 as a part of IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Binds; under repair where that is allowed, which takes a port that others of this image listen at.
///
/// # Errors
/// What bind(2) says.
pub fn bind(fd: BorrowedFd<'_>, local: Option<SocketAddr>) -> Result<()> {
    let Some(local) = local else { return Ok(()) };
    let repairs = repair::enter(fd).is_ok();
    let bound = bind_plain(fd, &local).named("bind", || local.to_string());
    if repairs {
        repair::leave(fd)?;
        options::share_port(fd)?;
    }
    Ok(bound?)
}

/// Binds and listens.
///
/// # Errors
/// What bind(2) and listen(2) say.
pub fn listen(fd: BorrowedFd<'_>, local: SocketAddr, backlog: u32) -> Result<()> {
    bind(fd, Some(local))?;
    let backlog = i32::try_from(backlog).map_err(|_| Cause::corrupt(format!("a backlog of {backlog}")))?;
    Ok(listen_plain(fd, backlog).named("listen", || format!("{local}, {backlog}"))?)
}

/// Makes a connection to a port where nobody listens and lets it be reset; or tries to make it.
///
/// # Errors
/// The kernel's.
pub fn end(fd: BorrowedFd<'_>, family: Family, local: Option<SocketAddr>, ended: &Ended) -> Result<()> {
    let Ended { reset, received, refused } = ended;
    let Some(local) = local else { return Err(Cause::corrupt("a TCP connection that had no address")) };
    let nobody = mute(family, local)?;
    if *refused {
        if !received.0.is_empty() {
            return Err(Cause::corrupt(format!("a refused connection with {} bytes", received.0.len())));
        }
        be_refused(fd, local, nobody.1)?;
        return take_error(fd, *reset);
    }
    let mut connection = Connection::new(nobody.1);
    connection.received = received.clone();
    // As after a SYN: see `repair::never_was`, and what is guessed without it.
    connection.receive_sequence = 1;
    connection.agreed.sack = true;
    connection.window = Window { update: 1, send: 1 << 15, largest: 1 << 15, receive: 1 << 15, told: 1 };
    repair::connect(fd, local, &connection)?;
    repair::leave(fd)?;
    options::share_port(fd)?;
    shutdown(fd, Shutdown::Write).named("shutdown", || "SHUT_WR".into())?;
    await_state(fd, &[CLOSE])?;
    take_error(fd, *reset)
}

/// Reading the error takes it; that it is there is what was asked for.
fn take_error(fd: BorrowedFd<'_>, stays: bool) -> Result<()> {
    if !stays {
        sockopt::socket_error(fd).named("getsockopt", || "SO_ERROR".into())?.err();
    }
    Ok(())
}

/// Connects to where nobody listens, without waiting. The port is bound, the address is not: connecting chose it, and may
/// choose another one next time.
fn be_refused(fd: BorrowedFd<'_>, local: SocketAddr, nobody: SocketAddr) -> Result<()> {
    let any = match local {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    bind(fd, Some(SocketAddr::new(any, local.port())))?;
    match connect(fd, &nobody) {
        Err(Errno::INPROGRESS) => await_state(fd, &[CLOSE]),
        Ok(()) => Err(Cause::unsupported(format!("somebody listens at {nobody}, where nobody should"))),
        Err(e) => Err(SysError::new("connect", format!("{local} to {nobody}"), e).into()),
    }
}

/// A socket at a port of its own that answers everything with a reset.
fn mute(family: Family, local: SocketAddr) -> Result<(OwnedFd, SocketAddr)> {
    let socket = family.new_socket(true)?;
    let address = SocketAddr::new(local.ip(), 0);
    bind_plain(&socket, &address).named("bind", || address.to_string())?;
    let at = super::local(socket.as_fd())?.ok_or_else(|| Cause::unsupported("a socket that cannot be bound"))?;
    // Where the address stands for all, talk to the loopback.
    let ip = match at.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    Ok((socket, SocketAddr::new(ip, at.port())))
}

/// Waits until the peer's FIN has come, if it is one in this machine that was sent.
pub(super) fn await_fin(fd: BorrowedFd<'_>) -> Result<()> {
    await_state(fd, &[CLOSE_WAIT, LAST_ACK, CLOSING, CLOSE])
}

fn await_state(fd: BorrowedFd<'_>, wanted: &[u8]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let state = info(fd)?.state;
        if wanted.contains(&state) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Cause::unsupported(format!(
                "a TCP connection that stays in the state {state}, not {wanted:?}"
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
