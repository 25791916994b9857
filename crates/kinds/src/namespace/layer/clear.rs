//! What lies where a layer is to have something else goes.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx};
use yendor_sys::{Errno, SysError};

use crate::{Named, Result};

/// Takes away what has the name, with everything in it; `false` for a mount point, which stays, and what leads to it.
pub(super) fn remove(parent: &OwnedFd, name: &[u8]) -> Result<bool> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::BUSY) => return Ok(false),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(SysError::new("unlinkat", "", e).into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty()).named("openat", String::new)?;
    let stat = statx(&dir, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).named("statx", String::new)?;
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir).named("getdents64", String::new)? {
        let entry = entry.named("getdents64", String::new)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_bytes().to_vec());
        }
    }
    let mut all = true;
    for inner in names {
        all &= remove(&dir, &inner)?;
    }
    if !all {
        return Ok(false);
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).named("unlinkat", || "AT_REMOVEDIR".into())?;
    Ok(true)
}
