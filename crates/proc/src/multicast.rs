//! The multicast groups that interfaces of a network are in.
//!
//! Source: `net/ipv4/igmp.c`, `igmp_mc_seq_show`; `net/ipv6/mcast.c`, `igmp6_mc_seq_show`. Names of interfaces have no
//! blanks (`dev_valid_name`).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::field::{Result, lines, number};

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<A> {
    /// The interface's number.
    pub index: u32,
    /// Its name.
    pub device: Vec<u8>,
    /// The group.
    pub group: A,
}

/// Parses `/proc/net/igmp`: a line for each interface, and after it one for each of its groups.
///
/// # Errors
/// A line that is neither, or text that is cut off.
pub fn parse_igmp(text: &[u8]) -> Result<Vec<Member<Ipv4Addr>>> {
    let mut interface = None;
    let mut out = Vec::new();
    for mut line in lines("net/igmp", text)?.into_iter().skip(1) {
        if line.starts("\t") {
            let (index, device) = match &interface {
                Some((index, device)) => (*index, Vec::clone(device)),
                None => return Err(line.bad("interface")),
            };
            let bits: u32 = line.hex("group")?;
            // The four bytes as this machine reads them as one number.
            out.push(Member { index, device, group: Ipv4Addr::from(bits.to_ne_bytes()) });
        } else {
            let index = line.dec("interface number")?;
            // A long name touches the colon, which no name has.
            let device = line.token("interface")?;
            interface = Some((index, device.strip_suffix(b":").unwrap_or(device).to_vec()));
        }
    }
    Ok(out)
}

/// Parses `/proc/net/igmp6`.
///
/// # Errors
/// A line that is no group, or text that is cut off.
pub fn parse_igmp6(text: &[u8]) -> Result<Vec<Member<Ipv6Addr>>> {
    let mut out = Vec::new();
    for mut line in lines("net/igmp6", text)? {
        let (index, device) = (line.dec("interface number")?, line.token("interface")?.to_vec());
        let digits = line.token("group")?;
        let bits = if digits.len() == 32 { digits.split_at_checked(16) } else { None };
        let halves = bits.and_then(|(high, low)| Some((number::<u64>(high, 16)?, number::<u64>(low, 16)?)));
        let (high, low) = halves.ok_or_else(|| line.bad("group"))?;
        out.push(Member { index, device, group: Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)) });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{Member, parse_igmp, parse_igmp6};
    use crate::hostile;

    const V4: &[u8] = b"Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     2      V3
\t\t\t\t030201EF     1 0:00000000\t\t0
\t\t\t\t010000E0     1 0:00000000\t\t0
12\tveth1234567890:     1      V2
\t\t\t\t010000E0     1 0:00000000\t\t1
";
    const V6: &[u8] = b"\
1    lo              ff020000000000000000000000000001     1 0000000C 0
12   veth1234567890  ff010000000000000000000000abcdef     1 00000008 0
";

    #[test]
    fn captured() {
        let groups = parse_igmp(V4).unwrap();
        assert_eq!(groups[0], Member { index: 1, device: b"lo".to_vec(), group: [239, 1, 2, 3].into() });
        assert_eq!((groups[2].index, groups[2].group), (12, [224, 0, 0, 1].into()));
        assert_eq!(groups[2].device, b"veth1234567890".to_vec());
        let groups = parse_igmp6(V6).unwrap();
        assert_eq!((groups[0].index, groups[0].group), (1, "ff02::1".parse().unwrap()));
        assert_eq!(groups[1].group, "ff01::ab:cdef".parse::<std::net::Ipv6Addr>().unwrap());
        assert!(parse_igmp(b"head\n\t\t\t\t010000E0     1 0:00000000\t\t0\n").is_err());
        assert!(parse_igmp6(b"1 lo ff02 1 0 0\n").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(V4, parse_igmp);
        hostile::refuses_cuts(V4, parse_igmp);
        hostile::survives(V6, parse_igmp6);
        hostile::refuses_cuts(V6, parse_igmp6);
    }

    #[test]
    fn this_network() {
        parse_igmp(&std::fs::read("/proc/self/net/igmp").unwrap_or_else(|_| b"\n".to_vec())).unwrap();
        parse_igmp6(&std::fs::read("/proc/self/net/igmp6").unwrap_or_default()).unwrap();
    }
}
