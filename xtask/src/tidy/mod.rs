//! The house rules that a compiler does not hold: each is a row of [`RULES`], and a rule without a row is a wish.

mod dependencies;
mod links;
mod machine;
mod rust;

use crate::{Outcome, docs, workspace};
use std::fs;
use std::path::{Path, PathBuf};

/// The text files of a checkout: path relative to its top, and content.
pub struct Tree {
    files: Vec<(PathBuf, String)>,
}

/// One house rule.
pub struct Rule {
    /// The name that a complaint is printed under.
    pub name: &'static str,
    /// Why it is a rule.
    pub why: &'static str,
    /// Finds every breach of it, each as `path:line: what`.
    pub find: fn(&Tree) -> Outcome<Vec<String>>,
}

/// All of them.
pub const RULES: &[Rule] = &[
    Rule {
        name: "unsafe only in sys",
        why: "one crate to read when memory safety is in question",
        find: |tree| Ok(rust::unsafe_outside_sys(tree)),
    },
    Rule {
        name: "files of at most 500 lines",
        why: "a file that grows past that is usually two things",
        find: |tree| Ok(rust::long_files(tree)),
    },
    Rule {
        name: "nothing left for later in code",
        why: "what is not done is refused by name, not met as a panic",
        find: |tree| Ok(rust::unfinished(tree)),
    },
    Rule {
        name: "every kind says what it reads, makes and loses",
        why: "the reader of a kind checks it against these lines, and docs/resources.md is made from them",
        find: |tree| Ok(rust::kinds_without_head(tree)),
    },
    Rule {
        name: "tests for root alone say that they are skipped",
        why: "who runs them as somebody else takes what was not tried for what holds",
        find: |tree| Ok(rust::silent_skips(tree)),
    },
    Rule {
        name: "pages that are made from the code are fresh",
        why: "a page that says what was is worse than none",
        find: docs::stale,
    },
    Rule {
        name: "no paths of a machine",
        why: "they work for one person only",
        find: |tree| Ok(machine::paths(tree, &workspace::root(), std::env::home_dir().as_deref())),
    },
    Rule {
        name: "links lead somewhere",
        why: "a dead link costs each reader a search",
        find: |tree| Ok(links::dead(tree, &workspace::root())),
    },
    Rule {
        name: "every dependency has a reason",
        why: "each one is code that we answer for: docs/dependencies.md",
        find: |tree| Ok(dependencies::unexplained(tree, &workspace::members()?)),
    },
];

impl Tree {
    /// Reads the text files below `root`. Left out are build products (directories with a CACHEDIR.TAG or named
    /// `target`), dot directories but for `.ci`, `.cargo` and `.github`, and files that are not UTF-8.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn read(root: &Path) -> Outcome<Self> {
        let mut files = Vec::new();
        let mut ahead = vec![root.to_path_buf()];
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let (path, kind) = (entry.path(), entry.file_type()?);
                if kind.is_dir() && is_ours(&path) {
                    ahead.push(path);
                } else if kind.is_file()
                    // A checkout that is a worktree has a file of this name.
                    && entry.file_name() != ".git"
                    && let Ok(text) = fs::read_to_string(&path)
                {
                    files.push((path.strip_prefix(root)?.to_path_buf(), text));
                }
            }
        }
        files.sort();
        Ok(Self { files })
    }

    /// How many files there are: with none, no rule could be broken.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(crate) fn with_extension(&self, extension: &str) -> impl Iterator<Item = (&Path, &str)> {
        let matching = move |(path, _): &&(PathBuf, String)| path.extension().is_some_and(|is| is == extension);
        self.files.iter().filter(matching).map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// The files below a directory, by path.
    pub(crate) fn below(&self, directory: &Path) -> impl Iterator<Item = (&Path, &str)> {
        let found = self.files.iter().filter(move |(path, _)| path.starts_with(directory));
        found.map(|(path, text)| (path.as_path(), text.as_str()))
    }

    pub(crate) fn get(&self, wanted: &str) -> Option<&str> {
        let found = self.files.iter().find(|(path, _)| path == Path::new(wanted));
        found.map(|(_, text)| text.as_str())
    }
}

fn is_ours(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let hidden = name.starts_with('.') && ![".ci", ".cargo", ".github"].contains(&&*name);
    !hidden && name != "target" && !directory.join("CACHEDIR.TAG").exists()
}

#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Tree {
    Tree { files: files.iter().map(|(path, text)| (path.into(), (*text).to_owned())).collect() }
}
