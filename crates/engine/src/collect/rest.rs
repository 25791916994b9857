//! What is left of memory when the tasks run again.

use std::os::fd::OwnedFd;

use yendor_kinds::Cause;
use yendor_kinds::process::{Alive, Record, State};
use yendor_kinds::snapshot::Snapshot;

use super::address_space::Memory;
use super::late::{Late, Shadowed, Spared};
use super::space::Left;
use super::twins::Twins;
use crate::error::{At, Error, Result, Step, With};

/// What is left to be read when the tree runs again.
pub struct Rest<'w> {
    pub(super) memory: Memory<'w>,
    pub(super) left: Vec<Left>,
    pub(super) late: Vec<(usize, Late)>,
    pub(super) proc: OwnedFd,
}

impl Rest<'_> {
    /// Reads it into a snapshot.
    ///
    /// # Errors
    /// A copy is gone, or the image cannot be written.
    pub fn read(mut self, snapshot: &mut Snapshot, mut twins: Option<&mut Twins>) -> Result<Done> {
        let mut bytes = 0;
        self.memory.untrack();
        for (place, late) in std::mem::take(&mut self.late) {
            let left = self.left.iter().find(|l| l.place == place);
            let Some(own) = alive(&mut snapshot.processes, place) else { continue };
            bytes += self.memory.settle(&self.proc, late, left.map(|l| l.twin), &mut own.memory).at(Step::Store)?;
        }
        for (i, Left { place, inside, twin, parent, read }) in self.left.iter().enumerate() {
            let beside = parent.and_then(|place| self.left.iter().find(|l| l.place == place));
            let theirs = beside.and_then(|l| Some((l.twin, alive(&mut snapshot.processes, l.place)?.memory.clone())));
            let theirs = theirs.as_ref().map(|(twin, record)| (*twin, record));
            let Some(own) = alive(&mut snapshot.processes, *place) else { continue };
            let done = self.memory.complete(&self.proc, (*twin, read), theirs, &mut own.memory);
            bytes += done.at(Step::Store).task(*inside)?;
            let Some(twins) = &mut twins else { continue };
            // One that is killed has no pages, and that is no error of those who look for them.
            if twins.is_short() {
                let what = format!("the copy of task {inside} was killed");
                return Err(Error::new(Step::Store, Cause::passing(what)).task(*inside));
            }
            let later = &self.left[i + 1..];
            let needed = |l: &Left| later.iter().any(|child| child.parent == Some(l.place));
            self.left[..=i].iter().filter(|l| !needed(l)).for_each(|l| twins.end(l.twin));
        }
        let (shared, held, spared) = self.memory.finish(snapshot).at(Step::Store)?;
        Ok(Done { later: bytes, shared, held, spared })
    }
}

/// All memory is in the image.
#[derive(Debug)]
pub struct Done {
    /// How many bytes were left to be read when the tree ran again.
    pub later: u64,
    /// How many bytes of pages a parent had.
    pub shared: u64,
    /// What is tracked still.
    pub held: Vec<Shadowed>,
    /// What tracking has spared.
    pub spared: Spared,
}

fn alive(processes: &mut [Record], place: usize) -> Option<&mut Alive> {
    processes
        .get_mut(place)
        .and_then(|p| if let State::Alive(alive) = &mut p.state { Some(&mut **alive) } else { None })
}
