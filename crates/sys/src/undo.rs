//! What is changed for a moment, and is put back even if we are killed meanwhile: options of sockets, and the queues that a
//! child takes and puts back ([`crate::tty::look`]).
//!
//! A child that shares our descriptors, with all signals blocked, outlives us: memory shared with it says what is to be put
//! back. It traces the thread that traces the tasks, and is told of its end before anything of it ends (`PTRACE_O_TRACEEXIT`): they stand
//! still until all is as it was. Where it may not, as somebody else traces us, it waits for a robust futex word, which the kernel
//! marks when we die and before it lets go of our tracees; those get SIGSTOP then, and SIGCONT when all is as it was. Many
//! other words follow that one, so that we take longer to die than the child to wake, if it gets a processor. If both of us are killed in
//! the same moment, nobody is left to do it.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::child::{reap, spawn};
use crate::futex::{self, OWNER_DIED, ROBUST_ENTRY, ROBUST_WORD, WAITERS};
use crate::mapping::Mapping;
use crate::{Result, SysError};

/// A number that an option shall have again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Undo {
    pub level: i32,
    pub option: i32,
    pub value: i32,
}

/// How many options may be changed at once.
pub const MOST: usize = 4;

// The shared memory: the head of the robust list as the kernel knows it; how many options are to be put back; whether a child is at work; how
// many processes must not see it; the options (descriptor, level, option, value); the entries of the list; the processes.
const HEAD: usize = 0;
const COUNT: usize = 64;
const WORKS: usize = 68;
const STILL: usize = 72;
/// Whether the child may begin, and whether it traces us.
const STAGE: usize = 76;
const MAY: u32 = 1;
const TRACES: u32 = 2;
const CANNOT: u32 = 3;
const LIST: usize = 128;
const ENTRIES: usize = 256;
const ENTRY_COUNT: usize = 1500;
const WORD: usize = ENTRIES + ROBUST_WORD;
const PIDS: usize = 32768;
const SIZE: usize = 1 << 18;
const PID_COUNT: usize = (SIZE - PIDS) / 4;

/// How long a child may be at work after our death before the others go on.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Watcher {
    memory: Mapping,
    pid: i32,
    /// The thread that the words are of.
    tid: u32,
}

#[derive(Debug)]
struct State {
    watcher: Option<Watcher>,
    still: Vec<i32>,
}

static STATE: Mutex<State> = Mutex::new(State { watcher: None, still: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What will be put back when this goes, or when we die. One at a time: for others' it is waited.
#[derive(Debug)]
pub struct Held<'a> {
    state: MutexGuard<'static, State>,
    /// The robust list that this thread had before.
    before: *mut u8,
    _socket: PhantomData<BorrowedFd<'a>>,
}

/// Has these options put back, in this order, whatever happens from now on. To be called before they are changed.
///
/// # Errors
/// What making the child says.
///
/// # Panics
/// For more than [`MOST`].
pub fn hold<'a>(fd: BorrowedFd<'a>, undos: &[Undo]) -> Result<Held<'a>> {
    assert!(undos.len() <= MOST, "more options than there is room for");
    let mut held = begin()?;
    let memory = held.memory()?;
    for (i, Undo { level, option, value }) in undos.iter().enumerate() {
        for (word, number) in [fd.as_raw_fd(), *level, *option, *value].into_iter().enumerate() {
            memory.word(LIST + i * 16 + word * 4).store(number.cast_unsigned(), Release);
        }
    }
    memory.word(COUNT).store(u32::try_from(undos.len()).unwrap_or(0), Release);
    held.register()?;
    Ok(held)
}

/// To be called before a child is made that takes something and puts it back: it says so by [`done`].
pub(crate) fn work() -> Result<Held<'static>> {
    let mut held = begin()?;
    held.memory()?.word(WORKS).store(1, Release);
    held.register()?;
    Ok(held)
}

/// The child's: all is as it was. It does not allocate.
pub(crate) fn done(held: &Held<'_>) {
    if let Some(Watcher { memory, .. }) = &held.state.watcher {
        memory.word(WORKS).store(0, Release);
    }
}

fn begin() -> Result<Held<'static>> {
    let mut state = state();
    if state.watcher.is_none() {
        state.watcher = Some(start(&state.still)?);
    }
    Ok(Held { state, before: std::ptr::null_mut(), _socket: PhantomData })
}

impl Held<'_> {
    fn memory(&self) -> Result<&Mapping> {
        let watcher = self.state.watcher.as_ref();
        watcher.map(|w| &w.memory).ok_or_else(|| SysError::new("clone", "no child", Errno::SRCH))
    }

    /// From now on our death is told.
    fn register(&mut self) -> Result<()> {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let Some(Watcher { memory, tid: of, .. }) = &mut self.state.watcher else { return Ok(()) };
        if *of != tid {
            for entry in 0..ENTRY_COUNT {
                memory.word(ENTRIES + entry * ROBUST_ENTRY + ROBUST_WORD).store(tid | WAITERS, Release);
            }
            *of = tid;
        }
        memory.word(WORD).store(tid | WAITERS, Release);
        let mut size = 0usize;
        // SAFETY: the kernel writes one pointer and one number, which outlive the call. The list lies in memory that stays
        // mapped until Drop has set the list of before, which outlives us, as locals do, or is the C library's.
        let ret = unsafe {
            libc::syscall(libc::SYS_get_robust_list, 0, &raw mut self.before, &raw mut size);
            libc::syscall(libc::SYS_set_robust_list, memory.address(HEAD), 24)
        };
        if ret < 0 { Err(SysError::last("set_robust_list", "")) } else { Ok(()) }
    }

    /// Puts them back.
    ///
    /// # Errors
    /// What setsockopt(2) says, of the first that cannot be put back.
    pub fn end(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        let Some(Watcher { memory, .. }) = &self.state.watcher else { return Ok(()) };
        let failed = put_back(memory);
        memory.word(COUNT).store(0, Release);
        memory.word(WORKS).store(0, Release);
        memory.word(WORD).store(0, Release);
        match failed {
            Some(([fd, level, option, value], e)) => {
                Err(SysError::new("setsockopt", format!("{fd}, {level}, {option}, {value}"), e))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Values that the options had: nothing is left to report.
        let _ = self.put_back();
        // SAFETY: what this thread had before, or nothing.
        unsafe { libc::syscall(libc::SYS_set_robust_list, self.before, 24) };
    }
}

/// The processes that stand still while something is changed, and must not see it if we die. When this goes the child ends: there
/// is nothing to watch any more.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// `still`: our tracees, but for those that had been stopped before.
    #[must_use]
    pub fn over(still: Vec<i32>) -> Self {
        let mut state = state();
        if let Some(Watcher { memory, .. }) = &state.watcher {
            name(memory, &still);
        }
        state.still = still;
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = state();
        state.still.clear();
        if let Some(Watcher { pid, .. }) = state.watcher.take() {
            // SAFETY: takes numbers; the child is ours and was not waited for, so that the pid is still its own.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::prctl(libc::PR_SET_PTRACER, 0);
            }
            let _ = reap(pid);
        }
    }
}

fn name(memory: &Mapping, still: &[i32]) {
    for (i, pid) in still.iter().take(PID_COUNT).enumerate() {
        memory.word(PIDS + i * 4).store(pid.cast_unsigned(), Release);
    }
    memory.word(STILL).store(u32::try_from(still.len().min(PID_COUNT)).unwrap_or(0), Release);
}

/// How often something is put back that cannot be.
const TRIES: usize = 3;

/// Puts back what the list says; the first that failed. It does not allocate.
fn put_back(memory: &Mapping) -> Option<([i32; 4], Errno)> {
    let count = (memory.word(COUNT).load(Acquire) as usize).min(MOST);
    let mut failed = None;
    for i in 0..count {
        let at = |word: usize| memory.word(LIST + i * 16 + word * 4).load(Acquire).cast_signed();
        let all @ [fd, level, option, value] = [at(0), at(1), at(2), at(3)];
        // SAFETY: the kernel reads the four bytes of `value`, which outlives the call.
        let set = || unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), 4) };
        // What it said once, for want of memory, say, it need not say again; what is left changed is another's harm.
        let ret = (0..TRIES).map(|_| set()).find(|ret| *ret == 0).unwrap_or(-1);
        if ret < 0 && failed.is_none() {
            let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
            failed = Some((all, Errno::from_raw_os_error(raw)));
        }
    }
    failed
}

/// We have died: the child does what is left to do. It does not allocate.
fn afterwards(memory: &Mapping, they_run: bool) {
    let works = memory.word(WORKS);
    if memory.word(COUNT).load(Acquire) == 0 && works.load(Acquire) == 0 {
        return;
    }
    let count = if they_run { (memory.word(STILL).load(Acquire) as usize).min(PID_COUNT) } else { 0 };
    let send = |i: usize, signal| {
        // SAFETY: takes numbers. They were our tracees a moment ago.
        unsafe { libc::kill(memory.word(PIDS + i * 4).load(Acquire).cast_signed(), signal) };
    };
    (0..count).for_each(|i| send(i, libc::SIGSTOP));
    let _ = put_back(memory);
    let begin = Instant::now();
    while works.load(Acquire) != 0 && begin.elapsed() < PATIENCE {
        futex::wait(works, 1, Duration::from_millis(1));
    }
    // Children, which are born later, first: a shell that asks what has stopped finds nothing.
    (0..count).rev().for_each(|i| send(i, libc::SIGCONT));
}

/// The child's: traces that thread up to its end. False if it may not.
fn trace(memory: &Mapping, tid: i32) -> bool {
    let stage = memory.word(STAGE);
    let ptrace = |request: libc::c_uint, data: i32| {
        // SAFETY: requests without pointers.
        unsafe { libc::ptrace(request, tid, 0, libc::c_long::from(data)) }
    };
    let seized = ptrace(libc::PTRACE_SEIZE, libc::PTRACE_O_TRACEEXIT) == 0;
    stage.store(if seized { TRACES } else { CANNOT }, Release);
    futex::wake(stage);
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        if !seized || unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) } < 0 {
            return false;
        }
        if !libc::WIFSTOPPED(status) {
            afterwards(memory, true);
            return true;
        }
        match status >> 16 {
            libc::PTRACE_EVENT_EXIT => {
                afterwards(memory, false);
                ptrace(libc::PTRACE_DETACH, 0);
                return true;
            }
            // Stopped as by ^Z, or going on after that.
            libc::PTRACE_EVENT_STOP if libc::WSTOPSIG(status) != libc::SIGTRAP => ptrace(libc::PTRACE_LISTEN, 0),
            0 => ptrace(libc::PTRACE_CONT, libc::WSTOPSIG(status)),
            _ => ptrace(libc::PTRACE_CONT, 0),
        };
    }
}

extern "C" fn woken(_: libc::c_int) {}

fn start(still: &[i32]) -> Result<Watcher> {
    // What tells of our death where nothing is to be put back.
    const SIGNAL: libc::c_int = libc::SIGUSR2;
    // Whatever is missed is seen this much later.
    const AGAIN: Duration = Duration::from_secs(1);
    let memory = Mapping::anonymous(SIZE)?;
    let link = |from: usize, to: usize| memory.write(from, &(memory.address(to).addr() as u64).to_ne_bytes());
    link(HEAD, ENTRIES);
    memory.write(HEAD + 8, &(ROBUST_WORD as u64).to_ne_bytes());
    for entry in 0..ENTRY_COUNT {
        let at = ENTRIES + entry * ROBUST_ENTRY;
        link(at, if entry + 1 < ENTRY_COUNT { at + ROBUST_ENTRY } else { HEAD });
    }
    name(&memory, still);
    // SAFETY: takes nothing.
    let (parent, tid) = unsafe { (libc::getpid(), libc::gettid()) };
    // Nobody who traces us, and kills us, shall stop it.
    let pid = spawn(libc::CLONE_FILES | libc::CLONE_UNTRACED, || {
        // SAFETY: a zeroed sigaction and signal set are valid ones and outlive the calls; the handler does nothing.
        unsafe {
            // A signal for our group or session is none for it.
            libc::setsid();
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = woken as *const () as usize;
            libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut());
            libc::prctl(libc::PR_SET_PDEATHSIG, SIGNAL);
            let mut one: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut one, SIGNAL);
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const one, std::ptr::null_mut());
        }
        let stage = memory.word(STAGE);
        while stage.load(Acquire) != MAY {
            // SAFETY: takes nothing.
            if unsafe { libc::getppid() } != parent {
                return 0;
            }
            futex::wait(stage, 0, AGAIN);
        }
        if trace(&memory, tid) {
            return 0;
        }
        let word = memory.word(WORD);
        loop {
            let now = word.load(Acquire);
            // SAFETY: takes nothing.
            if now & OWNER_DIED != 0 || unsafe { libc::getppid() } != parent {
                afterwards(&memory, true);
                return 0;
            }
            futex::wait(word, now, AGAIN);
        }
    })?;
    // Where the Yama module lets nobody trace its parent.
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, pid) };
    let stage = memory.word(STAGE);
    stage.store(MAY, Release);
    futex::wake(stage);
    let begin = Instant::now();
    while stage.load(Acquire) == MAY && begin.elapsed() < AGAIN {
        futex::wait(stage, MAY, AGAIN);
    }
    Ok(Watcher { memory, pid, tid: 0 })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::{Undo, Watch, hold};
    use crate::sock::{option, set_options};

    const SOL_SOCKET: i32 = 1;
    const PRIORITY: i32 = 12;
    const PEEK_OFF: i32 = 42;
    const VICTIM: &str = "YENDOR_UNDO_VICTIM";

    fn both() -> [Undo; 2] {
        [(PEEK_OFF, 3), (PRIORITY, 2)].map(|(option, value)| Undo { level: SOL_SOCKET, option, value })
    }

    /// Changes the options of its standard input, and waits to be killed; no test by itself.
    #[test]
    fn victim() {
        if std::env::var_os(VICTIM).is_none() {
            return;
        }
        let stdin = std::io::stdin();
        let held = hold(stdin.as_fd(), &both()).unwrap();
        set_options(stdin.as_fd(), PEEK_OFF, [7]).unwrap();
        set_options(stdin.as_fd(), PRIORITY, [6]).unwrap();
        let stage = held.memory().unwrap().word(super::STAGE).load(std::sync::atomic::Ordering::Acquire);
        assert_eq!(stage, super::TRACES, "nobody else traces this test");
        println!("changed");
        std::thread::sleep(std::time::Duration::from_secs(60));
        drop(held);
    }

    #[test]
    fn whoever_dies_has_put_everything_back() {
        for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            let (ours, theirs) = UnixDatagram::pair().unwrap();
            let socket = theirs.try_clone().unwrap();
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "undo::tests::victim", "--nocapture"])
                .env(VICTIM, "1")
                .stdin(std::os::fd::OwnedFd::from(theirs))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = Vec::new();
            let out = victim.stdout.as_mut().unwrap();
            while !String::from_utf8_lossy(&said).contains("changed") {
                let mut byte = [0];
                assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
                said.push(byte[0]);
            }
            let now = || [PEEK_OFF, PRIORITY].map(|o| option(socket.as_fd(), o).unwrap());
            assert_eq!(now(), [Some(7), Some(6)]);
            // SAFETY: takes numbers; the child was not waited for.
            unsafe { libc::kill(i32::try_from(victim.id()).unwrap(), signal) };
            victim.wait().unwrap();
            // The end of the pipe: whoever has put them back has ended, too.
            out_ends(victim.stdout.take().unwrap());
            assert_eq!(now(), [Some(3), Some(2)], "signal {signal}");
            drop(ours);
        }
    }

    fn out_ends(mut out: std::process::ChildStdout) {
        let begin = Instant::now();
        out.read_to_end(&mut Vec::new()).unwrap();
        assert!(begin.elapsed().as_secs() < 30);
    }

    #[test]
    fn what_ends_in_peace_is_put_back_at_once() {
        let (one, _two) = UnixDatagram::pair().unwrap();
        let watch = Watch::over(Vec::new());
        for _ in 0..3 {
            let held = hold(one.as_fd(), &both()).unwrap();
            set_options(one.as_fd(), PEEK_OFF, [7]).unwrap();
            held.end().unwrap();
            assert_eq!(option(one.as_fd(), PEEK_OFF).unwrap(), Some(3));
            drop(hold(one.as_fd(), &both()).unwrap());
        }
        drop(watch);
        assert!(super::state().watcher.is_none());
    }
}
