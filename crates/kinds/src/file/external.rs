//! A description that belongs to the caller, not to the container: its standard input, output and error, its terminal.
//! *Read from:* kcmp with the descriptors that the keeper was given.
//! *Made again by:* whatever the caller of the restore hands in.
//! *Lost:* nothing of the container's; data on its way outside stays outside.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use yendor_sys::kcmp::{self, What};

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The caller's standard input.
    Stdin,
    /// The caller's standard output, or the container's log.
    Stdout,
    /// The caller's standard error, or the container's log.
    Stderr,
}

/// What a caller hands in.
#[derive(Debug, Default)]
pub struct Filled {
    /// For [`Record::Stdin`].
    pub stdin: Option<OwnedFd>,
    /// For [`Record::Stdout`].
    pub stdout: Option<OwnedFd>,
    /// For [`Record::Stderr`].
    pub stderr: Option<OwnedFd>,
    /// For [`super::console`]: the slave's side.
    pub console: Option<OwnedFd>,
}

impl FileKind for Record {
    const NAME: &'static str = "external";

    fn claims(_seen: &Seen) -> bool {
        // Decided by kcmp in `of`, before any kind is asked.
        false
    }

    fn collect(_seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        Err(Cause::unsupported("an external file outside its place"))
    }

    fn rebuild(&self, _entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let (fd, what) = match self {
            Record::Stdin => (&workshop.filled.stdin, "standard input"),
            Record::Stdout => (&workshop.filled.stdout, "standard output"),
            Record::Stderr => (&workshop.filled.stderr, "standard error"),
        };
        let Some(fd) = fd else {
            return Err(Cause::Hole { what: what.into(), option: "the caller's own descriptors 0, 1 and 2".into() });
        };
        Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3).named("fcntl", || format!("{what}, F_DUPFD_CLOEXEC"))?)
    }
}

impl Record {
    /// Which external description descriptor `number` of `pid` is, if it is one.
    ///
    /// # Errors
    /// What kcmp says, except for a holder that is gone.
    pub fn of(gather: &Gather<'_>, pid: i32, number: i32) -> Result<Option<Record>> {
        for (holder, theirs, record) in &gather.externals {
            match kcmp::compare(pid, *holder, What::File(number, *theirs)) {
                Ok(order) if order.is_eq() => return Ok(Some(*record)),
                Ok(_) => {}
                Err(e) if e.is_gone() => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }
}
