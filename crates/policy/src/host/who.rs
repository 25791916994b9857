//! Who asks, and whether a list means them.

use rustix::process::{getegid, geteuid, getgroups};
use yendor_sys::namespace::ids_are_the_hosts;

use super::{Id, Who};

/// The person who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// User id.
    pub uid: u32,
    /// Group ids, the supplementary ones too.
    pub gids: Vec<u32>,
    /// `/etc/passwd` and `/etc/group`: what names mean here.
    pub names: (Vec<u8>, Vec<u8>),
    /// Whether these ids are the host's. In a user namespace they are whatever its maker has chosen: they say nothing.
    pub known: bool,
}

impl Person {
    /// The caller of this process.
    #[must_use]
    pub fn caller() -> Person {
        // Without the list only groups that the caller is certain to be in count: that denies, it does not allow.
        let mut gids: Vec<u32> = getgroups().unwrap_or_default().iter().map(|g| g.as_raw()).collect();
        gids.push(getegid().as_raw());
        let read = |file| std::fs::read(file).unwrap_or_default();
        let names = (read("/etc/passwd"), read("/etc/group"));
        Person { uid: geteuid().as_raw(), gids, names, known: ids_are_the_hosts() }
    }

    /// The person's name, or the number where there is none.
    #[must_use]
    pub fn name(&self) -> String {
        let named = entries(&self.names.0).find(|(_, id)| *id == self.uid);
        named.map_or_else(|| self.uid.to_string(), |(name, _)| String::from_utf8_lossy(name).into_owned())
    }

    pub(super) fn is_meant(&self, who: &Who) -> bool {
        if !self.known {
            return false;
        }
        let user = |id: &Id| number(id, &self.names.0) == Some(self.uid);
        let group = |id: &Id| number(id, &self.names.1).is_some_and(|gid| self.gids.contains(&gid));
        who.users.iter().any(user) || who.groups.iter().any(group)
    }
}

/// A name that nobody has means nobody.
fn number(id: &Id, names: &[u8]) -> Option<u32> {
    match id {
        Id::Number(number) => Some(*number),
        Id::Name(name) => entries(names).find(|(known, _)| *known == name.as_bytes()).map(|(_, id)| id),
    }
}

/// Names and ids of passwd(5) or group(5): first and third field.
fn entries(text: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let id = std::str::from_utf8(fields.nth(1)?).ok()?.parse().ok()?;
        Some((name, id))
    })
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |ids: &[Id]| {
            let one = |id: &Id| match id {
                Id::Number(n) => n.to_string(),
                Id::Name(n) => n.escape_debug().to_string(),
            };
            ids.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        match (self.users.is_empty(), self.groups.is_empty()) {
            (true, true) => f.write_str("nobody"),
            (false, true) => write!(f, "users {}", list(&self.users)),
            (true, false) => write!(f, "groups {}", list(&self.groups)),
            (false, false) => write!(f, "users {}, groups {}", list(&self.users), list(&self.groups)),
        }
    }
}
