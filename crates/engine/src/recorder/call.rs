//! A call that waits for an answer, with its thread held: calls wait for seconds, threads are killed meanwhile, and the kernel gives their
//! numbers to others, of whom nothing must be read nor written down.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use yendor_kinds::{Cause, Named};
use yendor_proc::{stat, status};
use yendor_sys::seccomp::{Notice, descriptor_of_held, hold, is_waiting};
use yendor_sys::{Errno, SysError};
use yendor_task::tree::read_proc;

use super::SYS_ADMIN;

/// One, and its thread's directory in /proc, which is never another's.
pub(super) struct Call<'a> {
    pub(super) notice: &'a Notice,
    listener: &'a OwnedFd,
    thread: OwnedFd,
}

/// The calling thread, as it was when it called.
pub(super) struct Caller {
    pub(super) tid: i32,
    pub(super) pid: i32,
    pub(super) start: u64,
    pub(super) depth: u32,
    pub(super) privileged: bool,
}

impl<'a> Call<'a> {
    /// Holds the thread; `None` when the call is over. Looked at after the thread was opened: while it waits, the number is its own.
    pub(super) fn hold(proc: &OwnedFd, listener: &'a OwnedFd, notice: &'a Notice) -> Result<Option<Self>, Cause> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let thread = openat(proc, notice.tid.to_string(), flags, Mode::empty());
        if !is_waiting(listener, notice.id)? {
            return Ok(None);
        }
        let thread = thread.named("openat", || format!("/proc/{}", notice.tid))?;
        Ok(Some(Call { notice, listener, thread }))
    }

    /// Whether nobody waits any more, or that cannot be known.
    pub(super) fn is_over(&self) -> bool {
        !is_waiting(self.listener, self.notice.id).unwrap_or(false)
    }

    /// Who calls.
    pub(super) fn caller(&self) -> Result<Caller, Cause> {
        let read = |name: &str| read_proc(self.thread.as_fd(), name);
        let status = status::parse(&read("status")?)?;
        let stat = stat::parse(&read("stat")?)?;
        Ok(Caller {
            tid: self.notice.tid,
            pid: status.tgid,
            start: stat.starttime,
            depth: status.seccomp_filters.unwrap_or(0),
            privileged: status.no_new_privs || status.cap_eff & SYS_ADMIN != 0,
        })
    }

    /// Its memory, for reading.
    pub(super) fn memory(&self) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(&self.thread, "mem", flags, Mode::empty()).ok().map(File::from)
    }

    /// A descriptor of its process, as one of ours.
    pub(super) fn descriptor(&self, pid: i32, number: i32) -> Result<OwnedFd, SysError> {
        let process = hold(pid)?;
        if self.is_over() {
            return Err(SysError::new("pidfd_getfd", number.to_string(), Errno::SRCH));
        }
        descriptor_of_held(&process, number)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use yendor_sys::seccomp::{Notice, install, install_listener, receive};

    use super::super::{Recorder, filter, flags, log};

    /// A call that waited for memory was judged by its old number when the memory had come: of whoever had that by then.
    #[test]
    fn of_a_call_that_is_over_nothing_is_read_nor_written_down() {
        let pass = yendor_policy::seccomp::to_bytes(&[yendor_policy::seccomp::Instruction {
            code: yendor_policy::seccomp::bpf::op::RET,
            jt: 0,
            jf: 0,
            k: yendor_policy::seccomp::action::ALLOW,
        }]);
        let path = std::env::temp_dir().join(format!("yendor-over-{}", std::process::id()));
        let log = log::Log::new(std::fs::File::create(&path).expect("a log"));
        let length = || std::fs::metadata(&path).expect("the log").len();
        let (give, take) = mpsc::channel();
        let (done, end) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let done = done;
            scope.spawn(move || {
                rustix::thread::set_no_new_privs(true).expect("no_new_privs");
                give.send(install_listener(flags(false), &filter(1, false)).expect("a listener")).expect("sent");
                install(0, &pass, 0).expect("a filter of its own");
                // The number stays taken, by a thread whose memory has what the call had in its arguments.
                end.recv().expect("the end");
            });
            let listener = take.recv().expect("a listener");
            let proc = rustix::fs::open("/proc", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("/proc");
            let again = Arc::new(listener.try_clone().expect("dup"));
            let mut recorder = Recorder::new(listener, proc, log, 0, Vec::new());
            let notice = receive(&again).expect("a call").expect("it waits");
            recorder.reply(Arc::clone(&again), notice);
            let once = length();
            assert_ne!(once, 0, "what was called is written down");
            // What the caller's memory had is in this process's still.
            let program = 0x7fff_0000_0000_0006_u64.to_ne_bytes();
            let header = [1u64.to_ne_bytes(), (program.as_ptr().addr() as u64).to_ne_bytes()].concat();
            let [first, flags, _, rest @ ..] = notice.args;
            let [a, b, c] = rest;
            let over = Notice { args: [first, flags, header.as_ptr().addr() as u64, a, b, c], ..notice };
            for filling in [None, Some(1)] {
                recorder.forks().filling(filling.into_iter());
                recorder.reply(Arc::clone(&again), over);
                assert_eq!(length(), once, "a call that was over was written down");
            }
            done.send(()).expect("the end");
        });
        std::fs::remove_file(&path).expect("gone");
    }
}
