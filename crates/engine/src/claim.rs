//! Whose a container's directory is: whoever holds its lock (flock(2)).
//!
//! The front takes the lock when it makes the directory, the keeper gets the same open description and keeps it to its
//! end, and so does every stub until it is a task of the container. The kernel lets go of it when the last of them is gone,
//! however that came. A directory without a holder and without a state is what a killed start has left, if it has our [`MODE`]: whatever else
//! lies there is somebody's, and stays.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, flock, openat, unlinkat};
use rustix::io::Errno;
use yendor_kinds::{Cause, Named};
use yendor_sys::SysError;

use crate::error::{Error, Result, Step, With};

/// How often a name is tried that others take and leave at the same time.
const ATTEMPTS: u32 = 100;

/// Of a container's directory, from the moment at which it is there. The sticky bit means nothing where only one may write: it is how we know ours.
const MODE: u32 = 0o1700;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory that is ours.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    directory: OwnedFd,
    parent: OwnedFd,
}

impl Claim {
    /// Makes the directory, open to nobody else; what a killed start has left there goes first.
    ///
    /// # Errors
    /// `EEXIST` when the name is in use.
    pub fn make(path: &Path) -> Result<Claim> {
        make(path).map_err(|e| Error::new(Step::Admit, e)).kind("container", path.display().to_string())
    }

    /// The directory and the one it lies in, for the keeper.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.directory.as_fd(), self.parent.as_fd()]
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn make(path: &Path) -> std::result::Result<Claim, Cause> {
    let failed = |call| move |e: std::io::Error| SysError::io(call, path.display().to_string(), &e);
    let above = path.parent().unwrap_or(Path::new("."));
    let mut private = DirBuilder::new();
    private.mode(0o700);
    private.recursive(true).create(above).map_err(failed("mkdir"))?;
    private.recursive(false).mode(MODE);
    // Before there is anything that would be left over.
    let parent = rustix::fs::open(above, DIRECTORY, Mode::empty()).named("open", || above.display().to_string())?;
    for _ in 0..ATTEMPTS {
        match private.create(path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists && is_left_over(path) => {
                remove_left_over(path).map_err(failed("unlink"))?;
                continue;
            }
            made => made.map_err(failed("mkdir"))?,
        }
        if let Some(directory) = lock(path) {
            return Ok(Claim { path: path.to_owned(), directory, parent });
        }
        // Somebody took it for left over, before it had its lock.
    }
    Err(SysError::new("flock", path.display().to_string(), Errno::AGAIN).into())
}

/// The lock of the directory that lies at this path; `None` when somebody holds it, or there is none.
#[must_use]
pub fn lock(path: &Path) -> Option<OwnedFd> {
    let fd = openat(CWD, path, DIRECTORY, Mode::empty()).ok()?;
    flock(&fd, FlockOperation::NonBlockingLockExclusive).ok()?;
    let same = |a: rustix::fs::Stat, b: rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    // Another may have been removed and made anew meanwhile.
    same(rustix::fs::fstat(&fd).ok()?, rustix::fs::lstat(path).ok()?).then_some(fd)
}

/// The same, for a directory whose keeper may be at its last breath.
#[must_use]
pub fn lock_soon(path: &Path) -> Option<OwnedFd> {
    const BREATH: std::time::Duration = std::time::Duration::from_millis(10);
    (0..ATTEMPTS).find_map(|attempt| {
        std::thread::sleep(if attempt == 0 { std::time::Duration::ZERO } else { BREATH });
        lock(path)
    })
}

/// Whether a container's directory has neither an owner nor a state.
#[must_use]
pub fn is_left_over(path: &Path) -> bool {
    let stateless = || !path.join(crate::state::FILE).exists();
    is_ours(path) && stateless() && lock(path).is_some_and(|_held| stateless())
}

/// Whether it was made for a container. Below a directory with a set-group-ID bit it has that, too.
fn is_ours(path: &Path) -> bool {
    rustix::fs::lstat(path)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_mode & 0o5777 == MODE)
}

/// Removes what a killed start has left, unless it is none.
///
/// # Errors
/// As [`crate::state::remove`].
pub fn remove_left_over(path: &Path) -> std::io::Result<()> {
    let Some(_held) = lock(path) else { return Ok(()) };
    if !is_ours(path) || path.join(crate::state::FILE).exists() {
        return Ok(());
    }
    crate::state::remove(path)
}

/// Where a container's directory waits while a successor of the same name is started; no container has such a name.
#[must_use]
pub fn aside(run: &Path, name: &str) -> PathBuf {
    run.join(format!(".{name}.{}", std::process::id()))
}

/// The container that a name of [`aside`] belongs to.
fn put_aside(name: &str) -> Option<&str> {
    let (name, pid) = name.strip_prefix('.')?.rsplit_once('.')?;
    pid.bytes().all(|b| b.is_ascii_digit()).then_some(name)
}

/// Clears up what killed commands have left among the containers: directories without owner and state go, one that was put
/// aside comes back. Errors have nowhere to go; the next one tries again.
pub fn sweep(run: &Path) {
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        match put_aside(&name) {
            Some(name) if is_ours(&path) => {
                let Some(_held) = lock(&path) else { continue };
                let place = run.join(name);
                let _ = if place.exists() { crate::state::remove(&path) } else { std::fs::rename(&path, place) };
            }
            None if is_left_over(&path) => {
                let _ = remove_left_over(&path);
            }
            _ => {}
        }
    }
}

/// Empties and removes the directory of a start that has failed, from inside the container. Errors have nowhere to go: what
/// remains has no owner and no state.
pub fn discard(name: &str, directory: &OwnedFd, parent: &OwnedFd) {
    // The state first: without it everybody knows what the rest is.
    let _ = unlinkat(directory, crate::state::FILE, AtFlags::empty());
    let _ = crate::clear::below(directory.as_fd(), true);
    let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("yendor-claim-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_name_is_ours_until_we_are_gone() {
        let top = place("ours");
        let path = top.join("run/web");
        let claim = Claim::make(&path).expect("claim");
        assert!(!is_left_over(&path));
        let taken = Claim::make(&path).expect_err("taken");
        assert_eq!((taken.exit_code(), taken.cause.sys().map(|s| s.errno)), (1, Some(Errno::EXIST)));
        std::fs::write(path.join("log"), b"x").expect("write");
        drop(claim);
        assert!(is_left_over(&path));
        // What is left over goes, and the name with it.
        let again = Claim::make(&path).expect("again");
        assert_eq!(std::fs::read_dir(&path).expect("directory").count(), 0);
        std::fs::write(path.join(crate::state::FILE), b"{}").expect("write");
        drop(again);
        assert!(!is_left_over(&path), "a container that has ended is not left over");
        remove_left_over(&path).expect("nothing to do");
        assert!(Claim::make(&path).is_err());
        std::fs::remove_dir_all(&top).expect("remove");
    }

    #[test]
    fn a_failed_start_is_emptied() {
        let top = place("empty");
        let path = top.join("web");
        let claim = Claim::make(&path).expect("claim");
        std::fs::create_dir_all(path.join("upper/a/b")).expect("mkdir");
        std::fs::write(path.join("upper/a/b/c"), b"x").expect("write");
        std::os::unix::fs::symlink("/etc", path.join("upper/etc")).expect("symlink");
        discard("web", &claim.directory, &claim.parent);
        assert!(!path.exists() && Path::new("/etc").exists());
        std::fs::remove_dir_all(&top).expect("remove");
    }

    #[test]
    fn what_killed_commands_left_is_swept() {
        let run = place("sweep");
        for path in ["dead", "old", ".old.1", ".back.2", "starting"] {
            std::fs::create_dir_all(run.join(path)).expect("mkdir");
            std::fs::set_permissions(run.join(path), PermissionsExt::from_mode(MODE)).expect("chmod");
        }
        std::fs::set_permissions(run.join("dead"), PermissionsExt::from_mode(MODE | 0o2000)).expect("chmod");
        // What is not ours stays, whatever it is called.
        for path in ["images/web/1", ".old.3/precious", "empty"] {
            std::fs::create_dir_all(run.join(path)).expect("mkdir");
        }
        assert!(!is_left_over(&run.join("images")));
        remove_left_over(&run.join("images")).expect("nothing to do");
        assert!(Claim::make(&run.join("images")).is_err());
        for path in ["old", ".old.1", ".back.2"] {
            std::fs::write(run.join(path).join(crate::state::FILE), b"{}").expect("write");
        }
        let starting = lock(&run.join("starting")).expect("lock");
        sweep(&run);
        let mut left: Vec<_> = std::fs::read_dir(&run)
            .expect("directory")
            .flatten()
            .map(|e| e.file_name().into_string().expect("name"))
            .collect();
        left.sort();
        assert_eq!(left, [".old.3", "back", "empty", "images", "old", "starting"]);
        assert!(run.join("images/web/1").exists() && run.join(".old.3/precious").exists());
        drop(starting);
        std::fs::remove_dir_all(&run).expect("remove");
    }

    #[test]
    fn many_want_one_name() {
        let top = place("many");
        let path = top.join("web");
        drop(Claim::make(&path).expect("what a killed start has left"));
        // Threads are as good as processes here: each opens the directory by itself.
        let claims: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || Claim::make(&path).ok())
            })
            .collect();
        let got: Vec<_> = claims.into_iter().filter_map(|t| t.join().expect("thread")).collect();
        assert_eq!(got.len(), 1);
        std::fs::remove_dir_all(&top).expect("remove");
    }
}
