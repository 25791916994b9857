//! Where something failed, added once to why (DESIGN: one type, one table of hints, exit codes that say what is true).

use std::fmt;

use yendor_kinds::Cause;
use yendor_sys::{Errno, SysError};

/// The steps of a checkpoint and of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub enum Step {
    Freeze,
    Collect,
    Store,
    Admit,
    Contain,
    Load,
    Rebuild,
    Confine,
    Thaw,
}

impl Step {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Step::Freeze => "freeze",
            Step::Collect => "collect",
            Step::Store => "store",
            Step::Admit => "admit",
            Step::Contain => "contain",
            Step::Load => "load",
            Step::Rebuild => "rebuild",
            Step::Confine => "confine",
            Step::Thaw => "thaw",
        }
    }
}

/// Where it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// In which step.
    pub step: Step,
    /// With which task, inside the container.
    pub task: Option<i32>,
    /// With which kind of object.
    pub kind: Option<&'static str>,
    /// With which object.
    pub object: Option<String>,
}

/// A failure.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// Where.
    pub place: Place,
    /// Why; boxed, since results are passed around far more often than they fail.
    pub cause: Box<Cause>,
    /// Whether the original state is no longer intact.
    pub broken: bool,
    /// Who denied it, where that is known.
    pub by: Option<String>,
}

/// A result of the engine.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        if let Some(by) = &self.by {
            write!(f, "\n  denied by: {by}")?;
        }
        if let Some(hint) = self.hint() {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl Error {
    /// A failure in a step.
    pub fn new(step: Step, cause: impl Into<Cause>) -> Self {
        let place = Place { step, task: None, kind: None, object: None };
        Self { place, cause: Box::new(cause.into()), broken: false, by: None }
    }

    /// Where and why, in a line: without who denied it, and without what to do.
    #[must_use]
    pub fn what(&self) -> String {
        let Place { step, task, kind, object } = &self.place;
        let mut out = step.name().to_owned();
        if let Some(task) = task {
            out.push_str(&format!(": task {task}"));
        }
        if let Some(kind) = kind {
            out.push_str(&format!(": {kind}"));
        }
        if let Some(object) = object {
            out.push_str(&format!(" {object}"));
        }
        format!("{out}: {}", self.cause)
    }

    /// With this task.
    #[must_use]
    pub fn task(mut self, task: i32) -> Self {
        self.place.task.get_or_insert(task);
        self
    }

    /// With this kind of object.
    #[must_use]
    pub fn kind(mut self, kind: &'static str, object: impl Into<String>) -> Self {
        self.place.kind.get_or_insert(kind);
        self.place.object.get_or_insert(object.into());
        self
    }

    /// What is true now: 1 failed and intact, 3 unsupported, 4 damaged image, 5 denied, 6 not intact.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.broken {
            return 6;
        }
        match &*self.cause {
            Cause::Unsupported { .. } | Cause::Passing { .. } => 3,
            Cause::Corrupt { .. } => 4,
            cause if cause.spot().is_some() => 4,
            Cause::Parse(_) => 3,
            Cause::Reported { code, .. } => *code,
            cause if cause.is_denied() || self.is_unmapped() => 5,
            _ => 1,
        }
    }

    /// Whether a task was to have an id that the container does not have: what the kernel calls invalid is a right that
    /// the caller lacks.
    fn is_unmapped(&self) -> bool {
        let takes_ids = |e: &SysError| matches!(e.call, "setresuid" | "setresgid" | "setgroups");
        self.place.step == Step::Confine && self.cause.sys().is_some_and(|e| takes_ids(e) && e.errno == Errno::INVAL)
    }

    /// What to do about it, where it is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        if let Cause::Denied { hint, .. } | Cause::Refused { hint, .. } = &*self.cause {
            return Some(hint.clone());
        }
        let SysError { call, errno, .. } = self.cause.sys()?;
        let step = self.place.step;
        HINTS.iter().find(|h| h.0.is_none_or(|s| s == step) && h.1 == *call && h.2 == *errno).map(|h| h.3.to_owned())
    }
}

/// Only in a network that others are in, too: see `blame::image`.
const TAKEN: &str = "something else on this host has the address: end that, or let the container have a network of its own (--net private)";
const HELD: &str = "somebody else holds a lock of this file, or has it open where it is to have a lease: end that and restore again, \
                    or give the container a copy of the file's volume (--volume)";

/// `(step, call, errno) -> what to do`.
const HINTS: &[(Option<Step>, &str, Errno, &str)] = &[
    (
        None,
        "ptrace",
        Errno::PERM,
        "the task belongs to another user, is not dumpable, or is traced already (a debugger?); \
         /proc/sys/kernel/yama/ptrace_scope may also forbid it",
    ),
    (
        Some(Step::Admit),
        "unshare",
        Errno::NOSPC,
        "the limit of user namespaces is reached: raise /proc/sys/user/max_user_namespaces",
    ),
    (
        Some(Step::Admit),
        "unshare",
        Errno::PERM,
        "user namespaces are not allowed here: see /proc/sys/kernel/unprivileged_userns_clone, \
         /proc/sys/kernel/apparmor_restrict_unprivileged_userns and seccomp filters of the caller",
    ),
    (
        Some(Step::Confine),
        "setgroups",
        Errno::PERM,
        "the caller has a single group id here: add subordinate ids to /etc/subuid and /etc/subgid and install newuidmap",
    ),
    (
        Some(Step::Confine),
        "setresuid",
        Errno::INVAL,
        "the user id has no mapping in the container: add a range to /etc/subuid and install newuidmap",
    ),
    (
        Some(Step::Confine),
        "setresgid",
        Errno::INVAL,
        "the group id has no mapping in the container: add a range to /etc/subgid and install newgidmap",
    ),
    (Some(Step::Rebuild), "bind", Errno::ADDRINUSE, TAKEN),
    (Some(Step::Rebuild), "listen", Errno::ADDRINUSE, TAKEN),
    (Some(Step::Confine), "flock", Errno::AGAIN, HELD),
    (Some(Step::Confine), "fcntl", Errno::AGAIN, HELD),
];

/// Adds the place to a cause.
pub trait At<T> {
    /// It happened in this step.
    ///
    /// # Errors
    /// The same failure, placed.
    fn at(self, step: Step) -> Result<T>;
}

impl<T, C: Into<Cause>> At<T> for std::result::Result<T, C> {
    fn at(self, step: Step) -> Result<T> {
        self.map_err(|e| Error::new(step, e))
    }
}

/// Adds the task to an error.
pub trait With<T> {
    /// It happened with this task.
    ///
    /// # Errors
    /// The same failure, with the task.
    fn task(self, task: i32) -> Result<T>;
    /// It happened with this object.
    ///
    /// # Errors
    /// The same failure, with the object.
    fn kind(self, kind: &'static str, object: impl Into<String>) -> Result<T>;
}

impl<T> With<T> for Result<T> {
    fn task(self, task: i32) -> Result<T> {
        self.map_err(|e| e.task(task))
    }
    fn kind(self, kind: &'static str, object: impl Into<String>) -> Result<T> {
        self.map_err(|e| e.kind(kind, object))
    }
}
