//! Who creates whom.
//!
//! A session is inherited at birth and can be left only by becoming the leader of a new one; a parent cannot be chosen at
//! all, but for `CLONE_PARENT`. So births have an order: a child in its parent's former session is born before the parent
//! calls setsid; an orphan whose parent is pid 1 is born, with `CLONE_PARENT`, by the leader of its session; and where
//! that leader is dead, a stand-in with its id lives until the births are over. A parent's other threads bear their own children themselves; who is
//! born by a sibling has the same thread for parent as that. An orphan whose session's leader has another parent is left behind by a stand-in that the
//! leader bears, to whoever adopted it. Process groups whose leader is dead get a
//! stand-in likewise, and so does a session that has no id inside: what a program that was started from outside of its pid
//! namespace, or by pid 1, is in.
//!
//! A pid namespace begins with the birth of its pid 1, and all others in it descend from that. Who is in one cannot name a group that began
//! outside: it inherits it, and pid 1 gets it from its creator, which can.

use std::collections::{BTreeMap, BTreeSet};

use yendor_kinds::namespace::nested;
use yendor_kinds::process::{Record, State};
use yendor_kinds::{Cause, Result};

use super::levels::Levels;

/// A task to be born.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Birth {
    /// Its id inside.
    pub pid: i32,
    /// Who calls clone.
    pub creator: i32,
    /// Which thread of it, unless that is the first.
    pub thread: Option<i32>,
    /// Which thread of its parent had it for a child, likewise.
    pub parent_thread: Option<i32>,
    /// Who is its parent then.
    pub parent: i32,
    /// Whether its parent is the creator's parent.
    pub sibling: bool,
    /// Whether it becomes a session leader.
    pub leads_session: bool,
    /// Whether it is born before its creator calls setsid.
    pub before_setsid: bool,
    /// Its process group.
    pub group: i32,
    /// Of pid 1 of a pid namespace: what begins with it.
    pub begins: Option<Begins>,
    /// Whether its creator is not in its pid namespace, and it not the first in there.
    pub joins: bool,
    /// Index of its record; `None` for a stand-in.
    pub record: Option<usize>,
    /// Of a stand-in that leaves orphans behind: to whom, and the record of the first of them.
    pub leaves: Option<(i32, usize)>,
}

/// A pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begins {
    /// The group that those in it are in who do not see it.
    pub group: Option<i32>,
    /// Where it belongs to a user namespace inside: an id in the container for a sibling, who enters that and bears pid 1.
    pub helper: Option<i32>,
}

/// Births, creators before what they create.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order.
    pub births: Vec<Birth>,
    /// In which pid namespaces, and with which ids.
    pub levels: Levels,
}

impl Plan {
    /// Has the first thread bear all children of those who may have no other threads yet.
    ///
    /// # Errors
    /// What `alone` says.
    pub fn by_first(&mut self, alone: impl Fn(i32) -> Result<bool>) -> Result<()> {
        for b in self.births.iter_mut().filter(|b| b.thread.is_some()) {
            if alone(b.creator)? {
                b.thread = None;
            }
        }
        Ok(())
    }

    /// Processes that will be children of another thread of their parent than they were: who is born by a sibling, or left behind by a stand-in,
    /// has no choice.
    #[must_use]
    pub fn strays(&self) -> Vec<i32> {
        let threads: BTreeMap<i32, Option<i32>> = self.births.iter().map(|b| (b.pid, b.thread)).collect();
        let has = |b: &Birth| if b.sibling { threads.get(&b.creator).copied().flatten() } else { b.thread };
        self.births.iter().filter(|b| b.record.is_some() && b.parent_thread != has(b)).map(|b| b.pid).collect()
    }
}

/// Pid 1, which exists.
pub const INIT: i32 = 1;

/// The highest id that a kernel gives (`PID_MAX_LIMIT`).
pub(super) const MOST: i32 = 4_194_304;

/// Where a process belongs.
#[derive(Clone, Copy)]
struct Kin {
    pid: i32,
    parent: i32,
    thread: Option<i32>,
    group: i32,
    session: i32,
}

/// Plans the births of an image's processes.
///
/// # Errors
/// `Corrupt` for ids that contradict each other, `Unsupported` for a family that cannot be made.
pub fn plan(processes: &[Record], namespaces: &[nested::Record]) -> Result<Plan> {
    let mut levels = Levels::new(processes, namespaces)?;
    let (taken, threads) = check_ids(processes)?;
    let mut free = Free { taken, next: INIT + 1 };
    // A session from outside has no id, or pid 1's: all of these get the lowest that is free.
    let outside = free.lowest();
    let family: Vec<Kin> = processes.iter().map(|p| kin(p, outside)).collect();
    let mut by_pid: BTreeMap<i32, &Kin> = BTreeMap::new();
    for p in &family {
        if p.pid <= INIT || by_pid.insert(p.pid, p).is_some() {
            return Err(Cause::corrupt(format!("two processes have the id {}, or it is reserved", p.pid)));
        }
    }
    if let Some(p) = family.iter().find(|p| p.thread.is_some_and(|tid| threads.get(&tid) != Some(&p.parent))) {
        return Err(Cause::corrupt(format!(
            "process {}: the thread that bore it is none of its parent's others",
            p.pid
        )));
    }
    let mut births = Vec::new();
    for (index, p) in family.iter().enumerate() {
        births.push(birth(p, index, &by_pid)?);
    }
    stand_ins(&family, &by_pid, &levels, &mut births);
    births.iter().for_each(|b| free.taken.extend([b.pid, b.group]));
    adopt(&mut births, processes, &levels, &mut free)?;
    join(&mut births, (&by_pid, &mut free), &mut levels)?;
    let mut births = order(births)?;
    begin(&mut births, &levels, &mut free)?;
    Ok(Plan { births, levels })
}

/// Orphans that are not their session leader's siblings, or not of the same thread, are what they were: left behind by a parent in their session, a
/// stand-in, to somebody above that adopts them by its first thread.
fn adopt(births: &mut Vec<Birth>, processes: &[Record], levels: &Levels, free: &mut Free) -> Result<()> {
    /// Families are not deeper; who claims so does not have us count.
    const DEEPEST: usize = 256;
    let known: BTreeMap<i32, (i32, Option<i32>)> = births.iter().map(|b| (b.pid, (b.parent, b.thread))).collect();
    let above = |adopter: i32, of: i32| {
        let mut at = of;
        (0..DEEPEST).any(|_| {
            at = known.get(&at).map_or(INIT, |(parent, _)| *parent);
            at == adopter
        })
    };
    let domains = |record: usize| match &processes[record].state {
        State::Alive(alive) => alive.threads.first().map(|t| t.restricted.domains.as_slice()).unwrap_or_default(),
        State::Zombie(_) | State::Exec(_) => &[],
    };
    let (mut made, mut more) = (BTreeMap::new(), Vec::new());
    for b in births.iter_mut().filter(|b| b.sibling) {
        let (Some(record), Some((parent, thread))) = (b.record, known.get(&b.creator).copied()) else { continue };
        if (parent, thread) == (b.parent, b.parent_thread) {
            continue;
        }
        let outside = [b.pid, b.creator, b.parent].iter().all(|id| levels.place(*id).chain.is_empty());
        if b.parent_thread.is_some() || !outside || b.parent != INIT && !above(b.parent, b.creator) {
            if parent == b.parent {
                // Of another thread than it was: see `Plan::strays`.
                continue;
            }
            let what = format!("process {} is in session {}, whose leader has another parent", b.pid, b.creator);
            return Err(Cause::unsupported(what));
        }
        let (leader, adopter) = (b.creator, b.parent);
        b.creator = *made.entry((leader, adopter, domains(record))).or_insert_with(|| {
            let pid = free.take();
            more.push(Birth {
                pid,
                creator: leader,
                thread: None,
                parent_thread: None,
                parent: leader,
                sibling: false,
                leads_session: false,
                before_setsid: false,
                group: leader,
                begins: None,
                joins: false,
                record: None,
                leaves: Some((adopter, record)),
            });
            pid
        });
        b.sibling = false;
    }
    births.append(&mut more);
    Ok(())
}

/// Pid 1 of a pid namespace that belongs to a user namespace inside is in there from birth on, where nobody may choose ids outside: its children
/// are born by a stand-in that joins, and left to it.
fn join(births: &mut Vec<Birth>, (by_pid, free): (&BTreeMap<i32, &Kin>, &mut Free), levels: &mut Levels) -> Result<()> {
    let owned = levels.owned();
    if owned.is_empty() {
        return Ok(());
    }
    let mut first: BTreeMap<i32, usize> = births.iter().enumerate().rev().map(|(n, b)| (b.pid, n)).collect();
    let mut borne: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    births.iter().enumerate().for_each(|(n, b)| borne.entry(b.creator).or_default().push(n));
    for (namespace, init) in owned {
        let Some(creator) = first.get(&init).map(|n| births[*n].creator) else { continue };
        let session = by_pid.get(&creator).map(|creator| creator.session);
        let fits =
            |b: &Birth| b.leads_session || by_pid.get(&b.pid).or(by_pid.get(&init)).map(|b| b.session) == session;
        let Some(children) = borne.remove(&init) else { continue };
        if let Some(b) = children.iter().map(|n| &births[*n]).find(|b| b.sibling || !fits(b)) {
            let what = format!(
                "process {}: its session began with pid 1 of a pid namespace of a user namespace inside",
                b.pid
            );
            return Err(Cause::unsupported(what));
        }
        let pid = free.take();
        levels.settle(pid, namespace)?;
        for n in &children {
            let b = &mut births[*n];
            (b.creator, b.thread, b.before_setsid) = (pid, None, false);
        }
        borne.insert(pid, children);
        borne.entry(creator).or_default().push(births.len());
        first.insert(pid, births.len());
        births.push(Birth {
            pid,
            creator,
            thread: None,
            parent_thread: None,
            parent: creator,
            sibling: false,
            leads_session: false,
            before_setsid: false,
            group: session.unwrap_or(INIT),
            begins: None,
            joins: true,
            record: None,
            leaves: None,
        });
    }
    Ok(())
}

/// Ids in the container that nobody has.
struct Free {
    taken: BTreeSet<i32>,
    /// All below are taken.
    next: i32,
}

impl Free {
    fn lowest(&mut self) -> i32 {
        while self.next < MOST && self.taken.contains(&self.next) {
            self.next += 1;
        }
        self.next
    }

    fn take(&mut self) -> i32 {
        let id = self.lowest();
        self.taken.insert(id);
        id
    }
}

/// Finds who begins a pid namespace, and refuses who would have to be born into one from outside.
fn begin(births: &mut [Birth], levels: &Levels, free: &mut Free) -> Result<()> {
    // The groups that those in a namespace do not see, by its pid 1.
    let mut groups: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for b in births.iter() {
        let (own, theirs) = (&levels.place(b.pid).chain, &levels.place(b.creator).chain);
        let begins = levels.place(b.pid).is_init();
        if b.joins {
            continue;
        }
        let from = if begins { own.split_last().map(|(_, around)| around) } else { Some(own.as_slice()) };
        if from != Some(theirs.as_slice()) {
            let what = format!(
                "process {} lives in a pid namespace that process {}, who bears it, is not in",
                b.pid, b.creator
            );
            return Err(Cause::unsupported(what));
        }
        for namespace in own {
            let outside = !levels.place(b.group).chain.contains(namespace);
            if let Some(init) = levels.init(*namespace).filter(|_| outside) {
                groups.entry(init).or_default().insert(b.group);
            }
        }
    }
    let order: BTreeMap<i32, usize> = births.iter().enumerate().map(|(n, b)| (b.pid, n)).collect();
    // Those that one creator bears come one after the other.
    let first: BTreeMap<i32, usize> = births.iter().enumerate().rev().map(|(n, b)| (b.creator, n)).collect();
    let inits: Vec<usize> = (0..births.len()).filter(|n| levels.place(births[*n].pid).is_init()).collect();
    for n in inits {
        let b = &births[n];
        let mut theirs = groups.remove(&b.pid).unwrap_or_default().into_iter();
        let group = theirs.next();
        // It must be there when the namespace begins.
        let there =
            |group: i32| group == b.creator || order.get(&group).is_some_and(|n| Some(n) < first.get(&b.creator));
        if theirs.next().is_some() || !group.is_none_or(there) {
            let what = format!("process {}: those in its pid namespace are in groups that they do not see", b.pid);
            return Err(Cause::unsupported(what));
        }
        let helper = levels.users(b.pid).map(|_| free.take());
        births[n].begins = Some(Begins { group, helper });
    }
    Ok(())
}

/// `outside`: the session of those who are in one from outside. A group from outside becomes its session's.
fn kin(p: &Record, outside: i32) -> Kin {
    let (group, session) = (p.group.0, p.session.0);
    let session = if session > INIT { session } else { outside };
    let thread = p.parent_thread.map(|tid| tid.0);
    Kin { pid: p.pid.0, parent: p.parent.0, thread, group: if group > INIT { group } else { session }, session }
}

/// All ids, and those of threads beside the first with their processes. They are of the same kind: none is another thread's, a process's, a group's
/// or a session's.
fn check_ids(processes: &[Record]) -> Result<(BTreeSet<i32>, BTreeMap<i32, i32>)> {
    for p in processes {
        for id in [p.pid.0, p.group.0, p.session.0] {
            if !(0..=MOST).contains(&id) {
                return Err(Cause::corrupt(format!("process {}: id {id}", p.pid)));
            }
        }
    }
    let mut taken: BTreeSet<i32> = processes.iter().flat_map(|p| [p.pid.0, p.group.0, p.session.0]).collect();
    let mut threads = BTreeMap::new();
    for p in processes {
        let State::Alive(alive) = &p.state else { continue };
        for thread in alive.threads.iter().skip(1) {
            let id = thread.tid.0;
            if !(INIT + 1..=MOST).contains(&id) || !taken.insert(id) {
                return Err(Cause::corrupt(format!(
                    "process {}: two threads have the id {id}, or it is reserved",
                    p.pid
                )));
            }
            threads.insert(id, p.pid.0);
        }
    }
    Ok((taken, threads))
}

fn birth(p: &Kin, index: usize, by_pid: &BTreeMap<i32, &Kin>) -> Result<Birth> {
    let leads = p.session == p.pid;
    let mut b = Birth {
        pid: p.pid,
        creator: p.parent,
        thread: p.thread,
        parent_thread: p.thread,
        parent: p.parent,
        sibling: false,
        leads_session: leads,
        before_setsid: false,
        group: p.group,
        begins: None,
        joins: false,
        record: Some(index),
        leaves: None,
    };
    let parent = by_pid.get(&p.parent);
    match parent {
        _ if leads => {}
        Some(parent) if parent.session == p.session => {}
        // The session that the parent was born in: its own parent's.
        Some(parent) if parent.session == parent.pid && birth_session(parent, by_pid) == p.session => {
            b.before_setsid = true;
        }
        None if p.parent != INIT => {
            return Err(Cause::corrupt(format!("process {}: parent {} does not exist", p.pid, p.parent)));
        }
        // Adopted: the leader of its session, or a stand-in, bears it as a sibling, under the same parent; but see `adopt`.
        _ => {
            (b.creator, b.thread) = (p.session, None);
            b.sibling = true;
        }
    }
    Ok(b)
}

/// The session that a process was born in.
fn birth_session(p: &Kin, by_pid: &BTreeMap<i32, &Kin>) -> i32 {
    by_pid.get(&p.parent).map_or(0, |parent| parent.session)
}

/// Dead leaders of sessions and groups.
fn stand_ins(processes: &[Kin], by_pid: &BTreeMap<i32, &Kin>, levels: &Levels, births: &mut Vec<Birth>) {
    let mut made = BTreeSet::new();
    // Below whom the others can be found again: orphans, those that a thread has, and rather not pid 1's.
    let mut order: Vec<(&Kin, &Birth)> = processes.iter().zip(births.iter()).collect();
    order.sort_by_key(|(p, b)| (!b.sibling, p.parent == INIT, p.thread.is_none()));
    let order: Vec<&Kin> = order.into_iter().map(|(p, _)| p).collect();
    for p in order {
        let session = p.session;
        if session > INIT && !by_pid.contains_key(&session) && made.insert(session) {
            births.push(Birth {
                pid: session,
                creator: p.parent,
                thread: p.thread,
                parent_thread: p.thread,
                parent: p.parent,
                sibling: false,
                leads_session: true,
                before_setsid: false,
                group: session,
                begins: None,
                joins: false,
                record: None,
                leaves: None,
            });
        }
    }
    // Whoever is born beside the leader of its session, or who stands in for that, has its parent.
    let parents: BTreeMap<i32, i32> = births.iter().map(|b| (b.pid, b.parent)).collect();
    for p in processes {
        let (group, session) = (p.group, p.session);
        if group > INIT && !by_pid.contains_key(&group) && made.insert(group) {
            let [own, theirs] = [group, session].map(|id| &levels.place(id).chain);
            // One of a pid namespace that its session is not in is born there, by pid 1.
            let init = own.last().filter(|_| own != theirs).and_then(|namespace| levels.init(*namespace));
            let init = init.filter(|init| by_pid.get(init).is_some_and(|init| init.session == session));
            births.push(Birth {
                pid: group,
                creator: init.unwrap_or(session),
                thread: None,
                parent_thread: None,
                parent: init.or(parents.get(&session).copied()).unwrap_or(p.parent),
                sibling: init.is_none(),
                leads_session: false,
                before_setsid: false,
                group,
                begins: None,
                joins: false,
                record: None,
                leaves: None,
            });
        }
    }
}

/// Creators first.
fn order(births: Vec<Birth>) -> Result<Vec<Birth>> {
    let mut of: BTreeMap<i32, Vec<Birth>> = BTreeMap::new();
    let count = births.len();
    for b in births {
        of.entry(b.creator).or_default().push(b);
    }
    let mut out = Vec::with_capacity(count);
    let mut next = vec![INIT];
    while let Some(creator) = next.pop() {
        for b in of.remove(&creator).unwrap_or_default() {
            next.push(b.pid);
            out.push(b);
        }
    }
    if out.len() != count {
        let lost: Vec<_> = of.keys().map(ToString::to_string).collect();
        return Err(Cause::corrupt(format!("nobody leads to the processes of {}", lost.join(", "))));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_image::{NsId, NsPid};
    use yendor_kinds::namespace::user;
    use yendor_kinds::process::Level;

    fn p(pid: i32, parent: i32, group: i32, session: i32) -> Record {
        let [pid, parent, group, session] = [pid, parent, group, session].map(NsPid);
        let state = State::Zombie(0);
        let (parent_thread, namespace, levels) = (None, None, Vec::new());
        Record { pid, parent, parent_thread, group, session, namespace, levels, exit_signal: 17, state }
    }

    #[test]
    fn a_shell_with_a_job_is_born_in_order() {
        let plan = plan(&[p(2, 1, 2, 2), p(5, 2, 5, 2)], &[]).expect("plan");
        let short: Vec<_> = plan.births.iter().map(|b| (b.pid, b.creator, b.leads_session)).collect();
        assert_eq!(short, [(2, 1, true), (5, 2, false)]);
    }

    #[test]
    fn an_orphan_is_born_by_its_session_leader() {
        let plan = plan(&[p(2, 1, 2, 2), p(9, 1, 9, 2)], &[]).expect("plan");
        assert_eq!((plan.births[1].creator, plan.births[1].sibling), (2, true));
    }

    #[test]
    fn an_orphan_of_who_is_not_its_leaders_parent_is_left_behind_to_him() {
        // By a leader that lives, and by a stand-in for one that does not, below the one of two parents that the other is above.
        for (leader, more) in [(3, vec![p(3, 2, 3, 3)]), (7, vec![p(8, 2, 8, 7)])] {
            let all = [&[p(2, 1, 2, 2), p(9, 1, 9, leader), p(10, 1, 9, leader)][..], &more].concat();
            let plan = plan(&all, &[]).expect("plan");
            let birth = |pid| plan.births.iter().find(|b| b.pid == pid).expect("born");
            let [one, other] = [birth(9), birth(10)];
            assert_eq!((one.creator, one.parent, one.sibling), (other.creator, 1, false));
            let between = birth(one.creator);
            assert_eq!((between.creator, between.parent, between.group), (leader, leader, leader));
            assert_eq!((birth(leader).parent, between.leaves.map(|(to, _)| to)), (2, Some(1)));
        }
    }

    #[test]
    fn an_orphan_of_nobody_above_is_refused() {
        for all in [[p(2, 1, 2, 2), p(3, 1, 3, 3), p(9, 2, 9, 3)], [p(2, 1, 2, 2), p(8, 4, 8, 7), p(9, 2, 9, 7)]] {
            let all = [&all[..], &[p(4, 1, 4, 4)]].concat();
            let error = plan(&all, &[]).expect_err("no family").to_string();
            assert!(error.contains("whose leader has another parent"), "{error}");
        }
    }

    #[test]
    fn a_dead_session_leader_gets_a_stand_in() {
        let plan = plan(&[p(9, 1, 7, 7)], &[]).expect("plan");
        let short: Vec<_> = plan.births.iter().map(|b| (b.pid, b.creator, b.record)).collect();
        assert_eq!(short, [(7, 1, None), (9, 7, Some(0))]);
    }

    #[test]
    fn a_session_from_outside_gets_a_stand_in() {
        for (group, session) in [(0, 0), (1, 1), (0, 1)] {
            let plan = plan(&[p(2, 1, group, session), p(4, 2, 4, session), p(5, 2, 5, 5)], &[]).expect("plan");
            let mut short: Vec<_> = plan.births.iter().map(|b| (b.pid, b.creator, b.group, b.record)).collect();
            short.sort_unstable();
            assert_eq!(short, [(2, 3, 3, Some(0)), (3, 1, 3, None), (4, 2, 4, Some(1)), (5, 2, 5, Some(2))]);
        }
    }

    #[test]
    fn a_daemon_child_of_the_old_session_is_born_before_setsid() {
        let plan = plan(&[p(2, 1, 2, 2), p(3, 2, 3, 3), p(4, 3, 2, 2)], &[]).expect("plan");
        assert!(plan.births.iter().any(|b| b.pid == 4 && b.before_setsid));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(plan(&[p(2, 1, 2, 2), p(2, 1, 2, 2)], &[]).is_err());
        assert!(plan(&[p(3, 4, 3, 3), p(4, 3, 4, 4)], &[]).is_err());
        assert!(plan(&[p(-3, 1, 3, 3)], &[]).is_err());
        // One that has ended has no threads, nor has pid 1.
        for parent in [INIT, 2] {
            let child = Record { parent_thread: Some(yendor_image::Tid(4)), ..p(3, parent, 3, 3) };
            let error = plan(&[p(2, 1, 2, 2), child], &[]).expect_err("a lie").to_string();
            assert!(error.contains("none of its parent's others"), "{error}");
        }
    }

    #[test]
    fn who_is_born_by_a_sibling_is_a_child_of_the_thread_that_bore_that() {
        // The second and third are in the session of the first, and so is the fourth, whose leader's stand-in another thread bears.
        let mut plan =
            plan(&[p(3, 2, 3, 3), p(4, 2, 3, 3), p(5, 2, 3, 3), p(6, 2, 9, 9), p(2, 1, 2, 2)], &[]).expect("plan");
        assert!(plan.strays().is_empty());
        let mut set = |pid: i32, thread: Option<i32>, had: Option<i32>| {
            let b = plan.births.iter_mut().find(|b| b.pid == pid).expect("born");
            assert_eq!(b.sibling, [4, 5, 6].contains(&pid));
            (b.thread, b.parent_thread) = (thread, had);
        };
        set(3, Some(30), Some(30));
        set(4, None, Some(30));
        set(9, Some(31), Some(31));
        let strays = |plan: &Plan| BTreeSet::from_iter(plan.strays());
        assert_eq!(strays(&plan), BTreeSet::from([5, 6]));
        plan.by_first(|pid| Ok(pid == 2)).expect("nobody fails");
        assert_eq!(strays(&plan), BTreeSet::from([3, 4]));
    }

    /// In a pid namespace: its ids, and those of its group and session there.
    fn inner(record: Record, namespace: u32, levels: &[[i32; 3]]) -> Record {
        let level = |[pid, group, session]: &[i32; 3]| {
            let [pid, group, session] = [*pid, *group, *session].map(NsPid);
            Level { pid, group, session }
        };
        Record { namespace: Some(NsId(namespace)), levels: levels.iter().map(level).collect(), ..record }
    }

    fn pids(parent: Option<u32>) -> nested::Record {
        nested::Record { owner: None, content: nested::Content::Pid { parent: parent.map(NsId) } }
    }

    #[test]
    fn a_pid_namespace_begins_with_its_pid_1() {
        // A shell, `unshare -pf`, its pid 1, of which a child has a group, and a second namespace in a third session.
        let all = [
            p(2, 1, 2, 2),
            p(3, 2, 3, 2),
            inner(p(4, 3, 3, 2), 0, &[[1, 0, 0]]),
            inner(p(5, 4, 5, 2), 0, &[[2, 2, 0]]),
            inner(p(9, 4, 8, 2), 0, &[[7, 6, 0]]),
            inner(p(10, 4, 10, 10), 0, &[[8, 8, 8]]),
            inner(p(11, 10, 10, 10), 1, &[[9, 8, 8], [1, 0, 0]]),
        ];
        let plan = plan(&all, &[pids(None), pids(Some(0))]).expect("plan");
        let birth = |pid| plan.births.iter().find(|b| b.pid == pid).expect("born").clone();
        assert_eq!(
            [3, 4, 5, 11].map(|pid| birth(pid).begins.map(|b| b.group)),
            [None, Some(Some(3)), None, Some(Some(10))]
        );
        assert_eq!((birth(8).creator, birth(8).sibling), (4, false), "a dead leader's stand-in is born in there");
        assert_eq!(plan.levels.all(11), [1, 9, 11]);
        assert_eq!(plan.levels.all(8), [6, 8]);
        assert_eq!([(5, 11), (11, 10), (2, 11), (11, 4)].map(|(from, id)| plan.levels.seen(from, id)), [9, 0, 11, 0]);
    }

    #[test]
    fn pid_namespaces_that_cannot_be_are_refused() {
        let init = || inner(p(3, 2, 2, 2), 0, &[[1, 0, 0]]);
        let outside = p(2, 1, 2, 2);
        let refused = |more: &[Record], namespaces: &[nested::Record]| {
            plan(&[std::slice::from_ref(&outside), more].concat(), namespaces).expect_err("a lie").to_string()
        };
        assert!(plan(&[outside.clone(), init()], &[pids(None)]).is_ok());
        let one = [pids(None)];
        assert!(refused(&[init()], &[]).contains("no pid namespace"));
        assert!(refused(&[], &one).contains("without its pid 1"));
        assert!(refused(&[inner(p(3, 2, 2, 2), 0, &[])], &one).contains("not one id"));
        assert!(refused(&[inner(p(3, 2, 2, 2), 0, &[[1, 0, 0], [1, 0, 0]])], &one).contains("not one id"));
        assert!(refused(&[inner(p(3, 2, 2, 2), 0, &[[2, 0, 0]])], &one).contains("without its pid 1"));
        assert!(refused(&[init(), inner(p(4, 2, 2, 2), 0, &[[1, 0, 0]])], &one).contains("another's"));
        assert!(refused(&[init(), inner(p(4, 3, 2, 2), 0, &[[0, 0, 0]])], &one).contains("or none"));
        assert!(refused(&[init(), inner(p(4, 3, 2, 2), 0, &[[5, 7, 0]])], &one).contains("other ids"));
        assert!(refused(&[init(), inner(p(4, 2, 2, 2), 0, &[[5, 0, 0]])], &one).contains("is not in"));
        assert!(refused(&[init(), p(4, 3, 2, 2)], &one).contains("below"));
        assert!(refused(&[init()], &[pids(Some(0))]).contains("below itself"));
        assert!(refused(&[init()], &[pids(Some(1)), pids(Some(0))]).contains("below itself"));
        let deep: Vec<_> = (0..33).map(|n: u32| pids(n.checked_sub(1))).collect();
        let levels = [[1, 0, 0]; 33];
        assert!(refused(&[inner(p(3, 2, 2, 2), 32, &levels)], &deep).contains("too deep"));
        let killed = |status| Record { state: State::Zombie(status), ..init() };
        assert!(plan(&[outside.clone(), killed(9)], &one).is_ok());
        assert!(refused(&[killed(11)], &one).contains("signal 11"));
    }

    /// Whoever sends an image pays for a hundred bytes a process: what is done for each must not grow with how many there are.
    #[test]
    fn many_processes_take_no_longer_each() {
        let begin = std::time::Instant::now();
        let all: Vec<Record> = (2..50_002).map(|pid| p(pid, 1, 0, 0)).collect();
        let made = plan(&all, &[]).expect("plan");
        assert_eq!(made.births.iter().find(|b| b.record.is_none()).map(|b| b.pid), Some(50_002));
        // As many pid namespaces of a user namespace inside as there may be, of which each takes two ids.
        let many = 1000;
        let users =
            user::Record { maker: 0, uids: Vec::new(), gids: Vec::new(), setgroups: true, settings: Vec::new() };
        let mut namespaces = vec![nested::Record { owner: None, content: nested::Content::User(users) }];
        let mut all = vec![p(2, 1, 2, 2)];
        for n in 0..many {
            namespaces.push(nested::Record { owner: Some(NsId(0)), ..pids(None) });
            let pid = i32::try_from(2 * n + 3).expect("small");
            all.push(inner(p(pid, 2, 2, 2), n + 1, &[[1, 0, 0]]));
            all.push(inner(p(pid + 1, pid, 2, 2), n + 1, &[[5, 0, 0]]));
        }
        all.extend((10_000..30_000).map(|pid| p(pid, 2, 2, 2)));
        let made = plan(&all, &namespaces).expect("plan");
        let helpers = made.births.iter().filter_map(|b| b.begins?.helper);
        let new: BTreeSet<i32> = helpers.chain(made.births.iter().filter(|b| b.joins).map(|b| b.pid)).collect();
        assert_eq!(new, (2003..4003).collect::<BTreeSet<i32>>());
        // Orphans, each of its own session, far below who has adopted them all.
        let mut all: Vec<Record> = (2..200).map(|pid| p(pid, pid - 1, 2, 2)).collect();
        for pid in (1000..41_000).step_by(2) {
            all.extend([p(pid, 199, pid, pid), p(pid + 1, 2, pid, pid)]);
        }
        let made = plan(&all, &[]).expect("plan");
        assert_eq!(made.births.iter().filter(|b| b.leaves == Some((2, 199))).count(), 1);
        assert_eq!(made.births.iter().filter(|b| b.leaves.is_some()).count(), 20_000);
        assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    }
}
