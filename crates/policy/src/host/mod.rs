//! The host's policy: `/etc/yendor/policy.toml`. It can only narrow what the kernel allows the caller anyway.
//!
//! No file: the kernel alone decides. A file that cannot be read, or that says anything this module does not know, denies
//! everything: a rule that nobody understands must not be a rule that nobody keeps. Every refusal names the line that
//! made it. `docs/policy.md` is the reference.

mod decide;
mod read;
mod who;

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

pub use decide::{Ask, Granted, HostPath, Places};
pub use who::Person;

/// Where the policy is. Nothing moves it: no option, no variable.
pub const FILE: &str = "/etc/yendor/policy.toml";

/// A refusal, or why the policy cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Denial {
    /// The file, with line and column where there is one, and what it forbids.
    pub what: String,
    /// The file, with line and column where there is one.
    pub place: String,
    /// What would allow it.
    pub hint: String,
}

/// What a caller wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Start a container.
    Run,
    /// Restore an image.
    Restore,
    /// Checkpoint a container or a tree.
    Checkpoint,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 3] = [Verb::Run, Verb::Restore, Verb::Checkpoint];

    /// Its name in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verb::Run => "run",
            Verb::Restore => "restore",
            Verb::Checkpoint => "checkpoint",
        }
    }
}

/// The host's policy.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Rules,
    text: String,
    present: bool,
}

/// The file as it is written. What is absent is not narrowed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rules {
    run: Option<Spanned<Who>>,
    restore: Option<Spanned<Who>>,
    checkpoint: Option<Spanned<Who>>,
    networks: Option<Spanned<Vec<Network>>>,
    userns_host: Option<Spanned<bool>>,
    volumes: Option<Spanned<Volumes>>,
    rootfs: Option<Spanned<Vec<PathBuf>>>,
    keep_labels: Option<Spanned<Vec<String>>>,
    signed_by: Option<Spanned<Vec<String>>>,
    limits: Option<Spanned<Limits>>,
}

/// Users and groups by name or number; whoever is in one of the lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Who {
    #[serde(default)]
    users: Vec<Id>,
    #[serde(default)]
    groups: Vec<Id>,
}

/// A user or group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(u32),
    Name(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Network {
    Private,
    Host,
    None,
}

/// Directories that may be handed in, with everything beneath them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Volumes {
    #[serde(default)]
    read_only: Vec<PathBuf>,
    #[serde(default)]
    read_write: Vec<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    memory: Option<u64>,
    pids: Option<u64>,
}

/// What the policy says about something, for whoever wants to know before asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The rule's name in the file.
    pub rule: &'static str,
    /// What it means for this person.
    pub meaning: String,
    /// Whether it forbids something outright.
    pub forbids: bool,
}

#[cfg(test)]
mod tests;
