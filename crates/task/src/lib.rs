//! Tasks under our control: stopping them, and making them execute system calls that are data.
//!
//! A [`Script`] is a list of system calls. It runs inside another task, in an [`Arena`] of shared scratch memory, by a
//! loop of about 180 bytes that knows nothing but calls (see [`gadget`]). Live tasks are borrowed under the dead-man
//! rule ([`live`]): at every instant the task survives our death.

pub mod arena;
mod end;
pub mod fault;
pub mod gadget;
mod limit;
pub mod live;
pub mod nr;
pub mod regs;
pub mod script;
pub mod stop;
pub mod tree;

pub use arena::{Arena, RunError};
pub use nr::Nr;
pub use script::{Arg, Call, Done, Memory, Script, Want};
pub use stop::{Dead, Stopped};
