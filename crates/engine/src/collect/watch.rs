//! What the tasks of a container have forbidden themselves, from its record, or of a tree from the kernel; and whether their
//! filters let a checkpoint make its calls in them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use yendor_image::Bytes;
use yendor_kinds::process::landlock::{Layer, Rule};
use yendor_kinds::process::seccomp::Filter;
use yendor_kinds::process::{Record, Restricted, State};
use yendor_kinds::snapshot;
use yendor_kinds::{Cause, Named, Result};
use yendor_policy::seccomp::{self, Instruction};
use yendor_proc::stat;
use yendor_proc::status::{self, Status};
use yendor_sys::SysError;
use yendor_task::tree::{FrozenTree, read_proc};
use yendor_task::{Arg, Call, Nr};

use super::filter::Told;
use super::restriction::{Restrictions, Thread};
use super::{Facts, children};
use crate::recorder::log::{self, Line, Placed};
use crate::state;

/// Calls that a checkpoint makes in every task, beside its questions.
const ALWAYS: [Nr; 12] = [
    Nr::GETPID,
    Nr::MEMFD_CREATE,
    Nr::MMAP,
    Nr::MUNMAP,
    Nr::CLOSE,
    Nr::FUTEX,
    Nr::FUTEX_WAITV,
    Nr::RT_SIGRETURN,
    Nr::TIMER_GETOVERRUN,
    Nr::RT_SIGTIMEDWAIT,
    Nr::RT_SIGQUEUEINFO,
    Nr::RT_TGSIGQUEUEINFO,
];

/// What is known of a tree's restrictions.
#[derive(Debug, Default)]
pub struct Watch {
    /// How many filters each task has from outside and from us.
    base: u32,
    /// The container's own filter, which is among them.
    policy: Option<Vec<Instruction>>,
    /// What was recorded, until it is read with the tree in sight.
    lines: Vec<Line>,
    /// Whether somebody recorded.
    recorded: bool,
    /// What it says; none: nobody restricted itself.
    record: Option<Restrictions>,
    /// Of a tree that nobody watched: what the kernel says.
    told: Told,
    /// The container's first process.
    first: i32,
}

impl Watch {
    /// A container's.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn container(state: &state::State, directory: &Path) -> Result<Watch> {
        let policy = state.request.policy.seccomp.as_ref();
        let base = state.filters + u32::from(policy.is_some());
        let policy = policy.and_then(|p| seccomp::program(&p.program.0));
        let lines = log::read(directory)?;
        let (recorded, lines) = (lines.is_some(), lines.unwrap_or_default());
        let proc = std::fs::File::open("/proc").map_err(|e| SysError::io("open", "/proc", &e))?;
        if !lines.is_empty() && state.keeper_ahead.is_some_and(|ahead| ahead != state::ahead(proc.as_fd())) {
            let what = "what the container's programs have forbidden themselves, from a time namespace with other clocks than the one \
                        that the container was started from (they are known by when they began): take the checkpoint from there";
            return Err(Cause::unsupported(what));
        }
        Ok(Watch { base, policy, lines, recorded, record: None, first: state.main, told: Told::default() })
    }

    /// Whether Landlock domains were recorded when tasks entered them: they can be known in no other way.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// A tree's that nobody watched: the kernel is asked which filters its threads have. By its tracer.
    ///
    /// # Errors
    /// What /proc says; `Unsupported` for what cannot be known or installed again.
    pub fn tree(tree: &FrozenTree, order: &[Facts], proc: &OwnedFd) -> Result<Watch> {
        Ok(Watch { told: Told::ask(tree, order, proc)?, ..Watch::default() })
    }

    /// Reads the record with all threads of the tree in sight.
    ///
    /// # Errors
    /// What /proc says.
    pub fn look(&mut self, tree: &FrozenTree, order: &[Facts], proc: &OwnedFd) -> Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        // Not in every kernel; then all threads could have made a child.
        let made_by = children::by_thread(tree.processes.iter(), order, proc.as_fd())?;
        let mut living = Vec::new();
        for facts in order {
            for thread in tree.processes.get(&facts.pid).into_iter().flatten() {
                let tid = thread.tid();
                let status = status::parse(&read_proc(proc.as_fd(), &format!("{tid}/status"))?)?;
                let stat = stat::parse(&read_proc(proc.as_fd(), &format!("{tid}/stat"))?)?;
                living.push(Thread {
                    key: (tid, stat.starttime),
                    pid: facts.pid,
                    parent: Some(facts.status.ppid).filter(|p| tree.processes.contains_key(p)),
                    parent_thread: made_by.get(&facts.pid).copied(),
                    depth: status.seccomp_filters.unwrap_or(0).checked_sub(self.base).unwrap_or(u32::MAX),
                    first: facts.pid == self.first,
                    adopts: false,
                });
            }
        }
        let mut record = Restrictions::read(std::mem::take(&mut self.lines), self.base, living)?;
        record.settle_all();
        self.record = Some(record);
        Ok(())
    }

    /// What a thread has forbidden itself.
    ///
    /// # Errors
    /// `Unsupported` when that is not known.
    pub fn of(&self, tid: i32, status: &Status, proc: &OwnedFd) -> Result<Restricted> {
        if let Some(record) = &self.record {
            let stat = stat::parse(&read_proc(proc.as_fd(), &format!("{tid}/stat"))?)?;
            return record.of((tid, stat.starttime));
        }
        if let Some(filters) = self.told.of(tid) {
            return Ok(Restricted { filters: filters.to_vec(), ..Restricted::default() });
        }
        match status.seccomp {
            Some(1) => Err(Cause::unsupported("seccomp strict mode")),
            _ if status.seccomp_filters.unwrap_or(0) != self.base => {
                Err(Cause::unsupported("a seccomp filter that was not recorded when it was installed"))
            }
            _ => Ok(Restricted::default()),
        }
    }

    /// Whether a process adopts orphans, once it has said so.
    pub fn adopts(&mut self, pid: i32, adopts: bool) {
        if let Some(record) = &mut self.record {
            record.adopts(pid, adopts);
        }
    }

    /// Whether a thread's filters let it make these calls, and those that a checkpoint always makes. Judged before the first
    /// of them is made: a filter may kill for a call.
    ///
    /// # Errors
    /// `Unsupported`, naming the call.
    pub fn permits(&self, restricted: &Restricted, calls: &[Call]) -> Result<()> {
        let asked = calls.iter().map(|call| {
            let mut args = [Some(0); 6];
            for (known, arg) in args.iter_mut().zip(&call.args) {
                *known = if let Arg::Value(v) = arg { Some(*v) } else { None };
            }
            (call.nr, args)
        });
        self.judge(restricted, ALWAYS.iter().map(|nr| (*nr, [None; 6])).chain(asked))
    }

    /// Whether a thread's filters let it make these calls, whatever their arguments.
    pub fn may(&self, restricted: &Restricted, calls: &[Nr]) -> bool {
        self.judge(restricted, calls.iter().map(|nr| (*nr, [None; 6]))).is_ok()
    }

    fn filter(&self, number: u32) -> Option<&Filter> {
        self.record.as_ref().map_or_else(|| self.told.filter(number), |record| record.filter(number))
    }

    fn judge(&self, restricted: &Restricted, calls: impl Iterator<Item = (Nr, [Option<u64>; 6])>) -> Result<()> {
        let own =
            restricted.filters.iter().map(|number| self.filter(*number).and_then(|f| seccomp::program(&f.program.0)));
        let filters: Option<Vec<_>> = self.policy.clone().map(Some).into_iter().chain(own).collect();
        let filters = filters.ok_or_else(|| Cause::unsupported("a seccomp filter that is none"))?;
        if filters.is_empty() {
            return Ok(());
        }
        for (nr, args) in calls {
            let number = u32::try_from(nr.raw()).unwrap_or(u32::MAX);
            let call = seccomp::Call { nr: number, arch: seccomp::ARCH, ip: None, args };
            let verdict = seccomp::verdict(filters.iter().map(Vec::as_slice), &call);
            if !verdict.is_some_and(seccomp::allows) {
                let what = format!("its seccomp filter may forbid {}, which a checkpoint has it call", nr.name());
                return Err(Cause::unsupported(what));
            }
        }
        Ok(())
    }

    /// The tables that threads refer to, with their numbers in order of appearance. `root`: the tree's.
    ///
    /// # Errors
    /// `Unsupported` for a rule whose path leads to another file now.
    pub fn tables(&self, processes: &mut [Record], root: &impl AsFd) -> Result<snapshot::Restrictions> {
        let mut out = snapshot::Restrictions::default();
        let (mut filters, mut domains) = (BTreeMap::new(), BTreeMap::new());
        for process in processes {
            let State::Alive(alive) = &mut process.state else { continue };
            for thread in &mut alive.threads {
                for number in &mut thread.restricted.filters {
                    let next = u32::try_from(filters.len()).unwrap_or(u32::MAX);
                    let new = *filters.entry(*number).or_insert(next);
                    if new == next {
                        out.filters.extend(self.filter(*number).cloned());
                    }
                    *number = new;
                }
                for id in &mut thread.restricted.domains {
                    let next = u32::try_from(domains.len()).unwrap_or(u32::MAX);
                    let new = *domains.entry(*id).or_insert(next);
                    if new == next {
                        let placed = self
                            .record
                            .as_ref()
                            .and_then(|r| r.domain(*id))
                            .ok_or_else(|| Cause::corrupt("a domain without a record"))?;
                        out.domains.push(in_place(placed, root)?);
                    }
                    *id = new;
                }
            }
        }
        Ok(out)
    }
}

/// A layer whose paths lead still to the files that its rules are about.
fn in_place(placed: &Placed, root: &impl AsFd) -> Result<Layer> {
    let Placed { layer, files } = placed;
    for (rule, file) in layer.rules.iter().zip(files) {
        let Rule::Beneath { path, .. } = rule else { continue };
        if identity(path, root).ok() != Some(*file) {
            return Err(Cause::unsupported(format!("a Landlock rule for {path}, where another file is now, or none")));
        }
    }
    Ok(layer.clone())
}

/// Device and inode of a path beneath the root.
pub fn identity(path: &Bytes, root: &impl AsFd) -> Result<(u64, u64)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(root, path.0.as_slice(), flags, Mode::empty(), resolve)
        .named("openat2", || path.to_string())?;
    let stat = rustix::fs::fstat(&fd).named("fstat", || path.to_string())?;
    Ok((stat.st_dev, stat.st_ino))
}
