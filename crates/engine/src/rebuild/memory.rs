//! The address space of a task: from nothing, or from the copy of its creator's that fork left it.

use std::collections::{BTreeMap, BTreeSet};

use yendor_image::{Addr, PageRun};
use yendor_kinds::memory::{Record, inherit, layout, pages, vma};
use yendor_kinds::process::Alive;
use yendor_kinds::{Cause, Result};
use yendor_task::script::Want;
use yendor_task::{Nr, Script, args};

use super::birth::{self, Tasks};
use super::plan::Plan;
use super::{PARKING, Site, Task};
use crate::error::{At, Step, With};

/// Which tasks have their memory, and whose memory those have that do not.
#[derive(Debug, Default)]
pub struct Memories {
    filled: BTreeSet<i32>,
    copies: BTreeMap<i32, i32>,
}

const MREMAP_MAYMOVE_FIXED: u32 = 3;
const PROT_READ_WRITE: u32 = 3;
const MADV_DONTNEED: u32 = 4;

impl Memories {
    /// A task was born: it has a copy of what its creator has, its own memory or in turn a copy.
    pub fn born(&mut self, child: i32, creator: i32) {
        let origin = if self.filled.contains(&creator) { Some(creator) } else { self.copies.get(&creator).copied() };
        if let Some(origin) = origin {
            self.copies.insert(child, origin);
        }
    }

    /// Gives all tasks the memory that they have not, side by side: copying it is most of what they do themselves.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn fill_all(&mut self, site: &Site<'_>, plan: &Plan, tasks: &Tasks, init: &Task) -> crate::Result<()> {
        for birth in &plan.births {
            if let Some(alive) = birth::alive(site, birth) {
                let filled = self.fill(site, &tasks[&birth.pid], (birth.pid, alive), true);
                filled.at(Step::Rebuild).task(birth.pid)?;
            }
        }
        site.later.map_or(Ok(()), |later| later.arm(site, tasks, init))
    }

    /// Gives a task its memory, once; the next script of the task finds it there, and what comes later is missing until the task
    /// is watched. `may_be_later`: nobody is born as a copy of it.
    ///
    /// # Errors
    /// The kernel's, or `Corrupt` for areas that contradict each other.
    pub fn fill(
        &mut self,
        site: &Site<'_>,
        task: &Task,
        (pid, alive): (i32, &Alive),
        may_be_later: bool,
    ) -> Result<()> {
        if !self.filled.insert(pid) {
            return Ok(());
        }
        let memory = &alive.memory;
        check(site, memory)?;
        let origin = self.copies.get(&pid).and_then(|whose| site.alive.get(whose)).map(|a| &a.memory);
        let mut script = Script::new();
        let kept = match (origin, &memory.inherits) {
            (Some(origin), Some(_)) => {
                let kernels = |record: &Record| -> Vec<_> {
                    let own = record.areas.iter().filter(|a| a.is_kernel());
                    own.map(|a| (a.backing.clone(), a.start, a.end)).collect()
                };
                if kernels(origin) != kernels(memory) {
                    return Err(Cause::corrupt(format!("process {pid}: a copy with another vdso")));
                }
                keep(origin, memory, &mut script)
            }
            (Some(origin), None) => {
                forget(site, origin, &mut script);
                Vec::new()
            }
            (None, Some(_)) => return Err(Cause::corrupt(format!("process {pid}: nobody to inherit memory from"))),
            (None, None) => Vec::new(),
        };
        if memory.inherits.is_none() {
            place_vdso(site, memory, &mut script)?;
        }
        let later = site.later.filter(|_| may_be_later).map(|later| later.choose(site, pid, alive)).transpose()?;
        let later = later.unwrap_or_default();
        fill_areas(site, (pid, memory), (&kept, &later), &mut script)?;
        // Of a copy that nothing is kept of, too: the kernel refuses (EBUSY) to exchange what is mapped again by now.
        let inherited_exe = origin.is_some_and(|o| o.layout.exe == memory.layout.exe);
        let exe = match memory.layout.exe.filter(|_| !inherited_exe) {
            Some(id) => Some(*site.files.get(&id).ok_or_else(|| Cause::corrupt(format!("no file {id}")))?),
            None => None,
        };
        layout::rebuild(&memory.layout, exe, &mut script);
        site.begin(task, script)?;
        Ok(())
    }
}

/// Areas are in order, apart from each other and from scratch memory; pages lie in one private area each.
fn check(site: &Site<'_>, memory: &Record) -> Result<()> {
    let scratch = (site.arena.base(), site.arena.end() + PARKING);
    let mut last = 0;
    for area in &memory.areas {
        let (start, end) = (area.start.0, area.end.0);
        if start < last || end <= start || start % 4096 != 0 || start < scratch.1 && scratch.0 < end {
            return Err(Cause::corrupt(format!("mapping {start:#x}-{end:#x} overlaps or is out of order")));
        }
        let inside =
            |(from, to): &(Addr, Addr)| start <= from.0 && from.0 < to.0 && to.0 <= end && (from.0 | to.0) % 4096 == 0;
        if !area.guards.iter().all(inside) || area.is_kernel() && !area.guards.is_empty() {
            return Err(Cause::corrupt(format!("mapping {start:#x}-{end:#x} with guarded pages outside")));
        }
        last = end;
    }
    memory.pages.iter().try_for_each(|run| check_run(memory, run))
}

/// The area that a run begins in.
pub(super) fn area_of<'m>(memory: &'m Record, run: &PageRun) -> Option<&'m vma::Record> {
    let after = memory.areas.partition_point(|a| a.start.0 <= run.addr.0);
    memory.areas.get(after.checked_sub(1)?)
}

fn check_run(memory: &Record, run: &PageRun) -> Result<()> {
    let inside =
        area_of(memory, run).is_some_and(|a| run.end().is_some_and(|end| end <= a.end) && !a.shared && !a.is_kernel());
    if inside { Ok(()) } else { Err(Cause::corrupt(format!("pages at {} outside private memory", run.addr))) }
}

/// Of a copy, the areas that are the child's too stay; the others go. Those that stay, by start.
fn keep(origin: &Record, memory: &Record, script: &mut Script) -> Vec<(u64, u32)> {
    let mut kept = Vec::new();
    for area in origin.areas.iter().filter(|a| !a.is_kernel()) {
        match memory.areas.iter().find(|a| inherit::is_copy(a, area)) {
            Some(own) => kept.push((own.start.0, area.protection)),
            None => {
                script.call(Nr::MUNMAP, args![area.start.0, area.len()]);
            }
        }
    }
    kept
}

/// Of a copy nothing stays; the vdso goes back to where it waits in a new task.
fn forget(site: &Site<'_>, origin: &Record, script: &mut Script) {
    for (what, at, len) in &site.parked {
        if let Some(area) = origin.areas.iter().find(|a| a.backing == *what) {
            let want = Want::Exactly(*at);
            script.call_wanting(Nr::MREMAP, args![area.start.0, *len, *len, MREMAP_MAYMOVE_FIXED, *at], want);
        }
    }
    for area in origin.areas.iter().filter(|a| !a.is_kernel()) {
        script.call(Nr::MUNMAP, args![area.start.0, area.len()]);
    }
}

/// Maps, fills, protects. `kept`: areas that are there already, with their protection; `later`: those that are filled later.
fn fill_areas(
    site: &Site<'_>,
    (pid, memory): (i32, &Record),
    (kept, later): (&[(u64, u32)], &BTreeSet<u64>),
    script: &mut Script,
) -> Result<()> {
    let is_written = |area: &vma::Record| is_written(memory, area) && !later.contains(&area.start.0);
    let shared = |area: &vma::Record| site.ark.and_then(|(ark, fd)| Some((ark.area(pid, area)?, fd)));
    let there = |area: &vma::Record| kept.iter().find(|(start, _)| *start == area.start.0).map(|(_, p)| *p);
    for area in memory.areas.iter().filter(|a| !a.is_kernel()) {
        let written = is_written(area);
        match there(area) {
            Some(protection) if written && protection & PROT_READ_WRITE != PROT_READ_WRITE => {
                script.call(Nr::MPROTECT, args![area.start.0, area.len(), protection | PROT_READ_WRITE]);
            }
            Some(_) => {}
            None => {
                match shared(area) {
                    Some((offset, fd)) => area.map_shared(fd, offset, script),
                    None => area.map(behind(site, area)?, written, script),
                }
                area.advise_before(script);
            }
        }
    }
    for (start, end) in memory.inherits.iter().flat_map(|i| &i.dropped) {
        script.call(Nr::MADVISE, args![start.0, end.0.saturating_sub(start.0), MADV_DONTNEED]);
    }
    for run in &memory.pages {
        if let Some((ark, fd)) = site.ark {
            if let Some(offset) = ark.run(pid, run) {
                pages::rebuild(&PageRun { offset, ..*run }, fd, script);
            }
            continue;
        }
        if area_of(memory, run).is_some_and(|area| later.contains(&area.start.0)) {
            continue;
        }
        site.later.into_iter().for_each(|later| later.reads(run));
        let fd = *site.pages.get(&run.file).ok_or_else(|| Cause::corrupt(format!("no pages file {}", run.file)))?;
        pages::rebuild(run, fd, script);
    }
    for area in memory.areas.iter().filter(|a| !a.is_kernel()) {
        match there(area) {
            None => area.protect(is_written(area), script),
            Some(protection) => {
                if protection != area.protection || is_written(area) {
                    script.call(Nr::MPROTECT, args![area.start.0, area.len(), area.protection]);
                }
                area.guard(script);
                area.lock(script);
            }
        }
    }
    Ok(())
}

/// Whether pages of the image go into the area.
fn is_written(memory: &Record, area: &vma::Record) -> bool {
    let first = memory.pages.partition_point(|r| r.addr.0 < area.start.0);
    memory.pages.get(first).is_some_and(|r| r.addr.0 < area.end.0)
}

/// The descriptor of what is behind an area.
fn behind(site: &Site<'_>, area: &vma::Record) -> Result<Option<i32>> {
    let found = match &area.backing {
        vma::Backing::File(id, _) => site.files.get(id),
        vma::Backing::Object(id, _) => site.objects.get(id),
        _ => return Ok(None),
    };
    found.copied().map(Some).ok_or_else(|| Cause::corrupt(format!("mapping at {}: nothing behind it", area.start)))
}

/// What fills a hole that is the kernel's.
const KERNEL: &str = "the kernel that it was taken under";

/// Moves the parked vdso to where the process had it.
fn place_vdso(site: &Site<'_>, memory: &Record, script: &mut Script) -> Result<()> {
    for (what, at, len) in &site.parked {
        match memory.areas.iter().find(|a| a.backing == *what) {
            Some(area) if area.len() == *len => {
                let to = area.start.0;
                script.call_wanting(Nr::MREMAP, args![*at, *len, *len, MREMAP_MAYMOVE_FIXED, to], Want::Exactly(to));
            }
            Some(area) => {
                let had = area.len();
                let what = format!("{what:?} of {had} bytes, which has {len} under this kernel");
                return Err(Cause::of_machine(what, KERNEL));
            }
            None => {
                script.call(Nr::MUNMAP, args![*at, *len]);
            }
        }
    }
    for area in memory.areas.iter().filter(|a| a.is_kernel()) {
        if !site.parked.iter().any(|(what, ..)| *what == area.backing) {
            return Err(Cause::of_machine(format!("{:?}, which this kernel does not have", area.backing), KERNEL));
        }
    }
    Ok(())
}
