//! `cargo xtask docs`: pages that are made from the code. A house rule holds that those in the repository are fresh.
//!
//! Man pages and shell completions are made below cargo's target directory and not kept: each line of them is in a declaration
//! already. The fields of an image's records are: who reads the format has not always cargo at hand.

pub mod records;
mod resources;

use std::path::Path;
use std::process::Command;

use crate::tidy::Tree;
use crate::{Outcome, workspace};

/// A page: where it lies, and how it is made.
struct Page {
    path: &'static str,
    make: fn(&Tree) -> Outcome<String>,
}

const PAGES: &[Page] =
    &[Page { path: "docs/resources.md", make: resources::page }, Page { path: "docs/records.md", make: records::page }];

/// Writes all of them.
///
/// # Errors
/// A page cannot be made or written.
pub fn run() -> Outcome {
    let root = workspace::root();
    let tree = Tree::read(&root)?;
    for page in PAGES {
        std::fs::write(root.join(page.path), (page.make)(&tree)?)?;
        println!("{}", page.path);
    }
    let directory = workspace::target_directory()?.join("docs");
    std::fs::create_dir_all(&directory)?;
    generate(&directory)
}

/// Man pages and completions: the command makes them of itself.
fn generate(directory: &Path) -> Outcome {
    let mut command = Command::new(workspace::cargo());
    command.args(["run", "--quiet", "--package", "yendor", "--", "generate"]).arg(directory);
    let status = command.current_dir(workspace::root()).status()?;
    if status.success() { Ok(()) } else { Err(format!("yendor generate: {status}").into()) }
}

/// Those that the code would make otherwise now.
///
/// # Errors
/// A page cannot be made.
pub fn stale(tree: &Tree) -> Outcome<Vec<String>> {
    let mut out = Vec::new();
    for page in PAGES {
        let now = (page.make)(tree)?;
        let written = tree.get(page.path).unwrap_or_default();
        if written != now {
            let line = written.lines().zip(now.lines()).take_while(|(old, new)| old == new).count() + 1;
            out.push(format!("{}:{line}: run `cargo xtask docs`", page.path));
        }
    }
    Ok(out)
}
