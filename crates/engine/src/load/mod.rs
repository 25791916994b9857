//! load: every byte of an image is parsed by a process that can do nothing else.
//!
//! The loader is a copy of the keeper (or of the front, for whoever only looks): it has the image's documents and two
//! pipes, no other descriptor, no capability, and no system call but to read, write and manage its own memory. What it has
//! understood it sends back in another encoding than the image's (postcard: no lengths that are not there, no types that
//! are not expected), so that the bytes of an image are never parsed twice by the same decoder. The answer may come from a
//! loader that an image has taken over: it is bounded, and everything in it is content, never authority. See
//! docs/adr/0003-loader.md.

pub mod check;
mod decode;
mod decrypt;
mod front;
mod hashing;
mod memory;
mod parent;

pub(crate) use decrypt::Raised;
pub use decrypt::{IdentityFile, Plain};
pub use front::Front;
pub use hashing::Hashing;
pub use parent::{known_parent, parent};

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use yendor_image::upgrade::Version;
use yendor_image::{Digest, Documents, Kind, Limits, Manifest, Reader, SignedTable};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_sys::sandbox::{self, Copy};
use yendor_sys::{Errno, SysError};

use crate::error::{At, Error, Result, Step};
use crate::sign::{self, Trust};
use crate::who::Surroundings;
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
    /// By which key it claims to be signed.
    signed_by: Option<String>,
}

impl Loaded {
    fn read(documents: &Documents, limits: &Limits, trust: &Trust) -> Result<Loaded> {
        let table = documents.table().signed(limits).at(Step::Load)?;
        let version = table.version;
        Loaded::behind(Table::trusted(table, trust)?, version, documents, limits)
    }

    fn behind(table: Table, version: Version, documents: &Documents, limits: &Limits) -> Result<Loaded> {
        let Table { version: line, manifest, signed_by } = table;
        let snapshot = documents.records(version, &manifest, limits).at(Step::Load)?;
        check::check(&snapshot, &manifest)?;
        Ok(Loaded { version: line, manifest, snapshot, signed_by })
    }

    /// The image behind the documents, whose files are all there, and the records. `plain`: what is in files that are encrypted or
    /// compressed.
    ///
    /// # Errors
    /// A file that is missing or has another size.
    pub fn open(self, directory: OwnedFd, plain: Option<Plain>) -> Result<(Reader, Snapshot)> {
        let version = Version::parse(&self.version).at(Step::Load)?;
        // Again: whoever said that it is right may have been made to.
        check::check(&self.snapshot, &self.manifest)?;
        let mut reader = Reader::assemble(directory, version, self.manifest, Limits::default()).at(Step::Load)?;
        if let Some(plain) = plain {
            reader.unwrapped(plain.into_files()).at(Step::Load)?;
        }
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
    pub fn start(directory: BorrowedFd<'_>, plain: Option<&Plain>, trust: &Trust) -> Result<Loader> {
        let documents = documents(directory, plain)?;
        start(false, &documents.descriptors(), |limits| Loaded::read(&documents, limits, trust))
    }

    /// Lets it read, as long as who wants that is there.
    ///
    /// # Errors
    /// A damaged image.
    pub fn load(self, front: Front<'_>) -> Result<Loaded> {
        self.begin()?;
        self.answer(front)
    }

    fn ask<T: DeserializeOwned>(self) -> Result<T> {
        self.begin()?;
        self.answer(Front::OWN)
    }

    fn begin(&self) -> Result<()> {
        self.word()
    }

    /// The first word lets it begin, the second one end.
    fn word(&self) -> Result<()> {
        match rustix::io::write(&self.begin, &[1]) {
            // A loader that is gone: how it ended says more.
            Ok(_) | Err(Errno::PIPE) => Ok(()),
            Err(e) => Err(SysError::new("write", "to the loader", e)).at(Step::Load),
        }
    }

    fn answer<T: DeserializeOwned>(self, front: Front<'_>) -> Result<T> {
        self.word()?;
        let Loader { copy, begin, answer } = self;
        drop(begin);
        // Dropped where that fails, and so killed.
        let bytes = front.read(answer.as_fd(), MOST_BYTES)?;
        if u64::try_from(bytes.len()).is_ok_and(|n| n > MOST_BYTES) {
            // Dropped, and so killed: it would write for ever.
            return Err(Error::new(Step::Load, Cause::corrupt("its records do not end")));
        }
        drop(answer);
        front.ended(copy)?;
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
        sandbox::end_without_memory();
        if sandbox::give_up_everything(user_namespace).is_err() {
            return NO_SANDBOX;
        }
        // End of file: nobody wants it any more.
        if rustix::io::retry_on_intr(|| rustix::io::read(&begin_read, &mut [0])) != Ok(1) {
            return NO_WORD;
        }
        let understood = understand(&Limits::default()).map_err(|e| Failure::from(&e));
        let said = encode(&understood).is_some_and(|bytes| write_all(&answer_write, &bytes).is_ok());
        // Its end is not to be heard of before somebody listens, who then says so.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&begin_read, &mut [0]));
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

/// The documents of an image, and its records in clear.
fn documents(directory: BorrowedFd<'_>, plain: Option<&Plain>) -> Result<Documents> {
    let records = plain.map(Plain::records).transpose().at(Step::Load)?.flatten();
    Documents::open(directory, records).at(Step::Load)
}

/// What was seen of an image before there is a container for it.
#[derive(Debug)]
pub struct Seen {
    /// What the container will have to be like.
    pub glance: Glance,
    /// Which image it was, by content: the one that is restored then must be the same.
    pub seal: Digest,
    /// What is in those of its files that are encrypted or compressed, if any are.
    pub plain: Option<Plain>,
}

#[derive(Serialize, Deserialize)]
enum First {
    Open(Glance, Digest),
    Wrapped(Box<Table>),
}

/// A table of contents that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The line of the file `format`.
    version: Vec<u8>,
    /// The table.
    pub manifest: Manifest,
    /// By which key the image claims to be signed; nobody has compared.
    pub signed_by: Option<String>,
}

/// Looks whether an image is a container or a tree, for whoever has to prepare for it, and decrypts and decodes it if it is encrypted
/// or compressed: after its signature was compared, if `trust` asks for one. Of other images the keeper's loader does that.
///
/// # Errors
/// A damaged image; one that is encrypted, and not to these identities.
pub fn glance(image: &Path, trust: &Trust, identities: &[IdentityFile]) -> Result<Seen> {
    let directory = open_directory(image)?;
    let documents = documents(directory.as_fd(), None)?;
    let look = |limits: &Limits| {
        let table = documents.table().signed(limits).at(Step::Load)?;
        if is_wrapped(&table.manifest) {
            return Ok(First::Wrapped(Box::new(Table::trusted(table, trust)?)));
        }
        glance_at(&documents, table.version, &table.manifest, limits)
    };
    let table = match start(true, &documents.descriptors(), look)?.ask()? {
        First::Open(glance, seal) => return Ok(Seen { glance, seal, plain: None }),
        First::Wrapped(table) => table,
    };
    let plain = table.unwrap(directory.as_fd(), identities)?;
    let documents = self::documents(directory.as_fd(), plain.as_ref())?;
    let look = |limits: &Limits| {
        let (version, manifest) = documents.table().read(limits).at(Step::Load)?;
        glance_at(&documents, version, &manifest, limits)
    };
    match start(true, &documents.descriptors(), look)?.ask()? {
        First::Open(glance, seal) if seal == table.seal()? => Ok(Seen { glance, seal, plain }),
        _ => Err(changed()),
    }
}

/// Whether some of its files are not what lies on the disk.
fn is_wrapped(manifest: &Manifest) -> bool {
    manifest.files.iter().any(|entry| manifest.is_wrapped(entry))
}

fn glance_at(documents: &Documents, version: Version, manifest: &Manifest, limits: &Limits) -> Result<First> {
    let seal = manifest.seal(version).at(Step::Load)?;
    if manifest.kind == Kind::Container {
        // Its records are read once, later, in the container.
        return Ok(First::Open(Glance::Container, seal));
    }
    let snapshot: Snapshot = documents.records(version, manifest, limits).at(Step::Load)?;
    Ok(First::Open(Glance::at(manifest.kind, &snapshot), seal))
}

impl Table {
    /// What a loader has read, if its signature is right.
    fn trusted(table: SignedTable, trust: &Trust) -> Result<Table> {
        let SignedTable { version, manifest, document, signature } = table;
        trust
            .check(&document, signature.as_deref())
            .at(Step::Load)
            .map_err(|e| crate::who::wants_signature(e, &trust.place))?;
        let signed_by = signature.as_deref().and_then(sign::key_id);
        Ok(Table { version: version.line().to_vec(), manifest, signed_by })
    }

    fn seal(&self) -> Result<Digest> {
        self.manifest.seal(Version::parse(&self.version).at(Step::Load)?).at(Step::Load)
    }

    /// What is in those of its files that are encrypted or compressed, if any are.
    fn unwrap(&self, directory: BorrowedFd<'_>, identities: &[IdentityFile]) -> Result<Option<Plain>> {
        unwrap(directory, (&self.version, &self.manifest), identities)
    }
}

fn unwrap(
    directory: BorrowedFd<'_>,
    (version, manifest): (&[u8], &Manifest),
    identities: &[IdentityFile],
) -> Result<Option<Plain>> {
    if !is_wrapped(manifest) {
        return Ok(None);
    }
    let version = Version::parse(version).at(Step::Load)?;
    let directory = directory.try_clone_to_owned().map_err(|e| SysError::io("dup", "", &e)).at(Step::Load)?;
    let reader = Reader::assemble(directory, version, manifest.clone(), Limits::default()).at(Step::Load)?;
    let encrypted = manifest.encryption.is_some();
    let plain = encrypted.then(|| decrypt::decrypt(&reader, identities)).transpose()?;
    decode::decode(&reader, plain)
}

/// The table of contents of an image.
///
/// # Errors
/// A damaged image.
pub fn table(image: &Path) -> Result<Table> {
    let directory = open_directory(image)?;
    let table = Documents::open_table(directory.as_fd()).at(Step::Load)?;
    let read = |limits: &Limits| Table::trusted(table.signed(limits).at(Step::Load)?, &Trust::default());
    start(true, &table.descriptors(), read)?.ask()
}

/// An image that is being read by somebody without rights.
#[derive(Debug)]
pub struct Look {
    directory: OwnedFd,
    loader: Loader,
}

/// An image that was read.
#[derive(Debug)]
pub enum Looked {
    /// All of it.
    Opened(Box<Opened>),
    /// What it shows to everybody: it is encrypted, and there was no identity.
    Closed(Box<Table>),
}

/// All of an image.
#[derive(Debug)]
pub struct Opened {
    /// Its files.
    pub reader: Reader,
    /// Its records.
    pub snapshot: Snapshot,
    /// By which key it claims to be signed; nobody has compared.
    pub signed_by: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Loaded(Box<Loaded>),
    Encrypted(Box<Table>),
}

impl Look {
    /// Begins, with all the rights that the caller has: the loader can give up only what it is given.
    ///
    /// # Errors
    /// A missing document; what the kernel says.
    pub fn begin(image: &Path) -> Result<Look> {
        let directory = open_directory(image)?;
        let loader = Look::loader(directory.as_fd(), None)?;
        Ok(Look { directory, loader })
    }

    fn loader(directory: BorrowedFd<'_>, plain: Option<&Plain>) -> Result<Loader> {
        let documents = documents(directory, plain)?;
        let decrypted = plain.is_some_and(|plain| plain.index().is_some());
        start(true, &documents.descriptors(), |limits| {
            let table = documents.table().signed(limits).at(Step::Load)?;
            let version = table.version;
            let table = Table::trusted(table, &Trust::default())?;
            if table.manifest.encryption.is_some() && !decrypted {
                return Ok(Answer::Encrypted(Box::new(table)));
            }
            Ok(Answer::Loaded(Box::new(Loaded::behind(table, version, &documents, limits)?)))
        })
    }

    /// What was understood. The caller has given up its own rights in between. `content`: whether more than the records will be
    /// read, so that compressed files are to be decoded.
    ///
    /// # Errors
    /// A damaged image; one that is encrypted, and not to these identities.
    pub fn end(self, identities: &[IdentityFile], content: bool) -> Result<Looked> {
        let (loaded, plain) = match self.loader.ask()? {
            Answer::Loaded(loaded) if content => {
                let plain = unwrap(self.directory.as_fd(), (&loaded.version, &loaded.manifest), identities)?;
                (loaded, plain)
            }
            Answer::Loaded(loaded) => (loaded, None),
            Answer::Encrypted(table) if identities.is_empty() => return Ok(Looked::Closed(table)),
            Answer::Encrypted(table) => {
                let plain = table.unwrap(self.directory.as_fd(), identities)?;
                match Look::loader(self.directory.as_fd(), plain.as_ref())?.ask()? {
                    Answer::Loaded(loaded) if loaded.manifest == table.manifest => (loaded, plain),
                    _ => return Err(changed()),
                }
            }
        };
        let signed_by = loaded.signed_by.clone();
        let (reader, snapshot) = loaded.open(self.directory, plain)?;
        Ok(Looked::Opened(Box::new(Opened { reader, snapshot, signed_by })))
    }
}

impl Looked {
    /// All of it.
    ///
    /// # Errors
    /// It is encrypted, and which option opens it.
    pub fn opened(self) -> Result<Opened> {
        match self {
            Looked::Opened(opened) => Ok(*opened),
            Looked::Closed(table) => Err(decrypt::closed(&table.manifest)),
        }
    }
}

fn changed() -> Error {
    Error::new(Step::Load, Cause::corrupt("it was changed while it was being read"))
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
        open => {
            let open = open.named("open", || path.display().to_string()).at(Step::Load);
            open.map_err(|e| Surroundings::look().name(e, None))
        }
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

    /// What ends a loader is the image's doing or it is not.
    #[test]
    fn how_a_loader_has_ended_says_who_is_to_blame() {
        let ended = |body: fn() -> u64| start(false, &[], move |_| Ok(body())).expect("start").ask::<u64>();
        assert_eq!(ended(|| 7).expect("an answer"), 7);
        let memory = ended(|| std::hint::black_box(Vec::<u8>::with_capacity(1 << 60)).len() as u64);
        let memory = memory.expect_err("no machine has that");
        assert!(memory.exit_code() == 1 && memory.to_string().contains("memory"), "{memory}");
        let panic = ended(|| std::hint::black_box(&[1_u64, 2][..])[std::hint::black_box(2)]);
        assert_eq!(panic.expect_err("it panics").exit_code(), 4);
        let call = ended(|| u64::from(std::fs::File::open("/").is_ok()));
        assert_eq!(call.expect_err("no call of a loader").exit_code(), 4);
        let aborted = ended(|| std::process::abort());
        assert_eq!(aborted.expect_err("it gives up").exit_code(), 4);
        let loader = start(false, &[], |_| Ok(0_u64)).expect("start");
        yendor_sys::process::send_signal(&loader.copy.pidfd().expect("a pidfd"), 9).expect("kill");
        let killed = loader.ask::<u64>().expect_err("somebody has killed it");
        assert!(killed.exit_code() == 1 && killed.to_string().contains("was killed"), "{killed}");
    }

    #[test]
    fn claims_of_a_loader_do_not_allocate() {
        // A list of 2^62 bytes, of which two are there.
        let claim = [&[0][..], &[0xff; 8], &[0x3f], &[1, 2]].concat();
        assert!(decode::<Vec<u8>>(&claim).is_err());
        assert!(decode::<Vec<(String, String)>>(&claim).is_err());
    }
}
