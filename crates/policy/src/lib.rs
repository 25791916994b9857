//! What the host and the caller allow: pure values and decisions; who applies them is the engine.

pub mod capability;
pub mod host;
pub mod landlock;
pub mod lsm;
pub mod seccomp;
