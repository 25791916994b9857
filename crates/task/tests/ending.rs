//! Freezing trees whose processes are just about to end.
#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use yendor_task::tree::{FrozenTree, Top, children};

/// What a child of ours does, and ends.
fn fork(work: impl FnOnce()) -> i32 {
    // SAFETY: the child makes only plain system calls.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        work();
        // SAFETY: always allowed.
        unsafe { libc::_exit(0) }
    }
    assert!(pid > 0, "fork");
    pid
}

fn adopts_orphans() {
    // SAFETY: a plain system call.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

fn sleeps() {
    // SAFETY: plain system calls.
    unsafe {
        libc::alarm(60);
        while libc::pause() < 0 {}
    }
}

/// Ends with 42, but not at once: the kernel takes a while for each of its watches.
fn ends_slowly() {
    // SAFETY: plain system calls.
    unsafe {
        for _ in 0..30 {
            let fd = libc::inotify_init1(0);
            if libc::inotify_add_watch(fd, c"/".as_ptr(), libc::IN_OPEN) < 0 {
                libc::_exit(1);
            }
        }
        libc::_exit(42);
    }
}

struct Killed(Vec<i32>);

impl Drop for Killed {
    fn drop(&mut self) {
        for pid in &self.0 {
            // SAFETY: processes that this test started.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(self.0[0], std::ptr::null_mut(), 0) };
    }
}

fn until<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(got) = holds() {
            return got;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The words of /proc/PID/stat from the state on.
fn stat(pid: i32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process that nobody has waited for");
    text.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

/// An adopter has a child, that has a child, which is ending and leaves another child behind.
fn is_frozen_whole(top: fn(i32, i32) -> Top) {
    const PF_EXITING: u64 = 4;
    let below_adopter = matches!(top(0, 0), Top::Below(_));
    let adopter = fork(|| {
        if below_adopter {
            adopts_orphans();
        }
        fork(|| {
            if !below_adopter {
                adopts_orphans();
            }
            fork(|| {
                fork(sleeps);
                ends_slowly();
            });
            sleeps();
        });
        sleeps();
    });
    let mut all = Killed(vec![adopter]);
    let proc = std::fs::File::open("/proc").expect("/proc");
    for _ in 0..3 {
        let parent = *all.0.last().expect("the adopter");
        let child = until("a child", || children(proc.as_fd(), parent).expect("children").first().copied());
        all.0.push(child);
    }
    let [_, root, ending, orphan] = all.0[..] else { unreachable!("four of them") };
    until("the end begins", || (stat(ending)[6].parse::<u64>().expect("flags") & PF_EXITING != 0).then_some(()));
    assert_ne!(stat(ending)[0], "Z", "it ends too fast for this test");
    let tree = FrozenTree::freeze(proc.as_fd(), top(adopter, root), root).expect("freeze");
    assert_eq!(tree.zombies, [ending], "its parent has yet to wait for it");
    assert_eq!(stat(ending).last().map(String::as_str), Some("10752"), "42, as wait(2) tells it");
    let mut wanted = vec![root, orphan];
    wanted.sort_unstable();
    assert_eq!(tree.processes.keys().copied().collect::<Vec<_>>(), wanted, "{all:?}", all = all.0);
}

#[test]
fn who_is_about_to_end_and_whom_it_leaves_to_the_root() {
    is_frozen_whole(|_, root| Top::Process(root));
}

#[test]
fn who_is_about_to_end_and_whom_it_leaves_to_one_that_runs_on() {
    is_frozen_whole(|adopter, _| Top::Below(adopter));
}
