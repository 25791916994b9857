//! Paths that show nothing, or cannot be written: mounts on top, made by the first task once /proc is there.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, StatVfsMountFlags, fstatvfs, statat};
use rustix::mount::MountFlags;
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;

use super::place::Rootfs;
use super::{Caused, LateMount, PROC};
use crate::request::Layout;

/// `MS_REMOUNT`, which is no flag of a new mount.
const REMOUNT: MountFlags = MountFlags::from_bits_retain(32);

/// Appends them for all paths that exist: what is not there needs no cover.
pub(super) fn all(root: &Rootfs, layout: &Layout, host_proc: &OwnedFd, late: &mut Vec<LateMount>) -> Caused<()> {
    for path in &layout.read_only {
        if let Some((_, flags)) = look(root, host_proc, path)? {
            late.push(mount(text(path)?, path, "none", MountFlags::BIND | MountFlags::REC)?);
            let again = REMOUNT | MountFlags::BIND | MountFlags::RDONLY | flags;
            late.push(mount("none".into(), path, "none", again)?);
        }
    }
    for path in &layout.masked {
        match look(root, host_proc, path)? {
            Some((FileType::Directory, _)) => late.push(mount("tmpfs".into(), path, "tmpfs", MountFlags::RDONLY)?),
            Some(_) => late.push(mount("/dev/null".into(), path, "none", MountFlags::BIND)?),
            None => {}
        }
    }
    Ok(())
}

fn mount(source: String, target: &Path, fs_type: &'static str, flags: MountFlags) -> Caused<LateMount> {
    Ok(LateMount { source: source.into(), target: text(target)?.into(), fs_type, flags, data: "" })
}

fn text(path: &Path) -> Caused<String> {
    let text = path.to_str().filter(|text| text.starts_with('/'));
    Ok(text.ok_or(Errno::INVAL).named("mount", || format!("{path:?}: not an absolute path"))?.to_owned())
}

/// What is at a path, and the flags of the mount that it is on. The container's /proc is not there yet: but for the
/// processes, it has what the host's has.
fn look(root: &Rootfs, host_proc: &OwnedFd, path: &Path) -> Caused<Option<(FileType, MountFlags)>> {
    if let Ok(rest) = path.strip_prefix("/proc") {
        if rest.as_os_str().is_empty() {
            return Err(Cause::unsupported("a cover on /proc as a whole"));
        }
        return match statat(host_proc, rest, AtFlags::empty()) {
            Ok(stat) => Ok(Some((FileType::from_raw_mode(stat.st_mode), PROC.flags))),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            Err(e) => Err(e).named("stat", || format!("{path:?}")).map_err(Cause::from),
        };
    }
    let Some(found) = root.find(path)? else { return Ok(None) };
    let stat = statat(&found, c"", AtFlags::EMPTY_PATH).named("stat", || format!("{path:?}"))?;
    let seen = fstatvfs(&found).named("fstatvfs", || format!("{path:?}"))?.f_flag;
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let flags = pairs.into_iter().filter(|p| seen.contains(p.0)).map(|p| p.1).collect();
    Ok(Some((FileType::from_raw_mode(stat.st_mode), flags)))
}
