//! Who gets the signals of files (fcntl(2), `F_SETOWN`).

use yendor_kinds::Cause;
use yendor_kinds::process::State;
use yendor_task::Script;

use super::Site;

/// Set by the first process that holds each, and sees whom: is that `pid`, it does so now.
///
/// # Errors
/// `Unsupported` where nobody sees whom.
pub fn own_files(site: &Site<'_>, pid: i32, script: &mut Script) -> Result<(), Cause> {
    let (snapshot, levels) = (site.snapshot, site.levels);
    for entry in snapshot.files.iter().filter(|e| e.signals()) {
        let holds = |state: &State| match state {
            State::Alive(alive) => alive.descriptors.iter().find(|d| d.file == entry.id).map(|d| d.number),
            _ => None,
        };
        let whom = entry.owner.map_or(0, |owner| owner.id.0);
        let mut all = snapshot.processes.iter().filter_map(|p| Some((p.pid.0, holds(&p.state)?))).peekable();
        let held = all.peek().is_some();
        match all.find(|(holder, _)| whom == 0 || levels.seen(*holder, whom) != 0) {
            Some((holder, number)) if holder == pid => entry.own(number, |id| levels.seen(pid, id.0), script),
            None if held => {
                let what =
                    format!("file {}, of whose holders nobody sees process {whom}, who gets its signals", entry.id);
                return Err(Cause::unsupported(what));
            }
            _ => {}
        }
    }
    Ok(())
}
