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

/// The kernel takes a while to undo each of them.
fn hold_watches() {
    for _ in 0..30 {
        // SAFETY: plain system calls.
        unsafe {
            let fd = libc::inotify_init1(0);
            if libc::inotify_add_watch(fd, c"/".as_ptr(), libc::IN_OPEN) < 0 {
                libc::_exit(1);
            }
        }
    }
}

/// Ends with 42, but not at once.
fn ends_slowly() {
    hold_watches();
    // SAFETY: always allowed.
    unsafe { libc::_exit(42) };
}

/// Runs on as a thread of its own process, with no descriptors of its first.
extern "C" fn sleeps_on(_: *mut libc::c_void) -> libc::c_int {
    sleeps();
    0
}

/// The first thread ends, slowly; another does not.
fn ends_alone() {
    const FLAGS: i32 = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let stack = vec![0u8; 64 * 1024].leak();
    // SAFETY: plain system calls; the stack is nobody else's, and stays.
    unsafe {
        if libc::clone(sleeps_on, stack.as_mut_ptr_range().end.cast(), FLAGS, std::ptr::null_mut()) < 0 {
            libc::_exit(1);
        }
        hold_watches();
        libc::syscall(libc::SYS_exit, 0);
    }
}

/// Cannot be stopped: its child neither ends nor executes a program.
fn waits_in_vfork() {
    // SAFETY: plain system calls; the child has a memory of its own.
    unsafe {
        libc::alarm(60);
        if libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) == 0 {
            sleeps();
        }
        libc::_exit(0);
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

/// Waits until it has begun to end.
fn is_ending(pid: i32) {
    const PF_EXITING: u64 = 4;
    until("the end begins", || (stat(pid)[6].parse::<u64>().expect("flags") & PF_EXITING != 0).then_some(()));
    assert_ne!(stat(pid)[0], "Z", "it ends too fast for this test");
}

/// An adopter has a child, that has a child, which is ending and leaves another child behind.
fn is_frozen_whole(top: fn(i32, i32) -> Top) {
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
    is_ending(ending);
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

/// Nobody tells its tracer that the first thread has ended, as long as there are others.
#[test]
fn who_ends_alone_is_found_at_once() {
    let all = Killed(vec![fork(ends_alone)]);
    let pid = all.0[0];
    let proc = std::fs::File::open("/proc").expect("/proc");
    is_ending(pid);
    let begin = Instant::now();
    let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pid), pid).expect("freeze");
    assert_eq!((&tree.headless[..], tree.processes.len()), (&[pid][..], 0));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

/// Who does not stop costs ten seconds, and half of one for all the others.
#[test]
fn many_that_do_not_stop() {
    let root = fork(|| {
        for _ in 0..10 {
            fork(waits_in_vfork);
        }
        sleeps();
    });
    let mut all = Killed(vec![root]);
    let proc = std::fs::File::open("/proc").expect("/proc");
    let below = |pid| children(proc.as_fd(), pid).expect("children");
    all.0.extend(until("ten children", || Some(below(root)).filter(|c| c.len() == 10)));
    for i in 1..=10 {
        let pid = all.0[i];
        let own = until("a child of its", || below(pid).first().copied());
        all.0.push(own);
    }
    let begin = Instant::now();
    let error = FrozenTree::freeze(proc.as_fd(), Top::Process(root), root).expect_err("a tree that cannot be stopped");
    let took = begin.elapsed();
    assert_eq!(error.errno, rustix::io::Errno::TIMEDOUT);
    assert!(took > Duration::from_secs(10) && took < Duration::from_millis(12_500), "{took:?}");
}
