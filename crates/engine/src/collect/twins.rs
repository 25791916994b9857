//! Copies of processes whose tasks shall run on at once: their memory is read while they do.

use std::os::fd::{AsFd, OwnedFd};

use yendor_kinds::Result;
use yendor_proc::status;
use yendor_sys::SysError;
use yendor_task::live::twin::{self, Twin};
use yendor_task::tree::read_proc;

use super::Facts;

/// KiB of anonymous memory from which on a process is copied by fork: what is smaller is read as fast.
const LEAST: u64 = 8 * 1024;

/// Whether it would help.
pub fn pays(facts: &Facts) -> bool {
    facts.status.rss_anon.unwrap_or(0) >= LEAST
}

/// A copy that a checkpoint which was killed has left unburied.
pub fn is_left_over(facts: &Facts) -> bool {
    facts.status.state == b'Z' && facts.status.name == twin::NAME
}

/// All copies of a tree. When they are dropped, and the tree runs again, nothing of them is left in it.
#[derive(Debug)]
pub struct Twins {
    proc: OwnedFd,
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
    /// None yet.
    ///
    /// # Errors
    /// A limit of descriptors.
    pub fn new(proc: &OwnedFd) -> Result<Twins> {
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        Ok(Twins { proc, all: Vec::new() })
    }

    /// One that is left over is buried with the others.
    pub fn found(&mut self, facts: &Facts) {
        self.all.push((Owner { pid: facts.status.ppid, twin: facts.inside().0 }, None));
    }

    /// Keeps the copy of a process.
    ///
    /// # Errors
    /// What /proc says.
    pub fn add(&mut self, pid: i32, twin: Twin) -> Result<()> {
        let tid = twin.tid();
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
