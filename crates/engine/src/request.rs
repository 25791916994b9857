//! What the caller asks for: the only source of authority of a restore. Nothing here ever comes from an image.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
