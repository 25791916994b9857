//! A user namespace inside a container: which ids exist in it, and how much may be made in it.
//! *Read from:* /proc/PID/{uid_map,gid_map,setgroups} of a process that lives in it, or enters it for that; `NS_GET_OWNER_UID` (ioctl_nsfs(2)); /proc/sys/user by a
//! process that enters it for that.
//! *Made again by:* a process with its maker's user id enters a new one, in the user namespace around it; the maps are written by root there,
//! with ids that mean the same there; a task takes its ids outside,
//! enters with all capabilities, and gives up those that it has not.
//! *Lost:* its maker's group; that the memory of a program which was executed in it belongs to it: who is root only there does not trace
//! such a task any more while it is not dumpable. Refused: a task with threads in one, project ids.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};
use yendor_proc::id_map;
use yendor_sys::namespace::{self, Namespaces, unshare};
use yendor_sys::sandbox;
use yendor_sys::{Errno, SysError};
use yendor_task::tree::read_proc;

use super::sysctl::{self, Own};
use crate::{Cause, Named, Result};

/// A user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// User id of its maker in the container, who has all capabilities in it.
    pub maker: u32,
    /// User ids; none while nobody has written them.
    pub uids: Vec<Range>,
    /// Group ids.
    pub gids: Vec<Range>,
    /// Whether setgroups(2) is allowed.
    pub setgroups: bool,
    /// Its settings that are not as in a new one: names below `user`.
    pub settings: Vec<sysctl::Record>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The first one there.
    pub inside: u32,
    /// What it is in the container.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

const OWN: Own = Own { network: false, ipc: false, users: true };
/// `UID_GID_MAP_MAX_EXTENTS` of the kernel.
const MOST_RANGES: usize = 340;

/// Reads one that the task `resident` of `proc` lives in, or nobody.
///
/// # Errors
/// The kernel's; `Unsupported` for ids that cannot be mapped again.
pub fn collect(users: &OwnedFd, proc: BorrowedFd<'_>, resident: Option<i32>) -> Result<Record> {
    if let Some(resident) = resident {
        return collect_of(users, proc, resident);
    }
    let mut record = None;
    let meanwhile = |pid: i32, _: &[i32]| {
        record = Some(collect_of(users, proc, pid)?);
        Ok(())
    };
    let go = || enter(users).map(|()| Vec::new());
    elsewhere((proc, Some(users.as_fd())), "user", go, meanwhile, || Ok(()), |_| Ok(()))?;
    record.ok_or_else(|| Cause::corrupt("a user namespace that nobody has looked at"))
}

fn collect_of(users: &OwnedFd, proc: BorrowedFd<'_>, resident: i32) -> Result<Record> {
    let read = |name: &str| read_proc(proc, &format!("{resident}/{name}"));
    if !id_map::parse(&read("projid_map")?)?.is_empty() {
        return Err(Cause::unsupported(format!("/proc/{resident}/projid_map: project ids of a user namespace")));
    }
    let ranges = |name: &str| -> Result<Vec<Range>> {
        let known = id_map::parse(&read(name)?)?;
        Ok(known.into_iter().map(|r| Range { inside: r.inside, outside: r.outside, count: r.count }).collect())
    };
    Ok(Record {
        maker: namespace::owner_id(users)?,
        uids: ranges("uid_map")?,
        gids: ranges("gid_map")?,
        setgroups: read("setgroups")?.trim_ascii() == b"allow",
        settings: sysctl::limits(users.as_fd(), proc)?,
    })
}

/// Refuses what the kernel would refuse late, or what could not have been.
///
/// # Errors
/// `Corrupt`.
pub fn check(record: &Record) -> Result<()> {
    let Record { maker, uids, gids, setgroups: _, settings: _ } = record;
    let lies = |r: &Range| r.count == 0 || [r.inside, r.outside].iter().any(|id| id.checked_add(r.count).is_none());
    let bad = |all: &[Range]| all.len() > MOST_RANGES || all.iter().any(lies);
    if *maker == u32::MAX || bad(uids) || bad(gids) {
        return Err(Cause::corrupt("a user namespace with ids that cannot be"));
    }
    Ok(())
}

/// Makes it again, below the caller's own or in the one that is `above`, with its record. The caller has one thread.
///
/// # Errors
/// The kernel's: `EPERM` for ids that the container does not have; `Corrupt` for those that the one above does not have.
pub fn rebuild(record: &Record, above: Option<(&OwnedFd, &Record)>, proc: BorrowedFd<'_>) -> Result<OwnedFd> {
    check(record)?;
    let Record { maker, uids, gids, setgroups, settings } = record;
    let around = above.map(|(_, record)| record);
    let [maker] = in_terms_of(around.map(|a| &a.uids), [Range { inside: 0, outside: *maker, count: 1 }])?;
    let (uids, gids) =
        (in_terms_of(around.map(|a| &a.uids), uids.clone())?, in_terms_of(around.map(|a| &a.gids), gids.clone())?);
    let group = around.map(|around| around.gids.first().map_or(0, |range| range.inside));
    let enter = || {
        if let Some((there, _)) = above {
            enter(there)?;
        }
        let uid = Uid::from_raw(maker.outside);
        let gid = group.map_or_else(rustix::process::getegid, Gid::from_raw);
        let no_groups: &[Gid] = &[];
        match set_thread_groups(no_groups) {
            // With a single id they are kept for ever.
            Err(Errno::PERM) => {}
            other => other.named("setgroups", || "[]".into())?,
        }
        set_thread_res_gid(gid, gid, gid).named("setresgid", || gid.as_raw().to_string())?;
        set_thread_res_uid(uid, uid, uid).named("setresuid", || uid.as_raw().to_string())?;
        unshare(Namespaces::NEWUSER)?;
        Ok(Vec::new())
    };
    let settle = || match sysctl::rebuild(settings, proc, OWN, |_| false)?.first() {
        Some(other) => Err(Cause::corrupt(format!("{other}: no setting of a user namespace"))),
        None => Ok(()),
    };
    let write_maps = |pid: i32, _: &[i32]| {
        if !setgroups {
            put(proc, pid, "setgroups", "deny")?;
        }
        // Empty ones may be written later, by whom it concerns.
        let maps = [("gid_map", &gids), ("uid_map", &uids)];
        let write = || {
            let mut maps = maps.iter().filter(|(_, map)| !map.is_empty());
            maps.try_for_each(|(name, map)| put(proc, pid, name, &lines(map)))
        };
        let Some((there, _)) = above else { return write() };
        // Only who is there may, and names ids as they are there.
        let go = || {
            self::enter(there)?;
            write().map(|()| Vec::new())
        };
        elsewhere((proc, Some(there.as_fd())), "user", go, |_, _| Ok(()), || Ok(()), |_| Ok(()))
    };
    elsewhere((proc, above.map(|(there, _)| there.as_fd())), "user", enter, write_maps, settle, |pid| {
        its(proc, pid, "user")
    })
}

/// Ranges whose ids outside are the container's, with those that they are in the user namespace around.
fn in_terms_of<R: AsMut<[Range]>>(around: Option<&Vec<Range>>, mut ranges: R) -> Result<R> {
    let Some(around) = around else { return Ok(ranges) };
    for range in ranges.as_mut() {
        let holds = |r: &&Range| {
            let (first, end) = (u64::from(r.outside), u64::from(r.outside) + u64::from(r.count));
            let (from, to) = (u64::from(range.outside), u64::from(range.outside) + u64::from(range.count));
            first <= from && to <= end
        };
        let there = around.iter().find(holds);
        let there =
            there.ok_or_else(|| Cause::corrupt("a user namespace with ids that the one around it does not have"))?;
        range.outside = there.inside.saturating_add(range.outside - there.outside);
    }
    Ok(ranges)
}

pub(super) fn enter(users: &OwnedFd) -> Result<()> {
    move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))
        .named("setns", || "a nested user namespace".into())?;
    Ok(())
}

/// A namespace of another kind that belongs to the user namespace `owner`. The caller has one thread.
///
/// # Errors
/// The kernel's.
pub fn rebuild_below(owner: &OwnedFd, proc: BorrowedFd<'_>, (name, flag): (&str, Namespaces)) -> Result<OwnedFd> {
    let enter = || {
        enter(owner)?;
        unshare(flag)?;
        Ok(Vec::new())
    };
    elsewhere((proc, Some(owner.as_fd())), name, enter, |_, _| Ok(()), || Ok(()), |pid| its(proc, pid, name))
}

/// Has a child, who has `kept` too, `enter` namespaces, does `meanwhile` to it (by its pid, and the descriptors that it has opened), has it
/// `settle` there, and takes what the child has come to.
pub(super) fn elsewhere<T>(
    (proc, kept): (BorrowedFd<'_>, Option<BorrowedFd<'_>>),
    name: &str,
    enter: impl FnOnce() -> Result<Vec<i32>>,
    meanwhile: impl FnOnce(i32, &[i32]) -> Result<()>,
    settle: impl FnOnce() -> Result<()>,
    take: impl FnOnce(i32) -> Result<T>,
) -> Result<T> {
    let pipe = || std::io::pipe().map_err(|e| SysError::io("pipe2", "", &e));
    let ((mut hear, tell), (wait, go)) = (pipe()?, pipe()?);
    let keep: Vec<_> = [tell.as_fd(), wait.as_fd(), proc].into_iter().chain(kept).collect();
    let child = {
        let (mut tell, mut wait) = (&tell, &wait);
        let mut answer = |done: Result<Vec<i32>>| {
            let fine = done.is_ok();
            tell.write_all(&said(done)).is_ok() && fine
        };
        sandbox::fork(&keep, || {
            let up = answer(enter()) && wait.read_exact(&mut [0]).is_ok();
            i32::from(!up || !answer(settle().map(|()| Vec::new())) || wait.read_exact(&mut [0]).is_ok())
        })?
    };
    // Its ends: else its death would not be heard.
    drop((tell, wait));
    let mut heard = || -> Result<Vec<i32>> {
        let lost = |e| SysError::io("read", format!("the maker of a {name} namespace"), &e);
        let mut head = [[0_u8; 4]; 2];
        hear.read_exact(head.as_flattened_mut()).map_err(lost)?;
        let [errno, length] = head.map(i32::from_ne_bytes);
        let mut text = vec![0_u8; usize::try_from(length).unwrap_or(0)];
        hear.read_exact(&mut text).map_err(lost)?;
        let text = String::from_utf8_lossy(&text);
        match errno {
            0 => Ok(text.split_whitespace().filter_map(|number| number.parse().ok()).collect()),
            HOLE => {
                let (option, what) = text.split_once('\n').unwrap_or(("a machine that has it", &text));
                Err(Cause::Hole { what: format!("in a nested {name} namespace {what}"), option: option.into() })
            }
            CORRUPT => Err(Cause::corrupt(format!("a nested {name} namespace: {text}"))),
            errno => {
                let error = SysError::said("unshare", format!("a nested {name} namespace: {text}"), errno);
                // Only mounts lead to what others have to have there.
                Err(match (name, error.errno) {
                    ("mnt", Errno::NOENT | Errno::NOTDIR) => {
                        let what = format!("what a nested mnt namespace leads to: {text}");
                        Cause::Hole { what, option: "--volume or --rootfs".into() }
                    }
                    _ => error.into(),
                })
            }
        }
    };
    let numbers = heard()?;
    meanwhile(child.pid(), &numbers)?;
    (&go).write_all(&[0]).map_err(|e| SysError::io("write", "the maker of a namespace", &e))?;
    heard()?;
    take(child.pid())
}

/// The namespace of this name that a process is in.
pub(super) fn its(proc: BorrowedFd<'_>, pid: i32, name: &str) -> Result<OwnedFd> {
    let path = format!("{pid}/ns/{name}");
    let fd = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    Ok(fd.named("openat", || format!("/proc/{path}"))?)
}

/// No errno.
const CORRUPT: i32 = -1;
/// The image needs something: the option, a line feed, and what.
const HOLE: i32 = -2;

/// An errno, and a text: numbers, or what went wrong.
fn said(done: Result<Vec<i32>>) -> Vec<u8> {
    let (errno, text) = match done {
        Ok(numbers) => (0, numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        Err(Cause::Sys(e)) => (e.errno.raw_os_error(), e.to_string()),
        Err(Cause::Hole { what, option }) => (HOLE, format!("{option}\n{what}")),
        Err(e) => (CORRUPT, e.to_string()),
    };
    let length = i32::try_from(text.len()).unwrap_or(0);
    [&errno.to_ne_bytes()[..], &length.to_ne_bytes(), text.as_bytes()].concat()
}

fn lines(map: &[Range]) -> String {
    map.iter().fold(String::new(), |mut text, Range { inside, outside, count }| {
        let _ = writeln!(text, "{inside} {outside} {count}");
        text
    })
}

pub(super) fn put(proc: BorrowedFd<'_>, pid: i32, name: &str, text: &str) -> Result<()> {
    let path = format!("{pid}/{name}");
    let fd = openat(proc, path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let fd = fd.named("openat", || format!("/proc/{path}"))?;
    rustix::io::write(&fd, text.as_bytes()).named("write", || format!("/proc/PID/{name}, {text:?}")).map(drop)?;
    Ok(())
}
