//! Seccomp filters of a tree that Yendor did not start: nobody recorded them, but the kernel tells root of the host.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use yendor_kinds::process::seccomp::Filter;
use yendor_kinds::{Cause, Result};
use yendor_policy::seccomp;
use yendor_proc::status::{self, Status};
use yendor_sys::{Errno, SysError, ptrace};
use yendor_task::tree::{FrozenTree, read_proc};

use super::Facts;

/// What the kernel told.
#[derive(Debug, Default)]
pub struct Told {
    /// Every filter once.
    table: Vec<Filter>,
    /// Numbers in the table by thread, oldest first; threads without filters are not here.
    of: BTreeMap<i32, Vec<u32>>,
}

impl Told {
    /// Asks about all threads that have filters.
    ///
    /// # Errors
    /// `Unsupported` where the kernel does not tell the caller, and for a filter with a supervisor.
    pub fn ask(tree: &FrozenTree, order: &[Facts], proc: &OwnedFd) -> Result<Told> {
        let mut told = Told::default();
        let known: BTreeMap<i32, &Status> = order.iter().map(|facts| (facts.pid, &facts.status)).collect();
        for tid in tree.processes.values().flatten().map(yendor_task::Stopped::tid) {
            let read;
            let status = match known.get(&tid) {
                Some(status) => *status,
                None => {
                    read = status::parse(&read_proc(proc.as_fd(), &format!("{tid}/status"))?)?;
                    &read
                }
            };
            let count = status.seccomp_filters.unwrap_or(0);
            if status.seccomp == Some(2) && count > 0 {
                told.add(tid, u64::from(count))?;
            }
        }
        Ok(told)
    }

    fn add(&mut self, tid: i32, count: u64) -> Result<()> {
        let mut numbers = Vec::new();
        for index in (0..count).rev() {
            let filter = read(tid, index)?;
            let known = self.table.iter().position(|f| *f == filter);
            let number = known.unwrap_or_else(|| {
                self.table.push(filter);
                self.table.len() - 1
            });
            numbers.push(u32::try_from(number).unwrap_or(u32::MAX));
        }
        self.of.insert(tid, numbers);
        Ok(())
    }

    /// The filters of a thread, by number.
    pub fn of(&self, tid: i32) -> Option<&[u32]> {
        self.of.get(&tid).map(Vec::as_slice)
    }

    /// A filter by its number.
    pub fn filter(&self, number: u32) -> Option<&Filter> {
        self.table.get(usize::try_from(number).ok()?)
    }
}

/// One filter of a thread; 0 is the last one installed.
fn read(tid: i32, index: u64) -> Result<Filter> {
    let program = ptrace::seccomp_filter(tid, index).map_err(|e| untold(tid, e))?;
    let gone = || Cause::passing(format!("thread {tid} has fewer seccomp filters than it had"));
    let program = program.ok_or_else(gone)?;
    let flags = ptrace::seccomp_flags(tid, index).map_err(|e| untold(tid, e))?;
    let read = seccomp::program(&program).ok_or_else(|| Cause::unsupported("a seccomp filter that is none"))?;
    if seccomp::may_notify(&read) {
        let what =
            format!("a seccomp filter of thread {tid} that may leave calls to a supervisor (SECCOMP_RET_USER_NOTIF)");
        return Err(Cause::unsupported(what));
    }
    Ok(Filter { flags, program: program.into() })
}

fn untold(tid: i32, error: SysError) -> Cause {
    let why = match error.errno {
        Errno::ACCESS => "only root of the host who has no filter himself is told which",
        // EMEDIUMTYPE
        errno if errno.raw_os_error() == 124 => "the kernel has not kept which",
        Errno::IO | Errno::INVAL => "this kernel does not tell which",
        _ => return error.into(),
    };
    Cause::unsupported(format!(
        "seccomp filters of thread {tid} that were not recorded when they were installed: {why} ({error})"
    ))
}
