//! Smack: its rules are a text that everybody may read.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::read_bytes;

/// The digest of the rules, whatever order they were loaded in.
pub(super) fn parts(smack: Option<&OwnedFd>) -> Option<BTreeMap<String, String>> {
    let rules = read_bytes(smack?, "load2")?;
    let mut lines: Vec<&[u8]> = rules.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for line in lines {
        hasher.update(line).update(b"\n");
    }
    Some(BTreeMap::from([("rules".to_owned(), format!("blake3 {}", hasher.finalize().to_hex()))]))
}
