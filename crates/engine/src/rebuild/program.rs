//! A task that becomes a program: the first of a container that is composed.

use std::collections::BTreeMap;

use yendor_kinds::Cause;
use yendor_kinds::process::{Exec, credential, directory, rlimit};
use yendor_sys::ptrace;
use yendor_task::script::{Arg, Memory, bytes, cstr};
use yendor_task::{Nr, RunError, Script, Stopped, args};

use super::descriptor::descriptors;
use super::process::{gone_place, label, set, stop_cause};
use super::{Site, Task, filter};
use crate::error::{At, Error, Result, Step, With};
use crate::label::{self, Set};

/// The task starts a program: descriptors, directory, credentials, execve. It stops as the new program.
pub fn start(site: &Site<'_>, task: &Task, exec: &Exec) -> Result<()> {
    let (door, sets): (Vec<Set>, Vec<Set>) = site.labels.of_program().into_iter().partition(Set::wants_door);
    label(site, task, &door, 0)?;
    let mut script = Script::new();
    directory::rebuild(&exec.directory, &gone_place(&exec.directory), &mut script);
    descriptors(site, &exec.descriptors, &BTreeMap::new(), None, &mut script).at(Step::Rebuild)?;
    if let Some(limits) = &exec.limits {
        rlimit::rebuild(limits, &site.now.limits, &mut script);
    }
    if let Some(adj) = exec.oom_score_adj {
        set(site, task, "oom_score_adj", &adj.to_string()).at(Step::Rebuild)?;
    }
    site.run(task, &script).at(Step::Rebuild)?;
    let mut script = Script::new();
    let mut credentials = site.confine.clamped(&exec.credentials);
    if site.confine.filter().is_some() {
        // What it has too much is gone after execve: the capabilities of a new program come from its user and the bounding set.
        credentials = filter::able(&credentials);
    }
    let free = label::free_number(exec.descriptors.iter().map(|d| d.number.0));
    let (first, sets): (Vec<Set>, Vec<Set>) = sets.into_iter().partition(Set::wants_capabilities);
    label(site, task, &first, free)?;
    credential::rebuild(&credentials, &site.now.credentials, &mut script);
    site.run(task, &script).at(Step::Confine)?;
    label(site, task, &sets, free)?;
    let mut script = Script::new();
    credential::lock(&credentials, &mut script);
    site.run(task, &script).at(Step::Confine)?;
    let stopped = Stopped::interrupt(task.tid).map_err(stop_cause).at(Step::Thaw)?;
    ptrace::set_options(task.tid, ptrace::O_EXITKILL | ptrace::O_TRACESYSGOOD | ptrace::O_TRACEEXEC).at(Step::Thaw)?;
    stopped.resume().at(Step::Thaw)?;
    let list = |items: &[yendor_image::Bytes]| {
        let mut memory = Memory { bytes: vec![0; (items.len() + 1) * 8], ..Memory::default() };
        for (i, item) in items.iter().enumerate() {
            let mut text = item.0.clone();
            text.push(0);
            memory.pointers.push((i * 8, Memory { bytes: text, ..Memory::default() }));
        }
        Arg::from(memory)
    };
    let mut script = Script::new();
    script.call(Nr::RT_SIGPROCMASK, args![2, bytes([0u8; 8]), 0, 8]);
    if let Some(policy) = site.confine.filter() {
        filter::install(policy, site.confine.cookie, &mut script);
    }
    script.call(Nr::EXECVE, [cstr(&exec.path.0), list(&exec.argv), list(&exec.env)]);
    match site.arena.run(task.slot, task.tid, &script) {
        Err(RunError::Executed { .. }) => Ok(()),
        // That the program may be executed at all was seen before: it is the label that is not to be had by it.
        Err(e) if !sets.is_empty() && Cause::from(e.clone()).is_denied() => Err(sets[0].failed(Cause::from(e))),
        Err(e) => Err(Error::new(Step::Thaw, Cause::from(e))).kind("program", exec.path.to_string()),
        Ok(_) => Err(Error::new(Step::Thaw, Cause::corrupt("execve returned"))),
    }
}
