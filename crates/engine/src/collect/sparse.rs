//! What is there of shared memory that no descriptor leads to. To read a hole of it makes a page, which counts for the container: a
//! mapping of many GiB with little in it would meet its limit by its checkpoint. Page tables do not tell, since each task has its own;
//! a task that has it mapped may ask (mincore(2)), of what is not swapped out.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use yendor_kinds::process::Restricted;
use yendor_kinds::{Cause, Result};
use yendor_proc::smaps::{self, Smap};
use yendor_sys::SysError;
use yendor_task::live::Borrowed;
use yendor_task::script::out;
use yendor_task::tree::read_proc;
use yendor_task::{Nr, Script, Want, args};

use super::object::Ranges;
use super::watch::Watch;

const PAGE: u64 = 4096;
/// Pages that one call is asked of: what a slot of scratch memory has room for.
const AT_ONCE: u64 = 16 * 1024;
/// Calls of one script.
const CALLS: usize = 64;

/// What is there of mappings, by where they start, as addresses; of those that are not here nobody knows.
pub type Present = BTreeMap<u64, Vec<(u64, u64)>>;

/// Ranges of offsets that were asked for already, by device and inode.
pub type Asked = BTreeMap<(u64, u64), Ranges>;

/// Whether it is such memory: of what has a name there is a descriptor, as a rule.
fn may_be_sparse(smap: &Smap) -> bool {
    smap.map.perms.shared && smap.map.deleted && smap.map.name == b"/dev/zero"
}

/// Asks a borrowed process, unless its filter might end it for that.
///
/// # Errors
/// It cannot be asked.
pub fn look(
    borrowed: &mut Borrowed<'_>,
    (smaps, proc, pid): (&[Smap], &impl AsFd, i32),
    (watch, restricted): (&Watch, &[Restricted]),
    asked: &mut Asked,
) -> Result<Present> {
    let mut found = Present::new();
    let ours = smaps.iter().filter(|smap| may_be_sparse(smap) && smap.swap == 0).map(|smap| &smap.map);
    for map in ours {
        if !restricted.first().is_some_and(|restricted| watch.may(restricted, &[Nr::MINCORE])) {
            break;
        }
        let known = asked.entry((map.dev.st_dev(), map.inode)).or_default();
        if !known.add(map.offset, map.offset + map.len()).is_empty() {
            found.insert(map.start, present(borrowed, map.start, map.end)?);
        }
    }
    if !found.is_empty() {
        // What was swapped out before it was asked for is not told.
        let now = smaps::parse(&read_proc(proc.as_fd(), &format!("{pid}/smaps"))?)?;
        let whole: BTreeMap<u64, u64> = now.iter().map(|smap| (smap.map.start, smap.swap)).collect();
        found.retain(|start, _| whole.get(start) == Some(&0));
    }
    Ok(found)
}

fn present(borrowed: &mut Borrowed<'_>, start: u64, end: u64) -> Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut at = start;
    while at < end {
        let mut script = Script::new();
        let mut until = at;
        while until < end && script.calls.len() < CALLS {
            let pages = ((end - until) / PAGE).min(AT_ONCE);
            let room = usize::try_from(pages).unwrap_or(0);
            script.call_wanting(Nr::MINCORE, args![until, pages * PAGE, out(room)], Want::Exactly(0));
            until += pages * PAGE;
        }
        for done in borrowed.run(0, &script)? {
            let answer =
                done.out.first().ok_or_else(|| SysError::new("mincore", "no answer", yendor_sys::Errno::IO))?;
            for page in answer.iter() {
                if page & 1 == 1 {
                    match found.last_mut().filter(|last| last.1 == at) {
                        Some(last) => last.1 += PAGE,
                        None => found.push((at, at + PAGE)),
                    }
                }
                at += PAGE;
            }
        }
        if at != until {
            return Err(Cause::from(SysError::new("mincore", format!("{at:#x}"), yendor_sys::Errno::IO)));
        }
    }
    Ok(found)
}
