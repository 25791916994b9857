//! docs/resources.md: what becomes of each kind of kernel object, from the heads of the kinds' modules.

use crate::Outcome;
use crate::tidy::Tree;
use std::fmt::Write as _;
use std::path::Path;

const KINDS: &str = "crates/kinds/src/";
const REFUSED: &str = "crates/kinds/src/file/refused.rs";

/// Directories below the kinds, and what they are called on the page.
const GROUPS: &[(&str, &str)] =
    &[("file", "Open files"), ("process", "Processes and threads"), ("memory", "Memory"), ("namespace", "Containers")];

const BEGIN: &str = "# Kernel objects

What Yendor does with each kind of kernel object. Made by `cargo xtask docs` from the heads of the modules in
`crates/kinds`; do not edit.

What no module here knows refuses the checkpoint and says its name. *Lost* is what a program could notice after a
restore; what is not named there comes back.
";

/// The head of a module: what it is, and its lines `*Word:* text`.
struct Head {
    what: String,
    lines: Vec<String>,
}

/// The page.
///
/// # Errors
/// None of the modules has a head.
pub fn page(tree: &Tree) -> Outcome<String> {
    let mut out = BEGIN.to_owned();
    for (directory, title) in GROUPS {
        write!(out, "\n## {title}\n")?;
        for (path, text) in tree.below(Path::new(KINDS).join(directory).as_path()) {
            let Some(Head { what, lines }) = head(text).filter(|_| path != Path::new(REFUSED)) else { continue };
            write!(out, "\n### {}\n\n{what}\n\n", name(path))?;
            for line in lines {
                writeln!(out, "- {line}")?;
            }
        }
    }
    let refused = tree.get(REFUSED).map(reasons).unwrap_or_default();
    if refused.is_empty() {
        return Err(format!("{REFUSED} names nothing").into());
    }
    out.push_str(
        "\n## Refused by name\n\nThese files cannot be checkpointed; a tree that holds one is left alone.\n\n",
    );
    for reason in refused {
        writeln!(out, "- {reason}")?;
    }
    Ok(out)
}

/// `file/unix/name.rs` is `unix: name`, `file/unix/mod.rs` is `unix`.
fn name(path: &Path) -> String {
    let below = path.strip_prefix(KINDS).unwrap_or(path).with_extension("");
    let words: Vec<_> = below.iter().skip(1).map(|w| w.to_string_lossy()).filter(|w| w != "mod").collect();
    if words.is_empty() { below.to_string_lossy().into_owned() } else { words.join(": ") }
}

/// The head of a module that has the lines of a kind.
fn head(text: &str) -> Option<Head> {
    let doc: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    // What comes after an empty line explains to the reader of the code.
    let first: Vec<&str> =
        doc.split(|line| line.is_empty()).find(|part| part.iter().any(|l| l.starts_with("*Read")))?.to_vec();
    let mut parts: Vec<String> = vec![String::new()];
    for line in first {
        match parts.last_mut() {
            Some(part) if !line.starts_with('*') => {
                part.push_str(if part.is_empty() { "" } else { " " });
                part.push_str(line);
            }
            _ => parts.push(line.to_owned()),
        }
    }
    let mut parts = parts.into_iter().map(without_links);
    Some(Head { what: parts.next()?, lines: parts.collect() })
}

/// References that only rustdoc resolves become plain words.
fn without_links(text: String) -> String {
    text.replace("[`", "`").replace("`]", "`")
}

/// The second strings of the rows `("link", "reason"),`.
fn reasons(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| line.starts_with("    (") && line.ends_with("\"),"))
        .filter_map(|line| line.strip_suffix("\"),")?.rsplit_once('"').map(|(_, reason)| reason))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_taken_apart() {
        let text =
            "//! A pipe,\n//! both ends.\n//! *Read from:* a\n//! and b.\n//! *Lost:* [`c`].\n//!\n//! More.\nuse d;\n";
        let head = head(text).expect("a head");
        assert_eq!(head.what, "A pipe, both ends.");
        assert_eq!(head.lines, ["*Read from:* a and b.", "*Lost:* `c`."]);
        assert!(super::head("//! No kind.\n").is_none());
    }

    #[test]
    fn modules_have_the_names_of_their_places() {
        let at = |path: &str| name(&Path::new(KINDS).join(path));
        assert_eq!(
            [at("file/unix/mod.rs"), at("file/unix/name.rs"), at("memory/vma.rs")],
            ["unix", "unix: name", "vma"]
        );
    }
}
