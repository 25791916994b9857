//! What a container has set of its namespaces, and what it lets its network do: looked at by a thread while others are asked, and what
//! new ones have by one that leaves them for such before tasks are stopped. Settings are made again before anything else of the container.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use yendor_kinds::namespace::links::{self, State};
use yendor_kinds::namespace::network::{Network, loopback_up};
use yendor_kinds::namespace::sysctl::{self, Own, Record, Values};
use yendor_kinds::namespace::traffic::Traffic;
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Result};
use yendor_sys::SysError;
use yendor_sys::namespace::{Namespaces, unshare};

use crate::request::{Net, Request, Userns};

/// What there is in namespaces.
#[derive(Debug)]
pub struct Seen {
    /// What the network does with packets.
    traffic: Traffic,
    /// Its devices and their addresses.
    devices: Traffic,
    /// All of it, what of it can be made again, and whether its loopback is up.
    network: Option<(Network, links::Record, State)>,
    settings: Values,
}

/// What new namespaces have: their network with its loopback up, and what that is like before it is.
#[derive(Debug)]
pub struct Usual {
    up: Seen,
    down: Option<(Network, Traffic)>,
}

/// A look that goes on while others are asked.
#[derive(Debug)]
pub struct Looking<T = Seen>(JoinHandle<Result<T>>);

/// What new namespaces have, before tasks are stopped. Those of the container are looked at, too: the kernel makes an entry of /proc/sys when it
/// is first looked up in a network, which takes five times as long as to read it.
///
/// # Errors
/// The kernel's; no thread can be had.
pub fn usual(proc: &OwnedFd, own: Own) -> Result<Usual> {
    let new = Looking::at(proc, move |proc| {
        let settings = sysctl::look_at_new(proc, own)?;
        let traffic = traffic(proc, own)?;
        let look = || Ok::<_, Cause>((Network::here(proc)?, Traffic::devices()?));
        let down = own.network.then(look).transpose()?;
        if own.network {
            // As most containers'.
            loopback_up()?;
        }
        Ok(Usual { up: Seen { traffic, devices: devices(own)?, network: network(proc, own)?, settings }, down })
    })?;
    Looking::begin(proc, own)?.join()?;
    new.join()
}

impl Looking {
    /// At the namespaces that the caller has joined; tasks must be stopped until [`Self::end`].
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(proc: &OwnedFd, own: Own) -> Result<Looking> {
        Looking::at(proc, move |proc| {
            let (traffic, devices, network) = (traffic(proc, own)?, devices(own)?, network(proc, own)?);
            Ok(Seen { traffic, devices, network, settings: sysctl::look(proc, own)? })
        })
    }
}

impl<T: Send + 'static> Looking<T> {
    fn at(proc: &OwnedFd, look: impl FnOnce(BorrowedFd<'_>) -> Result<T> + Send + 'static) -> Result<Looking<T>> {
        let proc = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e))?;
        let thread = std::thread::Builder::new().name("settings".into()).spawn(move || look(proc.as_fd()));
        Ok(Looking(thread.map_err(|e| SysError::io("clone", "settings", &e))?))
    }

    fn join(self) -> Result<T> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Looking {
    /// The settings that are not as in new namespaces, what the network has beside a new one's, and whether its loopback is up.
    ///
    /// # Errors
    /// What cannot be captured, by name.
    pub fn end(self, usual: &Usual, proc: &OwnedFd) -> Result<(Vec<Record>, links::Record, bool)> {
        let (now, new) = (self.join()?, &usual.up);
        let loopback = now.network.as_ref().is_none_or(|(.., state)| state.loopback);
        now.traffic.as_new(&new.traffic)?;
        let links = match now.network {
            Some((_, links, State { loopback: false, .. })) if !links.is_empty() => {
                let what =
                    "a network whose loopback (lo) is down, with devices, addresses or routes of its own; bring it up";
                return Err(Cause::unsupported(what));
            }
            Some((network, links, state)) if !links.is_empty() => {
                let again = || {
                    unshare(Namespaces::NEWNET)?;
                    links::again(&links, state, proc.as_fd(), (&network, &now.devices))
                };
                let done = std::thread::scope(|scope| scope.spawn(again).join());
                done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                links
            }
            _ => {
                now.devices.as_new(usual.devices(loopback))?;
                links::Record::default()
            }
        };
        Ok((sysctl::changed(now.settings, &new.settings, proc.as_fd())?, links, loopback))
    }
}

impl Usual {
    /// A new network, with its loopback up or down.
    #[must_use]
    pub fn network(&self, loopback: bool) -> Option<&Network> {
        match loopback {
            true => self.up.network.as_ref().map(|(network, ..)| network),
            false => self.down.as_ref().map(|(network, _)| network),
        }
    }

    fn devices(&self, loopback: bool) -> &Traffic {
        match &self.down {
            Some((_, devices)) if !loopback => devices,
            _ => &self.up.devices,
        }
    }
}

fn network(proc: BorrowedFd<'_>, own: Own) -> Result<Option<(Network, links::Record, State)>> {
    let look = || Ok((Network::here(proc)?, links::look()?, links::state()?));
    own.network.then(look).transpose()
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

/// Sets the loopback up where it was, if that is to be.
///
/// # Errors
/// The kernel's.
pub fn loopback(snapshot: &Snapshot, request: &Request) -> Result<()> {
    if request.net == Net::Private && snapshot.container.loopback { loopback_up() } else { Ok(()) }
}

/// Sets what the image's tasks had set of their namespaces, but for what the caller sets. What is to be said to the caller.
///
/// # Errors
/// The kernel's; what is no setting of a container's own.
pub fn set(snapshot: &Snapshot, request: &Request, proc: &OwnedFd) -> Result<Option<String>> {
    let layout = request.layout.iter().flat_map(|layout| &layout.sysctls);
    let given: BTreeSet<String> = layout.map(|(name, _)| name.replace('.', "/")).collect();
    let (own, links) = (own(request), &snapshot.container.links);
    if own.network {
        // Their settings come after them.
        links::rebuild(links)?;
    }
    let left = sysctl::rebuild(&snapshot.container.settings, proc.as_fd(), own, |name| {
        given.contains(&name.replace('.', "/"))
    })?;
    let gone = (!own.network && !links.is_empty()).then(|| "devices, addresses and routes".to_owned());
    let left = left.first().map(|first| format!("{} settings ({first} ...)", left.len()));
    let what: Vec<String> = gone.into_iter().chain(left).collect();
    Ok((!what.is_empty()).then(|| format!("{} of namespaces that are not the container's own now", what.join(", "))))
}
