//! Settings of a container's own namespaces below /proc/sys that are not as in new ones (sysctl(8)): of the network, of POSIX
//! message queues, of the user namespace.
//! *Read from:* the files in /proc/sys by a thread in those namespaces, then in new ones.
//! *Made again by:* writing them when nothing of the container is there yet; what that changes beside them is written back.
//! *Lost:* settings of a pid namespace (`kernel.pid_max`, `vm.memfd_noexec`), and those of a network where the restored container
//! is given another's.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::Errno;
use yendor_sys::namespace::{Namespaces, read_there, unshare};
use yendor_task::tree::read_proc_into;

use crate::{Cause, Named, Result};

/// A setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its path below /proc/sys.
    pub name: Bytes,
    /// Its value, without the line's end.
    pub value: Bytes,
}

/// Which namespaces are the container's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// The network.
    pub network: bool,
    /// That of System V IPC and message queues.
    pub ipc: bool,
    /// The user namespace.
    pub users: bool,
}

const NETWORK: &str = "net";
const QUEUES: &str = "fs/mqueue";
const USERS: &str = "user";
/// What all settings in /proc/sys/user are in a new user namespace.
const NO_LIMIT: &[u8] = b"2147483647";
/// How often values are written: some change others, and are written again.
const PASSES: usize = 3;
/// As deep as directories are looked into; a name and a value are not longer.
const MOST_LEVELS: usize = 8;
const MOST_BYTES: usize = 4096;

/// Values by their names; none for what nobody may read.
pub type Values = BTreeMap<String, Option<Vec<u8>>>;

/// What is set in the namespaces that the calling thread is in. `proc`: a /proc that shows the settings of whoever looks.
///
/// # Errors
/// The kernel's.
pub fn look(proc: BorrowedFd<'_>, own: Own) -> Result<Values> {
    let parts = [(own.network, NETWORK), (own.ipc, QUEUES), (own.users, USERS)];
    let mut all = Values::new();
    for (_, part) in parts.iter().filter(|(own, _)| *own) {
        all.extend(values(proc, part)?);
    }
    Ok(all)
}

/// What is set in new namespaces, which the calling thread is in afterwards.
///
/// # Errors
/// The kernel's.
pub fn look_at_new(proc: BorrowedFd<'_>, own: Own) -> Result<Values> {
    let parts = [(own.network, Namespaces::NEWNET), (own.ipc, Namespaces::NEWIPC)];
    unshare(parts.iter().filter(|(own, _)| *own).fold(Namespaces::empty(), |all, (_, one)| all | *one))?;
    let mut all = look(proc, Own { users: false, ..own })?;
    if own.users {
        all.extend(values(proc, USERS)?.into_keys().map(|name| (name, Some(NO_LIMIT.to_vec()))));
    }
    Ok(all)
}

/// What is set in the user namespace `users` and not as in a new one.
///
/// # Errors
/// The kernel's; `Unsupported` for a setting that cannot be read.
pub fn limits(users: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<Vec<Record>> {
    // They are called the same everywhere.
    let names: Vec<String> = values(proc, USERS)?.into_keys().collect();
    let paths = names.iter().filter_map(|name| CString::new(format!("sys/{name}")).ok()).collect::<Vec<_>>();
    let there = read_there(users, proc, &paths)?;
    let line = |value: Vec<u8>| value.strip_suffix(b"\n").map(<[u8]>::to_vec).unwrap_or(value);
    let now = names.iter().cloned().zip(there.into_iter().map(|value| value.map(line)));
    let usual = names.iter().map(|name| (name.clone(), Some(NO_LIMIT.to_vec()))).collect();
    changed(now.collect(), &usual, proc)
}

/// What is not as in new namespaces.
///
/// # Errors
/// `Unsupported` for a setting that cannot be read.
pub fn changed(now: Values, new: &Values, proc: BorrowedFd<'_>) -> Result<Vec<Record>> {
    let mut out = Vec::new();
    for (name, value) in now {
        // A device that a new network does not have has what it has for new ones.
        let usual = new.get(&name).or_else(|| new.get(&of_new_devices(&name)?));
        if usual == Some(&value) || !is_writable(proc, &name)? {
            continue;
        }
        match value {
            Some(value) => out.push(Record { name: Bytes(name.into_bytes()), value: Bytes(value) }),
            None => return Err(Cause::unsupported(format!("/proc/sys/{name}: a setting that cannot be read"))),
        }
    }
    Ok(out)
}

/// The setting of devices to come, where this is that of a device; of its neighbours that of `lo`, as a network has none for those to come.
fn of_new_devices(name: &str) -> Option<String> {
    const PARTS: [&str; 4] = ["net/ipv4/conf/", "net/ipv6/conf/", "net/ipv4/neigh/", "net/ipv6/neigh/"];
    let part = PARTS.iter().find(|part| name.starts_with(**part))?;
    let (_, setting) = name.rsplit_once('/')?;
    let other = if part.ends_with("neigh/") { "lo" } else { "default" };
    Some(format!("{part}{other}/{setting}"))
}

/// All files of a directory in /proc/sys; none for one that nobody may read now.
fn values(proc: BorrowedFd<'_>, part: &str) -> Result<Values> {
    let mut out = Values::new();
    let mut buffer = Vec::with_capacity(MOST_BYTES);
    let mut directories = vec![(part.to_owned(), 0)];
    while let Some((directory, level)) = directories.pop() {
        let path = format!("sys/{directory}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(proc, path.as_str(), flags, Mode::empty()) {
            // A kernel without it.
            Err(Errno::NOENT) => continue,
            fd => fd.named("openat", || format!("/proc/{path}"))?,
        };
        for entry in Dir::read_from(&fd).named("getdents64", || format!("/proc/{path}"))? {
            let entry = entry.named("getdents64", || format!("/proc/{path}"))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            match entry.file_type() {
                FileType::Directory if name != "." && name != ".." && level < MOST_LEVELS => {
                    directories.push((format!("{directory}/{name}"), level + 1));
                }
                FileType::RegularFile => {
                    let value = value(fd.as_fd(), name, &mut buffer)?;
                    out.insert(format!("{directory}/{name}"), value);
                }
                _ => {}
            }
        }
    }
    Ok(out)
}

/// None for one that nobody may read now: written only, or without a value.
fn value(directory: BorrowedFd<'_>, name: &str, buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    match read_proc_into(directory, name, buffer) {
        Ok(()) => Ok(Some(buffer.strip_suffix(b"\n").unwrap_or(buffer).to_vec())),
        Err(e) if matches!(e.errno, Errno::ACCESS | Errno::PERM | Errno::IO | Errno::OPNOTSUPP | Errno::INVAL) => {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Others are counts, or belong to the kernel as a whole.
fn is_writable(proc: BorrowedFd<'_>, name: &str) -> Result<bool> {
    const ANYBODY: u32 = 0o222;
    let path = format!("sys/{name}");
    let stat = statat(proc, path.as_str(), AtFlags::SYMLINK_NOFOLLOW).named("newfstatat", || format!("/proc/{path}"));
    Ok(stat?.st_mode & ANYBODY != 0)
}

/// Writes them, in the namespaces that the caller is in; those that belong to namespaces which are not `own`, and those that `given` has (with dots
/// or slashes), it leaves alone. The names of what it has left because of the first.
///
/// # Errors
/// The kernel's; `Corrupt` for a name of something else; `Unsupported` for a value that does not stay.
pub fn rebuild<'r>(
    records: &'r [Record],
    proc: BorrowedFd<'_>,
    own: Own,
    given: impl Fn(&str) -> bool,
) -> Result<Vec<&'r str>> {
    let mut left = Vec::new();
    let mut wanted = Vec::new();
    for Record { name, value } in records {
        let name = plain(&name.0).ok_or_else(|| Cause::corrupt(format!("{name}: no setting of a container's own")))?;
        if value.0.len() > MOST_BYTES || value.0.contains(&0) {
            return Err(Cause::corrupt(format!("{name}: a setting with a value that cannot be")));
        }
        let is_own = match name.split('/').next() {
            Some("net") => own.network,
            Some("fs") => own.ipc,
            _ => own.users,
        };
        if !is_own {
            left.push(name);
        } else if !given(name) {
            wanted.push((name, value));
        }
    }
    settle(&wanted, proc)?;
    Ok(left)
}

/// Writes what is wanted, and what that has changed beside it.
fn settle(wanted: &[(&str, &Bytes)], proc: BorrowedFd<'_>) -> Result<()> {
    let parts = [NETWORK, QUEUES, USERS].into_iter().filter(|part| wanted.iter().any(|(name, _)| is_below(name, part)));
    let parts: Vec<_> = parts.collect();
    let look = || -> Result<Values> {
        let mut all = Values::new();
        parts.iter().try_for_each(|part| values(proc, part).map(|more| all.extend(more)))?;
        Ok(all)
    };
    let mut targets = look()?;
    targets.extend(wanted.iter().map(|(name, value)| ((*name).to_owned(), Some(value.0.clone()))));
    for _ in 0..PASSES {
        let now = look()?;
        let mut all = true;
        for (name, target) in &targets {
            let Some(target) = target.as_ref().filter(|target| now.get(name) != Some(&Some((*target).clone()))) else {
                continue;
            };
            let asked_for = wanted.iter().any(|(wanted, _)| wanted == name);
            if asked_for || is_writable(proc, name)? {
                all = false;
                write(proc, name, target)?;
            }
        }
        if all {
            return Ok(());
        }
    }
    let now = look()?;
    match wanted.iter().find(|(name, value)| now.get(*name) != Some(&Some(value.0.clone()))) {
        Some((name, value)) => {
            let what = format!("{value} as the setting {name}, of which this kernel makes something else");
            Err(Cause::of_machine(what, KERNEL))
        }
        None => Ok(()),
    }
}

/// What fills a hole that is the kernel's.
const KERNEL: &str = "a kernel that has it";

fn is_below(name: &str, part: &str) -> bool {
    name.strip_prefix(part).is_some_and(|rest| rest.starts_with('/'))
}

/// A name that can only be that of a setting of a namespace.
fn plain(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok().filter(|name| name.len() < MOST_BYTES)?;
    let own = [NETWORK, QUEUES, USERS].iter().any(|part| is_below(name, part));
    let parts = name.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
    (own && parts).then_some(name)
}

fn write(proc: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
    let path = format!("sys/{name}");
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = match openat(proc, path.as_str(), flags, Mode::empty()) {
        // Perhaps of a module that is not loaded.
        Err(Errno::NOENT) => {
            return Err(Cause::of_machine(format!("the setting {name}, which this kernel does not have"), KERNEL));
        }
        opened => opened.named("openat", || format!("/proc/{path}"))?,
    };
    let shown = || format!("/proc/{path}, \"{}\"", value.escape_ascii());
    rustix::io::write(&fd, value).named("write", shown)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["net/ipv4/ip_forward", "fs/mqueue/msg_max", "user/max_user_namespaces", "net/ipv4/conf/a.b/x"] {
            assert_eq!(plain(name.as_bytes()), Some(name));
        }
        for name in
            ["kernel/core_pattern", "net/../kernel/core_pattern", "net//x", "net", "/net/x", "network/x", "net/\0"]
        {
            assert_eq!(plain(name.as_bytes()), None, "{name:?}");
        }
        assert_eq!(plain(b"net/\xff"), None);
    }
}
