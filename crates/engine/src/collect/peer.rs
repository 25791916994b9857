//! Landlock domains that nobody recorded, of a tree that Yendor did not start, and of a container without a recorder.
//!
//! No file shows which domain a task is in. But a task may only look at processes of its own domain and of those inside it
//! (landlock(7)): so each task asks for the robust list of a process that is in no domain but ours, and whose credentials
//! would let it look. Where it may, there is nothing to lose. In a container that process is pid 1, which is in the domain
//! of the container's policy and in no other; nobody of ours is let in there to be looked at.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use yendor_kinds::process::{Inquiry, Question};
use yendor_kinds::{Cause, Result};
use yendor_proc::status::{self, Status};
use yendor_sys::SysError;
use yendor_task::script::out;
use yendor_task::tree::read_proc;
use yendor_task::{Nr, args};

/// The first argument of Yendor as somebody to look at.
pub const PEER: &str = "yendor-peer";

/// The kind, as `--allow-lost` calls it.
pub const KIND: &str = "landlock";

/// A look at somebody, or why there is nobody to look at.
pub type Look = std::result::Result<Question, SysError>;

/// Processes to look at.
pub struct Peers {
    /// We ourselves, where everybody with our ids may look at us.
    own: Option<(i32, Status)>,
    /// Others, by user and group.
    others: RefCell<BTreeMap<(u32, u32), Child>>,
    /// Of a container: how many pid namespaces are around its own.
    around: Option<usize>,
    allowed: bool,
}

impl Peers {
    /// For a tree that Yendor did not start; none where the kernel has no Landlock. `allowed`: whether domains may be lost.
    ///
    /// # Errors
    /// What /proc says.
    pub fn new(proc: &OwnedFd, allowed: bool) -> Result<Option<Peers>> {
        if yendor_sys::landlock::abi() == 0 {
            return Ok(None);
        }
        let id = rustix::process::getpid().as_raw_nonzero().get();
        let status = status::parse(&read_proc(proc.as_fd(), &format!("{id}/status"))?)?;
        let open = rustix::process::dumpable_behavior().is_ok_and(|d| d == DumpableBehavior::Dumpable);
        Ok(Some(Peers { own: open.then_some((id, status)), others: RefCell::default(), around: None, allowed }))
    }

    /// For a container in which nobody recorded: its pid 1. `around`: how many pid namespaces are around its own.
    pub fn first(around: usize, allowed: bool) -> Option<Peers> {
        let landlock = yendor_sys::landlock::abi() != 0;
        landlock.then(|| Peers { own: None, others: RefCell::default(), around: Some(around), allowed })
    }

    /// Has a thread look.
    pub fn ask(&self, task: &Status, inquiry: &mut Inquiry) -> Look {
        // Its numbers are not ours.
        if task.ns_pid.as_ref().is_some_and(|ids| ids.len() > self.around.unwrap_or(0) + 1) {
            let what = "it is in a pid namespace of its own";
            return Err(SysError::new("get_robust_list", what, yendor_sys::Errno::SRCH));
        }
        let peer = match &self.own {
            _ if self.around.is_some() => Ok(1),
            Some((id, own)) if may_look(task, own) => Ok(*id),
            _ => self.other((task.uid[0], task.gid[0])),
        };
        peer.map(|id| inquiry.ask(Nr::GET_ROBUST_LIST, args![id, out(8), out(8)]))
    }

    fn other(&self, ids: (u32, u32)) -> std::result::Result<i32, SysError> {
        let mut others = self.others.borrow_mut();
        let child = match others.remove(&ids) {
            Some(child) => child,
            None => start(ids).map_err(|e| SysError::io("execve", PEER, &e))?,
        };
        let id = i32::try_from(child.id()).unwrap_or(i32::MAX);
        others.insert(ids, child);
        Ok(id)
    }

    /// What may be lost with a thread that could not look.
    ///
    /// # Errors
    /// `Unsupported`, unless the caller has allowed it.
    pub fn judge(&self, inquiry: &Inquiry, look: &Look, tid: i32) -> Result<Option<String>> {
        let looked = look.as_ref().map_err(ToString::to_string);
        let looked = looked.and_then(|asked| inquiry.value(*asked).map_err(|e| e.to_string()));
        let Err(why) = looked else { return Ok(None) };
        let object = format!("the Landlock domain that task {tid} may be in ({why})");
        if self.allowed { Ok(Some(object)) } else { Err(Cause::would_be_lost(KIND, &object)) }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for child in self.others.get_mut().values_mut() {
            // Its input ends, and so does it.
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// Whether a task's credentials let it look at us: see `__ptrace_may_access`.
fn may_look(task: &Status, own: &Status) -> bool {
    let same = |theirs: [u32; 4], ours: [u32; 4]| ours[..3].iter().all(|id| *id == theirs[0]);
    let everything = CapabilitySet::SYS_PTRACE.bits() & task.cap_eff != 0;
    everything || same(task.uid, own.uid) && same(task.gid, own.gid) && own.cap_prm & !task.cap_prm == 0
}

/// Somebody with these ids and no capability.
fn start((uid, gid): (u32, u32)) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(PEER).env_clear().current_dir("/").uid(uid).gid(gid);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // Until it has given up what it could do.
    let ready = child.stdout.take().map(|mut said| said.read_exact(&mut [0]));
    if ready.is_some_and(|r| r.is_ok()) {
        return Ok(child);
    }
    drop(child.stdin.take());
    child.wait()?;
    Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
}

/// The life of somebody to look at: it waits until its input ends.
pub fn main() -> std::process::ExitCode {
    use std::io::Write as _;
    let none = CapabilitySet::empty();
    let given_up = set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none });
    let told = given_up.map_err(std::io::Error::from).and_then(|()| {
        std::io::stdout().write_all(b"r")?;
        std::io::stdout().flush()
    });
    if told.is_err() {
        return std::process::ExitCode::FAILURE;
    }
    // Nobody writes: this is for its end.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    std::process::ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pid: u32) -> Status {
        status::parse(&std::fs::read(format!("/proc/{pid}/status")).expect("a process")).expect("its status")
    }

    #[test]
    fn credentials() {
        let me = status(std::process::id());
        let with = |uid, caps| Status { uid: [uid; 4], gid: [uid; 4], cap_prm: caps, cap_eff: caps, ..me.clone() };
        let all = u64::MAX;
        assert!(may_look(&with(7, 0), &with(7, 0)));
        assert!(may_look(&with(7, 2), &with(7, 2)));
        assert!(!may_look(&with(7, 0), &with(7, 2)));
        assert!(!may_look(&with(7, 0), &with(8, 0)));
        assert!(may_look(&with(7, all), &with(0, all)));
        let set_user_id = Status { uid: [7, 0, 0, 0], ..with(7, 0) };
        assert!(!may_look(&with(7, 0), &set_user_id));
        assert!(may_look(&set_user_id, &with(7, 0)));
    }
}
