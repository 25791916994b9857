//! Whom the kernel kills together with a copy where memory runs short: cgroups that die as one (cgroups(7),
//! `memory.oom.group`), of this process or above it.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use yendor_kinds::Result;
use yendor_proc::cgroup::{self, Membership};
use yendor_proc::mountinfo::{self, Mount};
use yendor_task::tree::read_proc;

/// Whether a child of a process may take others with it when it is killed for its memory. True also where its cgroup cannot
/// be looked at.
///
/// # Errors
/// What /proc says.
pub fn takes_others(proc: BorrowedFd<'_>, pid: i32) -> Result<bool> {
    let member = cgroup::parse(&read_proc(proc, &format!("{pid}/cgroup"))?)?;
    let mounts = mountinfo::parse(&read_proc(proc, "self/mountinfo")?)?;
    Ok(any(&member, &mounts))
}

fn any(member: &[Membership], mounts: &[Mount]) -> bool {
    // In a hierarchy of version 1 the kernel kills one at a time.
    if member.iter().any(|m| m.controllers.iter().any(|c| c == b"memory")) {
        return false;
    }
    let Some(own) = member.iter().find(|m| m.hierarchy == 0) else { return false };
    let mounts = mounts.iter().filter(|m| m.fs_type == b"cgroup2");
    let Some((top, place)) = mounts.filter_map(|mount| places(mount, own)).next_back() else { return true };
    place.ancestors().take_while(|path| path.starts_with(&top)).any(dies_as_one)
}

/// Where a cgroup file system is mounted, and the group in it, if it shows it.
fn places(mount: &Mount, own: &Membership) -> Option<(PathBuf, PathBuf)> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let (group, top) = (path(&own.path), path(&mount.mount_point));
    // A group outside of our cgroup namespace starts with `..`.
    let beneath = group.strip_prefix(path(&mount.root)).ok()?;
    let plain = beneath.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    plain.then(|| (top.clone(), top.join(beneath)))
}

fn dies_as_one(group: &Path) -> bool {
    // Without the file the memory controller does not look at this group.
    std::fs::read(group.join("memory.oom.group")).is_ok_and(|text| text.trim_ascii() == b"1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hierarchy in a directory of our own, with `memory.oom.group` of each group.
    fn hierarchy(name: &str, groups: &[(&str, &str)]) -> PathBuf {
        let top = std::env::temp_dir().join(format!("yendor-oom-{}-{name}", std::process::id()));
        for (group, value) in groups {
            let directory = top.join(group);
            std::fs::create_dir_all(&directory).expect("a directory of our own");
            std::fs::write(directory.join("memory.oom.group"), value).expect("a file of our own");
        }
        top
    }

    fn takes(top: &Path, root: &str, cgroup: &str) -> bool {
        let line = format!("30 23 0:26 {root} {} rw,nosuid - cgroup2 cgroup2 rw\n", top.display());
        let mounts = mountinfo::parse(line.as_bytes()).expect("mountinfo");
        any(&cgroup::parse(cgroup.as_bytes()).expect("cgroup"), &mounts)
    }

    #[test]
    fn a_group_of_its_own_or_above() {
        let top = hierarchy("a", &[("free/own", "0\n"), ("pod", "1\n"), ("pod/own", "0\n"), ("one", "1\n")]);
        assert!(!takes(&top, "/", "0::/free/own\n"));
        assert!(!takes(&top, "/", "0::/free\n"), "no file");
        assert!(!takes(&top, "/", "0::/\n"));
        assert!(takes(&top, "/", "0::/one\n"));
        assert!(takes(&top, "/", "0::/pod/own\n"), "the one above");
        assert!(takes(&top, "/", "0::/pod/own/gone\n"), "below, with no file");
        // A mount that shows a part of the hierarchy.
        assert!(takes(&top, "/machine", "0::/machine/one\n"));
        assert!(!takes(&top, "/machine", "0::/machine/free/own\n"));
        // Version 1 has the controller.
        assert!(!takes(&top, "/", "4:memory:/one\n0::/one\n"));
        std::fs::remove_dir_all(top).expect("a directory of our own");
    }

    #[test]
    fn what_cannot_be_seen_may_be_one() {
        let top = hierarchy("b", &[("one", "0\n")]);
        assert!(takes(&top, "/machine", "0::/other\n"));
        assert!(takes(&top, "/", "0::/../other\n"), "outside of our cgroup namespace");
        assert!(any(&cgroup::parse(b"0::/one\n").expect("cgroup"), &[]), "no mount");
        assert!(!any(&[], &[]), "no cgroups at all");
        std::fs::remove_dir_all(top).expect("a directory of our own");
    }
}
