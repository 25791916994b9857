//! What is known of an earlier image: its pages, and what has been written since; and what the next checkpoint shall know.

use std::os::fd::OwnedFd;
use std::path::Path;

use yendor_image::upgrade::Version;
use yendor_image::{Addr, Digest, Limits, Manifest, PAGE_BYTES, PageRun, Parent, Reader};
use yendor_kinds::process::State;
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Result as Plain};

use super::{Options, Target, top};
use crate::collect::{Shadowed, rounds};
use crate::error::{At, Result, Step};
use crate::load;
use crate::shadow::{Process, Shadow};

/// An earlier image.
#[derive(Debug, Default)]
pub(super) struct Before {
    /// Its pages.
    pub parent: Option<Parent>,
    /// What of the tasks' memory has been tracked since.
    pub held: Option<Shadow>,
    /// Why something that was tracked is not used.
    pub note: Option<String>,
}

impl Before {
    /// Looks what there is. What is tracked is taken from the keeper in any case: who does not use it ends it.
    pub(super) fn look(target: &Target, proc: &OwnedFd, options: &Options, output: &Path) -> Result<Before> {
        let held = match target {
            Target::Container(_, directory) => Shadow::take(directory),
            Target::Tree(_) => None,
        };
        let Some(mut held) = held else { return Before::whole(options, output, None) };
        if options.no_parent {
            held.end();
            return Ok(Before::default());
        }
        // What is encrypted has no parent, and what is read before the stop is written by places, which a compressed file has not.
        let other = match (&options.encrypt_to, options.compress) {
            (Some(_), _) => Some("an encrypted image"),
            (None, Some(_)) => Some("a compressed image"),
            (None, None) => None,
        };
        if let Some(what) = other {
            held.end();
            let note = options.leave_running.then(|| format!("memory is not tracked any longer: {what} ends that"));
            return Before::whole(options, output, note);
        }
        let (top, _) = top(target, proc)?;
        rounds::still_tracked(&mut held, proc, top).at(Step::Freeze)?;
        if held.is_empty() {
            return Before::whole(options, output, None);
        }
        let image = options.parent.clone().unwrap_or_else(|| held.image().to_owned());
        match load::known_parent(&image, output, &held) {
            Ok(Some(parent)) => Ok(Before { parent: Some(parent), held: Some(held), note: None }),
            Ok(None) => {
                held.end();
                let note = format!("{} is not the image that memory was tracked for", image.display());
                Before::whole(options, output, Some(note))
            }
            Err(e) if options.parent.is_some() => Err(e),
            // Nobody has asked for it.
            Err(e) => {
                held.end();
                Before::whole(options, output, Some(format!("what was tracked is not used: {e}")))
            }
        }
    }

    /// Without anything that was tracked.
    pub(super) fn whole(options: &Options, output: &Path, note: Option<String>) -> Result<Before> {
        let parent = options.parent.as_deref().map(|parent| load::parent(parent, output)).transpose()?;
        Ok(Before { parent, held: None, note })
    }
}

/// Leaves what is tracked still to the keeper, for an image that is there now. How many processes.
pub(super) fn leave(
    (output, directory): (&Path, &Path),
    (manifest, seal): (Manifest, Digest),
    snapshot: &Snapshot,
    mut all: Vec<Shadowed>,
) -> Plain<usize> {
    let mut others = Vec::new();
    let mut processes = Vec::new();
    for process in &snapshot.processes {
        let State::Alive(alive) = &process.state else { continue };
        let pages = &alive.memory.pages;
        let at = all.iter().position(|one| one.inside == process.pid.0);
        let Some(Shadowed { pid, ranges, tracked: Some(tracked), .. }) = at.map(|at| all.swap_remove(at)) else {
            others.extend(pages);
            continue;
        };
        let (own, other): (Vec<_>, Vec<_>) =
            pages.iter().flat_map(|run| parts(*run, &ranges)).partition(|(own, _)| *own);
        let own = own.into_iter().map(|(_, run)| run).collect();
        others.extend(other.into_iter().map(|(_, run)| run));
        let identity = tracked.identity;
        processes.push((Process { pid, identity, ranges, runs: own }, tracked.into_fault()));
    }
    others.extend(snapshot.objects.iter().flat_map(|object| &object.pages));
    if processes.is_empty() {
        return Ok(0);
    }
    let many = processes.len();
    let open = load::open_directory(output).map_err(|e| Cause::Reported { message: e.to_string(), code: 1 })?;
    let reader = Reader::assemble(open, Version::NEWEST, manifest, Limits::default())?;
    Shadow::new(output, (&reader, seal), processes, others)?.leave(directory)?;
    Ok(many)
}

/// The parts of a run, in order, and whether each lies in one of these ranges. A run can be of two mappings that are one area of the
/// image, of which only one was tracked.
fn parts(run: PageRun, ranges: &[(u64, u64)]) -> Vec<(bool, PageRun)> {
    let Addr(start) = run.addr;
    let end = start.saturating_add(run.pages.saturating_mul(PAGE_BYTES));
    let (mut at, mut out) = (start, Vec::new());
    while at < end {
        let range = ranges.get(ranges.partition_point(|(_, to)| *to <= at));
        let (inside, to) = match range {
            Some((from, to)) if *from <= at => (true, *to),
            Some((from, _)) => (false, *from),
            None => (false, end),
        };
        let to = to.min(end);
        let offset = run.offset.saturating_add(at - start);
        out.push((inside, PageRun { addr: Addr(at), pages: (to - at) / PAGE_BYTES, offset, ..run }));
        at = to;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_cut_where_what_was_tracked_ends() {
        const P: u64 = PAGE_BYTES;
        let run = |addr, pages, offset| PageRun { addr: Addr(addr * P), pages, file: 3, offset: offset * P };
        let ranges = [(10 * P, 20 * P), (20 * P, 22 * P), (30 * P, 40 * P)];
        let all = parts(run(5, 30, 100), &ranges);
        let wanted =
            [(false, 5, 5, 100), (true, 10, 10, 105), (true, 20, 2, 115), (false, 22, 8, 117), (true, 30, 5, 125)];
        assert_eq!(all, wanted.map(|(inside, addr, pages, offset)| (inside, run(addr, pages, offset))));
        assert_eq!(parts(run(12, 3, 0), &ranges), [(true, run(12, 3, 0))]);
        assert_eq!(parts(run(50, 3, 0), &ranges), [(false, run(50, 3, 0))]);
        assert_eq!(parts(run(50, 3, 0), &[]), [(false, run(50, 3, 0))]);
    }
}
