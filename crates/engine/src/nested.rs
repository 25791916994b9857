//! Nested namespaces of an image, made again before any task exists.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_image::{NsId, Reader};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Result};

/// One for each record, in their order.
#[derive(Debug, Default)]
pub struct Nested(pub Vec<OwnedFd>);

impl Nested {
    /// Makes them. The caller is in the container's user namespace and has one thread.
    ///
    /// # Errors
    /// The kernel's; `Corrupt` for what cannot be in one.
    pub fn make(snapshot: &Snapshot, proc: BorrowedFd<'_>, reader: &Reader) -> Result<Nested> {
        let mut made: Vec<OwnedFd> = Vec::new();
        for (number, record) in (0..).zip(&snapshot.namespaces) {
            // Those that others belong to come first.
            let known = |id: NsId| usize::try_from(id.0).ok().and_then(|i| made.get(i));
            let owner =
                record.owner.map(|id| known(id).ok_or_else(|| Cause::corrupt(format!("no namespace {id} yet"))));
            made.push(record.rebuild(NsId(number), owner.transpose()?, proc, reader)?);
        }
        Ok(Nested(made))
    }

    /// To be called when all tasks have attached what they had.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self, snapshot: &Snapshot, proc: impl AsFd) -> Result<()> {
        let all = snapshot.namespaces.iter().zip(&self.0);
        all.into_iter().try_for_each(|(record, namespace)| record.finish(namespace, proc.as_fd()))
    }
}
