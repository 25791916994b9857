//! collect: a frozen tree becomes an image.
//!
//! Order: descriptors of all processes first (mappings may refer to them), then each process in turn: borrow it, ask it
//! what only it knows, give it back, and copy its memory. Nothing of the tree is changed at the end.

mod address_space;
mod ahead;
mod descriptor;
mod ghost;
pub mod ipc;
mod process;
mod restriction;
mod security;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use yendor_image::{FileId, NsPid, Writer};
use yendor_kinds::file::Gather;
use yendor_kinds::process::{Record, State, Terminal};
use yendor_kinds::snapshot::{Container, Machine, Snapshot};
use yendor_kinds::{Cause, Named, memory};
use yendor_policy::lsm::Here;
use yendor_proc::{stat, status};
use yendor_sys::SysError;
use yendor_sys::futex::RobustList;
use yendor_task::tree::{FrozenTree, read_proc};

use crate::error::{At, Result, Step, With};
use crate::state;

pub use address_space::Memory;
use ahead::Ahead;
pub use security::labels as labels_of;
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
}

impl Facts {
    fn read(proc: impl AsFd, pid: i32) -> std::result::Result<Facts, Cause> {
        let proc = proc.as_fd();
        Ok(Facts {
            pid,
            status: status::parse(&read_proc(proc, &format!("{pid}/status"))?)?,
            stat: stat::parse(&read_proc(proc, &format!("{pid}/stat"))?)?,
        })
    }

    /// Its id in its own pid namespace.
    #[must_use]
    pub fn inside(&self) -> NsPid {
        innermost(self.status.ns_pid.as_deref(), self.pid)
    }
}

fn innermost(ids: Option<&[i32]>, outer: i32) -> NsPid {
    NsPid(ids.and_then(|ids| ids.last().copied()).unwrap_or(outer))
}

/// Collects a frozen tree.
///
/// # Errors
/// The first thing that cannot be captured, by name. The tree is unharmed.
pub fn collect(
    tree: &FrozenTree,
    gather: &mut Gather<'_>,
    writer: &Writer,
    container: Container,
    of: Option<(&state::State, &Path)>,
) -> Result<Snapshot> {
    let proc = gather.proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Collect)?;
    let order = in_order(tree, &proc)?;
    for facts in &order {
        gather.pids.insert(facts.pid, facts.inside());
    }
    refuse_shared(&order).at(Step::Collect)?;
    let watch = of.map(|(state, directory)| Watch::container(state, directory)).transpose().at(Step::Collect)?;
    let mut watch = watch.unwrap_or_default();
    watch.look(tree, &order, &proc).at(Step::Collect)?;
    let mut descriptors = BTreeMap::new();
    for facts in order.iter().filter(|f| tree.processes.contains_key(&f.pid)) {
        let all = descriptor::collect(gather, facts.pid).task(facts.inside().0)?;
        descriptors.insert(facts.pid, all);
    }
    let terminals = terminals(gather).at(Step::Collect)?;
    let mut robust = RobustList::register().at(Step::Collect)?;
    let mut memory = Memory::new(writer).at(Step::Collect)?;
    let modules = Here::look();
    let living = order.iter().map(|f| f.pid).filter(|pid| tree.processes.contains_key(pid)).collect();
    let own = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Collect)?;
    let ahead = Ahead::start(own, living).at(Step::Collect)?;
    let mut processes = Vec::new();
    let mut unknown_stops = BTreeSet::new();
    for facts in &order {
        let inside = facts.inside();
        let state = match tree.processes.get(&facts.pid) {
            None => State::Zombie(facts.stat.exit_code),
            Some(threads) => {
                let (held, locks) = descriptors.remove(&facts.pid).unwrap_or_default();
                let parent = parent_of(facts, &order, &processes);
                let terminal = terminal(facts, &terminals, gather).at(Step::Collect).task(inside.0)?;
                let stopped_children = stopped_children(tree, &order, facts.pid);
                let mut one = process::Collecting {
                    proc: &proc,
                    facts,
                    texts: ahead.next(facts.pid).at(Step::Collect).task(inside.0)?,
                    threads,
                    gather,
                    parent,
                    terminal,
                    stopped_children,
                    unknown_stops: &mut unknown_stops,
                    modules: &modules,
                    watch: &watch,
                    memory: &mut memory,
                };
                let alive = one.collect(held, locks, &mut robust).at(Step::Collect).task(inside.0)?;
                watch.adopts(facts.pid, alive.attributes.subreaper);
                State::Alive(Box::new(alive))
            }
        };
        processes.push(Record {
            pid: inside,
            parent: gather.pids.get(&facts.status.ppid).copied().unwrap_or(NsPid(1)),
            group: innermost(facts.status.ns_pgid.as_deref(), facts.stat.pgrp),
            session: innermost(facts.status.ns_sid.as_deref(), facts.stat.session),
            state,
        });
    }
    gather.finish().at(Step::Collect)?;
    let (objects, vdso) = memory.finish(gather).at(Step::Store)?;
    let security = security::collect(&modules, &processes);
    let restrictions = watch.tables(&mut processes, &gather.root).at(Step::Collect)?;
    Ok(Snapshot {
        machine: Machine { architecture: "x86_64".into(), kernel: kernel(), vdso, security },
        container,
        processes,
        files: std::mem::take(&mut gather.entries),
        objects,
        restrictions,
        lost: std::mem::take(&mut gather.lost),
    })
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

/// Children of a process that job control has stopped.
fn stopped_children(tree: &FrozenTree, order: &[Facts], parent: i32) -> Vec<i32> {
    let stopped =
        |pid: &i32| tree.processes.get(pid).is_some_and(|t| t.first().is_some_and(|l| l.group_stop().is_some()));
    order.iter().filter(|f| f.status.ppid == parent && stopped(&f.pid)).map(|f| f.inside().0).collect()
}

/// The parent's memory: parents come before their children.
fn parent_of<'p>(facts: &Facts, order: &[Facts], done: &'p [Record]) -> Option<(i32, &'p memory::Record)> {
    let index = order.iter().position(|p| p.pid == facts.status.ppid)?;
    // Only a child that its parent itself will bear starts with a copy (see rebuild::plan).
    let leads = facts.stat.session == facts.pid;
    if !leads && order.get(index)?.stat.session != facts.stat.session {
        return None;
    }
    match &done.get(index)?.state {
        State::Alive(alive) => Some((facts.status.ppid, &alive.memory)),
        _ => None,
    }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// All processes, parents before children, the root first.
fn in_order(tree: &FrozenTree, proc: &OwnedFd) -> Result<Vec<Facts>> {
    let mut all = BTreeMap::new();
    for pid in tree.processes.keys().chain(&tree.zombies) {
        all.insert(*pid, Facts::read(proc, *pid).at(Step::Collect).task(*pid)?);
    }
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for facts in all.values().filter(|f| f.pid != tree.root) {
        children.entry(facts.status.ppid).or_default().push(facts.pid);
    }
    let mut out = Vec::with_capacity(all.len());
    let mut next = vec![tree.root];
    // Those whose parent is outside (the container's init) come after the root.
    let outside: Vec<i32> = children.keys().filter(|p| !all.contains_key(p)).copied().collect();
    for parent in outside {
        next.extend(children.remove(&parent).unwrap_or_default());
    }
    next[1..].sort_unstable();
    next.reverse();
    while let Some(pid) = next.pop() {
        let mut below = children.remove(&pid).unwrap_or_default();
        below.sort_unstable_by(|a, b| b.cmp(a));
        next.extend(below);
        out.extend(all.remove(&pid));
    }
    Ok(out)
}

/// Processes that share what we restore per process are refused.
fn refuse_shared(order: &[Facts]) -> std::result::Result<(), Cause> {
    use yendor_sys::kcmp::{What, compare};
    let whats = [(What::Vm, "memory (CLONE_VM)"), (What::Files, "descriptors (CLONE_FILES)"), (What::Fs, "CLONE_FS")];
    for facts in order.iter().filter(|f| !matches!(f.status.state, b'Z' | b'X')) {
        // Sharing starts at clone: only parent and child, or siblings of one parent, can be affected in practice;
        // compare with the parent and with the process before it.
        let Some(parent) = order.iter().find(|p| p.pid == facts.status.ppid) else { continue };
        for (what, name) in whats {
            if compare(parent.pid, facts.pid, what).is_ok_and(std::cmp::Ordering::is_eq) {
                let (a, b) = (parent.inside(), facts.inside());
                return Err(Cause::unsupported(format!("processes {a} and {b} share {name}")));
            }
        }
    }
    Ok(())
}

/// Pages file number 0: all private memory.
pub(crate) const PAGES: u16 = 0;

/// Objects that no descriptor leads to.
pub(crate) type Objects = Vec<memory::shared::Record>;
