//! What has come for connections that nobody has accepted yet.
//! *Read from:* the connections, by accepting them: the kernel shows their queues to nobody else. They cannot be given back,
//! so this is done when the tree has ended (our duplicates keep its sockets), and other checkpoints are refused. The image
//! that is there by then says of these connections that they were reset; one that has all takes its place.
//! *Made again by:* connecting to the listening socket and sending it again; a client that has gone goes again.
//! *Lost:* if Yendor is killed, or the disk is full, between the end of the tree and that: these connections, which are reset then, and
//! the image says so; the pid of a client that had ended before the checkpoint.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};
use yendor_image::{FileId, NsPid};
use yendor_proc::fdinfo::Detail;

use super::diag::{self, Info};
use super::queue::{self, Message};
use super::{Entry, Gather, Record, State, option, peer};
use crate::file;
use crate::{Cause, Named, Result};

/// A client that waits to be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its socket; none if it has closed it.
    pub socket: Option<FileId>,
    /// What it has sent.
    pub queue: Vec<Message>,
    /// Who it is, as whoever accepts it is told; none if that is not known.
    pub who: Option<peer::Record>,
}

/// Whether a listening socket's clients may have sent something: the kernel counts what waits of each, but not of one
/// that has gone.
#[must_use]
pub fn must_look(listening: &Info, table: &BTreeMap<u32, Info>) -> bool {
    listening.state == diag::LISTENING
        && listening.waiting.iter().any(|client| table.get(client).is_none_or(|c| c.sent > 0))
}

/// Refuses what could not be made again, before anything is accepted.
///
/// # Errors
/// `Passing`, by name: whoever listens will accept them.
pub fn may_look(gather: &Gather<'_>, id: FileId, listening: BorrowedFd<'_>, clients: usize) -> Result<()> {
    let refuse = |what: &str| {
        let link = gather.link_of(listening).unwrap_or_default();
        Err(Cause::passing(format!("{link} (file {id}): {clients} connections, not accepted yet, with {what}")))
    };
    if !gather.ends_tree {
        return refuse("unread data, in a checkpoint that lets the tree live");
    }
    match gather.info_of(listening)?.detail {
        Detail::UnixSocket { scm_fds } if scm_fds > 0 => refuse("descriptors in flight"),
        _ if option::tells_sender(listening)? => refuse("unread credentials (SO_PASSCRED)"),
        _ => Ok(()),
    }
}

/// A listening socket to be looked at: its clients may have sent something, or not.
#[derive(Debug, Clone)]
pub struct Unread {
    listening: FileId,
    clients: Vec<bool>,
}

impl Unread {
    /// Of a listening socket; see [`must_look`].
    #[must_use]
    pub fn of(id: FileId, listening: &Info, table: &BTreeMap<u32, Info>) -> Self {
        let clients = listening.waiting.iter().map(|client| table.get(client).is_none_or(|c| c.sent > 0)).collect();
        Self { listening: id, clients }
    }
}

/// What is not known before the tree ends.
#[derive(Debug)]
pub struct Aside {
    unread: Vec<Unread>,
    /// Records as they will be, by their places.
    records: Vec<(usize, Record)>,
}

fn place(id: FileId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX)
}

/// Asks who made connections where no task tells. Then the records of connections that [`may_look`] has found become
/// those of connections that were reset, which is what they are as long as nobody knows what they carry; that is noted in `lost`. None
/// if there are none.
///
/// # Errors
/// What setns says.
pub fn set_aside(
    gather: &mut Gather<'_>,
    entries: &mut [Entry],
    lost: &mut Vec<(String, String)>,
) -> Result<Option<Aside>> {
    let peers = entries.iter_mut().filter_map(|entry| match &mut entry.record {
        file::Record::Unix(record) => Some((gather.ours(entry.id).ok()?, record.peer.as_mut()?)),
        _ => None,
    });
    peer::complete(peers, gather)?;
    let unread = std::mem::take(&mut gather.backlogs);
    let mut records = Vec::new();
    let mut replace = |entries: &mut [Entry], id, change: &mut dyn FnMut(&mut Record)| {
        let Some(Entry { record: file::Record::Unix(record), .. }) = entries.get_mut(place(id)) else { return };
        records.push((place(id), record.clone()));
        change(record);
    };
    for Unread { listening, clients } in &unread {
        let mut reset = Vec::new();
        replace(entries, *listening, &mut |record| {
            let State::Listening { waiting, .. } = &mut record.state else { return };
            let mut unread = clients.iter();
            waiting.retain(|client| {
                let goes = unread.next().copied().unwrap_or(true);
                reset.extend(client.socket.filter(|_| goes));
                !goes
            });
        });
        for client in reset {
            replace(entries, client, &mut |record| {
                (record.state, record.shutdown) = (State::Widowed { reset: true }, 3);
            });
        }
        let number = clients.iter().filter(|unread| **unread).count();
        let what = "connections with unread data, not accepted yet: they could not be read when the tree had ended";
        lost.push(("unix".into(), format!("file {listening}: {number} {what}")));
    }
    Ok((!unread.is_empty()).then_some(Aside { unread, records }))
}

impl Aside {
    /// The tree has ended: accepts what waits, and makes the records what they are. What was noted in `lost` goes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(self, gather: &mut Gather<'_>, entries: &mut [Entry], lost: &mut Vec<(String, String)>) -> Result<()> {
        for (place, record) in self.records {
            if let Some(entry) = entries.get_mut(place) {
                entry.record = file::Record::Unix(record);
            }
        }
        for Unread { listening: id, .. } in &self.unread {
            let Some(Entry { record: file::Record::Unix(record), .. }) = entries.get_mut(place(*id)) else { continue };
            let kind = record.kind;
            let State::Listening { waiting, .. } = &mut record.state else { continue };
            for client in waiting {
                let listening = gather.ours(*id)?;
                if !queue::ready(listening)?.contains(PollFlags::IN) {
                    return Err(Cause::unsupported(format!("file {id}: a connection that waited has gone")));
                }
                let accepted =
                    accept_with(listening, SocketFlags::CLOEXEC).named("accept4", || format!("file {id}"))?;
                let mut who = peer::collect(accepted.as_fd(), gather)?;
                // Where the container's pid namespace has gone, nobody can be asked any more.
                let _ = peer::complete(who.iter_mut().map(|who| (accepted.as_fd(), who)), gather);
                if let (Some(who), Some(holder)) = (&mut who, client.who)
                    && who.pid == NsPid(0)
                {
                    // It was connected in the holder's name by a process that is no more, or by the holder.
                    who.pid = holder.pid;
                }
                (client.who, client.queue) = (who, queue::collect(accepted.as_fd(), kind, gather)?);
            }
        }
        let of_ours = |line: &(String, String)| {
            self.unread.iter().any(|u| line.0 == "unix" && line.1.starts_with(&format!("file {}: ", u.listening)))
        };
        lost.retain(|line| !of_ours(line));
        Ok(())
    }
}

/// The clients connect and send what they had sent; those that had gone, go.
///
/// # Errors
/// The kernel's; `Corrupt` for a client that does not wait, or a name that is missing.
pub fn rebuild(id: FileId, record: &Record, waiting: &[Client], workshop: &super::Workshop<'_>) -> Result<()> {
    let Some(name) = record.name.as_ref().filter(|_| !waiting.is_empty()) else {
        return match waiting {
            [] => Ok(()),
            _ => Err(Cause::corrupt(format!("clients of socket {id}, which has no name"))),
        };
    };
    for Client { socket, queue, who } in waiting {
        let gone = if socket.is_none() { Some(record.kind.new_socket()?) } else { None };
        let client = match (socket, &gone) {
            (_, Some(gone)) => gone.as_fd(),
            (Some(socket), None) => waits(workshop, *socket)?,
            (None, None) => continue,
        };
        option::make_room(client)?;
        let open = |message: &Message| message.files.iter().map(|f| workshop.existing(*f)).collect::<Result<Vec<_>>>();
        let queue = queue.iter().map(|message| Ok((&message.data.0, open(message)?))).collect::<Result<Vec<_>>>()?;
        // Who has sent what is not accepted yet the kernel notes, whatever the options.
        let connect_and_send = || {
            name.connect(client, &workshop.root)?;
            queue.iter().try_for_each(|(data, files)| yendor_sys::sock::send(client, data, files, None))?;
            Ok(Vec::new())
        };
        peer::make_as(*who, workshop, connect_and_send)?;
    }
    Ok(())
}

fn waits<'w>(workshop: &'w super::Workshop<'_>, id: FileId) -> Result<BorrowedFd<'w>> {
    match &workshop.entry(id)?.record {
        file::Record::Unix(Record { state: State::Waiting, .. }) => workshop.existing(id),
        _ => Err(Cause::corrupt(format!("socket {id} does not wait to be accepted"))),
    }
}
