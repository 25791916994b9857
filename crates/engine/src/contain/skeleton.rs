//! A middle layer of directories, for a container whose user namespace does not know the host's root.
//!
//! An overlay cannot copy up what belongs to an unknown id (`EOVERFLOW`), not even the directory in which a new file is
//! made. Where programs write, the same directories are laid between, owned by the container's root; nothing of them
//! gets into the private layer unless something is made in them. A directory that is closed to the caller becomes an
//! empty one.

use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, mkdirat, openat, setxattr, statat,
};
use yendor_kinds::Named;
use yendor_sys::Errno;

use super::userns::UNKNOWN;
use super::{Caused, shown};

/// Where programs write, and how deep.
const PLACES: [(&[u8], u32); 7] =
    [(b"/etc", 3), (b"/var", 3), (b"/usr", 1), (b"/usr/local", 2), (b"/opt", 2), (b"/srv", 2), (b"/home", 1)];

/// The most directories: beyond it, deeper ones stay as they are.
const MOST: u32 = 4096;

pub(super) struct Skeleton {
    needed: bool,
    trees: u32,
    made: u32,
}

impl Skeleton {
    pub(super) fn new() -> Caused<Skeleton> {
        let root = statat(CWD, "/", AtFlags::empty()).named("stat", || "\"/\"".into())?;
        let needed = root.st_uid == UNKNOWN;
        Ok(Skeleton { needed, trees: 0, made: 0 })
    }

    /// Gives a directory of the layer the owner that the host's has, if the container knows it.
    pub(super) fn own(&self, path: Vec<u8>, host: &Stat) -> Caused<()> {
        let known = |id: u32| (!self.needed || id != UNKNOWN).then_some(id).filter(|id| *id != 0);
        let (uid, gid) = (known(host.st_uid), known(host.st_gid));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        let owner = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match chownat(CWD, path.as_slice(), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            // An id above the range.
            Err(Errno::INVAL) => Ok(()),
            other => Ok(other.named("chown", || shown(&path))?),
        }
    }

    /// The middle layer for a directory that gets an overlay, where it needs one; a path in the working directory.
    pub(super) fn build(&mut self, path: &[u8], host: &OwnedFd) -> Caused<Option<Vec<u8>>> {
        let depth = depth(path);
        if !self.needed || depth == 0 {
            return Ok(None);
        }
        if self.trees == 0 {
            make("skeleton".into(), 0o700)?;
        }
        let base = format!("skeleton/{}", self.trees).into_bytes();
        self.trees += 1;
        make(base.clone(), 0o755)?;
        self.lay(path, host, &base, depth)?;
        Ok(Some(base))
    }

    fn lay(&mut self, path: &[u8], host: &OwnedFd, into: &[u8], left: u32) -> Caused<()> {
        for entry in Dir::read_from(host).named("getdents64", || shown(path))? {
            let entry = entry.named("getdents64", || shown(path))?;
            let name = entry.file_name();
            if entry.file_type() != FileType::Directory || matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let (below, target) = ([path, b"/", name.to_bytes()].concat(), [into, b"/", name.to_bytes()].concat());
            let stat = match statat(host, name, AtFlags::SYMLINK_NOFOLLOW) {
                // It has vanished meanwhile.
                Err(Errno::NOENT) => continue,
                other => other.named("stat", || shown(&below))?,
            };
            if (stat.st_uid != UNKNOWN && stat.st_gid != UNKNOWN) || self.made >= MOST {
                continue;
            }
            self.made += 1;
            make(target.clone(), stat.st_mode & 0o7777)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(host, name, flags, Mode::empty()) {
                Ok(child) => {
                    let left = (left - 1).max(depth(&below));
                    if left > 0 {
                        self.lay(&below, &child, &target, left)?;
                    }
                }
                Err(Errno::ACCESS) => {
                    setxattr(target.as_slice(), "user.overlay.opaque", b"y", XattrFlags::empty())
                        .named("setxattr", || format!("{:?}, \"user.overlay.opaque\"", shown(&target)))?;
                }
                // It is not there any more.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => Err(e).named("openat", || shown(&below))?,
            }
        }
        Ok(())
    }
}

/// How many levels below a directory are laid.
fn depth(path: &[u8]) -> u32 {
    let of = |(place, depth): &(&[u8], u32)| {
        let rest = path.strip_prefix(*place)?;
        let levels = rest.iter().filter(|b| **b == b'/').count();
        (rest.is_empty() || rest.starts_with(b"/"))
            .then(|| depth.saturating_sub(u32::try_from(levels).unwrap_or(u32::MAX)))
    };
    PLACES.iter().filter_map(of).max().unwrap_or(0)
}

fn make(path: Vec<u8>, mode: u32) -> Caused<()> {
    Ok(mkdirat(CWD, path.as_slice(), Mode::from_raw_mode(mode)).named("mkdirat", || shown(&path))?)
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn depth_counts_from_the_nearest_place() {
        assert_eq!((depth(b"/etc"), depth(b"/etc/a"), depth(b"/etc/a/b/c"), depth(b"/etcetera")), (3, 2, 0, 0));
        assert_eq!((depth(b"/usr"), depth(b"/usr/lib"), depth(b"/usr/local"), depth(b"/usr/local/bin")), (1, 0, 2, 1));
    }
}
