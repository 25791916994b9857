//! AppArmor: a policy is many profiles, each with a digest of its own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, OFlags};

use super::{open, read};

/// Profiles lie in profiles and in namespaces; deeper than this nobody nests them.
const DEEPEST: usize = 8;

/// The digests of the profiles that these labels are made of.
pub(super) fn parts(security: Option<&OwnedFd>, labels: &[&[u8]]) -> Option<BTreeMap<String, String>> {
    let wanted: Vec<String> = labels.iter().flat_map(|label| components(label)).collect();
    if wanted.is_empty() {
        return Some(BTreeMap::new());
    }
    let mut found = BTreeMap::new();
    let policy = open(security?, "apparmor/policy", OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    namespace(&policy, None, DEEPEST, &mut found)?;
    // A profile that is not there is no part: that it is missing shows in the comparison.
    Some(wanted.into_iter().filter_map(|name| Some((name.clone(), found.get(&name)?.clone()))).collect())
}

/// Which load this is: the kernel counts every change of its policy.
pub(super) fn load(security: Option<&OwnedFd>) -> Option<String> {
    // One read only: a second one would wait for the next change.
    let file = open(security?, "apparmor/revision", OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    let mut text = [0_u8; 32];
    let count = rustix::io::read(&file, &mut text).ok()?;
    Some(String::from_utf8_lossy(text.get(..count)?).trim().to_owned())
}

/// Whether a task with this label is in a hat of a profile, or in a child of it: labels do not tell these two apart.
#[must_use]
pub fn is_in_hat(label: &[u8]) -> bool {
    let plain =
        |name: &str| name.strip_prefix(':').and_then(|rest| rest.split_once(':')).map(|(_, own)| own.to_owned());
    components(label)
        .iter()
        .any(|name| plain(name).unwrap_or_else(|| name.clone()).trim_start_matches("//").contains("//"))
}

/// The profiles that a label consists of (`a//&b` is both at once, `a//b` is one, `unconfined` is none). Of several that
/// follow each other in one namespace (`:n:a//&b`) only the first names it (security/apparmor/label.c).
pub(super) fn components(label: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(label);
    let mut within = String::new();
    let mut out = Vec::new();
    for part in text.split("//&").filter(|part| !part.is_empty()) {
        let full = match part.strip_prefix(':').and_then(|rest| rest.split_once(':')) {
            Some((namespace, _)) => {
                within = format!(":{namespace}:");
                part.to_owned()
            }
            None => format!("{within}{part}"),
        };
        if !is_unconfined(&full) {
            out.push(full);
        }
    }
    out
}

fn is_unconfined(part: &str) -> bool {
    part == "unconfined" || (part.starts_with(':') && part.ends_with(":unconfined"))
}

fn namespace(dir: &OwnedFd, own: Option<&str>, depth: usize, found: &mut BTreeMap<String, String>) -> Option<()> {
    profiles(dir, &own.map(|own| format!(":{own}:")).unwrap_or_default(), depth, found)?;
    for name in names(dir, "namespaces").unwrap_or_default() {
        let below = open(dir, &format!("namespaces/{name}"), OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        if depth > 0 {
            namespace(&below, Some(&nested(own, &name)), depth - 1, found)?;
        }
    }
    Some(())
}

/// The name of a namespace in another one, as the kernel shows it (security/apparmor/policy_ns.c, `aa_ns_name`).
fn nested(outer: Option<&str>, name: &str) -> String {
    outer.map_or_else(|| name.to_owned(), |outer| format!("{outer}//{name}"))
}

/// `profiles` of a namespace or of a profile: children are named `parent//child`.
fn profiles(dir: &OwnedFd, prefix: &str, depth: usize, found: &mut BTreeMap<String, String>) -> Option<()> {
    for entry in names(dir, "profiles")? {
        let profile = open(dir, &format!("profiles/{entry}"), OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
        let name = format!("{prefix}{}", read(&profile, "name")?.trim_end_matches('\n'));
        let digest =
            ["sha256", "sha1"].iter().find_map(|kind| Some(format!("{kind} {}", read(&profile, kind)?.trim())));
        found.insert(name.clone(), digest?);
        if depth > 0 && names(&profile, "profiles").is_some() {
            profiles(&profile, &format!("{name}//"), depth - 1, found)?;
        }
    }
    Some(())
}

fn names(dir: &OwnedFd, path: &str) -> Option<Vec<String>> {
    let list = Dir::read_from(open(dir.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY).ok()?).ok()?;
    let names = list.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Some(names.filter(|name| name != "." && name != "..").collect())
}

#[cfg(test)]
mod tests {
    use super::{components, is_in_hat, nested};

    #[test]
    fn labels_fall_into_profiles() {
        assert_eq!(components(b"/usr/sbin/a b//&c//hat//&:ns:d"), ["/usr/sbin/a b", "c//hat", ":ns:d"]);
        assert_eq!(components(b"unconfined//&x//&:ns:unconfined"), ["x"]);
        assert!(components(b"unconfined").is_empty());
        assert_eq!(components(b"a//&:n//m:b//&c//&:o:d"), ["a", ":n//m:b", ":n//m:c", ":o:d"]);
        assert!(components(b":n:unconfined//&unconfined").iter().all(|name| name != ":n:unconfined"));
    }

    #[test]
    fn hats_are_known_by_their_profiles() {
        for hat in [&b"a//hat"[..], b"x//&a//hat", b":n://a//hat", b":n:a//hat", b"/usr/sbin/a b//c//&d"] {
            assert!(is_in_hat(hat), "{}", hat.escape_ascii());
        }
        for none in [&b"a"[..], b"unconfined", b"a//&b", b":n://a", b":n//m:b", b"/usr/sbin/a"] {
            assert!(!is_in_hat(none), "{}", none.escape_ascii());
        }
    }

    #[test]
    fn namespaces_have_names_as_in_labels() {
        let inner = nested(Some(&nested(Some(&nested(None, "a")), "b")), "c");
        assert_eq!(inner, "a//b//c");
        assert_eq!(components(format!(":{inner}:p").as_bytes()), [":a//b//c:p"]);
    }
}
