//! What file kinds share while they rebuild.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Access, AtFlags, Mode, OFlags, ResolveFlags, accessat};
use yendor_image::{FileId, NsId, NsPid, Reader};
use yendor_sys::{Errno, SysError};

use super::external::Filled;
use super::{Entry, Record};
use crate::namespace::networks::Networks;
use crate::{Cause, Named, Result};

/// Descriptions made so far, and what they are made from.
pub struct Workshop<'a> {
    /// The image, for contents that travel in it.
    pub reader: Option<&'a Reader>,
    /// The container's root directory.
    pub root: OwnedFd,
    /// Root directories of mount namespaces inside it.
    pub roots: BTreeMap<NsId, OwnedFd>,
    /// Networks inside it.
    pub networks: Networks,
    /// The one of the mount namespaces that paths lead through; none: the container's.
    here: Option<NsId>,
    /// Where a policy judges what is made: the directories in which it could be made without. None: no policy does.
    judged: Option<BTreeSet<Vec<u8>>>,
    /// A /proc that shows this process.
    pub proc: OwnedFd,
    /// What the caller hands in.
    pub filled: Filled,
    /// How far the container's clocks are ahead of ours.
    pub clocks: super::timerfd::Clocks,
    /// Unix sockets on their way.
    pub(super) unix: super::unix::Bench,
    /// The tasks that are born: their pids inside, and as we see them.
    pub tasks: BTreeMap<NsPid, i32>,
    /// Who makes unix sockets.
    pub maker: super::unix::Maker,
    /// All entries of the image.
    entries: BTreeMap<FileId, &'a Entry>,
    /// Descriptions that exist.
    made: BTreeMap<FileId, OwnedFd>,
    /// Being made right now: a second visit is a cycle.
    making: BTreeSet<FileId>,
    /// Objects behind several descriptions (both ends of a pipe), by (kind, id), as the kind left them.
    pub objects: BTreeMap<(&'static str, u64), Vec<OwnedFd>>,
}

impl<'a> Workshop<'a> {
    /// An empty workshop for the entries of an image.
    ///
    /// # Errors
    /// `Corrupt` when two entries have one id.
    pub fn new(
        reader: Option<&'a Reader>,
        root: OwnedFd,
        proc: OwnedFd,
        filled: Filled,
        entries: &'a [Entry],
    ) -> Result<Self> {
        let mut map = BTreeMap::new();
        for entry in entries {
            if map.insert(entry.id, entry).is_some() {
                return Err(Cause::corrupt(format!("two files have the id {}", entry.id)));
            }
        }
        let objects = BTreeMap::new();
        let clocks = super::timerfd::Clocks::default();
        Ok(Self {
            reader,
            root,
            roots: BTreeMap::new(),
            networks: Networks::default(),
            here: None,
            judged: None,
            proc,
            filled,
            clocks,
            unix: super::unix::Bench::default(),
            tasks: BTreeMap::new(),
            maker: super::unix::Maker::Child,
            entries: map,
            made: BTreeMap::new(),
            making: BTreeSet::new(),
            objects,
        })
    }

    /// The entry with an id.
    ///
    /// # Errors
    /// `Corrupt` for an id that names nothing.
    pub fn entry(&self, id: FileId) -> Result<&'a Entry> {
        self.entries.get(&id).copied().ok_or_else(|| Cause::corrupt(format!("no file has the id {id}")))
    }

    /// The description with an id, made now if it does not exist yet.
    ///
    /// # Errors
    /// Its kind's; `Corrupt` for a dangling id or one that needs itself.
    pub fn fd(&mut self, id: FileId) -> Result<BorrowedFd<'_>> {
        if !self.made.contains_key(&id) {
            let entry = self.entry(id)?;
            if !self.making.insert(id) {
                return Err(Cause::corrupt(format!("file {id} needs itself")));
            }
            let before = std::mem::replace(&mut self.here, entry.mounts);
            let made = match (&entry.network, &entry.record) {
                (None, _) | (_, Record::Unix(_) | Record::Inet(_) | Record::Netlink(_)) => {
                    let networks = self.networks.clone();
                    networks.within(entry.network, || entry.record.rebuild(entry, self))
                }
                (Some(_), _) => Err(Cause::corrupt(format!("file {id}, which is no socket, has a network"))),
            };
            self.here = before;
            self.making.remove(&id);
            let fd = made?;
            // What belongs to the caller keeps the caller's flags.
            if !matches!(entry.record, super::Record::External(_)) {
                set_status(&fd, entry.flags)?;
            }
            self.made.insert(id, fd);
        }
        Ok(self.made[&id].as_fd())
    }

    /// All entries, by id.
    pub fn entries(&self) -> impl Iterator<Item = &'a Entry> + use<'a, '_> {
        self.entries.values().copied()
    }

    /// Does something in the network of a socket.
    ///
    /// # Errors
    /// `body`'s own; what setns says.
    pub(super) fn within<T>(&self, id: FileId, body: impl FnOnce() -> Result<T>) -> Result<T> {
        self.networks.within(self.entry(id)?.network, body)
    }

    /// A description that exists.
    ///
    /// # Errors
    /// `Corrupt` for a dangling id.
    pub fn existing(&self, id: FileId) -> Result<BorrowedFd<'_>> {
        Ok(self.made.get(&id).ok_or_else(|| Cause::corrupt(format!("no file has the id {id}")))?.as_fd())
    }

    /// Whether the description exists already.
    pub(super) fn exists(&self, id: FileId) -> bool {
        self.made.contains_key(&id)
    }

    /// The parts of an object that a kind has put into [`Self::objects`].
    ///
    /// # Errors
    /// `Corrupt` when it has not.
    pub fn object(&self, key: (&'static str, u64)) -> Result<&[OwnedFd]> {
        let parts = self.objects.get(&key).map(Vec::as_slice);
        parts.ok_or_else(|| Cause::corrupt(format!("{} {} was never made", key.0, key.1)))
    }

    /// A task that is born, as we see it.
    ///
    /// # Errors
    /// `Corrupt` for one that is not in the image.
    pub fn born(&self, process: NsPid) -> Result<i32> {
        let pid = self.tasks.get(&process).copied();
        pid.ok_or_else(|| Cause::corrupt(format!("a file of process {process}, which is not in the image")))
    }

    /// To be called once all tasks are born: the descriptions that need them. Their ids.
    ///
    /// # Errors
    /// Their kinds'.
    pub fn finish_late(&mut self) -> Result<Vec<FileId>> {
        let late: Vec<FileId> = self.entries.values().filter(|e| e.record.is_late()).map(|e| e.id).collect();
        for id in &late {
            self.fd(*id)?;
        }
        super::epoll::register_all(self, true)?;
        Ok(late)
    }

    /// To be called when all descriptions exist but the late ones: what can only be done then. Afterwards the workshop must go, or its ends of pipes and sockets would keep them alive.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&mut self) -> Result<()> {
        let early: Vec<FileId> = self.entries.values().filter(|e| !e.record.is_late()).map(|e| e.id).collect();
        for id in early {
            self.fd(id)?;
        }
        super::mqueue::unlink_all(self)?;
        super::unix::connect_all(self)?;
        super::inet::finish_all(self)?;
        super::ptmx::fill_all(self)?;
        super::epoll::register_all(self, false)
    }

    /// To be called when the tasks have their descriptors and mappings: a seal against writing forbids to map, a socket that lingers holds up
    /// who closes it, and from here on no file is touched any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn seal(&mut self) -> Result<()> {
        super::memfd::seal_all(self)?;
        super::inotify::watch_all(self)?;
        super::inet::linger_all(self)
    }

    /// Opens what the image has open at a path, which whoever makes the container has to have there.
    ///
    /// # Errors
    /// `Hole` for what is not there, or is not there so; what else openat2 says.
    pub fn find(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        self.open(path, flags, Mode::empty()).map_err(|e| match e.errno {
            Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::NXIO | Errno::NODEV | Errno::ROFS => {
                let why = std::io::Error::from(e.errno).to_string();
                let why = why.split(" (os error").next().unwrap_or_default();
                let what = format!("{} as it was: {why}", path.escape_ascii());
                Cause::Hole { what, option: "--volume or --rootfs".into() }
            }
            _ => e.into(),
        })
    }

    /// A policy will judge what is made from now on. Where the container's root may make files is asked before.
    pub fn judge(&mut self) {
        let lets = |directory: &Vec<u8>| {
            let asked = Access::WRITE_OK | Access::EXEC_OK;
            let open = self.open(directory, OFlags::DIRECTORY | OFlags::PATH, Mode::empty());
            open.is_ok_and(|fd| accessat(&fd, c".", asked, AtFlags::EACCESS).is_ok())
        };
        let nameless = self.entries.values().filter_map(|entry| match &entry.record {
            Record::Regular(file) => file.ghost_directory(),
            _ => None,
        });
        let directories: BTreeSet<_> = nameless.map(<[u8]>::to_vec).collect();
        self.judged = Some(directories.into_iter().filter(lets).collect());
    }

    /// What no name will lead to: made in its old directory or, where that is gone or gives no rights, in /tmp. Not when a policy forbids it.
    pub(super) fn or_in_tmp<T>(
        &self,
        path: &[u8],
        made: std::result::Result<T, SysError>,
        in_tmp: impl FnOnce() -> std::result::Result<T, SysError>,
    ) -> std::result::Result<T, SysError> {
        made.or_else(|e| if self.forbids(path, &e) { Err(e) } else { in_tmp() })
    }

    /// Whether it is the policy that refuses a path, and not its directory: where that is another user's the root of a container may have no
    /// rights in it.
    #[must_use]
    pub fn forbids(&self, path: &[u8], refused: &SysError) -> bool {
        let lets = |directories: &BTreeSet<Vec<u8>>| directories.contains(super::regular::parent(path));
        matches!(refused.errno, Errno::ACCESS | Errno::PERM) && self.judged.as_ref().is_some_and(lets)
    }

    /// Opens a path beneath the container's root.
    ///
    /// # Errors
    /// What openat2 says.
    pub fn open(&self, path: &[u8], flags: OFlags, mode: Mode) -> std::result::Result<OwnedFd, SysError> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // openat2 refuses what open ignores beside O_PATH.
        let path_only = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let flags = if flags.contains(OFlags::PATH) { flags & path_only } else { flags };
        let root = match self.here {
            None => &self.root,
            Some(id) => self.roots.get(&id).ok_or(Errno::NOENT).named("openat2", || format!("mounts of {id}"))?,
        };
        // What lies in the place of a file may be a named pipe, whose other end nobody opens. `set_status` takes the flag away again.
        let at_once = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NONBLOCK };
        let open = |flags| undisturbed(|| rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve));
        let opened = match open(at_once) {
            // Somebody has a lease on the file, which takes them a while to give back.
            Err(Errno::AGAIN) if at_once != flags => open(flags),
            opened => opened,
        };
        opened.named("openat2", || format!("\"{}\", {flags:?}", path.escape_ascii()))
    }
}

/// What opens a path beneath a root, once more where somebody has mounted or renamed something anywhere meanwhile: then the kernel does not know
/// whether `..` has left the root (`EAGAIN`).
pub(in crate::file) fn undisturbed(open: impl Fn() -> rustix::io::Result<OwnedFd>) -> rustix::io::Result<OwnedFd> {
    const TRIES: usize = 100;
    let mut tries = std::iter::repeat_with(open).take(TRIES).skip_while(|opened| matches!(opened, Err(Errno::AGAIN)));
    tries.next().unwrap_or(Err(Errno::AGAIN))
}

/// The status flags that fcntl can change; the rest was given at open.
fn set_status(fd: &OwnedFd, flags: u32) -> Result<()> {
    if flags & OFlags::PATH.bits() != 0 {
        return Ok(());
    }
    let can_change = OFlags::NONBLOCK | OFlags::APPEND | OFlags::DIRECT | OFlags::NOATIME;
    let wanted = OFlags::from_bits_retain(flags) & can_change;
    let now = rustix::fs::fcntl_getfl(fd).named("fcntl", || "F_GETFL".into())?;
    if now & can_change != wanted {
        let set = (now & !can_change) | wanted;
        rustix::fs::fcntl_setfl(fd, set).named("fcntl", || format!("F_SETFL, {set:?}"))?;
    }
    Ok(())
}
