//! The namespaces that tasks live in. A container has one of each, and so has a tree: a task that has made, or entered,
//! another is refused, and so are mounts that a container has made since it began to run.

use std::os::fd::BorrowedFd;

use rustix::fs::{Dir, OFlags, readlinkat};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_kinds::file::Gather;
use yendor_kinds::{Cause, Named, Result};
use yendor_proc::mountinfo;
use yendor_task::tree::read_proc;

/// Of a process, as the links below /proc/PID/ns are called.
const NAMES: [&str; 9] = ["mnt", "net", "user", "uts", "ipc", "cgroup", "pid", "pid_for_children", "time_for_children"];
/// What a thread that is not its process's first can have of its own: the first of [`NAMES`] but for users.
const OF_THREAD: [&str; 5] = ["mnt", "net", "uts", "ipc", "cgroup"];

/// The namespaces of a task; of a kernel that lacks a kind nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces(Vec<(&'static str, Vec<u8>)>);

impl Namespaces {
    /// Of a process.
    ///
    /// # Errors
    /// What readlinkat says.
    pub fn of_process(proc: BorrowedFd<'_>, pid: i32) -> Result<Namespaces> {
        Self::read(proc, &format!("{pid}"), &NAMES)
    }

    /// Of another thread than the first.
    ///
    /// # Errors
    /// What readlinkat says.
    pub fn of_thread(proc: BorrowedFd<'_>, pid: i32, tid: i32) -> Result<Namespaces> {
        Self::read(proc, &format!("{pid}/task/{tid}"), &OF_THREAD)
    }

    fn read(proc: BorrowedFd<'_>, task: &str, names: &[&'static str]) -> Result<Namespaces> {
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            let path = format!("{task}/ns/{name}");
            match readlinkat(proc, path.as_str(), Vec::with_capacity(64)) {
                Err(rustix::io::Errno::NOENT) => {}
                link => out.push((*name, link.named("readlinkat", || path.clone())?.into_bytes())),
            }
        }
        Ok(Namespaces(out))
    }

    /// Refuses a task that lives elsewhere, or whose children would.
    ///
    /// # Errors
    /// `Unsupported`, by name.
    pub fn check(&self, task: &Namespaces, tid: i32) -> Result<()> {
        let first = task.0.iter().any(|(name, _)| *name == "user");
        let asked = self.0.iter().filter(|(name, _)| first || OF_THREAD.contains(name));
        for (name, link) in asked {
            // A pid namespace that nobody has been born into has no link.
            if task.0.iter().any(|(theirs, at)| theirs == name && at == link) {
                continue;
            }
            let (kind, whose) = match name.strip_suffix("_for_children") {
                Some(kind) => (kind, " for its children"),
                None => (*name, ""),
            };
            let what = format!("task {tid} has a {kind} namespace of its own{whose} (unshare, setns)");
            return Err(Cause::unsupported(what));
        }
        Ok(())
    }
}

/// A mount of a container, by which it is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    id: i32,
    point: Bytes,
    fs_type: Bytes,
    /// Options of the mount; of a file system that is the container's own, these too.
    options: Bytes,
    /// Whether a mount outside hands mounts on to it.
    slave: bool,
}

/// File systems whose options belong to the container.
const OWN: [&[u8]; 6] = [b"tmpfs", b"proc", b"devpts", b"mqueue", b"sysfs", b"cgroup2"];

/// The mounts that a process sees.
///
/// # Errors
/// A mountinfo that cannot be read.
pub fn mounts(proc: BorrowedFd<'_>, pid: i32) -> Result<Vec<Mount>> {
    let text = read_proc(proc, &format!("{pid}/mountinfo"))?;
    let one = |m: mountinfo::Mount| {
        let own = OWN.contains(&m.fs_type.as_slice());
        let supers = if own { m.super_options } else { Vec::new() };
        let options = [m.options, supers].concat().join(&b","[..]);
        Mount {
            id: m.id,
            point: Bytes(m.mount_point),
            fs_type: Bytes(m.fs_type),
            options: Bytes(options),
            slave: m.master.is_some(),
        }
    };
    Ok(mountinfo::parse(&text)?.into_iter().map(one).collect())
}

/// Refuses mounts that are not as they were when the container began to run. What comes from outside by propagation is
/// not the container's.
///
/// # Errors
/// `Unsupported`, naming the mount.
pub fn unchanged(then: &[Mount], now: &[Mount]) -> Result<()> {
    let refuse = |m: &Mount, what: &str| {
        Err(Cause::unsupported(format!("{}: a mount ({}) {what}", m.point, m.fs_type.0.escape_ascii())))
    };
    for mount in now {
        match then.iter().find(|m| m.id == mount.id) {
            Some(before) if before.point != mount.point => return refuse(before, "that was moved"),
            Some(before) if before.options != mount.options => return refuse(before, "that has other options now"),
            Some(_) => {}
            None if mount.slave => {}
            None => return refuse(mount, "that the container has made itself"),
        }
    }
    match then.iter().find(|m| !m.slave && now.iter().all(|other| other.id != m.id)) {
        Some(gone) => refuse(gone, "that was removed"),
        None => Ok(()),
    }
}

/// Refuses POSIX message queues, which live in the container's ipc namespace even while nobody has them open.
///
/// # Errors
/// `Unsupported`, by name; what openat2 and getdents64 say.
pub fn without_queues(mounts: &[Mount], gather: &Gather<'_>) -> Result<()> {
    for Mount { point, .. } in mounts.iter().filter(|m| m.fs_type.0 == b"mqueue") {
        let directory = gather.open_inside(&point.0, OFlags::RDONLY | OFlags::DIRECTORY)?;
        for entry in Dir::read_from(&directory).named("getdents64", || point.to_string())? {
            let entry = entry.named("getdents64", || point.to_string())?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                let what = format!("{point}/{}: a POSIX message queue (mq_open)", name.escape_ascii());
                return Err(Cause::unsupported(what));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: i32, point: &str, options: &str, slave: bool) -> Mount {
        let bytes = |s: &str| Bytes(s.as_bytes().to_vec());
        Mount { id, point: bytes(point), fs_type: bytes("tmpfs"), options: bytes(options), slave }
    }

    #[test]
    fn every_change_of_a_mount_is_seen() {
        let then = [mount(1, "/", "rw", false), mount(2, "/v", "rw", true)];
        let said = |now: &[Mount]| unchanged(&then, now).expect_err("changed").to_string();
        assert!(unchanged(&then, &then).is_ok());
        assert!(said(&[then[0].clone(), then[1].clone(), mount(3, "/x", "rw", false)]).contains("/x"));
        assert!(said(&[then[1].clone()]).contains("removed"));
        assert!(said(&[mount(1, "/", "ro", false), then[1].clone()]).contains("options"));
        assert!(said(&[mount(1, "/y", "rw", false), then[1].clone()]).contains("moved"));
        // From outside.
        assert!(unchanged(&then, &[then[0].clone()]).is_ok());
        assert!(unchanged(&then, &[then[0].clone(), then[1].clone(), mount(4, "/v/w", "rw", true)]).is_ok());
    }

    #[test]
    fn a_task_elsewhere_is_named() {
        let link = |name, number: &str| (name, format!("{name}:[{number}]").into_bytes());
        let home = Namespaces(vec![link("net", "1"), link("user", "4"), link("pid_for_children", "2")]);
        let thread = |number| Namespaces(vec![link("net", number)]);
        let process = |number| Namespaces(vec![link("net", "1"), link("user", "4"), link("pid_for_children", number)]);
        assert!(home.check(&thread("1"), 5).is_ok() && home.check(&process("2"), 5).is_ok());
        let said = |task: Namespaces| home.check(&task, 5).expect_err("elsewhere").to_string();
        assert!(said(thread("3")).contains("task 5 has a net namespace of its own (unshare"));
        assert!(said(process("3")).contains("pid namespace of its own for its"));
        let unborn = Namespaces(vec![link("net", "1"), link("user", "4")]);
        assert!(said(unborn).contains("pid namespace of its own for its"));
    }
}
