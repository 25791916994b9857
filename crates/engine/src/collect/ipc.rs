//! System V IPC of the processes of a frozen tree.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use yendor_image::Writer;
use yendor_kinds::namespace::ipc::{self, Mapped, Record, Scope, Wait};
use yendor_kinds::process::{self, State};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named, Result};

use super::nested;

/// Collects what belongs to a container, whose namespace the caller has joined.
///
/// # Errors
/// What cannot be captured, by name.
pub fn container(proc: &OwnedFd, snapshot: &Snapshot, writer: &Writer) -> Result<Record> {
    let residents = snapshot.processes.iter().filter(|process| nested::at_home(process, &snapshot.namespaces));
    ipc::collect(proc.as_fd(), writer, Scope::Whole, &mapped(residents)?)
}

/// Collects what belongs to any tree: everything of a namespace of its own, of the host's what it uses.
///
/// # Errors
/// What cannot be captured, by name: also a namespace that cannot be joined.
pub fn tree(proc: &OwnedFd, pids: &[i32], processes: &[process::Record], writer: &Writer) -> Result<Option<Record>> {
    let mapped = mapped(processes)?;
    let proc = proc.as_fd();
    // All tasks are in the same: see the module `namespace`.
    let Some(first) = pids.first() else { return Ok(None) };
    let theirs = namespace(proc, *first)?;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    if inode(&theirs)? == inode(&namespace(proc, own)?)? {
        let record = ipc::collect(proc, writer, Scope::Used(pids, &waits(processes)), &mapped)?;
        return Ok(Some(record).filter(|r| !r.is_empty()));
    }
    // In a thread, since there may be no way back.
    let there = || {
        rustix::thread::move_into_link_name_space(theirs.as_fd(), None)
            .named("setns", || "the ipc namespace of the tree".into())?;
        ipc::collect(proc, writer, Scope::Whole, &mapped)
    };
    let done = std::thread::scope(|scope| scope.spawn(there).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Some)
}

/// What threads wait for.
fn waits(processes: &[process::Record]) -> Vec<Wait> {
    let threads = processes.iter().filter_map(|p| match &p.state {
        State::Alive(alive) => Some(&alive.threads),
        _ => None,
    });
    threads.flatten().filter_map(|thread| Wait::of(&thread.regs)).collect()
}

fn inode(namespace: &OwnedFd) -> Result<u64> {
    Ok(rustix::fs::fstat(namespace).named("fstat", || "ns/ipc".into())?.st_ino)
}

fn namespace(proc: BorrowedFd<'_>, pid: i32) -> Result<OwnedFd> {
    let path = format!("{pid}/ns/ipc");
    let fd = openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    Ok(fd.named("openat", || format!("/proc/{path}"))?)
}

/// What processes have attached.
pub(super) fn mapped<'p>(
    processes: impl IntoIterator<Item = &'p process::Record>,
) -> std::result::Result<Mapped, Cause> {
    let mut mapped = Mapped::default();
    for process in processes {
        if let State::Alive(alive) = &process.state {
            mapped.add(&alive.memory.areas)?;
        }
    }
    Ok(mapped)
}
