//! What a process has of mount namespaces that it does not live in, beside open files: refused by name.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::NsId;
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
