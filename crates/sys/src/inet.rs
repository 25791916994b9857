//! What rustix lacks of internet sockets: options by number (getsockopt(2), ip(7), ipv6(7), tcp(7), udp(7)), queue lengths.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::{Result, SysError};

/// Options whose values hold addresses of memory, or that count their length in something else than bytes. Everything
/// from 64 up at the level of IPv4 is netfilter's.
fn is_plain(level: i32, option: i32) -> bool {
    match level {
        libc::SOL_SOCKET => ![libc::SO_ATTACH_FILTER, libc::SO_ATTACH_REUSEPORT_CBPF].contains(&option),
        libc::SOL_IP => option < 64,
        libc::SOL_IPV6 => ![64, 65].contains(&option),
        libc::SOL_TCP => option != libc::TCP_ZEROCOPY_RECEIVE,
        libc::SOL_UDP | libc::SOL_NETLINK => true,
        _ => false,
    }
}

/// Reads an option into `buffer`; how many bytes of it the kernel wrote.
///
/// # Errors
/// What getsockopt(2) says; `EINVAL` for an option that is no plain value.
pub fn get(fd: BorrowedFd<'_>, level: i32, option: i32, buffer: &mut [u8]) -> Result<usize> {
    let raw = fd.as_raw_fd();
    let shown = || format!("{raw}, {level}, {option}");
    if !is_plain(level, option) {
        return Err(SysError::new("getsockopt", shown(), Errno::INVAL));
    }
    let mut len = libc::socklen_t::try_from(buffer.len()).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the kernel writes at most `len` bytes into `buffer` and follows no address in it (`is_plain`).
    let ret = unsafe { libc::getsockopt(raw, level, option, buffer.as_mut_ptr().cast(), &raw mut len) };
    if ret < 0 { Err(SysError::last("getsockopt", shown())) } else { Ok((len as usize).min(buffer.len())) }
}

/// Sets an option.
///
/// # Errors
/// What setsockopt(2) says; `EINVAL` for an option that is no plain value.
pub fn set(fd: BorrowedFd<'_>, level: i32, option: i32, value: &[u8]) -> Result<()> {
    let raw = fd.as_raw_fd();
    let shown = || format!("{raw}, {level}, {option}, {value:?}");
    if !is_plain(level, option) {
        return Err(SysError::new("setsockopt", shown(), Errno::INVAL));
    }
    let len = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of `value` and follows no address in it (`is_plain`).
    let ret = unsafe { libc::setsockopt(raw, level, option, value.as_ptr().cast(), len) };
    if ret < 0 { Err(SysError::last("setsockopt", shown())) } else { Ok(()) }
}

/// An option whose value is one int.
///
/// # Errors
/// See [`get`].
pub fn number(fd: BorrowedFd<'_>, level: i32, option: i32) -> Result<i32> {
    let mut value = [0; 4];
    // Some options have one byte where that is enough.
    get(fd, level, option, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Sets an option whose value is one int.
///
/// # Errors
/// See [`set`].
pub fn set_number(fd: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> Result<()> {
    set(fd, level, option, &value.to_ne_bytes())
}

/// Bytes that were written and are not acknowledged (`SIOCOUTQ`, tcp(7)); of a UDP socket the memory of what is not sent.
///
/// # Errors
/// `EINVAL` for a socket that listens.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> Result<u32> {
    length(fd, libc::TIOCOUTQ, "SIOCOUTQ")
}

/// Bytes of a TCP socket that were written and not sent yet (`SIOCOUTQNSD`).
///
/// # Errors
/// `EINVAL` for a socket that listens.
pub fn unsent(fd: BorrowedFd<'_>) -> Result<u32> {
    length(fd, 0x894b, "SIOCOUTQNSD")
}

fn length(fd: BorrowedFd<'_>, request: u64, name: &str) -> Result<u32> {
    let mut n = 0i32;
    let raw = fd.as_raw_fd();
    // SAFETY: the callers' requests write one int.
    let ret = unsafe { libc::ioctl(raw, request, &raw mut n) };
    if ret < 0 { Err(SysError::last("ioctl", format!("{raw}, {name}"))) } else { Ok(u32::try_from(n).unwrap_or(0)) }
}

/// A datagram that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Its bytes, perhaps more than there was room for.
    pub len: usize,
    /// Who sent it.
    pub from: Option<SocketAddr>,
    /// Of several datagrams that came as one, the bytes of each but the last (`UDP_GRO`, udp(7)).
    pub segment: Option<i32>,
}

/// Looks at a datagram without taking it.
///
/// # Errors
/// What recvmsg(2) says; a pending error of the socket, which is taken by this.
pub fn look(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Look> {
    let mut name = [0_u64; 16];
    // IPv4 tells options of up to 40 bytes and labels; what is looked for comes before them.
    let mut control = [0_u64; 128];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes is a valid msghdr: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = libc::socklen_t::try_from(size_of_val(&name)).unwrap_or(0);
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let raw = fd.as_raw_fd();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: every pointer in `header` leads to memory of the stated size that outlives the call.
    let n = unsafe { libc::recvmsg(raw, &raw mut header, flags) };
    let len = usize::try_from(n).map_err(|_| SysError::last("recvmsg", format!("{raw}, MSG_PEEK")))?;
    let name: Vec<u8> = name.iter().flat_map(|word| word.to_ne_bytes()).take(header.msg_namelen as usize).collect();
    Ok(Look { len, from: address(&name), segment: segment(&header) })
}

/// The value of `UDP_GRO` in a received message.
fn segment(header: &libc::msghdr) -> Option<i32> {
    // SAFETY: the kernel has filled in the control buffer and its length.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a null pointer or a whole header inside the buffer.
    while let Some(control) = unsafe { next.as_ref() } {
        // SAFETY: CMSG_LEN does no more than add.
        let whole = control.cmsg_len >= unsafe { libc::CMSG_LEN(4) } as usize;
        if (control.cmsg_level, control.cmsg_type, whole) == (libc::SOL_UDP, libc::UDP_GRO, true) {
            // SAFETY: four bytes of data lie behind the header.
            return Some(unsafe { libc::CMSG_DATA(control).cast::<i32>().read_unaligned() });
        }
        // SAFETY: `control` lies in the buffer that `header` describes.
        next = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    None
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn address(bytes: &[u8]) -> Option<SocketAddr> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, word(4)?, word(24)?).into())
        }
        _ => None,
    }
}
