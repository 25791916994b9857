//! The house of this checkout: the arrows between its crates, and the rules its files keep.

use xtask::docs::records;
use xtask::tidy::{RULES, Tree};
use xtask::{Outcome, layers, suite, workspace};

#[test]
fn the_crates_depend_only_downwards() -> Outcome {
    let violations = layers::violations(&workspace::members()?);
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
    Ok(())
}

#[test]
fn the_tree_is_not_empty() -> Outcome {
    assert!(Tree::read(&workspace::root())?.len() > 30);
    Ok(())
}

/// The stage of tests names the programs that have some: `src/bin/NAME.rs`, `src/bin/NAME/`, or `NAME/src/` without a library.
#[test]
fn no_tests_of_a_program_are_forgotten() -> Outcome {
    let (mut seen, mut forgotten) = (0, Vec::new());
    for directory in ["crates", "fuzz", "probes", "tests", "xtask"] {
        for path in walk(&workspace::root().join(directory))? {
            let text = path.to_string_lossy().into_owned();
            let name = match text.split_once("/src/bin/") {
                Some((_, name)) => name.split(['/', '.']).next(),
                None => text.split_once("/src/").and_then(|(above, _)| {
                    let has = |file: &str| std::path::Path::new(above).join(file).exists();
                    above.rsplit('/').next().filter(|_| has("src/main.rs") && !has("src/lib.rs"))
                }),
            };
            let Some(name) = name.filter(|_| std::fs::read_to_string(&path).is_ok_and(|text| text.contains("#[test]")))
            else {
                continue;
            };
            seen += 1;
            if !suite::TESTS.contains(&name) {
                forgotten.push(text);
            }
        }
    }
    assert!(forgotten.is_empty() && seen > 5, "{forgotten:?}");
    Ok(())
}

/// SECURITY.md names what holds its sentences: functions and, after `hostile`, images in italics.
#[test]
fn the_tests_that_hold_what_is_promised_are_there() -> Outcome {
    let promises = std::fs::read_to_string(workspace::root().join("SECURITY.md"))?;
    let mut sources = String::new();
    for directory in ["tests", "crates", "fuzz"] {
        for entry in walk(&workspace::root().join(directory))? {
            sources.push_str(&std::fs::read_to_string(entry)?);
        }
    }
    let words =
        |line: &str, mark: char| -> Vec<String> { line.split(mark).skip(1).step_by(2).map(str::to_owned).collect() };
    let mut missing = Vec::new();
    let mut seen = 0;
    for line in promises.lines().filter(|line| line.starts_with("| ")) {
        let functions = words(line, '`').into_iter().filter(|word| word.matches('_').count() > 1);
        let functions = functions.filter(|word| word.chars().all(|sign| sign == '_' || sign.is_ascii_alphanumeric()));
        let images = if line.contains("`hostile`") { words(line, '*') } else { Vec::new() };
        let wanted =
            functions.map(|name| format!("fn {name}(")).chain(images.into_iter().map(|name| format!("\"{name}\"")));
        for name in wanted {
            seen += 1;
            if !sources.contains(&name) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty() && seen > 10, "of {seen}, not in the tests: {missing:?}");
    Ok(())
}

/// All sources beneath a directory.
fn walk(directory: &std::path::Path) -> Outcome<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(walk(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[test]
fn every_field_of_an_image_is_described() -> Outcome {
    let page = records::page(&Tree::read(&workspace::root())?)?;
    assert!(page.contains("### Snapshot\n") && page.contains("| `processes` |"), "{page}");
    let silent: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `") && line.ends_with("|  |") && !line.contains("| none |"))
        .collect();
    assert!(silent.is_empty(), "fields of records without a word: {}", silent.join("\n"));
    Ok(())
}

fn keeps(name: &str) -> Outcome {
    let rule = RULES.iter().find(|rule| rule.name == name).ok_or("no such rule")?;
    let breaches = (rule.find)(&Tree::read(&workspace::root())?)?;
    let (why, list) = (rule.why, breaches.join("\n"));
    assert!(breaches.is_empty(), "\n{list}\nrule: {name} ({why})\n");
    Ok(())
}

macro_rules! rules {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() -> Outcome { keeps($name) })*

        #[test]
        fn every_rule_has_its_test() {
            let tested = [$($name),*];
            let untested: Vec<_> = RULES.iter().map(|rule| rule.name).filter(|name| !tested.contains(name)).collect();
            assert!(untested.is_empty(), "{untested:?}");
        }
    };
}

rules! {
    unsafe_only_in_sys: "unsafe only in sys",
    short_files: "files of at most 500 lines",
    nothing_left_for_later: "nothing left for later in code",
    kinds_have_heads: "every kind says what it reads, makes and loses",
    no_silent_skips: "tests for root alone say that they are skipped",
    made_pages_are_fresh: "pages that are made from the code are fresh",
    no_paths_of_a_machine: "no paths of a machine",
    links_lead_somewhere: "links lead somewhere",
    dependencies_have_reasons: "every dependency has a reason",
}
