//! Tasks that end before anything runs: zombies, and stand-ins that have done their duty.

use yendor_kinds::process::attribute;
use yendor_kinds::{Cause, Named};
use yendor_sys::ptrace;
use yendor_sys::wait::{self, Event};
use yendor_task::{Nr, Script, Stopped, args};

use super::birth::Tasks;
use super::plan::{INIT, Plan};
use super::process::stop_cause;
use super::{Site, Task};
use crate::error::{At, Result, Step, With};

const PR_SET_DUMPABLE: u32 = 4;

/// Whether a process can end with this wait status: a status of its own, or a signal that ends who does nothing about it.
pub fn is_status(status: i32) -> bool {
    const ENDS_NOBODY: [i32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];
    match status & 0x7f {
        0 => status & !0xff00 == 0,
        signal => signal <= 64 && status & !0xff == 0 && !ENDS_NOBODY.contains(&signal),
    }
}

/// Whether a signal leaves a core by default (signal(7)): QUIT, ILL, TRAP, ABRT, BUS, FPE, SEGV, XCPU, XFSZ, SYS.
fn leaves_core(signal: i32) -> bool {
    [3, 4, 5, 6, 7, 8, 11, 24, 25, 31].contains(&signal)
}

/// The task ends with this wait status.
///
/// # Errors
/// The kernel's.
pub fn die(site: &Site<'_>, task: &Task, status: i32) -> std::result::Result<(), Cause> {
    let signal = status & 0x7f;
    if signal == 0 {
        let mut script = Script::new();
        script.call(Nr::EXIT_GROUP, args![status >> 8 & 0xff]);
        site.arena.start(task.slot, &script.calls).map_err(Cause::from)?;
    } else {
        if leaves_core(signal) {
            let mut script = Script::new();
            // No core, nor a handler of the host's that is told of one, whom RLIMIT_CORE would not hinder. Its status is then told its
            // parent alone: see `collect::children`.
            script.call(Nr::PRCTL, args![PR_SET_DUMPABLE, 0, 0, 0, 0]);
            site.run(task, &script)?;
        }
        let pid = rustix::process::Pid::from_raw(task.tid).ok_or_else(|| Cause::corrupt("a task without an id"))?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let pidfd = pidfd.named("pidfd_open", || format!("{}", task.tid))?;
        Stopped::interrupt(task.tid).map_err(stop_cause)?;
        ptrace::set_sigmask(task.tid, 0)?;
        yendor_sys::process::send_signal(&pidfd, signal)?;
        match ptrace::cont(task.tid, 0) {
            // SIGKILL does not wait to be let go.
            Err(e) if e.is_gone() => {}
            other => other?,
        }
    }
    await_death(task.tid)
}

fn await_death(tid: i32) -> std::result::Result<(), Cause> {
    loop {
        let Some((_, what)) = wait::wait(Some(tid), true)? else { continue };
        match what {
            Event::Exited(_) | Event::Killed(_) => return Ok(()),
            Event::Stopped { signal, event: 0 } => ptrace::cont(tid, signal)?,
            Event::Stopped { .. } => ptrace::cont(tid, 0)?,
            Event::Continued => {}
        }
    }
}

/// Stand-ins have done their duty: they exit, and pid 1 waits for them. First those that leave orphans behind, whose parents are stand-ins too.
pub fn dismiss(site: &Site<'_>, plan: &Plan, tasks: &Tasks, init: &Task) -> Result<()> {
    const WALL: u32 = 0x4000_0000;
    let (leaving, others): (Vec<_>, Vec<_>) =
        plan.births.iter().filter(|b| b.record.is_none()).partition(|b| b.leaves.is_some());
    for birth in leaving.into_iter().chain(others) {
        let adopter = birth.leaves.filter(|(adopter, _)| *adopter != INIT);
        let adopts = |yes: u32| {
            let Some((adopter, _)) = adopter else { return Ok(()) };
            let mut script = Script::new();
            attribute::adopt(yes, &mut script);
            site.run(&tasks[&adopter], &script).map(drop).at(Step::Rebuild).task(adopter)
        };
        adopts(1)?;
        die(site, &tasks[&birth.pid], 0).at(Step::Rebuild).task(birth.pid)?;
        let mut script = Script::new();
        script.call(Nr::WAIT4, args![site.levels.seen(birth.parent, birth.pid), 0, WALL, 0]);
        let parent = tasks.get(&birth.parent).unwrap_or(init);
        site.run(parent, &script).at(Step::Rebuild).task(birth.parent)?;
        adopts(0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_status;

    #[test]
    fn a_status_is_one_that_a_process_can_end_with() {
        for status in [0, 37 << 8, 255 << 8, 9, 11, 11 | 0x80, 32, 40, 64] {
            assert!(is_status(status), "{status:#x}");
        }
        // A stop, what nobody dies of, more than one of them, and none at all.
        for status in [0x7f, 0x137f, 17, 18, 19, 23, 28, 65, 0x80, 37 << 8 | 9, 1 << 16, -1, i32::MIN] {
            assert!(!is_status(status), "{status:#x}");
        }
    }
}
