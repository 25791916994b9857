//! A word to the keeper of a container that ends by its checkpoint.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use yendor_kinds::{Cause, Named};

use crate::keeper::CHECKPOINTED;

/// Says to the keeper why its container ends. It counts for as long as its maker holds the lock on it: if that dies before it
/// has ended the container, the container runs on and its later end has nothing to do with us.
pub(super) struct Marker {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Marker {
    pub(super) fn make(directory: &Path) -> std::result::Result<Marker, Cause> {
        let path = directory.join(CHECKPOINTED);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).named("open", || CHECKPOINTED.into())?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .named("flock", || CHECKPOINTED.into())?;
        Ok(Marker { path, _lock: lock })
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // The keeper has read it, or the container runs on and it was for nothing.
        let _ = std::fs::remove_file(&self.path);
    }
}
