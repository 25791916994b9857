//! Limits of an ipc namespace.
//! *Read from:* /proc/sys/kernel/{shmmax,shmall,shmmni,shm_rmid_forced,sem,msgmax,msgmnb,msgmni}.
//! *Made again by:* writing them; while objects are made they are as wide as those need.
//! *Lost:* nothing; the limits of POSIX message queues are settings (see `sysctl`).

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_proc::ParseError;

use super::{read, write};
use crate::Result;

/// The limits, as /proc/sys/kernel names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a segment.
    pub shmmax: u64,
    /// Pages of all segments.
    pub shmall: u64,
    /// Segments.
    pub shmmni: u32,
    /// Whether a segment goes when nobody has it attached.
    pub shm_rmid_forced: bool,
    /// Semaphores in a set, in all sets, operations in a call, sets.
    pub sem: [u32; 4],
    /// Bytes of a message.
    pub msgmax: u32,
    /// Bytes of a new queue.
    pub msgmnb: u32,
    /// Queues.
    pub msgmni: u32,
}

const FORCED: &str = "shm_rmid_forced";

fn numbers<const N: usize>(proc: BorrowedFd<'_>, name: &'static str) -> Result<[u64; N]> {
    let bad = || ParseError { file: name, line: 1, what: "limits" };
    let text = read(proc, &format!("sys/kernel/{name}"))?;
    let words = text.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    let number = |w: &[u8]| std::str::from_utf8(w).ok().and_then(|w| w.parse().ok()).ok_or_else(bad);
    let numbers: Vec<u64> = words.map(number).collect::<std::result::Result<_, _>>()?;
    Ok(numbers.try_into().map_err(|_| bad())?)
}

fn small<const N: usize>(proc: BorrowedFd<'_>, name: &'static str) -> Result<[u32; N]> {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(numbers::<N>(proc, name)?) {
        *to = u32::try_from(from).map_err(|_| ParseError { file: name, line: 1, what: "limit" })?;
    }
    Ok(out)
}

fn small_or_all(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Limits {
    pub(super) fn collect(proc: BorrowedFd<'_>) -> Result<Limits> {
        let [shmmax] = numbers(proc, "shmmax")?;
        let [shmall] = numbers(proc, "shmall")?;
        let [shmmni] = small(proc, "shmmni")?;
        let [forced] = small(proc, FORCED)?;
        let [msgmax] = small(proc, "msgmax")?;
        let [msgmnb] = small(proc, "msgmnb")?;
        let [msgmni] = small(proc, "msgmni")?;
        let sem = small(proc, "sem")?;
        Ok(Limits { shmmax, shmall, shmmni, shm_rmid_forced: forced != 0, sem, msgmax, msgmnb, msgmni })
    }

    /// These, widened so that the objects can be made.
    pub(super) fn with_room_for(&self, record: &super::Record) -> Limits {
        let super::Record { limits: _, shm, sem, msg } = record;
        let mut room = self.clone();
        for segment in shm {
            room.shmmax = room.shmmax.max(segment.size);
        }
        let pages = shm.iter().map(|s| s.size.div_ceil(4096)).fold(0, u64::saturating_add);
        room.shmall = room.shmall.max(pages);
        room.shmmni = room.shmmni.max(small_or_all(shm.len()));
        room.shm_rmid_forced = false;
        let largest = sem.iter().map(|s| s.values.len()).max().unwrap_or(0);
        let all = sem.iter().map(|s| s.values.len()).sum();
        for (has, needs) in room.sem.iter_mut().zip([largest, all, 2, sem.len()]) {
            *has = small_or_all(needs).max(*has);
        }
        let longest = msg.iter().flat_map(|q| &q.messages).map(|m| m.body.0.len()).max().unwrap_or(0);
        room.msgmax = room.msgmax.max(small_or_all(longest));
        let fullest = msg.iter().map(super::msg::Record::room).max().unwrap_or(0);
        room.msgmnb = room.msgmnb.max(u32::try_from(fullest).unwrap_or(u32::MAX));
        room.msgmni = room.msgmni.max(small_or_all(msg.len()));
        room
    }

    /// Sets what differs from `now`; `shm_rmid_forced` is [`Self::finish`]'s.
    pub(super) fn set(&self, now: &Limits, proc: BorrowedFd<'_>) -> Result<()> {
        let Limits { shmmax, shmall, shmmni, shm_rmid_forced: _, sem, msgmax, msgmnb, msgmni } = self;
        let set = |name: &str, differs: bool, value: String| {
            if differs { write(proc, &format!("sys/kernel/{name}"), &value) } else { Ok(()) }
        };
        set("shmmax", *shmmax != now.shmmax, shmmax.to_string())?;
        set("shmall", *shmall != now.shmall, shmall.to_string())?;
        set("shmmni", *shmmni != now.shmmni, shmmni.to_string())?;
        let [semmsl, semmns, semopm, semmni] = sem;
        set("sem", *sem != now.sem, format!("{semmsl} {semmns} {semopm} {semmni}"))?;
        set("msgmax", *msgmax != now.msgmax, msgmax.to_string())?;
        set("msgmnb", *msgmnb != now.msgmnb, msgmnb.to_string())?;
        set("msgmni", *msgmni != now.msgmni, msgmni.to_string())?;
        Ok(())
    }

    /// Unattached segments go from now on.
    pub(super) fn finish(&self, proc: BorrowedFd<'_>) -> Result<()> {
        if self.shm_rmid_forced {
            write(proc, &format!("sys/kernel/{FORCED}"), "1")?;
        }
        Ok(())
    }
}
