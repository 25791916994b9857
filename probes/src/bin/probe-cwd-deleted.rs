//! Working directory that is deleted.
#![allow(unsafe_code)]

use probe::{Dir, expect};
use std::io::ErrorKind::NotFound;

fn setup() -> Dir {
    let dir = Dir::new();
    let own = dir.at("gone");
    expect("mkdir", std::fs::create_dir(&own).is_ok(), true);
    expect("chdir", std::env::set_current_dir(&own).is_ok(), true);
    expect("rmdir", std::fs::remove_dir(&own).is_ok(), true);
    dir
}

fn check(dir: Dir) {
    let link = std::fs::read_link("/proc/self/cwd").unwrap_or_default();
    expect("link", link.to_string_lossy().into_owned(), format!("{} (deleted)", dir.at("gone").display()));
    expect("getcwd", std::env::current_dir().map_err(|error| error.kind()), Err(NotFound));
    expect("creation in it", std::fs::write("new", "").map_err(|error| error.kind()), Err(NotFound));
    expect("entries in it", std::fs::read_dir(".").map(Iterator::count).map_err(|error| error.kind()), Ok(0));
    expect("name in its parent", dir.at("gone").exists(), false);
    expect("parent", std::fs::metadata("..").is_ok() && std::env::set_current_dir("/").is_ok(), true);
}

fn main() {
    probe::run(setup, check)
}
