//! One process of a frozen tree.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use yendor_image::{Bytes, Tid};
use yendor_kinds::file::{Descriptor, Gather};
use yendor_kinds::process::{
    Alive, Inquiry, Question, Restricted, Stop, Terminal, Thread, attribute, credential, directory, half_at, hidden,
    itimer, label, lock, posix_timer, regs, rlimit, rseq, sched, sigaction, signal,
};
use yendor_kinds::{Cause, Named, Result, memory};
use yendor_policy::lsm::Here;
use yendor_proc::maps::{Label, Map};
use yendor_proc::smaps::Smap;
use yendor_proc::status::Status;
use yendor_proc::{personality, status, timers};
use yendor_sys::futex::RobustList;
use yendor_sys::ptrace;
use yendor_task::live::{self, Borrowed, Region, RegionKind};
use yendor_task::regs::Regs;
use yendor_task::script::out;
use yendor_task::tree::read_proc;
use yendor_task::{Nr, Stopped, args};

use super::ahead::Texts;
use super::descriptor::Doubts;
use super::watch::Watch;
use super::{Facts, Memory};

/// A process that is being collected.
pub struct Collecting<'a, 'g, 'w> {
    /// /proc.
    pub proc: &'a OwnedFd,
    /// What is known of it.
    pub facts: &'a Facts,
    /// What /proc says of it.
    pub texts: Texts,
    /// Its stopped threads, leader first.
    pub threads: &'a [Stopped],
    /// What was collected of files.
    pub gather: &'a mut Gather<'g>,
    /// Its parent, if that is collected already.
    pub parent: Option<(i32, &'a memory::Record)>,
    /// Of a session leader, its terminal.
    pub terminal: Option<Terminal>,
    /// Its stopped children, by their id inside.
    pub stopped_children: Vec<i32>,
    /// Stopped processes whose parent has not waited for the stop yet, by their id inside.
    pub unknown_stops: &'a mut BTreeSet<i32>,
    /// The security modules of this machine.
    pub modules: &'a Here,
    /// What tasks have forbidden themselves.
    pub watch: &'a Watch,
    /// What was collected of memory.
    pub memory: &'a mut Memory<'w>,
}

/// Questions to a thread.
struct AskedThread {
    inquiry: Inquiry,
    stack: Question,
    tid_address: Question,
    sched: sched::Asked,
    securebits: Question,
    attributes: Question,
    hidden: hidden::Asked,
}

/// Questions to the leader about the process.
struct AskedProcess {
    actions: Vec<(u32, Question)>,
    itimers: [Question; 3],
    timers: Vec<posix_timer::Asked>,
    attributes: attribute::AskedProcess,
    brk: Question,
    doubts: Doubts,
    stops: Vec<(i32, Question)>,
}

/// What a process told while it was borrowed.
struct Told {
    /// The registers that each thread had.
    registers: Vec<Regs>,
    /// The timers whose signals wait, and their overruns.
    waiting: Vec<(i32, u64)>,
}

impl AskedThread {
    fn new() -> AskedThread {
        let mut inquiry = Inquiry::default();
        let stack = signal::ask(&mut inquiry);
        let tid_address = rseq::ask(&mut inquiry);
        let sched = sched::ask(&mut inquiry);
        let securebits = credential::ask(&mut inquiry);
        let attributes = attribute::ask_thread(&mut inquiry);
        let hidden = hidden::ask(&mut inquiry);
        AskedThread { inquiry, stack, tid_address, sched, securebits, attributes, hidden }
    }
}

impl Collecting<'_, '_, '_> {
    /// Its job-control stop. Whether the parent knows of it the parent has said before (pid 1 never asks).
    fn stopped(&self) -> Option<Stop> {
        let signal = self.threads.first()?.group_stop()?;
        Some(Stop { signal, known: !self.unknown_stops.contains(&self.facts.inside().0) })
    }

    fn file(&self, name: &str) -> Result<Vec<u8>> {
        Ok(read_proc(self.proc.as_fd(), &format!("{}/{name}", self.facts.pid))?)
    }

    /// Collects everything but its descriptors, which are `held`, and its file locks.
    ///
    /// # Errors
    /// What cannot be captured.
    pub fn collect(
        &mut self,
        mut held: Vec<Descriptor>,
        locks: Vec<lock::Record>,
        robust: &mut RobustList,
    ) -> Result<Alive> {
        let statuses = self.statuses()?;
        let restricted = self.restricted(&statuses)?;
        let pid = self.facts.pid;
        let timers = std::mem::take(&mut self.texts.timers);
        let mut asked: Vec<AskedThread> = self.threads.iter().map(|_| AskedThread::new()).collect();
        let leader = asked.first_mut().ok_or_else(|| Cause::unsupported("a process without threads"))?;
        let inquiry = &mut leader.inquiry;
        let about = AskedProcess {
            actions: sigaction::ask(inquiry),
            itimers: itimer::ask(inquiry),
            timers: posix_timer::ask(inquiry, &timers),
            attributes: attribute::ask_process(inquiry),
            brk: inquiry.ask(Nr::BRK, args![0]),
            doubts: Doubts::ask(&held, self.gather, inquiry)?,
            stops: self.stopped_children.iter().map(|c| (*c, ask_stop(inquiry, *c))).collect(),
        };
        for (asked, restricted) in asked.iter().zip(&restricted) {
            self.watch.permits(restricted, &asked.inquiry.script().calls)?;
        }
        let smaps = std::mem::take(&mut self.texts.smaps);
        let mut shared_pending = signal::Queue::collect(pid, true)?;
        let queues = self.threads.iter().map(|t| signal::Queue::collect(t.tid(), false)).collect::<Result<Vec<_>>>()?;
        let regions = regions(&smaps);
        let Told { registers, waiting } =
            self.ask_tasks(&regions, &mut asked, &timers, &about.timers, (&shared_pending, &queues), robust)?;
        let pending_for_all = shared_pending.mask();
        shared_pending.without_timers(&waiting);
        let mut threads = Vec::with_capacity(self.threads.len());
        let known = statuses.iter().zip(restricted);
        for (((stopped, asked), regs), known) in self.threads.iter().zip(&asked).zip(&registers).zip(known) {
            let mut thread = self.thread(stopped, asked, regs, pending_for_all, known)?;
            thread.signals.pending.without_timers(&waiting);
            threads.push(thread);
        }
        let leader = &asked[0].inquiry;
        about.doubts.settle(&mut held, leader)?;
        for (child, question) in &about.stops {
            // si_pid, where anything was to be told.
            if half_at(leader.bytes(*question)?, 16) != 0 {
                self.unknown_stops.insert(*child);
            }
        }
        let inside = |tid: i32| {
            let i = self.threads.iter().position(|t| t.tid() == tid)?;
            threads.get(i).map(|t| t.tid.0)
        };
        let attributes = attribute::collect_process(
            leader,
            about.attributes,
            u32::from_str_radix(&self.texts.coredump_filter, 16).unwrap_or(0),
            self.texts.oom_score_adj.parse().unwrap_or(0),
        )?;
        let exe = self.executable()?;
        let auxv = std::mem::take(&mut self.texts.auxv);
        let layout = memory::layout::collect(&self.facts.stat, leader.value(about.brk)?, auxv, exe);
        Ok(Alive {
            actions: sigaction::collect(leader, &about.actions)?,
            itimers: itimer::collect(leader, about.itimers)?,
            posix_timers: posix_timer::collect(leader, &timers, &about.timers, &waiting, inside)?,
            limits: rlimit::collect(&self.texts.limits),
            directory: self.directory()?,
            memory: self.memory.collect(self.proc, pid, layout, &smaps, self.parent, self.gather)?,
            stopped: self.stopped(),
            pending: shared_pending,
            terminal: self.terminal,
            descriptors: held,
            locks,
            attributes,
            threads,
        })
    }

    /// Borrows the process, has every thread answer, gives it back. `queued`: the signal queues of the process and
    /// of its threads.
    fn ask_tasks(
        &self,
        regions: &[Region],
        asked: &mut [AskedThread],
        timers: &[timers::Timer],
        about: &[posix_timer::Asked],
        queued: (&signal::Queue, &[signal::Queue]),
        robust: &mut RobustList,
    ) -> Result<Told> {
        let mut pointers = Vec::with_capacity(self.threads.len());
        for t in self.threads {
            pointers.push(t.regs()?.rsp);
        }
        let entry = live::find_entry(self.facts.pid, regions, &pointers)?;
        let size = Borrowed::size(self.threads.len()) as u64;
        let base = hole(regions, size).ok_or_else(|| Cause::unsupported("no free address range"))?;
        let mut borrowed = Borrowed::new(self.facts.pid, self.threads, entry, base, robust)?;
        let mut failed = None;
        for (i, a) in asked.iter_mut().enumerate() {
            match borrowed.run(i, a.inquiry.script()) {
                Ok(done) => a.inquiry.answered(done),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        let waiting = match (&failed, asked.first()) {
            (None, Some(leader)) => count_overruns(&mut borrowed, &leader.inquiry, timers, about, queued),
            _ => Ok(Vec::new()),
        };
        let registers = (0..asked.len()).filter_map(|i| borrowed.regs(i).copied()).collect();
        borrowed.give_back(robust)?;
        match failed {
            Some(e) => Err(e.into()),
            None => Ok(Told { registers, waiting: waiting? }),
        }
    }

    fn thread(
        &self,
        stopped: &Stopped,
        asked: &AskedThread,
        general: &Regs,
        shared_pending: u64,
        (status, restricted): (&Status, Restricted),
    ) -> Result<Thread> {
        let (pid, tid) = (self.facts.pid, stopped.tid());
        if ptrace::user_dispatch(tid)?.mode != 0 {
            return Err(Cause::unsupported(format!("task {tid} uses syscall user dispatch")));
        }
        let AskedThread { inquiry, stack, tid_address, sched, securebits, attributes, hidden } = asked;
        hidden::check(inquiry, *hidden, tid)?;
        let signals = signal::collect(tid, ptrace::sigmask(tid)?, inquiry, *stack)?;
        let pending = (signals.pending.mask() | shared_pending) & !signals.mask != 0;
        let comm = self.file(&format!("task/{tid}/comm"))?;
        let name = Bytes(comm.strip_suffix(b"\n").unwrap_or(&comm).to_vec());
        let personality = personality::parse(&read_proc(self.proc.as_fd(), &format!("{pid}/task/{tid}/personality"))?)?;
        let domain = |tid| self.modules.tomoyo_domain(tid);
        let labels = label::collect(self.proc, (pid, tid), &self.modules.modules(), domain)?;
        Ok(Thread {
            restricted,
            labels,
            tid: Tid(status.ns_pid.as_ref().and_then(|n| n.last().copied()).unwrap_or(tid)),
            regs: regs::collect(stopped, general, pending)?,
            signals,
            rseq: rseq::collect(tid, inquiry, *tid_address)?,
            sched: sched::collect(inquiry, *sched)?,
            credentials: credential::collect(status, inquiry, *securebits)?,
            attributes: attribute::collect_thread(inquiry, *attributes, name, personality)?,
        })
    }

    /// The /proc/PID/task/TID/status of each thread.
    fn statuses(&self) -> Result<Vec<Status>> {
        let of = |tid| match tid {
            tid if tid == self.facts.pid => Ok(self.facts.status.clone()),
            tid => Ok(status::parse(&self.file(&format!("task/{tid}/status"))?)?),
        };
        self.threads.iter().map(|t| of(t.tid())).collect()
    }

    /// What each thread has forbidden itself.
    fn restricted(&self, statuses: &[Status]) -> Result<Vec<Restricted>> {
        self.threads.iter().zip(statuses).map(|(t, status)| self.watch.of(t.tid(), status, self.proc)).collect()
    }

    fn link(&self, name: &str) -> Result<Vec<u8>> {
        let path = format!("{}/{name}", self.facts.pid);
        let target =
            rustix::fs::readlinkat(self.proc, path.as_str(), Vec::new()).named("readlinkat", || path.clone())?;
        Ok(target.into_bytes())
    }

    fn directory(&self) -> Result<directory::Record> {
        use rustix::fs::{AtFlags, statat};
        let path = format!("{}/root", self.facts.pid);
        let own = statat(self.proc, path.as_str(), AtFlags::empty()).named("statat", || path.clone())?;
        let tree = rustix::fs::fstat(&self.gather.root).named("fstat", || "the tree's root".into())?;
        let chrooted = (own.st_dev, own.st_ino) != (tree.st_dev, tree.st_ino);
        let cwd = self.link("cwd")?;
        let gone = cwd.strip_suffix(b" (deleted)");
        Ok(directory::Record {
            cwd_deleted: gone.is_some(),
            cwd: Bytes(gone.unwrap_or(&cwd).to_vec()),
            root: if chrooted { Some(Bytes(self.link("root")?)) } else { None },
            umask: self.facts.status.umask.unwrap_or(0o022),
        })
    }

    fn executable(&mut self) -> Result<Option<yendor_image::FileId>> {
        use rustix::fs::{Mode, OFlags, openat};
        let path = format!("{}/exe", self.facts.pid);
        match openat(self.proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => self.memory.mapped_file(fd, false, self.gather).map(Some),
            Err(e) => Err(yendor_sys::SysError::new("openat", format!("/proc/{path}"), e).into()),
        }
    }
}

/// The timers whose signals wait, and how often each has expired since: see [`posix_timer`].
fn count_overruns(
    borrowed: &mut Borrowed<'_>,
    leader: &Inquiry,
    timers: &[timers::Timer],
    asked: &[posix_timer::Asked],
    (shared, own): (&signal::Queue, &[signal::Queue]),
) -> Result<Vec<(i32, u64)>> {
    let mut out = Vec::new();
    for waiting in posix_timer::Waiting::find(timers, leader, asked, shared, own) {
        let index = waiting.thread.unwrap_or(0);
        let mut overruns = 0;
        let looked = borrowed.run(index, &waiting.look())?;
        if let Some(script) = waiting.take(&looked) {
            let taken = borrowed.run(index, &script)?;
            let (n, script) = waiting.put_back(&looked, &taken);
            overruns = n;
            borrowed.run(index, &script)?;
        }
        out.push((waiting.id, overruns));
    }
    Ok(out)
}

/// Asks whether a stopped child would still be reported, without taking the report.
fn ask_stop(inquiry: &mut Inquiry, child: i32) -> Question {
    const P_PID: u32 = 1;
    const WNOHANG_WSTOPPED_WNOWAIT: u32 = 1 | 2 | 0x0100_0000;
    inquiry.ask(Nr::WAITID, args![P_PID, child, out(128), WNOHANG_WSTOPPED_WNOWAIT, 0])
}

/// What the borrowing of a process has to know of its memory.
fn regions(smaps: &[Smap]) -> Vec<Region> {
    let region = |map: &Map| Region {
        start: map.start,
        end: map.end,
        exec: map.perms.exec,
        what: match map.label() {
            Label::Stack => RegionKind::Stack,
            Label::Vdso => RegionKind::Vdso,
            Label::Vvar | Label::VvarVclock | Label::Vsyscall => RegionKind::Special,
            _ => RegionKind::Other,
        },
    };
    smaps.iter().map(|s| region(&s.map)).collect()
}

/// A free address range of `size` bytes, far from where programs and the kernel map things.
pub fn hole(regions: &[live::Region], size: u64) -> Option<u64> {
    const FIRST: u64 = 0x5959_0000_0000;
    const LAST: u64 = 0x7000_0000_0000;
    let mut at = FIRST;
    loop {
        match regions.iter().find(|r| r.start < at + size && at < r.end) {
            None => return Some(at),
            Some(r) => at = r.end.next_multiple_of(1 << 21),
        }
        if at + size > LAST {
            return None;
        }
    }
}
