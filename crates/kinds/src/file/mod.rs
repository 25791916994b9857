//! Open file descriptions.
//!
//! Linux keeps three things apart: a descriptor (a number in a process's table, with its close-on-exec bit), the open file
//! description that it refers to (position, status flags, owner), and the object behind it. A description is shared by
//! `dup` and `fork`; `kcmp` tells. Here every description has one [`Entry`] with a [`FileId`]; processes hold descriptors
//! that name it.
//!
//! Collecting looks at a duplicate of the description in our own table (`pidfd_getfd`): no code runs in the task.
//! Rebuilding makes each description once, in the workshop (the keeper, inside the container's namespaces); tasks inherit
//! it and move it to its number.

pub mod console;
pub mod device;
pub mod epoll;
pub mod eventfd;
pub mod external;
pub mod fifo;
pub mod gather;
mod holder;
pub mod inet;
pub mod inotify;
pub mod memfd;
pub mod mqueue;
pub mod netlink;
pub mod nsfd;
pub mod pidfd;
pub mod pipe;
pub mod procfs;
pub mod ptmx;
pub mod pts;
pub mod refused;
pub mod regular;
pub mod search;
mod served;
pub mod signalfd;
pub mod terminal;
pub mod timerfd;
pub mod tty;
pub mod unix;
pub mod workshop;

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FdNum, FileId, NsId, NsPid};
use yendor_proc::fdinfo::FdInfo;
use yendor_task::script::bytes;
use yendor_task::{Nr, Script, args};

pub use gather::Gather;
pub use workshop::Workshop;

use crate::Result;
use crate::process::label::Label;

/// An open file description as collect sees it.
#[derive(Debug)]
pub struct Seen {
    /// Its number in the image.
    pub id: FileId,
    /// The same description, as a descriptor of ours.
    pub fd: OwnedFd,
    /// What `/proc/PID/fd/N` links to.
    pub link: Bytes,
    /// Its fdinfo.
    pub info: FdInfo,
    /// Its inode.
    pub stat: rustix::fs::Stat,
    /// One task that holds it, and the number there; none for a description in flight in a socket.
    pub holder: Option<(i32, FdNum)>,
}

/// An open file description in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// By what number descriptors and mappings name it.
    pub id: FileId,
    /// Access mode and status flags as in fdinfo (`O_RDWR | O_NONBLOCK` ...), without `O_CLOEXEC`.
    pub flags: u32,
    /// Who gets its signals, if anybody (fcntl(2), `F_SETOWN`, `F_SETSIG`).
    pub owner: Option<Owner>,
    /// The mount namespace that it was opened in, unless that is the container's.
    #[serde(default)]
    pub mounts: Option<NsId>,
    /// Of a socket: the network that it is in, unless that is the container's.
    #[serde(default)]
    pub network: Option<NsId>,
    /// The label of a socket, where a security module gives it one.
    pub labels: Vec<Label>,
    /// What it is.
    pub record: Record,
}

/// The receiver of a description's signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// `F_OWNER_TID` 0, `F_OWNER_PID` 1 or `F_OWNER_PGRP` 2.
    pub kind: i32,
    /// Whom.
    pub id: NsPid,
    /// The signal, 0 for SIGIO.
    pub signal: i32,
}

/// A descriptor of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Its number.
    pub number: FdNum,
    /// Whether execve closes it.
    pub cloexec: bool,
    /// What it refers to.
    pub file: FileId,
}

/// One kind of open file description. Implemented by its `Record`.
pub trait FileKind: Sized {
    /// The kernel's word for it.
    const NAME: &'static str;

    /// Whether it can be made only when all processes are born; the keeper has it then, and those that hold it fetch it.
    const LATE: bool = false;

    /// Whether a description is of this kind.
    fn claims(seen: &Seen) -> bool;

    /// Reads everything that is needed to make it again. Must not change it.
    ///
    /// # Errors
    /// What cannot be captured is refused by name.
    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self>;

    /// Makes it again. Status flags and owner are set by the caller.
    ///
    /// # Errors
    /// The kernel's refusal, or a hole that the caller did not fill.
    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd>;

    /// Calls that a holder makes once all its descriptors have their numbers (`epoll_ctl`); `number` is its own.
    fn finish(&self, _number: FdNum, _script: &mut Script) {}
}

impl Entry {
    /// Whether it tells by signals that it is ready (`O_ASYNC`), or has somebody to tell.
    #[must_use]
    pub fn signals(&self) -> bool {
        self.owner.is_some() || self.flags & O_ASYNC != 0
    }

    /// A holder, with its own credentials, names the receiver of the signals of its descriptor `number`.
    /// `seen`: a process's id as the holder sees it.
    pub fn own(&self, number: FdNum, seen: impl Fn(NsPid) -> i32, script: &mut Script) {
        if let Some(Owner { kind, id, signal }) = self.owner {
            script.call(Nr::FCNTL, args![number.0, F_SETSIG, signal]);
            if id.0 != 0 {
                let owner = [kind.to_ne_bytes(), seen(id).to_ne_bytes()].concat();
                script.call(Nr::FCNTL, args![number.0, F_SETOWN_EX, bytes(owner)]);
            }
        }
        if self.flags & O_ASYNC != 0 {
            script.call(Nr::FCNTL, args![number.0, F_SETFL, self.flags & SETTABLE]);
        }
    }
}

const O_ASYNC: u32 = 0o20_000;
/// `O_APPEND`, `O_NONBLOCK`, `O_ASYNC`, `O_DIRECT`, `O_NOATIME`: what `F_SETFL` sets.
const SETTABLE: u32 = 0o2000 | 0o4000 | O_ASYNC | 0o40_000 | 0o1_000_000;
const F_SETFL: u32 = 4;
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;

/// Every kind, once: the enum, and who does what. A kind that lacks an arm does not compile.
macro_rules! registry {
    ($($variant:ident $module:ident,)*) => {
        /// What an open file description is.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub enum Record { $($variant($module::Record),)* }

        impl Record {
            /// The kind's name.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Record::$variant(_) => $module::Record::NAME,)* }
            }

            /// See [`FileKind::LATE`].
            #[must_use]
            pub fn is_late(&self) -> bool {
                match self { $(Record::$variant(_) => $module::Record::LATE,)* }
            }

            /// The first kind that claims the description collects it.
            ///
            /// # Errors
            /// The kind's own, or `Unsupported` naming a description that nobody claims.
            pub fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Record> {
                refused::check(seen)?;
                $(if $module::Record::claims(seen) {
                    return $module::Record::collect(seen, gather).map(Record::$variant);
                })*
                Err(crate::Cause::unsupported(format!("{}: no kind knows this file", seen.link)))
            }

            /// See [`FileKind::rebuild`].
            ///
            /// # Errors
            /// The kind's own.
            pub fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
                match self { $(Record::$variant(r) => r.rebuild(entry, workshop),)* }
            }

            /// See [`FileKind::finish`].
            pub fn finish(&self, number: FdNum, script: &mut Script) {
                match self { $(Record::$variant(r) => r.finish(number, script),)* }
            }
        }

        /// The names of all kinds, in the order in which they are asked.
        pub const KINDS: &[&str] = &[$($module::Record::NAME,)*];
    };
}

registry! {
    External external,
    Device device,
    Pipe pipe,
    Fifo fifo,
    Eventfd eventfd,
    Epoll epoll,
    Timerfd timerfd,
    Signalfd signalfd,
    Memfd memfd,
    Mqueue mqueue,
    Inotify inotify,
    Pidfd pidfd,
    Namespace nsfd,
    Netlink netlink,
    Proc procfs,
    Unix unix,
    Inet inet,
    Ptmx ptmx,
    Pts pts,
    Tty tty,
    Console console,
    Regular regular,
}
