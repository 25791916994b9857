//! The descriptors of a task.

use std::collections::{BTreeMap, BTreeSet};

use yendor_image::FileId;
use yendor_kinds::Cause;
use yendor_kinds::file::{Descriptor, Record};
use yendor_kinds::process::Alive;
use yendor_sys::Errno;
use yendor_task::{Nr, RunError, Script, args};

use super::Site;
use crate::error::Error;

/// Descriptors move from the workshop's numbers to their own; all others are closed but `kept`, which lies above them.
pub fn descriptors(
    site: &Site<'_>,
    list: &[Descriptor],
    late: &BTreeMap<FileId, i32>,
    kept: Option<i32>,
    script: &mut Script,
) -> std::result::Result<(), Cause> {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let mut free = 0;
    for d in list {
        let Some(from) = late.get(&d.file).or_else(|| site.files.get(&d.file)) else {
            return Err(Cause::corrupt(format!("descriptor {}: no file {}", d.number, d.file)));
        };
        let n = d.number.0;
        if n < free {
            return Err(Cause::corrupt(format!("descriptor {n} twice, or not in order")));
        }
        if n > free {
            script.call(Nr::CLOSE_RANGE, args![free, n - 1, 0]);
        }
        free = n + 1;
        script.call(Nr::DUP3, args![*from, n, if d.cloexec { O_CLOEXEC } else { 0 }]);
    }
    let mut seen = BTreeSet::new();
    for d in list {
        if seen.insert(d.file)
            && let Some(entry) = site.entries.get(&d.file)
        {
            entry.record.finish(d.number, script);
        }
    }
    if let Some(kept) = kept {
        if free < kept {
            script.call(Nr::CLOSE_RANGE, args![free, kept - 1, 0]);
        }
        free = kept + 1;
    }
    script.call(Nr::CLOSE_RANGE, args![free, u32::MAX, 0]);
    Ok(())
}

/// A failure of the script whose first calls take the locks of a process names the file of one that it cannot have.
pub fn locked(site: &Site<'_>, alive: &Alive, e: Error) -> Error {
    let Cause::Run(RunError::Call { index, error }) = &*e.cause else { return e };
    let held = matches!(error.call, "flock" | "fcntl") && error.errno == Errno::AGAIN;
    let number = alive.locks.get(*index).filter(|_| held).map(|lock| lock.number);
    let descriptor = alive.descriptors.iter().find(|descriptor| Some(descriptor.number) == number);
    match descriptor.and_then(|descriptor| site.entries.get(&descriptor.file)).map(|entry| &entry.record) {
        Some(Record::Regular(file)) => e.kind("lock", file.path.to_string()),
        _ => e,
    }
}
