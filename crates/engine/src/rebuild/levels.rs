//! The ids of tasks in pid namespaces inside the container's. A task is known by its id in the container; in a nested namespace it has
//! another one, and so have those that it names in its calls.

use std::collections::BTreeMap;

use yendor_image::NsId;
use yendor_kinds::namespace::nested::{self, Content};
use yendor_kinds::process::{Level, Record, State};
use yendor_kinds::{Cause, Result};

use super::plan::{INIT, MOST};

/// How many pid namespaces there can be below the container's: the kernel's `MAX_PID_NS_LEVEL`, less those above.
const DEEPEST: usize = 31;

/// Where a task is: the nested pid namespaces around it, outermost first, its own last; and its ids there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The namespaces.
    pub chain: Vec<NsId>,
    /// Its ids.
    pub ids: Vec<i32>,
}

impl Place {
    /// Its id in a namespace, by those around it and itself; 0: it is not seen there.
    fn seen_from(&self, chain: &[NsId]) -> i32 {
        let own = chain.len().checked_sub(1).filter(|_| self.chain.starts_with(chain));
        own.and_then(|level| self.ids.get(level).copied()).unwrap_or(0)
    }

    /// Whether it is pid 1 of its namespace.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.ids.last() == Some(&INIT)
    }
}

/// The places of all that are not in the container's own pid namespace only, by their ids in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels {
    places: BTreeMap<i32, Place>,
    /// Who has an id in a namespace.
    taken: BTreeMap<(NsId, i32), i32>,
    /// The user namespaces inside that some belong to.
    owners: BTreeMap<NsId, NsId>,
}

static HOME: Place = Place { chain: Vec::new(), ids: Vec::new() };

impl Levels {
    /// Of an image.
    ///
    /// # Errors
    /// `Corrupt` for ids that contradict each other, or that nobody can have.
    pub fn new(processes: &[Record], namespaces: &[nested::Record]) -> Result<Levels> {
        let mut levels = Levels::default();
        for p in processes {
            let chain = match p.namespace {
                Some(id) => chain(id, namespaces)?,
                None => Vec::new(),
            };
            let bad = |what: &str| Err(Cause::corrupt(format!("process {}: {what}", p.pid)));
            if p.levels.len() != chain.len() {
                return bad("it has not one id for each pid namespace that it is in");
            }
            let ids: Vec<i32> = p.levels.iter().map(|level| level.pid.0).collect();
            if ids.iter().rev().skip(1).any(|id| *id == INIT) {
                return bad("it is pid 1 of a pid namespace that it does not live in");
            }
            if let State::Alive(alive) = &p.state {
                for (n, thread) in alive.threads.iter().enumerate() {
                    let theirs: Vec<i32> = thread.levels.iter().map(|tid| tid.0).collect();
                    if theirs.len() != chain.len() || n == 0 && theirs != ids || n > 0 && theirs.contains(&INIT) {
                        return bad("a thread of it has other ids than it can have");
                    }
                    if n > 0 {
                        levels.add(thread.tid.0, Place { chain: chain.clone(), ids: theirs })?;
                    }
                }
                let children = alive.children.map(|id| self::chain(id, namespaces)).transpose()?;
                if children.is_some_and(|theirs| theirs.len() <= chain.len() || !theirs.starts_with(&chain)) {
                    return bad("its children cannot be born in that pid namespace");
                }
            }
            levels.add(p.pid.0, Place { chain, ids })?;
        }
        levels.add_dead(processes)?;
        processes.iter().try_for_each(|p| levels.agree(p))?;
        for (number, record) in (0..).zip(namespaces) {
            if let (Content::Pid { parent }, Some(owner)) = (&record.content, record.owner) {
                if parent.is_some() {
                    let what = "a pid namespace of a user namespace of its own in another pid namespace";
                    return Err(Cause::unsupported(what));
                }
                levels.owners.insert(NsId(number), owner);
            }
        }
        levels.families(processes, namespaces)?;
        Ok(levels)
    }

    /// Where a task is.
    #[must_use]
    pub fn place(&self, id: i32) -> &Place {
        self.places.get(&id).unwrap_or(&HOME)
    }

    /// The id of a task as another sees it; 0: not at all.
    #[must_use]
    pub fn seen(&self, viewer: i32, id: i32) -> i32 {
        let chain = &self.place(viewer).chain;
        if chain.is_empty() { id } else { self.place(id).seen_from(chain) }
    }

    /// The id of a task as itself knows it.
    #[must_use]
    pub fn own(&self, id: i32) -> i32 {
        self.place(id).ids.last().copied().unwrap_or(id)
    }

    /// All its ids, innermost first, that of the container last.
    #[must_use]
    pub fn all(&self, id: i32) -> Vec<i32> {
        self.place(id).ids.iter().rev().copied().chain([id]).collect()
    }

    /// Pid 1 of a namespace.
    #[must_use]
    pub fn init(&self, namespace: NsId) -> Option<i32> {
        self.taken.get(&(namespace, INIT)).copied()
    }

    /// Pid 1 of each namespace.
    pub fn inits(&self) -> impl Iterator<Item = (NsId, i32)> {
        self.taken.iter().filter(|((_, inner), _)| *inner == INIT).map(|((namespace, _), id)| (*namespace, *id))
    }

    /// The user namespace that the pid namespace belongs to which begins with a task.
    #[must_use]
    pub fn users(&self, id: i32) -> Option<NsId> {
        let place = self.place(id);
        place.chain.last().filter(|_| place.is_init()).and_then(|namespace| self.owners.get(namespace).copied())
    }

    /// A place in a namespace of the container's own, with an id that nobody has there, for one whose id in the container is `id`.
    ///
    /// # Errors
    /// `Corrupt` where there is none.
    pub fn settle(&mut self, id: i32, namespace: NsId) -> Result<()> {
        let inner = (INIT + 1..=MOST).find(|inner| !self.taken.contains_key(&(namespace, *inner)));
        self.add(id, Place { chain: vec![namespace], ids: vec![inner.unwrap_or(MOST)] })
    }

    /// Those that belong to user namespaces inside, and their pids 1.
    #[must_use]
    pub fn owned(&self) -> Vec<(NsId, i32)> {
        self.owners.keys().filter_map(|namespace| Some((*namespace, self.init(*namespace)?))).collect()
    }

    fn add(&mut self, id: i32, place: Place) -> Result<()> {
        for (namespace, inner) in place.chain.iter().zip(&place.ids) {
            if !(INIT..=MOST).contains(inner)
                || self.taken.insert((*namespace, *inner), id).is_some_and(|other| other != id)
            {
                return Err(Cause::corrupt(format!(
                    "process {id}: its id {inner} in a pid namespace is another's, or none"
                )));
            }
        }
        if !place.chain.is_empty() {
            self.places.insert(id, place);
        }
        Ok(())
    }

    /// Leaders of groups and sessions that are no more: those that they have left know as many of their ids as they see.
    fn add_dead(&mut self, processes: &[Record]) -> Result<()> {
        let known: std::collections::BTreeSet<i32> = processes.iter().map(|p| p.pid.0).collect();
        let mut dead: BTreeMap<i32, Place> = BTreeMap::new();
        for p in processes {
            for (id, inner) in named(p).into_iter().filter(|(id, _)| *id > INIT && !known.contains(id)) {
                let ids: Vec<i32> = inner.into_iter().take_while(|inner| *inner != 0).collect();
                let chain = self.place(p.pid.0).chain.get(..ids.len()).unwrap_or_default().to_vec();
                let place = dead.entry(id).or_default();
                if place.ids.len() < ids.len() {
                    *place = Place { chain, ids };
                }
            }
        }
        dead.into_iter().try_for_each(|(id, place)| self.add(id, place))
    }

    /// Refuses a process that knows its group or session by another id than that has.
    fn agree(&self, p: &Record) -> Result<()> {
        let chain = &self.place(p.pid.0).chain;
        for (id, inner) in named(p) {
            let seen = |level: usize| if id > INIT { self.place(id).seen_from(&chain[..=level]) } else { 0 };
            if inner.iter().enumerate().any(|(level, inner)| *inner != seen(level)) {
                return Err(Cause::corrupt(format!("process {}: {id} has other ids in its pid namespace", p.pid)));
            }
        }
        Ok(())
    }

    /// Each namespace has its pid 1; without that nobody lives in it; parents are in it, or above.
    fn families(&self, processes: &[Record], namespaces: &[nested::Record]) -> Result<()> {
        let by_id: BTreeMap<i32, &Record> = processes.iter().map(|p| (p.pid.0, p)).collect();
        let number = |n: usize| NsId(u32::try_from(n).unwrap_or(u32::MAX));
        let pids = namespaces.iter().enumerate().filter(|(_, one)| one.kind() == nested::Kind::Pid);
        for (n, _) in pids {
            if !self.init(number(n)).is_some_and(|id| by_id.contains_key(&id)) {
                return Err(Cause::corrupt(format!("pid namespace {n} without its pid 1")));
            }
        }
        for p in processes {
            let chain = &self.place(p.pid.0).chain;
            if !chain.starts_with(&self.place(p.parent.0).chain) {
                return Err(Cause::corrupt(format!("process {}: its parent lives in a pid namespace below", p.pid)));
            }
            let ended = |namespace: &NsId| {
                let init = self.init(*namespace).and_then(|id| by_id.get(&id));
                init.filter(|init| init.pid != p.pid).is_none_or(|init| matches!(init.state, State::Zombie(_)))
            };
            let others = if self.place(p.pid.0).is_init() { &chain[..chain.len() - 1] } else { chain.as_slice() };
            if matches!(p.state, State::Alive(_)) && others.iter().any(ended) {
                return Err(Cause::corrupt(format!("process {}: pid 1 of its pid namespace has ended", p.pid)));
            }
            if let (State::Alive(alive), Some(users)) = (&p.state, self.users(p.pid.0))
                && !alive.threads.first().is_some_and(|leader| leader.namespaces.contains(&users))
            {
                let what =
                    format!("process {}: its pid namespace belongs to a user namespace that it is not in", p.pid);
                return Err(Cause::unsupported(what));
            }
            if let State::Zombie(status) = p.state
                && self.place(p.pid.0).is_init()
                && ![0, 9].contains(&(status & 0x7f))
            {
                let what =
                    format!("process {}: pid 1 of a pid namespace that signal {} has ended", p.pid, status & 0x7f);
                return Err(Cause::unsupported(what));
            }
        }
        Ok(())
    }
}

/// The group and the session of a process, each with its ids at all levels.
fn named(p: &Record) -> [(i32, Vec<i32>); 2] {
    let of = |which: fn(&Level) -> i32| p.levels.iter().map(which).collect();
    [(p.group.0, of(|level| level.group.0)), (p.session.0, of(|level| level.session.0))]
}

/// A pid namespace, and those around it: outermost first.
fn chain(id: NsId, namespaces: &[nested::Record]) -> Result<Vec<NsId>> {
    let mut chain = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        let record = usize::try_from(id.0).ok().and_then(|n| namespaces.get(n));
        let Some(Content::Pid { parent }) = record.map(|record| &record.content) else {
            return Err(Cause::corrupt(format!("no pid namespace has the number {id}")));
        };
        if parent.is_some_and(|parent| parent.0 >= id.0) || chain.len() >= DEEPEST {
            return Err(Cause::corrupt(format!("pid namespace {id} is below itself, or too deep")));
        }
        chain.push(id);
        next = *parent;
    }
    chain.reverse();
    Ok(chain)
}
