//! rebuild: the processes of an image are made again inside a new container.
//!
//! Everything here runs in the keeper. Tasks are stubs (copies of the keeper that execute nothing of it): pid 1 first, which
//! drops the keeper's memory; the others are cloned from it by script, stopped from birth. Then each process gets its
//! memory, its descriptors, its threads, its credentials, all by script; at last its registers. It runs at thaw, when all
//! are ready.

mod begin;
mod birth;
mod contexts;
mod death;
mod descriptor;
mod domain;
mod filter;
mod inherited;
mod init;
mod late;
mod later;
mod levels;
mod memory;
mod mounts;
mod nested;
mod owner;
pub mod plan;
mod process;
mod program;
mod running;
pub mod vdso;
mod words;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use yendor_image::{FileId, Reader, ShmId};
use yendor_kinds::file::{Entry, Record, Workshop};
use yendor_kinds::memory::vma::Backing;
use yendor_kinds::process::{self as processes, Alive, Restricted, State, control, credential, rlimit, sched};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_sys::mapping::{Mapping, Placed};
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError, ptrace};
use yendor_task::arena::PAGE;
use yendor_task::{Arena, Script};

pub use self::death::is_status;
use self::domain::Domains;
use self::inherited::{finish, hole, lift, make_files, make_objects, open_pages, own_places};
pub use self::later::Later;
use self::levels::Levels;
use self::memory::Memories;
use self::mounts::Promised;
pub use self::process::Ready;
pub use self::running::Running;
use crate::ark::Ark;
use crate::collect::namespace::Again;
use crate::confine::Confine;
use crate::contain::{Cgroup, Contained};
use crate::error::{At, Result, Step, With};
use crate::label::{Labels, Set};
use crate::load::Hashing;
use crate::nested::Nested;
use crate::request::{Enforce, Request};

/// Bytes of a task's slot.
const SLOT: usize = 64 * 1024;
/// Room behind the arena where the vdso waits.
const PARKING: u64 = 256 * 1024;

/// What the keeper hands to rebuild.
pub struct Materials<'a> {
    /// What to build.
    pub snapshot: &'a Snapshot,
    /// The image; none for a container that is composed.
    pub image: Option<Image<'a>>,
    /// What the caller wants: the container's policy.
    pub request: &'a Request,
    /// The labels of tasks.
    pub labels: &'a mut Labels,
    /// The makers of files.
    pub workshop: Workshop<'a>,
    /// /proc of the pid namespace that the keeper lives in.
    pub proc: OwnedFd,
    /// The container, which gets its first task here.
    pub contained: Contained,
    /// Namespaces inside it.
    pub nested: &'a Nested,
}

/// An image that processes are rebuilt from.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    /// Its files.
    pub reader: &'a Reader,
    /// Who compares some of them with their digests.
    pub hashing: Option<&'a Hashing>,
    /// Memory of processes that several containers share.
    pub ark: Option<&'a Ark>,
    /// Memory of processes that comes later.
    pub later: Option<&'a Later>,
}

/// A stub that became, or becomes, a task of the image.
#[derive(Debug, Clone)]
struct Task {
    /// As the tracer sees it.
    tid: i32,
    /// Its slot.
    slot: usize,
}

/// What all steps need.
struct Site<'a> {
    arena: Arena,
    /// Scripts that tasks still execute, by slot, and how many of their calls have been started.
    flying: RefCell<BTreeMap<usize, (Script, usize)>>,
    proc: OwnedFd,
    snapshot: &'a Snapshot,
    /// Its files and its processes that are alive, by id.
    entries: BTreeMap<FileId, &'a Entry>,
    alive: BTreeMap<i32, &'a Alive>,
    /// Descriptor numbers, the same in the keeper and in every stub, of each file.
    files: BTreeMap<FileId, i32>,
    /// Numbers in the keeper of those files that exist only since all tasks are born.
    late: late::Files,
    /// Of namespaces.
    places: nested::Places,
    /// The ids of tasks in pid namespaces inside the container's.
    levels: &'a Levels,
    /// How many pid namespaces are around the container's, as far as the keeper's /proc tells.
    around: usize,
    /// The number of what sets the container's next id; -1 where nobody needs it.
    last_pid: i32,
    /// And of each shared object.
    objects: BTreeMap<ShmId, i32>,
    /// And of each pages file.
    pages: BTreeMap<u16, i32>,
    /// And of memory that is shared instead.
    ark: Option<(&'a Ark, i32)>,
    /// Memory that comes later.
    later: Option<&'a Later>,
    /// The image, if there is one.
    reader: Option<&'a Reader>,
    /// Where the vdso waits: kind of area and address.
    parked: Vec<(Backing, u64, u64)>,
    /// What a stub has of each: not set again.
    now: Now,
    /// The container's policy.
    confine: Confine<'a>,
    /// The labels of tasks.
    labels: &'a Labels,
    /// A program of no one's, for pid 1.
    nobody: i32,
    /// Keeps the descriptors open until the tasks have theirs.
    held: Vec<OwnedFd>,
}

/// What a stub inherits from the keeper.
struct Now {
    credentials: credential::Record,
    sched: sched::Record,
    controls: control::Thread,
    limits: rlimit::Record,
}

/// All tasks, ready to run, stopped. Dropping it kills them: a restore is all or nothing.
pub struct Rebuilt {
    /// Pid 1, as the keeper sees it.
    pub init: i32,
    /// The root task, as the keeper sees it.
    pub main: i32,
    /// The memory that pid 1 reports in.
    pub arena: Arena,
    /// Every thread but pid 1.
    threads: Vec<i32>,
    /// Warnings: what could not be had in full.
    pub notes: Vec<String>,
    /// Its limits.
    cgroup: Option<Cgroup>,
    /// The mounts that its root had made.
    pub again: Again,
    /// Where tasks' own restrictions will be told, if that can be had.
    pub listener: Option<OwnedFd>,
    /// All threads, where some have restrictions already.
    pub restricted: Vec<Ready>,
    done: bool,
}

impl Drop for Rebuilt {
    fn drop(&mut self) {
        if !self.done {
            kill(self.init);
        }
    }
}

/// Kills pid 1 of the new namespace, and with it everything in there.
fn kill(init: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(init) {
        // Our own child and not reaped yet: the number is still its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        // The others are our tracees: pid 1 cannot go before we have taken notice of their ends.
        while let Ok(Some((pid, what))) = yendor_sys::wait::wait(None, true) {
            let ended = matches!(what, Event::Exited(_) | Event::Killed(_));
            if ended && pid == init {
                break;
            }
        }
    }
}

/// Takes notice of a tracee's end, which its own parent hears of only then.
fn notice(tid: i32) -> std::result::Result<(), SysError> {
    loop {
        match yendor_sys::wait::wait(Some(tid), true) {
            // A thread that an execve of another has ended leaves nothing to wait for.
            Err(e) if e.errno == Errno::CHILD => return Ok(()),
            Ok(Some((_, Event::Exited(_) | Event::Killed(_)))) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(e),
        }
    }
}

/// How many pid namespaces are around that of pid 1, as far as this /proc tells.
fn around(proc: &OwnedFd, init: i32) -> std::result::Result<usize, Cause> {
    let text = yendor_task::tree::read_proc(proc.as_fd(), &format!("{init}/status"))?;
    let ids = yendor_proc::status::parse(&text)?.ns_pid;
    Ok(ids.map_or(0, |ids| ids.len().saturating_sub(1)))
}

/// What is said of those whose parent is another thread than it was.
pub const ASTRAY: &str = "which thread of its parent bore it, whose end its PR_SET_PDEATHSIG is about";

/// Whether a process gets a label that it can only take while it has one thread.
fn is_alone(process: &Alive, labels: &Labels) -> std::result::Result<bool, Cause> {
    let Some(leader) = process.threads.first() else { return Ok(false) };
    Ok(labels.of_thread(leader, &labels.now())?.iter().any(Set::wants_one_thread))
}

/// Builds everything; nothing runs yet.
///
/// # Errors
/// The first thing that could not be made; everything made so far is gone.
pub fn rebuild(materials: Materials<'_>) -> Result<Rebuilt> {
    let Materials { snapshot, image, request, labels, mut workshop, proc, mut contained, nested } = materials;
    let reader = image.map(|i| i.reader);
    let mut plan = plan::plan(&snapshot.processes, &snapshot.namespaces).at(Step::Load)?;
    let living: BTreeMap<i32, &Alive> = snapshot.processes.iter().filter_map(alive).collect();
    let alone = |pid| living.get(&pid).map_or(Ok(false), |process| is_alone(process, labels));
    plan.by_first(alone).at(Step::Confine)?;
    if request.policy.enforce == Enforce::Early && snapshot.files.iter().any(|entry| entry.network.is_some()) {
        let what = "--enforce early for an image with sockets in a net namespace inside";
        return Err(Cause::unsupported(what)).at(Step::Confine);
    }
    workshop.networks = nested.networks(snapshot, proc.as_fd()).at(Step::Rebuild).kind("namespace", "nested")?;
    let root = snapshot.root().ok_or_else(|| Cause::corrupt("no processes")).at(Step::Load)?.pid.0;
    let above = snapshot.highest_descriptor() + 1;
    let mut held = Vec::new();
    let confine = Confine::prepare(request, &snapshot.restrictions.domains, |fd| lift(fd, above, &mut held))?;
    labels.lift(|fd| lift(fd, above, &mut held)).at(Step::Confine)?;
    let labels: &Labels = labels;
    let mut making = None;
    // Sockets tell who made them, so they are made by processes with the right pids, which takes a pid 1. Those would
    // escape the policy that is tried on the keeper.
    let sockets_later = request.policy.enforce == Enforce::Late;
    let later = |e: &Entry| {
        e.record.is_late() || mounts::is_promised(e) || sockets_later && matches!(e.record, Record::Unix(_))
    };
    let entered = match request.policy.enforce {
        Enforce::Early => {
            workshop.judge();
            labels.of_files(&snapshot.processes)?
        }
        Enforce::Late => Vec::new(),
    };
    let files = confine.early(request, &snapshot.files, &own_places(reader, &proc)?, || {
        labels.enter(&entered)?;
        let files = make_files(&mut workshop, labels, snapshot, above, &mut held, &mut making, &|e| !later(e))?;
        if !sockets_later {
            finish(&mut workshop, labels)?;
        }
        Ok(files)
    });
    let speakers = || entered.iter().map(|set| labels.speaker(set)).collect();
    let mut files =
        files.map_err(|e| confine.blame(e, speakers(), || making.is_some_and(|id| workshop.fd(id).is_ok())))?;
    let objects = make_objects(snapshot, reader, above, &mut held)?;
    let pages = open_pages(image, snapshot, above, &mut held)?;
    let ark = image.and_then(|image| image.ark);
    let ark = ark.map(|ark| Ok::<_, crate::Error>((ark, lift(ark.descriptor(), above, &mut held).at(Step::Rebuild)?)));
    let ark = ark.transpose()?;
    let later = image.and_then(|image| image.later);
    later.map_or(Ok(()), |later| later.lift(above, &mut held))?;
    let helpers = plan.births.iter().filter(|b| b.begins.is_some_and(|begins| begins.helper.is_some())).count();
    let slots = 1 + plan.births.len() + helpers + snapshot.threads();
    let len = Arena::size(slots, SLOT).next_multiple_of(PAGE);
    let base = hole(snapshot, len as u64 + PARKING).at(Step::Rebuild)?;
    let memory = Mapping::anonymous(len).at(Step::Rebuild)?;
    let placed = Placed::new(memory.as_fd(), base, PAGE as u64, len as u64).at(Step::Rebuild)?;
    let arena = Arena::new(memory, base, SLOT, 0);
    let now = Now::read(&proc)?;
    contained.begin()?;
    let late = late::Files::before(snapshot, request, above, &mut held).at(Step::Rebuild)?;
    let promised = Promised::new(snapshot, request, (&proc, above), &mut held).at(Step::Rebuild)?;
    files.extend(promised.files());
    let places = nested::Places::new(snapshot, (&nested.0, &promised), &proc, above, &mut held)
        .at(Step::Rebuild)
        .kind("namespace", "nested")?;
    let last_pid = match helpers {
        0 => -1,
        _ => {
            let path = "sys/kernel/ns_last_pid";
            let fd = rustix::fs::openat(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            let fd = fd.named("openat", || format!("/proc/{path}")).at(Step::Rebuild)?;
            lift(&fd, above, &mut held).at(Step::Rebuild)?
        }
    };
    let nobody = lift(init::program(&proc).at(Step::Rebuild)?, above, &mut held).at(Step::Rebuild)?;
    let init = yendor_sys::clone::stub(0).at(Step::Rebuild)?;
    let around = around(&proc, init).inspect_err(|_| kill(init)).at(Step::Rebuild)?;
    drop(placed);
    let mut site = Site {
        arena,
        flying: RefCell::default(),
        proc,
        snapshot,
        entries: snapshot.files.iter().map(|e| (e.id, e)).collect(),
        alive: living,
        files,
        late,
        places,
        levels: &plan.levels,
        around,
        last_pid,
        objects,
        pages,
        ark,
        later,
        reader,
        parked: Vec::new(),
        now,
        confine,
        labels,
        nobody,
        held,
    };
    let mut notes: Vec<String> = site.confine.lowered(&snapshot.processes).into_iter().collect();
    notes.extend(plan.strays().iter().map(|pid| format!("process {pid}: {ASTRAY}")));
    let built = (|| {
        // Before it has any child: all of them are born into the limits.
        contained.cgroup.iter().try_for_each(|cgroup| cgroup.adopt(init))?;
        contained.finish()?;
        let init = init::start(&mut site, init)?;
        let listener = init::record(&site, &init, &mut notes)?;
        if listener.is_none() {
            // Nobody would hear of copies.
            later.into_iter().for_each(Later::forgo);
        }
        site.confine.allow()?;
        site.confine.everybody(|script| site.run(&init, script).map(drop))?;
        let mounts = promised.keep(&mut site, (&init, nested), image, (&mut workshop, labels), above)?;
        if sockets_later {
            workshop.maker = yendor_kinds::file::unix::Maker::Impersonator;
            let unix = |e: &Entry| matches!(e.record, Record::Unix(_));
            let made = make_files(&mut workshop, labels, snapshot, above, &mut site.held, &mut making, &unix)?;
            site.late.add(made);
            finish(&mut workshop, labels)?;
        }
        let mut memories = Memories::default();
        let mut domains = Domains::default();
        let tasks = birth::all(&site, &plan, &mut memories, &mut domains, &init)?;
        mounts::finish(&site, &tasks, &mounts)?;
        site.late
            .make(&mut workshop, (&tasks, &plan.levels), &mut site.held)
            .at(Step::Rebuild)
            .kind("file", "files that need processes")?;
        let ready = process::all(&site, &plan, &tasks, &mut memories, &mut domains, &init, &mut notes)?;
        workshop.seal().at(Step::Rebuild)?;
        Ok((ready, listener))
    })();
    let (ready, listener) = match built {
        Ok(built) => built,
        Err(e) => {
            kill(init);
            return Err(e);
        }
    };
    let main = ready.iter().find(|t| t.inside == root).map_or(init, |t| t.tid);
    let threads = ready.iter().map(|t| t.tid).collect();
    // All or none: that one has none, when another has, is to be known as well.
    let any = ready.iter().any(|t| t.restricted != Restricted::default());
    let restricted = if any { ready } else { Vec::new() };
    let (cgroup, arena, again) = (contained.cgroup.take(), site.arena, std::mem::take(&mut contained.again));
    let rebuilt = Rebuilt { init, main, arena, threads, notes, cgroup, again, listener, restricted, done: false };
    init::become_init(&rebuilt, root).at(Step::Rebuild)?;
    Ok(rebuilt)
}

impl Rebuilt {
    /// Where its limits are.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.cgroup.as_ref().map(Cgroup::paths).unwrap_or_default()
    }

    /// thaw: every task runs, at once or not at all.
    ///
    /// # Errors
    /// A task died meanwhile; all others die with it.
    pub fn thaw(mut self) -> Result<Running> {
        let memory = self.arena.memory();
        let same = memory.as_fd().try_clone_to_owned().map_err(|e| SysError::io("dup", "", &e)).at(Step::Thaw)?;
        let memory = Mapping::of(same, memory.len()).at(Step::Thaw)?;
        // Pid 1 first: it must be there to reap.
        ptrace::detach(self.init, 0).at(Step::Thaw)?;
        let mut ended = Vec::new();
        for (already, tid) in self.threads.iter().enumerate() {
            match ptrace::detach(*tid, 0) {
                // Those that run already may end this one.
                Err(e) if e.errno == Errno::SRCH && already > 0 => ended.push(*tid),
                other => other.at(Step::Thaw)?,
            }
        }
        // A leader's end is told when all its threads have gone, which come after it.
        ended.iter().rev().try_for_each(|tid| notice(*tid)).at(Step::Thaw)?;
        self.done = true;
        Ok(Running {
            init: self.init,
            main: self.main,
            memory,
            notes: std::mem::take(&mut self.notes),
            cgroup: self.cgroup.take(),
        })
    }
}

impl Site<'_> {
    fn run(&self, task: &Task, script: &Script) -> std::result::Result<Vec<yendor_task::script::Done>, Cause> {
        self.land(task)?;
        Ok(self.arena.run(task.slot, task.tid, script)?)
    }

    /// Starts a script whose answers nobody needs: others can be given theirs meanwhile. Whether its calls did what they
    /// must is known when the task is asked for something again.
    fn begin(&self, task: &Task, script: Script) -> std::result::Result<(), Cause> {
        self.land(task)?;
        let started = self.arena.start(task.slot, &script.calls)?;
        self.flying.borrow_mut().insert(task.slot, (script, started));
        Ok(())
    }

    /// Waits for the script that was begun, if there is one.
    fn land(&self, task: &Task) -> std::result::Result<(), Cause> {
        let flying = self.flying.borrow_mut().remove(&task.slot);
        let Some((script, started)) = flying else { return Ok(()) };
        self.arena.complete(task.slot, task.tid, &script, started)?;
        Ok(())
    }
}

impl Now {
    fn read(proc: &OwnedFd) -> Result<Now> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let read = |name: &str| yendor_task::tree::read_proc(proc.as_fd(), &format!("{me}/{name}"));
        let status = yendor_proc::status::parse(&read("status").at(Step::Rebuild)?).at(Step::Rebuild)?;
        let limits = yendor_proc::limits::parse(&read("limits").at(Step::Rebuild)?).at(Step::Rebuild)?;
        Ok(Now {
            credentials: credential::Record {
                uids: status.uid,
                gids: status.gid,
                groups: status.groups,
                capabilities: [status.cap_inh, status.cap_prm, status.cap_eff, status.cap_bnd, status.cap_amb],
                securebits: 0,
                no_new_privs: status.no_new_privs,
            },
            // Filled in by pid 1's own answers.
            sched: sched::Record::default(),
            controls: control::Thread::default(),
            limits: rlimit::collect(&limits),
        })
    }
}

fn alive(process: &processes::Record) -> Option<(i32, &Alive)> {
    if let State::Alive(alive) = &process.state { Some((process.pid.0, alive)) } else { None }
}
