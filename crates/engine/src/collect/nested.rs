//! Namespaces beside the container's that its tasks live in: found task by task, looked into when all are known.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::{NsId, Writer};
use yendor_kinds::namespace::nested::{Kind, Record};
use yendor_kinds::process::{self, State};
use yendor_kinds::{Cause, Named, Result};
use yendor_sys::namespace::owner;

use super::ipc::mapped;

/// Those found so far, in the order of their numbers in the image.
#[derive(Debug)]
pub struct Nested {
    found: Vec<Found>,
    /// The container's user namespace; none: all that is not the container's is refused.
    users: Option<u64>,
}

#[derive(Debug)]
struct Found {
    kind: Kind,
    inode: u64,
    namespace: OwnedFd,
}

impl Nested {
    /// None yet. `users`: the container's user namespace, or none of a tree that Yendor did not start: we cannot join what its tasks
    /// have made.
    #[must_use]
    pub fn new(users: Option<u64>) -> Nested {
        Nested { found: Vec::new(), users }
    }

    /// The number of a namespace that a task, whose directory in /proc this is, lives in; none for one that cannot be in an image.
    ///
    /// # Errors
    /// `Unsupported` for one of another user namespace.
    pub fn number(&mut self, proc: BorrowedFd<'_>, task: &str, name: &str, inode: u64) -> Result<Option<NsId>> {
        let (Some(kind), Some(users)) = (Kind::named(name), self.users) else { return Ok(None) };
        let known = self.found.iter().position(|found| (found.kind, found.inode) == (kind, inode));
        let number = match known {
            Some(number) => number,
            None => {
                let path = format!("{task}/ns/{name}");
                let namespace = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                let namespace = namespace.named("openat", || format!("/proc/{path}"))?;
                if inode_of(&owner(&namespace)?)? != users {
                    let what = format!("/proc/{path}: a {name} namespace that belongs to a user namespace of its own");
                    return Err(Cause::unsupported(what));
                }
                self.found.push(Found { kind, inode, namespace });
                self.found.len() - 1
            }
        };
        Ok(Some(NsId(u32::try_from(number).unwrap_or(u32::MAX))))
    }

    /// What is in them; all `processes` are stopped.
    ///
    /// # Errors
    /// What cannot be captured, by name.
    pub fn look(&self, proc: BorrowedFd<'_>, processes: &[process::Record], writer: &Writer) -> Result<Vec<Record>> {
        let one = |(number, found): (usize, &Found)| {
            let id = NsId(u32::try_from(number).unwrap_or(u32::MAX));
            let residents = processes.iter().filter(|process| lives_in(process, id));
            Record::collect((found.kind, &found.namespace), proc, (writer, id), &mapped(residents)?)
        };
        self.found.iter().enumerate().map(one).collect()
    }
}

/// Whether a process lives in a nested namespace: its first thread does.
fn lives_in(process: &process::Record, id: NsId) -> bool {
    let State::Alive(alive) = &process.state else { return false };
    alive.threads.first().is_some_and(|leader| leader.namespaces.contains(&id))
}

/// Whether a process lives in the container's ipc namespace.
pub fn at_home(process: &process::Record, nested: &[Record]) -> bool {
    let is_ipc = |id: &NsId| {
        let record = usize::try_from(id.0).ok().and_then(|i| nested.get(i));
        record.is_some_and(|record| record.kind() == Kind::Ipc)
    };
    let State::Alive(alive) = &process.state else { return false };
    !alive.threads.first().is_some_and(|leader| leader.namespaces.iter().any(is_ipc))
}

fn inode_of(namespace: &OwnedFd) -> Result<u64> {
    Ok(rustix::fs::fstat(namespace).named("fstat", || "a namespace".into())?.st_ino)
}
