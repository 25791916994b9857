//! Paths that show nothing, or cannot be written: mounts on top.

use std::path::Path;

use rustix::fs::{AtFlags, FileType, statat};
use rustix::mount::{MountAttrFlags, MountFlags, mount};
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;
use yendor_sys::mount::set_attributes_of_one;

use super::Caused;
use super::place::{Rootfs, by_number, copy_tree, is_directory, put_on};
use super::proc::Plan;
use crate::request::Layout;

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

/// Whether anybody may write the file at a path.
pub(super) fn is_writable(root: &Rootfs, path: &Path) -> Caused<bool> {
    let Some(found) = root.find(path)? else { return Ok(false) };
    let stat = statat(&found, c"", AtFlags::EMPTY_PATH).named("stat", || format!("{path:?}"))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o222 != 0)
}
