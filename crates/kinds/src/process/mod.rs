//! Processes and threads.
//!
//! What the kernel tells outsiders is read from /proc and by ptrace. The rest only the task itself can ask: the modules
//! here put their questions into one [`Inquiry`] per thread, which is executed inside the stopped task as a script, and
//! read their answers from it. Rebuilding is the other way round: each module appends calls to the script of the new task.

pub mod attribute;
pub mod control;
pub mod credential;
pub mod directory;
pub mod hidden;
pub mod itimer;
pub mod label;
pub mod landlock;
pub mod lock;
pub mod notification;
pub mod posix_timer;
pub mod regs;
pub mod rlimit;
pub mod rseq;
pub mod sched;
pub mod seccomp;
pub mod sigaction;
pub mod signal;

use serde::{Deserialize, Serialize};
use yendor_image::{NsId, NsPid, Tid};
use yendor_task::script::{Arg, Want};
use yendor_task::{Arena, Nr, RunError, Script};

use crate::file::Descriptor;
use crate::memory;

/// A process in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its id inside the container.
    pub pid: NsPid,
    /// Its parent inside the tree; pid 1 for one whose parent is the container's init.
    pub parent: NsPid,
    /// Which thread of its parent bore it, or adopted it: whose end `PR_SET_PDEATHSIG` is about, and `__WNOTHREAD` of wait(2); none: the
    /// first, or nobody said.
    #[serde(default)]
    pub parent_thread: Option<Tid>,
    /// Its process group.
    pub group: NsPid,
    /// Its session.
    pub session: NsPid,
    /// The pid namespace that it lives in, unless that is the container's.
    #[serde(default)]
    pub namespace: Option<NsId>,
    /// The same ids in pid namespaces inside the container's: the outermost that it is seen in first, its own last.
    #[serde(default)]
    pub levels: Vec<Level>,
    /// The signal by which its parent is told of its end; 0 for none. A process that has executed a program, or was adopted,
    /// has `SIGCHLD`.
    pub exit_signal: u32,
    /// What it is.
    pub state: State,
}

/// The ids of a process in a pid namespace (pid_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Its own.
    pub pid: NsPid,
    /// Its process group; 0 for one whose leader is not seen there.
    pub group: NsPid,
    /// Its session; likewise.
    pub session: NsPid,
}

/// `SIGCHLD`.
pub const USUAL_SIGNAL: u32 = 17;

/// Alive, or only its status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A zombie that its parent has not waited for: the wait status. That it has left a core (bit 7) is lost: the host decides what
    /// becomes of a core, and would be told of another crash.
    Zombie(i32),
    /// A process.
    Alive(Box<Alive>),
    /// A process that is to start: the last step is execve.
    Exec(Box<Exec>),
}

/// All of a living process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alive {
    /// Its threads, leader first.
    pub threads: Vec<Thread>,
    /// Its address space.
    pub memory: memory::Record,
    /// Its contexts of asynchronous I/O.
    #[serde(default)]
    pub contexts: Vec<memory::aio::Record>,
    /// What it maps later.
    pub future: memory::future::Record,
    /// Its descriptors, by number.
    pub descriptors: Vec<Descriptor>,
    /// Its file locks.
    pub locks: Vec<lock::Record>,
    /// Working directory, root, umask.
    pub directory: directory::Record,
    /// Signal actions.
    pub actions: sigaction::Record,
    /// Signals pending for the process.
    pub pending: signal::Queue,
    /// Whether it is stopped by job control.
    pub stopped: Option<Stop>,
    /// Interval timers.
    pub itimers: itimer::Record,
    /// POSIX timers.
    pub posix_timers: posix_timer::Record,
    /// Message queues that notify it.
    #[serde(default)]
    pub notifications: Vec<notification::Record>,
    /// Resource limits.
    pub limits: rlimit::Record,
    /// What it allows and forbids itself.
    pub controls: control::Process,
    /// The rest of what belongs to a process.
    pub attributes: attribute::Process,
    /// Of a session leader: the session's terminal.
    pub terminal: Option<Terminal>,
    /// The pid namespace that its children are born in, unless that is its own (`pid_for_children`).
    #[serde(default)]
    pub children: Option<NsId>,
}

/// A session's controlling terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// A description of it.
    pub file: yendor_image::FileId,
    /// Its foreground process group.
    pub foreground: Option<NsPid>,
}

impl Terminal {
    /// The session leader, in its own session already, takes it; `fd` is its descriptor of it.
    pub fn take(fd: i32, script: &mut Script) {
        const TIOCSCTTY: u32 = 0x540e;
        script.call(Nr::IOCTL, yendor_task::args![fd, TIOCSCTTY, 0]);
    }

    /// The foreground group becomes what it was, once all groups exist.
    /// `seen`: a process's id as the leader sees it.
    pub fn bring_forward(&self, fd: i32, seen: impl Fn(NsPid) -> i32, script: &mut Script) {
        const TIOCSPGRP: u32 = 0x5410;
        if let Some(group) = self.foreground {
            let group = yendor_task::script::bytes(seen(group).to_ne_bytes());
            script.call(Nr::IOCTL, [Arg::from(fd), Arg::from(TIOCSPGRP), group]);
        }
    }
}

/// A job-control stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The signal that stopped it.
    pub signal: i32,
    /// Whether its parent has waited for the stop already.
    pub known: bool,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// Its id inside the container; the leader's is the pid.
    pub tid: Tid,
    /// The same in pid namespaces inside the container's, as of its process.
    #[serde(default)]
    pub levels: Vec<Tid>,
    /// Registers.
    pub regs: regs::Record,
    /// Blocked signals, alternate stack, signals pending for the thread.
    pub signals: signal::Record,
    /// User space's registrations with the kernel.
    pub rseq: rseq::Record,
    /// How it is scheduled.
    pub sched: sched::Record,
    /// Who it is.
    pub credentials: credential::Record,
    /// What it allows and forbids itself.
    pub controls: control::Thread,
    /// The rest of what belongs to a thread.
    pub attributes: attribute::Thread,
    /// What it has forbidden itself.
    #[serde(default)]
    pub restricted: Restricted,
    /// Its security labels.
    pub labels: Vec<label::Label>,
    /// Namespaces that it lives in beside the container's, but pid namespaces.
    #[serde(default)]
    pub namespaces: Vec<NsId>,
}

/// What a thread has forbidden itself, or inherited, for good: by number in the snapshot's tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restricted {
    /// Seccomp filters, oldest first.
    pub filters: Vec<u32>,
    /// Landlock domains, outermost first; threads with the same number are in the same domain.
    pub domains: Vec<u32>,
}

/// A process that starts with execve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Absolute path inside the container.
    pub path: yendor_image::Bytes,
    /// Arguments, the name first.
    pub argv: Vec<yendor_image::Bytes>,
    /// Environment, `K=V`.
    pub env: Vec<yendor_image::Bytes>,
    /// Its descriptors.
    pub descriptors: Vec<Descriptor>,
    /// Working directory, root, umask.
    pub directory: directory::Record,
    /// Who it is.
    pub credentials: credential::Record,
    /// Resource limits; none: as the caller's.
    pub limits: Option<rlimit::Record>,
    /// Its controlling terminal.
    pub terminal: Option<Terminal>,
    /// /proc/PID/oom_score_adj; none: as the caller's.
    pub oom_score_adj: Option<i32>,
}

/// Questions for one thread, and then its answers.
#[derive(Debug, Default)]
pub struct Inquiry {
    script: Script,
    done: Vec<yendor_task::script::Done>,
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Question(usize);

impl Inquiry {
    /// Asks a call whatever it returns.
    pub fn ask(&mut self, nr: Nr, args: impl IntoIterator<Item = Arg>) -> Question {
        Question(self.script.call_wanting(nr, args, Want::Anything))
    }

    /// The script to run.
    #[must_use]
    pub fn script(&self) -> &Script {
        &self.script
    }

    /// Takes the answers.
    pub fn answered(&mut self, done: Vec<yendor_task::script::Done>) {
        self.done = done;
    }

    /// What the call returned, an error as an error.
    ///
    /// # Errors
    /// The call's own.
    pub fn value(&self, q: Question) -> crate::Result<u64> {
        let returned = self.done.get(q.0).map_or(-38, |d| d.returned);
        if !(-4095..0).contains(&returned) {
            return Ok(returned.cast_unsigned());
        }
        let call = self.script.calls.get(q.0);
        let errno = yendor_sys::Errno::from_raw_os_error(i32::try_from(-returned).unwrap_or(38));
        let (name, args) = call.map_or(("syscall", String::new()), |c| (c.nr.name(), c.shown_args()));
        Err(yendor_sys::SysError::new(name, args, errno).into())
    }

    /// The bytes that the call filled in.
    ///
    /// # Errors
    /// The call's own.
    pub fn bytes(&self, q: Question) -> crate::Result<&[u8]> {
        self.value(q)?;
        Ok(self.done.get(q.0).and_then(|d| d.out.first()).map_or(&[][..], |out| &out[..]))
    }

    /// The bytes that the call filled in second; nothing if it failed.
    #[must_use]
    pub fn second(&self, q: Question) -> &[u8] {
        self.done.get(q.0).and_then(|d| d.out.get(1)).map_or(&[][..], |out| &out[..])
    }

    /// The `index`th 64-bit word that the call filled in.
    ///
    /// # Errors
    /// The call's own.
    pub fn word(&self, q: Question, index: usize) -> crate::Result<u64> {
        let bytes = self.bytes(q)?;
        Ok(word_at(bytes, index * 8))
    }
}

/// The 64-bit word at an offset, zero beyond the end.
#[must_use]
pub fn word_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// The 32-bit word at an offset, zero beyond the end.
#[must_use]
pub fn half_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Words as bytes.
#[must_use]
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// Runs scripts in tasks that wait in an arena: what rebuild needs of the engine.
pub trait Runner {
    /// Runs a script in the task.
    ///
    /// # Errors
    /// The first failed call.
    fn run(&mut self, script: &Script) -> Result<Vec<yendor_task::script::Done>, RunError>;
}

/// A task that waits in an arena.
#[derive(Debug)]
pub struct Waiting<'a> {
    /// The arena.
    pub arena: &'a Arena,
    /// Its slot.
    pub slot: usize,
    /// Its id as the tracer sees it.
    pub tid: i32,
}

impl Runner for Waiting<'_> {
    fn run(&mut self, script: &Script) -> Result<Vec<yendor_task::script::Done>, RunError> {
        self.arena.run(self.slot, self.tid, script)
    }
}
