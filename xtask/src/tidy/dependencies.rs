//! docs/dependencies.md against the dependency tables.

use super::Tree;
use crate::workspace::Member;
use std::collections::BTreeSet;

const LIST: &str = "docs/dependencies.md";

/// Third-party crates that the workspace or a member names and the list does not, and the other way round.
///
/// A line of the list is "- `name`: reason".
pub(super) fn unexplained(tree: &Tree, members: &[Member]) -> Vec<String> {
    let Some(list) = tree.get(LIST) else {
        return vec![format!("{LIST}:1: is not there")];
    };
    let of_members = members.iter().flat_map(|member| &member.dependencies);
    let of_members = of_members.filter(|one| !one.ours).map(|one| one.name.as_str());
    let used: BTreeSet<&str> = of_members.chain(offered(tree.get("Cargo.toml").unwrap_or(""))).collect();
    let explained: BTreeSet<&str> = list.lines().filter_map(explained).collect();

    let without_reason = used.difference(&explained).map(|name| format!("{LIST}:1: no reason for `{name}`"));
    let without_use = explained.difference(&used).map(|name| format!("{LIST}:1: `{name}` is used by nobody"));
    without_reason.chain(without_use).collect()
}

fn explained(line: &str) -> Option<&str> {
    let (name, reason) = line.strip_prefix("- `")?.split_once("`:")?;
    (!reason.trim().is_empty()).then_some(name)
}

/// The third-party crates in the table that members inherit from.
fn offered(manifest: &str) -> impl Iterator<Item = &str> {
    let table = manifest.split("[workspace.dependencies]\n").nth(1).unwrap_or("");
    let lines = table.lines().take_while(|line| !line.starts_with('['));
    let foreign = lines.filter(|line| !line.starts_with('#') && !line.contains("path ="));
    foreign.filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim())
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;
    use crate::workspace::Dependency;

    #[test]
    fn both_sides_of_the_list_are_checked() {
        let dependency = |name: &str, ours| Dependency { name: name.into(), ours };
        let dependencies = vec![dependency("used", false), dependency("own", true)];
        let members = [Member { name: "a".into(), dependencies }];
        let found = |list: &str| unexplained(&tree(&[(LIST, list)]), &members).len();
        assert_eq!(found("- `used`: needed\n"), 0);
        assert_eq!(found("- `used`: \n"), 1);
        assert_eq!(found("- `used`: needed\n- `idle`: once needed\n"), 1);
        assert_eq!(found(""), 1);
        assert_eq!(unexplained(&tree(&[]), &members).len(), 1);
    }

    #[test]
    fn what_the_workspace_offers_needs_a_reason_too() {
        let manifest = "[workspace.dependencies]\nown = { path = \"own\" }\n\nfar = \"1\"\n[profile.dev]\nx = 1\n";
        let found = |list: &str| unexplained(&tree(&[(LIST, list), ("Cargo.toml", manifest)]), &[]);
        assert_eq!(found(""), ["docs/dependencies.md:1: no reason for `far`"]);
        assert!(found("- `far`: needed\n").is_empty());
    }
}
