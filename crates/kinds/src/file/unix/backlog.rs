//! What has come for connections that nobody has accepted yet.
//! *Read from:* the connections, by accepting them: the kernel shows their queues to nobody else. They cannot be given back,
//! so this is the very last look of a checkpoint that ends the tree, and other checkpoints are refused.
//! *Made again by:* connecting to the listening socket and sending it again; a client that has gone goes again.
//! *Lost:* if Yendor is killed between this look and the end of the tree, the connections.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};
use yendor_image::FileId;
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

/// Asks who made connections where no task tells, then accepts what waits at the sockets that [`may_look`] has found, and notes what has
/// come. Whether there were any: from then on only the image has them.
///
/// # Errors
/// With true if some have been accepted.
pub fn look(gather: &mut Gather<'_>, entries: &mut [Entry]) -> std::result::Result<bool, (bool, Cause)> {
    let peers = entries.iter_mut().filter_map(|entry| match &mut entry.record {
        file::Record::Unix(record) => Some((gather.ours(entry.id).ok()?, record.peer.as_mut()?)),
        _ => None,
    });
    peer::complete(peers, gather).map_err(|e| (false, e))?;
    let mut touched = false;
    for id in std::mem::take(&mut gather.backlogs) {
        let index = usize::try_from(id.0).unwrap_or(usize::MAX);
        let Some(Entry { record: file::Record::Unix(record), .. }) = entries.get_mut(index) else { continue };
        let kind = record.kind;
        let State::Listening { waiting, .. } = &mut record.state else { continue };
        for client in waiting {
            let seen = (|| {
                let listening = gather.ours(id)?;
                if !queue::ready(listening)?.contains(PollFlags::IN) {
                    return Err(Cause::unsupported(format!("file {id}: a connection that waited has gone")));
                }
                let accepted =
                    accept_with(listening, SocketFlags::CLOEXEC).named("accept4", || format!("file {id}"))?;
                touched = true;
                let mut who = peer::collect(accepted.as_fd(), gather)?;
                peer::complete(who.iter_mut().map(|who| (accepted.as_fd(), who)), gather)?;
                Ok((who, queue::collect(accepted.as_fd(), kind, gather)?))
            })();
            (client.who, client.queue) = seen.map_err(|e| (touched, e))?;
        }
    }
    Ok(touched)
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
        peer::make_as(*who, workshop, || name.connect(client, &workshop.root).map(|()| Vec::new()))?;
        option::make_room(client)?;
        for Message { data, from: _, files } in queue {
            let files = files.iter().map(|f| workshop.existing(*f)).collect::<Result<Vec<_>>>()?;
            yendor_sys::sock::send(client, &data.0, &files, None)?;
        }
    }
    Ok(())
}

fn waits<'w>(workshop: &'w super::Workshop<'_>, id: FileId) -> Result<BorrowedFd<'w>> {
    match &workshop.entry(id)?.record {
        file::Record::Unix(Record { state: State::Waiting, .. }) => workshop.existing(id),
        _ => Err(Cause::corrupt(format!("socket {id} does not wait to be accepted"))),
    }
}
