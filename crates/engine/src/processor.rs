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
    compare(machine, &cpu::features(), any)
}

fn compare(machine: &Machine, here: &[&str], any: bool) -> Result<Option<String>> {
    /// What comes with registers of its own. Where XSAVEC is not had, libraries save all of them that there are, into room that they have measured once.
    const REGISTERS: [&str; 4] = ["avx", "avx512f", "amx_tile", "apx"];
    let had = |name: &str| machine.processor.iter().any(|known| known == name);
    let measured = had("osxsave") && !had("xsavec");
    let wider = REGISTERS.iter().filter(|name| measured && here.contains(name) && !had(name)).copied();
    let wider = wider.collect::<Vec<_>>().join(" ");
    if !wider.is_empty() && !any {
        let what = format!("a processor without registers for which its programs have left no room ({wider})");
        return Err(Error::new(
            Step::Load,
            Cause::of_machine(what, "one like it, or --any-cpu to run it all the same"),
        ));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_so_is_what_there_is_no_room_for() {
        let machine = |list: &[&str]| {
            let processor = list.iter().map(|name| (*name).to_owned()).collect();
            Machine { processor, ..machine(None, Security::default()) }
        };
        let said = |image: &[&str], here: &[&str]| compare(&machine(image), here, false).map_err(|e| e.to_string());
        assert_eq!(said(&["avx", "avx2"], &["avx", "avx2", "xsavec"]), Ok(None));
        assert!(said(&["avx", "avx2"], &["avx"]).unwrap_err().contains("does not have (avx2)"));
        assert!(
            said(&["avx", "osxsave"], &["avx", "avx512f", "osxsave", "xsavec"])
                .unwrap_err()
                .contains("no room (avx512f)")
        );
        assert_eq!(said(&["avx", "xsavec"], &["avx", "avx512f", "xsavec"]), Ok(None));
        // Without XSAVE only what is always there is saved; images from before anybody looked say nothing.
        assert_eq!(said(&["aes"], &["aes", "avx", "osxsave"]), Ok(None));
        assert_eq!(said(&[], &["avx", "avx512f"]), Ok(None));
        assert!(compare(&machine(&["avx", "osxsave"]), &["avx", "avx512f", "osxsave"], true).is_ok());
    }
}
