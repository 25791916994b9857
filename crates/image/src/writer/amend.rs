//! An image that takes the place of one of ours: what could only be known later is in it.

use super::{RECORDS_FILE, Slot, Writer, linkat, make_partial, openat, remove};
use crate::{Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, renameat, renameat_with};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

impl Writer {
    /// Begins one that will be at the place of this one, which is committed: with its files, but for the records. At any time the one or the
    /// other is there, as a whole.
    pub fn amended(&self) -> Result<Writer> {
        let failed = |op| move |source: io::Error| Error::io(&self.shown, op, source);
        let parent = self.parent.try_clone().map_err(failed("dup"))?;
        let replaces = self.dir.try_clone().map_err(failed("dup"))?;
        let (partial, dir) = make_partial(&parent, &self.name).map_err(|e| failed("mkdir")(e.into()))?;
        let amended = Writer {
            parent,
            dir,
            partial,
            replaces: Some(replaces),
            visible: AtomicBool::new(false),
            name: self.name.clone(),
            shown: self.shown.clone(),
            limits: self.limits,
            generation: self.generation,
            kind: self.kind,
            recipients: self.recipients.clone(),
            compression: self.compression,
            watcher: self.watcher.clone(),
            files: Default::default(),
        };
        for (name, slot) in self.slots().iter().filter(|(name, _)| *name != RECORDS_FILE) {
            let stored = self.stored_name(name, slot.codec);
            let file = match linkat(&self.dir, &stored, &amended.dir, &stored, AtFlags::empty()) {
                Ok(()) => slot.file.try_clone().map_err(failed("dup"))?,
                Err(_) => copied(&amended, &self.dir, &stored)?,
            };
            let slot = Slot { codec: slot.codec, file, done: slot.done, syncing: None };
            amended.slots().insert(name.clone(), slot);
        }
        Ok(amended)
    }

    /// Exchanges the directory for the image `old` at the final name, which goes. Another one there, made meanwhile, stays.
    pub(super) fn replace(&self, old: &OwnedFd) -> Result<()> {
        let (parent, partial, name) = (&self.parent, &self.partial, &self.name);
        let exchange = || renameat_with(parent, partial, parent, name, RenameFlags::EXCHANGE);
        let failed = |op| move |errno: Errno| Error::io(&self.shown, op, errno);
        if !is_at(old, parent, name) {
            return Err(failed("exchange")(Errno::STALE));
        }
        match exchange() {
            Ok(()) => {}
            // A file system that cannot: for a moment the old one has a name that nobody takes for half an image.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut aside = name.clone();
                aside.push(format!(".before-{}", std::process::id()));
                renameat(parent, name, parent, &aside).map_err(failed("rename"))?;
                if !is_at(old, parent, &aside) {
                    renameat(parent, &aside, parent, name).map_err(failed("rename back"))?;
                    return Err(failed("exchange")(Errno::STALE));
                }
                if let Err(errno) = renameat(parent, partial, parent, name) {
                    renameat(parent, &aside, parent, name).map_err(failed("rename back"))?;
                    return Err(failed("rename")(errno));
                }
                rustix::fs::fsync(parent).map_err(failed("fsync"))?;
                remove(parent, &aside, old);
                return Ok(());
            }
            Err(errno) => return Err(failed("exchange")(errno)),
        }
        if !is_at(old, parent, partial) {
            let _ = exchange();
            return Err(failed("exchange")(Errno::STALE));
        }
        if let Err(errno) = rustix::fs::fsync(parent) {
            // Not durable is not done: back to the hidden name, where the drop finds it.
            let _ = exchange();
            return Err(failed("fsync")(errno));
        }
        remove(parent, partial, old);
        Ok(())
    }
}

/// Whether a directory lies at a name.
pub(super) fn is_at(directory: &OwnedFd, parent: &OwnedFd, name: &OsStr) -> bool {
    let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let same = |a: rustix::fs::Stat, b: rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    rustix::fs::fstat(directory).and_then(|ours| Ok(same(ours, there?))).unwrap_or(false)
}

/// A copy, where a file cannot have one more name.
fn copied(to: &Writer, from: &OwnedFd, stored: &str) -> Result<File> {
    let failed = |source: io::Error| Error::io(stored, "copy", source);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut old = File::from(openat(from, stored, flags, Mode::empty()).map_err(|e| failed(e.into()))?);
    let mut new = to.create_new(stored)?;
    old.rewind().and_then(|()| io::copy(&mut old, &mut new)).map_err(failed)?;
    Ok(new)
}
