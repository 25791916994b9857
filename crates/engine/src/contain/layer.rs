//! The host's own root under a private copy-on-write layer.
//!
//! One overlay over `/` is refused in a user namespace: what lies under the host's other mounts must not be uncovered.
//! So every directory that has no mount below it gets an overlay of its own, and the few above them are plain
//! directories of the layer. Renames between two overlays copy, as between file systems.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, mkdirat, openat, readlinkat, statat, symlinkat, unlinkat,
};
use rustix::mount::{MountAttrFlags, MountFlags, MoveMountFlags, mount, move_mount};
use yendor_kinds::{Cause, Named};
use yendor_proc::fdinfo;
use yendor_proc::mountinfo::{self, Mount};
use yendor_sys::{Errno, SysError};

use super::place::{Rootfs, by_number, copy_tree};
use super::skeleton::Skeleton;
use super::{Caused, root, shown};

/// Directories of the root that are made anew, whatever the host has there.
const FRESH: [&[u8]; 5] = [b"proc", b"sys", b"dev", b"tmp", b"run"];

/// A directory with more entries than this, some of them mount points, is shown empty: each entry would take a mount.
const MOST_ENTRIES: usize = 4096;

/// File systems that cannot be below an overlay, but hold neither sockets nor pipes, which would lead to the host.
const PLAIN: [&[u8]; 3] = [b"vfat", b"msdos", b"exfat"];

/// File systems that show the host's kernel, or wait to be mounted.
const PSEUDO: [&[u8]; 21] = [
    b"autofs",
    b"bdev",
    b"binfmt_misc",
    b"bpf",
    b"cgroup",
    b"cgroup2",
    b"configfs",
    b"debugfs",
    b"devpts",
    b"devtmpfs",
    b"efivarfs",
    b"fusectl",
    b"hugetlbfs",
    b"mqueue",
    b"nsfs",
    b"proc",
    b"pstore",
    b"rpc_pipefs",
    b"securityfs",
    b"sysfs",
    b"tracefs",
];

/// Makes `upper`, `work` and what else is needed in the working directory; the new root, mounted at `root`.
pub(super) fn make() -> Caused<Rootfs> {
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        mkdirat(CWD, name, Mode::from_raw_mode(mode)).named("mkdirat", || format!("state, {name:?}"))?;
    }
    let rootfs = root::stage(&copy_tree(&CWD, b"upper", MountAttrFlags::empty())?)?;
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| SysError::io("open", "/proc/self/mountinfo", &e))?;
    let mounts = mountinfo::parse(&text)?;
    let mut layer = Layer { mounts, skeleton: Skeleton::new()?, overlays: 0 };
    let host = host_directory()?;
    layer.split(b"", &host, names(b"/", &host)?)?;
    Ok(rootfs)
}

struct Layer {
    mounts: Vec<Mount>,
    skeleton: Skeleton,
    overlays: u32,
}

impl Layer {
    /// Makes the entries of a directory one by one. Each is opened once, and what is open is what counts from then on:
    /// somebody may exchange it meanwhile.
    fn split(&mut self, path: &[u8], host: &OwnedFd, names: BTreeMap<CString, FileType>) -> Caused<()> {
        for (name, said) in names {
            let path = [path, b"/", name.to_bytes()].concat();
            let entry = match openat(host, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                entry => entry.named("open", || shown(&path))?,
            };
            let stat = match statat(&entry, c"", AtFlags::EMPTY_PATH) {
                Ok(stat) => stat,
                Err(Errno::ACCESS | Errno::PERM | Errno::NOTCONN | Errno::STALE | Errno::IO) => {
                    match said {
                        // A mount that only its owner may look at (FUSE), or that has lost its server: nothing to be seen in it.
                        FileType::Directory => make_directory(&path, 0o755)?,
                        // A security module keeps its attributes from us: who opens it is to be told so.
                        FileType::RegularFile if is_regular(host, &entry)? => bind_file(&path, &entry)?,
                        _ => {}
                    }
                    continue;
                }
                Err(e) => return Err(e).named("stat", || shown(&path)).map_err(Cause::from),
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if FRESH.contains(&&path[1..]) => make_directory(&path, 0o755)?,
                FileType::Directory => self.directory(&path, &entry, &stat)?,
                FileType::Symlink => {
                    let to = readlinkat(&entry, c"", Vec::new()).named("readlink", || shown(&path))?;
                    symlinkat(&to, CWD, in_upper(&path)).named("symlinkat", || shown(&path))?;
                }
                FileType::RegularFile if !self.is_pseudo(&path) => bind_file(&path, &entry)?,
                // Sockets, pipes and devices of the host belong to the host.
                _ => {}
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], entry: &OwnedFd, stat: &Stat) -> Caused<()> {
        make_directory(path, stat.st_mode & 0o7777)?;
        self.skeleton.own(in_upper(path), stat)?;
        if self.is_pseudo(path) {
            return Ok(());
        }
        let Ok(host) = openat(entry, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
            // Closed to the caller: the container sees an empty directory that is its own.
            return Ok(());
        };
        let names = names(path, &host)?;
        if self.mounts.iter().any(|m| is_below(&m.mount_point, path)) {
            return if names.len() > MOST_ENTRIES { Ok(()) } else { self.split(path, &host, names) };
        }
        if names.is_empty() {
            return Ok(());
        }
        self.overlay(path, &host)
    }

    /// Whether a file system that shows the host's kernel is mounted there.
    fn is_pseudo(&self, path: &[u8]) -> bool {
        let here = self.mounts.iter().rev().find(|m| m.mount_point == path);
        here.is_some_and(|m| PSEUDO.contains(&m.fs_type.as_slice()))
    }

    fn overlay(&mut self, path: &[u8], host: &OwnedFd) -> Caused<()> {
        let skeleton = self.skeleton.build(path, host)?;
        let work = format!("work/{}", self.overlays);
        self.overlays += 1;
        mkdirat(CWD, work.as_str(), Mode::from_raw_mode(0o700)).named("mkdirat", || work.clone())?;
        let mut data = b"userxattr,volatile,lowerdir=".to_vec();
        if let Some(skeleton) = skeleton {
            data.extend(escaped(&skeleton));
            data.push(b':');
        }
        data.extend(by_number(host).into_bytes());
        data.extend(b",upperdir=");
        data.extend(escaped(&in_upper(path)));
        data.extend(b",workdir=");
        data.extend(work.as_bytes());
        let data = c_string(data)?;
        let target = [b"root", path].concat();
        match mount("overlay", target.as_slice(), "overlay", MountFlags::NODEV, data.as_c_str()) {
            Ok(()) => Ok(()),
            // Not every file system can be a lower one; but if even a plain one is refused, the state is in a bad place.
            Err(Errno::INVAL | Errno::LOOP) if self.overlays > 1 => self.without_overlay(path, host),
            Err(e) => Err(refused(e, path, &data)),
        }
    }

    /// A directory as it is but read-only, if there can be no way to somebody outside in it; else it stays empty.
    fn without_overlay(&self, path: &[u8], host: &OwnedFd) -> Caused<()> {
        let on = self
            .mounts
            .iter()
            .filter(|m| m.mount_point == b"/" || m.mount_point == path || is_below(path, &m.mount_point));
        let on = on.max_by_key(|m| m.mount_point.len());
        if !on.is_some_and(|m| PLAIN.contains(&m.fs_type.as_slice())) {
            return Ok(());
        }
        attach(&copy_tree(host, b"", MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)?, path)
    }
}

fn refused(errno: Errno, path: &[u8], data: &CStr) -> Cause {
    let error = SysError::new("mount", format!("{}, \"overlay\", {data:?}", shown(path)), errno);
    if errno == Errno::INVAL {
        let what = format!("{error}: the state directory is on a file system that cannot hold a layer");
        let hint = "set YENDOR_ROOT to a directory on ext4, xfs, btrfs or tmpfs, or give --rootfs".into();
        return Cause::Denied { what, hint };
    }
    error.into()
}

/// A regular file in a directory that is no overlay: read-only, by itself.
fn bind_file(path: &[u8], file: &OwnedFd) -> Caused<()> {
    let tree = match copy_tree(file, b"", MountAttrFlags::MOUNT_ATTR_RDONLY) {
        Err(Cause::Sys(e)) if e.is_denied() => return Ok(()),
        other => other?,
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, in_upper(path), flags, Mode::from_raw_mode(0o644)).named("openat", || shown(path))?;
    match attach(&tree, path) {
        // It was deleted meanwhile, and what is deleted cannot be mounted.
        Err(Cause::Sys(e)) if e.errno == Errno::NOENT => {
            Ok(unlinkat(CWD, in_upper(path), AtFlags::empty()).named("unlinkat", || shown(path))?)
        }
        other => other,
    }
}

fn attach(tree: &OwnedFd, path: &[u8]) -> Caused<()> {
    let target = [b"root", path].concat();
    Ok(move_mount(tree, c"", CWD, target.as_slice(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .named("move_mount", || shown(path))?)
}

fn make_directory(path: &[u8], mode: u32) -> Caused<()> {
    Ok(mkdirat(CWD, in_upper(path), Mode::from_raw_mode(mode)).named("mkdirat", || format!("upper{}", shown(path)))?)
}

fn in_upper(path: &[u8]) -> Vec<u8> {
    [b"upper", path].concat()
}

/// The host's root, open.
pub(super) fn host_directory() -> Caused<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, c"/", flags, Mode::empty()).named("open", || shown(b"/"))?)
}

/// Whether what is open is a regular file, by what its directory says of its number: while it is open, nothing else gets that.
fn is_regular(directory: &OwnedFd, entry: &OwnedFd) -> Caused<bool> {
    let path = format!("/proc/self/fdinfo/{}", entry.as_raw_fd());
    let text = std::fs::read(&path).map_err(|e| SysError::io("read", path, &e))?;
    let number = fdinfo::parse(&text)?.ino;
    for entry in Dir::read_from(directory).named("getdents64", || "a host directory".into())? {
        let entry = entry.named("getdents64", || "a host directory".into())?;
        if number == Some(entry.ino()) {
            return Ok(entry.file_type() == FileType::RegularFile);
        }
    }
    Ok(false)
}

/// With what the directory says that they are, if it says so. While it changes, it may say one twice.
fn names(path: &[u8], directory: &OwnedFd) -> Caused<BTreeMap<CString, FileType>> {
    let mut out = BTreeMap::new();
    for entry in Dir::read_from(directory).named("getdents64", || shown(path))? {
        let entry = entry.named("getdents64", || shown(path))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            out.insert(entry.file_name().to_owned(), entry.file_type());
        }
        if out.len() > MOST_ENTRIES {
            break;
        }
    }
    Ok(out)
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// As an option of an overlay: commas, colons and backslashes would mean something.
fn escaped(path: &[u8]) -> Vec<u8> {
    let one = |b: &u8| if matches!(b, b',' | b':' | b'\\') { vec![b'\\', *b] } else { vec![*b] };
    path.iter().flat_map(one).collect()
}

fn c_string(bytes: Vec<u8>) -> Caused<CString> {
    Ok(CString::new(bytes).map_err(|_| Errno::INVAL).named("mount", || "overlay".into())?)
}
