//! A stub: a copy of this process that runs no code of ours, only waits to be taken over (clone(2)).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::namespace::Namespaces;
use crate::wait::Event;
use crate::{Result, SysError};

/// `struct clone_args` (clone(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CloneArgs {
    pub flags: u64,
    pub pidfd: u64,
    pub child_tid: u64,
    pub parent_tid: u64,
    pub exit_signal: u64,
    pub stack: u64,
    pub stack_size: u64,
    pub tls: u64,
    pub set_tid: u64,
    pub set_tid_size: u64,
    pub cgroup: u64,
}

impl CloneArgs {
    /// The bytes, as a script carries them.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
            self.cgroup,
        ]
        .iter()
        .flat_map(|w| w.to_ne_bytes())
        .collect()
    }
}

/// Asks the kernel whether it would make these namespaces, by the calls that a container takes: a child in a new user
/// namespace, if that is wanted, with its own ids in it, enters the others, one step after the other, and ends at once.
///
/// # Errors
/// What clone3, unshare or the map of ids says: `EPERM`, `ENOSPC` at a limit in /proc/sys/user, `EUSERS`, `EINVAL` where one is not
/// known.
pub fn trial(user: bool, steps: &[Namespaces]) -> Result<()> {
    use rustix::process::{getegid, geteuid};
    let named = |e| SysError::new("pipe2", "O_CLOEXEC", e);
    let (report, answer) = pipe_with(PipeFlags::CLOEXEC).map_err(named)?;
    // Made before: the child allocates nothing.
    let own = |id: u32| format!("{id} {id} 1");
    let maps = [
        (c"/proc/self/setgroups", "deny".to_owned()),
        (c"/proc/self/uid_map", own(geteuid().as_raw())),
        (c"/proc/self/gid_map", own(getegid().as_raw())),
    ];
    let flags = if user { libc::CLONE_NEWUSER } else { 0 };
    let args = CloneArgs {
        flags: u64::from(flags.cast_unsigned()),
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM: the child has its own memory, in which it makes system calls, reads errno, and is gone.
    let pid = unsafe {
        match libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<CloneArgs>()) {
            0 => {
                if let Err(at) = tried(if user { &maps } else { &[] }, steps) {
                    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                    let words = [at, errno];
                    libc::write(answer.as_raw_fd(), words.as_ptr().cast(), std::mem::size_of_val(&words));
                }
                libc::syscall(libc::SYS_exit_group, 0);
                std::hint::unreachable_unchecked()
            }
            pid => pid,
        }
    };
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or_else(|| SysError::last("clone3", if user { "CLONE_NEWUSER" } else { "" }))?;
    drop(answer);
    let ended = crate::wait::wait(Some(pid), true)?;
    let mut words = [0_u8; 8];
    let names = |step: Option<&Namespaces>| {
        step.into_iter().flat_map(|step| step.iter_names()).map(|n| n.0).collect::<Vec<_>>().join("|")
    };
    if rustix::io::read(&report, &mut words).is_ok_and(|count| count == words.len()) {
        let [a, b, c, d, e, f, g, h] = words;
        let at = usize::try_from(i32::from_ne_bytes([a, b, c, d])).unwrap_or_default();
        let errno = Errno::from_raw_os_error(i32::from_ne_bytes([e, f, g, h]));
        let maps = if user { &maps[..] } else { &[] };
        return Err(match maps.get(at) {
            Some((path, text)) => SysError::new("write", format!("{}, {text:?}", path.to_string_lossy()), errno),
            None => SysError::new("unshare", names(steps.get(at.saturating_sub(maps.len()))), errno),
        });
    }
    match ended {
        Some((_, Event::Exited(0))) => Ok(()),
        // Killed: a filter that does not even answer.
        _ => Err(SysError::new("unshare", names(steps.first()), Errno::PERM)),
    }
}

/// In the child of a trial; which of the calls failed, with its errno where the C library leaves it.
fn tried(maps: &[(&CStr, String)], steps: &[Namespaces]) -> std::result::Result<(), i32> {
    let mut at = 0;
    for (path, text) in maps {
        // SAFETY: strings with their lengths, which the caller owns; system calls only.
        let written = unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            // The descriptor goes with the process.
            if fd < 0 { -1 } else { libc::write(fd, text.as_ptr().cast(), text.len()) }
        };
        if written < 0 {
            return Err(at);
        }
        at += 1;
    }
    for step in steps {
        // SAFETY: takes no pointer.
        if unsafe { libc::syscall(libc::SYS_unshare, step.bits()) } < 0 {
            return Err(at);
        }
        at += 1;
    }
    Ok(())
}

/// Forks a child that runs none of our code and ends with us: it asks for SIGKILL at the death of its parent, then waits
/// for exactly that until it is taken over. `flags` as for clone3. Its pid as the caller sees it.
///
/// # Errors
/// What clone3 says: `EAGAIN` at a limit, `EPERM`, `ENOMEM`; `EMFILE` for the descriptor of ourselves.
pub fn stub(flags: u64) -> Result<i32> {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    // The signal alone could be asked for too late; and inside a new pid namespace nobody can be asked who the parent is.
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| SysError::new("pidfd_open", "self", e))?;
    let own = libc::pollfd { fd: own.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let args = CloneArgs { flags, exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()), ..CloneArgs::default() };
    let size = std::mem::size_of::<CloneArgs>();
    let ret: i64;
    // SAFETY: without CLONE_VM the child gets its own copy of memory, this frame with `own` in it; it never returns into
    // Rust but makes system calls until it exits, is killed or taken over. The parent goes on after the asm with only rax,
    // rcx, r11 changed; it jumps over all else.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 3f",
            // prctl(PR_SET_PDEATHSIG, SIGKILL)
            "mov eax, 157",
            "mov edi, 1",
            "mov esi, 9",
            "syscall",
            // poll(own, 1, -1) until it says 1
            "2: mov eax, 7",
            "mov rdi, {own}",
            "mov esi, 1",
            "mov rdx, -1",
            "syscall",
            "cmp eax, 1",
            "jne 2b",
            // exit_group(1)
            "mov eax, 231",
            "mov edi, 1",
            "syscall",
            "3:",
            own = in(reg) &raw const own,
            inlateout("rax") libc::SYS_clone3 => ret,
            inlateout("rdi") &raw const args => _,
            inlateout("rsi") size => _,
            out("rdx") _,
            out("rcx") _,
            out("r11") _,
        );
    }
    i32::try_from(ret).ok().filter(|pid| *pid > 0).ok_or_else(|| {
        let errno = i32::try_from(-ret).unwrap_or(libc::EIO);
        SysError::new("clone3", format!("flags={flags:#x}"), Errno::from_raw_os_error(errno))
    })
}

/// Who a child of [`as_process`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// Its pid in the namespace of our children; 0 for any, as for one that is too large here.
    pub pid: i32,
    /// Its user, in our user namespace.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Runs `make` in a short-lived child that is somebody else and shares our descriptor table. The descriptors that it
/// returns, and the child's pid as we saw it. `make` must own no descriptor: dropping one would close ours.
///
/// # Errors
/// `make`'s own; what clone3, setresgid and setresuid say.
pub fn as_process(who: Who, make: impl FnOnce() -> Result<Vec<OwnedFd>>) -> Result<(Vec<OwnedFd>, i32)> {
    const CLONE_FILES: u64 = 0x400;
    let shown = || format!("as process {} of user {}", who.pid, who.uid);
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
        .map_err(|e| SysError::new("pipe2", "", e))?;
    let any =
        CloneArgs { flags: CLONE_FILES, exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()), ..CloneArgs::default() };
    let wanted = CloneArgs { set_tid: (&raw const who.pid) as u64, set_tid_size: 1, ..any };
    // SAFETY: no CLONE_VM: the child has its own memory and never returns from this block. We have no other thread that
    // could hold a lock when memory was copied.
    let pid = unsafe {
        let clone = |args: &CloneArgs| libc::syscall(libc::SYS_clone3, &raw const *args, size_of::<CloneArgs>());
        let mut pid = clone(if who.pid == 0 { &any } else { &wanted });
        if pid < 0 && who.pid != 0 && *libc::__errno_location() == libc::EINVAL {
            // kernel.pid_max is lower here, and whoever it was need not live: all who do are made elsewhere.
            pid = clone(&any);
        }
        match pid {
            0 => {
                let answer = become_and_make(who, make);
                let _ = rustix::io::write(&tell, &answer);
                libc::syscall(libc::SYS_exit_group, 0);
                std::hint::unreachable_unchecked()
            }
            pid => pid,
        }
    };
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or_else(|| SysError::last("clone3", shown()))?;
    crate::wait::wait(Some(pid), true)?;
    let mut answer = [0u8; ANSWER];
    let n = rustix::io::read(&told, &mut answer[..]).map_err(|e| SysError::new("read", shown(), e))?;
    let word = |bytes: &[u8]| bytes.try_into().ok().map(i32::from_ne_bytes);
    match answer[..n].split_first_chunk::<4>().map(|(first, rest)| (i32::from_ne_bytes(*first), rest)) {
        Some((0, made)) => {
            // SAFETY: the child has just made these in the table that we share, and is gone.
            let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
            Ok((made.chunks_exact(4).filter_map(word).map(own).collect(), pid))
        }
        Some((errno, said)) => {
            let said = String::from_utf8_lossy(said);
            let (call, args) = said.split_once(' ').unwrap_or_default();
            let known = CALLS.iter().find(|known| **known == call);
            let args = if known.is_some() { args.to_owned() } else { format!("{}, {call}: {args}", shown()) };
            Err(SysError::new(known.unwrap_or(&"clone3"), args, Errno::from_raw_os_error(errno)))
        }
        None => Err(SysError::new("clone3", shown(), Errno::CHILD)),
    }
}

/// Bytes that a child of [`as_process`] answers at most.
const ANSWER: usize = 1024;
/// What may fail in one, by name.
const CALLS: &[&str] = &[
    "bind",
    "chroot",
    "connect",
    "fchdir",
    "fchmodat",
    "fchownat",
    "listen",
    "newfstatat",
    "openat2",
    "sendmsg",
    "setresgid",
    "setresuid",
    "setsockopt",
    "socket",
    "socketpair",
    "unlinkat",
];

/// In the child: 0 and the numbers of what was made, or the errno.
fn become_and_make(who: Who, make: impl FnOnce() -> Result<Vec<OwnedFd>>) -> Vec<u8> {
    /// What user namespaces show of ids that are not mapped (kernel.overflowuid): those cannot be had here either.
    const NOBODY: u32 = 65_534;
    let set = |call: i64, id: u32| {
        // SAFETY: takes no pointers, changes this process only.
        let done = unsafe { libc::syscall(call, id, id, id) == 0 };
        if done || id == NOBODY { Ok(()) } else { Err(SysError::last("setresuid", id.to_string())) }
    };
    let made = set(libc::SYS_setresgid, who.gid).and_then(|()| set(libc::SYS_setresuid, who.uid)).and_then(|()| make());
    match made {
        Ok(fds) => {
            let words = std::iter::once(0).chain(fds.into_iter().map(IntoRawFd::into_raw_fd));
            words.flat_map(i32::to_ne_bytes).collect()
        }
        Err(e) => {
            let mut said = e.errno.raw_os_error().to_ne_bytes().to_vec();
            said.extend_from_slice(format!("{} {}", e.call, e.args).as_bytes());
            said.truncate(ANSWER);
            said
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_nothing_and_says_what_is_refused() {
        // Of this thread: others have their own.
        let children = || std::fs::read_to_string("/proc/thread-self/children").expect("children");
        trial(false, &[]).expect("a child");
        assert_eq!(children(), "", "a child is left");
        // A bit that is no namespace, whoever asks.
        let steps = [Namespaces::empty(), Namespaces::from_bits_retain(1)];
        let refused = trial(false, &steps).expect_err("a nonsense");
        assert_eq!((refused.call, refused.errno), ("unshare", Errno::INVAL));
        assert_eq!(children(), "", "a child is left");
    }
}
