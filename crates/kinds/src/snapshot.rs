//! The records of an image: everything but the bytes.

use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, PageRun};

use crate::process::State;
use crate::{file, memory, process};

/// What `records.cbor` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Where it was taken.
    pub machine: Machine,
    /// The container around the processes.
    pub container: Container,
    /// Processes, parents before children.
    pub processes: Vec<process::Record>,
    /// Open file descriptions.
    pub files: Vec<file::Entry>,
    /// Shared memory without descriptors.
    pub objects: Vec<memory::shared::Record>,
    /// Filters and domains that threads refer to.
    #[serde(default)]
    pub restrictions: Restrictions,
    /// Namespaces inside the container that threads refer to.
    #[serde(default)]
    pub namespaces: Vec<crate::namespace::nested::Record>,
    /// What was lost, kind and object: what the caller of the checkpoint allowed, and labels that no kernel tells.
    pub lost: Vec<(String, String)>,
}

impl Snapshot {
    /// The highest number of a descriptor in any process, at least 2.
    #[must_use]
    pub fn highest_descriptor(&self) -> i32 {
        let descriptors = |state: &State| match state {
            State::Alive(a) => a.descriptors.iter().map(|d| d.number.0).max(),
            State::Exec(e) => e.descriptors.iter().map(|d| d.number.0).max(),
            State::Zombie(_) => None,
        };
        self.processes.iter().filter_map(|p| descriptors(&p.state)).max().unwrap_or(2).max(2)
    }

    /// How many threads there are; a process that has ended counts as one.
    #[must_use]
    pub fn threads(&self) -> usize {
        let count = |s: &State| if let State::Alive(a) = s { a.threads.len() } else { 1 };
        self.processes.iter().map(|p| count(&p.state)).sum()
    }

    /// All of them have given up to get rights from their programs.
    pub fn no_new_privs(&mut self) {
        for process in &mut self.processes {
            match &mut process.state {
                State::Alive(alive) => {
                    alive.threads.iter_mut().for_each(|thread| thread.credentials.no_new_privs = true)
                }
                State::Exec(exec) => exec.credentials.no_new_privs = true,
                State::Zombie(_) => {}
            }
        }
    }

    /// All runs of pages.
    pub fn page_runs(&mut self) -> impl Iterator<Item = &mut PageRun> {
        let own = self.processes.iter_mut().flat_map(|process| match &mut process.state {
            State::Alive(alive) => alive.memory.pages.as_mut_slice(),
            State::Zombie(_) | State::Exec(_) => &mut [],
        });
        own.chain(self.objects.iter_mut().flat_map(|object| &mut object.pages))
    }
}

/// The machine of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `x86_64`.
    pub architecture: String,
    /// `uname -r`.
    pub kernel: String,
    /// The vdso that the tasks have mapped: its pages are the kernel's and must be the same at restore.
    pub vdso: Option<yendor_image::Digest>,
    /// What instructions its processor had beside those of every processor, by the names of /proc/cpuinfo, in the order of their bytes.
    #[serde(default)]
    pub processor: Vec<String>,
    /// Its security modules.
    pub security: Security,
}

/// The security modules of a checkpoint's machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// Names of all that were active, in their order.
    pub active: Vec<String>,
    /// Those that label tasks, with their policy.
    pub policies: Vec<Policy>,
}

/// Which policy a security module had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The module's name.
    pub module: String,
    /// Digests by what they are of, as far as the labels of the image need it; none: whoever took the image could not read it.
    pub parts: Option<Vec<(String, String)>>,
    /// Which boot, and which load of a policy since then.
    pub load: Option<String>,
}

/// What the container looked like; content, not authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its host name.
    pub hostname: Bytes,
    /// Its NIS domain name.
    pub domainname: Bytes,
    /// `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` as its tasks saw them, in nanoseconds.
    pub clocks: (u64, u64),
    /// How its tasks saw the file system.
    pub root: Root,
    /// Whether it had a network namespace of its own.
    pub own_network: bool,
    /// Whether the loopback of that was up.
    #[serde(default = "up")]
    pub loopback: bool,
    /// Its private file system layer, then its tmpfs mounts.
    pub layers: Vec<crate::namespace::layer::Record>,
    /// What its root has made of its mounts.
    #[serde(default)]
    pub mounts: crate::namespace::mount::own::Record,
    /// System V IPC; none for a tree that used none.
    pub ipc: Option<crate::namespace::ipc::Record>,
    /// Devices, addresses and routes of its network, where that was its own.
    #[serde(default)]
    pub links: crate::namespace::links::Record,
    /// Settings of its namespaces that are not as in new ones.
    pub settings: Vec<crate::namespace::sysctl::Record>,
    /// Host paths that its tasks saw; whoever restores says by name what they are now.
    pub volumes: Vec<Volume>,
    /// What confined it beside what its tasks had forbidden themselves. No authority of anything: whoever restores it is told.
    #[serde(default)]
    pub bounds: Vec<Bound>,
}

/// What a caller confines a container with, by the option that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// `--seccomp`.
    Seccomp,
    /// `--landlock`.
    Landlock,
    /// `--cap-drop`.
    CapDrop,
    /// `--lsm-profile`.
    LsmProfile,
    /// `--memory`.
    Memory,
    /// `--pids`.
    Pids,
    /// `process.noNewPrivileges` of a bundle.
    NoNewPrivs,
}

impl Bound {
    /// The option.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Bound::Seccomp => "--seccomp",
            Bound::Landlock => "--landlock",
            Bound::CapDrop => "--cap-drop",
            Bound::LsmProfile => "--lsm-profile",
            Bound::Memory => "--memory",
            Bound::Pids => "--pids",
            Bound::NoNewPrivs => "noNewPrivileges (--bundle)",
        }
    }
}

fn up() -> bool {
    true
}

/// A place where something of the host's is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// The name by which it is asked for.
    pub name: String,
    /// Where it was, inside.
    pub inside: Bytes,
    /// Whether it could not be written.
    pub read_only: bool,
}

/// The sort of root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The host's under a private layer.
    Layered,
    /// A directory of the caller's.
    Dir,
    /// The root of an OCI bundle, with the mounts that it asks for.
    Bundle,
    /// The caller's own view.
    Caller,
}

/// Filters and domains that threads refer to, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restrictions {
    /// Seccomp filters.
    pub filters: Vec<process::seccomp::Filter>,
    /// Landlock domains.
    pub domains: Vec<process::landlock::Layer>,
}

impl Snapshot {
    /// The process that everything else grows from.
    #[must_use]
    pub fn root(&self) -> Option<&process::Record> {
        self.processes.first()
    }
}
