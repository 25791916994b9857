//! `yendor rmi`: an image goes.

use std::path::Path;

use clap::Args;
use yendor_engine::clear;
use yendor_engine::state::Places;
use yendor_image::{FORMAT_FILE, MANIFEST_FILE};

use crate::failure::{Failure, Outcome};
use crate::reference::{self, Reference};

/// Remove an image
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor rmi web@1")]
pub struct Rmi {
    /// A path with a '/', or NAME or NAME@N of the store; without @N the newest
    image: Reference,
}

impl Rmi {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let image = reference::resolve(&Places::from_environment()?, &self.image)?;
        let path = &image.path;
        if matches!(image.reference, Reference::Path(_)) && reference::is_none(path) {
            return Err(reference::no_image(path));
        }
        let missing = [FORMAT_FILE, MANIFEST_FILE].iter().any(|file| !path.join(file).is_file());
        if matches!(image.reference, Reference::Path(_)) && missing {
            // A directory that only happens to be there is not ours to remove.
            return Err(Failure::Said { code: 4, what: format!("{} is no image", path.display()) });
        }
        remove(path, matches!(image.reference, Reference::Stored(..)))?;
        Ok(0)
    }
}

/// Removes an image, and of the store a name that has no more.
pub fn remove(path: &Path, stored: bool) -> Result<(), Failure> {
    if let Ok(to) = std::fs::read_link(path) {
        let (path, to) = (path.display(), to.display());
        return Err(Failure::Failed(format!(
            "{path} is a symbolic link to {to}, and stays: remove that, and then the link by rm"
        )));
    }
    // Under a name that is no image's first: nobody finds half of one.
    let hidden = path.file_name().map(|name| {
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".partial-{}", std::process::id()));
        path.with_file_name(hidden)
    });
    let gone = hidden.filter(|hidden| std::fs::rename(path, hidden).is_ok());
    let gone = gone.as_deref().unwrap_or(path);
    clear::all(gone).map_err(|e| Failure::io("remove", gone, &e.into()))?;
    if let (true, Some(parent)) = (stored, path.parent()) {
        // Refused where other images are left, as it should be.
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}
