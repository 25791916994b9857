//! Files that can be made only when pid 1 is there (unix sockets, by processes with pids) or all tasks are born (pidfds,
//! files of /proc): the keeper makes them, and each task that holds one fetches it from the keeper. So do tasks with the pid namespaces that
//! their children are born in.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::{FileId, NsId, NsPid};
use yendor_kinds::file::{Descriptor, Entry, Record, Workshop};
use yendor_kinds::namespace::nested::{Kind, join};
use yendor_kinds::process::{Record as Process, State};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_task::{Nr, Script, args};

use crate::request::{Enforce, Request};

use super::birth::Tasks;
use super::levels::Levels;
use super::{Site, Task, lift};

/// Where the files are.
pub struct Files {
    /// A pidfd of the keeper that every task inherits; -1 where there is nothing to fetch.
    keeper: i32,
    /// Above all numbers of the image.
    above: i32,
    /// Numbers in the keeper.
    numbers: BTreeMap<FileId, i32>,
    /// Likewise of pid namespaces.
    pids: BTreeMap<NsId, i32>,
}

impl Files {
    /// Before any stub is born: none yet, but the way to them.
    pub fn before(snapshot: &Snapshot, request: &Request, above: i32, held: &mut Vec<OwnedFd>) -> Result<Files, Cause> {
        // Opened by the keeper when its policy can no longer be tried on itself.
        let judged = |e: &&Entry| matches!(e.record, Record::Proc(_) | Record::Namespace(_));
        if request.policy.enforce == Enforce::Early
            && let Some(entry) = snapshot.files.iter().find(judged)
        {
            let what = format!("--enforce early for an image with an open {} file", entry.record.kind());
            return Err(Cause::unsupported(what));
        }
        let bears = |p: &Process| matches!(&p.state, State::Alive(alive) if alive.children.is_some());
        let bears = snapshot.processes.iter().any(bears);
        if request.policy.enforce == Enforce::Early && bears {
            return Err(Cause::unsupported(
                "--enforce early for an image with a process whose children are born in a pid namespace below",
            ));
        }
        let mut files = Files { keeper: -1, above, numbers: BTreeMap::new(), pids: BTreeMap::new() };
        let late = |e: &Entry| e.record.is_late() || matches!(e.record, Record::Unix(_));
        if snapshot.files.iter().any(late) || bears || snapshot.namespaces.iter().any(|one| one.kind() == Kind::Pid) {
            let me = rustix::process::getpid();
            let own = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty());
            files.keeper = lift(own.named("pidfd_open", || "the keeper".into())?, above, held)?;
        }
        Ok(files)
    }

    /// The number of the keeper's pidfd.
    pub fn keeper(&self) -> i32 {
        self.keeper
    }

    /// The keeper's numbers of files that are made when pid 1 is there.
    pub fn add(&mut self, made: BTreeMap<FileId, i32>) {
        self.numbers.extend(made);
    }

    /// Makes them; all tasks are born.
    pub fn make(
        &mut self,
        workshop: &mut Workshop<'_>,
        (tasks, levels): (&Tasks, &Levels),
        held: &mut Vec<OwnedFd>,
    ) -> Result<(), Cause> {
        if self.keeper < 0 {
            return Ok(());
        }
        for (namespace, init) in levels.inits() {
            let Some(task) = tasks.get(&init) else { continue };
            let fd = pid_namespace(&workshop.proc, task)?;
            self.pids.insert(namespace, lift(&fd, self.above, held)?);
        }
        workshop.tasks = tasks.iter().map(|(inside, task)| (NsPid(*inside), task.tid)).collect();
        for id in workshop.finish_late()? {
            let number = lift(workshop.existing(id)?, self.above, held)?;
            self.numbers.insert(id, number);
        }
        Ok(())
    }

    /// The task's children are born in a pid namespace below its own from now on.
    pub fn bear_into(&self, site: &Site<'_>, task: &Task, namespace: NsId) -> Result<(), Cause> {
        let number = self.pids.get(&namespace);
        let number = number.ok_or_else(|| Cause::corrupt(format!("no pid namespace has the number {namespace}")))?;
        let mut script = Script::new();
        script.call(Nr::PIDFD_GETFD, args![self.keeper, *number, 0]);
        let got = site.run(task, &script)?.first().map_or(0, |done| done.returned.cast_unsigned());
        let mut script = Script::new();
        join(i32::try_from(got).unwrap_or(-1), Kind::Pid, &mut script);
        script.call(Nr::CLOSE, args![got]);
        site.run(task, &script).map(drop)
    }
}

/// The pid namespace of a task.
pub fn pid_namespace(proc: &OwnedFd, task: &Task) -> Result<OwnedFd, Cause> {
    let path = format!("{}/ns/pid", task.tid);
    let fd = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    Ok(fd.named("openat", || format!("/proc/{path}"))?)
}

/// The task fetches those that it holds: their numbers there, above all others.
pub fn fetch(site: &Site<'_>, task: &Task, list: &[Descriptor]) -> Result<BTreeMap<FileId, i32>, Cause> {
    const F_DUPFD: u32 = 0;
    let Files { keeper, above, numbers, pids: _ } = &site.late;
    let wanted: BTreeSet<FileId> = list.iter().map(|d| d.file).filter(|f| numbers.contains_key(f)).collect();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut script = Script::new();
    for file in &wanted {
        script.call(Nr::PIDFD_GETFD, args![*keeper, numbers[file], 0]);
    }
    let mut lift = Script::new();
    for got in site.run(task, &script)? {
        // The kernel gives the lowest free number, which may be another descriptor's.
        lift.call(Nr::FCNTL, args![got.returned.cast_unsigned(), F_DUPFD, *above]);
        lift.call(Nr::CLOSE, args![got.returned.cast_unsigned()]);
    }
    let lifted = site.run(task, &lift)?;
    let number = |returned: i64| i32::try_from(returned).unwrap_or(-1);
    Ok(wanted.into_iter().zip(lifted.iter().step_by(2)).map(|(file, done)| (file, number(done.returned))).collect())
}
