//! The arrows of the house.

pub mod admit;
pub mod ark;
mod blame;
pub mod bundle;
pub mod checkpoint;
pub mod claim;
pub mod clear;
pub mod collect;
mod compose;
mod confine;
mod console;
pub mod contain;
pub mod control;
pub mod error;
pub mod exec;
pub mod flatten;
pub mod front;
mod hole;
pub mod keeper;
mod label;
mod layers;
pub mod load;
mod nested;
mod outer;
pub mod pager;
pub mod rebuild;
mod recorder;
pub mod request;
mod setting;
mod shadow;
pub mod sign;
pub mod state;
mod who;
mod wire;

pub use error::{Error, Result};
pub use yendor_sys::process;
