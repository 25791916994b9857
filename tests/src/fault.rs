//! A command of which one system call goes wrong: it fails, or the process that makes it is killed there.
//!
//! The command and all processes it starts are traced (ptrace(2)) and their calls counted, but for the tasks of a
//! container: those are somebody else's tracees and are let go before they begin.

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::task::{Started, kill, signal};

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the calls are counted only.
    None,
    /// The call is not made and returns this error number.
    Errno(i32),
    /// The process that makes it gets SIGKILL instead.
    Kill,
    /// The process that makes it gets this signal, too.
    Signal(libc::c_int),
}

/// How a traced command ended.
#[derive(Debug)]
pub struct Traced {
    /// Its exit code; 128 and more for a signal.
    pub code: i32,
    /// Calls that were counted.
    pub calls: u64,
    /// The number of the call that went wrong, and the name of the program that made it.
    pub hit: Option<(u64, String)>,
    /// Which calls the command itself made while it held others still: from its first ptrace(2) to its last.
    pub frozen: std::ops::Range<u64>,
    /// How many calls came before the first rename: before an image was there.
    pub visible: u64,
    /// The calls that make things durable or visible, bind processes to the life of another, and end them, in order: `fsync NAME`, `rename`,
    /// `bind`, `kill`.
    pub durable: Vec<String>,
}

/// Added to the number of a call: it is counted from the first rename on, which is number 1.
pub const FROM_VISIBLE: u64 = 1 << 40;

/// Added to the number of a call: only setsockopt(2) is counted, from 1 on.
pub const OF_SETSOCKOPT: u64 = 1 << 41;

/// Programs of the system, which are not on trial.
const HELPERS: [&str; 4] = ["newuidmap", "newgidmap", "unshare", "rm"];

/// Calls that are not counted: those that cannot fail (close(2) closes whatever it returns; nobody may forbid to kill one's
/// own child), those without which no program in Rust can live, and those that only wait or end.
const SPARED: [i64; 30] = [
    libc::SYS_close,
    libc::SYS_kill,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_umask,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_arch_prctl,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_uname,
];

/// The command and all it starts become tracees of whoever starts it. Before it takes another account's ids: setuid programs
/// below it need a tracer with root's rights.
pub(crate) fn traced(command: &mut Command) {
    // SAFETY: one system call.
    unsafe { command.pre_exec(|| checked(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))) };
}

/// Runs a command of [`Yendor::traced`](crate::Yendor::traced) whose `nth` counted call, from 1 on, goes wrong. It is killed when it does not end in time; what it has
/// left running is let go.
pub fn with_fault(mut command: Command, nth: u64, fault: Fault, limit: Duration) -> Traced {
    // Tracees belong to a thread; at its end the kernel lets go of all that are left.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let started = Started::new(&mut command);
            let mut trace = Trace {
                first: started.pid(),
                nth,
                fault,
                calls: 0,
                hit: None,
                frozen: None,
                visible: 0,
                sets: 0,
                changing: 0,
                durable: Vec::new(),
                tasks: Vec::new(),
                released: Vec::new(),
            };
            let code = trace.run(limit);
            started.forget();
            let frozen = trace.frozen.unwrap_or(0..0);
            Traced { code, calls: trace.calls, hit: trace.hit, frozen, visible: trace.visible, durable: trace.durable }
        });
        run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn checked(returned: libc::c_long) -> std::io::Result<()> {
    if returned == -1 { Err(Error::last_os_error()) } else { Ok(()) }
}

struct Trace {
    first: libc::pid_t,
    nth: u64,
    fault: Fault,
    calls: u64,
    hit: Option<(u64, String)>,
    frozen: Option<std::ops::Range<u64>>,
    visible: u64,
    /// How often it was setsockopt.
    sets: u64,
    /// Not 0: something is changed for a moment.
    changing: u8,
    durable: Vec<String>,
    tasks: Vec<Task>,
    /// Tasks of containers.
    released: Vec<libc::pid_t>,
}

/// A traced process.
struct Task {
    pid: libc::pid_t,
    /// Its program, once it has executed one.
    program: String,
    keeper: bool,
    /// Whether its main function runs: before, a failure is that of Rust's runtime, which aborts.
    begun: bool,
    /// What its call returns instead.
    lie: Option<i32>,
}

const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC;

impl Trace {
    fn run(&mut self, limit: Duration) -> i32 {
        let first = self.first;
        let (done, ended) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    // SAFETY: not reaped before the sender is gone.
                    unsafe { libc::kill(first, libc::SIGKILL) };
                }
            });
            let code = loop {
                let mut status = 0;
                // SAFETY: the status is ours.
                let pid = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
                assert!(pid > 0, "waitpid: {}", Error::last_os_error());
                if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                    self.tasks.retain(|task| task.pid != pid);
                    if pid == first {
                        break if libc::WIFEXITED(status) {
                            libc::WEXITSTATUS(status)
                        } else {
                            128 + libc::WTERMSIG(status)
                        };
                    }
                    continue;
                }
                self.stopped(pid, status);
            };
            drop(done);
            code
        })
    }

    fn stopped(&mut self, pid: libc::pid_t, status: i32) {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        if !self.tasks.iter().any(|task| task.pid == pid) {
            if pid != self.first && self.is_container_task(parent(pid)) {
                self.let_go(pid);
                return;
            }
            // Its first stop: after exec for the command itself, at birth for others.
            ptrace(libc::PTRACE_SETOPTIONS, pid, OPTIONS.into());
            let begun = pid != self.first;
            self.tasks.push(Task { pid, program: program(pid), keeper: is_keeper(pid), begun, lie: None });
            ptrace(libc::PTRACE_SYSCALL, pid, 0);
            return;
        }
        let deliver = match (signal, event) {
            (signal, 0) if signal == libc::SIGTRAP | 0x80 => {
                self.call(pid);
                0
            }
            (_, libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK) => {
                self.born(pid);
                0
            }
            (_, libc::PTRACE_EVENT_EXEC) => {
                if let Some(task) = self.tasks.iter_mut().find(|task| task.pid == pid) {
                    (task.program, task.keeper, task.begun) = (program(pid), is_keeper(pid), false);
                }
                0
            }
            (signal, 0) => signal,
            _ => 0,
        };
        ptrace(libc::PTRACE_SYSCALL, pid, deliver.into());
    }

    /// A keeper's children are tasks of its container: they are its own tracees.
    fn is_container_task(&self, creator: libc::pid_t) -> bool {
        self.tasks.iter().any(|task| task.pid == creator && task.keeper)
    }

    fn let_go(&mut self, child: libc::pid_t) {
        ptrace(libc::PTRACE_DETACH, child, 0);
        self.released.push(child);
    }

    /// The creator does not go on before the child is let go, whichever of the two stops is told first.
    fn born(&mut self, creator: libc::pid_t) {
        let mut child: libc::c_ulong = 0;
        // SAFETY: the result is ours.
        unsafe { libc::ptrace(libc::PTRACE_GETEVENTMSG, creator, 0, &mut child) };
        let child = libc::pid_t::try_from(child).expect("a pid");
        if self.is_container_task(creator) && !self.released.contains(&child) {
            let mut status = 0;
            // SAFETY: the status is ours.
            unsafe { libc::waitpid(child, &mut status, libc::__WALL) };
            self.let_go(child);
        }
    }

    fn call(&mut self, pid: libc::pid_t) {
        let Some(task) = self.tasks.iter_mut().find(|task| task.pid == pid) else { return };
        let mut regs = registers(pid);
        if !is_entering(pid) {
            if let Some(errno) = task.lie.take() {
                regs.rax = (-i64::from(errno)).cast_unsigned();
                set_registers(pid, &regs);
            }
            return;
        }
        let number = regs.orig_rax;
        match number.cast_signed() {
            // Asked for before one of our own is registered; that one, and the old one again, end it.
            libc::SYS_get_robust_list if pid == self.first => self.changing = 2,
            libc::SYS_set_robust_list if pid == self.first => self.changing = self.changing.saturating_sub(1),
            _ => {}
        }
        let durable = durable(pid, &regs);
        if self.visible == 0 && durable.as_deref() == Some("rename") {
            self.visible = self.calls;
        }
        self.durable.extend(durable);
        if pid == self.first && number == libc::SYS_ptrace.cast_unsigned() {
            self.frozen.get_or_insert(self.calls..self.calls).end = self.calls;
        }
        // The last that Rust's runtime does before main.
        task.begun |= number == libc::SYS_sigaltstack.cast_unsigned();
        // What is asked of a tracee at its stop cannot be refused, nor can waiting for it, only its seizure can.
        let of_tracee = number == libc::SYS_ptrace.cast_unsigned() && regs.rdi != u64::from(libc::PTRACE_SEIZE)
            || number == libc::SYS_wait4.cast_unsigned() && regs.rdx & u64::from(libc::__WALL.cast_unsigned()) != 0;
        let own_limit = number == libc::SYS_prlimit64.cast_unsigned() && regs.rdi == 0 && regs.rdx == 0;
        // The standard library reads from one whether a child has begun, and takes no failure for an answer: there is none.
        let from_pipe = number == libc::SYS_read.cast_unsigned() && !task.keeper && is_pipe(pid, regs.rdi);
        let spared = !task.begun
            || from_pipe
            || of_tracee
            || own_limit
            // The standard library, which waits for a child's output by it, takes no failure for an answer.
            || !task.keeper && number == libc::SYS_poll.cast_unsigned()
            || SPARED.contains(&number.cast_signed())
            || HELPERS.iter().any(|name| task.program.ends_with(name));
        if spared {
            return;
        }
        self.calls += 1;
        let sets = number == libc::SYS_setsockopt.cast_unsigned();
        self.sets += u64::from(sets);
        let nth = match (self.nth.checked_sub(OF_SETSOCKOPT), self.nth.checked_sub(FROM_VISIBLE)) {
            (Some(nth), _) if sets && self.sets == nth => self.calls,
            (Some(_), _) => return,
            (None, Some(_)) if self.visible == 0 => return,
            (None, Some(after)) => self.visible + after,
            (None, None) => self.nth,
        };
        // Whoever we trace cannot be traced by the child that shall put back what is changed for a moment (`yendor_sys::undo`); without that only
        // time decides who is first. Such moments are hit by kills at any time.
        let late = self.fault == Fault::Kill && self.hit.is_none() && self.calls > nth;
        if !(self.calls == nth || late) || self.fault == Fault::None {
            return;
        }
        if self.fault == Fault::Kill && self.changing > 0 {
            return;
        }
        self.hit = Some((number, task.program.clone() + if task.keeper { " keeper" } else { "" }));
        match self.fault {
            Fault::None => {}
            Fault::Kill => kill(pid),
            Fault::Signal(number) => signal(pid, number),
            Fault::Errno(errno) => {
                task.lie = Some(errno);
                regs.orig_rax = u64::MAX;
                set_registers(pid, &regs);
            }
        }
    }
}

/// What a call does that is being made, if it makes something durable or visible, or decides who ends.
fn durable(pid: libc::pid_t, regs: &libc::user_regs_struct) -> Option<String> {
    let kills = regs.rsi == u64::from(libc::SIGKILL.cast_unsigned());
    let binds = regs.rdi == u64::from(libc::PTRACE_SETOPTIONS) && regs.r10 & libc::PTRACE_O_EXITKILL as u64 != 0;
    match regs.orig_rax.cast_signed() {
        libc::SYS_fsync => {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{}", regs.rdi)).unwrap_or_default();
            Some(format!("fsync {}", link.file_name().unwrap_or_default().to_string_lossy()))
        }
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => Some("rename".into()),
        libc::SYS_ptrace if binds => Some("bind".into()),
        // A child that only watches is no task.
        libc::SYS_kill if kills && libc::pid_t::try_from(regs.rdi).is_ok_and(|whom| parent(whom) == pid) => None,
        libc::SYS_kill | libc::SYS_pidfd_send_signal if kills => Some("kill".into()),
        _ => None,
    }
}

/// Whether a task at a system-call stop is before the call (`PTRACE_GET_SYSCALL_INFO`, ptrace(2)).
fn is_entering(pid: libc::pid_t) -> bool {
    const ENTRY: u8 = 1;
    let mut info = [0_u8; 96];
    // SAFETY: the kernel fills at most the size that it is told.
    unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, info.len(), info.as_mut_ptr()) };
    info[0] == ENTRY
}

fn is_pipe(pid: libc::pid_t, fd: u64) -> bool {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    link.to_string_lossy().starts_with("pipe:")
}

fn program(pid: libc::pid_t) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    link.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn parent(pid: libc::pid_t) -> libc::pid_t {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn is_keeper(pid: libc::pid_t) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"keeper")
}

/// A request to one that is stopped; it may have been killed meanwhile, which the next wait says.
fn ptrace(request: libc::c_uint, pid: libc::pid_t, data: libc::c_long) {
    // SAFETY: requests without pointers.
    unsafe { libc::ptrace(request, pid, 0, data) };
}

fn registers(pid: libc::pid_t) -> libc::user_regs_struct {
    // SAFETY: the structure is ours; zeros are valid in it.
    unsafe {
        let mut regs = std::mem::zeroed();
        libc::ptrace(libc::PTRACE_GETREGS, pid, 0, &mut regs);
        regs
    }
}

fn set_registers(pid: libc::pid_t, regs: &libc::user_regs_struct) {
    // SAFETY: the structure is ours.
    unsafe { libc::ptrace(libc::PTRACE_SETREGS, pid, 0, regs) };
}
