//! Memory that comes later (docs/adr/0018): which, and how somebody is told of what is missing in it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use yendor_image::{FileEntry, PAGE_BYTES, PageRun, Reader, TREE_BYTES, Tree, pages_name};
use yendor_kinds::memory::vma;
use yendor_kinds::memory::vma::{Backing, Flag};
use yendor_kinds::process::{Alive, State};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Result as Plain};
use yendor_sys::seccomp::descriptor_of;
use yendor_sys::userfault::missing;
use yendor_sys::{Errno, SysError};
use yendor_task::{Nr, Script, args};

use super::birth::Tasks;
use super::filter;
use super::inherited::lift;
use super::memory::area_of;
use super::{Site, Task, words};
use crate::error::{At, Error, Result, Step, With};
use crate::pager::{Filling, MOST, Waiting, Wanting};
use crate::wire::Lazy;

const PAGE: usize = 4096;

/// Bytes of pages from which on an area is not filled at once.
const LEAST: u64 = 256 << 10;

/// Pages with words that the kernel does not wait for, of all processes of an image: each of them may cost that a block is compared before
/// anything runs. What has more is filled at once.
const MOST_WORDS: usize = 4096;

/// What decides, and what has been decided.
#[derive(Debug)]
pub struct Later {
    how: Lazy,
    device: OwnedFd,
    /// Of which files of pages it is known what they are made of, and that of those that anything is read from.
    compared: BTreeSet<u16>,
    trees: BTreeMap<u16, Tree>,
    entries: Vec<(u16, FileEntry)>,
    waiting: RefCell<Option<Waiting>>,
    filling: RefCell<Option<Filling>>,
    spaces: RefCell<Vec<Space>>,
    /// Blocks that were read at once, by file and number.
    read: RefCell<BTreeSet<(u16, u64)>>,
    /// The device's number in every stub.
    number: Cell<Option<i32>>,
    /// So many pages with such words may be put still.
    words: Cell<usize>,
}

/// What comes later to a process.
#[derive(Debug)]
struct Space {
    pid: i32,
    runs: Vec<PageRun>,
    /// What is to be watched: from the first page of an area to the last.
    ranges: Vec<(u64, u64)>,
    /// Pages that the kernel does not wait for.
    words: BTreeSet<u64>,
}

impl Later {
    /// Why nothing came later though it was to.
    pub const WHY_NOT: &str = "--lazy: all memory was filled before anything ran: what is in long pieces and not shared, in an image \
                             that is neither encrypted nor compressed, can come later, where copies are told of (seccomp); \
                             yendor flatten writes an older image anew";

    /// For an image of which some files of pages can be compared by blocks; none: it has no such files.
    ///
    /// # Errors
    /// A damaged image, and one that has more of them than is held.
    pub fn new(
        (reader, snapshot): (&Reader, &Snapshot),
        device: OwnedFd,
        waiting: Waiting,
        how: Lazy,
    ) -> Result<Option<Later>> {
        let all = (0..u16::MAX).map(|number| (number, pages_name(number))).take_while(|(_, name)| reader.has(name));
        let compared: BTreeSet<u16> = all.filter(|(_, name)| reader.has_tree(name)).map(|(number, _)| number).collect();
        // Nothing of the others is ever read.
        let trees = reader.trees(used(snapshot)).at(Step::Load)?;
        let entry = |number: &u16| Some((*number, reader.manifest().file(&pages_name(*number))?.clone()));
        let entries = trees.keys().filter_map(entry).collect();
        if trees.is_empty() {
            return Ok(None);
        }
        let (waiting, number, words) = (RefCell::new(Some(waiting)), Cell::default(), Cell::new(MOST_WORDS));
        let (filling, spaces, read) = Default::default();
        Ok(Some(Later { how, device, compared, trees, entries, waiting, filling, spaces, read, number, words }))
    }

    /// Whether this file is compared by blocks, when tasks have read what they read of it.
    #[must_use]
    pub fn covers(&self, file: u16) -> bool {
        self.compared.contains(&file)
    }

    /// Stubs inherit the device, and close it with everything else that is not theirs.
    pub(super) fn lift(&self, above: i32, held: &mut Vec<OwnedFd>) -> Result<()> {
        self.number.set(Some(lift(&self.device, above, held).at(Step::Rebuild)?));
        Ok(())
    }

    /// Nothing comes later, after all.
    pub(super) fn forgo(&self) {
        self.number.set(None);
    }

    /// Which areas of a process are filled later, by their starts.
    pub(super) fn choose(&self, site: &Site<'_>, pid: i32, alive: &Alive) -> Plain<BTreeSet<u64>> {
        let memory = &alive.memory;
        let mut spaces = self.spaces.borrow_mut();
        if self.number.get().is_none() || spaces.len() >= MOST || memory.inherits.is_some() {
            return Ok(BTreeSet::new());
        }
        // Else filters are handed over where memory may be that never comes.
        if !memory.areas.iter().any(filter::is_roomy_stack) {
            return Ok(BTreeSet::new());
        }
        let mut found: BTreeMap<u64, (bool, Vec<PageRun>)> = BTreeMap::new();
        for run in &memory.pages {
            let Some(area) = area_of(memory, run).filter(|area| can_wait(area)) else { continue };
            let (whole, runs) = found.entry(area.start.0).or_insert((true, Vec::new()));
            *whole &= self.covers(run.file);
            runs.push(*run);
        }
        let bytes = |runs: &[PageRun]| runs.iter().filter_map(PageRun::bytes).sum::<u64>();
        found.retain(|_, (whole, runs)| *whole && bytes(runs) >= LEAST);
        if found.is_empty() {
            return Ok(BTreeSet::new());
        }
        let ends = |runs: &[PageRun]| Some((runs.first()?.addr.0, runs.last()?.end()?.0));
        let ranges: Vec<(u64, u64)> = found.values().filter_map(|(_, runs)| ends(runs)).collect();
        let starts = found.keys().copied().collect();
        let words = site.reader.map(|reader| words::pages(reader, &memory.pages, &alive.threads)).transpose()?;
        let inside = |page: &u64| {
            ranges.get(ranges.partition_point(|(_, end)| end <= page)).is_some_and(|(start, _)| start <= page)
        };
        let words: BTreeSet<u64> = words.unwrap_or_default().into_iter().filter(inside).collect();
        let Some(left) = self.words.get().checked_sub(words.len()) else { return Ok(BTreeSet::new()) };
        self.words.set(left);
        spaces.push(Space { pid, runs: found.into_values().flat_map(|(_, runs)| runs).collect(), ranges, words });
        Ok(starts)
    }

    /// A run is read at once.
    pub(super) fn reads(&self, run: &PageRun) {
        let Some(bytes) = run.bytes().filter(|_| self.covers(run.file)) else { return };
        let blocks = run.offset / TREE_BYTES..=(run.offset + bytes - 1) / TREE_BYTES;
        self.read.borrow_mut().extend(blocks.map(|block| (run.file, block)));
    }

    /// Once everything is mapped: whoever touches what comes later waits for it from now on, the tasks' own scripts too.
    pub(super) fn arm(&self, site: &Site<'_>, tasks: &Tasks, init: &Task) -> Result<()> {
        let spaces = self.spaces.take();
        let Some((waiting, device)) = self.waiting.take().zip(self.number.get()).filter(|_| !spaces.is_empty()) else {
            return Ok(());
        };
        let mut wanting = Vec::new();
        for Space { pid, runs, ranges, words } in spaces {
            let task = &tasks[&pid];
            let pager = watch(site, task, device, &ranges).at(Step::Rebuild).kind("memory", "userfaultfd").task(pid)?;
            self.put(site, (&pager, &runs), words).at(Step::Rebuild).kind("memory", "userfaultfd").task(pid)?;
            wanting.push(Wanting { pid: task.tid, pager, runs });
        }
        *self.filling.borrow_mut() = Some(waiting.begin(init.tid, self.how, self.entries.clone(), wanting)?);
        Ok(())
    }

    /// Puts single pages in their place before anything runs.
    fn put(&self, site: &Site<'_>, (pager, runs): (&missing::Pager, &[PageRun]), pages: BTreeSet<u64>) -> Plain<()> {
        let (mut block, mut loaded) = (Vec::new(), None);
        for at in pages {
            let placed = match (words::run_at(runs, at), site.reader) {
                (Some(run), Some(reader)) => {
                    let offset = run.offset + (at - run.addr.0);
                    let number = offset / TREE_BYTES;
                    if loaded != Some((run.file, number)) {
                        reader.wanted(&pages_name(run.file))?;
                        let missing = || Cause::corrupt(format!("{}: missing", pages_name(run.file)));
                        let tree = self.trees.get(&run.file).ok_or_else(missing)?;
                        tree.load(&reader.open_file(&pages_name(run.file))?.0, number, &mut block)?;
                        loaded = Some((run.file, number));
                    }
                    let begin = usize::try_from(offset % TREE_BYTES).unwrap_or(usize::MAX);
                    let page = block.get(begin..).and_then(|rest| rest.first_chunk::<PAGE>());
                    pager.copy(at, page.ok_or_else(|| Cause::corrupt("a page behind the end of its file"))?)
                }
                _ => pager.zeros(at, PAGE_BYTES),
            };
            if let Some(errno) = placed.stopped.filter(|errno| *errno != Errno::EXIST) {
                return Err(SysError::new("ioctl", format!("UFFDIO_COPY, {at:#x}"), errno).into());
            }
        }
        Ok(())
    }

    /// What was read at once must be what was written.
    ///
    /// # Errors
    /// A damaged image: which block is.
    pub fn compare(&self, snapshot: &Snapshot, reader: &Reader) -> Result<()> {
        for run in snapshot.objects.iter().flat_map(|object| &object.pages) {
            reader.wanted(&pages_name(run.file)).at(Step::Load)?;
            self.reads(run);
        }
        let mut block = Vec::new();
        let mut open = None;
        for (number, at) in self.read.take() {
            let Some(tree) = self.trees.get(&number) else { continue };
            reader.wanted(&pages_name(number)).at(Step::Load)?;
            let file = match open.take() {
                Some((same, file)) if same == number => file,
                _ => reader.open_file(&pages_name(number)).at(Step::Load)?.0,
            };
            tree.load(&file, at, &mut block).at(Step::Load)?;
            open = Some((number, file));
        }
        Ok(())
    }

    /// What is on its way, if anything is.
    #[must_use]
    pub fn into_filling(self) -> Option<Filling> {
        self.filling.into_inner()
    }

    /// Why it does not go on, if the pager has said so.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.filling.borrow_mut().as_mut().and_then(Filling::failure).map(Error::from)
    }

    /// Whether anything is on its way.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.filling.borrow().is_some()
    }
}

/// The files of pages that anything of an image is in.
fn used(snapshot: &Snapshot) -> BTreeSet<u16> {
    let alive = snapshot.processes.iter().filter_map(|process| match &process.state {
        State::Alive(alive) => Some(&alive.memory.pages),
        _ => None,
    });
    alive.chain(snapshot.objects.iter().map(|object| &object.pages)).flatten().map(|run| run.file).collect()
}

/// Whether an area can be filled while its program runs: nothing has to be in memory, or where it is, from the beginning.
fn can_wait(area: &vma::Record) -> bool {
    const PLAIN: [Flag; 7] = [
        Flag::NoReserve,
        Flag::DontFork,
        Flag::DontDump,
        Flag::HugePage,
        Flag::NoHugePage,
        Flag::Sequential,
        Flag::Random,
    ];
    area.backing == Backing::Anonymous
        && !area.shared
        && area.flags.iter().all(|flag| PLAIN.contains(flag))
        && area.policy.is_none()
        && area.guards.is_empty()
}

/// The task makes a userfaultfd of its own memory, which it does not keep.
fn watch(site: &Site<'_>, task: &Task, device: i32, ranges: &[(u64, u64)]) -> Plain<missing::Pager> {
    let mut script = Script::new();
    script.call(Nr::IOCTL, args![device, missing::NEW, missing::FLAGS]);
    let number = site.run(task, &script)?.first().map_or(-1, |done| done.returned);
    let fd = descriptor_of(task.tid, i32::try_from(number).unwrap_or(-1))?;
    let mut script = Script::new();
    script.call(Nr::CLOSE, args![number]);
    site.run(task, &script)?;
    let pager = missing::Pager::begin(fd)?;
    ranges.iter().try_for_each(|(start, end)| pager.register(*start, *end)).map_err(Cause::from)?;
    Ok(pager)
}
