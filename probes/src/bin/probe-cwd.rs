//! Working directory: a directory whose name is not UTF-8; a child has another one.
#![allow(unsafe_code)]

use probe::{Board, Dir, child, expect, succeeded};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const GO: usize = 0;
const UP: usize = 1;

fn enter(path: &std::path::Path) {
    let result = std::env::set_current_dir(path);
    probe::expect_that("chdir", result.is_ok(), &result);
}

fn here() -> Option<PathBuf> {
    std::env::current_dir().ok()
}

fn setup() -> (Dir, PathBuf, Board, i32) {
    let (dir, board) = (Dir::new(), Board::new());
    let own = dir.path().join(OsStr::from_bytes(b"na\xfe\xffme \n(deleted)"));
    expect("mkdir", std::fs::create_dir(&own).is_ok(), true);
    expect("write", std::fs::write(own.join("file"), "content").is_ok(), true);
    let other = child(|| {
        enter(std::path::Path::new("/proc"));
        board.set(UP, 1);
        board.wait(GO, 1);
        expect("working directory of the child", here(), Some("/proc".into()));
    });
    board.wait(UP, 1);
    enter(&own);
    let own = here().unwrap_or_default();
    (dir, own, board, other)
}

fn check((_dir, own, board, other): (Dir, PathBuf, Board, i32)) {
    expect("working directory", here(), Some(own));
    expect("file in it", std::fs::read_to_string("file").ok().as_deref(), Some("content"));
    expect("creation in it", std::fs::write("new", "").is_ok(), true);
    board.set(GO, 1);
    succeeded("child", other);
    enter(std::path::Path::new("/"));
}

fn main() {
    probe::run(setup, check)
}
