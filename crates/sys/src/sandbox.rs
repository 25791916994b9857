//! A copy of this process that can read what it was given, compute, answer, and nothing else (seccomp(2)).

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{
    Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::namespace::{self, Namespaces};
use crate::userfault::missing;
use crate::wait::{self, Event};
use crate::{Errno, Result, SysError};

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

/// How a copy ends that could not close what it was not to have (an old filter refuses close_range(2)), and one that gets no memory
/// ([`end_without_memory`]).
pub const NOT_CLOSED: i32 = 102;
/// The latter.
pub const NO_MEMORY: i32 = 103;

/// The allocator: the system's, which says so where a process is to end without memory.
struct Allocator;

/// Whether it is.
static ENDS: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// From now on this process ends with [`NO_MEMORY`] where it gets none: abort(3), by which it would end else, has other reasons, too.
pub fn end_without_memory() {
    ENDS.store(true, Ordering::Relaxed);
}

impl Allocator {
    fn given(memory: *mut u8) -> *mut u8 {
        if memory.is_null() && ENDS.load(Ordering::Relaxed) {
            // SAFETY: ends the process.
            unsafe { libc::_exit(NO_MEMORY) }
        }
        memory
    }
}

// SAFETY: what it gives and takes is the system allocator's, called as it was.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the same contract.
        Allocator::given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        Allocator::given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        Allocator::given(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// The copy; killed when it is dropped before it has ended. It is held by a pidfd: whoever waits for all children may have waited for this
/// one, and then its number is another's.
#[derive(Debug)]
pub struct Copy {
    pid: i32,
    own: Option<OwnedFd>,
    ended: bool,
}

/// Runs `body` in a copy of this process that has no descriptor but `keep`, and exits with what it returns.
///
/// To be called while this process has a single thread: locks that others hold stay locked in the copy.
///
/// # Errors
/// `EAGAIN` at a limit of tasks, `ENOMEM`.
pub fn fork(keep: &[BorrowedFd<'_>], body: impl FnOnce() -> i32) -> Result<Copy> {
    let mut keep: Vec<i32> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    // SAFETY: takes no pointer. The copy never returns from here: it runs the body, whose memory is its own, and ends by
    // _exit, so nothing of the parent's is dropped or flushed twice.
    match unsafe { libc::fork() } {
        0 => {
            let code = catch_unwind(AssertUnwindSafe(|| match close_others(&keep) {
                Ok(()) => body(),
                Err(_) => NOT_CLOSED,
            }));
            // SAFETY: ends the process.
            unsafe { libc::_exit(code.unwrap_or(101)) }
        }
        pid if pid > 0 => {
            // It runs already: where there is no descriptor for it, it goes by its number.
            let own = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            Ok(Copy { pid, own, ended: false })
        }
        _ => Err(SysError::last("fork", "")),
    }
}

impl Copy {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Can be read when it has ended (pidfd_open(2)); none where that was refused.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.own.as_ref().map(AsFd::as_fd)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// `ECHILD` when somebody else has waited for it.
    pub fn wait(mut self) -> Result<Event> {
        self.ended = true;
        self.reap()
    }

    fn reap(&self) -> Result<Event> {
        let Some(own) = &self.own else {
            return match wait::wait(Some(self.pid), true)? {
                Some((_, event)) => Ok(event),
                None => Err(SysError::new("waitpid", self.pid.to_string(), Errno::CHILD)),
            };
        };
        let ended = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(own.as_fd()), WaitIdOptions::EXITED));
        let ended = ended.map_err(|errno| SysError::new("waitid", self.pid.to_string(), errno))?;
        match ended.map(|status| (status.exit_status(), status.terminating_signal())) {
            Some((Some(code), _)) => Ok(Event::Exited(code)),
            Some((_, Some(signal))) => Ok(Event::Killed(signal)),
            _ => Err(SysError::new("waitid", self.pid.to_string(), Errno::CHILD)),
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if !self.ended {
            // One that is gone, and that somebody has waited for, is nobody.
            let _ = match (&self.own, Pid::from_raw(self.pid)) {
                (Some(own), _) => pidfd_send_signal(own, Signal::KILL),
                (None, Some(pid)) => rustix::process::kill_process(pid, Signal::KILL),
                (None, None) => Ok(()),
            };
            let _ = self.reap();
        }
    }
}

/// Closes every descriptor but these, which are ascending.
fn close_others(keep: &[i32]) -> Result<()> {
    let mut from = 0;
    for number in keep.iter().copied().chain([i32::MAX]) {
        if from < number {
            let (first, last) = (from.cast_unsigned(), (number - 1).cast_unsigned());
            // SAFETY: takes numbers. What owned those descriptors is never used again in this process.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
                return Err(SysError::last("close_range", format!("{first}, {last}")));
            }
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Gives up everything that can be given up: groups, ids, capabilities in every set, and every system call but those that
/// read and write open descriptors and manage own memory. Any other call ends the process at once.
///
/// `user_namespace`: first into one of its own, where the kernel permits that.
///
/// # Errors
/// What was refused; the caller must then end.
pub fn give_up_everything(user_namespace: bool) -> Result<()> {
    // Not the parent's name: whoever looks for what hangs should find this one.
    rustix::thread::set_name(c"yendor-load").map_err(|e| SysError::new("prctl", "PR_SET_NAME", e))?;
    // With the capabilities that another id would lose.
    give_up_bounds()?;
    become_nobody()?;
    if user_namespace {
        // Where it is refused there is nothing more to give up.
        let _ = namespace::unshare(Namespaces::NEWUSER);
    }
    give_up_capabilities()?;
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Nofile, nothing).map_err(|e| SysError::new("setrlimit", "0", e))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| SysError::new("prctl", "PR_SET_PDEATHSIG", e))?;
    filter(&program(&[]))
}

/// The same for one that serves missing pages ([`crate::userfault::missing`]) when it has received what it needs for that. It keeps
/// its ids, by which it may end the process of a pidfd, and it lives on when its parent dies: who waits for pages must not go on
/// without them.
///
/// # Errors
/// What was refused; the caller must then end.
pub fn give_up_all_but_paging() -> Result<()> {
    rustix::thread::set_name(c"yendor-pager").map_err(|e| SysError::new("prctl", "PR_SET_NAME", e))?;
    give_up_capabilities()?;
    filter(&program(&PAGING))
}

/// And the right to gain any.
/// What no program could have again. Whoever may not say so executes none either.
fn give_up_bounds() -> Result<()> {
    let number = |n: u32| CapabilitySet::from_bits_retain(1_u64 << n);
    for capability in (0..64).map(number) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one, or not ours to drop.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(e) => return Err(SysError::new("prctl", "PR_CAPBSET_DROP", e)),
        }
    }
    Ok(())
}

fn give_up_capabilities() -> Result<()> {
    give_up_bounds()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(|e| SysError::new("capset", "no capability", e))?;
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    for resource in [Resource::Core, Resource::Nproc] {
        rustix::process::setrlimit(resource, nothing).map_err(|e| SysError::new("setrlimit", "0", e))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|e| SysError::new("prctl", "PR_SET_NO_NEW_PRIVS", e))
}

/// Where the ids exist and may be taken; where not, the process stays who it is.
fn become_nobody() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let groups: &[Gid] = &[];
    let steps = [
        ("setgroups", rustix::thread::set_thread_groups(groups)),
        ("setresgid", rustix::thread::set_thread_res_gid(gid, gid, gid)),
        ("setresuid", rustix::thread::set_thread_res_uid(uid, uid, uid)),
    ];
    for (call, done) in steps {
        match done {
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
            Err(e) => return Err(SysError::new(call, NOBODY.to_string(), e)),
        }
    }
    Ok(())
}

/// Calls that are allowed whatever their arguments.
const ALLOWED: [i64; 21] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What a pager needs beside them.
const PAGING: [i64; 7] = [
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pidfd_send_signal,
];

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { jt, jf, ..statement(code, k) }
}

/// The program (seccomp(2); `struct seccomp_data`: nr at 0, arch at 4, arguments from 16, eight bytes each).
fn program(also: &[i64]) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const PROT_EXEC: u32 = 4;
    const ARGUMENT_1: u32 = 16 + 8;
    const F_GETFD: u64 = 1;
    const ARGUMENT_2: u32 = 16 + 2 * 8;
    const ARGUMENT_4: u32 = 16 + 4 * 8;
    let number = |call: i64| u32::try_from(call).unwrap_or(u32::MAX);
    let (allow, kill) =
        (|| statement(RETURN, libc::SECCOMP_RET_ALLOW), || statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    let mut out = vec![statement(LOAD, 4), jump(EQUAL, AUDIT_ARCH_X86_64, 1, 0), kill(), statement(LOAD, 0)];
    for call in ALLOWED.iter().chain(also) {
        out.extend([jump(EQUAL, number(*call), 0, 1), allow()]);
    }
    if !also.is_empty() {
        // Pages may be put in their place; nothing else is asked of a device.
        let request = |request: u64| u32::try_from(request).unwrap_or(0);
        out.extend([
            jump(EQUAL, number(libc::SYS_ioctl), 0, 6),
            statement(LOAD, ARGUMENT_1),
            jump(EQUAL, request(missing::UFFDIO_COPY), 2, 0),
            jump(EQUAL, request(missing::UFFDIO_ZEROPAGE), 1, 0),
            jump(EQUAL, request(missing::UFFDIO_WAKE), 0, 1),
            allow(),
            kill(),
            // What the standard library asks before it closes a descriptor, where it checks itself: is it open?
            jump(EQUAL, number(libc::SYS_fcntl), 0, 4),
            statement(LOAD, ARGUMENT_1),
            jump(EQUAL, request(F_GETFD), 0, 1),
            allow(),
            kill(),
        ]);
    }
    // Memory, but none that can be executed.
    out.extend([
        jump(EQUAL, number(libc::SYS_mprotect), 0, 4),
        statement(LOAD, ARGUMENT_2),
        jump(ANY, PROT_EXEC, 0, 1),
        kill(),
        allow(),
    ]);
    // The same, and none that is a file's: the descriptor is -1.
    out.extend([
        jump(EQUAL, number(libc::SYS_mmap), 0, 5),
        statement(LOAD, ARGUMENT_2),
        jump(ANY, PROT_EXEC, 3, 0),
        statement(LOAD, ARGUMENT_4),
        jump(EQUAL, u32::MAX, 0, 1),
        allow(),
        kill(),
    ]);
    out
}

fn filter(program: &[libc::sock_filter]) -> Result<()> {
    let mut program = program.to_vec();
    let length = u16::try_from(program.len()).map_err(|_| SysError::new("seccomp", "program", Errno::TOOBIG))?;
    let description = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the description and the program outlive the call; the kernel copies them.
    let ret = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const description) };
    if ret < 0 { Err(SysError::last("seccomp", "SECCOMP_SET_MODE_FILTER")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a copy ends that has given everything up and then does this. Tests have threads: the bodies take no lock.
    fn ends(body: impl FnOnce() -> i32) -> Event {
        let (_keep, write) = rustix::pipe::pipe().unwrap();
        let copy = fork(&[write.as_fd()], || {
            if give_up_everything(false).is_err() {
                return 99;
            }
            body()
        });
        copy.unwrap().wait().unwrap()
    }

    #[test]
    fn a_pager_puts_pages_and_nothing_else() {
        let ends = |body: fn() -> i32| {
            let (_keep, write) = rustix::pipe::pipe().unwrap();
            let copy = fork(&[write.as_fd()], || if give_up_all_but_paging().is_err() { 99 } else { body() });
            copy.unwrap().wait().unwrap()
        };
        assert_eq!(ends(|| 7), Event::Exited(7));
        fn allowed() -> i32 {
            let requests = [missing::UFFDIO_COPY, missing::UFFDIO_ZEROPAGE, missing::UFFDIO_WAKE];
            requests.iter().map(|r| i32::from(raw(libc::SYS_ioctl, [-1, r.cast_signed(), 0, 0, 0, 0]) < 0)).sum()
        }
        assert_eq!(ends(allowed), Event::Exited(3));
        fn register() -> i32 {
            i32::from(raw(libc::SYS_ioctl, [-1, 0xc020_aa00, 0, 0, 0, 0]) < 0)
        }
        assert_eq!(ends(register), Event::Killed(libc::SIGSYS));
        fn open() -> i32 {
            i32::from(raw(libc::SYS_openat, [0; 6]) < 0)
        }
        assert_eq!(ends(open), Event::Killed(libc::SIGSYS));
    }

    fn raw(number: i64, arguments: [i64; 6]) -> i64 {
        let [a, b, c, d, e, f] = arguments;
        // SAFETY: the tests pass numbers that are no pointers, or null.
        unsafe { libc::syscall(number, a, b, c, d, e, f) }
    }

    #[test]
    fn it_can_compute_and_answer() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let copy = fork(&[write.as_fd()], || {
            if give_up_everything(false).is_err() {
                return 99;
            }
            let written = rustix::io::write(&write, &[42]);
            i32::from(written.is_err()) * 3 + 7
        });
        let copy = copy.unwrap();
        let mut byte = [0];
        assert_eq!((rustix::io::read(&read, &mut byte), byte), (Ok(1), [42]));
        assert_eq!(copy.wait().unwrap(), Event::Exited(7));
    }

    #[test]
    fn every_other_call_ends_it() {
        const SIGSYS: i32 = libc::SIGSYS;
        for call in [
            libc::SYS_openat,
            libc::SYS_open,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_fork,
            libc::SYS_clone3,
            libc::SYS_kill,
            libc::SYS_tgkill,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_pidfd_getfd,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_prctl,
            libc::SYS_ioctl,
            libc::SYS_sendmsg,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_getpid,
            // The x32 form of read.
            0x4000_0000,
        ] {
            assert_eq!(ends(|| i32::from(raw(call, [0; 6]) == 0)), Event::Killed(SIGSYS), "call {call}");
        }
        let map = |protection: i64, fd: i64| raw(libc::SYS_mmap, [0, 4096, protection, 0x22, fd, 0]);
        assert_eq!(ends(|| i32::from(map(3, -1) < 0)), Event::Exited(0));
        assert_eq!(ends(|| i32::from(map(7, -1) < 0)), Event::Killed(SIGSYS));
        assert_eq!(ends(|| i32::from(map(1, 3) < 0)), Event::Killed(SIGSYS));
        assert_eq!(ends(|| i32::from(raw(libc::SYS_mprotect, [0, 0, 4, 0, 0, 0]) < 0)), Event::Killed(SIGSYS));
    }

    #[test]
    fn a_dropped_copy_is_gone() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let copy = fork(&[read.as_fd()], || {
            let _ = rustix::io::read(&read, &mut [0]);
            0
        });
        let copy = copy.unwrap();
        let pid = copy.pid();
        drop(copy);
        assert!(wait::wait(Some(pid), false).is_err());
    }

    /// A restore that fails waits for whatever ends until its own pid 1 has: copies, too. The number of one may be another's then.
    #[test]
    fn a_copy_that_somebody_has_waited_for_is_not_signalled_by_its_number() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let copy = fork(&[read.as_fd()], || 3).unwrap();
        while !matches!(wait::wait(Some(copy.pid()), true).unwrap(), Some((_, Event::Exited(3)))) {}
        // One that lives, under that number as far as the copy knows.
        let other = fork(&[read.as_fd()], || {
            let _ = rustix::io::read(&read, &mut [0]);
            0
        });
        let other = other.unwrap();
        let mut copy = copy;
        copy.pid = other.pid();
        drop(copy);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(wait::wait(Some(other.pid()), false).unwrap(), None, "it lives");
        rustix::io::write(&write, &[1]).unwrap();
        assert_eq!(other.wait().unwrap(), Event::Exited(0));
    }

    #[test]
    fn why_a_copy_ends_is_said_where_it_is_not_its_own_doing() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let huge = || i32::from(std::hint::black_box(Vec::<u8>::with_capacity(1 << 60)).capacity() > 0);
        let patient = fork(&[read.as_fd()], || {
            end_without_memory();
            huge()
        });
        assert_eq!(patient.unwrap().wait().unwrap(), Event::Exited(NO_MEMORY));
        assert_eq!(fork(&[read.as_fd()], huge).unwrap().wait().unwrap(), Event::Killed(libc::SIGABRT));
        // Where close_range is refused, as filters do that do not know it.
        let refused = fork(&[read.as_fd()], || {
            let number = u32::try_from(libc::SYS_close_range).unwrap();
            let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
            let program = [
                statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
                jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 1),
                statement(libc::BPF_RET | libc::BPF_K, refuse),
                statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
            ];
            rustix::thread::set_no_new_privs(true).unwrap();
            filter(&program).unwrap();
            match fork(&[read.as_fd()], || 0).unwrap().wait() {
                Ok(Event::Exited(code)) => code,
                _ => 99,
            }
        });
        assert_eq!(refused.unwrap().wait().unwrap(), Event::Exited(NOT_CLOSED));
    }
}
