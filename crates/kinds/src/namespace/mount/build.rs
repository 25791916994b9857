//! The mounts of a nested namespace, put together by a child that is in it.
//! *Read from:* nothing; the record is collected by [`super`].
//! *Made again by:* fsopen, open_tree, move_mount, mount_setattr, pivot_root; the keeper fills each tmpfs meanwhile.
//! *Lost:* as [`super`] says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat, openat2, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    fspick, move_mount, open_tree, unmount,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, fchdir, pidfd_getfd, pidfd_open, pivot_root};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use yendor_image::{NsId, Reader};
use yendor_proc::mountinfo::{self, Mount as Line};
use yendor_sys::mount::furnish;
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::read_proc;

use super::check::check;
use super::{Mount, Record, System, Type, What, comparable, join, layer, rest_of};
use crate::namespace::user::elsewhere;
use crate::{Cause, Named, Result};

/// A namespace that is made.
#[derive(Debug)]
pub struct Made {
    /// It.
    pub namespace: OwnedFd,
    /// Its root directory.
    pub root: OwnedFd,
}

impl Mount {
    /// Whether it is a proc of a pid namespace that is not the container's.
    pub(super) fn shows_others(&self) -> bool {
        matches!(&self.what, What::New(System { pids: Some(_), .. }))
    }

    pub(super) fn may_be_late(&self) -> bool {
        self.shows_others() || matches!(&self.what, What::Part { .. })
    }
}

impl Record {
    /// Of each mount whether it is made only when pid namespaces have begun: a proc of such a one, its parts, and what is mounted on them.
    pub(super) fn late(&self) -> impl Iterator<Item = bool> + use<> {
        let mut late: Vec<bool> = Vec::with_capacity(self.mounts.len());
        for mount in &self.mounts {
            let of = if let What::Part { of, .. } = &mount.what { Some(*of) } else { None };
            let is_late = |n: u32| usize::try_from(n).ok().and_then(|n| late.get(n).copied()).unwrap_or(false);
            late.push(mount.shows_others() || of.is_some_and(is_late) || mount.on.is_some_and(is_late));
        }
        late.into_iter()
    }
}

/// Makes one again, in the user namespace `owner`, unless that is the container's. The caller has one thread, and its children are in the
/// container's pid namespace.
///
/// # Errors
/// The kernel's; `Corrupt` for mounts that cannot be.
pub fn rebuild(record: &Record, owner: Option<&OwnedFd>, proc: BorrowedFd<'_>, reader: &Reader) -> Result<Made> {
    check(record)?;
    let made: RefCell<Vec<Option<OwnedFd>>> = RefCell::default();
    let enter = || {
        if let Some(owner) = owner {
            move_into_link_name_space(owner.as_fd(), Some(LinkNameSpaceType::User))
                .named("setns", || "a nested user namespace".into())?;
        }
        unshare(Namespaces::NEWNS)?;
        let systems = record.mounts.iter().map(|mount| match &mount.what {
            What::New(system) if !mount.shows_others() => make(system).map(Some),
            What::New(_) | What::Outside(_) | What::Part { .. } => Ok(None),
        });
        *made.borrow_mut() = systems.collect::<Result<_>>()?;
        Ok(made.borrow().iter().map(|fd| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)).collect())
    };
    let fill = |pid: i32, numbers: &[i32]| {
        let gone = || SysError::new("pidfd_open", pid.to_string(), Errno::SRCH);
        let child = pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty());
        let child = child.named("pidfd_open", || pid.to_string())?;
        let umask = rustix::process::umask(Mode::empty());
        let filled = record.mounts.iter().zip(numbers).try_for_each(|(mount, number)| {
            let What::New(System { content: Some(content), .. }) = &mount.what else { return Ok(()) };
            let top = pidfd_getfd(&child, *number, PidfdGetfdFlags::empty());
            let top = top.named("pidfd_getfd", || format!("{pid}, {number}"))?;
            layer::rebuild(content, &top, &[], reader)
        });
        rustix::process::umask(umask);
        filled
    };
    let settle = || {
        let made = std::mem::take(&mut *made.borrow_mut());
        assemble(record, made, proc)?;
        compare(record, false, proc)
    };
    let take = |pid: i32| {
        let open = |name: &str, flags| {
            let path = format!("{pid}/{name}");
            openat(proc, path.as_str(), flags, Mode::empty()).named("openat", || format!("/proc/{path}"))
        };
        let namespace = open("ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC)?;
        Ok(Made { namespace, root: open("root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)? })
    };
    elsewhere((proc, owner.map(AsFd::as_fd)), "mnt", enter, fill, settle, take)
}

/// Mounts what shows pid namespaces inside, or is a part of that, on what is made already; `pids`: a descriptor of each. The caller has one
/// thread.
///
/// # Errors
/// The kernel's; `Corrupt` for a pid namespace that is not there.
pub fn finish(
    record: &Record,
    namespace: &OwnedFd,
    pids: &BTreeMap<NsId, OwnedFd>,
    proc: BorrowedFd<'_>,
) -> Result<()> {
    let late: Vec<usize> = record.late().enumerate().filter(|(_, late)| *late).map(|(number, _)| number).collect();
    for number in &late {
        let mount = &record.mounts[*number];
        let (system, source) = match &mount.what {
            What::New(system) => (system.pids.map(|_| system), None),
            What::Part { of, path } => {
                let of = usize::try_from(*of).ok().and_then(|of| record.mounts.get(of));
                (
                    of.and_then(|of| if let What::New(system) = &of.what { Some(system) } else { None }),
                    of.zip(Some(path)),
                )
            }
            What::Outside(_) => (None, None),
        };
        let theirs = system.and_then(|system| pids.get(&system.pids?));
        let (Some(system), Some(theirs)) = (system, theirs) else {
            return Err(Cause::corrupt(format!("{}: a mount on the proc of a pid namespace", mount.point)));
        };
        let enter = || {
            // While a proc is to be seen: else nobody may mount another.
            let made = if source.is_none() { Some(make(system)?) } else { None };
            super::enter(namespace)?;
            let root = open_directory("/")?;
            let at = |path: &[u8]| find(&root, below_root(path));
            let tree = match (made, source) {
                (Some(made), _) => made,
                (None, Some((of, path))) => copy(&at(&join(&of.point.0, &path.0))?, false)?,
                (None, None) => return Err(Cause::corrupt("a mount of nothing")),
            };
            put(&tree, &at(&mount.point.0)?)?;
            furnish(&tree, MountAttrFlags::from_bits_retain(mount.attributes), propagation(mount))?;
            if late.last() == Some(number) {
                compare(record, true, proc)?;
            }
            Ok(Vec::new())
        };
        born_in(theirs, proc, || {
            elsewhere((proc, Some(namespace.as_fd())), "mnt", enter, |_, _| Ok(()), || Ok(()), |_| Ok(()))
        })?;
    }
    Ok(())
}

/// The inode of the pid namespace that a proc shows: that of a process which is seen there by one id only. Not everybody may look at pid 1.
pub(super) fn pids_of(top: &OwnedFd) -> Result<Option<u64>> {
    for entry in rustix::fs::Dir::read_from(top).named("getdents64", || "a proc".into())? {
        let name = entry.named("getdents64", || "a proc".into())?.file_name().to_string_lossy().into_owned();
        if name.parse::<i32>().is_err() {
            continue;
        }
        let Ok(text) = read_proc(top.as_fd(), &format!("{name}/status")) else { continue };
        let ids = yendor_proc::status::parse(&text)?.ns_pid;
        let stat = rustix::fs::statat(top, format!("{name}/ns/pid"), AtFlags::empty());
        if let (Some([_]), Ok(stat)) = (ids.as_deref(), stat) {
            return Ok(Some(stat.st_ino));
        }
    }
    Ok(None)
}

/// The caller's children are born in a pid namespace meanwhile.
fn born_in<T>(pids: &OwnedFd, proc: BorrowedFd<'_>, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let enter = |fd: &OwnedFd| {
        let entered = move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::ProcessID));
        entered.named("setns", || "a pid namespace".into())
    };
    let path = "thread-self/ns/pid_for_children";
    let before = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let before = before.named("openat", || format!("/proc/{path}"))?;
    enter(pids)?;
    let done = body();
    enter(&before)?;
    done
}

pub(super) fn propagation(mount: &Mount) -> MountPropagationFlags {
    match (mount.shared, mount.unbindable) {
        (true, _) => MountPropagationFlags::SHARED,
        (false, true) => MountPropagationFlags::UNBINDABLE,
        (false, false) => MountPropagationFlags::PRIVATE,
    }
}

/// The option of a file system that nobody can write.
const READ_ONLY: &str = "ro";

/// Gives a tmpfs with its content the option that it could not have before.
pub(super) fn seal(system: &System, made: &OwnedFd) -> Result<()> {
    if !system.fs_type.is_filled() || !system.options.iter().any(|(key, _)| key == READ_ONLY) {
        return Ok(());
    }
    let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
    let context = fspick(made, c"", flags).named("fspick", || "tmpfs".into())?;
    fsconfig_set_flag(context.as_fd(), READ_ONLY).named("fsconfig", || "tmpfs, ro".into())?;
    Ok(fsconfig_reconfigure(context.as_fd()).named("fsconfig", || "tmpfs, FSCONFIG_CMD_RECONFIGURE".into())?)
}

/// A new file system, mounted nowhere: what of it is shown.
pub(super) fn make(system: &System) -> Result<OwnedFd> {
    let System { fs_type, options, root, content: _, pids: _ } = system;
    let name = fs_type.name();
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).named("fsopen", || format!("{name:?}"))?;
    // A tmpfs is filled first.
    for (key, value) in options.iter().filter(|(key, _)| !fs_type.is_filled() || key != READ_ONLY) {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()),
            None => fsconfig_set_flag(context.as_fd(), key.as_str()),
        }
        .named("fsconfig", || format!("{name}, {key}={value:?}"))?;
    }
    fsconfig_create(context.as_fd()).named("fsconfig", || format!("{name}, FSCONFIG_CMD_CREATE"))?;
    // Nobody may see a sysfs that can be written while the container's cannot; the mount's own attributes come later.
    let attributes = if *fs_type == Type::Sysfs { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes);
    let mounted = mounted.named("fsmount", || name.into())?;
    if root.0.is_empty() {
        return Ok(mounted);
    }
    let mut at = Vec::new();
    for part in root.0.split(|b| *b == b'/') {
        at = if at.is_empty() { part.to_vec() } else { join(&at, part) };
        rustix::fs::mkdirat(&mounted, at.as_slice(), Mode::from_raw_mode(0o755))
            .named("mkdirat", || root.to_string())?;
    }
    // Only what is mounted somewhere can be copied in part.
    put(&mounted, &open_directory("/")?)?;
    let part = openat(&mounted, root.0.as_slice(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let part = copy(&part.named("openat", || root.to_string())?, false)?;
    fchdir(&mounted).named("fchdir", || name.into())?;
    unmount(".", UnmountFlags::DETACH).named("umount2", || name.into())?;
    rustix::process::chdir("/").named("chdir", || "\"/\"".into())?;
    Ok(part)
}

pub(super) fn open_directory(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty()).named("open", || format!("{path:?}"))?)
}

/// Mounts a tree on a place.
pub(super) fn put(tree: &OwnedFd, place: &OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, c"", place, c"", flags).named("move_mount", String::new)?)
}

/// A copy of a mount, or of all below a place.
pub(super) fn copy(place: &OwnedFd, all: bool) -> std::result::Result<OwnedFd, SysError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let flags = if all { flags | OpenTreeFlags::AT_RECURSIVE } else { flags };
    open_tree(place, c"", flags).named("open_tree", || format!("{flags:?}"))
}

pub(super) fn find(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    let found =
        openat2(root, path, flags, Mode::empty(), resolve).named("openat2", || path.escape_ascii().to_string())?;
    // The last component is not followed, but found: a mount of a link would lead on.
    let stat = rustix::fs::fstat(&found).named("fstat", || path.escape_ascii().to_string())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(SysError::new("openat2", path.escape_ascii().to_string(), Errno::LOOP).into());
    }
    Ok(found)
}

pub(super) fn below_root(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"/").unwrap_or(path)
}

/// The calling process, which sees copies of all mounts of the container, makes those of the record of them.
fn assemble(record: &Record, mut made: Vec<Option<OwnedFd>>, proc: BorrowedFd<'_>) -> Result<()> {
    let old = open_directory("/")?;
    let theirs = mountinfo::parse(&read_proc(proc, "thread-self/mountinfo")?)?;
    let mut with: Vec<Option<usize>> = Vec::new();
    for (number, mount) in record.mounts.iter().enumerate() {
        with.push(copied_with(number, mount, record, &with, &theirs));
    }
    let whole = |number: usize| with.contains(&Some(number));
    let mut places: Vec<OwnedFd> = Vec::new();
    let turned = !matches!(&record.mounts[0].what, What::Outside(path) if path.0 == b"/");
    let top = if turned {
        let tree = tree(&record.mounts[0], whole(0), &mut made[0], &old, &places)?;
        put(&tree, &old)?;
        tree
    } else {
        old.try_clone().map_err(|e| SysError::io("dup", "/", &e))?
    };
    fchdir(&top).named("fchdir", || "the new root".into())?;
    for ((number, mount), late) in record.mounts.iter().enumerate().zip(record.late()) {
        let root = || top.try_clone().map_err(|e| SysError::io("dup", "/", &e));
        if late {
            places.push(root()?);
            continue;
        }
        let place = if number == 0 {
            root()?
        } else if with[number].is_some() {
            find(&top, below_root(&mount.point.0))?
        } else {
            let tree = tree(mount, whole(number), &mut made[number], &old, &places)?;
            put(&tree, &find(&top, below_root(&mount.point.0))?)?;
            tree
        };
        if let (None, What::Outside(path)) = (with[number], &mount.what) {
            remove_others(number, (&mount.point.0, &path.0), record, &with, &theirs)?;
        }
        furnish(&place, MountAttrFlags::from_bits_retain(mount.attributes), propagation(mount))?;
        places.push(place);
    }
    if turned {
        pivot_root(".", ".").named("pivot_root", || "\".\", \".\"".into())?;
        fchdir(&old).named("fchdir", || "the old root".into())?;
        unmount(".", UnmountFlags::DETACH).named("umount2", || "the old root".into())?;
    }
    Ok(rustix::process::chdir("/").named("chdir", || "\"/\"".into())?)
}

/// The mount that brings this one along when all below it is copied.
pub(super) fn copied_with(
    number: usize,
    mount: &Mount,
    record: &Record,
    with: &[Option<usize>],
    theirs: &[Line],
) -> Option<usize> {
    let What::Outside(path) = &mount.what else { return None };
    let on = usize::try_from(mount.on?).ok().filter(|on| *on < number)?;
    let below = record.mounts.get(on)?;
    let What::Outside(under) = &below.what else { return None };
    let rest = rest_of(&mount.point.0, &below.point.0).filter(|rest| !rest.is_empty())?;
    let there = theirs.iter().any(|line| line.mount_point == path.0);
    (there && join(&under.0, &rest) == path.0).then(|| with.get(on).copied().flatten().unwrap_or(on))
}

/// What shall be mounted; `whole`: with all that the container has mounted below it.
pub(super) fn tree(
    mount: &Mount,
    whole: bool,
    made: &mut Option<OwnedFd>,
    old: &OwnedFd,
    places: &[OwnedFd],
) -> Result<OwnedFd> {
    match &mount.what {
        What::New(system) => {
            let made = made.take().ok_or_else(|| Cause::corrupt("a file system that was not made"))?;
            seal(system, &made)?;
            Ok(made)
        }
        What::Part { of, path } => {
            let of = usize::try_from(*of).ok().and_then(|n| places.get(n));
            let of = of.ok_or_else(|| Cause::corrupt("a part of a file system that is mounted later"))?;
            Ok(copy(&find(of, &path.0)?, false)?)
        }
        What::Outside(path) => {
            let place = find(old, below_root(&path.0))?;
            match copy(&place, whole) {
                // What is locked to it comes along, as it did before.
                Err(e) if e.errno == Errno::INVAL && !whole => Ok(copy(&place, true)?),
                other => Ok(other?),
            }
        }
    }
}

/// Unmounts what was copied with a mount and is not in the record. The working directory is the new root.
pub(super) fn remove_others(
    number: usize,
    (point, path): (&[u8], &[u8]),
    record: &Record,
    with: &[Option<usize>],
    theirs: &[Line],
) -> Result<()> {
    let wanted = |line: &Line| {
        let same = |mount: &Mount| matches!(&mount.what, What::Outside(other) if other.0 == line.mount_point);
        record.mounts.iter().zip(with).any(|(mount, with)| *with == Some(number) && same(mount))
    };
    for line in theirs.iter().rev() {
        let Some(rest) = rest_of(&line.mount_point, path).filter(|rest| !rest.is_empty()) else { continue };
        let at = join(point, &rest);
        let at = below_root(&at);
        let stat = statx(CWD, at, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID);
        let mounted = stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        if mounted && !wanted(line) {
            unmount(at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                .named("umount2", || at.escape_ascii().to_string())?;
        }
    }
    Ok(())
}

/// Whether the calling process sees the mounts of the record, and no others; `all`: also those that are made last.
fn compare(record: &Record, all: bool, proc: BorrowedFd<'_>) -> Result<()> {
    let lines = mountinfo::parse(&read_proc(proc, "thread-self/mountinfo")?)?;
    let mut now: Vec<_> = lines.iter().map(|line| comparable(line, &lines)).collect();
    let parent = |on: u32| usize::try_from(on).ok().and_then(|on| record.mounts.get(on));
    for (mount, _) in record.mounts.iter().zip(record.late()).filter(|(_, late)| all || !late) {
        let on = mount.on.and_then(parent).map(|on| on.point.0.clone());
        let wanted = (mount.point.0.clone(), on, Some(mount.attributes), mount.shared, mount.unbindable);
        match now.iter().position(|one| *one == wanted) {
            Some(place) => drop(now.swap_remove(place)),
            None => {
                let what = format!("{}: a mount of a nested mnt namespace that cannot be made as it was", mount.point);
                return Err(Cause::unsupported(what));
            }
        }
    }
    match now.first() {
        Some((point, ..)) => {
            let what = format!("{}: a mount that a nested mnt namespace had not", point.escape_ascii());
            Err(Cause::unsupported(what))
        }
        None => Ok(()),
    }
}
