//! How unix sockets are made again.
//! *Read from:* the records of the parent module.
//! *Made again by:* sockets and pairs first; when all exist: messages, connections, shutdowns, options.
//! *Lost:* nothing beyond what the parent module says.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, Shutdown, SocketFlags, accept_with, listen, shutdown, socketpair};
use yendor_image::{Bytes, FileId, NsId};
use yendor_sys::{Errno, SysError, sock};

use super::{Entry, Kind, Record, State, Workshop, backlog, name, option, peer};
use crate::{Cause, Named, Result};

/// Sockets on their way.
#[derive(Debug, Default)]
pub struct Bench {
    /// Made together with their peers, not asked for yet.
    ends: BTreeMap<FileId, OwnedFd>,
    /// Who was made by one socketpair with whom.
    pairs: BTreeMap<FileId, FileId>,
    /// The peers of those whose peers have gone: they send what waits, and go.
    partners: BTreeMap<FileId, OwnedFd>,
    /// Listening sockets that lend their name to accepted ones, by network and address.
    lenders: BTreeMap<(Option<NsId>, Bytes, Option<Bytes>), OwnedFd>,
    /// Paths that must not be left.
    unlink: Vec<name::Record>,
}

/// The record of a socket that another one names.
fn other<'a>(workshop: &Workshop<'a>, id: FileId) -> Result<&'a Record> {
    match &workshop.entry(id)?.record {
        super::super::Record::Unix(record) => Ok(record),
        _ => Err(Cause::corrupt(format!("file {id} is no unix socket but the peer of one"))),
    }
}

fn sockets<'a>(workshop: &Workshop<'a>) -> Vec<(FileId, &'a Record)> {
    let unix = |entry: &'a Entry| match &entry.record {
        super::super::Record::Unix(record) => Some((entry.id, record)),
        _ => None,
    };
    workshop.entries().filter_map(unix).collect()
}

/// Those that an address can lead to from the network that the bench is in now: a path leads out of it.
fn within_reach<'a>(address: &Bytes, workshop: &Workshop<'a>) -> Vec<(FileId, &'a Record)> {
    let (here, path) = (workshop.networks.here(), address.0.first().is_some_and(|first| *first != 0));
    let reached = |id: FileId| path || workshop.entry(id).is_ok_and(|entry| entry.network == here);
    sockets(workshop).into_iter().filter(|(id, _)| reached(*id)).collect()
}

/// The socket, with its name; connections of streams, too.
///
/// # Errors
/// The kernel's; `Corrupt` for connections that cannot be.
pub fn make(record: &Record, id: FileId, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
    if let Some(made) = workshop.unix.ends.remove(&id) {
        return Ok(made);
    }
    match &record.state {
        State::Plain | State::Waiting => single(record, workshop),
        State::Listening { backlog, waiting: _ } => {
            let fd = single(record, workshop)?;
            let backlog = i32::try_from(*backlog).unwrap_or(i32::MAX);
            let listens = || listen(&fd, backlog).named("listen", || backlog.to_string()).map(|()| Vec::new());
            peer::make_as(record.peer, workshop, listens)?;
            Ok(fd)
        }
        State::Widowed { .. } => {
            let (fd, partner) = connection(record, None, workshop)?;
            workshop.unix.partners.insert(id, partner);
            Ok(fd)
        }
        State::Connected(peer) => connected(record, id, *peer, workshop),
    }
}

fn connected(record: &Record, id: FileId, peer: FileId, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
    let other = other(workshop, peer)?;
    let mutual = other.state == State::Connected(id);
    if peer == id && record.kind == Kind::Dgram && record.name.is_some() {
        return single(record, workshop);
    }
    if other.kind != record.kind || peer == id || record.kind != Kind::Dgram && !mutual {
        return Err(Cause::corrupt(format!("sockets {id} and {peer} cannot be connected")));
    }
    // A datagram socket can connect to any name later; one without a name has been its pair from the beginning.
    // So does one of another network; of a connection both ends are in that of the client.
    let apart = workshop.entry(peer)?.network != workshop.networks.here();
    if record.kind == Kind::Dgram && (!mutual || apart) && other.name.is_some() {
        return single(record, workshop);
    }
    if apart {
        return Err(Cause::corrupt(format!("sockets {id} and {peer} of two networks cannot be connected")));
    }
    if workshop.exists(peer) {
        return Err(Cause::corrupt(format!("socket {peer}, which has another peer than {id}")));
    }
    let (fd, end) = connection(record, Some(other), workshop)?;
    workshop.unix.ends.insert(peer, end);
    workshop.unix.pairs.insert(id, peer);
    workshop.unix.pairs.insert(peer, id);
    Ok(fd)
}

fn single(record: &Record, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
    let fd = record.kind.new_socket()?;
    bind(fd.as_fd(), record.kind, record.name.as_ref(), workshop)?;
    Ok(fd)
}

fn bind(fd: BorrowedFd<'_>, kind: Kind, name: Option<&name::Record>, workshop: &mut Workshop<'_>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    name.bind(fd, kind.raw(), &workshop.root)?;
    if name.is_path() && name.inode.is_none() {
        workshop.unix.unlink.push(name.clone());
    }
    Ok(())
}

/// Two connected sockets: of the record, and of its peer or for whoever was it.
fn connection(a: &Record, b: Option<&Record>, workshop: &mut Workshop<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let b_name = b.and_then(|b| b.name.as_ref());
    if a.kind != Kind::Dgram {
        // A name that others have too was lent by the socket that accepted.
        // So was one whose end was made by somebody else than the other.
        let differ = workshop.maker == peer::Maker::Impersonator && b.is_some_and(|b| b.peer != a.peer);
        let peers = (a.peer, b.and_then(|b| b.peer));
        if let Some(lent) = b_name.filter(|n| differ || is_shared(n, workshop)) {
            return accepted(a.kind, a.name.as_ref(), lent, peers, workshop);
        }
        if let Some(lent) = a.name.as_ref().filter(|n| differ || is_shared(n, workshop)) {
            let made = accepted(a.kind, b_name, lent, (peers.1, peers.0), workshop);
            return made.map(|(client, server)| (server, client));
        }
    }
    let pair = || {
        let (one, two) = socketpair(AddressFamily::UNIX, a.kind.raw(), SocketFlags::CLOEXEC, None)
            .named("socketpair", || format!("AF_UNIX, {:?}", a.kind))?;
        Ok(vec![one, two])
    };
    let (made, _) = peer::make_as(a.peer, workshop, pair)?;
    let Ok([one, two]) = <[OwnedFd; 2]>::try_from(made) else {
        return Err(SysError::new("socketpair", "two sockets", Errno::PROTO).into());
    };
    for (fd, name) in [(&one, a.name.as_ref()), (&two, b_name)] {
        bind(fd.as_fd(), a.kind, name, workshop)?;
    }
    Ok((one, two))
}

fn is_shared(name: &name::Record, workshop: &Workshop<'_>) -> bool {
    let same = |r: &Record| r.name.as_ref().is_some_and(|n| n.is_same(name));
    within_reach(&name.address, workshop).iter().filter(|(_, r)| same(r)).count() > 1
}

/// A client and the socket that was accepted for it under the name `lent`; and whom each is told as the other.
fn accepted(
    kind: Kind,
    client_name: Option<&name::Record>,
    lent: &name::Record,
    (of_client, of_server): (Option<peer::Record>, Option<peer::Record>),
    workshop: &mut Workshop<'_>,
) -> Result<(OwnedFd, OwnedFd)> {
    let client = kind.new_socket()?;
    bind(client.as_fd(), kind, client_name, workshop)?;
    let listens =
        |r: &Record| matches!(r.state, State::Listening { .. }) && r.name.as_ref().is_some_and(|n| n.is_same(lent));
    let listener = within_reach(&lent.address, workshop).into_iter().find(|(_, r)| listens(r)).map(|(id, _)| id);
    let listener = match listener {
        Some(id) => workshop.fd(id)?.try_clone_to_owned().map_err(|e| SysError::io("dup", id.to_string(), &e))?,
        None => lender(kind, lent, of_client, workshop)?,
    };
    let connect = || lent.connect(client.as_fd(), &workshop.root).map(|()| Vec::new());
    let (_, me) = peer::make_as(of_server, workshop, connect)?;
    let server = accept_with(&listener, SocketFlags::CLOEXEC).named("accept4", || format!("{}", lent.address))?;
    // Where others can reach the name, theirs may be the connection.
    let [pid, ..] = sock::peer(&server)?;
    if pid != me {
        let what = format!("{}: somebody else connects to it", lent.address);
        return Err(Cause::Hole { what, option: "a network and file system of the container's own".into() });
    }
    Ok((client, server))
}

/// A listening socket with a name whose owner has gone.
fn lender(kind: Kind, lent: &name::Record, who: Option<peer::Record>, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
    let key = (workshop.networks.here(), lent.address.clone(), lent.root.clone());
    if !workshop.unix.lenders.contains_key(&key) {
        let fd = kind.new_socket()?;
        bind(fd.as_fd(), kind, Some(lent), workshop)?;
        let listens = || listen(&fd, 1).named("listen", || "1".into()).map(|()| Vec::new());
        peer::make_as(who, workshop, listens)?;
        workshop.unix.lenders.insert(key.clone(), fd);
    }
    let fd = &workshop.unix.lenders[&key];
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?)
}

/// When all descriptions exist: what waited is sent again, then everything that would have kept it from arriving.
///
/// # Errors
/// The kernel's; `Corrupt` for messages that nobody can have sent.
pub fn finish(workshop: &mut Workshop<'_>) -> Result<()> {
    let all = sockets(workshop);
    for (id, record) in all.iter().filter(|(_, record)| !record.queue.is_empty()) {
        workshop.within(*id, || peer::send_as_child(workshop, || send_queue(*id, record, workshop)))?;
    }
    connect_datagrams(&all, workshop)?;
    for (id, record) in &all {
        if let State::Listening { backlog: _, waiting } = &record.state {
            workshop.within(*id, || backlog::rebuild(*id, record, waiting, workshop))?;
        }
    }
    for (id, record) in &all {
        let fd = workshop.existing(*id)?;
        let how = match record.shutdown & 3 {
            _ if matches!(record.state, State::Widowed { .. }) && record.kind != Kind::Dgram => None,
            1 => Some(Shutdown::Read),
            2 => Some(Shutdown::Write),
            3 => Some(Shutdown::Both),
            _ => None,
        };
        if let Some(how) = how {
            shutdown(fd, how).named("shutdown", || format!("{how:?}"))?;
        }
    }
    for (id, partner) in std::mem::take(&mut workshop.unix.partners) {
        if other(workshop, id)?.state == (State::Widowed { reset: true }) {
            sock::send(workshop.existing(id)?, b"\0", &[], None)?;
        }
        drop(partner);
    }
    for name in std::mem::take(&mut workshop.unix.unlink) {
        name.unlink(&workshop.root)?;
    }
    for (id, record) in &all {
        peer::check(workshop.existing(*id)?, workshop)?;
        let new = record.kind.new_socket()?;
        option::rebuild(&record.options, workshop.existing(*id)?, new.as_fd())?;
    }
    Ok(())
}

fn send_queue(id: FileId, record: &Record, workshop: &Workshop<'_>) -> Result<()> {
    let Record { kind, name: _, state, shutdown: _, queue, options: _, peer: _ } = record;
    for message in queue {
        let mut files = Vec::with_capacity(message.files.len());
        for file in &message.files {
            files.push(workshop.existing(*file)?);
        }
        let peer = match (state, workshop.unix.partners.get(&id), workshop.unix.pairs.get(&id)) {
            (_, Some(partner), _) => Some(partner.as_fd()),
            (_, _, Some(pair)) => Some(workshop.existing(*pair)?),
            (State::Connected(peer), ..) if *kind != Kind::Dgram => Some(workshop.existing(*peer)?),
            _ => None,
        };
        let data = &message.data.0;
        match peer {
            Some(peer) if *kind != Kind::Dgram || sock::name(peer)? == message.from.0 => {
                option::make_room(peer)?;
                sock::send(peer, data, &files, None)?;
            }
            _ if *kind == Kind::Dgram => send_datagram(record, &message.from, data, &files, workshop)?,
            _ => return Err(Cause::corrupt(format!("socket {id} has messages but no peer"))),
        }
    }
    Ok(())
}

/// From whoever has the sender's address, or had it.
fn send_datagram(
    to: &Record,
    from: &Bytes,
    data: &[u8],
    files: &[BorrowedFd<'_>],
    workshop: &Workshop<'_>,
) -> Result<()> {
    let Some(target) = &to.name else {
        return Err(Cause::corrupt("a message for a socket without a name, from somebody who cannot reach it"));
    };
    let is_sender = |r: &Record| r.kind == Kind::Dgram && r.name.as_ref().is_some_and(|n| n.address == *from);
    let living = within_reach(from, workshop).into_iter().find(|(_, r)| is_sender(r));
    if let Some((id, _)) = living {
        let sender = workshop.existing(id)?;
        option::make_room(sender)?;
        return Ok(target.send(sender, data, files, &workshop.root)?);
    }
    let sender = Kind::Dgram.new_socket()?;
    option::make_room(sender.as_fd())?;
    if !from.0.is_empty() {
        let lent = name::Record { address: from.clone(), directory: Bytes(b"/".to_vec()), root: None, inode: None };
        lent.bind(sender.as_fd(), Kind::Dgram.raw(), &workshop.root)?;
        target.send(sender.as_fd(), data, files, &workshop.root)?;
        return lent.unlink(&workshop.root);
    }
    Ok(target.send(sender.as_fd(), data, files, &workshop.root)?)
}

/// Connections of datagram sockets that are not pairs: whoever takes messages from one only can no longer be connected
/// to by others, so those go first.
fn connect_datagrams(all: &[(FileId, &Record)], workshop: &Workshop<'_>) -> Result<()> {
    let mut open: BTreeMap<FileId, FileId> = BTreeMap::new();
    for (id, record) in all.iter().filter(|(_, r)| r.kind == Kind::Dgram) {
        match (&record.state, workshop.unix.pairs.get(id)) {
            (State::Connected(peer), pair) if pair != Some(peer) => {
                open.insert(*id, *peer);
            }
            (State::Plain, Some(pair)) => {
                sock::connect(workshop.existing(*id)?, None)?;
                // The pair is told that its peer has left; it knows since long ago.
                let _ = rustix::net::sockopt::socket_error(workshop.existing(*pair)?);
            }
            _ => {}
        }
    }
    while !open.is_empty() {
        let wanted: BTreeSet<FileId> = open.iter().filter(|(id, peer)| id != peer).map(|(_, peer)| *peer).collect();
        let next = open.keys().find(|id| !wanted.contains(id)).or_else(|| open.keys().next()).copied();
        let Some((id, peer)) = next.and_then(|id| open.remove_entry(&id)) else { break };
        let name = other(workshop, peer)?.name.as_ref();
        let name = name.ok_or_else(|| Cause::corrupt(format!("socket {peer} has no name to connect to")))?;
        let connected = name.connect(workshop.existing(id)?, &workshop.root);
        if connected.as_ref().is_err_and(|e| e.errno == Errno::PERM) {
            return Err(Cause::corrupt(format!("datagram sockets {id} and {peer} cannot be connected")));
        }
        connected?;
    }
    Ok(())
}
