//! What a container has set of its namespaces, and what it lets its network do: looked at by a thread that leaves them for new ones,
//! while others are asked. Settings are made again before anything else of the container.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use yendor_kinds::Result;
use yendor_kinds::namespace::sysctl::{self, Own, Record};
use yendor_kinds::namespace::traffic::Traffic;
use yendor_kinds::snapshot::Snapshot;
use yendor_sys::SysError;

use crate::request::{Net, Request, Userns};

/// A look that has begun.
#[derive(Debug)]
pub struct Looking(JoinHandle<Result<Vec<Record>>>);

impl Looking {
    /// Begins, in the namespaces that the caller has joined; tasks are stopped and stay so until [`Self::end`].
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(proc: &OwnedFd, own: Own) -> Result<Looking> {
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        let look = move || {
            let traffic = || if own.network { Traffic::look(proc.as_fd()) } else { Ok(Traffic::default()) };
            let now = traffic()?;
            let settings = sysctl::collect(proc.as_fd(), own)?;
            // In a new network, by now.
            now.as_new(&traffic()?)?;
            Ok(settings)
        };
        let thread = std::thread::Builder::new().name("settings".into()).spawn(look);
        Ok(Looking(thread.map_err(|e| SysError::io("clone", "settings", &e))?))
    }

    /// The settings that are not as in new namespaces.
    ///
    /// # Errors
    /// What cannot be captured, by name.
    pub fn end(self) -> Result<Vec<Record>> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
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
