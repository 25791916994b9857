//! The kernel's side of things: descriptors, files, /proc.

use crate::{expect, fail, ok};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// A descriptor that a call has just returned.
pub fn own(call: &str, fd: i32) -> OwnedFd {
    // SAFETY: a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(ok(call, fd)) }
}

/// Everything that one read(2) gives, at most `most` bytes; `None` when it would block.
pub fn read_at_once(fd: &impl AsRawFd, most: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; most];
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), most) };
    if count < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock {
        return None;
    }
    buffer.truncate(usize::try_from(ok("read", count)).unwrap_or(0));
    Some(buffer)
}

/// write(2) of all of it.
pub fn transfer(fd: &impl AsRawFd, bytes: &[u8]) {
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    expect("bytes written", ok("write", count), bytes.len() as isize);
}

/// Writes until the descriptor, which must not block, takes no more. Returns the number of bytes.
pub fn full(fd: &impl AsRawFd, byte: u8) -> usize {
    let block = [byte; 1000];
    let mut total = 0;
    loop {
        // SAFETY: the buffer is valid for its length.
        let count = unsafe { libc::write(fd.as_raw_fd(), block.as_ptr().cast(), block.len()) };
        match usize::try_from(count) {
            Ok(count) => total += count,
            Err(_) => return total,
        }
    }
}

/// A text file that must be readable.
pub fn read_file(path: &str) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => fail(&format!("read {path}: {error}")),
    }
}

/// Value of a field of a text with lines like `Name: value`.
pub fn field(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    match line {
        Some(value) => value.split_whitespace().collect::<Vec<_>>().join(" "),
        None => fail(&format!("no field {name}")),
    }
}

/// A field of /proc/self/status of the calling thread.
pub fn status(name: &str) -> String {
    field(&read_file("/proc/thread-self/status"), name)
}

/// fdinfo of a descriptor without what differs for each inode and mount.
pub fn fdinfo(fd: &impl AsRawFd) -> Vec<String> {
    let text = read_file(&format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let personal = |line: &&str| !line.starts_with("ino:") && !line.starts_with("mnt_id:");
    text.lines().filter(personal).map(str::to_owned).collect()
}

/// The effective capabilities.
pub fn caps() -> u64 {
    u64::from_str_radix(&status("CapEff"), 16).unwrap_or(0)
}

/// Nanoseconds of a clock.
pub fn clock(id: libc::clockid_t) -> i128 {
    // SAFETY: the timespec is valid for writing.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        ok("clock_gettime", libc::clock_gettime(id, &mut time));
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    }
}

/// The value or the hard limit, whichever is smaller.
pub fn at_most_hard(resource: u32, value: u64) -> u64 {
    // SAFETY: the limit is valid for writing.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        ok("getrlimit", libc::getrlimit(resource as _, &mut limit));
        value.min(limit.rlim_max)
    }
}

/// A directory of the probe's own, removed when dropped.
pub struct Dir(PathBuf);

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Dir {
    /// Makes it in `$TMPDIR` or /tmp.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(format!("probe-{pid}-{count}"));
        if let Err(error) = fs::create_dir(&path) {
            fail(&format!("mkdir {}: {error}", path.display()));
        }
        Self(path)
    }

    /// The path of it.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            fail(&format!("remove {}: {error}", self.0.display()));
        }
    }
}
