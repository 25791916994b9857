//! The keeper's first life, in the user namespace that its front has made: the one above the container's.
//!
//! It receives what is wanted, makes what a process in the container's user namespace may not (its limits, a mount namespace and a
//! cgroup namespace that do not belong to the container's root), leaves the usher behind, and is executed anew in a user namespace
//! below, with the same ids: its memory must belong to that one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use yendor_kinds::{Cause, Named};
use yendor_sys::namespace::Namespaces;
use yendor_sys::{Errno, SysError, sandbox, spawn};

use crate::admit::KEEPER;
use crate::contain::{self, Cgroup, Usher, cgroup, userns, usher};
use crate::control::Control;
use crate::error::{At, Result, Step};
use crate::request::Userns;
use crate::who::Surroundings;
use crate::wire::{Failure, Report, Startup};

/// The number of the keeper's connection with its usher, after the front's.
const USHER: i32 = spawn::FIRST + 1;

/// What the keeper starts with. Descriptors: those of the cgroup, then those of the startup.
#[derive(Debug, Serialize, Deserialize)]
struct Handover {
    startup: Startup,
    cgroup: Option<cgroup::Handed>,
    /// The usher's pid.
    usher: i32,
}

/// What the keeper has been given.
pub struct Inherited {
    /// The connection with the front.
    pub control: Control,
    /// What is wanted.
    pub startup: Startup,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// The limits.
    pub cgroup: Option<Cgroup>,
    /// Who makes the mounts.
    pub usher: Usher,
}

/// Until it is executed anew; or ends, when it was not started by a front, or had to tell it why there is no container.
pub fn outer_main() -> ! {
    let told = Control::inherited(spawn::FIRST).ok().and_then(|control| {
        let (ours, theirs) = Control::pair().ok()?;
        let (startup, descriptors) = control.receive::<Startup>().ok()??;
        let around = Surroundings::look();
        let Err(e) = lead(&control, (&ours, theirs), &startup, &descriptors);
        // What was made is the front's to remove: this process may have no rights any more, and none yet.
        let e = around.name(e, startup.request.pids);
        control.send(&Report::Failed(Failure::from(&e)), &[]).ok()
    });
    // Without a front there is nobody to tell.
    std::process::exit(if told.is_some() { 1 } else { 2 })
}

fn lead(
    control: &Control,
    (ours, theirs): (&Control, Control),
    startup: &Startup,
    descriptors: &[OwnedFd],
) -> Result<std::convert::Infallible> {
    let request = &startup.request;
    raise_descriptor_limit();
    let directory = descriptors.first().ok_or(Errno::BADF).named("recvmsg", || "the state".into()).at(Step::Contain)?;
    // Signals of the caller's terminal are for the front, which forwards them.
    let _ = rustix::process::setsid();
    let cgroup = Cgroup::create(request, directory)?;
    contain::unshare(Namespaces::NEWNS).at(Step::Contain)?;
    let could_be_had = own_cgroup_namespace().at(Step::Contain)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .named("mount", || "\"/\", MS_PRIVATE|MS_REC".into())
        .at(Step::Contain)?;
    let new_user = request.userns == Userns::Auto;
    let guarded = new_user && userns::has_the_hosts_root().at(Step::Contain)?;
    if new_user {
        forbid_cgroup_namespaces(could_be_had).at(Step::Contain)?;
    }
    let keeper = rustix::process::getpid().as_raw_nonzero().get();
    let (cgroup_parts, cgroup_descriptors) = cgroup.as_ref().map(Cgroup::handed).unzip();
    let mut legacy: Vec<BorrowedFd<'_>> = cgroup_descriptors.unwrap_or_default();
    legacy.extend(descriptors.iter().map(AsFd::as_fd));
    // The front's connection: it is closed when the usher, too, is gone.
    let mut keep = vec![theirs.as_fd(), control.as_fd()];
    keep.extend(&legacy);
    let usher = sandbox::fork(&keep, || {
        let usher = rustix::process::getpid().as_raw_nonzero().get();
        let handover = Handover { startup: startup.clone(), cgroup: cgroup_parts, usher };
        usher::serve(&theirs, keeper, (&handover, &legacy), guarded)
    });
    drop(theirs);
    // Ends with this process, or here when the next fails.
    let _usher = usher.at(Step::Contain)?;
    if new_user {
        contain::unshare(Namespaces::NEWUSER).at(Step::Contain)?;
        usher::map_ids(ours)?;
        keep_capabilities().at(Step::Contain)?;
    }
    Err(execute(&request.name, control, ours)).at(Step::Contain)
}

/// The soft limit as high as it goes: the workshop holds every file of the tree, and what the front has on its way counts.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    // Where it is refused, files beyond the limit fail by name.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// Whether one was to be had. In a container of ours none is: there is one already that nobody inside can mount.
fn own_cgroup_namespace() -> std::result::Result<bool, Cause> {
    match contain::unshare(Namespaces::NEWCGROUP) {
        Err(Cause::Refused { error, .. }) if error.errno == Errno::NOSPC => Ok(false),
        other => other.map(|()| true),
    }
}

/// In a cgroup namespace of its own the container's root could mount control groups, and freeze or kill the caller's, whose files
/// are the caller's. The limit of this user namespace holds in those below it, whose own it is not. Where the settings cannot be
/// written, as in a container of root's, a limit from above must hold already: then none could be had.
fn forbid_cgroup_namespaces(could_be_had: bool) -> std::result::Result<(), Cause> {
    const LIMIT: &str = "/proc/sys/user/max_cgroup_namespaces";
    match std::fs::write(LIMIT, "0") {
        Err(e) if e.raw_os_error() == Some(Errno::ROFS.raw_os_error()) && !could_be_had => Ok(()),
        written => written.map_err(|e| SysError::io("write", format!("{LIMIT}, \"0\""), &e).into()),
    }
}

/// The capabilities in the new namespace survive the exec of a user that is not its root.
fn keep_capabilities() -> std::result::Result<(), Cause> {
    if rustix::process::getuid().is_root() {
        return Ok(());
    }
    let now = rustix::thread::capabilities(None).named("capget", String::new)?;
    let sets = CapabilitySets { inheritable: now.permitted, ..now };
    rustix::thread::set_capabilities(None, sets).named("capset", || "inheritable".into())?;
    let one = |number: u32| CapabilitySet::from_bits_retain(1 << number);
    (0..64).map(one).filter(|capability| now.permitted.contains(*capability)).try_for_each(|capability| {
        rustix::thread::configure_capability_in_ambient_set(capability, true)
            .named("prctl", || "PR_CAP_AMBIENT_RAISE".into())
            .map_err(Cause::from)
    })
}

/// Only ever returns why not.
fn execute(name: &str, front: &Control, usher: &Control) -> Cause {
    let through = |fd: BorrowedFd<'_>| fcntl_setfd(fd, FdFlags::empty()).named("fcntl", || "F_SETFD, 0".into());
    if let Err(e) = through(front.as_fd()).and_then(|()| through(usher.as_fd())) {
        return e.into();
    }
    let e = Command::new("/proc/self/exe").arg0("yendor").args([KEEPER, name]).exec();
    SysError::io("execve", "/proc/self/exe", &e).into()
}

/// What the first life has left, in the second.
///
/// # Errors
/// This process was not started by [`outer_main`].
pub fn inherit() -> Result<Inherited> {
    let control = Control::inherited(spawn::FIRST).at(Step::Contain)?;
    let usher = Control::inherited(USHER).at(Step::Contain)?;
    let (handover, descriptors) = usher::legacy::<Handover>(&usher)?;
    let usher = Usher::new(usher, handover.usher);
    let mut descriptors = descriptors.into_iter();
    let cgroup = handover.cgroup.map(|parts| Cgroup::received(parts, &mut descriptors)).transpose()?;
    Ok(Inherited { control, startup: handover.startup, descriptors: descriptors.collect(), cgroup, usher })
}
