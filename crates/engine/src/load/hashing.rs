//! Large files of pages are compared with their digests while tasks read them already: nothing runs before both are done.

use std::os::fd::{AsFd, BorrowedFd};

use yendor_image::{Digest, Error as Damage, Manifest, open_regular, pages_name};
use yendor_kinds::Cause;
use yendor_sys::SysError;

use super::{Front, Loader, start};
use crate::error::{At, Error, Result, Step};

/// Bytes of pages from which on a process of its own is worth its while.
const LARGE: u64 = 8 << 20;

/// A process without rights that reads files of pages.
pub struct Hashing {
    loader: Loader,
    /// What it reads: names and sizes.
    names: Vec<(String, u64)>,
}

impl Hashing {
    /// Starts it, for an image that is not encrypted, if that has many pages. As [`Loader::start`], it is to be called before
    /// the caller's pid namespace for children is another one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(directory: BorrowedFd<'_>) -> Result<Option<Hashing>> {
        let (mut names, mut files, mut bytes) = (Vec::new(), Vec::new(), 0);
        for number in 0..u16::MAX {
            let name = pages_name(number);
            let (file, size) = match open_regular(directory, &name) {
                Err(Damage::Missing { .. }) => break,
                // Whoever needs it will say what is wrong with it.
                Err(_) => return Ok(None),
                Ok(opened) => opened,
            };
            bytes = size.saturating_add(bytes);
            names.push((name, size));
            files.push((file, size));
        }
        if bytes < LARGE {
            return Ok(None);
        }
        let keep: Vec<BorrowedFd<'_>> = files.iter().map(|(file, _)| file.as_fd()).collect();
        let loader = start(false, &keep, |_| {
            let digests = files.iter().map(|(file, size)| Digest::of_file(file, *size));
            let digests: std::io::Result<Vec<(u64, Digest)>> = digests.collect();
            digests.map_err(|e| SysError::io("read", "pages", &e)).at(Step::Load)
        })?;
        loader.begin()?;
        Ok(Some(Hashing { loader, names }))
    }

    /// Whether this file is among those that it reads.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        self.names.iter().any(|(covered, _)| covered == name)
    }

    /// It goes on if what it reads is what the table of contents lists, and nothing else: what else there is may be of any size. Else it
    /// ends, and whoever needs a file compares it.
    #[must_use]
    pub fn listed(self, manifest: &Manifest) -> Option<Hashing> {
        let is_listed = |(name, bytes): &(String, u64)| {
            manifest.file(name).is_some_and(|entry| !manifest.is_wrapped(entry) && entry.bytes == *bytes)
        };
        self.names.iter().all(is_listed).then_some(self)
    }

    /// Waits for it: all files must be what the table of contents says.
    ///
    /// # Errors
    /// A damaged image.
    pub fn compare(self, manifest: &Manifest, front: Front<'_>) -> Result<()> {
        let found: Vec<(u64, Digest)> = self.loader.answer(front)?;
        if found.len() != self.names.len() {
            return Err(Error::new(Step::Load, Cause::corrupt("its reader does not answer sensibly")));
        }
        for ((name, _), (bytes, digest)) in self.names.iter().zip(found) {
            let Some(entry) = manifest.file(name) else { continue };
            if (bytes, digest) != (entry.bytes, entry.blake3) {
                let damage = Damage::Digest { file: name.clone(), bytes: entry.bytes };
                return Err(Error::new(Step::Load, Cause::from(damage)));
            }
        }
        Ok(())
    }
}
