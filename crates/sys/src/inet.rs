//! What rustix lacks of internet sockets: options by number (getsockopt(2), ip(7), ipv6(7), tcp(7), udp(7)), queue lengths.

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
