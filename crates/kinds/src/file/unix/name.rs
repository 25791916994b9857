//! The address of a unix socket.
//! *Read from:* getsockname; the file system says whether a path still leads to the socket.
//! *Made again by:* bind, inside the container's root or the one below it that leads to the socket (chroot), in the directory that
//! a relative path was bound in.
//! *Lost:* the inode number of the name; the directory of a relative path that no longer leads to the socket.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::{Errno, SysError, fd::in_own_directory, sock};

use super::{Gather, Seen};
use crate::file::workshop::undisturbed;
use crate::{Cause, Named, Result};

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// As in `sun_path`: a path, or an abstract name with its leading zero.
    pub address: Bytes,
    /// The absolute path of the directory that a relative path starts from.
    pub directory: Bytes,
    /// The root that an absolute path starts from, where it is not the container's (chroot(2)).
    #[serde(default)]
    pub root: Option<Bytes>,
    /// Permission bits, owner and group of the name's inode; none for an abstract name and for a path that does not lead
    /// to this socket any more.
    pub inode: Option<(u32, u32, u32)>,
}

/// The address of a socket whose name leads to inode `bound`, if it has one.
///
/// # Errors
/// What getsockname says.
pub fn collect(seen: &Seen, gather: &Gather<'_>) -> Result<Option<Record>> {
    let address = sock::name(seen.fd.as_fd())?;
    let (first, holder) = match address.first() {
        None => return Ok(None),
        Some(first) => (*first, seen.holder),
    };
    let (mut directory, mut root) = (Bytes(b"/".to_vec()), None);
    if first != 0
        && let Some((pid, _)) = holder
    {
        match first {
            b'/' => root = own_root(pid, gather)?,
            _ => directory = gather.link(&format!("{pid}/cwd"))?,
        }
    }
    Ok(Some(Record { address: Bytes(address), directory, root, inode: None }))
}

/// The root of a process, where it is another directory than the container's root.
fn own_root(pid: i32, gather: &Gather<'_>) -> Result<Option<Bytes>> {
    let path = format!("{pid}/root");
    let theirs =
        rustix::fs::statat(&gather.proc, path.as_str(), AtFlags::empty()).named("newfstatat", || path.clone())?;
    let ours = rustix::fs::fstat(&gather.root).named("fstat", || "the container's root".into())?;
    let link = gather.link(&path)?;
    Ok(Some(link).filter(|link| link.0 != b"/" && (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino)))
}

impl Record {
    /// Whether it is a path.
    #[must_use]
    pub fn is_path(&self) -> bool {
        self.address.0.first().is_some_and(|b| *b != 0)
    }

    /// Whether both are of one socket, or of a listening one and what it has accepted.
    #[must_use]
    pub fn is_same(&self, other: &Record) -> bool {
        (&self.address, &self.root) == (&other.address, &other.root)
    }

    /// Finds the name's inode, `bound` as the kernel tells it, if the path still leads there: from the root of who holds the
    /// socket, or from one of `roots`, which who has bound it may have had.
    ///
    /// # Errors
    /// `Unsupported` for one in a nested mount namespace.
    pub fn find(&mut self, bound: Option<u32>, roots: &BTreeSet<Option<Bytes>>, gather: &mut Gather<'_>) -> Result<()> {
        if !self.is_path() {
            return Ok(());
        }
        let own = self.root.clone();
        let others = roots.iter().filter(|root| **root != own && self.address.0.starts_with(b"/"));
        for root in std::iter::once(&own).chain(others) {
            self.inode = self.inode_here(bound, root.as_ref(), gather);
            if self.inode.is_some() {
                self.root.clone_from(root);
                return Ok(());
            }
        }
        for place in gather.places.clone().0.iter() {
            gather.here = Some(place.id);
            let there = self.inode_here(bound, own.as_ref(), gather);
            gather.here = None;
            if there.is_some() {
                let what = format!("{}: a unix socket of a nested mnt namespace", self.address);
                return Err(Cause::unsupported(what));
            }
        }
        Ok(())
    }

    /// Permissions and owner of the inode that the path leads to, if it is that of the socket.
    fn inode_here(&self, bound: Option<u32>, root: Option<&Bytes>, gather: &Gather<'_>) -> Option<(u32, u32, u32)> {
        let mut path = self.directory.0.clone();
        path.push(b'/');
        path.extend_from_slice(&self.address.0);
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let fd = match root {
            None => gather.open_inside(&path, flags).ok()?,
            Some(root) => {
                let root = gather.open_inside(&root.0, OFlags::PATH | OFlags::DIRECTORY).ok()?;
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?
            }
        };
        let stat = rustix::fs::fstat(&fd).ok()?;
        // The kernel tells the lower half of the inode number.
        let same = bound.is_some_and(|b| stat.st_ino & 0xffff_ffff == u64::from(b));
        if same && FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            return Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid));
        }
        None
    }

    /// Gives the address to a socket. A stale socket of that path goes; one that somebody listens to stays.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub fn bind(&self, fd: BorrowedFd<'_>, kind: SocketType, root: &OwnedFd) -> Result<()> {
        let Record { address, inode, .. } = self;
        if !self.is_path() {
            return Ok(sock::bind(fd, &address.0)?);
        }
        let bound = self.inside(root, |place, name| {
            self.remove_stale((place, name), kind)?;
            sock::bind(fd, &address.0)?;
            let path = || format!("\"{address}\"");
            // A path that leads to it no more goes again in `unlink`.
            let Some((mode, uid, gid)) = inode else { return Ok(()) };
            let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            rustix::fs::chownat(place, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).named("fchownat", path)?;
            rustix::fs::chmodat(place, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
                .named("fchmodat", path)
        });
        match bound {
            Err(e) if e.errno == Errno::ADDRINUSE => Err(Cause::Hole {
                what: format!("the place of the socket \"{address}\", where somebody has something already"),
                option: "--volume or --rootfs".into(),
            }),
            bound => Ok(bound?),
        }
    }

    /// Takes the path away again, if it is one that no longer led to the socket.
    ///
    /// # Errors
    /// What unlink says.
    pub fn unlink(&self, root: &OwnedFd) -> Result<()> {
        if !self.is_path() || self.inode.is_some() {
            return Ok(());
        }
        let address = &self.address;
        Ok(self.inside(root, |place, name| {
            rustix::fs::unlinkat(place, name, AtFlags::empty()).named("unlinkat", || format!("\"{address}\""))
        })?)
    }

    /// Connects a socket to this address.
    ///
    /// # Errors
    /// What connect says.
    pub fn connect(&self, fd: BorrowedFd<'_>, root: &OwnedFd) -> std::result::Result<(), SysError> {
        if !self.is_path() {
            return sock::connect(fd, Some(&self.address.0));
        }
        self.inside(root, |place, name| {
            stays(place, name)?;
            sock::connect(fd, Some(&self.address.0))
        })
    }

    /// Sends a datagram to this address.
    ///
    /// # Errors
    /// What sendmsg says.
    pub fn send(
        &self,
        fd: BorrowedFd<'_>,
        data: &[u8],
        files: &[BorrowedFd<'_>],
        root: &OwnedFd,
    ) -> std::result::Result<(), SysError> {
        if !self.is_path() {
            return sock::send(fd, data, files, Some(&self.address.0));
        }
        self.inside(root, |place, name| {
            stays(place, name)?;
            sock::send(fd, data, files, Some(&self.address.0))
        })
    }

    /// Runs `f` where the root is the container's, or the one that the path starts from, in the directory of this path. It is told where the
    /// last component of the path is, and that one.
    ///
    /// The kernel walks the path itself in bind and connect, through magic links of /proc as well, which lead to whatever a process has
    /// open: therefore it is walked before without these.
    fn inside(
        &self,
        root: &OwnedFd,
        f: impl FnOnce(BorrowedFd<'_>, &[u8]) -> std::result::Result<(), SysError> + Send,
    ) -> std::result::Result<(), SysError> {
        let same = |s: &rustix::fs::Stat| (s.st_dev, s.st_ino);
        let wanted = rustix::fs::fstat(root).named("fstat", || "the container's root".into())?;
        let ours = rustix::fs::stat("/").named("stat", || "/".into())?;
        let elsewhere = same(&wanted) != same(&ours);
        let Record { address, directory, root: own, inode: _ } = self;
        let start = own.as_ref().map(|own| enter(root.as_fd(), &own.0)).transpose()?;
        let start = start.as_ref().unwrap_or(root);
        let from = enter(start.as_fd(), &directory.0)?;
        // As the kernel walks it: an absolute one from the root.
        let relative = !address.0.starts_with(b"/");
        let path = if relative { [&directory.0, &b"/"[..], &address.0].concat() } else { address.0.clone() };
        let slash = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let place = enter(start.as_fd(), &path[..=slash])?;
        in_own_directory(|| {
            if elsewhere || own.is_some() {
                rustix::process::fchdir(start).named("fchdir", || "a root".into())?;
                rustix::process::chroot(".").named("chroot", || ".".into())?;
            }
            rustix::process::fchdir(&from).named("fchdir", || format!("\"{directory}\""))?;
            f(place.as_fd(), &path[slash + 1..])
        })
    }

    /// Removes a socket that nobody is bound to any more.
    fn remove_stale(
        &self,
        (place, name): (BorrowedFd<'_>, &[u8]),
        kind: SocketType,
    ) -> std::result::Result<(), SysError> {
        let is_socket = |mode| FileType::from_raw_mode(mode) == FileType::Socket;
        match rustix::fs::statat(place, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_socket(stat.st_mode) => {}
            _ => return Ok(()),
        }
        let probe = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
            .named("socket", || "AF_UNIX".into())?;
        match sock::connect(probe.as_fd(), Some(&self.address.0)) {
            Err(e) if e.errno == Errno::CONNREFUSED => rustix::fs::unlinkat(place, name, AtFlags::empty())
                .named("unlinkat", || format!("\"{}\"", self.address)),
            // Alive: bind will say that the address is in use.
            _ => Ok(()),
        }
    }
}

/// A directory below a root.
fn enter(root: BorrowedFd<'_>, path: &[u8]) -> std::result::Result<OwnedFd, SysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    undisturbed(|| rustix::fs::openat2(root, path, flags, Mode::empty(), resolve))
        .named("openat2", || format!("\"{}\", O_PATH|O_DIRECTORY", path.escape_ascii()))
}

/// That a name is the socket's own: a link would be followed.
fn stays(place: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), SysError> {
    let shown = || format!("\"{}\", AT_SYMLINK_NOFOLLOW", name.escape_ascii());
    let stat = rustix::fs::statat(place, name, AtFlags::SYMLINK_NOFOLLOW).named("newfstatat", shown)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Err(SysError::new("connect", shown(), Errno::LOOP)),
        _ => Ok(()),
    }
}
