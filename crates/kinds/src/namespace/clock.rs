//! The clocks of a time namespace inside a container (time_namespaces(7)).
//! *Read from:* /proc/PID/timens_offsets of a process that lives in it, compared with that of the container's pid 1.
//! *Made again by:* a child that enters a new one for its own children, whose clocks are set before anybody lives in it; they are ahead of the container's, which
//! go on, as they were.
//! *Lost:* nothing. Refused: a task whose children would live in another one than itself, which only it could make again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};
use yendor_proc::timens_offsets::{self, Offset};
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_task::tree::read_proc;

use super::user::{elsewhere, enter, its, put};
use crate::file::timerfd::Clocks;
use crate::{Cause, Named, Result};

const BILLION: i128 = 1_000_000_000;

/// How far its clocks are ahead of the container's, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
}

/// Reads those of the process `resident`; `home`: one that lives in the container's.
///
/// # Errors
/// The kernel's; `Unsupported` for clocks that are too far apart.
pub fn collect(proc: BorrowedFd<'_>, resident: i32, home: i32) -> Result<Record> {
    let of =
        |pid: i32| -> Result<_> { Ok(timens_offsets::parse(&read_proc(proc, &format!("{pid}/timens_offsets"))?)?) };
    let (theirs, own) = (of(resident)?, of(home)?);
    let ahead = |theirs: Offset, own: Offset| {
        i64::try_from(nanoseconds(theirs) - nanoseconds(own))
            .map_err(|_| Cause::unsupported("a nested time namespace whose clocks are centuries from the container's"))
    };
    Ok(Record { monotonic: ahead(theirs.monotonic, own.monotonic)?, boottime: ahead(theirs.boottime, own.boottime)? })
}

/// How far the clocks of the calling process are ahead of the machine's, which the kernel's offsets are told from; `proc`: its own.
///
/// # Errors
/// The kernel's; `Unsupported` for a process that its children's clocks are not told from.
pub fn own(proc: BorrowedFd<'_>) -> Result<Clocks> {
    let link = |name: &str| {
        let path = format!("self/ns/{name}");
        rustix::fs::readlinkat(proc, path.as_str(), Vec::new()).named("readlinkat", || format!("/proc/{path}"))
    };
    // What a process can read is where its children will live.
    if link("time")? != link("time_for_children")? {
        let what =
            "a caller whose children live in another time namespace than itself (start yendor from a child of it)";
        return Err(Cause::unsupported(what));
    }
    let offsets = timens_offsets::parse(&read_proc(proc, "self/timens_offsets")?)?;
    let ahead =
        |offset| i64::try_from(nanoseconds(offset)).map_err(|_| Cause::unsupported("clocks that are centuries ahead"));
    Ok(Clocks { monotonic: ahead(offsets.monotonic)?, boottime: ahead(offsets.boottime)? })
}

/// Makes it again, belonging to the user namespace `owner` or to the caller's, who has one thread. `home`: how far the container's clocks are ahead
/// of the machine's.
///
/// # Errors
/// The kernel's: `ERANGE` for clocks before zero.
pub fn rebuild(record: Record, owner: Option<&OwnedFd>, proc: BorrowedFd<'_>, home: Clocks) -> Result<OwnedFd> {
    let Record { monotonic, boottime } = record;
    let text = line("monotonic", home.monotonic, monotonic) + &line("boottime", home.boottime, boottime);
    let new = || {
        owner.map_or(Ok(()), enter)?;
        unshare(Namespaces::NEWTIME)?;
        Ok(Vec::new())
    };
    // For its children: nobody lives there yet.
    let set = |pid: i32, _: &[i32]| put(proc, pid, "timens_offsets", &text);
    let take = |pid| its(proc, pid, "time_for_children");
    elsewhere((proc, owner.map(AsFd::as_fd)), "time", new, set, || Ok(()), take)
}

fn nanoseconds(offset: Offset) -> i128 {
    i128::from(offset.seconds) * BILLION + i128::from(offset.nanoseconds)
}

fn line(name: &str, home: i64, ahead: i64) -> String {
    let all = i128::from(home) + i128::from(ahead);
    format!("{name} {} {}\n", all.div_euclid(BILLION), all.rem_euclid(BILLION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_set_by_seconds_and_what_is_left() {
        assert_eq!(line("monotonic", -1, 0), "monotonic -1 999999999\n");
        assert_eq!(line("boottime", 1_500_000_000, 700_000_000), "boottime 2 200000000\n");
        assert_eq!(line("boottime", i64::MIN, i64::MIN), "boottime -18446744074 290448384\n");
    }
}
