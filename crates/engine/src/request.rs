//! What the caller asks for: the only source of authority of a restore. Nothing here ever comes from an image.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_kinds::Cause;
use yendor_kinds::snapshot::Bound;
use yendor_policy::capability;
pub use yendor_policy::landlock::Rule;
pub use yendor_policy::lsm::Profile;

use crate::ark;

/// A container as its caller wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The container's name, also that of its directory in the state.
    pub name: String,
    /// Where its root file system comes from.
    pub root: Root,
    /// Host paths made visible inside, by name.
    pub volumes: Vec<Volume>,
    /// What network it gets.
    pub net: Net,
    /// Which user namespace it lives in.
    pub userns: Userns,
    /// Its host name; without one, the image's or the container's name.
    pub hostname: Option<String>,
    /// Bytes of memory it may use, where the host lets the caller limit it.
    pub memory: Option<u64>,
    /// How many tasks it may have, where the host lets the caller limit it.
    pub pids: Option<u64>,
    /// Capabilities taken from the container's root for good (`CAP_NET_RAW`).
    pub cap_drop: Vec<String>,
    /// What its tasks are confined to.
    #[serde(default)]
    pub policy: Policy,
    /// What is mounted in the root and how it is shown, where the caller says so (an OCI bundle); none: as usual.
    pub layout: Option<Layout>,
    /// Whether it may run on a processor that lacks what the image's had.
    #[serde(default)]
    pub any_cpu: bool,
}

impl Request {
    /// What it confines the container with.
    #[must_use]
    pub fn bounds(&self) -> Vec<Bound> {
        let Policy { landlock, seccomp, enforce: _, profiles, keep_lsm: _, no_new_privs } = &self.policy;
        let all = [
            // That of clones who share their memory is nobody's wish.
            (Bound::Seccomp, seccomp.as_ref().is_some_and(|filter| *filter != ark::filter())),
            (Bound::Landlock, !landlock.is_empty()),
            (Bound::CapDrop, !self.cap_drop.is_empty()),
            (Bound::LsmProfile, !profiles.is_empty()),
            (Bound::Memory, self.memory.is_some()),
            (Bound::Pids, self.pids.is_some()),
            (Bound::NoNewPrivs, *no_new_privs),
        ];
        all.into_iter().filter_map(|(bound, there)| there.then_some(bound)).collect()
    }

    /// What is to be said of a container that was confined by more than this.
    #[must_use]
    pub fn weaker_than(&self, then: &[Bound]) -> Option<String> {
        let now = self.bounds();
        let gone = then.iter().filter(|bound| !now.contains(bound)).map(|bound| bound.option());
        // An image may say so any number of times.
        let gone: Vec<&str> = gone.collect::<BTreeSet<_>>().into_iter().collect();
        (!gone.is_empty()).then(|| format!("it ran under {}, which nobody asks for now", gone.join(", ")))
    }

    /// Whether the container's root may mount something in its container, as far as the request tells: what its tasks may not do is not done for
    /// them. Paths of Landlock, and of profiles, would mean something else.
    ///
    /// # Errors
    /// `Unsupported`, naming what forbids it or may do so.
    pub fn may_mount(&self) -> std::result::Result<(), Cause> {
        const ADMIN: &str = "CAP_SYS_ADMIN";
        let Policy { landlock, seccomp, enforce: _, profiles, keep_lsm: _, no_new_privs: _ } = &self.policy;
        let admin = capability::one(ADMIN).unwrap_or(capability::ALL);
        let without = capability::mask(&self.cap_drop).is_ok_and(|dropped| dropped & admin == 0);
        let with = if !without {
            "a container without CAP_SYS_ADMIN"
        } else if !landlock.is_empty() {
            "a container with rules of Landlock"
        } else if seccomp.is_some() {
            "a container with a seccomp filter"
        } else if !profiles.is_empty() {
            "a container with a profile (--lsm-profile)"
        } else {
            return Ok(());
        };
        Err(Cause::unsupported(format!("what the container's root has mounted, in {with}")))
    }
}

/// The container's own policy: applied to every task after it is made and before it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Landlock rules; paths are the container's.
    #[serde(default)]
    pub landlock: Vec<Rule>,
    /// A seccomp filter.
    #[serde(default)]
    pub seccomp: Option<Seccomp>,
    /// When it is put in force.
    #[serde(default)]
    pub enforce: Enforce,
    /// Security labels for every task, one for each module at most.
    #[serde(default)]
    pub profiles: Vec<Profile>,
    /// Whether tasks get the labels of the image, where host and kernel permit it.
    #[serde(default)]
    pub keep_lsm: bool,
    /// Whether none of its programs may give it more rights (prctl(2), `PR_SET_NO_NEW_PRIVS`).
    #[serde(default)]
    pub no_new_privs: bool,
}

/// A seccomp filter of the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// The instructions, eight bytes each.
    pub program: Bytes,
}

/// When a policy is put in force at restore.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforce {
    /// After everything is made: what was allowed when it was opened stays open.
    #[default]
    Late,
    /// Before anything is made: what the policy would not allow now fails the restore.
    Early,
}

/// The inside of a root file system, instead of the usual one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// What is mounted, in this order. /proc and /dev come even when they are not listed.
    pub mounts: Vec<Placed>,
    /// Paths that show nothing.
    pub masked: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub read_only: Vec<PathBuf>,
    /// Whether the root itself cannot be written.
    pub read_only_root: bool,
    /// The NIS domain name.
    pub domainname: Option<String>,
    /// Settings below /proc/sys of the container's own namespaces: name with dots, value.
    pub sysctls: Vec<(String, String)>,
}

impl Layout {
    /// Its mounts but for volumes.
    pub fn file_systems(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter().filter_map(|placed| match placed {
            Placed::FileSystem(mount) => Some(mount),
            Placed::Volume(_) => None,
        })
    }
}

/// Something in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placed {
    /// A file system of the kernel.
    FileSystem(Mount),
    /// The volume of this name.
    Volume(String),
}

/// A file system of the kernel to mount (mount(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Its type.
    pub fs_type: String,
    /// Where, inside.
    pub target: PathBuf,
    /// `MS_*`.
    pub flags: u32,
    /// Options of the file system, or empty.
    pub data: String,
}

/// The source of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// The host's own root, read-only below a private copy-on-write layer.
    Layered,
    /// A directory, used as it is.
    Dir(PathBuf),
    /// The caller's own view of the file system, unchanged (images taken with `--pid`).
    Caller,
}

/// A host path handed in by the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The name by which an image asks for it.
    pub name: String,
    /// Where it is on the host.
    pub host: PathBuf,
    /// Where it appears inside; at restore, without one, where the image says it was.
    pub inside: Option<PathBuf>,
    /// Whether it may be written.
    pub read_only: bool,
}

/// The network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Net {
    /// A network namespace of its own with the loopback up.
    Private,
    /// The caller's network namespace.
    Host,
    /// A network namespace of its own with nothing up.
    None,
}

/// The user namespace of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Userns {
    /// A new one: the default for everybody, real root too.
    Auto,
    /// The caller's own; only real root can ask for it.
    Host,
}
