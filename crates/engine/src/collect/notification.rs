//! Processes that message queues notify: each says with which value, and is notified as before.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use yendor_image::FdNum;
use yendor_kinds::file::mqueue::Notifying;
use yendor_kinds::file::{Descriptor, Gather, Record as File, regular};
use yendor_kinds::process::notification::{CALLS, Record, Signal, is_harmless, take, taken};
use yendor_kinds::process::{Restricted, signal};
use yendor_kinds::{Cause, Result};
use yendor_proc::status::Status;
use yendor_sys::mqueue::Nudge;
use yendor_task::live::Borrowed;

use super::watch::Watch;

/// A process is notified of what comes to a queue that it has open.
#[derive(Debug)]
pub struct Wanted {
    number: FdNum,
    signal: Option<i32>,
    /// A description of ours, where the value is to be learned.
    ours: Option<OwnedFd>,
}

fn refuse<T>(shown: &yendor_image::Bytes, why: &str) -> Result<T> {
    Err(Cause::unsupported(format!("{shown}: a POSIX message queue that notifies (mq_notify) {why}")))
}

/// Those of a process, which has these descriptors.
///
/// # Errors
/// One whose queue it does not have, or whose signal cannot be taken.
pub fn claim(gather: &mut Gather<'_>, pid: i32, held: &[Descriptor]) -> Result<Vec<Wanted>> {
    let (mine, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut gather.notifying).into_iter().partition(|one| one.pid == pid);
    gather.notifying = others;
    mine.iter().map(|one| wanted(gather, one, held)).collect()
}

fn wanted(gather: &Gather<'_>, one: &Notifying, held: &[Descriptor]) -> Result<Wanted> {
    let leads = |d: &&Descriptor| {
        let of = gather.entries.iter().find(|entry| entry.id == d.file).map(|entry| &entry.record);
        matches!(of, Some(File::Mqueue(file)) if file.queue == one.queue)
    };
    let Some(Descriptor { number, file, .. }) = held.iter().find(leads) else {
        return refuse(&one.shown, "a process that has not opened it");
    };
    let ours = match one.signal {
        None | Some(0) => None,
        Some(signal) if is_harmless(signal) => {
            let flags = OFlags::RDWR | OFlags::NONBLOCK;
            Some(regular::reopen(&gather.proc, gather.ours(*file)?.as_fd(), flags)?)
        }
        Some(signal) => return refuse(&one.shown, &format!("by signal {signal}")),
    };
    Ok(Wanted { number: *number, signal: one.signal, ours })
}

/// To be called when all processes were looked at.
///
/// # Errors
/// A process that is notified and is none of them.
pub fn all_claimed(gather: &Gather<'_>) -> Result<()> {
    let whom = |one: &Notifying| format!("process {}, which is not part of this", one.pid);
    gather.notifying.first().map_or(Ok(()), |one| refuse(&one.shown, &whom(one)))
}

/// Whether a process may be asked, with the signals that wait for it and its leader.
///
/// # Errors
/// What keeps its signal from coming, or from being told apart.
pub fn permitted(
    all: &[Wanted],
    watch: &Watch,
    (restricted, status): (&[Restricted], &[Status]),
    (shared, own): &(signal::Queue, Vec<signal::Queue>),
) -> Result<()> {
    let queue = |why: &str| Err(Cause::unsupported(format!("a POSIX message queue that notifies (mq_notify) {why}")));
    for signal in all.iter().filter(|one| one.ours.is_some()).filter_map(|one| one.signal) {
        if !restricted.first().is_some_and(|restricted| watch.may(restricted, &CALLS)) {
            return queue("a process whose seccomp filter may not let it tell with which value");
        }
        let waiting = shared.count(signal) + own.first().map_or(0, |own| own.count(signal));
        if waiting > 0 {
            return queue(&format!("by signal {signal}, while one waits already"));
        }
        if status.first().is_some_and(|status| status.sig_q.0 >= status.sig_q.1) {
            return queue("a process that can have no more signals (RLIMIT_SIGPENDING)");
        }
    }
    Ok(())
}

/// Learns the values from the borrowed process.
///
/// # Errors
/// A signal that does not come.
pub fn learn(borrowed: &mut Borrowed<'_>, all: &[Wanted]) -> Result<Vec<Record>> {
    let mut one = |Wanted { number, signal, ours }: &Wanted| {
        let signal = match (signal, ours) {
            (Some(signal), Some(ours)) => Some(value(borrowed, *number, *signal, ours)?),
            (signal, _) => signal.map(|number| Signal { number, value: 0 }),
        };
        Ok(Record { number: *number, signal })
    };
    all.iter().map(&mut one).collect()
}

fn value(borrowed: &mut Borrowed<'_>, number: FdNum, signal: i32, ours: &OwnedFd) -> Result<Signal> {
    let nudge = Nudge::new(ours.as_fd())?;
    let script = take(number, signal, borrowed.spare());
    // The process waits before there is a message: what follows needs nobody of us any more.
    let started = borrowed.start(0, &script)?;
    let sent = nudge.go();
    let done = borrowed.finish(0, &script, started)?;
    sent?;
    let mut left = [0; 128];
    borrowed.left(&mut left);
    taken(signal, &left, done.last().map_or(-1, |done| done.returned))
}
