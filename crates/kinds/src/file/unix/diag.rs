//! What only sock_diag(7) tells of unix sockets: who is connected to whom, who waits to be accepted, what was shut down.
//! *Read from:* a `NETLINK_SOCK_DIAG` dump in the sockets' network namespace.
//! *Made again by:* nothing here; see the parent module.
//! *Lost:* nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use yendor_sys::{Errno, SysError};

use crate::{Cause, Named, Result};

/// `TCP_ESTABLISHED`.
pub const CONNECTED: u8 = 1;
/// `TCP_LISTEN`.
pub const LISTENING: u8 = 10;

/// A unix socket of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// `TCP_*`.
    pub state: u8,
    /// Inode of what its name leads to.
    pub bound: Option<u32>,
    /// Inode of the peer; 0 for one that is closed or not accepted yet.
    pub peer: Option<u32>,
    /// Of a listening socket: inodes of the clients that wait to be accepted, 0 for one that has gone.
    pub waiting: Vec<u32>,
    /// Bytes that wait to be read, or connections to be accepted.
    pub received: u32,
    /// Memory of what was sent and is not read yet, or the backlog.
    pub sent: u32,
    /// Bit 0: shut down for receiving; bit 1: for sending.
    pub shutdown: u8,
}

/// All unix sockets of a namespace (none: our own) by inode.
///
/// # Errors
/// `EPERM` when the namespace may not be entered.
pub fn dump(namespace: Option<OwnedFd>) -> Result<BTreeMap<u32, Info>> {
    let Some(namespace) = namespace else { return dump_here() };
    // The namespace of a thread can be changed alone.
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .named("setns", || "a socket's network namespace".into())?;
            dump_here()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn dump_here() -> Result<BTreeMap<u32, Info>> {
    let kind = SocketType::RAW;
    let fd = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))
        .named("socket", || "AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG".into())?;
    // A dump that was disturbed says so; the tree is frozen, but others may open sockets at any time.
    for _ in 0..100 {
        if let Some(all) = dump_once(fd.as_fd())? {
            return Ok(all);
        }
    }
    Err(SysError::new("recv", "NETLINK_SOCK_DIAG: no consistent dump", Errno::AGAIN).into())
}

fn dump_once(fd: BorrowedFd<'_>) -> Result<Option<BTreeMap<u32, Info>>> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    /// Names' inodes, peers, waiting connections, queue lengths.
    const SHOW: u32 = 2 | 4 | 8 | 16;
    let mut request = Vec::with_capacity(40);
    request.extend_from_slice(&40u32.to_ne_bytes());
    request.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    // struct unix_diag_req: family, protocol, padding, states, inode, what to show, cookie.
    request.extend_from_slice(&[1, 0, 0, 0]);
    for word in [u32::MAX, 0, SHOW, u32::MAX, u32::MAX] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    send(fd, &request, SendFlags::empty()).named("send", || "NETLINK_SOCK_DIAG".into())?;
    let mut all = BTreeMap::new();
    let mut consistent = true;
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        let (n, _) = recv(fd, &mut buffer[..], RecvFlags::empty()).named("recv", || "NETLINK_SOCK_DIAG".into())?;
        if !messages(&buffer[..n], &mut all, &mut consistent)? {
            return Ok(consistent.then_some(all));
        }
    }
}

/// Takes in one datagram; false after the last.
fn messages(mut rest: &[u8], all: &mut BTreeMap<u32, Info>, consistent: &mut bool) -> Result<bool> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const INTERRUPTED: u16 = 0x10;
    while let Some(len) = word(rest, 0).and_then(|len| usize::try_from(len).ok()) {
        let Some(message) = rest.get(..len).filter(|m| m.len() >= 16) else { return Err(bad()) };
        *consistent &= half(message, 6).unwrap_or(0) & INTERRUPTED == 0;
        match half(message, 4) {
            Some(DONE) => return Ok(false),
            Some(ERROR) => {
                let code = word(message, 16).map_or(0, u32::cast_signed);
                return Err(SysError::said("recv", "NETLINK_SOCK_DIAG", code.saturating_neg()).into());
            }
            _ => {
                let (inode, info) = socket(&message[16..]).ok_or_else(bad)?;
                all.insert(inode, info);
            }
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

fn bad() -> Cause {
    SysError::new("recv", "NETLINK_SOCK_DIAG: a message that is cut off", Errno::IO).into()
}

/// `struct unix_diag_msg` and its attributes.
fn socket(message: &[u8]) -> Option<(u32, Info)> {
    let mut info = Info { state: *message.get(2)?, ..Info::default() };
    let inode = word(message, 4)?;
    let mut rest = message.get(16..)?;
    while let Some(len) = half(rest, 0).map(usize::from) {
        let value = rest.get(4..len)?;
        match half(rest, 2)? {
            1 => info.bound = word(value, 0),
            2 => info.peer = word(value, 0),
            3 => info.waiting = value.chunks_exact(4).filter_map(|c| word(c, 0)).collect(),
            4 => (info.received, info.sent) = (word(value, 0)?, word(value, 4)?),
            6 => info.shutdown = *value.first()?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((inode, info))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}
