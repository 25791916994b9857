//! Another task's memory: process_vm_readv and process_vm_writev (process_vm_readv(2)).

use crate::{Result, SysError, patience};

/// Reads into `buf` from `addr` of `pid`; short only where the task's memory ends.
///
/// # Errors
/// `EFAULT` when the first byte is not readable, `EPERM`, `ESRCH`.
pub fn read(pid: i32, addr: u64, buf: &mut [u8]) -> Result<usize> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which outlives the call; `remote` is only read by the kernel.
    let n = patience::with("process_vm_readv", pid, || unsafe {
        libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0)
    });
    usize::try_from(n).map_err(|_| SysError::last("process_vm_readv", format!("{pid}, {addr:#x}, {}", buf.len())))
}

/// How many ranges one call can read (`UIO_MAXIOV`).
pub const RANGES: usize = 1024;

/// Reads several ranges, each an address and a length, into `buf` one after the other, and says how many bytes it read: fewer
/// than asked for where one could not be read. At most [`RANGES`] of them, of no more bytes than `buf` has.
///
/// # Errors
/// As [`read`].
pub fn read_ranges(pid: i32, ranges: &[(u64, usize)], buf: &mut [u8]) -> Result<usize> {
    let remote: Vec<libc::iovec> =
        ranges.iter().map(|(at, len)| libc::iovec { iov_base: *at as *mut libc::c_void, iov_len: *len }).collect();
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which outlives the call; `remote` is only read by the kernel.
    let n = patience::with("process_vm_readv", pid, || unsafe {
        libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0)
    });
    usize::try_from(n).map_err(|_| SysError::last("process_vm_readv", format!("{pid}, {} ranges", ranges.len())))
}

/// Reads exactly `buf.len()` bytes.
///
/// # Errors
/// As [`read`]; a short read is `EFAULT`.
pub fn read_exact(pid: i32, addr: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let n = read(pid, addr + done as u64, &mut buf[done..])?;
        if n == 0 {
            return Err(SysError::new(
                "process_vm_readv",
                format!("{pid}, {:#x}", addr + done as u64),
                rustix::io::Errno::FAULT,
            ));
        }
        done += n;
    }
    Ok(())
}

/// Writes all of `buf` at `addr` of `pid`, where the task itself could write.
///
/// # Errors
/// `EFAULT` when it does not fit, `EPERM`, `ESRCH`.
pub fn write_all(pid: i32, addr: u64, buf: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = &buf[done..];
        let at = addr + done as u64;
        let local = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: rest.len() };
        // SAFETY: `local` describes `rest`, which is only read; `remote` belongs to another task.
        let n = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
        let fail = || SysError::last("process_vm_writev", format!("{pid}, {at:#x}, {}", rest.len()));
        match usize::try_from(n) {
            Ok(0) | Err(_) => return Err(fail()),
            Ok(n) => done += n,
        }
    }
    Ok(())
}

/// Writes `buf` to several ranges, each an address and a length, one after the other with one call. At most [`RANGES`] of them, of as
/// many bytes as `buf` has.
///
/// # Errors
/// As [`write_all`]; a short write is `EFAULT`.
pub fn write_ranges(pid: i32, ranges: &[(u64, usize)], buf: &[u8]) -> Result<()> {
    let remote: Vec<libc::iovec> =
        ranges.iter().map(|(at, len)| libc::iovec { iov_base: *at as *mut libc::c_void, iov_len: *len }).collect();
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    // SAFETY: `local` describes `buf`, which is only read; `remote` belongs to another task.
    let n =
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
    let what = || format!("{pid}, {} ranges", ranges.len());
    match usize::try_from(n) {
        Err(_) => Err(SysError::last("process_vm_writev", what())),
        Ok(n) if n < buf.len() => Err(SysError::new("process_vm_writev", what(), rustix::io::Errno::FAULT)),
        Ok(_) => Ok(()),
    }
}
