//! contain: a new container, made from the caller's request and the host, never from an image.
//!
//! Two processes make it. The usher (see [`usher`]) makes its mounts, in a user namespace above the container's; the keeper, which
//! is in the container's own, makes all other namespaces, copies the usher's mount namespace and turns its root. /proc can only be
//! mounted when there is a pid 1: until [`Contained::finish`] there is none.

pub mod cgroup;
mod cover;
mod layer;
mod place;
mod proc;
mod root;
mod skeleton;
mod special;
pub mod sysctl;
pub mod userns;
pub mod usher;
pub mod volume;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount,
};
use rustix::process::{Gid, fchdir, pivot_root};
use rustix::time::Timespec;
use yendor_kinds::namespace::mount::own::Begun;
use yendor_kinds::{Cause, Named};
use yendor_sys::namespace::Namespaces;
use yendor_sys::{Errno, SysError, namespace};

use crate::admit;
use crate::collect::namespace::Again;
use crate::error::{At, Result, Step, With};
use crate::request::{Net, Request, Root};

pub use cgroup::Cgroup;
pub use usher::Usher;
pub use volume::{Given, Handed};

type Caused<T> = std::result::Result<T, Cause>;

/// A container without a task.
#[derive(Debug)]
pub struct Contained {
    /// The /proc in which the keeper sees the tasks, by their outer pids.
    pub host_proc: OwnedFd,
    /// The container's directory on the host; its `upper` is the private layer.
    pub state: OwnedFd,
    /// The limits, if any were asked for.
    pub cgroup: Option<Cgroup>,
    /// What its root has mounted, as far as that is made.
    pub begun: Option<Begun>,
    /// The mounts of it, and those that were there before.
    pub again: Again,
    usher: Option<Usher>,
    /// What the clocks are ahead of the host's: monotonic and boottime.
    ahead: Option<(Timespec, Timespec)>,
}

/// Makes the container around the calling process, which must have one thread and be the keeper. `cgroup`: its limits.
///
/// Afterwards its root directory is the container's. Its next child is the first task of the new pid namespace only after
/// [`Contained::begin`].
///
/// # Errors
/// What the kernel refused, as a permission error where it is one. The process is then good for nothing but to exit.
pub fn prepare(request: &Request, given: &Given, usher: Usher, cgroup: Option<Cgroup>) -> Result<Contained> {
    namespace::new_session_keyring().at(Step::Contain)?;
    let host_proc = open_directory("/proc").at(Step::Contain)?;
    let mut wanted = Namespaces::NEWIPC | Namespaces::NEWUTS;
    wanted.set(Namespaces::NEWNET, request.net != Net::Host);
    unshare(wanted).at(Step::Contain)?;
    let own = |name: &str| openat(&host_proc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let own = |name: &'static str| own(name).named("open", || format!("/proc/{name}")).at(Step::Contain);
    usher.make_root(request, [&own("self/ns/net")?, &own("self/ns/ipc")?], given)?;
    // Meanwhile.
    let named = set_names(request, &host_proc).at(Step::Contain);
    usher.hear()?;
    named?;
    enter(request, given).at(Step::Contain)?;
    // In the host's mount namespace, where nothing is mounted below it: what is removed there leads nowhere else.
    let state = openat(&given.state, ".", DIRECTORY, Mode::empty())
        .named("open", || "the state directory".into())
        .at(Step::Contain)?;
    let (begun, again) = (None, Again::default());
    Ok(Contained { host_proc, state, cgroup, begun, again, usher: Some(usher), ahead: None })
}

/// Names and settings of the new namespaces.
fn set_names(request: &Request, host_proc: &OwnedFd) -> Caused<()> {
    let name = request.hostname.as_deref().unwrap_or(&request.name);
    rustix::system::sethostname(name.as_bytes()).named("sethostname", || format!("{name:?}"))?;
    if let Some(name) = request.layout.as_ref().and_then(|layout| layout.domainname.as_deref()) {
        rustix::system::setdomainname(name.as_bytes()).named("setdomainname", || format!("{name:?}"))?;
    }
    match &request.layout {
        Some(layout) => sysctl::set(host_proc, &layout.sysctls),
        None => Ok(()),
    }
}

/// Into a copy of the mounts that the usher has made, and into the root that is among them.
fn enter(request: &Request, given: &Given) -> Caused<()> {
    unshare(Namespaces::NEWNS)?;
    // As in a lesser user namespace in any case: what the usher mounts comes here, nothing goes back.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .named("mount", || "\"/\", MS_SLAVE|MS_REC".into())?;
    if request.root == Root::Caller {
        return Ok(());
    }
    fchdir(volume::again(&given.state)?).named("fchdir", || "the state directory".into())?;
    // Once more, on top: pivot_root(2) takes no mount that is locked to another.
    mount_bind_recursive("root", "root").named("mount", || "\"root\", MS_BIND|MS_REC".into())?;
    let old_root = pivot(&open_directory("root")?)?;
    // By descriptor: it is mounted on top of the new root, where no path leads.
    fchdir(&old_root).named("fchdir", || "the old root".into())?;
    unmount(".", UnmountFlags::DETACH).named("umount2", || "the old root".into())?;
    rustix::process::chdir("/").named("chdir", || "\"/\"".into())?;
    drop_groups()
}

impl Contained {
    /// What the container's clocks will be ahead of the machine's, which need not be ours.
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
    pub fn attach_volume(&self, name: &str, inside: &Path, read_only: bool) -> Result<()> {
        self.usher()?.attach_volume(name, inside, read_only)
    }

    /// The last mount, now that there is a pid 1: /proc. From here on nothing is mounted from outside, and what the image's root has
    /// mounted is completed.
    ///
    /// # Errors
    /// What the kernel refused; `EINVAL` when called twice.
    pub fn finish(&mut self) -> Result<()> {
        let path = "self/ns/pid_for_children";
        let namespace = openat(&self.host_proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .named("open", || format!("/proc/{path}"))
            .at(Step::Contain)?;
        self.usher()?.mount_proc(&namespace)?;
        self.usher = None;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .named("mount", || "\"/\", MS_PRIVATE|MS_REC".into())
            .at(Step::Contain)?;
        if let Some(begun) = self.begun.take() {
            self.again.note_proc(self.host_proc.as_fd()).at(Step::Rebuild)?;
            self.again.made = begun.finish(self.host_proc.as_fd()).at(Step::Rebuild).kind("namespace", "mnt")?;
        }
        Ok(())
    }

    fn usher(&self) -> Result<&Usher> {
        self.usher.as_ref().ok_or(Errno::INVAL).named("sendmsg", || "no usher any more".into()).at(Step::Contain)
    }
}

/// Leaves a container's root, which nothing runs in any more, for an empty one: places where something is mounted in the caller's
/// namespace cannot be removed, and nobody in there can unmount what is locked.
///
/// # Errors
/// What the kernel refused; nothing has changed then.
pub fn leave() -> std::result::Result<(), SysError> {
    // Whatever the container has left of its directories.
    let cover = |place: &&str| mount("tmpfs", *place, "tmpfs", MountFlags::empty(), None).is_ok();
    let over = ["/proc", "/sys", "/dev", "/tmp"].into_iter().find(cover);
    let over = over.ok_or(Errno::NOENT).named("mount", || "\"tmpfs\", \"/proc\"".into())?;
    rustix::process::chdir(over).named("chdir", || format!("{over:?}"))?;
    pivot_root(".", ".").named("pivot_root", || "\".\", \".\"".into())?;
    unmount(".", UnmountFlags::DETACH).named("umount2", || "the container's root".into())?;
    rustix::process::chdir("/").named("chdir", || "\"/\"".into())
}

/// Leaves namespaces for new ones, and says what forbids it.
pub(crate) fn unshare(wanted: Namespaces) -> Caused<()> {
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

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_directory(path: &str) -> Caused<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty()).named("open", || format!("{path:?}"))?)
}

/// A path as messages show it.
fn shown(path: &[u8]) -> String {
    PathBuf::from(String::from_utf8_lossy(path).into_owned()).display().to_string()
}
