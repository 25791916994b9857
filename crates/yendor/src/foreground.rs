//! Staying with a container: signals are passed on, its status becomes ours; or its terminal is shown in ours.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use yendor_engine::process::Signals;

use crate::container::{Found, Now};
use crate::failure::{Failure, Outcome};
use crate::log::Log;
use crate::modes::Modes;
use crate::terminal::End;
use crate::{container, signal, terminal};

/// Signals for the caller, blocked.
pub fn block_signals(also: &[i32]) -> Result<Signals, Failure> {
    let all: Vec<i32> = signal::FORWARDED.iter().chain(also).copied().collect();
    Signals::block(&all).map_err(|e| Failure::Failed(e.to_string()))
}

/// Waits for a process while signals go to it: until `done` becomes readable.
fn forward(signals: &Signals, to: &OwnedFd, done: &OwnedFd) -> Result<(), Failure> {
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(done, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::Failed(format!("poll: {e}"))),
        }
        let ended = !fds[1].revents().is_empty();
        pass_on(signals, to)?;
        if ended {
            return Ok(());
        }
    }
}

/// Passes on the signals that have come.
pub fn pass_on(signals: &Signals, to: &OwnedFd) -> Result<(), Failure> {
    while let Some(number) = signals.next().map_err(|e| Failure::Failed(e.to_string()))? {
        container::send(to, number)?;
    }
    Ok(())
}

/// Sees a container to its end, passing signals on.
pub fn see_to_its_end(found: &Found) -> Result<(), Failure> {
    let signals = block_signals(&[])?;
    // What is gone already needs no signals; its status waits with the keeper.
    match found.main()?.zip(found.keeper()?) {
        Some((main, keeper)) => forward(&signals, &main, &keeper),
        None => Ok(()),
    }
}

/// Waits for a child of ours while signals go to it.
pub fn see_child(signals: &Signals, mut child: std::process::Child) -> Outcome {
    use std::os::unix::process::ExitStatusExt;
    let lost = |call: &str, e: &dyn std::fmt::Display| Failure::Failed(format!("{call}: {e}"));
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let pidfd = pidfd.map_err(|e| lost("pidfd_open", &e))?;
    forward(signals, &pidfd, &pidfd)?;
    let status = child.wait().map_err(|e| lost("wait", &e))?;
    Ok(container::exit_code(status.into_raw()))
}

/// Shows a container's terminal in the caller's until it ends or is left; `from_start`: with what was written before.
/// `drawn`: programs have drawn on it before it is shown here, and are to do so again.
pub fn show_terminal(found: &Found, from_start: bool, drawn: bool) -> Result<End, Failure> {
    let mut modes = Modes::default();
    let end = show(found, from_start, drawn, &mut modes);
    // Who comes back finds it as it was left.
    if !matches!(end, Ok(End::Detached)) {
        modes.leave(std::io::stdout().as_fd());
    }
    end
}

fn show(found: &Found, from_start: bool, drawn: bool, modes: &mut Modes) -> Result<End, Failure> {
    let mut log = Log::open(&found.directory)?;
    let mut print = |modes: &mut Modes| log.as_mut().map(|log| log.show(modes)).transpose();
    if found.now() != Now::Running {
        // It was faster than we.
        print(modes)?;
        return Ok(End::Closed);
    }
    let lent = match terminal::borrow_master(&found.directory) {
        Err(_) if from_start && found.now() != Now::Running => {
            print(modes)?;
            return Ok(End::Closed);
        }
        lent => lent?,
    };
    // Until it was asked for, and again at the very end, the terminal's output went to the log.
    if from_start {
        print(modes)?;
    } else {
        log.iter_mut().for_each(Log::skip);
    }
    let signals = block_signals(&[signal::WINCH])?;
    let end = match (found.main()?, found.keeper()?) {
        (Some(main), Some(keeper)) => {
            let (master, signals) = (&lent.master, &signals);
            let relay = terminal::Relay { master, signals, target: &main, ended: &keeper, detachable: true, drawn };
            relay.run(std::io::stdin().as_fd(), std::io::stdout().as_fd(), modes)?
        }
        (None, Some(keeper)) => {
            container::ended(&keeper, None)?;
            End::Closed
        }
        _ => End::Closed,
    };
    if end == End::Closed {
        log.as_mut().map(|log| log.show(modes)).transpose()?;
    }
    Ok(end)
}
