//! The image on disk: files, digests, encoding. `docs/format.md` has every byte.
//!
//! This crate knows no kernel object. It gives other crates a [`Writer`] that makes an image appear whole or not at
//! all, a [`Reader`] that works from one directory descriptor and takes every byte for hostile, and the basic types
//! that records are made of.

mod block;
mod bytes;
pub mod cbor;
mod compress;
pub mod crypt;
mod digest;
mod disk;
mod error;
mod id;
mod limits;
pub mod manifest;
mod page;
mod parent;
mod partial;
mod pieces;
mod reader;
mod tree;
pub mod upgrade;
mod watcher;
mod writer;

pub use block::{BLOCK_BYTES, decode, find_damage};
pub use bytes::Bytes;
pub use compress::Compression;
pub use digest::Digest;
pub use error::{Error, Result, Spot};
pub use id::{Addr, FdNum, FileId, MmId, NsId, NsPid, ShmId, Tid};
pub use limits::Limits;
pub use manifest::{Codec, Compressed, Encryption, FileEntry, Kind, Manifest, Method};
pub use page::{PAGE_BYTES, PageRun, is_pages_name, pages_name};
pub use parent::{Parent, Place, Search, Stamp};
pub use partial::is_partial;
pub use reader::{Directory, Documents, Reader, SignedTable, Table, open_regular};
pub use tree::{TREE_BYTES, TREE_ENDING, Tree, tree_name};
pub use watcher::Watcher;
pub use writer::{Durable, FileWriter, Writer};

/// Name of the file with the version line.
pub const FORMAT_FILE: &str = "format";
/// Name of the file with names, sizes and digests.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file with a signature of the manifest, which the manifest cannot list.
pub const SIGNATURE_FILE: &str = "manifest.json.minisig";
/// Name of the file with all records.
pub const RECORDS_FILE: &str = "records.cbor";

/// Whether `name` may name a file of an image: 1 to 64 bytes of `[a-z0-9.-]`, no dot in front, so never a path.
pub fn is_file_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}
