//! The descriptors of a task.

use std::collections::{BTreeMap, BTreeSet};

use yendor_image::FileId;
use yendor_kinds::Cause;
use yendor_kinds::file::Descriptor;
use yendor_task::{Nr, Script, args};

use super::Site;

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
