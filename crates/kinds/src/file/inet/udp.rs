//! UDP: the peer, if connected, and the datagrams that wait.
//! *Read from:* getpeername, `MSG_PEEK` with `SO_PEEK_OFF`.
//! *Made again by:* connect; a datagram is sent again from a socket bound to the address it came from; several
//! that came as one (`UDP_GRO`) with `UDP_SEGMENT`.
//! *Lost:* what the parent module says.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{SendFlags, bind, connect, connect_unspec, sendto};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::undo::{self, Undo};
use yendor_sys::{Errno, SysError, inet};

use super::{Family, events, options, peer, plain};
use crate::file::{Gather, Seen};
use crate::{Cause, Named, Result};

const SOCKET: i32 = 1;
const PEEK_OFF: i32 = 42;
const UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;
/// More than any datagram has.
const ROOM: usize = 1 << 17;
/// How long a datagram may take inside this machine.
const PATIENCE: Duration = Duration::from_secs(1);

/// A UDP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// To whom it is connected.
    pub peer: Option<SocketAddr>,
    /// What waits to be read, oldest first.
    pub queue: Vec<Datagram>,
}

/// A datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Its content.
    pub data: Bytes,
    /// Where several came as one (`UDP_GRO`): the bytes of each but the last.
    #[serde(default)]
    pub segment: Option<u16>,
}

/// Reads the queue, which stays as it is.
///
/// # Errors
/// `Unsupported` for data that is not sent yet; for datagrams that nobody could send again unless the caller allows to
/// lose them.
pub fn collect(seen: &Seen, local: Option<SocketAddr>, gather: &mut Gather<'_>) -> Result<Record> {
    let fd = seen.fd.as_fd();
    if inet::unacknowledged(fd)? > 0 {
        let what = "a datagram that is not complete yet (UDP_CORK, MSG_MORE) or not sent yet";
        return Err(Cause::unsupported(format!("{}: {what}", seen.link)));
    }
    let told = events(fd, PollFlags::IN | PollFlags::RDHUP)?;
    if told.contains(PollFlags::RDHUP) {
        return Err(Cause::unsupported(format!("{}: a UDP socket after shutdown(2)", seen.link)));
    }
    if told.contains(PollFlags::ERR) {
        gather.lose("udp", format!("{}: a pending error", seen.link))?;
        // Looking at the queue would take the error from its owner.
        return Ok(Record { peer: peer(fd)?, queue: Vec::new() });
    }
    let mut queue = walk(fd)?;
    if let Some(local) = local {
        let wanted = |d: &Datagram| is_ours(d.from).map(|ours| ours && d.from.port() != 0);
        let mut kept = Vec::with_capacity(queue.len());
        for datagram in queue {
            if wanted(&datagram)? {
                kept.push(datagram);
            } else {
                gather.lose("udp", format!("{}: a datagram from {} to {local}", seen.link, datagram.from))?;
            }
        }
        queue = kept;
    }
    if !queue.is_empty() && local.is_none_or(|a| a.ip().is_unspecified()) && tells_destination(fd)? {
        let what = "datagrams on a socket that asks where they were sent to (IP_PKTINFO)";
        gather.lose("udp", format!("{}: {what}", seen.link))?;
    }
    if let Some(local) = local.filter(|_| !queue.is_empty())
        && is_of_many(local)?
    {
        let what = format!("{} datagrams to {local}, which others would get once more", queue.len());
        gather.lose("udp", format!("{}: {what}", seen.link))?;
        queue.clear();
    }
    Ok(Record { peer: peer(fd)?, queue })
}

/// Whether what is sent to an address comes to more sockets than one: that of a group or of all.
fn is_of_many(local: SocketAddr) -> Result<bool> {
    let address = SocketAddr::new(local.ip().to_canonical(), local.port());
    if address.ip().is_multicast() || address.ip().is_unspecified() || address.is_ipv6() {
        return Ok(address.ip().is_multicast());
    }
    // Without `SO_BROADCAST` the kernel refuses that address only.
    match connect(&Family::V4.new_socket(false)?, &address) {
        Err(Errno::ACCESS) => Ok(true),
        _ => Ok(false),
    }
}

/// Whether the socket tells its reader to which address a datagram was sent.
fn tells_destination(fd: BorrowedFd<'_>) -> Result<bool> {
    const PLACES: [(i32, i32); 4] = [(0, 8), (0, 20), (41, 49), (41, 74)];
    for (level, option) in PLACES {
        match inet::number(fd, level, option) {
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(e) if matches!(e.errno, Errno::NOPROTOOPT | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

/// Whether an address belongs to this network, so that a socket can be bound to it.
pub(super) fn is_ours(address: SocketAddr) -> Result<bool> {
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    let probe = family.new_socket(false)?;
    match bind(&probe, &SocketAddr::new(address.ip(), 0)) {
        Ok(()) => Ok(true),
        Err(Errno::ADDRNOTAVAIL) => Ok(false),
        Err(e) => Err(SysError::new("bind", address.to_string(), e).into()),
    }
}

/// Every datagram, by a peek at each offset. The peek offset is the owner's and is put back at once, even if we die.
fn walk(fd: BorrowedFd<'_>) -> Result<Vec<Datagram>> {
    if !events(fd, PollFlags::IN)?.contains(PollFlags::IN) {
        return Ok(Vec::new());
    }
    let value = inet::number(fd, SOCKET, PEEK_OFF)?;
    let held = undo::hold(fd, &[Undo { level: SOCKET, option: PEEK_OFF, value }])?;
    let walked = peek_all(fd);
    held.end()?;
    walked
}

fn peek_all(fd: BorrowedFd<'_>) -> Result<Vec<Datagram>> {
    let mut queue = Vec::new();
    let mut buffer = vec![0u8; ROOM];
    // An empty datagram that was looked at is passed over from then on, but not at the head by a look without an offset.
    queue.extend(peek_at(fd, -1, &mut buffer)?.filter(|d| d.data.0.is_empty()));
    let mut offset = 0usize;
    loop {
        let at = i32::try_from(offset).map_err(|_| Cause::unsupported("a UDP socket with 2 GiB of datagrams"))?;
        let Some(datagram) = peek_at(fd, at, &mut buffer)? else { return Ok(queue) };
        offset += datagram.data.0.len();
        queue.push(datagram);
    }
}

/// The datagram at an offset.
fn peek_at(fd: BorrowedFd<'_>, offset: i32, buffer: &mut [u8]) -> Result<Option<Datagram>> {
    inet::set_number(fd, SOCKET, PEEK_OFF, offset)?;
    let inet::Look { len: n, from, segment } = match inet::look(fd, buffer) {
        Ok(look) => look,
        Err(e) if e.errno == Errno::AGAIN => return Ok(None),
        Err(e) => return Err(SysError::new(e.call, format!("MSG_PEEK at {offset}"), e.errno).into()),
    };
    let Some(data) = buffer.get(..n) else {
        return Err(Cause::unsupported(format!("a datagram of {n} bytes (UDP_GRO)")));
    };
    let segment = segment.map(u16::try_from).transpose().map(|s| s.filter(|s| usize::from(*s) < n));
    let segment = segment.map_err(|_| Cause::unsupported("datagrams that came as one, of no size (UDP_GRO)"))?;
    let from = from.ok_or_else(|| Cause::unsupported("a datagram without a sender"))?;
    Ok(Some(Datagram { from: plain(from.into())?, data: Bytes(data.to_vec()), segment }))
}

/// Binds and connects.
///
/// # Errors
/// The kernel's.
pub fn rebuild(fd: BorrowedFd<'_>, record: &Record, local: Option<SocketAddr>) -> Result<()> {
    let Record { peer, queue } = record;
    if let Some(local) = local {
        bind(fd, &local).named("bind", || local.to_string())?;
    } else if peer.is_some() || !queue.is_empty() {
        return Err(Cause::corrupt("a UDP socket at work without an address"));
    }
    if let Some(peer) = peer {
        connect(fd, peer).named("connect", || peer.to_string())?;
    }
    Ok(())
}

/// Sends the queue again, each datagram from a socket with its sender's address. All UDP sockets exist and let others
/// have their ports.
///
/// # Errors
/// The kernel's; `Corrupt` when the queue does not become what it was.
pub fn fill(fd: BorrowedFd<'_>, family: Family, local: SocketAddr, record: &Record) -> Result<()> {
    let Record { peer, queue } = record;
    for datagram in queue {
        // A connected socket gets what another one with the same address could get as well.
        let Datagram { from, data, segment } = datagram;
        connect_unspec(fd).named("connect", || "AF_UNSPEC".into())?;
        connect(fd, from).named("connect", || from.to_string())?;
        let sender = family.new_socket(false)?;
        options::share_port(sender.as_fd())?;
        bind(&sender, from).named("bind", || from.to_string())?;
        let to = rustix::net::getsockname(fd).named("getsockname", || local.to_string())?;
        if let Some(segment) = segment {
            if *segment == 0 || data.0.len() <= usize::from(*segment) {
                return Err(Cause::corrupt(format!("{} bytes in datagrams of {segment}", data.0.len())));
            }
            inet::set_number(sender.as_fd(), UDP, UDP_SEGMENT, i32::from(*segment))?;
        }
        let before = memory(fd)?;
        let sent = sendto(&sender, &data.0, SendFlags::DONTWAIT, &to);
        let n = sent.named("sendto", || format!("{} bytes from {from} to {local}", data.0.len()))?;
        if n != data.0.len() {
            return Err(Cause::corrupt(format!("a datagram of {} bytes", data.0.len())));
        }
        arrive(fd, before, datagram)?;
    }
    if queue.is_empty() {
        return Ok(());
    }
    connect_unspec(fd).named("connect", || "AF_UNSPEC".into())?;
    if let Some(peer) = peer {
        connect(fd, peer).named("connect", || peer.to_string())?;
    }
    let now = plain(rustix::net::getsockname(fd).named("getsockname", || local.to_string())?)?;
    if now != local {
        return Err(Cause::corrupt(format!("a UDP socket bound to {local} that is at {now} once connected")));
    }
    Ok(())
}

/// Waits until the queue has grown. To look at it would mark empty datagrams as seen.
fn arrive(fd: BorrowedFd<'_>, before: i32, datagram: &Datagram) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while memory(fd)? <= before {
        if Instant::now() > end {
            let Datagram { from, data, segment: _ } = datagram;
            return Err(Cause::unsupported(format!(
                "a datagram of {} bytes from {from} does not arrive",
                data.0.len()
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Bytes of memory that the receive queue takes (`SO_MEMINFO`, the word `SK_MEMINFO_RMEM_ALLOC`).
fn memory(fd: BorrowedFd<'_>) -> Result<i32> {
    const MEMINFO: i32 = 55;
    let [used, ..] = yendor_sys::sock::options::<9>(fd, MEMINFO)?;
    Ok(used)
}
