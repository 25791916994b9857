//! Rounds: memory is copied while the tasks still run, then what they wrote meanwhile, again and again. What is left for the stop
//! is what they wrote since the last round, and what cannot be tracked (see docs/adr/0009).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use yendor_image::{Parent, Watcher, Writer, pages_name};
use yendor_kinds::memory::early::{Early, Places, Task};
use yendor_kinds::memory::pages::EARLY;
use yendor_kinds::memory::source::{self, Source};
use yendor_kinds::{Cause, Result};
use yendor_proc::maps::{self, Label, Map};
use yendor_sys::Errno;
use yendor_sys::pagemap::{self, Which};
use yendor_sys::userfault::Userfault;
use yendor_task::RunError;
use yendor_task::live::{track, twin};
use yendor_task::tree::{self, Top, read_proc};

use super::watch::Watch;
use super::{Facts, direct, levels, twins};
use crate::shadow::{self, Process, Shadow, window};

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
/// A process whose writes are seen.
#[derive(Debug)]
pub struct Tracked {
    inside: i32,
    /// See [`identity`].
    pub identity: [u64; 3],
    fault: Userfault,
    /// What is registered.
    ranges: Vec<(u64, u64)>,
    /// Where its pages are.
    pub places: Places,
    /// Bytes that the last round has read, or that were written since the image before.
    last: u64,
    /// Whether its pages go to the file that is written before the stop; else it is tracked for the next checkpoint only.
    reads: bool,
}

/// What is to be done before the tasks are stopped.
#[derive(Debug, Default)]
pub struct Plan {
    /// Rounds.
    pub rounds: Option<Wanted>,
    /// Whether writes shall be tracked from the stop on, for the next checkpoint.
    pub track: bool,
    /// What was tracked since the image before.
    pub held: Option<Shadow>,
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
    /// Whether tracking goes on after the stop.
    pub track: bool,
    without: BTreeMap<i32, (i32, Why)>,
}

impl<'w> Rounds<'w> {
    /// Makes them. `top`: of the tree, which runs.
    ///
    /// # Errors
    /// The image cannot be written; a task cannot be stopped where it waits.
    pub fn make(
        plan: Plan,
        proc: &OwnedFd,
        top: Top,
        watch: &Watch,
        (writer, parent): (&'w Writer, Option<&'w Parent>),
        watcher: &Watcher,
    ) -> Result<Rounds<'w>> {
        let Plan { rounds: wanted, track, held } = plan;
        let mut rounds = Rounds { track, ..Rounds::default() };
        let (most, auto) = match wanted {
            None => (0, false),
            Some(Wanted::Exactly(most)) => (most, false),
            Some(Wanted::Auto) => (MOST, true),
        };
        rounds.tracked.extend(held.into_iter().flat_map(Shadow::into_processes).map(Tracked::again));
        if most == 0 {
            rounds.arm(proc, true);
        }
        if track && most == 0 {
            rounds.track_new(proc, top, watch, false)?;
            rounds.arm(proc, false);
        }
        if rounds.tracked.values().any(|tracked| tracked.reads) {
            rounds.begin(writer, parent)?;
        }
        for _ in 0..most {
            let begin = Instant::now();
            rounds.track_new(proc, top, watch, true)?;
            if rounds.tracked.is_empty() {
                break;
            }
            rounds.begin(writer, parent)?;
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

    fn begin(&mut self, writer: &'w Writer, parent: Option<&'w Parent>) -> Result<()> {
        if self.early.is_none() {
            let file = writer.raw(&pages_name(EARLY))?;
            self.early = Some(Early::new(file, parent.map(Parent::search)));
        }
        Ok(())
    }

    /// Large processes that are not tracked, by their id inside, and why.
    #[must_use]
    pub fn missing(&self) -> Vec<(i32, Why)> {
        self.without.values().copied().collect()
    }

    /// Those of which so little is left that no copy pays.
    pub fn spared(&self) -> impl Iterator<Item = i32> {
        self.tracked.iter().filter(|(_, tracked)| tracked.reads && tracked.last <= SPARED).map(|(pid, _)| *pid)
    }

    /// Tracks all that can be and are not yet.
    fn track_new(&mut self, proc: &OwnedFd, top: Top, watch: &Watch, reads: bool) -> Result<()> {
        let all = if self.done.is_empty() { settled(proc, top)? } else { living(proc, top)? };
        self.tracked.retain(|pid, _| all.contains_key(pid));
        let new = |pid: &i32| !self.tracked.contains_key(pid) && !self.without.contains_key(pid);
        let new: Vec<&Facts> = all.values().filter(|f| new(&f.pid) && twins::pays(f)).collect();
        for facts in new {
            let inside = facts.inside().0;
            match track_one(proc, facts, &all, watch)? {
                Ok(fault) => {
                    let (identity, ranges, places) = (identity(facts), Vec::new(), Places::default());
                    self.tracked.insert(facts.pid, Tracked { inside, identity, fault, ranges, places, last: 0, reads });
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
            tracked.reads = true;
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
        self.lose(lost);
        Ok(bytes)
    }

    /// Protects what is not yet, of those that were tracked before or of the others, and reads nothing.
    fn arm(&mut self, proc: &OwnedFd, before: bool) {
        let mut lost = Vec::new();
        for (pid, tracked) in self.tracked.iter_mut().filter(|(_, tracked)| tracked.reads == before) {
            let armed = tracked.arm(proc.as_fd(), *pid);
            let armed =
                if armed.is_ok() && direct::is_used(proc.as_fd(), *pid) { Err(Some(Why::Direct)) } else { armed };
            lost.extend(armed.err().map(|why| (*pid, why)));
        }
        self.lose(lost);
    }

    fn lose(&mut self, lost: Vec<(i32, Option<Why>)>) {
        for (pid, why) in lost {
            if let Some(tracked) = self.tracked.remove(&pid) {
                self.without.extend(why.map(|why| (pid, (tracked.inside, why))));
                tracked.end();
            }
        }
    }
}

/// When a process started, and where its program lies: what it is told apart by from a later one, and from itself before execve.
fn identity(facts: &Facts) -> [u64; 3] {
    [facts.stat.starttime, facts.stat.startcode, facts.stat.startstack]
}

/// Of what was tracked, what can be trusted still: the process is who it was, and nothing has happened to it that nobody sees.
pub fn still_tracked(held: &mut Shadow, proc: &OwnedFd, top: Top) -> Result<()> {
    let all = settled(proc, top)?;
    held.retain(|process| {
        all.get(&process.pid)
            .is_some_and(|facts| identity(facts) == process.identity && hindrance(proc, facts, &all).is_none())
    });
    Ok(())
}

/// All processes below `top` that are there now.
fn living(proc: &OwnedFd, top: Top) -> Result<BTreeMap<i32, Facts>> {
    let mut left = match top {
        Top::Process(pid) => vec![pid],
        Top::Below(pid) => tree::children(proc.as_fd(), pid)?,
    };
    let (Top::Process(home) | Top::Below(home)) = top;
    let home = levels::around(proc.as_fd(), home)?;
    let mut all = BTreeMap::new();
    while let Some(pid) = left.pop() {
        // Who is gone meanwhile has nothing to be tracked.
        if let Ok(facts) = Facts::read(proc, pid, home) {
            left.extend(tree::children(proc.as_fd(), pid)?.into_iter().filter(|pid| !all.contains_key(pid)));
            all.insert(pid, facts);
        }
    }
    Ok(all)
}

/// The same, once copies that a checkpoint has left which was killed are dead, too. That takes them a moment, and nobody is a relative of theirs.
fn settled(proc: &OwnedFd, top: Top) -> Result<BTreeMap<i32, Facts>> {
    const MOMENT: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(5);
    let end = Instant::now() + MOMENT;
    loop {
        let all = living(proc, top)?;
        // Hardly any program bears a child like this, and one that was killed at its birth has no name yet.
        let copy = |f: &Facts| f.stat.exit_signal == 0 && all.get(&f.status.ppid).is_some_and(|from| is_fork(f, from));
        if Instant::now() > end || !all.values().any(copy) {
            return Ok(all);
        }
        std::thread::sleep(STEP);
    }
}

/// Whether two processes run the same program, one as it was forked by the other: see `address_space::is_fork`.
fn is_fork(a: &Facts, b: &Facts) -> bool {
    let layout = |f: &Facts| (f.stat.startcode, f.stat.start_data, f.stat.startstack, f.stat.arg_start);
    layout(a) == layout(b)
}

/// Why a process cannot be tracked, whatever it may do.
fn hindrance(proc: &OwnedFd, facts: &Facts, all: &BTreeMap<i32, Facts>) -> Option<Why> {
    let related = |other: &Facts| other.status.ppid == facts.pid || facts.status.ppid == other.pid;
    if all.values().any(|other| related(other) && is_fork(facts, other)) {
        return Some(Why::Family);
    }
    direct::is_used(proc.as_fd(), facts.pid).then_some(Why::Direct)
}

fn track_one(
    proc: &OwnedFd,
    facts: &Facts,
    all: &BTreeMap<i32, Facts>,
    watch: &Watch,
) -> Result<std::result::Result<Userfault, Why>> {
    if let Some(why) = hindrance(proc, facts, all) {
        return Ok(Err(why));
    }
    if !twins::bears_its_like(proc, facts.pid) {
        return Ok(Err(Why::Refused));
    }
    let calls = [&twin::CALLS[..], &[track::CALL]].concat();
    let allowed = |facts: &Facts| watch.of(facts.pid, &facts.status, proc).is_ok_and(|r| watch.may(&r, &calls));
    // Asked again when it stands still: it may forbid itself something meanwhile.
    let still = || {
        Facts::read(proc, facts.pid, facts.home)
            .is_ok_and(|now| now.stat.starttime == facts.stat.starttime && allowed(&now))
    };
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
        let mut bytes = 0;
        self.each_map(proc, pid, |tracked, source, map, known| {
            // Whatever marks its pages have, they are not from us.
            let which = if known { Which::Written } else { Which::All };
            let mut at = map.start;
            while at < map.end {
                let end = window(at, map.end);
                // Likewise.
                let Ok((found, to)) = pagemap::protect(source.pagemap.as_fd(), at, end, which) else { break };
                let ranges: Vec<(u64, u64)> = found.iter().map(|r| (r.start, r.end)).collect();
                let read = early.update(source, &ranges, &mut tracked.places, Task::Runs)?;
                watcher.tell(read);
                bytes += read;
                if to <= at {
                    break;
                }
                at = to;
            }
            Ok(())
        })
        .map(|done| done.map(|()| bytes))
    }

    /// Protects mappings that were not yet, and looks how much was written to the others.
    fn arm(&mut self, proc: BorrowedFd<'_>, pid: i32) -> std::result::Result<(), Option<Why>> {
        self.last = 0;
        let done = self.each_map(proc, pid, |tracked, source, map, known| {
            let mut at = map.start;
            while at < map.end {
                let end = window(at, map.end);
                let found = match known {
                    true => pagemap::scan_tracked(source.pagemap.as_fd(), at, end),
                    false => pagemap::protect(source.pagemap.as_fd(), at, end, Which::All),
                };
                // Unmapped meanwhile.
                let Ok((found, to)) = found else { break };
                tracked.last += tracked.places.changed(&found).iter().map(|(start, end)| end - start).sum::<u64>();
                if to <= at {
                    break;
                }
                at = to;
            }
            Ok(())
        });
        // Nothing is read.
        done.unwrap_or(Ok(()))
    }

    /// Calls back for each mapping that is tracked from now on, and whether it was before. Or why it is not, unless it has ended.
    fn each_map(
        &mut self,
        proc: BorrowedFd<'_>,
        pid: i32,
        mut with: impl FnMut(&mut Tracked, &Source<'_>, &Map, bool) -> Result<()>,
    ) -> Result<std::result::Result<(), Option<Why>>> {
        let opened = read_proc(proc, &format!("{pid}/maps")).map_err(Cause::from);
        let opened = opened.and_then(|text| Ok((maps::parse(&text)?, Source::open(proc, pid)?)));
        let Ok((maps, source)) = opened else { return Ok(Err(None)) };
        self.ranges.clear();
        for map in maps.iter().filter(|map| can_be_tracked(map)) {
            // What has guarded pages is left to the stop: protection would mark them, too.
            if source::guards(&source, map.start, map.end).is_ok_and(|guards| !guards.is_empty()) {
                continue;
            }
            // Whether it is what was tracked in the last round; whose it is, is told next.
            let known = pagemap::may_be_protected(source.pagemap.as_fd(), map.start).unwrap_or(false);
            match self.fault.register(map.start, map.end) {
                Ok(()) => {}
                Err(e) if e.errno == Errno::BUSY => return Ok(Err(Some(Why::Userfault))),
                // Its memory is gone: it has ended, or executed another program.
                Err(e) if Userfault::is_gone(&e) => return Ok(Err(None)),
                // Unmapped meanwhile, or something else is mapped there: that is for the next round, or the stop.
                Err(_) => continue,
            }
            self.ranges.push((map.start, map.end));
            if !known {
                self.places.forget_range(map.start, map.end);
            }
            with(self, &source, map, known)?;
        }
        Ok(Ok(()))
    }

    /// Whether a mapping of the process as it is now is tracked by this: not that of a program that it has executed since.
    #[must_use]
    pub fn is_of(&self, start: u64, end: u64) -> bool {
        // Again is as good as once.
        self.fault.register(start, end).is_ok()
    }

    /// As a keeper has held it.
    fn again((process, fault): (Process, Userfault)) -> (i32, Tracked) {
        let Process { pid, identity, ranges, runs } = process;
        let places = Places::of_parent(&ranges, &runs);
        (pid, Tracked { inside: pid, identity, fault, ranges, places, last: 0, reads: true })
    }

    /// Whether its pages are where [`Self::places`] says, as far as they were not written.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.reads
    }

    /// What tracks it, for the next checkpoint.
    #[must_use]
    pub fn into_fault(self) -> Userfault {
        self.fault
    }

    /// Nothing is tracked any more, little by little: at once, the process would wait for all of it.
    pub fn end(self) {
        shadow::end(&self.fault, &self.ranges);
    }
}
