//! Links of the Markdown files to other files and to headings.

use super::Tree;
use std::path::Path;

pub(super) fn dead(tree: &Tree, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.with_extension("md") {
        for (number, target) in links(text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let file = if file.is_empty() {
                path.to_path_buf()
            } else {
                flat(&path.parent().unwrap_or(Path::new("")).join(file))
            };
            let known = tree.files.iter().find(|(path, _)| *path == file);
            let alive = match known {
                Some((_, text)) => anchor.is_empty() || headings(text).iter().any(|heading| heading == anchor),
                None => anchor.is_empty() && root.join(&file).exists(),
            };
            if !alive {
                found.push(format!("{}:{number}: {target} leads nowhere", path.display()));
            }
        }
    }
    found
}

/// The targets of inline links that stay within the checkout, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let without_code: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        for piece in without_code.split("](").skip(1) {
            let target = piece.split([')', ' ']).next().unwrap_or("");
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number, target.to_owned()));
            }
        }
    }
    found
}

/// The anchors that a forge gives to the headings of a file.
fn headings(text: &str) -> Vec<String> {
    let heading = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|sign| sign.is_alphanumeric() || " -_".contains(*sign));
        kept.map(|sign| if sign == ' ' { '-' } else { sign }).collect()
    };
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| heading(line)).collect()
}

/// Numbered lines that are not in a fenced block.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The path without `.` and `..`.
fn flat(path: &Path) -> std::path::PathBuf {
    let mut flat = std::path::PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                flat.pop();
            }
            std::path::Component::CurDir => {}
            other => flat.push(other),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    fn dead_in(text: &str) -> usize {
        let other = ("docs/other.md", "# A title: with `code`\n```\n# not a title\n```\n");
        dead(&tree(&[("docs/a.md", text), other, ("README.md", "")]), Path::new("/nonexistent")).len()
    }

    #[test]
    fn dead_links_are_found() {
        assert_eq!(dead_in("[a](nowhere.md)"), 1);
        assert_eq!(dead_in("[a](other.md#absent)"), 1);
        assert_eq!(dead_in("[a](other.md#not-a-title)"), 1);
        assert_eq!(dead_in("[a](README.md) [b](#absent)"), 2);
    }

    #[test]
    fn live_links_and_code_are_not() {
        assert_eq!(dead_in("[a](other.md) and [b](./other.md#a-title-with-code)"), 0);
        assert_eq!(dead_in("[a](../README.md) [b](https://example.org/x#y)"), 0);
        assert_eq!(dead_in("`[a](nowhere)`\n```\n[a](nowhere)\n```\n"), 0);
    }
}
