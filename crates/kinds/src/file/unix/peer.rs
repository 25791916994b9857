//! Who made a connection, as the other end is told (`SO_PEERCRED`).
//! *Read from:* getsockopt, also by a process inside the container: who is no more, or made a connection again at a restore, has an id
//! there, but none of a task's.
//! *Made again by:* making the connection in a short-lived process with that pid, user and group.
//! *Lost:* in a tree that Yendor did not start the pid of a process that is no more, and in a pid namespace inside the container that of any; which process it is (`SO_PEERPIDFD`), its further groups and label.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use yendor_image::NsPid;
use yendor_sys::clone::{Who, as_process};
use yendor_sys::sock;

use super::{Gather, Workshop};
use crate::Result;

/// A process, when it made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its pid; 0 for one that was never inside.
    pub pid: NsPid,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Who is at the other end; none for a socket that never had one.
///
/// # Errors
/// What getsockopt says.
pub fn collect(fd: BorrowedFd<'_>, gather: &Gather<'_>) -> Result<Option<Record>> {
    let [pid, uid, gid] = sock::peer(&fd)?;
    if uid == -1 && pid == 0 {
        return Ok(None);
    }
    let pid = gather.pids.get(&pid).copied().unwrap_or(NsPid(0));
    Ok(Some(Record { pid, uid: uid.cast_unsigned(), gid: gid.cast_unsigned() }))
}

/// Asks inside the container for pids of peers that are not of its tasks.
///
/// # Errors
/// What setns says.
pub fn complete<'a>(
    peers: impl IntoIterator<Item = (BorrowedFd<'a>, &'a mut Record)>,
    gather: &Gather<'_>,
) -> Result<()> {
    let Some(namespace) = &gather.pid_namespace else { return Ok(()) };
    let (sockets, records): (Vec<_>, Vec<_>) = peers.into_iter().filter(|(_, peer)| peer.pid == NsPid(0)).unzip();
    if sockets.is_empty() {
        return Ok(());
    }
    let pids = yendor_sys::namespace::peers_there(namespace.as_fd(), &sockets)?;
    for (record, pid) in records.into_iter().zip(pids) {
        record.pid = NsPid(pid);
    }
    Ok(())
}

/// Runs `make` as `peer`, where processes can be made already; else as ourselves. What it made, and the pid that
/// `SO_PEERCRED` will tell us.
///
/// # Errors
/// `make`'s own.
pub fn make_as(
    peer: Option<Record>,
    workshop: &Workshop<'_>,
    make: impl FnOnce() -> std::result::Result<Vec<OwnedFd>, yendor_sys::SysError>,
) -> Result<(Vec<OwnedFd>, i32)> {
    match peer.filter(|_| workshop.impersonates) {
        Some(Record { pid, uid, gid }) => {
            // Pid 1 is there already.
            let pid = if pid.0 > 1 { pid.0 } else { 0 };
            Ok(as_process(Who { pid, uid, gid }, make)?)
        }
        None => Ok((make()?, rustix::process::getpid().as_raw_nonzero().get())),
    }
}

/// The credentials of whoever holds the socket now, for one whose connection nobody has accepted.
#[must_use]
pub fn of_holder(pid: i32, gather: &Gather<'_>) -> Option<Record> {
    let status = yendor_proc::status::parse(&gather.read(&format!("{pid}/status")).ok()?).ok()?;
    let inside = gather.pids.get(&pid).copied().unwrap_or(NsPid(0));
    Some(Record { pid: inside, uid: status.uid[1], gid: status.gid[1] })
}
