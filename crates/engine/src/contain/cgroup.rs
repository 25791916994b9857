//! Limits of a container, where the host has delegated a cgroup to the caller (cgroups(7), v1 and v2).
//!
//! Only cgroups that were made here are ever written to or removed. Their paths stand in the file [`LIST`] of the container's
//! directory before they are made: whoever clears up behind a keeper that was killed removes them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use serde::{Deserialize, Serialize};
use yendor_kinds::{Cause, Named};
use yendor_proc::cgroup::{self, Membership};
use yendor_proc::mountinfo::{self, Mount};
use yendor_sys::{Errno, SysError};

use super::Caused;
use crate::error::{At, Error, Result, Step};
use crate::request::Request;

/// The cgroups of a container: one for each hierarchy that a limit needs. They are removed with it.
#[derive(Debug)]
pub struct Cgroup {
    made: Vec<Made>,
    /// See [`Cgroup::killed`].
    killed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Made {
    parent: OwnedFd,
    name: String,
    path: PathBuf,
    fd: OwnedFd,
    /// Whether it is not for the container.
    aside: bool,
}

/// A [`Cgroup`] on its way to another process, with two descriptors for each: the one above, and itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Handed {
    made: Vec<(String, PathBuf, bool)>,
}

impl Cgroup {
    /// Makes them for the limits asked for; `None` when there are none. Where paths of cgroups are the caller's.
    ///
    /// # Errors
    /// A permission error where no cgroup with such a limit is delegated to the caller.
    pub fn create(request: &Request, state: &OwnedFd) -> Result<Option<Cgroup>> {
        Cgroup::make(request, state).at(Step::Contain).map_err(|e| {
            let refused = matches!(*e.cause, Cause::Denied { .. });
            let by = refused.then(|| "cgroup: none with this controller is delegated to the caller".to_owned());
            Error { by, ..e }
        })
    }

    /// For another process, which has them for its own when this one has ended without dropping them.
    #[must_use]
    pub fn handed(&self) -> (Handed, Vec<BorrowedFd<'_>>) {
        let made = self.made.iter().map(|m| (m.name.clone(), m.path.clone(), m.aside)).collect();
        (Handed { made }, self.made.iter().flat_map(|m| [m.parent.as_fd(), m.fd.as_fd()]).collect())
    }

    /// Takes them.
    ///
    /// # Errors
    /// `EBADF` when a descriptor is missing.
    pub fn received(handed: Handed, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Result<Cgroup> {
        let mut next =
            || descriptors.next().ok_or(Errno::BADF).named("recvmsg", || "a cgroup".into()).at(Step::Contain);
        let mut one =
            |(name, path, aside)| -> Result<Made> { Ok(Made { parent: next()?, fd: next()?, name, path, aside }) };
        Ok(Cgroup { made: handed.made.into_iter().map(&mut one).collect::<Result<_>>()?, killed: Arc::default() })
    }

    fn make(request: &Request, state: &OwnedFd) -> Caused<Option<Cgroup>> {
        let limits = [("memory", request.memory), ("pids", request.pids)];
        if limits.iter().all(|l| l.1.is_none()) {
            return Ok(None);
        }
        let mounts = mountinfo::parse(&read("/proc/self/mountinfo")?)?;
        let own = cgroup::parse(&read("/proc/self/cgroup")?)?;
        let mut group = Cgroup { made: Vec::new(), killed: Arc::default() };
        for (controller, limit) in limits {
            let Some(limit) = limit else { continue };
            group
                .limit(request, state, (controller, limit), &mounts, &own)
                .map_err(|cause| explain(controller, cause))?;
        }
        Ok(Some(group))
    }

    fn limit(
        &mut self,
        request: &Request,
        state: &OwnedFd,
        (controller, limit): (&str, u64),
        mounts: &[Mount],
        own: &[Membership],
    ) -> Caused<()> {
        let (parent, v2) = hierarchy(controller, mounts, own)
            .ok_or(Errno::NODEV)
            .named("open", || format!("a cgroup with the {controller} controller"))?;
        let pid = rustix::process::getpid().as_raw_nonzero();
        let name = format!("{PREFIX}{}-{pid}", request.name);
        let path = parent.join(&name);
        if !self.made.iter().any(|m| m.path == path) {
            note(state, &path)?;
            self.made.push(make(&parent, name, path.clone())?);
        }
        if v2 {
            // Limits are handed down only where no task sits (cgroups(7), no internal processes); that of tasks is, too, but then only
            // threads could be below.
            if is_occupied(&parent) {
                let aside = format!("{PREFIX}front-{pid}");
                note(state, &parent.join(&aside))?;
                self.made.push(step_aside(&parent, aside)?);
            }
            hand_down(&parent, controller)?;
        }
        let file = match (controller, v2) {
            ("memory", true) => "memory.max",
            ("memory", false) => "memory.limit_in_bytes",
            _ => "pids.max",
        };
        let made = self.made.iter().find(|m| m.path == path).ok_or(Errno::NOENT).named("open", String::new)?;
        // Pid 1 is ours, not the caller's: the limit of tasks does not count it.
        let limit = if controller == "pids" { limit.saturating_add(1) } else { limit };
        write(&made.fd, &made.path, file, &limit.to_string())?;
        if controller == "memory" {
            without_swap(made, v2, limit)?;
        }
        Ok(())
    }

    /// Where they are, but for the one of the front and the keeper.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.made.iter().map(|m| m.path.clone()).collect()
    }

    /// Whether the kernel has killed a task in them for its memory: known when they are gone.
    #[must_use]
    pub fn killed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.killed)
    }

    /// Moves a task into them, the container's first one before it has any child. By its pid as the keeper sees it.
    ///
    /// # Errors
    /// `EACCES` where moving is not delegated.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        for made in self.made.iter().filter(|m| !m.aside) {
            write(&made.fd, &made.path, "cgroup.procs", &pid.to_string())
                .map_err(|cause| explain("", cause))
                .at(Step::Contain)?;
        }
        Ok(())
    }
}

/// Where a cgroup with a limit of `memory` or `pids` would be made, if there is a hierarchy for it at all.
///
/// # Errors
/// What /proc says.
pub fn place(controller: &str) -> Result<Option<PathBuf>> {
    let mounts = read("/proc/self/mountinfo").and_then(|text| Ok(mountinfo::parse(&text)?)).at(Step::Admit)?;
    let own = read("/proc/self/cgroup").and_then(|text| Ok(cgroup::parse(&text)?)).at(Step::Admit)?;
    Ok(hierarchy(controller, &mounts, &own).map(|(path, _)| path))
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let killed = self.made.iter().any(|made| has_killed(&made.fd));
        self.killed.fetch_or(killed, Relaxed);
    }
}

/// Whether a cgroup counts such a task, and has been at its own limit: kills for want of memory elsewhere are counted, too (`memory.events`; of version 1
/// `memory.oom_control` and how much it has had at most: Linux 6.18 counts no failures in `memory.failcnt`).
fn has_killed(group: &OwnedFd) -> bool {
    let read = |file: &str| {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(group, file, flags, Mode::empty()).ok()?;
        std::io::read_to_string(std::fs::File::from(fd)).ok()
    };
    let counts =
        |text: &str, key: &str| text.lines().any(|line| line.strip_prefix(key).is_some_and(|count| count != "0"));
    if let Some(events) = read("memory.events") {
        return counts(&events, "oom_kill ") && counts(&events, "oom ");
    }
    // The last charge may have been a huge page, which it had no room for.
    const HUGE: u64 = 2 << 20;
    let bytes = |file: &str| read(file).and_then(|text| text.trim().parse::<u64>().ok());
    let full = bytes("memory.max_usage_in_bytes").zip(bytes("memory.limit_in_bytes"));
    read("memory.oom_control").is_some_and(|control| counts(&control, "oom_kill "))
        && full.is_some_and(|(most, limit)| most.saturating_add(HUGE) >= limit)
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.aside {
            step_back(self);
        }
        remove(&self.parent, self.name.as_ref());
    }
}

/// The file of a container's directory that names its cgroups, one path a line.
const LIST: &str = "cgroups";

/// What the last component of each begins with.
const PREFIX: &str = "yendor-";

fn note(state: &OwnedFd, path: &Path) -> Caused<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(state, LIST, flags, Mode::RUSR | Mode::WUSR).named("openat", || LIST.into())?;
    let line = [path.as_os_str().as_encoded_bytes(), b"\n"].concat();
    rustix::io::write(&file, &line).named("write", || LIST.into())?;
    Ok(())
}

/// Removes the cgroups that the directory of a container names, whose keeper is gone. One that still has a task stays, as does
/// what could be none of ours; where the keeper has removed them itself there is nothing to do.
pub(crate) fn remove_noted(container: &Path) {
    use std::os::unix::ffi::OsStrExt;
    for line in std::fs::read(container.join(LIST)).unwrap_or_default().split(|b| *b == b'\n') {
        let path = Path::new(std::ffi::OsStr::from_bytes(line));
        let ours = path.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
        if ours
            && let Some(parent) = path.parent()
            && let Ok(parent) = rustix::fs::open(parent, DIRECTORY, Mode::empty())
        {
            remove(&parent, path.file_name().unwrap_or_default());
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Busy as long as its tasks take to die, which is long on a machine with much else to do. Bounded: one may have somebody in it who lives.
fn remove(parent: &OwnedFd, name: &std::ffi::OsStr) {
    const LONGEST: Duration = Duration::from_secs(5);
    let begin = Instant::now();
    let mut pause = Duration::from_millis(2);
    while unlinkat(parent, name, AtFlags::REMOVEDIR) == Err(Errno::BUSY) && begin.elapsed() < LONGEST {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn explain(controller: &str, cause: Cause) -> Cause {
    match &cause {
        Cause::Sys(e) if matches!(e.errno, Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NODEV | Errno::BUSY | Errno::NOENT | Errno::OPNOTSUPP) => {
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
    let above = openat(CWD, parent, DIRECTORY, Mode::empty()).named("open", || format!("{parent:?}"))?;
    mkdirat(&above, name.as_str(), Mode::from_raw_mode(0o755)).named("mkdir", || format!("{path:?}"))?;
    match openat(&above, name.as_str(), DIRECTORY, Mode::empty()).named("open", || format!("{path:?}")) {
        Ok(fd) => Ok(Made { parent: above, name, path, fd, aside: false }),
        Err(e) => {
            remove(&above, name.as_ref());
            Err(e.into())
        }
    }
}

/// The limit holds for memory and swap together, where swap is counted.
fn without_swap(made: &Made, v2: bool, limit: u64) -> Caused<()> {
    let (file, value) = if v2 { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", limit) };
    match write(&made.fd, &made.path, file, &value.to_string()) {
        Err(Cause::Sys(e)) if e.errno == Errno::NOENT => Ok(()),
        other => other,
    }
}

/// Whether tasks sit in a cgroup that is not the host's first, where that hinders nobody.
fn is_occupied(path: &Path) -> bool {
    let read = |file: &str| std::fs::read_to_string(path.join(file));
    read("cgroup.type").is_ok() && read("cgroup.procs").is_ok_and(|tasks| !tasks.is_empty())
}

/// Moves the keeper and the front, if they are alone in the caller's cgroup, into one below it. Other tasks there are not
/// ours to move.
fn step_aside(parent: &Path, name: String) -> Caused<Made> {
    let file = parent.join("cgroup.procs");
    let text = std::fs::read_to_string(&file).map_err(|e| SysError::io("read", file.display().to_string(), &e))?;
    let ours = [
        rustix::process::Pid::as_raw(Some(rustix::process::getpid())),
        rustix::process::Pid::as_raw(rustix::process::getppid()),
    ];
    let there: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    if let Some(stranger) = there.iter().find(|pid| !ours.contains(pid)) {
        let shown = format!("{file:?}: process {stranger} sits there beside ours");
        return Err(SysError::new("write", shown, Errno::BUSY).into());
    }
    let path = parent.join(&name);
    let mut made = make(parent, name, path)?;
    made.aside = true;
    for pid in there {
        write(&made.fd, &made.path, "cgroup.procs", &pid.to_string())?;
    }
    Ok(made)
}

/// Moves the keeper, and the front if it is still there, back. Where that is refused, the cgroup is left to whoever has
/// delegated the one above.
fn step_back(made: &Made) {
    for controller in ["-memory", "-pids"] {
        let _ = write(&made.parent, &made.path, "cgroup.subtree_control", controller);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(procs) = openat(&made.fd, "cgroup.procs", flags, Mode::empty()) else { return };
    for pid in std::io::read_to_string(std::fs::File::from(procs)).unwrap_or_default().lines() {
        let _ = write(&made.parent, &made.path, "cgroup.procs", pid);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Who sits in the caller's cgroup beside us is not ours to move: the limit is refused, by the name of the process.
    #[test]
    fn strangers_are_not_moved_out_of_the_way() {
        let top = Path::new("/sys/fs/cgroup/unified");
        let top = if top.exists() { top } else { Path::new("/sys/fs/cgroup") };
        let parent = top.join(format!("yendor-unit-{}", std::process::id()));
        if std::fs::create_dir(&parent).is_err() || !parent.join("cgroup.procs").exists() {
            let _ = writeln!(std::io::stderr(), "skipped: no cgroup 2 can be made here");
            return;
        }
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let moved = std::fs::write(parent.join("cgroup.procs"), stranger.id().to_string());
        let refused = step_aside(&parent, "yendor-front".into());
        stranger.kill().and_then(|()| stranger.wait()).expect("a child of ours");
        let empty = step_aside(&parent, "yendor-front".into()).map(|made| made.path.is_dir());
        std::fs::remove_dir(&parent).expect("rmdir of a cgroup whose own ones have gone with their owner");
        moved.expect("a child of ours can be moved");
        let said = refused.expect_err("moved a stranger").to_string();
        assert!(said.contains(&format!("process {}", stranger.id())), "{said}");
        assert!(matches!(empty, Ok(true)), "{empty:?}");
    }
}
