//! One process of a frozen tree.

mod timers;

use std::os::fd::{AsFd, OwnedFd};

use yendor_image::{Addr, Bytes, Tid};
use yendor_kinds::memory::{aio, future, policy};
use yendor_kinds::namespace::mount::Places;
use yendor_kinds::process::notification::Record as Notification;
use yendor_kinds::process::{
    Alive, Inquiry, Question, Restricted, Stop, Terminal, Thread, attribute, control, credential, directory, hidden,
    itimer, label, posix_timer, regs, rlimit, rseq, sched, sigaction, signal,
};
use yendor_kinds::{Cause, Named, Result, memory};
use yendor_policy::lsm::Here;
use yendor_proc::status::{self, Status};
use yendor_sys::futex::RobustList;
use yendor_task::live::twin;
use yendor_task::live::{Borrowed, Loan, Region, Registers};
use yendor_task::tree::read_proc;
use yendor_task::{Nr, RunError, Stopped, args};

use super::ahead::Texts;
use super::children::{self, Child, Said};
use super::descriptor::{Doubts, Held};
use super::peer::{Look, Peers};
use super::space::Space;
use super::sparse::{self, Present};
use super::twins::{self, Twins, Why};
use super::watch::Watch;
use super::{Facts, contexts, elsewhere, levels, notification, oom, scratch};

/// What all processes of a tree are looked at with.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// /proc.
    pub proc: &'a OwnedFd,
    /// The tree's root directory: device and inode.
    pub root: (u64, u64),
    /// Mount namespaces beside the container's.
    pub places: &'a Places,
    /// The security modules of this machine.
    pub modules: &'a Here,
    /// What tasks have forbidden themselves.
    pub watch: &'a Watch,
    /// The keyrings around a container.
    pub keyrings: Option<hidden::Keyrings>,
    /// Whom tasks look at that nobody watched.
    pub peers: Option<&'a Peers>,
}

/// A process that is being asked.
pub struct Asking<'a> {
    view: View<'a>,
    /// What is known of it.
    facts: &'a Facts,
    /// What /proc says of it.
    texts: Texts,
    /// Its stopped threads, leader first.
    threads: &'a [Stopped],
    held: Held,
    /// Of a session leader, its terminal.
    terminal: Option<Terminal>,
    statuses: Vec<Status>,
    restricted: Vec<Restricted>,
    /// What is known of its memory, and where the scratch memory shall be.
    scratch: (Vec<Region>, u64),
    /// The signals that wait: for the process, and for each thread.
    queued: (signal::Queue, Vec<signal::Queue>),
    asked: Vec<AskedThread>,
    about: AskedProcess,
}

/// What is left to be done for a process once it has answered.
pub struct Answered {
    /// Its address space, to be copied.
    pub space: Space,
    /// Whether it adopts orphans.
    pub adopts: bool,
    /// What is lost with it, as the caller has allowed.
    pub lost: Vec<String>,
    /// Its record, once its memory is copied.
    pub complete: Box<dyn FnOnce(memory::Record) -> Alive>,
}

/// Questions to a thread.
struct AskedThread {
    inquiry: Inquiry,
    stack: Question,
    tid_address: Question,
    sched: sched::Asked,
    securebits: Question,
    attributes: Question,
    controls: control::AskedThread,
    hidden: hidden::Asked,
    look: Option<Look>,
}

/// Questions to the leader about the process.
struct AskedProcess {
    actions: Vec<(u32, Question)>,
    itimers: [Question; 3],
    timers: Vec<posix_timer::Asked>,
    attributes: attribute::AskedProcess,
    controls: control::AskedProcess,
    brk: Question,
    future: future::Asked,
    doubts: Doubts,
    children: Vec<children::Asked>,
    policies: Vec<(Addr, Question)>,
}

/// What a process told while it was borrowed, beside its answers.
pub struct Told {
    /// The registers that each thread had.
    registers: Vec<Registers>,
    more: More,
}

/// What could only be asked when the first answers were there.
struct More {
    /// The timers whose signals wait, and their overruns.
    waiting: Vec<(i32, u64)>,
    /// The memory policies of mappings.
    policies: Vec<(Addr, policy::Record)>,
    /// Its contexts of asynchronous I/O.
    contexts: Vec<aio::Record>,
    /// What is there of its shared memory.
    present: Present,
    /// What it is notified of.
    notifications: Vec<Notification>,
}

impl AskedThread {
    fn new(view: View<'_>, status: &Status) -> AskedThread {
        let mut inquiry = Inquiry::default();
        let stack = signal::ask(&mut inquiry);
        let tid_address = rseq::ask(&mut inquiry);
        let sched = sched::ask(&mut inquiry);
        let securebits = credential::ask(&mut inquiry);
        let attributes = attribute::ask_thread(&mut inquiry);
        let controls = control::ask_thread(&mut inquiry);
        let hidden = hidden::ask(&mut inquiry, view.keyrings);
        let look = view.peers.map(|peers| peers.ask(status, &mut inquiry));
        AskedThread { inquiry, stack, tid_address, sched, securebits, attributes, controls, hidden, look }
    }
}

impl<'a> Asking<'a> {
    /// Lays out the questions. `mine`: its children that it is asked about.
    ///
    /// # Errors
    /// A process that must not be asked: its restrictions are not known, or would not let it answer.
    pub fn new(
        view: View<'a>,
        facts: &'a Facts,
        texts: Texts,
        threads: &'a [Stopped],
        (held, terminal): (Held, Option<Terminal>),
        mine: &[Child],
    ) -> Result<Asking<'a>> {
        let pid = facts.pid;
        let statuses = statuses(view.proc, facts, threads)?;
        let restricted = threads.iter().zip(&statuses).map(|(t, status)| view.watch.of(t.tid(), status, view.proc));
        let restricted = restricted.collect::<Result<Vec<_>>>()?;
        let mut asked: Vec<AskedThread> = statuses.iter().map(|status| AskedThread::new(view, status)).collect();
        let leader = asked.first_mut().ok_or_else(|| Cause::unsupported("a process without threads"))?;
        let inquiry = &mut leader.inquiry;
        let regions = scratch::regions(&texts.smaps);
        let size = Borrowed::size(threads.len()) as u64;
        let (base, page) =
            scratch::places(&regions, size).ok_or_else(|| Cause::unsupported("no free address range"))?;
        let about = AskedProcess {
            actions: sigaction::ask(inquiry),
            itimers: itimer::ask(inquiry),
            timers: posix_timer::ask(inquiry, &texts.timers),
            attributes: attribute::ask_process(inquiry),
            controls: control::ask_process(inquiry),
            brk: inquiry.ask(Nr::BRK, args![0]),
            future: future::ask(inquiry, page),
            doubts: Doubts::ask(&held, inquiry),
            children: children::ask(mine, inquiry),
            policies: policy::ask_mappings(inquiry, &texts.smaps),
        };
        for (asked, restricted) in asked.iter().zip(&restricted) {
            view.watch.permits(restricted, &asked.inquiry.script().calls)?;
        }
        contexts::permitted(view.watch, &restricted, &texts.smaps)?;
        let queues = threads.iter().map(|t| signal::Queue::collect(t.tid(), false)).collect::<Result<Vec<_>>>()?;
        let queued = (signal::Queue::collect(pid, true)?, queues);
        notification::permitted(&held.notifying, view.watch, (&restricted, &statuses), &queued)?;
        let scratch = (regions, base);
        Ok(Asking { view, facts, texts, threads, held, terminal, statuses, restricted, scratch, queued, asked, about })
    }

    /// Its job-control stop. Whether the parent knows of it the parent has said before (pid 1 never asks).
    fn stopped(&self, said: &Said) -> Option<Stop> {
        let signal = self.threads.first()?.group_stop()?;
        Some(Stop { signal, known: !said.is_unknown_stop(self.facts.inside().0) })
    }

    /// Whether its leader may make and bury a copy.
    pub fn may_fork(&self) -> bool {
        self.bears_its_like()
            && self.restricted.first().is_some_and(|restricted| self.view.watch.may(restricted, &twin::CALLS))
    }

    /// Whether what it bears lives in its own pid namespace.
    fn bears_its_like(&self) -> bool {
        self.texts.children.is_none()
    }

    /// Whether its memory is copied by fork; if not, why, unless it is so small that nobody asks.
    fn wants_twin(&self, room: &mut u64) -> std::result::Result<bool, Why> {
        if !twins::pays(self.facts) {
            return Ok(false);
        }
        let size = twins::size(self.facts);
        let left = room.checked_sub(size).ok_or(Why::Room)?;
        if !self.bears_its_like() {
            return Err(Why::Refused);
        }
        if !self.may_fork() {
            return Err(Why::Filter);
        }
        if oom::takes_others(self.view.proc.as_fd(), self.facts.pid).unwrap_or(true) {
            return Err(Why::Group);
        }
        *room = left;
        Ok(true)
    }

    fn loan(&self) -> Result<Loan<'a>> {
        let (regions, base) = &self.scratch;
        Ok(Loan::new(self.facts.pid, self.threads, regions, *base)?)
    }

    /// Makes what was told and what /proc says one record. `said`: what parents have said; it adds what it says.
    ///
    /// # Errors
    /// What cannot be captured.
    pub fn answered(mut self, told: Told, said: &mut Said) -> Result<Answered> {
        let Told { registers, more: More { waiting, policies, contexts, present, notifications } } = told;
        let (mut shared_pending, own_pending) = std::mem::take(&mut self.queued);
        let pending_for_all = shared_pending.mask();
        shared_pending.without_timers(&waiting);
        let mut threads = Vec::with_capacity(self.threads.len());
        let known = self.statuses.iter().zip(std::mem::take(&mut self.restricted));
        let nested = std::mem::take(&mut self.texts.nested);
        let known = known.zip(&self.texts.personalities).zip(nested).zip(own_pending);
        for (((stopped, asked), regs), ((known, namespaces), mut own)) in
            self.threads.iter().zip(&self.asked).zip(&registers).zip(known)
        {
            let pending = own.mask() | pending_for_all;
            own.without_timers(&waiting);
            if self.texts.mounts.is_some() && !known.0.1.domains.is_empty() {
                let what = "Landlock rules of its own in a nested mnt namespace";
                return Err(Cause::unsupported(format!("task {} has {what}", stopped.tid())));
            }
            let thread = self.thread(stopped, asked, regs, (pending, own), known)?;
            threads.push(Thread { namespaces, ..thread });
        }
        let lost = self.lost()?;
        let leader = &self.asked[0].inquiry;
        self.about.doubts.settle(&mut self.held.descriptors, leader)?;
        said.hear(&self.about.children, leader)?;
        let inside = |tid: i32| {
            let i = self.threads.iter().position(|t| t.tid() == tid)?;
            threads.get(i).map(|t| t.tid.0)
        };
        let attributes = attribute::collect_process(
            leader,
            self.about.attributes,
            u32::from_str_radix(&self.texts.coredump_filter, 16).unwrap_or(0),
            self.texts.oom_score_adj.parse().unwrap_or(0),
        )?;
        let controls = control::collect_process(leader, self.about.controls);
        let actions = sigaction::collect(leader, &self.about.actions)?;
        let itimers = itimer::collect(leader, self.about.itimers)?;
        let posix_timers = posix_timer::collect(leader, &self.texts.timers, &self.about.timers, &waiting, inside)?;
        let brk = leader.value(self.about.brk)?;
        let future = future::collect(leader, self.about.future)?;
        let limits = rlimit::collect(&self.texts.limits);
        let directory = self.directory()?;
        let stopped = self.stopped(said);
        let Asking { facts, texts: Texts { mut smaps, auxv, mounts, children, .. }, held, terminal, .. } = self;
        let adopts = attributes.subreaper;
        // In an order that a restore leaves as it is.
        threads[1..].sort_by_key(|thread| thread.tid.0);
        smaps.retain(|smap| contexts.iter().all(|context| context.area.start.0 != smap.map.start));
        let complete = Box::new(move |memory| Alive {
            actions,
            itimers,
            posix_timers,
            notifications,
            limits,
            directory,
            memory,
            contexts,
            future,
            stopped,
            pending: shared_pending,
            terminal,
            descriptors: held.descriptors,
            locks: held.locks,
            controls,
            attributes,
            threads,
            children,
        });
        let policies = policies.into_iter().collect();
        let space = Space { pid: facts.pid, brk, auxv, smaps, policies, present, twin: None, mounts };
        Ok(Answered { space, adopts, lost, complete })
    }

    /// What its threads may have that nobody knows of.
    fn lost(&self) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        for (thread, asked) in self.threads.iter().zip(&self.asked) {
            if let (Some(peers), Some(look)) = (self.view.peers, &asked.look) {
                lost.extend(peers.judge(&asked.inquiry, look, thread.tid())?);
            }
        }
        Ok(lost)
    }

    fn thread(
        &self,
        stopped: &Stopped,
        asked: &AskedThread,
        registers: &Registers,
        (pending, own_pending): (u64, signal::Queue),
        ((status, restricted), personality): ((&Status, Restricted), &u32),
    ) -> Result<Thread> {
        let (pid, tid) = (self.facts.pid, stopped.tid());
        let AskedThread { inquiry, stack, tid_address, sched, securebits, attributes, controls, hidden, look: _ } =
            asked;
        hidden::check(inquiry, *hidden, self.view.keyrings, tid)?;
        let signals = signal::collect(registers.mask, own_pending, inquiry, *stack)?;
        let pending = pending & !signals.mask != 0;
        let name = Bytes(status.name.clone());
        let domain = |tid| self.view.modules.tomoyo_domain(tid);
        let labels = label::collect(self.view.proc, (pid, tid), &self.view.modules.modules(), domain)?;
        Ok(Thread {
            restricted,
            labels,
            namespaces: Vec::new(),
            tid: Tid(levels::at(self.facts.home, status.ns_pid.as_deref(), tid).0),
            levels: levels::of_thread(self.facts.home, status.ns_pid.as_deref()),
            regs: regs::collect(tid, registers, pending)?,
            signals,
            rseq: rseq::collect(tid, &registers.rseq, inquiry, *tid_address)?,
            sched: sched::collect(inquiry, *sched)?,
            credentials: credential::collect(status, inquiry, *securebits)?,
            controls: control::collect_thread(inquiry, *controls)?,
            attributes: attribute::collect_thread(inquiry, *attributes, name, *personality)?,
        })
    }

    fn link(&self, name: &str) -> Result<Vec<u8>> {
        let path = format!("{}/{name}", self.facts.pid);
        let target =
            rustix::fs::readlinkat(self.view.proc, path.as_str(), Vec::new()).named("readlinkat", || path.clone())?;
        Ok(target.into_bytes())
    }

    fn directory(&self) -> Result<directory::Record> {
        let (places, own) = (self.view.places, self.texts.mounts);
        let chrooted = self.texts.root != places.root(own, self.view.root);
        let cwd = &self.texts.cwd;
        if !places.0.is_empty() {
            elsewhere::check(self.view.proc, self.facts.pid, (places, own), cwd)?;
        }
        let gone = cwd.strip_suffix(b" (deleted)");
        Ok(directory::Record {
            cwd_deleted: gone.is_some(),
            cwd: Bytes(gone.unwrap_or(cwd).to_vec()),
            root: if chrooted { Some(Bytes(self.link("root")?)) } else { None },
            umask: self.facts.status.umask.unwrap_or(0o022),
        })
    }
}

/// The /proc/PID/task/TID/status of each thread.
fn statuses(proc: &OwnedFd, facts: &Facts, threads: &[Stopped]) -> Result<Vec<Status>> {
    let pid = facts.pid;
    let of = |tid| match tid {
        tid if tid == pid => Ok(facts.status.clone()),
        tid => Ok(status::parse(&read_proc(proc.as_fd(), &format!("{pid}/task/{tid}/status"))?)?),
    };
    threads.iter().map(|t| of(t.tid())).collect()
}

/// What went wrong with one of several processes, and which.
type Failed = (usize, Cause);

/// Borrows processes, has every thread answer, gives them back: all side by side.
///
/// # Errors
/// What cannot be captured. The tasks are as before.
pub fn ask_all(
    all: &mut [Asking<'_>],
    twins: Option<&mut Twins>,
    sparse: &mut sparse::Asked,
    robust: &mut RobustList,
) -> std::result::Result<Vec<Told>, Failed> {
    let cause = |(i, e): (usize, RunError)| (i, Cause::from(e));
    let mut loans = Vec::with_capacity(all.len());
    for (i, asking) in all.iter().enumerate() {
        loans.push(asking.loan().map_err(|e| (i, e))?);
    }
    let mut borrowed = Borrowed::all(loans, robust).map_err(cause)?;
    let registers: Vec<Vec<_>> = borrowed.iter().map(|b| b.registers().collect()).collect();
    let answered = answers(all, &mut borrowed, sparse);
    let mut room = if answered.is_ok() { twins.as_ref().map_or(0, |twins| twins.room()) } else { 0 };
    let spared = |asking: &Asking<'_>| twins.as_ref().is_some_and(|twins| twins.spares(asking.facts.pid));
    let wants = |asking: &Asking<'_>| if spared(asking) { Ok(false) } else { asking.wants_twin(&mut room) };
    let wants: Vec<_> = all.iter().map(wants).collect();
    let wanted: Vec<bool> = wants.iter().map(|wants| *wants == Ok(true)).collect();
    let mut born = Vec::new();
    let given_back = Borrowed::give_back(borrowed, &wanted, |i, twin| born.push((i, twin)), robust).map_err(cause);
    if let Some(twins) = twins {
        for (i, wants) in wants.into_iter().enumerate() {
            let refused = wants == Ok(true) && !born.iter().any(|(of, _)| *of == i);
            let why = wants.err().or(refused.then_some(Why::Refused));
            why.into_iter().for_each(|why| twins.without(all[i].facts.inside().0, why));
        }
        born.into_iter().for_each(|(i, twin)| twins.add(all[i].facts, twin));
    }
    let mut answered = answered?;
    given_back?;
    for (i, (asking, more)) in all.iter_mut().zip(&mut answered).enumerate() {
        timers::rung(asking, more).map_err(|e| (i, e))?;
    }
    let told = answered.into_iter().zip(registers).map(|(more, registers)| Told { registers, more });
    Ok(told.collect())
}

/// Has all threads of borrowed processes answer, and asks what their answers lead to.
fn answers(
    all: &mut [Asking<'_>],
    borrowed: &mut [Borrowed<'_>],
    sparse: &mut sparse::Asked,
) -> std::result::Result<Vec<More>, Failed> {
    let mut started = Vec::new();
    let mut failed = None;
    for (i, (asking, borrowed)) in all.iter().zip(borrowed.iter_mut()).enumerate() {
        for (thread, asked) in asking.asked.iter().enumerate() {
            match borrowed.start(thread, asked.inquiry.script()) {
                Ok(n) => started.push((i, thread, n)),
                Err(e) => failed = failed.or(Some((i, e.into()))),
            }
        }
    }
    for (i, thread, n) in started {
        let inquiry = &mut all[i].asked[thread].inquiry;
        match borrowed[i].finish(thread, inquiry.script(), n) {
            Ok(done) => inquiry.answered(done),
            Err(e) => failed = failed.or(Some((i, e.into()))),
        }
    }
    if let Some(failed) = failed {
        return Err(failed);
    }
    let both = all.iter().zip(borrowed).enumerate();
    both.map(|(i, (asking, borrowed))| ask_more(borrowed, asking, sparse).map_err(|e| (i, e))).collect()
}

fn ask_more(borrowed: &mut Borrowed<'_>, asking: &Asking<'_>, sparse: &mut sparse::Asked) -> Result<More> {
    let waiting = timers::count_overruns(borrowed, asking)?;
    let places = policy::set(&asking.asked[0].inquiry, &asking.about.policies);
    let policies =
        if places.is_empty() { Vec::new() } else { policy::looked(&places, &borrowed.run(0, &policy::look(&places))?) };
    let ids = (asking.facts.pid, asking.facts.innermost());
    let contexts = contexts::look(borrowed, &asking.texts.smaps, ids)?;
    let notifications = notification::learn(borrowed, &asking.held.notifying)?;
    let memory = (asking.texts.smaps.as_slice(), asking.view.proc, asking.facts.pid);
    let present = sparse::look(borrowed, memory, (asking.view.watch, &asking.restricted), sparse)?;
    Ok(More { waiting, policies, contexts, present, notifications })
}
