//! The processor: programs choose once, when they begin, which of its instructions they use, and go on with those.

use yendor_image::Digest;
use yendor_kinds::Cause;
use yendor_kinds::snapshot::{Machine, Security};
use yendor_sys::cpu;

use crate::error::{Error, Result, Step};

/// This machine, as an image says where it was taken.
pub(crate) fn machine(vdso: Option<Digest>, security: Security) -> Machine {
    Machine {
        architecture: "x86_64".into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        vdso,
        processor: cpu::features().into_iter().map(str::to_owned).collect(),
        security,
    }
}

/// Whether an image's programs find here what they may have chosen. Where it need not be, what is to be said of it.
///
/// # Errors
/// Something is not here.
pub fn check(machine: &Machine, any: bool) -> Result<Option<String>> {
    let here = cpu::features();
    let lacking: Vec<&str> = machine.processor.iter().map(String::as_str).filter(|name| !here.contains(name)).collect();
    if lacking.is_empty() {
        return Ok(None);
    }
    let lacking = lacking.join(" ");
    if any {
        return Ok(Some(format!("a program that uses what this processor does not have will die (SIGILL): {lacking}")));
    }
    let what =
        format!("a processor with instructions that its programs may use and this one does not have ({lacking})");
    Err(Error::new(Step::Load, Cause::of_machine(what, "a machine that has them, or --any-cpu to run it all the same")))
}

/// Whether a list is one that a checkpoint could have written.
pub(crate) fn is_possible(list: &[String]) -> bool {
    list.len() <= cpu::MOST && list.is_sorted_by(|a, b| a < b) && list.iter().all(|name| cpu::is_name(name))
}
