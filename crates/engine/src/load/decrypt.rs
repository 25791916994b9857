//! What is in the files of an encrypted image, in files without a name.
//!
//! It is done before there is a keeper, by a process that can do nothing else (like the loader, docs/adr/0003-loader.md). That
//! process alone reads the secret keys, from descriptors: they are never in the memory of the front, of the keeper, whose memory
//! the container's first task begins with, or of the loader, which parses what is inside.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use yendor_image::crypt::{self, Identities};
use yendor_image::{FileEntry, Manifest, RECORDS_FILE, Reader};
use yendor_kinds::{Cause, Named};
use yendor_sys::SysError;

use super::{Front, memory, start};
use crate::error::{At, Error, Result, Step};

/// The longest identity file.
const MOST_BYTES: u64 = 64 << 10;

/// A file with secret keys, open and not read.
#[derive(Debug)]
pub struct IdentityFile {
    path: PathBuf,
    file: File,
}

impl IdentityFile {
    /// Opens it, with the caller's rights; nothing is read.
    ///
    /// # Errors
    /// What open says.
    pub fn open(path: &Path) -> io::Result<IdentityFile> {
        Ok(IdentityFile { path: path.to_owned(), file: File::open(path)? })
    }
}

/// What is in the files of an image that are encrypted or compressed. They have no name, take no disk, and cannot be changed any more.
#[derive(Debug)]
pub struct Plain {
    /// In the manifest's order.
    files: Vec<File>,
    /// Which of them are the records, if these were encrypted.
    records: Option<usize>,
}

impl Plain {
    /// From the descriptors of another one.
    ///
    /// # Errors
    /// The records are not among them.
    pub fn received(files: Vec<OwnedFd>, records: Option<usize>) -> std::result::Result<Plain, Cause> {
        if records.is_none_or(|records| records < files.len()) {
            return Ok(Plain { files: files.into_iter().map(File::from).collect(), records });
        }
        Err(SysError::new("recvmsg", "decrypted files are missing", rustix::io::Errno::BADMSG).into())
    }

    pub(super) fn made(files: Vec<File>, records: Option<usize>) -> Plain {
        Plain { files, records }
    }

    /// The same files once more.
    ///
    /// # Errors
    /// A limit of descriptors.
    pub fn again(&self) -> io::Result<Plain> {
        let files = self.files.iter().map(File::try_clone).collect::<io::Result<_>>()?;
        Ok(Plain { files, records: self.records })
    }

    /// Their descriptors, in order.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.files.iter().map(AsFd::as_fd).collect()
    }

    /// Which of them are the records; none: these lie on the disk as they are.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        self.records
    }

    /// The records, for a loader.
    pub(super) fn records(&self) -> std::result::Result<Option<File>, SysError> {
        let Some(records) = self.records else { return Ok(None) };
        let records = self.files.get(records).ok_or(rustix::io::Errno::BADF).named("dup", || "records".into())?;
        records.try_clone().map(Some).map_err(|e| SysError::io("dup", "records", &e))
    }

    /// All of them, for a reader.
    pub(super) fn into_files(self) -> Vec<File> {
        self.files
    }
}

/// Decrypts the files of an image whose signature, if one is asked for, is right already. Each is compared with its digest
/// first; the records come first of all, so that wrong keys are known for what they are at once. That there is memory is asked for all
/// that comes, also for what [`super::decode`] makes of it.
///
/// # Errors
/// No identity, or none that opens it (exit code 5); an identity file that is none (2); a damaged image (4).
pub(super) fn decrypt(reader: &Reader, identities: &[IdentityFile]) -> Result<Plain> {
    let manifest = reader.manifest();
    if identities.is_empty() {
        return Err(closed(manifest));
    }
    // What is compressed in it is decoded next, while this is still there.
    let decoded = |entry: &FileEntry| entry.compressed.map_or(0, |compressed| compressed.content);
    let bytes = manifest.files.iter().flat_map(|entry| [entry.decrypted_bytes(), decoded(entry)]);
    memory::enough("encrypted", bytes.fold(0, u64::saturating_add))?;
    let recipients = recipients(manifest);
    let _limit = Raised::raise();
    let mut order: Vec<usize> = (0..manifest.files.len()).collect();
    order.sort_by_key(|at| manifest.files.get(*at).is_none_or(|entry| entry.name != RECORDS_FILE));
    let records = order.first().copied().unwrap_or_default();
    let mut stored = Vec::new();
    let mut plain = Vec::new();
    for entry in &manifest.files {
        stored.push(reader.open_stored(entry).at(Step::Load)?);
        plain.push(nameless().at(Step::Load)?);
    }
    let (turn_read, turn) = pipe_with(PipeFlags::CLOEXEC).named("pipe2", || "O_CLOEXEC".into()).at(Step::Load)?;
    let mut keep: Vec<BorrowedFd<'_>> = identities.iter().map(|identity| identity.file.as_fd()).collect();
    keep.extend(stored.iter().chain(&plain).map(AsFd::as_fd));
    keep.push(turn_read.as_fd());
    let work = Work { manifest, order: &order, stored: &stored, plain: &plain, recipients: &recipients };
    let decryptor = start(true, &keep, |_| work.all(identities, &turn_read))?;
    drop(turn_read);
    decryptor.begin()?;
    for entry in order.iter().filter_map(|at| manifest.files.get(*at)) {
        reader.verify(&entry.name).at(Step::Load)?;
        if rustix::io::retry_on_intr(|| rustix::io::write(&turn, &[1])).is_err() {
            // It has given up, and says why.
            break;
        }
    }
    drop(turn);
    decryptor.answer::<()>(Front::OWN)?;
    plain.iter().try_for_each(seal).at(Step::Load)?;
    Ok(Plain { files: plain, records: Some(records) })
}

/// That an image cannot be read without a key.
pub(super) fn closed(manifest: &Manifest) -> Error {
    let what = format!("a secret key, because it is encrypted, as it says for {}", recipients(manifest));
    Error::new(Step::Load, Cause::Hole { what, option: "--identity FILE".into() })
}

fn recipients(manifest: &Manifest) -> String {
    manifest.encryption.iter().flat_map(|encryption| &encryption.recipients).cloned().collect::<Vec<_>>().join(", ")
}

pub(super) fn nameless() -> std::result::Result<File, SysError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    rustix::fs::memfd_create("yendor-image", flags).map(File::from).named("memfd_create", || "yendor-image".into())
}

/// Nobody changes it any more. Twice is as good as once.
pub(super) fn seal(file: &File) -> std::result::Result<(), SysError> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    match rustix::fs::fcntl_get_seals(file) {
        Ok(there) if there.contains(seals) => Ok(()),
        _ => rustix::fs::fcntl_add_seals(file, seals).named("fcntl", || "F_ADD_SEALS".into()),
    }
}

/// What the decryptor has.
struct Work<'a> {
    manifest: &'a Manifest,
    order: &'a [usize],
    stored: &'a [File],
    plain: &'a [File],
    recipients: &'a str,
}

impl Work<'_> {
    /// Runs in the decryptor: each file when it is told that its digest is right.
    fn all(&self, files: &[IdentityFile], turn: &OwnedFd) -> Result<()> {
        let identities = read(files)?;
        for at in self.order {
            if rustix::io::retry_on_intr(|| rustix::io::read(turn, &mut [0])) != Ok(1) {
                // Whoever waited for it has found the image damaged, or is gone.
                return Err(Error::new(Step::Load, Cause::corrupt("not all of its files are right")));
            }
            let parts = (self.manifest.files.get(*at), self.stored.get(*at), self.plain.get(*at));
            let (Some(entry), Some(stored), Some(mut plain)) = parts else { continue };
            crypt::decrypt(entry, stored, &identities, &mut plain).map_err(|e| self.explain(e, files))?;
        }
        Ok(())
    }

    fn explain(&self, error: yendor_image::Error, files: &[IdentityFile]) -> Error {
        let yendor_image::Error::NotForUs { .. } = error else { return Error::new(Step::Load, error) };
        let names: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
        let what = format!("the image is encrypted, and no key in {} opens it", names.join(", "));
        let hint = format!("give --identity a file with the secret key of one of: {}", self.recipients);
        Error::new(Step::Load, Cause::Denied { what, hint })
    }
}

/// Reads the secret keys. Only here.
fn read(files: &[IdentityFile]) -> Result<Identities> {
    let mut identities = Identities::default();
    for IdentityFile { path, file } in files {
        let shown = path.display().to_string();
        let mut text = Vec::new();
        let got = file.take(MOST_BYTES + 1).read_to_end(&mut text);
        got.map_err(|e| SysError::io("read", shown.clone(), &e)).at(Step::Load)?;
        let long = u64::try_from(text.len()).is_ok_and(|bytes| bytes > MOST_BYTES);
        let added = if long { Err("too long for an identity file") } else { identities.add(&text) };
        added.map_err(|why| {
            let message = format!("--identity {shown}: {why}");
            Error::new(Step::Load, Cause::Reported { message, code: 2 })
        })?;
    }
    Ok(identities)
}

/// The soft limit of descriptors as high as it goes, until this is dropped: an image may have many files.
#[derive(Debug)]
pub(crate) struct Raised(Option<u64>);

impl Raised {
    pub(crate) fn raise() -> Raised {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let now = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
        // Where it is refused, an image with more files than the limit fails by name.
        Raised(if raised.is_ok() { now.current } else { None })
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        if let Some(current) = self.0 {
            let maximum = getrlimit(Resource::Nofile).maximum;
            // Lower than it is: nobody refuses that. Descriptors above it stay open.
            let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::SystemTime;
    use yendor_image::crypt::Recipients;
    use yendor_image::{Compression, Limits, Writer};

    #[test]
    fn memory_is_asked_for_what_is_decoded_too() {
        const NOBODY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        let place = std::env::temp_dir().join(format!("yendor-decrypt-{}", std::process::id()));
        let mut writer = Writer::create(&place).expect("create");
        writer.encrypt_to(Recipients::parse(&[NOBODY.into()]).expect("a recipient"));
        writer.compress(Compression::Zstd(1));
        let mut file = writer.file("pages-0").expect("file");
        let mut random = vec![0; 24 << 20];
        File::open("/dev/urandom").and_then(|mut urandom| urandom.read_exact(&mut random)).expect("random bytes");
        file.write_all(&random).expect("write");
        file.finish().expect("finish");
        writer.records(&()).expect("records");
        let manifest = writer.commit(SystemTime::now()).expect("commit");
        let said = |content: Option<u64>| {
            let mut manifest = manifest.clone();
            let claimed = manifest.files.iter_mut().find_map(|entry| entry.compressed.as_mut()).expect("compressed");
            claimed.content = content.unwrap_or(claimed.content);
            let directory = rustix::fs::open(&place, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
            let version = Reader::open(&*place).expect("open").version();
            let reader = Reader::assemble(directory.expect("open"), version, manifest, Limits::default());
            let identity = IdentityFile::open(Path::new("/dev/null")).expect("an empty file");
            decrypt(&reader.expect("a manifest"), &[identity]).expect_err("nobody has the key")
        };
        // All the memory that there is: twice 24 MiB are to be had.
        let all = memory::available().expect("some memory") / 16 * 15;
        let (honest, much) = (said(None), said(Some(all)));
        std::fs::remove_dir_all(&place).expect("our own");
        assert!(!honest.to_string().contains("bytes of memory"), "{honest}");
        assert!(much.exit_code() == 5 && much.to_string().contains("bytes of memory"), "{much}");
    }
}
