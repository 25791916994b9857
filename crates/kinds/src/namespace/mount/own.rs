//! What a container's root has made of its container's own mounts: file systems and parts of them that it has mounted, attributes that it
//! has changed, and mounts that it has removed.
//! *Read from:* mountinfo, compared with what was mounted when the container began to run; the content of a tmpfs as in [`super`].
//! *Made again by:* the container's root, on what the container's configuration has mounted: never what the image says alone. See [`make`].
//! *Lost:* as [`super`] says. Refused: what [`super`] refuses; mounts on the root itself, and those that another covers; mounts that were
//! moved, or hand mounts on in another way.

mod make;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, Writer};
use yendor_proc::mountinfo::Mount as Line;
use yendor_sys::namespace::{Namespaces, unshare};

use super::{Home, Mount, System, Type, What, Whose, attributes, enter, in_group, one, rest_of};
use crate::namespace::layer;
use crate::namespace::nested::in_thread;
use crate::{Cause, Named, Result};

pub use make::{Begun, begin};

/// How the mounts differ from what the container's configuration makes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Where something was that is mounted no more, each before the one that it was mounted on.
    pub removed: Vec<Bytes>,
    /// What has other attributes.
    pub changed: Vec<Changed>,
    /// What is mounted beside, each after what it is mounted on or shows; `on` is none for what is mounted on the configuration's.
    pub mounts: Vec<Mount>,
}

/// A mount of the configuration's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    /// Where.
    pub point: Bytes,
    /// Its attributes: `MOUNT_ATTR_RDONLY` ... of mount_setattr(2).
    pub attributes: u32,
}

/// What is not as it was when the container began to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// The ids of mounts that were there.
    pub base: BTreeSet<i32>,
    /// Of these, what has other attributes.
    pub changed: Vec<i32>,
    /// Where a mount is no more.
    pub removed: Vec<Bytes>,
}

impl Difference {
    /// Whether all of these mounts are as they were.
    #[must_use]
    pub fn is_none(&self, now: &[Line]) -> bool {
        self.changed.is_empty() && self.removed.is_empty() && now.iter().all(|line| self.base.contains(&line.id))
    }
}

impl Record {
    /// Whether there is nothing to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty() && self.mounts.is_empty()
    }

    /// Layers are filled before a mount is taken away again that was removed: what they have in its place would be covered by it, and lost.
    ///
    /// # Errors
    /// `Unsupported`, naming what is there.
    pub fn permits(&self, layers: &[layer::Record]) -> Result<()> {
        for (layer, entry) in layers.iter().flat_map(|layer| layer.entries.iter().map(move |entry| (layer, entry))) {
            let top = layer.mount.0.strip_suffix(b"/").unwrap_or(&layer.mount.0);
            let place = Bytes([top, &entry.path.0[..]].join(&b'/'));
            let below = |of: &[u8], point: &[u8]| of.strip_prefix(point).is_some_and(|rest| rest.starts_with(b"/"));
            if self.removed.iter().any(|point| below(&point.0, top) && below(&place.0, &point.0)) {
                return Err(Cause::unsupported(format!("{place}: a file in the place of a mount that was removed")));
            }
        }
        Ok(())
    }
}

impl Mount {
    /// Whether it needs the container's /proc, which comes when there is a pid 1.
    fn needs_proc(&self) -> bool {
        is_of_proc(&self.point.0)
            || match &self.what {
                What::New(System { fs_type, .. }) => *fs_type == Type::Proc,
                What::Outside(path) => is_of_proc(&path.0),
                What::Part { .. } => false,
            }
    }
}

fn is_of_proc(path: &[u8]) -> bool {
    rest_of(path, b"/proc").is_some()
}

/// Of each mount whether it is made only when there is a /proc: itself, what it is mounted on, or what it is a part of.
fn late(mounts: &[Mount]) -> Vec<bool> {
    let mut late: Vec<bool> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let of = if let What::Part { of, .. } = &mount.what { Some(*of) } else { None };
        let is_late = |n: u32| usize::try_from(n).ok().and_then(|n| late.get(n).copied()).unwrap_or(false);
        late.push(mount.needs_proc() || of.is_some_and(is_late) || mount.on.is_some_and(is_late));
    }
    late
}

/// The mount that a path without symbolic links leads into.
#[must_use]
pub fn leads(lines: &[Line], path: &[u8]) -> Option<i32> {
    let mut at = lines.iter().find(|line| lines.iter().all(|l| l.id != line.parent || l.id == line.id))?;
    // None is passed twice.
    for _ in lines {
        let below = lines.iter().filter(|l| l.parent == at.id && l.id != at.id);
        let covers = below.filter(|l| rest_of(path, &l.mount_point).is_some());
        match covers.min_by_key(|l| l.mount_point.len()) {
            Some(next) => at = next,
            None => break,
        }
    }
    Some(at.id)
}

/// Reads what the root of a container has made of its mounts, `lines`; its tasks are stopped. `home`: its root directory, its mount namespace,
/// and the number of its pid namespace.
///
/// # Errors
/// `Unsupported`, naming the mount, for what cannot be made again; the kernel's.
pub fn collect(
    lines: &[Line],
    difference: Difference,
    (root, namespace, pids): (&OwnedFd, &OwnedFd, u64),
    writer: &Writer,
) -> Result<Record> {
    let Difference { base, changed, removed } = difference;
    let (before, mut left): (Vec<Line>, Vec<Line>) = lines.iter().cloned().partition(|line| base.contains(&line.id));
    for line in left.iter().chain(before.iter().filter(|line| changed.contains(&line.id))) {
        let shown = || format!("{}: a mount ({})", line.mount_point.escape_ascii(), line.fs_type.escape_ascii());
        if left.contains(line) && line.mount_point == b"/" {
            return Err(Cause::unsupported(format!("{} {} on the root", shown(), Whose::Own)));
        }
        if leads(lines, &line.mount_point) != Some(line.id) {
            return Err(Cause::unsupported(format!("{} {} that another covers", shown(), Whose::Own)));
        }
    }
    let changed = before.iter().filter(|line| changed.contains(&line.id)).map(|line| {
        let shown = |other| format!("{}: a mount that is \"{other}\" now", line.mount_point.escape_ascii());
        let attributes = attributes(&line.options).map_err(|other| Cause::unsupported(shown(other)))?;
        Ok(Changed { point: Bytes(line.mount_point.clone()), attributes })
    });
    let changed = changed.collect::<Result<_>>()?;
    let mut own: Vec<Line> = Vec::with_capacity(left.len());
    while let Some(next) = left.iter().position(|line| before.iter().chain(&own).any(|l| l.id == line.parent)) {
        own.push(left.remove(next));
    }
    if let Some(line) = left.first() {
        let what = format!("{}: a mount that hangs on none that is seen", line.mount_point.escape_ascii());
        return Err(Cause::unsupported(what));
    }
    let home = Home { lines: before, root, pids: vec![(pids, None)], whose: Whose::Own };
    let peers = |group| in_group(lines.iter(), group);
    let mounts: Result<Vec<_>> = own.iter().map(|line| one(line, &own, &home, &|_| false, &peers)).collect();
    let mut mounts = sources_first(mounts?.into_iter().zip(own).collect())?;
    in_thread(|| {
        enter(namespace)?;
        for (number, (mount, line)) in mounts.iter_mut().enumerate() {
            mount.look(line, &home, &format!("mount-own-{number}"), writer)?;
        }
        Ok(())
    })?;
    Ok(Record { removed, changed, mounts: mounts.into_iter().map(|(mount, _)| mount).collect() })
}

/// In an order in which each comes after what it is mounted on, and after what it is a part of.
fn sources_first(mounts: Vec<(Mount, Line)>) -> Result<Vec<(Mount, Line)>> {
    let mut order: Vec<u32> = Vec::with_capacity(mounts.len());
    let mut left: Vec<u32> = (0..).take(mounts.len()).collect();
    let needs = |number: u32| {
        let mount = usize::try_from(number).ok().and_then(|n| mounts.get(n)).map(|(mount, _)| mount);
        let of = mount.and_then(|mount| if let What::Part { of, .. } = &mount.what { Some(*of) } else { None });
        [mount.and_then(|mount| mount.on), of]
    };
    while let Some(next) = left.iter().position(|n| needs(*n).iter().flatten().all(|other| order.contains(other))) {
        order.push(left.remove(next));
    }
    if !left.is_empty() {
        return Err(Cause::unsupported(
            "mounts that the container has made itself, of parts of what is mounted on them",
        ));
    }
    let place = |number: u32| order.iter().position(|n| *n == number).and_then(|n| u32::try_from(n).ok());
    let mut out: Vec<(u32, (Mount, Line))> = (0..).zip(mounts).collect();
    out.sort_by_key(|(number, _)| place(*number));
    for (_, (mount, _)) in &mut out {
        mount.on = mount.on.and_then(place);
        if let What::Part { of, .. } = &mut mount.what {
            *of = place(*of).unwrap_or(*of);
        }
    }
    Ok(out.into_iter().map(|(_, both)| both).collect())
}

/// Where files can be open only when there is a /proc: paths of mounts that come later than files.
#[must_use]
pub fn late_points(record: &Record) -> Vec<Bytes> {
    let late = late(&record.mounts);
    let points = record.mounts.iter().zip(late).filter(|(_, late)| *late).map(|(mount, _)| mount.point.clone());
    points.collect()
}

/// Does something in a copy of the namespace without what the container's root has mounted there: it shows what lies below.
///
/// # Errors
/// The kernel's.
pub fn beneath<T: Send>(namespace: &OwnedFd, record: &Record, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_thread(|| {
        enter(namespace)?;
        unshare(Namespaces::NEWNS)?;
        // Else what goes here would go there, too.
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", alone).named("mount", || "\"/\", MS_PRIVATE|MS_REC".into())?;
        // With all that is mounted on them, which may be locked to them.
        for mount in record.mounts.iter().rev().filter(|mount| mount.on.is_none()) {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            unmount(mount.point.0.as_slice(), flags).named("umount2", || mount.point.to_string())?;
        }
        body()
    })
}

/// Refuses what could not have been.
///
/// # Errors
/// `Corrupt`.
pub fn check(record: &Record) -> Result<()> {
    let Record { removed, changed, mounts } = record;
    let corrupt = |what: &str| Err(Cause::corrupt(format!("a mount of the container's root {what}")));
    let is_point = |path: &Bytes| path.0.len() > 1 && super::check::is_plain(path.0.strip_prefix(b"/"));
    let at_root = |path: &Bytes| path.0 == b"/" || is_point(path);
    if removed.len() > super::check::MOST || changed.len() > super::check::MOST {
        return corrupt("beyond all number");
    }
    if !removed.iter().all(is_point) {
        return corrupt("that was nowhere");
    }
    if !changed.iter().all(|change| at_root(&change.point) && super::check::are_attributes(change.attributes)) {
        return corrupt("with attributes that cannot be");
    }
    super::check::check_all(mounts)?;
    for (number, mount) in mounts.iter().enumerate() {
        let later = |n: u32| usize::try_from(n).is_ok_and(|n| n >= number);
        if matches!(mount.what, What::Part { of, .. } if later(of)) {
            return corrupt("of a part of one that comes later");
        }
        if !is_point(&mount.point) || mount.shows_others() {
            return corrupt("that cannot be");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: i32, parent: i32, point: &str) -> Line {
        let text = format!("{id} {parent} 0:{id} / {point} rw,relatime - tmpfs none rw\n");
        yendor_proc::mountinfo::parse(text.as_bytes()).expect("a line").remove(0)
    }

    fn part(on: Option<u32>, what: What, point: &str) -> (Mount, Line) {
        let mount = Mount { on, point: point.into(), what, attributes: 0, shared: false, unbindable: false };
        (mount, line(1, 0, point))
    }

    #[test]
    fn a_path_leads_into_what_lies_on_top() {
        let lines = [line(1, 0, "/"), line(2, 1, "/mnt"), line(3, 2, "/mnt/a"), line(4, 2, "/mnt"), line(5, 1, "/mn")];
        let to = |path: &str| leads(&lines, path.as_bytes());
        assert_eq!([to("/"), to("/mn/x"), to("/mntx")], [Some(1), Some(5), Some(1)]);
        assert_eq!([to("/mnt"), to("/mnt/a/b")], [Some(4), Some(4)], "what is covered is not reached");
        assert_eq!(leads(&lines[..3], b"/mnt/a/b"), Some(3));
        assert_eq!(leads(&[], b"/"), None);
    }

    #[test]
    fn nothing_may_lie_where_a_mount_was_removed() {
        let entry = |path: &str| layer::Entry {
            path: path.into(),
            what: layer::What::Directory(false),
            mode: 0o755,
            owner: (0, 0),
            modified: (0, 0),
            attributes: Vec::new(),
            flags: 0,
        };
        let layer = |mount: &str, paths: &[&str]| layer::Record {
            mount: mount.into(),
            blob: None,
            entries: paths.iter().map(|path| entry(path)).collect(),
        };
        let removed = |point: &str| Record { removed: vec![point.into()], ..Record::default() };
        let top = layer("/", &["", "data", "data/f", "database/x"]);
        assert!(removed("/data").permits(std::slice::from_ref(&top)).is_err_and(|e| e.to_string().contains("/data/f")));
        assert!(removed("/data/f").permits(std::slice::from_ref(&top)).is_ok());
        assert!(removed("/tmp").permits(&[layer("/tmp", &["", "f"])]).is_ok(), "it went with it");
        assert!(removed("/tmp/in").permits(&[layer("/tmp", &["in", "in/f"]), top]).is_err());
    }

    #[test]
    fn what_is_shown_comes_before_its_parts() {
        let system =
            System { fs_type: Type::Tmpfs, options: Vec::new(), root: Bytes(Vec::new()), content: None, pids: None };
        let of = |of: u32| What::Part { of, path: "a".into() };
        let all = vec![part(None, of(2), "/b"), part(Some(0), of(2), "/b/x"), part(None, What::New(system), "/c")];
        let sorted = sources_first(all).expect("an order");
        let points: Vec<String> = sorted.iter().map(|(mount, _)| mount.point.to_string()).collect();
        assert_eq!(points, ["/c", "/b", "/b/x"]);
        assert_eq!((&sorted[1].0.what, sorted[2].0.on), (&of(0), Some(1)));
        assert!(sources_first(vec![part(Some(1), of(1), "/b"), part(None, of(0), "/c")]).is_err(), "a circle");
    }

    #[test]
    fn an_image_mounts_only_what_can_be() {
        let outside = |path: &str| What::Outside(path.into());
        let with = |mount: Mount| Record { mounts: vec![mount], ..Record::default() };
        let plain = part(None, outside("/etc"), "/mnt").0;
        assert!(check(&with(plain.clone())).is_ok() && check(&Record::default()).is_ok());
        for point in ["/", "mnt", "/mnt/..", "/./x", "//", ""] {
            assert!(check(&with(Mount { point: point.into(), ..plain.clone() })).is_err(), "{point}");
            assert!(check(&Record { removed: vec![point.into()], ..Record::default() }).is_err(), "{point}");
        }
        for path in ["etc", "/../etc", "/etc/./x", "/a\0b"] {
            assert!(check(&with(Mount { what: outside(path), ..plain.clone() })).is_err(), "{path}");
        }
        assert!(check(&with(Mount { on: Some(0), ..plain.clone() })).is_err(), "on itself");
        assert!(check(&with(Mount { what: What::Part { of: 0, path: "x".into() }, ..plain.clone() })).is_err());
        assert!(check(&with(Mount { attributes: 1 << 30, ..plain })).is_err());
        let odd = Changed { point: "/".into(), attributes: 1 << 30 };
        assert!(check(&Record { changed: vec![odd], ..Record::default() }).is_err());
    }
}
