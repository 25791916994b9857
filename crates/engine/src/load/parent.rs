//! An earlier image, for a checkpoint that need not write again what that has.

use std::path::Path;

use yendor_image::upgrade::Version;
use yendor_image::{Limits, Parent, Reader};
use yendor_kinds::Cause;
use yendor_sys::SysError;

use super::decrypt::Plain;
use super::{Table, decode, open_directory, table};
use crate::error::{At, Error, Result, Step, With};
use crate::shadow::Shadow;

/// The pages of an image, for a checkpoint that will be at `place` and need not write them again.
///
/// # Errors
/// A damaged image, or one that cannot be a parent of that: encrypted, elsewhere, or somebody else's.
pub fn parent(image: &Path, place: &Path) -> Result<Parent> {
    let read = || check(Parent::read(&open(image, table(image)?)?).at(Step::Load)?, place);
    read().kind("parent", image.display().to_string())
}

/// The same of the image that `held` was tracked for: its files are not read if they are what they were. None: it is another image.
///
/// # Errors
/// As [`parent`].
pub fn known_parent(image: &Path, place: &Path, held: &Shadow) -> Result<Option<Parent>> {
    let read = || {
        let table = table(image)?;
        if table.seal()? != held.seal() {
            return Ok(None);
        }
        let known = Parent::known(&open(image, table)?, held.stamps(), held.others());
        check(known.at(Step::Load)?, place).map(Some)
    };
    read().kind("parent", image.display().to_string())
}

fn open(image: &Path, Table { version, manifest, .. }: Table) -> Result<Reader> {
    if manifest.encryption.is_some() {
        let what = "an encrypted image as parent: what is in it cannot be compared without its key";
        return Err(Error::new(Step::Load, Cause::unsupported(what)));
    }
    let version = Version::parse(&version).at(Step::Load)?;
    let mut reader = Reader::assemble(open_directory(image)?, version, manifest, Limits::default()).at(Step::Load)?;
    if let Some(plain) = decode::decode(&reader, None)?.map(Plain::into_files) {
        reader.unwrapped(plain).at(Step::Load)?;
    }
    Ok(reader)
}

fn check(parent: Parent, place: &Path) -> Result<Parent> {
    match parent.is_foreign(place).map_err(|e| SysError::io("stat", "the parent", &e)).at(Step::Load)? {
        None => Ok(parent),
        Some(why) => Err(Error::new(Step::Load, Cause::unsupported(format!("an image as parent when {why}")))),
    }
}
