//! Namespaces beside the container's that its tasks live in: found task by task, looked into when all are known.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::NsId;
use yendor_kinds::file::Gather;
use yendor_kinds::namespace::mount::{Home, Place, Places, Whose};
use yendor_kinds::namespace::nested::{Content, Kind, Record, tables_are_hidden};
use yendor_kinds::namespace::networks::Networks;
use yendor_kinds::namespace::{cgroup, clock};
use yendor_kinds::process::{self, State};
use yendor_kinds::{Cause, Named, Result};
use yendor_sys::namespace::{owner, parent};

use super::ipc::mapped;
use super::namespace::Namespaces;

/// Those found so far, in the order of their numbers in the image.
#[derive(Debug)]
pub struct Nested {
    found: Vec<Found>,
    /// The container's user namespace and pid namespace; none: all that is not at home is refused.
    home: Option<(u64, u64)>,
    /// Its pid 1.
    init: i32,
}

#[derive(Debug)]
struct Found {
    kind: Kind,
    inode: u64,
    /// The user namespace that it belongs to.
    owner: Option<NsId>,
    /// The pid namespace that a pid namespace was made in.
    parent: Option<NsId>,
    namespace: OwnedFd,
    /// A process that lives in it.
    resident: Option<i32>,
}

impl Nested {
    /// None yet. `home`: the container's namespaces, those of its pid 1, `init`, or none of a tree that Yendor did not start: we cannot join what its tasks have made.
    #[must_use]
    pub fn new(home: Option<&Namespaces>, init: i32) -> Nested {
        Nested { found: Vec::new(), home: home.and_then(|home| home.users().zip(home.pids())), init }
    }

    /// The number of a namespace that a thread lives in; none for one that cannot be in an image.
    ///
    /// # Errors
    /// `Unsupported` for a pid namespace that belongs to a user namespace inside and is in another.
    pub fn number(
        &mut self,
        proc: BorrowedFd<'_>,
        (pid, tid): (i32, i32),
        name: &str,
        inode: u64,
    ) -> Result<Option<NsId>> {
        let kind = Kind::named(name.strip_suffix("_for_children").unwrap_or(name));
        let (Some(kind), Some(home)) = (kind, self.home) else { return Ok(None) };
        let number = match self.known(kind, inode) {
            Some(number) => number,
            None => {
                let path = format!("{pid}/task/{tid}/ns/{name}");
                let namespace = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                let namespace = namespace.named("openat", || format!("/proc/{path}"))?;
                self.add(kind, namespace, home)?
            }
        };
        if let Some(found) = self.found.get_mut(number) {
            found.resident.get_or_insert(pid);
        }
        Ok(Some(id(number)))
    }

    fn known(&self, kind: Kind, inode: u64) -> Option<usize> {
        self.found.iter().position(|found| (found.kind, found.inode) == (kind, inode))
    }

    /// Its place, behind that of the user namespace that it belongs to. `home`: the container's user and pid namespace.
    fn add(&mut self, kind: Kind, namespace: OwnedFd, home: (u64, u64)) -> Result<usize> {
        let (users, pids) = home;
        let theirs = owner(&namespace)?;
        let owner = match inode_of(&theirs)? {
            inode if inode == users => None,
            inode => match self.known(Kind::User, inode) {
                Some(number) => Some(id(number)),
                None => Some(id(self.add(Kind::User, theirs, home)?)),
            },
        };
        let parent = if kind == Kind::Pid { Some(parent(&namespace)?) } else { None };
        let parent = match parent.map(|fd| inode_of(&fd).map(|inode| (fd, inode))).transpose()? {
            None => None,
            Some((_, inode)) if inode == pids => None,
            Some((fd, inode)) => match self.known(Kind::Pid, inode) {
                Some(number) => Some(id(number)),
                None => Some(id(self.add(Kind::Pid, fd, home)?)),
            },
        };
        if parent.is_some() && owner.is_some() {
            let what = "a pid namespace of a user namespace of its own in another pid namespace (unshare)";
            return Err(Cause::unsupported(what));
        }
        let inode = inode_of(&namespace)?;
        self.found.push(Found { kind, inode, owner, parent, namespace, resident: None });
        Ok(self.found.len() - 1)
    }

    /// The mount namespaces among those of `processes`, which are not the container's, `home`: files may be open in them.
    ///
    /// # Errors
    /// As [`Self::number`]; the kernel's.
    pub fn places(&mut self, proc: BorrowedFd<'_>, home: &Namespaces, processes: &[i32]) -> Result<Places> {
        let mut places: Vec<Place> = Vec::new();
        for pid in processes {
            let Some(inode) = home.other_mounts(proc, *pid)? else { continue };
            let Some(id) = self.number(proc, (*pid, *pid), Kind::Mount.name(), inode)? else { continue };
            let found = usize::try_from(id.0).ok().and_then(|n| self.found.get(n));
            if let Some(found) = found.filter(|_| !places.iter().any(|place| place.id == id)) {
                places.push(Place::look(id, &found.namespace, proc)?);
            }
        }
        Ok(Places(places.into()))
    }

    /// The networks among the namespaces of `processes`, which are not the container's, `home`: sockets may be in them.
    ///
    /// # Errors
    /// As [`Self::number`]; the kernel's.
    pub fn networks(&mut self, proc: BorrowedFd<'_>, home: &Namespaces, processes: &[i32]) -> Result<Networks> {
        let mut networks = BTreeSet::new();
        for pid in processes {
            let Some(inode) = home.other_network(proc, *pid)? else { continue };
            networks.extend(self.number(proc, (*pid, *pid), Kind::Net.name(), inode)?);
        }
        let found = |id: &NsId| Some((*id, &self.found.get(usize::try_from(id.0).ok()?)?.namespace));
        Networks::new(networks.iter().filter_map(found), proc)
    }

    /// Whether one of these is a mount namespace.
    #[must_use]
    pub fn mounts(&self, among: &[NsId]) -> Option<NsId> {
        let is_mount = |id: &&NsId| {
            let found = usize::try_from(id.0).ok().and_then(|n| self.found.get(n));
            found.is_some_and(|found| found.kind == Kind::Mount)
        };
        among.iter().find(is_mount).copied()
    }

    /// What is in them; all `processes` are stopped.
    ///
    /// # Errors
    /// What cannot be captured, by name.
    pub fn look(
        &self,
        proc: BorrowedFd<'_>,
        processes: &[process::Record],
        gather: &mut Gather<'_>,
    ) -> Result<Vec<Record>> {
        if self.found.is_empty() {
            return Ok(Vec::new());
        }
        let writer = gather.writer;
        for found in self.found.iter().filter(|found| found.kind == Kind::Net) {
            if tables_are_hidden(&found.namespace, proc)? {
                gather.lose("iptables", format!("tables of iptables, if there are any, in net:[{}]", found.inode))?;
            }
        }
        let (places, lines) = (&gather.places, std::mem::take(&mut gather.lines));
        let own = self.home.map(|(_, pids)| (pids, None));
        let theirs = self.found.iter().enumerate().filter(|(_, found)| found.kind == Kind::Pid);
        let pids = own.into_iter().chain(theirs.map(|(number, found)| (found.inode, Some(id(number))))).collect();
        let home = Home { lines, root: &gather.root, pids, whose: Whose::Nested };
        let one = |(number, found): (usize, &Found)| {
            let id = id(number);
            let residents = processes.iter().filter(|process| lives_in(process, id));
            let Found { kind, inode: _, owner, parent, namespace, resident } = found;
            if *kind == Kind::Pid {
                return Ok(Record { owner: *owner, content: Content::Pid { parent: *parent } });
            }
            if let Some(resident) = resident.filter(|_| matches!(kind, Kind::Time | Kind::Cgroup)) {
                let content = if *kind == Kind::Time {
                    Content::Time(clock::collect(proc, resident, self.init)?)
                } else {
                    cgroup::check(namespace, proc, resident)?;
                    Content::Cgroup {}
                };
                return Ok(Record { owner: *owner, content });
            }
            Record::collect(
                (*kind, namespace),
                *owner,
                proc,
                (writer, id),
                (*resident, &mapped(residents)?),
                (places, &home),
            )
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

fn id(number: usize) -> NsId {
    NsId(u32::try_from(number).unwrap_or(u32::MAX))
}

fn inode_of(namespace: &OwnedFd) -> Result<u64> {
    Ok(rustix::fs::fstat(namespace).named("fstat", || "a namespace".into())?.st_ino)
}
