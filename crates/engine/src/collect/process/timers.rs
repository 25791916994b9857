//! Timers of a process that is asked: what has rung before the questions, and while they were asked: timers run for stopped tasks, too.

use yendor_image::Bytes;
use yendor_kinds::Result;
use yendor_kinds::process::signal::Queue;
use yendor_kinds::process::{itimer, posix_timer};
use yendor_task::live::Borrowed;

use super::{Asking, More};

/// The timers whose signals wait, and how often each has expired since: see [`posix_timer`].
pub(super) fn count_overruns(borrowed: &mut Borrowed<'_>, asking: &Asking<'_>) -> Result<Vec<(i32, u64)>> {
    let Asking { texts, asked, about, queued: (shared, own), .. } = asking;
    let mut out = Vec::new();
    for waiting in posix_timer::Waiting::find(&texts.timers, &asked[0].inquiry, &about.timers, shared, own) {
        let index = waiting.thread.unwrap_or(0);
        let mut overruns = 0;
        let looked = borrowed.run(index, &waiting.look())?;
        if let Some(script) = waiting.take(&looked) {
            let taken = borrowed.run(index, &script)?;
            let (n, script) = waiting.put_back(&looked, &taken);
            overruns = n;
            borrowed.run(index, &script)?;
        }
        out.push((waiting.id, overruns));
    }
    Ok(out)
}

/// Notes what has rung since the queues were read, of timers that said afterwards that they are not armed: nothing else would tell. One that is
/// armed still, or rings again and again, comes back as it said, and rings then.
pub(super) fn rung(asking: &mut Asking<'_>, more: &mut More) -> Result<()> {
    let Asking { facts, texts, threads, asked, about, queued: (shared, own), .. } = asking;
    let leader = &asked[0].inquiry;
    let itimers = itimer::collect(leader, about.itimers)?;
    let timer = |info: &Bytes| {
        let (id, signal) = Queue::timer(info)?;
        texts.timers.iter().zip(&about.timers).find(|(t, _)| t.id == id && t.signal == signal)
    };
    let own = own.iter_mut().zip(threads.iter()).map(|(queue, thread)| (queue, thread.tid(), false));
    // Only timers of this sort ring for one thread.
    let own = own.filter(|_| !texts.timers.is_empty());
    for (queue, tid, for_all) in std::iter::once((shared, facts.pid, true)).chain(own) {
        for info in Queue::collect(tid, for_all)?.since(queue) {
            match timer(&info) {
                Some((timer, asked)) if asked.is_disarmed(leader) => {
                    if !posix_timer::has_wall_clock(timer.clock) {
                        queue.infos.push(info);
                    } else if more.waiting.iter().all(|(id, _)| *id != timer.id) {
                        more.waiting.push((timer.id, 0));
                    }
                }
                None if itimers.has_rung(&info) => queue.infos.push(info),
                _ => {}
            }
        }
    }
    Ok(())
}
