//! /dev/tty: the controlling terminal of whoever opened it, under a name of its own.
//! *Read from:* `TIOCGDEV` tells which terminal it is.
//! *Made again by:* a short-lived process that takes that terminal as its own and opens /dev/tty.
//! *Lost:* nothing.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, major, minor};
use serde::{Deserialize, Serialize};
use yendor_image::FileId;
use yendor_proc::Dev;
use yendor_sys::tty;

use super::{Entry, FileKind, Gather, Seen, Workshop, ptmx, pts};
use crate::{Cause, Named, Result};

/// /dev/tty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The terminal: its master, or a description of the console.
    pub terminal: FileId,
}

impl FileKind for Record {
    const NAME: &'static str = "tty";

    fn claims(seen: &Seen) -> bool {
        let number = (major(seen.stat.st_rdev), minor(seen.stat.st_rdev));
        let device = FileType::from_raw_mode(seen.stat.st_mode) == FileType::CharacterDevice;
        device && number == (5, 0) && seen.info.flags & OFlags::PATH.bits() == 0
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        // Which one follows in `finish`.
        Ok(Record { terminal: seen.id })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { terminal } = self;
        let slave = match &workshop.entry(*terminal)?.record {
            super::Record::Ptmx(_) => ptmx::peer(workshop.fd(*terminal)?, OFlags::RDWR)?,
            super::Record::Console(_) => {
                let fd = workshop.fd(*terminal)?;
                rustix::io::fcntl_dupfd_cloexec(fd, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?
            }
            other => return Err(Cause::corrupt(format!("file {terminal}, a {}, is no terminal", other.kind()))),
        };
        let flags = OFlags::from_bits_retain(entry.flags) & (OFlags::ACCMODE | OFlags::NONBLOCK);
        Ok(tty::open_controlling(slave.as_fd(), workshop.root.as_fd(), c"dev/tty", flags.bits())?)
    }
}

/// Once all terminals are known: which one each /dev/tty is.
///
/// # Errors
/// `Unsupported` for one that the tree does not have otherwise.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let mine: Vec<FileId> =
        gather.entries.iter().filter(|e| matches!(e.record, super::Record::Tty(_))).map(|e| e.id).collect();
    for id in mine {
        let number = Dev::from_user(tty::device(gather.ours(id)?)?);
        let terminal = find(gather, number)?;
        let terminal = terminal.ok_or_else(|| {
            let Dev { major, minor } = number;
            Cause::unsupported(format!("/dev/tty is terminal {major}:{minor}, which the tree has not opened otherwise"))
        })?;
        if let Some(entry) = gather.entries.get_mut(id.0 as usize) {
            entry.record = super::Record::Tty(Record { terminal });
        }
    }
    Ok(())
}

fn find(gather: &Gather<'_>, number: Dev) -> Result<Option<FileId>> {
    for entry in &gather.entries {
        let found = match &entry.record {
            super::Record::Ptmx(record) => number == Dev { major: pts::MAJOR, minor: record.index },
            super::Record::Console(_) => {
                let stat = rustix::fs::fstat(gather.ours(entry.id)?).named("fstat", || format!("file {}", entry.id))?;
                number == Dev { major: major(stat.st_rdev), minor: minor(stat.st_rdev) }
            }
            _ => false,
        };
        if found {
            return Ok(Some(entry.id));
        }
    }
    Ok(None)
}
