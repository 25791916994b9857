//! Room for a send queue. The kernel lets a send buffer grow while it sends far beyond what SO_SNDBUF allows to all but
//! the host's root. In a network of its own the container's root may say how large a new socket's buffer is instead.
//! *Read from:* nothing of its own: the length of the recorded queue.
//! *Made again by:* `SO_SNDBUFFORCE` as the host's root, else `net.ipv4.tcp_wmem` of the container for one socket.
//! *Lost:* nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use yendor_sys::{SysError, inet};

use super::Family;
use crate::file::Workshop;
use crate::{Cause, Named, Result};

const SOCKET: i32 = 1;
const SNDBUF: i32 = 7;
const SNDBUFFORCE: i32 = 32;
/// The smallest, the first and the largest size of send buffers (tcp(7)).
const WMEM: &str = "sys/net/ipv4/tcp_wmem";
/// What no send queue reaches: the kernel's default for the largest is 4 MiB.
const MOST: usize = 1 << 28;

/// A new TCP socket that can hold `bytes` that wait to be sent.
///
/// # Errors
/// The kernel's, when neither way is open.
pub fn socket(workshop: &Workshop<'_>, family: Family, bytes: usize) -> Result<OwnedFd> {
    // The kernel counts what the bytes occupy: half empty pages, and a header for each piece.
    let wanted = bytes.saturating_mul(2).saturating_add(1 << 16);
    let made = family.new_socket(true)?;
    let wanted = match i32::try_from(wanted) {
        Ok(fits) if wanted <= MOST => fits,
        _ => return Err(Cause::corrupt(format!("{bytes} bytes that wait to be sent"))),
    };
    if has(made.as_fd(), wanted)? || force(made.as_fd(), wanted)? {
        return Ok(made);
    }
    drop(made);
    let file = rustix::fs::openat(&workshop.proc, WMEM, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .named("openat", || WMEM.into())?;
    let mut text = [0; 256];
    let n = rustix::io::pread(&file, &mut text[..], 0).named("pread64", || WMEM.into())?;
    let before = text.get(..n).unwrap_or_default().trim_ascii();
    let write = |line: &[u8]| -> std::result::Result<usize, SysError> {
        rustix::io::pwrite(&file, line, 0).named("pwrite64", || format!("{WMEM}, \"{}\"", line.escape_ascii()))
    };
    write(format!("4096 {wanted} {wanted}").as_bytes())?;
    let made = family.new_socket(true);
    write(before)?;
    let made = made?;
    if has(made.as_fd(), wanted)? {
        return Ok(made);
    }
    let what = format!("room for {bytes} bytes that wait to be sent");
    Err(Cause::of_machine(what, "net.core.wmem_max of the host"))
}

fn has(fd: BorrowedFd<'_>, wanted: i32) -> Result<bool> {
    Ok(inet::number(fd, SOCKET, SNDBUF)? >= wanted)
}

/// Whether the host's root asks.
fn force(fd: BorrowedFd<'_>, wanted: i32) -> Result<bool> {
    Ok(inet::set_number(fd, SOCKET, SNDBUFFORCE, wanted / 2 + 1).is_ok() && has(fd, wanted)?)
}
