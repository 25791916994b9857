//! Landlock domains that tasks had entered themselves. A domain is inherited at birth, and tasks of one domain may do to each
//! other what those of two equal ones may not: so a child that had its parent's is born after the parent has entered it.

use std::collections::{BTreeMap, BTreeSet};

use yendor_kinds::process::Alive;
use yendor_kinds::{Cause, Result};
use yendor_task::Script;

use super::{Site, Task};

/// How many of its own domains each task has entered already.
#[derive(Debug, Default)]
pub struct Domains {
    entered: BTreeMap<i32, usize>,
    /// Threads that were made early, by process and id.
    threads: BTreeSet<(i32, i32)>,
}

/// The domains of a process's leader.
pub fn of_leader(alive: &Alive) -> &[u32] {
    alive.threads.first().map(|t| t.restricted.domains.as_slice()).unwrap_or_default()
}

/// How many of the outer domains two tasks have in common.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Domains {
    /// A child or thread has what its creator has entered: all of it is its own, too, see [`common`].
    pub fn born(&mut self, child: i32, creator: i32) {
        let inherited = self.entered.get(&creator).copied().unwrap_or(0);
        self.entered.insert(child, inherited);
    }

    /// A thread of a process was made early.
    pub fn made(&mut self, pid: i32, thread: i32) {
        self.born(thread, pid);
        self.threads.insert((pid, thread));
    }

    /// Whether it was.
    pub fn is_made(&self, pid: i32, thread: i32) -> bool {
        self.threads.contains(&(pid, thread))
    }

    /// How many a task has entered.
    pub fn entered(&self, task: i32) -> usize {
        self.entered.get(&task).copied().unwrap_or(0)
    }

    /// The task enters its own domains up to number `to`.
    pub fn advance(&mut self, site: &Site<'_>, pid: i32, own: &[u32], to: usize, script: &mut Script) -> Result<()> {
        let now = self.entered.entry(pid).or_default();
        if *now > to {
            return Err(Cause::unsupported(format!("process {pid} made others before and after it restricted itself")));
        }
        for domain in own.get(*now..to).unwrap_or_default() {
            site.confine.enter(*domain, script)?;
        }
        *now = to;
        Ok(())
    }
}

/// A thread enters the rest of its domains.
pub fn enter_rest(site: &Site<'_>, task: &Task, own: &[u32], entered: usize) -> Result<()> {
    let mut script = Script::new();
    for domain in own.get(entered..).unwrap_or_default() {
        site.confine.enter(*domain, &mut script)?;
    }
    site.run(task, &script).map(drop)
}
