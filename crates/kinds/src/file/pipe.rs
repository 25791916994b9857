//! A pipe, both its ends; the content serves named pipes too.
//! *Read from:* `F_GETPIPE_SZ`; tee(2) copies the content without taking it; poll tells whether anybody has the other end.
//! *Made again by:* pipe2 in the workshop, each description opened anew through /proc, the content written piece by piece.
//! *Lost:* the inode number; whether a small write may still join the last buffer (it may, as after a write). An end that
//! is held outside as well as inside the tree is not seen.
//!
//! A pipe is a ring of buffers, and it is full when all are in use, however little is in each. So the content is a list of
//! buffers, not of bytes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice, tee};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};

use super::{Entry, FileKind, Gather, Seen, Workshop, regular};
use crate::{Cause, Named, Result};

const O_LARGEFILE: u32 = 0o100_000;

/// One description of one end; which end, the access mode says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which pipe: the id of its first description.
    pub pipe: FileId,
    /// What is in it; with the first description only.
    pub content: Option<Content>,
}

/// What is in a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Bytes that it can hold.
    pub capacity: u64,
    /// The buffers in use, oldest first.
    pub buffers: Vec<Buffer>,
}

/// A buffer of a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// Its unread bytes.
    pub data: Bytes,
    /// Whether a read ends with it (`O_DIRECT`).
    pub packet: bool,
}

impl FileKind for Record {
    const NAME: &'static str = "pipe";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::Fifo && seen.link.0.starts_with(b"pipe:[")
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        // The content follows in `finish`, when all descriptions are known.
        Ok(Record { pipe: gather.object(Self::NAME, seen), content: None })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { pipe, content } = self;
        let key = (Self::NAME, u64::from(pipe.0));
        if let std::collections::btree_map::Entry::Vacant(place) = workshop.objects.entry(key) {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).named("pipe2", String::new)?;
            place.insert(vec![read, write]);
        }
        let ends = workshop.object(key)?;
        rebuild_end(&workshop.proc, ends, content.as_ref(), entry.flags)
    }
}

/// A description of an end of the pipe that `[read, write]` are the ends of, filled if this record brings the content.
///
/// # Errors
/// The kernel's; `Corrupt` for content that does not fit.
pub fn rebuild_end(proc: &OwnedFd, ends: &[OwnedFd], content: Option<&Content>, flags: u32) -> Result<OwnedFd> {
    let [read, write] = ends else { return Err(Cause::corrupt("an object that is no pipe")) };
    if let Some(content) = content {
        fill(write, content)?;
    }
    let mode = OFlags::from_bits_retain(flags) & OFlags::ACCMODE;
    let from = if mode == OFlags::RDONLY { read } else { write };
    // Only pipe2 makes descriptions without this flag, one for each end: these are they.
    if flags & O_LARGEFILE == 0 && mode != OFlags::RDWR {
        return Ok(rustix::io::fcntl_dupfd_cloexec(from, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?);
    }
    // Not blocking: of a named pipe the other end may never come.
    regular::reopen(proc, from.as_fd(), mode | OFlags::NONBLOCK)
}

fn fill(write: &OwnedFd, content: &Content) -> Result<()> {
    let Content { capacity, buffers } = content;
    let wanted = usize::try_from(*capacity).unwrap_or(usize::MAX);
    if get_size(write)? != wanted {
        set_size(write, wanted)?;
    }
    if buffers.is_empty() {
        return Ok(());
    }
    let before = rustix::fs::fcntl_getfl(write).named("fcntl", || "F_GETFL".into())?;
    set_flags(write, OFlags::NONBLOCK)?;
    // Written into a pipe of its own, a piece becomes a buffer of its own, and whole buffers move from pipe to pipe.
    let (read, own) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).named("pipe2", String::new)?;
    for Buffer { data, packet } in buffers {
        let len = data.0.len();
        let too_much = || Cause::corrupt(format!("a buffer of {len} bytes does not fit into a pipe for {capacity}"));
        if len > get_size(&own)? {
            set_size(&own, len.min(wanted))?;
        }
        set_flags(&own, if *packet { OFlags::NONBLOCK | OFlags::DIRECT } else { OFlags::NONBLOCK })?;
        let n = rustix::io::write(&own, &data.0).named("write", || format!("{len} bytes to a pipe"))?;
        let moved = splice(&read, None, write, None, len, SpliceFlags::NONBLOCK);
        match moved {
            Ok(moved) if moved == len && n == len => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN) => return Err(too_much()),
            Err(e) => return Err(yendor_sys::SysError::new("splice", format!("{len}"), e).into()),
        }
    }
    set_flags(write, before)
}

fn set_flags(fd: &OwnedFd, flags: OFlags) -> Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, flags).named("fcntl", || format!("F_SETFL, {flags:?}"))?)
}

fn get_size(fd: &OwnedFd) -> Result<usize> {
    Ok(fcntl_getpipe_size(fd).named("fcntl", || "F_GETPIPE_SZ".into())?)
}

fn set_size(fd: &OwnedFd, size: usize) -> Result<()> {
    fcntl_setpipe_size(fd, size).named("fcntl", || format!("F_SETPIPE_SZ, {size}"))?;
    Ok(())
}

/// The descriptions of one pipe that the tree holds.
#[derive(Debug, Default)]
struct Ends {
    readers: Vec<FileId>,
    writers: Vec<FileId>,
    named: bool,
}

/// Once all descriptions are known: whether ends are held outside, and the content of every pipe.
///
/// # Errors
/// `Unsupported` for a pipe whose other end is outside.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let mut pipes: BTreeMap<FileId, Ends> = BTreeMap::new();
    for entry in &gather.entries {
        let (pipe, named) = match &entry.record {
            super::Record::Pipe(r) => (r.pipe, false),
            super::Record::Fifo(r) => (r.pipe, true),
            _ => continue,
        };
        let ends = pipes.entry(pipe).or_default();
        ends.named = named;
        let mode = OFlags::from_bits_retain(entry.flags) & OFlags::ACCMODE;
        if mode != OFlags::WRONLY {
            ends.readers.push(entry.id);
        }
        if mode != OFlags::RDONLY {
            ends.writers.push(entry.id);
        }
    }
    for (id, ends) in pipes {
        let content = content(gather, id, &ends).map_err(|e| gather.held(id, e))?;
        match gather.entries.get_mut(id.0 as usize).map(|e| &mut e.record) {
            Some(super::Record::Pipe(r)) => r.content = Some(content),
            Some(super::Record::Fifo(r)) => r.content = Some(content),
            _ => return Err(Cause::unsupported("a pipe without a first description")),
        }
    }
    Ok(())
}

fn content(gather: &Gather<'_>, id: FileId, ends: &Ends) -> Result<Content> {
    let ours = gather.ours(id)?;
    let capacity = fcntl_getpipe_size(ours).named("fcntl", || "F_GETPIPE_SZ".into())? as u64;
    let outside = |end: &str| {
        let link = gather.link_of(ours).unwrap_or_default();
        Err(Cause::unsupported(format!("{link}: its {end} end is held outside of the tree")))
    };
    let Some(reader) = ends.readers.first() else {
        if !has(ours, PollFlags::ERR)? {
            return outside("reading");
        }
        // Nobody will ever read it.
        return Ok(Content { capacity, buffers: Vec::new() });
    };
    let reader = gather.ours(*reader)?;
    let buffers = copy(reader, usize::try_from(capacity).unwrap_or(usize::MAX))?;
    if ends.writers.is_empty()
        && !has(reader, PollFlags::HUP)?
        && !(ends.named && buffers.is_empty() && at_end(reader)?)
    {
        return outside("writing");
    }
    Ok(Content { capacity, buffers })
}

fn has(fd: BorrowedFd<'_>, flag: PollFlags) -> Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).named("poll", || format!("{flag:?}"))?;
    Ok(fds[0].revents().contains(flag))
}

/// Whether an empty named pipe has no writer: poll does not tell a reader that came before the first one.
fn at_end(reader: BorrowedFd<'_>) -> Result<bool> {
    let (_read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).named("pipe2", String::new)?;
    match tee(reader, &write, 1, SpliceFlags::NONBLOCK) {
        Ok(n) => Ok(n == 0),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(e) => Err(yendor_sys::SysError::new("tee", "1, SPLICE_F_NONBLOCK", e).into()),
    }
}

/// What can be read, without reading it: buffer by buffer.
fn copy(reader: BorrowedFd<'_>, capacity: usize) -> Result<Vec<Buffer>> {
    const PAGE: usize = 4096;
    let waiting = waiting(reader)?;
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let new = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).named("pipe2", String::new);
    let (all, write) = new()?;
    // Whoever has many pipes gets small ones (fs.pipe-user-pages-soft, pipe(7)): little content fits into these.
    let large = if get_size(&write)? < capacity { set_size(&write, capacity) } else { Ok(()) };
    let n = tee(reader, &write, waiting, SpliceFlags::NONBLOCK).named("tee", || format!("{waiting}"))?;
    if n != waiting {
        large?;
        return Err(Cause::unsupported(format!("a pipe with {waiting} bytes of which only {n} can be copied")));
    }
    // A pipe with room for one buffer takes exactly the next one from the copy.
    let (one, one_write) = new()?;
    set_size(&one_write, PAGE)?;
    // In one with more room, a read that goes on into what follows tells that the buffer was no packet.
    let (test, test_write) = new()?;
    let mut buffers = Vec::new();
    let mut left = waiting;
    let moved = |from: &OwnedFd, to: &OwnedFd, most: usize| {
        splice(from, None, to, None, most, SpliceFlags::NONBLOCK).named("splice", || format!("{most}"))
    };
    while left > 0 {
        let len = moved(&all, &one_write, left)?;
        let again = moved(&one, &test_write, len)?;
        rustix::io::write(&test_write, b"\0").named("write", || "1 byte to a pipe".into())?;
        let mut data = vec![0; len + 1];
        let n = rustix::io::read(&test, &mut data[..]).named("read", || format!("{len} bytes of a pipe"))?;
        let packet = n == len;
        if packet {
            rustix::io::read(&test, &mut [0u8; 1][..]).named("read", || "1 byte of a pipe".into())?;
        }
        if len == 0 || again != len || n < len || len > left {
            return Err(Cause::unsupported("a pipe whose content cannot be read back"));
        }
        data.truncate(len);
        left -= len;
        buffers.push(Buffer { data: Bytes(data), packet });
    }
    Ok(buffers)
}

fn waiting(reader: BorrowedFd<'_>) -> Result<usize> {
    let n = rustix::io::ioctl_fionread(reader).named("ioctl", || "FIONREAD".into())?;
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}
