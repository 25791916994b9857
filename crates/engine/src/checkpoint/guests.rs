//! Commands of `yendor exec` stand still with the container's tasks; its image does not have them, and says so.

use std::os::fd::{AsFd, OwnedFd};

use yendor_kinds::Cause;
use yendor_task::tree::{self, FrozenTree, Top};

use super::not_ours;
use crate::error::{At, Error, Result, Step};
use crate::session::Gate;

/// Stops them and what they have started: what is lost.
pub(super) fn stop(gate: &Gate, tree: &mut FrozenTree, proc: &OwnedFd, init: i32) -> Result<Vec<(String, String)>> {
    let mut lost = Vec::new();
    let namespace = |pid: i32| {
        let path = format!("{pid}/ns/pid");
        rustix::fs::statat(proc, path.as_str(), rustix::fs::AtFlags::empty())
            .ok()
            .map(|stat| (stat.st_dev, stat.st_ino))
    };
    let inside = namespace(init);
    for session in gate.commands()? {
        for pid in tree::children(proc.as_fd(), session).at(Step::Freeze)? {
            if namespace(pid) != inside {
                // Whoever became `yendor exec` may have had children before.
                continue;
            }
            let top = Top::Process(pid);
            let guest = FrozenTree::freeze(proc.as_fd(), top, pid).map_err(|e| not_ours(e, proc, top));
            let guest = guest.at(Step::Freeze)?;
            if guest.processes.is_empty() && guest.headless.is_empty() {
                // It has ended.
                continue;
            }
            if let Some(pid) = guest.headless.first() {
                let what = format!("process {pid} of a command of `yendor exec`, whose first thread has ended");
                return Err(Error::new(Step::Freeze, Cause::passing(what)));
            }
            let name = tree::read_proc(proc.as_fd(), &format!("{pid}/comm")).unwrap_or_default();
            let name = name.trim_ascii_end().escape_ascii().to_string();
            lost.push(("exec".to_owned(), format!("{name} (process {pid} outside), a command of `yendor exec`")));
            tree.adopt(guest);
        }
    }
    Ok(lost)
}
