//! What a container has set of its namespaces, and what it lets its network do: looked at by a thread while others are asked, and what
//! new ones have by one that leaves them for such before tasks are stopped. Settings are made again before anything else of the container.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use yendor_kinds::Result;
use yendor_kinds::namespace::network;
use yendor_kinds::namespace::sysctl::{self, Own, Record, Values};
use yendor_kinds::namespace::traffic::Traffic;
use yendor_kinds::snapshot::Snapshot;
use yendor_sys::SysError;

use crate::request::{Net, Request, Userns};

/// What there is in namespaces: of the network beside settings, its devices, settings.
type Seen = (Traffic, Traffic, Values);

/// What new namespaces have.
#[derive(Debug)]
pub struct Usual(Seen);

/// A look that goes on while others are asked.
#[derive(Debug)]
pub struct Looking(JoinHandle<Result<Seen>>);

/// What new namespaces have, before tasks are stopped. Those of the container are looked at, too: the kernel makes an entry of /proc/sys when it
/// is first looked up in a network, which takes five times as long as to read it.
///
/// # Errors
/// The kernel's; no thread can be had.
pub fn usual(proc: &OwnedFd, own: Own) -> Result<Usual> {
    let new = Looking::at(proc, move |proc| {
        let settings = sysctl::look_at_new(proc, own)?;
        let traffic = traffic(proc, own)?;
        if own.network {
            // As a container's.
            network::loopback_up()?;
        }
        Ok((traffic, devices(own)?, settings))
    })?;
    Looking::begin(proc, own)?.join()?;
    new.join().map(Usual)
}

impl Looking {
    /// At the namespaces that the caller has joined; tasks must be stopped until [`Self::end`].
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(proc: &OwnedFd, own: Own) -> Result<Looking> {
        Looking::at(proc, move |proc| Ok((traffic(proc, own)?, devices(own)?, sysctl::look(proc, own)?)))
    }

    fn at(proc: &OwnedFd, look: impl FnOnce(BorrowedFd<'_>) -> Result<Seen> + Send + 'static) -> Result<Looking> {
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        let thread = std::thread::Builder::new().name("settings".into()).spawn(move || look(proc.as_fd()));
        Ok(Looking(thread.map_err(|e| SysError::io("clone", "settings", &e))?))
    }

    fn join(self) -> Result<Seen> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The settings that are not as in new namespaces.
    ///
    /// # Errors
    /// What cannot be captured, by name.
    pub fn end(self, usual: &Usual, proc: &OwnedFd) -> Result<Vec<Record>> {
        let ((now, own, settings), Usual((new, devices, values))) = (self.join()?, usual);
        now.as_new(new)?;
        own.as_new(devices)?;
        sysctl::changed(settings, values, proc.as_fd())
    }
}

fn traffic(proc: BorrowedFd<'_>, own: Own) -> Result<Traffic> {
    if own.network { Traffic::look(proc) } else { Ok(Traffic::default()) }
}

fn devices(own: Own) -> Result<Traffic> {
    if own.network { Traffic::devices() } else { Ok(Traffic::default()) }
}

/// Which namespaces are the container's own.
#[must_use]
pub fn own(request: &Request) -> Own {
    Own { network: request.net != Net::Host, ipc: true, users: request.userns != Userns::Host }
}

/// Sets what the image's tasks had set of their namespaces, but for what the caller sets. What is to be said to the caller.
///
/// # Errors
/// The kernel's; what is no setting of a container's own.
pub fn set(snapshot: &Snapshot, request: &Request, proc: &OwnedFd) -> Result<Option<String>> {
    let layout = request.layout.iter().flat_map(|layout| &layout.sysctls);
    let given: BTreeSet<String> = layout.map(|(name, _)| name.replace('.', "/")).collect();
    let left = sysctl::rebuild(&snapshot.container.settings, proc.as_fd(), own(request), |name| {
        given.contains(&name.replace('.', "/"))
    })?;
    let Some(first) = left.first() else { return Ok(None) };
    Ok(Some(format!("{} settings of namespaces that are not the container's own now: {first} ...", left.len())))
}
