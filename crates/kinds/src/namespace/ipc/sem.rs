//! A System V semaphore set.
//! *Read from:* /proc/sysvipc/sem; `GETALL`.
//! *Made again by:* semget, `SETALL`, `IPC_SET`; a semop that changes nothing where there had been one, since programs look
//! whether its time is zero.
//! *Lost:* adjustments that `SEM_UNDO` had noted for a task's end (the kernel shows them to nobody: the end of a restored
//! task undoes only what it did after the restore); pids and times of the last operations.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_proc::sysvipc;
use yendor_sys::{Errno, ipc};

use super::{Perm, Scope, Wait};
use crate::{Cause, Result};

/// A set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Key, id, rights.
    pub perm: Perm,
    /// Values, 0 to 32767.
    pub values: Vec<u16>,
    /// Whether there was a semop(2) yet.
    pub operated: bool,
}

pub(super) fn is_taken(row: &sysvipc::Sem, proc: BorrowedFd<'_>, scope: Scope<'_>) -> Result<bool> {
    if scope == Scope::Whole {
        return Ok(true);
    }
    match ipc::sem_pids(row.perm.id) {
        Ok(users) => {
            let last = row.op_time.max(row.change_time);
            scope.takes(proc, (&users, last), Some(Wait::Semaphore(row.perm.id)), || {
                format!("semaphore set {}", row.perm.id)
            })
        }
        // Gone meanwhile: nothing that the tree could have used.
        Err(e) if matches!(e.errno, Errno::INVAL | Errno::IDRM) => Ok(false),
        Err(e) => {
            let held = scope.waits_for(Wait::Semaphore(row.perm.id));
            Ok(scope.unless_foreign::<()>(&row.perm, held, Err(e.into()))?.is_some())
        }
    }
}

pub(super) fn collect(row: sysvipc::Sem) -> Result<Record> {
    let sysvipc::Sem { perm, count, op_time, change_time: _, leftover } = row;
    if !leftover.is_empty() {
        return Err(Cause::unsupported(format!("semaphore set {}: unknown columns in /proc/sysvipc/sem", perm.id)));
    }
    let values = ipc::sem_values(perm.id)?;
    if u32::try_from(values.len()).ok() != Some(count) {
        return Err(super::changed(format!("semaphore set {}", perm.id)));
    }
    Ok(Record { perm: Perm::collect(&perm), values, operated: op_time != 0 })
}

pub(super) fn rebuild(record: &Record, proc: BorrowedFd<'_>) -> Result<()> {
    let Record { perm, values, operated } = record;
    let count = u32::try_from(values.len()).map_err(|_| Cause::corrupt("a semaphore set without end"))?;
    perm.make(proc, "sem", || ipc::sem_create(perm.key, count, perm.mode))?;
    ipc::sem_set_values(perm.id, values)?;
    if *operated {
        // Down and up again where that does not wait; else up and down, which then does not overflow.
        let down = if values.first().is_some_and(|v| *v > 0) { -1 } else { 1 };
        ipc::sem_op(perm.id, &[(0, down), (0, -down)])?;
    }
    Ok(ipc::sem_set(perm.id, perm.rights())?)
}
