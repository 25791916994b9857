//! What rustix lacks of sockets: addresses as plain bytes, peeking with descriptors, options by number (socket(7), unix(7)).

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{Result, SysError};

/// Bytes of `sun_path`.
const PATH: usize = 108;

/// A message at the head of a queue.
#[derive(Debug)]
pub struct Peeked {
    /// Its bytes, as many as were asked for.
    pub data: Vec<u8>,
    /// Whether there are more.
    pub truncated: bool,
    /// Duplicates of the descriptors that travel with it.
    pub files: Vec<OwnedFd>,
    /// The sender's address as in `sun_path`; empty for an unnamed one.
    pub from: Vec<u8>,
}

/// The address of a unix socket as in `sun_path`: a path without its final zero, an abstract name with its leading zero,
/// nothing for an unnamed socket.
///
/// # Errors
/// What getsockname(2) says.
pub fn name(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut address = empty();
    let mut len = length(size_of::<libc::sockaddr_un>());
    let raw = fd.as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes into `address`; both outlive the call.
    let ret = unsafe { libc::getsockname(raw, (&raw mut address).cast(), &raw mut len) };
    if ret < 0 { Err(SysError::last("getsockname", format!("{raw}"))) } else { Ok(plain(&address, len)) }
}

/// bind(2) of a unix socket.
///
/// # Errors
/// `EADDRINUSE`; `EINVAL` for an address that is too long or a socket that has one.
pub fn bind(fd: BorrowedFd<'_>, to: &[u8]) -> Result<()> {
    let (address, len) = address(to)?;
    let raw = fd.as_raw_fd();
    // SAFETY: `address` is as long as `len` says and outlives the call.
    let ret = unsafe { libc::bind(raw, (&raw const address).cast(), len) };
    if ret < 0 { Err(SysError::last("bind", format!("{raw}, \"{}\"", to.escape_ascii()))) } else { Ok(()) }
}

/// connect(2) of a unix socket; no address dissolves the connection of a datagram socket.
///
/// # Errors
/// `ECONNREFUSED`, `EAGAIN` when the backlog is full, `EPERM` for a datagram socket that listens to another one.
pub fn connect(fd: BorrowedFd<'_>, to: Option<&[u8]>) -> Result<()> {
    let (mut address, mut len) = address(to.unwrap_or_default())?;
    if to.is_none() {
        address.sun_family = family(libc::AF_UNSPEC);
        len = length(size_of::<libc::sa_family_t>());
    }
    let raw = fd.as_raw_fd();
    // SAFETY: `address` is as long as `len` says and outlives the call.
    let ret = unsafe { libc::connect(raw, (&raw const address).cast(), len) };
    let shown = || to.map_or("AF_UNSPEC".to_owned(), |to| format!("\"{}\"", to.escape_ascii()));
    if ret < 0 { Err(SysError::last("connect", format!("{raw}, {}", shown()))) } else { Ok(()) }
}

/// Looks at the next message without taking it, with at most `room` bytes. None when the queue is empty.
///
/// # Errors
/// A pending error of the socket, which is taken by this.
pub fn peek(fd: BorrowedFd<'_>, room: usize) -> Result<Option<Peeked>> {
    let mut data = vec![0u8; room];
    // Room for the 253 descriptors that one message can carry (SCM_MAX_FD), and for credentials.
    let mut control = vec![0u64; 160];
    let mut from = empty();
    let mut vector = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut header = header(&mut vector);
    header.msg_name = (&raw mut from).cast();
    header.msg_namelen = length(size_of::<libc::sockaddr_un>());
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() * 8;
    let raw = fd.as_raw_fd();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in `header` leads to memory of the stated size that outlives the call.
    let n = unsafe { libc::recvmsg(raw, &raw mut header, flags) };
    let Ok(n) = usize::try_from(n) else {
        let e = SysError::last("recvmsg", format!("{raw}, MSG_PEEK"));
        return if e.errno == Errno::AGAIN { Ok(None) } else { Err(e) };
    };
    let files = rights(&header);
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(SysError::new("recvmsg", format!("{raw}, MSG_PEEK: control data cut off"), Errno::NOBUFS));
    }
    data.truncate(n);
    let from = plain(&from, header.msg_namelen);
    Ok(Some(Peeked { data, truncated: header.msg_flags & libc::MSG_TRUNC != 0, files, from }))
}

/// Where, in the first `len` bytes of a stream's queue, the last of the writes that they came by starts.
///
/// One look joins several writes and does not tell where they meet. But it copies each whole or not at all: the memory
/// given to it here lacks room for the last byte, so what it does copy ends where the last write starts.
///
/// # Errors
/// What mmap and recvmsg say.
pub fn last_write(fd: BorrowedFd<'_>, len: usize) -> Result<usize> {
    const PAGE: usize = 4096;
    let room = len.next_multiple_of(PAGE);
    let all = room + PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping at an address of the kernel's choice; no access is allowed yet.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(SysError::last("mmap", format!("{all}, PROT_NONE")));
    }
    // SAFETY: the first `room` bytes of the mapping become writable; its last page stays out of reach, so that the
    // kernel's copy of `len` bytes to a place `len - 1` bytes before it fails with EFAULT instead of overwriting anything.
    // No Rust reference into the mapping exists, and it is unmapped once.
    let (n, error) = unsafe {
        libc::mprotect(memory, room, libc::PROT_READ | libc::PROT_WRITE);
        let start: *mut u8 = memory.cast::<u8>().add(room - len.saturating_sub(1));
        let n = libc::recv(fd.as_raw_fd(), start.cast(), len, libc::MSG_PEEK | libc::MSG_DONTWAIT);
        let error = SysError::last("recv", format!("{}, {len}, MSG_PEEK", fd.as_raw_fd()));
        libc::munmap(memory, all);
        (n, error)
    };
    match usize::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) if error.errno == Errno::FAULT => Ok(0),
        Err(_) => Err(error),
    }
}

/// The descriptors in a received message.
fn rights(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: the kernel has filled in the control buffer and its length.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a null pointer or a whole header inside the buffer.
    while let Some(control) = unsafe { next.as_ref() } {
        if control.cmsg_level == libc::SOL_SOCKET && control.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN does no more than add.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = control.cmsg_len.saturating_sub(head) / size_of::<i32>();
            // SAFETY: the data lies behind the header inside the buffer.
            let first: *const i32 = unsafe { libc::CMSG_DATA(control) }.cast();
            for i in 0..count {
                // SAFETY: `i` is below the number of descriptors that the kernel has put there; each is new and ours.
                files.push(unsafe { OwnedFd::from_raw_fd(first.add(i).read_unaligned()) });
            }
        }
        // SAFETY: `control` lies in the buffer that `header` describes.
        next = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    files
}

/// Sends one message without blocking; all of it or an error.
///
/// # Errors
/// `EAGAIN` when the buffer is full, `EMSGSIZE`, `EPIPE`, `EPERM`.
pub fn send(fd: BorrowedFd<'_>, data: &[u8], files: &[BorrowedFd<'_>], to: Option<&[u8]>) -> Result<()> {
    let (mut address, len) = address(to.unwrap_or_default())?;
    let mut control = vec![0u64; 160];
    let mut vector = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut header = header(&mut vector);
    if to.is_some() {
        header.msg_name = (&raw mut address).cast();
        header.msg_namelen = len;
    }
    let raw = fd.as_raw_fd();
    let shown = || format!("{raw}, {} bytes, {} descriptors", data.len(), files.len());
    if !files.is_empty() {
        let bytes = u32::try_from(files.len() * size_of::<i32>()).unwrap_or(u32::MAX);
        if bytes > 1012 {
            return Err(SysError::new("sendmsg", shown(), Errno::INVAL));
        }
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE does no more than add.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(bytes) } as usize;
        // SAFETY: the buffer has room for one header and 253 descriptors.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            let place: *mut i32 = libc::CMSG_DATA(first).cast();
            for (i, file) in files.iter().enumerate() {
                place.add(i).write_unaligned(file.as_raw_fd());
            }
        }
    }
    // SAFETY: every pointer in `header` leads to memory of the stated size that outlives the call.
    let n = unsafe { libc::sendmsg(raw, &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    match usize::try_from(n) {
        Ok(n) if n == data.len() => Ok(()),
        Ok(_) => Err(SysError::new("sendmsg", shown(), Errno::AGAIN)),
        Err(_) => Err(SysError::last("sendmsg", shown())),
    }
}

/// An option of the level `SOL_SOCKET` whose value is a number. None when the kernel does not have it for this socket.
///
/// # Errors
/// What getsockopt(2) says.
pub fn option(fd: BorrowedFd<'_>, option: i32) -> Result<Option<i32>> {
    let [value] = match options::<1>(fd, option) {
        Ok(value) => value,
        Err(e) if matches!(e.errno, Errno::NOPROTOOPT | Errno::OPNOTSUPP) => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(value))
}

/// An option of the level `SOL_SOCKET` whose value is `N` 32-bit words.
///
/// # Errors
/// What getsockopt(2) says.
pub fn options<const N: usize>(fd: BorrowedFd<'_>, option: i32) -> Result<[i32; N]> {
    let mut value = [0i32; N];
    let mut len = length(size_of::<[i32; N]>());
    let raw = fd.as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes into `value`; both outlive the call.
    let ret = unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len) };
    if ret < 0 { Err(SysError::last("getsockopt", format!("{raw}, SOL_SOCKET, {option}"))) } else { Ok(value) }
}

/// Sets an option of the level `SOL_SOCKET`.
///
/// # Errors
/// What setsockopt(2) says.
pub fn set_options<const N: usize>(fd: BorrowedFd<'_>, option: i32, value: [i32; N]) -> Result<()> {
    let raw = fd.as_raw_fd();
    let len = length(size_of::<[i32; N]>());
    // SAFETY: the kernel reads `len` bytes of `value`, which outlives the call.
    let ret = unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, option, (&raw const value).cast(), len) };
    let shown = || format!("{raw}, SOL_SOCKET, {option}, {value:?}");
    if ret < 0 { Err(SysError::last("setsockopt", shown())) } else { Ok(()) }
}

/// How many instructions the socket filter has (`SO_GET_FILTER`, socket(7)).
///
/// # Errors
/// `EACCES` for an eBPF program.
pub fn filter(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut count: libc::socklen_t = 0;
    let raw = fd.as_raw_fd();
    // SAFETY: with a length of zero the kernel writes only the length.
    let ret =
        unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, libc::SO_GET_FILTER, std::ptr::null_mut(), &raw mut count) };
    if ret < 0 { Err(SysError::last("getsockopt", format!("{raw}, SO_GET_FILTER"))) } else { Ok(count) }
}

/// Bytes that wait to be read (`SIOCINQ`, unix(7)): all of a stream, of a datagram socket those of the first.
///
/// # Errors
/// `EINVAL` for a socket that listens.
pub fn waiting(fd: BorrowedFd<'_>) -> Result<usize> {
    let mut n = 0i32;
    let raw = fd.as_raw_fd();
    // SAFETY: the kernel writes one int.
    let ret = unsafe { libc::ioctl(raw, libc::FIONREAD, &raw mut n) };
    if ret < 0 { Err(SysError::last("ioctl", format!("{raw}, SIOCINQ"))) } else { Ok(usize::try_from(n).unwrap_or(0)) }
}

/// The network namespace of a socket (`SIOCGSKNS`, Linux 4.9).
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in it.
pub fn namespace(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    const SIOCGSKNS: u64 = 0x894c;
    let raw = fd.as_raw_fd();
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::ioctl(raw, SIOCGSKNS, 0) };
    if ret < 0 {
        return Err(SysError::last("ioctl", format!("{raw}, SIOCGSKNS")));
    }
    // SAFETY: the kernel has just made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}

/// A number of a socket's network namespace that no other has until the machine is booted again (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// `ENOPROTOOPT` from an older kernel.
pub fn namespace_cookie(fd: BorrowedFd<'_>) -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let raw = fd.as_raw_fd();
    let mut cookie = 0_u64;
    let mut size: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most the eight bytes of `cookie` and the size, which both outlive the call.
    let ret =
        unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut size) };
    if ret < 0 { Err(SysError::last("getsockopt", format!("{raw}, SO_NETNS_COOKIE"))) } else { Ok(cookie) }
}

fn header(vector: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vector;
    header.msg_iovlen = 1;
    header
}

fn empty() -> libc::sockaddr_un {
    libc::sockaddr_un { sun_family: family(libc::AF_UNIX), sun_path: [0; PATH] }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

fn length(n: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(n).unwrap_or(0)
}

/// `sun_path` up to the address's length; a path up to its zero.
fn plain(address: &libc::sockaddr_un, len: libc::socklen_t) -> Vec<u8> {
    let len = (len as usize).saturating_sub(size_of::<libc::sa_family_t>()).min(PATH);
    let bytes: Vec<u8> = address.sun_path[..len].iter().map(|c| c.cast_unsigned()).collect();
    match bytes.first() {
        Some(0) | None => bytes,
        Some(_) => bytes.into_iter().take_while(|b| *b != 0).collect(),
    }
}

fn address(name: &[u8]) -> Result<(libc::sockaddr_un, libc::socklen_t)> {
    let mut address = empty();
    if name.len() > PATH {
        return Err(SysError::new("bind", format!("\"{}\"", name.escape_ascii()), Errno::INVAL));
    }
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    // A path may fill all of sun_path; a shorter one has its zero counted, as everybody does.
    let zero = usize::from(name.first().is_some_and(|b| *b != 0) && name.len() < PATH);
    Ok((address, length(size_of::<libc::sa_family_t>() + name.len() + zero)))
}

/// A connected socket's peer: pid, uid and gid when the connection was made (`SO_PEERCRED`, unix(7)).
///
/// # Errors
/// What getsockopt(2) says.
pub fn peer(fd: &impl AsFd) -> Result<[i32; 3]> {
    options::<3>(fd.as_fd(), libc::SO_PEERCRED)
}

/// The port and the first 32 groups of a netlink socket (netlink(7)).
///
/// # Errors
/// What getsockname(2) says.
pub fn netlink_name(fd: BorrowedFd<'_>) -> Result<(u32, u32)> {
    let mut address = netlink_address(0);
    let mut len = length(size_of::<libc::sockaddr_nl>());
    let raw = fd.as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes into `address`; both outlive the call.
    let ret = unsafe { libc::getsockname(raw, (&raw mut address).cast(), &raw mut len) };
    if ret < 0 {
        return Err(SysError::last("getsockname", format!("{raw}")));
    }
    Ok((address.nl_pid, address.nl_groups))
}

/// The port and groups that a netlink socket is connected to; zero for the kernel, as for one that is not connected.
///
/// # Errors
/// What getpeername(2) says.
pub fn netlink_peer(fd: BorrowedFd<'_>) -> Result<Option<(u32, u32)>> {
    let mut address = netlink_address(0);
    let mut len = length(size_of::<libc::sockaddr_nl>());
    let raw = fd.as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes into `address`; both outlive the call.
    let ret = unsafe { libc::getpeername(raw, (&raw mut address).cast(), &raw mut len) };
    match SysError::last("getpeername", format!("{raw}")) {
        _ if ret == 0 => Ok(Some((address.nl_pid, address.nl_groups))),
        e if e.errno == Errno::NOTCONN => Ok(None),
        e => Err(e),
    }
}

/// Gives a netlink socket a port.
///
/// # Errors
/// `EADDRINUSE`.
pub fn netlink_bind(fd: BorrowedFd<'_>, port: u32) -> Result<()> {
    let address = netlink_address(port);
    let len = length(size_of::<libc::sockaddr_nl>());
    let raw = fd.as_raw_fd();
    // SAFETY: `address` is as long as `len` says and outlives the call.
    let ret = unsafe { libc::bind(raw, (&raw const address).cast(), len) };
    if ret < 0 { Err(SysError::last("bind", format!("{raw}, netlink port {port}"))) } else { Ok(()) }
}

fn netlink_address(port: u32) -> libc::sockaddr_nl {
    // SAFETY: all zeroes is a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = family(libc::AF_NETLINK);
    address.nl_pid = port;
    address
}
