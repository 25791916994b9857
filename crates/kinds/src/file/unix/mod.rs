//! Unix sockets: connections with both ends in the tree, listening sockets, datagram sockets.
//! *Read from:* sock_diag(7) for who is connected to whom, getsockopt, `MSG_PEEK` for what waits to be read; what waits
//! behind a connection that nobody has accepted, by accepting it (see [`backlog`]).
//! *Made again by:* socketpair, or bind, connect and accept where a name demands it; what waited is sent again.
//! *Lost:* the time stamps of messages; a pending error of a datagram socket.

pub mod backlog;
pub mod diag;
mod make;
pub mod name;
pub mod option;
pub mod peer;
pub mod queue;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::{FileType, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use serde::{Deserialize, Serialize};
use yendor_image::FileId;
use yendor_sys::sock;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};
use diag::Info;

pub use backlog::{Aside, set_aside};
pub use make::{Bench, finish as connect_all};
pub use peer::Maker;

/// The type of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Kind {
    Stream,
    Dgram,
    Seqpacket,
}

/// How a socket is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not at all.
    Plain,
    /// It listens.
    Listening {
        /// As for listen(2).
        backlog: u32,
        /// The clients that wait to be accepted, in order.
        waiting: Vec<backlog::Client>,
    },
    /// To this one; datagram sockets perhaps not the other way round.
    Connected(FileId),
    /// Its peer has gone, leaving unread what this socket had sent (`reset`) or not.
    Widowed {
        /// Whether reading will tell `ECONNRESET`.
        reset: bool,
    },
    /// It waits to be accepted.
    Waiting,
}

/// A unix socket. Every socket has one description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its type.
    pub kind: Kind,
    /// Its address, if it has one.
    pub name: Option<name::Record>,
    /// How it is connected.
    pub state: State,
    /// Bit 0: shut down for receiving; bit 1: for sending.
    pub shutdown: u8,
    /// What waits to be read.
    pub queue: Vec<queue::Message>,
    /// Its options.
    pub options: option::Record,
    /// Who is at the other end (of a listening socket: who listens).
    pub peer: Option<peer::Record>,
}

impl FileKind for Record {
    const NAME: &'static str = "unix socket";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::Socket
            && seen.info.flags & OFlags::PATH.bits() == 0
            && sockopt::socket_domain(&seen.fd) == Ok(AddressFamily::UNIX)
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let shown = || seen.link.to_string();
        let kind = match sockopt::socket_type(&seen.fd).named("getsockopt", shown)? {
            SocketType::STREAM => Kind::Stream,
            SocketType::DGRAM => Kind::Dgram,
            SocketType::SEQPACKET => Kind::Seqpacket,
            other => return Err(Cause::unsupported(format!("{}: a unix socket of the type {other:?}", seen.link))),
        };
        let fd = seen.fd.as_fd();
        let listens = sockopt::socket_acceptconn(fd).named("getsockopt", shown)?;
        let queue = if listens { Vec::new() } else { queue::collect(fd, kind, gather)? };
        let name = name::collect(seen, gather)?;
        let options = option::collect(fd, kind.new_socket()?.as_fd())?;
        let peer = peer::collect(fd, gather)?;
        // The rest follows in `finish`: the peers may not be collected yet.
        Ok(Record { kind, name, state: State::Plain, shutdown: 0, queue, options, peer })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        make::make(self, entry.id, workshop)
    }
}

impl Kind {
    /// What socket(2) calls it.
    #[must_use]
    pub fn raw(self) -> SocketType {
        match self {
            Kind::Stream => SocketType::STREAM,
            Kind::Dgram => SocketType::DGRAM,
            Kind::Seqpacket => SocketType::SEQPACKET,
        }
    }

    fn new_socket(self) -> Result<OwnedFd> {
        let made = socket_with(AddressFamily::UNIX, self.raw(), SocketFlags::CLOEXEC, None);
        Ok(made.named("socket", || format!("AF_UNIX, {self:?}"))?)
    }
}

/// The unix sockets of each network namespace, by the namespace's inode (0: our own).
type Tables = BTreeMap<u64, BTreeMap<u32, Info>>;

/// Once all descriptions are known: who is connected to whom.
///
/// # Errors
/// `Unsupported` for a peer outside of the tree.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let mut tables = Tables::new();
    for Entry { id, .. } in gather.entries.iter().filter(|entry| matches!(entry.record, super::Record::Unix(_))) {
        table(&mut tables, gather.ours(*id)?)?;
    }
    let names = gather.entries.iter().filter_map(|entry| match &entry.record {
        super::Record::Unix(record) => record.name.as_ref(),
        _ => None,
    });
    let roots = names.map(|name| name.root.clone()).chain([None]).collect();
    for i in 0..gather.entries.len() {
        let Some(Entry { id, record: super::Record::Unix(record), .. }) = gather.entries.get(i) else { continue };
        let (id, mut record) = (*id, record.clone());
        let ours = gather.ours(id)?;
        let stat = rustix::fs::fstat(ours).named("fstat", || format!("file {id}"))?;
        let own = table(&mut tables, ours)?;
        let table = tables.get(&own).ok_or_else(|| Cause::unsupported("a network namespace that has gone"))?;
        let inode = u32::try_from(stat.st_ino).unwrap_or(0);
        let info = table.get(&inode);
        let info = info.ok_or_else(|| Cause::unsupported(format!("socket:[{inode}]: it lives in another network")))?;
        let known = |peer: u32| gather.with_inode(stat.st_dev, u64::from(peer)).first().copied();
        let found = state(inode, info, &tables, record.kind, &known, ours);
        record.state = found.map_err(|e| gather.held(id, e))?;
        if let State::Listening { waiting, .. } = &mut record.state {
            for client in waiting {
                client.who = client.socket.and_then(|id| peer::of_holder(gather.holders.get(&id)?.0, gather));
            }
        }
        if let State::Listening { waiting, .. } = &record.state
            && backlog::must_look(info, table)
        {
            backlog::may_look(gather, id, ours, waiting.len())?;
            let unread = backlog::Unread::of(id, info, table);
            gather.backlogs.push(unread);
        }
        record.shutdown = info.shutdown;
        if let Some(name) = &mut record.name {
            name.find(info.bound, &roots, gather)?;
        }
        if let Some(entry) = gather.entries.get_mut(i) {
            entry.record = super::Record::Unix(record);
        }
    }
    Ok(())
}

/// Reads the table of a socket's network; its key.
fn table(tables: &mut Tables, fd: BorrowedFd<'_>) -> Result<u64> {
    // Who may not ask for the namespace cannot enter it either; then it can only be our own.
    let namespace = sock::namespace(fd).ok();
    let key = match &namespace {
        Some(ns) => rustix::fs::fstat(ns).named("fstat", || "a network namespace".into())?.st_ino,
        None => 0,
    };
    if let std::collections::btree_map::Entry::Vacant(place) = tables.entry(key) {
        place.insert(diag::dump(namespace)?);
    }
    Ok(key)
}

fn state(
    inode: u32,
    info: &Info,
    tables: &Tables,
    kind: Kind,
    known: &dyn Fn(u32) -> Option<FileId>,
    ours: BorrowedFd<'_>,
) -> Result<State> {
    let refuse = |what: String| Err(Cause::unsupported(format!("socket:[{inode}]: {what}")));
    if info.state == diag::LISTENING {
        let mut waiting = Vec::with_capacity(info.waiting.len());
        for client in &info.waiting {
            match known(*client) {
                Some(id) => waiting.push(backlog::Client { socket: Some(id), queue: Vec::new(), who: None }),
                None if *client == 0 => waiting.push(backlog::Client { socket: None, queue: Vec::new(), who: None }),
                None => return refuse("a connection from outside the tree waits to be accepted".into()),
            }
        }
        return Ok(State::Listening { backlog: info.sent, waiting });
    }
    match info.peer {
        Some(peer) if peer != 0 => match known(peer) {
            Some(id) => Ok(State::Connected(id)),
            None => refuse(format!("its peer socket:[{peer}] is outside of the tree")),
        },
        None if kind == Kind::Dgram || info.state != diag::CONNECTED => Ok(State::Plain),
        _ if kind == Kind::Dgram => Ok(State::Widowed { reset: false }),
        _ => match tables.values().flatten().find(|(_, other)| other.waiting.contains(&inode)) {
            Some((listener, _)) if known(*listener).is_some() => Ok(State::Waiting),
            Some((listener, _)) => refuse(format!("it waits to be accepted by socket:[{listener}], outside")),
            None => Ok(State::Widowed { reset: queue::ready(ours)?.contains(PollFlags::ERR) }),
        },
    }
}
