//! What a long file of pages is made of, by blocks: with it each of them can be compared alone, in any order, with the digest that the
//! manifest has of the whole.
//!
//! The file `pages-N.tree` has the value of each block of [`TREE_BYTES`] in BLAKE3's tree; merged they are the digest of `pages-N`. So
//! nothing has to vouch for it: a wrong one gives another digest. Nor is there anything to parse: how many values there are follows from the
//! size of `pages-N`, which the loader has found right, and no number, name or place is taken from them. That is why also a process with the
//! rights of the container's root may read it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::pieces::{self, PIECE, Value};
use crate::{Error, FileEntry, Result};

/// Bytes of a block; the last one has what is left.
pub const TREE_BYTES: u64 = PIECE as u64;

/// Bytes from which on a file has one: less is read at once.
const LEAST: u64 = 4 << 20;

/// Bytes up to which it has one. What is held of all files of an image, whatever sizes it claims, [`crate::Limits`] bounds.
const MOST: u64 = 8 << 40;

/// What the name of such a file ends with.
pub const TREE_ENDING: &str = ".tree";

const VALUE_BYTES: usize = size_of::<Value>();

/// The name of the file for the file `name`.
pub fn tree_name(name: &str) -> String {
    format!("{name}{TREE_ENDING}")
}

/// The values of all blocks of a file.
#[derive(Debug, Clone)]
pub struct Tree {
    name: String,
    bytes: u64,
    values: Vec<Value>,
}

impl Tree {
    /// Whether a file of pages with this many bytes has one, where it is neither encrypted nor compressed.
    pub fn is_of(bytes: u64) -> bool {
        (LEAST..=MOST).contains(&bytes)
    }

    /// Reads that of a file, which must give the file's digest.
    pub fn read(entry: &FileEntry, tree: &File) -> Result<Tree> {
        let name = tree_name(&entry.name);
        let failed = |source| Error::io(&name, "read", source);
        let length = entry.bytes.div_ceil(TREE_BYTES).saturating_mul(VALUE_BYTES as u64);
        // By a call that those without rights may make.
        let found = rustix::fs::fstat(tree).map_err(|errno| failed(errno.into()))?.st_size;
        if !Tree::is_of(entry.bytes) || u64::try_from(found) != Ok(length) {
            return Err(Error::format(&name, 0, "is not as long as its file wants"));
        }
        let mut values: Vec<Value> = Vec::new();
        let blocks = usize::try_from(entry.bytes.div_ceil(TREE_BYTES)).unwrap_or(usize::MAX);
        values.try_reserve_exact(blocks).map_err(|_| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        values.resize(blocks, [0; VALUE_BYTES]);
        tree.read_exact_at(values.as_flattened_mut(), 0).map_err(failed)?;
        if pieces::whole(&values) != entry.blake3 {
            return Err(Error::Digest { file: name, bytes: length });
        }
        Ok(Tree { name: entry.name.clone(), bytes: entry.bytes, values })
    }

    pub(crate) fn values(&self) -> &[Value] {
        &self.values
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes block `number` has; 0 past the end.
    pub fn block_bytes(&self, number: u64) -> u64 {
        self.bytes.saturating_sub(number.saturating_mul(TREE_BYTES)).min(TREE_BYTES)
    }

    /// Whether this is what was written as block `number`: `Err` names it.
    pub fn check(&self, number: u64, content: &[u8]) -> Result<()> {
        let wanted = usize::try_from(number).ok().and_then(|number| self.values.get(number));
        if wanted.is_some_and(|wanted| pieces::value(number, content) == *wanted) {
            return Ok(());
        }
        let at = number.saturating_mul(TREE_BYTES);
        Err(Error::format(&self.name, at, format!("block {number}: digest differs, content is damaged")))
    }

    /// Reads block `number` of the file into `buffer`, which must be what was written.
    pub fn load(&self, file: &File, number: u64, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(usize::try_from(self.block_bytes(number)).unwrap_or(0), 0);
        file.read_exact_at(buffer, number.saturating_mul(TREE_BYTES)).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::truncated(&self.name, number.saturating_mul(TREE_BYTES)),
            _ => Error::io(&self.name, "read", source),
        })?;
        self.check(number, buffer)
    }
}

/// The bytes of the file for these values.
pub(crate) fn encode(values: &[Value]) -> Vec<u8> {
    values.as_flattened().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Reader, Writer};
    use std::io::Write;
    use std::time::SystemTime;

    #[test]
    fn each_block_is_compared_alone() {
        let top = std::env::temp_dir().join(format!("yendor-tree-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir(&top).expect("mkdir");
        let bytes = usize::try_from(LEAST).expect("size") + 3 * 4096;
        let content: Vec<u8> = (0..bytes).map(|at| u8::try_from(at / 4096 % 251).expect("small")).collect();
        let writer = Writer::create(&top.join("a")).expect("create");
        for name in ["pages-0", "pages-1", "other"] {
            let mut file = writer.file(name).expect("file");
            file.write_all(if name == "pages-1" { &content[..4096] } else { &content }).expect("write");
            file.finish().expect("finish");
        }
        let mut raw = writer.raw("pages-2").expect("raw");
        raw.write_all(&content).expect("write");
        writer.adopt("pages-2").expect("adopt");
        writer.records(&0_u8).expect("records");
        let manifest = writer.commit(SystemTime::now()).expect("commit");
        let trees: Vec<&str> =
            manifest.files.iter().map(|f| f.name.as_str()).filter(|n| n.ends_with(".tree")).collect();
        assert_eq!(trees, ["pages-0.tree", "pages-2.tree"]);
        let reader = Reader::open(&top.join("a")).expect("open");
        assert!(reader.tree("pages-1").expect("short").is_none() && reader.tree("other").expect("no pages").is_none());
        let tree = reader.tree("pages-0").expect("tree").expect("long");
        assert_eq!(tree.values(), reader.tree("pages-2").expect("tree").expect("long").values());
        let blocks = LEAST / TREE_BYTES + 1;
        assert_eq!((tree.bytes(), tree.block_bytes(blocks - 1), tree.block_bytes(blocks)), (bytes as u64, 3 * 4096, 0));
        let (file, _) = reader.open_file("pages-0").expect("pages");
        let mut block = Vec::new();
        for number in (0..blocks).rev() {
            tree.load(&file, number, &mut block).expect("right");
            block[7] ^= 1;
            let said = tree.check(number, &block).expect_err("damaged");
            assert!(said.is_damage() && said.to_string().contains(&format!("block {number}:")), "{said}");
        }
        assert!(tree.check(blocks, &[]).is_err());
        // One that is another file's, is cut, or lies.
        let path = top.join("a/pages-0.tree");
        let right = std::fs::read(&path).expect("tree");
        let open = || File::open(&path).expect("open");
        let entry = manifest.file("pages-0").expect("entry");
        let other = FileEntry { blake3: Digest::of(b"other"), ..entry.clone() };
        assert!(Tree::read(&other, &open()).expect_err("another's").is_damage());
        for at in [0, right.len() / 2, right.len() - 1] {
            let mut wrong = right.clone();
            wrong[at] ^= 1;
            std::fs::write(&path, wrong).expect("write");
            assert!(matches!(Tree::read(entry, &open()), Err(Error::Digest { .. })));
        }
        std::fs::write(&path, &right[..right.len() - 32]).expect("write");
        assert!(matches!(Tree::read(entry, &open()), Err(Error::Format { .. })));
        std::fs::remove_dir_all(&top).expect("gone");
    }

    /// Each of them may be so large, but not all of them: files with holes cost whoever sends an image nothing.
    #[test]
    fn what_is_held_of_all_files_is_bounded() {
        let top = std::path::Path::new("/dev/shm").join(format!("yendor-trees-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir(&top).expect("mkdir");
        let writer = Writer::create(&top.join("a")).expect("create");
        for number in 0..4 {
            let file = writer.raw(&crate::pages_name(number)).expect("raw");
            file.set_len(LEAST).expect("a hole");
            writer.adopt(&crate::pages_name(number)).expect("adopt");
        }
        writer.records(&0_u8).expect("records");
        writer.commit(SystemTime::now()).expect("commit");
        let limits = crate::Limits { tree_bytes: 3 * LEAST, ..crate::Limits::default() };
        let reader = Reader::open_with(&top.join("a"), limits).expect("open");
        assert_eq!(reader.trees(0..3).expect("as many as may be").len(), 3);
        assert_eq!(reader.trees([0, 3, 9]).expect("those that are wanted").keys().copied().collect::<Vec<_>>(), [0, 3]);
        let said = reader.trees(0..4).expect_err("one too many");
        assert!(said.is_damage() && matches!(said, Error::TooLarge { .. }), "{said}");
        std::fs::remove_dir_all(&top).expect("gone");
    }

    /// Whatever is in it, and whatever size its file is said to have.
    #[test]
    fn what_is_no_tree_is_damage_and_takes_no_memory_that_is_not_there() {
        let memory = || File::from(rustix::fs::memfd_create("tree", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd"));
        let entry = |bytes| FileEntry {
            name: "pages-0".into(),
            bytes,
            blake3: Digest::of(b"x"),
            content: None,
            compressed: None,
        };
        // 2^50 bytes that take no room on a disk.
        let sparse = memory();
        let huge = 1_u64 << 63;
        sparse.set_len(huge / TREE_BYTES * 32).expect("a hole");
        assert!(Tree::read(&entry(huge), &sparse).expect_err("nobody holds it").is_damage());
        let mut state = 7_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        for blocks in [16, 17, 100] {
            for bytes in [0, 1, blocks * 32 - 1, blocks * 32, blocks * 32 + 1] {
                let tree = memory();
                let content: Vec<u8> = (0..bytes).map(|_| random()).collect();
                (&tree).write_all(&content).expect("write");
                let said = Tree::read(&entry(blocks * TREE_BYTES), &tree).expect_err("it is none");
                assert!(said.is_damage() && matches!(said, Error::Digest { .. }) == (bytes == blocks * 32), "{said}");
            }
        }
    }
}
