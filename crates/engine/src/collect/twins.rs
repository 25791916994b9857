//! Copies of processes whose tasks shall run on at once: their memory is read while they do.

use std::os::fd::{AsFd, OwnedFd};

use yendor_kinds::Result;
use yendor_proc::{meminfo, status};
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

/// A copy that a checkpoint which was killed has left unburied.
pub fn is_left_over(facts: &Facts) -> bool {
    facts.status.state == b'Z' && facts.status.name == twin::NAME
}

/// All copies of a tree. When they are dropped, and the tree runs again, nothing of them is left in it.
#[derive(Debug)]
pub struct Twins {
    proc: OwnedFd,
    /// KiB that there still may be.
    room: u64,
    all: Vec<(Owner, Option<Twin>)>,
}

/// Whose copy it is.
#[derive(Debug)]
struct Owner {
    /// The process.
    pid: i32,
    /// The copy, in the process's own pid namespace.
    twin: i32,
}

impl Twins {
    /// None yet, and at most so many bytes.
    ///
    /// # Errors
    /// A limit of descriptors.
    pub fn new(proc: &OwnedFd, most: Option<u64>) -> Result<Twins> {
        let room = room(proc, most)?;
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        Ok(Twins { proc, room, all: Vec::new() })
    }

    /// KiB that there still may be.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Whether one has been killed: where memory ran short, or by somebody.
    pub fn is_short(&self) -> bool {
        self.all.iter().filter_map(|(_, twin)| twin.as_ref()).any(Twin::has_ended)
    }

    /// One that is left over is buried with the others.
    pub fn found(&mut self, facts: &Facts) {
        self.all.push((Owner { pid: facts.status.ppid, twin: facts.inside().0 }, None));
    }

    /// Keeps the copy of a process.
    ///
    /// # Errors
    /// What /proc says.
    pub fn add(&mut self, facts: &Facts, twin: Twin) -> Result<()> {
        let (pid, tid) = (facts.pid, twin.tid());
        self.room = self.room.saturating_sub(size(facts));
        let status = read_proc(self.proc.as_fd(), &format!("{tid}/status")).and_then(|text| {
            status::parse(&text).map_err(|_| SysError::new("read", format!("{tid}/status"), yendor_sys::Errno::PROTO))
        });
        let inside = status.as_ref().ok().and_then(|s| s.ns_pid.as_ref()?.last().copied()).unwrap_or(tid);
        self.all.push((Owner { pid, twin: inside }, Some(twin)));
        status?;
        // Where memory runs short, it goes first.
        if let Err(e) = std::fs::write(
            format!("/proc/self/fd/{}/{tid}/oom_score_adj", std::os::fd::AsRawFd::as_raw_fd(&self.proc)),
            "1000",
        ) {
            return Err(SysError::io("write", format!("/proc/{tid}/oom_score_adj"), &e).into());
        }
        Ok(())
    }
}

impl Drop for Twins {
    fn drop(&mut self) {
        for (Owner { pid, twin }, copy) in self.all.drain(..) {
            drop(copy);
            // Who cannot be asked now (another tracer has it) keeps a zombie that it never sees; there is nobody to tell.
            let _ = twin::bury(self.proc.as_fd(), pid, twin);
        }
    }
}
