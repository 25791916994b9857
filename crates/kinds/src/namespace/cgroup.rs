//! A cgroup namespace inside a container, whose root is the control group that its tasks are in (cgroup_namespaces(7)): who is in it sees its own as the root.
//! *Read from:* /proc/PID/cgroup of a process that lives in it, by a thread that has joined it.
//! *Made again by:* a child, in the control group where the container's tasks will be, that enters a new one.
//! *Lost:* that a task was in another control group than the container's or the tree's first task, and with it the limits of that, by name: a restored task is where its
//! container is. Refused: a namespace with another root. Only a container whose root is the host's (`--userns host`) can have any.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_proc::cgroup::{self, Membership};
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

/// Tasks that are not in the control groups of `home`: for each list of such groups its tasks, in the order of their ids. Each of `tasks`, of which the
/// first is the process itself, are the threads of a process; of threads only those are told that are elsewhere than their process.
///
/// # Errors
/// The kernel's, but for tasks that have ended meanwhile.
pub fn apart(proc: BorrowedFd<'_>, home: i32, tasks: &[Vec<i32>]) -> Result<BTreeMap<String, Vec<i32>>> {
    let read = |tid: i32| match read_proc(proc, &format!("{tid}/cgroup")) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.errno, Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(e) => Err(e),
    };
    let Some(home) = read(home)? else { return Ok(BTreeMap::new()) };
    let mut all: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for threads in tasks {
        let mut own = None;
        for tid in threads {
            let Some(text) = read(*tid)? else { continue };
            if text != home && own.as_ref() != Some(&text) {
                all.entry(differing(&text, &home)?).or_default().push(*tid);
            }
            own.get_or_insert(text);
        }
    }
    Ok(all)
}

/// The groups that are not the same, with the hierarchies that they are in.
fn differing(text: &[u8], home: &[u8]) -> Result<String> {
    let home = cgroup::parse(home)?;
    let groups = cgroup::parse(text)?;
    let name = |group: &Membership| match &group.controllers[..] {
        [] => group.path.escape_ascii().to_string(),
        controllers => format!("{} ({})", group.path.escape_ascii(), controllers.join(&b","[..]).escape_ascii()),
    };
    Ok(groups.iter().filter(|group| !home.contains(group)).map(name).collect::<Vec<_>>().join(", "))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_named() {
        let home = b"9:name=systemd:/\n2:cpu,cpuacct:/a\n0::/a\n";
        assert_eq!(differing(b"9:name=systemd:/\n2:cpu,cpuacct:/a/b\n0::/a\n", home).unwrap(), "/a/b (cpu,cpuacct)");
        assert_eq!(
            differing(b"9:name=systemd:/\x1b\n2:cpu,cpuacct:/a\n0::/c\n", home).unwrap(),
            "/\\x1b (name=systemd), /c"
        );
    }
}
