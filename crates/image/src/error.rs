//! What can be wrong with an image.

use std::io;

use serde::{Deserialize, Serialize};

use crate::FORMAT_FILE;
use crate::upgrade::PREFIX;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image cannot be read or written. `file` is a name inside the image, or a path where the image itself is meant.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation.
    #[error("{file}: {op}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The call: `open`, `read`, `write`, `fsync`, `rename`, ...
        op: &'static str,
        /// What the call said.
        source: io::Error,
    },
    /// A file that must exist does not.
    #[error("{file}: missing")]
    Missing {
        /// The file.
        file: String,
    },
    /// A file ends too early.
    #[error("{file}: truncated at byte {offset}")]
    Truncated {
        /// The file.
        file: String,
        /// Where it ends.
        offset: u64,
    },
    /// A file's content is not what was written.
    #[error("{file}: byte 0 to {bytes}: digest differs, content is damaged")]
    Digest {
        /// The file.
        file: String,
        /// How many bytes the digest is of; it does not tell where among them.
        bytes: u64,
    },
    /// A file's content is not of the format.
    #[error("{file}: byte {offset}: {what}")]
    Format {
        /// The file.
        file: String,
        /// Where, as near as it is known.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The image has a version that this program does not know.
    #[error("format: image version {found} is unknown, this program reads versions up to {}", crate::upgrade::NEWEST)]
    Version {
        /// The version of the image.
        found: u32,
    },
    /// Something is beyond the [`Limits`](crate::Limits).
    #[error("{file}: {bytes} is beyond the limit of {limit}")]
    TooLarge {
        /// The file, with the thing that is counted where that is not bytes.
        file: String,
        /// How many bytes (files, items, levels) there are, or are claimed.
        bytes: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// The place of an image, or a file's name in it, is taken.
    #[error("{file}: exists already")]
    Exists {
        /// The path of the image, or the file.
        file: String,
    },
    /// A writer was given a name that no file of an image can have.
    #[error("{name:?}: not a name for an image or a file of one")]
    Name {
        /// The name.
        name: String,
    },
    /// A file was to be written by others in an image that is encrypted.
    #[error("{file}: cannot be encrypted when others write it")]
    Plain {
        /// The file.
        file: String,
    },
    /// A file is compressed, and nobody has decoded it.
    #[error("{file}: is compressed")]
    Compressed {
        /// The file.
        file: String,
    },
    /// A file is encrypted, and no identity was given.
    #[error("{file}: is encrypted")]
    Encrypted {
        /// The file.
        file: String,
    },
    /// A file is encrypted, and not to any of the identities that were given.
    #[error("{file}: is encrypted, and none of the identities opens it")]
    NotForUs {
        /// The file.
        file: String,
    },
    /// An image was committed while a file of it was not finished or adopted.
    #[error("{file}: not finished")]
    Unfinished {
        /// The file.
        file: String,
    },
}

/// Where an image is damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The file, or the path of an image that is none.
    pub file: String,
    /// From which byte on, as near as it is known.
    pub offset: Option<u64>,
    /// How many bytes from there on may be damaged, where that is all that is known.
    pub bytes: Option<u64>,
}

impl Error {
    /// Where the image is damaged; none: it is not.
    pub fn spot(&self) -> Option<Spot> {
        let (file, offset, bytes) = match self {
            Error::Missing { file } => (file.as_str(), None, None),
            Error::Truncated { file, offset } | Error::Format { file, offset, .. } => {
                (file.as_str(), Some(*offset), None)
            }
            Error::Digest { file, bytes } => (file.as_str(), Some(0), Some(*bytes)),
            Error::Version { .. } => (FORMAT_FILE, Some(u64::try_from(PREFIX.len()).unwrap_or(0)), None),
            // What is counted may be something else than bytes, and then stands behind the name.
            Error::TooLarge { file, limit, .. } => match file.split_once(": ") {
                Some((file, _)) => (file, None, None),
                None => (file.as_str(), Some(*limit), None),
            },
            Error::Io { .. }
            | Error::Exists { .. }
            | Error::Name { .. }
            | Error::Plain { .. }
            | Error::Compressed { .. }
            | Error::Encrypted { .. }
            | Error::NotForUs { .. }
            | Error::Unfinished { .. } => return None,
        };
        Some(Spot { file: file.to_owned(), offset, bytes })
    }

    /// Whether the image is at fault, so that another attempt cannot help (exit code 4). Meant for errors of reading.
    pub fn is_damage(&self) -> bool {
        self.spot().is_some()
    }

    pub(crate) fn io(file: &str, op: &'static str, source: impl Into<io::Error>) -> Error {
        Error::Io { file: file.to_owned(), op, source: source.into() }
    }

    pub(crate) fn format(file: &str, offset: u64, what: impl Into<String>) -> Error {
        Error::Format { file: file.to_owned(), offset, what: what.into() }
    }

    pub(crate) fn missing(file: &str) -> Error {
        Error::Missing { file: file.to_owned() }
    }

    pub(crate) fn truncated(file: &str, offset: u64) -> Error {
        Error::Truncated { file: file.to_owned(), offset }
    }
}
