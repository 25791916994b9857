//! Leaving namespaces and what else is shared with the caller (unshare(2), keyctl(2)).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
pub use rustix::thread::UnshareFlags as Namespaces;

use crate::{Result, SysError};

/// Enters new namespaces; of pid and time namespaces only the next child.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `ENOSPC` at a limit in `/proc/sys/user`, `EINVAL` for `FILES`.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    let named = |e| SysError::new("unshare", namespaces.iter_names().map(|n| n.0).collect::<Vec<_>>().join("|"), e);
    if namespaces.contains(Namespaces::FILES) {
        return Err(named(Errno::INVAL));
    }
    // SAFETY: unsound only with FILES, where descriptors of other threads could vanish.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.map_err(named)
}

/// Joins a new, empty session keyring, so that no key of the caller is reachable (keyctl(2)).
///
/// # Errors
/// `EDQUOT` when the caller has too many keys; a kernel without keys is no error.
pub fn new_session_keyring() -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: u64 = 1;
    // SAFETY: a null name means an anonymous keyring; no memory is touched.
    let ret = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0_u64) };
    let error = SysError::last("keyctl", "KEYCTL_JOIN_SESSION_KEYRING");
    if ret < 0 && error.errno != Errno::NOSYS { Err(error) } else { Ok(()) }
}

/// The user namespace that a namespace belongs to; of a user namespace its parent (ioctl_nsfs(2)).
///
/// # Errors
/// `EPERM` for one that is neither the caller's nor below it.
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd> {
    const NS_GET_USERNS: u64 = 0xb701;
    above(namespace.as_fd(), NS_GET_USERNS, "NS_GET_USERNS")
}

/// The pid namespace that a pid namespace was made in (ioctl_nsfs(2)).
///
/// # Errors
/// `EPERM` for one that is not below the caller's.
pub fn parent(namespace: impl AsFd) -> Result<OwnedFd> {
    const NS_GET_PARENT: u64 = 0xb702;
    above(namespace.as_fd(), NS_GET_PARENT, "NS_GET_PARENT")
}

fn above(namespace: BorrowedFd<'_>, request: u64, name: &str) -> Result<OwnedFd> {
    let raw = namespace.as_raw_fd();
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::ioctl(raw, request) };
    if ret < 0 {
        return Err(SysError::last("ioctl", format!("{raw}, {name}")));
    }
    // SAFETY: the kernel has just made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(ret) })
}

/// The user id, in the caller's user namespace, of whoever has made a user namespace (ioctl_nsfs(2)).
///
/// # Errors
/// `EINVAL` for a namespace of another kind.
pub fn owner_id(users: impl AsFd) -> Result<u32> {
    const NS_GET_OWNER_UID: u64 = 0xb704;
    let raw = users.as_fd().as_raw_fd();
    let mut id: libc::uid_t = 0;
    // SAFETY: the kernel writes one id, which outlives the call.
    let ret = unsafe { libc::ioctl(raw, NS_GET_OWNER_UID, &raw mut id) };
    if ret < 0 { Err(SysError::last("ioctl", format!("{raw}, NS_GET_OWNER_UID"))) } else { Ok(id) }
}

/// What files below `directory` say to somebody in a user namespace: of each at most 62 bytes, none for one that cannot be read. A thread
/// cannot enter a user namespace alone, so a child does.
///
/// # Errors
/// `EPERM` for a namespace that the caller may not enter.
pub fn read_there(users: BorrowedFd<'_>, directory: BorrowedFd<'_>, paths: &[CString]) -> Result<Vec<Option<Vec<u8>>>> {
    let users = users.as_raw_fd();
    // SAFETY: see `read_all`.
    let said = child_says("a user namespace", |out| unsafe { read_all([users, directory.as_raw_fd(), out], paths) })?;
    Ok(said.chunks_exact(RECORD).map(|record| record.get(1..=usize::from(record[0])).map(<[u8]>::to_vec)).collect())
}

/// The pids of these sockets' peers (`SO_PEERCRED`) as a pid namespace shows them, also of processes that are no more; 0 where it does
/// not. Nobody enters a pid namespace but by birth, so a child's child looks. Whoever is in that namespace sees it, and may send it signals:
/// it can be killed, but not be looked into.
///
/// # Errors
/// `EPERM` for a namespace that the caller may not enter; `ECHILD` where the one that looks was stopped or killed.
pub fn peers_there(processes: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> Result<Vec<i32>> {
    let raw: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let mut kept = raw.clone();
    kept.sort_unstable();
    let processes = processes.as_raw_fd();
    // SAFETY: see `peers_all`.
    let said = child_says("a pid namespace", |out| unsafe { peers_all(processes, (&raw, &kept), out) })?;
    Ok(said.chunks_exact(4).filter_map(|word| word.try_into().ok()).map(i32::from_ne_bytes).collect())
}

/// What a forked child writes. It makes system calls only, with what the parent has put together before, and ends with 0 or what setns
/// said: whatever locks other threads hold in its copy of memory, it takes none.
fn child_says(namespace: &str, child: impl FnOnce(i32) -> i32) -> Result<Vec<u8>> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SysError::new("pipe2", "O_CLOEXEC", e))?;
    // SAFETY: see above.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // It has all of our memory and descriptors, our root directory, and what is beneath it may be of the namespace that it enters.
        // SAFETY: takes no pointer.
        let hidden = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        let code = if hidden == 0 { child(write.as_raw_fd()) } else { libc::EPERM };
        // SAFETY: takes no pointer.
        unsafe { libc::_exit(code) }
    }
    if pid < 0 {
        return Err(SysError::last("fork", ""));
    }
    drop(write);
    let mut said = Vec::new();
    let heard = std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut said);
    let end = crate::wait::wait(Some(pid), true)?;
    heard.map_err(|e| SysError::io("read", "a child's answer", &e))?;
    match end {
        Some((_, crate::wait::Event::Exited(0))) => Ok(said),
        Some((_, crate::wait::Event::Exited(libc::ECHILD))) => Err(SysError::new(
            "setns",
            format!("{namespace}: who looks into it for us was stopped or killed by somebody there"),
            Errno::CHILD,
        )),
        Some((_, crate::wait::Event::Exited(errno))) => Err(SysError::said("setns", namespace, errno)),
        _ => Err(SysError::new("setns", format!("{namespace}: the child has died"), Errno::CHILD)),
    }
}

/// The child of [`peers_there`], and its own child. `kept`: the same sockets, sorted.
///
/// # Safety
/// In a child whose memory is its own; async-signal-safe.
unsafe fn peers_all(processes: i32, (sockets, kept): (&[i32], &[i32]), out: i32) -> i32 {
    // SAFETY: descriptors that are open, and buffers of the lengths that are said.
    unsafe {
        if libc::setns(processes, libc::CLONE_NEWPID) < 0 {
            return *libc::__errno_location();
        }
        let pid = libc::fork();
        if pid < 0 {
            return *libc::__errno_location();
        }
        if pid > 0 {
            // Who stops it would keep us, too.
            let mut status = 0;
            let waited = libc::waitpid(pid, &raw mut status, libc::WUNTRACED);
            if waited == pid && libc::WIFSTOPPED(status) {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, &raw mut status, 0);
            }
            return if waited == pid && status == 0 { 0 } else { libc::ECHILD };
        }
        close_others(kept, out);
        for socket in sockets {
            let mut peer = [0_i32; 3];
            let mut length: libc::socklen_t = 12;
            libc::getsockopt(*socket, libc::SOL_SOCKET, libc::SO_PEERCRED, peer.as_mut_ptr().cast(), &raw mut length);
            if libc::write(out, peer.as_ptr().cast(), 4) < 4 {
                return libc::EPIPE;
            }
        }
        0
    }
}

/// Closes all but `kept`, which is sorted, and `out`.
///
/// # Safety
/// In a child that ends soon: it closes what others think is theirs.
unsafe fn close_others(kept: &[i32], out: i32) {
    // SAFETY: takes no pointers.
    let close = |from: i32, to: i32| unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    let mut next = 0;
    loop {
        let keep = kept.get(kept.partition_point(|fd| *fd < next)).copied();
        let keep = keep.into_iter().chain((out >= next).then_some(out)).min();
        if keep.is_none_or(|keep| keep > next) {
            close(next, keep.map_or(i32::MAX, |keep| keep - 1));
        }
        let Some(keep) = keep else { return };
        next = keep.saturating_add(1);
    }
}

/// A length, or `UNREADABLE`, and so many bytes.
const RECORD: usize = 64;
const UNREADABLE: u8 = 255;

/// The child of [`read_there`].
///
/// # Safety
/// In a child whose memory is its own; async-signal-safe.
unsafe fn read_all([users, directory, out]: [i32; 3], paths: &[CString]) -> i32 {
    // SAFETY: descriptors that are open, strings that end, a buffer of the length that is said.
    unsafe {
        if libc::setns(users, libc::CLONE_NEWUSER) < 0 {
            return *libc::__errno_location();
        }
        for path in paths {
            let mut record = [0_u8; RECORD];
            let fd = libc::openat(directory, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let got = if fd < 0 { -1 } else { libc::read(fd, record.as_mut_ptr().add(1).cast(), RECORD - 2) };
            record[0] = u8::try_from(got).unwrap_or(UNREADABLE);
            if fd >= 0 {
                libc::close(fd);
            }
            if libc::write(out, record.as_ptr().cast(), RECORD) < 0 {
                return libc::EPIPE;
            }
        }
        0
    }
}

/// Whether user and group ids mean the same here as on the host: in its own user namespace, or in one that maps all of them to
/// themselves, which only root can make.
#[must_use]
pub fn ids_are_the_hosts() -> bool {
    ["uid_map", "gid_map"].into_iter().all(|map| {
        std::fs::read_to_string(format!("/proc/self/{map}"))
            .is_ok_and(|text| text.split_ascii_whitespace().eq(["0", "0", "4294967295"]))
    })
}
