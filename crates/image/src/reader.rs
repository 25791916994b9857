//! Reading an image that nobody has to trust, from one directory descriptor.

use crate::upgrade::{self, Version};
use crate::{
    Digest, Error, FORMAT_FILE, FileEntry, Limits, MANIFEST_FILE, Manifest, RECORDS_FILE, Result, SIGNATURE_FILE,
};
use crate::{PageRun, cbor, pages_name};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where an image is: a descriptor of its directory, or a path that is opened once.
#[derive(Debug)]
pub enum Directory {
    /// An open directory; `O_PATH` is enough.
    Fd(OwnedFd),
    /// A path.
    Path(PathBuf),
}

impl From<OwnedFd> for Directory {
    fn from(fd: OwnedFd) -> Self {
        Directory::Fd(fd)
    }
}

impl From<&Path> for Directory {
    fn from(path: &Path) -> Self {
        Directory::Path(path.to_owned())
    }
}

impl From<&PathBuf> for Directory {
    fn from(path: &PathBuf) -> Self {
        Directory::Path(path.clone())
    }
}

/// An image whose manifest is right and whose files are all there with the right sizes.
///
/// After [`Reader::open`] no path is used any more, so the process may change its root. Contents are checked when they are
/// read: [`Reader::records`] does it itself, other files by [`Reader::verify`].
#[derive(Debug)]
pub struct Reader {
    dir: OwnedFd,
    version: Version,
    manifest: Manifest,
    limits: Limits,
}

impl Reader {
    /// Opens an image with the default [`Limits`].
    pub fn open(dir: impl Into<Directory>) -> Result<Reader> {
        Reader::open_with(dir, Limits::default())
    }

    /// Opens an image.
    pub fn open_with(dir: impl Into<Directory>, limits: Limits) -> Result<Reader> {
        let dir = match dir.into() {
            Directory::Fd(fd) => fd,
            Directory::Path(path) => open_directory(&path)?,
        };
        let (version, manifest) = Documents::open_table(dir.as_fd())?.read(&limits)?;
        Reader::assemble(dir, version, manifest, limits)
    }

    /// An image whose table of contents somebody else has read. Every name and number in it is checked again.
    pub fn assemble(dir: OwnedFd, version: Version, manifest: Manifest, limits: Limits) -> Result<Reader> {
        manifest.check(&limits)?;
        let reader = Reader { dir, version, manifest, limits };
        for entry in &reader.manifest.files {
            reader.open_entry(entry)?;
        }
        Ok(reader)
    }

    /// The table of contents.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The version that the image was written in.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The digest that stands for the whole image.
    pub fn seal(&self) -> Result<Digest> {
        self.manifest.seal(self.version)
    }

    /// The image's directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Whether the image has a file `name`.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.file(name).is_some()
    }

    /// Reads the records: size, digest, shape, types, spelling, in this order, of the same bytes in memory.
    pub fn records<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let (file, bytes) = open_regular(self.dir.as_fd(), RECORDS_FILE)?;
        decode_records(&file, bytes, self.version, &self.manifest, &self.limits)
    }

    /// Opens a file for reading; also says its size in bytes, which is the manifest's. The content is not checked: see
    /// [`Reader::verify`].
    pub fn open_file(&self, name: &str) -> Result<(File, u64)> {
        let entry = self.entry(name)?;
        Ok((self.open_entry(entry)?, entry.bytes))
    }

    /// Compares a file's content with its digest.
    pub fn verify(&self, name: &str) -> Result<()> {
        let entry = self.entry(name)?;
        let mut file = self.open_entry(entry)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_BYTES];
        let mut bytes: u64 = 0;
        // A file that grows while it is read must not keep us here for ever.
        while bytes <= entry.bytes {
            let length = match file.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                length => length.map_err(|source| Error::io(name, "read", source))?,
            };
            let Some(chunk) = buffer.get(..length).filter(|chunk| !chunk.is_empty()) else {
                break;
            };
            hasher.update(chunk);
            bytes = bytes.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        check_size(entry, bytes)?;
        if Digest::from(hasher.finalize()) != entry.blake3 {
            return Err(Error::Digest { file: entry.name.clone(), bytes: entry.bytes });
        }
        Ok(())
    }

    /// Compares every file's content with its digest.
    pub fn verify_all(&self) -> Result<()> {
        self.manifest.files.iter().try_for_each(|entry| self.verify(&entry.name))
    }

    /// Checks a run of pages: aligned, without overflow, within a pages file of this image.
    pub fn check_run(&self, run: &PageRun) -> Result<()> {
        run.check(self.entry(&pages_name(run.file))?.bytes)
    }

    fn entry(&self, name: &str) -> Result<&FileEntry> {
        self.manifest.file(name).ok_or_else(|| Error::missing(name))
    }

    fn open_entry(&self, entry: &FileEntry) -> Result<File> {
        let (file, bytes) = open_regular(self.dir.as_fd(), &entry.name)?;
        check_size(entry, bytes)?;
        Ok(file)
    }
}

/// `format` and `manifest.json`, open and not yet read.
#[derive(Debug)]
pub struct Table {
    format: (File, u64),
    manifest: (File, u64),
}

/// The documents of an image, open and not yet read: who reads them needs no directory, and no right to open anything.
#[derive(Debug)]
pub struct Documents {
    table: Table,
    records: (File, u64),
    signature: Option<(File, u64)>,
}

/// A table of contents, the bytes that it was read from, and a signature that may be one of them.
#[derive(Debug)]
pub struct SignedTable {
    /// The version.
    pub version: Version,
    /// The table of contents.
    pub manifest: Manifest,
    /// The bytes of `manifest.json`.
    pub document: Vec<u8>,
    /// The bytes of `manifest.json.minisig`, if it is there.
    pub signature: Option<Vec<u8>>,
}

impl Table {
    /// The descriptors.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.format.0.as_fd(), self.manifest.0.as_fd()]
    }

    /// Reads them: spelling and version, then size, seal, names, order, spelling.
    pub fn read(&self, limits: &Limits) -> Result<(Version, Manifest)> {
        self.read_whole(limits).map(|(version, manifest, _)| (version, manifest))
    }

    /// The same, and the bytes that the manifest was read from.
    fn read_whole(&self, limits: &Limits) -> Result<(Version, Manifest, Vec<u8>)> {
        let (file, bytes) = &self.format;
        let version = Version::parse(&read_small(file, *bytes, FORMAT_FILE, upgrade::LINE_BYTES)?)?;
        let (file, bytes) = &self.manifest;
        let document = read_small(file, *bytes, MANIFEST_FILE, limits.manifest_bytes)?;
        Ok((version, Manifest::decode(&document, version, limits)?, document))
    }
}

impl Documents {
    /// Opens all three by their names.
    pub fn open(dir: BorrowedFd<'_>) -> Result<Documents> {
        let signature = match open_regular(dir, SIGNATURE_FILE) {
            Err(Error::Missing { .. }) => None,
            signature => Some(signature?),
        };
        Ok(Documents { table: Documents::open_table(dir)?, records: open_regular(dir, RECORDS_FILE)?, signature })
    }

    /// Opens what says what else there is.
    pub fn open_table(dir: BorrowedFd<'_>) -> Result<Table> {
        Ok(Table { format: open_regular(dir, FORMAT_FILE)?, manifest: open_regular(dir, MANIFEST_FILE)? })
    }

    /// The version and the table of contents.
    pub fn table(&self, limits: &Limits) -> Result<(Version, Manifest)> {
        self.table.read(limits)
    }

    /// The same, with what a signature is about.
    pub fn signed_table(&self, limits: &Limits) -> Result<SignedTable> {
        const MOST_BYTES: u64 = 4096;
        let (version, manifest, document) = self.table.read_whole(limits)?;
        let read = |(file, bytes): &(File, u64)| read_small(file, *bytes, SIGNATURE_FILE, MOST_BYTES);
        let signature = self.signature.as_ref().map(read).transpose()?;
        Ok(SignedTable { version, manifest, document, signature })
    }

    /// The records: size, digest, shape, types, spelling, in this order, of the same bytes in memory.
    pub fn records<T: Serialize + DeserializeOwned>(
        &self,
        version: Version,
        manifest: &Manifest,
        limits: &Limits,
    ) -> Result<T> {
        decode_records(&self.records.0, self.records.1, version, manifest, limits)
    }

    /// The descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let [format, manifest] = self.table.descriptors();
        let signature = self.signature.as_ref().map(|(file, _)| file.as_fd());
        [format, manifest, self.records.0.as_fd()].into_iter().chain(signature).collect()
    }
}

fn decode_records<T: Serialize + DeserializeOwned>(
    file: &File,
    bytes: u64,
    version: Version,
    manifest: &Manifest,
    limits: &Limits,
) -> Result<T> {
    let entry = manifest.file(RECORDS_FILE).ok_or_else(|| Error::missing(RECORDS_FILE))?;
    let limit = limits.records_bytes;
    if entry.bytes > limit {
        return Err(Error::TooLarge { file: entry.name.clone(), bytes: entry.bytes, limit });
    }
    let document = read_small(file, bytes, RECORDS_FILE, limit)?;
    check_size(entry, u64::try_from(document.len()).unwrap_or(u64::MAX))?;
    if Digest::of(&document) != entry.blake3 {
        return Err(Error::Digest { file: entry.name.clone(), bytes: entry.bytes });
    }
    cbor::decode(&upgrade::records(version, &document)?, limits)
}

/// How much is read and hashed at a time: enough for the widest vectors, small enough for the cache.
pub(crate) const HASH_BYTES: usize = 256 << 10;

fn check_size(entry: &FileEntry, bytes: u64) -> Result<()> {
    if bytes < entry.bytes {
        return Err(Error::truncated(&entry.name, bytes));
    }
    if bytes > entry.bytes {
        return Err(Error::format(&entry.name, entry.bytes, "longer than the manifest says"));
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let shown = path.to_string_lossy();
        match errno {
            Errno::NOENT => Error::missing(&shown),
            Errno::NOTDIR => Error::format(&shown, 0, "not a directory"),
            _ => Error::io(&shown, "open", errno),
        }
    })
}

/// Opens a regular file and says its size. Anything else is refused before it is opened, because to open a device or
/// a FIFO can have effects; the flags are for whoever swaps it in between.
fn open_regular(dir: BorrowedFd<'_>, name: &str) -> Result<(File, u64)> {
    let wrong = || Error::format(name, 0, "not a regular file");
    let refused = |op| {
        move |errno| match errno {
            Errno::NOENT => Error::missing(name),
            Errno::NOTDIR => Error::format(name, 0, "not in a directory"),
            Errno::LOOP | Errno::NXIO => Error::format(name, 0, "not a regular file"),
            _ => Error::io(name, op, errno),
        }
    };
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(refused("stat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(refused("open"))?;
    let stat = fstat(&file).map_err(refused("stat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong());
    }
    let bytes = u64::try_from(stat.st_size).map_err(|_| wrong())?;
    Ok((File::from(file), bytes))
}

/// Reads a whole file of at most `limit` bytes from its beginning; memory is taken for the bytes that are there, never for a
/// claim. `bytes` is what its inode says. Nothing but `pread` is called.
fn read_small(file: &File, bytes: u64, name: &str, limit: u64) -> Result<Vec<u8>> {
    let too_large = |bytes| Error::TooLarge { file: name.to_owned(), bytes, limit };
    if bytes > limit {
        return Err(too_large(bytes));
    }
    let mut content = Vec::new();
    let mut chunk = vec![0; usize::try_from(bytes.saturating_add(1)).unwrap_or(usize::MAX).min(HASH_BYTES)];
    loop {
        let offset = u64::try_from(content.len()).unwrap_or(u64::MAX);
        if offset > limit {
            return Err(too_large(limit.saturating_add(1)));
        }
        match rustix::io::pread(file, &mut *chunk, offset) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io(name, "read", errno)),
            Ok(0) => return Ok(content),
            Ok(length) => content.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        }
    }
}
