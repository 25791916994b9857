//! Looking for the path of an inode in the tree's file system.
//! *Read from:* directories, breadth first: what programs have in hand lies seldom deep.
//! *Made again by:* nothing here.
//! *Lost:* nothing; what is not found within the time is refused by whoever asks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, OFlags, fstatfs};

use super::Gather;
use crate::Result;

/// How long the file system is searched for.
const PATIENCE: Duration = Duration::from_secs(20);
/// `PROC_SUPER_MAGIC`, `SYSFS_MAGIC`: endless, and nothing that is looked for.
const SKIPPED: &[i64] = &[0x9fa0, 0x6265_6572];

/// Shows `visit` every path from `begin` on and the inode number that it is listed with, until it says that it has seen
/// enough. A directory comes with 0: where something is mounted, its own number is another.
///
/// # Errors
/// `visit`'s own.
pub fn everywhere(gather: &Gather<'_>, begin: &[u8], visit: &mut dyn FnMut(&[u8], u64) -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    let root = if begin == b"/" { Vec::new() } else { begin.to_vec() };
    let mut places = VecDeque::from([root]);
    while let Some(place) = places.pop_front() {
        if since.elapsed() > PATIENCE {
            return Ok(());
        }
        let shown = if place.is_empty() { &b"/"[..] } else { &place };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let Ok(fd) = gather.open_inside(shown, flags) else { continue };
        if fstatfs(&fd).is_ok_and(|s| SKIPPED.contains(&s.f_type)) {
            continue;
        }
        if visit(shown, 0)? {
            return Ok(());
        }
        let Ok(entries) = Dir::new(fd) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let path = [&place, &b"/"[..], name].concat();
            if entry.file_type() == FileType::Directory {
                places.push_back(path);
            } else if visit(&path, entry.ino())? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Another name of a file whose own was removed: beside the old one, or anywhere.
///
/// # Errors
/// None of its own.
pub fn other_name(gather: &Gather<'_>, gone: &[u8], stat: &rustix::fs::Stat) -> Result<Option<Vec<u8>>> {
    let end = gone.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let mut found = None;
    for begin in [&gone[..end], b"/"] {
        let begin = if begin.is_empty() { b"/" } else { begin };
        everywhere(gather, begin, &mut |path, ino| {
            if ino == stat.st_ino && gather.leads_to(path, stat) {
                found = Some(path.to_vec());
            }
            Ok(found.is_some())
        })?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}
