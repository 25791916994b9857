//! How much a reader is ready to take.

/// Bounds of one image. What is beyond them is [`Error::TooLarge`](crate::Error::TooLarge), before it is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of `manifest.json` in bytes.
    pub manifest_bytes: u64,
    /// How many files a manifest may list.
    pub files: u64,
    /// Size of `records.cbor` in bytes.
    pub records_bytes: u64,
    /// How many CBOR items the records may have; each element, key and value counts.
    pub records_items: u64,
    /// How many arrays and maps may lie in one another.
    pub records_depth: usize,
    /// How many bytes of pages all those files may have together of which it is held what they are made of, by blocks.
    pub tree_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            manifest_bytes: 1 << 20,
            files: 4096,
            records_bytes: 512 << 20,
            records_items: 1 << 26,
            records_depth: 64,
            tree_bytes: 8 << 40,
        }
    }
}
