//! What a process has of mount namespaces that it does not live in, or of mounts that nobody can reach, beside open files: refused by name.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};
use yendor_image::NsId;
use yendor_kinds::file::Gather;
use yendor_kinds::namespace::mount::Places;
use yendor_kinds::{Cause, Named, Result};
use yendor_task::tree::read_proc;

/// Refuses directories of another mount namespace than a process's `own`, and a deleted one of that.
///
/// # Errors
/// `Unsupported`, by name.
pub fn check(proc: &OwnedFd, pid: i32, (places, own): (&Places, Option<NsId>), cwd: &[u8]) -> Result<()> {
    for (name, what) in [("cwd", "working"), ("root", "root")] {
        let path = format!("{pid}/{name}");
        let fd = openat(proc, path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let fd = fd.named("openat", || format!("/proc/{path}"))?;
        let info = read_proc(proc.as_fd(), &format!("self/fdinfo/{}", fd.as_raw_fd()))?;
        if places.of_mount(yendor_proc::fdinfo::parse(&info)?.mnt_id) != own {
            return Err(Cause::unsupported(format!("process {pid} has its {what} directory in another mnt namespace")));
        }
    }
    if own.is_some() && cwd.ends_with(b" (deleted)") {
        return Err(Cause::unsupported(format!(
            "process {pid} has a deleted working directory in a nested mnt namespace"
        )));
    }
    Ok(())
}

/// Refuses directories of processes of the container's mount namespace that their paths lead to no more, where its root has changed its mounts.
///
/// # Errors
/// `Unsupported`, by name.
pub fn covered(gather: &Gather<'_>, pid: i32) -> Result<()> {
    for (name, what) in [("cwd", "working"), ("root", "root")] {
        let link = format!("{pid}/{name}");
        let path = rustix::fs::readlinkat(&gather.proc, link.as_str(), Vec::new());
        let path = path.named("readlinkat", || format!("/proc/{link}"))?.into_bytes();
        if path.ends_with(b" (deleted)") {
            continue;
        }
        let fd = openat(&gather.proc, link.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let there = place_of(&fd.named("openat", || format!("/proc/{link}"))?)?;
        let again = gather.open_inside(&path, OFlags::PATH).ok().map(|fd| place_of(&fd)).transpose()?;
        if again != Some(there) {
            let path = path.escape_ascii();
            let what = format!(
                "{path}: the {what} directory of process {pid}, which a mount covers or that is mounted no more"
            );
            return Err(Cause::unsupported(what));
        }
    }
    Ok(())
}

/// Mount and inode.
fn place_of(fd: &OwnedFd) -> Result<(u64, u64)> {
    let stat = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID | StatxFlags::INO);
    let stat = stat.named("statx", || "a directory".into())?;
    Ok((stat.stx_mnt_id, stat.stx_ino))
}
