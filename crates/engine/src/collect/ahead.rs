//! What /proc says of frozen processes, read ahead by a thread of its own: for a large tree the kernel has much to write and
//! we have much to parse, and none of it needs the tracer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{AtFlags, readlinkat, statat};
use yendor_image::NsId;
use yendor_kinds::{Cause, Named, Result};
use yendor_proc::limits::{self, Limits};
use yendor_proc::personality;
use yendor_proc::smaps::{self, Smap};
use yendor_proc::timers::{self, Timer};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::{read_proc, read_proc_into};

use super::namespace::Namespaces;
use super::nested::Nested;

/// How many mappings it is ahead at most, each process counting as one more: what it holds is bounded, to a few megabytes. Those of
/// a thousand small processes: while the first are not asked yet, their open files are looked at, and a processor has nothing to do.
const AHEAD: usize = 32 * 1024;

/// Files of a process's /proc directory.
#[derive(Debug)]
pub struct Texts {
    pid: i32,
    /// Its `smaps`: read before the process is borrowed, so without our scratch memory.
    pub smaps: Vec<Smap>,
    /// Its `timers`.
    pub timers: Vec<Timer>,
    /// Its `limits`.
    pub limits: Limits,
    /// Its `auxv`.
    pub auxv: Vec<u8>,
    /// Its `coredump_filter`, a hexadecimal number.
    pub coredump_filter: String,
    /// Its `oom_score_adj`, a number.
    pub oom_score_adj: String,
    /// Where its `cwd` leads.
    pub cwd: Vec<u8>,
    /// Its `root`: device and inode.
    pub root: (u64, u64),
    /// The `personality` of each thread.
    pub personalities: Vec<u32>,
    /// The namespaces of its threads, by their ids.
    namespaces: Vec<(i32, Namespaces)>,
    /// Of each thread, the nested ones: what [`Texts::live_in`] finds.
    pub nested: Vec<Vec<NsId>>,
    /// The pid namespace of its children, unless that is its own.
    pub children: Option<NsId>,
    /// The mount namespace among them.
    pub mounts: Option<NsId>,
}

impl Texts {
    /// Finds the namespaces beside the container's that its threads live in.
    ///
    /// # Errors
    /// `Unsupported`, by name, for one that cannot be in an image.
    pub fn live_in(&mut self, home: &Namespaces, nested: &mut Nested, proc: BorrowedFd<'_>) -> Result<()> {
        let pid = self.pid;
        if self.namespaces.len() > 1 && self.namespaces.iter().any(|(_, theirs)| home.has_other_users(theirs)) {
            return Err(Cause::unsupported(format!("process {pid} has a user namespace of its own, and threads")));
        }
        let of = |(tid, theirs): &(i32, Namespaces)| {
            home.away(theirs, *tid, |name, inode| nested.number(proc, (pid, *tid), name, inode))
        };
        let away = self.namespaces.iter().map(of).collect::<Result<Vec<_>>>()?;
        self.children = away.first().and_then(|leader| leader.children);
        self.nested = away.into_iter().map(|away| away.others).collect();
        Ok(())
    }

    /// `room`: for what is read, to be used again.
    fn read(proc: BorrowedFd<'_>, pid: i32, threads: &[i32], room: &mut Vec<u8>) -> Result<Texts> {
        let file = |name: &str| read_proc(proc, &format!("{pid}/{name}"));
        let word = |name: &str| Ok::<_, Cause>(String::from_utf8_lossy(&file(name)?).trim().to_owned());
        let namespaces = |tid: &i32| match *tid {
            tid if tid == pid => Ok((tid, Namespaces::of_process(proc, pid)?)),
            tid => Ok((tid, Namespaces::of_thread(proc, pid, tid)?)),
        };
        let personality = |tid: &i32| Ok(personality::parse(&file(&format!("task/{tid}/personality"))?)?);
        let (root, cwd) = (format!("{pid}/root"), format!("{pid}/cwd"));
        let root = statat(proc, root.as_str(), AtFlags::empty()).named("statat", || root.clone())?;
        let cwd = readlinkat(proc, cwd.as_str(), Vec::new()).named("readlinkat", || cwd.clone())?;
        read_proc_into(proc, &format!("{pid}/smaps"), room)?;
        Ok(Texts {
            pid,
            nested: Vec::new(),
            children: None,
            mounts: None,
            namespaces: threads.iter().map(namespaces).collect::<Result<_>>()?,
            smaps: smaps::parse(room)?,
            timers: timers::parse(&file("timers")?)?,
            limits: limits::parse(&file("limits")?)?,
            auxv: file("auxv")?,
            coredump_filter: word("coredump_filter")?,
            oom_score_adj: word("oom_score_adj")?,
            cwd: cwd.into_bytes(),
            root: (root.st_dev, root.st_ino),
            personalities: threads.iter().map(personality).collect::<Result<_>>()?,
        })
    }
}

/// What a process counts.
fn weight(texts: &Result<Texts>) -> usize {
    texts.as_ref().map_or(1, |texts| texts.smaps.len() + 1)
}

/// Who reads ahead.
pub struct Ahead {
    texts: Option<Receiver<Result<Texts>>>,
    thread: Option<JoinHandle<()>>,
    held: Arc<Held>,
}

/// How much was read and not taken yet.
#[derive(Default)]
struct Held {
    mappings: Mutex<usize>,
    fewer: Condvar,
}

impl Held {
    /// Waits for room, and takes it.
    fn add(&self, more: usize) {
        let held = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held = self.fewer.wait_while(held, |held| *held >= AHEAD).unwrap_or_else(PoisonError::into_inner);
        *held = held.saturating_add(more);
    }

    fn remove(&self, less: usize) {
        let mut held = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        *held = held.saturating_sub(less);
        self.fewer.notify_one();
    }
}

impl Ahead {
    /// Starts the thread, for processes with these threads. It ends with the last process, or when this is dropped.
    ///
    /// # Errors
    /// `EAGAIN` at a limit of tasks.
    pub fn start(proc: OwnedFd, pids: Vec<(i32, Vec<i32>)>) -> Result<Ahead> {
        let (sender, receiver) = channel();
        let held = Arc::<Held>::default();
        let theirs = held.clone();
        let thread = std::thread::Builder::new().name("yendor-proc".into()).spawn(move || {
            let mut room = Vec::new();
            for (pid, threads) in pids {
                let texts = Texts::read(proc.as_fd(), pid, &threads, &mut room);
                theirs.add(weight(&texts));
                if sender.send(texts).is_err() {
                    // Nobody wants to know more.
                    return;
                }
            }
        });
        let thread = thread.map_err(|e| SysError::io("clone", "a thread that reads /proc", &e))?;
        Ok(Ahead { texts: Some(receiver), thread: Some(thread), held })
    }

    /// The texts of the next process, which is `pid`.
    ///
    /// # Errors
    /// What /proc said.
    pub fn next(&self, pid: i32) -> Result<Texts> {
        let gone = || SysError::new("read", format!("/proc/{pid}"), Errno::SRCH);
        let texts = self.texts.as_ref().and_then(|t| t.recv().ok()).ok_or_else(gone)?;
        self.held.remove(weight(&texts));
        let texts = texts?;
        if texts.pid == pid { Ok(texts) } else { Err(gone().into()) }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        drop(self.texts.take());
        self.held.remove(usize::MAX);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that its texts did not.
            let _ = thread.join();
        }
    }
}
