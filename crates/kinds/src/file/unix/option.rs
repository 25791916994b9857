//! Options of a socket that differ from those of a new one.
//! *Read from:* getsockopt.
//! *Made again by:* setsockopt.
//! *Lost:* nothing; a socket filter is refused.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_sys::sock;

use crate::{Cause, Result};

/// Options of socket(7) and unix(7) whose value is one number, by number: `SO_REUSEADDR`, `SO_DONTROUTE`,
/// `SO_BROADCAST`, `SO_SNDBUF`, `SO_RCVBUF`, `SO_KEEPALIVE`, `SO_OOBINLINE`, `SO_NO_CHECK`, `SO_PRIORITY`,
/// `SO_PASSCRED`, `SO_RCVLOWAT`, `SO_TIMESTAMP`, `SO_PASSSEC`, `SO_TIMESTAMPNS`, `SO_MARK`, `SO_RXQ_OVFL`,
/// `SO_PEEK_OFF`, `SO_PASSPIDFD`, `SO_PASSRIGHTS`.
const NUMBERS: &[i32] =
    &[2, 5, 6, SNDBUF, RCVBUF, 9, 10, 11, 12, PASSCRED, 18, 29, PASSSEC, 35, 36, 40, 42, PASSPIDFD, 83];
const SNDBUF: i32 = 7;
const RCVBUF: i32 = 8;
const LINGER: i32 = 13;
const PASSCRED: i32 = 16;
const RCVTIMEO: i32 = 20;
const SNDTIMEO: i32 = 21;
const PASSSEC: i32 = 34;
const PASSPIDFD: i32 = 76;

/// Settings of a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `(SO_*, value)` where it is not what a new socket has; buffers in bytes as setsockopt takes them.
    pub numbers: Vec<(i32, i32)>,
    /// `SO_LINGER` in seconds, if it is on.
    pub linger: Option<i32>,
    /// `SO_RCVTIMEO` and `SO_SNDTIMEO`: seconds and microseconds, zero for none.
    pub timeouts: [(i64, i64); 2],
}

/// The options of `fd` that differ from those of `new`, a socket of the same type.
///
/// # Errors
/// `Unsupported` for a socket filter.
pub fn collect(fd: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<Record> {
    if sock::filter(fd)? != 0 {
        return Err(Cause::unsupported("a socket filter (SO_ATTACH_FILTER)"));
    }
    let mut numbers = Vec::new();
    for option in NUMBERS {
        let (Some(value), usual) = (sock::option(fd, *option)?, sock::option(new, *option)?) else { continue };
        if Some(value) != usual {
            // The kernel tells twice what it was given.
            numbers.push((*option, if matches!(*option, SNDBUF | RCVBUF) { value / 2 } else { value }));
        }
    }
    let [on, seconds] = sock::options::<2>(fd, LINGER)?;
    let timeouts = [timeout(fd, RCVTIMEO)?, timeout(fd, SNDTIMEO)?];
    Ok(Record { numbers, linger: (on != 0).then_some(seconds), timeouts })
}

/// Sets them, on a socket that may have other buffers already.
///
/// # Errors
/// The kernel's; `Corrupt` for an option that no socket of ours has.
pub fn rebuild(record: &Record, fd: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<()> {
    let Record { numbers, linger, timeouts } = record;
    if let Some(usual) = sock::option(new, SNDBUF)? {
        sock::set_options(fd, SNDBUF, [usual / 2])?;
    }
    for (option, value) in numbers {
        if !NUMBERS.contains(option) {
            return Err(Cause::corrupt(format!("a socket with the option {option}")));
        }
        sock::set_options(fd, *option, [*value])?;
    }
    if let Some(seconds) = linger {
        sock::set_options(fd, LINGER, [1, *seconds])?;
    }
    for (option, (seconds, micros)) in [RCVTIMEO, SNDTIMEO].into_iter().zip(timeouts) {
        if (*seconds, *micros) != (0, 0) {
            let [a, b] = halves(*seconds);
            let [c, d] = halves(*micros);
            sock::set_options(fd, option, [a, b, c, d])?;
        }
    }
    Ok(())
}

/// As much room for sending as the kernel gives: what was queued must be queued again whatever it costs.
///
/// # Errors
/// The kernel's.
pub fn make_room(fd: BorrowedFd<'_>) -> Result<()> {
    Ok(sock::set_options(fd, SNDBUF, [i32::MAX / 4])?)
}

/// Whether messages carry who sent them.
///
/// # Errors
/// The kernel's.
pub fn tells_sender(fd: BorrowedFd<'_>) -> Result<bool> {
    for option in [PASSCRED, PASSSEC, PASSPIDFD] {
        if sock::option(fd, option)?.is_some_and(|v| v != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn timeout(fd: BorrowedFd<'_>, option: i32) -> Result<(i64, i64)> {
    let [a, b, c, d] = sock::options::<4>(fd, option)?;
    Ok((whole([a, b]), whole([c, d])))
}

fn whole([low, high]: [i32; 2]) -> i64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low.to_ne_bytes());
    bytes[4..].copy_from_slice(&high.to_ne_bytes());
    i64::from_ne_bytes(bytes)
}

fn halves(n: i64) -> [i32; 2] {
    let [a, b, c, d, e, f, g, h] = n.to_ne_bytes();
    [i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h])]
}
