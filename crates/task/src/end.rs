//! Ends that only the tracer hears of, and that somebody else waits for.
//!
//! A thread that ends while we trace it stays a zombie until we have waited for it. The kernel waits for it, too: it does not tell of
//! the end of the first thread as long as there are others, nor does a thread execute a program before all others are gone, nor does
//! pid 1 of a pid namespace end before all others in it. So whoever waits for one of these has to take the others' ends meanwhile.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Takes the ends of other threads of a task's process, and, if the task is ending, of all that is below it.
pub fn take_others(tid: i32) {
    let mut left = vec![tid];
    let is_ending = is_ending(tid);
    while let Some(of) = left.pop() {
        for thread in threads(of) {
            if thread != tid {
                take(thread);
            }
            if is_ending {
                // Where it is gone there is nothing.
                let text = fs::read_to_string(format!("/proc/{of}/task/{thread}/children")).unwrap_or_default();
                left.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
    }
}

/// Takes ends while we are in a call that waits for them, as PTRACE_SEIZE of a thread does while another of its process executes a program.
#[derive(Debug, Default)]
pub struct Undertaker {
    /// The process of which threads are being seized; 0 for none, and `DONE`.
    process: Arc<AtomicI32>,
    thread: Option<JoinHandle<()>>,
}

/// There will be no more.
const DONE: i32 = -1;

impl Undertaker {
    /// From now on it takes ends of the threads of a process, if that takes long.
    pub fn begin(&mut self, pid: i32) {
        self.process.store(pid, Ordering::Relaxed);
        if self.thread.is_none() {
            let process = self.process.clone();
            // Without it, it is as likely as not that nobody executes a program now.
            self.thread = std::thread::Builder::new().name("yendor-ends".into()).spawn(move || watch(&process)).ok();
        }
    }

    /// No longer.
    pub fn end(&self) {
        self.process.store(0, Ordering::Relaxed);
    }
}

impl Drop for Undertaker {
    fn drop(&mut self) {
        self.process.store(DONE, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

fn watch(process: &AtomicI32) {
    /// Seizing all threads of most processes takes less.
    const MOMENT: Duration = Duration::from_millis(10);
    let mut before = 0;
    loop {
        std::thread::park_timeout(MOMENT);
        match process.load(Ordering::Relaxed) {
            DONE => return,
            pid if pid > 0 && pid == before => take_others(pid),
            pid => before = pid,
        }
    }
}

/// If it has ended. Whoever is not traced by us and no child of ours is left alone.
pub fn take(tid: i32) {
    if let Some(pid) = Pid::from_raw(tid) {
        let ends = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // Whoever is traced tells of its stops, too, whatever is asked for: they are for others to hear. An error says that it is none of ours.
        let told = waitid(WaitId::Pid(pid), ends | WaitIdOptions::NOWAIT).ok().flatten();
        if told.is_some_and(|what| what.exited() || what.killed() || what.dumped()) {
            let _ = waitid(WaitId::Pid(pid), ends);
        }
    }
}

fn threads(pid: i32) -> impl Iterator<Item = i32> {
    // Where it is gone there are none.
    let all = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_ending(tid: i32) -> bool {
    /// linux/sched.h.
    const PF_EXITING: u64 = 4;
    let stat = fs::read(format!("/proc/{tid}/stat")).unwrap_or_default();
    // The name before may have anything in it.
    let after = stat.iter().rposition(|b| *b == b')').map_or(&[][..], |i| &stat[i + 1..]);
    let flags =
        String::from_utf8_lossy(after).split_ascii_whitespace().nth(6).and_then(|word| word.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}
