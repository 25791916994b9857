//! What waits in a unix socket to be read, with message boundaries and descriptors in flight.
//! *Read from:* `MSG_PEEK`; where one look does not see all, `SO_PEEK_OFF` for that moment.
//! *Made again by:* sending it from the peer.
//! *Lost:* an empty datagram that was peeked at before; who sent it (a socket that asks for that is refused).

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};
use yendor_sys::sock::{self, Peeked};
use yendor_sys::undo::{self, Undo};

use super::{Gather, Kind, option};
use crate::{Cause, Named, Result};

const SOL_SOCKET: i32 = 1;
const SO_PEEK_OFF: i32 = 42;

/// A message; of a stream, bytes up to the next that carry descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its bytes.
    pub data: Bytes,
    /// The address of its sender as in `sun_path`; empty for an unnamed one, and in streams.
    pub from: Bytes,
    /// The descriptions that travel with it.
    pub files: Vec<FileId>,
}

/// The queue of a socket that is no listening one, oldest first.
///
/// # Errors
/// `Unsupported` for what cannot be queued again as it is.
pub fn collect(fd: BorrowedFd<'_>, kind: Kind, gather: &mut Gather<'_>) -> Result<Vec<Message>> {
    let now = ready(fd)?;
    if now.contains(PollFlags::PRI) {
        return Err(Cause::unsupported("out-of-band data in a unix socket"));
    }
    let waiting = sock::waiting(fd)?;
    if waiting == 0 && (kind != Kind::Dgram || !now.contains(PollFlags::IN)) {
        return Ok(Vec::new());
    }
    if now.contains(PollFlags::ERR) {
        // A look at the queue would take the error away.
        return Err(Cause::unsupported("a unix socket with messages and a pending error"));
    }
    if option::tells_sender(fd)? {
        return Err(Cause::passing("unread messages with credentials (SO_PASSCRED) in a unix socket"));
    }
    let raw = match kind {
        Kind::Stream => stream(fd, waiting)?,
        Kind::Dgram | Kind::Seqpacket => packets(fd, kind, waiting)?,
    };
    let mut messages = Vec::with_capacity(raw.len());
    for Peeked { data, truncated: _, files, from } in raw {
        let files = files.into_iter().map(|f| gather.own(f)).collect::<Result<Vec<_>>>()?;
        if let Some(late) = gather.entries.iter().find(|e| files.contains(&e.id) && e.record.is_late()) {
            return Err(Cause::passing(format!("a {} in flight in a unix socket", late.record.kind())));
        }
        let from = if kind == Kind::Dgram { Bytes(from) } else { Bytes::default() };
        messages.push(Message { data: Bytes(data), from, files });
    }
    Ok(messages)
}

/// What poll says now.
///
/// # Errors
/// The kernel's.
pub fn ready(fd: BorrowedFd<'_>) -> Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::PRI)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).named("poll", String::new)?;
    Ok(fds[0].revents())
}

/// Runs `look` with the peek offset at `from`, and puts it back, even if we die.
fn looking<T>(fd: BorrowedFd<'_>, from: usize, look: impl FnOnce() -> Result<T>) -> Result<T> {
    let value = sock::option(fd, SO_PEEK_OFF)?.unwrap_or(-1);
    let from = i32::try_from(from).map_err(|_| Cause::unsupported("2 GiB in a unix socket"))?;
    let held = undo::hold(fd, &[Undo { level: SOL_SOCKET, option: SO_PEEK_OFF, value }])?;
    sock::set_options(fd, SO_PEEK_OFF, [from])?;
    let seen = look();
    held.end()?;
    seen
}

fn stream(fd: BorrowedFd<'_>, waiting: usize) -> Result<Vec<Peeked>> {
    let plain = sock::option(fd, SO_PEEK_OFF)?.is_none_or(|o| o < 0);
    if plain
        && let Some(all) = sock::peek(fd, waiting)?
        && all.data.len() == waiting
        && all.files.is_empty()
    {
        return Ok(vec![all]);
    }
    let mut out = Vec::new();
    let mut at = 0;
    while at < waiting {
        let mut seen =
            looking(fd, at, || Ok(sock::peek(fd, waiting - at)?))?.filter(|p| !p.data.is_empty()).ok_or_else(|| {
                Cause::unsupported(format!("a unix socket with {waiting} bytes of which {at} can be read"))
            })?;
        let len = seen.data.len();
        if !seen.files.is_empty() {
            // One look joins plain bytes with the write that carried descriptors, and ends there.
            let without = looking(fd, at, || Ok(sock::last_write(fd, len)?))?;
            if without > 0 {
                let carried = seen.data.split_off(without);
                let data = std::mem::replace(&mut seen.data, carried);
                out.push(Peeked { data, truncated: false, files: Vec::new(), from: Vec::new() });
            }
        }
        out.push(seen);
        at += len;
    }
    Ok(out)
}

fn packets(fd: BorrowedFd<'_>, kind: Kind, waiting: usize) -> Result<Vec<Peeked>> {
    let mut room = waiting.max(1 << 16);
    // A message that does not fit shows how much is missing only by being cut off.
    while room <= 1 << 30 {
        let seen = looking(fd, 0, || {
            let mut out = Vec::new();
            let mut total = 0;
            while let Some(message) = sock::peek(fd, room)? {
                // The end of a connection reads as an empty message.
                let end = kind == Kind::Seqpacket && message.data.is_empty() && total >= waiting;
                total += message.data.len();
                if message.truncated || end {
                    return Ok((out, message.truncated));
                }
                out.push(message);
            }
            Ok((out, false))
        })?;
        match seen {
            (out, false) => return Ok(out),
            (_, true) => room *= 4,
        }
    }
    Err(Cause::unsupported("a datagram of more than 1 GiB"))
}
