//! The address space of a process.
//!
//! Linux keeps areas ([`vma`]): ranges with a protection, flags and something behind them. What is behind decides what
//! must travel: private anonymous memory all that was ever written, a private file mapping only the pages that were
//! written (copy on write), a shared mapping nothing (its file or shared object travels on its own).
//!
//! A new task starts with nothing but the scratch memory and the vdso. Its script moves the vdso, maps areas, reads pages
//! from the image into them and sets the protections last.

pub mod aio;
pub mod early;
pub mod future;
pub mod inherit;
pub mod layout;
pub mod pages;
pub mod policy;
pub mod shared;
pub mod source;
pub mod vma;

use serde::{Deserialize, Serialize};
use yendor_image::PageRun;

/// An address space in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Where code, data, heap, stack, arguments and environment lie.
    pub layout: layout::Record,
    /// Areas by address.
    pub areas: Vec<vma::Record>,
    /// Pages of private memory that hold something; with `inherits`, only those that differ from the parent's. By
    /// address, and none twice.
    pub pages: Vec<PageRun>,
    /// Whether it starts as a copy of the parent's, as fork leaves it.
    pub inherits: Option<inherit::Record>,
}
