//! load: every byte of an image is parsed by a process that can do nothing else.
//!
//! The loader is a copy of the keeper (or of the front, for whoever only looks): it has the image's documents and two
//! pipes, no other descriptor, no capability, and no system call but to read, write and manage its own memory. What it has
//! understood it sends back in another encoding than the image's (postcard: no lengths that are not there, no types that
//! are not expected), so that the bytes of an image are never parsed twice by the same decoder. The answer may come from a
//! loader that an image has taken over: it is bounded, and everything in it is content, never authority. See
//! docs/adr/0003-loader.md.

pub mod check;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use yendor_image::upgrade::Version;
use yendor_image::{Digest, Documents, Kind, Limits, Manifest, Reader, SignedTable, Table};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_sys::sandbox::{self, Copy};
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};

use crate::error::{At, Error, Result, Step};
use crate::sign::Trust;
use crate::wire::Failure;

/// The longest answer: that of the largest records that a reader takes.
const MOST_BYTES: u64 = 512 << 20;

/// How a loader ends that could not give up its rights, was not told to begin, or could not answer.
const NO_SANDBOX: i32 = 2;
const NO_WORD: i32 = 3;
const NO_ANSWER: i32 = 4;

/// What a restore has to know of an image before there is a container for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Glance {
    /// It is a container.
    Container,
    /// It is a tree of processes; whether that had a network namespace of its own.
    Tree {
        /// Whether it had.
        own_network: bool,
    },
}

impl Glance {
    /// What an image shows.
    #[must_use]
    pub fn at(kind: Kind, snapshot: &Snapshot) -> Glance {
        match kind {
            Kind::Container => Glance::Container,
            Kind::Tree => Glance::Tree { own_network: snapshot.container.own_network },
        }
    }
}

/// The documents of an image, understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// The line of the file `format`.
    version: Vec<u8>,
    /// The table of contents.
    pub manifest: Manifest,
    /// The records.
    pub snapshot: Snapshot,
}

impl Loaded {
    fn read(documents: &Documents, limits: &Limits, trust: &Trust) -> Result<Loaded> {
        let SignedTable { version, manifest, document, signature } = documents.signed_table(limits).at(Step::Load)?;
        trust.check(&document, signature.as_deref()).at(Step::Load)?;
        let snapshot = documents.records(version, &manifest, limits).at(Step::Load)?;
        check::check(&snapshot, &manifest)?;
        Ok(Loaded { version: version.line().to_vec(), manifest, snapshot })
    }

    /// The image behind the documents, whose files are all there, and the records.
    ///
    /// # Errors
    /// A file that is missing or has another size.
    pub fn open(self, directory: OwnedFd) -> Result<(Reader, Snapshot)> {
        let version = Version::parse(&self.version).at(Step::Load)?;
        // Again: whoever said that it is right may have been made to.
        check::check(&self.snapshot, &self.manifest)?;
        let reader = Reader::assemble(directory, version, self.manifest, Limits::default()).at(Step::Load)?;
        Ok((reader, self.snapshot))
    }
}

/// A loader that waits for the word to begin.
#[derive(Debug)]
pub struct Loader {
    copy: Copy,
    begin: OwnedFd,
    answer: OwnedFd,
}

impl Loader {
    /// Starts one for the image in a directory. Before the caller's pid namespace for children is another one: the loader
    /// must not be the container's pid 1. With one thread only.
    ///
    /// # Errors
    /// A missing document; what the kernel says.
    pub fn start(directory: BorrowedFd<'_>, trust: &Trust) -> Result<Loader> {
        let documents = Documents::open(directory).at(Step::Load)?;
        start(false, &documents.descriptors(), |limits| Loaded::read(&documents, limits, trust))
    }

    /// Lets it read.
    ///
    /// # Errors
    /// A damaged image.
    pub fn load(self) -> Result<Loaded> {
        self.ask()
    }

    fn ask<T: DeserializeOwned>(self) -> Result<T> {
        let Loader { copy, begin, answer } = self;
        match rustix::io::write(&begin, &[1]) {
            // A loader that is gone: how it ended says more.
            Ok(_) | Err(Errno::PIPE) => {}
            Err(e) => return Err(SysError::new("write", "to the loader", e)).at(Step::Load),
        }
        drop(begin);
        let mut bytes = Vec::new();
        let read = File::from(answer).take(MOST_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|e| SysError::io("read", "from the loader", &e)).at(Step::Load)?;
        if u64::try_from(bytes.len()).is_ok_and(|n| n > MOST_BYTES) {
            // Dropped, and so killed: it would write for ever.
            return Err(Error::new(Step::Load, Cause::corrupt("its records do not end")));
        }
        let ended = copy.wait().at(Step::Load)?;
        match ended {
            Event::Exited(0) => {}
            // Its own words: the system refused something that is not the image's doing.
            Event::Exited(code @ (NO_SANDBOX | NO_WORD | NO_ANSWER)) => {
                let message = format!("the process that reads the image had to give up (code {code})");
                return Err(Error::new(Step::Load, Cause::Reported { message, code: 1 }));
            }
            _ => {
                return Err(Error::new(Step::Load, Cause::corrupt(format!("its reader could not go on: {ended:?}"))));
            }
        }
        decode(&bytes)
    }
}

/// What a loader has sent.
///
/// # Errors
/// The failure that it has sent, or `Corrupt` for what it cannot have meant.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let nonsense = || Error::new(Step::Load, Cause::corrupt("its reader does not answer sensibly"));
    match postcard::take_from_bytes::<std::result::Result<T, Failure>>(bytes) {
        Ok((Ok(value), [])) => Ok(value),
        Ok((Err(failure), [])) => Err(failure.into()),
        _ => Err(nonsense()),
    }
}

fn encode<T: Serialize>(answer: &std::result::Result<T, Failure>) -> Option<Vec<u8>> {
    postcard::to_stdvec(answer).ok()
}

/// `understand` runs in the loader.
fn start<T: Serialize>(
    user_namespace: bool,
    documents: &[BorrowedFd<'_>],
    understand: impl FnOnce(&Limits) -> Result<T>,
) -> Result<Loader> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).named("pipe2", || "O_CLOEXEC".into()).at(Step::Load);
    let ((begin_read, begin), (answer, answer_write)) = (pipe()?, pipe()?);
    let mut keep = documents.to_vec();
    keep.extend([begin_read.as_fd(), answer_write.as_fd()]);
    let copy = sandbox::fork(&keep, || {
        if sandbox::give_up_everything(user_namespace).is_err() {
            return NO_SANDBOX;
        }
        // End of file: nobody wants it any more.
        if rustix::io::retry_on_intr(|| rustix::io::read(&begin_read, &mut [0])) != Ok(1) {
            return NO_WORD;
        }
        let understood = understand(&Limits::default()).map_err(|e| Failure::from(&e));
        let said = encode(&understood).is_some_and(|bytes| write_all(&answer_write, &bytes).is_ok());
        if said { 0 } else { NO_ANSWER }
    });
    Ok(Loader { copy: copy.at(Step::Load)?, begin, answer })
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Looks whether an image is a container or a tree, for whoever has to prepare for it; and which image it was, by content:
/// the one that is restored then must be the same.
///
/// # Errors
/// A damaged image.
pub fn glance(image: &Path) -> Result<(Glance, Digest)> {
    let directory = open_directory(image)?;
    let documents = Documents::open(directory.as_fd()).at(Step::Load)?;
    let look = |limits: &Limits| {
        let (version, manifest) = documents.table(limits).at(Step::Load)?;
        let seal = manifest.seal(version).at(Step::Load)?;
        if manifest.kind == Kind::Container {
            // Its records are read once, later, in the container.
            return Ok((Glance::Container, seal));
        }
        let snapshot: Snapshot = documents.records(version, &manifest, limits).at(Step::Load)?;
        Ok((Glance::at(manifest.kind, &snapshot), seal))
    };
    start(true, &documents.descriptors(), look)?.ask()
}

/// The table of contents of an image.
///
/// # Errors
/// A damaged image.
pub fn table(image: &Path) -> Result<Manifest> {
    let directory = open_directory(image)?;
    let table: Table = Documents::open_table(directory.as_fd()).at(Step::Load)?;
    let loader = start(true, &table.descriptors(), |limits| Ok(table.read(limits).at(Step::Load)?.1))?;
    let manifest: Manifest = loader.ask()?;
    Ok(manifest)
}

/// An image that is being read by somebody without rights.
#[derive(Debug)]
pub struct Look {
    directory: OwnedFd,
    loader: Loader,
}

impl Look {
    /// Begins, with all the rights that the caller has: the loader can give up only what it is given.
    ///
    /// # Errors
    /// A missing document; what the kernel says.
    pub fn begin(image: &Path) -> Result<Look> {
        let directory = open_directory(image)?;
        let documents = Documents::open(directory.as_fd()).at(Step::Load)?;
        let loader =
            start(true, &documents.descriptors(), |limits| Loaded::read(&documents, limits, &Trust::default()))?;
        Ok(Look { directory, loader })
    }

    /// What was understood. The caller has given up its own rights in between.
    ///
    /// # Errors
    /// A damaged image.
    pub fn end(self) -> Result<(Reader, Snapshot)> {
        self.loader.load()?.open(self.directory)
    }
}

/// Opens the directory of an image. A missing image is a damaged one (exit code 4), not a failed call.
///
/// # Errors
/// What open says.
pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => {
            Err(Error::new(Step::Load, Cause::corrupt(format!("there is no image at {}", path.display()))))
        }
        open => open.named("open", || path.display().to_string()).at(Step::Load),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_was_sent_and_nothing_else() {
        let sent: std::result::Result<Glance, Failure> = Ok(Glance::Tree { own_network: true });
        let bytes = encode(&sent).expect("encode");
        assert_eq!(decode::<Glance>(&bytes).expect("decode"), Glance::Tree { own_network: true });
        for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat(), &[], &[9; 9]] {
            assert_eq!(decode::<Glance>(wrong).expect_err("nonsense").exit_code(), 4, "{wrong:?}");
        }
        let failure = Failure::from(&Error::new(Step::Load, Cause::corrupt("so")));
        let bytes = encode::<Glance>(&Err(failure)).expect("encode");
        assert_eq!(decode::<Glance>(&bytes).expect_err("failure").to_string(), "load: the image is damaged: so");
    }

    #[test]
    fn claims_of_a_loader_do_not_allocate() {
        // A list of 2^62 bytes, of which two are there.
        let claim = [&[0][..], &[0xff; 8], &[0x3f], &[1, 2]].concat();
        assert!(decode::<Vec<u8>>(&claim).is_err());
        assert!(decode::<Vec<(String, String)>>(&claim).is_err());
    }
}
