//! Paths that show nothing, or cannot be written: mounts on top.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::mount::{MountAttrFlags, MountFlags, mount};
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;
use yendor_sys::mount::set_attributes_of_one;

use super::Caused;
use super::place::{Rootfs, by_number, copy_tree, is_directory, put_on};
use super::proc::Plan;
use crate::request::Layout;

/// What of sysfs shows its owner, the host's root, more than everybody, or is somebody else's file system mounted there.
const SYSTEM: [&str; 13] = [
    "firmware",
    "devices/virtual/powercap",
    "devices/virtual/dmi/id/board_serial",
    "devices/virtual/dmi/id/chassis_serial",
    "devices/virtual/dmi/id/product_serial",
    "devices/virtual/dmi/id/product_uuid",
    "fs/bpf",
    "fs/pstore",
    "kernel/debug",
    "kernel/mm/damon",
    "kernel/security",
    "kernel/slab",
    "kernel/tracing",
];

/// What is made of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cover {
    /// It shows nothing.
    Masked,
    /// It cannot be written.
    ReadOnly,
}

/// Makes all of a layout; those below /proc, which is not there yet, join its plan.
pub(super) fn all(root: &Rootfs, layout: &Layout, proc: &mut Plan) -> Caused<()> {
    let read_only = layout.read_only.iter().map(|path| (path, Cover::ReadOnly));
    for (path, cover) in read_only.chain(layout.masked.iter().map(|path| (path, Cover::Masked))) {
        if !path.is_absolute() {
            Err(Errno::INVAL).named("mount", || format!("{path:?}: not an absolute path"))?;
        }
        match path.strip_prefix("/proc") {
            Ok(rest) if rest.as_os_str().is_empty() => return Err(Cause::unsupported("a cover on /proc as a whole")),
            Ok(rest) => proc.covers.push((Path::new("/").join(rest), cover)),
            Err(_) => put(root, path, cover)?,
        }
    }
    Ok(())
}

/// Makes one; what is not there needs no cover.
pub(super) fn put(root: &Rootfs, path: &Path, cover: Cover) -> Caused<()> {
    let found = match root.find(path) {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(()),
        Err(Cause::Sys(e)) if matches!(e.errno, Errno::NOTDIR | Errno::ACCESS) => return Ok(()),
        Err(e) => return Err(e),
    };
    match cover {
        Cover::ReadOnly => {
            let tree = copy_tree(&found, b"", MountAttrFlags::empty())?;
            set_attributes_of_one(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            put_on(&tree, &found, path)
        }
        Cover::Masked if is_directory(&found)? => {
            mount("tmpfs", by_number(&found).as_str(), "tmpfs", MountFlags::RDONLY, None)
                .named("mount", || format!("\"tmpfs\", {path:?}"))?;
            Ok(())
        }
        Cover::Masked => {
            put_on(&copy_tree(&rustix::fs::CWD, b"/dev/null", MountAttrFlags::MOUNT_ATTR_RDONLY)?, &found, path)
        }
    }
}

/// Masks, for a container whose root has the id of the host's, what a sysfs at a place shows that id alone. Among it are the registers
/// and ports of devices on a bus, which a file that is only read gives away, too.
pub(super) fn system(root: &Rootfs, place: &Path) -> Caused<()> {
    for name in SYSTEM {
        put(root, &place.join(name), Cover::Masked)?;
    }
    let devices = place.join("devices");
    let Some(found) = root.find(&devices)? else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = openat(&found, c".", flags, Mode::empty()).and_then(Dir::new);
    for entry in listed.named("open", || format!("{devices:?}"))? {
        let entry = entry.named("getdents64", || format!("{devices:?}"))?;
        let name = entry.file_name().to_bytes();
        if name.starts_with(b"pci") {
            put(root, &devices.join(std::ffi::OsStr::from_bytes(name)), Cover::Masked)?;
        }
    }
    Ok(())
}

/// What is made of a file of /proc for a container whose root has the id of the host's: nothing is shown that an id alone gives, and nothing
/// can be written.
pub(super) fn of_file(root: &Rootfs, path: &Path) -> Caused<Option<Cover>> {
    let Some(found) = root.find(path)? else { return Ok(None) };
    let stat = statat(&found, c"", AtFlags::EMPTY_PATH).named("stat", || format!("{path:?}"))?;
    Ok(match stat.st_mode {
        mode if FileType::from_raw_mode(mode) != FileType::RegularFile => None,
        mode if mode & 0o444 != 0 && mode & 0o004 == 0 => Some(Cover::Masked),
        mode if mode & 0o222 != 0 => Some(Cover::ReadOnly),
        _ => None,
    })
}
