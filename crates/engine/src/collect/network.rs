//! What a container has made of its own network since it began to run: devices, addresses and routes are not in an image, and what is
//! not in an image refuses the checkpoint.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_kinds::{Cause, Result};
use yendor_proc::{ParseError, net_config};
use yendor_sys::Errno;
use yendor_task::tree::read_proc;

/// A file of /proc/PID/net, what its lines are, and how they are read.
type Part = (&'static str, &'static str, fn(&[u8]) -> std::result::Result<Vec<Vec<u8>>, ParseError>);

const PARTS: [Part; 5] = [
    ("dev", "a network device", net_config::parse_devices),
    ("fib_trie", "an IPv4 address", net_config::parse_addresses),
    ("if_inet6", "an IPv6 address", net_config::parse_addresses6),
    ("route", "an IPv4 route", net_config::parse_routes),
    ("ipv6_route", "an IPv6 route", net_config::parse_routes6),
];

/// A network as a process sees it: by the places of [`PARTS`], what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network(Vec<BTreeSet<Bytes>>);

impl Network {
    /// That of a process.
    ///
    /// # Errors
    /// What /proc says.
    pub fn of(proc: BorrowedFd<'_>, pid: i32) -> Result<Network> {
        let part = |(file, _, parse): &Part| match read_proc(proc, &format!("{pid}/net/{file}")) {
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
