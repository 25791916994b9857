//! The lines of inotify and fanotify. Source: `fs/notify/fdinfo.c`.

use super::{end, last};
use crate::Dev;
use crate::field::{Line, Result, number};

/// A file handle, for open_by_handle_at(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    /// `handle_type`.
    pub kind: u32,
    /// `f_handle`.
    pub bytes: Vec<u8>,
}

/// A watch of an inotify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode watched.
    pub ino: u64,
    /// Its device.
    pub dev: Dev,
    /// `IN_*` mask.
    pub mask: u32,
    /// Always 0.
    pub ignored_mask: u32,
    /// Handle of the inode, if its file system gives handles.
    pub handle: Option<Handle>,
}

/// What a fanotify mark is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FanotifyTarget {
    /// An inode.
    Inode {
        /// Number.
        ino: u64,
        /// Device.
        dev: Dev,
        /// Handle, if its file system gives handles.
        handle: Option<Handle>,
    },
    /// A mount, by its id.
    Mount(u32),
    /// A file system.
    FileSystem(Dev),
    /// A mount namespace, by inode number (Linux 6.14).
    MountNamespace(u64),
}

/// A mark of a fanotify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanotifyMark {
    /// What it is on.
    pub target: FanotifyTarget,
    /// `FAN_MARK_*` flags.
    pub mark_flags: u32,
    /// Events.
    pub mask: u32,
    /// Ignored events.
    pub ignored_mask: u32,
}

pub(super) fn inotify(mut line: Line<'_>) -> Result<InotifyWatch> {
    line.tag("inotify wd:")?;
    // proc_pid_fdinfo(5) says decimal; the kernel prints hexadecimal.
    let wd = line.hex("wd")?;
    let ino = tagged(&mut line, "ino:")?;
    let dev = Dev::from_kernel(tagged(&mut line, "sdev:")?);
    let mask = tagged(&mut line, "mask:")?;
    let ignored_mask = tagged(&mut line, "ignored_mask:")?;
    let handle = handle(&mut line)?;
    Ok(InotifyWatch { wd, ino, dev, mask, ignored_mask, handle })
}

/// Flags of the group and of its events.
pub(super) fn fanotify_head(mut line: Line<'_>) -> Result<(u32, u32)> {
    line.tag("fanotify")?;
    let flags = tagged(&mut line, "flags:")?;
    line.tag("event-flags:")?;
    Ok((flags, last(&mut line, "event-flags", Line::hex)?))
}

/// `None` for a mark on something that is not known.
pub(super) fn fanotify(mut line: Line<'_>) -> Result<Option<FanotifyMark>> {
    line.tag("fanotify")?;
    line.skip_blanks();
    let mut target = if line.starts("ino:") {
        let ino = tagged(&mut line, "ino:")?;
        let dev = Dev::from_kernel(tagged(&mut line, "sdev:")?);
        FanotifyTarget::Inode { ino, dev, handle: None }
    } else if line.starts("mnt_id:") {
        FanotifyTarget::Mount(tagged(&mut line, "mnt_id:")?)
    } else if line.starts("mnt_ns:") {
        line.tag("mnt_ns:")?;
        FanotifyTarget::MountNamespace(line.dec("mnt_ns")?)
    } else if line.starts("sdev:") {
        FanotifyTarget::FileSystem(Dev::from_kernel(tagged(&mut line, "sdev:")?))
    } else {
        return Ok(None);
    };
    let mark_flags = tagged(&mut line, "mflags:")?;
    let mask = tagged(&mut line, "mask:")?;
    let ignored_mask = tagged(&mut line, "ignored_mask:")?;
    match &mut target {
        FanotifyTarget::Inode { handle: slot, .. } => *slot = handle(&mut line)?,
        _ => end(&mut line, "ignored_mask")?,
    }
    Ok(Some(FanotifyMark { target, mark_flags, mask, ignored_mask }))
}

/// A hexadecimal number after its tag.
fn tagged<T: TryFrom<i128>>(line: &mut Line<'_>, tag: &'static str) -> Result<T> {
    line.tag(tag)?;
    line.hex(tag)
}

/// The end of the line, with a handle or nothing on it.
fn handle(line: &mut Line<'_>) -> Result<Option<Handle>> {
    line.skip_blanks();
    if line.rest().is_empty() {
        return Ok(None);
    }
    let length: usize = tagged(line, "fhandle-bytes:")?;
    let kind = tagged(line, "fhandle-type:")?;
    line.tag("f_handle:")?;
    let digits = line.word().unwrap_or_default();
    let bytes: Option<Vec<u8>> = digits.chunks(2).map(|pair| number(pair, 16)).collect();
    end(line, "f_handle")?;
    match bytes {
        Some(bytes) if bytes.len() == length && digits.len().is_multiple_of(2) => Ok(Some(Handle { kind, bytes })),
        _ => Err(line.bad("f_handle")),
    }
}
