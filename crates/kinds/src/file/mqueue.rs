//! POSIX message queues (mq_overview(7)) of the container's ipc namespace, also those that nobody has open.
//! *Read from:* the queue's own file; what waits in it is taken out and put back at once, by a child that survives us.
//! *Made again by:* mq_open, mq_send of every message in order; every description is opened anew; one without a name is unlinked
//! when all are.
//! *Lost:* times; an edge that epoll has delivered already is delivered again, also where the tasks run on; by whose `RLIMIT_MSGQUEUE` it is counted; the name of an unlinked one in /proc/PID/fd, where another has it. Refused:
//! those of a nested ipc namespace, of a tree that Yendor did not start, and what is open by `O_PATH`. Whom one notifies: see `notification`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_sys::{Errno, SysError, mqueue};

use super::{Entry, FileKind, Gather, Seen, Workshop, regular};
use crate::{Cause, Named, Result};

const MQUEUE_MAGIC: i64 = 0x1980_0202;

/// A description of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which: the id of its first description, which alone has the rest.
    pub queue: FileId,
    /// What it is; none for all descriptions but the first.
    pub content: Option<Queue>,
}

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name, without the slash.
    pub name: Bytes,
    /// Whether the name is gone.
    pub unlinked: bool,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Messages at most.
    pub most: u32,
    /// Bytes of a message at most.
    pub size: u32,
    /// What waits, in the order in which it will be received.
    pub messages: Vec<Message>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its priority.
    pub priority: u32,
    /// Its text.
    pub body: Bytes,
}

impl FileKind for Record {
    const NAME: &'static str = "mqueue";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::RegularFile
            && rustix::fs::fstatfs(&seen.fd).is_ok_and(|fs| fs.f_type == MQUEUE_MAGIC)
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        if !gather.queues || seen.info.flags & OFlags::PATH.bits() != 0 {
            return Err(Cause::unsupported(format!("{}: a POSIX message queue (mq_open)", seen.link)));
        }
        let queue = gather.object(Self::NAME, seen);
        let content = if queue == seen.id { Some(Queue::collect(seen, gather)?) } else { None };
        Ok(Record { queue, content })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let key = (Self::NAME, u64::from(self.queue.0));
        if !workshop.objects.contains_key(&key) {
            let content = match &workshop.entry(self.queue)?.record {
                super::Record::Mqueue(Record { queue, content: Some(content) }) if *queue == self.queue => content,
                _ => return Err(Cause::corrupt(format!("file {} is no message queue", self.queue))),
            };
            let made = content.make(self.queue, workshop)?;
            workshop.objects.insert(key, vec![made]);
        }
        let [made] = workshop.object(key)? else { return Err(Cause::corrupt("an object that is no message queue")) };
        let flags = regular::reopen_flags(entry.flags);
        if flags.contains(OFlags::LARGEFILE) {
            return regular::reopen(&workshop.proc, made.as_fd(), flags);
        }
        // By its name: all other ways to open a file add that flag.
        let name = name_of(workshop, made)?;
        Ok(mqueue::open(&name, flags.bits())?)
    }
}

impl Queue {
    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Queue> {
        let own = regular::reopen(&gather.proc, seen.fd.as_fd(), OFlags::RDWR | OFlags::NONBLOCK)?;
        let Status { bytes, notifies } = status(own.as_fd())?;
        let attributes = mqueue::attributes(own.as_fd())?;
        if let Some(Notifies { pid, how, signal }) = notifies {
            let refuse = |why: &str| {
                let what = format!("{}: a POSIX message queue that notifies process {pid} (mq_notify)", seen.link);
                Err(Cause::unsupported(format!("{what}{why}")))
            };
            // Who takes its messages and puts them back would have it notify.
            if attributes.waiting != 0 {
                return refuse(" of messages after those that wait in it");
            }
            let signal = match how {
                0 => Some(signal),
                1 => None,
                _ => return refuse(" by a thread (SIGEV_THREAD)"),
            };
            let shown = seen.link.clone();
            gather.notifying.push(Notifying { queue: seen.id, pid, signal, shown });
        }
        let number =
            |n: i64| u32::try_from(n).map_err(|_| SysError::new("mq_getsetattr", n.to_string(), Errno::OVERFLOW));
        let messages = mqueue::look(own.as_fd(), bytes)?;
        let name = seen.link.0.strip_suffix(b" (deleted)").filter(|_| seen.stat.st_nlink == 0).unwrap_or(&seen.link.0);
        Ok(Queue {
            name: Bytes(name.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec()),
            unlinked: seen.stat.st_nlink == 0,
            mode: seen.stat.st_mode & 0o7777,
            owner: (seen.stat.st_uid, seen.stat.st_gid),
            most: number(attributes.most)?,
            size: number(attributes.size)?,
            messages: messages.into_iter().map(|(priority, body)| Message { priority, body: Bytes(body) }).collect(),
        })
    }

    fn make(&self, id: FileId, workshop: &Workshop<'_>) -> Result<OwnedFd> {
        let Queue { name, unlinked: _, mode, owner, most: _, size: _, messages } = self;
        self.check()?;
        let fd = self.create(id, workshop)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).named("fchown", || format!("{name}, {owner:?}"))?;
        let wanted = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::fchmod(&fd, wanted).named("fchmod", || format!("{name}, {wanted:?}"))?;
        for Message { priority, body } in messages {
            mqueue::send(fd.as_fd(), *priority, &body.0)?;
        }
        Ok(fd)
    }

    /// What no queue can be.
    fn check(&self) -> Result<()> {
        let is_name = !self.name.0.is_empty() && !self.name.0.contains(&b'/');
        let fits = |message: &Message| message.body.0.len() <= self.size as usize;
        if is_name && self.messages.len() <= self.most as usize && self.messages.iter().all(fits) {
            return Ok(());
        }
        Err(Cause::corrupt(format!("a message queue \"{}\" without a name, or with more than fits into it", self.name)))
    }

    /// The queue without messages. Where the container's own limits have become lower since, they are raised for a moment.
    fn create(&self, id: FileId, workshop: &Workshop<'_>) -> Result<OwnedFd> {
        let Queue { name, unlinked, mode: _, owner: _, most, size, messages: _ } = self;
        let has_name = |other: &Entry| match &other.record {
            super::Record::Mqueue(Record { content: Some(other), .. }) => !other.unlinked && other.name == *name,
            _ => false,
        };
        // A name that is gone may be another's since.
        let own = !unlinked || !workshop.entries().any(has_name);
        let other = format!("yendor-{id}");
        let make = || match mqueue::create(if own { &name.0 } else { other.as_bytes() }, *most, *size) {
            Err(e) if e.errno == Errno::EXIST && *unlinked && own => mqueue::create(other.as_bytes(), *most, *size),
            made => made,
        };
        let wide = [
            ("msg_max", u64::from(*most)),
            ("msgsize_max", u64::from(*size)),
            ("queues_max", u64::from(u32::MAX >> 1)),
        ];
        match make() {
            Err(e) if matches!(e.errno, Errno::INVAL | Errno::NOSPC) => {
                let before = wide.map(|(limit, wanted)| raise(workshop, limit, wanted));
                let made = make();
                for (limit, before) in wide.iter().map(|(limit, _)| limit).zip(before) {
                    before.map_or(Ok(()), |before| write(workshop, limit, &before))?;
                }
                Ok(made?)
            }
            made => Ok(made?),
        }
    }
}

/// What the queue behind a descriptor of ours is called now.
fn name_of(workshop: &Workshop<'_>, queue: &OwnedFd) -> Result<Vec<u8>> {
    let path = format!("self/fd/{}", queue.as_raw_fd());
    let link = rustix::fs::readlinkat(&workshop.proc, path.as_str(), Vec::new());
    let link = link.named("readlinkat", || format!("/proc/{path}"))?.into_bytes();
    Ok(link.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec())
}

/// To be called when all descriptions are there: names that are to be gone go.
///
/// # Errors
/// The kernel's.
pub fn unlink_all(workshop: &Workshop<'_>) -> Result<()> {
    for entry in workshop.entries() {
        let super::Record::Mqueue(Record { queue, content: Some(content) }) = &entry.record else { continue };
        if let (true, Ok([made])) = (content.unlinked, workshop.object((Record::NAME, u64::from(queue.0)))) {
            mqueue::unlink(&name_of(workshop, made)?)?;
        }
    }
    Ok(())
}

/// Raises a limit of the ipc namespace; what it was, unless it need not or cannot be raised.
fn raise(workshop: &Workshop<'_>, limit: &str, wanted: u64) -> Option<String> {
    let text = yendor_task::tree::read_proc(workshop.proc.as_fd(), &format!("sys/fs/mqueue/{limit}")).ok()?;
    let before = std::str::from_utf8(&text).ok()?.trim().to_owned();
    let lower = before.parse::<u64>().is_ok_and(|now| now < wanted);
    (lower && write(workshop, limit, &wanted.to_string()).is_ok()).then_some(before)
}

fn write(workshop: &Workshop<'_>, limit: &str, value: &str) -> Result<()> {
    let path = format!("sys/fs/mqueue/{limit}");
    let fd = openat(&workshop.proc, path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let fd = fd.named("openat", || format!("/proc/{path}"))?;
    rustix::io::write(&fd, value.as_bytes()).named("write", || format!("/proc/{path}, {value}"))?;
    Ok(())
}

/// What reading a queue tells.
struct Status {
    /// Bytes of all messages.
    bytes: usize,
    /// Who is notified.
    notifies: Option<Notifies>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Notifies {
    pid: i32,
    /// `SIGEV_*`.
    how: i32,
    signal: i32,
}

/// A process that a queue notifies, until that says with which value.
#[derive(Debug)]
pub struct Notifying {
    /// The first description of the queue.
    pub queue: FileId,
    /// The process, as we see it.
    pub pid: i32,
    /// The signal; none for `SIGEV_NONE`.
    pub signal: Option<i32>,
    /// What the queue is called.
    pub shown: Bytes,
}

fn status(queue: BorrowedFd<'_>) -> Result<Status> {
    let mut text = [0_u8; 128];
    let n = rustix::io::pread(queue, &mut text, 0).named("pread64", || "a message queue".into())?;
    parse(text.get(..n).unwrap_or_default())
        .ok_or_else(|| Cause::unsupported("a POSIX message queue that says of itself what is not known"))
}

/// `QSIZE:129        NOTIFY:0     SIGNO:0     NOTIFY_PID:0`.
fn parse(text: &[u8]) -> Option<Status> {
    let words = || std::str::from_utf8(text).ok().map(str::split_ascii_whitespace);
    let field = |name: &str| words()?.find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let number = |name| field(name)?.parse::<i32>().ok();
    let (how, signal, pid) = (number("NOTIFY")?, number("SIGNO")?, number("NOTIFY_PID")?);
    let notifies = ((how, signal, pid) != (0, 0, 0)).then_some(Notifies { pid, how, signal });
    Some(Status { bytes: field("QSIZE")?.parse().ok()?, notifies })
}

/// The directory of all queues of the calling thread's ipc namespace, which enters a mount namespace for that: who mounts needs one of the same
/// user namespace.
///
/// # Errors
/// The kernel's.
pub fn mount() -> Result<OwnedFd> {
    let shown = || "\"mqueue\"".to_owned();
    unshare(Namespaces::NEWNS)?;
    let context = fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen", shown)?;
    fsconfig_create(&context).named("fsconfig", shown)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).named("fsmount", shown)?;
    let root = openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    Ok(root.named("openat", shown)?)
}

/// The names in such a directory.
///
/// # Errors
/// What getdents64 says.
pub fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let shown = || "\"mqueue\"".to_owned();
    let mut out = Vec::new();
    for entry in Dir::read_from(directory).named("getdents64", shown)? {
        let entry = entry.named("getdents64", shown)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            out.push(name.to_vec());
        }
    }
    // The kernel lists those first that were made last.
    out.sort_unstable();
    Ok(out)
}

/// Collects all queues that have a name, whether somebody has them open or not. `directory`: theirs.
///
/// # Errors
/// What one of them refuses.
pub fn collect_all(gather: &mut Gather<'_>, directory: BorrowedFd<'_>) -> Result<()> {
    for name in names(directory)? {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(directory, name.as_slice(), flags, Mode::empty());
        gather.own(fd.named("openat", || format!("/{}, O_RDONLY", name.escape_ascii()))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_says_how_full_it_is() {
        let said = |text: &str| parse(text.as_bytes()).map(|s| (s.bytes, s.notifies));
        let text = "QSIZE:129        NOTIFY:2     SIGNO:7     NOTIFY_PID:8260  \n";
        assert_eq!(said(text), Some((129, Some(Notifies { pid: 8260, how: 2, signal: 7 }))));
        assert_eq!(said("QSIZE:0          NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n"), Some((0, None)));
        assert!(said("QSIZE:x NOTIFY:0 SIGNO:0 NOTIFY_PID:0").is_none() && said("QSIZE:1 NOTIFY_PID:0").is_none());
    }
}
