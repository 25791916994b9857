//! Address spaces, copied by a thread of their own: memory can be read without the tracer, who asks the next processes
//! meanwhile.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::{Addr, FileId, NsId};
use yendor_kinds::file::Gather;
use yendor_kinds::memory::{Record, layout, policy};
use yendor_kinds::{Cause, Named};
use yendor_proc::smaps::Smap;

use super::Facts;
use super::address_space::{Job, Memory, Read, is_fork};
use super::late::Late;
use super::sparse::Present;
use crate::error::{At, Result, Step, With};

/// The address space of a process that has answered, which is its own again.
pub struct Space {
    /// As the tracer sees it.
    pub pid: i32,
    /// The end of the heap.
    pub brk: u64,
    /// The auxiliary vector.
    pub auxv: Vec<u8>,
    /// Its mappings.
    pub smaps: Vec<Smap>,
    /// The memory policies of those that have one, by where they start.
    pub policies: BTreeMap<Addr, policy::Record>,
    /// What is there of shared memory that no descriptor leads to.
    pub present: Present,
    /// A copy of the process, as the tracer sees it: what only this process has is read from there, later.
    pub twin: Option<i32>,
    /// The mount namespace that its files are likely to be in; none: the container's.
    pub mounts: Option<NsId>,
}

/// Address spaces that were collected.
#[derive(Default)]
pub struct Collected {
    /// By the place of the process.
    pub records: BTreeMap<usize, Record>,
    /// What is left, parents before children.
    pub left: Vec<Left>,
    /// What was found out of those that are tracked, with the place of the process.
    pub late: Vec<(usize, Late)>,
    /// Processes of which nothing is left though they were copied, by their id inside: their memory was compared with that of
    /// a parent of which there is no copy.
    pub apart: Vec<i32>,
}

/// An address space of which private memory is left to be read, from a copy of the process.
pub struct Left {
    /// The place of the process.
    pub place: usize,
    /// Its id inside.
    pub inside: i32,
    /// The copy, as the tracer sees it.
    pub twin: i32,
    /// The place of the parent whose memory it may share, which is left, too.
    pub parent: Option<usize>,
    /// Areas that were read at once, by their start.
    pub read: Read,
}

/// Copies what comes, which is in the order of `order`, each with its place there, until nobody sends any more.
///
/// # Errors
/// A mapping that cannot be captured.
pub fn copy_all(
    spaces: impl Iterator<Item = (usize, Space)>,
    memory: &mut Memory<'_>,
    gather: &mut Gather<'_>,
    proc: &OwnedFd,
    order: &[Facts],
) -> Result<Collected> {
    let places: BTreeMap<i32, usize> = order.iter().enumerate().map(|(i, f)| (f.pid, i)).collect();
    let Collected { mut records, mut left, late: mut lates, mut apart } = Collected::default();
    for (place, Space { pid, brk, auxv, smaps, policies, present, twin, mounts }) in spaces {
        let Some(facts) = order.get(place) else { continue };
        let inside = facts.inside().0;
        let exe = executable(pid, proc, memory, gather).at(Step::Collect).task(inside)?;
        let layout = layout::collect(&facts.stat, brk, auxv, exe);
        // Only a child that its parent itself will bear starts with a copy (see rebuild::plan).
        let bears = |parent: &Facts| facts.stat.session == pid || parent.stat.session == facts.stat.session;
        let forked = |i: &usize| records.get(i).is_some_and(|parent: &Record| is_fork(&layout, &parent.layout));
        let parent =
            places.get(&facts.status.ppid).copied().filter(|i| order.get(*i).is_some_and(bears)).filter(forked);
        // What one of them has now is compared with what the other has now.
        let with = parent.filter(|i| left.iter().any(|l: &Left| l.place == *i));
        let (alone, copied) = (parent.is_some() && with.is_none(), twin.is_some());
        apart.extend((alone && copied).then_some(inside));
        let twin = twin.filter(|_| !alone);
        let parent = parent.and_then(|i| Some((order.get(i)?.pid, records.get(&i)?)));
        let job =
            Job { pid, inside, layout, smaps: &smaps, policies, parent, later: twin.is_some(), present: &present };
        gather.here = mounts;
        let (record, read, late) = memory.collect(proc, job, gather).at(Step::Collect).task(inside)?;
        records.insert(place, record);
        lates.extend(late.map(|late| (place, late)));
        left.extend(twin.map(|twin| Left { place, inside, twin, parent: with, read }));
    }
    gather.here = None;
    Ok(Collected { records, left, late: lates, apart })
}

fn executable(
    pid: i32,
    proc: &OwnedFd,
    memory: &mut Memory<'_>,
    gather: &mut Gather<'_>,
) -> std::result::Result<Option<FileId>, Cause> {
    let path = format!("{pid}/exe");
    let fd = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .named("openat", || format!("/proc/{path}"))?;
    memory.mapped_file(fd, false, gather).map(Some)
}
