//! Whether the labels of an image may be kept: same modules, same policy. What the kernel thinks of each label comes later.

use std::collections::BTreeMap;

use super::Identity;

/// Why labels cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The modules that label tasks are others.
    #[error("the image was taken under {was}, and here is {here}")]
    Modules {
        /// Names at checkpoint.
        was: String,
        /// Names here.
        here: String,
    },
    /// A module's policy is another.
    #[error("the policy of {module} is not the one of the checkpoint: {what}")]
    Policy {
        /// Its name.
        module: String,
        /// Which part of it.
        what: String,
    },
    /// It cannot be said whether it is.
    #[error("it cannot be told whether the policy of {module} is the one of the checkpoint: {why}")]
    Unknown {
        /// Its name.
        module: String,
        /// What is missing.
        why: &'static str,
    },
}

/// Compares what was recorded with what is here: identities by module.
///
/// # Errors
/// The first difference.
pub fn compare(was: &BTreeMap<String, Identity>, here: &BTreeMap<String, Identity>) -> Result<(), Refusal> {
    if !was.keys().eq(here.keys()) {
        let list = |all: &BTreeMap<String, Identity>| {
            let names: Vec<&str> = all.keys().map(String::as_str).collect();
            if names.is_empty() { "no module that labels tasks".to_owned() } else { names.join(" and ") }
        };
        return Err(Refusal::Modules { was: list(was), here: list(here) });
    }
    was.iter().zip(here.values()).try_for_each(|((module, was), here)| same(module, was, here))
}

fn same(module: &str, was: &Identity, here: &Identity) -> Result<(), Refusal> {
    // The very same load is the same policy, whoever may read it.
    if was.load.is_some() && was.load == here.load {
        return Ok(());
    }
    let unknown = |why| Refusal::Unknown { module: module.to_owned(), why };
    let was = was.parts.as_ref().ok_or_else(|| unknown("whoever took the image could not read it"))?;
    let here = here.parts.as_ref().ok_or_else(|| unknown("the caller may not read it"))?;
    for (what, digest) in was {
        let what = match here.get(what) {
            Some(now) if now == digest => continue,
            Some(_) => format!("{what} has changed"),
            None => format!("{what} is not there"),
        };
        return Err(Refusal::Policy { module: module.to_owned(), what });
    }
    // An image that leaves out a part says nothing of it: that is no reason to take it for the same.
    match here.keys().find(|what| !was.contains_key(*what)) {
        Some(what) => {
            let what = format!("the image does not say which {what} it was taken under");
            Err(Refusal::Policy { module: module.to_owned(), what })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(parts: Option<&[(&str, &str)]>, load: Option<&str>) -> Identity {
        let parts = parts.map(|parts| parts.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect());
        Identity { parts, load: load.map(str::to_owned) }
    }

    fn under(module: &str, identity: Identity) -> BTreeMap<String, Identity> {
        BTreeMap::from([(module.to_owned(), identity)])
    }

    #[test]
    fn other_modules_are_refused() {
        let none = BTreeMap::new();
        let apparmor = under("apparmor", identity(Some(&[]), None));
        let selinux = under("selinux", identity(Some(&[]), None));
        for (was, here) in [(&apparmor, &selinux), (&apparmor, &none), (&none, &apparmor)] {
            assert!(matches!(compare(was, here), Err(Refusal::Modules { .. })));
        }
        assert_eq!(compare(&none, &none), Ok(()));
        assert_eq!(compare(&apparmor, &apparmor), Ok(()));
    }

    #[test]
    fn another_policy_is_refused() {
        let was = under("apparmor", identity(Some(&[("p", "1")]), Some("boot 1")));
        let with = |parts: Option<&[(&str, &str)]>, load| compare(&was, &under("apparmor", identity(parts, load)));
        assert_eq!(with(Some(&[("p", "1")]), Some("boot 2")), Ok(()));
        for (was, here) in [(&[("p", "1")][..], &[("p", "1"), ("q", "2")][..]), (&[], &[("p", "1")])] {
            let [was, here] = [was, here].map(|parts| under("apparmor", identity(Some(parts), None)));
            let said = compare(&was, &here).unwrap_err().to_string();
            assert!(said.contains("the image does not say which"), "{said}");
        }
        assert!(matches!(with(Some(&[("p", "2")]), Some("boot 2")), Err(Refusal::Policy { .. })));
        assert!(matches!(with(Some(&[("q", "1")]), Some("boot 2")), Err(Refusal::Policy { .. })));
    }

    #[test]
    fn what_cannot_be_compared_is_refused_but_for_the_same_load() {
        let was = under("selinux", identity(None, Some("boot 1")));
        let with = |parts: Option<&[(&str, &str)]>, load| compare(&was, &under("selinux", identity(parts, load)));
        assert_eq!(with(None, Some("boot 1")), Ok(()));
        assert!(matches!(with(None, Some("boot 2")), Err(Refusal::Unknown { .. })));
        assert!(matches!(with(None, None), Err(Refusal::Unknown { .. })));
        let nothing = under("selinux", identity(None, None));
        assert!(matches!(compare(&nothing, &nothing), Err(Refusal::Unknown { .. })));
    }
}
