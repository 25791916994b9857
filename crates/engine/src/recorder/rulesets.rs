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

/// Bytes of rules that are remembered of one, and of all: whoever is in the container says how many there are.
const MOST_OF_ONE: usize = 1 << 18;
const MOST_OF_ALL: usize = 1 << 24;
/// What a rule takes beside its path.
const RULE: usize = 64;

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
    /// Bytes that its rules take, and may take.
    bytes: usize,
    room: usize,
    /// It had more rules than there was room for.
    over: bool,
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
        let placed = Placed { layer, files: Vec::new() };
        self.0.push(Known { fd, placed, spoilt, bytes: 0, room: MOST_OF_ONE, over: false });
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
        let all: usize = self.0.iter().map(|known| known.bytes).sum();
        let known = self.0.iter_mut().rev().find(same)?;
        known.room = MOST_OF_ALL.saturating_sub(all - known.bytes).min(MOST_OF_ONE);
        Some(known)
    }
}

impl Known {
    /// It cannot be recorded any more.
    pub fn spoil(&mut self, why: String) {
        self.spoilt.get_or_insert(why);
    }

    /// Whether it has more rules than are remembered. Then it is none of ours any more: neither its rules, nor what the kernel
    /// needs for further ones, which would count for us.
    pub fn is_over(&mut self) -> bool {
        if self.over || self.bytes < self.room {
            return self.over;
        }
        self.spoil("a Landlock ruleset with more rules than are remembered".into());
        (self.bytes, self.over) = (0, true);
        self.placed.layer.rules = Vec::new();
        self.placed.files = Vec::new();
        true
    }

    /// Notes a rule; as in the kernel, one for what has a rule already adds to that.
    fn note(&mut self, rule: Rule, file: (u64, u64)) {
        let rules = self.placed.layer.rules.iter_mut().zip(&self.placed.files);
        for (known, of) in rules {
            match (known, &rule) {
                (Rule::Beneath { access, .. }, Rule::Beneath { access: more, .. }) if *of == file => {
                    *access |= more;
                    return;
                }
                (Rule::Port { access, port }, Rule::Port { access: more, port: other }) if port == other => {
                    *access |= more;
                    return;
                }
                _ => {}
            }
        }
        self.bytes += RULE + if let Rule::Beneath { path, .. } = &rule { path.0.len() } else { 0 };
        self.placed.layer.rules.push(rule);
        self.placed.files.push(file);
    }

    /// Adds a rule for a path, and notes it.
    pub fn allow_beneath(&mut self, proc: &OwnedFd, access: u64, parent: &OwnedFd) -> Result<(), SysError> {
        landlock::allow_beneath(&self.fd, access, parent)?;
        let path = link(proc, parent)?;
        let stat = rustix::fs::fstat(parent).named("fstat", || "a rule's parent".into())?;
        if !path.starts_with(b"/") || path.ends_with(b" (deleted)") {
            self.spoil(format!("a Landlock rule for {}, which has no path", path.escape_ascii()));
        }
        self.note(Rule::Beneath { access, path: Bytes(path) }, (stat.st_dev, stat.st_ino));
        Ok(())
    }

    /// Adds a rule for a port, and notes it.
    pub fn allow_port(&mut self, access: u64, port: u64) -> Result<(), SysError> {
        landlock::allow_port(&self.fd, access, port)?;
        self.note(Rule::Port { access, port }, (0, 0));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rulesets() -> Rulesets {
        let fd = std::fs::File::open("/dev/null").expect("/dev/null");
        let mut all = Rulesets::default();
        all.add(fd.into(), &[]);
        all
    }

    #[test]
    fn a_rule_for_the_same_adds_to_it() {
        let mut all = rulesets();
        let known = &mut all.0[0];
        let beneath = |access, path: &str| Rule::Beneath { access, path: Bytes(path.into()) };
        known.note(beneath(1, "/a"), (8, 2));
        known.note(beneath(2, "/by/another/name"), (8, 2));
        known.note(beneath(4, "/b"), (8, 3));
        for _ in 0..10_000 {
            known.note(Rule::Port { access: 1, port: 7 }, (0, 0));
            known.note(Rule::Port { access: 2, port: 7 }, (0, 0));
        }
        let wanted = [beneath(3, "/a"), beneath(4, "/b"), Rule::Port { access: 3, port: 7 }];
        assert_eq!(known.placed().unwrap().layer.rules, wanted);
        assert!(!known.is_over());
    }

    #[test]
    fn no_more_rules_are_remembered_than_there_is_room_for() {
        let mut all = rulesets();
        let theirs = all.0[0].fd.try_clone().expect("dup");
        let mut noted = 0;
        for port in 0..u64::from(u16::MAX) {
            let known = all.find(&theirs).expect("it is there");
            if !known.is_over() {
                known.note(Rule::Port { access: 1, port }, (0, 0));
                noted += 1;
            }
        }
        assert_eq!(noted, MOST_OF_ONE / RULE);
        let known = &mut all.0[0];
        assert!(known.is_over() && known.placed.layer.rules.is_empty() && known.bytes == 0);
        assert!(known.placed().unwrap_err().contains("more rules than are remembered"));
        // All together have a bound, too.
        let mut all = rulesets();
        all.add(std::fs::File::open("/dev/null").expect("/dev/null").into(), &[]);
        all.0[0].bytes = MOST_OF_ALL;
        let last = all.0[1].fd.try_clone().expect("dup");
        assert!(all.find(&last).is_some_and(|known| known.room == 0 && known.is_over()));
    }
}
