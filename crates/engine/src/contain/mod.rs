//! contain: a new container, made from the caller's request and the host, never from an image.
//!
//! Runs in the keeper. Namespaces first, then the root file system in a private mount namespace, then pivot_root. What
//! only a process inside the new pid namespace can do, mounting its /proc, is handed out as [`LateMount`]; until that is
//! done the old root stays attached (the kernel wants to see an uncovered /proc), then [`Contained::seal`] drops it.

pub mod cgroup;
mod cover;
mod layer;
mod net;
mod place;
mod root;
mod skeleton;
mod special;
pub mod sysctl;
pub mod userns;
pub mod volume;

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Gid, fchdir, pivot_root};
use rustix::time::Timespec;
use yendor_kinds::{Cause, Named};
use yendor_sys::namespace::Namespaces;
use yendor_sys::{Errno, SysError, namespace};

use crate::admit;
use crate::error::{At, Error, Result, Step};
use crate::request::{Net, Request};

use place::Rootfs;

pub use cgroup::Cgroup;
pub use volume::{Given, Handed, Pending};

type Caused<T> = std::result::Result<T, Cause>;

/// A mount that the first task of the container makes, as arguments of mount(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateMount {
    /// What is shown in /proc/mounts, or what is bound.
    pub source: Cow<'static, str>,
    /// Where.
    pub target: Cow<'static, str>,
    /// The file system's type.
    pub fs_type: &'static str,
    /// `MS_*` (mount(2)).
    pub flags: MountFlags,
    /// Options of the file system, or empty.
    pub data: &'static str,
}

/// A container without a task.
#[derive(Debug)]
pub struct Contained {
    /// The /proc in which the keeper sees the tasks, by their outer pids.
    pub host_proc: OwnedFd,
    /// The container's directory on the host; its `upper` is the private layer.
    pub state: OwnedFd,
    /// What the first task has to mount, in this order, before [`Contained::seal`].
    pub late_mounts: Vec<LateMount>,
    /// The limits, if any were asked for.
    pub cgroup: Option<Cgroup>,
    /// Volumes whose place only the image knows.
    pub pending: Vec<Pending>,
    old_root: Option<OwnedFd>,
    /// What the clocks are ahead of the host's: monotonic and boottime.
    ahead: Option<(Timespec, Timespec)>,
}

/// Makes the container around the calling process, which must have one thread and be the keeper.
///
/// Afterwards its root directory is the container's. Its next child is the first task of the new pid namespace only after
/// [`Contained::begin`].
///
/// # Errors
/// What the kernel refused, as a permission error where it is one. The process is then good for nothing but to exit.
pub fn prepare(request: &Request, given: Given) -> Result<Contained> {
    namespace::new_session_keyring().at(Step::Contain)?;
    let cgroup = Cgroup::create(request, &given.state).at(Step::Contain).map_err(|e| {
        let refused = matches!(*e.cause, Cause::Denied { .. });
        let by = refused.then(|| "cgroup: none with this controller is delegated to the caller".to_owned());
        Error { by, ..e }
    })?;
    make(request, given, cgroup).at(Step::Contain)
}

fn make(request: &Request, given: Given, cgroup: Option<Cgroup>) -> Caused<Contained> {
    let host_proc = open_directory("/proc")?;
    // The working directory, unlike a descriptor, follows into the new mount namespace.
    fchdir(&given.state).named("fchdir", || "the state directory".into())?;
    enter_namespaces(request.net)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .named("mount", || "\"/\", MS_PRIVATE|MS_REC".into())?;
    let name = request.hostname.as_deref().unwrap_or(&request.name);
    rustix::system::sethostname(name.as_bytes()).named("sethostname", || format!("{name:?}"))?;
    if let Some(name) = request.layout.as_ref().and_then(|layout| layout.domainname.as_deref()) {
        rustix::system::setdomainname(name.as_bytes()).named("setdomainname", || format!("{name:?}"))?;
    }
    if request.net == Net::Private {
        net::loopback_up()?;
    }
    if let Some(layout) = &request.layout {
        sysctl::set(&host_proc, &layout.sysctls)?;
    }
    let state = open_directory(".")?;
    let umask = rustix::process::umask(Mode::empty());
    let made = root::make(request, &given, &host_proc);
    rustix::process::umask(umask);
    let root::Made { old: old_root, pending, late: late_mounts } = made?;
    if old_root.is_some() {
        drop_groups()?;
    }
    Ok(Contained { host_proc, state, late_mounts, cgroup, pending, old_root, ahead: None })
}

const PROC: LateMount = LateMount {
    source: Cow::Borrowed("proc"),
    target: Cow::Borrowed("/proc"),
    fs_type: "proc",
    flags: MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC),
    data: "",
};

impl Contained {
    /// What the container's clocks will be ahead of the host's.
    pub fn set_time_offsets(&mut self, monotonic: Timespec, boottime: Timespec) {
        self.ahead = Some((monotonic, boottime));
    }

    /// Makes the pid and time namespaces, whose first task is the next child of the calling process. It cannot start
    /// threads any more.
    ///
    /// # Errors
    /// A permission error; `ERANGE` when a clock would be before zero or overflow.
    pub fn begin(&self) -> Result<()> {
        unshare(Namespaces::NEWPID | Namespaces::NEWTIME).at(Step::Contain)?;
        self.ahead.map_or(Ok(()), |(monotonic, boottime)| self.write_time_offsets(monotonic, boottime))
    }

    fn write_time_offsets(&self, monotonic: Timespec, boottime: Timespec) -> Result<()> {
        let line = |name, t: Timespec| format!("{name} {} {}\n", t.tv_sec, t.tv_nsec);
        let text = line("monotonic", monotonic) + &line("boottime", boottime);
        let path = "self/timens_offsets";
        let open = openat(&self.host_proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        open.and_then(|fd| rustix::io::write(fd, text.as_bytes()))
            .named("write", || format!("/proc/{path}, {text:?}"))
            .at(Step::Contain)?;
        Ok(())
    }

    /// Puts a pending volume into its place, which is made beneath the root where it is missing.
    ///
    /// # Errors
    /// `ENOENT` when no such volume is pending.
    pub fn attach_volume(&mut self, name: &str, inside: &Path, read_only: bool) -> Result<()> {
        let found = self.pending.iter().position(|p| p.name == name).ok_or(Errno::NOENT);
        let index = found.named("move_mount", || format!("volume {name:?}")).at(Step::Contain)?;
        let root = Rootfs { fd: open_directory("/").at(Step::Contain)? };
        self.pending.remove(index).attach(&root, inside, read_only).at(Step::Contain)
    }

    /// Detaches the old root, after the first task has made the late mounts: from here on nothing of the host is
    /// reachable by name.
    ///
    /// # Errors
    /// `EINVAL` when called twice.
    pub fn seal(&mut self) -> Result<()> {
        let Some(old_root) = self.old_root.take() else { return Ok(()) };
        // By descriptor: it is mounted on top of the new root, where no path leads.
        fchdir(&old_root)
            .named("fchdir", || "the old root".into())
            .and_then(|()| rustix::mount::unmount(".", UnmountFlags::DETACH).named("umount2", || "the old root".into()))
            .and_then(|()| rustix::process::chdir("/").named("chdir", || "\"/\"".into()))
            .at(Step::Contain)
    }
}

fn enter_namespaces(net: Net) -> Caused<()> {
    let mut wanted = Namespaces::NEWNS | Namespaces::NEWIPC | Namespaces::NEWUTS | Namespaces::NEWCGROUP;
    wanted.set(Namespaces::NEWNET, net != Net::Host);
    unshare(wanted)
}

fn unshare(wanted: Namespaces) -> Caused<()> {
    namespace::unshare(wanted).map_err(|error| match error.errno {
        Errno::NOSPC => denied(&error, "a limit is reached: see /proc/sys/user/max_*_namespaces"),
        Errno::PERM | Errno::ACCESS => {
            let hint = admit::switched_off();
            denied(&error, hint.as_deref().unwrap_or("a seccomp filter or a security module of the caller forbids it"))
        }
        Errno::INVAL => denied(&error, "the kernel lacks a namespace (time namespaces need Linux 5.6)"),
        _ => error.into(),
    })
}

fn denied(error: &SysError, hint: &str) -> Cause {
    Cause::Refused { error: error.clone(), hint: hint.into() }
}

/// The caller's supplementary groups were good for finding the caller's own paths; the container does not get them.
fn drop_groups() -> Caused<()> {
    let no_groups: &[Gid] = &[];
    match rustix::thread::set_thread_groups(no_groups) {
        // Without subordinate ids the kernel keeps them: dropping a group could open files that deny it (user_namespaces(7)).
        Err(Errno::PERM) => Ok(()),
        other => Ok(other.named("setgroups", || "[]".into())?),
    }
}

/// Makes the current directory the root and stacks the old one on it; the old one.
fn pivot(new_root: &OwnedFd) -> Caused<OwnedFd> {
    let old_root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .named("open", || "\"/\"".into())?;
    fchdir(new_root).named("fchdir", || "the new root".into())?;
    pivot_root(".", ".").named("pivot_root", || "\".\", \".\"".into())?;
    rustix::process::chdir("/").named("chdir", || "\"/\"".into())?;
    Ok(old_root)
}

fn open_directory(path: &str) -> Caused<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty()).named("open", || format!("{path:?}"))?)
}

/// A path as messages show it.
fn shown(path: &[u8]) -> String {
    PathBuf::from(String::from_utf8_lossy(path).into_owned()).display().to_string()
}
