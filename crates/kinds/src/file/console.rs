//! The terminal from outside: a slave whose master nobody in the tree holds.
//! *Read from:* its settings.
//! *Made again by:* opening anew the terminal that the caller hands in; its modes become those of before.
//! *Lost:* what was typed and not read, what was written and not shown: these belong outside. Its size is the caller's.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use yendor_sys::tty;

use super::{Entry, FileKind, Gather, Seen, Workshop, regular, terminal};
use crate::{Cause, Named, Result};

/// A description of the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its settings; none: as the caller's terminal has them.
    pub terminal: Option<terminal::Record>,
}

impl FileKind for Record {
    const NAME: &'static str = "console";

    fn claims(_seen: &Seen) -> bool {
        // A slave becomes the console when all masters are known: see `pts::assign`.
        false
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        Ok(Record { terminal: Some(terminal::collect(seen.fd.as_fd())?) })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { terminal } = self;
        let Some(console) = &workshop.filled.console else {
            return Err(Cause::Hole { what: "a terminal".into(), option: "--tty".into() });
        };
        if let Some(terminal) = terminal {
            tty::set_termios(console.as_fd(), &terminal.termios()?)?;
            let now = terminal::collect(console.as_fd())?;
            if now.size[..2] == [0, 0] {
                terminal.set_size(console.as_fd())?;
            }
        }
        let flags = regular::reopen_flags(entry.flags);
        // Who was given a terminal need not have the right to open it.
        regular::reopen(&workshop.proc, console.as_fd(), flags | OFlags::NOCTTY)
            .or_else(|_| Ok(rustix::io::fcntl_dupfd_cloexec(console, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?))
    }
}
