//! Shared memory between the tracer and the tasks it borrows: one memfd, mapped here, word by word.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;

use crate::{Result, SysError};

/// A shared mapping of a whole memfd. Other processes write it too, so it is only ever copied in and out.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: the memory is reached only through atomics and volatile copies; the pointer is owned.
unsafe impl Send for Mapping {}
// SAFETY: as above: no references into the memory are ever handed out but to atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A new memfd of `len` bytes (a multiple of the page size), mapped shared.
    ///
    /// # Errors
    /// What `memfd_create`, `ftruncate` or `mmap` say.
    pub fn anonymous(len: usize) -> Result<Self> {
        let fd = rustix::fs::memfd_create("yendor", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| SysError::new("memfd_create", "\"yendor\", MFD_CLOEXEC", e))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(|e| SysError::new("ftruncate", format!("{len}"), e))?;
        Self::of(fd, len)
    }

    /// The first `len` bytes of `fd`, mapped shared.
    ///
    /// # Errors
    /// What `mmap` says; `EINVAL` when the file is shorter than `len`.
    pub fn of(fd: OwnedFd, len: usize) -> Result<Self> {
        let stat = rustix::fs::fstat(&fd).map_err(|e| SysError::new("fstat", "", e))?;
        if u64::try_from(stat.st_size).unwrap_or(0) < len as u64 {
            return Err(SysError::new("mmap", format!("{len} bytes of a shorter file"), Errno::INVAL));
        }
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases no Rust object.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(SysError::last("mmap", format!("{len}, MAP_SHARED")));
        }
        let start = NonNull::new(p.cast()).ok_or_else(|| SysError::new("mmap", "", Errno::NOMEM))?;
        Ok(Self { start, len, fd })
    }

    /// Has its first `len` bytes ready: to write them takes no fault for each page. Where the kernel does not, it takes them.
    pub fn prepare(&self, len: usize) {
        // SAFETY: the range is ours and stays as it is.
        unsafe { libc::madvise(self.start.as_ptr().cast(), len.min(self.len), libc::MADV_POPULATE_WRITE) };
    }

    /// Unmaps many, those side by side by one call: for each call the processors must forget what they know, and are waited
    /// for. Each has no bytes from now on.
    pub fn unmap_all(mut all: Vec<&mut Mapping>) {
        all.sort_unstable_by_key(|m| m.start);
        for run in all.chunk_by_mut(|m, next| m.start.as_ptr().addr() + m.len == next.start.as_ptr().addr()) {
            let len = run.iter().map(|m| m.len).sum();
            // SAFETY: the whole of mappings of ours that follow each other, and nothing refers to them any more.
            unsafe { libc::munmap(run[0].start.as_ptr().cast(), len) };
            run.iter_mut().for_each(|m| m.len = 0);
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `bytes` in at `at`.
    ///
    /// # Panics
    /// When the range does not lie inside: our own arithmetic was wrong.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.len && bytes.len() <= self.len - at, "write outside the mapping");
        // SAFETY: the range was checked; other processes may race, so no reference is made.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr().add(at), bytes.len()) }
    }

    /// Copies bytes out from `at`.
    ///
    /// # Panics
    /// When the range does not lie inside: our own arithmetic was wrong.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at <= self.len && out.len() <= self.len - at, "read outside the mapping");
        // SAFETY: the range was checked; `out` is ours and of that length.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), out.as_mut_ptr(), out.len()) }
    }

    /// The 32-bit word at `at`.
    ///
    /// # Panics
    /// When it does not lie inside or is not aligned: our own arithmetic was wrong.
    #[must_use]
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "word outside the mapping");
        // SAFETY: aligned, inside, lives as long as self, and only ever used as an atomic.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The 64-bit word at `at`.
    ///
    /// # Panics
    /// When it does not lie inside or is not aligned: our own arithmetic was wrong.
    #[must_use]
    pub fn load64(&self, at: usize) -> u64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len, "word outside the mapping");
        // SAFETY: aligned, inside, lives as long as self, and only ever used as an atomic.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }.load(Ordering::Acquire)
    }

    /// The address of offset `at` in this process, for a robust list.
    pub(crate) fn address(&self, at: usize) -> *mut u8 {
        assert!(at < self.len, "address outside the mapping");
        // SAFETY: inside the mapping.
        unsafe { self.start.as_ptr().add(at) }
    }
}

impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range was mapped by us and nothing refers to it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

/// A memfd mapped shared at a chosen address of this process, its first `code` bytes executable, the rest writable: what
/// children inherit as scratch memory. Unmapped on drop.
#[derive(Debug)]
pub struct Placed {
    base: u64,
    len: u64,
}

impl Placed {
    /// Maps `len` bytes of `fd` at `base`, which must be free.
    ///
    /// # Errors
    /// `EEXIST` when it is not.
    pub fn new(fd: BorrowedFd<'_>, base: u64, code: u64, len: u64) -> Result<Self> {
        let map = |at: u64, len: u64, prot: i32, offset: u64| {
            let bytes = usize::try_from(len).unwrap_or(usize::MAX);
            let from = i64::try_from(offset).unwrap_or(i64::MAX);
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
            // SAFETY: MAP_FIXED_NOREPLACE never touches an existing mapping.
            let p = unsafe { libc::mmap(at as *mut libc::c_void, bytes, prot, flags, fd.as_raw_fd(), from) };
            if p == libc::MAP_FAILED {
                return Err(SysError::last("mmap", format!("{at:#x}, {len}, MAP_SHARED|MAP_FIXED_NOREPLACE")));
            }
            Ok(())
        };
        map(base, code, libc::PROT_READ | libc::PROT_EXEC, 0)?;
        let placed = Self { base, len: code };
        map(base + code, len - code, libc::PROT_READ | libc::PROT_WRITE, code)?;
        let whole = Self { base, len };
        std::mem::forget(placed);
        Ok(whole)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let len = usize::try_from(self.len).unwrap_or(0);
        // SAFETY: mapped by us, and nothing in this process refers to it.
        unsafe { libc::munmap(self.base as *mut libc::c_void, len) };
    }
}

#[cfg(test)]
mod tests {
    use super::Mapping;

    #[test]
    fn many_are_unmapped_together_and_no_other() {
        const LEN: usize = 8192;
        let shown = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:unmapped-together").count();
        let one = || {
            let fd = rustix::fs::memfd_create("unmapped-together", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&fd, LEN as u64).unwrap();
            Mapping::of(fd, LEN).unwrap()
        };
        let mut all: Vec<Mapping> = (0..5).map(|_| one()).collect();
        assert_eq!(shown(), 5);
        // One between others that stays.
        let kept = all.remove(2);
        kept.write(0, b"kept");
        Mapping::unmap_all(all.iter_mut().collect());
        assert_eq!(shown(), 1);
        assert!(all.iter().all(Mapping::is_empty));
        drop(all);
        let mut bytes = [0; 4];
        kept.read(0, &mut bytes);
        assert_eq!((&bytes, shown()), (b"kept", 1));
    }
}
