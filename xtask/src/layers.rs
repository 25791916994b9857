//! The arrows between the crates: who may depend on whom.

use crate::workspace::Member;

/// A crate of ours and what of ours it may name in its Cargo.toml (dev-dependencies included).
struct Layer {
    name: &'static str,
    may_use: &'static [&'static str],
}

/// The house, from the ground up. The engine stands above all kinds and may therefore name what they
/// stand on; nothing may name the programs and the tests.
const LAYERS: &[Layer] = &[
    Layer { name: "yendor-sys", may_use: &[] },
    Layer { name: "yendor-proc", may_use: &[] },
    Layer { name: "yendor-image", may_use: &[] },
    Layer { name: "yendor-task", may_use: &["yendor-sys"] },
    Layer { name: "yendor-policy", may_use: &["yendor-sys"] },
    Layer { name: "yendor-kinds", may_use: &["yendor-sys", "yendor-proc", "yendor-task", "yendor-image"] },
    Layer {
        name: "yendor-engine",
        may_use: &["yendor-kinds", "yendor-policy", "yendor-sys", "yendor-proc", "yendor-task", "yendor-image"],
    },
    Layer { name: "yendor", may_use: &["yendor-engine", "yendor-policy", "yendor-image", "yendor-kinds"] },
    // A probe must know no more of Yendor than any program does.
    Layer { name: "yendor-probes", may_use: &[] },
    // The tests drive the built command, as a user would.
    Layer { name: "yendor-tests", may_use: &[] },
    // What is fuzzed is parsers, and their seeds are images of the built command.
    Layer {
        name: "yendor-fuzz",
        may_use: &["yendor-engine", "yendor-policy", "yendor-kinds", "yendor-image", "yendor-proc", "yendor-tests"],
    },
    // The chores must build when the crates do not.
    Layer { name: "xtask", may_use: &[] },
];

/// Crates that build without Linux, and the bindings to a kernel that they must not name. A parser does no input
/// or output at all; the format opens its files relative to a directory, which every Unix can (openat(2)).
const KNOWS_NO_KERNEL: &[(&str, &[&str])] = &[
    ("yendor-proc", &["libc", "rustix", "nix", "linux-raw-sys"]),
    ("yendor-image", &["libc", "nix", "linux-raw-sys"]),
];

/// Every arrow that the house does not allow, and every member that has no place in it.
pub fn violations(members: &[Member]) -> Vec<String> {
    let mut found = Vec::new();
    for member in members {
        let Some(layer) = LAYERS.iter().find(|layer| layer.name == member.name) else {
            found.push(format!("{} has no layer: give it one in xtask/src/layers.rs", member.name));
            continue;
        };
        for dependency in &member.dependencies {
            let name = dependency.name.as_str();
            if dependency.ours && !layer.may_use.contains(&name) {
                found.push(format!("{} must not depend on {name}", member.name));
            }
            let barred = KNOWS_NO_KERNEL.iter().find(|(member, _)| *member == layer.name);
            if barred.is_some_and(|(_, bindings)| bindings.contains(&name)) {
                found.push(format!("{} must know no kernel, but names {name}", member.name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn member(name: &str, dependency: &str, ours: bool) -> [Member; 1] {
        let dependencies = vec![Dependency { name: dependency.into(), ours }];
        [Member { name: name.into(), dependencies }]
    }

    #[test]
    fn an_arrow_down_is_allowed() {
        assert!(violations(&member("yendor-task", "yendor-sys", true)).is_empty());
        assert!(violations(&member("yendor-task", "thiserror", false)).is_empty());
    }

    #[test]
    fn an_arrow_up_or_aside_is_found() {
        for (from, to) in [
            ("yendor-sys", "yendor-task"),
            ("yendor-image", "yendor-sys"),
            ("yendor-policy", "yendor-kinds"),
            ("yendor-probes", "yendor-sys"),
        ] {
            assert_eq!(violations(&member(from, to, true)).len(), 1, "{from} -> {to}");
        }
    }

    #[test]
    fn a_parser_with_a_kernel_is_found() {
        for (from, to, found) in
            [("yendor-proc", "rustix", 1), ("yendor-image", "libc", 1), ("yendor-image", "rustix", 0)]
        {
            assert_eq!(violations(&member(from, to, false)).len(), found, "{from} -> {to}");
        }
    }

    #[test]
    fn a_member_without_a_layer_is_found() {
        assert_eq!(violations(&member("yendor-new", "serde", false)).len(), 1);
    }
}
