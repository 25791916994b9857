//! Namespaces beside the container's: each task joins its own as soon as it is born, with what its creator has not.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use yendor_image::NsId;
use yendor_kinds::Cause;
use yendor_kinds::namespace::nested::{Kind, join, of_children};
use yendor_kinds::process::Thread;
use yendor_kinds::snapshot::Snapshot;
use yendor_task::Script;

use super::mounts::Promised;
use super::{Site, Task, lift};

/// Where they are, and who is where.
#[derive(Debug, Default)]
pub struct Places {
    /// By kind, the number of the container's own in every task; none where no task needs them.
    home: BTreeMap<Kind, i32>,
    /// Of the nested ones, in the order of the image.
    nested: Vec<(Kind, i32)>,
    /// The tasks that are not only in the container's, by their ids inside.
    away: RefCell<BTreeMap<i32, Vec<NsId>>>,
}

impl Places {
    /// Gives all of them numbers that no task uses. The caller is in the container's own.
    ///
    /// # Errors
    /// What openat and fcntl say.
    pub fn new(
        snapshot: &Snapshot,
        (nested, promised): (&[Option<OwnedFd>], &Promised),
        proc: &OwnedFd,
        above: i32,
        held: &mut Vec<OwnedFd>,
    ) -> Result<Places, Cause> {
        let mut places = Places::default();
        if nested.is_empty() {
            return Ok(places);
        }
        for kind in Kind::ANY_TIME {
            places.home.insert(kind, lift(of_children(proc.as_fd(), kind)?, above, held)?);
        }
        for (id, (record, fd)) in (0..).zip(snapshot.namespaces.iter().zip(nested)) {
            let number = match fd {
                Some(fd) => Some(lift(fd, above, held)?),
                None => promised.namespace(NsId(id)),
            };
            places.nested.push((record.kind(), number.unwrap_or(-1)));
        }
        Ok(places)
    }

    /// The user namespace that a thread enters before it gets its capabilities.
    ///
    /// # Errors
    /// `Corrupt` for a number of nothing.
    pub fn users(&self, thread: &Thread) -> Result<Option<i32>, Cause> {
        self.of_kind(Kind::User, &thread.namespaces)
    }

    /// The number of a namespace in every task.
    ///
    /// # Errors
    /// `Corrupt` for a number of nothing.
    pub fn number(&self, id: NsId) -> Result<i32, Cause> {
        self.known(id).map(|(_, number)| number)
    }

    fn known(&self, id: NsId) -> Result<(Kind, i32), Cause> {
        let place = usize::try_from(id.0).ok().and_then(|i| self.nested.get(i));
        place.copied().ok_or_else(|| Cause::corrupt(format!("no namespace has the id {id}")))
    }

    /// The one of a kind that is among these; else the container's.
    fn of_kind(&self, kind: Kind, among: &[NsId]) -> Result<Option<i32>, Cause> {
        for id in among {
            let (its, number) = self.known(*id)?;
            if its == kind {
                return Ok(Some(number));
            }
        }
        Ok(self.home.get(&kind).copied())
    }
}

/// A task, born by `creator`, goes where it belongs; `own`: its record, none for one that stays where its creator is.
///
/// # Errors
/// The kernel's; `Corrupt` for a number of nothing.
pub fn settle<'r>(
    site: &Site<'_>,
    task: &Task,
    (inside, creator): (i32, i32),
    own: impl FnOnce() -> Option<&'r Thread>,
) -> Result<(), Cause> {
    let places = &site.places;
    if places.home.is_empty() {
        // Nobody is anywhere else.
        return Ok(());
    }
    let from = places.away.borrow().get(&creator).cloned().unwrap_or_default();
    let to = own().map_or(from.as_slice(), |thread| thread.namespaces.as_slice());
    if !to.is_empty() {
        places.away.borrow_mut().insert(inside, to.to_vec());
    }
    let mut script = Script::new();
    for kind in Kind::ANY_TIME {
        let [now, then] = [places.of_kind(kind, &from)?, places.of_kind(kind, to)?];
        if let Some(then) = then.filter(|then| Some(*then) != now) {
            join(then, kind, &mut script);
        }
    }
    if script.calls.is_empty() { Ok(()) } else { site.run(task, &script).map(drop) }
}
