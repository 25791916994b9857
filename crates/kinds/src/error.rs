//! Why something could not be collected or rebuilt.

use thiserror::Error;
use yendor_proc::ParseError;
use yendor_sys::{Errno, SysError};
use yendor_task::{Dead, RunError};

/// A cause, matchable; where it happened is added once, by the engine.
#[derive(Debug, Error)]
pub enum Cause {
    /// The kernel refused a call.
    #[error("{0}")]
    Sys(#[from] SysError),
    /// The kernel printed something that we do not understand.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// The image is damaged or cannot be written.
    #[error("{0}")]
    Image(#[from] yendor_image::Error),
    /// A script did not run to its end.
    #[error("{0}")]
    Run(RunError),
    /// A task died under our hands.
    #[error("{0}")]
    Dead(#[from] Dead),
    /// Something that cannot be captured (yet): the checkpoint is refused.
    #[error("not supported: {what}")]
    Unsupported {
        /// What it is, with its values.
        what: String,
    },
    /// Something that cannot be captured now, but will soon be another thing by itself: a connection that is about to be
    /// accepted. The tree is let run for a moment, and then looked at again.
    #[error("not supported: {what}")]
    Passing {
        /// What it is, with its values.
        what: String,
    },
    /// The image claims something impossible.
    #[error("the image is damaged: {what}")]
    Corrupt {
        /// What it claims.
        what: String,
    },
    /// The image is damaged, as another process has found that reads it.
    #[error("{what}")]
    Damaged {
        /// Where.
        spot: yendor_image::Spot,
        /// What it said, with the place.
        what: String,
    },
    /// Refused by permission or policy, not by a call.
    #[error("{what}")]
    Denied {
        /// What was refused.
        what: String,
        /// What would allow it.
        hint: String,
    },
    /// The kernel refused a call by permission or by a limit, and what would allow it is known.
    #[error("{error}")]
    Refused {
        /// The call.
        error: SysError,
        /// What would allow it.
        hint: String,
    },
    /// The keeper, another process, failed so; `code` is its exit code (DESIGN.md section 6).
    #[error("{message}")]
    Reported {
        /// What it said.
        message: String,
        /// What is true now.
        code: u8,
    },
    /// The image needs something from outside that the caller did not give.
    #[error("the image needs {what}; give it with {option}")]
    Hole {
        /// What.
        what: String,
        /// The option that fills it.
        option: String,
    },
}

/// The kinds whose loss a caller can accept (`--allow-lost`).
pub const LOSABLE: [&str; 4] = ["tcp", "udp", "iptables", "landlock"];

/// A result with a [`Cause`].
pub type Result<T> = std::result::Result<T, Cause>;

impl Cause {
    /// `Unsupported` in one word.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Cause::Unsupported { what: what.into() }
    }

    /// `Unsupported`, but for a flag of the caller; the kind is one of [`LOSABLE`].
    #[must_use]
    pub fn would_be_lost(kind: &str, object: &str) -> Self {
        debug_assert!(LOSABLE.contains(&kind), "{kind}");
        Cause::unsupported(format!("{object} would be lost; --allow-lost {kind} accepts that"))
    }

    /// `Passing` in one word.
    pub fn passing(what: impl Into<String>) -> Self {
        Cause::Passing { what: what.into() }
    }

    /// A [`Cause::Hole`] that another machine fills.
    pub fn of_machine(what: impl Into<String>, machine: &str) -> Self {
        Cause::Hole { what: what.into(), option: machine.into() }
    }

    /// What refuses a checkpoint is nothing that an image can truly say.
    #[must_use]
    pub fn claimed(self) -> Self {
        match self {
            Cause::Unsupported { what } | Cause::Passing { what } => Cause::Corrupt { what },
            other => other,
        }
    }

    /// What would be damage in an image is something that no image can have, as long as there is none.
    #[must_use]
    pub fn refused(self) -> Self {
        match self {
            Cause::Corrupt { what } => Cause::Unsupported { what },
            other => other,
        }
    }

    /// `Corrupt` in one word.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Cause::Corrupt { what: what.into() }
    }

    /// The failed call, if that is the cause.
    #[must_use]
    pub fn sys(&self) -> Option<&SysError> {
        match self {
            Cause::Sys(e)
            | Cause::Refused { error: e, .. }
            | Cause::Run(RunError::Call { error: e, .. } | RunError::Sys(e)) => Some(e),
            _ => None,
        }
    }

    /// The same, also where a file of the image was meant.
    #[must_use]
    pub fn call(&self) -> Option<SysError> {
        match self {
            Cause::Image(yendor_image::Error::Io { file, op, source }) => Some(SysError::io(op, file.clone(), source)),
            other => other.sys().cloned(),
        }
    }

    /// Where the image is damaged, if that is the cause.
    #[must_use]
    pub fn spot(&self) -> Option<yendor_image::Spot> {
        match self {
            Cause::Image(e) => e.spot(),
            Cause::Damaged { spot, .. } => Some(spot.clone()),
            _ => None,
        }
    }

    /// Whether permission was the reason: the kernel's, an LSM's, or policy's.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Cause::Denied { .. } | Cause::Refused { .. } | Cause::Hole { .. })
            || self.call().is_some_and(|e| matches!(e.errno, Errno::PERM | Errno::ACCESS))
    }
}

impl From<RunError> for Cause {
    fn from(e: RunError) -> Self {
        match e {
            RunError::Sys(e) => Cause::Sys(e),
            RunError::Dispatched { .. } => Cause::unsupported(e.to_string()),
            other => Cause::Run(other),
        }
    }
}

/// Shorthand for calls through rustix.
pub trait Named<T> {
    /// Names the call and its arguments if it failed.
    ///
    /// # Errors
    /// The same failure, named.
    fn named(self, call: &'static str, args: impl FnOnce() -> String) -> std::result::Result<T, SysError>;
}

impl<T> Named<T> for std::result::Result<T, Errno> {
    fn named(self, call: &'static str, args: impl FnOnce() -> String) -> std::result::Result<T, SysError> {
        self.map_err(|e| SysError::new(call, args(), e))
    }
}
