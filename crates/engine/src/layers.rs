//! The file systems that are a container's own: what a checkpoint takes with it and a restore fills.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use yendor_image::{Bytes, Reader};
use yendor_kinds::namespace::layer;
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named, Result};

use crate::hole;
use crate::request::{Mount, Request, Root};

/// The file systems that are the container's alone: the layer by its upper directory, and tmpfs mounts.
pub(crate) fn own(request: &Request, directory: &OwnedFd) -> Result<Vec<(Bytes, OwnedFd)>> {
    const TMPFS: i64 = 0x0102_1994;
    let mut out = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if request.root == Root::Layered {
        let upper = rustix::fs::openat(directory, "upper", flags, Mode::empty()).named("openat", || "upper".into())?;
        out.push((Bytes(b"/".to_vec()), upper));
    }
    if request.root != Root::Caller {
        for mount in tmpfs(request) {
            let Ok(fd) = rustix::fs::open(mount, flags, Mode::empty()) else { continue };
            if rustix::fs::fstatfs(&fd).named("fstatfs", || format!("{mount:?}"))?.f_type == TMPFS {
                out.push((Bytes(mount.as_os_str().as_bytes().to_vec()), fd));
            }
        }
    }
    Ok(out)
}

/// Where a container has a tmpfs whose content is its own.
fn tmpfs(request: &Request) -> Vec<&Path> {
    match &request.layout {
        None => ["/tmp", "/run", "/dev/shm"].map(Path::new).to_vec(),
        Some(layout) => {
            let own = |m: &&Mount| m.fs_type == "tmpfs" && m.target != Path::new("/dev");
            layout.file_systems().filter(own).map(|m| m.target.as_path()).collect()
        }
    }
}

/// The file systems of an image, into those of this container.
pub(crate) fn fill(snapshot: &Snapshot, request: &Request, reader: &Reader) -> Result<()> {
    if request.root == Root::Caller && !snapshot.container.layers.is_empty() {
        // The caller's own files are not the image's to change.
        return Err(Cause::corrupt("a process tree that was taken by its pid has no file system of its own"));
    }
    let keep = hole::places(request)?;
    let umask = rustix::process::umask(Mode::empty());
    let filled = snapshot.container.layers.iter().try_for_each(|layer| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount = layer.mount.0.as_slice();
        // A link in the given root leads nowhere else (proc(5)).
        let top = rustix::fs::openat2(CWD, mount, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        let top = top.named("openat2", || layer.mount.to_string())?;
        hole::check_layer(layer, &top)?;
        layer::rebuild(layer, &top, &keep, reader)
    });
    rustix::process::umask(umask);
    filled
}
