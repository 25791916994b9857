//! System V IPC of an ipc namespace: shared memory, semaphores, message queues.
//! *Read from:* /proc/sysvipc, the limits in /proc/sys/kernel, and each object itself, by a process in the namespace.
//! *Made again by:* the same calls in the new namespace; ids by /proc/sys/kernel/{shm,sem,msg}_next_id, creators by making
//! an object under their effective ids.
//! *Lost:* times and the pids of those who used an object last; what a tree in the host's namespace uses without a trace of
//! its pid (a semaphore set or a queue that it has only made or looked at); POSIX message queues that a tree which Yendor did not start
//! has not open (for others see `mqueue`); the label of an object, which security modules tell nobody; what the modules say.

pub mod limit;
pub mod msg;
pub mod sem;
pub mod shm;

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};
use yendor_image::{NsId, Reader, Writer};
use yendor_proc::sysvipc;
use yendor_sys::ipc::Rights;
use yendor_sys::{Errno, SysError};
use yendor_task::Nr;
use yendor_task::regs::call;

use crate::process::regs;
use crate::{Cause, Named, Result};
pub use limit::Limits;
pub use shm::Mapped;

/// What is in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its limits; none when only objects of somebody else's namespace were taken.
    pub limits: Option<Limits>,
    /// Shared memory.
    pub shm: Vec<shm::Record>,
    /// Semaphores.
    pub sem: Vec<sem::Record>,
    /// Message queues.
    pub msg: Vec<msg::Record>,
}

/// What all three kinds of objects have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Perm {
    /// By what it is found; 0 is `IPC_PRIVATE`.
    pub key: i32,
    /// By what it is used: an index and a sequence number.
    pub id: i32,
    /// Permission bits.
    pub mode: u16,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Creator and group, who have the owner's rights too.
    pub creator: (u32, u32),
}

impl Record {
    /// Whether there are no objects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shm.is_empty() && self.sem.is_empty() && self.msg.is_empty()
    }
}

/// How much of the caller's namespace is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// All: it is the container's own.
    Whole,
    /// What processes with these ids have mapped, made or used last, or wait for now: it is the host's.
    Used(&'a [i32], &'a [Wait]),
}

/// An object that a thread waits for in a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// semop(2), semtimedop(2), by the set's id.
    Semaphore(i32),
    /// msgsnd(2), msgrcv(2), by the queue's id.
    Queue(i32),
}

impl Wait {
    /// What a thread with these registers waits for.
    #[must_use]
    pub fn of(registers: &regs::Record) -> Option<Wait> {
        let regs = regs::from_words(registers).ok()?;
        let (id, call) = (|| i32::try_from(regs.rdi).ok(), call(&regs)?);
        let is = |calls: [Nr; 2]| calls.iter().any(|nr| nr.raw() == call);
        if is([Nr::SEMOP, Nr::SEMTIMEDOP]) {
            id().map(Wait::Semaphore)
        } else if is([Nr::MSGSND, Nr::MSGRCV]) {
            id().map(Wait::Queue)
        } else {
            None
        }
    }
}

impl Scope<'_> {
    /// Whether an object of these processes (0: none), which used it until `last` (seconds since 1970), is taken. One that is used inside and
    /// outside cannot be.
    fn takes(
        self,
        proc: BorrowedFd<'_>,
        (users, last): (&[i32], u64),
        wait: Option<Wait>,
        shown: impl FnOnce() -> String,
    ) -> Result<bool> {
        let Scope::Used(pids, waits) = self else { return Ok(true) };
        let waited_for = wait.is_some_and(|wait| waits.contains(&wait));
        if !waited_for && !users.iter().any(|pid| pids.contains(pid)) {
            return Ok(false);
        }
        // Or somebody who has only got the number of one that used it.
        let used = |pid: i32| began(proc, pid).is_some_and(|began| began <= last.saturating_add(1));
        match users.iter().find(|pid| **pid > 0 && !pids.contains(pid) && used(**pid)) {
            Some(_) if !waited_for && !users.iter().any(|pid| pids.contains(pid) && used(*pid)) => Ok(false),
            Some(other) => {
                let what = format!("{} of the host's ipc namespace: process {other} outside of the tree", shown());
                Err(Cause::unsupported(format!("{what} uses it too")))
            }
            None => Ok(true),
        }
    }

    /// What was collected of an object; nothing for another user's of the host's that the caller may not even look at,
    /// unless it is `held`: its maker has ended, and one of these processes has only got the same id since.
    fn unless_foreign<T>(self, perm: &sysvipc::Perm, held: bool, collected: Result<T>) -> Result<Option<T>> {
        let own = [perm.uid, perm.creator_uid].contains(&geteuid().as_raw());
        match collected {
            Err(Cause::Sys(e)) if e.errno == Errno::ACCESS && self != Scope::Whole && !held && !own => Ok(None),
            collected => collected.map(Some),
        }
    }

    fn waits_for(self, wait: Wait) -> bool {
        matches!(self, Scope::Used(_, waits) if waits.contains(&wait))
    }
}

/// Collects from the namespace that the caller is in, while its tasks are stopped. `mapped`: what they have attached.
///
/// # Errors
/// What cannot be captured is refused by name.
pub fn collect(proc: BorrowedFd<'_>, writer: &Writer, scope: Scope<'_>, mapped: &Mapped) -> Result<Record> {
    collect_of(proc, (writer, None), scope, mapped)
}

/// Likewise, of the namespace that has this number in the image; none: the container's.
pub(super) fn collect_of(
    proc: BorrowedFd<'_>,
    (writer, of): (&Writer, Option<NsId>),
    scope: Scope<'_>,
    mapped: &Mapped,
) -> Result<Record> {
    let limits = Limits::collect(proc)?;
    let table = |name: &str| read(proc, &format!("sysvipc/{name}"));
    let shm = shm::collect(proc, sysvipc::parse_shm(&table("shm")?)?, (writer, of), scope, mapped, &limits)?;
    let mut sem = Vec::new();
    for row in sysvipc::parse_sem(&table("sem")?)? {
        if sem::is_taken(&row, proc, scope)? {
            sem.push(sem::collect(row)?);
        }
    }
    let mut msg = Vec::new();
    for row in sysvipc::parse_msg(&table("msg")?)? {
        let (users, wait) = ([row.last_sender, row.last_receiver], Wait::Queue(row.perm.id));
        let last = row.send_time.max(row.receive_time).max(row.change_time);
        if scope.takes(proc, (&users, last), Some(wait), || format!("message queue {}", row.perm.id))? {
            let perm = row.perm;
            msg.extend(scope.unless_foreign(&perm, scope.waits_for(wait), msg::collect(row))?);
        }
    }
    let limits = (scope == Scope::Whole).then_some(limits);
    Ok(Record { limits, shm, sem, msg })
}

/// Makes everything again in the caller's namespace, which is new and empty. The caller has one thread and is root in the
/// user namespace that owns it. [`finish`] comes when the tasks have attached what they had.
///
/// # Errors
/// The kernel's; `Corrupt` for what cannot be.
pub fn rebuild(record: &Record, proc: BorrowedFd<'_>, reader: &Reader) -> Result<()> {
    rebuild_of(record, proc, (reader, None))
}

/// Likewise, of the namespace that has this number in the image.
pub(super) fn rebuild_of(record: &Record, proc: BorrowedFd<'_>, (reader, of): (&Reader, Option<NsId>)) -> Result<()> {
    let Record { limits, shm, sem, msg } = record;
    let before = Limits::collect(proc)?;
    let room = before.with_room_for(record);
    room.set(&before, proc)?;
    shm.iter().try_for_each(|segment| shm::rebuild(segment, proc, (reader, of)))?;
    sem.iter().try_for_each(|set| sem::rebuild(set, proc))?;
    msg.iter().try_for_each(|queue| msg::rebuild(queue, proc))?;
    let wanted = limits.as_ref().unwrap_or(&before);
    wanted.set(&room, proc)
}

/// What would take away segments that no task has attached yet: only when all have.
///
/// # Errors
/// The kernel's.
pub fn finish(record: &Record, proc: BorrowedFd<'_>) -> Result<()> {
    record.shm.iter().try_for_each(shm::finish)?;
    record.limits.as_ref().map_or(Ok(()), |limits| limits.finish(proc))
}

fn read(proc: BorrowedFd<'_>, path: &str) -> std::result::Result<Vec<u8>, SysError> {
    yendor_task::tree::read_proc(proc, path)
}

fn write(proc: BorrowedFd<'_>, path: &str, value: &str) -> std::result::Result<(), SysError> {
    let open = openat(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let fd = open.named("openat", || format!("/proc/{path}"))?;
    rustix::io::write(&fd, value.as_bytes()).named("write", || format!("/proc/{path}, {value:?}")).map(drop)
}

impl Perm {
    fn collect(perm: &sysvipc::Perm) -> Perm {
        let sysvipc::Perm { key, id, mode, uid, gid, creator_uid, creator_gid } = *perm;
        let mode = u16::try_from(mode & 0o777).unwrap_or(0);
        Perm { key, id, mode, owner: (uid, gid), creator: (creator_uid, creator_gid) }
    }

    fn rights(&self) -> Rights {
        Rights { uid: self.owner.0, gid: self.owner.1, mode: self.mode }
    }

    /// Makes an object with this id under its creator's ids; `kind` is `shm`, `sem` or `msg`.
    fn make(
        &self,
        proc: BorrowedFd<'_>,
        kind: &str,
        make: impl FnOnce() -> std::result::Result<i32, SysError>,
    ) -> Result<()> {
        if self.id < 0 || self.mode > 0o777 {
            return Err(Cause::corrupt(format!("System V object {kind} {} with the mode {:#o}", self.id, self.mode)));
        }
        write(proc, &format!("sys/kernel/{kind}_next_id"), &self.id.to_string())?;
        let made = as_creator(self.creator, make)?;
        if made == self.id {
            return Ok(());
        }
        // The kernel takes the next free place when the wanted one is taken.
        Err(Cause::corrupt(format!("two System V objects in the place of {kind} {}", self.id)))
    }
}

/// Runs `make` with these effective ids. Of the calling thread only, whose process has no other.
fn as_creator<T>((uid, gid): (u32, u32), make: impl FnOnce() -> std::result::Result<T, SysError>) -> Result<T> {
    let (own_uid, own_gid) = (geteuid(), getegid());
    if (own_uid.as_raw(), own_gid.as_raw()) == (uid, gid) {
        return Ok(make()?);
    }
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Cause::corrupt("a System V object that nobody made"));
    }
    let to_uid =
        |uid: Uid| set_thread_res_uid(None, uid, None).named("setresuid", || format!("-1, {}, -1", uid.as_raw()));
    let to_gid =
        |gid: Gid| set_thread_res_gid(None, gid, None).named("setresgid", || format!("-1, {}, -1", gid.as_raw()));
    let dumpable = dumpable_behavior().named("prctl", || "PR_GET_DUMPABLE".into())?;
    to_gid(Gid::from_raw(gid))?;
    let made = to_uid(Uid::from_raw(uid)).and_then(|()| make());
    // Uid first: it brings the capability back that the gid needs.
    to_uid(own_uid)?;
    to_gid(own_gid)?;
    if dumpable == DumpableBehavior::Dumpable {
        // A change of effective ids takes it away.
        set_dumpable_behavior(dumpable).named("prctl", || "PR_SET_DUMPABLE, 1".into())?;
    }
    Ok(made?)
}

/// When a process began, in seconds since 1970; none when it is gone.
fn began(proc: BorrowedFd<'_>, pid: i32) -> Option<u64> {
    use rustix::time::{ClockId, clock_gettime};
    let stat = yendor_proc::stat::parse(&read(proc, &format!("{pid}/stat")).ok()?).ok()?;
    let since_boot = stat.starttime / rustix::param::clock_ticks_per_second();
    let [now, up] = [ClockId::Realtime, ClockId::Boottime].map(|clock| clock_gettime(clock).tv_sec);
    u64::try_from(now - up).ok()?.checked_add(since_boot)
}

/// The table and the object disagree: somebody else changed it meanwhile.
fn changed(what: String) -> Cause {
    SysError::new("read", format!("/proc/sysvipc, {what} changes while the tasks are stopped"), Errno::AGAIN).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of processes come again: it was refused as used by somebody outside.
    #[test]
    fn who_is_younger_than_the_last_use_has_only_the_number() {
        use std::os::fd::AsFd;
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
        let mine = began(proc.as_fd(), me).unwrap();
        let now = u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec).unwrap();
        assert!(mine <= now && now - mine < 3600, "{mine} of {now}");
        assert_eq!(began(proc.as_fd(), i32::MAX), None);
        let takes = |tree: &[i32], users: &[i32], last| {
            Scope::Used(tree, &[]).takes(proc.as_fd(), (users, last), None, || "a segment".into())
        };
        assert!(takes(&[me], &[me, parent], now).is_err(), "both use it");
        assert!(takes(&[me], &[me, i32::MAX], now).unwrap(), "the other is gone");
        // One that was used last before both, before the tree's alone, or before the other's alone.
        let before = mine.min(began(proc.as_fd(), parent).unwrap()) - 10;
        assert!(takes(&[me], &[me, parent], before).unwrap());
        if began(proc.as_fd(), 1).unwrap() < mine - 6 {
            assert!(!takes(&[me], &[me, 1], mine - 5).unwrap());
        }
        assert!(takes(&[1], &[1, me], mine - 5).unwrap());
        assert!(!takes(&[i32::MAX], &[me, parent], now).unwrap());
    }

    #[test]
    fn what_another_user_has_made_is_no_ones_here() {
        let denied = || Err::<(), _>(SysError::new("shmctl", "28, IPC_STAT", Errno::ACCESS).into());
        let gone = || Err::<(), _>(SysError::new("shmctl", "28, IPC_STAT", Errno::IDRM).into());
        let used = Scope::Used(&[1], &[]);
        let of = |uid| sysvipc::Perm { key: 0, id: 28, mode: 0o600, uid, gid: 0, creator_uid: uid, creator_gid: 0 };
        let (own, other) = (of(geteuid().as_raw()), of(geteuid().as_raw() + 1));
        assert_eq!(used.unless_foreign(&other, false, denied()).ok(), Some(None));
        assert_eq!(used.unless_foreign(&other, false, Ok(7)).ok(), Some(Some(7)));
        // What could be the tree's own, or is in use, is never left out.
        assert!(used.unless_foreign(&own, false, denied()).is_err());
        assert!(used.unless_foreign(&other, true, denied()).is_err());
        assert!(used.unless_foreign(&other, false, gone()).is_err());
        assert!(Scope::Whole.unless_foreign(&other, false, denied()).is_err());
    }
}
