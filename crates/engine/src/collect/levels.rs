//! The ids that a task has in each pid namespace that it is seen in.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, statat};
use yendor_image::{NsId, NsPid, Tid};
use yendor_kinds::file::{self, Entry};
use yendor_kinds::namespace::nested;
use yendor_kinds::process::{Level, Record, State};
use yendor_kinds::{Cause, Named, Result};
use yendor_proc::status;
use yendor_task::tree::read_proc;

use super::Facts;
use super::nested::Nested;
use crate::rebuild::plan::{INIT, Plan};

/// How many pid namespaces are around that of a process, as far as this /proc tells.
///
/// # Errors
/// What /proc says.
pub fn around(proc: BorrowedFd<'_>, pid: i32) -> Result<usize> {
    let status = status::parse(&read_proc(proc, &format!("{pid}/status"))?)?;
    Ok(status.ns_pid.map_or(0, |ids| ids.len().saturating_sub(1)))
}

/// The id at a level, of a list as /proc shows it; `outer`: where the kernel shows none.
pub fn at(level: usize, ids: Option<&[i32]>, outer: i32) -> NsPid {
    NsPid(ids.map_or(outer, |ids| ids.get(level).copied().unwrap_or(0)))
}

/// The ids of a process below the tree's own level.
pub fn below(facts: &Facts) -> Vec<Level> {
    let ids =
        |list: &Option<Vec<i32>>| list.as_ref().and_then(|ids| ids.get(facts.home + 1..)).unwrap_or_default().to_vec();
    let [pids, groups, sessions] = [&facts.status.ns_pid, &facts.status.ns_pgid, &facts.status.ns_sid].map(ids);
    let all = pids.into_iter().zip(groups).zip(sessions);
    all.map(|((pid, group), session)| Level { pid: NsPid(pid), group: NsPid(group), session: NsPid(session) }).collect()
}

/// Those of a thread.
pub fn of_thread(home: usize, ids: Option<&[i32]>) -> Vec<Tid> {
    ids.and_then(|ids| ids.get(home + 1..)).unwrap_or_default().iter().copied().map(Tid).collect()
}

/// Refuses files that nobody may fetch who is born in a user namespace inside: pid 1 of a pid namespace that belongs to that.
///
/// # Errors
/// `Unsupported`, naming the kind.
pub fn fetched(plan: &Plan, processes: &[Record], files: &[Entry]) -> Result<()> {
    for p in processes.iter().filter(|p| plan.levels.users(p.pid.0).is_some()) {
        let State::Alive(alive) = &p.state else { continue };
        let held = files.iter().filter(|file| alive.descriptors.iter().any(|d| d.file == file.id));
        let late = |file: &&Entry| file.record.is_late() || matches!(file.record, file::Record::Unix(_));
        if let Some(file) = held.filter(|file| file.mounts.is_none()).find(late) {
            let kind = file.record.kind();
            let what = format!(
                "process {}, pid 1 of a pid namespace of a user namespace inside, has an open {kind} file",
                p.pid
            );
            return Err(Cause::unsupported(what));
        }
    }
    Ok(())
}

/// Refuses a pid namespace whose pid 1 is no more, and a tree's own pid 1.
///
/// # Errors
/// `Unsupported`, by the process that would bear children there.
pub fn begun(processes: &[Record], namespaces: &[nested::Record]) -> Result<()> {
    if processes.iter().any(|p| p.pid.0 == INIT) {
        let what = "a tree that begins with pid 1 of its pid namespace: in a container that is another one";
        return Err(Cause::unsupported(what));
    }
    for (number, _) in (0..).zip(namespaces).filter(|(_, one)| one.kind() == nested::Kind::Pid) {
        let is_first = |p: &Record| p.namespace == Some(NsId(number)) && p.levels.last().is_some_and(|l| l.pid.0 == 1);
        if !processes.iter().any(is_first) {
            let bears = |p: &&Record| matches!(&p.state, State::Alive(alive) if alive.children == Some(NsId(number)));
            let who = processes.iter().find(bears).map_or(0, |p| p.pid.0);
            let what = format!("process {who} has a pid namespace for its children whose pid 1 is no more");
            return Err(Cause::unsupported(what));
        }
    }
    Ok(())
}

/// The pid namespace of a process, if that is not the tree's. A process that has ended still tells.
///
/// # Errors
/// `Unsupported` for one that cannot be in an image.
pub fn namespace(facts: &Facts, proc: BorrowedFd<'_>, nested: &mut Nested) -> Result<Option<NsId>> {
    if below(facts).is_empty() {
        return Ok(None);
    }
    let path = format!("{}/ns/pid", facts.pid);
    let stat = statat(proc, path.as_str(), AtFlags::empty()).named("statat", || format!("/proc/{path}"))?;
    let number = nested.number(proc, (facts.pid, facts.pid), "pid", stat.st_ino)?;
    number.map(Some).ok_or_else(|| Cause::unsupported("a pid namespace of its own (unshare, clone)"))
}
