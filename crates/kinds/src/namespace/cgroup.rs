//! A cgroup namespace inside a container, whose root is the control group that its tasks are in (cgroup_namespaces(7)): who is in it sees its own as the root.
//! *Read from:* /proc/PID/cgroup of a process that lives in it, by a thread that has joined it.
//! *Made again by:* a child, in the control group where the container's tasks will be, that enters a new one.
//! *Lost:* nothing. Refused: one with another root. Only a container whose root is the host's (`--userns host`) can have any.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_proc::cgroup;
use yendor_sys::Errno;
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_task::tree::read_proc;

use super::nested::{Kind, enter, in_thread};
use super::user::{self, elsewhere, its};
use crate::{Cause, Result};

/// Looks whether its root is where the process `resident` is.
///
/// # Errors
/// `Unsupported` where it is not; the kernel's.
pub fn check(namespace: &OwnedFd, proc: BorrowedFd<'_>, resident: i32) -> Result<()> {
    let text = in_thread(|| {
        enter(namespace, Kind::Cgroup)?;
        Ok(read_proc(proc, &format!("{resident}/cgroup"))?)
    })?;
    match cgroup::parse(&text)?.iter().find(|one| one.path != b"/") {
        Some(other) => {
            let path = other.path.escape_ascii();
            Err(Cause::unsupported(format!(
                "a cgroup namespace with another root than its tasks' control group ({path})"
            )))
        }
        None => Ok(()),
    }
}

/// Makes it again, belonging to the user namespace `owner` or to the caller's, who has one thread. `adopt` moves a process to where the
/// container's tasks will be.
///
/// # Errors
/// The kernel's; a hole where the container may have none.
pub fn rebuild(
    owner: Option<&OwnedFd>,
    proc: BorrowedFd<'_>,
    adopt: impl FnOnce(i32) -> Result<()>,
) -> Result<OwnedFd> {
    let new = || {
        owner.map_or(Ok(()), user::enter)?;
        Ok(unshare(Namespaces::NEWCGROUP)?)
    };
    let take = |pid| its(proc, pid, "cgroup");
    let made = elsewhere((proc, owner.map(AsFd::as_fd)), "cgroup", || Ok(Vec::new()), |pid, _| adopt(pid), new, take);
    made.map_err(|e| match e {
        Cause::Sys(e) if e.errno == Errno::NOSPC => {
            let what = "a cgroup namespace, which only a container whose root is the host's can have".into();
            Cause::Hole { what, option: "--userns host".into() }
        }
        e => e,
    })
}
