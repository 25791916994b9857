//! The usher: the process beside the keeper that makes the container's mounts, one user namespace above the container's.
//!
//! A mount namespace that is copied into a lesser user namespace has its mounts locked (mount_namespaces(7)): nobody in there
//! takes one away, makes a read-only one writable, or uncovers what lies below another. So what the container sees is made
//! up here and copied by the keeper; what comes later, /proc and the volumes of an image, is mounted here too and reaches the
//! copy by propagation. The keeper asks, one wish at a time; the usher has ended before any task runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Signal, fchdir, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use yendor_kinds::{Cause, Named};
use yendor_sys::sandbox::{self, Copy};
use yendor_sys::{Errno, wait};

use super::root::{self, Made};
use super::volume::{self, Given};
use super::{Caused, proc, userns};
use crate::control::Control;
use crate::error::{At, Error, Result, Step, With};
use crate::request::{Net, Request};
use crate::wire::Failure;

/// What the keeper asks for; each is answered.
#[derive(Debug, Serialize, Deserialize)]
enum Wish {
    /// Id maps for the keeper's new user namespace: those of the usher's.
    Ids,
    /// What the usher keeps for whoever the keeper becomes. Answered by that, instead of an [`Answer`].
    Legacy,
    /// The root file system. Descriptors: the container's network and ipc namespaces, then what a [`Given`] has.
    Root(Box<Request>),
    /// A volume in the place that the image has for it.
    Volume { name: String, inside: PathBuf, read_only: bool },
    /// /proc. The descriptor: the container's pid namespace, whose pid 1 is there.
    Proc,
}

type Answer = std::result::Result<(), Failure>;

/// The keeper's side of the usher, who ends when this goes.
#[derive(Debug)]
pub struct Usher {
    control: Option<Control>,
    pid: i32,
}

impl Usher {
    /// The usher with this pid, our child, at the other end.
    #[must_use]
    pub fn new(control: Control, pid: i32) -> Usher {
        Usher { control: Some(control), pid }
    }

    /// Only begins; the answer is to be heard.
    pub(super) fn make_root(&self, request: &Request, namespaces: [&OwnedFd; 2], given: &Given) -> Result<()> {
        let mut all: Vec<BorrowedFd<'_>> = namespaces.map(AsFd::as_fd).into();
        all.extend(given.descriptors());
        tell(self.control()?, &Wish::Root(Box::new(request.clone())), &all)
    }

    pub(super) fn attach_volume(&self, name: &str, inside: &Path, read_only: bool) -> Result<()> {
        tell(self.control()?, &Wish::Volume { name: name.to_owned(), inside: inside.to_owned(), read_only }, &[])?;
        self.hear()
    }

    pub(super) fn mount_proc(&self, pid_namespace: &OwnedFd) -> Result<()> {
        tell(self.control()?, &Wish::Proc, &[pid_namespace.as_fd()])?;
        self.hear()
    }

    /// Waits for the answer to the last wish.
    pub(super) fn hear(&self) -> Result<()> {
        hear(self.control()?)
    }

    fn control(&self) -> Result<&Control> {
        self.control.as_ref().ok_or_else(gone)
    }
}

fn gone() -> Error {
    let message = "the process that makes the container's mounts has died".into();
    Error::new(Step::Contain, Cause::Reported { message, code: 1 })
}

/// Gives the calling process, which is in a new user namespace, the ids of the usher's.
///
/// # Errors
/// `EPERM` from the kernel.
pub fn map_ids(usher: &Control) -> Result<()> {
    tell(usher, &Wish::Ids, &[])?;
    hear(usher)
}

/// What the usher was told to keep, and its descriptors.
///
/// # Errors
/// There is no usher.
pub fn legacy<T: DeserializeOwned>(usher: &Control) -> Result<(T, Vec<OwnedFd>)> {
    tell(usher, &Wish::Legacy, &[])?;
    usher.receive().at(Step::Contain)?.ok_or_else(gone)
}

fn tell(usher: &Control, wish: &Wish, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    usher.send(wish, descriptors).at(Step::Contain)
}

/// Waits for the answer to the last wish.
fn hear(usher: &Control) -> Result<()> {
    match usher.receive::<Answer>() {
        Ok(Some((answer, _))) => Ok(answer?),
        Ok(None) => Err(gone()),
        Err(Cause::Sys(e)) if matches!(e.errno, Errno::CONNRESET | Errno::PIPE) => Err(gone()),
        Err(e) => Err(e).at(Step::Contain),
    }
}

impl Drop for Usher {
    fn drop(&mut self) {
        drop(self.control.take());
        // Somebody who waits for all our children may have been quicker.
        let _ = wait::wait(Some(self.pid), true);
    }
}

/// The usher's whole life, in a mount namespace that the keeper `keeper` is in too, until that copies it. `legacy`: what the keeper
/// is to find when it has been executed anew. `guarded`: ids inside are the host's, so what belongs to the host's root has to be
/// covered.
#[must_use]
pub fn serve<T: Serialize>(
    control: &Control,
    keeper: i32,
    (legacy, inherited): (&T, &[BorrowedFd<'_>]),
    guarded: bool,
) -> i32 {
    let with_the_keeper = set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
    if !with_the_keeper || getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != keeper) {
        return 1;
    }
    let mut made: Option<Made> = None;
    while let Ok(Some((wish, mut descriptors))) = control.receive::<Wish>() {
        let done = match wish {
            Wish::Ids => same_ids().and_then(|maps| userns::write(keeper, &maps)).at(Step::Contain),
            Wish::Legacy => match control.send(legacy, inherited) {
                Ok(()) => continue,
                Err(_) => return 1,
            },
            Wish::Root(request) => make_root(&request, descriptors, guarded).map(|all| made = Some(all)),
            Wish::Volume { name, inside, read_only } => attach(made.as_mut(), &name, &inside, read_only),
            Wish::Proc => match mount_proc(control, made.as_ref(), descriptors.pop(), guarded) {
                // It has answered. This process is no more use: its children are the container's for ever.
                Ok(child) => return i32::from(child.wait().is_err()),
                Err(e) => Err(e),
            },
        };
        if answer(control, done) != 0 {
            return 1;
        }
    }
    0
}

fn answer(control: &Control, done: Result<()>) -> i32 {
    let answer: Answer = done.map_err(|e| Failure::from(&e));
    i32::from(control.send(&answer, &[]).is_err())
}

/// The maps of a namespace below this one that has the same ids.
fn same_ids() -> Caused<userns::Maps> {
    let same = |path| -> Caused<Vec<userns::Range>> {
        Ok(userns::known(path)?.into_iter().map(|r| userns::Range { outside: r.inside, ..r }).collect())
    };
    Ok(userns::Maps {
        uids: same("/proc/self/uid_map")?,
        gids: same("/proc/self/gid_map")?,
        // What was forbidden to write them is inherited.
        deny_setgroups: false,
        helper: false,
        root: (0, 0),
    })
}

fn make_root(request: &Request, descriptors: Vec<OwnedFd>, guarded: bool) -> Result<Made> {
    let mut descriptors = descriptors.into_iter();
    // Whoever mounts sysfs or mqueue mounts that of the namespaces it is in.
    for (kind, name) in [(LinkNameSpaceType::Network, "net"), (LinkNameSpaceType::InterProcessCommunication, "ipc")] {
        let fd = descriptors.next().ok_or(Errno::BADF).named("recvmsg", || name.into()).at(Step::Contain)?;
        if kind == LinkNameSpaceType::Network && request.net == Net::Host {
            continue;
        }
        move_into_link_name_space(fd.as_fd(), Some(kind)).named("setns", || name.into()).at(Step::Contain)?;
    }
    let given = Given::received(request, &mut descriptors)?;
    // The working directory: mounts go by paths that are relative to it.
    let state = volume::again(&given.state).at(Step::Contain)?;
    fchdir(&state).named("fchdir", || "the state directory".into()).at(Step::Contain)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    root::make(request, &given, guarded).at(Step::Contain)
}

fn attach(made: Option<&mut Made>, name: &str, inside: &Path, read_only: bool) -> Result<()> {
    let found = made.and_then(|made| {
        let index = made.pending.iter().position(|p| p.name == name)?;
        Some((made.pending.remove(index), &made.root))
    });
    let (pending, root) =
        found.ok_or(Errno::NOENT).named("move_mount", || format!("volume {name:?}")).at(Step::Contain)?;
    pending.attach(root, inside, read_only).at(Step::Contain)
}

/// A child in the container's pid namespace: what proc shows is decided by who mounts it.
fn mount_proc(control: &Control, made: Option<&Made>, namespace: Option<OwnedFd>, guarded: bool) -> Result<Copy> {
    let missing = || Err(Errno::BADF).named("setns", || "pid".into()).at(Step::Contain);
    let (Some(made), Some(namespace)) = (made, namespace) else { return missing() };
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .named("setns", || "pid".into())
        .at(Step::Contain)?;
    let keep: Vec<BorrowedFd<'_>> = std::iter::once(control.as_fd()).chain(made.proc.descriptors()).collect();
    sandbox::fork(&keep, || {
        answer(control, proc::mount_it(&made.proc, guarded).at(Step::Contain).kind("mount", "/proc"))
    })
    .at(Step::Contain)
}
