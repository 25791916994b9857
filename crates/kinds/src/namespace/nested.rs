//! Namespaces that tasks inside a container have made for themselves: user, uts, ipc, net, mnt, pid, time
//! and cgroup (unshare(2), clone(2)).
//! *Read from:* the links in /proc/PID/task/TID/ns; what is in one, by a thread that has joined it.
//! *Made again by:* a thread, or a child in the user namespace that it belongs to, that enters a new one; another thread fills it. A task
//! joins it by setns(2) as soon as it is born, a user namespace when it gets its credentials. Mounts: see [`mount`], clocks [`clock`], control groups [`cgroup`]. A pid namespace is made
//! with its pid 1, by clone3 with all ids that this one has; the others are born there.
//! *Lost:* nothing but what the kinds of what is in it lose. Refused: namespaces that nobody lives in, sockets of a
//! network that no process's first thread lives in, and what is in one and in no image: devices that `links` does not know, changes of `lo` itself, rules and filters,
//! POSIX message queues. Of a network that was made before its users had ids nobody can say which tables of iptables it has: that refuses,
//! unless `--allow-lost iptables` accepts the loss.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, NsId, Reader, Writer};
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_task::{Nr, Script, args};

use super::clock;
use super::ipc::{self, Mapped, Scope};
use super::links;
use super::mount;
use super::network::{Network, loopback_up};
use super::sysctl::{self, Own};
use super::traffic::Traffic;
use super::user;
use crate::file::mqueue;
use crate::{Cause, Named, Result};

/// A namespace. Threads name it by its place in the image's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The user namespace that it belongs to, which comes before it in the list; none: the container's.
    pub owner: Option<NsId>,
    /// What is in it.
    pub content: Content,
}

/// What is in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// Ids.
    User(user::Record),
    /// Names.
    Uts {
        /// The host name.
        hostname: Bytes,
        /// The NIS domain name.
        domainname: Bytes,
    },
    /// System V IPC.
    Ipc {
        /// What is in it.
        objects: ipc::Record,
        /// Its settings that are not as in a new one: names below `fs/mqueue`.
        settings: Vec<sysctl::Record>,
    },
    /// Mounts.
    Mount(mount::Record),
    /// Ids of processes, which they have themselves.
    Pid {
        /// The pid namespace that it was made in, which comes before it in the list; none: the container's.
        parent: Option<NsId>,
    },
    /// Clocks.
    Time(clock::Record),
    /// Control groups, seen from that which the container's tasks are in.
    Cgroup {},
    /// A network. Which sockets are in it they say themselves.
    Net {
        /// Whether `lo` is up.
        loopback: bool,
        /// What it has beside.
        #[serde(default)]
        links: links::Record,
        /// Its settings that are not as in a new one: names below `net`.
        settings: Vec<sysctl::Record>,
    },
}

/// Which sort of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// user_namespaces(7).
    User,
    /// uts_namespaces(7).
    Uts,
    /// ipc_namespaces(7).
    Ipc,
    /// network_namespaces(7).
    Net,
    /// mount_namespaces(7).
    Mount,
    /// pid_namespaces(7).
    Pid,
    /// time_namespaces(7).
    Time,
    /// cgroup_namespaces(7).
    Cgroup,
}

impl Kind {
    /// Those that a task enters as soon as it is born.
    pub const ANY_TIME: [Kind; 6] = [Kind::Uts, Kind::Ipc, Kind::Net, Kind::Mount, Kind::Time, Kind::Cgroup];

    /// What its link in /proc/PID/ns is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Uts => "uts",
            Kind::Ipc => "ipc",
            Kind::Net => "net",
            Kind::Mount => "mnt",
            Kind::Pid => "pid",
            Kind::Time => "time",
            Kind::Cgroup => "cgroup",
        }
    }

    /// The one whose link is called so, if it is among these.
    #[must_use]
    pub fn named(name: &str) -> Option<Kind> {
        [Kind::User, Kind::Pid].into_iter().chain(Kind::ANY_TIME).find(|kind| kind.name() == name)
    }

    fn flag(self) -> Namespaces {
        match self {
            Kind::User => Namespaces::NEWUSER,
            Kind::Uts => Namespaces::NEWUTS,
            Kind::Ipc => Namespaces::NEWIPC,
            Kind::Net => Namespaces::NEWNET,
            Kind::Mount => Namespaces::NEWNS,
            Kind::Pid => Namespaces::NEWPID,
            Kind::Time => Namespaces::NEWTIME,
            Kind::Cgroup => Namespaces::NEWCGROUP,
        }
    }

    fn own(self) -> Own {
        Own { network: self == Kind::Net, ipc: self == Kind::Ipc, users: false }
    }
}

/// Whether nobody can say which tables of iptables a network has.
///
/// # Errors
/// The kernel's.
pub fn tables_are_hidden(namespace: &OwnedFd, proc: BorrowedFd<'_>) -> Result<bool> {
    in_thread(|| {
        enter(namespace, Kind::Net)?;
        Traffic::tables_are_hidden(proc)
    })
}

/// The task joins a namespace; `fd`: its number there.
pub fn join(fd: i32, kind: Kind, script: &mut Script) {
    script.call(Nr::SETNS, args![fd, kind.flag().bits()]);
}

impl Record {
    /// Which sort it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.content {
            Content::User(_) => Kind::User,
            Content::Uts { .. } => Kind::Uts,
            Content::Ipc { .. } => Kind::Ipc,
            Content::Net { .. } => Kind::Net,
            Content::Mount(_) => Kind::Mount,
            Content::Pid { .. } => Kind::Pid,
            Content::Time(_) => Kind::Time,
            Content::Cgroup {} => Kind::Cgroup,
        }
    }

    /// What is in a namespace whose tasks are stopped. `residents`: one that lives in it, and what all that do have attached of it.
    ///
    /// # Errors
    /// What cannot be captured, by name.
    pub fn collect(
        (kind, namespace): (Kind, &OwnedFd),
        owner: Option<NsId>,
        proc: BorrowedFd<'_>,
        blobs: (&Writer, NsId),
        (resident, mapped): (Option<i32>, &Mapped),
        (mounts, home): (&mount::Places, &mount::Home<'_>),
    ) -> Result<Record> {
        if kind == Kind::Mount {
            let place =
                mounts.get(blobs.1).ok_or_else(|| Cause::unsupported("a mnt namespace that nobody lives in"))?;
            let content = Content::Mount(mount::collect(namespace, place, mounts, home, blobs)?);
            return Ok(Record { owner, content });
        }
        let inside = || match kind {
            Kind::User => Ok(Content::User(user::collect(namespace, proc, resident)?)),
            Kind::Uts => {
                enter(namespace, kind)?;
                let names = rustix::system::uname();
                let [hostname, domainname] =
                    [names.nodename(), names.domainname()].map(|n| Bytes(n.to_bytes().to_vec()));
                Ok(Content::Uts { hostname, domainname })
            }
            Kind::Ipc => {
                enter(namespace, kind)?;
                let (writer, id) = blobs;
                let objects = ipc::collect_of(proc, (writer, Some(id)), Scope::Whole, mapped)?;
                let now = sysctl::look(proc, kind.own())?;
                without_queues()?;
                let usual = sysctl::look_at_new(proc, kind.own())?;
                Ok(Content::Ipc { objects, settings: sysctl::changed(now, &usual, proc)? })
            }
            Kind::Net => {
                enter(namespace, kind)?;
                network(proc)
            }
            Kind::Mount | Kind::Pid | Kind::Time | Kind::Cgroup => {
                Err(Cause::corrupt("mounts, ids, clocks and control groups are looked at before"))
            }
        };
        Ok(Record { owner, content: in_thread(inside)? })
    }

    /// Makes it again; `owner`: the user namespace that it belongs to, with its record, unless that is the container's. The caller has one
    /// thread.
    ///
    /// # Errors
    /// The kernel's; `Corrupt` for what cannot be in it.
    pub fn rebuild(
        &self,
        id: NsId,
        owner: Option<(&OwnedFd, &Record)>,
        proc: BorrowedFd<'_>,
        reader: &Reader,
    ) -> Result<OwnedFd> {
        let kind = self.kind();
        match &self.content {
            Content::User(record) => {
                let above = match owner {
                    None => None,
                    Some((there, Record { content: Content::User(above), .. })) => Some((there, above)),
                    Some(_) => return Err(Cause::corrupt("a user namespace in what is none")),
                };
                return user::rebuild(record, above, proc);
            }
            Content::Mount(_) | Content::Pid { .. } | Content::Time(_) | Content::Cgroup {} => {
                return Err(Cause::corrupt("a namespace that is made in another way"));
            }
            Content::Uts { .. } | Content::Ipc { .. } | Content::Net { .. } => {}
        }
        let there = match owner {
            None => in_thread(|| {
                unshare(kind.flag())?;
                own(proc, kind)
            })?,
            Some((owner, _)) => user::rebuild_below(owner, proc, (kind.name(), kind.flag()))?,
        };
        in_thread(|| {
            enter(&there, kind)?;
            self.fill(id, proc, reader)
        })?;
        Ok(there)
    }

    /// Fills the new one that the calling thread is in.
    fn fill(&self, id: NsId, proc: BorrowedFd<'_>, reader: &Reader) -> Result<()> {
        let kind = self.kind();
        match &self.content {
            Content::User(_) | Content::Mount(_) | Content::Pid { .. } | Content::Time(_) | Content::Cgroup {} => {
                Ok(())
            }
            Content::Uts { hostname, domainname } => {
                rustix::system::sethostname(&hostname.0).named("sethostname", || hostname.to_string())?;
                rustix::system::setdomainname(&domainname.0).named("setdomainname", || domainname.to_string())?;
                Ok(())
            }
            Content::Ipc { objects, settings } => {
                set(settings, proc, kind)?;
                ipc::rebuild_of(objects, proc, (reader, Some(id)))
            }
            Content::Net { loopback, links, settings } => {
                if *loopback {
                    loopback_up()?;
                }
                links::rebuild(links)?;
                set(settings, proc, kind)
            }
        }
    }

    /// What can only be done when the tasks have attached what they had. The calling thread goes there and comes back: who has entered a
    /// pid namespace for its children has no other threads any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self, namespace: &OwnedFd, proc: BorrowedFd<'_>) -> Result<()> {
        let Content::Ipc { objects, .. } = &self.content else { return Ok(()) };
        let home = own(proc, Kind::Ipc)?;
        enter(namespace, Kind::Ipc)?;
        let done = ipc::finish(objects, proc);
        enter(&home, Kind::Ipc)?;
        done
    }
}

/// The namespace that the calling thread is in.
///
/// # Errors
/// What openat says.
pub fn own(proc: BorrowedFd<'_>, kind: Kind) -> Result<OwnedFd> {
    named(proc, kind.name())
}

/// The namespace that the calling thread's children are born in.
///
/// # Errors
/// What openat says.
pub fn of_children(proc: BorrowedFd<'_>, kind: Kind) -> Result<OwnedFd> {
    match kind {
        Kind::Time => named(proc, "time_for_children"),
        Kind::Pid => named(proc, "pid_for_children"),
        _ => own(proc, kind),
    }
}

fn named(proc: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    let path = format!("thread-self/ns/{name}");
    let fd = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    Ok(fd.named("openat", || format!("/proc/{path}"))?)
}

/// In a thread: it alone changes its namespaces, and need not find back.
pub(super) fn in_thread<T: Send>(body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| scope.spawn(body).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(super) fn enter(namespace: &OwnedFd, kind: Kind) -> Result<()> {
    let shown = || format!("a nested {} namespace", kind.name());
    let flag = match kind {
        Kind::User => LinkNameSpaceType::User,
        Kind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        Kind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        Kind::Net => LinkNameSpaceType::Network,
        Kind::Mount => LinkNameSpaceType::Mount,
        Kind::Pid => LinkNameSpaceType::ProcessID,
        Kind::Time => LinkNameSpaceType::Time,
        Kind::Cgroup => LinkNameSpaceType::ControlGroup,
    };
    Ok(move_into_link_name_space(namespace.as_fd(), Some(flag)).named("setns", shown)?)
}

fn set(settings: &[sysctl::Record], proc: BorrowedFd<'_>, kind: Kind) -> Result<()> {
    match sysctl::rebuild(settings, proc, kind.own(), |_| false)?.first() {
        Some(other) => Err(Cause::corrupt(format!("{other}: no setting of the {} namespace that has it", kind.name()))),
        None => Ok(()),
    }
}

/// The network that the calling thread is in; afterwards it is in a new one.
fn network(proc: BorrowedFd<'_>) -> Result<Content> {
    let own = Kind::Net.own();
    let (now, devices, traffic) = (Network::here(proc)?, Traffic::devices()?, Traffic::look(proc)?);
    let (links, state) = (links::look()?, links::state()?);
    let settings = sysctl::look(proc, own)?;
    let usual = sysctl::look_at_new(proc, own)?;
    traffic.as_new(&Traffic::look(proc)?)?;
    links::again(&links, state, proc, (&now, &devices))?;
    Ok(Content::Net { loopback: state.loopback, links, settings: sysctl::changed(settings, &usual, proc)? })
}

/// Refuses POSIX message queues in the calling thread's ipc namespace.
fn without_queues() -> Result<()> {
    match mqueue::names(mqueue::mount()?.as_fd())?.first() {
        Some(name) => {
            let name = name.escape_ascii();
            Err(Cause::unsupported(format!("/{name}: a POSIX message queue (mq_open) of a nested ipc namespace")))
        }
        None => Ok(()),
    }
}
