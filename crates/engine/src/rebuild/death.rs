//! Tasks that end before anything runs: zombies, and stand-ins that have done their duty.

use yendor_kinds::{Cause, Named};
use yendor_sys::ptrace;
use yendor_sys::wait::{self, Event};
use yendor_task::script::bytes;
use yendor_task::{Nr, Script, Stopped, args};

use super::process::stop_cause;
use super::{Site, Task};

/// The task ends with this wait status.
///
/// # Errors
/// The kernel's, or `Corrupt` for what is no wait status.
pub fn die(site: &Site<'_>, task: &Task, status: i32) -> std::result::Result<(), Cause> {
    let signal = status & 0x7f;
    if signal == 0 {
        let mut script = Script::new();
        script.call(Nr::EXIT_GROUP, args![status >> 8 & 0xff]);
        site.arena.start(task.slot, &script.calls).map_err(Cause::from)?;
    } else {
        let mut script = Script::new();
        // No core file.
        script.call(Nr::PRLIMIT64, args![0, 4, bytes([0u8; 16]), 0]);
        site.run(task, &script)?;
        let pid = rustix::process::Pid::from_raw(task.tid);
        let named = rustix::process::Signal::from_named_raw(signal);
        let (Some(pid), Some(named)) = (pid, named) else {
            return Err(Cause::corrupt(format!("a zombie with the wait status {status:#x}")));
        };
        Stopped::interrupt(task.tid).map_err(stop_cause)?;
        ptrace::set_sigmask(task.tid, 0)?;
        rustix::process::kill_process(pid, named).named("kill", || format!("{named:?}"))?;
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
