//! Limits of a container, where the host has delegated a cgroup to the caller (cgroups(7), v1 and v2).
//!
//! Only cgroups that were made here are ever written to or removed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use yendor_kinds::{Cause, Named};
use yendor_proc::cgroup::{self, Membership};
use yendor_proc::mountinfo::{self, Mount};
use yendor_sys::{Errno, SysError};

use super::Caused;
use crate::error::{At, Result, Step};
use crate::request::Request;

/// The cgroups of a container: one for each hierarchy that a limit needs. They are removed with it.
#[derive(Debug)]
pub struct Cgroup {
    made: Vec<Made>,
}

#[derive(Debug)]
struct Made {
    parent: OwnedFd,
    name: String,
    path: PathBuf,
    fd: OwnedFd,
}

impl Cgroup {
    /// Makes them for the limits asked for; `None` when there are none.
    pub(super) fn create(request: &Request) -> Caused<Option<Cgroup>> {
        let limits = [("memory", request.memory), ("pids", request.pids)];
        if limits.iter().all(|l| l.1.is_none()) {
            return Ok(None);
        }
        let mounts = mountinfo::parse(&read("/proc/self/mountinfo")?)?;
        let own = cgroup::parse(&read("/proc/self/cgroup")?)?;
        let mut group = Cgroup { made: Vec::new() };
        for (controller, limit) in limits {
            let Some(limit) = limit else { continue };
            group.limit(request, controller, limit, &mounts, &own).map_err(|cause| explain(controller, cause))?;
        }
        Ok(Some(group))
    }

    fn limit(
        &mut self,
        request: &Request,
        controller: &str,
        limit: u64,
        mounts: &[Mount],
        own: &[Membership],
    ) -> Caused<()> {
        let (parent, v2) = hierarchy(controller, mounts, own)
            .ok_or(Errno::NODEV)
            .named("open", || format!("a cgroup with the {controller} controller"))?;
        let name = format!("yendor-{}-{}", request.name, rustix::process::getpid().as_raw_nonzero());
        let path = parent.join(&name);
        if !self.made.iter().any(|m| m.path == path) {
            self.made.push(make(&parent, name, path.clone())?);
        }
        if v2 {
            hand_down(&parent, controller)?;
        }
        let file = match (controller, v2) {
            ("memory", true) => "memory.max",
            ("memory", false) => "memory.limit_in_bytes",
            _ => "pids.max",
        };
        let made = self.made.iter().find(|m| m.path == path).ok_or(Errno::NOENT).named("open", String::new)?;
        write(&made.fd, &made.path, file, &limit.to_string())
    }

    /// Moves a task into them, the container's first one before it has any child. By its pid as the keeper sees it.
    ///
    /// # Errors
    /// `EACCES` where moving is not delegated.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        for made in &self.made {
            write(&made.fd, &made.path, "cgroup.procs", &pid.to_string())
                .map_err(|cause| explain("", cause))
                .at(Step::Contain)?;
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for made in &self.made {
            // Busy for a moment after the last task has ended; bounded, as nobody waits for it longer.
            for _ in 0..50 {
                match unlinkat(&made.parent, made.name.as_str(), AtFlags::REMOVEDIR) {
                    Err(Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(2)),
                    _ => break,
                }
            }
        }
    }
}

fn explain(controller: &str, cause: Cause) -> Cause {
    match &cause {
        Cause::Sys(e) if matches!(e.errno, Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NODEV | Errno::BUSY | Errno::NOENT) => {
            Cause::Denied {
                what: format!("a limit of {controller} is not to be had here: {e}"),
                hint: "the host has to delegate a cgroup: `systemd-run --user --scope -p Delegate=yes yendor ...`, or root, \
                       or leave out --memory and --pids"
                    .into(),
            }
        }
        _ => cause,
    }
}

/// The caller's own cgroup in the hierarchy of a controller, and whether that is v2.
fn hierarchy(controller: &str, mounts: &[Mount], own: &[Membership]) -> Option<(PathBuf, bool)> {
    let v1 =
        mounts.iter().find(|m| m.fs_type == b"cgroup" && m.super_options.iter().any(|o| o == controller.as_bytes()));
    if let Some(mount) = v1 {
        let member = own.iter().find(|m| m.controllers.iter().any(|c| c == controller.as_bytes()))?;
        return Some((inside(mount, member)?, false));
    }
    let member = own.iter().find(|m| m.hierarchy == 0)?;
    let path = inside(mounts.iter().find(|m| m.fs_type == b"cgroup2")?, member)?;
    let available = std::fs::read_to_string(path.join("cgroup.controllers")).ok()?;
    available.split_whitespace().any(|c| c == controller).then_some((path, true))
}

fn inside(mount: &Mount, member: &Membership) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = |b: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(b));
    let relative = bytes(&member.path);
    let relative = relative.strip_prefix(bytes(&mount.root)).ok()?;
    Some(bytes(&mount.mount_point).join(relative))
}

fn make(parent: &Path, name: String, path: PathBuf) -> Caused<Made> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let above = openat(CWD, parent, directory, Mode::empty()).named("open", || format!("{parent:?}"))?;
    mkdirat(&above, name.as_str(), Mode::from_raw_mode(0o755)).named("mkdir", || format!("{path:?}"))?;
    let fd = openat(&above, name.as_str(), directory, Mode::empty()).named("open", || format!("{path:?}"))?;
    Ok(Made { parent: above, name, path, fd })
}

/// Lets children of the caller's cgroup use a controller (v2 only).
fn hand_down(parent: &Path, controller: &str) -> Caused<()> {
    let file = parent.join("cgroup.subtree_control");
    let now = std::fs::read_to_string(&file).map_err(|e| SysError::io("read", file.display().to_string(), &e))?;
    if now.split_whitespace().any(|c| c == controller) {
        return Ok(());
    }
    let text = format!("+{controller}");
    std::fs::write(&file, &text).map_err(|e| SysError::io("write", format!("{file:?}, {text:?}"), &e).into())
}

fn write(fd: &OwnedFd, path: &Path, file: &str, text: &str) -> Caused<()> {
    let open = openat(fd, file, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    open.and_then(|fd| rustix::io::write(fd, text.as_bytes()))
        .named("write", || format!("{:?}, {text:?}", path.join(file)))?;
    Ok(())
}

fn read(path: &'static str) -> Caused<Vec<u8>> {
    std::fs::read(path).map_err(|e| SysError::io("open", path, &e).into())
}
