//! Bridges of a network, and devices that are ports of one.
//! *Read from:* `IFLA_LINKINFO` of each device (rtnetlink(7)); for the comparison, too, the addresses that a bridge was told and the VLANs of its ports.
//! *Made again by:* the bridge with its settings, then `IFLA_MASTER` of each port, in their order, then the port's own settings.
//! *Lost:* addresses that it has learned, and groups (`bridge mdb`) that it was told; numbers of ports beside their order; that the cost of a port follows its speed; that
//! the address of one without ports is to follow its first. Refused: fixed addresses and VLANs that do not come with a port, and a port that is not in the state
//! that a new one gets: with spanning tree it gets there by and by.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;

use super::traffic::{attribute, attributes, half, word};

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The number of the bridge.
    pub of: u32,
    /// Its place among the ports.
    pub place: u16,
    /// `IFLA_BRPORT_*`, by number.
    pub settings: Vec<(u16, Bytes)>,
}

/// `IFLA_INFO_DATA`, `SLAVE_KIND`, `SLAVE_DATA`.
const DATA: u16 = 2;
const SLAVE_KIND: u16 = 4;
const SLAVE_DATA: u16 = 5;
/// `IFLA_BR_FORWARD_DELAY` to `GROUP_FWD_MASK`, `MCAST_ROUTER` to `MCAST_QUERIER`, `MCAST_HASH_MAX` to `VLAN_DEFAULT_PVID`, `VLAN_STATS_ENABLED` to
/// `MULTI_BOOLOPT`, `FDB_MAX_LEARNED`.
const OF_BRIDGE: [std::ops::RangeInclusive<u16>; 5] = [1..=9, 22..=25, 27..=39, 41..=46, 49..=49];
const VLAN_FILTERING: u16 = 7;
const MULTI_BOOLOPT: u16 = 46;
/// `IFLA_BRPORT_PRIORITY` to `PROXYARP`, `PROXYARP_WIFI`, `MULTICAST_ROUTER`, `MCAST_FLOOD` to `ISOLATED`, `MCAST_EHT_HOSTS_LIMIT`, `LOCKED`, `MAB`,
/// `NEIGH_VLAN_SUPPRESS`.
const OF_PORT: [std::ops::RangeInclusive<u16>; 7] = [2..=10, 12..=12, 25..=25, 27..=33, 37..=37, 39..=40, 43..=43];
/// What is the kernel's: `IFLA_BR_ROOT_ID` to `GC_TIMER`, `MCAST_QUERIER_STATE`, `FDB_N_LEARNED`.
const MOVES_IN_BRIDGE: [std::ops::RangeInclusive<u16>; 2] = [10..=19, 47..=48];
/// `IFLA_BRPORT_ROOT_ID` to `HOLD_TIMER`, `MCAST_EHT_HOSTS_CNT`, `MCAST_N_GROUPS`.
const MOVES_IN_PORT: [std::ops::RangeInclusive<u16>; 3] = [13..=23, 38..=38, 41..=41];

fn is_in(ranges: &[std::ops::RangeInclusive<u16>], number: u16) -> bool {
    ranges.iter().any(|range| range.contains(&number))
}

fn chosen(data: &[u8], ranges: &[std::ops::RangeInclusive<u16>]) -> Vec<(u16, Bytes)> {
    attributes(data, 0).filter(|(n, _)| is_in(ranges, *n)).map(|(n, value)| (n, Bytes(value.to_vec()))).collect()
}

/// The settings in a bridge's `IFLA_INFO_DATA`.
pub(super) fn settings(data: &[u8]) -> Vec<(u16, Bytes)> {
    let mut all = chosen(data, &OF_BRIDGE);
    // What is on, of what a kernel may not know that it is off.
    all.retain_mut(|(number, value)| match (*number, word(&value.0, 0)) {
        (MULTI_BOOLOPT, Some(on)) => {
            value.0 = [on, on].iter().flat_map(|word| word.to_ne_bytes()).collect();
            on != 0
        }
        (VLAN_FILTERING, _) => value.0 != [0],
        _ => true,
    });
    all
}

/// What a port of `master` says in its `IFLA_LINKINFO`; none for one of something else than a bridge.
pub(super) fn port(about: &[u8], master: u32) -> Option<Port> {
    const NUMBER: u16 = 18;
    if attribute(about, 0, SLAVE_KIND)?.strip_suffix(&[0])? != b"bridge" {
        return None;
    }
    let data = attribute(about, 0, SLAVE_DATA)?;
    Some(Port { of: master, place: half(attribute(data, 0, NUMBER)?, 0)?, settings: chosen(data, &OF_PORT) })
}

/// Whether settings are those of a bridge, or of a port.
pub(super) fn are_settings(all: &[(u16, Bytes)], of_port: bool) -> bool {
    let ranges: &[_] = if of_port { &OF_PORT } else { &OF_BRIDGE };
    all.len() <= 64 && all.iter().all(|(number, value)| is_in(ranges, *number) && value.0.len() <= 8)
}

/// `IFLA_LINKINFO` without what the kernel changes by itself, but that of a device that has nothing to do with bridges as it is.
pub(super) fn steady(about: &[u8]) -> Vec<u8> {
    let is_bridge = |kind: u16| attribute(about, 0, kind).is_some_and(|name| name == b"bridge\0");
    let (bridge, port) = (is_bridge(1), is_bridge(SLAVE_KIND));
    if !bridge && !port {
        return about.to_vec();
    }
    let mut out = Vec::new();
    for (number, value) in attributes(about, 0) {
        let moves: &[_] = match number {
            DATA if bridge => &MOVES_IN_BRIDGE,
            SLAVE_DATA if port => &MOVES_IN_PORT,
            _ => {
                out.extend_from_slice(value);
                continue;
            }
        };
        for (number, value) in attributes(value, 0).filter(|(n, _)| !is_in(moves, *n)) {
            out.extend_from_slice(&number.to_ne_bytes());
            out.extend_from_slice(value);
        }
    }
    out
}

/// struct ndmsg of a bridge: an address that it was told.
pub(super) fn told(body: &[u8]) -> Option<(Vec<u8>, String)> {
    /// `NUD_NOARP`, `NUD_PERMANENT`.
    const FIXED: u16 = 0x40 | 0x80;
    const ADDRESS: u16 = 2;
    const VLAN: u16 = 5;
    const MASTER: u16 = 9;
    let state = half(body, 8)?;
    let (master, address) = (attribute(body, 12, MASTER)?, attribute(body, 12, ADDRESS)?);
    if state & FIXED == 0 {
        return None;
    }
    let index = word(body, 4)?;
    let vlan = attribute(body, 12, VLAN).unwrap_or_default();
    let key = [&index.to_ne_bytes(), &state.to_ne_bytes()[..], &[*body.get(10)?], master, address, vlan].concat();
    let shown: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
    Some((key, format!("{} of device {index}", shown.join(":"))))
}

/// struct ifinfomsg of a bridge or a port, with `RTEXT_FILTER_BRVLAN`: its VLANs.
pub(super) fn vlans(body: &[u8]) -> Option<(Vec<u8>, String)> {
    const AF_SPEC: u16 = 26;
    let index = word(body, 4)?;
    let vlans = attribute(body, 16, AF_SPEC)?;
    Some(([&index.to_ne_bytes(), vlans].concat(), format!("of device {index}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(number: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut out = [&length.to_ne_bytes()[..], &number.to_ne_bytes(), value].concat();
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn what_moves_by_itself_is_not_compared() {
        let about = |hello: u32, timer: u32| {
            let data = [put(2, &hello.to_ne_bytes()), put(16, &timer.to_ne_bytes())].concat();
            [put(1, b"bridge\0"), put(2, &data)].concat()
        };
        assert_eq!(steady(&about(200, 1)), steady(&about(200, 2)));
        assert_ne!(steady(&about(200, 1)), steady(&about(300, 1)));
        assert_eq!(settings(attribute(&about(7, 1), 0, 2).expect("data")), [(2, Bytes(7_u32.to_ne_bytes().to_vec()))]);
        let other = [put(1, b"veth\0"), put(2, &[1; 4])].concat();
        assert_eq!(steady(&other), other);
    }

    #[test]
    fn a_port_is_one_of_a_bridge() {
        let about = |kind: &[u8]| [put(1, b"veth\0"), put(4, kind), put(5, &put(18, &3_u16.to_ne_bytes()))].concat();
        assert_eq!(port(&about(b"bridge\0"), 7), Some(Port { of: 7, place: 3, settings: Vec::new() }));
        assert_eq!(port(&about(b"bond\0"), 7), None);
        assert!(are_settings(&[(2, Bytes(vec![0; 2]))], true) && !are_settings(&[(1, Bytes(vec![3]))], true));
        assert!(!are_settings(&[(10, Bytes(vec![0; 8]))], false) && !are_settings(&[(2, Bytes(vec![0; 9]))], false));
    }

    #[test]
    fn short_messages_are_nothing() {
        for length in 0..64 {
            for byte in [0, 4, 9, 0xff] {
                let body = vec![byte; length];
                let _ = (told(&body), vlans(&body), port(&body, 1), settings(&body), steady(&body));
            }
        }
    }
}
