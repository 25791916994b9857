//! What file kinds share while they collect.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use yendor_image::{Bytes, FdNum, FileId, NsId, NsPid, Writer};
use yendor_proc::fdinfo::{EpollTarget, FdInfo, InotifyWatch};
use yendor_proc::maps::Map;
use yendor_proc::mountinfo;
use yendor_sys::kcmp::{self, What};
use yendor_sys::lsm::Module;
use yendor_sys::patience;
use yendor_sys::{Errno, SysError};
use yendor_task::live::SCRATCH;

use super::served::Servers;
use super::{Entry, Owner, Record, Seen};
use crate::namespace::mount::Places;
use crate::namespace::networks::Networks;
use crate::process::label;
use crate::{Cause, Named, Result};

/// Everything that has been collected of files so far.
pub struct Gather<'a> {
    /// Where blobs (contents of deleted files) go.
    pub writer: &'a Writer,
    /// /proc as the tracer sees it.
    pub proc: OwnedFd,
    /// The root directory of the tree, as the tracer reaches it.
    pub root: OwnedFd,
    /// What is mounted in the container.
    pub lines: Vec<mountinfo::Mount>,
    /// Of which mounts a process answers.
    pub(super) servers: Servers,
    /// Whether the container's root has changed its mounts; then those that are made again when there is a pid 1, by their places.
    pub remounted: Option<Vec<Bytes>>,
    /// Mount namespaces inside the container.
    pub places: Places,
    /// The one of them that paths are looked for in; none: the container's.
    pub here: Option<NsId>,
    /// Host pid to pid inside.
    pub pids: BTreeMap<i32, NsPid>,
    /// Descriptions that belong to the caller: (pid that holds it, its number there, which of [`super::external::Record`]).
    pub externals: Vec<(i32, i32, super::external::Record)>,
    /// What has been collected.
    pub entries: Vec<Entry>,
    /// Kinds that the caller allows to be lost.
    pub allow_lost: BTreeSet<String>,
    /// What was lost, by kind and object.
    pub lost: Vec<(String, String)>,
    /// Deleted files whose content is recorded already, by their numbers.
    pub(super) recorded: BTreeSet<u64>,
    /// The security modules that label things.
    pub modules: Vec<Module>,
    /// How far the tree's clocks are ahead of ours.
    pub clocks: super::timerfd::Clocks,
    /// Whether the tree is no container of ours: we may read what its tasks may not.
    pub is_foreign: bool,
    /// Whether the tree ends with this checkpoint: then the last look may be one that leaves traces.
    pub ends_tree: bool,
    /// Listening unix sockets for that last look.
    pub(super) backlogs: Vec<super::unix::backlog::Unread>,
    /// A process that holds each description.
    pub(super) holders: BTreeMap<FileId, (i32, FdNum)>,
    /// Descriptions whose locks belong to a process that was looked at.
    pub locked: BTreeSet<FileId>,
    /// What each inotify watches, until `finish` finds the paths.
    pub(super) inotifies: BTreeMap<FileId, Vec<InotifyWatch>>,
    /// What each epoll watches, until `finish` finds the descriptions.
    pub(super) epolls: BTreeMap<FileId, Vec<EpollTarget>>,
    /// Whether POSIX message queues are the container's own.
    pub queues: bool,
    /// Those that they notify, until their processes are looked at.
    pub notifying: Vec<super::mqueue::Notifying>,
    /// The container's pid namespace, where it has one of its own.
    pub pid_namespace: Option<OwnedFd>,
    /// Networks inside the container.
    pub networks: Networks,
    /// The network that all sockets must be in; none until the first, unless the caller knows.
    pub network: Option<u64>,
    /// The first description of each object behind several (a pipe has two ends), by (kind, device, inode).
    firsts: BTreeMap<(&'static str, u64, u64), FileId>,
    /// Our duplicates.
    ours: BTreeMap<FileId, OwnedFd>,
    /// The descriptions of an inode, in the order that kcmp gives them.
    held: BTreeMap<(u64, u64), Vec<FileId>>,
    /// The numbers of deleted files, by device and inode.
    ghosts: BTreeMap<(u64, u64), u64>,
    /// The devices of those that descriptions lead to, by link and inode.
    deleted: BTreeMap<(Bytes, u64), BTreeSet<u64>>,
}

impl<'a> Gather<'a> {
    /// Nothing collected yet.
    #[must_use]
    pub fn new(writer: &'a Writer, proc: OwnedFd, root: OwnedFd) -> Self {
        Self {
            writer,
            proc,
            root,
            lines: Vec::new(),
            servers: Servers::new(),
            remounted: None,
            places: Places::default(),
            here: None,
            pids: BTreeMap::new(),
            externals: Vec::new(),
            entries: Vec::new(),
            allow_lost: BTreeSet::new(),
            lost: Vec::new(),
            recorded: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            deleted: BTreeMap::new(),
            modules: Vec::new(),
            clocks: super::timerfd::Clocks::default(),
            is_foreign: false,
            ends_tree: false,
            backlogs: Vec::new(),
            inotifies: BTreeMap::new(),
            locked: BTreeSet::new(),
            holders: BTreeMap::new(),
            epolls: BTreeMap::new(),
            queues: false,
            notifying: Vec::new(),
            pid_namespace: None,
            networks: Networks::default(),
            network: None,
            firsts: BTreeMap::new(),
            ours: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    /// The id of the description behind descriptor `number` of `pid`, collecting it if it is new, and its fdinfo. None
    /// for what a checkpoint that was killed has left: its scratch memory.
    ///
    /// # Errors
    /// What its kind refuses.
    pub fn descriptor(&mut self, pid: i32, pidfd: impl AsFd, number: FdNum) -> Result<Option<(FileId, FdInfo)>> {
        use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
        let info = yendor_proc::fdinfo::parse(&self.read(&format!("{pid}/fdinfo/{number}"))?)?;
        self.is_served(pid, pidfd.as_fd(), number, info.mnt_id)?;
        let ours = pidfd_getfd(pidfd, number.0, PidfdGetfdFlags::empty())
            .named("pidfd_getfd", || format!("{pid}, {number}"))?;
        let path = format!("{pid}/fd/{number}");
        let (stat, place) = match patience::with("fstat", pid, || self.known(&ours, &path))? {
            (_, Ok(id)) => return Ok(Some((id, info))),
            (stat, Err(place)) => (stat, place),
        };
        let link = self.link(&path)?;
        if link.0.starts_with(SCRATCH) {
            return Ok(None);
        }
        Ok(Some((self.adopt(ours, link, (stat, place), &info, Some((pid, number)))?, info)))
    }

    /// The id of a description that we hold ourselves (received from a socket's queue, opened for a mapping).
    ///
    /// # Errors
    /// What its kind refuses.
    pub fn own(&mut self, fd: OwnedFd) -> Result<FileId> {
        let raw = fd.as_raw_fd();
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let path = format!("{me}/fd/{raw}");
        let (stat, place) = match self.known(&fd, &path)? {
            (_, Ok(id)) => return Ok(id),
            (stat, Err(place)) => (stat, place),
        };
        let link = self.link(&path)?;
        let info = yendor_proc::fdinfo::parse(&self.read(&format!("{me}/fdinfo/{raw}"))?)?;
        self.adopt(fd, link, (stat, place), &info, None)
    }

    /// The id of a description that was met before, or where it belongs among those of its inode.
    fn known(&self, fd: &OwnedFd, path: &str) -> Result<(Stat, std::result::Result<FileId, usize>)> {
        let stat = rustix::fs::fstat(fd).named("fstat", || path.to_owned())?;
        Ok((stat, self.search((stat.st_dev, stat.st_ino), fd.as_fd())?))
    }

    fn adopt(
        &mut self,
        fd: OwnedFd,
        link: Bytes,
        (stat, place): (Stat, usize),
        info: &FdInfo,
        holder: Option<(i32, FdNum)>,
    ) -> Result<FileId> {
        let key = (stat.st_dev, stat.st_ino);
        let id = FileId(u32::try_from(self.entries.len()).map_err(|_| Cause::unsupported("2^32 open files"))?);
        self.holders.extend(holder.map(|holder| (id, holder)));
        let seen = Seen { id, fd, link, info: info.clone(), stat, holder };
        if let Some(line) = seen.info.leftover.first() {
            let line = line.escape_ascii();
            return Err(Cause::unsupported(format!("{}: its fdinfo says \"{line}\", which is not known", seen.link)));
        }
        // Reserve the id first: a socket that holds itself in its queue must find it.
        let flags = seen.info.flags & !OFlags::CLOEXEC.bits();
        let record = Record::External(super::external::Record::Stdin);
        let mounts = self.places.of_mount(info.mnt_id);
        self.entries.push(Entry { id, flags, owner: None, labels: Vec::new(), mounts, network: None, record });
        let twin = rustix::io::fcntl_dupfd_cloexec(&seen.fd, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?;
        self.ours.insert(id, twin);
        self.held.entry(key).or_default().insert(place, id);
        if let Some(name) = seen.link.0.strip_suffix(b" (deleted)") {
            self.deleted.entry((Bytes(name.to_vec()), stat.st_ino)).or_default().insert(stat.st_dev);
        }
        let is_socket = FileType::from_raw_mode(seen.stat.st_mode) == FileType::Socket;
        let labels = if is_socket { label::of_socket(&seen.fd, &self.modules)? } else { Vec::new() };
        let network = if is_socket { self.network_of(&seen)? } else { Some(None) };
        let external = match holder {
            Some((pid, number)) => super::external::Record::of(self, pid, number.0)?,
            None => None,
        };
        if network.is_none() && external.is_none() {
            return Err(Cause::unsupported(format!(
                "{}: a socket of another net namespace than the container's, in which no process of the tree lives",
                seen.link
            )));
        }
        // The owner of what belongs to the caller is the caller's business.
        let (record, owner, labels) = match external {
            Some(external) => (Record::External(external), None, Vec::new()),
            None => {
                let networks = self.networks.clone();
                let record = networks.within(network.flatten(), || self.record(&seen, mounts))?;
                (record, owner_of(&seen, &self.pids)?, labels)
            }
        };
        let network = network.flatten().filter(|_| !matches!(record, Record::External(_)));
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.record = record;
            entry.owner = owner;
            entry.labels = labels;
            entry.network = network;
        }
        Ok(id)
    }

    /// Its record, whose paths are those of the mount namespace that it was opened in.
    fn record(&mut self, seen: &Seen, mounts: Option<NsId>) -> Result<Record> {
        let before = std::mem::replace(&mut self.here, mounts);
        let record = Record::collect(seen, self);
        self.here = before;
        if mounts.is_none() {
            self.is_in_its_place(seen, record.as_ref().ok())?;
        }
        match record? {
            record @ (Record::Regular(_) | Record::Fifo(_) | Record::Device(_) | Record::Proc(_)) => Ok(record),
            record if mounts.is_some() => {
                let (link, kind) = (&seen.link, record.kind());
                Err(Cause::unsupported(format!("{link}: a {kind} file of a nested mnt namespace")))
            }
            record => Ok(record),
        }
    }

    /// Refuses a file that its path leads to no more in the mount that it was opened in, or leads to too late.
    fn is_in_its_place(&self, seen: &Seen, record: Option<&Record>) -> Result<()> {
        let Some(late) = &self.remounted else { return Ok(()) };
        let path = match record {
            Some(Record::Regular(regular)) if regular.ghost.is_none() => &regular.path.0,
            Some(Record::Fifo(_) | Record::Device(_) | Record::Proc(_)) => &seen.link.0,
            _ => return Ok(()),
        };
        let Ok(again) = self.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW) else { return Ok(()) };
        if self.info_of(again.as_fd())?.mnt_id != seen.info.mnt_id {
            let what = "a file of a mount that is there no more, or that another covers";
            return Err(Cause::unsupported(format!("{}: {what}", seen.link)));
        }
        let line = self.lines.iter().find(|line| line.id == seen.info.mnt_id);
        if record.is_some_and(|r| !r.is_late()) && line.is_some_and(|l| late.iter().any(|p| p.0 == l.mount_point)) {
            let what = "a file of a mount that the container has made itself, of /proc";
            return Err(Cause::unsupported(format!("{}: {what}", seen.link)));
        }
        Ok(())
    }

    /// The nested network that a socket is in, if that is not the container's own; none for any other.
    fn network_of(&mut self, seen: &Seen) -> Result<Option<Option<NsId>>> {
        match yendor_sys::sock::namespace_cookie(seen.fd.as_fd()) {
            Ok(cookie) => Ok(match self.networks.with_cookie(cookie) {
                None if *self.network.get_or_insert(cookie) == cookie => Some(None),
                nested => nested.map(Some),
            }),
            // O_PATH, or a kernel that does not tell.
            Err(e) if matches!(e.errno, Errno::BADF | Errno::NOPROTOOPT) => Ok(Some(None)),
            Err(e) => Err(e.into()),
        }
    }

    /// The description, or where it belongs among those of its inode.
    fn search(&self, key: (u64, u64), fd: BorrowedFd<'_>) -> Result<std::result::Result<FileId, usize>> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let all = self.with_inode(key.0, key.1);
        // All anonymous files (eventfd, epoll ...) share one inode: there may be thousands.
        let (mut from, mut to) = (0, all.len());
        while from < to {
            let middle = from + (to - from) / 2;
            let other = self.ours(all[middle])?.as_raw_fd();
            match kcmp::compare(me, me, What::File(other, fd.as_raw_fd()))? {
                Ordering::Equal => return Ok(Ok(all[middle])),
                Ordering::Less => from = middle + 1,
                Ordering::Greater => to = middle,
            }
        }
        Ok(Err(from))
    }

    /// Our duplicate of a collected description.
    ///
    /// # Errors
    /// `Unsupported` for an id that was never given.
    pub fn ours(&self, id: FileId) -> Result<BorrowedFd<'_>> {
        let fd = self.ours.get(&id).ok_or_else(|| Cause::unsupported(format!("file {id}, which was not collected")))?;
        Ok(fd.as_fd())
    }

    /// The collected descriptions of an inode.
    #[must_use]
    pub fn with_inode(&self, dev: u64, ino: u64) -> &[FileId] {
        self.held.get(&(dev, ino)).map_or(&[], Vec::as_slice)
    }

    /// The first description of the object behind `seen`, by which the image names it.
    pub fn object(&mut self, kind: &'static str, seen: &Seen) -> FileId {
        *self.firsts.entry((kind, seen.stat.st_dev, seen.stat.st_ino)).or_insert(seen.id)
    }

    /// To be called when no more descriptions come: what can only be told when all are known.
    ///
    /// # Errors
    /// What cannot be captured: an other end outside of the tree, above all.
    pub fn finish(&mut self) -> Result<()> {
        super::eventfd::finish(self)?;
        super::pipe::finish(self)?;
        super::unix::finish(self)?;
        super::inet::finish(self)?;
        super::ptmx::finish(self)?;
        super::tty::finish(self)?;
        super::inotify::finish(self)?;
        super::epoll::finish(self)
    }

    /// An id for a description that is put together by the caller; [`Self::fill`] gives it its record.
    ///
    /// # Errors
    /// Too many files.
    pub fn reserve(&mut self, flags: u32) -> Result<FileId> {
        let id = FileId(u32::try_from(self.entries.len()).map_err(|_| Cause::unsupported("2^32 open files"))?);
        let record = Record::External(super::external::Record::Stdin);
        self.entries.push(Entry { id, flags, owner: None, labels: Vec::new(), mounts: None, network: None, record });
        Ok(id)
    }

    /// Gives a reserved id its record.
    pub fn fill(&mut self, id: FileId, record: Record) {
        if let Some(entry) = self.entries.get_mut(id.0 as usize) {
            entry.record = record;
        }
    }

    /// A collected description of the file with this device and inode that can be mapped; `writes`: also for writing.
    #[must_use]
    pub fn holding(&self, dev: u64, ino: u64, writes: bool) -> Option<FileId> {
        let fits = |id: &FileId| {
            let flags = self.entries.get(id.0 as usize).map_or(0, |e| e.flags);
            let mode = OFlags::from_bits_retain(flags) & OFlags::ACCMODE;
            flags & OFlags::PATH.bits() == 0 && (mode == OFlags::RDWR || mode == OFlags::RDONLY && !writes)
        };
        self.held.get(&(dev, ino))?.iter().copied().find(fits)
    }

    /// A deleted file's number in the image: inode numbers alone are alike in several file systems.
    pub fn ghost(&mut self, dev: u64, ino: u64) -> u64 {
        let next = self.ghosts.len() as u64;
        *self.ghosts.entry((dev, ino)).or_insert(next)
    }

    /// The device of a mapped file, as fstat tells it. Of some file systems (overlay, btrfs) mappings show another one; there a
    /// deleted file is found by its link.
    #[must_use]
    pub fn device_of(&self, map: &Map) -> u64 {
        let shown = map.dev.st_dev();
        let known = map.deleted && !self.held.contains_key(&(shown, map.inode));
        let held = known.then(|| self.deleted.get(&(Bytes(map.name.clone()), map.inode))).flatten();
        // Two would not tell which.
        held.filter(|devices| devices.len() == 1).and_then(BTreeSet::first).copied().unwrap_or(shown)
    }

    /// A deleted file that some description leads to, opened again.
    ///
    /// # Errors
    /// What openat says.
    pub fn again(&self, dev: u64, ino: u64, flags: OFlags) -> Result<Option<OwnedFd>> {
        let Some(held) = self.with_inode(dev, ino).first() else { return Ok(None) };
        super::regular::reopen(&self.proc, self.ours(*held)?, flags).map(Some)
    }

    /// What `/proc/self/fd` calls a descriptor of ours.
    pub(super) fn link_of(&self, fd: BorrowedFd<'_>) -> Result<Bytes> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        self.link(&format!("{me}/fd/{}", fd.as_raw_fd()))
    }

    /// The fdinfo of a descriptor of ours, as it is now.
    pub(super) fn info_of(&self, fd: BorrowedFd<'_>) -> Result<FdInfo> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        Ok(yendor_proc::fdinfo::parse(&self.read(&format!("{me}/fdinfo/{}", fd.as_raw_fd()))?)?)
    }

    /// What a link of /proc says.
    pub(super) fn link(&self, path: &str) -> Result<Bytes> {
        let target = rustix::fs::readlinkat(&self.proc, path, Vec::new()).named("readlinkat", || path.into())?;
        Ok(Bytes(target.into_bytes()))
    }

    /// A file of /proc.
    ///
    /// # Errors
    /// What openat and read say.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        Ok(yendor_task::tree::read_proc(self.proc.as_fd(), path)?)
    }

    /// Whether `path` (absolute, inside the tree's root) still leads to the inode of `stat`.
    #[must_use]
    pub fn leads_to(&self, path: &[u8], stat: &Stat) -> bool {
        self.open_inside(path, OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|fd| rustix::fs::fstat(&fd).named("fstat", String::new))
            .is_ok_and(|s| (s.st_dev, s.st_ino) == (stat.st_dev, stat.st_ino))
    }

    /// Opens a path inside the tree's root.
    ///
    /// # Errors
    /// What openat2 says.
    pub fn open_inside(&self, path: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, SysError> {
        use rustix::fs::ResolveFlags;
        let flags = flags | OFlags::CLOEXEC;
        let root = self.here.and_then(|id| self.places.get(id)).map_or(&self.root, |place| &place.root);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
        patience::with("openat2", 0, || super::workshop::undisturbed(open))
            .named("openat2", || format!("{}, RESOLVE_IN_ROOT", path.escape_ascii()))
    }

    /// Opens a regular file inside the tree's root; none when it is something else, which is not opened: a fifo would wait for somebody of the
    /// tree, and what opening a device does nobody knows.
    ///
    /// # Errors
    /// What openat2, openat and fstat say.
    pub fn open_regular(&self, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>> {
        let fd = self.open_inside(path, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&fd).named("fstat", || path.escape_ascii().to_string())?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => super::regular::reopen(&self.proc, fd.as_fd(), flags).map(Some),
            _ => Ok(None),
        }
    }

    /// Notes that something is lost, if the caller allowed that kind.
    ///
    /// # Errors
    /// `Unsupported`, naming the flag, when the caller did not.
    pub fn lose(&mut self, kind: &str, object: String) -> Result<()> {
        if self.allow_lost.contains(kind) {
            self.lost.push((kind.to_owned(), object));
            return Ok(());
        }
        Err(Cause::would_be_lost(kind, &object))
    }
}

/// `F_GETOWN_EX` and `F_GETSIG`, translated.
fn owner_of(seen: &Seen, pids: &BTreeMap<i32, NsPid>) -> Result<Option<Owner>> {
    let kind = FileType::from_raw_mode(seen.stat.st_mode);
    if seen.info.flags & OFlags::PATH.bits() != 0 || kind == FileType::Directory {
        return Ok(None);
    }
    let Some((kind, pid, signal)) = yendor_sys::fd::owner(&seen.fd)? else { return Ok(None) };
    // Only the signal was chosen.
    if pid == 0 {
        return Ok(Some(Owner { kind, id: NsPid(0), signal }));
    }
    let id = pids.get(&pid).copied();
    let id = id.ok_or_else(|| Cause::unsupported(format!("{}: its signals go to {pid}, outside", seen.link)))?;
    Ok(Some(Owner { kind, id, signal }))
}

/// Whether an error says that the thing is gone.
#[must_use]
pub fn is_gone(e: &SysError) -> bool {
    matches!(e.errno, Errno::NOENT | Errno::SRCH)
}
