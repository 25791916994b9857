//! What a network has beside its loopback: devices (dummy, veth with both ends in it, vlan,
//! macvlan, bridges with their ports: see `bridge`), addresses, main routes.
//! *Read from:* dumps over netlink(7) (rtnetlink(7)).
//! *Made again by:* `RTM_NEWLINK` with the same numbers, `RTM_NEWADDR`, `RTM_NEWROUTE`. A checkpoint tries it in a new network: what does not
//! come out the same there refuses by name, and so does a container's own network with any of this whose loopback is down.
//! *Lost:* counters; IPv6 addresses do not look again for others that have them (`nodad`); of a device further names, programs of XDP, numbers of queues,
//! sizes of offloads, what ethtool(8) sets, multicast addresses that somebody has added; of its settings those that are not what the kernel gave
//! it, but what it gives a network without devices.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::{Errno, SysError};

use super::bridge::{self, Port};
use super::network::{Network, loopback_up, tell};
use super::traffic::{Dump, Traffic, attribute, dump, half, word};
use crate::{Cause, Result};

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Devices, each after the one that it lies on.
    pub links: Vec<Link>,
    /// Addresses that do not come with a device.
    pub addresses: Vec<Message>,
    /// Routes that do not come with an address.
    pub routes: Vec<Message>,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: Bytes,
    /// What it is.
    pub kind: Kind,
    /// Its address.
    pub address: Bytes,
    /// The largest packet.
    pub mtu: u32,
    /// How many packets may wait.
    pub queue: u32,
    /// `IFF_UP` and others that can be set.
    pub flags: u32,
    /// Of a bridge, `IFLA_BR_*` by number.
    #[serde(default)]
    pub settings: Vec<(u16, Bytes)>,
    /// The bridge that it belongs to.
    #[serde(default)]
    pub port: Option<Port>,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It leads nowhere.
    Dummy,
    /// It leads to its ports. One without an address gets that of a port.
    Bridge,
    /// It leads to the device with this number.
    Veth(u32),
    /// A virtual LAN.
    Vlan {
        /// The device that it lies on.
        on: u32,
        /// Its id.
        id: u16,
        /// The ethernet protocol, in the order of the network.
        protocol: u16,
    },
    /// Another address of a device.
    Macvlan {
        /// The device that it lies on.
        on: u32,
        /// `MACVLAN_MODE_*`.
        mode: u32,
    },
}

/// A message of rtnetlink(7): the structure that it begins with, and attributes by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// struct ifaddrmsg or rtmsg.
    pub header: Bytes,
    /// What follows.
    pub attributes: Vec<(u16, Bytes)>,
}

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
/// `NLM_F_CREATE` with `NLM_F_EXCL`, and with `NLM_F_APPEND`.
const CREATE: u16 = 0x600;
const APPEND: u16 = 0xc00;
const NESTED: u16 = 0x8000;

const LINKS: Dump =
    Dump { what: "a network device", protocol: None, request: 18, body: &[0; 16], answer: NEWLINK, take: |_| None };
const ADDRESSES: Dump =
    Dump { what: "an address", protocol: None, request: 22, body: &[0; 8], answer: NEWADDR, take: |_| None };
const ROUTES: Dump =
    Dump { what: "a route", protocol: None, request: 26, body: &[0; 12], answer: NEWROUTE, take: |_| None };

/// Bytes of struct ifinfomsg, ifaddrmsg and rtmsg.
const IFINFO: usize = 16;
const IFADDR: usize = 8;
const RTMSG: usize = 12;
/// `IFA_ADDRESS`, `LOCAL`, `LABEL`, `BROADCAST`, `FLAGS`, `RT_PRIORITY`.
const OF_ADDRESS: [u16; 6] = [1, 2, 3, 4, IFA_FLAGS, 9];
const IFA_FLAGS: u16 = 8;
/// `RTA_DST`, `SRC`, `OIF`, `GATEWAY`, `PRIORITY`, `PREFSRC`, `METRICS`, `MULTIPATH`, `TABLE`, `VIA`, `PREF`.
const OF_ROUTE: [u16; 11] = [1, 2, 4, 5, 6, 7, 8, 9, 15, 18, 20];
/// `IFF_UP`, `NOARP`, `PROMISC`, `ALLMULTI`, `MULTICAST`.
const SETTABLE: u32 = 1 | 0x80 | 0x100 | 0x200 | 0x1000;
const MOST: usize = 4096;
/// How long a new network may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

impl Record {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Record::default()
    }
}

/// That of the network that the calling thread is in; what is not known is left out.
///
/// # Errors
/// The kernel's.
pub fn look() -> Result<Record> {
    let mut links: Vec<Link> = dump(&LINKS)?.iter().filter_map(|body| link(body)).collect();
    // What lies on another one comes after it.
    links.sort_by_key(|link| (link.kind.on().is_some(), link.index));
    let lowest = |of: u32| ports(&links).filter(|(_, port)| port.of == of).map(|(link, _)| link.address.clone()).min();
    let follows = |link: &Link| link.kind == Kind::Bridge && lowest(link.index).as_ref() == Some(&link.address);
    let follow: Vec<bool> = links.iter().map(follows).collect();
    links.iter_mut().zip(follow).filter(|(_, follows)| *follows).for_each(|(link, _)| link.address.0.clear());
    let addresses = dump(&ADDRESSES)?.iter().filter_map(|body| address(body)).collect();
    let routes = dump(&ROUTES)?.iter().filter_map(|body| route(body)).collect();
    Ok(Record { links, addresses, routes })
}

/// The ports of bridges, in the order of those.
fn ports(links: &[Link]) -> impl Iterator<Item = (&Link, &Port)> {
    let mut all: Vec<_> = links.iter().filter_map(|link| Some((link, link.port.as_ref()?))).collect();
    all.sort_by_key(|(_, port)| (port.of, port.place));
    all.into_iter()
}

/// What a network is like beside what is recorded.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// Whether its loopback is up.
    pub loopback: bool,
    /// Whether the kernel still looks for others that have an address of its own: its routes come after that.
    pub settles: bool,
}

/// That of the network that the calling thread is in.
///
/// # Errors
/// The kernel's.
pub fn state() -> Result<State> {
    const TENTATIVE: u32 = 0x40;
    let is_up = |body: &Vec<u8>| word(body, 4) == Some(1) && word(body, 8).is_some_and(|flags| flags & 1 == 1);
    let is_tentative = |body: &Vec<u8>| {
        attribute(body, IFADDR, IFA_FLAGS).and_then(|value| word(value, 0)).is_some_and(|flags| flags & TENTATIVE != 0)
    };
    Ok(State { loopback: dump(&LINKS)?.iter().any(is_up), settles: dump(&ADDRESSES)?.iter().any(is_tentative) })
}

/// Tries it in a new network, which the calling thread is in afterwards. `now`: what there must be then.
///
/// # Errors
/// `Unsupported`, by name, for what is not the same there; `Passing` while the network that it is of settles.
pub fn again(record: &Record, state: State, proc: BorrowedFd<'_>, now: (&Network, &Traffic)) -> Result<()> {
    if state.loopback {
        loopback_up()?;
    }
    let made = rebuild(record);
    // A bridge is told of its ports, and told to the rest, a second later each.
    let bridges = record.links.iter().any(|link| link.kind == Kind::Bridge);
    let until = Instant::now() + if bridges { 3 * PATIENCE } else { PATIENCE };
    loop {
        let same = Network::here(proc)?.unchanged(now.0).and_then(|()| now.1.as_new(&Traffic::devices()?));
        match same {
            Ok(()) => return made,
            Err(e) if state.settles => return Err(Cause::passing(format!("{e}, while an IPv6 address is tentative"))),
            // The kernel gives devices what belongs to them a little later.
            Err(_) if made.is_ok() && !record.links.is_empty() && Instant::now() < until => std::thread::sleep(PAUSE),
            Err(e) => return Err(e),
        }
    }
}

/// Makes it again, in the network that the calling thread is in.
///
/// # Errors
/// The kernel's; `Corrupt` for what cannot be.
pub fn rebuild(record: &Record) -> Result<()> {
    check(record)?;
    let Record { links, addresses, routes } = record;
    let mut there: Vec<u32> = Vec::new();
    for link in links {
        if there.contains(&link.index) {
            continue;
        }
        let mut other = None;
        if let Kind::Veth(peer) = link.kind {
            let found = links.iter().find(|other| other.index == peer && other.kind == Kind::Veth(link.index));
            other = Some(found.ok_or_else(|| Cause::corrupt(format!("{}: a veth without its other end", link.name)))?);
        }
        tell(NEWLINK, CREATE, &link.message(other), &format!("a network device, {}", link.name))?;
        there.push(link.index);
        there.extend(other.map(|other| other.index));
    }
    join_bridges(links)?;
    for link in links {
        let mut body = about(link.index);
        body[8..12].copy_from_slice(&link.flags.to_ne_bytes());
        body[12..16].copy_from_slice(&SETTABLE.to_ne_bytes());
        tell(NEWLINK, 0, &body, &format!("flags of {}", link.name))?;
    }
    for (number, (message, how)) in [(NEWADDR, (addresses, CREATE)), (NEWROUTE, (routes, APPEND))] {
        for one in message {
            let mut body = one.header.0.clone();
            one.attributes.iter().for_each(|(number, value)| put(&mut body, *number, &value.0));
            match tell(number, how, &body, if number == NEWADDR { "an address" } else { "a route" }) {
                // It came with its device.
                Err(Cause::Sys(SysError { errno: Errno::EXIST, .. })) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Puts ports into their bridges, whose size follows theirs unless it was set.
fn join_bridges(links: &[Link]) -> Result<()> {
    const MASTER: u16 = 10;
    for (link, port) in ports(links) {
        let mut body = about(link.index);
        put(&mut body, MASTER, &port.of.to_ne_bytes());
        tell(NEWLINK, 0, &body, &format!("{}, a port of a bridge", link.name))?;
        let mut settings = Vec::new();
        port.settings.iter().for_each(|(number, value)| put(&mut settings, *number, &value.0));
        let mut slave = Vec::new();
        put(&mut slave, 4, b"bridge\0");
        put(&mut slave, 5 | NESTED, &settings);
        let mut body = about(link.index);
        put(&mut body, 18 | NESTED, &slave);
        tell(NEWLINK, 0, &body, &format!("settings of {}, a port of a bridge", link.name))?;
    }
    for bridge in links.iter().filter(|link| link.kind == Kind::Bridge) {
        let least = ports(links).filter(|(_, port)| port.of == bridge.index).map(|(link, _)| link.mtu).min();
        if least.is_some_and(|least| least != bridge.mtu) {
            let mut body = about(bridge.index);
            put(&mut body, 4, &bridge.mtu.to_ne_bytes());
            tell(NEWLINK, 0, &body, &format!("the size of {}", bridge.name))?;
        }
    }
    Ok(())
}

/// struct ifinfomsg.
fn about(index: u32) -> Vec<u8> {
    let mut body = vec![0; IFINFO];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body
}

fn check(record: &Record) -> Result<()> {
    let Record { links, addresses, routes } = record;
    let lies = |all: &[Message], header: usize, known: &[u16]| {
        let fine = |m: &Message| {
            m.header.0.len() == header
                && m.attributes.iter().all(|(n, value)| known.contains(n) && value.0.len() <= 1024)
        };
        all.len() > MOST || !all.iter().all(fine)
    };
    let bad_link = |link: &Link| {
        let Link { index, name, kind, address, mtu: _, queue: _, flags, settings, port } = link;
        *index < 2
            || *index > i32::MAX.cast_unsigned()
            || name.0.is_empty()
            || name.0.len() > 15
            || name.0.contains(&0)
            || address.0.len() > 32
            || flags & !SETTABLE != 0
            || !(settings.is_empty() || *kind == Kind::Bridge && bridge::are_settings(settings, false))
            || port.as_ref().is_some_and(|port| !bridge::are_settings(&port.settings, true))
    };
    if links.len() > MOST
        || links.iter().any(bad_link)
        || lies(addresses, IFADDR, &OF_ADDRESS)
        || lies(routes, RTMSG, &OF_ROUTE)
    {
        return Err(Cause::corrupt("a network with devices, addresses or routes that cannot be"));
    }
    Ok(())
}

impl Kind {
    /// The device that it lies on.
    fn on(self) -> Option<u32> {
        match self {
            Kind::Dummy | Kind::Veth(_) | Kind::Bridge => None,
            Kind::Vlan { on, .. } | Kind::Macvlan { on, .. } => Some(on),
        }
    }
}

impl Link {
    /// struct ifinfomsg and attributes; `other`: of a veth.
    fn message(&self, other: Option<&Link>) -> Vec<u8> {
        let mut out = self.base();
        if let Some(on) = self.kind.on() {
            put(&mut out, 5, &on.to_ne_bytes());
        }
        let mut data = Vec::new();
        let name: &[u8] = match self.kind {
            Kind::Dummy => b"dummy",
            Kind::Bridge => {
                self.settings.iter().for_each(|(number, value)| put(&mut data, *number, &value.0));
                b"bridge"
            }
            Kind::Veth(_) => {
                put(&mut data, 1, &other.map(Link::base).unwrap_or_default());
                b"veth"
            }
            Kind::Vlan { on: _, id, protocol } => {
                put(&mut data, 1, &id.to_ne_bytes());
                put(&mut data, 5, &protocol.to_ne_bytes());
                b"vlan"
            }
            Kind::Macvlan { on: _, mode } => {
                put(&mut data, 1, &mode.to_ne_bytes());
                b"macvlan"
            }
        };
        let mut about = Vec::new();
        put(&mut about, 1, name);
        if !data.is_empty() {
            put(&mut about, 2 | NESTED, &data);
        }
        put(&mut out, 18 | NESTED, &about);
        out
    }

    fn base(&self) -> Vec<u8> {
        let mut out = about(self.index);
        put(&mut out, 3, &[&self.name.0[..], &[0]].concat());
        if self.kind != Kind::Bridge || !self.address.0.is_empty() {
            put(&mut out, 1, &self.address.0);
        }
        put(&mut out, 4, &self.mtu.to_ne_bytes());
        put(&mut out, 13, &self.queue.to_ne_bytes());
        out
    }
}

/// An attribute, and what makes it a whole number of words.
fn put(out: &mut Vec<u8>, number: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(4);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&number.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// struct ifinfomsg; none for `lo`, and for what is not known.
fn link(body: &[u8]) -> Option<Link> {
    let index = word(body, 4)?;
    let number = |wanted: u16| attribute(body, IFINFO, wanted).and_then(|value| word(value, 0));
    // The other network, where what it leads to is in another one.
    if index == 1 || attribute(body, IFINFO, 37).is_some() {
        return None;
    }
    let about = attribute(body, IFINFO, 18)?;
    let data = attribute(about, 0, 2).unwrap_or_default();
    let on = number(5);
    let port = match number(10) {
        Some(master) => Some(bridge::port(about, master)?),
        None => None,
    };
    let kind = match attribute(about, 0, 1)?.strip_suffix(&[0])? {
        b"dummy" => Kind::Dummy,
        b"bridge" => Kind::Bridge,
        b"veth" => Kind::Veth(on?),
        b"vlan" => {
            Kind::Vlan { on: on?, id: half(attribute(data, 0, 1)?, 0)?, protocol: half(attribute(data, 0, 5)?, 0)? }
        }
        b"macvlan" => Kind::Macvlan { on: on?, mode: word(attribute(data, 0, 1)?, 0)? },
        _ => return None,
    };
    let name = attribute(body, IFINFO, 3)?;
    Some(Link {
        index,
        name: Bytes(name.strip_suffix(&[0]).unwrap_or(name).to_vec()),
        kind,
        address: Bytes(attribute(body, IFINFO, 1).unwrap_or_default().to_vec()),
        mtu: number(4)?,
        queue: number(13)?,
        flags: word(body, 8)? & SETTABLE,
        settings: if kind == Kind::Bridge { bridge::settings(data) } else { Vec::new() },
        port,
    })
}

/// The attributes of `known` numbers.
fn attributes(body: &[u8], header: usize, known: &[u16]) -> Vec<(u16, Bytes)> {
    known.iter().filter_map(|n| Some((*n, Bytes(attribute(body, header, *n)?.to_vec())))).collect()
}

/// struct ifaddrmsg; none for those of `lo` that come with it, and for those that end.
fn address(body: &[u8]) -> Option<Message> {
    const PERMANENT: u32 = 0x80;
    const NODAD: u32 = 2;
    /// `MANAGETEMPADDR`, `NOPREFIXROUTE`, `MCAUTOJOIN`.
    const KEPT: u32 = 0x100 | 0x200 | 0x400;
    const USUAL: [&[u8]; 2] = [&[127, 0, 0, 1], &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]];
    let own = attribute(body, IFADDR, 1)?;
    let flags = attribute(body, IFADDR, IFA_FLAGS).and_then(|value| word(value, 0))?;
    if word(body, 4)? == 1 && USUAL.contains(&own) || flags & PERMANENT == 0 {
        return None;
    }
    let six = *body.first()? == 10;
    let flags = flags & KEPT | if six { NODAD } else { 0 };
    let mut header = body.get(..IFADDR)?.to_vec();
    header[2] = u8::try_from(flags & 0xff).ok()?;
    let mut attributes = attributes(body, IFADDR, &OF_ADDRESS);
    attributes
        .iter_mut()
        .filter(|(n, _)| *n == IFA_FLAGS)
        .for_each(|(_, value)| value.0 = flags.to_ne_bytes().to_vec());
    Some(Message { header: Bytes(header), attributes })
}

/// struct rtmsg; none for those of the kernel, and of other tables.
fn route(body: &[u8]) -> Option<Message> {
    const MAIN: u8 = 254;
    const KERNEL: u8 = 2;
    const CLONED: u32 = 0x200;
    const ONLINK: u32 = 4;
    let (table, protocol, flags) = (*body.get(4)?, *body.get(5)?, word(body, 8)?);
    if table != MAIN || protocol == KERNEL || flags & CLONED != 0 {
        return None;
    }
    let mut header = body.get(..RTMSG)?.to_vec();
    header[8..12].copy_from_slice(&(flags & ONLINK).to_ne_bytes());
    Some(Message { header: Bytes(header), attributes: attributes(body, RTMSG, &OF_ROUTE) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_messages_are_nothing_and_never_a_panic() {
        for length in 0..64 {
            for byte in [0, 5, 0xff] {
                let body = vec![byte; length];
                let _ = (link(&body), address(&body), route(&body));
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let link = Link {
            index: 2,
            name: Bytes(b"d".to_vec()),
            kind: Kind::Dummy,
            address: Bytes(vec![2; 6]),
            mtu: 1500,
            queue: 1000,
            flags: 1,
            settings: Vec::new(),
            port: None,
        };
        let with = |link: Link| Record { links: vec![link], ..Record::default() };
        assert!(check(&with(link.clone())).is_ok());
        for bad in [
            Link { index: 1, ..link.clone() },
            Link { index: u32::MAX, ..link.clone() },
            Link { name: Bytes(Vec::new()), ..link.clone() },
            Link { name: Bytes(b"a name that is too long".to_vec()), ..link.clone() },
            Link { flags: 2, ..link.clone() },
            Link { settings: vec![(2, Bytes(vec![0; 4]))], ..link.clone() },
            Link { kind: Kind::Bridge, settings: vec![(10, Bytes(vec![0; 4]))], ..link.clone() },
            Link { port: Some(Port { of: 3, place: 1, settings: vec![(1, Bytes(vec![3]))] }), ..link.clone() },
        ] {
            assert!(check(&with(bad)).is_err());
        }
        let message = |header: usize, number| Message {
            header: Bytes(vec![0; header]),
            attributes: vec![(number, Bytes(vec![0; 4]))],
        };
        assert!(check(&Record { addresses: vec![message(8, 1)], ..Record::default() }).is_ok());
        for (header, number) in [(7, 1), (12, 1), (8, 5)] {
            assert!(check(&Record { addresses: vec![message(header, number)], ..Record::default() }).is_err());
        }
        assert!(check(&Record { routes: vec![message(12, 22)], ..Record::default() }).is_err(), "RTA_ENCAP");
        assert!(rebuild(&with(Link { kind: Kind::Veth(7), ..link })).is_err(), "without its other end");
    }
}
