//! TCP and UDP sockets, IPv4 and IPv6: unconnected, listening, connected with both ends in the tree. Of MPTCP those without a connection.
//! *Read from:* getsockname, getpeername, getsockopt, `MSG_PEEK`; sequence numbers and what is not acknowledged under
//! `TCP_REPAIR`, in [`repair`].
//! *Made again by:* socket, bind, listen, connect; a connection under `TCP_REPAIR`, so that no packet is sent.
//! *Lost:* congestion state, statistics, `TCP_QUICKACK`; a port chosen by the kernel counts as chosen by bind; time stamps
//! of datagrams, their TOS and TTL (`IP_RECVTOS`, `IP_RECVTTL`), and where they were sent to on a socket bound to all
//! addresses; empty datagrams that somebody has peeked at, as a checkpoint before this one has (`--leave-running`), but the
//! one at the head; a client's SYN that waits for its answer (it is sent again); where an urgent byte stood that was taken,
//! when nothing else waits; that a byte is urgent which was written and not sent yet (no call tells: it comes as an ordinary
//! one); the address of a socket whose connect was refused, if bind chose it, once connect is tried again.

pub mod departed;
pub mod multicast;
pub mod options;
pub mod repair;
mod room;
pub mod tcp;
pub mod udp;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, ipproto, socket_with, sockopt};
use serde::{Deserialize, Serialize};
use yendor_sys::inet;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// Of which family a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, which may talk IPv4 too.
    V6,
}

/// What a socket does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// UDP.
    Udp(udp::Record),
    /// TCP, neither connected nor listening, and never was.
    TcpIdle,
    /// TCP, waiting for connections.
    TcpListening {
        /// As for listen(2), after the limit `net.core.somaxconn`.
        backlog: u32,
    },
    /// TCP with a connection, perhaps closed on one side.
    TcpConnected(Box<tcp::Connection>),
    /// TCP whose connection is over.
    TcpEnded(tcp::Ended),
}

/// An internet socket. Every socket has one description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its family.
    pub family: Family,
    /// Whether it is one of MPTCP, which is TCP to whoever does not know it.
    pub multipath: bool,
    /// Owner and group of its inode; sockets of one owner may share a port (`SO_REUSEPORT`).
    pub owner: (u32, u32),
    /// Its address, if it has one.
    pub local: Option<SocketAddr>,
    /// Its options.
    pub options: options::Record,
    /// The multicast groups that it is in.
    pub groups: Vec<multicast::Record>,
    /// What it does.
    pub state: State,
}

impl FileKind for Record {
    const NAME: &'static str = "internet socket";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::Socket
            && seen.info.flags & OFlags::PATH.bits() == 0
            && matches!(sockopt::socket_domain(&seen.fd), Ok(AddressFamily::INET | AddressFamily::INET6))
            && matches!(sockopt::socket_protocol(&seen.fd), Ok(Some(ipproto::TCP | ipproto::UDP | ipproto::MPTCP)))
            && matches!(sockopt::socket_type(&seen.fd), Ok(SocketType::STREAM | SocketType::DGRAM))
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let fd = seen.fd.as_fd();
        let shown = || seen.link.to_string();
        let domain = sockopt::socket_domain(fd).named("getsockopt", shown)?;
        let family = if domain == AddressFamily::INET { Family::V4 } else { Family::V6 };
        let stream = sockopt::socket_type(fd).named("getsockopt", shown)? == SocketType::STREAM;
        let multipath = sockopt::socket_protocol(fd).named("getsockopt", shown)? == Some(ipproto::MPTCP);
        let fresh = if multipath { family.new_multipath()? } else { family.new_socket(stream)? };
        if cookie(fd)? != cookie(fresh.as_fd())? {
            return Err(Cause::unsupported(format!("{}: it lives in another network", seen.link)));
        }
        let local = local(fd)?;
        let state = match stream {
            true => tcp::collect(seen, gather)?,
            false => State::Udp(udp::collect(seen, local, gather)?),
        };
        if multipath && !matches!(state, State::TcpIdle | State::TcpListening { .. }) {
            return Err(Cause::unsupported(format!("{}: an MPTCP connection", seen.link)));
        }
        let sort = match state {
            State::Udp(_) => options::Sort::Datagram,
            State::TcpIdle | State::TcpListening { .. } => options::Sort::Unconnected,
            State::TcpConnected(_) | State::TcpEnded(_) => options::Sort::Connected,
        };
        let mut options = options::collect(fd, fresh.as_fd(), sort).map_err(|e| match e {
            Cause::Unsupported { what } => Cause::unsupported(format!("{}: {what}", seen.link)),
            other => other,
        })?;
        if local.is_some_and(|a| a.ip().to_canonical().is_ipv6() && !a.ip().is_unspecified()) {
            // Says nothing there, and binding sets it.
            options.numbers.insert(options::Name::IPV6_V6ONLY, 1);
        }
        let groups = if stream { Vec::new() } else { multicast::collect(fd, gather)? };
        let owner = (seen.stat.st_uid, seen.stat.st_gid);
        Ok(Record { family, multipath, owner, local, options, groups, state })
    }

    fn rebuild(&self, _entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { family, multipath, owner, local, options, groups, state } = self;
        let stream = !matches!(state, State::Udp(_));
        let made = match state {
            State::TcpIdle | State::TcpListening { .. } if *multipath => family.new_multipath()?,
            _ if *multipath => return Err(Cause::corrupt("an MPTCP socket with a connection")),
            State::TcpConnected(c) => room::socket(workshop, *family, c.sent.0.len() + c.unsent.0.len())?,
            _ => family.new_socket(stream)?,
        };
        let fd = made.as_fd();
        own(fd, *owner)?;
        options::apply(fd, options)?;
        options::share_port(fd)?;
        match (state, local) {
            (State::Udp(udp), local) => udp::rebuild(fd, udp, *local)?,
            (State::TcpIdle, local) => tcp::bind(fd, *local)?,
            (State::TcpListening { backlog }, Some(local)) => tcp::listen(fd, *local, *backlog)?,
            (State::TcpConnected(connection), Some(local)) => repair::connect(fd, *local, connection)?,
            (State::TcpEnded(ended), local) => tcp::end(fd, *family, *local, ended)?,
            (State::TcpListening { .. } | State::TcpConnected(_), None) => {
                return Err(Cause::corrupt("a TCP socket at work without an address"));
            }
        }
        groups.iter().try_for_each(|group| multicast::rebuild(fd, group))?;
        Ok(made)
    }
}

impl Family {
    fn new_multipath(self) -> Result<OwnedFd> {
        let domain = if self == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = socket_with(domain, SocketType::STREAM, flags, Some(ipproto::MPTCP));
        Ok(made.named("socket", || format!("{domain:?}, SOCK_STREAM, IPPROTO_MPTCP"))?)
    }

    fn new_socket(self, stream: bool) -> Result<OwnedFd> {
        let domain = if self == Family::V4 { AddressFamily::INET } else { AddressFamily::INET6 };
        let (kind, protocol) =
            if stream { (SocketType::STREAM, ipproto::TCP) } else { (SocketType::DGRAM, ipproto::UDP) };
        let made = socket_with(domain, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(protocol));
        Ok(made.named("socket", || format!("{domain:?}, {kind:?}"))?)
    }
}

/// Once all descriptions are known: the connections, whose both ends must be in the tree.
///
/// # Errors
/// `Unsupported` for a peer outside of the tree.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    tcp::finish(gather)
}

/// Once all sockets are made: datagrams are sent, connections begin to live, options get their last values.
///
/// # Errors
/// The kernel's.
pub fn finish_all(workshop: &Workshop<'_>) -> Result<()> {
    let all = || all(workshop);
    for (id, record) in all() {
        if let (State::Udp(udp), Some(local)) = (&record.state, record.local) {
            workshop.within(id, || udp::fill(workshop.existing(id)?, record.family, local, udp))?;
        }
    }
    let mut connections = Vec::new();
    let mut others = Vec::new();
    for (id, record) in all() {
        if let (State::TcpConnected(connection), Some(local)) = (&record.state, record.local) {
            connections.push(repair::Living { fd: workshop.existing(id)?, local, connection });
            if connection.peer_is_closed {
                others.push(workshop.within(id, || other_end(record.family, local, connection))?);
            }
        }
    }
    connections.extend(others.iter().map(|(fd, local, connection)| repair::Living {
        fd: fd.as_fd(),
        local: *local,
        connection,
    }));
    repair::revive(&connections)?;
    // Closed, and the kernel's alone.
    drop(connections);
    drop(others);
    for (id, record) in all() {
        options::finish(workshop.existing(id)?, &record.options)?;
    }
    Ok(())
}

/// Once tasks have all of them, and nothing more can fail that would close them.
///
/// # Errors
/// The kernel's.
pub fn linger_all(workshop: &Workshop<'_>) -> Result<()> {
    all(workshop).try_for_each(|(id, record)| options::linger(workshop.existing(id)?, &record.options))
}

fn all<'a>(workshop: &Workshop<'a>) -> impl Iterator<Item = (yendor_image::FileId, &'a Record)> {
    workshop.entries().filter_map(|entry| match &entry.record {
        super::Record::Inet(record) => Some((entry.id, record)),
        _ => None,
    })
}

/// The other end of a connection that has no other end in the image, under repair.
fn other_end(
    family: Family,
    local: SocketAddr,
    connection: &tcp::Connection,
) -> Result<(OwnedFd, SocketAddr, tcp::Connection)> {
    let other = departed::other(local, connection);
    let made = family.new_socket(true)?;
    options::share_port(made.as_fd())?;
    repair::connect(made.as_fd(), connection.peer, &other)?;
    Ok((made, connection.peer, other))
}

/// The socket's own address; none while it has neither address nor port.
fn local(fd: BorrowedFd<'_>) -> Result<Option<SocketAddr>> {
    let address = rustix::net::getsockname(fd).named("getsockname", String::new)?;
    let address = plain(address)?;
    Ok(Some(address).filter(|a| a.port() != 0 || !a.ip().is_unspecified()))
}

/// The address of the peer, if connected.
fn peer(fd: BorrowedFd<'_>) -> Result<Option<SocketAddr>> {
    match rustix::net::getpeername(fd) {
        Ok(address) => address.map(plain).transpose(),
        Err(yendor_sys::Errno::NOTCONN) => Ok(None),
        Err(e) => Err(yendor_sys::SysError::new("getpeername", "", e).into()),
    }
}

/// An address that means the same in another network: a link-local one names an interface by a number of this network.
fn plain(address: SocketAddrAny) -> Result<SocketAddr> {
    let address = SocketAddr::try_from(address).named("getsockname", || "an address of another family".into())?;
    match address {
        SocketAddr::V6(a) if a.scope_id() != 0 => {
            Err(Cause::unsupported(format!("the link-local address {address} of a socket")))
        }
        SocketAddr::V6(a) => Ok(SocketAddr::V6(std::net::SocketAddrV6::new(*a.ip(), a.port(), 0, 0))),
        SocketAddr::V4(_) => Ok(address),
    }
}

/// What tells network namespaces apart (`SO_NETNS_COOKIE`, Linux 5.14).
fn cookie(fd: BorrowedFd<'_>) -> Result<[u8; 8]> {
    const SOCKET: i32 = 1;
    const NETNS_COOKIE: i32 = 71;
    let mut cookie = [0; 8];
    inet::get(fd, SOCKET, NETNS_COOKIE, &mut cookie)?;
    Ok(cookie)
}

fn own(fd: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> Result<()> {
    let now = rustix::fs::fstat(fd).named("fstat", || "a socket".into())?;
    if (now.st_uid, now.st_gid) != (uid, gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).named("fchown", || format!("a socket, {uid:?}, {gid:?}"))?;
    }
    Ok(())
}

/// What poll tells of it at this moment.
fn events(fd: BorrowedFd<'_>, asked: PollFlags) -> Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, asked)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).named("poll", || format!("{asked:?}"))?;
    Ok(fds[0].revents())
}
