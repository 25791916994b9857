//! Pid namespaces that belong to user namespaces inside. Their pid 1 is in the user namespace from birth on: a sibling that lives for that
//! only takes its ids, enters, and bears it as its own sibling. Ids outside nobody may choose from in there: the container's next id is set
//! before. What pid 1 would bear is born by a stand-in from outside with all its ids, and left to pid 1 when that goes.

use std::os::fd::AsFd;

use yendor_kinds::Cause;
use yendor_kinds::namespace::nested::{Kind, join as setns};
use yendor_kinds::process::credential;
use yendor_task::script::{Want, bytes};
use yendor_task::{Nr, Script, args};

use super::birth::{self, Tasks};
use super::death::die;
use super::plan::{Birth, INIT, Plan};
use super::{Site, Task, late, nested};
use crate::error::{At, Result, Step};

const CLONE_PARENT_NEWPID: u64 = 0x8000 | 0x2000_0000;

/// Has the helper of a birth, which is there, bear pid 1 of a pid namespace.
pub fn begin(site: &Site<'_>, b: &Birth, helper: i32, tasks: &mut Tasks) -> Result<()> {
    let own = tasks[&helper].clone();
    let Some(users) = site.levels.users(b.pid) else { return Ok(()) };
    let users = site.places.number(users).at(Step::Rebuild)?;
    let mut script = Script::new();
    match birth::alive(site, b).and_then(|alive| alive.threads.first()) {
        Some(leader) => {
            let record = site.confine.credentials(&leader.credentials, true)?;
            credential::enter(&record, &site.now.credentials, users, &mut script);
        }
        None => setns(users, Kind::User, &mut script),
    }
    site.run(&own, &script).at(Step::Rebuild)?;
    let before = (b.pid - 1).to_string();
    let mut script = Script::new();
    let want = Want::Exactly(before.len() as u64);
    script.call_wanting(Nr::PWRITE64, args![site.last_pid, bytes(before.as_bytes()), before.len(), 0], want);
    site.run(&tasks[&INIT], &script).at(Step::Rebuild)?;
    let mut script = Script::new();
    birth::clone_as(site, &[INIT], b.pid, (CLONE_PARENT_NEWPID, 0), &mut script);
    site.run(&own, &script).at(Step::Rebuild)?;
    settle(site, b.pid, tasks)?;
    let group = b.begins.and_then(|begins| begins.group).map_or(0, |group| site.levels.seen(b.creator, group));
    if group != 0 {
        let mut script = Script::new();
        script.call(Nr::SETPGID, args![site.levels.seen(b.creator, b.pid), group]);
        site.run(&tasks[&b.creator], &script).at(Step::Rebuild)?;
    }
    die(site, &own, 0).at(Step::Rebuild)?;
    let mut script = Script::new();
    const WALL: u32 = 0x4000_0000;
    script.call(Nr::WAIT4, args![helper, 0, WALL, 0]);
    site.run(tasks.get(&b.parent).unwrap_or(&tasks[&INIT]), &script).map(drop).at(Step::Rebuild)
}

/// A stand-in is born into a pid namespace that its creator is not in.
pub fn join(site: &Site<'_>, plan: &Plan, b: &Birth, tasks: &mut Tasks) -> Result<()> {
    let creator = tasks[&b.creator].clone();
    let init = site.levels.place(b.pid).chain.last().and_then(|namespace| site.levels.init(*namespace));
    let init = init.and_then(|init| plan.births.iter().find(|other| other.pid == init).zip(tasks.get(&init)));
    let missing = || Cause::corrupt(format!("process {}: no pid 1 in its pid namespace", b.pid));
    let (first, task) = init.ok_or_else(missing).at(Step::Rebuild)?;
    let theirs = late::pid_namespace(&site.proc, task).at(Step::Rebuild)?;
    let home = late::pid_namespace(&site.proc, &creator).at(Step::Rebuild)?;
    let got = site.late.take(site, &creator, &[theirs.as_fd(), home.as_fd()]).at(Step::Rebuild)?;
    let mut script = Script::new();
    setns(got[0], Kind::Pid, &mut script);
    birth::be_born(site, b, &mut script);
    let group = first.begins.and_then(|begins| begins.group).map_or(0, |group| site.levels.seen(b.creator, group));
    if group != 0 {
        script.call(Nr::SETPGID, args![site.levels.seen(b.creator, b.pid), group]);
    }
    setns(got[1], Kind::Pid, &mut script);
    for fd in got {
        script.call(Nr::CLOSE, args![fd]);
    }
    site.run(&creator, &script).at(Step::Rebuild)?;
    settle(site, b.pid, tasks)?;
    nested::settle(site, &tasks[&b.pid], (b.pid, b.creator), || None).at(Step::Rebuild)
}

/// Takes over who was just born.
fn settle(site: &Site<'_>, pid: i32, tasks: &mut Tasks) -> Result<()> {
    for (inside, tid) in birth::newborn(site, &[pid]).at(Step::Rebuild)? {
        let task = Task { tid, slot: tasks.len() };
        birth::take_over(site, tid, task.slot).at(Step::Rebuild)?;
        tasks.insert(inside, task);
    }
    Ok(())
}
