//! The harness of the tests: drives the built `yendor` command as a user would, in every flavour.
//!
//! `cargo build --workspace --bins` comes first: the command and the probes are taken from the target directory that
//! the running test belongs to. Everything a test starts is ended and everything it writes is removed when its
//! [`Yendor`] is dropped, whether the test passes or not.
#![allow(unsafe_code)]

mod account;
mod binary;
mod census;
mod fault;
mod forge;
mod image;
mod mutate;
mod orphan;
mod same;
mod survive;
mod task;
mod terminal;
mod yendor;

pub use account::{Account, Flavour, skipped};
pub use binary::{probe, yendor_binary};
pub use census::{Bait, Census, Machine};
pub use fault::{FROM_VISIBLE, Fault, OF_SETSOCKOPT, Traced, with_fault};
pub use forge::{FORMAT, Forge, seal};
pub use image::{at, copy_image, forge};
pub use mutate::{Dice, mutate, mutate_image};
pub use orphan::{Orphans, Random, cgroups, rounds};
pub use same::differences;
pub use survive::{Via, generations, probe_survives, tick_gap};
pub use task::{Started, kill, lead_a_session, marked, signal, wait_until};
pub use terminal::Terminal;
pub use yendor::{Outcome, PATIENCE, Yendor};

/// Tests of functions that take a [`Flavour`]: each in all three.
#[macro_export]
macro_rules! flavours {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn root() { super::$name($crate::Flavour::Root) }
            #[test]
            fn userns() { super::$name($crate::Flavour::RootUserns) }
            #[test]
            fn user() { super::$name($crate::Flavour::user()) }
        })*
    };
}

/// Tests of what a user namespace does not change, and which take long: as real root without one, and as a plain user.
#[macro_export]
macro_rules! root_and_user {
    ($($name:ident)*) => {
        $(mod $name {
            #[test]
            fn root() { super::$name($crate::Flavour::Root) }
            #[test]
            fn user() { super::$name($crate::Flavour::user()) }
        })*
    };
}
