//! What rustix lacks of mounts (mount_setattr(2)).

use std::os::fd::{AsFd, AsRawFd};

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

use crate::{Result, SysError};

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes of a tree of mounts that `open_tree` has made.
///
/// # Errors
/// `EPERM` for a mount of a namespace that is not ours, `EINVAL` for attributes that cannot be set.
pub fn set_attributes(tree: &impl AsFd, set: MountAttrFlags) -> Result<()> {
    change(tree, set, libc::AT_RECURSIVE)
}

/// Sets attributes of the mount whose root this is, and of none below it.
///
/// # Errors
/// As [`set_attributes`].
pub fn set_attributes_of_one(root: &impl AsFd, set: MountAttrFlags) -> Result<()> {
    change(root, set, 0)
}

/// Gives the mount whose root this is exactly these attributes, times of access among them, and this propagation (`MS_PRIVATE` ...).
///
/// # Errors
/// `EPERM` for what is locked.
pub fn furnish(root: &impl AsFd, attributes: MountAttrFlags, propagation: MountPropagationFlags) -> Result<()> {
    let all = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR__ATIME
        | MountAttrFlags::MOUNT_ATTR_NODIRATIME
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    let attr = MountAttr {
        set: attributes.bits().into(),
        clear: all.bits().into(),
        propagation: propagation.bits().into(),
        userns_fd: 0,
    };
    call(root, &attr, 0, || format!("{attributes:?}, {propagation:?}"))
}

fn change(tree: &impl AsFd, set: MountAttrFlags, recursive: i32) -> Result<()> {
    let attr = MountAttr { set: set.bits().into(), clear: 0, propagation: 0, userns_fd: 0 };
    call(tree, &attr, recursive, || format!("{set:?}"))
}

fn call(tree: &impl AsFd, attr: &MountAttr, recursive: i32, shown: impl FnOnce() -> String) -> Result<()> {
    let raw = tree.as_fd().as_raw_fd();
    let flags = libc::AT_EMPTY_PATH | recursive;
    let size = std::mem::size_of::<MountAttr>();
    // SAFETY: the path is an empty C string, `attr` has the kernel's layout; both outlive the call.
    let ret =
        unsafe { libc::syscall(libc::SYS_mount_setattr, raw, c"".as_ptr(), flags, std::ptr::from_ref(attr), size) };
    if ret < 0 { Err(SysError::last("mount_setattr", format!("{raw}, \"\", {}", shown()))) } else { Ok(()) }
}
