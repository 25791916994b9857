//! Devices, addresses and routes of a network, and whether its loopback is up.
//! *Read from:* /proc/PID/net.
//! *Made again by:* setting `lo` up by netlink (rtnetlink(7)); the kernel gives it its addresses and routes.
//! *Lost:* nothing. What a network has beside it: see `links`. A change of `lo` itself refuses the checkpoint.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_proc::{ParseError, net_config};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::read_proc;

use crate::{Cause, Named, Result};

/// A file of /proc/PID/net, what its lines are, and how they are read.
type Part = (&'static str, &'static str, fn(&[u8]) -> std::result::Result<Vec<Vec<u8>>, ParseError>);

const PARTS: [Part; 5] = [
    ("dev", "a network device", net_config::parse_devices),
    ("fib_trie", "an IPv4 address", net_config::parse_addresses),
    ("if_inet6", "an IPv6 address", net_config::parse_addresses6),
    ("route", "an IPv4 route", net_config::parse_routes),
    ("ipv6_route", "an IPv6 route", net_config::parse_routes6),
];

/// A network as a process sees it, by the places of [`PARTS`]: what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network(Vec<BTreeSet<Bytes>>);

impl Network {
    /// That of a process.
    ///
    /// # Errors
    /// What /proc says.
    pub fn of(proc: BorrowedFd<'_>, pid: i32) -> Result<Network> {
        Network::seen_by(proc, &pid.to_string())
    }

    /// That of the calling thread.
    ///
    /// # Errors
    /// What /proc says.
    pub fn here(proc: BorrowedFd<'_>) -> Result<Network> {
        Network::seen_by(proc, "thread-self")
    }

    fn seen_by(proc: BorrowedFd<'_>, task: &str) -> Result<Network> {
        let part = |(file, _, parse): &Part| match read_proc(proc, &format!("{task}/net/{file}")) {
            Ok(text) => Ok(parse(&text)?.into_iter().map(Bytes).collect()),
            // A kernel without IPv6.
            Err(e) if e.errno == Errno::NOENT => Ok(BTreeSet::new()),
            Err(e) => Err(e.into()),
        };
        PARTS.iter().map(part).collect::<Result<_>>().map(Network)
    }

    /// Refuses what is not as it was.
    ///
    /// # Errors
    /// `Unsupported`, by name.
    pub fn unchanged(&self, now: &Network) -> Result<()> {
        for (((_, what, _), then), now) in PARTS.iter().zip(&self.0).zip(&now.0) {
            if let Some(new) = now.difference(then).next() {
                return Err(Cause::unsupported(format!("{new}: {what} that the container has made itself")));
            }
            if let Some(gone) = then.difference(now).next() {
                return Err(Cause::unsupported(format!("{gone}: {what} that was removed")));
            }
        }
        Ok(())
    }
}

/// Sets `lo` of the caller's network up; the kernel gives it its addresses.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const LO: i32 = 1;
    const IFF_UP: u32 = 1;
    // struct ifinfomsg: family and type 0, index, flags, mask.
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&LO.to_ne_bytes());
    body[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    tell(RTM_NEWLINK, 0, &body, "RTM_NEWLINK lo up")
}

/// Has the network that the calling thread is in do something (rtnetlink(7)).
///
/// # Errors
/// The kernel's.
pub(super) fn tell(kind: u16, flags: u16, body: &[u8], what: &str) -> Result<()> {
    const REQUEST_ACK: u16 = 1 | 4;
    const HEAD: usize = 16;
    let socket =
        // Protocol 0 is NETLINK_ROUTE.
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .named("socket", || "AF_NETLINK, SOCK_RAW, NETLINK_ROUTE".into())?;
    let shown = || format!("netlink, {what}");
    // struct nlmsghdr: length, type, flags, sequence, port.
    let mut request = Vec::with_capacity(HEAD + body.len());
    request.extend_from_slice(&u32::try_from(HEAD + body.len()).unwrap_or(0).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(body);
    send(&socket, &request, SendFlags::empty()).named("sendto", shown)?;
    let mut answer = [0_u8; 4096];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty()).named("recvfrom", shown)?;
    // struct nlmsghdr, then struct nlmsgerr, whose first word is the negative errno.
    let errno = answer.get(16..length.min(20)).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match errno {
        Some(0) => Ok(()),
        Some(e) => Err(SysError::said("sendto", shown(), e.saturating_neg()).into()),
        None => Err(SysError::new("recvfrom", shown(), Errno::BADMSG).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_named() {
        let set = |all: &[&str]| all.iter().map(|s| Bytes(s.as_bytes().to_vec())).collect::<BTreeSet<_>>();
        let network = |addresses: &[&str]| Network(vec![set(&["lo"]), set(addresses), set(&[]), set(&[]), set(&[])]);
        let then = network(&["127.0.0.1/32"]);
        assert!(then.unchanged(&then).is_ok());
        let said = |now: &Network| then.unchanged(now).expect_err("changed").to_string();
        assert!(said(&network(&["10.0.0.1/32", "127.0.0.1/32"])).contains("10.0.0.1/32: an IPv4 address that the"));
        assert!(said(&network(&[])).contains("removed"));
    }
}
