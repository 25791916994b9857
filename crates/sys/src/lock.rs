//! Record locks of a file (fcntl(2), `F_SETLK`): whoever asks is told who holds one, and a process lets go of all of them with its life, or with
//! the first descriptor of the file that it closes.

use std::os::fd::{AsFd, AsRawFd};

use crate::{Errno, Result, SysError};

/// How a byte is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
    /// Not any more.
    Free,
}

impl Lock {
    fn of_kernel(self) -> libc::c_short {
        let kind = match self {
            Lock::Shared => libc::F_RDLCK,
            Lock::Exclusive => libc::F_WRLCK,
            Lock::Free => libc::F_UNLCK,
        };
        // 0 to 2.
        libc::c_short::try_from(kind).unwrap_or_default()
    }
}

/// Who holds which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The byte.
    pub at: i64,
    /// The process, 0 when it cannot be seen from here.
    pub pid: i32,
}

fn call(fd: impl AsFd, command: libc::c_int, name: &str, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: the lock is ours and as large as the command needs.
    let done = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done < 0 { Err(SysError::last("fcntl", format!("{name}, byte {}", lock.l_start))) } else { Ok(()) }
}

fn one(lock: Lock, at: i64, len: i64) -> libc::flock {
    let whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    libc::flock { l_type: lock.of_kernel(), l_whence: whence, l_start: at, l_len: len, l_pid: 0 }
}

/// Takes one byte, or lets go of it, if nobody is in the way: whether it is had.
///
/// # Errors
/// The kernel's.
pub fn take(fd: impl AsFd, lock: Lock, at: i64) -> Result<bool> {
    match call(fd, libc::F_SETLK, "F_SETLK", &mut one(lock, at, 1)) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.errno, Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Who holds bytes from `first` on, by byte.
///
/// # Errors
/// The kernel's.
pub fn holders(fd: impl AsFd, first: i64) -> Result<Vec<Holder>> {
    let (fd, mut out, mut left) = (fd.as_fd(), Vec::new(), vec![(first, i64::MAX)]);
    while let Some((first, end)) = left.pop() {
        // The kernel tells of any of them.
        let mut found = one(Lock::Exclusive, first, end - first);
        call(fd, libc::F_GETLK, "F_GETLK", &mut found)?;
        if found.l_type == Lock::Free.of_kernel() {
            continue;
        }
        // Of one that begins before.
        let at = found.l_start.max(first);
        out.push(Holder { at, pid: found.l_pid });
        let after = if found.l_len == 0 { end } else { found.l_start.saturating_add(found.l_len) };
        left.extend([(first, at), (after, end)].into_iter().filter(|(first, end)| first < end));
    }
    out.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_who_holds_what() {
        let file = tempfile();
        for (lock, at) in [(Lock::Exclusive, 7), (Lock::Shared, 0), (Lock::Exclusive, 9)] {
            assert!(take(&file, lock, at).unwrap());
        }
        // We never stand in our own way: only others see them.
        assert_eq!(holders(&file, 0).unwrap(), []);
        // SAFETY: it makes system calls and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let me = |at| Holder { at, pid: std::os::unix::process::parent_id().cast_signed() };
            let seen = holders(&file, 0) == Ok(vec![me(0), me(7), me(9)]) && holders(&file, 8) == Ok(vec![me(9)]);
            let shared = take(&file, Lock::Shared, 0) == Ok(true);
            let refused = take(&file, Lock::Exclusive, 0) == Ok(false) && take(&file, Lock::Shared, 7) == Ok(false);
            // SAFETY: ends the child without anything of the parent's.
            unsafe { libc::_exit(i32::from(!(seen && shared && refused))) };
        }
        let mut status = 0;
        // SAFETY: the status is ours.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("yendor-lock-{}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}
