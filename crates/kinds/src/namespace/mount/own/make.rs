//! What a container's root has mounted, made again by the keeper: in the container's user and mount namespace, as its root, on paths beneath
//! the container's root that no symbolic link leads to.
//! *Read from:* nothing; the record is collected by [`super`].
//! *Made again by:* what build.rs has: all that is shown is copied before anything is mounted, so that it is the configuration's; what needs
//! /proc, attributes and propagation come when there is a pid 1.
//! *Lost:* as [`super`] says.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, unmount};
use yendor_image::{Bytes, Reader};
use yendor_proc::mountinfo::{self, Mount as Line};
use yendor_sys::Errno;
use yendor_sys::mount::furnish;
use yendor_task::tree::read_proc;

use super::super::build::{
    below_root, copied_with, copy, find, make, open_directory, propagation, put, remove_others, seal, tree,
};
use super::super::{self as all, System, Type, What, comparable, layer};
use super::{Changed, Record, check, is_of_proc, late};
use crate::namespace::user::elsewhere;
use crate::{Cause, Named, Result};

/// What is made already.
#[derive(Debug)]
pub struct Begun {
    removed: Vec<Bytes>,
    changed: Vec<Changed>,
    record: all::Record,
    late: Vec<bool>,
    /// The mount that each comes with.
    with: Vec<Option<usize>>,
    places: Vec<Option<OwnedFd>>,
    /// New file systems with their content, until they are mounted.
    made: Vec<Option<OwnedFd>>,
}

/// Makes what can be made before there is a pid 1: the calling process sees the container's mounts, and nothing is mounted there yet that is not
/// the configuration's. It has one thread.
///
/// # Errors
/// The kernel's; `Corrupt` for mounts that cannot be.
pub fn begin(record: &Record, proc: BorrowedFd<'_>, reader: &Reader) -> Result<Begun> {
    check(record)?;
    let Record { removed, changed, mounts } = record.clone();
    let late = late(&mounts);
    let mut begun = Begun {
        removed,
        changed,
        with: vec![None; mounts.len()],
        places: mounts.iter().map(|_| None).collect(),
        made: Vec::new(),
        record: all::Record { mounts },
        late,
    };
    let before = ids(&lines(proc)?);
    let umask = rustix::process::umask(Mode::empty());
    let made = begun.record.mounts.iter().map(|mount| match &mount.what {
        What::New(system) if system.fs_type != Type::Proc => filled(system, reader).map(Some),
        What::New(_) | What::Outside(_) | What::Part { .. } => Ok(None),
    });
    let made = made.collect::<Result<_>>();
    rustix::process::umask(umask);
    begun.made = made?;
    begun.stage(false, proc).map_err(lacking)?;
    let own = begun.ids()?;
    unexpected(&lines(proc)?, &own, &before)?;
    // It is written, and may be large.
    for mount in &mut begun.record.mounts {
        if let What::New(system) = &mut mount.what {
            system.content = None;
        }
    }
    Ok(begun)
}

fn lines(proc: BorrowedFd<'_>) -> Result<Vec<Line>> {
    Ok(mountinfo::parse(&read_proc(proc, "thread-self/mountinfo")?)?)
}

fn ids(lines: &[Line]) -> BTreeSet<i32> {
    lines.iter().map(|line| line.id).collect()
}

impl Begun {
    /// Makes the rest; the ids of all. There is a pid 1, of whose namespace the caller's children are, and its /proc; nothing else has
    /// been mounted meanwhile.
    ///
    /// # Errors
    /// The kernel's; `Unsupported` where the mounts are not what they were.
    pub fn finish(mut self, proc: BorrowedFd<'_>) -> Result<BTreeSet<i32>> {
        let before: BTreeSet<i32> = ids(&lines(proc)?).difference(&self.ids()?).copied().collect();
        self.stage(true, proc).map_err(lacking)?;
        let top = open_directory("/")?;
        for (mount, place) in self.record.mounts.iter().zip(&self.places) {
            let place = place.as_ref().ok_or_else(|| Cause::corrupt("a mount that was not made"))?;
            furnish(place, MountAttrFlags::from_bits_retain(mount.attributes), propagation(mount))?;
        }
        for Changed { point, attributes } in &self.changed {
            let place = find(&top, below_root(&point.0)).map_err(lacking)?;
            furnish(&place, MountAttrFlags::from_bits_retain(*attributes), MountPropagationFlags::PRIVATE)?;
        }
        self.compare(&before, proc)
    }

    /// Those that are `late`, or the others.
    fn stage(&mut self, late: bool, proc: BorrowedFd<'_>) -> Result<()> {
        let old = open_directory("/")?;
        rustix::process::fchdir(&old).named("fchdir", || "\"/\"".into())?;
        let theirs = lines(proc)?;
        let record = &self.record;
        let mine: Vec<usize> = (0..record.mounts.len()).filter(|n| self.late[*n] == late).collect();
        for number in &mine {
            let mount = &record.mounts[*number];
            let beside = |on: &u32| usize::try_from(*on).is_ok_and(|on| self.late.get(on) == Some(&late));
            if mount.on.as_ref().is_some_and(beside) {
                self.with[*number] = copied_with(*number, mount, record, &self.with, &theirs);
            }
        }
        let bearers: BTreeSet<usize> = self.with.iter().flatten().copied().collect();
        let whole = |number: usize| bearers.contains(&number);
        let mut trees = Vec::with_capacity(mine.len());
        for number in &mine {
            let mount = &record.mounts[*number];
            trees.push(match &mount.what {
                What::Outside(_) if self.with[*number].is_none() => {
                    Some(tree(mount, whole(*number), &mut None, &old, &[])?)
                }
                What::New(_) => self.made[*number].take(),
                What::Outside(_) | What::Part { .. } => None,
            });
        }
        for point in self.removed.iter().filter(|point| is_of_proc(&point.0) == late) {
            take_away(&old, below_root(&point.0))?;
        }
        rustix::process::fchdir(&old).named("fchdir", || "\"/\"".into())?;
        for (number, made) in mine.into_iter().zip(trees) {
            let mount = &record.mounts[number];
            let point = below_root(&mount.point.0);
            let made = match (&mount.what, made) {
                (What::Part { of, path }, _) => {
                    let of = usize::try_from(*of).ok().and_then(|of| self.places.get(of)?.as_ref());
                    let of = of.ok_or_else(|| Cause::corrupt("a part of a file system that is mounted later"))?;
                    Some(copy(&find(of, &path.0)?, false)?)
                }
                (What::New(system), None) => {
                    mount_proc(system, point, proc)?;
                    None
                }
                (_, made) => made,
            };
            let place = match made {
                Some(tree) => {
                    put(&tree, &find(&old, point)?)?;
                    tree
                }
                None => find(&old, point)?,
            };
            if let (None, What::Outside(path)) = (self.with[number], &mount.what) {
                remove_others(number, (&mount.point.0, &path.0), record, &self.with, &theirs)?;
            }
            // What is mounted from outside shall not come here.
            furnish(&place, MountAttrFlags::from_bits_retain(mount.attributes), MountPropagationFlags::PRIVATE)?;
            self.places[number] = Some(place);
        }
        Ok(())
    }

    /// The ids of the mounts that are made; one may be that of a mount that was removed.
    fn ids(&self) -> Result<BTreeSet<i32>> {
        let one = |place: &OwnedFd| {
            let stat = statx(place, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).named("statx", String::new)?;
            i32::try_from(stat.stx_mnt_id).map_err(|_| Cause::corrupt("a mount beyond all numbers"))
        };
        self.places.iter().flatten().map(one).collect()
    }

    /// The ids of the mounts that are made, which must be as the record has them; beside those `before` there is no other.
    fn compare(&self, before: &BTreeSet<i32>, proc: BorrowedFd<'_>) -> Result<BTreeSet<i32>> {
        let (lines, made) = (lines(proc)?, self.ids()?);
        unexpected(&lines, &made, before)?;
        let own: Vec<Line> = lines.into_iter().filter(|line| made.contains(&line.id)).collect();
        let mut now: Vec<_> = own.iter().map(|line| comparable(line, &own)).collect();
        let parent = |on: u32| usize::try_from(on).ok().and_then(|on| self.record.mounts.get(on));
        for mount in &self.record.mounts {
            let on = mount.on.and_then(parent).map(|on| on.point.0.clone());
            let wanted = (mount.point.0.clone(), on, Some(mount.attributes), mount.shared, mount.unbindable);
            match now.iter().position(|one| *one == wanted) {
                Some(place) => drop(now.swap_remove(place)),
                None => {
                    let what =
                        format!("{}: a mount of the container's root that cannot be made as it was", mount.point);
                    return Err(Cause::unsupported(what));
                }
            }
        }
        Ok(made)
    }
}

/// Refuses mounts beside those that are made, and those that were there before.
fn unexpected(lines: &[Line], made: &BTreeSet<i32>, before: &BTreeSet<i32>) -> Result<()> {
    match lines.iter().find(|line| !made.contains(&line.id) && !before.contains(&line.id)) {
        Some(line) => {
            let point = line.mount_point.escape_ascii();
            Err(Cause::unsupported(format!("{point}: a mount that the container's root had not made")))
        }
        None => Ok(()),
    }
}

/// A new file system with its content.
fn filled(system: &System, reader: &Reader) -> Result<OwnedFd> {
    let made = make(system)?;
    if let Some(content) = &system.content {
        layer::rebuild(content, &made, &[], reader)?;
    }
    seal(system, &made)?;
    Ok(made)
}

/// By a child: what a proc shows is decided by who makes it.
fn mount_proc(system: &System, point: &[u8], proc: BorrowedFd<'_>) -> Result<()> {
    let enter = || {
        let made = make(system)?;
        put(&made, &find(&open_directory("/")?, point)?)?;
        Ok(Vec::new())
    };
    elsewhere((proc, None), "mnt", enter, |_, _| Ok(()), || Ok(()), |_| Ok(()))
}

/// Unmounts what is at a path, if that is a mount. No link leads there.
fn take_away(root: &OwnedFd, point: &[u8]) -> Result<()> {
    let stat = statx(find(root, point)?, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    let stat = stat.named("statx", || point.escape_ascii().to_string())?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(());
    }
    let (directory, name) = match point.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&point[..slash], &point[slash + 1..]),
        None => (&b""[..], point),
    };
    let directory = find(root, directory)?;
    rustix::process::fchdir(&directory).named("fchdir", || point.escape_ascii().to_string())?;
    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    match unmount(name, flags).named("umount2", || point.escape_ascii().to_string()) {
        // It came together with others: nobody inside may take it away.
        Err(e) if e.errno == Errno::INVAL => Err(Cause::Hole {
            what: format!("the rights to unmount /{}, as the image's root had done", point.escape_ascii()),
            option: "the options that the image's container was started with (--userns host, the same --volume)".into(),
        }),
        other => Ok(other?),
    }
}

/// A place that this container does not have is a hole.
fn lacking(e: Cause) -> Cause {
    match e.sys().filter(|e| e.call == "openat2").map(|e| (e.errno, e.to_string())) {
        Some((Errno::NOENT | Errno::NOTDIR | Errno::LOOP, text)) => Cause::Hole {
            what: format!("a place of what the container's root had mounted: {text}"),
            option: "--volume or --rootfs".into(),
        },
        _ => e,
    }
}
