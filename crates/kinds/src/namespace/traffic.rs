//! What a network does with packets beside its devices, addresses and main routes: rules and further tables of routes, fixed
//! neighbours, queueing disciplines, packet filters (nftables, iptables), IPsec.
//! *Read from:* dumps over netlink(7), /proc/thread-self/net/ip_tables_names and its like, by a thread in the network, then in a new
//! one.
//! *Made again by:* nothing: what a new network does not have refuses the checkpoint.
//! *Lost:* what the kernel has learned itself: neighbours, tracked connections, metrics; sets of addresses (ipset), and what is set by
//! generic netlink (MPTCP endpoints, segment routing).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::net::{recv, send, socket_with};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::read_proc;

use super::bridge;
use crate::{Cause, Named, Result};

/// By what tells them apart, how people call them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic(BTreeMap<(&'static str, Vec<u8>), String>);

/// An object in a dump: what tells it from others, and its name; none for one that the kernel has made.
pub(super) type Take = fn(&[u8]) -> Option<(Vec<u8>, String)>;

/// A question to the kernel: the netlink protocol, the type of the message, its body; what the answers' type is, what they are.
pub(super) struct Dump {
    pub(super) what: &'static str,
    pub(super) protocol: Option<Protocol>,
    pub(super) request: u16,
    pub(super) body: &'static [u8],
    pub(super) answer: u16,
    pub(super) take: Take,
}

const NFT: u16 = 10 << 8;
const AF_INET6: u8 = 10;
const AF_BRIDGE: u8 = 7;
/// `NTF_PROXY` in a struct ndmsg.
const PROXY: u8 = 8;

const DUMPS: [Dump; 10] = [
    Dump { what: "a rule for routes", protocol: None, request: 34, body: &[0; 12], answer: 32, take: rule },
    Dump { what: "a table of routes", protocol: None, request: 26, body: &[0; 12], answer: 24, take: table },
    Dump { what: "a next hop", protocol: None, request: 106, body: &[0; 8], answer: 104, take: next_hop },
    Dump { what: "a fixed neighbour", protocol: None, request: 30, body: &[0; 12], answer: 28, take: neighbour },
    Dump {
        what: "a neighbour that it answers for",
        protocol: None,
        request: 30,
        body: &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, PROXY, 0],
        answer: 28,
        take: neighbour,
    },
    Dump { what: "a queueing discipline", protocol: None, request: 38, body: &[0; 20], answer: 36, take: discipline },
    Dump {
        what: "a label of addresses",
        protocol: None,
        request: 74,
        body: &[AF_INET6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        answer: 72,
        take: label,
    },
    Dump {
        what: "a table of nftables",
        protocol: Some(netlink::NETFILTER),
        request: NFT | 1,
        body: &[0; 4],
        answer: NFT,
        take: nft,
    },
    Dump {
        what: "an IPsec association",
        protocol: Some(netlink::XFRM),
        request: 0x12,
        body: &[0; 24],
        answer: 0x10,
        take: ipsec,
    },
    Dump {
        what: "an IPsec policy",
        protocol: Some(netlink::XFRM),
        request: 0x15,
        body: &[0; 64],
        answer: 0x13,
        take: ipsec,
    },
];

/// What belongs to devices, compared where `lo` has been set up or not.
const DEVICES: [Dump; 5] = [
    Dump { what: "a route", protocol: None, request: 26, body: &[0; 12], answer: 24, take: usual_route },
    Dump { what: "an address", protocol: None, request: 22, body: &[0; 8], answer: 20, take: device_address },
    Dump { what: "a network device", protocol: None, request: 18, body: &[0; 16], answer: 16, take: device },
    Dump {
        what: "a fixed address of a bridge",
        protocol: None,
        request: 30,
        body: &[AF_BRIDGE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        answer: 28,
        take: bridge::told,
    },
    // With `IFLA_EXT_MASK`: RTEXT_FILTER_BRVLAN.
    Dump {
        what: "a VLAN of a bridge",
        protocol: None,
        request: 18,
        body: &[AF_BRIDGE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 29, 0, 2, 0, 0, 0],
        answer: 16,
        take: bridge::vlans,
    },
];

/// Files that name the tables of iptables and its like.
const TABLES: [&str; 3] = ["ip_tables_names", "ip6_tables_names", "arp_tables_names"];

impl Traffic {
    /// Of the network that the calling thread is in.
    ///
    /// # Errors
    /// The kernel's; what it does not know is not there.
    pub fn look(proc: BorrowedFd<'_>) -> Result<Traffic> {
        let mut out = BTreeMap::new();
        for one in &DUMPS {
            for message in dump(one)? {
                if let Some((key, name)) = (one.take)(&message) {
                    out.insert((one.what, key), name);
                }
            }
        }
        for file in TABLES {
            let text = match read_proc(proc, &format!("thread-self/net/{file}")) {
                Err(e) if e.errno == Errno::NOENT => continue,
                // A nested network's: see `tables_are_hidden`.
                Err(e) if e.errno == Errno::ACCESS => continue,
                text => text?,
            };
            for name in text.split(|b| *b == b'\n').filter(|name| !name.is_empty()) {
                let shown = format!("{} in {file}", name.escape_ascii());
                out.insert(("a table of iptables", shown.clone().into_bytes()), shown);
            }
        }
        Ok(Traffic(out))
    }

    /// Whether nobody can say which tables of iptables there are: those of a network that was made before its users had ids belong to nobody
    /// there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tables_are_hidden(proc: BorrowedFd<'_>) -> Result<bool> {
        for file in TABLES {
            match read_proc(proc, &format!("thread-self/net/{file}")) {
                Err(e) if e.errno == Errno::ACCESS => return Ok(true),
                Err(e) if e.errno == Errno::NOENT => {}
                text => drop(text?),
            }
        }
        Ok(false)
    }

    /// Devices, their addresses, and main and local routes, of the network that the calling thread is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn devices() -> Result<Traffic> {
        let mut out = BTreeMap::new();
        for one in &DEVICES {
            for (key, name) in dump(one)?.iter().filter_map(|message| (one.take)(message)) {
                out.insert((one.what, key), name);
            }
        }
        Ok(Traffic(out))
    }

    /// Refuses what a new network does not have, and the absence of what it has.
    ///
    /// # Errors
    /// `Unsupported`, by name.
    pub fn as_new(&self, new: &Traffic) -> Result<()> {
        if let Some(((what, _), name)) = self.0.iter().find(|(key, _)| !new.0.contains_key(*key)) {
            return Err(Cause::unsupported(format!("{what} that the container has made itself ({name})")));
        }
        match new.0.iter().find(|(key, _)| !self.0.contains_key(*key)) {
            Some(((what, _), name)) => Err(Cause::unsupported(format!("{what} that was removed ({name})"))),
            None => Ok(()),
        }
    }
}

/// The bodies of all answers.
pub(super) fn dump(what: &Dump) -> Result<Vec<Vec<u8>>> {
    const HEAD: usize = 16;
    const REQUEST_DUMP: u16 = 0x301;
    let flags = SocketFlags::CLOEXEC;
    let socket = match socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, what.protocol) {
        Err(Errno::PROTONOSUPPORT) => return Ok(Vec::new()),
        socket => socket.named("socket", || format!("AF_NETLINK, {:?}", what.protocol))?,
    };
    let length = u32::try_from(HEAD + what.body.len()).unwrap_or(0);
    let mut request = Vec::with_capacity(HEAD + what.body.len());
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&what.request.to_ne_bytes());
    request.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(what.body);
    let shown = || format!("netlink, a dump of {}s", what.what);
    send(&socket, &request, SendFlags::empty()).named("sendto", shown)?;
    let mut out = Vec::new();
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        let (n, _) = recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty()).named("recvfrom", shown)?;
        let answers = answers(&buffer[..n], what.answer).map_err(|errno| SysError::new("recvfrom", shown(), errno));
        match answers {
            Ok((more, last)) => {
                out.extend(more);
                if last {
                    return Ok(out);
                }
            }
            // A kernel, or a family, without it.
            Err(e) if matches!(e.errno, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOENT | Errno::PROTONOSUPPORT) => {
                return Ok(Vec::new());
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// The bodies in one datagram, and whether it has the last.
fn answers(mut rest: &[u8], wanted: u16) -> std::result::Result<(Vec<Vec<u8>>, bool), Errno> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let mut out = Vec::new();
    while let Some(length) = word(rest, 0).and_then(|length| usize::try_from(length).ok()) {
        let message = rest.get(..length).filter(|m| m.len() >= 16).ok_or(Errno::BADMSG)?;
        let body = &message[16..];
        match half(message, 4) {
            Some(kind @ (DONE | ERROR)) => {
                let code = word(body, 0).map_or(0, u32::cast_signed);
                return match code {
                    0 if kind == DONE => Ok((out, true)),
                    code => Err(Errno::from_raw_os_error(code.saturating_neg())),
                };
            }
            Some(kind) if kind == wanted => out.push(body.to_vec()),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok((out, false))
}

/// The first attribute of this sort after a header.
pub(super) fn attribute(message: &[u8], header: usize, wanted: u16) -> Option<&[u8]> {
    attributes(message, header).find(|(number, _)| *number == wanted).map(|(_, value)| value)
}

/// The attributes after a header.
pub(super) fn attributes(message: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = message.get(header..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let found = (half(rest, 2)?, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

/// struct ifaddrmsg, without the times at which it was made and changed.
fn device_address(body: &[u8]) -> Option<(Vec<u8>, String)> {
    // Beside these: label, broadcast address, priority; flags but for those of a look for others that have it.
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const FLAGS: u16 = 8;
    const LOOKING: u32 = 0x40 | 4 | 2;
    let (mut key, index) = (parts(body, 8, &[ADDRESS, LOCAL, 3, 4, 9])?, word(body, 4)?);
    key[2] &= !LOOKING.to_ne_bytes()[0];
    let flags = attribute(body, 8, FLAGS).and_then(|flags| word(flags, 0)).unwrap_or(0);
    key.extend_from_slice(&(flags & !LOOKING).to_ne_bytes());
    let shown = address(attribute(body, 8, LOCAL).or_else(|| attribute(body, 8, ADDRESS)).unwrap_or_default());
    Some((key, format!("{shown}/{} of device {index}", body.get(1)?)))
}

/// struct ifinfomsg, and what can be set of any device.
fn device(body: &[u8]) -> Option<(Vec<u8>, String)> {
    // Beside these: address, length of its queue, alias, group, promiscuity, what it is, lies on, belongs to; another network that it leads to.
    const NAME: u16 = 3;
    const MTU: u16 = 4;
    /// `IFF_RUNNING`, `LOWER_UP`, `DORMANT`: the kernel's, and perhaps a little later.
    const STATE: u32 = 0x40 | 0x1_0000 | 0x2_0000;
    let mut key = parts(body, 16, &[NAME, MTU, 1, 13, 20, 27, 30, 5, 10, 37])?;
    key.extend(bridge::steady(attribute(body, 16, 18).unwrap_or_default()));
    let flags = word(body, 8)? & !STATE;
    key[8..12].copy_from_slice(&flags.to_ne_bytes());
    let name = attribute(body, 16, NAME)?;
    let (name, mtu) = (name.strip_suffix(&[0]).unwrap_or(name), attribute(body, 16, MTU).and_then(|mtu| word(mtu, 0)));
    Some((key, format!("{}, of {} bytes", name.escape_ascii(), mtu.unwrap_or(0))))
}

/// A header and some attributes behind it.
fn parts(body: &[u8], header: usize, wanted: &[u16]) -> Option<Vec<u8>> {
    let mut key = body.get(..header)?.to_vec();
    for number in wanted {
        key.extend(attribute(body, header, *number).into_iter().flatten());
        key.push(0);
    }
    Some(key)
}

/// struct fib_rule_hdr.
fn rule(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const PRIORITY: u16 = 6;
    let priority = attribute(body, 12, PRIORITY).and_then(|value| word(value, 0)).unwrap_or(0);
    Some((body.to_vec(), format!("{}, priority {priority}", family(body))))
}

/// The tables that belong to addresses: main and local.
const MAIN_AND_LOCAL: [u32; 2] = [254, 255];

/// The number of a route's table; of struct rtmsg.
fn table_of(body: &[u8]) -> Option<u32> {
    const TABLE: u16 = 15;
    let short = body.get(4).copied().map(u32::from)?;
    Some(attribute(body, 12, TABLE).and_then(|value| word(value, 0)).unwrap_or(short))
}

/// struct rtmsg.
fn table(body: &[u8]) -> Option<(Vec<u8>, String)> {
    let number = table_of(body).filter(|number| !MAIN_AND_LOCAL.contains(number))?;
    let name = format!("{}, table {number}", family(body));
    Some((name.clone().into_bytes(), name))
}

/// struct rtmsg, of the other tables, with everything that is said of it but for what the kernel counts.
fn usual_route(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const DESTINATION: u16 = 1;
    const CACHE: u16 = 12;
    const CLONED: u32 = 0x200;
    const ONLINK: u32 = 4;
    let (table, flags) = (table_of(body)?, word(body, 8)?);
    if !MAIN_AND_LOCAL.contains(&table) || flags & CLONED != 0 {
        return None;
    }
    let mut key = body.get(..8)?.to_vec();
    key.extend_from_slice(&(flags & ONLINK).to_ne_bytes());
    for (number, value) in attributes(body, 12) {
        key.extend_from_slice(&number.to_ne_bytes());
        if number == CACHE {
            // Of struct rta_cacheinfo: whether it ends.
            key.push(u8::from(word(value, 8).is_some_and(|expires| expires != 0)));
        } else {
            key.extend_from_slice(value);
        }
    }
    let to = address(attribute(body, 12, DESTINATION).unwrap_or_default());
    Some((key, format!("{}, {to}/{}, table {table}", family(body), body.get(1)?)))
}

/// struct nhmsg.
fn next_hop(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const ID: u16 = 1;
    let id = attribute(body, 8, ID).and_then(|value| word(value, 0)).unwrap_or(0);
    Some((body.to_vec(), format!("id {id}")))
}

/// struct ndmsg.
fn neighbour(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const PERMANENT: u16 = 0x80;
    const DESTINATION: u16 = 1;
    if half(body, 8)? & PERMANENT == 0 && body.get(10)? & PROXY == 0 {
        return None;
    }
    let name = address(attribute(body, 12, DESTINATION).unwrap_or_default());
    Some((format!("{name} {:?}", word(body, 4)).into_bytes(), name))
}

/// struct tcmsg.
fn discipline(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const KIND: u16 = 1;
    // What a device has that never queues, or is not up.
    const NONE: [&[u8]; 2] = [b"noqueue", b"noop"];
    let kind = attribute(body, 20, KIND)?;
    let kind = kind.strip_suffix(&[0]).unwrap_or(kind);
    if NONE.contains(&kind) {
        return None;
    }
    let name = kind.escape_ascii().to_string();
    Some((body.get(..16)?.iter().chain(kind).copied().collect(), name))
}

/// struct ifaddrlblmsg. Its last word counts changes.
fn label(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const ADDRESS: u16 = 1;
    let mut key = body.to_vec();
    key.get_mut(8..12)?.fill(0);
    let name = address(attribute(body, 12, ADDRESS).unwrap_or_default());
    Some((key, format!("{name}/{}", body.get(2)?)))
}

/// struct nfgenmsg.
fn nft(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const NAME: u16 = 1;
    let name = attribute(body, 4, NAME)?;
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    let shown = format!("{} {}", family(body), name.escape_ascii());
    Some((shown.clone().into_bytes(), shown))
}

fn ipsec(body: &[u8]) -> Option<(Vec<u8>, String)> {
    Some((body.to_vec(), "xfrm".to_owned()))
}

fn family(body: &[u8]) -> String {
    match body.first() {
        Some(1) => "inet".to_owned(),
        Some(2) => "IPv4".to_owned(),
        Some(&AF_INET6) => "IPv6".to_owned(),
        Some(other) => format!("family {other}"),
        None => String::new(),
    }
}

fn address(bytes: &[u8]) -> String {
    let four = || <[u8; 4]>::try_from(bytes).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b)));
    let six = || <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b)));
    four().or_else(six).map_or_else(|| format!("{bytes:?}"), |address| address.to_string())
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).expect("short");
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body, &[0; 3][..(4 - body.len() % 4) % 4]].concat()
    }

    #[test]
    fn answers_end_with_the_last_and_with_errors() {
        let two = [message(32, &[1; 5]), message(99, &[2]), message(32, &[3; 4])].concat();
        assert_eq!(answers(&two, 32), Ok((vec![vec![1; 5], vec![3; 4]], false)));
        assert_eq!(answers(&[two, message(3, &[0; 4])].concat(), 32).map(|a| a.1), Ok(true));
        assert_eq!(answers(&message(2, &(-95_i32).to_ne_bytes()), 32), Err(Errno::OPNOTSUPP));
        assert_eq!(answers(&message(3, &(-22_i32).to_ne_bytes()), 32), Err(Errno::INVAL));
        // Lengths that lie.
        assert_eq!(answers(&[4, 0, 0, 0, 32, 0, 0, 0], 32), Err(Errno::BADMSG));
        assert_eq!(answers(&[200, 0, 0, 0, 32, 0, 0, 0], 32), Err(Errno::BADMSG));
        assert!(answers(&[], 32).is_ok());
    }

    #[test]
    fn short_messages_are_no_objects_and_never_a_panic() {
        for take in DUMPS.iter().chain(&DEVICES).map(|dump| dump.take) {
            for length in 0..40 {
                take(&vec![0; length]);
                take(&vec![0xff; length]);
                take(&vec![5; length]);
            }
        }
        // A neighbour that the kernel has found itself.
        assert_eq!(neighbour(&[2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 1]), None);
    }

    #[test]
    fn what_is_new_and_what_is_gone_have_names() {
        let one = |name: &str| Traffic([(("a rule", name.as_bytes().to_vec()), name.to_owned())].into());
        assert!(one("1").as_new(&one("1")).is_ok());
        let said = |now: &Traffic, new: &Traffic| now.as_new(new).expect_err("differs").to_string();
        assert!(said(&one("1"), &Traffic::default()).contains("a rule that the container has made itself (1)"));
        assert!(said(&Traffic::default(), &one("2")).contains("a rule that was removed (2)"));
    }
}
