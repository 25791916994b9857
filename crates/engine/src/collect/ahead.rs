//! What /proc says of frozen processes, read ahead by a thread of its own: for a large tree the kernel has much to write and
//! we have much to parse, and none of it needs the tracer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use yendor_kinds::{Cause, Result};
use yendor_proc::limits::{self, Limits};
use yendor_proc::smaps::{self, Smap};
use yendor_proc::timers::{self, Timer};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::read_proc;

/// How many processes it is ahead at most: what it holds is bounded.
const AHEAD: usize = 16;

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
}

impl Texts {
    fn read(proc: BorrowedFd<'_>, pid: i32) -> Result<Texts> {
        let file = |name: &str| read_proc(proc, &format!("{pid}/{name}"));
        let word = |name: &str| Ok::<_, Cause>(String::from_utf8_lossy(&file(name)?).trim().to_owned());
        Ok(Texts {
            pid,
            smaps: smaps::parse(&file("smaps")?)?,
            timers: timers::parse(&file("timers")?)?,
            limits: limits::parse(&file("limits")?)?,
            auxv: file("auxv")?,
            coredump_filter: word("coredump_filter")?,
            oom_score_adj: word("oom_score_adj")?,
        })
    }
}

/// Who reads ahead.
pub struct Ahead {
    texts: Option<Receiver<Result<Texts>>>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Starts the thread. It ends with the last process, or when this is dropped.
    ///
    /// # Errors
    /// `EAGAIN` at a limit of tasks.
    pub fn start(proc: OwnedFd, pids: Vec<i32>) -> Result<Ahead> {
        let (sender, receiver) = sync_channel(AHEAD);
        let thread = std::thread::Builder::new().name("yendor-proc".into()).spawn(move || {
            for pid in pids {
                if sender.send(Texts::read(proc.as_fd(), pid)).is_err() {
                    // Nobody wants to know more.
                    return;
                }
            }
        });
        let thread = thread.map_err(|e| SysError::io("clone", "a thread that reads /proc", &e))?;
        Ok(Ahead { texts: Some(receiver), thread: Some(thread) })
    }

    /// The texts of the next process, which is `pid`.
    ///
    /// # Errors
    /// What /proc said.
    pub fn next(&self, pid: i32) -> Result<Texts> {
        let gone = || SysError::new("read", format!("/proc/{pid}"), Errno::SRCH);
        let texts = self.texts.as_ref().and_then(|t| t.recv().ok()).ok_or_else(gone)??;
        if texts.pid == pid { Ok(texts) } else { Err(gone().into()) }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        drop(self.texts.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that its texts did not.
            let _ = thread.join();
        }
    }
}
