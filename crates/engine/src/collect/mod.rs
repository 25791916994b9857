//! collect: a frozen tree becomes an image.
//!
//! Order: descriptors of all processes first (mappings may refer to them), then gangs of processes, parents before children:
//! borrow them, ask them what only they know, give them back. A thread of its own copies their memory meanwhile. Nothing of
//! the tree is changed at the end.

mod address_space;
mod ahead;
mod children;
mod contexts;
mod descriptor;
mod direct;
mod elsewhere;
mod filter;
mod ghost;
pub mod ipc;
mod late;
mod levels;
pub mod namespace;
mod nested;
mod notification;
mod object;
mod oom;
pub mod peer;
mod process;
mod rest;
mod restriction;
pub mod rounds;
mod scratch;
mod security;
mod shared;
mod space;
mod sparse;
mod twins;
pub mod watch;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use yendor_image::{FileId, NsPid, Parent, Writer};
use yendor_kinds::file::Gather;
use yendor_kinds::namespace::mount::Places;
use yendor_kinds::process::hidden::Keyrings;
use yendor_kinds::process::{Alive, Record, State, Terminal, USUAL_SIGNAL, attribute};
use yendor_kinds::snapshot::{Container, Snapshot};
use yendor_kinds::{Cause, Named, memory};
use yendor_policy::lsm::Here;
use yendor_proc::{stat, status};
use yendor_sys::SysError;
use yendor_sys::futex::RobustList;
use yendor_task::Stopped;
use yendor_task::tree::{FrozenTree, read_proc};

use self::children::Said;
use crate::error::{At, Error, Result, Step, With};
use crate::processor;
use crate::rebuild::{ASTRAY, plan};
use crate::request::Userns;
use crate::state;

use address_space::Memory;
use ahead::Ahead;
use descriptor::Held;
pub use late::{Shadowed, Spared};
use namespace::Namespaces;
use nested::Nested;
use peer::Peers;
use process::{Answered, View};
pub use rest::{Done, Rest};
use rounds::Rounds;
pub use security::{labels as labels_of, untold as untold_labels};
use space::{Collected, Space};
pub use twins::{Twins, Why};
use watch::Watch;

/// What is known of a process before anything is asked.
#[derive(Debug)]
pub struct Facts {
    /// As the tracer sees it.
    pub pid: i32,
    /// Its /proc/PID/status.
    pub status: status::Status,
    /// Its /proc/PID/stat.
    pub stat: stat::Stat,
    /// How many pid namespaces are around that of the tree, as far as /proc tells.
    home: usize,
}

impl Facts {
    fn read(proc: impl AsFd, pid: i32, home: usize) -> std::result::Result<Facts, Cause> {
        let proc = proc.as_fd();
        Ok(Facts {
            pid,
            home,
            status: status::parse(&read_proc(proc, &format!("{pid}/status"))?)?,
            stat: stat::parse(&read_proc(proc, &format!("{pid}/stat"))?)?,
        })
    }

    /// Its id in the tree's pid namespace.
    #[must_use]
    pub fn inside(&self) -> NsPid {
        levels::at(self.home, self.status.ns_pid.as_deref(), self.pid)
    }

    /// Its id in its own pid namespace.
    fn innermost(&self) -> i32 {
        self.status.ns_pid.as_ref().and_then(|ids| ids.last().copied()).unwrap_or(self.pid)
    }
}

/// Collects a frozen tree.
///
/// # Errors
/// The first thing that cannot be captured, by name. The tree is unharmed.
pub fn collect<'w>(
    tree: &FrozenTree,
    gather: &mut Gather<'_>,
    (writer, parent): (&'w Writer, Option<&'w Parent>),
    container: Container,
    of: Option<(&state::State, &Path)>,
    (twins, rounds, verify): (Option<&mut Twins>, Rounds<'w>, bool),
) -> Result<(Snapshot, Rest<'w>)> {
    let proc = gather.proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Collect)?;
    let home = of.map_or(tree.root, |(state, _)| state.init);
    let level = levels::around(proc.as_fd(), home).at(Step::Collect)?;
    let (order, mut twins) = (in_order(tree, &proc, level)?, twins);
    let (left_over, order): (Vec<_>, Vec<_>) = order.into_iter().partition(twins::is_left_over);
    if let Some(twins) = &mut twins {
        let owner = |facts: &Facts| order.iter().find(|owner| owner.pid == facts.status.ppid);
        left_over.iter().for_each(|facts| owner(facts).into_iter().for_each(|owner| twins.found(facts, owner)));
        if let Some(most) = of.and_then(|(state, _)| state.request.memory) {
            let taken: u64 = order.iter().filter_map(|facts| facts.status.vm_rss).sum();
            twins.limit((most / 1024).saturating_sub(taken));
        }
    }
    let threads = |pid: &i32| tree.processes.get(pid).map(|threads| threads.iter().map(Stopped::tid).collect());
    let living = order.iter().filter_map(|f| Some((f.pid, threads(&f.pid)?))).collect();
    let own = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Collect)?;
    let keyrings = of
        .map(|(state, _)| Keyrings { session: state.session_keyring, own_users: state.request.userns != Userns::Host });
    let (home, init) = (Namespaces::of_process(proc.as_fd(), home).at(Step::Collect)?, home);
    if of.is_none() && !twins::bears_its_like(&proc, tree.root) {
        let what = "a pid or time namespace of its own for its children (unshare, setns)";
        return Err(Error::new(Step::Collect, Cause::unsupported(what)).task(tree.root));
    }
    let mut nested = Nested::new(of.map(|_| &home), init);
    let alive: Vec<i32> = order.iter().map(|f| f.pid).filter(|pid| tree.processes.contains_key(pid)).collect();
    if of.is_some() {
        let networks = nested.networks(proc.as_fd(), &home, &alive);
        gather.networks = networks.at(Step::Collect).kind("namespace", "nested")?;
        gather.places = nested.places(proc.as_fd(), &home, &alive).at(Step::Collect).kind("namespace", "nested")?;
        for pid in alive.iter().filter(|_| gather.remounted.is_some()) {
            if home.other_mounts(proc.as_fd(), *pid).at(Step::Collect)?.is_none() {
                elsewhere::covered(gather, *pid).at(Step::Collect)?;
            }
        }
    }
    let ahead = Ahead::start(own, living).at(Step::Collect)?;
    for facts in &order {
        gather.pids.insert(facts.pid, facts.inside());
    }
    shared::check(&order, tree).at(Step::Collect)?;
    let watch =
        of.map_or_else(|| Watch::tree(tree, &order, &proc), |(state, directory)| Watch::container(state, directory));
    let mut watch = watch.at(Step::Collect)?;
    let allowed = gather.allow_lost.contains(peer::KIND);
    let peers = match of {
        None => Peers::new(&proc, allowed).at(Step::Collect)?,
        // A listener cannot be had everywhere (inside another container, say).
        Some(_) => (!watch.is_recorded()).then(|| Peers::first(level, allowed)).flatten(),
    };
    watch.look(tree, &order, &proc).at(Step::Collect)?;
    let mut held = BTreeMap::new();
    for facts in order.iter().filter(|f| tree.processes.contains_key(&f.pid)) {
        held.insert(facts.pid, descriptor::collect(gather, facts.pid).task(facts.inside().0)?);
    }
    notification::all_claimed(gather).at(Step::Collect)?;
    let terminals = terminals(gather).at(Step::Collect)?;
    let mut mine = BTreeMap::new();
    for facts in &order {
        let terminal = terminal(facts, &terminals, gather).at(Step::Collect).task(facts.inside().0)?;
        mine.insert(facts.pid, (held.remove(&facts.pid).unwrap_or_default(), terminal));
    }
    if let Some(twins) = &mut twins {
        rounds.spared().for_each(|pid| twins.spare(pid));
    }
    let mut memory = Memory::new(writer, parent, rounds, verify).at(Step::Collect)?;
    if gather.entries.iter().any(|entry| direct::is_direct(entry.flags)) {
        memory.distrust();
    }
    let modules = Here::look();
    let root = rustix::fs::fstat(&gather.root).named("fstat", || "the tree's root".into()).at(Step::Collect)?;
    let root = (root.st_dev, root.st_ino);
    let places = gather.places.clone();
    let wanted = AtomicBool::new(true);
    let asked = std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let (memory, gather, proc, order) = (&mut memory, &mut *gather, &proc, &order);
        let wanted = &wanted;
        let copies = thread(scope, "memory", move || {
            let spaces = receiver.iter().take_while(|_| wanted.load(Relaxed));
            space::copy_all(spaces, memory, gather, proc, order)
        })?;
        let (modules, watch, peers, home) = (&modules, &mut watch, peers.as_ref(), (&home, &mut nested));
        let lost = Vec::new();
        let twins = twins.as_deref_mut();
        let mut asker = Asker {
            tree,
            order,
            proc,
            root,
            places: &places,
            home,
            modules,
            watch,
            keyrings,
            peers,
            ahead,
            copies: sender,
            twins,
            lost,
        };
        let asked = asker.ask_everybody(mine);
        wanted.store(asked.is_ok(), Relaxed);
        let lost = std::mem::take(&mut asker.lost);
        drop(asker);
        let copied = copies.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Who copies stops at an error; then nobody takes what the asker has to send.
        let copied = copied?;
        asked.map(|asked| (asked, copied, lost))
    });
    let ((mut completes, said), Collected { mut records, left, late, apart }, lost) = asked?;
    if let Some(twins) = twins {
        apart.into_iter().for_each(|task| twins.without(task, Why::Parent));
    }
    gather.lost.extend(lost.into_iter().map(|object| (peer::KIND.to_owned(), object)));
    let bearers = children::of_others(tree, &order, proc.as_fd()).at(Step::Collect)?;
    let mut processes = Vec::with_capacity(order.len());
    for (place, facts) in order.iter().enumerate() {
        let state = match (completes.remove(&place), records.remove(&place)) {
            (Some(complete), Some(memory)) => State::Alive(Box::new(complete(memory))),
            _ => State::Zombie(said.status(tree, facts, &proc).at(Step::Collect).task(facts.inside().0)?),
        };
        if matches!(state, State::Zombie(status) if status & 0x80 != 0) {
            gather.lost.push(("wait status".into(), format!("process {}: that it has left a core", facts.inside())));
        }
        if let State::Alive(alive) = &state
            && let Some(what) = attribute::lost(&alive.attributes)
        {
            gather.lost.push(("dumpable".into(), format!("process {}: {what}", facts.inside())));
        }
        let namespace = levels::namespace(facts, proc.as_fd(), &mut nested).at(Step::Collect);
        processes.push(Record {
            pid: facts.inside(),
            parent: gather.pids.get(&facts.status.ppid).copied().unwrap_or(NsPid(1)),
            parent_thread: bearers.get(&facts.pid).copied(),
            group: levels::at(level, facts.status.ns_pgid.as_deref(), facts.stat.pgrp),
            session: levels::at(level, facts.status.ns_sid.as_deref(), facts.stat.session),
            namespace: namespace.task(facts.inside().0)?,
            levels: levels::below(facts),
            exit_signal: u32::try_from(facts.stat.exit_signal).unwrap_or(USUAL_SIGNAL),
            state,
        });
    }
    gather.finish().at(Step::Collect)?;
    let (objects, vdso) = memory.shared(gather).at(Step::Store)?;
    let security = security::collect(&modules, &processes);
    let namespaces = nested.look(proc.as_fd(), &processes, gather).at(Step::Collect).kind("namespace", "nested")?;
    levels::begun(&processes, &namespaces).at(Step::Collect)?;
    // Not every family can be born again.
    let plan = plan::plan(&processes, &namespaces).map_err(Cause::refused).at(Step::Collect)?;
    gather.lost.extend(plan.strays().iter().map(|pid| ("parent".into(), format!("process {pid}: {ASTRAY}"))));
    levels::fetched(&plan, &processes, &gather.entries).at(Step::Collect)?;
    let restrictions = watch.tables(&mut processes, &gather.root).at(Step::Collect)?;
    let snapshot = Snapshot {
        machine: processor::machine(vdso, security),
        container,
        processes,
        files: std::mem::take(&mut gather.entries),
        objects,
        restrictions,
        namespaces,
        lost: std::mem::take(&mut gather.lost),
    };
    Ok((snapshot, Rest { memory, left, late, proc }))
}

/// How many processes that have answered may wait to be copied, with what is known of their mappings.
const AHEAD: usize = 32;
/// How many processes are asked side by side at most, and how many threads.
const GANG: usize = 32;
const THREADS: usize = 256;

type Complete = Box<dyn FnOnce(memory::Record) -> Alive>;
/// What is known of a process beside its facts: what it holds, and its terminal.
type Mine = BTreeMap<i32, (Held, Option<Terminal>)>;

/// Who asks the processes of a tree: its tracer.
struct Asker<'a> {
    tree: &'a FrozenTree,
    order: &'a [Facts],
    proc: &'a OwnedFd,
    root: (u64, u64),
    /// Mount namespaces beside the container's.
    places: &'a Places,
    /// The container's namespaces, and those beside them.
    home: (&'a Namespaces, &'a mut Nested),
    modules: &'a Here,
    watch: &'a mut Watch,
    keyrings: Option<Keyrings>,
    peers: Option<&'a Peers>,
    ahead: Ahead,
    copies: SyncSender<(usize, Space)>,
    /// Where copies of processes are kept, if the tree shall run on.
    twins: Option<&'a mut Twins>,
    /// What is lost, as the caller has allowed.
    lost: Vec<String>,
}

impl Asker<'_> {
    /// Asks all processes, and sends their address spaces to be copied: what makes their records of the copies, and what they said of
    /// their children.
    fn ask_everybody(&mut self, mut mine: Mine) -> Result<(BTreeMap<usize, Complete>, Said)> {
        let mut robust = RobustList::register().at(Step::Collect)?;
        let (mut said, mut sparse) = (Said::default(), sparse::Asked::default());
        let mut completes = BTreeMap::new();
        for gang in gangs(self.order, self.tree) {
            let mut asking = Vec::with_capacity(gang.len());
            for (_, facts, threads) in &gang {
                let children = children::of(self.tree, self.order, facts, self.proc.as_fd());
                let view = View {
                    proc: self.proc,
                    root: self.root,
                    places: self.places,
                    modules: self.modules,
                    watch: self.watch,
                    keyrings: self.keyrings,
                    peers: self.peers,
                };
                let mine = mine.remove(&facts.pid).unwrap_or_default();
                let mut texts = self.ahead.next(facts.pid).at(Step::Collect).task(facts.inside().0)?;
                let (home, nested) = &mut self.home;
                texts.live_in(home, nested, self.proc.as_fd()).at(Step::Collect).task(facts.inside().0)?;
                texts.mounts = nested.mounts(texts.nested.first().map_or(&[], Vec::as_slice));
                let one = process::Asking::new(view, facts, texts, threads, mine, &children);
                let one = one.at(Step::Collect).task(facts.inside().0)?;
                if let Some(twins) = self.twins.as_mut().filter(|_| !one.may_fork()) {
                    twins.leave(facts.pid);
                }
                asking.push(one);
            }
            let told = process::ask_all(&mut asking, self.twins.as_deref_mut(), &mut sparse, &mut robust);
            let told = told.map_err(|(i, cause)| Error::new(Step::Collect, cause).task(gang[i].1.inside().0))?;
            let mut adopting = Vec::new();
            for ((asking, told), (place, facts, _)) in asking.into_iter().zip(told).zip(&gang) {
                let answered = asking.answered(told, &mut said).at(Step::Collect).task(facts.inside().0)?;
                let Answered { mut space, adopts, lost, complete } = answered;
                space.twin = self.twins.as_ref().and_then(|twins| twins.of(facts.pid));
                self.lost.extend(lost);
                adopting.push((facts.pid, adopts));
                completes.insert(*place, complete);
                if self.copies.send((*place, space)).is_err() {
                    // Whoever copies has failed, and says why.
                    return Ok((completes, said));
                }
            }
            for (pid, adopts) in adopting {
                self.watch.adopts(pid, adopts);
            }
        }
        Ok((completes, said))
    }
}

/// A process to be asked: its place in the order, and its threads.
type Member<'a> = (usize, &'a Facts, &'a [Stopped]);

/// Living processes that can be asked side by side: what a parent says is known before its children are asked.
fn gangs<'a>(order: &'a [Facts], tree: &'a FrozenTree) -> Vec<Vec<Member<'a>>> {
    let mut gangs: Vec<Vec<Member<'_>>> = Vec::new();
    for (place, facts) in order.iter().enumerate() {
        let Some(threads) = tree.processes.get(&facts.pid) else { continue };
        let fits = |gang: &Vec<Member<'_>>| {
            let others: usize = gang.iter().map(|(_, _, threads)| threads.len()).sum();
            gang.len() < GANG
                && others + threads.len() <= THREADS
                && gang.iter().all(|(_, other, _)| other.pid != facts.status.ppid)
        };
        match gangs.last_mut().filter(|gang| fits(gang)) {
            Some(gang) => gang.push((place, facts, threads)),
            None => gangs.push(vec![(place, facts, threads)]),
        }
    }
    gangs
}

/// Descriptions of terminals, by device number.
fn terminals(gather: &Gather<'_>) -> std::result::Result<BTreeMap<u64, FileId>, Cause> {
    let mut out = BTreeMap::new();
    for entry in gather.entries.iter().filter(|e| e.flags & rustix::fs::OFlags::PATH.bits() == 0) {
        let Ok(fd) = gather.ours(entry.id) else { continue };
        let stat = rustix::fs::fstat(fd).named("fstat", || format!("file {}", entry.id))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice {
            out.entry(stat.st_rdev).or_insert(entry.id);
        }
    }
    Ok(out)
}

/// The controlling terminal of a session leader.
fn terminal(
    facts: &Facts,
    terminals: &BTreeMap<u64, FileId>,
    gather: &Gather<'_>,
) -> std::result::Result<Option<Terminal>, Cause> {
    let Some(device) = facts.stat.tty().filter(|_| facts.stat.session == facts.pid) else { return Ok(None) };
    let file = *terminals.get(&device.st_dev()).ok_or_else(|| {
        Cause::unsupported(format!("a controlling terminal {}:{} that no task has open", device.major, device.minor))
    })?;
    Ok(Some(Terminal { file, foreground: gather.pids.get(&facts.stat.tpgid).copied() }))
}

/// The facts of many processes, by as many threads as there are processors: for a large tree the kernel has much to write.
fn read_all(proc: &OwnedFd, pids: &[i32], home: usize) -> Result<Vec<Facts>> {
    /// For fewer processes a thread is not worth its while.
    const SHARE: usize = 64;
    let read = |pids: &[i32]| -> Result<Vec<Facts>> {
        pids.iter().map(|pid| Facts::read(proc, *pid, home).at(Step::Collect).task(*pid)).collect()
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(pids.len() / SHARE);
    if workers < 2 {
        return read(pids);
    }
    let shares: Result<Vec<Vec<Facts>>> = std::thread::scope(|scope| {
        let mut running = Vec::new();
        for share in pids.chunks(pids.len().div_ceil(workers)) {
            running.push(thread(scope, "proc", move || read(share))?);
        }
        running.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    Ok(shares?.into_iter().flatten().collect())
}

/// Starts a thread, which a limit may forbid.
fn thread<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    let started = std::thread::Builder::new().name(format!("yendor-{name}")).spawn_scoped(scope, work);
    started.map_err(|e| SysError::io("clone", format!("a thread, {name}"), &e)).at(Step::Collect)
}

/// All processes, parents before children, the root first; else by their ids inside, which are the same after a restore.
fn in_order(tree: &FrozenTree, proc: &OwnedFd, home: usize) -> Result<Vec<Facts>> {
    let pids: Vec<i32> = tree.processes.keys().chain(&tree.zombies).copied().collect();
    let mut all = BTreeMap::new();
    for facts in read_all(proc, &pids, home)? {
        all.insert(facts.pid, facts);
    }
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for facts in all.values().filter(|f| f.pid != tree.root) {
        children.entry(facts.status.ppid).or_default().push(facts.pid);
    }
    let mut out = Vec::with_capacity(all.len());
    let inside: BTreeMap<i32, i32> = all.values().map(|facts| (facts.pid, facts.inside().0)).collect();
    let mut next = vec![tree.root];
    // Those whose parent is outside (the container's init) come after the root.
    let outside: Vec<i32> = children.keys().filter(|p| !all.contains_key(p)).copied().collect();
    for parent in outside {
        next.extend(children.remove(&parent).unwrap_or_default());
    }
    next[1..].sort_by_key(|pid| inside.get(pid));
    next.reverse();
    while let Some(pid) = next.pop() {
        let mut below = children.remove(&pid).unwrap_or_default();
        below.sort_by_key(|pid| std::cmp::Reverse(inside.get(pid)));
        next.extend(below);
        out.extend(all.remove(&pid));
    }
    Ok(out)
}
