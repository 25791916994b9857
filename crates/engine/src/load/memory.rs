//! Memory for what is in files that are encrypted or compressed: better to say that it is not to be had than to have the machine look for it.

use yendor_kinds::Cause;
use yendor_proc::meminfo;
use yendor_sys::SysError;

use crate::error::{At, Error, Result, Step};

/// One part of so many of the memory that is to be had is left to the machine: whoever restores needs some, and what is available is an estimate
/// (proc_meminfo(5)).
const LEFT: u64 = 8;

/// Whether there is memory for so many bytes, which an image claims are in those of its files.
///
/// A container's limit is no measure of that: files that were removed, and those of a layer, may be larger than all of its memory.
///
/// # Errors
/// A hole that another machine fills.
pub(super) fn enough(which: &str, bytes: u64) -> Result<()> {
    let most = available()?;
    let most = most - most / LEFT;
    if bytes <= most {
        return Ok(());
    }
    let what =
        format!("{bytes} bytes of memory for what is in its {which} files, and {most} are to be had for that here");
    Err(Error::new(Step::Load, Cause::of_machine(what, "a machine that has it")))
}

/// Bytes.
pub(super) fn available() -> Result<u64> {
    let text = std::fs::read("/proc/meminfo").map_err(|e| SysError::io("read", "/proc/meminfo", &e)).at(Step::Load)?;
    // The file counts in KiB.
    Ok(meminfo::parse(&text).at(Step::Load)?.available.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_memory_is_a_hole() {
        // What nobody would get who took its KiB for bytes.
        enough("compressed", 300 << 20).expect("some memory");
        let error = enough("compressed", 1 << 60).expect_err("nobody has so much");
        assert!(error.exit_code() == 5 && error.to_string().contains("1152921504606846976 bytes of memory"), "{error}");
    }

    #[test]
    fn some_of_it_is_left() {
        let most = available().expect("some memory");
        enough("compressed", most / 4 * 3).expect("three quarters may be taken");
        let error = enough("compressed", most / 20 * 19).expect_err("not nearly all");
        assert!(error.exit_code() == 5 && error.to_string().contains("are to be had for that here"), "{error}");
    }
}
