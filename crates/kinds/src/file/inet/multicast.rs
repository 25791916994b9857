//! The multicast groups that a UDP socket is in, and from whom it hears there (ip(7), RFC 3678).
//! *Read from:* the groups of all interfaces in /proc/net/igmp and igmp6; `MCAST_MSFILTER` tells whether a socket is in one.
//! *Made again by:* `MCAST_JOIN_GROUP` on the interface of that name, `MCAST_MSFILTER`.
//! *Lost:* nothing.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_proc::multicast::{parse_igmp, parse_igmp6};
use yendor_sys::{Errno, inet};

use crate::file::Gather;
use crate::file::gather::is_gone;
use crate::{Cause, Named, Result};

/// A membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The name of the interface.
    pub device: Bytes,
    /// The group.
    pub group: IpAddr,
    /// Whether it hears everybody but the sources; else only the sources.
    pub excludes: bool,
    /// Those sources.
    pub sources: Vec<IpAddr>,
}

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const IP: i32 = 0;
const IPV6: i32 = 41;
const EXCLUDE: u32 = 0;
const INCLUDE: u32 = 1;
/// Bytes of `struct sockaddr_storage`.
const ADDRESS: usize = 128;
/// Where the group, the mode, the number of sources and the sources lie in `struct group_filter`.
const GROUP: usize = 8;
const MODE: usize = GROUP + ADDRESS;
const COUNT: usize = MODE + 4;
const SOURCES: usize = COUNT + 4;
/// As many sources as are asked for; the kernel's limit is 10 unless somebody raised it.
const MOST: usize = 512;

/// The groups of a socket.
///
/// # Errors
/// `Unsupported` for more sources than we ask for.
pub fn collect(fd: BorrowedFd<'_>, gather: &Gather<'_>) -> Result<Vec<Record>> {
    let mut out = Vec::new();
    let text = |name: &str| match gather.read(&format!("thread-self/net/{name}")) {
        // A kernel without multicast.
        Err(Cause::Sys(e)) if is_gone(&e) => Ok(None),
        text => text.map(Some),
    };
    let mut all = Vec::new();
    if let Some(text) = text("igmp")? {
        all.extend(parse_igmp(&text)?.into_iter().map(|m| (m.index, m.device, IpAddr::V4(m.group))));
    }
    if let Some(text) = text("igmp6")? {
        all.extend(parse_igmp6(&text)?.into_iter().map(|m| (m.index, m.device, IpAddr::V6(m.group))));
    }
    for (index, device, group) in all {
        let mut filter = vec![0; SOURCES + MOST * ADDRESS];
        filter[..GROUP + ADDRESS].copy_from_slice(&request(index, group));
        filter[COUNT..SOURCES].copy_from_slice(&u32::try_from(MOST).unwrap_or(0).to_ne_bytes());
        match inet::get(fd, level(group), MCAST_MSFILTER, &mut filter) {
            Ok(_) => {}
            // Not in the group; an IPv4 socket asked about IPv6.
            Err(e) if [Errno::ADDRNOTAVAIL, Errno::NOPROTOOPT, Errno::OPNOTSUPP].contains(&e.errno) => continue,
            Err(e) => return Err(e.into()),
        }
        let word = |at: usize| filter.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let count = usize::try_from(word(COUNT)).unwrap_or(usize::MAX);
        let sources = (0..count.min(MOST)).map(|n| read(&filter[SOURCES + n * ADDRESS..][..ADDRESS], group));
        let sources: Option<Vec<IpAddr>> = sources.collect();
        let sources = sources.filter(|s| s.len() == count);
        let sources = sources.ok_or_else(|| Cause::unsupported(format!("{count} sources of the group {group}")))?;
        out.push(Record { device: Bytes(device), group, excludes: word(MODE) == EXCLUDE, sources });
    }
    // The kernel lists those first that were joined last.
    out.sort_by(|a, b| (&a.device.0, a.group).cmp(&(&b.device.0, b.group)));
    Ok(out)
}

/// Joins a group.
///
/// # Errors
/// `ENODEV` where there is no interface of that name, else the kernel's; `Corrupt` for what is no group.
pub fn rebuild(fd: BorrowedFd<'_>, record: &Record) -> Result<()> {
    let Record { device, group, excludes, sources } = record;
    if !group.is_multicast() || sources.iter().any(|s| s.is_ipv4() != group.is_ipv4()) || sources.len() > MOST {
        return Err(Cause::corrupt(format!("a membership of {group} with {} sources", sources.len())));
    }
    let name = std::str::from_utf8(&device.0).map_err(|_| Cause::corrupt(format!("the interface {device}")))?;
    let index = rustix::net::netdevice::name_to_index(fd, name)
        .named("ioctl", || format!("SIOCGIFINDEX, {device}, for {group}"))?;
    let mut filter = request(index, *group);
    inet::set(fd, level(*group), MCAST_JOIN_GROUP, &filter)?;
    if *excludes && sources.is_empty() {
        return Ok(());
    }
    filter.extend_from_slice(&if *excludes { EXCLUDE } else { INCLUDE }.to_ne_bytes());
    filter.extend_from_slice(&u32::try_from(sources.len()).unwrap_or(0).to_ne_bytes());
    sources.iter().for_each(|source| filter.extend_from_slice(&address(*source)));
    Ok(inet::set(fd, level(*group), MCAST_MSFILTER, &filter)?)
}

fn level(group: IpAddr) -> i32 {
    if group.is_ipv4() { IP } else { IPV6 }
}

/// `struct group_req`.
fn request(index: u32, group: IpAddr) -> Vec<u8> {
    let mut out = index.to_ne_bytes().to_vec();
    out.resize(GROUP, 0);
    out.extend_from_slice(&address(group));
    out
}

/// `struct sockaddr_storage`.
fn address(ip: IpAddr) -> [u8; ADDRESS] {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let mut out = [0; ADDRESS];
    match ip {
        IpAddr::V4(ip) => {
            out[..2].copy_from_slice(&AF_INET.to_ne_bytes());
            out[4..8].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
            out[8..24].copy_from_slice(&ip.octets());
        }
    }
    out
}

/// The address in it, of the family of the group.
fn read(bytes: &[u8], group: IpAddr) -> Option<IpAddr> {
    Some(match group {
        IpAddr::V4(_) => IpAddr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?),
        IpAddr::V6(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?),
    })
}
