//! Control groups of the tasks of a tree, which no image has: those that are in others than the first are named.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use yendor_image::NsPid;
use yendor_kinds::Cause;
use yendor_kinds::namespace::cgroup;
use yendor_sys::SysError;
use yendor_task::tree::FrozenTree;

type Apart = BTreeMap<String, Vec<i32>>;

/// A look at them, by a thread of its own: it takes a file of each task, and nobody waits for it.
pub(super) struct Looking(JoinHandle<Result<Apart, Cause>>);

impl Looking {
    /// Tasks must be stopped until [`Self::end`]. `home`: the task that the others are compared with.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn begin(proc: &OwnedFd, home: i32, tree: &FrozenTree) -> Result<Looking, Cause> {
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        let tasks = tree.processes.values().map(|threads| threads.iter().map(|thread| thread.tid()).collect());
        let tasks: Vec<Vec<i32>> = tasks.collect();
        let look = move || cgroup::apart(proc.as_fd(), home, &tasks);
        let thread = std::thread::Builder::new().name("control groups".into()).spawn(look);
        Ok(Looking(thread.map_err(|e| SysError::io("clone", "control groups", &e))?))
    }

    /// What is lost, kind and object; `pids`: of processes, by their ids here.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn end(self, pids: &BTreeMap<i32, NsPid>) -> Result<Vec<(String, String)>, Cause> {
        let apart = self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let one = |(groups, tasks): (String, Vec<i32>)| {
            const MOST: usize = 8;
            let name = |tid: &i32| match pids.get(tid) {
                Some(pid) => format!("process {pid}"),
                None => format!("thread {tid} outside"),
            };
            let mut names: Vec<String> = tasks.iter().take(MOST).map(name).collect();
            names.extend(tasks.len().checked_sub(MOST + 1).map(|more| format!("{} more", more + 1)));
            ("cgroup".to_owned(), format!("{}: the control group {groups}", names.join(", ")))
        };
        Ok(apart.into_iter().map(one).collect())
    }
}
