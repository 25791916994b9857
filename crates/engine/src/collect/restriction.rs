//! Which restrictions each thread has: from the log of what threads did to themselves, and what they can only have inherited.
//!
//! Filters and domains are only ever added, and are inherited at birth. So a thread has what its creator had when it was
//! born, and what it, or for all threads another of its process, has added since. The kernel tells of no thread what it
//! has, but how many filters: the number must be explained, or the checkpoint is refused. Who created a process whose
//! parent has ended is not known: then all who could have must agree.

use std::collections::BTreeMap;

use yendor_kinds::process::Restricted;
use yendor_kinds::process::seccomp::Filter;
use yendor_kinds::{Cause, Result};

use crate::recorder::log::{Event, Line, Placed, What};

/// A thread: its id as the keeper sees it, and when it was born.
pub type Key = (i32, u64);

/// A thread that lives.
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    /// Which.
    pub key: Key,
    /// Its process.
    pub pid: i32,
    /// Its process's parent; `None` for pid 1 of the container, or somebody outside.
    pub parent: Option<i32>,
    /// Which of its threads: the one that made it, or one that took over the children of a thread that has ended.
    pub parent_thread: Option<i32>,
    /// How many filters it has beyond those that every task has.
    pub depth: u32,
    /// Whether it is the container's first process, which pid 1 made.
    pub first: bool,
    /// Whether its parent adopts orphans.
    pub adopts: bool,
}

/// What happened when: the time and the last id given before.
type Moment = (u64, i32);

#[derive(Debug, Clone, Default)]
struct Known {
    pid: i32,
    now: Restricted,
    /// What it had from each moment on.
    history: Vec<(Moment, Restricted)>,
    /// A filter that it was about to install.
    pending: Option<(Moment, u32, bool)>,
    unknown: Option<String>,
    /// When it was seen to have ended.
    ended: Option<Moment>,
}

/// What is known of a container's threads.
#[derive(Debug, Default)]
pub struct Restrictions {
    base: u32,
    filters: Vec<Filter>,
    domains: BTreeMap<u32, Placed>,
    known: BTreeMap<Key, Known>,
    /// Filters for all threads of a process.
    everywhere: BTreeMap<i32, Vec<(Moment, Vec<u32>)>>,
    /// Threads that live.
    living: BTreeMap<Key, Thread>,
    overflow: bool,
}

/// Whether a moment was before a birth. Within two ticks of the clock the ids tell: they are given in order.
fn before((time, cursor): Moment, (tid, start): Key) -> bool {
    match time.abs_diff(start) {
        0 | 1 => tid > cursor,
        _ => time < start,
    }
}

impl Restrictions {
    /// Reads a log. `base`: how many filters every task has; `living`: all threads, as of now.
    ///
    /// # Errors
    /// `Corrupt` for a log that contradicts itself.
    pub fn read(lines: Vec<Line>, base: u32, living: Vec<Thread>) -> Result<Restrictions> {
        let living = living.into_iter().map(|t| (t.key, t)).collect();
        let mut all = Restrictions { base, living, ..Restrictions::default() };
        for line in lines {
            match line {
                Line::Table { filters, domains } => {
                    all.filters = filters;
                    all.domains = (0..).zip(domains).collect();
                }
                Line::Overflow => all.overflow = true,
                Line::Event(event) => all.happened(event),
            }
        }
        Ok(all)
    }

    fn happened(&mut self, event: Event) {
        let Event { tid, start, pid, time, cursor, depth, what } = event;
        let (key, moment) = ((tid, start), (time, cursor));
        if what == What::Ended {
            if let Some(known) = self.known.get_mut(&key) {
                known.ended = Some(moment);
            }
            return;
        }
        if !self.known.contains_key(&key) && !matches!(what, What::State { .. }) {
            let facts = Thread { key, pid, parent: None, parent_thread: None, depth: 0, first: false, adopts: true };
            let facts = self.living.get(&key).copied().unwrap_or(facts);
            self.settle_for(pid, depth.saturating_sub(self.base));
            let thread = Thread { depth: depth.saturating_sub(self.base), ..facts };
            let born = self.inherited(&thread).and_then(|born| self.with_everywhere(&thread, born, None));
            let mut known = Known { pid, ..Known::default() };
            match born {
                Ok(now) => known.now = now,
                Err(why) => known.unknown = Some(why),
            }
            known.history.push(((0, 0), known.now.clone()));
            self.known.insert(key, known);
        }
        self.settle(key, depth.saturating_sub(self.base));
        let number = if let What::Filter { filter, .. } = &what { Some(self.number(filter)) } else { None };
        if let What::Domain { id, layer } = &what {
            self.domains.insert(*id, layer.clone());
        }
        let known = self.known.entry(key).or_insert_with(|| Known { pid, ..Known::default() });
        match what {
            What::State { filters, domains } => {
                known.now = Restricted { filters, domains };
                known.history.push(((0, 0), known.now.clone()));
            }
            What::Filter { tsync, .. } => known.pending = number.map(|n| (moment, n, tsync)),
            What::Domain { id, .. } => {
                known.now.domains.push(id);
                known.history.push((moment, known.now.clone()));
            }
            What::Ended => {}
            What::Unknown(why) => known.unknown = Some(why),
        }
    }

    /// The filter's number in the table.
    fn number(&mut self, filter: &Filter) -> u32 {
        let at = self.filters.iter().position(|f| f == filter).unwrap_or_else(|| {
            self.filters.push(filter.clone());
            self.filters.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// A thread of a process that nothing was known of has `depth` filters: more than one that was about to install one for
    /// all threads had. Then that one is there.
    fn settle_for(&mut self, pid: i32, depth: u32) {
        let about = |k: &Known| {
            let next = u32::try_from(k.now.filters.len() + 1);
            k.pid == pid && k.pending.is_some_and(|(.., tsync)| tsync) && next == Ok(depth)
        };
        let keys: Vec<Key> = self.known.iter().filter(|(_, k)| about(k)).map(|(key, _)| *key).collect();
        if let [one] = keys.as_slice() {
            self.settle(*one, depth);
        }
    }

    /// Whether the filter that a thread was about to install is there: it has `depth` filters now.
    fn settle(&mut self, key: Key, depth: u32) {
        let Some(known) = self.known.get_mut(&key) else { return };
        let Some((moment, number, tsync)) = known.pending.take() else {
            if u32::try_from(known.now.filters.len()).is_ok_and(|n| n < depth) {
                let pid = known.pid;
                self.settle_for(pid, depth);
            }
            return;
        };
        if usize::try_from(depth).unwrap_or(0) <= known.now.filters.len() {
            return;
        }
        known.now.filters.push(number);
        known.history.push((moment, known.now.clone()));
        if tsync {
            let (pid, filters) = (known.pid, known.now.filters.clone());
            for other in self.known.values_mut().filter(|k| k.pid == pid) {
                other.now.filters.clone_from(&filters);
                other.history.push((moment, other.now.clone()));
            }
            self.everywhere.entry(pid).or_default().push((moment, filters));
        }
    }

    /// What a thread had when another was born.
    fn at_birth(&self, known: &Known, child: Key) -> Restricted {
        let then = known.history.iter().rev().find(|(moment, _)| before(*moment, child));
        then.map(|(_, r)| r.clone()).unwrap_or_default()
    }

    /// What a thread had when `child` was born; where it was just installing a filter, with it and without it.
    fn maker(&self, known: &Known, child: Key, out: &mut Vec<std::result::Result<Restricted, String>>) {
        if known.ended.is_some_and(|moment| before(moment, child)) {
            return;
        }
        if let Some(why) = &known.unknown {
            return out.push(Err(why.clone()));
        }
        let then = self.at_birth(known, child);
        if let Some((_, number, _)) = known.pending.filter(|(moment, ..)| before(*moment, child)) {
            let mut more = then.clone();
            more.filters.push(number);
            out.push(Ok(more));
        }
        out.push(Ok(then));
    }

    /// What all threads of a process that could have made `child` had then; `by`: the one that did, if it has not ended.
    fn makers(
        &self,
        pid: i32,
        by: Option<i32>,
        child: &Thread,
        out: &mut Vec<std::result::Result<Restricted, String>>,
    ) {
        let by = by.filter(|tid| self.living.values().any(|t| t.key.0 == *tid && t.key.1 <= child.key.1));
        let mut maker_known = false;
        let could = |key: &Key| by.is_none_or(|by| by == key.0 || !self.living.contains_key(key));
        for (key, known) in self.known.iter().filter(|(key, k)| k.pid == pid && could(key)) {
            maker_known |= key.0 == by.unwrap_or(pid);
            if key.1 <= child.key.1 && *key != child.key {
                self.maker(known, child.key, out);
            }
        }
        if !maker_known {
            let maker = by.unwrap_or(pid);
            let leader = self.living.values().find(|t| t.key.0 == maker && t.key != child.key);
            out.push(leader.map_or_else(
                || Ok(Restricted::default()),
                |leader| self.with_everywhere(leader, self.inherited(leader)?, Some(child.key)),
            ));
        }
    }

    /// What a thread had when it was born.
    fn inherited(&self, thread: &Thread) -> std::result::Result<Restricted, String> {
        if self.known.is_empty() {
            return Ok(Restricted::default());
        }
        let mut makers = Vec::new();
        if thread.key.0 != thread.pid {
            self.makers(thread.pid, None, thread, &mut makers);
        } else {
            match thread.parent {
                Some(parent) => self.makers(parent, thread.parent_thread, thread, &mut makers),
                None => makers.push(Ok(Restricted::default())),
            }
            if !thread.first && (thread.parent.is_none() || thread.adopts) {
                let ended = |key: &Key| !self.living.contains_key(key);
                for (_, known) in self.known.iter().filter(|(key, _)| ended(key) && key.1 <= thread.key.1) {
                    self.maker(known, thread.key, &mut makers);
                }
            }
        }
        // Those with another number of filters were not it, unless it got more by other threads of its process since.
        let synced =
            self.everywhere.get(&thread.pid).is_some_and(|all| all.iter().any(|(m, _)| !before(*m, thread.key)));
        let fits = |r: &Restricted| synced || u32::try_from(r.filters.len()) == Ok(thread.depth);
        let mut fitting: Vec<Restricted> = Vec::new();
        for maker in makers {
            match maker {
                Ok(r) if fits(&r) && !fitting.contains(&r) => fitting.push(r),
                Ok(_) => {}
                Err(why) => return Err(why),
            }
        }
        let [one] = fitting.as_slice() else {
            return Err(match fitting.len() {
                0 => format!("{} seccomp filters that were not recorded when they were installed", thread.depth),
                _ => "restrictions of one of several processes that may have made it".into(),
            });
        };
        Ok(one.clone())
    }

    /// Adds what other threads of its process have installed for all, after its birth and before that of `until`.
    fn with_everywhere(
        &self,
        thread: &Thread,
        mut born: Restricted,
        until: Option<Key>,
    ) -> std::result::Result<Restricted, String> {
        for (moment, filters) in self.everywhere.get(&thread.pid).into_iter().flatten() {
            if !before(*moment, thread.key) && until.is_none_or(|child| before(*moment, child)) {
                born.filters.clone_from(filters);
            }
        }
        Ok(born)
    }

    /// All pending filters are there or not by now.
    pub fn settle_all(&mut self) {
        let now: Vec<(Key, u32)> = self.living.values().map(|t| (t.key, t.depth)).collect();
        for (key, depth) in now {
            self.settle(key, depth);
        }
    }

    /// Whether a process adopts orphans: known once it was asked.
    pub fn adopts(&mut self, parent: i32, adopts: bool) {
        for child in self.living.values_mut().filter(|t| t.parent == Some(parent)) {
            child.adopts = adopts;
        }
    }

    /// What a living thread has forbidden itself or inherited.
    ///
    /// # Errors
    /// `Unsupported` when that is not known.
    pub fn of(&self, key: Key) -> Result<Restricted> {
        let Some(thread) = self.living.get(&key) else { return Ok(Restricted::default()) };
        let refuse = |why: &str| Err(Cause::unsupported(format!("thread {} has {why}", key.0)));
        if self.overflow {
            return refuse("restricted itself in a container with too many restrictions to remember");
        }
        let found = match self.known.get(&key) {
            Some(Known { unknown: Some(why), .. }) => return refuse(why),
            Some(known) => known.now.clone(),
            None => match self.inherited(thread).and_then(|born| self.with_everywhere(thread, born, None)) {
                Ok(found) => found,
                Err(why) => return refuse(&why),
            },
        };
        if u32::try_from(found.filters.len()) != Ok(thread.depth) {
            let (has, told) = (thread.depth, found.filters.len());
            return refuse(&format!("{has} seccomp filters, of which {told} were recorded when they were installed"));
        }
        Ok(found)
    }

    /// A domain by its id.
    #[must_use]
    pub fn domain(&self, id: u32) -> Option<&Placed> {
        self.domains.get(&id)
    }

    /// A filter by its number.
    #[must_use]
    pub fn filter(&self, number: u32) -> Option<&Filter> {
        self.filters.get(usize::try_from(number).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_image::Bytes;
    use yendor_kinds::process::landlock::Layer;

    const BASE: u32 = 1;

    fn live(tid: i32, pid: i32, parent: Option<i32>, depth: u32) -> Thread {
        Thread { key: (tid, 1000), pid, parent, parent_thread: None, depth, first: tid == 10, adopts: false }
    }

    /// Everything happens within one tick: only ids tell what came first.
    fn event(tid: i32, pid: i32, cursor: i32, depth: u32, what: What) -> Line {
        Line::Event(Event { tid, start: 1000, pid, time: 1000, cursor, depth: BASE + depth, what })
    }

    fn filter(n: u8, tsync: bool) -> What {
        What::Filter { filter: Filter { flags: 0, program: Bytes(vec![n; 8]) }, tsync }
    }

    fn domain(id: u32) -> What {
        What::Domain { id, layer: Placed { layer: Layer::default(), files: Vec::new() } }
    }

    fn read(lines: Vec<Line>, living: Vec<Thread>) -> Restrictions {
        let mut all = Restrictions::read(lines, BASE, living).unwrap();
        all.settle_all();
        all
    }

    fn of(all: &Restrictions, tid: i32) -> (Vec<u32>, Vec<u32>) {
        let r = all.of((tid, 1000)).unwrap();
        (r.filters, r.domains)
    }

    #[test]
    fn nobody_has_restricted_itself() {
        let all = read(Vec::new(), vec![live(10, 10, None, 0), live(11, 10, None, 0)]);
        assert_eq!(of(&all, 11), (vec![], vec![]));
        assert!(read(Vec::new(), vec![live(10, 10, None, 1)]).of((10, 1000)).is_err());
    }

    #[test]
    fn filters_count_when_they_were_installed() {
        let lines = || {
            vec![
                event(10, 10, 10, 0, filter(1, false)),
                event(10, 10, 10, 0, filter(2, false)),
                event(10, 10, 10, 1, filter(3, false)),
            ]
        };
        assert_eq!(of(&read(lines(), vec![live(10, 10, None, 2)]), 10).0, [1, 2], "the first one failed");
        assert_eq!(of(&read(lines(), vec![live(10, 10, None, 1)]), 10).0, [1], "the last one, too");
        assert!(read(lines(), vec![live(10, 10, None, 3)]).of((10, 1000)).is_err());
    }

    #[test]
    fn a_child_has_what_its_parent_had_when_it_was_born() {
        let lines = vec![
            event(10, 10, 10, 0, domain(0)),
            event(10, 10, 12, 0, filter(1, false)),
            event(10, 10, 14, 1, domain(1)),
        ];
        let living = [(10, 1), (11, 0), (12, 0), (13, 1), (14, 1), (15, 1)];
        let living = living.map(|(tid, depth)| live(tid, tid, (tid > 10).then_some(10), depth));
        let all = read(lines, living.to_vec());
        assert_eq!(of(&all, 10), (vec![0], vec![0, 1]));
        assert_eq!([11, 12].map(|t| of(&all, t)), [(vec![], vec![0]), (vec![], vec![0])]);
        assert_eq!([13, 14].map(|t| of(&all, t)), [(vec![0], vec![0]), (vec![0], vec![0])]);
        assert_eq!(of(&all, 15), (vec![0], vec![0, 1]));
    }

    #[test]
    fn a_filter_for_all_threads_is_everybodys() {
        let lines = vec![event(11, 10, 12, 0, filter(1, true)), event(12, 10, 13, 1, filter(2, false))];
        let living = vec![live(10, 10, None, 1), live(11, 10, None, 1), live(12, 10, None, 2), live(13, 10, None, 1)];
        let all = read(lines, living);
        assert_eq!([10, 11, 12, 13].map(|t| of(&all, t).0), [vec![0], vec![0], vec![0, 1], vec![0]]);
    }

    #[test]
    fn an_orphan_must_have_what_all_had_who_may_have_made_it() {
        let lines = || vec![event(20, 20, 20, 0, domain(0)), event(10, 10, 25, 0, filter(1, false))];
        let orphan = |first, depth| Thread { first, ..live(30, 30, None, depth) };
        assert!(read(lines(), vec![live(10, 10, None, 1), orphan(false, 0)]).of((30, 1000)).is_err());
        assert_eq!(of(&read(lines(), vec![live(10, 10, None, 1), orphan(true, 0)]), 30), (vec![], vec![]));
        // Born before the one who has ended restricted itself.
        let early = Thread { key: (19, 1000), ..orphan(false, 0) };
        let early = Thread { pid: 19, ..early };
        assert_eq!(of(&read(lines(), vec![live(10, 10, None, 1), early]), 19), (vec![], vec![]));
        // A parent that adopts may not have made it; one that does not has.
        let adopted = |adopts| Thread { adopts, ..live(31, 31, Some(10), 1) };
        assert!(read(lines(), vec![live(10, 10, None, 1), adopted(false)]).of((31, 1000)).is_ok());
        let lines = || {
            vec![
                event(20, 20, 20, 0, domain(0)),
                event(20, 20, 20, 0, filter(1, false)),
                event(20, 20, 20, 1, filter(1, false)),
                event(10, 10, 25, 0, filter(1, false)),
            ]
        };
        assert!(read(lines(), vec![live(10, 10, None, 1), adopted(true)]).of((31, 1000)).is_err());
    }

    #[test]
    fn the_thread_that_made_a_child_counts() {
        let lines = || vec![event(11, 10, 11, 0, domain(0)), event(10, 10, 11, 0, domain(1))];
        let child = |parent_thread| Thread { parent_thread, ..live(20, 20, Some(10), 0) };
        let living = |child| vec![live(10, 10, None, 0), live(11, 10, None, 0), live(12, 10, None, 0), child];
        assert!(read(lines(), living(child(None))).of((20, 1000)).is_err());
        assert_eq!(of(&read(lines(), living(child(Some(10)))), 20).1, [1]);
        assert_eq!(of(&read(lines(), living(child(Some(11)))), 20).1, [0]);
        assert!(read(lines(), living(child(Some(12)))).of((20, 1000)).is_err(), "who made thread 12?");
        // It may have taken over the child of one that has ended.
        let mut ended = lines();
        ended.push(event(13, 10, 13, 0, domain(2)));
        assert!(read(ended, living(child(Some(10)))).of((20, 1000)).is_err());
    }

    #[test]
    fn who_has_ended_has_made_nobody_since() {
        let lines = |more: Vec<Line>| {
            let mut lines = vec![event(11, 10, 11, 0, filter(1, false)), event(10, 10, 11, 0, filter(2, false))];
            lines.extend(more);
            lines
        };
        let living = || vec![live(10, 10, None, 1), live(20, 20, Some(10), 1)];
        assert!(read(lines(Vec::new()), living()).of((20, 1000)).is_err());
        assert_eq!(of(&read(lines(vec![event(11, 10, 12, 0, What::Ended)]), living()), 20).0, [1]);
        assert!(read(lines(vec![event(11, 10, 20, 0, What::Ended)]), living()).of((20, 1000)).is_err());
    }

    #[test]
    fn what_was_restored_is_known_and_goes_on() {
        let table = Line::Table {
            filters: vec![Filter { flags: 0, program: Bytes(vec![7; 8]) }],
            domains: vec![Placed { layer: Layer::default(), files: Vec::new() }],
        };
        let state = What::State { filters: vec![0], domains: vec![0] };
        let lines = vec![
            table,
            event(10, 10, 0, 1, state),
            event(10, 10, 11, 1, filter(7, false)),
            event(10, 10, 12, 2, domain(1)),
        ];
        let all = read(lines, vec![live(10, 10, None, 2), live(11, 11, Some(10), 1)]);
        assert_eq!(of(&all, 10), (vec![0, 0], vec![0, 1]));
        assert_eq!(of(&all, 11), (vec![0], vec![0]));
    }

    #[test]
    fn what_cannot_be_recorded_is_refused() {
        let lines = vec![event(10, 10, 10, 0, What::Unknown("something".into()))];
        let error = read(lines, vec![live(10, 10, None, 0)]).of((10, 1000)).unwrap_err().to_string();
        assert!(error.contains("something"), "{error}");
        assert!(read(vec![Line::Overflow], vec![live(10, 10, None, 0)]).of((10, 1000)).is_err());
    }
}
