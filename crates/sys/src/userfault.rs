//! userfaultfd(2), for asynchronous write protection (Documentation/admin-guide/mm/userfaultfd.rst, Linux 6.7): a
//! write to a protected page clears a mark that [`crate::pagemap`] sees, and goes on. No fault waits for anybody; those that do are in [`missing`].

pub mod missing;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::{Result, SysError};

/// What userfaultfd(2) is to be called with: `O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY`, which needs no privilege.
pub const FLAGS: u64 = 0o2_000_000 | 0o4_000 | 1;

/// `_IOWR(0xAA, 0x3f, struct uffdio_api)`.
const UFFDIO_API: u64 = 0xc018_aa3f;
/// `_IOWR(0xAA, 0, struct uffdio_register)`.
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
/// `_IOR(0xAA, 1, struct uffdio_range)`.
const UFFDIO_UNREGISTER: u64 = 0x8010_aa01;
/// `UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC`.
const FEATURES: u64 = 1 | 1 << 13 | 1 << 15;
const MODE_WP: u64 = 1 << 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// Agrees with the kernel on what is told of; `shown`: for an error.
fn agree(fd: &OwnedFd, features: u64, shown: &'static str) -> Result<()> {
    let mut api = Api { api: 0xaa, features, ioctls: 0 };
    // SAFETY: `api` has the kernel's layout and outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) } < 0 {
        return Err(SysError::last("ioctl", shown));
    }
    Ok(())
}

/// Has mappings told of from now on, in this way.
fn register(fd: &OwnedFd, (start, end): (u64, u64), mode: u64) -> Result<()> {
    let range = Range { start, len: end.saturating_sub(start) };
    let mut register = Register { range, mode, ioctls: 0 };
    // SAFETY: `register` has the kernel's layout and outlives the call, which changes nothing of ours but it.
    if unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) } < 0 {
        return Err(SysError::last("ioctl", format!("UFFDIO_REGISTER, {start:#x}..{end:#x}")));
    }
    Ok(())
}

/// Who is told of writes to the memory of the process that made it. When its last descriptor is closed, nothing of it is left
/// there.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

impl Userfault {
    /// Of a descriptor that userfaultfd(2) has returned to whomever.
    ///
    /// # Errors
    /// `EINVAL` on a kernel without asynchronous write protection.
    pub fn begin(fd: OwnedFd) -> Result<Userfault> {
        agree(&fd, FEATURES, "UFFDIO_API, UFFD_FEATURE_WP_ASYNC")?;
        Ok(Userfault(fd))
    }

    /// One that was begun before, by its descriptor.
    #[must_use]
    pub fn again(fd: OwnedFd) -> Userfault {
        Userfault(fd)
    }

    /// Whole mappings in `start..end` can be write-protected from now on. Again is as good as once.
    ///
    /// # Errors
    /// `EBUSY` where somebody else's is, `EINVAL` or `EPERM` for memory that cannot be; where all of it is gone, see
    /// [`Userfault::is_gone`].
    pub fn register(&self, start: u64, end: u64) -> Result<()> {
        register(&self.0, (start, end), MODE_WP)
    }

    /// Whether an error says that the memory is gone: the process has ended, or executed another program (`ENOMEM` in
    /// fs/userfaultfd.c, which is also what a kernel says that has no memory for itself).
    #[must_use]
    pub fn is_gone(error: &SysError) -> bool {
        matches!(error.errno, crate::Errno::NOMEM | crate::Errno::SRCH)
    }

    /// The opposite, for whatever in `start..end` is its own.
    ///
    /// # Errors
    /// `EINVAL` where there is nothing.
    pub fn unregister(&self, start: u64, end: u64) -> Result<()> {
        let mut range = Range { start, len: end.saturating_sub(start) };
        // SAFETY: `range` has the kernel's layout and outlives the call.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_UNREGISTER, &raw mut range) } < 0 {
            return Err(SysError::last("ioctl", format!("UFFDIO_UNREGISTER, {start:#x}..{end:#x}")));
        }
        Ok(())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One of the caller's own memory.
///
/// # Errors
/// `ENOSYS`, `EPERM`; a limit of descriptors.
pub fn own() -> Result<Userfault> {
    let fd = crate::raw::descriptor("userfaultfd", libc::SYS_userfaultfd, [FLAGS, 0, 0, 0, 0, 0])?;
    Userfault::begin(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagemap::{self, Page, Which};
    use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
    use std::fs::File;

    const PAGE: u64 = 4096;

    /// Anonymous memory of so many pages, of which none is huge.
    struct Memory {
        at: *mut u8,
        len: usize,
    }

    impl Memory {
        fn new(pages: usize) -> Memory {
            let len = pages * 4096;
            let (rw, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping, which nobody else knows.
            let at = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, rw, private) }.expect("mmap");
            let memory = Memory { at: at.cast(), len };
            memory.advise(0, pages, Advice::LinuxNoHugepage);
            memory
        }

        fn advise(&self, first: usize, pages: usize, advice: Advice) {
            // SAFETY: inside of the mapping, of which no reference exists.
            unsafe { rustix::mm::madvise(self.at.add(first * 4096).cast(), pages * 4096, advice) }.expect("madvise");
        }

        fn write(&self, page: usize) {
            assert!(page * 4096 < self.len);
            // SAFETY: inside of the mapping.
            unsafe { self.at.add(page * 4096).write_volatile(7) };
        }

        fn range(&self) -> (u64, u64) {
            (self.at as u64, self.at as u64 + self.len as u64)
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: the mapping is ours, and nobody has a reference to it.
            let _ = unsafe { rustix::mm::munmap(self.at.cast(), self.len) };
        }
    }

    fn pages(regions: &[pagemap::Region], from: u64) -> Vec<u64> {
        regions.iter().flat_map(|r| (r.start..r.end).step_by(4096)).map(|at| (at - from) / PAGE).collect()
    }

    /// Protects what has been written, and says what that was.
    fn protect(map: &File, (start, end): (u64, u64)) -> Vec<u64> {
        let (found, to) = pagemap::protect(map.as_fd(), start, end, Which::Written).expect("protect");
        assert_eq!(to, end);
        pages(&found, start)
    }

    /// Pages that are there and have not been written since they were protected.
    fn unwritten(map: &File, (start, end): (u64, u64)) -> Vec<u64> {
        let all = pagemap::scan_tracked(map.as_fd(), start, end).expect("scan").0;
        let tracked = |r: &&pagemap::Region| Page::from_bits_retain(r.categories).is_unwritten();
        pages(&all.iter().filter(tracked).copied().collect::<Vec<_>>(), start)
    }

    #[test]
    fn what_is_written_is_seen_and_nothing_else() {
        let (memory, map) = (Memory::new(64), File::open("/proc/self/pagemap").expect("pagemap"));
        let range = memory.range();
        [3, 4, 9].into_iter().for_each(|page| memory.write(page));
        let fault = own().expect("userfaultfd");
        assert!(unwritten(&map, range).is_empty(), "nobody has protected it");
        assert!(!pagemap::may_be_protected(map.as_fd(), range.0).expect("scan"));
        fault.register(range.0, range.1).expect("register");
        assert!(pagemap::may_be_protected(map.as_fd(), range.0).expect("scan"));
        assert!(unwritten(&map, range).is_empty(), "nobody has protected it");
        assert_eq!(protect(&map, range), [3, 4, 9]);
        assert_eq!(unwritten(&map, range), [3, 4, 9]);
        assert!(protect(&map, range).is_empty());
        // Written again, for the first time, by the kernel.
        memory.write(4);
        memory.write(20);
        // SAFETY: page 9 is in the mapping, and has room for a byte.
        let target = unsafe { std::slice::from_raw_parts_mut(memory.at.add(9 * 4096), 1) };
        rustix::io::read(File::open("/dev/zero").expect("zeros"), target).expect("read");
        assert_eq!(unwritten(&map, range), [3]);
        assert_eq!(protect(&map, range), [4, 9, 20]);
        // What was dropped is not there, and what comes after it is new.
        memory.advise(3, 2, Advice::LinuxDontNeed);
        assert_eq!(unwritten(&map, range), [9, 20]);
        memory.write(4);
        assert_eq!(unwritten(&map, range), [9, 20]);
        assert_eq!(protect(&map, range), [4]);
        fault.unregister(range.0, range.0 + 10 * PAGE).expect("unregister");
        assert_eq!(unwritten(&map, range), [20]);
        drop(fault);
        // The kernel forgets it with the last descriptor, and other tests fork meanwhile: until they run a program, their
        // children hold this one too.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !unwritten(&map, range).is_empty() {
            assert!(std::time::Instant::now() < end, "it is not over");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn what_has_moved_is_not_known() {
        let (memory, other) = (Memory::new(16), Memory::new(16));
        let map = File::open("/proc/self/pagemap").expect("pagemap");
        (0..16).for_each(|page| memory.write(page));
        let fault = own().expect("userfaultfd");
        fault.register(memory.range().0, memory.range().1).expect("register");
        assert_eq!(protect(&map, memory.range()).len(), 16);
        // SAFETY: both mappings are ours, and nobody has a reference to either; the second one takes the first one's place.
        unsafe {
            let (from, to) = (memory.at.cast(), other.at.cast());
            rustix::mm::mremap_fixed(from, memory.len, other.len, MremapFlags::MAYMOVE, to).expect("mremap");
        }
        // Its place is free for other tests' memory: not to be unmapped once more.
        std::mem::forget(memory);
        assert!(unwritten(&map, other.range()).is_empty());
        // Nor when it is tracked there: whatever marks the kernel has moved with it, all of it is told of once.
        fault.register(other.range().0, other.range().1).expect("register");
        let (found, _) = pagemap::protect(map.as_fd(), other.range().0, other.range().1, Which::All).expect("protect");
        assert_eq!(pages(&found, other.range().0).len(), 16);
    }

    #[test]
    fn what_is_no_longer_there_cannot_be_tracked() {
        let fault = own().expect("userfaultfd");
        let never = (1 << 46, (1 << 46) + (4 << 12));
        assert!(fault.register(never.0, never.1).is_err());
        let memory = Memory::new(4);
        let map = File::open("/proc/self/pagemap").expect("pagemap");
        let (start, end) = memory.range();
        let refused = pagemap::protect(map.as_fd(), start, end, Which::All).expect_err("it is not registered");
        assert_eq!(refused.errno, rustix::io::Errno::PERM);
        // Somebody else's.
        fault.register(start, end).expect("register");
        let other = own().expect("userfaultfd");
        assert_eq!(other.register(start, end).expect_err("taken").errno, rustix::io::Errno::BUSY);
    }
}
