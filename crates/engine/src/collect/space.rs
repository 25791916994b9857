//! Address spaces, copied by a thread of their own: memory can be read without the tracer, who asks the next processes
//! meanwhile.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::{Addr, FileId};
use yendor_kinds::file::Gather;
use yendor_kinds::memory::{Record, layout, policy};
use yendor_kinds::{Cause, Named};
use yendor_proc::smaps::Smap;

use super::{Facts, Memory};
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
) -> Result<BTreeMap<usize, Record>> {
    let places: BTreeMap<i32, usize> = order.iter().enumerate().map(|(i, f)| (f.pid, i)).collect();
    let mut done = BTreeMap::new();
    for (place, Space { pid, brk, auxv, smaps, policies }) in spaces {
        let Some(facts) = order.get(place) else { continue };
        let inside = facts.inside().0;
        let exe = executable(pid, proc, memory, gather).at(Step::Collect).task(inside)?;
        let layout = layout::collect(&facts.stat, brk, auxv, exe);
        // Only a child that its parent itself will bear starts with a copy (see rebuild::plan).
        let parent = places.get(&facts.status.ppid).and_then(|i| Some((order.get(*i)?, done.get(i)?)));
        let bears = |parent: &Facts| facts.stat.session == pid || parent.stat.session == facts.stat.session;
        let parent = parent.filter(|(parent, _)| bears(parent)).map(|(parent, record)| (parent.pid, record));
        let record =
            memory.collect(proc, pid, layout, (&smaps, policies), parent, gather).at(Step::Collect).task(inside)?;
        done.insert(place, record);
    }
    Ok(done)
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
