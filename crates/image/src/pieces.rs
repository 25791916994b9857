//! BLAKE3 by pieces: whoever hashes one needs none of the others, and their values give the digest of the whole.
//!
//! A piece is a whole subtree of the tree that BLAKE3 is (`BLAKE3.pdf`, section 2.1; the crate's `hazmat`): all but the last
//! have the same size, a power of two.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::Digest;

/// Bytes of a piece: enough for the widest vectors, small enough for the cache.
pub(crate) const PIECE: usize = 256 << 10;
const BYTES: u64 = PIECE as u64;

/// What stands for a piece.
pub(crate) type Value = ChainingValue;

/// The value of piece `index` of a content that has more than one; only the last one is shorter than [`PIECE`].
pub(crate) fn value(index: u64, bytes: &[u8]) -> Value {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index.saturating_mul(BYTES));
    hasher.update(bytes).finalize_non_root()
}

/// The digest of a content of at least two pieces, whose values these are.
pub(crate) fn whole(values: &[Value]) -> Digest {
    let (left, right) = halves(values);
    merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).into()
}

/// Reads a file to its end: how many bytes, their digest, and the values of its pieces if there are several.
pub(crate) fn of_file(file: &File) -> io::Result<(u64, Digest, Vec<Value>)> {
    let mut values = Vec::new();
    let mut buffer = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        let length = fill(file, &mut buffer, bytes)?;
        let piece = buffer.get(..length).unwrap_or_default();
        if bytes == 0 && length < PIECE {
            return Ok((length as u64, Digest::of(piece), values));
        }
        if length > 0 {
            values.push(value(bytes / BYTES, piece));
            bytes += length as u64;
        }
        if length < PIECE {
            break;
        }
    }
    // Of a single piece the value is not the digest.
    let digest = if values.len() < 2 { Digest::of(&buffer) } else { whole(&values) };
    Ok((bytes, digest, values))
}

fn fill(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, at + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn merged(values: &[Value]) -> Value {
    match values {
        [value] => *value,
        values => {
            let (left, right) = halves(values);
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// Left goes the largest power of two that leaves something to the right, whatever the size of the last piece.
fn halves(values: &[Value]) -> (&[Value], &[Value]) {
    let bytes = BYTES.saturating_mul(values.len() as u64);
    let left = left_subtree_len(bytes) / BYTES;
    values.split_at(usize::try_from(left).unwrap_or(values.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_what_the_whole_gives() {
        let bytes: Vec<u8> = (0..9 * PIECE).map(|i| u8::try_from(i * i % 251).expect("small")).collect();
        for pieces in 2..=9 {
            for less in [0, 1, 64, 1024, PIECE - 1] {
                let bytes = &bytes[..pieces * PIECE - less];
                let values: Vec<Value> = bytes.chunks(PIECE).zip(0..).map(|(piece, i)| value(i, piece)).collect();
                assert_eq!(whole(&values), Digest::of(bytes), "{pieces} pieces, less {less}");
            }
        }
    }

    #[test]
    fn a_file_gives_the_same() {
        for bytes in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 5] {
            let content: Vec<u8> = (0..bytes).map(|i| u8::try_from(i * 7 % 251).expect("small")).collect();
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let file = File::from(rustix::fs::memfd_create("pieces", flags).expect("memfd"));
            file.write_all_at(&content, 0).expect("write");
            let (length, digest, values) = of_file(&file).expect("read");
            assert_eq!((length, digest), (bytes as u64, Digest::of(&content)), "{bytes}");
            assert!(bytes <= PIECE || whole(&values) == digest, "{bytes}");
        }
    }
}
