//! Rules about Rust files.

use super::Tree;
use crate::source;
use std::path::Path;

/// Where the word may stand: the one crate that wraps the kernel, and programs that are not Yendor. Integration
/// tests (any directory `tests`) are such programs too; a test module inside a source file is not.
const MAY_BE_UNSAFE: &[&str] = &["crates/sys", "probes"];
const LONGEST: usize = 500;
/// Macros that promise code instead of being it.
const PROMISES: &[&str] = &["todo", "unimplemented"];

const KINDS: &str = "crates/kinds/src";
const HEAD: &[&str] = &["Read from:", "Made again by:", "Lost:"];
/// Files below [`KINDS`] that are no kind, and what they are instead. A `mod.rs` is never one.
const NO_KIND: &[(&str, &str)] = &[
    ("lib.rs", "names the kinds and the shapes they have"),
    ("error.rs", "what goes wrong in any kind"),
    ("extent.rs", "how what several kinds have in pieces is checked"),
    ("file/gather.rs", "what file kinds share while they collect"),
    ("file/holder.rs", "who holds what a file kind refuses"),
    ("file/served.rs", "what file kinds share while they collect"),
    ("file/workshop.rs", "what file kinds share while they rebuild"),
    ("namespace/layer/clear.rs", "what makes room for a layer"),
    ("snapshot.rs", "the records of all kinds together"),
];

pub(super) fn unsafe_outside_sys(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.with_extension("rs") {
        let allowed = MAY_BE_UNSAFE.iter().any(|place| path.starts_with(place));
        if !allowed && !path.iter().any(|part| part == "tests") {
            let code = source::code_only(text);
            for word in ["unsafe", "unsafe_code"] {
                found.extend(places(path, &code, word, |_| true));
            }
        }
    }
    found
}

pub(super) fn long_files(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.with_extension("rs") {
        let lines = source::lines_without_tests(&source::code_only(text));
        if !is_test(path) && lines > LONGEST {
            found.push(format!("{}:{LONGEST}: {lines} lines without tests", path.display()));
        }
    }
    found
}

pub(super) fn unfinished(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.with_extension("rs") {
        let code = source::code_only(text);
        for word in PROMISES {
            found.extend(places(path, &code, word, |after| after.starts_with('!')));
        }
    }
    found
}

pub(super) fn kinds_without_head(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, _) in NO_KIND {
        if tree.get(&format!("{KINDS}/{path}")).is_none() {
            found.push(format!("{KINDS}/{path}:1: exempt, but not there: remove it from NO_KIND"));
        }
    }
    for (path, text) in tree.with_extension("rs") {
        let Ok(within) = path.strip_prefix(KINDS) else {
            continue;
        };
        let exempt = within.ends_with("mod.rs") || NO_KIND.iter().any(|(file, _)| within == Path::new(file));
        if exempt || is_test(path) {
            continue;
        }
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        for wanted in HEAD {
            if !head.iter().any(|line| line.contains(wanted)) {
                found.push(format!("{}:1: no line with `{wanted}` in the module's head", path.display()));
            }
        }
    }
    found
}

/// Ways to ask who one is.
const WHO: &[&str] = &["is_root()", "geteuid()", "getuid()"];

/// In tests: who asks whether he is root and returns at once says nothing of what he leaves out.
pub(super) fn silent_skips(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.with_extension("rs") {
        let code = source::code_only(text);
        let tests = if is_test(path) { 0 } else { code.find("#[cfg(test)]").unwrap_or(code.len()) };
        let first = code[..tests].lines().count();
        let lines: Vec<&str> = code.lines().collect();
        for (number, line) in lines.iter().enumerate().skip(first) {
            let asks = line.trim_start().starts_with("if ") && WHO.iter().any(|who| line.contains(who));
            let next = lines.get(number + 1).map_or("", |next| next.trim());
            let within = line.rsplit('{').next().unwrap_or("").trim();
            if asks && [next, within].iter().any(|at_once| at_once.starts_with("return;")) {
                found.push(format!("{}:{}: a silent return", path.display(), number + 1));
            }
        }
    }
    found
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// Every place of a whole word that what follows it makes interesting.
fn places(path: &Path, code: &str, word: &str, matters: fn(&str) -> bool) -> Vec<String> {
    let part_of_word = |sign: char| sign.is_alphanumeric() || sign == '_';
    let mut found = Vec::new();
    for (number, line) in (1..).zip(code.lines()) {
        let hit = line.match_indices(word).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + word.len()..]);
            !before.ends_with(part_of_word) && !after.starts_with(part_of_word) && matters(after)
        });
        if hit {
            found.push(format!("{}:{number}: `{word}`", path.display()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn unsafe_is_found_where_it_must_not_be() {
        let block = "fn f() { unsafe { g() } }";
        assert_eq!(unsafe_outside_sys(&tree(&[("crates/task/src/a.rs", block)])).len(), 1);
        assert_eq!(unsafe_outside_sys(&tree(&[("crates/engine/src/tests.rs", block)])).len(), 1);
        let allow = "#![allow(unsafe_code)]";
        assert_eq!(unsafe_outside_sys(&tree(&[("crates/task/src/a.rs", allow)])).len(), 1);
        assert!(unsafe_outside_sys(&tree(&[("crates/sys/src/a.rs", block)])).is_empty());
        assert!(unsafe_outside_sys(&tree(&[("crates/task/tests/a.rs", block)])).is_empty());
        let spoken = "// unsafe is a word\nfn unsafe_looking() {}";
        assert!(unsafe_outside_sys(&tree(&[("crates/task/src/a.rs", spoken)])).is_empty());
    }

    #[test]
    fn long_files_are_found_and_their_tests_do_not_count() {
        let long = "fn f() {}\n".repeat(LONGEST + 1);
        assert_eq!(long_files(&tree(&[("crates/a/src/a.rs", &long)])).len(), 1);
        assert!(long_files(&tree(&[("crates/a/tests/a.rs", &long)])).is_empty());
        let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(long_files(&tree(&[("crates/a/src/a.rs", &tested)])).is_empty());
    }

    #[test]
    fn promises_are_found() {
        for promise in PROMISES {
            let text = format!("fn f() {{ {promise}!() }}");
            assert_eq!(unfinished(&tree(&[("a.rs", &text)])).len(), 1);
            let text = format!("fn {promise}() {{}} // {promise}!()");
            assert!(unfinished(&tree(&[("a.rs", &text)])).is_empty());
        }
    }

    #[test]
    fn silent_skips_are_found_in_tests() {
        let silent = "fn f() {\n    if !geteuid().is_root() {\n        return;\n    }\n}\n";
        let said = "fn f() {\n    if !geteuid().is_root() {\n        return skipped(\"chroot\");\n    }\n}\n";
        let short = "fn f() {\n    if unsafe { libc::geteuid() } != 0 { return; }\n}\n";
        let found = |path: &str, text: &str| silent_skips(&tree(&[(path, text)]));
        assert_eq!(found("crates/kinds/tests/law_a.rs", silent), ["crates/kinds/tests/law_a.rs:2: a silent return"]);
        assert_eq!(found("tests/tests/a.rs", short).len(), 1);
        assert!(found("crates/kinds/tests/law_a.rs", said).is_empty());
        assert!(found("crates/kinds/src/a.rs", silent).is_empty());
        let within = format!("fn g() {{}}\n#[cfg(test)]\nmod tests {{\n{silent}}}\n");
        assert_eq!(found("crates/kinds/src/a.rs", &within), ["crates/kinds/src/a.rs:5: a silent return"]);
    }

    #[test]
    fn a_kind_without_its_head_is_found() {
        let found = |path: &str, text: &str| {
            let mut files: Vec<_> = NO_KIND.iter().map(|(file, _)| (format!("{KINDS}/{file}"), "")).collect();
            files.push((path.to_owned(), text));
            let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
            kinds_without_head(&tree(&files)).len()
        };
        let whole = "//! A pipe.\n//! *Read from:* a\n//! *Made again by:* b\n//! *Lost:* nothing.\n";
        let path = "crates/kinds/src/file/pipe.rs";
        assert_eq!(found(path, whole), 0);
        assert_eq!(found("crates/kinds/src/file/mod.rs", ""), 0);
        assert_eq!(found(path, "//! A pipe.\n"), 3);
        assert_eq!(found(path, &format!("use a;\n{whole}")), 3);
        assert_eq!(kinds_without_head(&tree(&[])).len(), NO_KIND.len());
    }
}
