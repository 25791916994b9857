//! Landlock rulesets that the keeper has made for tasks, and what it knows of them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use yendor_image::Bytes;
use yendor_kinds::process::landlock::{Layer, Rule};
use yendor_kinds::{Cause, Named};
use yendor_sys::kcmp::{What, compare};
use yendor_sys::{SysError, landlock};

use super::log::Placed;

/// How many are remembered; those that tasks made longest ago are forgotten first.
const MOST: usize = 256;

/// All that are remembered, oldest first.
#[derive(Debug, Default)]
pub struct Rulesets(Vec<Known>);

/// One.
#[derive(Debug)]
pub struct Known {
    fd: OwnedFd,
    placed: Placed,
    /// Why it cannot be recorded.
    spoilt: Option<String>,
}

impl Rulesets {
    /// A new one with these attributes; its index until the next is added.
    pub fn add(&mut self, fd: OwnedFd, attr: &[u8]) -> usize {
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        let word = |i: usize| {
            let mut bytes = [0u8; 8];
            let from = attr.get(i * 8..).unwrap_or_default();
            for (to, from) in bytes.iter_mut().zip(from) {
                *to = *from;
            }
            u64::from_ne_bytes(bytes)
        };
        let more = attr.get(24..).is_some_and(|rest| rest.iter().any(|b| *b != 0));
        let layer = Layer { fs: word(0), net: word(1), scoped: word(2), ..Layer::default() };
        let spoilt = more.then(|| "a Landlock ruleset with attributes that this version does not know".to_owned());
        self.0.push(Known { fd, placed: Placed { layer, files: Vec::new() }, spoilt });
        self.0.len() - 1
    }

    /// Its descriptor.
    pub fn fd(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.0.get(index).map(|k| k.fd.as_fd())
    }

    /// The one that this descriptor is of.
    pub fn find(&mut self, theirs: &OwnedFd) -> Option<&mut Known> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let same = |k: &&mut Known| {
            compare(me, me, What::File(k.fd.as_raw_fd(), theirs.as_raw_fd())).is_ok_and(std::cmp::Ordering::is_eq)
        };
        self.0.iter_mut().rev().find(same)
    }
}

impl Known {
    /// It cannot be recorded any more.
    pub fn spoil(&mut self, why: String) {
        self.spoilt.get_or_insert(why);
    }

    /// Adds a rule for a path, and notes it.
    pub fn allow_beneath(&mut self, proc: &OwnedFd, access: u64, parent: &OwnedFd) -> Result<(), SysError> {
        landlock::allow_beneath(&self.fd, access, parent)?;
        let path = link(proc, parent)?;
        let stat = rustix::fs::fstat(parent).named("fstat", || "a rule's parent".into())?;
        if !path.starts_with(b"/") || path.ends_with(b" (deleted)") {
            self.spoil(format!("a Landlock rule for {}, which has no path", path.escape_ascii()));
        }
        self.placed.layer.rules.push(Rule::Beneath { access, path: Bytes(path) });
        self.placed.files.push((stat.st_dev, stat.st_ino));
        Ok(())
    }

    /// Adds a rule for a port, and notes it.
    pub fn allow_port(&mut self, access: u64, port: u64) -> Result<(), SysError> {
        landlock::allow_port(&self.fd, access, port)?;
        self.placed.layer.rules.push(Rule::Port { access, port });
        self.placed.files.push((0, 0));
        Ok(())
    }

    /// What is known of it now, or why it cannot be recorded.
    pub fn placed(&self) -> Result<Placed, String> {
        self.spoilt.clone().map_or_else(|| Ok(self.placed.clone()), Err)
    }
}

fn link(proc: &OwnedFd, fd: &OwnedFd) -> Result<Vec<u8>, SysError> {
    let path = format!("self/fd/{}", fd.as_raw_fd());
    let target = rustix::fs::readlinkat(proc, path.as_str(), Vec::new()).named("readlinkat", || path.clone())?;
    Ok(target.into_bytes())
}

/// Whether a descriptor is a ruleset at all.
pub fn is_ruleset(proc: &OwnedFd, fd: &OwnedFd) -> Result<bool, Cause> {
    Ok(link(proc, fd)?.windows(16).any(|w| w == b"landlock-ruleset"))
}
