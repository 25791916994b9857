//! What rustix lacks: ptrace, clone3 with chosen pids, foreign memory, pagemap scans, robust futexes.
//! The only crate of the workspace with `unsafe`; every block says why it is sound.
#![allow(unsafe_code)]

mod child;
pub mod clone;
pub mod cpu;
pub mod error;
pub mod event;
pub mod fd;
pub mod futex;
pub mod inet;
pub mod ipc;
pub mod kcmp;
pub mod landlock;
pub mod lock;
pub mod lsm;
pub mod mapping;
pub mod mount;
pub mod mqueue;
pub mod namespace;
pub mod pagemap;
pub mod patience;
pub mod process;
pub mod ptrace;
pub mod raw;
pub mod sandbox;
pub mod seccomp;
pub mod sock;
pub mod spawn;
pub mod tty;
pub mod undo;
pub mod userfault;
pub mod vm;
pub mod wait;
pub mod xstate;

pub use error::{Result, SysError, errno_name};
pub use rustix::io::Errno;
