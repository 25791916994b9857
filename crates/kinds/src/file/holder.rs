//! Who holds a description, for the error that is about it.

use yendor_image::FileId;

use super::Gather;
use crate::Cause;

impl Gather<'_> {
    /// The error about a description, with one task that has it, as the caller sees that, and under which number.
    pub(super) fn held(&self, id: FileId, error: Cause) -> Cause {
        let Some((pid, number)) = self.holders.get(&id) else { return error };
        let name = self.read(&format!("{pid}/comm")).unwrap_or_default();
        let name = name.trim_ascii_end().escape_ascii();
        let with = |what: String| format!("{what} (file descriptor {number} of process {pid}, {name})");
        match error {
            Cause::Unsupported { what } => Cause::Unsupported { what: with(what) },
            Cause::Passing { what } => Cause::Passing { what: with(what) },
            other => other,
        }
    }
}
