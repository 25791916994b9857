//! Copies of processes whose tasks shall run on at once: their memory is read while they do.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, openat};
use yendor_kinds::Result;
use yendor_proc::status::{self, Status};
use yendor_proc::{meminfo, stat};
use yendor_sys::SysError;
use yendor_task::live::twin::{self, Twin};
use yendor_task::tree::read_proc;

use super::Facts;

/// KiB of anonymous memory from which on a process is copied by fork: what is smaller is read as fast.
const LEAST: u64 = 8 * 1024;

/// Whether it would help.
pub fn pays(facts: &Facts) -> bool {
    size(facts) >= LEAST
}

/// KiB that a copy takes at most: when the process writes all of its memory meanwhile.
pub fn size(facts: &Facts) -> u64 {
    facts.status.rss_anon.unwrap_or(0)
}

/// KiB that copies may take: what the machine has to spare, but for a reserve, and what the caller allows (bytes).
///
/// # Errors
/// What /proc says.
pub fn room(proc: &OwnedFd, most: Option<u64>) -> Result<u64> {
    let available = meminfo::parse(&read_proc(proc.as_fd(), "meminfo")?)?.available;
    let spare = available - available / 8;
    Ok(most.map_or(spare, |most| spare.min(most / 1024)))
}

/// A copy that a checkpoint which was killed has left unburied: no program ends like this.
pub fn is_left_over(facts: &Facts) -> bool {
    let ours = facts.status.name == twin::NAME || facts.stat.exit_code == twin::ENDED;
    facts.status.state == b'Z' && facts.stat.exit_signal == 0 && ours
}

/// Whether what a process bears is born in the namespaces that it is in itself: another's first child, a copy above all, would
/// change it by its end.
pub fn bears_its_like(proc: &OwnedFd, pid: i32) -> bool {
    let inode = |name: &str| rustix::fs::statat(proc, format!("{pid}/ns/{name}"), AtFlags::empty()).map(|s| s.st_ino);
    let same = |own: &str, child: &str| matches!((inode(own), inode(child)), (Ok(a), Ok(b)) if a == b);
    // A kernel without time namespaces has neither file.
    same("pid", "pid_for_children") && (inode("time").is_err() || same("time", "time_for_children"))
}

/// Why a large process is not copied: its memory is read while it stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Memory.
    #[error("its copy might take more memory than copies may")]
    Room,
    /// A seccomp filter.
    #[error("its seccomp filter may forbid what a copy takes")]
    Filter,
    /// Whoever kills the copy where memory runs short may kill the process with it.
    #[error("where memory runs short its cgroup is killed as one (memory.oom.group), or may be")]
    Group,
    /// fork(2).
    #[error("it may not fork: a limit of tasks or of memory, or its children are born in another pid namespace")]
    Refused,
    /// What it has inherited is looked for in memory that is there now.
    #[error("it shares memory with a parent that has no copy")]
    Parent,
}

/// All copies of a tree. When they are dropped, and the tree runs again, nothing of them is left in it.
#[derive(Debug)]
pub struct Twins {
    proc: OwnedFd,
    /// KiB that there still may be.
    room: u64,
    all: Vec<Copied>,
    /// Large processes that have none, by their id inside.
    without: Vec<(i32, Why)>,
    /// Large processes that need none.
    spared: BTreeSet<i32>,
}

/// A copy, and whose it is.
#[derive(Debug)]
struct Copied {
    /// The process, and when it started.
    owner: (i32, u64),
    /// The mode and number of its seccomp filters, which allow what it takes to bury the copy.
    filters: (Option<u32>, Option<u32>),
    /// The copy's id, and as its owner knows it.
    ids: (i32, i32),
    /// Itself, until it has ended.
    twin: Option<Twin>,
}

impl Copied {
    fn new(owner: &Facts, ids: (i32, i32), twin: Option<Twin>) -> Copied {
        let Status { seccomp, seccomp_filters, .. } = owner.status;
        Copied { owner: (owner.pid, owner.stat.starttime), filters: (seccomp, seccomp_filters), ids, twin }
    }

    /// Whether its owner is who it was and may do what it might, and the copy is a zombie of its.
    fn can_be_buried(&self, proc: BorrowedFd<'_>) -> bool {
        let stat = |pid: i32| stat::parse(&read_proc(proc, &format!("{pid}/stat")).ok()?).ok();
        let status = |pid: i32| status::parse(&read_proc(proc, &format!("{pid}/status")).ok()?).ok();
        let (pid, started) = self.owner;
        stat(pid).is_some_and(|s| s.starttime == started)
            && status(pid).is_some_and(|s| (s.seccomp, s.seccomp_filters) == self.filters)
            && stat(self.ids.0).is_some_and(|s| s.state == b'Z' && s.ppid == pid)
    }
}

impl Twins {
    /// None yet, and at most so many bytes.
    ///
    /// # Errors
    /// What /proc says; a limit of descriptors.
    pub fn new(proc: &OwnedFd, most: Option<u64>) -> Result<Twins> {
        let room = room(proc, most)?;
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        Ok(Twins { proc, room, all: Vec::new(), without: Vec::new(), spared: BTreeSet::new() })
    }

    /// A process needs no copy: most of its memory is in the image.
    pub fn spare(&mut self, pid: i32) {
        self.spared.insert(pid);
    }

    /// Whether a process needs a copy, if it is large.
    pub fn spares(&self, pid: i32) -> bool {
        self.spared.contains(&pid)
    }

    /// KiB that there still may be.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// A large process has none, for this reason.
    pub fn without(&mut self, inside: i32, why: Why) {
        self.without.push((inside, why));
    }

    /// Large processes that have none, and why.
    #[must_use]
    pub fn missing(&self) -> &[(i32, Why)] {
        &self.without
    }

    /// What the tree itself may still take, in KiB.
    pub fn limit(&mut self, most: u64) {
        self.room = self.room.min(most);
    }

    /// Whether one has been killed: where memory ran short, or by somebody.
    pub fn is_short(&self) -> bool {
        self.all.iter().filter_map(|copied| copied.twin.as_ref()).any(Twin::has_ended)
    }

    /// One that is left over of a process is buried with the others.
    pub fn found(&mut self, left_over: &Facts, owner: &Facts) {
        self.all.push(Copied::new(owner, (left_over.pid, left_over.innermost()), None));
    }

    /// What is left over of a process that may not be asked to bury it stays.
    pub fn leave(&mut self, pid: i32) {
        self.all.retain(|copied| copied.owner.0 != pid || copied.twin.is_some());
    }

    /// Keeps the copy of a process.
    pub fn add(&mut self, owner: &Facts, twin: Twin) {
        self.room = self.room.saturating_sub(size(owner));
        // Where memory runs short, it goes first. If that cannot be, it is as likely to go as its owner.
        let path = format!("{}/oom_score_adj", twin.tid());
        if let Ok(fd) = openat(&self.proc, path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            let _ = rustix::io::write(&fd, b"1000");
        }
        self.all.push(Copied::new(owner, (twin.tid(), twin.inside()), Some(twin)));
    }

    /// The copy of a process, as the tracer sees it.
    pub fn of(&self, pid: i32) -> Option<i32> {
        self.all.iter().find(|copied| copied.owner.0 == pid && copied.twin.is_some()).map(|copied| copied.ids.0)
    }

    /// A copy has been read: its memory is free again.
    pub fn end(&mut self, tid: i32) {
        for copied in self.all.iter_mut().filter(|copied| copied.ids.0 == tid) {
            drop(copied.twin.take());
        }
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        let proc = self.proc.as_fd();
        for mut copied in self.all.drain(..) {
            drop(copied.twin.take());
            // Who cannot be asked now (it does not stop, another tracer has it) keeps a zombie that it does not see.
            let _ = twin::bury(proc, copied.owner.0, copied.ids.1, || copied.can_be_buried(proc));
        }
    }
}
