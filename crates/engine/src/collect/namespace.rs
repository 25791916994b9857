//! The namespaces that tasks live in. A container has one of each, and so has a tree. Some kinds may be nested (see `nested`); a task that
//! has made, or entered, one of another kind is refused. What a container's root has made of its mounts since it began to run is told apart from
//! what was there.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2, readlinkat_raw, statx};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, NsId};
use yendor_kinds::file::{Gather, mqueue};
use yendor_kinds::namespace::mount::own::{Difference, leads};
use yendor_kinds::{Cause, Named, Result};
use yendor_proc::mountinfo::{self, Mount as Line};
use yendor_task::tree::read_proc;

/// Of a process, as the links below /proc/PID/ns are called. The first [`OF_THREAD`] are what a thread that is not its
/// process's first can have of its own.
const NAMES: [&str; 10] =
    ["mnt", "net", "uts", "ipc", "cgroup", "time", "time_for_children", "user", "pid", "pid_for_children"];
const OF_THREAD: usize = 7;

/// The namespaces of a task by their numbers, in the order of [`NAMES`]: of a thread the first, of a kernel that lacks a kind
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces([Option<u64>; NAMES.len()], Whose);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Process,
    Thread,
}

impl Namespaces {
    /// Of a process.
    ///
    /// # Errors
    /// What openat and readlinkat say.
    pub fn of_process(proc: BorrowedFd<'_>, pid: i32) -> Result<Namespaces> {
        Self::read(proc, &format!("{pid}/ns"), Whose::Process)
    }

    /// Of another thread than the first.
    ///
    /// # Errors
    /// What openat and readlinkat say.
    pub fn of_thread(proc: BorrowedFd<'_>, pid: i32, tid: i32) -> Result<Namespaces> {
        Self::read(proc, &format!("{pid}/task/{tid}/ns"), Whose::Thread)
    }

    fn read(proc: BorrowedFd<'_>, directory: &str, whose: Whose) -> Result<Namespaces> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let links = openat(proc, directory, flags, Mode::empty()).named("openat", || directory.into())?;
        let mut numbers = [None; NAMES.len()];
        for (number, name) in numbers.iter_mut().zip(&NAMES[..whose.count()]) {
            let mut room = [MaybeUninit::uninit(); 64];
            *number = match readlinkat_raw(&links, *name, &mut room) {
                Err(rustix::io::Errno::NOENT) => None,
                link => number_in(link.named("readlinkat", || format!("{directory}/{name}"))?.0),
            };
        }
        Ok(Namespaces(numbers, whose))
    }

    /// The nested namespaces that a task lives in; `nested` tells their numbers, and of which there are none.
    ///
    /// # Errors
    /// `Unsupported`, by name, for a task that lives elsewhere, or whose children would.
    pub fn away(
        &self,
        task: &Namespaces,
        tid: i32,
        mut nested: impl FnMut(&str, u64) -> Result<Option<NsId>>,
    ) -> Result<Away> {
        let mut away = Away::default();
        for (name, (home, theirs)) in NAMES[..task.1.count()].iter().zip(self.0.iter().zip(&task.0)) {
            // A pid namespace that nobody has been born into has no link.
            if home.is_none() || home == theirs {
                continue;
            }
            // Only who has made it can have its children live there, and not itself.
            let clocks = *name == "time_for_children";
            if clocks && *theirs == task.number("time") {
                continue;
            }
            if let Some(number) = theirs.filter(|_| !clocks).map(|theirs| nested(name, theirs)).transpose()?.flatten() {
                match *name {
                    "pid" => away.pids = Some(number),
                    "pid_for_children" => away.children = Some(number).filter(|_| *theirs != task.number("pid")),
                    _ => away.others.push(number),
                }
                continue;
            }
            let (kind, whose) = match name.strip_suffix("_for_children") {
                Some(kind) => (kind, " for its children"),
                None => (*name, ""),
            };
            let what = format!("task {tid} has a {kind} namespace of its own{whose} (unshare, setns)");
            return Err(Cause::unsupported(what));
        }
        Ok(away)
    }

    /// The mount namespace of a process, if it is another than this.
    ///
    /// # Errors
    /// What readlinkat says.
    pub fn other_mounts(&self, proc: BorrowedFd<'_>, pid: i32) -> Result<Option<u64>> {
        self.other(proc, pid, 0)
    }

    /// The network of a process, if it is another than this.
    ///
    /// # Errors
    /// What readlinkat says.
    pub fn other_network(&self, proc: BorrowedFd<'_>, pid: i32) -> Result<Option<u64>> {
        self.other(proc, pid, 1)
    }

    /// By the place in [`NAMES`].
    fn other(&self, proc: BorrowedFd<'_>, pid: i32, place: usize) -> Result<Option<u64>> {
        let path = format!("{pid}/ns/{}", NAMES[place]);
        let mut room = [MaybeUninit::uninit(); 64];
        let link = readlinkat_raw(proc, path.as_str(), &mut room).named("readlinkat", || format!("/proc/{path}"))?.0;
        let theirs = number_in(link);
        Ok(theirs.filter(|_| theirs != self.0[place]))
    }

    /// Whether a process, by its first thread, lives in another user namespace.
    #[must_use]
    pub fn has_other_users(&self, process: &Namespaces) -> bool {
        process.1 == Whose::Process && process.users() != self.users()
    }

    /// The user namespace.
    #[must_use]
    pub fn users(&self) -> Option<u64> {
        self.number("user")
    }

    /// The pid namespace.
    #[must_use]
    pub fn pids(&self) -> Option<u64> {
        self.number("pid")
    }

    fn number(&self, name: &str) -> Option<u64> {
        NAMES.iter().zip(self.0).find(|(other, _)| **other == name).and_then(|(_, number)| number)
    }
}

/// The nested namespaces of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Away {
    /// Its pid namespace.
    pub pids: Option<NsId>,
    /// The pid namespace of its children, if that is another.
    pub children: Option<NsId>,
    /// The others.
    pub others: Vec<NsId>,
}

impl Whose {
    fn count(self) -> usize {
        match self {
            Whose::Process => NAMES.len(),
            Whose::Thread => OF_THREAD,
        }
    }
}

/// Of a link such as `net:[4026531840]`.
fn number_in(link: &[u8]) -> Option<u64> {
    let link = std::str::from_utf8(link).ok()?;
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// A mount of a container, by which it is known again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    id: i32,
    /// The mount that it sits on.
    #[serde(default)]
    parent: i32,
    point: Bytes,
    /// What of the file system it shows; none where that was not noted.
    #[serde(default)]
    root: Option<Bytes>,
    fs_type: Bytes,
    /// Options of the mount; of a file system that is the container's own, these too.
    options: Bytes,
    /// Those of the mount alone.
    #[serde(default)]
    attributes: Bytes,
    /// The device of the file system: it and the root tell apart a mount from another one that got its id.
    #[serde(default)]
    device: Option<u64>,
    /// The inode of its root, which is the same when somebody outside has renamed or deleted it; of those that show a part.
    #[serde(default)]
    inode: Option<u64>,
    /// Whether a mount outside hands mounts on to it.
    slave: bool,
    /// Its peer group, and the one that hands mounts on to it.
    #[serde(default)]
    groups: (Option<i32>, Option<i32>),
}

/// File systems whose options belong to the container.
const OWN: [&[u8]; 6] = [b"tmpfs", b"proc", b"devpts", b"mqueue", b"sysfs", b"cgroup2"];

/// The mounts that a process sees, and as the kernel tells them.
///
/// # Errors
/// A mountinfo that cannot be read.
pub fn mounts(proc: BorrowedFd<'_>, pid: i32) -> Result<(Vec<Mount>, Vec<Line>)> {
    let text = read_proc(proc, &format!("{pid}/mountinfo"))?;
    let one = |m: &Line| {
        let own = OWN.contains(&m.fs_type.as_slice());
        let supers = if own { m.super_options.clone() } else { Vec::new() };
        let options = [m.options.clone(), supers].concat().join(&b","[..]);
        Mount {
            id: m.id,
            parent: m.parent,
            point: Bytes(m.mount_point.clone()),
            // Of those of cgroups it depends on who looks.
            root: (!m.fs_type.starts_with(b"cgroup")).then(|| Bytes(m.root.clone())),
            fs_type: Bytes(m.fs_type.clone()),
            options: Bytes(options),
            attributes: Bytes(m.options.join(&b","[..])),
            device: Some(m.dev.st_dev()),
            inode: None,
            slave: m.master.is_some(),
            groups: (m.shared, m.master),
        }
    };
    let lines = mountinfo::parse(&text)?;
    Ok((lines.iter().map(one).collect(), lines))
}

/// Looks which inodes mounts show of which something can change the name, of those `wanted`: that of a whole file system has none.
///
/// # Errors
/// What openat and statx say.
pub fn look(mounts: &mut [Mount], (proc, pid): (BorrowedFd<'_>, i32), wanted: impl Fn(&Mount) -> bool) -> Result<()> {
    let path = format!("{pid}/root");
    let root = openat(proc, path.as_str(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.named("openat", || path)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let is_part = |m: &Mount| m.root.as_ref().is_some_and(|root| root.0 != b"/");
    for mount in mounts.iter_mut().filter(|m| is_part(m) && wanted(m)) {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What is not to be seen from its root, another covers, or has moved.
        let Ok(fd) = openat2(&root, mount.point.0.as_slice(), flags, Mode::empty(), resolve) else { continue };
        let stat = statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::MNT_ID);
        let stat = stat.named("statx", || mount.point.to_string())?;
        mount.inode = (i32::try_from(stat.stx_mnt_id) == Ok(mount.id)).then_some(stat.stx_ino);
    }
    Ok(())
}

impl Mount {
    /// Whether it is this one that is looked at now.
    fn is(&self, now: &Mount) -> bool {
        let same_inode = self.point == now.point && self.inode.is_some() && self.inode == now.inode;
        let same_root = self.root.is_none() || now.root.is_none() || self.root == now.root || same_inode;
        self.id == now.id && (self.device.is_none() || self.device == now.device) && same_root
    }

    /// Whether it shows what was called otherwise `then`, if it is one of those.
    #[must_use]
    pub fn is_renamed(&self, then: &[Mount]) -> bool {
        then.iter().any(|m| m.id == self.id && m.root != self.root)
    }

    /// Options of the file system.
    fn others(&self) -> Option<&[u8]> {
        self.options.0.strip_prefix(self.attributes.0.as_slice())
    }
}

/// The mounts of a restored container, in which its root's own are made again.
#[derive(Debug, Default)]
pub struct Again {
    /// What was mounted before.
    pub before: Vec<Mount>,
    /// What it had mounted itself, by their ids now.
    pub made: BTreeSet<i32>,
}

impl Again {
    /// Notes what is mounted by now on and below /proc, which comes last.
    ///
    /// # Errors
    /// A mountinfo that cannot be read.
    pub fn note_proc(&mut self, proc: BorrowedFd<'_>) -> Result<()> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let late = |m: &Mount| m.point.0.strip_prefix(b"/proc").is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        self.before.extend(mounts(proc, me)?.0.into_iter().filter(late));
        Ok(())
    }

    /// What of the mounts that are there `now`, after all that is made again, is the configuration's: as it was before.
    #[must_use]
    pub fn base(&self, now: Vec<Mount>) -> Vec<Mount> {
        let Again { before, made } = self;
        let gone = before.iter().filter(|m| now.iter().all(|n| !m.is(n)));
        let gone: Vec<Mount> = gone.map(|m| Mount { slave: false, groups: (None, None), ..m.clone() }).collect();
        let as_before = |m: Mount| match before.iter().find(|b| b.is(&m)) {
            Some(Mount { options, attributes, .. }) => {
                Mount { options: options.clone(), attributes: attributes.clone(), ..m }
            }
            None => m,
        };
        now.into_iter().filter(|m| !made.contains(&m.id)).map(as_before).chain(gone).collect()
    }
}

/// How mounts are not as they were when the container began to run. What comes from outside by propagation is
/// not the container's: it lies on a mount that a mount outside hands mounts on to, and is itself such a one.
///
/// # Errors
/// `Unsupported`, naming the mount, for changes that are not made again.
pub fn difference(then: &[Mount], now: &[Mount]) -> Result<Difference> {
    let refuse = |m: &Mount, what: &str| {
        Err(Cause::unsupported(format!("{}: a mount ({}) {what}", m.point, m.fs_type.0.escape_ascii())))
    };
    let known = |now: &Mount| then.iter().find(|m| m.is(now));
    let parent = |at: &Mount| now.iter().find(|m| m.id == at.parent);
    let inside = |group: Option<i32>| now.iter().any(|m| group.is_some() && m.groups.0 == group);
    // A bind mount has the master of what it shows, whoever made it; below there are no more of them than mounts.
    let from_outside = |mount: &Mount| {
        let comes = |m: &Mount| m.slave && !inside(m.groups.1);
        let mut at = mount;
        for _ in now {
            let Some(parent) = parent(at).filter(|_| comes(at)) else { return false };
            match known(parent) {
                Some(parent) => return parent.slave,
                None => at = parent,
            }
        }
        false
    };
    let mut out = Difference::default();
    for mount in now {
        let Some(before) = known(mount) else {
            if from_outside(mount) {
                out.base.insert(mount.id);
            }
            continue;
        };
        if before.point != mount.point {
            return refuse(before, "that was moved");
        }
        let told = !before.attributes.0.is_empty();
        if if told { before.others() != mount.others() } else { before.options != mount.options } {
            return refuse(before, "that has other options now");
        }
        if told && before.attributes != mount.attributes {
            out.changed.push(mount.id);
        }
        if before.groups.0.is_some() != mount.groups.0.is_some() || mount.slave && !before.slave {
            return refuse(before, "that hands mounts on in another way now (mount --make-shared, --make-private ...)");
        }
        out.base.insert(mount.id);
    }
    let gone = then.iter().rev().filter(|m| !m.slave && !now.iter().any(|n| m.is(n)));
    out.removed = gone.map(|m| m.point.clone()).collect();
    Ok(out)
}

/// Collects POSIX message queues, which live in the container's ipc namespace even while nobody has them open.
///
/// # Errors
/// What one refuses; what openat2 and getdents64 say.
pub fn queues(gather: &mut Gather<'_>) -> Result<()> {
    gather.queues = true;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let seen = |m: &&Line| m.fs_type == b"mqueue" && leads(&gather.lines, &m.mount_point) == Some(m.id);
    let directory = match gather.lines.iter().find(seen) {
        Some(Line { mount_point, .. }) => gather.open_inside(mount_point, flags)?,
        None => std::thread::scope(|scope| scope.spawn(mqueue::mount).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
    };
    mqueue::collect_all(gather, directory.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: i32, point: &str, options: &str, slave: bool) -> Mount {
        let bytes = |s: &str| Bytes(s.as_bytes().to_vec());
        let groups = (None, slave.then_some(70));
        let attributes = bytes(options.split(',').next().unwrap_or_default());
        let (point, options) = (bytes(point), bytes(options));
        let device = Some(u64::try_from(id).expect("small"));
        let root = Some(bytes("/"));
        Mount {
            id,
            parent: 1,
            point,
            root,
            fs_type: bytes("tmpfs"),
            options,
            attributes,
            device,
            inode: None,
            slave,
            groups,
        }
    }

    fn on(parent: i32, mount: Mount) -> Mount {
        Mount { parent, ..mount }
    }

    #[test]
    fn every_change_of_a_mount_is_seen() {
        let bytes = |s: &str| Bytes(s.as_bytes().to_vec());
        let then = [mount(1, "/", "rw,size=1m", false), mount(2, "/v", "rw", true)];
        let seen = |now: &[Mount]| difference(&then, now).expect("no refusal");
        let said = |now: &[Mount]| difference(&then, now).expect_err("changed").to_string();
        let base = |ids: &[i32]| Difference { base: ids.iter().copied().collect(), ..Difference::default() };
        assert_eq!(seen(&then), base(&[1, 2]));
        let with = |more: &[Mount]| [then.to_vec(), more.to_vec()].concat();
        assert_eq!(seen(&with(&[mount(3, "/x", "rw", false)])), base(&[1, 2]));
        assert_eq!(seen(&[then[1].clone()]).removed, [then[0].point.clone()]);
        assert_eq!(seen(&[mount(1, "/", "ro,size=1m", false), then[1].clone()]).changed, [1]);
        assert!(said(&[mount(1, "/", "rw,size=2m", false), then[1].clone()]).contains("options"));
        assert!(said(&[mount(1, "/y", "rw,size=1m", false), then[1].clone()]).contains("moved"));
        // Renamed or deleted outside; another one in its place.
        let with_root = |root: &str, inode| Mount { root: Some(bytes(root)), inode: Some(inode), ..then[0].clone() };
        let was = [with_root("/f", 7)];
        assert_eq!(difference(&was, &[with_root("/g", 7)]).expect("no refusal"), base(&[1]));
        assert_eq!(difference(&was, &[with_root("/g", 8)]).expect("no refusal").removed, [then[0].point.clone()]);
        // Another one that has got the id.
        let reused = Mount { device: Some(9), ..then[0].clone() };
        let found = seen(&[reused, then[1].clone()]);
        assert_eq!((found.base, found.removed), ([2].into(), vec![then[0].point.clone()]));
        // From outside.
        assert_eq!(seen(&[then[0].clone()]), base(&[1]));
        let below = [on(4, mount(5, "/v/w/x", "rw", true)), on(2, mount(4, "/v/w", "rw", true))];
        assert_eq!(seen(&with(&below)), base(&[1, 2, 4, 5]));
        // The container's own: a bind mount of /v has its master, too.
        assert_eq!(seen(&with(&[mount(4, "/w", "rw", true)])), base(&[1, 2]));
        let own = [on(4, mount(5, "/w/x", "rw", true)), mount(4, "/w", "rw", false)];
        assert_eq!(seen(&with(&own)), base(&[1, 2]));
        let shared = Mount { groups: (Some(9), None), ..then[0].clone() };
        assert!(
            said(&[shared.clone(), then[1].clone()]).contains("/: a mount (tmpfs) that hands mounts on in another way")
        );
        let own = Mount { groups: (None, Some(9)), ..on(2, mount(4, "/v/w", "rw", true)) };
        let was = [shared.clone(), then[1].clone()];
        let found = difference(&was, &[shared, then[1].clone(), own]).expect("no refusal");
        assert_eq!(found, base(&[1, 2]), "its master is in the container");
    }

    /// Who looks from another cgroup namespace, or another cgroup of its own, sees other roots of the same mounts.
    #[test]
    fn the_root_of_cgroups_is_of_who_looks() {
        let proc = std::env::temp_dir().join(format!("yendor-namespace-{}", std::process::id()));
        let seen_from = |root: &str| {
            let one = proc.join("1");
            std::fs::create_dir_all(&one).expect("a directory of our own");
            let v1 = format!("30 23 0:26 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
            let v2 = format!("31 23 0:27 {root} /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
            let other = "32 23 0:28 /a /b rw - ext4 /dev/x rw\n";
            std::fs::write(one.join("mountinfo"), v1 + &v2 + other).expect("a file of our own");
            let at = rustix::fs::open(&proc, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open");
            mounts(at.as_fd(), 1).expect("mountinfo").0
        };
        let (then, now) = (seen_from("/"), seen_from("/../.."));
        std::fs::remove_dir_all(&proc).expect("remove what is our own");
        let found = difference(&then, &now).expect("no refusal");
        assert_eq!((found.base, found.removed), ([30, 31, 32].into(), Vec::new()));
        assert_eq!(now[2].root, Some(Bytes(b"/a".to_vec())));
    }

    #[test]
    fn what_the_configuration_makes_is_known_after_a_restore() {
        let before = [mount(1, "/", "rw,x", true), mount(2, "/a", "rw", true), mount(3, "/b", "rw", true)];
        let now = vec![mount(1, "/", "ro,x", false), mount(3, "/b", "rw", false), mount(4, "/proc", "rw", false)];
        let with_own = [now.clone(), vec![mount(5, "/c", "rw", false)]].concat();
        let then = Again { before: before.to_vec(), made: [5].into() }.base(with_own.clone());
        let again = difference(&then, &with_own).expect("no refusal");
        assert_eq!(again.base, [1, 3, 4].into());
        assert_eq!((again.changed, again.removed), (vec![1], vec![before[1].point.clone()]));
    }

    #[test]
    fn a_task_elsewhere_is_named() {
        let process = |children| Namespaces([0, 1, 2, 3, 4, 8, 8, 5, 6, children].map(Some), Whose::Process);
        let thread = |net| Namespaces([0, net, 2, 3, 4, 8, 8, 0, 0, 0].map(Some), Whose::Thread);
        let home = process(7);
        let none = |_: &str, _| Ok(None);
        assert!(home.away(&thread(1), 5, none).is_ok() && home.away(&process(7), 5, none).is_ok());
        let said = |task: Namespaces| home.away(&task, 5, none).expect_err("elsewhere").to_string();
        let net = |name: &str, number| Ok((name == "net").then_some(NsId(u32::try_from(number).expect("small"))));
        assert_eq!(home.away(&thread(9), 5, net).expect("nested").others, [NsId(9)]);
        let pids =
            |name: &str, number| Ok(name.starts_with("pid").then_some(NsId(u32::try_from(number).expect("small"))));
        let mut born = process(9);
        assert_eq!(home.away(&born, 5, pids).expect("nested"), Away { children: Some(NsId(9)), ..Away::default() });
        born.0[8] = Some(9);
        assert_eq!(home.away(&born, 5, pids).expect("nested"), Away { pids: Some(NsId(9)), ..Away::default() });
        assert!(home.away(&process(9), 5, net).is_err());
        assert_eq!(home.users(), Some(5));
        assert!(said(thread(9)).contains("task 5 has a net namespace of its own (unshare"));
        assert!(said(process(9)).contains("pid namespace of its own for its"));
        let mut unborn = process(7);
        unborn.0[9] = None;
        assert!(said(unborn).contains("pid namespace of its own for its"));
        let clocks = |own, children| {
            let of = |task: Namespaces| {
                let mut task = task;
                (task.0[5], task.0[6]) = (Some(own), Some(children));
                home.away(&task, 5, |name, _| Ok((name == "time").then_some(NsId(9))))
            };
            [of(process(7)), of(thread(1))]
        };
        assert!(clocks(9, 9).into_iter().all(|away| away.expect("nested").others == [NsId(9)]));
        let said_of = clocks(8, 9).map(|away| away.expect_err("its children's").to_string());
        assert!(said_of.iter().all(|said| said.contains("time namespace of its own for its children")));
        // A kernel without time namespaces.
        let mut old = home;
        (old.0[5], old.0[6]) = (None, None);
        assert!(old.away(&process(7), 5, none).is_ok());
    }

    #[test]
    fn a_link_has_a_number() {
        assert_eq!(number_in(b"pid_for_children:[4026531836]"), Some(4_026_531_836));
        assert!(number_in(b"net:[]").is_none() && number_in(b"\xff").is_none());
    }
}
