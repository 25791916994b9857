//! The other half of userfaultfd(2): pages that are not there come when they are touched, by a program or by the kernel on its
//! behalf (Documentation/admin-guide/mm/userfaultfd.rst; fs/userfaultfd.c for what is told of memory that changes meanwhile).
//!
//! Whoever touches such a page waits for a [`Pager`]. When the last descriptor is closed nobody waits any more: what was not there
//! is zeros then.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::Range;
use crate::{Errno, Result, SysError};

/// The device that gives one to whoever may open it (`USERFAULTFD_IOC_NEW`), and for whose memory: its caller's.
pub const DEVICE: &str = "/dev/userfaultfd";
/// `_IO(0xAA, 0)`.
pub const NEW: u32 = 0xaa00;
/// What it is to be asked for: `O_CLOEXEC | O_NONBLOCK`.
pub const FLAGS: u64 = 0o2_000_000 | 0o4_000;

/// `_IOR(0xAA, 2, struct uffdio_range)`, `_IOWR(0xAA, 3, struct uffdio_copy)`, `_IOWR(0xAA, 4, struct uffdio_zeropage)`.
pub(crate) const UFFDIO_WAKE: u64 = 0x8010_aa02;
pub(crate) const UFFDIO_COPY: u64 = 0xc028_aa03;
pub(crate) const UFFDIO_ZEROPAGE: u64 = 0xc020_aa04;
/// `UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP`. Not `UFFD_FEATURE_EVENT_FORK`, which takes
/// `CAP_SYS_PTRACE` in the initial user namespace: children do not inherit it.
const FEATURES: u64 = 1 << 2 | 1 << 3 | 1 << 6;
const MODE_MISSING: u64 = 1;

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct Zeros {
    range: Range,
    mode: u64,
    zeros: i64,
}

/// What the kernel tells (`struct uffd_msg`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// Memory has moved.
    Moved {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// What was in this range is to be zeros from now on, or is unmapped: start and end.
    Dropped(u64, u64),
}

/// How far pages were put in their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// So many bytes are there now.
    pub bytes: u64,
    /// Why it did not go on: `EEXIST`: there is a page already; `EAGAIN`: there is a [`Message`] to be read first; `ENOENT`: there is
    /// no such memory, or the range is that of two mappings; `ESRCH`: the process has none any more.
    pub stopped: Option<Errno>,
}

/// One of a process's memory.
#[derive(Debug)]
pub struct Pager(OwnedFd);

impl Pager {
    /// Of a descriptor that [`NEW`] has returned to whomever.
    ///
    /// # Errors
    /// `EINVAL` from a kernel that does not tell of memory that changes.
    pub fn begin(fd: OwnedFd) -> Result<Pager> {
        super::agree(&fd, FEATURES, "UFFDIO_API, UFFD_FEATURE_EVENT_UNMAP")?;
        Ok(Pager(fd))
    }

    /// One that was begun before, by its descriptor.
    #[must_use]
    pub fn again(fd: OwnedFd) -> Pager {
        Pager(fd)
    }

    /// What is missing in `start..end`, which is one mapping or several, is waited for from now on.
    ///
    /// # Errors
    /// `EBUSY` where somebody else's is, `EINVAL` for memory that cannot be.
    pub fn register(&self, start: u64, end: u64) -> Result<()> {
        super::register(&self.0, (start, end), MODE_MISSING)
    }

    /// The next message; none: there is none now. Whoever waits for it goes on, but of a fault: no other is to be read before
    /// what it says is known.
    ///
    /// # Errors
    /// `EBADMSG` for one that was not asked for.
    pub fn next(&self) -> Result<Option<Message>> {
        let mut bytes = [0; 32];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut bytes)) {
            Ok(32) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Ok(_) => return Err(SysError::new("read", "userfaultfd: half a message", Errno::BADMSG)),
            Err(errno) => return Err(SysError::new("read", "userfaultfd", errno)),
        }
        let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        match (bytes[0], words.as_slice()) {
            (0x12, [_, _, address, _]) => Ok(Some(Message::Fault(*address))),
            (0x14, [_, from, to, len]) => Ok(Some(Message::Moved { from: *from, to: *to, len: *len })),
            (0x15 | 0x16, [_, start, end, _]) => Ok(Some(Message::Dropped(*start, *end))),
            (event, _) => Err(SysError::new("read", format!("userfaultfd: event {event:#x}"), Errno::BADMSG)),
        }
    }

    /// Puts whole pages at `at`, and wakes who waits for them.
    pub fn copy(&self, at: u64, pages: &[u8]) -> Placed {
        let len = pages.len() as u64;
        let mut copy = Copy { dst: at, src: pages.as_ptr() as u64, len, mode: 0, copy: 0 };
        // SAFETY: `copy` has the kernel's layout and outlives the call, which reads `len` bytes of `pages` and writes to
        // memory of the process that this was made for.
        let failed = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_COPY, &raw mut copy) } < 0;
        placed(len, copy.copy, failed)
    }

    /// The same with zeros.
    pub fn zeros(&self, at: u64, len: u64) -> Placed {
        let mut zeros = Zeros { range: Range { start: at, len }, mode: 0, zeros: 0 };
        // SAFETY: `zeros` has the kernel's layout and outlives the call, which changes nothing of ours but it.
        let failed = unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut zeros) } < 0;
        placed(len, zeros.zeros, failed)
    }

    /// Who waits for something in this range looks again.
    ///
    /// # Errors
    /// `EINVAL`: it is no range.
    pub fn wake(&self, start: u64, len: u64) -> Result<()> {
        let mut range = Range { start, len };
        // SAFETY: `range` has the kernel's layout and outlives the call.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WAKE, &raw mut range) } < 0 {
            return Err(SysError::last("ioctl", format!("UFFDIO_WAKE, {start:#x}+{len:#x}")));
        }
        Ok(())
    }
}

/// A call that was cut short fails with `EAGAIN` and tells how far it came; one that came nowhere tells why.
fn placed(len: u64, done: i64, failed: bool) -> Placed {
    if !failed {
        return Placed { bytes: len, stopped: None };
    }
    let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
    match u64::try_from(done) {
        Ok(bytes) if bytes > 0 => Placed { bytes, stopped: None },
        _ => Placed { bytes: 0, stopped: Some(errno) },
    }
}

impl AsFd for Pager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One of the caller's own memory, from the device.
///
/// # Errors
/// What the device says.
pub fn own(device: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: the argument is a number.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), u64::from(NEW), FLAGS) };
    if fd < 0 {
        return Err(SysError::last("ioctl", "USERFAULTFD_IOC_NEW"));
    }
    // SAFETY: the kernel has made it for this call, and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
    use std::io::Write;

    const PAGE: usize = 4096;

    fn map(pages: usize) -> *mut u8 {
        let (rw, private) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, which nobody else knows; it stays until the test ends.
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), pages * PAGE, rw, private) }.expect("mmap").cast()
    }

    fn byte(at: *mut u8, page: usize) -> u8 {
        // SAFETY: the tests ask for pages of their own mappings.
        unsafe { at.add(page * PAGE).read_volatile() }
    }

    /// The device, where this account may open it.
    fn pager() -> Option<Pager> {
        let device = std::fs::File::options().read(true).write(true).open(DEVICE).ok()?;
        Some(Pager::begin(own(device.as_fd()).expect("a userfaultfd")).expect("UFFDIO_API"))
    }

    /// Answers until a thread has ended. What it was told of beside faults.
    fn serve<T>(pager: &Pager, fill: u8, thread: &std::thread::ScopedJoinHandle<'_, T>) -> Vec<Message> {
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let mut told = Vec::new();
        while !thread.is_finished() {
            assert!(std::time::Instant::now() < limit, "it does not go on: {told:?}");
            match pager.next().expect("a message") {
                Some(Message::Fault(at)) => {
                    let at = at & !(PAGE as u64 - 1);
                    assert_eq!(pager.copy(at, &[fill; PAGE]), Placed { bytes: PAGE as u64, stopped: None });
                }
                Some(other) => told.push(other),
                None => std::thread::yield_now(),
            }
        }
        told
    }

    #[test]
    fn what_is_missing_comes_when_it_is_touched_and_changes_are_told() {
        let Some(pager) = pager() else {
            let _ = writeln!(std::io::stderr(), "skipped: {DEVICE} cannot be opened");
            return;
        };
        let memory = map(64);
        let at = memory as u64;
        pager.register(at, at + 64 * PAGE as u64).expect("register");
        assert_eq!(pager.next().expect("read"), None);
        let end = at + 64 * PAGE as u64;
        // Dropped if this fails: then nobody waits for it.
        let pager = std::thread::scope(move |threads| {
            let address = memory as usize;
            let toucher = threads.spawn(move || {
                let memory = address as *mut u8;
                assert_eq!(byte(memory, 3), 7);
                // The kernel touches it, too.
                // SAFETY: a page of the mapping.
                let page = unsafe { std::slice::from_raw_parts(memory.add(4 * PAGE), PAGE) };
                let (read, write) = rustix::pipe::pipe().expect("pipe");
                assert_eq!(rustix::io::write(&write, page), Ok(PAGE));
                let mut back = [0; PAGE];
                assert_eq!(rustix::io::read(&read, &mut back), Ok(PAGE));
                assert_eq!(back, [7; PAGE]);
                // SAFETY: the mapping is ours, and nobody has a reference to it.
                unsafe { rustix::mm::madvise(memory.add(8 * PAGE).cast(), 2 * PAGE, Advice::LinuxDontNeed) }
                    .expect("madvise");
                let to = map(8);
                // SAFETY: both mappings are ours; the second one's place is taken.
                unsafe {
                    let from = memory.add(32 * PAGE).cast();
                    rustix::mm::mremap_fixed(from, 8 * PAGE, 8 * PAGE, MremapFlags::MAYMOVE, to.cast())
                        .expect("mremap");
                    rustix::mm::munmap(memory.add(48 * PAGE).cast(), 16 * PAGE).expect("munmap");
                }
                to as u64
            });
            let mut told = serve(&pager, 7, &toucher);
            let to = toucher.join().expect("its end");
            let page = |n: u64| at + n * PAGE as u64;
            // Some kernels tell of where moved memory was, too.
            told.retain(|message| *message != Message::Dropped(page(32), page(40)));
            let moved = Message::Moved { from: page(32), to, len: 8 * PAGE as u64 };
            assert_eq!(told, [Message::Dropped(page(8), page(10)), moved, Message::Dropped(page(48), end)]);
            // What is there is there; what is gone is not.
            let there = pager.copy(at + 3 * PAGE as u64, &[9; PAGE]);
            assert_eq!(there, Placed { bytes: 0, stopped: Some(Errno::EXIST) });
            // Nothing is there, or another test's memory.
            let gone = pager.zeros(at + 50 * PAGE as u64, PAGE as u64).stopped;
            assert!(matches!(gone, Some(Errno::NOENT | Errno::EXIST)), "{gone:?}");
            assert_eq!(pager.copy(at + 2 * PAGE as u64, &[9; 3 * PAGE]), Placed { bytes: PAGE as u64, stopped: None });
            assert_eq!(pager.zeros(at + 8 * PAGE as u64, PAGE as u64).bytes, PAGE as u64);
            pager.wake(at, PAGE as u64).expect("wake");
            assert_eq!((byte(memory, 2), byte(memory, 3), byte(memory, 8)), (9, 7, 0));
            pager
        });
        drop(pager);
        assert_eq!(byte(memory, 20), 0);
    }
}
