//! What happens to memory that is mapped later: mlockall(2) with `MCL_FUTURE`.
//! *Read from:* a page that the task maps for a moment: msync with `MS_INVALIDATE` says whether it is locked, mincore whether
//! it was there before anybody touched it.
//! *Made again by:* mlockall in the task, when all of its own memory is mapped.
//! *Lost:* nothing.

use serde::{Deserialize, Serialize};
use yendor_sys::Errno;
use yendor_task::script::out;
use yendor_task::{Nr, Script, args};

use crate::process::{Inquiry, Question};
use crate::{Cause, Result};

/// What new mappings of a process are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// As any.
    #[default]
    Plain,
    /// Locked (`MCL_FUTURE`).
    Locked,
    /// Locked, each page when it is touched (`MCL_FUTURE` with `MCL_ONFAULT`).
    LockedOnFault,
}

const PAGE: u64 = 4096;
const PROT_READ_WRITE: u32 = 3;
/// `MAP_PRIVATE`, `MAP_ANONYMOUS`, `MAP_NORESERVE`, `MAP_FIXED_NOREPLACE`.
const A_PAGE: u32 = 0x02 | 0x20 | 0x4000 | 0x10_0000;
const MS_INVALIDATE: u32 = 2;
const MCL_FUTURE: u32 = 2;
const MCL_ONFAULT: u32 = 4;

/// The questions.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    map: Question,
    locked: Question,
    there: Question,
}

/// Asks, with a page at a free address.
pub fn ask(inquiry: &mut Inquiry, at: u64) -> Asked {
    let map = inquiry.ask(Nr::MMAP, args![at, PAGE, PROT_READ_WRITE, A_PAGE, -1, 0]);
    let locked = inquiry.ask(Nr::MSYNC, args![at, PAGE, MS_INVALIDATE]);
    let there = inquiry.ask(Nr::MINCORE, args![at, PAGE, out(1)]);
    inquiry.ask(Nr::MUNMAP, args![at, PAGE]);
    Asked { map, locked, there }
}

/// Reads the answers.
///
/// # Errors
/// What mmap says of a process that may map nothing more.
pub fn collect(inquiry: &Inquiry, asked: Asked) -> Result<Record> {
    let Asked { map, locked, there } = asked;
    inquiry.value(map)?;
    match inquiry.value(locked) {
        Ok(_) => Ok(Record::Plain),
        Err(Cause::Sys(e)) if e.errno == Errno::BUSY => match inquiry.bytes(there)?.first() {
            Some(1) => Ok(Record::Locked),
            _ => Ok(Record::LockedOnFault),
        },
        Err(e) => Err(e),
    }
}

/// Says it of the task's new mappings.
pub fn rebuild(record: Record, script: &mut Script) {
    let flags = match record {
        Record::Plain => return,
        Record::Locked => MCL_FUTURE,
        Record::LockedOnFault => MCL_FUTURE | MCL_ONFAULT,
    };
    script.call(Nr::MLOCKALL, args![flags]);
}
