//! The root file system of a container, by where it comes from.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};
use yendor_kinds::Named;
use yendor_sys::Errno;

use super::place::{Rootfs, copy_tree};
use super::volume::{self, Given, Pending};
use super::{Caused, layer, open_directory, pivot, special};
use crate::request::{Request, Root};

/// Builds it and makes it the root; the old one, unless the caller's view stays as it is. The working directory is the
/// container's directory in the state.
pub(super) fn make(request: &Request, given: &Given) -> Caused<(Option<OwnedFd>, Vec<Pending>)> {
    let root = match (&request.root, &given.handed.root) {
        (Root::Caller, _) => {
            let root = Rootfs { fd: open_directory("/")? };
            let pending = volume::attach(&root, request, given)?;
            return Ok((None, pending));
        }
        (Root::Layered, _) => layer::make()?,
        (Root::Dir(_), Some(fd)) => {
            let tree = copy_tree(&volume::again(fd)?, b"", MountAttrFlags::empty())?;
            stage(&tree)?
        }
        (Root::Dir(path), None) => Err(Errno::BADF).named("open_tree", || format!("{path:?}"))?,
    };
    // A directory is used as it is: where it has no /tmp, it gets none.
    let all = request.root == Root::Layered;
    special::all(&root, request.net, |path| all || root.find(Path::new(path)).is_ok_and(|found| found.is_some()))?;
    let pending = volume::attach(&root, request, given)?;
    Ok((Some(pivot(&root.fd)?), pending))
}

/// Attaches a tree at `root` in the working directory: pivot_root(2) wants a mount that has a parent.
pub(super) fn stage(tree: &OwnedFd) -> Caused<Rootfs> {
    mkdirat(CWD, "root", Mode::from_raw_mode(0o700)).named("mkdirat", || "state, \"root\"".into())?;
    move_mount(tree, c"", CWD, c"root", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .named("move_mount", || "state, \"root\"".into())?;
    Ok(Rootfs { fd: open_directory("root")? })
}
