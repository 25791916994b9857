//! ptrace(2), one function per request. Which call is allowed in which state is the task crate's business.

use std::sync::OnceLock;

use crate::{Result, SysError, xstate};

/// A task's general registers (`struct user_regs_struct`).
pub type Regs = libc::user_regs_struct;

/// Event numbers above the signal in a wait status.
pub mod event {
    /// `PTRACE_EVENT_CLONE`.
    pub const CLONE: i32 = 3;
    /// `PTRACE_EVENT_EXEC`.
    pub const EXEC: i32 = 4;
    /// `PTRACE_EVENT_EXIT`.
    pub const EXIT: i32 = 6;
    /// `PTRACE_EVENT_STOP`: interrupted, group-stopped or newly born.
    pub const STOP: i32 = 128;
}

/// `PTRACE_O_TRACESYSGOOD`.
pub const O_TRACESYSGOOD: u64 = 1;
/// `PTRACE_O_TRACECLONE`: a task that is cloned becomes a tracee before it begins.
pub const O_TRACECLONE: u64 = 1 << 3;
/// `PTRACE_O_TRACEEXEC`.
pub const O_TRACEEXEC: u64 = 1 << 4;
/// `PTRACE_O_EXITKILL`: the tracee dies with the tracer.
pub const O_EXITKILL: u64 = 1 << 20;

const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: u32 = 0x420d;
const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
const NT_PRSTATUS: u64 = 1;
const NT_X86_XSTATE: u64 = 0x202;

fn request(name: &'static str, request: u32, tid: i32, addr: u64, data: u64) -> Result<i64> {
    // SAFETY: every caller passes numbers, or addresses of memory of the size that the request needs, alive for the call.
    let ret = unsafe { libc::ptrace(request, tid, addr, data) };
    if ret < 0 { Err(SysError::last("ptrace", format!("{name}, {tid}"))) } else { Ok(ret) }
}

/// The id of the task that a `PTRACE_EVENT_CLONE` is about, as the tracer sees it.
///
/// # Errors
/// `ESRCH` when it was killed.
pub fn event_message(tid: i32) -> Result<i32> {
    let mut message: libc::c_ulong = 0;
    request("GETEVENTMSG", libc::PTRACE_GETEVENTMSG, tid, 0, (&raw mut message).addr() as u64)?;
    i32::try_from(message).map_err(|_| SysError::new("ptrace", format!("GETEVENTMSG, {tid}"), rustix::io::Errno::RANGE))
}

/// Attaches without stopping.
///
/// # Errors
/// `EPERM` when the caller may not trace the task or somebody else does, `ESRCH`.
pub fn seize(tid: i32, options: u64) -> Result<()> {
    request("PTRACE_SEIZE", libc::PTRACE_SEIZE, tid, 0, options).map(drop)
}

/// Asks a seized task to stop.
///
/// # Errors
/// `ESRCH`.
pub fn interrupt(tid: i32) -> Result<()> {
    request("PTRACE_INTERRUPT", libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Resumes a stopped task, delivering `signal` unless 0.
///
/// # Errors
/// `ESRCH` when it is gone or not stopped.
pub fn cont(tid: i32, signal: i32) -> Result<()> {
    request("PTRACE_CONT", libc::PTRACE_CONT, tid, 0, crate::raw::word(signal)).map(drop)
}

/// Resumes a stopped task up to its next system-call stop, and delivers `signal` (0: none).
///
/// # Errors
/// As [`cont`].
pub fn syscall(tid: i32, signal: i32) -> Result<()> {
    request("PTRACE_SYSCALL", libc::PTRACE_SYSCALL, tid, 0, crate::raw::word(signal)).map(drop)
}

/// Leaves a group-stopped task in its group stop.
///
/// # Errors
/// As [`cont`].
pub fn listen(tid: i32) -> Result<()> {
    request("PTRACE_LISTEN", libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Lets a stopped task go, delivering `signal` unless 0.
///
/// # Errors
/// As [`cont`].
pub fn detach(tid: i32, signal: i32) -> Result<()> {
    request("PTRACE_DETACH", libc::PTRACE_DETACH, tid, 0, crate::raw::word(signal)).map(drop)
}

/// Changes the options of a stopped task.
///
/// # Errors
/// As [`cont`].
pub fn set_options(tid: i32, options: u64) -> Result<()> {
    request("PTRACE_SETOPTIONS", libc::PTRACE_SETOPTIONS, tid, 0, options).map(drop)
}

/// The general registers.
///
/// # Errors
/// As [`cont`].
pub fn regs(tid: i32) -> Result<Regs> {
    // SAFETY: all bit patterns are valid registers.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    let mut iov = libc::iovec { iov_base: (&raw mut regs).cast(), iov_len: std::mem::size_of::<Regs>() };
    request("PTRACE_GETREGSET, NT_PRSTATUS", libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, (&raw mut iov) as u64)?;
    Ok(regs)
}

/// Sets the general registers.
///
/// # Errors
/// As [`cont`]; `EIO` for values that the kernel does not allow.
pub fn set_regs(tid: i32, regs: &Regs) -> Result<()> {
    let mut copy = *regs;
    let mut iov = libc::iovec { iov_base: (&raw mut copy).cast(), iov_len: std::mem::size_of::<Regs>() };
    request("PTRACE_SETREGSET, NT_PRSTATUS", libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, (&raw mut iov) as u64).map(drop)
}

/// Reads a word of a task's memory. Unlike process_vm_readv(2), this grows a stack down to the address, as the task's own
/// access would (mm/memory.c, `access_remote_vm`).
///
/// # Errors
/// `EIO` or `EFAULT` where nothing is mapped and no stack can grow, `ESRCH`.
pub fn peek(tid: i32, addr: u64) -> Result<u64> {
    let mut word = 0u64;
    // Not libc's ptrace(), whose result is the word: -1 would be an error or not.
    // SAFETY: the kernel writes one word to `word`, which is alive for the call.
    let ret = unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, tid, addr, &raw mut word) };
    if ret < 0 { Err(SysError::last("ptrace", format!("PTRACE_PEEKDATA, {tid}, {addr:#x}"))) } else { Ok(word) }
}

/// The extended state (x87, SSE, AVX ...), as far as it is in use: see [`xstate`](crate::xstate).
///
/// # Errors
/// As [`cont`].
pub fn xstate(tid: i32) -> Result<Vec<u8>> {
    let mut state = whole_xstate(tid)?;
    state.truncate(xstate::length(xstate::in_use(&state)));
    Ok(state)
}

fn whole_xstate(tid: i32) -> Result<Vec<u8>> {
    let mut buf = vec![0u8; 16 * 1024];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    request("PTRACE_GETREGSET, NT_X86_XSTATE", libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, (&raw mut iov) as u64)?;
    buf.truncate(iov.iov_len);
    Ok(buf)
}

/// The components that an extended state can have here, and the bytes of one that has them all. `tid`: any stopped task.
///
/// # Errors
/// As [`cont`].
pub fn xstate_room(tid: i32) -> Result<(u64, usize)> {
    static ROOM: OnceLock<(u64, usize)> = OnceLock::new();
    if let Some(room) = ROOM.get() {
        return Ok(*room);
    }
    let whole = whole_xstate(tid)?;
    Ok(*ROOM.get_or_init(|| (xstate::possible(&whole), whole.len())))
}

/// Sets the extended state; components that are not in use become as in a new thread.
///
/// # Errors
/// `EINVAL` or `EFAULT` for a state that this processor cannot hold, else as [`cont`].
pub fn set_xstate(tid: i32, state: &[u8]) -> Result<()> {
    let (_, len) = xstate_room(tid)?;
    let mut copy = state.to_vec();
    copy.resize(len.max(state.len()), 0);
    let mut iov = libc::iovec { iov_base: copy.as_mut_ptr().cast(), iov_len: copy.len() };
    request("PTRACE_SETREGSET, NT_X86_XSTATE", libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, (&raw mut iov) as u64)
        .map(drop)
}

/// The blocked signals, bit n-1 for signal n.
///
/// # Errors
/// As [`cont`].
pub fn sigmask(tid: i32) -> Result<u64> {
    let mut mask = 0u64;
    request("PTRACE_GETSIGMASK", PTRACE_GETSIGMASK, tid, 8, (&raw mut mask) as u64)?;
    Ok(mask)
}

/// Sets the blocked signals.
///
/// # Errors
/// As [`cont`].
pub fn set_sigmask(tid: i32, mask: u64) -> Result<()> {
    let mut mask = mask;
    request("PTRACE_SETSIGMASK", PTRACE_SETSIGMASK, tid, 8, (&raw mut mask) as u64).map(drop)
}

/// Bytes of a `siginfo_t`.
pub const SIGINFO: usize = 128;

/// The queued signals of a thread, or with `shared` of its process, oldest first.
///
/// # Errors
/// As [`cont`].
pub fn queued_signals(tid: i32, shared: bool) -> Result<Vec<[u8; SIGINFO]>> {
    #[repr(C)]
    struct Peek {
        off: u64,
        flags: u32,
        nr: i32,
    }
    let mut out: Vec<[u8; SIGINFO]> = Vec::new();
    loop {
        let mut batch = [[0u8; SIGINFO]; 32];
        let mut args = Peek { off: out.len() as u64, flags: u32::from(shared), nr: 32 };
        let n = request(
            "PTRACE_PEEKSIGINFO",
            libc::PTRACE_PEEKSIGINFO,
            tid,
            (&raw mut args) as u64,
            batch.as_mut_ptr() as u64,
        )?;
        let n = usize::try_from(n).unwrap_or(0).min(batch.len());
        out.extend_from_slice(&batch[..n]);
        if n == 0 {
            return Ok(out);
        }
    }
}

/// The signal that a stopped task is about to receive.
///
/// # Errors
/// `EINVAL` in a group stop, else as [`cont`].
pub fn siginfo(tid: i32) -> Result<[u8; SIGINFO]> {
    let mut info = [0u8; SIGINFO];
    request("PTRACE_GETSIGINFO", libc::PTRACE_GETSIGINFO, tid, 0, info.as_mut_ptr() as u64)?;
    Ok(info)
}

/// A thread's restartable-sequences area (`struct ptrace_rseq_configuration`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Rseq {
    /// Address of `struct rseq`; 0 when none is registered.
    pub area: u64,
    /// Its size in bytes.
    pub size: u32,
    /// The signature before abort handlers.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
    /// Unused.
    pub pad: u32,
}

/// The restartable-sequences area.
///
/// # Errors
/// As [`cont`]; `EIO` on kernels without it.
pub fn rseq(tid: i32) -> Result<Rseq> {
    let mut conf = Rseq::default();
    let size = std::mem::size_of::<Rseq>() as u64;
    request("PTRACE_GET_RSEQ_CONFIGURATION", PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut conf) as u64)?;
    Ok(conf)
}

/// A thread's syscall user dispatch (`struct ptrace_sud_config`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct UserDispatch {
    /// 0: off.
    pub mode: u64,
    /// Address of the selector byte.
    pub selector: u64,
    /// Start of the exempt range.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

/// The syscall user dispatch settings.
///
/// # Errors
/// As [`cont`]; `EIO` on kernels without it.
pub fn user_dispatch(tid: i32) -> Result<UserDispatch> {
    let mut conf = UserDispatch::default();
    let size = std::mem::size_of::<UserDispatch>() as u64;
    request(
        "PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG",
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size,
        (&raw mut conf) as u64,
    )?;
    Ok(conf)
}

/// What a stopped task's seccomp filter does, eight bytes for each instruction; `index` 0 is the one installed last. `None`
/// beyond the last.
///
/// # Errors
/// `EACCES` unless the caller has `CAP_SYS_ADMIN` in the initial user namespace and no filter itself, `EMEDIUMTYPE` for a
/// filter whose program the kernel has not kept.
pub fn seccomp_filter(tid: i32, index: u64) -> Result<Option<Vec<u8>>> {
    const NAME: &str = "PTRACE_SECCOMP_GET_FILTER";
    /// The longest filter (linux/filter.h, `BPF_MAXINSNS`), and the size of an instruction.
    const ROOM: usize = 4096 * 8;
    let mut program = vec![0u8; ROOM];
    let ret = request(NAME, PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as u64);
    match ret {
        Ok(count) => {
            program.truncate(usize::try_from(count).unwrap_or(0).saturating_mul(8));
            Ok(Some(program))
        }
        Err(e) if e.errno == rustix::io::Errno::NOENT => Ok(None),
        Err(e) => Err(e),
    }
}

/// The flags of the same filter, as far as the kernel tells them: `SECCOMP_FILTER_FLAG_LOG` alone.
///
/// # Errors
/// As [`seccomp_filter`], and `ENOENT` beyond the last.
pub fn seccomp_flags(tid: i32, index: u64) -> Result<u32> {
    const NAME: &str = "PTRACE_SECCOMP_GET_METADATA";
    // struct seccomp_metadata: index, flags.
    let mut words = [index, 0];
    let size = std::mem::size_of_val(&words) as u64;
    request(NAME, PTRACE_SECCOMP_GET_METADATA, tid, size, words.as_mut_ptr() as u64)?;
    u32::try_from(words[1]).map_err(|_| SysError::new("ptrace", format!("{NAME}, {tid}"), rustix::io::Errno::RANGE))
}

/// The robust list head of another task and its length (get_robust_list(2)).
///
/// # Errors
/// `EPERM`, `ESRCH`.
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: two words of ours, alive for the call.
    let ret = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    if ret < 0 { Err(SysError::last("get_robust_list", format!("{tid}"))) } else { Ok((head, len)) }
}
