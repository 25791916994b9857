//! Processes that stay stopped after their checkpoint.

use std::os::fd::OwnedFd;

use rustix::process::{Signal, pidfd_send_signal};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::FrozenTree;

use super::end::pidfd;

/// All processes of a tree.
pub(super) struct Stop(Vec<OwnedFd>);

impl Stop {
    /// # Errors
    /// What pidfd_open says.
    pub(super) fn ready(tree: &FrozenTree) -> Result<Stop, SysError> {
        Ok(Stop(tree.processes.keys().map(|pid| pidfd(*pid)).collect::<Result<_, _>>()?))
    }

    /// Stops all of them, or none: they stand still as soon as nobody traces them any more.
    ///
    /// # Errors
    /// What pidfd_send_signal says.
    pub(super) fn all(&self) -> Result<(), SysError> {
        let Stop(all) = self;
        for (number, one) in all.iter().enumerate() {
            match pidfd_send_signal(one, Signal::STOP) {
                // Somebody has killed it.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => {
                    // The signal of those that have it is still pending: this takes it away.
                    for stopped in &all[..number] {
                        let _ = pidfd_send_signal(stopped, Signal::CONT);
                    }
                    return Err(SysError::new("pidfd_send_signal", "SIGSTOP", e));
                }
            }
        }
        Ok(())
    }
}
