//! inotify(7): what it watches.
//! *Read from:* fdinfo, which tells inodes; their paths are looked for where the tree's processes are, then everywhere.
//! *Made again by:* inotify_add_watch under the same numbers, last of all, so that nothing of the restore is told.
//! *Lost:* unread events: in their place the program reads what the kernel itself says of lost events, `IN_Q_OVERFLOW`.

mod search;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_proc::fdinfo::Detail;
use yendor_sys::fd::in_own_directory;
use yendor_sys::{Errno, SysError, event};

use super::{Entry, FileKind, Gather, Seen, Workshop, regular};
use crate::{Cause, Named, Result};

pub use search::finish;

/// Bytes of an event without a name.
const EVENT: usize = 16;

/// An inotify instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it watches, by number.
    pub watches: Vec<Watch>,
    /// Whether events waited to be read.
    pub unread: bool,
}

/// A watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Its number.
    pub number: i32,
    /// The absolute path of what it watches.
    pub path: Bytes,
    /// `IN_*`.
    pub mask: u32,
}

impl FileKind for Record {
    const NAME: &'static str = "inotify";

    fn claims(seen: &Seen) -> bool {
        matches!(seen.info.detail, Detail::Inotify(_)) || seen.link.0 == b"anon_inode:inotify"
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        if let Detail::Inotify(watches) = &seen.info.detail {
            gather.inotifies.insert(seen.id, watches.clone());
        }
        // The paths follow in `finish`: the more files are known, the sooner they are found.
        Ok(Record { watches: Vec::new(), unread: unread(seen.fd.as_fd())? > 0 })
    }

    fn rebuild(&self, _entry: &Entry, _workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        // The watches follow in `watch_all`.
        let Record { watches: _, unread: _ } = self;
        Ok(inotify::init(CreateFlags::CLOEXEC).named("inotify_init1", || "IN_CLOEXEC".into())?)
    }
}

fn unread(fd: BorrowedFd<'_>) -> Result<usize> {
    let n = rustix::io::ioctl_fionread(fd).named("ioctl", || "FIONREAD".into())?;
    Ok(usize::try_from(n).unwrap_or(usize::MAX))
}

/// When the restore touches no file any more: the watches of every inotify.
///
/// # Errors
/// The kernel's; a hole for a path that is no more.
pub fn watch_all(workshop: &Workshop<'_>) -> Result<()> {
    for entry in workshop.entries() {
        let super::Record::Inotify(Record { watches, unread }) = &entry.record else { continue };
        let fd = workshop.existing(entry.id)?;
        if *unread {
            overflow(fd, workshop)?;
        }
        for Watch { number, path, mask } in watches {
            let target = workshop.find(&path.0, OFlags::PATH | OFlags::NOFOLLOW)?;
            event::next_watch(fd, *number)?;
            let got = add(fd, &workshop.proc, target.as_fd(), *mask)?;
            if got != *number {
                return Err(Cause::corrupt(format!("a watch number {number} after {got}")));
            }
        }
    }
    Ok(())
}

/// Watches the inode behind a descriptor of ours; the number.
fn add(inotify: BorrowedFd<'_>, proc: &OwnedFd, target: BorrowedFd<'_>, mask: u32) -> Result<i32> {
    let path = format!("self/fd/{}", target.as_raw_fd());
    Ok(in_own_directory(|| {
        rustix::process::fchdir(proc).named("fchdir", || "/proc".into())?;
        inotify::add_watch(inotify, path.as_str(), WatchFlags::from_bits_retain(mask))
            .named("inotify_add_watch", || format!("{path}, {mask:#x}"))
    })?)
}

/// Fills the queue until the kernel gives up, and takes out all but its word for that.
fn overflow(inotify: BorrowedFd<'_>, workshop: &Workshop<'_>) -> Result<()> {
    const ACCESS_MODIFY: u32 = 3;
    /// As many events as an administrator may reasonably allow to be queued.
    const PATIENCE: usize = 1 << 22;
    let none = rustix::fs::memfd_create("overflow", rustix::fs::MemfdFlags::CLOEXEC)
        .named("memfd_create", || "overflow".into())?;
    rustix::io::pwrite(&none, b"\0", 0).named("pwrite64", || "1 byte".into())?;
    let target = regular::reopen(&workshop.proc, none.as_fd(), OFlags::RDWR)?;
    let watch = add(inotify, &workshop.proc, target.as_fd(), ACCESS_MODIFY)?;
    let mut before = 0;
    for _ in 0..PATIENCE {
        // Equal events in a row would be one: these take turns.
        rustix::io::pread(&target, &mut [0u8; 1][..], 0).named("pread64", || "1 byte".into())?;
        rustix::io::pwrite(&target, b"\0", 0).named("pwrite64", || "1 byte".into())?;
        let now = unread(inotify)?;
        if now == before {
            break;
        }
        before = now;
    }
    inotify::remove_watch(inotify, watch).named("inotify_rm_watch", || watch.to_string())?;
    let mut left = unread(inotify)?.saturating_sub(EVENT);
    let mut buffer = vec![0u8; 1 << 16];
    while left > 0 {
        let most = left.min(buffer.len());
        let n = rustix::io::read(inotify, &mut buffer[..most]).named("read", || "inotify".into())?;
        left = left.saturating_sub(n);
    }
    match unread(inotify)? {
        EVENT => Ok(()),
        n => Err(SysError::new("ioctl", format!("FIONREAD: {n} bytes after an overflow"), Errno::PROTO).into()),
    }
}
