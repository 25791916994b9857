//! A netlink(7) socket: kernel events, routing and interface questions.
//! *Read from:* getsockname, `NETLINK_LIST_MEMBERSHIPS`, getsockopt.
//! *Made again by:* socket, bind with the same port, memberships and options.
//! *Lost:* nothing. Unread messages, which only the kernel can send, are refused; so is a connected one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::{FileType, OFlags};
use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, socket_with, sockopt};
use serde::{Deserialize, Serialize};
use yendor_sys::{inet, sock};

use super::unix::{option, queue};
use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

const SOCKET: i32 = 1;
const SO_PROTOCOL: i32 = 38;
const NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;
/// `NETLINK_PKTINFO`, `BROADCAST_ERROR`, `NO_ENOBUFS`, `LISTEN_ALL_NSID`, `CAP_ACK`, `EXT_ACK`, `GET_STRICT_CHK`.
const SWITCHES: &[i32] = &[3, 4, 5, 8, 10, 11, 12];
/// More groups than any family has.
const MOST_GROUPS: u32 = 8192;

/// A netlink socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `NETLINK_ROUTE` ...
    pub protocol: u32,
    /// Whether it is a datagram socket; else a raw one. Netlink makes no difference.
    pub datagrams: bool,
    /// Its port; 0 while it has none.
    pub port: u32,
    /// The multicast groups that it is in, counted from 1.
    pub groups: Vec<u32>,
    /// Options of netlink(7) that are on.
    pub switches: Vec<i32>,
    /// Options of socket(7).
    pub options: option::Record,
}

impl FileKind for Record {
    const NAME: &'static str = "netlink socket";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::Socket
            && seen.info.flags & OFlags::PATH.bits() == 0
            && sockopt::socket_domain(&seen.fd) == Ok(AddressFamily::NETLINK)
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        let fd = seen.fd.as_fd();
        let shown = || seen.link.to_string();
        let protocol = u32::try_from(inet::number(fd, SOCKET, SO_PROTOCOL)?).unwrap_or(0);
        let refuse = |what: &str| Err(Cause::unsupported(format!("{}: a netlink socket {what}", seen.link)));
        if queue::ready(fd)?.intersects(PollFlags::IN | PollFlags::ERR) {
            return Err(Cause::passing(format!("{}: a netlink socket with unread messages", seen.link)));
        }
        if sock::netlink_peer(fd)?.is_some_and(|peer| peer != (0, 0)) {
            return refuse("that is connected to another one");
        }
        let (port, _) = sock::netlink_name(fd)?;
        let datagrams = sockopt::socket_type(fd).named("getsockopt", shown)? == SocketType::DGRAM;
        let mut switches = Vec::new();
        for switch in SWITCHES {
            if inet::number(fd, NETLINK, *switch).is_ok_and(|on| on != 0) {
                switches.push(*switch);
            }
        }
        let new = new(protocol, datagrams)?;
        let options = option::collect(fd, new.as_fd())?;
        Ok(Record { protocol, datagrams, port, groups: groups(fd)?, switches, options })
    }

    fn rebuild(&self, _entry: &Entry, _workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { protocol, datagrams, port, groups, switches, options } = self;
        let fd = new(*protocol, *datagrams)?;
        if *port != 0 {
            sock::netlink_bind(fd.as_fd(), *port)?;
        }
        for group in groups.iter().filter(|g| (1..=MOST_GROUPS).contains(*g)) {
            inet::set_number(fd.as_fd(), NETLINK, ADD_MEMBERSHIP, i32::try_from(*group).unwrap_or(0))?;
        }
        for switch in switches {
            if !SWITCHES.contains(switch) {
                return Err(Cause::corrupt(format!("a netlink socket with the option {switch}")));
            }
            inet::set_number(fd.as_fd(), NETLINK, *switch, 1)?;
        }
        option::rebuild(options, fd.as_fd(), new(*protocol, *datagrams)?.as_fd())?;
        Ok(fd)
    }
}

fn new(protocol: u32, datagrams: bool) -> Result<OwnedFd> {
    let kind = if datagrams { SocketType::DGRAM } else { SocketType::RAW };
    // Protocol 0 is NETLINK_ROUTE.
    let wanted = RawProtocol::new(protocol).map(Protocol::from_raw);
    let made = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, wanted);
    Ok(made.named("socket", || format!("AF_NETLINK, {kind:?}, {protocol}"))?)
}

/// The numbers of the groups, from a bit set.
fn groups(fd: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut bits = [0u8; 1024];
    let n = inet::get(fd, NETLINK, LIST_MEMBERSHIPS, &mut bits)?.min(bits.len());
    let is_in = |group: &u32| {
        let bit = usize::try_from(group - 1).unwrap_or(usize::MAX);
        bits[..n].get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    };
    Ok((1..=MOST_GROUPS).filter(is_in).collect())
}
