//! Encryption of an image's files: each is a file of the age format (<https://age-encryption.org/v1>), for X25519 keys.
//!
//! It keeps a secret; it does not say who made an image: whoever knows a recipient can encrypt to it. That is what
//! signatures are for.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};

use age::DecryptError;
use age::stream::StreamWriter;
use age::x25519;

use crate::manifest::stored_name;
use crate::reader::HASH_BYTES;
use crate::{Digest, Error, FileEntry, Result};

/// How many recipients an image may have.
pub const MOST_RECIPIENTS: usize = 64;

/// The longest header of an encrypted file: some times what that many recipients take.
const MOST_HEADER_BYTES: u64 = 64 << 10;

/// Whether a text has the form of a recipient's public key.
pub fn is_recipient(text: &str) -> bool {
    const LETTERS: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    let key = text.strip_prefix("age1");
    key.is_some_and(|key| key.len() == 58 && key.chars().all(|letter| LETTERS.contains(letter)))
}

/// Who shall be able to open an image.
#[derive(Clone, Debug)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// From public keys as age writes them: `age1...`; one that is given twice counts once.
    ///
    /// # Errors
    /// Which is none, in words; what could be a secret key is not quoted.
    pub fn parse(texts: &[String]) -> std::result::Result<Recipients, String> {
        let mut keys: Vec<x25519::Recipient> = Vec::new();
        for text in texts {
            let text = text.trim();
            if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
                return Err("this is a secret key, which opens images: give its public half, age1...".into());
            }
            let key = text.parse().ok().filter(|_| is_recipient(text));
            let key = key.ok_or_else(|| format!("{:?} is no public key of age (age1...)", Short(text)))?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        if (1..=MOST_RECIPIENTS).contains(&keys.len()) {
            Ok(Recipients(keys))
        } else {
            Err(format!("an image has 1 to {MOST_RECIPIENTS} recipients"))
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Begins an encrypted file.
    pub(crate) fn begin<W: Write>(&self, output: W) -> io::Result<StreamWriter<W>> {
        let recipients = self.0.iter().map(|key| key as &dyn age::Recipient);
        // With these recipients nothing is left that could be refused.
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|_| io::Error::other("no recipients"))?;
        encryptor.wrap_output(output)
    }
}

/// The beginning of a text that somebody mistook for a key.
struct Short<'t>(&'t str);

impl fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.chars().take(80).collect::<String>())
    }
}

/// Secret keys. They never print themselves.
#[derive(Default)]
pub struct Identities(Vec<x25519::Identity>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identities")
    }
}

impl Identities {
    /// Adds those of an identity file: a line for each, `AGE-SECRET-KEY-1...`; empty lines and such that begin with `#` are
    /// comments.
    ///
    /// # Errors
    /// Why not; nothing of a key is quoted.
    pub fn add(&mut self, text: &[u8]) -> std::result::Result<(), &'static str> {
        if text.starts_with(b"age-encryption.org/") || text.starts_with(b"-----BEGIN AGE") {
            return Err("the identity file is itself encrypted, and nobody can be asked for its passphrase here");
        }
        if text.starts_with(b"-----BEGIN") {
            return Err("identities are keys of age (age-keygen makes one), not of ssh");
        }
        let text = std::str::from_utf8(text).map_err(|_| "not an identity file of age")?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = self.0.len();
        for line in lines {
            self.0.push(line.parse().map_err(|_| "a line of it is no secret key of age (AGE-SECRET-KEY-1...)")?);
        }
        if self.0.len() > before { Ok(()) } else { Err("it has no secret key (AGE-SECRET-KEY-1...)") }
    }
}

/// Decrypts a file, which may be compressed still: what is in `file`, from its beginning, to `output`. Nothing but `pread` is called on the one, and `write`
/// on the other. At most as much is read and written as `entry` says, in pieces; and it is right only if this succeeds.
///
/// # Errors
/// [`Error::NotForUs`] when no identity opens it; what is wrong with it; what the system says.
pub fn decrypt(entry: &FileEntry, file: &File, identities: &Identities, output: &mut impl Write) -> Result<()> {
    let codec = entry.compressed.map(|compressed| compressed.codec);
    let name = &stored_name(&entry.name, codec, true);
    let source = Source::new(file);
    let damaged = || match source.refused.take() {
        Some(error) => Error::io(name, "read", error),
        None => Error::format(name, source.taken.get(), "cannot be decrypted: damaged, or not of the age format"),
    };
    source.limit.set(entry.bytes.min(MOST_HEADER_BYTES));
    let decryptor = age::Decryptor::new_buffered(BufReader::with_capacity(HASH_BYTES, &source));
    source.limit.set(entry.bytes);
    let keys = identities.0.iter().map(|key| key as &dyn age::Identity);
    let mut plain = match decryptor.and_then(|decryptor| decryptor.decrypt(keys)) {
        Ok(plain) => BufReader::with_capacity(HASH_BYTES, plain),
        Err(DecryptError::NoMatchingKeys) => return Err(Error::NotForUs { file: name.clone() }),
        Err(_) => return Err(damaged()),
    };
    let content = entry.decrypted_bytes();
    let mut written: u64 = 0;
    loop {
        let chunk = match plain.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            chunk => chunk.map_err(|_| damaged())?,
        };
        if chunk.is_empty() {
            break;
        }
        let length = chunk.len();
        written = written.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if written > content {
            return Err(Error::format(name, content, "more is in it than the manifest says"));
        }
        output.write_all(chunk).map_err(|source| Error::io(&entry.name, "write", source))?;
        plain.consume(length);
    }
    if written < content {
        return Err(Error::truncated(name, written));
    }
    // The same bytes that were decrypted, whatever somebody else has done to the file meanwhile.
    if source.taken.get() != entry.bytes || Digest::from(source.hasher.borrow().finalize()) != entry.blake3 {
        return Err(Error::Digest { file: name.clone(), bytes: entry.bytes });
    }
    Ok(())
}

/// A file that is read from its beginning up to a limit, and hashed on the way.
struct Source<'f> {
    file: &'f File,
    limit: Cell<u64>,
    taken: Cell<u64>,
    hasher: RefCell<blake3::Hasher>,
    /// What the system said, which decoders do not pass on as it was.
    refused: Cell<Option<io::Error>>,
}

impl<'f> Source<'f> {
    fn new(file: &'f File) -> Source<'f> {
        Source {
            file,
            limit: Cell::new(0),
            taken: Cell::new(0),
            hasher: RefCell::new(blake3::Hasher::new()),
            refused: Cell::new(None),
        }
    }
}

impl Read for &Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let taken = self.taken.get();
        let left = usize::try_from(self.limit.get().saturating_sub(taken)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        match rustix::io::pread(self.file, &mut *buffer, taken) {
            Ok(length) => {
                self.hasher.borrow_mut().update(buffer.get(..length).unwrap_or_default());
                self.taken.set(taken.saturating_add(u64::try_from(length).unwrap_or(u64::MAX)));
                Ok(length)
            }
            Err(errno) => {
                if errno != rustix::io::Errno::INTR {
                    self.refused.set(Some(errno.into()));
                }
                Err(errno.into())
            }
        }
    }
}

/// Where a file of an image is written to: as it is, or encrypted on the way.
pub(crate) enum Output<W: Write> {
    Plain(W),
    Encrypted(Box<StreamWriter<W>>),
}

impl<W: Write> Output<W> {
    /// Ends the file and gives back what took it.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Output::Plain(output) => Ok(output),
            Output::Encrypted(stream) => stream.finish(),
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Plain(output) => output.write(bytes),
            Output::Encrypted(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Plain(output) => output.flush(),
            Output::Encrypted(stream) => stream.flush(),
        }
    }
}

impl<W: Write> fmt::Debug for Output<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Output::Plain(_) => "Plain",
            Output::Encrypted(_) => "Encrypted",
        })
    }
}
