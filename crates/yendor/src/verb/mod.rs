//! The verbs, one file each.

pub mod attach;
pub mod checkpoint;
pub mod clone;
pub mod demo;
pub mod doctor;
pub mod exec;
pub mod flatten;
pub mod generate;
pub mod guard;
pub mod images;
pub mod inspect;
pub mod kill;
pub mod logs;
pub mod plan;
pub mod ps;
pub mod restore;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod start;
pub mod wait;
