//! Where the built programs are.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Copies of programs that others could not run where they are, removed when the test process exits.
static COPIES: OnceLock<PathBuf> = OnceLock::new();

/// The `yendor` command. Panics when it is not built.
pub fn yendor_binary() -> PathBuf {
    built("yendor")
}

/// A probe by its name without `probe-`. Panics when it is not built.
pub fn probe(name: &str) -> PathBuf {
    built(&format!("probe-{name}"))
}

fn built(name: &str) -> PathBuf {
    static CHOSEN: std::sync::Mutex<Vec<(String, PathBuf)>> = std::sync::Mutex::new(Vec::new());
    let mut chosen = CHOSEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, path)) = chosen.iter().find(|(of, _)| of == name) {
        return path.clone();
    }
    let path = profile().join(name);
    assert!(path.is_file(), "{} is not there: cargo build --workspace --bins comes first", path.display());
    let path = if everybody_can_run(&path) { path } else { copied(&path, name) };
    chosen.push((name.to_owned(), path.clone()));
    path
}

/// `target/PROFILE` of the running test, which is in its `deps`.
fn profile() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    let directory = test.parent().expect("a file is in a directory");
    if directory.ends_with("deps") { directory.parent().expect("so is deps").to_owned() } else { directory.to_owned() }
}

fn everybody_can_run(path: &Path) -> bool {
    let mode = |path: &Path| fs::metadata(path).map_or(0, |data| data.permissions().mode());
    mode(path) & 0o5 == 0o5 && path.ancestors().skip(1).all(|directory| mode(directory) & 0o1 == 0o1)
}

fn copied(path: &Path, name: &str) -> PathBuf {
    let directory = COPIES.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("yendor-programs-{}", std::process::id()));
        fs::create_dir(&directory).expect("make a directory for programs");
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("chmod of our own");
        // SAFETY: the function may be called at exit.
        unsafe { libc::atexit(remove_copies) };
        directory
    });
    let copy = directory.join(name);
    fs::copy(path, &copy).expect("copy a program");
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("chmod of our own");
    copy
}

extern "C" fn remove_copies() {
    if let Some(directory) = COPIES.get() {
        // A copy that stays harms nobody, and at exit nobody can be told.
        let _ = fs::remove_dir_all(directory);
    }
}
