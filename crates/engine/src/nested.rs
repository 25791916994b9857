//! Nested namespaces of an image, made again before any task exists.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use yendor_image::{NsId, Reader};
use yendor_kinds::Result;
use yendor_kinds::snapshot::Snapshot;

/// One for each record, in their order.
#[derive(Debug, Default)]
pub struct Nested(pub Vec<OwnedFd>);

impl Nested {
    /// Makes them, in namespaces of the container's user namespace.
    ///
    /// # Errors
    /// The kernel's; `Corrupt` for what cannot be in one.
    pub fn make(snapshot: &Snapshot, proc: BorrowedFd<'_>, reader: &Reader) -> Result<Nested> {
        let one = |(number, record): (u32, &yendor_kinds::namespace::nested::Record)| {
            record.rebuild(NsId(number), proc, reader)
        };
        (0..).zip(&snapshot.namespaces).map(one).collect::<Result<_>>().map(Nested)
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
