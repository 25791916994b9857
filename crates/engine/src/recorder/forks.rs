//! Processes whose memory is on its way are not copied before it is there: the kernel tells nobody but the host's root of a copy
//! whose memory misses what its origin's does (`UFFD_FEATURE_EVENT_FORK`; docs/adr/0018).

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use yendor_policy::seccomp::bpf::op;
use yendor_policy::seccomp::{ARCH, Instruction, action, to_bytes};
use yendor_sys::kcmp::{What, compare};
use yendor_sys::seccomp::{Answer, Notice};
use yendor_sys::{Errno, vm};

use super::call::Call;
use super::{Reply, X32};

const CLONE_VM: u32 = 0x100;

const CLONE: u32 = 56;
const FORK: u32 = 57;
const CLONE3: u32 = 435;
/// Of i386; clone3 is the same.
const FORK_386: u32 = 2;
const CLONE_386: u32 = 120;

/// Whether a call that came to the listener is one of these.
pub(super) fn is_fork(nr: u32) -> bool {
    [CLONE, FORK, CLONE3, FORK_386, CLONE_386].contains(&(nr & !X32))
}

/// Whether it makes a thread, or another task with the same memory. A program whose other thread changes what clone3 is told after that
/// deceives itself. `memory` opens the caller's: read so, a page that is still to come is an error, which counts as a copy, and nobody
/// waits for whoever brings it.
pub(super) fn shares_memory(notice: &Notice, memory: impl FnOnce() -> Option<File>) -> bool {
    let [first, ..] = notice.args;
    let flags = match notice.nr & !X32 {
        CLONE3 => {
            let mut word = [0; 8];
            let read = memory().is_some_and(|memory| memory.read_exact_at(&mut word, first).is_ok());
            if read { u64::from_ne_bytes(word) } else { 0 }
        }
        CLONE | CLONE_386 => first,
        _ => 0,
    };
    flags & u64::from(CLONE_VM) != 0
}

/// What comes before the rest of the filter. A copy that shares the memory (vfork, threads by clone) is none; what clone3 makes is in
/// memory, where a filter does not look.
pub(super) fn filter(cookie: u64) -> Vec<u8> {
    let i = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let half = |v: u64| u32::try_from(v & 0xffff_ffff).unwrap_or(0);
    to_bytes(&[
        i(op::LD_ABS, 0, 0, 4),
        i(op::JEQ, 0, 8, ARCH),
        i(op::LD_ABS, 0, 0, 0),
        i(op::AND, 0, 0, !X32),
        i(op::JEQ, 9, 0, CLONE3),
        i(op::JEQ, 8, 0, FORK),
        i(op::JEQ, 0, 13, CLONE),
        i(op::LD_ABS, 0, 0, 16),
        i(op::AND, 0, 0, CLONE_VM),
        i(op::JEQ, 4, 10, 0),
        // 10: i386.
        i(op::LD_ABS, 0, 0, 0),
        i(op::JEQ, 6, 0, FORK_386),
        i(op::JEQ, 5, 0, CLONE_386),
        i(op::JEQ, 4, 6, CLONE3),
        // 14: ours?
        i(op::LD_ABS, 0, 0, 56),
        i(op::JEQ, 0, 2, half(cookie)),
        i(op::LD_ABS, 0, 0, 60),
        i(op::JEQ, 1, 0, half(cookie >> 32)),
        i(op::RET, 0, 0, action::USER_NOTIF),
        i(op::RET, 0, 0, action::ALLOW),
    ])
}

/// Who must wait, and who does.
#[derive(Debug, Default)]
pub struct Forks {
    filling: BTreeSet<i32>,
    waiting: Vec<(i32, Arc<OwnedFd>, Notice)>,
}

impl Forks {
    /// Memory of these processes is on its way.
    pub fn filling(&mut self, pids: impl Iterator<Item = i32>) {
        self.filling = pids.collect();
    }

    /// Whether memory of any is.
    pub(super) fn any(&self) -> bool {
        !self.filling.is_empty()
    }

    /// The process whose memory is to be there before this one is copied: itself, or one that it shares its memory with (vfork(2), clone(2)
    /// with `CLONE_VM`). Where that cannot be told, it is.
    pub(super) fn origin(&self, pid: i32) -> Option<i32> {
        let other_memory = |other: &&i32| compare(pid, **other, What::Vm).is_ok_and(Ordering::is_ne);
        self.filling.get(&pid).or_else(|| self.filling.iter().find(|other| !other_memory(other))).copied()
    }

    /// Reads what a call was told. Not so: what becomes of the call. Memory that is on its way is not waited for here: with whoever
    /// brings it the container could not be ended any more.
    pub(super) fn look(&self, call: &Call<'_>, pid: i32, address: u64, bytes: &mut [u8]) -> Result<(), Reply> {
        // The kernel will say so itself.
        let wrong = Reply::Say(Answer::Continue);
        let missing = |e: std::io::Error| e.raw_os_error() == Some(Errno::IO.raw_os_error());
        let read = if self.any() {
            let memory = call.memory().ok_or(Reply::Say(Answer::Continue))?;
            memory
                .read_exact_at(bytes, address)
                .map_err(|e| if missing(e) { self.origin(pid).map_or(wrong, Reply::Wait) } else { wrong })
        } else {
            vm::read_exact(call.notice.tid, address, bytes).map_err(|_| wrong)
        };
        if call.is_over() { Err(Reply::Gone) } else { read }
    }

    pub(super) fn wait(&mut self, pid: i32, listener: Arc<OwnedFd>, notice: Notice) {
        self.waiting.push((pid, listener, notice));
    }

    /// Processes of which somebody waits for a copy.
    pub fn wanted(&self) -> impl Iterator<Item = i32> {
        self.waiting.iter().map(|(pid, ..)| *pid)
    }

    /// All memory of a process is there: the calls that waited for that.
    pub(super) fn filled(&mut self, pid: i32) -> Vec<(Arc<OwnedFd>, Notice)> {
        self.filling.remove(&pid);
        let (ready, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(whose, ..)| *whose == pid);
        self.waiting = waiting;
        let ready: Vec<(i32, Arc<OwnedFd>, Notice)> = ready;
        ready.into_iter().map(|(_, listener, notice)| (listener, notice)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_policy::seccomp::{Call, program, verdict};

    #[test]
    fn exactly_what_copies_memory_is_told_of_and_the_rest_is_as_without() {
        const I386: u32 = 0x4000_0003;
        let cookie = 0x1234_5678_9abc_def0;
        let [with, without] = [true, false].map(|forks| program(&super::super::filter(cookie, forks)).unwrap());
        let ask = |filter: &[_], arch, nr, first: u64, sixth: u64| {
            let args = [Some(first), None, None, None, None, Some(sixth)];
            verdict([filter], &Call { nr, arch, ip: None, args }).unwrap()
        };
        for (arch, bit) in [(ARCH, 0), (ARCH, X32), (I386, 0)] {
            for call in 0..600 {
                for first in [0, 17, 22, 0x100, 0x3d_0f00] {
                    let nr = call | bit;
                    let copies = match arch {
                        I386 => [2, 120, 435].contains(&call),
                        _ => [57, 435].contains(&call) || call == 56 && first & 0x100 == 0,
                    };
                    let wanted = if copies { action::USER_NOTIF } else { ask(&without, arch, nr, first, 0) };
                    assert_eq!(ask(&with, arch, nr, first, 0), wanted, "{arch:x} {nr:x} {first:x}");
                    assert!(!copies || is_fork(nr));
                    if arch == ARCH {
                        assert_eq!(ask(&with, arch, nr, first, cookie), ask(&without, arch, nr, first, cookie));
                    }
                }
            }
        }
        assert_eq!(ask(&with, ARCH, 57, 0, cookie & 0xffff_ffff), action::USER_NOTIF);
        assert_eq!(ask(&with, ARCH, 57, 0, cookie >> 32 << 32), action::USER_NOTIF);
    }
}
