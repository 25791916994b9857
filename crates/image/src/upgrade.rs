//! Versions: which are read, and how an old one becomes the newest.
//!
//! Every version that was released stays readable. A new version adds a variant to [`Version`] and one step here that
//! turns its predecessor's documents into its own; the compiler then shows every place that must know.

use crate::{Error, FORMAT_FILE, Result};
use std::borrow::Cow;

/// The version that is written.
pub const NEWEST: u32 = 1;

/// The `format` file of the newest version.
pub const NEWEST_LINE: &[u8] = b"yendor image 1\n";

pub(crate) const PREFIX: &[u8] = b"yendor image ";

/// A `format` file is never longer: the words, ten digits and the line feed.
pub(crate) const LINE_BYTES: u64 = 24;

/// A version that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first.
    V1,
}

impl Version {
    /// The version that this program writes.
    pub const NEWEST: Version = Version::V1;

    /// Reads the content of a `format` file.
    pub fn parse(line: &[u8]) -> Result<Version> {
        let wrong = |offset: usize, what: &str| {
            Err(Error::format(FORMAT_FILE, u64::try_from(offset).unwrap_or(u64::MAX), what))
        };
        let same = line.iter().zip(PREFIX).take_while(|(a, b)| a == b).count();
        if same < PREFIX.len() && same == line.len() {
            return Err(Error::truncated(FORMAT_FILE, u64::try_from(same).unwrap_or(u64::MAX)));
        }
        let Some(rest) = line.strip_prefix(PREFIX) else {
            return wrong(same, "not a yendor image");
        };
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let end = PREFIX.len().saturating_add(digits);
        match rest.get(digits..) {
            Some(b"\n") => {}
            Some(b"") | None => {
                return Err(Error::truncated(FORMAT_FILE, u64::try_from(end).unwrap_or(u64::MAX)));
            }
            Some(_) => return wrong(end, "expected a number and one line feed"),
        }
        let number = rest.get(..digits).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        if number.is_empty() || number.starts_with('0') {
            return wrong(PREFIX.len(), "expected a number from 1");
        }
        match number.parse::<u32>() {
            Ok(1) => Ok(Version::V1),
            Ok(found) => Err(Error::Version { found }),
            Err(_) => wrong(PREFIX.len(), "version is beyond 32 bits"),
        }
    }

    /// The content of the `format` file of this version.
    pub fn line(self) -> &'static [u8] {
        match self {
            Version::V1 => NEWEST_LINE,
        }
    }
}

/// Turns the records document of an image of `version` into one of the newest version.
pub(crate) fn records(version: Version, document: &[u8]) -> Result<Cow<'_, [u8]>> {
    match version {
        Version::V1 => Ok(Cow::Borrowed(document)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_line_is_the_newest_version() {
        assert_eq!(NEWEST_LINE, format!("yendor image {NEWEST}\n").as_bytes());
        assert_eq!(Version::parse(NEWEST_LINE).unwrap().line(), NEWEST_LINE);
        assert!(u64::try_from(b"yendor image 4294967295\n".len()).unwrap() <= LINE_BYTES);
    }

    #[test]
    fn other_lines_are_refused_for_the_right_reason() {
        for (line, found) in [(&b"yendor image 2\n"[..], 2), (b"yendor image 4294967295\n", u32::MAX)] {
            assert!(matches!(Version::parse(line), Err(Error::Version { found: f }) if f == found));
        }
        for cut in 0..NEWEST_LINE.len() {
            let error = Version::parse(&NEWEST_LINE[..cut]).unwrap_err();
            assert!(matches!(error, Error::Truncated { offset, .. } if offset == cut as u64), "{cut}: {error}");
        }
        for line in [
            &b"yendor image 0\n"[..],
            b"yendor image 01\n",
            b"yendor image +1\n",
            b"yendor image \n",
            b"yendor image 1\n\n",
            b"yendor image 1 \n",
            b"yendor image 4294967296\n",
            b"Yendor image 1\n",
            b"\x7fELF",
        ] {
            assert!(matches!(Version::parse(line), Err(Error::Format { .. })), "{line:?}");
        }
    }
}
