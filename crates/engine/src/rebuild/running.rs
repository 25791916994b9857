//! What a restore leaves behind: tasks that run, and who waits for them.

use yendor_sys::SysError;
use yendor_sys::mapping::Mapping;
use yendor_task::arena::PAGE;
use yendor_task::gadget;

use crate::contain::Cgroup;

/// A container whose tasks run.
#[derive(Debug)]
pub struct Running {
    /// Pid 1, as the keeper sees it.
    pub init: i32,
    /// The root task, as the keeper sees it.
    pub main: i32,
    /// What could not be had in full.
    pub notes: Vec<String>,
    /// Its limits; they go when this is dropped.
    pub cgroup: Option<Cgroup>,
    pub(super) memory: Mapping,
}

impl Running {
    /// Ends all of its tasks.
    pub fn end(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        // Our own child: it fails only when that has ended.
        let _ = Pid::from_raw(self.init).map(|init| kill_process(init, Signal::KILL));
    }

    /// Waits for the end of pid 1. The wait status of the main task, if it ended before.
    ///
    /// # Errors
    /// `ECHILD` when somebody else has waited.
    pub fn wait(&self) -> std::result::Result<Option<i32>, SysError> {
        yendor_sys::wait::wait(Some(self.init), true)?;
        Ok(self.status())
    }

    /// The wait status of the main task, once it has ended.
    #[must_use]
    pub fn status(&self) -> Option<i32> {
        use std::sync::atomic::Ordering::Acquire;
        const SLOT_0: usize = 2 * PAGE;
        let ended = self.memory.word(SLOT_0 + gadget::slot::ENDED).load(Acquire);
        let status = self.memory.word(SLOT_0 + gadget::slot::STATUS).load(Acquire);
        (ended == 1).then(|| status.cast_signed())
    }
}
