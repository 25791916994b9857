//! Memory for what is in files that are encrypted or compressed: better to say that it is not to be had than to have the machine look for it.

use yendor_kinds::Cause;
use yendor_proc::meminfo;
use yendor_sys::SysError;

use crate::error::{At, Error, Result, Step};

/// Whether there is memory for so many bytes, which an image claims are in those of its files.
///
/// # Errors
/// A hole that another machine fills.
pub(super) fn enough(which: &str, bytes: u64) -> Result<()> {
    let text = std::fs::read("/proc/meminfo").map_err(|e| SysError::io("read", "/proc/meminfo", &e)).at(Step::Load)?;
    // The file counts in KiB.
    let available = meminfo::parse(&text).at(Step::Load)?.available.saturating_mul(1024);
    if bytes <= available {
        return Ok(());
    }
    let what = format!("{bytes} bytes of memory for what is in its {which} files, and {available} are to be had here");
    Err(Error::new(Step::Load, Cause::of_machine(what, "a machine that has it")))
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
}
