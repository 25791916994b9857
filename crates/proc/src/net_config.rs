//! What a network namespace has been given: devices, addresses and routes, each as a line without counters.
//!
//! Source: proc_net(5); `net/core/net-procfs.c`, `dev_seq_show`; `net/ipv4/fib_trie.c`, `fib_trie_seq_show` and
//! `fib_route_seq_show`; `net/ipv6/addrconf.c`, `if6_seq_show`; `net/ipv6/route.c`, `rt6_info_route`. Names of devices have no
//! blanks (`dev_valid_name`).

use crate::field::{Line, Result, lines, split_once};

/// `RTF_CACHE`: a route that the kernel has made for itself.
const CACHE: u32 = 0x0100_0000;

/// Parses `/proc/net/dev`: the names of devices.
///
/// # Errors
/// A line without a name, or text that is cut off.
pub fn parse_devices(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let one = |mut line: Line<'_>| {
        line.skip_blanks();
        let (name, _) = split_once(line.rest(), b':').ok_or_else(|| line.bad("device"))?;
        Ok(name.to_vec())
    };
    lines("net/dev", text)?.into_iter().skip(2).map(one).collect()
}

/// Parses `/proc/net/fib_trie`: the machine's own IPv4 addresses, each once.
///
/// # Errors
/// Text that is cut off.
pub fn parse_addresses(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    let mut address: &[u8] = b"";
    for mut line in lines("net/fib_trie", text)? {
        match line.word() {
            Some(b"|--") => address = line.token("address")?,
            Some(prefix) if line.rest().trim_ascii() == b"host LOCAL" => {
                let own = [address, prefix].concat();
                if !out.contains(&own) {
                    out.push(own);
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

/// Parses `/proc/net/if_inet6`: IPv6 addresses, as `DIGITS/PREFIX DEVICE`.
///
/// # Errors
/// A line that is no address, or text that is cut off.
pub fn parse_addresses6(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let one = |mut line: Line<'_>| {
        let address = line.token("address")?;
        line.token("device number")?;
        let prefix = line.token("prefix")?;
        line.token("scope")?;
        line.token("flags")?;
        Ok([address, b"/", prefix, b" ", line.token("device")?].concat())
    };
    lines("net/if_inet6", text)?.into_iter().map(one).collect()
}

/// Parses `/proc/net/route`: IPv4 routes, as `DEVICE DESTINATION GATEWAY METRIC MASK`.
///
/// # Errors
/// A line that is no route, or text that is cut off.
pub fn parse_routes(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let one = |mut line: Line<'_>| {
        let (device, destination, gateway) =
            (line.token("device")?, line.token("destination")?, line.token("gateway")?);
        for counted in ["flags", "references", "use"] {
            line.token(counted)?;
        }
        Ok([device, destination, gateway, line.token("metric")?, line.token("mask")?].join(&b' '))
    };
    // The kernel fills lines up with blanks.
    lines("net/route", text)?.into_iter().skip(1).map(one).collect()
}

/// Parses `/proc/net/ipv6_route`: IPv6 routes, as `DESTINATION PREFIX GATEWAY METRIC DEVICE`, without those that the kernel makes for
/// itself.
///
/// # Errors
/// A line that is no route, or text that is cut off.
pub fn parse_routes6(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for mut line in lines("net/ipv6_route", text)? {
        let (destination, prefix) = (line.token("destination")?, line.token("prefix")?);
        for of_source in ["source", "source prefix"] {
            line.token(of_source)?;
        }
        let (gateway, metric) = (line.token("gateway")?, line.token("metric")?);
        for counted in ["references", "use"] {
            line.token(counted)?;
        }
        let flags: u32 = line.hex("flags")?;
        if flags & CACHE == 0 {
            out.push([destination, prefix, gateway, metric, line.token("device")?].join(&b' '));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    const DEVICES: &[u8] = b"Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  179432    3259    0    0    0     0          0         0   179432    3259    0    0    0     0       0          0
  eth0:1794329999    3259    0    0    0     0          0         0   179432    3259    0    0    0     0       0          0
";
    const TRIE: &[u8] = b"Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
Local:
           |-- 127.0.0.1
              /32 host LOCAL
";
    const V6: &[u8] = b"00000000000000000000000000000001 01 80 10 80       lo\n";
    const ROUTES: &[u8] =
        b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT      \n\
eth0\t00000000\t010200C0\t0003\t0\t0\t5\t00000000\t0\t0\t0      \n";
    const ROUTES6: &[u8] = b"00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001       lo
00000000000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 01000001       lo
";

    fn texts(found: Result<Vec<Vec<u8>>>) -> Vec<String> {
        found.expect("a capture").iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    #[test]
    fn captured() {
        assert_eq!(texts(parse_devices(DEVICES)), ["lo", "eth0"]);
        assert_eq!(texts(parse_addresses(TRIE)), ["127.0.0.0/8", "127.0.0.1/32"]);
        assert_eq!(texts(parse_addresses6(V6)), ["00000000000000000000000000000001/80 lo"]);
        assert_eq!(texts(parse_routes(ROUTES)), ["eth0 00000000 010200C0 5 00000000"]);
        let none = "0".repeat(32);
        assert_eq!(texts(parse_routes6(ROUTES6)), [format!("{}1 80 {none} 00000000 lo", "0".repeat(31))]);
    }

    #[test]
    fn hostile() {
        hostile::survives(DEVICES, parse_devices);
        hostile::survives(TRIE, parse_addresses);
        hostile::survives(V6, parse_addresses6);
        hostile::survives(ROUTES, parse_routes);
        hostile::survives(ROUTES6, parse_routes6);
        hostile::refuses_cuts(V6, parse_addresses6);
        hostile::refuses_cuts(ROUTES6, parse_routes6);
    }
}
