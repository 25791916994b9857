//! Rounds: memory is copied while the tasks still run, then what they wrote meanwhile, again and again. What is left for the stop
//! is what they wrote since the last round, and what cannot be tracked (see docs/adr/0009).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use yendor_image::{Parent, Watcher, Writer, pages_name};
use yendor_kinds::memory::early::{Early, Places, Task};
use yendor_kinds::memory::pages::{self, EARLY, Source};
use yendor_kinds::{Cause, Result};
use yendor_proc::maps::{self, Label, Map};
use yendor_sys::Errno;
use yendor_sys::pagemap::{self, Which};
use yendor_sys::userfault::Userfault;
use yendor_task::RunError;
use yendor_task::live::{track, twin};
use yendor_task::tree::{self, Top, read_proc};

use super::watch::Watch;
use super::{Facts, direct, twins};

/// How many rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// So many.
    Exactly(u32),
    /// Until little is left, or it does not become less.
    Auto,
}

/// A round that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Bytes of memory that were read.
    pub bytes: u64,
    /// Microseconds that it took.
    pub us: u64,
}

/// Why a large process is not tracked: all of its memory is left for the stop, or for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// What it has inherited is looked for in memory that is there now.
    #[error("it shares memory with a parent or a child")]
    Family,
    /// A seccomp filter.
    #[error("its seccomp filter may forbid what tracking takes")]
    Filter,
    /// Disks write to memory by themselves.
    #[error("it has a file open with O_DIRECT: what is read from there is written to memory unseen")]
    Direct,
    /// A userfaultfd.
    #[error("it has a userfaultfd of its own")]
    Userfault,
    /// Whatever else.
    #[error("the kernel or a limit does not allow it")]
    Refused,
}

/// What `auto` calls little: what is read in less than a few milliseconds.
const LITTLE: u64 = 2 << 20;
/// How many rounds `auto` makes at most.
const MOST: u32 = 12;
/// Bytes of memory that the last round may have read if the rest is to be read in the stop: a copy by fork takes longer for each
/// GiB that there is than to read so much.
const SPARED: u64 = 64 << 20;
/// Mappings that are smaller are left for the stop: each that is tracked is one more that does not merge with others.
const LEAST: u64 = 256 * 1024;
/// Bytes that are protected, and then read, at once: whoever maps or unmaps memory waits meanwhile.
const WINDOW: u64 = 32 << 20;

/// Where the window ends that begins at `at`: no huge page is cut in two.
fn window(at: u64, end: u64) -> u64 {
    ((at / WINDOW + 1) * WINDOW).min(end)
}

/// A process whose writes are seen.
#[derive(Debug)]
pub struct Tracked {
    inside: i32,
    fault: Userfault,
    /// What is registered.
    ranges: Vec<(u64, u64)>,
    /// Where its pages are.
    pub places: Places,
    /// Bytes that the last round has read.
    last: u64,
}

/// What the rounds have brought.
#[derive(Debug, Default)]
pub struct Rounds<'w> {
    /// The pages, if there are any.
    pub early: Option<Early<'w>>,
    /// The processes, as the tracer sees them.
    pub tracked: BTreeMap<i32, Tracked>,
    /// Each round.
    pub done: Vec<Round>,
    without: BTreeMap<i32, (i32, Why)>,
}

impl<'w> Rounds<'w> {
    /// Makes them. `top`: of the tree, which runs.
    ///
    /// # Errors
    /// The image cannot be written; a task cannot be stopped where it waits.
    pub fn make(
        wanted: Wanted,
        proc: &OwnedFd,
        top: Top,
        watch: &Watch,
        (writer, parent): (&'w Writer, Option<&'w Parent>),
        watcher: &Watcher,
    ) -> Result<Rounds<'w>> {
        let mut rounds = Rounds::default();
        let (most, auto) = match wanted {
            Wanted::Exactly(most) => (most, false),
            Wanted::Auto => (MOST, true),
        };
        for _ in 0..most {
            let begin = Instant::now();
            rounds.track_new(proc, top, watch)?;
            if rounds.tracked.is_empty() {
                break;
            }
            if rounds.early.is_none() {
                let file = writer.raw(&pages_name(EARLY))?;
                rounds.early = Some(Early::new(file, parent.map(Parent::search)));
            }
            let bytes = rounds.round(proc, watcher)?;
            let before = rounds.done.last().map_or(u64::MAX, |round| round.bytes);
            let us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
            rounds.done.push(Round { bytes, us });
            if auto && (bytes <= LITTLE || bytes > before / 4 * 3) {
                break;
            }
        }
        Ok(rounds)
    }

    /// Large processes that are not tracked, by their id inside, and why.
    #[must_use]
    pub fn missing(&self) -> Vec<(i32, Why)> {
        self.without.values().copied().collect()
    }

    /// Those of which so little is left that no copy pays.
    pub fn spared(&self) -> impl Iterator<Item = i32> {
        self.tracked.iter().filter(|(_, tracked)| tracked.last <= SPARED).map(|(pid, _)| *pid)
    }

    /// Tracks all that can be and are not yet.
    fn track_new(&mut self, proc: &OwnedFd, top: Top, watch: &Watch) -> Result<()> {
        let all = living(proc, top)?;
        self.tracked.retain(|pid, _| all.contains_key(pid));
        let new = |pid: &i32| !self.tracked.contains_key(pid) && !self.without.contains_key(pid);
        let new: Vec<&Facts> = all.values().filter(|f| new(&f.pid) && twins::pays(f)).collect();
        for facts in new {
            let inside = facts.inside().0;
            match track_one(proc, facts, &all, watch)? {
                Ok(fault) => {
                    let tracked = Tracked { inside, fault, ranges: Vec::new(), places: Places::default(), last: 0 };
                    self.tracked.insert(facts.pid, tracked);
                }
                Err(why) => {
                    self.without.insert(facts.pid, (inside, why));
                }
            }
        }
        Ok(())
    }

    fn round(&mut self, proc: &OwnedFd, watcher: &Watcher) -> Result<u64> {
        let Some(early) = &mut self.early else { return Ok(0) };
        let mut lost = Vec::new();
        let mut bytes = 0;
        for (pid, tracked) in &mut self.tracked {
            let read = tracked.round(proc.as_fd(), *pid, early, watcher)?;
            // One that was opened since, and before the pages were protected.
            let read = if read.is_ok() && direct::is_used(proc.as_fd(), *pid) { Err(Some(Why::Direct)) } else { read };
            match read {
                Ok(read) => {
                    tracked.last = read;
                    bytes += read;
                }
                Err(why) => lost.push((*pid, why)),
            }
        }
        for (pid, why) in lost {
            if let (Some(tracked), Some(why)) = (self.tracked.remove(&pid), why) {
                self.without.insert(pid, (tracked.inside, why));
            }
        }
        Ok(bytes)
    }
}

/// All processes below `top` that are there now.
fn living(proc: &OwnedFd, top: Top) -> Result<BTreeMap<i32, Facts>> {
    let mut left = match top {
        Top::Process(pid) => vec![pid],
        Top::Below(pid) => tree::children(proc.as_fd(), pid)?,
    };
    let mut all = BTreeMap::new();
    while let Some(pid) = left.pop() {
        // Who is gone meanwhile has nothing to be tracked.
        if let Ok(facts) = Facts::read(proc, pid) {
            left.extend(tree::children(proc.as_fd(), pid)?.into_iter().filter(|pid| !all.contains_key(pid)));
            all.insert(pid, facts);
        }
    }
    Ok(all)
}

/// Whether two processes run the same program, one as it was forked by the other: see `address_space::is_fork`.
fn is_fork(a: &Facts, b: &Facts) -> bool {
    let layout = |f: &Facts| (f.stat.startcode, f.stat.start_data, f.stat.startstack, f.stat.arg_start);
    layout(a) == layout(b)
}

fn track_one(
    proc: &OwnedFd,
    facts: &Facts,
    all: &BTreeMap<i32, Facts>,
    watch: &Watch,
) -> Result<std::result::Result<Userfault, Why>> {
    let related = |other: &Facts| other.status.ppid == facts.pid || facts.status.ppid == other.pid;
    if all.values().any(|other| related(other) && is_fork(facts, other)) {
        return Ok(Err(Why::Family));
    }
    if direct::is_used(proc.as_fd(), facts.pid) {
        return Ok(Err(Why::Direct));
    }
    if !twins::bears_its_like(proc, facts.pid) {
        return Ok(Err(Why::Refused));
    }
    let calls = [&twin::CALLS[..], &[track::CALL]].concat();
    let allowed = |facts: &Facts| watch.of(facts.pid, &facts.status, proc).is_ok_and(|r| watch.may(&r, &calls));
    // Asked again when it stands still: it may forbid itself something meanwhile.
    let still =
        || Facts::read(proc, facts.pid).is_ok_and(|now| now.stat.starttime == facts.stat.starttime && allowed(&now));
    if !allowed(facts) {
        return Ok(Err(Why::Filter));
    }
    match track::track(proc.as_fd(), facts.pid, still) {
        Ok(made) => Ok(made.ok_or(Why::Refused)),
        Err(RunError::Sys(e)) if e.errno == Errno::TIMEDOUT => {
            Err(Cause::unsupported(format!("a task that cannot be stopped where it waits, as in vfork ({e})")))
        }
        Err(_) => Ok(Err(Why::Refused)),
    }
}

/// Whether writes to a mapping can be seen, all of them: private memory that nothing but its process has.
fn can_be_tracked(map: &Map) -> bool {
    let plain = matches!(map.label(), Label::Anonymous | Label::Heap | Label::Stack | Label::Anon(_));
    plain && !map.perms.shared && map.inode == 0 && map.len() >= LEAST
}

impl Tracked {
    /// Protects what was written, and reads it. How many bytes; or why not, unless it has ended.
    fn round(
        &mut self,
        proc: BorrowedFd<'_>,
        pid: i32,
        early: &mut Early<'_>,
        watcher: &Watcher,
    ) -> Result<std::result::Result<u64, Option<Why>>> {
        let opened = read_proc(proc, &format!("{pid}/maps")).map_err(Cause::from);
        let opened = opened.and_then(|text| Ok((maps::parse(&text)?, Source::open(proc, pid)?)));
        let Ok((maps, source)) = opened else { return Ok(Err(None)) };
        let mut bytes = 0;
        self.ranges.clear();
        for map in maps.iter().filter(|map| can_be_tracked(map)) {
            // What has guarded pages is left to the stop: protection would mark them, too.
            if pages::guards(&source, map.start, map.end).is_ok_and(|guards| !guards.is_empty()) {
                continue;
            }
            // Whether it is what was tracked in the last round; whose it is, is told next.
            let known = pagemap::may_be_protected(source.pagemap.as_fd(), map.start).unwrap_or(false);
            match self.fault.register(map.start, map.end) {
                Ok(()) => {}
                Err(e) if e.errno == Errno::BUSY => return Ok(Err(Some(Why::Userfault))),
                // Unmapped meanwhile, or something else is mapped there: that is for the next round, or the stop.
                Err(_) => continue,
            }
            self.ranges.push((map.start, map.end));
            if !known {
                self.places.forget_range(map.start, map.end);
            }
            // Whatever marks its pages have, they are not from us.
            let which = if known { Which::Written } else { Which::All };
            let mut at = map.start;
            while at < map.end {
                let end = window(at, map.end);
                // Likewise.
                let Ok((found, to)) = pagemap::protect(source.pagemap.as_fd(), at, end, which) else { break };
                let ranges: Vec<(u64, u64)> = found.iter().map(|r| (r.start, r.end)).collect();
                let read = early.update(&source, &ranges, &mut self.places, Task::Runs)?;
                watcher.tell(read);
                bytes += read;
                if to <= at {
                    break;
                }
                at = to;
            }
        }
        Ok(Ok(bytes))
    }

    /// Whether a mapping of the process as it is now is tracked by this: not that of a program that it has executed since.
    #[must_use]
    pub fn is_of(&self, start: u64, end: u64) -> bool {
        // Again is as good as once.
        self.fault.register(start, end).is_ok()
    }

    /// Nothing is tracked any more, little by little: at once, the process would wait for all of it.
    pub fn end(self) {
        for (start, end) in &self.ranges {
            let mut at = *start;
            while at < *end {
                let to = window(at, *end);
                // What is unmapped is not tracked; what is left goes with the descriptor.
                let _ = self.fault.unregister(at, to);
                at = to;
            }
        }
    }
}
