//! Namespaces, and what lives in one rather than in a process: made before any task exists.

pub mod bridge;
pub mod cgroup;
pub mod clock;
pub mod ipc;
pub mod layer;
pub mod links;
pub mod mount;
pub mod nested;
pub mod network;
pub mod networks;
pub mod sysctl;
pub mod traffic;
pub mod user;
