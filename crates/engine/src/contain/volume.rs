//! What the caller hands in, opened by the front with the caller's own rights before anything else happens.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::mount::MountAttrFlags;
use yendor_kinds::{Cause, Named};
use yendor_sys::mount::set_attributes;
use yendor_sys::{Errno, SysError};

use super::Caused;
use super::place::{Rootfs, copy_tree};
use crate::error::{At, Result, Step, With};
use crate::request::{Request, Root, Volume};

/// What a request names on the host, opened.
#[derive(Debug)]
pub struct Handed {
    /// The directory of [`Root::Dir`].
    pub root: Option<OwnedFd>,
    /// The volumes, in the order of the request.
    pub volumes: Vec<OwnedFd>,
}

/// Descriptors that travel with a request.
#[derive(Debug)]
pub struct Given {
    /// The container's own directory on the host, empty.
    pub state: OwnedFd,
    /// What the caller hands in.
    pub handed: Handed,
}

impl Handed {
    /// Opens it. In the front.
    ///
    /// # Errors
    /// What the caller may not reach, or what is not there.
    pub fn open(request: &Request) -> Result<Handed> {
        let root = match &request.root {
            Root::Dir(path) => {
                Some(place(path, OFlags::DIRECTORY).at(Step::Admit).kind("root", path.display().to_string())?)
            }
            Root::Layered | Root::Caller => None,
        };
        let one = |v: &Volume| place(&v.host, OFlags::empty()).at(Step::Admit).kind("volume", v.name.clone());
        let volumes = request.volumes.iter().map(one).collect::<Result<_>>()?;
        Ok(Handed { root, volumes })
    }
}

fn place(path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, SysError> {
    open(path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).named("open", || format!("{path:?}"))
}

/// Where an open place is, as the kernel knows it.
///
/// # Errors
/// What /proc says.
pub fn real_path(fd: &OwnedFd) -> std::result::Result<PathBuf, SysError> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = rustix::fs::readlink(link.as_str(), Vec::new()).named("readlink", || link.clone())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes())))
}

impl Given {
    /// With the container's directory. In the front.
    ///
    /// # Errors
    /// The directory is not there.
    pub fn new(handed: Handed, state: &Path) -> Result<Given> {
        Ok(Given { state: place(state, OFlags::DIRECTORY).at(Step::Admit)?, handed })
    }

    /// The descriptors, to be sent.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(&self.state).chain(&self.handed.root).chain(&self.handed.volumes).map(AsFd::as_fd).collect()
    }

    /// Sorts received descriptors out; those left over belong to somebody else. In the keeper.
    ///
    /// # Errors
    /// `EBADF` when there are too few.
    pub fn received(request: &Request, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Result<Given> {
        let mut next =
            || descriptors.next().ok_or(Errno::BADF).named("recvmsg", || "SCM_RIGHTS".into()).at(Step::Contain);
        Ok(Given {
            state: next()?,
            handed: Handed {
                root: matches!(request.root, Root::Dir(_)).then(&mut next).transpose()?,
                volumes: request.volumes.iter().map(|_| next()).collect::<Result<_>>()?,
            },
        })
    }
}

/// Opens the same place again in this mount namespace: a descriptor from another one cannot be mounted from.
///
/// The keeper has no more rights than the caller, so going by name gives nothing away; the comparison makes it exact.
pub(super) fn again(fd: &OwnedFd) -> Caused<OwnedFd> {
    let path = real_path(fd)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = open(&path, flags, Mode::empty()).named("open", || format!("{path:?}"))?;
    let of = |fd: &OwnedFd| fstat(fd).map(|s| (s.st_dev, s.st_ino)).named("fstat", || format!("{path:?}"));
    if of(fd)? == of(&found)? {
        Ok(found)
    } else {
        Err(SysError::new("open", format!("{path:?}: replaced meanwhile"), Errno::STALE).into())
    }
}

/// A volume that is not in its place yet.
#[derive(Debug)]
pub struct Pending {
    /// Its name.
    pub name: String,
    tree: OwnedFd,
    /// Whether the root is the caller's own.
    is_callers: bool,
}

impl Pending {
    /// Puts it where the image says it was, beneath the root. The image may ask for less: only to read it.
    ///
    /// # Errors
    /// A place that cannot be made.
    pub(super) fn attach(self, root: &Rootfs, inside: &Path, read_only: bool) -> Caused<()> {
        if read_only {
            set_attributes(&self.tree, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        }
        there(root, inside, self.is_callers)?;
        root.attach(&self.tree, inside)
    }
}

/// Puts the volumes in their places; those that have none wait for what the image says.
pub(super) fn attach(root: &Rootfs, request: &Request, given: &Given) -> Caused<Vec<Pending>> {
    let mut pending = Vec::new();
    for (volume, fd) in request.volumes.iter().zip(&given.handed.volumes) {
        pending.extend(put(root, request, volume, fd)?);
    }
    Ok(pending)
}

/// Puts one in its place; it comes back when it has none.
pub(super) fn put(root: &Rootfs, request: &Request, volume: &Volume, fd: &OwnedFd) -> Caused<Option<Pending>> {
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, volume.read_only);
    let tree = copy_tree(&again(fd)?, b"", attributes)?;
    let is_callers = request.root == Root::Caller;
    let Some(inside) = &volume.inside else {
        return Ok(Some(Pending { name: volume.name.clone(), tree, is_callers }));
    };
    there(root, inside, is_callers)?;
    root.attach(&tree, inside)?;
    Ok(None)
}

/// Where the root is the caller's own nothing is made behind the caller's back.
fn there(root: &Rootfs, inside: &Path, is_callers: bool) -> Caused<()> {
    if !is_callers || root.find(inside)?.is_some() {
        return Ok(());
    }
    let what = format!("a directory {}", inside.display());
    Err(Cause::Hole { what, option: format!("mkdir {}", inside.display()) })
}
