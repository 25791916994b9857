//! THE HEART: one module per kind of kernel object, its collecting and its rebuilding side by side.
//!
//! Three shapes, because kernel objects have three owners: [`file::FileKind`] for open file descriptions (made once,
//! shared by many descriptors), the modules of [`process`] (they append calls to a task's script), and [`namespace`]
//! (made before any task exists). [`memory`] is the address space.

pub mod error;
pub mod extent;
pub mod file;
pub mod memory;
pub mod namespace;
pub mod process;
pub mod snapshot;

pub use error::{Cause, LOSABLE, Named, Result};
