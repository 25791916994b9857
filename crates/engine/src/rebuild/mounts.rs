//! Mount namespaces inside the container, and the files that are open in them: made when there is a pid 1, who fetches them from the
//! keeper, and from whom all tasks inherit them under numbers that were theirs before.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use yendor_image::{FileId, NsId};
use yendor_kinds::file::{Entry, Workshop};
use yendor_kinds::namespace::mount::{self, Made};
use yendor_kinds::namespace::nested::{Content, Kind};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_policy::lsm::Profile;
use yendor_task::{Nr, Script, args};

use super::birth::Tasks;
use super::inherited::make_files;
use super::{Image, Site, Task, late, lift};
use crate::error::{At, Result, Step, With};
use crate::label::Labels;
use crate::nested::Nested;
use crate::request::{Enforce, Request};

/// What pid 1 will fetch.
#[derive(Debug, Default)]
pub struct Promised {
    /// A pidfd of the keeper; -1 where there is nothing to fetch.
    keeper: i32,
    namespaces: BTreeMap<NsId, i32>,
    files: BTreeMap<FileId, i32>,
}

/// Whether a file is open in a nested mount namespace, and made before the tasks are.
pub fn is_promised(entry: &Entry) -> bool {
    entry.mounts.is_some() && !entry.record.is_late()
}

impl Promised {
    /// Takes numbers for all of them.
    ///
    /// # Errors
    /// What fcntl says; a request that they cannot be made for.
    pub fn new(
        snapshot: &Snapshot,
        request: &Request,
        (proc, above): (&OwnedFd, i32),
        held: &mut Vec<OwnedFd>,
    ) -> std::result::Result<Promised, Cause> {
        let mut promised = Promised { keeper: -1, ..Promised::default() };
        for (number, record) in (0..).zip(&snapshot.namespaces) {
            if record.kind() == Kind::Mount {
                promised.namespaces.insert(NsId(number), lift(proc, above, held)?);
            }
        }
        for entry in snapshot.files.iter().filter(|entry| is_promised(entry)) {
            promised.files.insert(entry.id, lift(proc, above, held)?);
        }
        if promised.namespaces.is_empty() && promised.files.is_empty() {
            return Ok(promised);
        }
        // Files there are opened by the keeper when its policy can no longer be tried on itself.
        if request.policy.enforce == Enforce::Early {
            return Err(Cause::unsupported("--enforce early for an image with a mnt namespace inside"));
        }
        // Who is held by such rules can mount nothing; and paths would mean something else there.
        if !promised.namespaces.is_empty() && !request.policy.landlock.is_empty() {
            return Err(Cause::unsupported("--landlock for an image with a mnt namespace inside"));
        }
        // So would they in a profile of a module that goes by them, which might not let anybody in it mount.
        let by_path = |profile: &&Profile| ["apparmor", "tomoyo"].contains(&profile.module.as_str());
        if let Some(profile) = request.policy.profiles.iter().find(by_path).filter(|_| !promised.namespaces.is_empty())
        {
            let what = format!("--lsm-profile {profile} for an image with a mnt namespace inside");
            return Err(Cause::unsupported(what));
        }
        let me = rustix::process::getpid();
        let own = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty());
        promised.keeper = lift(own.named("pidfd_open", || "the keeper".into())?, above, held)?;
        Ok(promised)
    }

    /// The number of a mount namespace.
    pub fn namespace(&self, id: NsId) -> Option<i32> {
        self.namespaces.get(&id).copied()
    }

    /// The numbers of files.
    pub fn files(&self) -> impl Iterator<Item = (FileId, i32)> {
        self.files.iter().map(|(id, number)| (*id, *number))
    }

    /// Makes them, and has pid 1 fetch them. The mount namespaces.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keep(
        &self,
        site: &mut Site<'_>,
        (init, nested): (&Task, &Nested),
        image: Option<Image<'_>>,
        (workshop, labels): (&mut Workshop<'_>, &Labels),
        above: i32,
    ) -> Result<BTreeMap<NsId, OwnedFd>> {
        let Some(image) = image.filter(|_| self.keeper >= 0) else { return Ok(BTreeMap::new()) };
        let made = nested.mounts(site.snapshot, site.proc.as_fd(), image.reader);
        let mut fetch = Vec::new();
        let mut namespaces = BTreeMap::new();
        for (id, Made { namespace, root }) in made.at(Step::Rebuild).kind("namespace", "mnt")? {
            fetch.extend(self.namespace(id).map(|number| (namespace.as_raw_fd(), number)));
            workshop.roots.insert(id, root);
            namespaces.insert(id, namespace);
        }
        let files =
            make_files(workshop, labels, site.snapshot, above, &mut site.held, &mut None, &|entry| is_promised(entry))?;
        fetch.extend(files.iter().filter_map(|(id, own)| Some((*own, *self.files.get(id)?))));
        let mut script = Script::new();
        for (own, _) in &fetch {
            script.call(Nr::PIDFD_GETFD, args![self.keeper, *own, 0]);
        }
        let mut settle = Script::new();
        for (got, (_, number)) in site.run(init, &script).at(Step::Rebuild)?.iter().zip(&fetch) {
            settle.call(Nr::DUP3, args![got.returned.cast_unsigned(), *number, 0]);
            settle.call(Nr::CLOSE, args![got.returned.cast_unsigned()]);
        }
        site.run(init, &settle).at(Step::Rebuild)?;
        Ok(namespaces)
    }
}

/// Mounts what shows pid namespaces, which have begun.
///
/// # Errors
/// The kernel's.
pub fn finish(site: &Site<'_>, tasks: &Tasks, made: &BTreeMap<NsId, OwnedFd>) -> Result<()> {
    let mut pids = BTreeMap::new();
    for (namespace, init) in site.levels.inits() {
        let Some(task) = tasks.get(&init) else { continue };
        pids.insert(namespace, late::pid_namespace(&site.proc, task).at(Step::Rebuild)?);
    }
    for (id, namespace) in made {
        let record = usize::try_from(id.0).ok().and_then(|n| site.snapshot.namespaces.get(n));
        if let Some(Content::Mount(record)) = record.map(|record| &record.content) {
            let done = mount::finish(record, namespace, &pids, site.proc.as_fd());
            done.at(Step::Rebuild).kind("namespace", "mnt")?;
        }
    }
    Ok(())
}
