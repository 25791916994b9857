//! Memory pages and where they lie in the `pages-N` files.

use crate::{Addr, Error, RECORDS_FILE, Result};
use serde::{Deserialize, Serialize};

/// Size of one page in a `pages-N` file, in bytes, on every machine.
pub const PAGE_BYTES: u64 = 4096;

/// Contiguous pages in memory and in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageRun {
    /// Address of the first page.
    pub addr: Addr,
    /// How many pages of 4096 bytes.
    pub pages: u64,
    /// N of `pages-N`.
    pub file: u16,
    /// Where the first page begins in the file, in bytes.
    pub offset: u64,
}

impl PageRun {
    /// Size in bytes, or `None` when that is beyond 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        self.pages.checked_mul(PAGE_BYTES)
    }

    /// The first address behind the run, or `None` past the end of the address space.
    pub fn end(&self) -> Option<Addr> {
        self.addr.checked_add(self.bytes()?)
    }

    /// Checks everything that can be known without the records around it: alignment, no overflow, within a file of
    /// `file_bytes`. What it lets pass can be added and multiplied without care.
    pub fn check(&self, file_bytes: u64) -> Result<()> {
        let wrong = |what: &str| Error::format(RECORDS_FILE, 0, format!("page run at {}: {what}", self.addr));
        if self.pages == 0 {
            return Err(wrong("no pages"));
        }
        if !self.addr.0.is_multiple_of(PAGE_BYTES) || !self.offset.is_multiple_of(PAGE_BYTES) {
            return Err(wrong("not at a multiple of 4096"));
        }
        if self.end().is_none() {
            return Err(wrong("beyond the end of the address space"));
        }
        match self.bytes().and_then(|bytes| self.offset.checked_add(bytes)) {
            Some(end) if end <= file_bytes => Ok(()),
            _ => Err(wrong("beyond the end of its file")),
        }
    }
}

/// Name of the pages file with number `file`.
pub fn pages_name(file: u16) -> String {
    format!("pages-{file}")
}

/// Whether a file is one of pages, by its name.
pub fn is_pages_name(name: &str) -> bool {
    name.strip_prefix("pages-").is_some_and(|number| number.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_lie_are_refused() {
        let good = PageRun { addr: Addr(0x1000), pages: 2, file: 0, offset: 4096 };
        assert!(good.check(3 * 4096).is_ok());
        assert_eq!(good.end(), Some(Addr(0x3000)));
        for bad in [
            PageRun { pages: 0, ..good },
            PageRun { pages: 3, ..good },
            PageRun { pages: 1 << 52, ..good },
            PageRun { pages: u64::MAX, ..good },
            PageRun { addr: Addr(1), ..good },
            PageRun { addr: Addr(u64::MAX - 4095), ..good },
            PageRun { offset: 1, ..good },
            PageRun { offset: 8192, ..good },
            PageRun { offset: u64::MAX - 4095, ..good },
        ] {
            assert!(bad.check(3 * 4096).is_err_and(|error| error.is_damage()), "{bad:?}");
        }
    }
}
