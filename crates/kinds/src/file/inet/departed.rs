//! A connection whose other end, in the same network, was closed by its process: it waits to be read to its end and closed, too.
//! *Read from:* inet_diag (sock_diag(7)), by which a socket is found that nobody holds any more; this end as any.
//! *Made again by:* making the other end again from what this one knows of it, closing it, and forgetting it.
//! *Lost:* how long the kernel remembers the other end (`net.ipv4.tcp_fin_timeout` begins anew).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use yendor_image::Bytes;
use yendor_sys::{Errno, SysError};

use super::tcp::{Agreed, CLOSE_WAIT, Closing, Connection, LISTEN, Window};
use super::udp;
use crate::{Named, Result};

const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;

/// What the kernel tells of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    state: u8,
    inode: u32,
}

/// Whether the end at `local`, which is in the tree, has a peer in this network that was closed; that it has sent all it had, this end
/// knows.
///
/// # Errors
/// The kernel's.
pub fn is_so(local: SocketAddr, peer: SocketAddr) -> Result<bool> {
    if !udp::is_ours(peer)? {
        return Ok(false);
    }
    // A kernel that does not find this one cannot be believed about the other.
    if find(local, peer)?.is_none_or(|own| own.state != CLOSE_WAIT) {
        return Ok(false);
    }
    Ok(match find(peer, local)? {
        None => true,
        // In its place whoever listens at that port is found.
        Some(other) if other.state == LISTEN => true,
        // Its FIN has come, and everything before it; perhaps it does not know that yet.
        Some(other) => matches!(other.state, FIN_WAIT1 | FIN_WAIT2 | TIME_WAIT) && other.inode == 0,
    })
}

/// The socket at `local` that is connected to `peer`, or one that listens there.
fn find(local: SocketAddr, peer: SocketAddr) -> Result<Option<Found>> {
    let shown = || format!("NETLINK_SOCK_DIAG, {local} to {peer}");
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
    let socket = socket.named("socket", shown)?;
    send(&socket, &request(local, peer), SendFlags::empty()).named("sendto", shown)?;
    let mut answer = [0_u8; 1024];
    let (n, _) = recv(socket.as_fd(), &mut answer[..], RecvFlags::empty()).named("recvfrom", shown)?;
    match found(answer.get(..n).unwrap_or_default()) {
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(SysError::new("recvfrom", shown(), errno).into()),
        Ok(found) => Ok(Some(found)),
    }
}

/// struct nlmsghdr, struct inet_diag_req_v2.
fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    const TCP: u8 = 6;
    let (family, [from, to]) = match (local.ip().to_canonical(), peer.ip().to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (2_u8, [a, b].map(|ip| [&ip.octets()[..], &[0; 12]].concat())),
        _ => (10, [local, peer].map(|address| six(address.ip()))),
    };
    let mut out = Vec::with_capacity(72);
    out.extend_from_slice(&72_u32.to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&REQUEST.to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    // No extensions; all states.
    out.extend_from_slice(&[family, TCP, 0, 0]);
    out.extend_from_slice(&u32::MAX.to_ne_bytes());
    out.extend_from_slice(&local.port().to_be_bytes());
    out.extend_from_slice(&peer.port().to_be_bytes());
    out.extend_from_slice(&from);
    out.extend_from_slice(&to);
    // Any interface; without a cookie.
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[0xff; 8]);
    out
}

fn six(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V6(ip) => ip.octets().to_vec(),
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().to_vec(),
    }
}

/// struct inet_diag_msg behind the head, or an error.
fn found(answer: &[u8]) -> std::result::Result<Found, Errno> {
    const ERROR: u16 = 2;
    let word = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    if kind == Some(ERROR) {
        let code = word(16).map_or(0, u32::cast_signed);
        return Err(Errno::from_raw_os_error(code.saturating_neg()));
    }
    let read = || Some(Found { state: *answer.get(17)?, inode: word(16 + 68)? });
    read().ok_or(Errno::BADMSG)
}

/// The other end, as this one knows it: it has closed, and waits for this one to do so.
#[must_use]
pub fn other(local: SocketAddr, connection: &Connection) -> Connection {
    let Connection { peer: _, closing: _, send_sequence, receive_sequence, received, window, agreed, .. } = connection;
    let Agreed { mss, scales, sack, timestamp } = *agreed;
    let length = u32::try_from(received.0.len()).unwrap_or(u32::MAX);
    let none = || Bytes(Vec::new());
    Connection {
        peer: local,
        closing: Closing { sends_no_more: true, peer_sends_no_more: false, reads_no_more: false },
        send_sequence: receive_sequence.wrapping_add(length),
        sent: none(),
        unsent: none(),
        receive_sequence: *send_sequence,
        received: none(),
        window: Window {
            update: *send_sequence,
            send: window.receive,
            largest: window.receive,
            receive: window.send,
            told: *send_sequence,
        },
        agreed: Agreed { mss, scales: scales.map(|(send, receive)| (receive, send)), sack, timestamp },
        peer_is_closed: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_never_believed() {
        let mut answer = vec![0_u8; 88];
        answer[4] = 20;
        answer[17] = FIN_WAIT2;
        answer[84..88].copy_from_slice(&9_u32.to_ne_bytes());
        assert_eq!(found(&answer), Ok(Found { state: FIN_WAIT2, inode: 9 }));
        for length in 0..88 {
            assert_eq!(found(&answer[..length]), Err(Errno::BADMSG));
        }
        let error = [&36_u32.to_ne_bytes()[..], &[2, 0], &[0; 10], &(-2_i32).to_ne_bytes()].concat();
        assert_eq!(found(&error), Err(Errno::NOENT));
    }

    #[test]
    fn a_request_has_the_kernels_size() {
        for (a, b) in [("127.0.0.1:1", "127.0.0.1:2"), ("[::1]:1", "[::1]:2"), ("[::ffff:127.0.0.1]:1", "127.0.0.1:2")]
        {
            let [a, b] = [a, b].map(|text| text.parse().expect("an address"));
            assert_eq!(request(a, b).len(), 72);
        }
    }
}
