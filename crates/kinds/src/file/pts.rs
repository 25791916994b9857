//! A slave of a pseudo-terminal whose master is in the tree; also one whose master has gone.
//! *Read from:* the device number; the rest is the master's.
//! *Made again by:* `TIOCGPTPEER` on the master.
//! *Lost:* the number of a slave whose master has gone.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, major, minor};
use serde::{Deserialize, Serialize};
use yendor_image::FileId;
use yendor_sys::{Errno, tty};

use super::{Entry, FileKind, Gather, Seen, Workshop, console, ptmx, terminal};
use crate::{Cause, Named, Result};

/// The major number of all slaves (Documentation/admin-guide/devices.txt).
pub(super) const MAJOR: u32 = 136;

/// A slave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its master; none if that has gone.
    pub master: Option<FileId>,
}

impl FileKind for Record {
    const NAME: &'static str = "pts";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::CharacterDevice
            && major(seen.stat.st_rdev) == MAJOR
            && seen.info.flags & OFlags::PATH.bits() == 0
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        let alive = match tty::termios(seen.fd.as_fd()) {
            Ok(_) => true,
            Err(e) if e.errno == Errno::IO => false,
            Err(e) => return Err(e.into()),
        };
        // Itself until `assign` knows better.
        Ok(Record { master: alive.then_some(seen.id) })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { master } = self;
        let flags = OFlags::from_bits_retain(entry.flags);
        match master {
            Some(id) => {
                let is_master = matches!(workshop.entry(*id)?.record, super::Record::Ptmx(_));
                if !is_master {
                    return Err(Cause::corrupt(format!("file {id} is no master of a pseudo-terminal")));
                }
                ptmx::peer(workshop.fd(*id)?, flags)
            }
            None => {
                let master = workshop.open(b"/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
                tty::set_locked(master.as_fd(), false)?;
                ptmx::peer(master.as_fd(), flags)
            }
        }
    }
}

/// An open slave of a tree.
#[derive(Debug)]
pub struct Open {
    /// Its description.
    pub id: FileId,
    /// The devpts that it lies in.
    pub dev: u64,
    /// Its number there.
    pub index: u32,
}

/// All slaves whose masters live.
///
/// # Errors
/// What fstat says.
pub fn all(gather: &Gather<'_>) -> Result<Vec<Open>> {
    let mut out = Vec::new();
    for entry in &gather.entries {
        let super::Record::Pts(Record { master: Some(_) }) = &entry.record else { continue };
        let stat = rustix::fs::fstat(gather.ours(entry.id)?).named("fstat", || format!("file {}", entry.id))?;
        out.push(Open { id: entry.id, dev: stat.st_dev, index: minor(stat.st_rdev) });
    }
    Ok(out)
}

/// Whether an entry is a slave of this master, or the /dev/tty of one.
#[must_use]
pub fn belongs(entry: &Entry, master: FileId) -> bool {
    matches!(&entry.record, super::Record::Pts(Record { master: Some(m) }) if *m == master)
}

/// Gives each slave its master. Those without one in the tree are the console, if they are all the same.
///
/// # Errors
/// `Unsupported` for slaves of two masters outside.
pub fn assign(gather: &mut Gather<'_>, owners: &BTreeMap<FileId, FileId>) -> Result<()> {
    let mut outside: Option<(u64, u32)> = None;
    for Open { id, dev, index } in all(gather)? {
        let record = match owners.get(&id) {
            Some(master) => super::Record::Pts(Record { master: Some(*master) }),
            None if outside.is_none_or(|known| known == (dev, index)) => {
                outside = Some((dev, index));
                let settings = terminal::collect(gather.ours(id)?)?;
                super::Record::Console(console::Record { terminal: Some(settings) })
            }
            None => {
                return Err(Cause::unsupported(format!(
                    "/dev/pts/{index}: a second terminal from outside of the tree"
                )));
            }
        };
        if let Some(entry) = gather.entries.get_mut(id.0 as usize) {
            entry.record = record;
        }
    }
    Ok(())
}
