//! The container's log: what it writes when it runs in the background, or on a terminal that nobody shows. Of a long one the last megabytes are
//! kept, and what is older becomes a hole of the file: it lies in memory where /run does, and no container is to fill that of the host. Who
//! writes and who reads goes on where it was.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, fstat};

/// With more bytes than these it is shortened, to [`KEPT`].
const MOST: u64 = 16 << 20;
/// The last bytes, which stay.
const KEPT: u64 = 8 << 20;
/// A block of any file system that can have holes lies in whole ones of these.
const ALIGNMENT: u64 = 64 << 10;
/// Between two looks: while it grows fast, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The log of a container that has one.
#[derive(Debug)]
pub struct Log {
    file: OwnedFd,
    size: u64,
    due: Instant,
    pause: Duration,
}

impl Log {
    /// Of a file that is open for appending.
    pub fn new(file: OwnedFd) -> Log {
        Log { file, size: 0, due: Instant::now(), pause: PAUSES.0 }
    }

    /// Appends. A full disk loses lines of the log, not the container.
    pub fn write(&self, bytes: &[u8]) {
        let _ = rustix::io::write(&self.file, bytes);
    }

    /// Looks at it when it is time; when that is next. The container appends by itself, and nobody tells us.
    pub fn look(&mut self) -> Duration {
        let now = Instant::now();
        if now >= self.due {
            let before = self.size;
            self.shorten();
            let fast = self.size.saturating_sub(before) > KEPT / 64;
            self.pause = if fast { PAUSES.0 } else { (self.pause * 2).min(PAUSES.1) };
            self.due = now + self.pause;
        }
        self.due - now
    }

    /// Makes a hole of what is too old. Where no file can have holes, a log is as long as it is.
    pub fn shorten(&mut self) {
        let Ok(stat) = fstat(&self.file) else { return };
        self.size = u64::try_from(stat.st_size).unwrap_or(0);
        let held = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if held <= MOST {
            return;
        }
        let end = self.size.saturating_sub(KEPT) / ALIGNMENT * ALIGNMENT;
        // Blocks far behind its end the container has set aside (fallocate(2)), which has the file. What comes next is not so far.
        let far = (self.size + MOST).next_multiple_of(ALIGNMENT);
        for (start, len) in [(0, end), (far, i64::MAX.unsigned_abs().saturating_sub(far))] {
            if len > 0 {
                let _ = fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, len);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    fn held(log: &Log) -> u64 {
        u64::try_from(fstat(&log.file).expect("fstat").st_blocks).expect("blocks") * 512
    }

    #[test]
    fn the_last_megabytes_are_kept() {
        let mut log = Log::new(memfd_create("log", MemfdFlags::CLOEXEC).expect("memfd_create"));
        let line = [b'x'; 1 << 20];
        for written in 1..=40_u64 {
            log.write(&line);
            log.shorten();
            let (size, held) = (fstat(&log.file).expect("fstat").st_size.cast_unsigned(), held(&log));
            assert_eq!(size, written << 20);
            assert!(held <= MOST && held >= KEPT.min(size), "{held} of {size}");
        }
        let mut last = [0; 4096];
        let at = (40 << 20) - KEPT;
        assert_eq!(rustix::io::pread(&log.file, &mut last, at).expect("pread"), 4096);
        assert!(last.iter().all(|b| *b == b'x'));
        assert_eq!(rustix::io::pread(&log.file, &mut last, 0).expect("pread"), 4096);
        assert!(last.iter().all(|b| *b == 0));
    }

    #[test]
    fn blocks_without_bytes_are_given_back() {
        let mut log = Log::new(memfd_create("log", MemfdFlags::CLOEXEC).expect("memfd_create"));
        log.write(b"x");
        fallocate(&log.file, FallocateFlags::KEEP_SIZE, 0, 4 * MOST).expect("fallocate");
        assert!(held(&log) >= 4 * MOST);
        log.shorten();
        assert!(held(&log) <= MOST + ALIGNMENT, "{}", held(&log));
        let mut first = [0; 1];
        assert_eq!((rustix::io::pread(&log.file, &mut first, 0).expect("pread"), first), (1, *b"x"));
    }

    #[test]
    fn what_grows_is_looked_at_more_often() {
        let mut log = Log::new(memfd_create("log", MemfdFlags::CLOEXEC).expect("memfd_create"));
        for _ in 0..8 {
            log.due = Instant::now();
            log.look();
        }
        assert_eq!(log.pause, PAUSES.1);
        assert!(log.look() <= PAUSES.1);
        log.write(&[b'x'; 1 << 20]);
        log.due = Instant::now();
        assert!(log.look() <= PAUSES.0);
    }
}
