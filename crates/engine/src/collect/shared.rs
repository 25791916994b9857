//! What clone(2) lets tasks share. Threads share everything here, processes nothing: other trees are refused.

use std::cmp::Ordering;

use yendor_kinds::{Cause, Result};
use yendor_sys::kcmp::{What, compare};
use yendor_task::Stopped;
use yendor_task::tree::FrozenTree;

use super::Facts;

const OF_PROCESS: [(What, &str); 3] =
    [(What::Vm, "memory (CLONE_VM)"), (What::Files, "descriptors (CLONE_FILES)"), (What::Fs, "CLONE_FS")];
const OF_THREADS: [(What, &str); 2] = [
    (What::Files, "a table of descriptors of its own (unshare, CLONE_FILES)"),
    (What::Fs, "a working directory of its own (unshare, CLONE_FS)"),
];

/// Refuses processes that share what belongs to one here, and threads that do not.
///
/// # Errors
/// `Unsupported`, by name.
pub fn check(order: &[Facts], tree: &FrozenTree) -> Result<()> {
    let living: Vec<&Facts> = order.iter().filter(|f| !matches!(f.status.state, b'Z' | b'X')).collect();
    let mut orphans = Vec::new();
    for facts in &living {
        // Sharing begins at clone: it is parent and child who share, or children of one who is no more.
        match order.iter().find(|p| p.pid == facts.status.ppid) {
            Some(parent) => apart(parent, facts)?,
            None => orphans.push(*facts),
        }
        threads(tree.processes.get(&facts.pid).map_or(&[][..], Vec::as_slice), facts.pid)?;
    }
    for (what, _) in OF_PROCESS {
        // Where the kernel will not compare, there is nothing that could be sorted.
        orphans.sort_by(|a, b| compare(a.pid, b.pid, what).unwrap_or(Ordering::Equal));
        orphans.windows(2).try_for_each(|pair| apart(pair[0], pair[1]))?;
    }
    Ok(())
}

fn apart(one: &Facts, other: &Facts) -> Result<()> {
    for (what, name) in OF_PROCESS {
        if compare(one.pid, other.pid, what).is_ok_and(Ordering::is_eq) {
            let (a, b) = (one.inside(), other.inside());
            return Err(Cause::unsupported(format!("processes {a} and {b} share {name}")));
        }
    }
    Ok(())
}

fn threads(threads: &[Stopped], pid: i32) -> Result<()> {
    for thread in threads.iter().map(Stopped::tid).filter(|tid| *tid != pid) {
        for (what, name) in OF_THREADS {
            if compare(pid, thread, what).is_ok_and(Ordering::is_ne) {
                return Err(Cause::unsupported(format!("thread {thread} of process {pid} has {name}")));
            }
        }
    }
    Ok(())
}
