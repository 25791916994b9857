//! What the kernel remembers of an address space beside its areas: code, data, heap, stack, arguments, auxiliary vector,
//! the executable.
//! *Read from:* /proc/PID/stat, auxv and exe; brk in the task.
//! *Made again by:* `PR_SET_MM_MAP`, one call.
//! *Lost:* nothing.

use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};
use yendor_proc::stat::Stat;
use yendor_task::script::Memory;
use yendor_task::{Arg, Nr, Script};

use super::super::process::words;

/// `struct prctl_mm_map` (prctl(2), PR_SET_MM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Start and end of code.
    pub code: (u64, u64),
    /// Start and end of data.
    pub data: (u64, u64),
    /// Start and end of the heap.
    pub brk: (u64, u64),
    /// Where the stack began.
    pub stack: u64,
    /// Start and end of the arguments.
    pub arguments: (u64, u64),
    /// Start and end of the environment.
    pub environment: (u64, u64),
    /// The auxiliary vector.
    pub auxv: Bytes,
    /// The executable.
    pub exe: Option<FileId>,
}

/// Takes them from /proc; `brk`: the end of the heap, as the task was told.
#[must_use]
pub fn collect(stat: &Stat, brk: u64, auxv: Vec<u8>, exe: Option<FileId>) -> Record {
    Record {
        code: (stat.startcode, stat.endcode),
        data: (stat.start_data, stat.end_data),
        brk: (stat.start_brk, brk),
        stack: stat.startstack,
        arguments: (stat.arg_start, stat.arg_end),
        environment: (stat.env_start, stat.env_end),
        auxv: Bytes(auxv),
        exe,
    }
}

const PR_SET_MM: u32 = 35;
const PR_SET_MM_MAP: u32 = 14;

/// Sets them, once all areas are mapped; `exe`: the descriptor that the task has of the executable.
pub fn rebuild(record: &Record, exe: Option<i32>, script: &mut Script) {
    let Record { code, data, brk, stack, arguments, environment, auxv, exe: _ } = record;
    let mut map = words(&[
        code.0,
        code.1,
        data.0,
        data.1,
        brk.0,
        brk.1,
        *stack,
        arguments.0,
        arguments.1,
        environment.0,
        environment.1,
        0,
    ]);
    let auxv_at = map.len() - 8;
    let size = u32::try_from(auxv.0.len()).unwrap_or(0);
    map.extend_from_slice(&size.to_ne_bytes());
    map.extend_from_slice(&exe.unwrap_or(-1).to_ne_bytes());
    let vector = Memory { bytes: auxv.0.clone(), ..Memory::default() };
    let len = map.len();
    let map = Memory { bytes: map, pointers: vec![(auxv_at, vector)], ..Memory::default() };
    script.call(
        Nr::PRCTL,
        [Arg::from(PR_SET_MM), Arg::from(PR_SET_MM_MAP), Arg::from(map), Arg::from(len), Arg::from(0)],
    );
}
