//! Files that can be made only when pid 1 is there (unix sockets, by processes with pids) or all tasks are born (pidfds,
//! files of /proc): the keeper makes them, and each task that holds one fetches it from the keeper. So do tasks with the pid namespaces that
//! their children are born in. Who is in a Landlock domain may not look at the keeper (pidfd_getfd(2)), but may take what that sends.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use yendor_image::{FileId, NsId, NsPid};
use yendor_kinds::file::{Descriptor, Entry, Record, Workshop};
use yendor_kinds::namespace::nested::{Kind, join};
use yendor_kinds::process::{Record as Process, State};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;
use yendor_task::{Nr, Script, args};

use crate::request::{Enforce, Request};

use super::birth::Tasks;
use super::levels::Levels;
use super::{Site, Task, lift};

/// Where the files are.
pub struct Files {
    /// A pidfd of the keeper that every task inherits; -1 where there is nothing to fetch.
    keeper: i32,
    /// Above all numbers of the image.
    above: i32,
    /// Numbers in the keeper.
    numbers: BTreeMap<FileId, i32>,
    /// Likewise of pid namespaces.
    pids: BTreeMap<NsId, i32>,
    /// Where tasks may be in a Landlock domain.
    way: Option<Way>,
}

/// Two sockets: the keeper sends by one, and whoever is to have something takes it from the other, which all have.
struct Way {
    ours: OwnedFd,
    theirs: i32,
}

impl Files {
    /// Before any stub is born: none yet, but the way to them.
    pub fn before(snapshot: &Snapshot, request: &Request, above: i32, held: &mut Vec<OwnedFd>) -> Result<Files, Cause> {
        // Opened by the keeper when its policy can no longer be tried on itself.
        let judged = |e: &&Entry| matches!(e.record, Record::Proc(_) | Record::Namespace(_));
        if request.policy.enforce == Enforce::Early
            && let Some(entry) = snapshot.files.iter().find(judged)
        {
            let what = format!("--enforce early for an image with an open {} file", entry.record.kind());
            return Err(Cause::unsupported(what));
        }
        let bears = |p: &Process| matches!(&p.state, State::Alive(alive) if alive.children.is_some());
        let bears = snapshot.processes.iter().any(bears);
        if request.policy.enforce == Enforce::Early && bears {
            return Err(Cause::unsupported(
                "--enforce early for an image with a process whose children are born in a pid namespace below",
            ));
        }
        let mut files = Files { keeper: -1, above, numbers: BTreeMap::new(), pids: BTreeMap::new(), way: None };
        let late = |e: &Entry| e.record.is_late() || matches!(e.record, Record::Unix(_));
        if snapshot.files.iter().any(late) || bears || snapshot.namespaces.iter().any(|one| one.kind() == Kind::Pid) {
            let me = rustix::process::getpid();
            let own = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty());
            files.keeper = lift(own.named("pidfd_open", || "the keeper".into())?, above, held)?;
            if !request.policy.landlock.is_empty() || !snapshot.restrictions.domains.is_empty() {
                files.way = Some(Way::make(above, held)?);
            }
        }
        Ok(files)
    }

    /// The task gets descriptors of the keeper's: its numbers of them, which are closed when it executes a program.
    pub fn take(&self, site: &Site<'_>, task: &Task, fds: &[BorrowedFd<'_>]) -> Result<Vec<i32>, Cause> {
        match &self.way {
            Some(way) => way.take(site, task, fds),
            None => self.copy(site, task, &fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>()),
        }
    }

    /// The same of those that are held, by their numbers.
    fn take_held(&self, site: &Site<'_>, task: &Task, numbers: &[i32]) -> Result<Vec<i32>, Cause> {
        let Some(way) = &self.way else { return self.copy(site, task, numbers) };
        let fds: BTreeMap<i32, BorrowedFd<'_>> = site.held.iter().map(|fd| (fd.as_raw_fd(), fd.as_fd())).collect();
        let fds = numbers.iter().map(|number| fds.get(number).copied().ok_or(Errno::BADF));
        way.take(site, task, &fds.collect::<Result<Vec<_>, Errno>>().named("fcntl", || "a descriptor".into())?)
    }

    fn copy(&self, site: &Site<'_>, task: &Task, numbers: &[i32]) -> Result<Vec<i32>, Cause> {
        let mut script = Script::new();
        for number in numbers {
            script.call(Nr::PIDFD_GETFD, args![self.keeper, *number, 0]);
        }
        let got = site.run(task, &script)?;
        Ok(got.iter().map(|done| i32::try_from(done.returned).unwrap_or(-1)).collect())
    }

    /// The keeper's numbers of files that are made when pid 1 is there.
    pub fn add(&mut self, made: BTreeMap<FileId, i32>) {
        self.numbers.extend(made);
    }

    /// Makes them; all tasks are born.
    pub fn make(
        &mut self,
        workshop: &mut Workshop<'_>,
        (tasks, levels): (&Tasks, &Levels),
        held: &mut Vec<OwnedFd>,
    ) -> Result<(), Cause> {
        if self.keeper < 0 {
            return Ok(());
        }
        for (namespace, init) in levels.inits() {
            let Some(task) = tasks.get(&init) else { continue };
            let fd = pid_namespace(&workshop.proc, task)?;
            self.pids.insert(namespace, lift(&fd, self.above, held)?);
        }
        workshop.tasks = tasks.iter().map(|(inside, task)| (NsPid(*inside), task.tid)).collect();
        for id in workshop.finish_late()? {
            let number = lift(workshop.existing(id)?, self.above, held)?;
            self.numbers.insert(id, number);
        }
        Ok(())
    }

    /// The task's children are born in a pid namespace below its own from now on.
    pub fn bear_into(&self, site: &Site<'_>, task: &Task, namespace: NsId) -> Result<(), Cause> {
        let number = self.pids.get(&namespace);
        let number = number.ok_or_else(|| Cause::corrupt(format!("no pid namespace has the number {namespace}")))?;
        let got = self.take_held(site, task, &[*number])?.first().copied().unwrap_or(-1);
        let mut script = Script::new();
        join(got, Kind::Pid, &mut script);
        script.call(Nr::CLOSE, args![got]);
        site.run(task, &script).map(drop)
    }
}

impl Way {
    fn make(above: i32, held: &mut Vec<OwnedFd>) -> Result<Way, Cause> {
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.named("socketpair", || "AF_UNIX, SOCK_SEQPACKET".into())?;
        Ok(Way { ours, theirs: lift(theirs, above, held)? })
    }

    fn take(&self, site: &Site<'_>, task: &Task, fds: &[BorrowedFd<'_>]) -> Result<Vec<i32>, Cause> {
        /// So many wait in a socket.
        const AT_ONCE: usize = 8;
        /// `MSG_CMSG_CLOEXEC`.
        const CLOEXEC: u32 = 0x4000_0000;
        let mut got = Vec::with_capacity(fds.len());
        for some in fds.chunks(AT_ONCE) {
            let mut script = Script::new();
            for fd in some {
                self.send(*fd)?;
                script.call(Nr::RECVMSG, args![self.theirs, message::room(), CLOEXEC]);
            }
            for done in site.run(task, &script)? {
                let number = done.out.first().and_then(|room| message::descriptor(room));
                // What nobody could be given is left out (unix(7)).
                got.push(number.ok_or(Errno::ACCESS).named("recvmsg", || "a descriptor of the keeper's".into())?);
            }
        }
        Ok(got)
    }

    fn send(&self, fd: BorrowedFd<'_>) -> Result<(), Cause> {
        let fds = [fd];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = sendmsg(&self.ours, &[IoSlice::new(b"\n")], &mut ancillary, flags);
        Ok(sent.map(drop).named("sendmsg", || "a descriptor".into())?)
    }
}

/// A message of one byte and one descriptor, as recvmsg(2) on x86-64 has it: `msghdr`, `iovec`, the byte, `cmsghdr` with the number.
mod message {
    use yendor_task::Arg;
    use yendor_task::script::back;

    const VECTOR: usize = 56;
    const BYTE: usize = 72;
    const CONTROL: usize = 80;
    const SIZE: usize = 104;

    pub fn room() -> Arg {
        let mut bytes = vec![0; SIZE];
        for (offset, value) in [(24, 1), (40, SIZE - CONTROL), (VECTOR + 8, 1)] {
            bytes[offset..offset + 8].copy_from_slice(&(value as u64).to_ne_bytes());
        }
        back(bytes, vec![(16, VECTOR), (32, CONTROL), (VECTOR, BYTE)])
    }

    /// Its number, if there is one: `SOL_SOCKET`, `SCM_RIGHTS`.
    pub fn descriptor(room: &[u8]) -> Option<i32> {
        let word = |offset: usize| room.get(offset..offset + 4)?.try_into().ok().map(i32::from_ne_bytes);
        let is_one = word(CONTROL)? == 20 && word(CONTROL + 8)? == 1 && word(CONTROL + 12)? == 1;
        is_one.then(|| word(CONTROL + 16))?
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_descriptor_is_found_or_is_not_there() {
            let Arg::Back(room) = room() else { panic!("it is handed back") };
            assert_eq!((room.bytes.len(), descriptor(&room.bytes)), (SIZE, None));
            let mut bytes = room.bytes;
            for (at, value) in [(CONTROL, 20_i32), (CONTROL + 8, 1), (CONTROL + 12, 1), (CONTROL + 16, 7)] {
                bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            assert_eq!(descriptor(&bytes), Some(7));
            assert_eq!(descriptor(&bytes[..SIZE - 8]), None);
        }
    }
}

/// The pid namespace of a task.
pub fn pid_namespace(proc: &OwnedFd, task: &Task) -> Result<OwnedFd, Cause> {
    let path = format!("{}/ns/pid", task.tid);
    let fd = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    Ok(fd.named("openat", || format!("/proc/{path}"))?)
}

/// The task fetches those that it holds: their numbers there, above all others.
pub fn fetch(site: &Site<'_>, task: &Task, list: &[Descriptor]) -> Result<BTreeMap<FileId, i32>, Cause> {
    const F_DUPFD: u32 = 0;
    let Files { above, numbers, .. } = &site.late;
    let wanted: BTreeSet<FileId> = list.iter().map(|d| d.file).filter(|f| numbers.contains_key(f)).collect();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let held: Vec<i32> = wanted.iter().map(|file| numbers[file]).collect();
    let mut lift = Script::new();
    for got in site.late.take_held(site, task, &held)? {
        // The kernel gives the lowest free number, which may be another descriptor's.
        lift.call(Nr::FCNTL, args![got, F_DUPFD, *above]);
        lift.call(Nr::CLOSE, args![got]);
    }
    let lifted = site.run(task, &lift)?;
    let number = |returned: i64| i32::try_from(returned).unwrap_or(-1);
    Ok(wanted.into_iter().zip(lifted.iter().step_by(2)).map(|(file, done)| (file, number(done.returned))).collect())
}
