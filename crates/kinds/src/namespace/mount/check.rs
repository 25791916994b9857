//! What a record of mounts cannot say.
//! *Read from:* a record alone.
//! *Made again by:* nothing here: what could not have been is damage, before anything is made.
//! *Lost:* nothing.

use rustix::mount::MountAttrFlags;

use super::{Mount, Record, System, Type, What};
use crate::{Cause, Result};

/// Refuses what could not have been.
///
/// # Errors
/// `Corrupt`.
pub fn check(record: &Record) -> Result<()> {
    let Record { mounts } = record;
    let corrupt = |what: &str| Err(Cause::corrupt(format!("a mount namespace {what}")));
    if mounts.is_empty() {
        return corrupt("without mounts");
    }
    check_all(mounts)?;
    if mounts.iter().enumerate().any(|(number, mount)| mount.on.is_none() != (number == 0)) {
        return corrupt("with a mount that hangs on none");
    }
    let odd = |(number, late): (usize, bool)| late && (number == 0 || !record.mounts[number].may_be_late());
    if record.late().enumerate().any(odd) {
        return corrupt("with a mount on the proc of a pid namespace");
    }
    Ok(())
}

/// `mount-max`, sysctl(8), of `fs`.
pub(super) const MOST: usize = 100_000;

/// What holds of all mounts in a list.
pub(super) fn check_all(mounts: &[Mount]) -> Result<()> {
    let corrupt = |what: &str| Err(Cause::corrupt(format!("a mount namespace {what}")));
    if mounts.len() > MOST {
        return corrupt("with too many mounts");
    }
    for (number, mount) in mounts.iter().enumerate() {
        let before = |n: u32| usize::try_from(n).is_ok_and(|n| n < number);
        let path = |path: &[u8]| is_plain(path.strip_prefix(b"/"));
        if !mount.on.is_none_or(before) || !path(&mount.point.0) {
            return corrupt("with a mount that hangs on none");
        }
        let fine = match &mount.what {
            What::Outside(outside) => path(&outside.0),
            What::Part { of, path } => is_part_of(*of, mounts) && is_plain(Some(&path.0)),
            What::New(System { fs_type, options, root, content, pids }) => {
                let known = |(name, _): &(String, Option<String>)| fs_type.options().contains(&name.as_str());
                (pids.is_none() || *fs_type == Type::Proc && root.0.is_empty())
                    && is_plain(Some(&root.0))
                    && options.iter().all(known)
                    && content.is_some() == fs_type.is_filled()
            }
        };
        if !fine || !are_attributes(mount.attributes) {
            return corrupt("with a mount that cannot be");
        }
    }
    Ok(())
}

/// Whether these are attributes that a record can have.
pub(super) fn are_attributes(bits: u32) -> bool {
    let known = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR__ATIME
        | MountAttrFlags::MOUNT_ATTR_NODIRATIME
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    bits & !known.bits() == 0
}

fn is_part_of(of: u32, mounts: &[Mount]) -> bool {
    let of = usize::try_from(of).ok().and_then(|n| mounts.get(n));
    of.is_some_and(|mount| matches!(mount.what, What::New(_)))
}

/// Whether a relative path leads nowhere else.
pub(super) fn is_plain(path: Option<&[u8]>) -> bool {
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..") || part.contains(&0);
    path.is_some_and(|path| path.is_empty() || !path.split(|b| *b == b'/').any(odd))
}
