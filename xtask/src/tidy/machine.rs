//! Paths that exist on one machine only.

use super::Tree;
use std::path::Path;

/// Beginnings of such paths whoever runs this, spelt in two halves so that this file is none of them.
const BEGINNINGS: &[&str] = &[
    concat!("/wo", "rk/main"),
    concat!("/wo", "rk/shared"),
    concat!("/wo", "rk/."),
    concat!("/root", "/."),
    concat!("/tmp/", "target-"),
    concat!("/tmp/", "brief"),
];

pub(super) fn paths(tree: &Tree, checkout: &Path, home: Option<&Path>) -> Vec<String> {
    // A checkout in `/src` or a home of `/root` would make ordinary words of a container forbidden.
    // That of the tests' own account is none of somebody's: a virtual machine of the lab has it too.
    let telling = |path: &&Path| path.components().count() > 2 && !path.ends_with("yendor-test");
    let here = [Some(checkout), home].into_iter().flatten().filter(telling);
    let here: Vec<String> = here.map(|path| path.display().to_string()).collect();

    let mut found = Vec::new();
    for (path, text) in &tree.files {
        for (number, line) in (1..).zip(text.lines()) {
            let beginnings = BEGINNINGS.iter().copied().chain(here.iter().map(String::as_str));
            for beginning in beginnings.filter(|beginning| line.contains(beginning)) {
                found.push(format!("{}:{number}: `{beginning}`", path.display()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn a_path_of_this_machine_is_found() {
        let text = "see /home/frodo/yendor/README.md";
        let tree = tree(&[("docs/a.md", text), ("docs/b.md", "/root is a home, /src a place")]);
        assert_eq!(paths(&tree, Path::new("/home/frodo/yendor"), None).len(), 1);
        assert_eq!(paths(&tree, Path::new("/src"), Some(Path::new("/home/frodo"))).len(), 1);
        assert!(paths(&tree, Path::new("/src"), Some(Path::new("/root"))).is_empty());
        let lab = super::super::tree(&[("lab.rs", "/home/yendor-test")]);
        assert!(paths(&lab, Path::new("/src"), Some(Path::new("/home/yendor-test"))).is_empty());
    }

    #[test]
    fn a_path_of_any_builder_is_found() {
        for beginning in BEGINNINGS {
            let tree = tree(&[("a.rs", &format!("open(\"{beginning}x\")"))]);
            assert_eq!(paths(&tree, Path::new("/src"), None).len(), 1, "{beginning}");
        }
    }
}
