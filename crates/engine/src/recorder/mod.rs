//! The recorder: what the kernel does not tell later is written down when it happens.
//!
//! Every task of a container has, below all others, a filter that leaves exactly these calls to the keeper: seccomp,
//! `prctl(PR_SET_SECCOMP)` and the three of Landlock. All other calls pass (the kernel caches that answer per call number).
//! - Rulesets and their rules the keeper makes itself, from copies of the caller's arguments, and hands the result over:
//!   what is recorded is what was made.
//! - Entering a domain and installing a filter only the caller can do: it is recorded, then continued. A program whose
//!   other thread changes the arguments in between deceives the record, that is itself, and nobody else: a restore gives
//!   it what was recorded. Whether a filter was installed is seen by the number of filters that a thread has.
//! - Our own scripts make the same calls with a cookie in an argument that the kernel ignores, and are let through.
//!
//! The container ends with its keeper, so nobody waits for an answer that cannot come.

mod call;
mod forks;
pub mod log;
mod rulesets;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use yendor_kinds::process::Restricted;
use yendor_kinds::process::landlock::{Layer, Rule};
use yendor_kinds::process::seccomp::Filter;
use yendor_kinds::snapshot::{Restrictions, Snapshot};
use yendor_kinds::{Cause, Named};
use yendor_policy::seccomp::bpf::op;
use yendor_policy::seccomp::{ARCH, Instruction, MAX_INSTRUCTIONS, action, to_bytes};
use yendor_proc::{stat, status};
use yendor_sys::seccomp::{Answer, Notice, answer, answer_with, receive};
use yendor_sys::{Errno, SysError, landlock};
use yendor_task::tree::read_proc;
use yendor_task::{Arg, Memory, Nr, Script, args};

use crate::collect::watch::identity;
use crate::rebuild::{Ready, Rebuilt};

use self::call::{Call, Caller};
pub use self::forks::Forks;
use self::log::{Event, Line, Log, What};
use self::rulesets::Rulesets;

/// `CAP_SYS_ADMIN`.
const SYS_ADMIN: u64 = 1 << 21;
const PR_SET_SECCOMP: u32 = 22;
const MODE_FILTER: u64 = 2;
const SET_MODE_FILTER: u64 = 1;
const FLAG_TSYNC: u64 = 1;
const FLAG_NEW_LISTENER: u64 = 1 << 3;
/// All flags of an installation that a record can hold.
const FLAGS_KNOWN: u64 = FLAG_TSYNC | 2 | 4;
/// Once the keeper has taken a call, only death ends the caller's waiting (Linux 5.19).
const FLAG_WAIT_KILLABLE: u32 = 1 << 5;

/// `__X32_SYSCALL_BIT` (asm/unistd.h).
const X32: u32 = 0x4000_0000;

/// Calls as the kernel numbers them.
mod nr {
    pub const PRCTL: u32 = 157;
    pub const SECCOMP: u32 = 317;
    pub const CREATE_RULESET: u32 = 444;
    pub const ADD_RULE: u32 = 445;
    pub const RESTRICT_SELF: u32 = 446;
}

/// The filter that leaves the calls to a listener. `forks`: those that copy a process's memory, too.
#[must_use]
pub fn filter(cookie: u64, forks: bool) -> Vec<u8> {
    let i = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let half = |v: u64| u32::try_from(v & 0xffff_ffff).unwrap_or(0);
    let mut program = if forks { forks::filter(cookie) } else { Vec::new() };
    program.extend(to_bytes(&[
        i(op::LD_ABS, 0, 0, 4),
        i(op::JEQ, 0, 11, ARCH),
        i(op::LD_ABS, 0, 0, 0),
        i(op::JEQ, 5, 0, nr::SECCOMP),
        i(op::JGE, 0, 1, nr::CREATE_RULESET),
        i(op::JGT, 7, 3, nr::RESTRICT_SELF),
        i(op::JEQ, 0, 12, nr::PRCTL),
        i(op::LD_ABS, 0, 0, 16),
        i(op::JEQ, 0, 10, PR_SET_SECCOMP),
        // 9: does the sixth argument say that it is ours?
        i(op::LD_ABS, 0, 0, 56),
        i(op::JEQ, 0, 7, half(cookie)),
        i(op::LD_ABS, 0, 0, 60),
        i(op::JEQ, 6, 5, half(cookie >> 32)),
        // 13: another architecture, or x32, which is the same with a bit set in its numbers; those of Landlock's calls are
        // the same everywhere.
        i(op::LD_ABS, 0, 0, 0),
        i(op::AND, 0, 0, !X32),
        i(op::JGE, 0, 3, nr::CREATE_RULESET),
        i(op::JGT, 2, 0, nr::RESTRICT_SELF),
        i(op::RET, 0, 0, action::ERRNO | 38),
        i(op::RET, 0, 0, action::USER_NOTIF),
        i(op::RET, 0, 0, action::ALLOW),
    ]));
    program
}

/// The call that installs it; returns the listener.
pub fn install((cookie, forks): (u64, bool), killable: bool, script: &mut Script) {
    let program = filter(cookie, forks);
    let mut header = vec![0; 16];
    header[..2].copy_from_slice(&u16::try_from(program.len() / 8).unwrap_or(0).to_ne_bytes());
    let program = Memory { bytes: program, ..Memory::default() };
    let header = Memory { bytes: header, pointers: vec![(8, program)], ..Memory::default() };
    script.call(Nr::SECCOMP, [Arg::from(SET_MODE_FILTER), flags(killable).into(), header.into()]);
}

/// Flags of the installation.
#[must_use]
pub fn flags(killable: bool) -> u32 {
    8 | if killable { FLAG_WAIT_KILLABLE } else { 0 }
}

/// Lets the listener's number go.
pub fn close(listener: i64, script: &mut Script) {
    script.call(Nr::CLOSE, args![listener]);
}

/// Who listens.
#[derive(Debug)]
pub struct Recorder {
    listeners: Vec<Arc<OwnedFd>>,
    proc: OwnedFd,
    log: Log,
    rulesets: Rulesets,
    next_domain: u32,
    /// Threads with something in the log that were alive when we last looked: id, birth, process.
    alive: Vec<(i32, u64, i32)>,
    forks: Forks,
}

/// More than so many threads are not looked for at every event, but for those of the caller's process.
const LOOKED_FOR: usize = 256;

impl Recorder {
    /// Listens and writes into the log. `domains`: ids that are taken; `alive`: threads that are in the log.
    pub fn new(listener: OwnedFd, proc: OwnedFd, log: Log, domains: u32, alive: Vec<(i32, u64, i32)>) -> Recorder {
        let (listeners, rulesets) = (vec![Arc::new(listener)], Rulesets::default());
        Recorder { listeners, proc, log, rulesets, next_domain: domains, alive, forks: Forks::default() }
    }

    /// Who must not be copied yet, and who waits for that.
    pub fn forks(&mut self) -> &mut Forks {
        &mut self.forks
    }

    /// One more listener.
    pub fn add(&mut self, listener: OwnedFd) {
        self.listeners.push(Arc::new(listener));
    }

    /// What to wait for.
    pub fn listeners(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listeners.iter().map(|listener| listener.as_fd())
    }

    /// Listeners whose last task has ended go.
    pub fn hung_up(&mut self, mut ended: impl FnMut(usize) -> bool) {
        let mut index = 0;
        self.listeners.retain(|_| {
            index += 1;
            !ended(index - 1)
        });
    }

    /// Answers the next call of a listener that is ready.
    pub fn serve(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index).map(Arc::clone) else { return };
        let Ok(Some(notice)) = receive(&listener) else { return };
        self.reply(listener, notice);
    }

    /// All memory of a process is there: what waited for that is looked at again.
    pub fn filled(&mut self, pid: i32) {
        for (listener, notice) in self.forks.filled(pid) {
            self.reply(listener, notice);
        }
    }

    fn reply(&mut self, listener: Arc<OwnedFd>, notice: Notice) {
        // An answer that does not arrive: the caller is gone.
        let _ = match self.judge(&listener, &notice) {
            Ok(Reply::Say(say)) => answer(&listener, notice.id, say),
            Ok(Reply::Wait(pid)) => {
                self.forks.wait(pid, listener, notice);
                Ok(())
            }
            Ok(Reply::Give(index)) => match self.rulesets.fd(index) {
                Some(fd) => answer_with(&listener, notice.id, fd)
                    .or_else(|e| answer(&listener, notice.id, Answer::Error(e.errno))),
                None => answer(&listener, notice.id, Answer::Error(Errno::NOMEM)),
            },
            // What could not be written down must not happen.
            Ok(Reply::Gone) | Err(_) => answer(&listener, notice.id, Answer::Error(Errno::NOMEM)),
        };
    }

    fn judge(&mut self, listener: &OwnedFd, notice: &Notice) -> Result<Reply, Cause> {
        let [a, b, c, d, ..] = notice.args;
        let low = |v: u64| v & 0xffff_ffff;
        let hold = || Call::hold(&self.proc, listener, notice);
        let call = match notice.nr {
            nr if forks::is_fork(nr) && self.forks.any() => hold()?,
            nr::SECCOMP if low(a) == SET_MODE_FILTER => hold()?,
            nr::PRCTL if b == MODE_FILTER => hold()?,
            nr::CREATE_RULESET if low(c) == 0 => hold()?,
            nr::ADD_RULE if low(d) == 0 => hold()?,
            nr::RESTRICT_SELF => hold()?,
            _ => return Ok(Reply::Say(Answer::Continue)),
        };
        let Some(call) = call else { return Ok(Reply::Gone) };
        match notice.nr {
            nr::SECCOMP => self.filter(&call, low(b), c),
            nr::PRCTL => self.filter(&call, 0, c),
            nr::CREATE_RULESET => self.create(&call, a, b),
            nr::ADD_RULE => self.add_rule(&call, number(a), low(b), c),
            nr::RESTRICT_SELF => self.restrict(&call, number(a), low(b)),
            _ => self.fork(&call),
        }
    }

    /// The caller is about to make a task.
    fn fork(&self, call: &Call<'_>) -> Result<Reply, Cause> {
        if forks::shares_memory(call.notice, || call.memory()) {
            return Ok(Reply::Say(Answer::Continue));
        }
        let origin = self.forks.origin(call.caller()?.pid);
        Ok(origin.map_or(Reply::Say(Answer::Continue), Reply::Wait))
    }

    fn note(&mut self, caller: &Caller, what: What) -> Result<(), Cause> {
        if self.log.is_full() {
            // Nothing of it would be remembered, nor need who is alive.
            self.alive = Vec::new();
            return Ok(());
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let ns = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        let per_second = i128::from(rustix::param::clock_ticks_per_second());
        let time = u64::try_from(ns * per_second / 1_000_000_000).unwrap_or(0);
        let load = read_proc(self.proc.as_fd(), "loadavg")?;
        let cursor = load.split(|b| b.is_ascii_whitespace()).nth(4).and_then(|w| std::str::from_utf8(w).ok());
        let cursor = cursor.and_then(|w| w.parse().ok()).unwrap_or(0);
        for (tid, start, pid) in self.ended(caller.pid) {
            self.log.append(&Line::Event(Event { tid, start, pid, time, cursor, depth: 0, what: What::Ended }))?;
        }
        let Caller { tid, pid, start, depth, .. } = *caller;
        if !self.alive.contains(&(tid, start, pid)) {
            self.alive.push((tid, start, pid));
        }
        Ok(self.log.append(&Line::Event(Event { tid, start, pid, time, cursor, depth, what }))?)
    }

    /// Threads that have ended since we last looked. Who has ended has made nobody since: it tells processes apart that
    /// may have made a third.
    fn ended(&mut self, process: i32) -> Vec<(i32, u64, i32)> {
        let few = self.alive.len() <= LOOKED_FOR;
        let lives = |(tid, start, pid): &(i32, u64, i32)| {
            let stat = (few || *pid == process).then(|| read_proc(self.proc.as_fd(), &format!("{tid}/stat")));
            stat.is_none_or(|text| {
                let stat = text.ok().and_then(|text| stat::parse(&text).ok());
                stat.is_some_and(|s| s.starttime == *start && !matches!(s.state, b'Z' | b'X'))
            })
        };
        let (alive, ended) = self.alive.iter().copied().partition(lives);
        self.alive = alive;
        ended
    }

    /// The caller is about to install a filter.
    fn filter(&mut self, call: &Call<'_>, flags: u64, header: u64) -> Result<Reply, Cause> {
        let go_on = Ok(Reply::Say(Answer::Continue));
        let caller = call.caller()?;
        // There is a listener already: the kernel will say so.
        if flags & FLAG_NEW_LISTENER != 0 || !caller.privileged {
            return go_on;
        }
        let mut words = [0u8; 16];
        if let Err(reply) = self.forks.look(call, caller.pid, header, &mut words) {
            return Ok(reply);
        }
        let [l0, l1, .., p0, p1, p2, p3, p4, p5, p6, p7] = words;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let mut program = vec![0; length * 8];
        let from = u64::from_ne_bytes([p0, p1, p2, p3, p4, p5, p6, p7]);
        if length == 0 || length > MAX_INSTRUCTIONS {
            return go_on;
        }
        if let Err(reply) = self.forks.look(call, caller.pid, from, &mut program) {
            return Ok(reply);
        }
        let kept = u32::try_from(flags & FLAGS_KNOWN & !FLAG_TSYNC).unwrap_or(0);
        let what = match flags & !FLAGS_KNOWN & !u64::from(FLAG_WAIT_KILLABLE) {
            0 => {
                What::Filter { filter: Filter { flags: kept, program: program.into() }, tsync: flags & FLAG_TSYNC != 0 }
            }
            // TSYNC_ESRCH only changes how a failure is told.
            16 => What::Filter { filter: Filter { flags: kept, program: program.into() }, tsync: true },
            other => What::Unknown(format!("a seccomp filter with the flags {other:#x}")),
        };
        self.note(&caller, what)?;
        go_on
    }

    /// Makes a ruleset for the caller.
    fn create(&mut self, call: &Call<'_>, attr: u64, size: u64) -> Result<Reply, Cause> {
        const PAGE: usize = 4096;
        let Some(size) = usize::try_from(size).ok().filter(|s| *s <= PAGE) else {
            return Ok(Reply::Say(Answer::Continue));
        };
        let mut bytes = vec![0; size];
        if let Err(reply) = self.forks.look(call, call.caller()?.pid, attr, &mut bytes) {
            return Ok(reply);
        }
        match landlock::create_ruleset_from(&bytes) {
            Ok(fd) => Ok(Reply::Give(self.rulesets.add(fd, &bytes))),
            Err(e) => Ok(Reply::Say(Answer::Error(e.errno))),
        }
    }

    /// Adds a rule for the caller.
    fn add_rule(&mut self, call: &Call<'_>, ruleset: i32, kind: u64, attr: u64) -> Result<Reply, Cause> {
        let go_on = Ok(Reply::Say(Answer::Continue));
        let pid = call.caller()?.pid;
        let Ok(theirs) = call.descriptor(pid, ruleset) else { return go_on };
        let Some(known) = self.rulesets.find(&theirs) else { return go_on };
        if known.is_over() {
            return go_on;
        }
        let mut bytes = [0u8; 16];
        let length = match kind {
            1 => 12,
            2 => 16,
            _ => {
                known.spoil(format!("a Landlock rule of type {kind}"));
                return go_on;
            }
        };
        if let Err(reply) = self.forks.look(call, pid, attr, &mut bytes[..length]) {
            return Ok(reply);
        }
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, ..] = bytes;
        let access = u64::from_ne_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let added = if kind == 1 {
            let Ok(parent) = call.descriptor(pid, i32::from_ne_bytes([b0, b1, b2, b3])) else { return go_on };
            known.allow_beneath(&self.proc, access, &parent)
        } else {
            let [.., c0, c1, c2, c3, c4, c5, c6, c7] = bytes;
            known.allow_port(access, u64::from_ne_bytes([c0, c1, c2, c3, c4, c5, c6, c7]))
        };
        Ok(Reply::Say(added.map_or_else(|e| Answer::Error(e.errno), |()| Answer::Value(0))))
    }

    /// The caller is about to enter a domain.
    fn restrict(&mut self, call: &Call<'_>, ruleset: i32, flags: u64) -> Result<Reply, Cause> {
        /// Flags about logging, and those that the kernel may get later.
        const LOGGING: u64 = 7;
        let go_on = Ok(Reply::Say(Answer::Continue));
        let caller = call.caller()?;
        let Ok(theirs) = call.descriptor(caller.pid, ruleset) else { return go_on };
        if !caller.privileged {
            return go_on;
        }
        let what = match self.rulesets.find(&theirs).map(|r| r.placed()) {
            _ if flags & !LOGGING != 0 => What::Unknown(format!("a Landlock domain entered with the flags {flags:#x}")),
            Some(Ok(mut layer)) => {
                layer.layer.flags = u32::try_from(flags).unwrap_or(0);
                let id = self.next_domain;
                self.next_domain += 1;
                What::Domain { id, layer }
            }
            Some(Err(why)) => What::Unknown(why),
            None if rulesets::is_ruleset(&self.proc, &theirs)? => {
                What::Unknown("a Landlock domain of a ruleset that was not recorded".into())
            }
            None => return go_on,
        };
        self.note(&caller, what)?;
        go_on
    }
}

/// What becomes of a call.
enum Reply {
    Say(Answer),
    /// Nobody waits for an answer: its thread is gone, and what was read may be another's.
    Gone,
    /// This ruleset is its result.
    Give(usize),
    /// Not before this process has all of its memory.
    Wait(i32),
}

/// A descriptor in a register.
fn number(register: u64) -> i32 {
    u32::try_from(register & 0xffff_ffff).unwrap_or(0).cast_signed()
}

/// Opens a container's log, new.
///
/// # Errors
/// What open says.
pub fn open_log(directory: &OwnedFd) -> Result<Log, SysError> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC;
    let file = openat(directory, log::NAME, flags, Mode::RUSR | Mode::WUSR).named("openat", || log::NAME.into())?;
    Ok(Log::new(file.into()))
}

/// Starts the record of a container whose tasks are ready to run, with what they have already. How many filters all have.
///
/// # Errors
/// What /proc says, or the log's file.
pub fn start(
    rebuilt: &mut Rebuilt,
    snapshot: &Snapshot,
    directory: &OwnedFd,
    proc: OwnedFd,
) -> Result<(u32, Option<Recorder>), Cause> {
    let read = |tid: i32, name: &str| read_proc(proc.as_fd(), &format!("{tid}/{name}"));
    let filters = status::parse(&read(rebuilt.init, "status")?)?.seccomp_filters.unwrap_or(0);
    let Some(listener) = rebuilt.listener.take() else { return Ok((filters, None)) };
    let mut log = open_log(directory)?;
    let table = &snapshot.restrictions;
    if *table != Restrictions::default() {
        let domains = table.domains.iter().map(placed).collect::<Result<_, _>>()?;
        log.append(&Line::Table { filters: table.filters.clone(), domains })?;
    }
    let mut alive = Vec::new();
    for Ready { tid, pid, restricted, .. } in &rebuilt.restricted {
        let start = stat::parse(&read(*tid, "stat")?)?.starttime;
        let depth = status::parse(&read(*tid, "status")?)?.seccomp_filters.unwrap_or(0);
        let Restricted { filters, domains } = restricted.clone();
        let what = What::State { filters, domains };
        alive.push((*tid, start, *pid));
        log.append(&Line::Event(Event { tid: *tid, start, pid: *pid, time: 0, cursor: 0, depth, what }))?;
    }
    let domains = u32::try_from(table.domains.len()).unwrap_or(u32::MAX);
    Ok((filters, Some(Recorder::new(listener, proc, log, domains, alive))))
}

/// A layer of an image with the files that its paths lead to in the container, whose root is the keeper's.
///
/// # Errors
/// What open says.
pub fn placed(layer: &Layer) -> Result<log::Placed, Cause> {
    let root = rustix::fs::open("/", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .named("open", || "/".into())?;
    let file = |rule: &Rule| match rule {
        Rule::Beneath { path, .. } => identity(path, &root),
        Rule::Port { .. } => Ok((0, 0)),
    };
    let files = layer.rules.iter().map(file).collect::<Result<_, _>>()?;
    Ok(log::Placed { layer: layer.clone(), files })
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_policy::seccomp::{Call, program, verdict};

    #[test]
    fn the_filter_takes_exactly_the_calls_that_are_recorded() {
        let cookie = 0x1234_5678_9abc_def0;
        let filter = program(&filter(cookie, false)).unwrap();
        let ask = |arch, nr, first: u64, sixth: u64| {
            let args = [Some(first), None, None, None, None, Some(sixth)];
            verdict([filter.as_slice()], &Call { nr, arch, ip: None, args }).unwrap()
        };
        for call in 0..600 {
            let taken = [317, 444, 445, 446].contains(&call);
            let wanted = if taken { action::USER_NOTIF } else { action::ALLOW };
            assert_eq!(ask(ARCH, call, 5, 0), wanted, "{call}");
            assert_eq!(ask(ARCH, call, 5, cookie), action::ALLOW, "{call}");
        }
        assert_eq!(ask(ARCH, 157, 22, 0), action::USER_NOTIF);
        assert_eq!(ask(ARCH, 157, 22, cookie), action::ALLOW);
        assert_eq!(ask(ARCH, 317, 0, cookie & 0xffff_ffff), action::USER_NOTIF);
        assert_eq!(ask(ARCH, 317, 0, cookie >> 32 << 32), action::USER_NOTIF);
        for call in 0..600 {
            let refused = [444, 445, 446].contains(&call);
            let wanted = if refused { action::ERRNO | 38 } else { action::ALLOW };
            assert_eq!(ask(0x4000_0003, call, 22, 0), wanted, "{call}");
            assert_eq!(ask(ARCH, X32 | call, 22, 0), wanted, "{call}");
        }
    }
}
