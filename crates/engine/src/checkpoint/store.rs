//! The image that is being written.

use std::path::Path;

use yendor_image::{Kind, Writer};

use super::{Options, Target};
use crate::error::{At, Result, Step};

/// Begins it.
pub(super) fn new_writer(target: &Target, output: &Path, options: &Options) -> Result<Writer> {
    let mut writer = Writer::create(output).at(Step::Store)?;
    if let Some(recipients) = &options.encrypt_to {
        writer.encrypt_to(recipients.clone());
    }
    if let Some(how) = options.compress {
        writer.compress(how);
    }
    writer.watch(options.watcher.clone());
    match target {
        Target::Container(state, _) => writer.generation(state.generation.saturating_add(1)),
        Target::Tree(_) => {
            writer.kind(Kind::Tree);
            writer.generation(1);
        }
    }
    Ok(writer)
}
