//! Calls on sockets with a time limit.
//!
//! A call that waits for a socket is made again after a stop, unless the socket has a limit for such calls (`SO_RCVTIMEO`, `SO_SNDTIMEO`): then
//! it answers `EINTR` (net/core/sock.c and include/net/sock.h, `sock_intr_errno`; signal(7)). Nothing has been received or sent by then, and a connection
//! that connect(2) has begun is waited for by the next as well: so for whoever was stopped only by us it is made again, as without a limit. It has the
//! whole limit again: how much of it was left only the kernel knows.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::net::sockopt::{Timeout, socket_timeout};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use yendor_sys::{SysError, ptrace};

use crate::regs::{Regs, has_failed_interrupted, make_again};

/// The limit that a call on a socket keeps to.
fn kept_to(nr: u64) -> Option<Timeout> {
    const READ: u64 = 0;
    const WRITE: u64 = 1;
    const READV: u64 = 19;
    const WRITEV: u64 = 20;
    const CONNECT: u64 = 42;
    const ACCEPT: u64 = 43;
    const SENDTO: u64 = 44;
    const RECVFROM: u64 = 45;
    const SENDMSG: u64 = 46;
    const RECVMSG: u64 = 47;
    const ACCEPT4: u64 = 288;
    const RECVMMSG: u64 = 299;
    const SENDMMSG: u64 = 307;
    match nr {
        READ | READV | ACCEPT | ACCEPT4 | RECVFROM | RECVMSG | RECVMMSG => Some(Timeout::Recv),
        WRITE | WRITEV | CONNECT | SENDTO | SENDMSG | SENDMMSG => Some(Timeout::Send),
        _ => None,
    }
}

/// If the stopped task was in such a call, and no signal of its own has interrupted it: changes its registers so that the call is made again.
/// Whether it was.
///
/// # Errors
/// The task was killed.
pub fn forget_stop(tid: i32, regs: &mut Regs) -> Result<bool, SysError> {
    let Some(limit) = Some(regs.orig_rax).filter(|_| has_failed_interrupted(regs)).and_then(kept_to) else {
        return Ok(false);
    };
    // What cannot be had is left as it is.
    let limited =
        descriptor(tid, regs.rdi).is_some_and(|fd| socket_timeout(fd, limit).is_ok_and(|limit| limit.is_some()));
    if !limited || signal_waits(tid)? {
        return Ok(false);
    }
    make_again(regs);
    Ok(true)
}

/// A descriptor of a thread, as one of ours.
fn descriptor(tid: i32, number: u64) -> Option<OwnedFd> {
    /// `PIDFD_THREAD`; Linux 6.9.
    const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0x80);
    // The kernel takes 32 bits of it.
    let number = i32::try_from(number & 0xffff_ffff).ok()?;
    // Of a file we would have none: who answers for one of FUSE may be stopped, and is asked once more when it is closed.
    let link = fs::read_link(format!("/proc/{tid}/fd/{number}")).ok()?;
    if !link.as_os_str().as_encoded_bytes().starts_with(b"socket:") {
        return None;
    }
    let pidfd = pidfd_open(Pid::from_raw(tid)?, THREAD).or_else(|e| match process(tid) {
        Some(pid) => pidfd_open(pid, PidfdFlags::empty()),
        None => Err(e),
    });
    pidfd_getfd(pidfd.ok()?, number, PidfdGetfdFlags::empty()).ok()
}

fn process(tid: i32) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let word = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    Pid::from_raw(word.trim().parse().ok()?)
}

/// Whether a signal that it does not block waits for a stopped task.
///
/// # Errors
/// It was killed.
pub fn signal_waits(tid: i32) -> Result<bool, SysError> {
    let mask = ptrace::sigmask(tid)?;
    let mut waiting = ptrace::queued_signals(tid, true)?;
    waiting.extend(ptrace::queued_signals(tid, false)?);
    let number = |info: &[u8; ptrace::SIGINFO]| u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
    let unblocked = |signal: u32| mask.checked_shr(signal.wrapping_sub(1)).is_some_and(|bits| bits & 1 == 0);
    Ok(waiting.iter().map(number).any(unblocked))
}
