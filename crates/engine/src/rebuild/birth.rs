//! Births: creators clone by script; the newborn stop before their first instruction and are taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use yendor_kinds::process::{Alive, State, Terminal};
use yendor_kinds::{Cause, Result as Outcome};
use yendor_proc::status;
use yendor_sys::clone::CloneArgs;
use yendor_sys::ptrace::event;
use yendor_sys::wait::{self, Event};
use yendor_sys::{Errno, SysError, ptrace};
use yendor_task::script::{Memory, Want};
use yendor_task::tree::read_proc;
use yendor_task::{Arg, Nr, Script, args, gadget};

use super::domain::{self, Domains};
use super::memory::Memories;
use super::plan::{Birth, INIT, Plan};
use super::{Site, Task, begin, nested};
use crate::error::{At, Result, Step, With};

/// The child is traced by whoever traces its creator, and stops at birth.
const CLONE_PTRACE: u64 = 0x2000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const SIGCHLD: u64 = 17;
/// CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM.
const THREAD: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;

/// Tasks by their id inside.
pub type Tasks = BTreeMap<i32, Task>;

/// Makes every task of the plan.
pub fn all(site: &Site<'_>, plan: &Plan, memories: &mut Memories, domains: &mut Domains, init: &Task) -> Result<Tasks> {
    let mut tasks = Tasks::from([(INIT, init.clone())]);
    let mut creators: Vec<i32> = Vec::new();
    for birth in &plan.births {
        if creators.last() != Some(&birth.creator) {
            creators.push(birth.creator);
        }
    }
    let mut done = BTreeSet::new();
    for creator in creators {
        if done.insert(creator) {
            by(site, plan, creator, &mut tasks, (memories, domains)).task(creator)?;
        }
    }
    // Leaders that have no children were not visited above.
    for birth in plan.births.iter().filter(|b| b.leads_session && !done.contains(&b.pid)) {
        let mut script = Script::new();
        lead(site, plan, birth.pid, &mut script);
        site.run(&tasks[&birth.pid], &script).at(Step::Rebuild).task(birth.pid)?;
    }
    groups(site, plan, &tasks)?;
    Ok(tasks)
}

/// All children of one creator, with its setsid in between. Those of its other threads these bear themselves.
fn by(
    site: &Site<'_>,
    plan: &Plan,
    creator: i32,
    tasks: &mut Tasks,
    (memories, domains): (&mut Memories, &mut Domains),
) -> Result<()> {
    let leads = plan.births.iter().any(|b| b.pid == creator && b.leads_session);
    let theirs = || plan.births.iter().filter(|b| b.creator == creator);
    let children: Vec<&Birth> = theirs().filter(|b| !b.joins).collect();
    let record = plan.births.iter().find(|b| b.pid == creator).and_then(|b| alive(site, b));
    if let Some(record) = record.filter(|_| children.iter().any(|b| inherits(site, b))) {
        // Children that still share its memory are born when it has it.
        memories.fill(site, &tasks[&creator].clone(), (creator, record), false).at(Step::Rebuild)?;
    }
    lead_groups(site, creator, &children, tasks)?;
    let own = plan.births.iter().find(|b| b.pid == creator).map(|b| chain(site, b)).unwrap_or_default();
    let mut bearing = Bearing::new(site, (creator, own), record);
    let mut script = Script::new();
    for before_setsid in [true, false] {
        if leads && !before_setsid {
            lead(site, plan, creator, &mut script);
        }
        let due: Vec<&Birth> = children.iter().filter(|b| b.before_setsid == before_setsid).copied().collect();
        let bearers: BTreeSet<i32> = due.iter().filter_map(|b| b.thread).collect();
        bearing.leader(&due, &bearers, domains, &mut script).at(Step::Confine)?;
        if before_setsid && bearers.is_empty() {
            // One script does for both.
            continue;
        }
        site.run(&tasks[&creator], &script).at(Step::Rebuild)?;
        script = Script::new();
        bearing.settle((creator, None), tasks, memories)?;
        for tid in bearers {
            let own = bearing.thread(tid, &due, domains).at(Step::Confine)?;
            site.run(&tasks[&tid], &own).at(Step::Rebuild)?;
            bearing.settle((creator, Some(tid)), tasks, memories)?;
        }
    }
    for (b, helper) in children.iter().filter_map(|b| Some((b, helper(b)?))) {
        begin::begin(site, b, helper, tasks).task(b.pid)?;
    }
    for b in theirs().filter(|b| b.joins) {
        memories.born(b.pid, creator);
        domains.born(b.pid, creator);
        begin::join(site, plan, b, tasks).task(b.pid)?;
    }
    Ok(())
}

fn helper(b: &Birth) -> Option<i32> {
    b.begins.and_then(|begins| begins.helper)
}

/// A creator whose births go on.
struct Bearing<'a, 's> {
    site: &'a Site<'s>,
    creator: i32,
    record: Option<&'a Alive>,
    /// Its domains.
    chain: &'a [u32],
    /// Its other threads that are not there yet, with how many domains they have in common with it: fewer first.
    missing: Vec<(usize, i32)>,
    /// Who was cloned and is not taken over yet.
    children: Vec<&'a Birth>,
    threads: Vec<i32>,
}

impl<'a, 's> Bearing<'a, 's> {
    fn new(site: &'a Site<'s>, (creator, chain): (i32, &'a [u32]), record: Option<&'a Alive>) -> Bearing<'a, 's> {
        let others = record.and_then(|a| a.threads.get(1..)).unwrap_or_default().iter();
        let mut missing: Vec<_> = others.map(|t| (domain::common(chain, &t.restricted.domains), t.tid.0)).collect();
        missing.sort_unstable();
        Bearing { site, creator, record, chain, missing, children: Vec::new(), threads: Vec::new() }
    }

    /// What the leader clones: who has fewer of its domains before it enters more, and threads no sooner than they must be there.
    fn leader(
        &mut self,
        due: &[&'a Birth],
        bearers: &BTreeSet<i32>,
        domains: &mut Domains,
        script: &mut Script,
    ) -> Outcome<()> {
        let level = |b: &Birth| domain::common(self.chain, chain(self.site, b));
        let own = due.iter().filter(|b| b.thread.is_none()).map(|b| (level(b), Ok(*b)));
        let threads = self.missing.iter().filter(|(_, tid)| bearers.contains(tid));
        let mut order: Vec<(usize, std::result::Result<&Birth, i32>)> =
            threads.map(|(level, tid)| (*level, Err(*tid))).chain(own).collect();
        order.sort_by_key(|(level, _)| *level);
        for (level, who) in order {
            self.advance(level, domains, script)?;
            match who {
                Ok(b) => self.child(b, self.creator, domains, script),
                Err(tid) => self.bear(tid, domains, script),
            }
        }
        Ok(())
    }

    /// What another thread, which is there, clones.
    fn thread(&mut self, tid: i32, due: &[&'a Birth], domains: &mut Domains) -> Outcome<Script> {
        let mut script = Script::new();
        let record = self.record.and_then(|a| a.threads.iter().find(|t| t.tid.0 == tid));
        let own = record.map(|t| t.restricted.domains.as_slice()).unwrap_or_default();
        let mut due: Vec<&Birth> = due.iter().filter(|b| b.thread == Some(tid)).copied().collect();
        due.sort_by_key(|b| domain::common(own, chain(self.site, b)));
        for b in due {
            domains.advance(self.site, tid, own, domain::common(own, chain(self.site, b)), &mut script)?;
            self.child(b, tid, domains, &mut script);
        }
        Ok(script)
    }

    /// The leader enters its domains up to number `to`; those of its threads that have fewer are born before.
    fn advance(&mut self, to: usize, domains: &mut Domains, script: &mut Script) -> Outcome<()> {
        while let Some((fewer, tid)) = self.missing.first().copied().filter(|(common, _)| *common < to) {
            domains.advance(self.site, self.creator, self.chain, fewer, script)?;
            self.bear(tid, domains, script);
        }
        domains.advance(self.site, self.creator, self.chain, to, script)
    }

    fn bear(&mut self, tid: i32, domains: &mut Domains, script: &mut Script) {
        self.missing.retain(|(_, other)| *other != tid);
        clone(self.site, (tid, self.creator), (THREAD, 0), script);
        domains.made(self.creator, tid);
        self.threads.push(tid);
    }

    fn child(&mut self, b: &'a Birth, by: i32, domains: &mut Domains, script: &mut Script) {
        domains.born(b.pid, by);
        be_born(self.site, b, script);
        self.children.push(b);
    }

    /// Takes over who was cloned, by a thread of the creator.
    fn settle(
        &mut self,
        (creator, thread): (i32, Option<i32>),
        tasks: &mut Tasks,
        memories: &mut Memories,
    ) -> Result<()> {
        let (site, record) = (self.site, self.record);
        let (children, threads) = (std::mem::take(&mut self.children), std::mem::take(&mut self.threads));
        let child: BTreeMap<i32, &Birth> = children.iter().map(|b| (helper(b).unwrap_or(b.pid), *b)).collect();
        let wanted: Vec<i32> = child.keys().chain(&threads).copied().collect();
        for (inside, tid) in newborn(site, &wanted).at(Step::Rebuild)? {
            let task = Task { tid, slot: tasks.len() };
            take_over(site, tid, task.slot).at(Step::Rebuild)?;
            let child = child.get(&inside);
            let whose = child.map_or(inside, |b| b.pid);
            if child.is_some() {
                memories.born(whose, creator);
            }
            let own = || match child {
                None => record?.threads.iter().find(|t| t.tid.0 == inside),
                Some(child) => alive(site, child)?.threads.first(),
            };
            let from = thread.unwrap_or(creator);
            nested::settle(site, &task, (whose, from), own).at(Step::Rebuild).task(whose)?;
            tasks.insert(inside, task);
        }
        Ok(())
    }
}

/// The domains of who is to be born; who leaves others behind has theirs.
fn chain<'s>(site: &Site<'s>, b: &Birth) -> &'s [u32] {
    let record = b.record.or(b.leaves.map(|(_, first)| first));
    record.and_then(|record| alive_at(site, record)).map(domain::of_leader).unwrap_or_default()
}

/// Groups that those in pid namespaces of children inherit, and cannot name, are there before those are born.
fn lead_groups(site: &Site<'_>, creator: i32, children: &[&Birth], tasks: &Tasks) -> Result<()> {
    let inherited = children.iter().filter_map(|b| b.begins?.group);
    for group in inherited.filter(|group| site.levels.seen(creator, *group) != 0) {
        let Some(leader) = tasks.get(&group) else { continue };
        let mut script = Script::new();
        // Who leads a session leads its group, and may not say so again.
        script.call_wanting(Nr::SETPGID, args![0, 0], Want::Anything);
        site.run(leader, &script).at(Step::Rebuild).task(group)?;
    }
    Ok(())
}

/// Begins a session, with its terminal: children inherit both.
fn lead(site: &Site<'_>, plan: &Plan, pid: i32, script: &mut Script) {
    script.call(Nr::SETSID, []);
    let record = plan.births.iter().find(|b| b.pid == pid).and_then(|b| site.snapshot.processes.get(b.record?));
    let terminal = record.and_then(|r| match &r.state {
        State::Alive(alive) => alive.terminal,
        State::Exec(exec) => exec.terminal,
        State::Zombie(_) => None,
    });
    if let Some(fd) = terminal.and_then(|t| site.files.get(&t.file)) {
        Terminal::take(*fd, script);
    }
}

pub fn alive<'s>(site: &Site<'s>, birth: &Birth) -> Option<&'s Alive> {
    alive_at(site, birth.record?)
}

fn alive_at<'s>(site: &Site<'s>, record: usize) -> Option<&'s Alive> {
    match &site.snapshot.processes.get(record)?.state {
        State::Alive(alive) => Some(alive),
        _ => None,
    }
}

fn inherits(site: &Site<'_>, birth: &Birth) -> bool {
    alive(site, birth).is_some_and(|a| a.memory.inherits.is_some())
}

pub fn be_born(site: &Site<'_>, b: &Birth, script: &mut Script) {
    let own = b.record.and_then(|record| site.snapshot.processes.get(record)).map(|record| record.exit_signal);
    // A sibling has its creator's exit signal; naming another is an error. It was adopted, or will be: then it is the usual one.
    let (flags, exit_signal) = if b.sibling { (CLONE_PARENT, 0) } else { (0, own.map_or(SIGCHLD, u64::from)) };
    if let Some(helper) = b.begins.and_then(|begins| begins.helper) {
        return clone(site, (helper, b.creator), (flags, exit_signal), script);
    }
    let flags = if b.begins.is_some() { flags | CLONE_NEWPID } else { flags };
    clone(site, (b.pid, b.creator), (flags, exit_signal), script);
    let group = b.begins.and_then(|begins| begins.group).map_or(0, |group| site.levels.seen(b.creator, group));
    if group != 0 {
        script.call(Nr::SETPGID, args![site.levels.seen(b.creator, b.pid), group]);
    }
}

/// A clone call for a task with the id `pid`, and those that it has in nested pid namespaces.
fn clone(site: &Site<'_>, (pid, creator): (i32, i32), (flags, exit_signal): (u64, u64), script: &mut Script) {
    clone_as(site, &site.levels.all(pid), site.levels.seen(creator, pid), (flags, exit_signal), script);
}

/// The same with these ids, innermost first; `seen`: what the creator is told.
pub fn clone_as(site: &Site<'_>, ids: &[i32], seen: i32, (flags, exit_signal): (u64, u64), script: &mut Script) {
    let set_tid_size = ids.len() as u64;
    let args = CloneArgs { flags: flags | CLONE_PTRACE, exit_signal, set_tid_size, ..CloneArgs::default() };
    let bytes = args.to_bytes();
    let len = bytes.len();
    let ids = Memory { bytes: ids.iter().flat_map(|id| id.to_ne_bytes()).collect(), ..Memory::default() };
    // set_tid is the ninth word.
    let args = Memory { bytes, pointers: vec![(64, ids)], ..Memory::default() };
    let want = Want::Exactly(u64::from(seen.unsigned_abs()));
    // The filter lets ours pass.
    let cookie = Arg::from(site.confine.cookie);
    let none = || Arg::from(0);
    script.call_wanting(Nr::CLONE3, [Arg::from(args), Arg::from(len), none(), none(), none(), cookie], want);
}

/// Waits for tasks that were just cloned: their id inside and as we see it.
pub fn newborn(site: &Site<'_>, wanted: &[i32]) -> std::result::Result<Vec<(i32, i32)>, Cause> {
    let mut out = Vec::with_capacity(wanted.len());
    while out.len() < wanted.len() {
        let Some((tid, what)) = wait::wait(None, true)? else { continue };
        match what {
            Event::Stopped { event: event::STOP, .. } => {
                let status = status::parse(&read_proc(site.proc.as_fd(), &format!("{tid}/status"))?)?;
                let inside = status.ns_pid.as_ref().and_then(|ids| ids.get(site.around).copied()).unwrap_or(tid);
                if !wanted.contains(&inside) {
                    return Err(SysError::new("clone3", format!("a stranger: {inside}"), Errno::PROTO).into());
                }
                out.push((inside, tid));
            }
            Event::Stopped { signal, .. } => ptrace::cont(tid, signal)?,
            Event::Continued => {}
            event => return Err(yendor_task::Dead { tid, event }.into()),
        }
    }
    Ok(out)
}

/// Leads a newborn to its slot, where it waits for scripts.
pub fn take_over(site: &Site<'_>, tid: i32, slot: usize) -> std::result::Result<(), Cause> {
    let regs = ptrace::regs(tid)?;
    ptrace::set_regs(tid, &site.arena.entry_regs(&regs, slot, gadget::WAIT, 0))?;
    ptrace::cont(tid, 0)?;
    Ok(())
}

/// Process groups: leaders first, then those who join them.
fn groups(site: &Site<'_>, plan: &Plan, tasks: &Tasks) -> Result<()> {
    for leaders in [true, false] {
        let moving = || plan.births.iter().filter(|b| (b.group == b.pid) == leaders && !b.leads_session);
        for b in moving() {
            let mut script = Script::new();
            let group = site.levels.seen(b.pid, b.group);
            if group != 0 {
                script.call(Nr::SETPGID, args![0, group]);
            }
            site.begin(&tasks[&b.pid], script).at(Step::Rebuild).task(b.pid)?;
        }
        for b in moving() {
            site.land(&tasks[&b.pid]).at(Step::Rebuild).task(b.pid)?;
        }
    }
    Ok(())
}

/// Makes the other threads of a process, as far as they are not among `tasks`; `slot` and following are theirs. Each is born with the domains that it has in
/// common with its leader, enters its own, and the leader enters the rest of its own.
pub fn threads(
    site: &Site<'_>,
    leader: &Task,
    (pid, alive): (i32, &Alive),
    tasks: &Tasks,
    domains: &mut Domains,
    slot: &mut usize,
) -> Result<Vec<Task>> {
    let own = domain::of_leader(alive);
    let others = alive.threads.get(1..).unwrap_or_default();
    let mut in_order: Vec<_> = others.iter().filter(|t| !domains.is_made(pid, t.tid.0)).collect();
    let missing: Vec<i32> = in_order.iter().map(|t| t.tid.0).collect();
    in_order.sort_by_key(|t| domain::common(own, &t.restricted.domains));
    let mut script = Script::new();
    for thread in in_order {
        let shared = domain::common(own, &thread.restricted.domains);
        domains.advance(site, pid, own, shared, &mut script).at(Step::Confine)?;
        clone(site, (thread.tid.0, pid), (THREAD, 0), &mut script);
        domains.born(thread.tid.0, pid);
    }
    site.run(leader, &script).at(Step::Rebuild)?;
    let mut born: BTreeMap<i32, i32> = newborn(site, &missing).at(Step::Rebuild)?.into_iter().collect();
    let mut out = Vec::with_capacity(others.len());
    for inside in others.iter().map(|t| t.tid.0) {
        if let Some(task) = tasks.get(&inside).filter(|_| domains.is_made(pid, inside)) {
            out.push(task.clone());
        } else if let Some(tid) = born.remove(&inside) {
            let task = Task { tid, slot: *slot };
            *slot += 1;
            take_over(site, tid, task.slot).at(Step::Rebuild)?;
            let own = || others.iter().find(|t| t.tid.0 == inside);
            nested::settle(site, &task, (inside, pid), own).at(Step::Rebuild).task(inside)?;
            out.push(task);
        }
    }
    for (task, thread) in out.iter().zip(others) {
        let chain = &thread.restricted.domains;
        domain::enter_rest(site, task, chain, domains.entered(thread.tid.0)).at(Step::Confine).task(thread.tid.0)?;
    }
    let mut script = Script::new();
    domains.advance(site, pid, own, own.len(), &mut script).at(Step::Confine)?;
    site.run(leader, &script).at(Step::Confine)?;
    Ok(out)
}
