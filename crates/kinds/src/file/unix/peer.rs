//! Who made a connection, as the other end is told (`SO_PEERCRED`).
//! *Read from:* getsockopt, also by a process inside the container: who is no more, or made a connection again at a restore, has an id
//! there, but none of a task's.
//! *Made again by:* making the connection in a short-lived process with that pid, user and group.
//! *Lost:* in a tree that Yendor did not start the pid of a process that is no more, and in a pid namespace inside the container that of any; which process it is (`SO_PEERPIDFD`), its further groups and label.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use yendor_image::NsPid;
use yendor_sys::clone::{Who, as_process};
use yendor_sys::{Errno, SysError, sock};

use super::{Gather, Workshop};
use crate::{Cause, Result};

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

/// Who makes unix sockets. The kernel remembers who has made a connection or sent a message, and a task can ask for it as a pidfd
/// (`SO_PEERPIDFD`, `SO_PASSPIDFD`), by which root of a container could take whatever the keeper has open: so that is never the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// This process: in tests only, which have threads.
    Ourselves,
    /// A child of it, which is nobody in particular.
    Child,
    /// A child with the pid, user and group of whoever it was: possible once pid 1 is there.
    Impersonator,
}

/// Runs `make` as `peer`, where processes can be made already; else as nobody in particular. What it made, and the pid that
/// `SO_PEERCRED` will tell us.
///
/// # Errors
/// `make`'s own.
pub fn make_as(
    peer: Option<Record>,
    workshop: &Workshop<'_>,
    make: impl FnOnce() -> std::result::Result<Vec<OwnedFd>, SysError>,
) -> Result<(Vec<OwnedFd>, i32)> {
    let nobody = || Who { pid: 0, uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let who = match (workshop.maker, peer) {
        (Maker::Ourselves, _) => return Ok((make()?, own_pid())),
        // Pid 1 is there already.
        (Maker::Impersonator, Some(Record { pid, uid, gid })) => {
            Who { pid: if pid.0 > 1 { pid.0 } else { 0 }, uid, gid }
        }
        _ => nobody(),
    };
    Ok(as_process(who, make)?)
}

/// Runs `send`, which makes nothing, as nobody in particular.
///
/// # Errors
/// `send`'s own, as far as a child can say it.
pub fn send_as_child(workshop: &Workshop<'_>, send: impl FnOnce() -> Result<()>) -> Result<()> {
    if workshop.maker == Maker::Ourselves {
        return send();
    }
    let said = |cause: Cause| match cause.sys() {
        Some(sys) => sys.clone(),
        None => SysError::new("sendmsg", cause.to_string(), Errno::INVAL),
    };
    make_as(None, workshop, || send().map(|()| Vec::new()).map_err(said)).map(drop)
}

/// That a socket which tasks will have does not name this process as its peer.
///
/// # Errors
/// `Corrupt` for one that does.
pub fn check(fd: BorrowedFd<'_>, workshop: &Workshop<'_>) -> Result<()> {
    if workshop.maker != Maker::Ourselves && sock::peer(&fd)?[0] == own_pid() {
        return Err(Cause::corrupt("a connection that nobody has made"));
    }
    Ok(())
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The credentials of whoever holds the socket now, for one whose connection nobody has accepted.
#[must_use]
pub fn of_holder(pid: i32, gather: &Gather<'_>) -> Option<Record> {
    let status = yendor_proc::status::parse(&gather.read(&format!("{pid}/status")).ok()?).ok()?;
    let inside = gather.pids.get(&pid).copied().unwrap_or(NsPid(0));
    Some(Record { pid: inside, uid: status.uid[1], gid: status.gid[1] })
}
