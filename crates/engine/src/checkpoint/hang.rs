//! What a task has may have nobody who answers for it: a FUSE file system whose server stands still, perhaps with the same tree. Then the
//! kernel lets nobody go back who has asked, and all would stand still for ever.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use yendor_image::Writer;
use yendor_kinds::Cause;
use yendor_sys::patience::{Call, overdue};

use crate::error::{Error, Step};

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Says why to whoever waits, and with which code this process ends.
pub type Tell = fn(Error) -> u8;

/// Does some work. If a call of it does not return, this process says so and ends, so that the tasks run on.
pub(super) fn bounded<T>(writer: &Writer, tell: Tell, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, ended) = channel::<()>();
        scope.spawn(move || {
            let mut before = None;
            while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let now = overdue(LIMIT);
                // Seen twice: all of us may have been suspended meanwhile.
                let stands = now.filter(|now| before == Some(*now));
                before = now;
                if let Some((_, Call { name, pid })) = stands {
                    let of = if pid > 0 { format!("what process {pid} has") } else { "what a process has".into() };
                    let what = format!(
                        "{name} on {of} has not returned in {} s: a file system whose server does not answer, perhaps because it is \
                         stopped with the tree",
                        LIMIT.as_secs()
                    );
                    writer.give_up();
                    std::process::exit(tell(Error::new(Step::Collect, Cause::unsupported(what))).into());
                }
            }
        });
        let result = work();
        drop(done);
        result
    })
}
