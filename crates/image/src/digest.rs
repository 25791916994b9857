//! BLAKE3 digests.

use crate::bytes::{from_hex, to_hex};
use crate::reader::HASH_BYTES;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// After so many bytes it is asked whether anybody wants them.
const ASKED: u64 = 64 << 20;

/// The 256-bit BLAKE3 of some bytes; as text 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of a file from its beginning, and its length in bytes. Of one that is longer than `most` no more is read
    /// than shows it: a file that grows while it is read would keep its reader for ever.
    pub fn of_file(file: &File, most: u64) -> io::Result<(u64, Digest)> {
        Digest::of_file_while(file, most, || true)
    }

    /// The same while somebody wants it; else `Interrupted`.
    pub(crate) fn of_file_while(file: &File, most: u64, wanted: impl Fn() -> bool) -> io::Result<(u64, Digest)> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_BYTES];
        let (mut bytes, mut ask): (u64, u64) = (0, 0);
        while bytes <= most {
            if bytes >= ask {
                ask = bytes.saturating_add(ASKED);
                if !wanted() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
            let length = match file.read_at(&mut buffer, bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length?,
            };
            let Some(chunk) = buffer.get(..length).filter(|chunk| !chunk.is_empty()) else { break };
            hasher.update(chunk);
            bytes = bytes.saturating_add(u64::try_from(length).map_err(io::Error::other)?);
        }
        Ok((bytes, hasher.finalize().into()))
    }

    /// The digest that `text` spells, in lower-case digits only.
    pub fn parse(text: &str) -> Option<Digest> {
        Some(Digest(from_hex(text)?.try_into().ok()?))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Digest(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).ok_or_else(|| serde::de::Error::custom("expected 64 lower-case hexadecimal digits"))
    }
}
