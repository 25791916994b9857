//! Nested namespaces of an image, made again before any task exists but pid 1. Pid namespaces are made with their first tasks.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_image::{NsId, Reader};
use yendor_kinds::file::timerfd::Clocks;
use yendor_kinds::namespace::nested::{Content, Kind};
use yendor_kinds::namespace::networks::Networks;
use yendor_kinds::namespace::{cgroup, clock, mount};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Result};

use crate::contain::Contained;

/// One for each record, in their order; none for mounts, which are made when there is a pid 1, and for pid namespaces.
#[derive(Debug, Default)]
pub struct Nested(pub Vec<Option<OwnedFd>>);

impl Nested {
    /// Makes them. The caller is in the container's user namespace and has one thread. `clocks`: how far the container's are ahead of the machine's.
    ///
    /// # Errors
    /// The kernel's; `Corrupt` for what cannot be in one.
    pub fn make(snapshot: &Snapshot, contained: &Contained, reader: &Reader, clocks: Clocks) -> Result<Nested> {
        let (proc, mut made) = (contained.host_proc.as_fd(), Nested::default());
        let adopt = |pid| contained.cgroup.iter().try_for_each(|all| all.adopt(pid)).map_err(|e| *e.cause);
        for (number, record) in (0..).zip(&snapshot.namespaces) {
            let one = match &record.content {
                Content::Mount(_) | Content::Pid { .. } => None,
                Content::Time(ahead) => Some(clock::rebuild(*ahead, made.owner(record.owner)?, proc, clocks)?),
                Content::Cgroup {} => Some(cgroup::rebuild(made.owner(record.owner)?, proc, adopt)?),
                _ => {
                    let above = record.owner.and_then(|id| snapshot.namespaces.get(usize::try_from(id.0).ok()?));
                    let owner = made.owner(record.owner)?.zip(above);
                    Some(record.rebuild(NsId(number), owner, proc, reader)?)
                }
            };
            made.0.push(one);
        }
        Ok(made)
    }

    /// Those that belong to others come after them.
    fn owner(&self, id: Option<NsId>) -> Result<Option<&OwnedFd>> {
        let Some(id) = id else { return Ok(None) };
        let known = usize::try_from(id.0).ok().and_then(|i| self.0.get(i)?.as_ref());
        known.map(Some).ok_or_else(|| Cause::corrupt(format!("no namespace {id} yet")))
    }

    /// Makes mount namespaces. The caller's children are in the container's pid namespace, and all is mounted that the container has.
    ///
    /// # Errors
    /// The kernel's; `Corrupt` for what cannot be in one.
    pub fn mounts(
        &self,
        snapshot: &Snapshot,
        proc: BorrowedFd<'_>,
        reader: &Reader,
    ) -> Result<BTreeMap<NsId, mount::Made>> {
        let mut made = BTreeMap::new();
        for (number, record) in (0..).zip(&snapshot.namespaces) {
            if let Content::Mount(mounts) = &record.content {
                made.insert(NsId(number), mount::rebuild(mounts, self.owner(record.owner)?, proc, reader)?);
            }
        }
        Ok(made)
    }

    /// The networks among them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn networks(&self, snapshot: &Snapshot, proc: BorrowedFd<'_>) -> Result<Networks> {
        let all = (0..).map(NsId).zip(snapshot.namespaces.iter().zip(&self.0));
        let all: Vec<(NsId, &OwnedFd)> = all
            .filter_map(|(id, (record, made))| Some((id, made.as_ref()?)).filter(|_| record.kind() == Kind::Net))
            .collect();
        Networks::new(all.into_iter(), proc)
    }

    /// To be called when all tasks have attached what they had.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self, snapshot: &Snapshot, proc: impl AsFd) -> Result<()> {
        let all = snapshot.namespaces.iter().zip(&self.0);
        all.filter_map(|(record, namespace)| Some((record, namespace.as_ref()?)))
            .try_for_each(|(record, namespace)| record.finish(namespace, proc.as_fd()))
    }
}
