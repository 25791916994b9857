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
    bounded_by(LIMIT, writer, tell, work)
}

fn bounded_by<T>(limit: Duration, writer: &Writer, tell: Tell, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, ended) = channel::<()>();
        scope.spawn(move || {
            let mut before = None;
            while ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let now = overdue(limit);
                // Seen twice: all of us may have been suspended meanwhile.
                let stands = now.filter(|now| before == Some(*now));
                before = now;
                if let Some((_, Call { name, pid })) = stands {
                    let of = if pid > 0 { format!("memory or a file of process {pid}") } else { "memory or a file of a process".into() };
                    let what = format!(
                        "{name} on {of} has not returned in {} s: a file system whose server does not answer, perhaps because it is \
                         stopped with the tree",
                        limit.as_secs()
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use yendor_sys::patience;

    use super::*;

    const PLACE: &str = "YENDOR_TEST_HANG";

    /// What the test below looks at, in a process of its own, because it ends that.
    #[test]
    fn hangs_where_the_other_test_says() {
        let Some(place) = std::env::var_os(PLACE) else { return };
        let writer = Writer::create(&Path::new(&place).join("image")).unwrap();
        let tell: Tell = |e| {
            eprintln!("said: {e}");
            e.exit_code()
        };
        bounded_by(Duration::from_secs(1), &writer, tell, || {
            patience::with("process_vm_readv", 77, || std::thread::sleep(Duration::from_secs(60)));
        });
        panic!("it returned");
    }

    #[test]
    fn who_is_not_answered_says_so_and_ends_and_leaves_no_image() {
        let place = std::env::temp_dir().join(format!("yendor-hang-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let begin = Instant::now();
        let mut hung = Command::new(std::env::current_exe().unwrap());
        hung.args(["--exact", "checkpoint::hang::tests::hangs_where_the_other_test_says", "--nocapture"])
            .env(PLACE, &place);
        let done = hung.stdin(Stdio::null()).output().unwrap();
        let left: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        std::fs::remove_dir_all(&place).unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), done.status.signal()), (Some(3), None), "{said}");
        assert!(said.contains("process_vm_readv on memory or a file of process 77 has not returned in 1 s"), "{said}");
        assert!(left.is_empty(), "{left:?}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
