//! From a hidden directory to an image: durable first, visible then.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::renameat;
use rustix::io::Errno;

use super::amend::is_at;
use super::{FORMAT_FILE, MANIFEST_FILE, NEWEST_LINE, RECORDS_FILE, SIGNATURE_FILE, Writer};
use crate::manifest::{Encryption, Manifest, Method};
use crate::partial::remove;
use crate::upgrade::Version;
use crate::{Error, Result};

/// An image that is complete and durable, and that nobody can see yet: to drop it leaves that to its writer.
#[derive(Debug)]
pub struct Durable<'w> {
    writer: &'w Writer,
    manifest: Manifest,
}

impl Writer {
    /// Makes the image durable and visible, or leaves nothing.
    pub fn commit(self, created: SystemTime) -> Result<Manifest> {
        self.durable(created, |_| Ok(None))?.publish()
    }

    /// Makes the image durable, with a signature of the manifest's bytes, if `sign` gives one. To be called once; when it is
    /// published [`Writer::amended`] can follow.
    pub fn durable(
        &self,
        created: SystemTime,
        sign: impl FnOnce(&[u8]) -> io::Result<Option<Vec<u8>>>,
    ) -> Result<Durable<'_>> {
        let created = created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let files = self.sync_files()?;
        if !files.iter().any(|entry| entry.name == RECORDS_FILE) {
            return Err(Error::missing(RECORDS_FILE));
        }
        let encryption = self.recipients.as_ref();
        let encryption = encryption.map(|r| Encryption { method: Method::AgeX25519, recipients: r.names() });
        let manifest = Manifest { created, generation: self.generation, kind: self.kind, encryption, files };
        let document = manifest.encode(Version::NEWEST)?;
        // What the reader would refuse must not become an image.
        Manifest::decode(&document, Version::NEWEST, &self.limits)?;
        self.write_synced(FORMAT_FILE, NEWEST_LINE)?;
        self.write_synced(MANIFEST_FILE, &document)?;
        if let Some(signature) = sign(&document).map_err(|source| Error::io(SIGNATURE_FILE, "sign", source))? {
            self.write_synced(SIGNATURE_FILE, &signature)?;
        }
        rustix::fs::fsync(&self.dir).map_err(|errno| Error::io(&self.shown, "fsync", errno))?;
        Ok(Durable { writer: self, manifest })
    }

    /// Leaves nothing, while others may still write: their files have no names then.
    pub fn give_up(&self) {
        if !self.visible.swap(true, Relaxed) {
            remove(&self.parent, &self.partial, &self.dir);
        }
    }

    /// Takes an image back that was published: the writer's drop removes it. One that somebody else has put in its place stays.
    pub fn withdraw(&self) -> Result<()> {
        let failed = |errno| Error::io(&self.shown, "rename back", errno);
        if !is_at(&self.dir, &self.parent, &self.name) {
            return Err(failed(Errno::STALE));
        }
        renameat(&self.parent, &self.name, &self.parent, &self.partial).map_err(failed)?;
        self.visible.store(false, Relaxed);
        Ok(())
    }

    /// Renames the directory to its final name. A rename of a directory onto one that is not empty, or onto anything else,
    /// is refused by the kernel, so nothing can come in between.
    fn publish(&self) -> Result<()> {
        if let Some(old) = &self.replaces {
            return self.replace(old);
        }
        renameat(&self.parent, &self.partial, &self.parent, &self.name).map_err(|errno| match errno {
            Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR => Error::Exists { file: self.shown.clone() },
            _ => Error::io(&self.shown, "rename", errno),
        })?;
        rustix::fs::fsync(&self.parent).map_err(|errno| {
            // Not durable is not done: back to the hidden name, where the drop finds it.
            let _ = renameat(&self.parent, &self.name, &self.parent, &self.partial);
            Error::io(&self.shown, "fsync", errno)
        })
    }
}

impl Durable<'_> {
    /// Makes it visible, for good.
    pub fn publish(self) -> Result<Manifest> {
        self.writer.publish()?;
        self.writer.visible.store(true, Relaxed);
        Ok(self.manifest)
    }
}
