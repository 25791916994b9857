//! Places beneath a container's root: found and made there without ever leaving it (openat2(2), `RESOLVE_IN_ROOT`).

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat};
use rustix::mount::{MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;
use yendor_sys::mount::set_attributes;

use super::Caused;

/// The new root while it is built: nothing in it may lead out of it, whoever wrote it.
#[derive(Debug)]
pub(super) struct Rootfs {
    pub(super) fd: OwnedFd,
}

impl Rootfs {
    /// What is at a path, if anything; a symbolic link is followed beneath the root.
    pub(super) fn find(&self, path: &Path) -> Caused<Option<OwnedFd>> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.fd, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e).named("openat2", || format!("root, {path:?}")).map_err(Cause::from),
        }
    }

    /// A directory, made with its parents where it is missing.
    pub(super) fn directory(&self, path: &Path) -> Caused<OwnedFd> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        let mut at = self.need(Path::new("/"))?;
        let mut so_far = Path::new("/").to_path_buf();
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            so_far.push(name);
            at = match self.find(&so_far)? {
                Some(found) => found,
                None => {
                    mkdirat(&at, name, Mode::from_raw_mode(0o755)).named("mkdirat", || format!("root, {so_far:?}"))?;
                    self.need(&so_far)?
                }
            };
        }
        Ok(at)
    }

    /// A file, made empty where it is missing: something to mount a file on.
    pub(super) fn file(&self, path: &Path) -> Caused<OwnedFd> {
        if let Some(found) = self.find(path)? {
            return Ok(found);
        }
        let parent = self.directory(path.parent().unwrap_or(Path::new("/")))?;
        let name = path.file_name().ok_or(Errno::ISDIR).named("openat", || format!("root, {path:?}"))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from_raw_mode(0o644)).named("openat", || format!("root, {path:?}"))?;
        self.need(path)
    }

    fn need(&self, path: &Path) -> Caused<OwnedFd> {
        Ok(self.find(path)?.ok_or(Errno::NOENT).named("openat2", || format!("root, {path:?}"))?)
    }

    /// Mounts a new file system on a directory, which is made where it is missing.
    pub(super) fn mount(&self, fs: &str, path: &Path, flags: MountFlags, data: &CStr) -> Caused<()> {
        let target = self.directory(path)?;
        Ok(mount(fs, by_number(&target).as_str(), fs, flags, data)
            .named("mount", || format!("{fs:?}, {path:?}, {fs:?}, {flags:?}, {data:?}"))?)
    }

    /// Attaches a tree of mounts to a directory or file.
    pub(super) fn attach(&self, tree: &OwnedFd, path: &Path) -> Caused<()> {
        let target = if is_directory(tree)? { self.directory(path)? } else { self.file(path)? };
        put_on(tree, &target, path)
    }
}

/// Attaches a tree of mounts to an open place; `path`, for messages.
pub(super) fn put_on(tree: &OwnedFd, target: &OwnedFd, path: &Path) -> Caused<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, c"", target, c"", flags).named("move_mount", || format!("{path:?}"))?)
}

/// A copy of the mounts at and below a place of this mount namespace.
pub(super) fn copy_tree(at: &impl AsFd, path: &[u8], attributes: MountAttrFlags) -> Caused<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree =
        open_tree(at, path, flags).named("open_tree", || format!("{:?}, OPEN_TREE_CLONE", super::shown(path)))?;
    if !attributes.is_empty() {
        set_attributes(&tree, attributes)?;
    }
    Ok(tree)
}

pub(super) fn is_directory(fd: &OwnedFd) -> Caused<bool> {
    let stat = statat(fd, c"", AtFlags::EMPTY_PATH).named("fstat", String::new)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// The path by which mount(2) reaches an open place; there is a /proc in which we are.
pub(super) fn by_number(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
