//! Memory of the processes of a frozen tree: areas, pages, and what several processes share.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use yendor_image::{Addr, Digest, FileId, PAGE_BYTES, PageRun, Parent, Writer, pages_name};
use yendor_kinds::file::search::{self, Mounts, Names};
use yendor_kinds::file::{Gather, refused};
use yendor_kinds::memory::early::{Early, Task};
use yendor_kinds::memory::pages::{self, EARLY, Piece, Sink, Zeros};
use yendor_kinds::memory::source::{self, Source};
use yendor_kinds::memory::vma::{self, Backing};
use yendor_kinds::memory::{Record, inherit, layout, policy, shared};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named, Result};
use yendor_proc::maps::{Label, Map};
use yendor_proc::smaps::{Smap, VmFlag};
use yendor_task::live::SCRATCH;

use super::ghost::Ghosts;
use super::late::{Late, Seams, Shadowed, Spared, without_tracking};
use super::object::Objects;
use super::rounds::{Rounds, Tracked};
use super::sparse::{self, Present, Readable};
use crate::shadow::MOST;

/// An address space to be collected.
pub struct Job<'a> {
    /// Whose, as the tracer sees it.
    pub pid: i32,
    /// Its id inside.
    pub inside: i32,
    /// What the kernel remembers beside its areas.
    pub layout: layout::Record,
    /// Its mappings.
    pub smaps: &'a [Smap],
    /// The memory policies of those that have one.
    pub policies: BTreeMap<Addr, policy::Record>,
    /// Who has borne it and runs the same program, and what was collected of that.
    pub parent: Option<(i32, &'a Record)>,
    /// Whether what fork copies is left for [`Memory::complete`].
    pub later: bool,
    /// What is there of shared memory that no descriptor leads to.
    pub present: &'a Present,
}

/// Areas that were read at once though fork copies them, by their start: what is behind them may change.
pub type Read = BTreeSet<Addr>;

/// The private memory of one process, and of its parent where it may still share some.
struct Private<'s, 'p> {
    source: Source<'s>,
    parent: Option<(Source<'s>, &'p Record)>,
    inherits: Option<inherit::Record>,
    pieces: Vec<Piece>,
}

impl<'s, 'p> Private<'s, 'p> {
    fn new(source: Source<'s>, parent: Option<(Source<'s>, &'p Record)>) -> Private<'s, 'p> {
        let inherits = parent.as_ref().map(|_| inherit::Record::default());
        Private { source, parent, inherits, pieces: Vec::new() }
    }

    /// What of an area must travel: `whole`, all of these. `until`: how far the kernel may look beyond it.
    fn add(&mut self, area: &vma::Record, whole: Option<&[(u64, u64)]>, until: u64) -> Result<()> {
        let mut zeros = if area.backing == Backing::Anonymous { Zeros::Leave } else { Zeros::Keep };
        let mut ranges = source::ranges(&mut self.source, area, until)?;
        if let Some(whole) = whole {
            ranges = area.without_guards(whole);
        } else if let (Some((theirs, record)), Some(inherits)) = (&mut self.parent, &mut self.inherits) {
            let copy = record.areas.iter().find(|a| inherit::is_copy(area, a)).filter(|_| !area.shared);
            if let Some(copy) = copy {
                let pages = source::ranges(theirs, copy, copy.end.0)?;
                let difference = inherit::compare(&self.source, &ranges, theirs, &pages)?;
                inherits.dropped.extend(difference.dropped.iter().map(|(a, b)| (Addr(*a), Addr(*b))));
                ranges = difference.changed;
                zeros = Zeros::Keep;
            }
        }
        self.pieces.extend(Piece::of(&ranges, zeros));
        Ok(())
    }

    fn copy(self, out: &mut Sink<'_, impl pages::Output>) -> Result<(Vec<PageRun>, Option<inherit::Record>)> {
        let runs = out.copy(&self.source, self.pieces.into_iter())?;
        Ok((runs, self.inherits))
    }
}

/// What was collected of memory so far.
pub struct Memory<'w> {
    out: Sink<'w, yendor_image::FileWriter<'w>>,
    parent: Option<&'w Parent>,
    objects: Objects,
    /// Files opened for mappings, by device, inode and whether they can be written.
    files: BTreeMap<(u64, u64, bool), FileId>,
    /// The same by device and inode as /proc shows them of a mapping, with the path that led there.
    named: BTreeMap<(u64, u64, bool), (Vec<u8>, FileId)>,
    mounts: Mounts,
    /// The code of the vdso, which all tasks share.
    vdso: Option<Vec<u8>>,
    ghosts: Ghosts<'w>,
    writer: &'w Writer,
    /// Pages that were read before the tasks were stopped, and those whose they are.
    early: Option<Early<'w>>,
    tracked: BTreeMap<i32, Tracked>,
    /// Bytes of tracked memory that may be kept until the tasks run again.
    room: u64,
    /// Whether what was not written is compared with the parent all the same.
    verify: bool,
    /// Whether writes are tracked from now on, for the next checkpoint; and what of it is in this image, by the process.
    track: bool,
    held: BTreeMap<i32, Shadowed>,
    /// What tracking has spared, and what of that was compared.
    spared: Spared,
}

/// Bytes of tracked memory that are kept until the tasks run again, of all processes together.
const KEPT: u64 = 128 << 20;

impl<'w> Memory<'w> {
    /// Nothing yet, but for what `rounds` have brought; pages go to `writer`, but for those that `parent` has.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn new(writer: &'w Writer, parent: Option<&'w Parent>, rounds: Rounds<'w>, verify: bool) -> Result<Memory<'w>> {
        let out = Sink::new(writer.file(&pages_name(pages::PAGES))?, parent.map(Parent::search));
        Ok(Memory {
            out,
            parent,
            objects: Objects::default(),
            files: BTreeMap::new(),
            named: BTreeMap::new(),
            mounts: Mounts::default(),
            vdso: None,
            ghosts: Ghosts::default(),
            writer,
            early: rounds.early,
            tracked: rounds.tracked,
            room: KEPT,
            verify,
            track: rounds.track,
            held: BTreeMap::new(),
            spared: Spared::default(),
        })
    }

    /// What was found by tracking may not be all: all memory is read again.
    pub fn distrust(&mut self) {
        self.tracked.values_mut().for_each(|tracked| tracked.places.forget());
        self.track = false;
    }

    /// The tree runs again: nothing of it is tracked any more, but for what the next checkpoint shall know.
    pub fn untrack(&mut self) {
        for (pid, tracked) in std::mem::take(&mut self.tracked) {
            match self.held.get_mut(&pid) {
                Some(held) => held.tracked = Some(tracked),
                None => tracked.end(),
            }
        }
    }

    /// The shared objects and the vdso's digest, once all processes were collected.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn shared(&mut self, gather: &mut Gather<'_>) -> Result<(Vec<shared::Record>, Option<Digest>)> {
        std::mem::take(&mut self.ghosts).finish(gather)?;
        let vdso = self.vdso.take().map(|code| Digest::of(&code));
        Ok((std::mem::take(&mut self.objects).finish(), vdso))
    }

    /// All pages of a snapshot are written: how many bytes of them a parent has, and need not be; what is tracked still; and what
    /// tracking has spared.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn finish(mut self, snapshot: &mut Snapshot) -> Result<(u64, Vec<Shadowed>, Spared)> {
        let first = if self.early.is_some() { EARLY + 1 } else { EARLY };
        let settle = |parent| self.out.settle((parent, first), snapshot.page_runs());
        let (files, pages) = self.parent.map(settle).transpose()?.unwrap_or_default();
        self.out.end().finish()?;
        if let Some(early) = self.early {
            early.end(snapshot.page_runs().map(|run| *run))?;
            self.writer.adopt(&pages_name(EARLY))?;
        }
        for (theirs, ours) in files {
            self.parent.map_or(Ok(()), |parent| parent.share(theirs, self.writer, ours))?;
        }
        Ok((pages * PAGE_BYTES, self.held.into_values().collect(), self.spared))
    }

    /// One address space.
    ///
    /// # Errors
    /// A mapping that cannot be captured, by name.
    pub fn collect(
        &mut self,
        proc: &OwnedFd,
        job: Job<'_>,
        gather: &mut Gather<'_>,
    ) -> Result<(Record, Read, Option<Late>)> {
        let Job { pid, inside, layout, smaps, mut policies, parent, later, present } = job;
        let parent =
            parent.map(|(pid, record)| Ok::<_, Cause>((Source::open(proc.as_fd(), pid)?, record))).transpose()?;
        let mut private = Private::new(Source::open(proc.as_fd(), pid)?, parent);
        let mut areas = Vec::with_capacity(smaps.len());
        let mut read = Read::default();
        let mut tracked = self.tracked.remove(&pid);
        // What is compared with a parent's is read in any case.
        let mut late = tracked.as_mut().filter(|t| t.is_read() && private.parent.is_none()).map(Late::of);
        // Shared memory can be large, and its pages do not count here; what is tracked is looked at in a faster way: no scan goes
        // through either.
        let is_fence = |s: &Smap| s.map.perms.shared || late.is_some() && s.vm_flags.has(VmFlag::UffdWp);
        let fences: Vec<u64> = smaps.iter().filter(|s| is_fence(s)).map(|s| s.map.start).collect();
        let verify = self.parent.filter(|_| self.verify);
        let track = self.track && private.parent.is_none() && self.held.len() < MOST;
        let mut kept = Vec::new();
        let mut seams = Seams::default();
        for smap in smaps.iter().filter(|s| !is_leftover(s)) {
            let file = &mut |s: &Smap| self.backing(s, &mut private.source, present, gather);
            let (smap, is_tracked) = without_tracking(smap, tracked.as_ref());
            let Some(mut area) = vma::collect(&smap, file)? else { continue };
            seams.tracked.extend(is_tracked.then_some(area.start));
            area.policy = policies.remove(&area.start);
            if smap.vm_flags.has(VmFlag::Guard) && !area.is_kernel() {
                area.guards = sparse::guards(&private.source, &smap.map)?;
            }
            if area.backing == Backing::Vdso {
                self.check_vdso(&private.source, &area)?;
            }
            let ghost = is_ghost_mapping(&smap, &area);
            seams.others.extend((ghost || area.backing != Backing::Anonymous).then_some(area.start));
            let until = *fences.get(fences.partition_point(|f| *f < area.end.0)).unwrap_or(&pages::END);
            let own = area.backing == Backing::Anonymous && !area.shared && !ghost;
            if let Some(late) = late.as_mut().filter(|_| own) {
                read.insert(area.start);
                late.add(&private.source, &area, later && area.is_copied_by_fork(), verify)?;
            } else if !later || ghost || !area.is_copied_by_fork() {
                read.insert(area.start);
                let all = [(area.start.0, area.end.0)];
                let there = present.get(&area.start.0).map_or(&all[..], Vec::as_slice);
                private.add(&area, ghost.then_some(there), until)?;
            }
            // What was found written is protected again; what comes then is for the next checkpoint.
            if track && own && is_tracked && area.guards.is_empty() && source::protect(&private.source, &area) {
                kept.push((area.start.0, area.end.0));
            }
            areas.push(area);
        }
        if !kept.is_empty() {
            self.held.insert(pid, Shadowed { pid, inside, ranges: kept, tracked: None });
        }
        self.tracked.extend(tracked.map(|tracked| (pid, tracked)));
        if let Some(late) = &mut late {
            late.read(&private.source, self.early.as_mut(), &mut self.room)?;
            self.spared.unread += late.unread;
            self.spared.verified += late.verified;
        }
        let (pages, inherits) = private.copy(&mut self.out)?;
        Ok((Record { layout, areas: seams.close(areas), pages, inherits }, read, late))
    }

    /// What was left for later of an address space, from a copy of its process. `parent`: likewise a copy, with its areas. How
    /// many bytes there were.
    ///
    /// # Errors
    /// The copy is gone, or the image cannot be written.
    pub fn complete(
        &mut self,
        proc: &OwnedFd,
        (twin, read): (i32, &Read),
        parent: Option<(i32, &Record)>,
        record: &mut Record,
    ) -> Result<u64> {
        let parent = parent.filter(|_| record.inherits.is_some());
        let parent =
            parent.map(|(twin, theirs)| Ok::<_, Cause>((Source::of_copy(proc.as_fd(), twin)?, theirs))).transpose()?;
        let mut private = Private::new(Source::of_copy(proc.as_fd(), twin)?, parent);
        let fences: Vec<u64> = record.areas.iter().filter(|a| a.shared).map(|a| a.start.0).collect();
        for area in record.areas.iter().filter(|area| !read.contains(&area.start)) {
            let fence = fences.get(fences.partition_point(|f| *f < area.end.0));
            private.add(area, None, *fence.unwrap_or(&pages::END))?;
        }
        let before = self.out.taken();
        let (runs, inherits) = private.copy(&mut self.out)?;
        record.pages.extend(runs);
        record.pages.sort_by_key(|run| run.addr);
        if let (Some(own), Some(more)) = (&mut record.inherits, inherits) {
            own.dropped.extend(more.dropped);
            own.dropped.sort();
        }
        Ok(self.out.taken() - before)
    }

    /// What was found out of a tracked address space goes into its record; `twin`: a copy of the process. How many bytes were read
    /// from that.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub fn settle(&mut self, proc: &OwnedFd, mut late: Late, twin: Option<i32>, record: &mut Record) -> Result<u64> {
        let Some(early) = &mut self.early else { return Ok(0) };
        early.take(&late.kept, &mut late.places)?;
        let mut bytes = 0;
        if let Some(twin) = twin {
            let source = Source::of_copy(proc.as_fd(), twin)?;
            bytes = early.update(&source, &late.later, &mut late.places, Task::Stands)?;
        }
        let runs: Vec<PageRun> = late.all.iter().flat_map(|ranges| late.places.runs(ranges)).collect();
        self.out.note(&runs);
        record.pages.extend(runs);
        record.pages.sort_by_key(|run| run.addr);
        Ok(bytes)
    }

    fn check_vdso(&mut self, source: &Source<'_>, area: &vma::Record) -> Result<()> {
        let mut code = vec![0; usize::try_from(area.len()).unwrap_or(0)];
        source.read(area.start.0, &mut code)?;
        match self.vdso.get_or_insert_with(|| code.clone()) {
            other if *other != code => Err(Cause::unsupported("tasks with different vdsos")),
            _ => Ok(()),
        }
    }

    /// What is behind a mapping with an inode.
    fn backing(
        &mut self,
        smap: &Smap,
        source: &mut Source<'_>,
        present: &Present,
        gather: &mut Gather<'_>,
    ) -> Result<Backing> {
        let map = &smap.map;
        if let Some(what) = refused::mapping(&map.name, map.deleted) {
            return Err(Cause::unsupported(format!("mapping {:x}-{:x}: {what}", map.start, map.end)));
        }
        let writes = map.perms.shared && smap.vm_flags.has(VmFlag::MayWrite);
        let dev = gather.device_of(map);
        if let Some(id) = gather.holding(dev, map.inode, writes) {
            return Ok(Backing::File(id, map.offset));
        }
        // Only a description tells that a deleted file is the one that is mapped here, too.
        let flags = if writes { OFlags::RDWR } else { OFlags::RDONLY };
        if map.deleted
            && let Some(fd) = gather.again(dev, map.inode, flags)?
        {
            return Ok(Backing::File(self.mapped_file(fd, writes, gather)?, map.offset));
        }
        let named = matches!(map.label(), Label::File(path) if path.starts_with(b"/")) && !map.deleted;
        if named {
            let key = (map.dev.st_dev(), map.inode, writes);
            if let Some((_, id)) = self.named.get(&key).filter(|(name, _)| *name == map.name) {
                return Ok(Backing::File(*id, map.offset));
            }
            let mut open = |gather: &Gather<'_>| -> Result<_> {
                let Some(fd) = gather.open_regular(&map.name, flags)? else { return Ok(None) };
                let same = self.mounts.is_same(gather, fd.as_fd(), (source.pid, map))?;
                Ok(same.then_some(fd))
            };
            let opened = match open(gather) {
                // Mapped before its process went into another mount namespace.
                Ok(None) | Err(_) if gather.here.is_some() => {
                    let before = gather.here.take();
                    let opened = open(gather);
                    gather.here = before;
                    opened
                }
                other => other,
            };
            if let Some(fd) = opened? {
                let id = self.mapped_file(fd, writes, gather)?;
                self.named.insert(key, (map.name.clone(), id));
                return Ok(Backing::File(id, map.offset));
            }
            let shown = map.name.escape_ascii();
            return Err(Cause::unsupported(format!("mapping of {shown}: another file lies at this path now")));
        }
        if is_file(map) {
            if writes && let Some(id) = self.elsewhere(map, source.pid, gather)? {
                return Ok(Backing::File(id, map.offset));
            }
            let readable = Readable::of(smap, source, present, gather)?;
            let mut hidden = if map.perms.shared { Vec::new() } else { source::copied(source, map.start, map.end)? };
            hidden.extend(&readable.guarded);
            hidden.sort_unstable();
            let id = self.ghosts.mapped(map, source, (&readable, &hidden), self.writer, gather)?;
            return Ok(Backing::File(id, map.offset));
        }
        if !map.perms.shared {
            // A private mapping of shared memory without a name: its bytes become the area's own.
            if Readable::of(smap, source, present, gather)?.end < map.end {
                let what = format!("a private mapping beyond the end of {}", map.name.escape_ascii());
                return Err(Cause::unsupported(format!("mapping {:x}-{:x}: {what}", map.start, map.end)));
            }
            return Ok(Backing::Anonymous);
        }
        let readable = || Readable::of(smap, source, present, gather);
        self.objects.mapped(map, source, readable, &mut self.out)
    }

    /// A file that is mapped for all to see, by another name than the one that was removed, if it has any.
    fn elsewhere(&mut self, map: &Map, pid: i32, gather: &mut Gather<'_>) -> Result<Option<FileId>> {
        match search::names_of(gather, pid, map)? {
            Names::None => Ok(None),
            Names::Other(path) => {
                let Some(fd) = gather.open_regular(&path, OFlags::RDWR)? else { return Ok(None) };
                self.mapped_file(fd, true, gather).map(Some)
            }
            Names::Unknown => {
                let shown = map.name.escape_ascii();
                let what = format!("{shown}, mapped: whether it has other names, which will lead to another file then");
                gather.lost.push(("regular".into(), what));
                Ok(None)
            }
        }
    }

    /// The id of a file that was opened for a mapping; one description serves all mappings of a file.
    ///
    /// # Errors
    /// What its kind refuses.
    pub fn mapped_file(&mut self, fd: OwnedFd, writes: bool, gather: &mut Gather<'_>) -> Result<FileId> {
        let stat = rustix::fs::fstat(&fd).named("fstat", || "a mapped file".into())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Cause::unsupported("a mapping of something that is not a regular file"));
        }
        let key = (stat.st_dev, stat.st_ino, writes);
        if let Some(id) = self.files.get(&key) {
            return Ok(*id);
        }
        let id = gather.own(fd)?;
        self.files.insert(key, id);
        Ok(id)
    }
}

/// Whether a deleted file is behind a mapping, rather than shared memory of the kernel's naming.
fn is_file(map: &Map) -> bool {
    const KERNEL: [&[u8]; 4] = [b"/memfd:", b"/dev/zero", b"/SYSV", b"/[aio]"];
    map.deleted && map.name.starts_with(b"/") && !KERNEL.iter().any(|k| map.name.starts_with(k))
}

/// Whether a process still runs the program that its parent ran when it was forked.
pub fn is_fork(child: &layout::Record, parent: &layout::Record) -> bool {
    (child.code, child.data, child.stack, child.arguments) == (parent.code, parent.data, parent.stack, parent.arguments)
}

/// Scratch memory of a checkpoint that was killed.
fn is_leftover(smap: &Smap) -> bool {
    smap.map.name.starts_with(SCRATCH)
}

/// A private mapping of a deleted file: all of it must travel.
fn is_ghost_mapping(smap: &Smap, area: &vma::Record) -> bool {
    smap.map.inode != 0 && area.backing == Backing::Anonymous
}
