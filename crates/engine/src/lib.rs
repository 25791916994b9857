//! The arrows of the house.

pub mod collect;
pub mod error;
pub mod rebuild;
pub mod request;

pub use error::{Error, Result};
