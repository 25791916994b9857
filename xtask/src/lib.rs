//! The chores of the workspace: its tests in order, its house rules, its benchmark.
//!
//! Nothing here depends on the crates it looks after, so that it builds when they do not.

pub mod bench;
pub mod docs;
pub mod failed;
pub mod fuzz;
pub mod host;
pub mod lab;
pub mod layers;
pub mod soak;
pub mod source;
pub mod stage;
pub mod suite;
pub mod tidy;
pub mod workspace;

/// What a chore comes to: the error is for a person to read, and ends the process with code 1.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;
