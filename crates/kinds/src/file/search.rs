//! Looking for the path of an inode in the tree's file system.
//! *Read from:* directories, breadth first: what programs have in hand lies seldom deep.
//! *Made again by:* nothing here.
//! *Lost:* nothing; what is not found within the time is refused by whoever asks.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, OFlags, Stat, fstat, fstatfs};

use yendor_proc::Dev;
use yendor_proc::maps::Map;
use yendor_proc::mountinfo;

use super::Gather;
use crate::{Cause, Named, Result};

/// How long the file system is searched for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long for a name that most likely is not there.
const SHORT: Duration = Duration::from_secs(1);
/// `PROC_SUPER_MAGIC`, `SYSFS_MAGIC`: endless, and nothing that is looked for.
const SKIPPED: &[i64] = &[0x9fa0, 0x6265_6572];

/// Shows `visit` every path from `begin` on and the inode number that it is listed with, until it says that it has seen
/// enough. A directory comes with 0: where something is mounted, its own number is another.
///
/// # Errors
/// `visit`'s own.
pub fn everywhere(gather: &Gather<'_>, begin: &[u8], visit: &mut dyn FnMut(&[u8], u64) -> Result<bool>) -> Result<()> {
    within(PATIENCE, gather, begin, visit).map(drop)
}

/// The same for a time; whether all was seen, or enough.
fn within(
    patience: Duration,
    gather: &Gather<'_>,
    begin: &[u8],
    visit: &mut dyn FnMut(&[u8], u64) -> Result<bool>,
) -> Result<bool> {
    let since = Instant::now();
    let root = if begin == b"/" { Vec::new() } else { begin.to_vec() };
    let mut places = VecDeque::from([root]);
    while let Some(place) = places.pop_front() {
        if since.elapsed() > patience {
            return Ok(false);
        }
        let shown = if place.is_empty() { &b"/"[..] } else { &place };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let Ok(fd) = gather.open_inside(shown, flags) else { continue };
        if fstatfs(&fd).is_ok_and(|s| SKIPPED.contains(&s.f_type)) {
            continue;
        }
        if visit(shown, 0)? {
            return Ok(true);
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
                return Ok(true);
            }
        }
    }
    Ok(true)
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

/// What is known of the names of a mapped file whose own name was removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Names {
    /// There is none.
    None,
    /// There is this one.
    Other(Vec<u8>),
    /// Nobody tells, and it was not found soon.
    Unknown,
}

/// The other names of a file that is mapped and that no description leads to. Only who has the rights of the host's root is told
/// how many there are; else it is looked for where the file system is mounted, the old directory first.
///
/// # Errors
/// `Unsupported` for one that has other names, none of which is found.
pub fn names_of(gather: &Gather<'_>, pid: i32, map: &Map) -> Result<Names> {
    let gone = map.name.strip_suffix(b" (deleted)").unwrap_or(&map.name);
    let path = format!("{pid}/map_files/{:x}-{:x}", map.start, map.end);
    if let Ok(stat) = rustix::fs::statat(&gather.proc, path.as_str(), rustix::fs::AtFlags::empty()) {
        if stat.st_nlink == 0 {
            return Ok(Names::None);
        }
        let shown = gone.escape_ascii();
        let unknown = || Cause::unsupported(format!("{shown}: the file has other names that are not known"));
        return other_name(gather, gone, &stat)?.map(Names::Other).ok_or_else(unknown);
    }
    let end = gone.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let lines = mountinfo::parse(&gather.read(&format!("{pid}/mountinfo"))?)?;
    let mounts = lines.iter().filter(|line| line.dev == map.dev).map(|line| line.mount_point.as_slice());
    let mut all = true;
    for begin in std::iter::once(&gone[..end]).chain(mounts) {
        let begin = if begin.is_empty() { b"/" } else { begin };
        let mut found = None;
        all &= within(SHORT, gather, begin, &mut |path, ino| {
            if ino == map.inode && is_mapped(gather, (path, &lines), map)? {
                found = Some(path.to_vec());
            }
            Ok(found.is_some())
        })?;
        if let Some(path) = found {
            return Ok(Names::Other(path));
        }
    }
    Ok(if all { Names::None } else { Names::Unknown })
}

/// Whether the file of a path is the one that is mapped.
fn is_mapped(gather: &Gather<'_>, (path, lines): (&[u8], &[mountinfo::Mount]), map: &Map) -> Result<bool> {
    let Ok(fd) = gather.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW) else { return Ok(false) };
    let Ok(stat) = rustix::fs::fstat(&fd) else { return Ok(false) };
    let mount = gather.info_of(fd.as_fd())?.mnt_id;
    let shown = lines.iter().find(|line| line.id == mount).map(|line| line.dev);
    Ok(is_shown_as(&stat, shown, map))
}

/// Of overlay and btrfs mappings show the device of the mount, not that of the file.
fn is_shown_as(stat: &Stat, mount: Option<Dev>, map: &Map) -> bool {
    stat.st_ino == map.inode && (mount == Some(map.dev) || stat.st_dev == map.dev.st_dev())
}

/// The devices of mounts, by their ids, as far as they were asked for.
#[derive(Debug, Default)]
pub struct Mounts(BTreeMap<i32, (Dev, bool)>);

impl Mounts {
    /// Whether a file that was opened by the name of a mapping is the one that is mapped: another one may have come there, also by a
    /// mount, and have the same inode number. `pid`: who has mapped it.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn is_same(&mut self, gather: &Gather<'_>, fd: BorrowedFd<'_>, (pid, map): (i32, &Map)) -> Result<bool> {
        let stat = fstat(fd).named("fstat", || map.name.escape_ascii().to_string())?;
        if stat.st_ino != map.inode || is_shown_as(&stat, None, map) {
            return Ok(stat.st_ino == map.inode);
        }
        // The host's root is shown the file itself.
        let path = format!("{pid}/map_files/{:x}-{:x}", map.start, map.end);
        if let Ok(mapped) = rustix::fs::statat(&gather.proc, path.as_str(), rustix::fs::AtFlags::empty())
            && (mapped.st_dev, mapped.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(true);
        }
        let mount = gather.info_of(fd)?.mnt_id;
        if !self.0.contains_key(&mount) {
            // A root that is no mount's is above none of its own: there only we see it.
            for who in [pid, rustix::process::getpid().as_raw_nonzero().get()] {
                let lines = mountinfo::parse(&gather.read(&format!("{who}/mountinfo"))?)?;
                self.0.extend(lines.iter().map(Self::one));
            }
            self.0.extend(gather.lines.iter().map(Self::one));
        }
        // Of an overlay on another one mappings show the device of that one, which no mount here need have.
        Ok(self.0.get(&mount).is_some_and(|(dev, overlay)| *overlay || is_shown_as(&stat, Some(*dev), map)))
    }

    fn one(line: &mountinfo::Mount) -> (i32, (Dev, bool)) {
        (line.id, (line.dev, line.fs_type == b"overlay"))
    }
}
