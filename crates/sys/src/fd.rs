//! What rustix lacks of fcntl(2).

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Result, SysError};

#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}

/// Who gets the signals of a description, as `(F_OWNER_* kind, pid, signal)`; `None` for nobody.
///
/// # Errors
/// `EBADF` for an `O_PATH` descriptor.
pub fn owner(fd: &impl AsFd) -> Result<Option<(i32, i32, i32)>> {
    const F_GETOWN_EX: i32 = 16;
    const F_GETSIG: i32 = 11;
    let mut ex = OwnerEx { kind: 0, pid: 0 };
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `ex` has the kernel's layout and outlives the call.
    if unsafe { libc::fcntl(raw, F_GETOWN_EX, &raw mut ex) } < 0 {
        return Err(SysError::last("fcntl", format!("{raw}, F_GETOWN_EX")));
    }
    // SAFETY: takes no pointer.
    let signal = unsafe { libc::fcntl(raw, F_GETSIG) };
    Ok((ex.pid != 0 || signal > 0).then_some((ex.kind, ex.pid, signal.max(0))))
}

/// Runs `f` in a thread with a copy of the descriptor table, which goes away with it. `f` may use all descriptors by
/// number and put others in their places; it must not drop an owner that outlives it.
///
/// # Errors
/// `f`'s own, or what `unshare` says.
pub fn in_own_table<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_thread(libc::CLONE_FILES, "CLONE_FILES", f)
}

/// Runs `f` in a thread with a root and working directory of its own, at first ours.
///
/// # Errors
/// `f`'s own, or what `unshare` says.
pub fn in_own_directory<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    in_thread(libc::CLONE_FS, "CLONE_FS", f)
}

fn in_thread<T: Send>(flags: i32, shown: &'static str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let job = std::sync::Mutex::new(Some(f));
    let take = || job.lock().ok().and_then(|mut job| job.take());
    let body = || {
        // SAFETY: takes no pointer; only this thread, which runs nothing but `f`, sees the copy.
        if unsafe { libc::unshare(flags) } < 0 {
            return Err(SysError::last("unshare", shown));
        }
        take().ok_or_else(|| SysError::new("clone", "a helper thread", Errno::INVAL))?()
    };
    let done = std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, body) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Some),
        // A process whose children get another pid namespace cannot have threads, so nobody looks on: do it in place.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(e) => Err(SysError::io("clone", "a helper thread", &e)),
    })?;
    match (done, take()) {
        (Some(done), _) => Ok(done),
        (None, Some(f)) => in_place(f),
        (None, None) => Err(SysError::new("clone", "a helper thread", Errno::INVAL)),
    }
}

/// Runs `f` and goes back to the root and the working directory of before.
fn in_place<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty()).map_err(|e| SysError::new("open", path, e));
    let (root, here) = (open("/")?, open(".")?);
    let result = f();
    let place = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).ok();
    let back = |fd: &OwnedFd| rustix::process::fchdir(fd).map_err(|e| SysError::new("fchdir", "back", e));
    if place(&open("/")?) != place(&root) {
        back(&root)?;
        rustix::process::chroot(".").map_err(|e| SysError::new("chroot", "back", e))?;
    }
    back(&here)?;
    result
}

pub(crate) fn dup(fd: RawFd, above: RawFd) -> Result<RawFd> {
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, above) };
    if ret < 0 { Err(SysError::last("fcntl", format!("{fd}, F_DUPFD_CLOEXEC, {above}"))) } else { Ok(ret) }
}

pub(crate) fn dup2(from: RawFd, to: RawFd) -> Result<()> {
    // SAFETY: takes no pointer; called in a private table only, where no owner of `to` lives.
    if unsafe { libc::dup2(from, to) } < 0 {
        return Err(SysError::last("dup2", format!("{from}, {to}")));
    }
    Ok(())
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: takes no pointer; called in a private table only, on numbers that it made.
    unsafe { libc::close(fd) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_root_is_left_again() {
        if !rustix::process::geteuid().is_root() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"skipped: needs root: chroot\n");
            return;
        }
        let place = |path: &str| rustix::fs::stat(path).map(|s| (s.st_dev, s.st_ino)).unwrap();
        // In a thread of its own, as other tests have that root, too.
        in_own_directory(|| {
            rustix::process::chdir("/usr").unwrap();
            let before = (place("/"), place("."));
            in_place(|| {
                rustix::process::chroot("/etc").unwrap();
                rustix::process::chdir("/").unwrap();
                assert_ne!(place("/"), before.0);
                Ok(())
            })?;
            assert_eq!((place("/"), place(".")), before);
            Ok(())
        })
        .unwrap();
    }
}
