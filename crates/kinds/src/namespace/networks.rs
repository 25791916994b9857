//! The networks inside a container that sockets live in: whoever looks at a socket, or makes one, is in its network meanwhile.
//! *Read from:* `SO_NETNS_COOKIE` of each socket, and of one that is made in each network.
//! *Made again by:* setns(2) of the thread that makes the socket, and back.
//! *Lost:* nothing; a socket of a network that no process lives in is refused.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use yendor_image::NsId;
use yendor_sys::sock;

use super::nested::{Kind, enter, in_thread, own};
use crate::{Cause, Named, Result};

/// The networks, for one thread that goes there.
#[derive(Debug, Clone, Default)]
pub struct Networks(Option<Arc<All>>);

#[derive(Debug)]
struct All {
    /// The container's own.
    home: OwnedFd,
    nested: BTreeMap<NsId, Network>,
    /// Where the thread is; [`HOME`] at home.
    now: AtomicU32,
}

#[derive(Debug)]
struct Network {
    namespace: OwnedFd,
    cookie: u64,
}

const HOME: u32 = u32::MAX;

impl Networks {
    /// Those among some namespaces. The caller is in the container's own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new<'n>(nested: impl Iterator<Item = (NsId, &'n OwnedFd)>, proc: BorrowedFd<'_>) -> Result<Networks> {
        let mut all = BTreeMap::new();
        for (id, namespace) in nested {
            let namespace =
                rustix::io::fcntl_dupfd_cloexec(namespace, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?;
            let cookie = in_thread(|| {
                enter(&namespace, Kind::Net)?;
                let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
                // A kernel that does not tell has sockets in one network only, as far as we know.
                Ok(sock::namespace_cookie(socket.named("socket", || "AF_UNIX".into())?.as_fd()).unwrap_or(0))
            })?;
            all.insert(id, Network { namespace, cookie });
        }
        if all.is_empty() {
            return Ok(Networks(None));
        }
        let home = own(proc, Kind::Net)?;
        Ok(Networks(Some(Arc::new(All { home, nested: all, now: AtomicU32::new(HOME) }))))
    }

    /// The one with this cookie.
    #[must_use]
    pub fn with_cookie(&self, cookie: u64) -> Option<NsId> {
        let nested = &self.0.as_ref()?.nested;
        nested.iter().find(|(_, network)| network.cookie == cookie).map(|(id, _)| *id)
    }

    /// Where the thread is.
    #[must_use]
    pub fn here(&self) -> Option<NsId> {
        let now = self.0.as_ref().map_or(HOME, |all| all.now.load(Ordering::Relaxed));
        (now != HOME).then_some(NsId(now))
    }

    /// Does something in a network; none: the container's own. Always by the same thread.
    ///
    /// # Errors
    /// `Corrupt` for a number of nothing; what setns says, and `body`.
    pub fn within<T>(&self, network: Option<NsId>, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.go(network.map_or(HOME, |id| id.0))?;
        let done = body();
        self.go(before)?;
        done
    }

    /// Goes there; where it was before.
    fn go(&self, there: u32) -> Result<u32> {
        let Some(all) = &self.0 else {
            return if there == HOME {
                Ok(HOME)
            } else {
                Err(Cause::corrupt(format!("no network has the id {there}")))
            };
        };
        let before = all.now.load(Ordering::Relaxed);
        if before != there {
            let namespace = match there {
                HOME => Some(&all.home),
                id => all.nested.get(&NsId(id)).map(|network| &network.namespace),
            };
            enter(namespace.ok_or_else(|| Cause::corrupt(format!("no network has the id {there}")))?, Kind::Net)?;
            all.now.store(there, Ordering::Relaxed);
        }
        Ok(before)
    }
}
