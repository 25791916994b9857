//! Which nested mount namespace a file was opened in.
//! *Read from:* mountinfo of a thread that has joined it: the ids of its mounts, which fdinfo tells of a file.
//! *Made again by:* nothing here; the mounts are made by [`super`].
//! *Lost:* nothing.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use yendor_image::NsId;
use yendor_proc::mountinfo::{self, Mount as Line};
use yendor_task::tree::read_proc;

use super::enter;
use crate::namespace::nested::in_thread;
use crate::{Named, Result};

/// Nested mount namespaces of which files may be open.
#[derive(Debug, Clone, Default)]
pub struct Places(pub Arc<Vec<Place>>);

/// One of them.
#[derive(Debug)]
pub struct Place {
    /// Its number in the image.
    pub id: NsId,
    /// What is mounted.
    pub lines: Vec<Line>,
    /// Its root directory.
    pub root: OwnedFd,
    ids: BTreeSet<i32>,
    /// Device and inode of its root directory.
    inode: (u64, u64),
}

impl Places {
    /// The namespace that a mount is in; none for one of the container's, or of no namespace at all.
    #[must_use]
    pub fn of_mount(&self, mount: i32) -> Option<NsId> {
        self.0.iter().find(|place| place.ids.contains(&mount)).map(|place| place.id)
    }

    /// The one with this number.
    #[must_use]
    pub fn get(&self, id: NsId) -> Option<&Place> {
        self.0.iter().find(|place| place.id == id)
    }

    /// Device and inode of the root of one; of none those of the container's, `home`.
    #[must_use]
    pub fn root(&self, id: Option<NsId>, home: (u64, u64)) -> (u64, u64) {
        id.and_then(|id| self.get(id)).map_or(home, |place| place.inode)
    }
}

impl Place {
    /// Looks into a namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(id: NsId, namespace: &OwnedFd, proc: impl AsFd + Sync) -> Result<Place> {
        let (lines, root) = in_thread(|| {
            enter(namespace)?;
            let lines = mountinfo::parse(&read_proc(proc.as_fd(), "thread-self/mountinfo")?)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, Mode::empty());
            Ok((lines, root.named("open", || "the root of a nested mnt namespace".into())?))
        })?;
        let stat = rustix::fs::fstat(&root).named("fstat", || "the root of a nested mnt namespace".into())?;
        let ids = lines.iter().map(|line| line.id).collect();
        Ok(Place { id, lines, root, ids, inode: (stat.st_dev, stat.st_ino) })
    }
}
