//! Restartable sequences (rseq(2)): code that must not be interrupted and go on.

use yendor_sys::ptrace::Rseq;
use yendor_sys::{SysError, vm};

use crate::regs::Regs;

/// A sequence that our stop has interrupted is left as if the kernel had: by way of its abort handler. Once the thread has
/// executed anything else the kernel forgets that it was in one.
///
/// # Errors
/// The thread's own area cannot be read.
pub fn leave(tid: i32, rseq: &Rseq, regs: &mut Regs) -> Result<(), SysError> {
    if rseq.area == 0 {
        return Ok(());
    }
    let mut pointer = [0; 8];
    vm::read_exact(tid, rseq.area + 8, &mut pointer)?;
    let at = u64::from_ne_bytes(pointer);
    // struct rseq_cs { u32 version, flags; u64 start_ip, post_commit_offset, abort_ip }
    let mut words = [[0; 8]; 4];
    if at == 0 || vm::read_exact(tid, at, words.as_flattened_mut()).is_err() {
        return Ok(());
    }
    let [head, start, length, abort] = words.map(u64::from_ne_bytes);
    let version = head & 0xffff_ffff;
    if version == 0 && regs.rip.wrapping_sub(start) < length {
        regs.rip = abort;
    }
    Ok(())
}
