//! Socket options: numbers in a table, the few structures by hand (socket(7), ip(7), ipv6(7), tcp(7), udp(7)).
//! *Read from:* getsockopt, beside a fresh socket that tells what is the default.
//! *Made again by:* setsockopt where the value differs from the default; what bind looks at comes before it.
//! *Lost:* the program that chooses among sockets of one port (`SO_ATTACH_REUSEPORT_CBPF`, `SO_ATTACH_REUSEPORT_EBPF`) and keys of
//! `TCP_MD5SIG` and `TCP_AO`, which nobody can read or nobody asks for. An option that cannot be set again refuses the checkpoint by name.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::{Errno, inet, sock};

use crate::process::label;
use crate::{Cause, Result};

const SOCKET: i32 = 1;
const IP: i32 = 0;
const IPV6: i32 = 41;
const TCP: i32 = 6;
const UDP: i32 = 17;

const RCVBUF: i32 = 8;
const SNDBUF: i32 = 7;
const LINGER: i32 = 13;
const RCVTIMEO: i32 = 20;
const SNDTIMEO: i32 = 21;
const BINDTODEVICE: i32 = 25;
const RCVBUFFORCE: i32 = 33;
const SNDBUFFORCE: i32 = 32;
const BUF_LOCK: i32 = 72;
const CONGESTION: i32 = 13;
const FASTOPEN_KEY: i32 = 33;

/// A sort of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// UDP.
    Datagram,
    /// TCP that is or was connected.
    Connected,
    /// Other TCP.
    Unconnected,
}

/// Which sockets have an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Every one.
    Always,
    /// UDP; TCP may have a value, left from the handshake, that means nothing and cannot be set.
    Datagram,
    /// TCP without a connection; of one with it the kernel tells something else under this number.
    Unconnected,
}

impl When {
    fn fits(self, sort: Sort) -> bool {
        match self {
            When::Always => true,
            When::Datagram => sort == Sort::Datagram,
            When::Unconnected => sort == Sort::Unconnected,
        }
    }
}

macro_rules! numbers {
    ($($name:ident $level:ident $number:literal $when:ident,)*) => {
        /// An option whose value is one int, by the manual's name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[allow(missing_docs, non_camel_case_types, clippy::upper_case_acronyms)]
        pub enum Name { $($name,)* }

        const TABLE: &[(Name, i32, i32, When)] = &[$((Name::$name, $level, $number, When::$when),)*];
    };
}

// In the order in which they are set.
numbers! {
    IPV6_V6ONLY IPV6 26 Always,
    SO_REUSEADDR SOCKET 2 Always,
    SO_REUSEPORT SOCKET 15 Always,
    SO_DEBUG SOCKET 1 Always,
    SO_DONTROUTE SOCKET 5 Always,
    SO_BROADCAST SOCKET 6 Always,
    SO_KEEPALIVE SOCKET 9 Always,
    SO_OOBINLINE SOCKET 10 Always,
    SO_NO_CHECK SOCKET 11 Always,
    SO_RCVLOWAT SOCKET 18 Always,
    SO_TIMESTAMP SOCKET 29 Always,
    SO_PASSSEC SOCKET 34 Always,
    SO_TIMESTAMPNS SOCKET 35 Always,
    SO_MARK SOCKET 36 Always,
    SO_RXQ_OVFL SOCKET 40 Always,
    SO_WIFI_STATUS SOCKET 41 Always,
    SO_NOFCS SOCKET 43 Always,
    SO_SELECT_ERR_QUEUE SOCKET 45 Always,
    SO_BUSY_POLL SOCKET 46 Always,
    SO_ZEROCOPY SOCKET 60 Always,
    SO_TIMESTAMP_NEW SOCKET 63 Always,
    SO_TIMESTAMPNS_NEW SOCKET 64 Always,
    SO_PREFER_BUSY_POLL SOCKET 69 Always,
    SO_RESERVE_MEM SOCKET 73 Always,
    SO_TXREHASH SOCKET 74 Always,
    SO_RCVMARK SOCKET 75 Always,
    SO_RCVPRIORITY SOCKET 82 Always,
    IP_TOS IP 1 Always,
    // After IP_TOS, which changes it.
    SO_PRIORITY SOCKET 12 Always,
    IP_TTL IP 2 Always,
    IP_RECVOPTS IP 6 Always,
    IP_RETOPTS IP 7 Always,
    IP_PKTINFO IP 8 Always,
    IP_MTU_DISCOVER IP 10 Always,
    IP_RECVERR IP 11 Always,
    IP_RECVTTL IP 12 Always,
    IP_RECVTOS IP 13 Always,
    IP_FREEBIND IP 15 Always,
    IP_PASSSEC IP 18 Always,
    IP_TRANSPARENT IP 19 Always,
    IP_RECVORIGDSTADDR IP 20 Always,
    IP_MINTTL IP 21 Always,
    IP_CHECKSUM IP 23 Always,
    IP_BIND_ADDRESS_NO_PORT IP 24 Always,
    IP_RECVFRAGSIZE IP 25 Always,
    IP_RECVERR_RFC4884 IP 26 Always,
    IP_MULTICAST_TTL IP 33 Datagram,
    IP_MULTICAST_LOOP IP 34 Datagram,
    IP_MULTICAST_ALL IP 49 Datagram,
    IP_LOCAL_PORT_RANGE IP 51 Always,
    IPV6_UNICAST_HOPS IPV6 16 Always,
    IPV6_MULTICAST_HOPS IPV6 18 Datagram,
    IPV6_MULTICAST_LOOP IPV6 19 Datagram,
    IPV6_MTU_DISCOVER IPV6 23 Always,
    IPV6_RECVERR IPV6 25 Always,
    IPV6_MULTICAST_ALL IPV6 29 Datagram,
    IPV6_RECVERR_RFC4884 IPV6 31 Always,
    IPV6_FLOWINFO_SEND IPV6 33 Always,
    IPV6_RECVPKTINFO IPV6 49 Always,
    IPV6_RECVHOPLIMIT IPV6 51 Always,
    IPV6_RECVHOPOPTS IPV6 53 Always,
    IPV6_RECVRTHDR IPV6 56 Always,
    IPV6_RECVDSTOPTS IPV6 58 Always,
    IPV6_RECVPATHMTU IPV6 60 Always,
    IPV6_DONTFRAG IPV6 62 Always,
    IPV6_RECVTCLASS IPV6 66 Always,
    IPV6_TCLASS IPV6 67 Always,
    IPV6_AUTOFLOWLABEL IPV6 70 Always,
    IPV6_MINHOPCOUNT IPV6 73 Always,
    IPV6_RECVORIGDSTADDR IPV6 74 Always,
    IPV6_TRANSPARENT IPV6 75 Always,
    IPV6_RECVFRAGSIZE IPV6 77 Always,
    IPV6_FREEBIND IPV6 78 Always,
    TCP_NODELAY TCP 1 Always,
    TCP_MAXSEG TCP 2 Unconnected,
    TCP_CORK TCP 3 Always,
    TCP_KEEPIDLE TCP 4 Always,
    TCP_KEEPINTVL TCP 5 Always,
    TCP_KEEPCNT TCP 6 Always,
    TCP_SYNCNT TCP 7 Always,
    TCP_LINGER2 TCP 8 Always,
    TCP_DEFER_ACCEPT TCP 9 Always,
    TCP_WINDOW_CLAMP TCP 10 Unconnected,
    TCP_THIN_LINEAR_TIMEOUTS TCP 16 Always,
    TCP_USER_TIMEOUT TCP 18 Always,
    TCP_FASTOPEN TCP 23 Unconnected,
    TCP_NOTSENT_LOWAT TCP 25 Always,
    TCP_SAVE_SYN TCP 27 Unconnected,
    TCP_FASTOPEN_CONNECT TCP 30 Unconnected,
    TCP_FASTOPEN_NO_COOKIE TCP 34 Unconnected,
    TCP_INQ TCP 36 Always,
    TCP_TX_DELAY TCP 37 Always,
    TCP_RTO_MAX_MS TCP 44 Always,
    TCP_RTO_MIN_US TCP 45 Always,
    TCP_DELACK_MAX_US TCP 46 Always,
    UDP_CORK UDP 1 Always,
    UDP_NO_CHECK6_TX UDP 101 Always,
    UDP_NO_CHECK6_RX UDP 102 Always,
    UDP_SEGMENT UDP 103 Always,
    UDP_GRO UDP 104 Always,
    SO_PEEK_OFF SOCKET 42 Always,
}

/// Options that must be as on a fresh socket, for nothing here can carry their values over.
const PLAIN: &[(&str, i32, i32, When)] = &[
    ("SO_TIMESTAMPING", SOCKET, 37, When::Always),
    ("SO_TIMESTAMPING", SOCKET, 65, When::Always),
    ("SO_LOCK_FILTER", SOCKET, 44, When::Always),
    ("SO_MAX_PACING_RATE", SOCKET, 47, When::Always),
    ("SO_TXTIME", SOCKET, 61, When::Always),
    ("IP_OPTIONS", IP, 4, When::Always),
    ("IP_MULTICAST_IF", IP, 32, When::Datagram),
    ("IP_UNICAST_IF", IP, 50, When::Always),
    ("IPV6_2292PKTINFO", IPV6, 2, When::Always),
    ("IPV6_2292HOPOPTS", IPV6, 3, When::Always),
    ("IPV6_2292DSTOPTS", IPV6, 4, When::Always),
    ("IPV6_2292RTHDR", IPV6, 5, When::Always),
    ("IPV6_2292HOPLIMIT", IPV6, 8, When::Always),
    ("IPV6_MULTICAST_IF", IPV6, 17, When::Datagram),
    ("IPV6_HOPOPTS", IPV6, 54, When::Always),
    ("IPV6_RTHDRDSTOPTS", IPV6, 55, When::Always),
    ("IPV6_RTHDR", IPV6, 57, When::Always),
    ("IPV6_DSTOPTS", IPV6, 59, When::Always),
    ("IPV6_ADDR_PREFERENCES", IPV6, 72, When::Always),
    ("IPV6_UNICAST_IF", IPV6, 76, When::Always),
    ("TCP_ULP", TCP, 31, When::Always),
    ("TCP_IS_MPTCP", TCP, 43, When::Always),
    ("UDP_ENCAP", UDP, 100, When::Always),
];

/// The options of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Those that are one int; the kernel of the checkpoint may know fewer than ours.
    pub numbers: BTreeMap<Name, i32>,
    /// `SO_LINGER`: seconds, if on.
    pub linger: Option<i32>,
    /// `SO_RCVTIMEO` in seconds and microseconds, zero for none.
    pub receive_timeout: (i64, i64),
    /// `SO_SNDTIMEO` likewise.
    pub send_timeout: (i64, i64),
    /// `SO_BINDTODEVICE`, empty for none.
    pub device: Bytes,
    /// `SO_RCVBUF` as the kernel counts: twice what was set. Bytes.
    pub receive_buffer: i32,
    /// `SO_SNDBUF` likewise.
    pub send_buffer: i32,
    /// `SO_BUF_LOCK`: 1 when the size for sending was set, 2 that for receiving; others grow by themselves.
    pub buffer_lock: i32,
    /// `TCP_CONGESTION`, empty for UDP.
    pub congestion: Bytes,
    /// `TCP_FASTOPEN_KEY`, where it has one of its own.
    pub fastopen_key: Bytes,
}

impl Record {
    /// The value of a number, 0 when it is not there.
    #[must_use]
    pub fn number(&self, name: Name) -> i32 {
        self.numbers.get(&name).copied().unwrap_or(0)
    }
}

/// Reads the options; `fresh` is a new socket of the same sort in the same network.
///
/// # Errors
/// `Unsupported` for a filter, and for options that cannot be carried over.
pub fn collect(fd: BorrowedFd<'_>, fresh: BorrowedFd<'_>, sort: Sort) -> Result<Record> {
    let mut values = BTreeMap::new();
    for (name, level, number, when) in TABLE {
        if !when.fits(sort) {
            continue;
        }
        if let Some(value) = present(inet::number(fd, *level, *number))? {
            values.insert(*name, value);
        }
    }
    for (name, level, number, _) in PLAIN.iter().filter(|(.., when)| when.fits(sort)) {
        let (value, usual) = (bytes(fd, *level, *number)?, bytes(fresh, *level, *number)?);
        // Smack has the kernel write a socket's label into what it sends: there is nothing to carry over but the label.
        let is_labels = || -> Result<bool> {
            let both = [&value, &usual].into_iter().all(|options| options.is_empty() || is_label(options));
            Ok(*name == "IP_OPTIONS" && both && label::under_smack(fd)? != label::under_smack(fresh)?)
        };
        if value != usual && !is_labels()? {
            return Err(Cause::unsupported(format!("a socket with the option {name}")));
        }
    }
    match sock::filter(fd) {
        Ok(0) => {}
        Ok(_) => return Err(Cause::unsupported("a socket with a filter (SO_ATTACH_FILTER, SO_ATTACH_BPF)")),
        Err(e) if e.errno == Errno::ACCESS => return Err(Cause::unsupported("a socket with a filter (SO_ATTACH_BPF)")),
        Err(e) => return Err(e.into()),
    }
    let linger = bytes(fd, SOCKET, LINGER)?;
    Ok(Record {
        numbers: values,
        linger: (word(&linger, 0) != 0).then_some(word(&linger, 4)),
        receive_timeout: time(&bytes(fd, SOCKET, RCVTIMEO)?),
        send_timeout: time(&bytes(fd, SOCKET, SNDTIMEO)?),
        device: text(&bytes(fd, SOCKET, BINDTODEVICE)?),
        receive_buffer: inet::number(fd, SOCKET, RCVBUF)?,
        send_buffer: inet::number(fd, SOCKET, SNDBUF)?,
        // Before Linux 5.14 one cannot tell; then all sizes are taken for set.
        buffer_lock: present(inet::number(fd, SOCKET, BUF_LOCK))?.unwrap_or(3),
        congestion: text(&bytes(fd, TCP, CONGESTION)?),
        fastopen_key: match bytes(fd, TCP, FASTOPEN_KEY)? {
            key if sort == Sort::Unconnected && key != bytes(fresh, TCP, FASTOPEN_KEY)? => Bytes(key),
            _ => Bytes(Vec::new()),
        },
    })
}

/// Whether these IP options are a label's (`cipso_v4_sock_setattr`) and nothing else.
fn is_label(options: &[u8]) -> bool {
    const CIPSO: u8 = 134;
    let [CIPSO, len, ..] = options else { return false };
    options.get(usize::from(*len)..).is_some_and(|padding| padding.iter().all(|byte| *byte == 0))
}

/// Sets the options on a new socket, but for those that belong to the end: see [`finish`].
///
/// # Errors
/// The kernel's, among them `EPERM` for what the container's root may not.
pub fn apply(fd: BorrowedFd<'_>, record: &Record) -> Result<()> {
    let Record {
        numbers,
        linger,
        receive_timeout,
        send_timeout,
        device,
        receive_buffer,
        send_buffer,
        buffer_lock,
        congestion,
        fastopen_key,
    } = record;
    for (name, level, number, _) in TABLE {
        let Some(value) = numbers.get(name) else { continue };
        if !matches!(name, Name::SO_REUSEADDR | Name::SO_PEEK_OFF) {
            set(fd, *name, *level, *number, *value)?;
        }
    }
    // At the very end: until then a restore that fails closes sockets, and is to wait for nobody.
    let _ = linger;
    for (option, (seconds, micros)) in [(RCVTIMEO, receive_timeout), (SNDTIMEO, send_timeout)] {
        if (*seconds, *micros) != (0, 0) {
            inet::set(fd, SOCKET, option, &[seconds.to_ne_bytes(), micros.to_ne_bytes()].concat())?;
        }
    }
    if !device.0.is_empty() {
        inet::set(fd, SOCKET, BINDTODEVICE, &device.0)?;
    }
    if !congestion.0.is_empty() && text(&bytes(fd, TCP, CONGESTION)?) != *congestion {
        inet::set(fd, TCP, CONGESTION, &congestion.0)?;
    }
    if !fastopen_key.0.is_empty() {
        inet::set(fd, TCP, FASTOPEN_KEY, &fastopen_key.0)?;
    }
    // The send buffer gets its size at the end: until then it needs room for all that waits to be sent.
    let _ = send_buffer;
    buffer(fd, RCVBUF, RCVBUFFORCE, *receive_buffer, buffer_lock & 2 != 0)?;
    lock(fd, *buffer_lock)
}

/// Which buffers do not grow by themselves.
fn lock(fd: BorrowedFd<'_>, which: i32) -> Result<()> {
    if present(inet::number(fd, SOCKET, BUF_LOCK))? == Some(which) {
        return Ok(());
    }
    match inet::set_number(fd, SOCKET, BUF_LOCK, which) {
        // MPTCP has sizes, and nobody can say of them that they may grow.
        Err(e) if ![Errno::NOPROTOOPT, Errno::OPNOTSUPP].contains(&e.errno) => Err(e.into()),
        _ => Ok(()),
    }
}

/// Whatever the image says, during the rebuild several sockets may share a port.
///
/// # Errors
/// The kernel's.
pub fn share_port(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(inet::set_number(fd, SOCKET, 2, 1)?)
}

/// Sets what could not be right during the rebuild.
///
/// # Errors
/// The kernel's.
pub fn finish(fd: BorrowedFd<'_>, record: &Record) -> Result<()> {
    for (name, level, number, _) in TABLE {
        if let (Name::SO_REUSEADDR | Name::SO_PEEK_OFF, Some(value)) = (name, record.numbers.get(name)) {
            set(fd, *name, *level, *number, *value)?;
        }
    }
    buffer(fd, SNDBUF, SNDBUFFORCE, record.send_buffer, record.buffer_lock & 1 != 0)?;
    lock(fd, record.buffer_lock)
}

/// How long closing waits.
///
/// # Errors
/// The kernel's.
pub fn linger(fd: BorrowedFd<'_>, record: &Record) -> Result<()> {
    let Some(seconds) = record.linger else { return Ok(()) };
    let value = [1i32.to_ne_bytes(), seconds.to_ne_bytes()].concat();
    Ok(inet::set(fd, SOCKET, LINGER, &value)?)
}

/// Nothing is set that is right already: some options may be read by everybody and set by few.
fn set(fd: BorrowedFd<'_>, name: Name, level: i32, number: i32, value: i32) -> Result<()> {
    if present(inet::number(fd, level, number))? == Some(value) {
        return Ok(());
    }
    inet::set_number(fd, level, number, value)?;
    let now = inet::number(fd, level, number)?;
    if now == value {
        return Ok(());
    }
    Err(Cause::of_machine(format!("{name:?} {value}, of which this kernel makes {now}"), "a kernel that takes it"))
}

/// A size that was set must be the same again; one that grows by itself may be larger.
fn buffer(fd: BorrowedFd<'_>, option: i32, force: i32, wanted: i32, locked: bool) -> Result<()> {
    let now = || inet::number(fd, SOCKET, option);
    if now()? == wanted {
        return Ok(());
    }
    // This one only the host's root may. The other may make a send buffer smaller than what is in it.
    let may_grow = option == RCVBUF && now()? < wanted;
    if inet::set_number(fd, SOCKET, force, wanted / 2).is_err() && (locked || may_grow) {
        inet::set_number(fd, SOCKET, option, wanted / 2)?;
    }
    let now = now()?;
    if locked && now != wanted {
        let limit = if option == RCVBUF { "rmem_max" } else { "wmem_max" };
        let what = format!("a socket buffer of {wanted} bytes, of which this host allows {now}");
        return Err(Cause::of_machine(what, &format!("net.core.{limit} of the host")));
    }
    Ok(())
}

/// None for an option that this kernel or this sort of socket lacks.
fn present<T>(result: yendor_sys::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Some IPv6 options say EINVAL to TCP, some ENOTCONN while there is no connection.
        Err(e) if matches!(e.errno, Errno::NOPROTOOPT | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTCONN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The value of an option, empty when it does not exist.
fn bytes(fd: BorrowedFd<'_>, level: i32, option: i32) -> Result<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = present(inet::get(fd, level, option, &mut value))?.unwrap_or(0);
    value.truncate(n);
    Ok(value)
}

/// The name in a buffer padded with zeroes.
fn text(value: &[u8]) -> Bytes {
    Bytes(value.iter().copied().take_while(|b| *b != 0).collect())
}

fn word(value: &[u8], at: usize) -> i32 {
    value.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// struct timeval.
fn time(value: &[u8]) -> (i64, i64) {
    let half = |at: usize| value.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, i64::from_ne_bytes);
    (half(0), half(8))
}

#[cfg(test)]
mod tests {
    use super::is_label;

    #[test]
    fn a_label_is_one_option_and_what_fills_it_up() {
        let label = [134, 10, 0, 0, 0, 3, 5, 4, 0, 250];
        assert!(is_label(&label) && is_label(&[&label[..], &[0, 0]].concat()));
        // A record of the route, after it or alone, is the program's.
        for other in [&[][..], &[7, 3, 4, 0], &[&label[..], &[1, 7, 3, 4]].concat(), &[134], &[134, 40, 0, 0]] {
            assert!(!is_label(other), "{other:?}");
        }
    }
}
