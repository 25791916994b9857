//! A mount namespace inside a container: its mounts, and the file systems that are its own.
//! *Read from:* mountinfo of a thread that has joined it; the content of a tmpfs or a ramfs through a copy of its mount.
//! *Made again by:* a child copies the container's mounts in the user namespace that it belongs to, so that they are as locked as they were;
//! mounts that are missing there go, others come, and where its root is another than the container's it is turned (pivot_root(2)). The proc
//! of a pid namespace inside comes last, mounted by a child that is born there.
//! *Lost:* numbers of mounts and devices, names of sources, what [`layer`] loses of a tmpfs. Refused: file systems of other types than
//! tmpfs, ramfs, proc, devpts and (beside one that the container has) mqueue and sysfs that the container does not have itself, or that two nested namespaces share; mounts that receive others (slaves)
//! or share them among each other; a tmpfs that another mount covers; what is mounted no more or in part only.

mod build;
mod check;
mod kind;
pub mod own;
mod place;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, NsId, Writer};
use yendor_proc::mountinfo::Mount as Line;
use yendor_sys::namespace::{Namespaces, unshare};

use super::layer;
use super::nested::in_thread;
use crate::{Cause, Named, Result};

pub use build::{Made, finish, rebuild};
pub use check::check;
pub use kind::Type;
use kind::once_more;
pub use place::{Place, Places};

/// The mounts of a namespace, each after the one that it is mounted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The first is its root.
    pub mounts: Vec<Mount>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The one that it is mounted on, by its place in the list; none: it is the root.
    pub on: Option<u32>,
    /// Where, as an absolute path in the namespace.
    pub point: Bytes,
    /// What is mounted.
    pub what: What,
    /// Its attributes: `MOUNT_ATTR_RDONLY` ... of mount_setattr(2).
    pub attributes: u32,
    /// Whether what is mounted on it comes to its copies, too.
    pub shared: bool,
    /// Whether it cannot be copied.
    pub unbindable: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// What the container has at this path.
    Outside(Bytes),
    /// A file system of its own.
    New(System),
    /// A part of a file system that another mount of the list has.
    Part {
        /// That one.
        of: u32,
        /// The part, relative to what that one shows.
        path: Bytes,
    },
}

/// A file system that is the namespace's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Its type.
    pub fs_type: Type,
    /// Its options, name and value.
    pub options: Vec<(String, Option<String>)>,
    /// The directory of it that is shown, relative to its own root.
    pub root: Bytes,
    /// What is in that directory, of a tmpfs or a ramfs.
    pub content: Option<layer::Record>,
    /// The pid namespace that a proc shows, unless that is the container's.
    #[serde(default)]
    pub pids: Option<NsId>,
}

/// The mounts of the container, which nested namespaces have copies of; for what its own root has mounted: those that were there before.
pub struct Home<'a> {
    /// What is mounted.
    pub lines: Vec<Line>,
    /// Its root directory.
    pub root: &'a OwnedFd,
    /// Pid namespaces by their inodes; none: the container's own.
    pub pids: Vec<(u64, Option<NsId>)>,
    /// Whose mounts are looked at.
    pub whose: Whose,
}

/// Whose mounts are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Those of a namespace inside.
    Nested,
    /// What the container's own root has mounted in its own.
    Own,
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Whose::Nested => "of a nested mnt namespace",
            Whose::Own => "that the container has made itself",
        })
    }
}

/// The calling thread, which need not find back, joins a mount namespace.
pub(super) fn enter(namespace: &OwnedFd) -> Result<()> {
    // Who shares its directories with other threads may not.
    unshare(Namespaces::FS)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .named("setns", || "a nested mnt namespace".into())?)
}

/// Reads one whose tasks are stopped; `others`: all that are nested.
///
/// # Errors
/// `Unsupported`, naming the mount, for what cannot be made again; the kernel's.
pub fn collect(
    namespace: &OwnedFd,
    place: &Place,
    others: &Places,
    home: &Home<'_>,
    (writer, id): (&Writer, NsId),
) -> Result<Record> {
    let lines = in_order(&place.lines)?;
    let all = || others.0.iter().flat_map(|place| &place.lines).chain(&home.lines);
    let elsewhere = |line: &Line| {
        let others = others.0.iter().filter(|other| other.id != place.id);
        others.flat_map(|other| &other.lines).any(|l| l.dev == line.dev)
    };
    let mut mounts = Vec::with_capacity(lines.len());
    for line in &lines {
        mounts.push(one(line, &lines, home, &elsewhere, &|group| in_group(all(), group))?);
    }
    in_thread(|| {
        enter(namespace)?;
        for (number, (mount, line)) in mounts.iter_mut().zip(&lines).enumerate() {
            mount.look(line, home, &format!("mount-{id}-{number}"), writer)?;
        }
        Ok(())
    })?;
    let record = Record { mounts };
    let odd = record.late().zip(&record.mounts).find(|(late, mount)| *late && !mount.may_be_late());
    if let Some((_, mount)) = odd {
        let what = format!("{}: a mount of a nested mnt namespace on the proc of a pid namespace", mount.point);
        return Err(Cause::unsupported(what));
    }
    Ok(record)
}

/// How many mounts are of a peer group, or get theirs from it.
fn in_group<'a>(all: impl Iterator<Item = &'a Line>, group: i32) -> usize {
    all.filter(|l| l.shared == Some(group) || l.master == Some(group)).count()
}

/// A mount among `lines`, without its content. `elsewhere`: whether its file system is shown by others, too; `peers`: how many mounts are
/// of a peer group.
fn one(
    line: &Line,
    lines: &[Line],
    home: &Home<'_>,
    elsewhere: &dyn Fn(&Line) -> bool,
    peers: &dyn Fn(i32) -> usize,
) -> Result<Mount> {
    let refuse = |what: &str| {
        let (fs_type, point, whose) = (line.fs_type.escape_ascii(), line.mount_point.escape_ascii(), home.whose);
        Err(Cause::unsupported(format!("{point}: a mount ({fs_type}) {whose} {what}")))
    };
    if let Some(left) = line.leftover.first() {
        return refuse(&format!("that is \"{}\", which is not known", left.escape_ascii()));
    }
    if line.root_deleted {
        return refuse("of what was deleted");
    }
    if line.master.is_some() || line.propagate_from.is_some() {
        return refuse("that receives mounts from others (MS_SLAVE)");
    }
    if line.shared.is_some_and(|group| peers(group) > 1) {
        return refuse("that shares mounts with others (MS_SHARED)");
    }
    let attributes = match attributes(&line.options) {
        Ok(attributes) => attributes,
        Err(other) => return refuse(&format!("that is \"{other}\"")),
    };
    let what = match what(line, lines, elsewhere, home)? {
        Ok(what) => what,
        Err(why) => return refuse(&why),
    };
    let on = lines.iter().position(|l| l.id == line.parent && l.id != line.id);
    Ok(Mount {
        on: on.and_then(|n| u32::try_from(n).ok()),
        point: Bytes(line.mount_point.clone()),
        what,
        attributes,
        shared: line.shared.is_some(),
        unbindable: line.unbindable,
    })
}

impl Mount {
    /// Looks into a file system of its own; content goes to `blob`. The calling thread is in the namespace.
    fn look(&mut self, line: &Line, home: &Home<'_>, blob: &str, writer: &Writer) -> Result<()> {
        let What::New(system) = &mut self.what else { return Ok(()) };
        system.content = match system.fs_type {
            Type::Tmpfs | Type::Ramfs => Some(content(line, home.whose, blob, writer)?),
            Type::Proc => {
                system.pids = ids_of(line, home)?;
                None
            }
            Type::Devpts => no_terminals(line, home.whose).map(|()| None)?,
            Type::Mqueue | Type::Sysfs => None,
        };
        Ok(())
    }
}

/// What is mounted, each after the one that it is mounted on.
fn in_order(lines: &[Line]) -> Result<Vec<Line>> {
    let mut left: Vec<&Line> = lines.iter().collect();
    let mut out: Vec<Line> = Vec::with_capacity(left.len());
    let root = left.iter().position(|line| left.iter().all(|l| l.id != line.parent || l.id == line.id));
    let Some(root) = root else { return Err(Cause::unsupported("a nested mnt namespace without a root")) };
    out.push(left.remove(root).clone());
    while let Some(next) = left.iter().position(|line| out.iter().any(|l| l.id == line.parent)) {
        out.push(left.remove(next).clone());
    }
    match left.first() {
        Some(line) => {
            let point = line.mount_point.escape_ascii();
            Err(Cause::unsupported(format!(
                "{point}: a mount of a nested mnt namespace that hangs on none that is seen"
            )))
        }
        None => Ok(out),
    }
}

/// The attributes that options say; or the option that says something else.
fn attributes(options: &[Vec<u8>]) -> std::result::Result<u32, String> {
    let mut out = MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    let atime = MountAttrFlags::MOUNT_ATTR__ATIME;
    for option in options {
        match option.as_slice() {
            b"rw" => {}
            b"ro" => out |= MountAttrFlags::MOUNT_ATTR_RDONLY,
            b"nosuid" => out |= MountAttrFlags::MOUNT_ATTR_NOSUID,
            b"nodev" => out |= MountAttrFlags::MOUNT_ATTR_NODEV,
            b"noexec" => out |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
            b"noatime" => out = out.difference(atime) | MountAttrFlags::MOUNT_ATTR_NOATIME,
            b"relatime" => out = out.difference(atime) | MountAttrFlags::MOUNT_ATTR_RELATIME,
            b"nodiratime" => out |= MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            b"nosymfollow" => out |= MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW,
            other => return Err(other.escape_ascii().to_string()),
        }
    }
    Ok(out.bits())
}

/// What a mount shows; or why it cannot be shown again.
fn what(
    line: &Line,
    own: &[Line],
    elsewhere: &dyn Fn(&Line) -> bool,
    home: &Home<'_>,
) -> Result<std::result::Result<What, String>> {
    if let Some(fs_type) = once_more(line, own, home) {
        let root = Bytes(Vec::new());
        return Ok(Ok(What::New(System { fs_type, options: Vec::new(), root, content: None, pids: None })));
    }
    if let Some(path) = outside(line, home)? {
        return Ok(Ok(What::Outside(Bytes(path))));
    }
    let no = |why: &str| Ok(Err(why.to_owned()));
    if home.lines.iter().any(|l| l.dev == line.dev) {
        return no("of what the container does not see");
    }
    if elsewhere(line) {
        return no("that another nested mnt namespace has, too");
    }
    // The first of those that show most of it.
    let mut bearer = line;
    for other in own.iter().rev().filter(|l| l.dev == line.dev) {
        if rest_of(&bearer.root, &other.root).is_some() {
            bearer = other;
        }
    }
    if bearer.id != line.id {
        let of = own.iter().position(|l| l.id == bearer.id).and_then(|n| u32::try_from(n).ok());
        let part = of.zip(rest_of(&line.root, &bearer.root));
        return Ok(part.map(|(of, path)| What::Part { of, path: Bytes(path) }).ok_or_else(String::new));
    }
    if own.iter().any(|l| l.dev == line.dev && rest_of(&l.root, &line.root).is_none()) {
        return no("of which another shows another part");
    }
    let fs_type = match line.fs_type.as_slice() {
        b"tmpfs" => Type::Tmpfs,
        b"ramfs" => Type::Ramfs,
        b"proc" => Type::Proc,
        b"devpts" => Type::Devpts,
        _ => return no("whose type is not made again"),
    };
    let mut options = Vec::new();
    for option in &line.super_options {
        let text = String::from_utf8_lossy(option).into_owned();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text, None),
        };
        if fs_type.options().contains(&name.as_str()) {
            options.push((name, value));
        } else if !fs_type.other_options().contains(&name.as_str()) {
            return Ok(Err(format!("with the option {name}")));
        }
    }
    let root = Bytes(line.root.strip_prefix(b"/").unwrap_or(&line.root).to_vec());
    if !fs_type.is_filled() && !root.0.is_empty() {
        return no("of a part of it");
    }
    Ok(Ok(What::New(System { fs_type, options, root, content: None, pids: None })))
}

/// The path by which the container sees what a mount shows; of several (a device that covers files, too) the one that is most like its own.
fn outside(line: &Line, home: &Home<'_>) -> Result<Option<Vec<u8>>> {
    let alike = |path: &[u8]| path.iter().rev().zip(line.mount_point.iter().rev()).take_while(|(a, b)| a == b).count();
    let mut found: Option<((usize, usize), Vec<u8>)> = None;
    for theirs in home.lines.iter().filter(|l| l.dev == line.dev) {
        let Some(rest) = rest_of(&line.root, &theirs.root) else { continue };
        let path = join(&theirs.mount_point, &rest);
        let rank = (theirs.root.len(), alike(&path));
        let better = found.as_ref().is_none_or(|(best, _)| *best < rank);
        if better && home.leads(&path)? == Some(theirs.id) {
            found = Some((rank, path));
        }
    }
    Ok(found.map(|(_, path)| path))
}

impl Home<'_> {
    /// The mount that a path leads into.
    fn leads(&self, path: &[u8]) -> Result<Option<i32>> {
        match self.whose {
            Whose::Nested => mount_at(self.root, path),
            // What lies on top now did not then.
            Whose::Own => Ok(own::leads(&self.lines, path)),
        }
    }
}

/// The mount that a path leads into.
fn mount_at(root: &OwnedFd, path: &[u8]) -> Result<Option<i32>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let Ok(fd) = openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve) else {
        return Ok(None);
    };
    let shown = || path.escape_ascii().to_string();
    let stat = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).named("statx", shown)?;
    Ok(i32::try_from(stat.stx_mnt_id).ok())
}

/// What of a path is left below a directory, without a slash before it.
fn rest_of(path: &[u8], directory: &[u8]) -> Option<Vec<u8>> {
    if directory == b"/" {
        return path.strip_prefix(b"/").map(<[u8]>::to_vec);
    }
    let rest = path.strip_prefix(directory)?;
    if rest.is_empty() { Some(Vec::new()) } else { rest.strip_prefix(b"/").map(<[u8]>::to_vec) }
}

/// A path below an absolute one.
fn join(directory: &[u8], rest: &[u8]) -> Vec<u8> {
    match (directory, rest) {
        (_, b"") => directory.to_vec(),
        (b"/", _) => [b"/", rest].concat(),
        _ => [directory, b"/", rest].concat(),
    }
}

/// The place where a mount shows, unless another covers it. The calling thread is in its namespace.
fn open(line: &Line, whose: Whose) -> Result<OwnedFd> {
    let point = || line.mount_point.escape_ascii().to_string();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(line.mount_point.as_slice(), flags, Mode::empty()).named("open", point)?;
    let stat = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).named("statx", point)?;
    if i32::try_from(stat.stx_mnt_id) == Ok(line.id) {
        return Ok(fd);
    }
    let fs_type = line.fs_type.escape_ascii();
    Err(Cause::unsupported(format!("{}: a mount ({fs_type}) {whose} that another covers", point())))
}

/// What is in a tmpfs or a ramfs, below what is mounted on it.
fn content(line: &Line, whose: Whose, blob: &str, writer: &Writer) -> Result<layer::Record> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(open(line, whose)?, c"", flags);
    let copy = copy.named("open_tree", || line.mount_point.escape_ascii().to_string())?;
    layer::collect(&copy, Bytes(line.mount_point.clone()), blob, writer)
}

/// The pid namespace that a proc shows; none: the container's.
fn ids_of(line: &Line, home: &Home<'_>) -> Result<Option<NsId>> {
    let shown = || line.mount_point.escape_ascii().to_string();
    let refuse = |what: &str| Err(Cause::unsupported(format!("{}: a mount (proc) {} of {what}", shown(), home.whose)));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(open(line, home.whose)?, ".", flags, Mode::empty()).named("openat", shown)?;
    let Some(inode) = build::pids_of(&top)? else { return refuse("a pid namespace whose pid 1 is no more") };
    match home.pids.iter().find(|(other, _)| *other == inode) {
        Some((_, number)) => Ok(*number),
        None => refuse("a pid namespace that no process of the tree lives in"),
    }
}

/// Refuses terminals: each is one of the file system that it was made in.
fn no_terminals(line: &Line, whose: Whose) -> Result<()> {
    let shown = || line.mount_point.escape_ascii().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(open(line, whose)?, ".", flags, Mode::empty()).named("openat", shown)?;
    for entry in rustix::fs::Dir::read_from(&top).named("getdents64", shown)? {
        let entry = entry.named("getdents64", shown)?;
        if entry.file_name().to_bytes().first().is_some_and(u8::is_ascii_digit) {
            let name = entry.file_name().to_bytes().escape_ascii().to_string();
            return Err(Cause::unsupported(format!("{}/{name}: a terminal {whose}", shown())));
        }
    }
    Ok(())
}

/// A device's number is not the same twice, nor is a mount's: what is left of a line that can be compared.
fn comparable(line: &Line, all: &[Line]) -> (Vec<u8>, Option<Vec<u8>>, Option<u32>, bool, bool) {
    let parent = all.iter().find(|l| l.id == line.parent && l.id != line.id).map(|l| l.mount_point.clone());
    (line.mount_point.clone(), parent, attributes(&line.options).ok(), line.shared.is_some(), line.unbindable)
}
