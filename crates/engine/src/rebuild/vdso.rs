//! The vdso: the tasks of an image call into the one they had, so it must be this kernel's.

use yendor_image::Digest;
use yendor_kinds::Cause;
use yendor_kinds::snapshot::Machine;
use yendor_proc::maps::{self, Label, Map};
use yendor_sys::{SysError, vm};

use crate::error::{At, Result, Step};

/// This kernel's, as this process has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vdso(Option<Digest>);

impl Vdso {
    /// Looks at it.
    ///
    /// # Errors
    /// /proc, or memory, cannot be read.
    pub fn look() -> Result<Vdso> {
        const MAPS: &str = "/proc/self/maps";
        let text = std::fs::read(MAPS).map_err(|e| SysError::io("read", MAPS, &e)).at(Step::Rebuild)?;
        let maps = maps::parse(&text).at(Step::Rebuild)?;
        let own = maps.iter().find(|map| map.label() == Label::Vdso);
        own.map_or(Ok(Vdso(None)), |map| Vdso::at(rustix::process::getpid().as_raw_nonzero().get(), map))
    }

    /// That of a process, which is mapped there.
    pub(super) fn at(pid: i32, map: &Map) -> Result<Vdso> {
        let mut code = vec![0; usize::try_from(map.len()).unwrap_or(0)];
        vm::read_exact(pid, map.start, &mut code).at(Step::Rebuild)?;
        Ok(Vdso(Some(Digest::of(&code))))
    }

    /// Whether the tasks of an image can do with it.
    ///
    /// # Errors
    /// They had another.
    pub fn check(self, machine: &Machine) -> Result<()> {
        match (self.0, machine.vdso) {
            (Some(own), Some(wanted)) if own != wanted => {
                let taken = &machine.kernel;
                let what = format!("kernel {taken}, under which it was taken and whose vdso this one's differs from");
                Err(Cause::of_machine(what, "a machine that runs it")).at(Step::Rebuild)
            }
            _ => Ok(()),
        }
    }
}
