//! What the kernel tells about one open descriptor.
//!
//! Source: proc_pid_fdinfo(5); `fs/proc/fd.c`, `seq_show`, then the file's own `show_fdinfo`. The lines common to all files
//! come first, then locks, then those of the kind.

mod watch;

use std::iter::Peekable;

pub use watch::{FanotifyMark, FanotifyTarget, Handle, InotifyWatch};

use crate::Dev;
use crate::ParseError;
use crate::field::{Line, Result, lines};
use crate::locks::{self, Lock};

const FILE: &str = "fdinfo";

/// One descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdInfo {
    /// File offset, bytes.
    pub pos: i64,
    /// `O_*` flags of the description, with `O_CLOEXEC` of the descriptor.
    pub flags: u32,
    /// Mount of the file: an id of `mountinfo`, or of a mount that is not attached.
    pub mnt_id: i32,
    /// Inode number (Linux 5.14).
    pub ino: Option<u64>,
    /// Locks and leases of the file that this process (or this description) holds.
    pub locks: Vec<Lock>,
    /// Lines of the kind.
    pub detail: Detail,
    /// Lines that are not known, as printed.
    pub leftover: Vec<Vec<u8>>,
}

/// What kinds of file print about themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// Nothing: most files, but also an epoll without targets and an inotify without watches.
    None,
    /// eventfd(2).
    Eventfd(Eventfd),
    /// epoll(7): the targets, in no order.
    Epoll(Vec<EpollTarget>),
    /// inotify(7): the watches.
    Inotify(Vec<InotifyWatch>),
    /// fanotify(7).
    Fanotify {
        /// Flags of `fanotify_init`, without `FAN_CLOEXEC` and `FAN_NONBLOCK`.
        flags: u32,
        /// `O_*` flags for the descriptors in events.
        event_flags: u32,
        /// Marks.
        marks: Vec<FanotifyMark>,
    },
    /// signalfd(2): bit 0 is signal 1.
    Signalfd {
        /// Signals that it takes.
        mask: u64,
    },
    /// timerfd_create(2).
    Timerfd(Timerfd),
    /// pidfd_open(2).
    Pidfd {
        /// Process, in the reader's pid namespace; 0 if not visible there, -1 if it has been reaped.
        pid: i32,
        /// Its ids from the reader's pid namespace inwards; empty if the kernel does not say.
        ns_pids: Vec<i32>,
    },
    /// Master of a pseudo-terminal.
    TtyIndex(i32),
    /// Unix socket.
    UnixSocket {
        /// Descriptors in flight in its receive queue.
        scm_fds: u32,
    },
    /// userfaultfd(2).
    Userfaultfd(Userfaultfd),
    /// io_uring(7): all its lines, as printed.
    IoUring(Vec<Vec<u8>>),
}

/// State of an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eventfd {
    /// Counter.
    pub count: u64,
    /// Number of the eventfd, the same in every descriptor of it (Linux 5.2).
    pub id: Option<i32>,
    /// `EFD_SEMAPHORE` (Linux 6.5).
    pub semaphore: Option<bool>,
}

/// A target of an epoll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpollTarget {
    /// Descriptor at the time when it was added: may since be closed, or be another file.
    pub tfd: i32,
    /// `EPOLL*` mask.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// Offset of the target, bytes.
    pub pos: i64,
    /// Inode of the target.
    pub ino: u64,
    /// Device of the target.
    pub dev: Dev,
}

/// State of a timerfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timerfd {
    /// `CLOCK_*`.
    pub clock: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// `TFD_TIMER_*` flags of the last timerfd_settime(2).
    pub settime_flags: u32,
    /// Time to the next expiration, seconds and nanoseconds, relative even for an absolute timer; zero is disarmed or due.
    pub value: (u64, u64),
    /// Period.
    pub interval: (u64, u64),
}

/// State of a userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Userfaultfd {
    /// Faults that nobody has read.
    pub pending: u64,
    /// Faults that wait.
    pub total: u64,
    /// `UFFD_API`.
    pub api: u64,
    /// Features in use.
    pub features: u32,
    /// Features that this kernel has.
    pub available: u64,
}

/// Parses `/proc/PID/fdinfo/FD`.
///
/// # Errors
/// A missing or malformed line of a known kind, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<FdInfo> {
    let lines = lines(FILE, text)?;
    let end = ParseError { file: FILE, line: lines.len().max(1), what: "" };
    let (mut pos, mut flags, mut mnt_id, mut ino) = (None, None, None, None);
    let mut locks = Vec::new();
    let mut detail = Detail::None;
    let mut leftover = Vec::new();
    let mut rest = lines.into_iter().peekable();
    while let Some(line) = rest.next() {
        let Some((key, mut value)) = line.key() else {
            leftover.push(line.rest().to_vec());
            continue;
        };
        match key {
            "pos" if pos.is_none() => pos = Some(last(&mut value, "pos", Line::dec)?),
            "flags" if flags.is_none() => flags = Some(last(&mut value, "flags", Line::oct)?),
            "mnt_id" if mnt_id.is_none() => mnt_id = Some(last(&mut value, "mnt_id", Line::dec)?),
            "ino" if ino.is_none() => ino = Some(last(&mut value, "ino", Line::dec)?),
            "lock" => {
                value.advance(1);
                locks.push(locks::lock(value)?);
            }
            _ => {
                let known = of_kind(&mut detail, key, line, value, &mut rest)?;
                if !known {
                    leftover.push(line.rest().to_vec());
                }
            }
        }
    }
    let missing = |what| move || ParseError { what, ..end };
    Ok(FdInfo {
        pos: pos.ok_or_else(missing("pos"))?,
        flags: flags.ok_or_else(missing("flags"))?,
        mnt_id: mnt_id.ok_or_else(missing("mnt_id"))?,
        ino,
        locks,
        detail,
        leftover,
    })
}

/// A value that must be the last of its line: these lines have nowhere to keep a stray word.
fn last<'a, T>(
    line: &mut Line<'a>,
    what: &'static str,
    read: impl Fn(&mut Line<'a>, &'static str) -> Result<T>,
) -> Result<T> {
    let value = read(line, what)?;
    end(line, what)?;
    Ok(value)
}

fn end(line: &mut Line<'_>, what: &'static str) -> Result<()> {
    if line.word().is_some() { Err(line.bad(what)) } else { Ok(()) }
}

type Rest<'a> = Peekable<std::vec::IntoIter<Line<'a>>>;

/// Takes a line of a kind, with the lines that go with it; false if it is not known here.
fn of_kind<'a>(
    detail: &mut Detail,
    key: &str,
    line: Line<'a>,
    mut value: Line<'a>,
    rest: &mut Rest<'a>,
) -> Result<bool> {
    // Kinds with one line per item go on; all others may come once.
    match detail {
        Detail::Epoll(targets) if key == "tfd" => targets.push(epoll_target(line)?),
        Detail::Inotify(watches) if key == "inotify wd" => watches.push(watch::inotify(line)?),
        Detail::Fanotify { marks, .. } if line.starts("fanotify ") && key != "fanotify flags" => {
            let Some(mark) = watch::fanotify(line)? else { return Ok(false) };
            marks.push(mark);
        }
        Detail::None => match first_of_kind(key, line, &mut value, rest)? {
            Some(made) => *detail = made,
            None => return Ok(false),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

fn first_of_kind<'a>(key: &str, line: Line<'a>, value: &mut Line<'a>, rest: &mut Rest<'a>) -> Result<Option<Detail>> {
    Ok(Some(match key {
        "eventfd-count" => Detail::Eventfd(eventfd(value, rest)?),
        "tfd" => Detail::Epoll(vec![epoll_target(line)?]),
        "inotify wd" => Detail::Inotify(vec![watch::inotify(line)?]),
        "fanotify flags" => {
            let (flags, event_flags) = watch::fanotify_head(line)?;
            Detail::Fanotify { flags, event_flags, marks: Vec::new() }
        }
        "sigmask" => Detail::Signalfd { mask: last(value, "sigmask", Line::hex)? },
        "clockid" => Detail::Timerfd(timerfd(value, rest)?),
        "Pid" => pidfd(value, rest)?,
        "tty-index" => Detail::TtyIndex(last(value, "tty-index", Line::dec)?),
        "scm_fds" => Detail::UnixSocket { scm_fds: last(value, "scm_fds", Line::dec)? },
        "pending" => Detail::Userfaultfd(userfaultfd(value, rest)?),
        "SqMask" => {
            let own = std::iter::once(line).chain(rest.by_ref());
            Detail::IoUring(own.map(|l| l.rest().to_vec()).collect())
        }
        _ => return Ok(None),
    }))
}

/// The next line, if it has this key: the line behind the key.
fn next_if<'a>(rest: &mut Rest<'a>, key: &str) -> Option<Line<'a>> {
    let line = rest.next_if(|line| line.key().is_some_and(|(found, _)| found == key))?;
    line.key().map(|(_, value)| value)
}

/// The next line, which must have this key.
fn next<'a>(rest: &mut Rest<'a>, before: &Line<'a>, key: &'static str) -> Result<Line<'a>> {
    next_if(rest, key).ok_or_else(|| before.bad(key))
}

fn eventfd<'a>(count: &mut Line<'a>, rest: &mut Rest<'a>) -> Result<Eventfd> {
    let count = last(count, "eventfd-count", Line::hex)?;
    let id = next_if(rest, "eventfd-id").map(|mut l| last(&mut l, "eventfd-id", Line::dec)).transpose()?;
    let semaphore = match next_if(rest, "eventfd-semaphore") {
        None => None,
        Some(mut line) => match last(&mut line, "eventfd-semaphore", Line::dec)? {
            0_u8 => Some(false),
            1 => Some(true),
            _ => return Err(line.bad("eventfd-semaphore")),
        },
    };
    Ok(Eventfd { count, id, semaphore })
}

fn epoll_target(mut line: Line<'_>) -> Result<EpollTarget> {
    line.tag("tfd:")?;
    let tfd = line.dec("tfd")?;
    line.tag("events:")?;
    let events = line.hex("events")?;
    line.tag("data:")?;
    let data = line.hex("data")?;
    line.tag("pos:")?;
    let pos = line.dec("pos")?;
    line.tag("ino:")?;
    let ino = line.hex("ino")?;
    line.tag("sdev:")?;
    let dev = Dev::from_kernel(last(&mut line, "sdev", Line::hex)?);
    Ok(EpollTarget { tfd, events, data, pos, ino, dev })
}

fn timerfd<'a>(clock: &mut Line<'a>, rest: &mut Rest<'a>) -> Result<Timerfd> {
    let ticks = &mut next(rest, clock, "ticks")?;
    let flags = &mut next(rest, clock, "settime flags")?;
    let value = &mut next(rest, clock, "it_value")?;
    let interval = &mut next(rest, clock, "it_interval")?;
    Ok(Timerfd {
        clock: last(clock, "clockid", Line::dec)?,
        ticks: last(ticks, "ticks", Line::dec)?,
        settime_flags: last(flags, "settime flags", Line::oct)?,
        value: last(value, "it_value", timespec)?,
        interval: last(interval, "it_interval", timespec)?,
    })
}

/// `(seconds, nanoseconds)`.
fn timespec(line: &mut Line<'_>, what: &'static str) -> Result<(u64, u64)> {
    line.tag("(").map_err(|_| line.bad(what))?;
    let seconds = line.number_until(b',', 10, what)?;
    let nanoseconds = line.number_until(b')', 10, what)?;
    Ok((seconds, nanoseconds))
}

fn pidfd<'a>(pid: &mut Line<'a>, rest: &mut Rest<'a>) -> Result<Detail> {
    let pid = last(pid, "Pid", Line::dec)?;
    let ns_pids = match next_if(rest, "NSpid") {
        Some(mut line) => line.list("NSpid")?,
        None => Vec::new(),
    };
    Ok(Detail::Pidfd { pid, ns_pids })
}

fn userfaultfd<'a>(pending: &mut Line<'a>, rest: &mut Rest<'a>) -> Result<Userfaultfd> {
    let total = &mut next(rest, pending, "total")?;
    let api = &mut next(rest, pending, "API")?;
    Ok(Userfaultfd {
        pending: last(pending, "pending", Line::dec)?,
        total: last(total, "total", Line::dec)?,
        api: api.number_until(b':', 16, "API")?,
        features: api.number_until(b':', 16, "API")?,
        available: last(api, "API", Line::hex)?,
    })
}

#[cfg(test)]
mod tests;
