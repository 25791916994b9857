//! Commands of `yendor exec`, as a checkpoint of their container finds them. They have a parent outside, and often a terminal: no image has
//! them. But they stand still with the container's tasks, or what those share with them would be of two instants.
//!
//! Whoever runs one holds a lock on the file [`FILE`] of the container's directory, for as long as he lives.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use yendor_sys::SysError;
use yendor_sys::lock::{self, Lock};

use crate::error::{At, Error, Result, Step};
use yendor_kinds::Cause;

/// The first byte is the gate: who begins a command holds it with others, a checkpoint alone. The byte at a process's own id says that it
/// runs one.
pub const FILE: &str = "exec";
const GATE: i64 = 0;
/// How long a command waits for a checkpoint, and a checkpoint for commands that are about to begin.
const FOR_CHECKPOINT: Duration = Duration::from_secs(60);
const FOR_COMMANDS: Duration = Duration::from_secs(5);

/// One command, from before it enters the container.
#[derive(Debug)]
pub struct Session(File);

/// Nobody begins a command meanwhile.
#[derive(Debug)]
pub struct Gate(File);

fn open(directory: &Path) -> std::result::Result<File, Cause> {
    let path = directory.join(FILE);
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut how = OpenOptions::new();
    let file = how.read(true).write(true).create(true).truncate(false).custom_flags(flags.cast_signed()).open(&path);
    let file = file.map_err(|e| SysError::io("open", FILE, &e))?;
    // Root's commands in somebody's container: nobody else can come near the directory.
    let _ = file.set_permissions(PermissionsExt::from_mode(0o666));
    Ok(file)
}

fn take(file: &File, lock: Lock, at: i64, patience: Duration) -> std::result::Result<bool, SysError> {
    let until = Instant::now() + patience;
    loop {
        if lock::take(file, lock, at)? {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Session {
    /// Waits for a checkpoint to end; none begins before [`Self::begun`].
    ///
    /// # Errors
    /// The kernel's; a checkpoint that does not end.
    pub fn begin(directory: &Path) -> Result<Session> {
        let file = open(directory).at(Step::Contain)?;
        let failed = |message| Err(Error::new(Step::Contain, Cause::Reported { message, code: 1 }));
        if !take(&file, Lock::Shared, GATE, FOR_CHECKPOINT).at(Step::Contain)? {
            return failed(format!("a checkpoint of the container has not ended in {} s", FOR_CHECKPOINT.as_secs()));
        }
        let me = i64::from(rustix::process::getpid().as_raw_nonzero().get());
        if !take(&file, Lock::Exclusive, me, Duration::ZERO).at(Step::Contain)? {
            return failed(format!("process {me} of another pid namespace runs a command in the container"));
        }
        Ok(Session(file))
    }

    /// The command has begun.
    ///
    /// # Errors
    /// The kernel's.
    pub fn begun(&self) -> Result<()> {
        lock::take(&self.0, Lock::Free, GATE).map(drop).at(Step::Contain)
    }
}

impl Gate {
    /// # Errors
    /// The kernel's; `Passing` where somebody is about to begin a command and does not.
    pub fn close(directory: &Path) -> Result<Gate> {
        let file = open(directory).at(Step::Freeze)?;
        if take(&file, Lock::Exclusive, GATE, FOR_COMMANDS).at(Step::Freeze)? {
            return Ok(Gate(file));
        }
        Err(Error::new(Step::Freeze, Cause::passing("a command of `yendor exec` that does not begin")))
    }

    /// Who runs commands: `yendor exec` itself, the parent of each.
    ///
    /// # Errors
    /// The kernel's; somebody who cannot be seen from here, by name.
    pub fn commands(&self) -> Result<Vec<i32>> {
        let holders = lock::holders(&self.0, GATE + 1).at(Step::Freeze)?;
        let seen = |holder: lock::Holder| match holder.pid {
            0 => {
                let what = "a command of `yendor exec` from another pid namespace than this one";
                Err(Error::new(Step::Freeze, Cause::unsupported(what)))
            }
            pid => Ok(pid),
        };
        holders.into_iter().map(seen).collect()
    }
}
