//! Which paths lead to the inodes that are watched.
//! *Read from:* the paths that the tree's processes have open or stand in, and their parents; then the whole file system.
//! *Made again by:* nothing here; see the parent module.
//! *Lost:* nothing; a watch on something without a path is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags};
use yendor_image::Bytes;
use yendor_proc::Dev;
use yendor_proc::fdinfo::{Detail, InotifyWatch};

use super::super::{Gather, Record as AnyRecord, search};
use super::{Record, Watch, add};
use crate::{Cause, Named, Result};

/// `IN_ATTRIB`: any event will do to be told an inode's number.
const ANY: u32 = 4;
type Key = (u64, u32, u32);

fn key(ino: u64, dev: Dev) -> Key {
    (ino, dev.major, dev.minor)
}

struct Search {
    missing: BTreeSet<Key>,
    inodes: BTreeSet<u64>,
    found: BTreeMap<Key, Bytes>,
}

/// Once all descriptions are known: the paths of every inotify's watches.
///
/// # Errors
/// `Unsupported` for an inode that no path leads to.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let all = std::mem::take(&mut gather.inotifies);
    let missing: BTreeSet<Key> = all.values().flatten().map(|w| key(w.ino, w.dev)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut search = Search { inodes: missing.iter().map(|k| k.0).collect(), missing, found: BTreeMap::new() };
    for hint in hints(gather) {
        search.look_at(&hint, gather)?;
    }
    search.everywhere(gather)?;
    for (id, watches) in all {
        let mut own = Vec::with_capacity(watches.len());
        for InotifyWatch { wd, ino, dev, mask, .. } in watches {
            let path = search.found.get(&key(ino, dev)).cloned();
            let Dev { major, minor } = dev;
            let what = || format!("an inotify watches inode {ino} of device {major}:{minor}, which no path leads to");
            own.push(Watch { number: wd, path: path.ok_or_else(|| Cause::unsupported(what()))?, mask });
        }
        own.sort_by_key(|w| w.number);
        if let Some(AnyRecord::Inotify(Record { watches, .. })) =
            gather.entries.get_mut(usize::try_from(id.0).unwrap_or(usize::MAX)).map(|e| &mut e.record)
        {
            *watches = own;
        }
    }
    Ok(())
}

/// Paths of open files and working directories, and of everything above them.
fn hints(gather: &Gather<'_>) -> BTreeSet<Vec<u8>> {
    let mut out = BTreeSet::from([b"/".to_vec()]);
    let mut with_parents = |path: &[u8]| {
        let mut path = path;
        while path.len() > 1 && out.insert(path.to_vec()) {
            let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
            path = &path[..end];
        }
    };
    for entry in &gather.entries {
        if let AnyRecord::Regular(file) = &entry.record {
            with_parents(&file.path.0);
        }
    }
    for pid in gather.pids.keys() {
        if let Ok(cwd) = gather.link(&format!("{pid}/cwd")) {
            with_parents(&cwd.0);
        }
    }
    out
}

impl Search {
    /// Whether the path leads to something that is watched.
    fn look_at(&mut self, path: &[u8], gather: &Gather<'_>) -> Result<()> {
        let Ok(fd) = gather.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW) else { return Ok(()) };
        let Ok(stat) = rustix::fs::fstat(&fd) else { return Ok(()) };
        if !self.inodes.contains(&stat.st_ino) {
            return Ok(());
        }
        if let Some(key) = identify(fd.as_fd(), gather)
            && self.missing.remove(&key)
        {
            self.found.insert(key, Bytes(path.to_vec()));
        }
        Ok(())
    }

    fn everywhere(&mut self, gather: &Gather<'_>) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        search::everywhere(gather, b"/", &mut |path, ino| {
            if ino == 0 || self.inodes.contains(&ino) {
                self.look_at(path, gather)?;
            }
            Ok(self.missing.is_empty())
        })
    }
}

/// The inode as an inotify tells it, which is not always what stat(2) says (overlays).
fn identify(fd: BorrowedFd<'_>, gather: &Gather<'_>) -> Option<Key> {
    let own = inotify::init(CreateFlags::CLOEXEC).named("inotify_init1", String::new).ok()?;
    add(own.as_fd(), &gather.proc, fd, ANY).ok()?;
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let info = gather.read(&format!("{me}/fdinfo/{}", own.as_raw_fd())).ok()?;
    match yendor_proc::fdinfo::parse(&info).ok()?.detail {
        Detail::Inotify(watches) => watches.first().map(|w| key(w.ino, w.dev)),
        _ => None,
    }
}
