//! What a born task becomes: memory, descriptors, threads, credentials, registers. Nothing runs until thaw.

use std::collections::BTreeMap;

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::{FileId, Tid};
use yendor_kinds::memory::{future, vma};
use yendor_kinds::process::{
    Alive, Restricted, State, Stop, Thread, attribute, control, credential, directory, itimer, lock, notification,
    posix_timer, regs, rlimit, rseq, sched, sigaction, signal,
};
use yendor_kinds::{Cause, Named};
use yendor_sys::ptrace;
use yendor_sys::wait::{self, Event};
use yendor_task::script::{Want, bytes};
use yendor_task::stop::StopError;
use yendor_task::{Nr, Script, Stopped, args};

use super::birth::{self, Tasks};
use super::contexts;
use super::death::{die, dismiss};
use super::descriptor::{descriptors, locked};
use super::domain::Domains;
use super::filter::{self, Calls, Chain};
use super::memory::Memories;
use super::plan::Plan;
use super::{Site, Task, late, owner, program};
use crate::error::{At, Error, Result, Step, With};
use crate::label::{self, Set};

/// A thread that is ready.
pub struct Ready {
    /// As the tracer sees it.
    pub tid: i32,
    /// Its process, likewise.
    pub pid: i32,
    /// Inside.
    pub inside: i32,
    /// What it had forbidden itself.
    pub restricted: Restricted,
}

/// Turns every task into what its record says. Stand-ins go.
pub fn all(
    site: &Site<'_>,
    plan: &Plan,
    tasks: &Tasks,
    memories: &mut Memories,
    domains: &mut Domains,
    init: &Task,
    notes: &mut Vec<String>,
) -> Result<Vec<Ready>> {
    let mut next_slot = tasks.len();
    let mut living = Vec::new();
    let mut building = Vec::new();
    dismiss(site, plan, tasks, init)?;
    memories.fill_all(site, plan, tasks, init)?;
    for birth in &plan.births {
        let Some(record) = birth.record.and_then(|i| site.snapshot.processes.get(i)) else { continue };
        let task = &tasks[&birth.pid];
        match &record.state {
            State::Zombie(status) => die(site, task, *status).at(Step::Rebuild).task(birth.pid)?,
            State::Exec(exec) => {
                program::start(site, task, exec).task(birth.pid)?;
                let restricted = Restricted::default();
                living.push(Ready { tid: task.tid, pid: task.tid, inside: birth.pid, restricted });
            }
            State::Alive(alive) => {
                let late = BTreeMap::new();
                let (parent, threads, has) = (birth.parent, Vec::new(), site.labels.now());
                let mut one = Building { site, alive, task, pid: birth.pid, parent, late, threads, has };
                one.label_early(tasks, domains).task(birth.pid)?;
                one.enter_directory().task(birth.pid)?;
                building.push(one);
            }
        }
    }
    for one in &mut building {
        one.prepare(tasks, domains, &mut next_slot).task(one.pid)?;
    }
    for gang in gangs(building) {
        finish(&gang, tasks, &mut living, notes)?;
    }
    Ok(living)
}

/// Processes that are finished side by side: children before their parents. What a child's end or stop tells its parent
/// must not be among the parent's signals.
fn gangs<'a, 's>(building: Vec<Building<'a, 's>>) -> Vec<Vec<Building<'a, 's>>> {
    const MOST: usize = 64;
    let mut gangs: Vec<Vec<Building<'_, '_>>> = Vec::new();
    for one in building.into_iter().rev() {
        let apart = |other: &Building<'_, '_>| other.parent != one.pid && one.parent != other.pid;
        match gangs.last_mut().filter(|gang| gang.len() < MOST && gang.iter().all(apart)) {
            Some(gang) => gang.push(one),
            None => gangs.push(vec![one]),
        }
    }
    gangs
}

/// Everything that comes last, until processes are ready to run.
fn finish(gang: &[Building<'_, '_>], tasks: &Tasks, living: &mut Vec<Ready>, notes: &mut Vec<String>) -> Result<()> {
    for one in gang {
        one.limit(notes).task(one.pid)?;
    }
    for one in gang {
        one.confine().task(one.pid)?;
    }
    let Some(site) = gang.first().map(|one| one.site) else { return Ok(()) };
    for one in gang {
        one.interrupt().task(one.pid)?;
    }
    let mut calls = Vec::with_capacity(gang.len());
    for one in gang {
        calls.push(one.stand_still().task(one.pid)?);
    }
    let unmapped = Calls::unmap_scratch(&calls.iter().collect::<Vec<_>>(), site);
    unmapped.map_err(|(i, cause)| Error::new(Step::Thaw, cause).task(gang[i].pid))?;
    for (one, calls) in gang.iter().zip(&calls) {
        one.finish(calls, living).task(one.pid)?;
        if let Some(stop) = &one.alive.stopped {
            one.stop(*stop, tasks.get(&one.parent)).at(Step::Thaw).task(one.pid)?;
        }
    }
    Ok(())
}

/// Where a deleted working directory is made for a moment: at its old path if that can be.
pub fn gone_place(directory: &directory::Record) -> Vec<u8> {
    let path = directory.cwd.0.as_slice();
    let parent = path.iter().rposition(|b| *b == b'/').map_or(&b"/"[..], |i| &path[..i.max(1)]);
    let free = rustix::fs::lstat(path).is_err() && rustix::fs::stat(parent).is_ok();
    if free { path.to_vec() } else { b"/tmp/.yendor-gone".to_vec() }
}

pub fn stop_cause(e: StopError) -> Cause {
    match e {
        StopError::Dead(d) => d.into(),
        StopError::Sys(e) => e.into(),
    }
}

/// Writes a file of a task's /proc directory that does not say so already.
pub fn set(site: &Site<'_>, task: &Task, name: &str, value: &str) -> std::result::Result<(), Cause> {
    let path = format!("{}/{name}", task.tid);
    let fd = openat(&site.proc, path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .named("openat", || format!("/proc/{path}"))?;
    let mut now = [0u8; 32];
    let n = rustix::io::read(&fd, &mut now).named("read", || path.clone())?;
    if String::from_utf8_lossy(&now[..n]).trim() != value {
        rustix::io::pwrite(&fd, value.as_bytes(), 0).named("write", || format!("/proc/{path}, {value}"))?;
    }
    Ok(())
}

/// Gives a task its labels, one by one; `free` is the lowest descriptor number that it does not use.
pub fn label(site: &Site<'_>, task: &Task, sets: &[Set], free: i32) -> Result<()> {
    sets.iter().try_for_each(|set| {
        let set_it = site.run(task, &site.labels.script(set, free));
        set_it.map(drop).map_err(|cause| set.failed(cause))
    })
}

struct Building<'a, 's> {
    site: &'a Site<'s>,
    alive: &'a Alive,
    task: &'a Task,
    pid: i32,
    /// Its parent, by its id inside.
    parent: i32,
    /// Its numbers of files that it fetched from the keeper.
    late: BTreeMap<FileId, i32>,
    /// Threads beside the leader.
    threads: Vec<Task>,
    /// The labels that a thread of it is born with.
    has: Vec<Set>,
}

impl Building<'_, '_> {
    /// Its place in the file system, while it has its other descriptors still.
    fn enter_directory(&mut self) -> Result<()> {
        let (site, alive) = (self.site, self.alive);
        self.late = late::fetch(site, self.task, &alive.descriptors).at(Step::Rebuild)?;
        let mut script = Script::new();
        if let Some((terminal, fd)) = alive.terminal.and_then(|t| Some((t, site.files.get(&t.file)?))) {
            terminal.bring_forward(*fd, |id| site.levels.seen(self.pid, id.0), &mut script);
        }
        self.label_leader(Set::wants_door)?;
        directory::rebuild(&alive.directory, &gone_place(&alive.directory), &mut script);
        site.begin(self.task, script).at(Step::Rebuild)?;
        if alive.directory.cwd_deleted {
            // It is made again at a place that another may want too.
            site.land(self.task).at(Step::Rebuild)?;
        }
        Ok(())
    }

    /// Descriptors, everything of the process, and its other threads.
    fn prepare(&mut self, tasks: &Tasks, domains: &mut Domains, slot: &mut usize) -> Result<()> {
        let (site, alive) = (self.site, self.alive);
        if alive.threads.len() > 1 {
            self.label_leader(Set::wants_one_thread)?;
        }
        if alive.threads.first().map(|t| t.tid) != Some(Tid(self.pid)) {
            return Err(Error::new(Step::Load, Cause::corrupt("the first thread is not the leader")));
        }
        // Before the descriptors of rulesets go with all others.
        self.threads = birth::threads(site, self.task, (self.pid, alive), tasks, domains, slot)?;
        if let Some(namespace) = alive.children {
            site.late.bear_into(site, self.task, namespace).at(Step::Rebuild)?;
        }
        self.proc_files().at(Step::Rebuild)?;
        contexts::rebuild(site, self.task, &alive.contexts).at(Step::Rebuild)?;
        for (i, (task, thread)) in self.each().enumerate() {
            let mut script = Script::new();
            if i == 0 {
                let users = site.places.users(thread).at(Step::Rebuild)?.filter(|_| !self.is_inside());
                descriptors(site, &alive.descriptors, &self.late, users, &mut script).at(Step::Rebuild)?;
                sigaction::rebuild(&alive.actions, &mut script);
                attribute::rebuild_process(&alive.attributes, &mut script);
                control::rebuild_process(&alive.controls, &mut script);
            }
            attribute::rebuild_thread(&thread.attributes, &mut script);
            control::rebuild_thread(&thread.controls, &site.now.controls, &mut script);
            signal::rebuild(&thread.signals, &mut script);
            rseq::rebuild(&thread.rseq, &mut script);
            sched::rebuild(&thread.sched, &site.now.sched, &mut script);
            site.begin(task, script).at(Step::Rebuild)?;
            if i == 0 && !self.threads.is_empty() {
                // The others share what it sets.
                site.land(task).at(Step::Rebuild)?;
            }
        }
        Ok(())
    }

    /// Gives the leader those of its labels that cannot wait; threads that are born later inherit them.
    fn label_leader(&mut self, which: fn(&Set) -> bool) -> Result<()> {
        let Some(leader) = self.alive.threads.first() else { return Ok(()) };
        let mut sets = self.site.labels.of_thread(leader, &self.has).at(Step::Confine)?;
        sets.retain(which);
        label(self.site, self.task, &sets, self.free())?;
        label::remember(&mut self.has, sets);
        Ok(())
    }

    /// Threads that are there already do not inherit what their leader is given: those of their labels that cannot wait they take themselves.
    fn label_early(&self, tasks: &Tasks, domains: &Domains) -> Result<()> {
        for thread in self.alive.threads.iter().filter(|thread| domains.is_made(self.pid, thread.tid.0)) {
            let Some(task) = tasks.get(&thread.tid.0) else { continue };
            let mut sets = self.site.labels.of_thread(thread, &self.has).at(Step::Confine)?;
            sets.retain(Set::wants_door);
            label(self.site, task, &sets, self.free())?;
        }
        Ok(())
    }

    /// Whether it was born in its user namespace.
    fn is_inside(&self) -> bool {
        self.site.levels.users(self.pid).is_some()
    }

    fn free(&self) -> i32 {
        label::free_number(self.alive.descriptors.iter().map(|d| d.number.0))
    }

    fn each(&self) -> impl Iterator<Item = (&Task, &Thread)> {
        std::iter::once(self.task).chain(&self.threads).zip(&self.alive.threads)
    }

    /// Settings that are files of /proc.
    fn proc_files(&self) -> std::result::Result<(), Cause> {
        let attributes = &self.alive.attributes;
        let filter = format!("{:#x}", attributes.coredump_filter);
        set(self.site, self.task, "coredump_filter", &filter)?;
        set(self.site, self.task, "oom_score_adj", &attributes.oom_score_adj.to_string())
    }

    /// Limits; signals that came while it was made go. Timers are made, and run from now on.
    fn limit(&self, notes: &mut Vec<String>) -> Result<()> {
        let (site, alive) = (self.site, self.alive);
        for (task, _) in self.each() {
            // Limits are the whole process's, and could hinder what its other threads do still.
            site.land(task).at(Step::Rebuild)?;
        }
        let mut script = Script::new();
        let lowered = rlimit::rebuild(&alive.limits, &site.now.limits, &mut script);
        if !lowered.is_empty() {
            notes.push(format!("process {}: hard limits {lowered:?} are lower here than they were", self.pid));
        }
        // Signals of our own making (children that died) must not be seen.
        for _ in 0..64 {
            script.call_wanting(Nr::RT_SIGTIMEDWAIT, args![bytes([0xffu8; 8]), 0, bytes([0u8; 16]), 8], Want::Anything);
        }
        posix_timer::rebuild(&alive.posix_timers, |tid| site.levels.own(tid), &mut script);
        site.begin(self.task, script).at(Step::Rebuild)
    }

    /// Pending signals, credentials: what comes last. Then timers are armed.
    fn confine(&self) -> Result<()> {
        let (site, alive) = (self.site, self.alive);
        site.land(self.task).at(Step::Rebuild)?;
        self.expire_timers().at(Step::Rebuild)?;
        for (i, (task, thread)) in self.each().enumerate() {
            let mut script = Script::new();
            let [pid, tid] = [self.pid, thread.tid.0].map(|id| site.levels.own(id));
            thread.signals.pending.rebuild(pid, Some(tid), &mut script).at(Step::Rebuild)?;
            if i == 0 {
                alive.pending.rebuild(pid, None, &mut script).at(Step::Rebuild)?;
            }
            let users = site.places.users(thread).at(Step::Confine)?;
            let mut credentials = site.confine.credentials(&thread.credentials, users.is_some())?;
            if self.installs(i) {
                credentials = filter::able(&credentials);
            }
            let sets = site.labels.of_thread(thread, &self.has).at(Step::Confine)?;
            let (first, sets): (Vec<Set>, Vec<Set>) = sets.into_iter().partition(Set::wants_capabilities);
            label(site, task, &first, self.free())?;
            if self.is_inside() {
                credential::inside(&credentials, &mut script);
            } else {
                credential::rebuild_in(&credentials, &site.now.credentials, users, &mut script);
            }
            if !sets.is_empty() {
                site.run(task, &script).at(Step::Confine)?;
                script = Script::new();
                label(site, task, &sets, self.free())?;
            }
            credential::lock(&credentials, &mut script);
            let process = (i == 0).then_some(&alive.attributes);
            attribute::after_credentials(process, &thread.attributes, &mut script);
            if i + 1 == alive.threads.len() && i > 0 {
                // The last thread's change of credentials may have changed what the leader set.
                attribute::after_credentials(Some(&alive.attributes), &thread.attributes, &mut script);
            }
            site.begin(task, script).at(Step::Confine)?;
            if !self.threads.is_empty() {
                // Each changes what belongs to all.
                site.land(task).at(Step::Confine)?;
            }
        }
        let mut script = Script::new();
        lock::rebuild(&alive.locks, &mut script);
        control::last(&alive.controls, &alive.memory.areas, &mut script);
        future::rebuild(alive.future, &mut script);
        vma::seal(&alive.memory.areas, &mut script);
        owner::own_files(site, self.pid, &mut script).at(Step::Confine)?;
        posix_timer::arm(&alive.posix_timers, &mut script);
        itimer::rebuild(&alive.itimers, &mut script);
        notification::rebuild(&alive.notifications, &mut script);
        site.begin(self.task, script).at(Step::Confine)
    }

    /// Timers that had expired do so again.
    fn expire_timers(&self) -> std::result::Result<(), Cause> {
        let timers = &self.alive.posix_timers;
        if timers.timers.is_empty() {
            return Ok(());
        }
        let now = self.site.run(self.task, &posix_timer::clocks(timers))?;
        for (thread, script) in posix_timer::expire(timers, &now) {
            let own = |(_, t): &(&Task, &Thread)| Some(t.tid.0) == thread;
            let task = self.each().find(own).map_or(self.task, |(task, _)| task);
            self.site.run(task, &script)?;
        }
        Ok(())
    }

    /// Asks its threads to stop, once they have done all.
    fn interrupt(&self) -> Result<()> {
        for (task, _) in self.each() {
            self.site.land(task).at(Step::Confine).map_err(|e| locked(self.site, self.alive, e))?;
            ptrace::interrupt(task.tid).at(Step::Thaw)?;
        }
        Ok(())
    }

    /// Waits until they have stopped; they make calls through the vdso from now on.
    fn stand_still(&self) -> Result<Calls> {
        for (task, thread) in self.each() {
            let stopped = Stopped::wait(task.tid).map_err(stop_cause).at(Step::Thaw)?;
            self.use_tiles(&stopped, task, thread).at(Step::Thaw)?;
            self.load_flags(&stopped, task, thread).at(Step::Thaw)?;
        }
        Calls::new(self.task.tid, self.alive).at(Step::Thaw)
    }

    /// Without scratch memory: filters, then registers and masks.
    fn finish(&self, calls: &Calls, living: &mut Vec<Ready>) -> Result<()> {
        self.filters(calls).at(Step::Confine)?;
        for (task, thread) in self.each() {
            regs::rebuild(task.tid, &thread.regs).at(Step::Thaw)?;
            ptrace::set_sigmask(task.tid, thread.signals.mask).at(Step::Thaw)?;
            let restricted = thread.restricted.clone();
            living.push(Ready { tid: task.tid, pid: self.task.tid, inside: thread.tid.0, restricted });
        }
        Ok(())
    }

    /// The kernel has room for a thread's tiles only once it has used some.
    fn use_tiles(&self, stopped: &Stopped, task: &Task, thread: &Thread) -> std::result::Result<(), Cause> {
        if regs::has_tiles(&thread.regs) {
            stopped.set_regs(&self.site.arena.tiles_regs(&stopped.regs()?, task.slot))?;
            stopped.step_syscall().map_err(|e| match e {
                // SIGILL: where the processor has none, the permission was refused before.
                StopError::Sys(e) if e.errno == yendor_sys::Errno::INTR => {
                    Cause::corrupt("tiles that its process may not use")
                }
                e => stop_cause(e),
            })?;
        }
        Ok(())
    }

    /// The thread loads the flag that cannot be set from outside.
    fn load_flags(&self, stopped: &Stopped, task: &Task, thread: &Thread) -> std::result::Result<(), Cause> {
        let now = stopped.regs()?;
        if let Some(flags) = regs::flags_to_load(&thread.regs, now.eflags)? {
            stopped.set_regs(&self.site.arena.flags_regs(&now, task.slot, flags))?;
            stopped.step_syscall().map_err(stop_cause)?;
        }
        Ok(())
    }

    /// Brings the process into its job-control stop before any of its own code runs. A parent that knew of the stop is
    /// told of it now, by a wait of ours, and not again.
    fn stop(&self, stop: Stop, parent: Option<&Task>) -> std::result::Result<(), Cause> {
        const SIGSTOP: i32 = 19;
        let signal = if stop.known { SIGSTOP } else { stop.signal };
        let named = rustix::process::Signal::from_named_raw(signal)
            .ok_or_else(|| Cause::corrupt(format!("stopped by signal {signal}")))?;
        let pid = rustix::process::Pid::from_raw(self.task.tid);
        pid.map_or(Ok(()), |p| rustix::process::kill_process(p, named)).named("kill", || format!("{named:?}"))?;
        for (task, _) in self.each() {
            ptrace::cont(task.tid, 0)?;
        }
        for (task, _) in self.each() {
            loop {
                let Some((_, what)) = wait::wait(Some(task.tid), true)? else { continue };
                match what {
                    Event::Stopped { event: ptrace::event::STOP, .. } => break,
                    Event::Stopped { signal, event: 0 } => ptrace::cont(task.tid, signal)?,
                    Event::Stopped { .. } | Event::Continued => ptrace::cont(task.tid, 0)?,
                    event => return Err(yendor_task::Dead { tid: task.tid, event }.into()),
                }
            }
        }
        if let Some(parent) = parent.filter(|_| stop.known) {
            const P_PID: u32 = 1;
            const WNOHANG_WSTOPPED: u32 = 1 | 2;
            let mut script = Script::new();
            let own = self.site.levels.seen(self.parent, self.pid);
            script.call(Nr::WAITID, args![P_PID, own, 0, WNOHANG_WSTOPPED, 0]);
            self.site.run(parent, &script)?;
        }
        Ok(())
    }

    /// The filters of each thread: the container's, then its own.
    fn chains(&self) -> Vec<Chain<'_>> {
        let policy = self.site.confine.filter();
        let table = &self.site.snapshot.restrictions.filters;
        self.alive.threads.iter().map(|t| Chain::new(policy, &t.restricted.filters, table)).collect()
    }

    /// Whether thread number `index` will install a filter.
    fn installs(&self, index: usize) -> bool {
        let chains = self.chains();
        let shared = filter::shared(&chains);
        let own = chains.get(index).map_or(0, Chain::len);
        own > shared || index == 0 && shared > 0
    }

    /// Installs all filters: those of all threads by the leader for everybody, the rest each for itself.
    fn filters(&self, calls: &Calls) -> std::result::Result<(), Cause> {
        let (site, chains) = (self.site, self.chains());
        let shared = filter::shared(&chains);
        for (i, (chain, (task, thread))) in chains.iter().zip(self.each()).enumerate() {
            chain.check(&thread.restricted.filters)?;
            let own = if i == 0 { None } else { Some(Calls::new(task.tid, self.alive)?) };
            let calls = own.as_ref().unwrap_or(calls);
            if i == 0 {
                chain.install(0..shared, true, calls, site.confine.cookie)?;
            }
            chain.install(shared..chain.len(), false, calls, site.confine.cookie)?;
            if self.installs(i) {
                calls.give_up(&site.confine.clamped(&thread.credentials), chain)?;
            }
        }
        Ok(())
    }
}
