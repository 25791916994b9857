//! File locks of a process and of its descriptors: fcntl(2) of both sorts, flock(2), leases.
//! *Read from:* fdinfo.
//! *Made again by:* the same calls in the task, without waiting: nobody else can hold them unless from outside.
//! *Lost:* nothing. Who waited for a lock asks again. Refused: a lease that somebody is breaking, and one against readers,
//! which reading the container's files would break.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use yendor_image::FdNum;
use yendor_proc::fdinfo::FdInfo;
use yendor_proc::locks::{Access, Kind, Mode};
use yendor_task::script::bytes;
use yendor_task::{Nr, Script, args};

use crate::{Cause, Result};

/// A lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The descriptor that it is taken by.
    pub number: FdNum,
    /// Which sort.
    pub sort: Sort,
    /// Exclusive; else shared.
    pub exclusive: bool,
    /// First byte; of a range lock.
    pub start: u64,
    /// Last byte; none: to the end of the file, however long.
    pub end: Option<u64>,
}

/// The sorts of locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// A range, of the process.
    Process,
    /// A range, of the open file description.
    Description,
    /// flock(2).
    Whole,
    /// `F_SETLEASE`.
    Lease,
}

const F_SETLK: u32 = 6;
const F_OFD_SETLK: u32 = 37;
const F_SETLEASE: u32 = 1024;
const LOCK_SH: u32 = 1;
const LOCK_EX: u32 = 2;
const LOCK_NB: u32 = 4;

/// A descriptor, as far as locks are concerned.
#[derive(Debug)]
pub struct Held {
    /// Its number.
    pub number: FdNum,
    /// What its fdinfo shows: its own locks, and those that the process has on the file.
    pub info: FdInfo,
    /// Device and inode of the file.
    pub inode: (u64, u64),
    /// Whether no descriptor before it has the same description.
    pub first: bool,
}

/// The locks of a process with these descriptors.
///
/// # Errors
/// `Unsupported` for a lease that is being broken.
pub fn collect(descriptors: &[Held]) -> Result<Vec<Record>> {
    let mut own: BTreeMap<((u64, u64), u64, bool), Record> = BTreeMap::new();
    let mut out = Vec::new();
    // Those that may take the lock come first, since each shows what the process has by any of them.
    for able in [true, false] {
        for Held { number, info, inode, first } in descriptors {
            for lock in info.locks.iter().filter(|l| l.waiting == 0) {
                let exclusive = lock.access == Access::Write;
                let record = |sort| Record { number: *number, sort, exclusive, start: lock.start, end: lock.end };
                let sort = match lock.kind {
                    Kind::Posix if able == may(info.flags, exclusive) => {
                        own.entry((*inode, lock.start, exclusive)).or_insert_with(|| record(Sort::Process));
                        continue;
                    }
                    Kind::Lease if exclusive || lock.mode != Mode::Active => {
                        let what = if exclusive { "against readers" } else { "that somebody is breaking" };
                        return Err(Cause::unsupported(format!("descriptor {number}: a lease (F_SETLEASE) {what}")));
                    }
                    Kind::Ofd => Sort::Description,
                    Kind::Flock => Sort::Whole,
                    Kind::Lease => Sort::Lease,
                    Kind::Posix | Kind::Deleg | Kind::Access => continue,
                };
                if *first && able {
                    out.push(record(sort));
                }
            }
        }
    }
    out.extend(own.into_values());
    Ok(out)
}

/// Whether a descriptor with these flags may take a lock of this sort.
fn may(flags: u32, exclusive: bool) -> bool {
    match flags & 3 {
        0 => !exclusive,
        1 => exclusive,
        _ => true,
    }
}

/// The task takes them, once it has its descriptors.
pub fn rebuild(locks: &[Record], script: &mut Script) {
    for Record { number, sort, exclusive, start, end } in locks {
        let fd = number.0;
        let kind = u16::from(*exclusive);
        match sort {
            Sort::Whole => {
                let how = if *exclusive { LOCK_EX } else { LOCK_SH };
                script.call(Nr::FLOCK, args![fd, how | LOCK_NB]);
            }
            Sort::Lease => {
                script.call(Nr::FCNTL, args![fd, F_SETLEASE, u32::from(kind)]);
            }
            Sort::Process | Sort::Description => {
                // struct flock: type, whence, start, length (0: to the end), pid.
                let length = end.map_or(0, |end| end.saturating_sub(*start).saturating_add(1));
                let mut lock = [0u8; 32];
                lock[..2].copy_from_slice(&kind.to_ne_bytes());
                lock[8..16].copy_from_slice(&start.to_ne_bytes());
                lock[16..24].copy_from_slice(&length.to_ne_bytes());
                let command = if *sort == Sort::Process { F_SETLK } else { F_OFD_SETLK };
                script.call(Nr::FCNTL, args![fd, command, bytes(lock)]);
            }
        }
    }
}
