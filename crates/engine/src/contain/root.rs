//! The root file system of a container, by where it comes from.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, mount_change, move_mount};
use yendor_kinds::Named;
use yendor_sys::Errno;
use yendor_sys::mount::set_attributes_of_one;

use super::place::{Rootfs, copy_tree};
use super::volume::{self, Given, Pending};
use super::{Caused, cover, layer, open_directory, proc, special};
use crate::request::{Layout, Mount, Net, Placed, Request, Root};

/// A root that is built.
#[derive(Debug)]
pub(super) struct Made {
    /// Where the container's paths begin.
    pub(super) root: Rootfs,
    /// Volumes whose place only the image knows.
    pub(super) pending: Vec<Pending>,
    /// What has to be mounted once there is a pid namespace.
    pub(super) proc: proc::Plan,
}

/// Builds it. The working directory is the container's directory in the state.
///
/// What is mounted in it from now on reaches copies of it. `guarded`: its root has the id of the host's.
pub(super) fn make(request: &Request, given: &Given, guarded: bool) -> Caused<Made> {
    let own_network = request.net != Net::Host;
    let root = match (&request.root, &given.handed.root) {
        (Root::Caller, _) => {
            let root = Rootfs { fd: open_directory("/")? };
            let pending = volume::attach(&root, request, given)?;
            share("/")?;
            return Ok(Made { root, pending, proc: proc::Plan::bare(None, own_network) });
        }
        (Root::Layered, _) => layer::make()?,
        (Root::Dir(_), Some(fd)) => {
            // Device nodes in it are whoever's made it; a container has its own.
            let tree = copy_tree(&volume::again(fd)?, b"", MountAttrFlags::MOUNT_ATTR_NODEV)?;
            stage(&tree)?
        }
        (Root::Dir(path), None) => Err(Errno::BADF).named("open_tree", || format!("{path:?}"))?,
    };
    let mut proc = proc::Plan::bare(Some(proc::place(&root)?), own_network);
    let pending = match &request.layout {
        Some(layout) => lay_out(&root, (request, layout), given, guarded, &mut proc)?,
        None => {
            // A directory is used as it is: where it has no /tmp, it gets none.
            let all = request.root == Root::Layered;
            for mount in special::usual(|path| all || root.find(Path::new(path)).is_ok_and(|found| found.is_some())) {
                special::make(&root, request.net, &mount, guarded)?;
            }
            volume::attach(&root, request, given)?
        }
    };
    share("root")?;
    Ok(Made { root, pending, proc })
}

fn share(path: &str) -> Caused<()> {
    let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    Ok(mount_change(path, flags).named("mount", || format!("{path:?}, MS_SHARED|MS_REC"))?)
}

/// Makes what the caller has listed, then the volumes that the list does not name.
fn lay_out(
    root: &Rootfs,
    (request, layout): (&Request, &Layout),
    given: &Given,
    guarded: bool,
    proc: &mut proc::Plan,
) -> Caused<Vec<Pending>> {
    if !layout.file_systems().any(|m| m.target == Path::new("/dev")) {
        special::make(root, request.net, &special::dev(), guarded)?;
    }
    let mut left: Vec<_> = request.volumes.iter().zip(&given.handed.volumes).collect();
    for placed in &layout.mounts {
        match placed {
            Placed::FileSystem(mount) if mount.fs_type == "proc" => {
                proc.flags |= MountFlags::from_bits_retain(mount.flags);
            }
            Placed::FileSystem(mount) if special::shows_the_host(mount) => {
                let flags = mount.flags | MountFlags::RDONLY.bits();
                special::make(root, request.net, &Mount { flags, ..mount.clone() }, guarded)?;
            }
            Placed::FileSystem(mount) => special::make(root, request.net, mount, guarded)?,
            Placed::Volume(name) => {
                let found = left.iter().position(|(volume, _)| volume.name == *name);
                let found = found.ok_or(Errno::NOENT).named("move_mount", || format!("volume {name:?}"))?;
                let (volume, fd) = left.remove(found);
                volume::put(root, request, volume, fd)?;
            }
        }
    }
    let mut pending = Vec::new();
    for (volume, fd) in left {
        pending.extend(volume::put(root, request, volume, fd)?);
    }
    cover::all(root, layout, proc)?;
    if layout.read_only_root {
        set_attributes_of_one(&root.fd, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    }
    Ok(pending)
}

/// Attaches a tree at `root` in the working directory: pivot_root(2) wants a mount that has a parent.
pub(super) fn stage(tree: &OwnedFd) -> Caused<Rootfs> {
    mkdirat(CWD, "root", Mode::from_raw_mode(0o700)).named("mkdirat", || "state, \"root\"".into())?;
    move_mount(tree, c"", CWD, c"root", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .named("move_mount", || "state, \"root\"".into())?;
    Ok(Rootfs { fd: open_directory("root")? })
}
