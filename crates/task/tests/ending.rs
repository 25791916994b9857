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

/// Whether another thread of this process is traced.
fn is_traced(tid: i64) -> bool {
    let mut path = [0u8; 64];
    let mut text = [0u8; 1024];
    // SAFETY: plain system calls on buffers of their size.
    let text = unsafe {
        libc::snprintf(path.as_mut_ptr().cast(), path.len(), c"/proc/self/task/%ld/status".as_ptr(), tid);
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY);
        let got = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        &text[..usize::try_from(got).unwrap_or(0)]
    };
    let name = b"TracerPid:\t";
    let at = text.windows(name.len()).position(|window| window == name).map(|at| at + name.len());
    at.is_some_and(|at| text.get(at) != Some(&b'0'))
}

/// Executes a program as soon as the thread of that id is traced.
extern "C" fn executes(tid: *mut libc::c_void) -> libc::c_int {
    while !is_traced(tid.addr().cast_signed() as i64) {}
    let program = [c"sleep".as_ptr(), c"60".as_ptr(), std::ptr::null()];
    // SAFETY: ends with a null; ends in any case.
    unsafe {
        libc::execv(c"/bin/sleep".as_ptr(), program.as_ptr());
        libc::_exit(1)
    }
}

/// Whoever executes a program waits until all other threads are gone, which those that we trace are once we have heard of it; and we wait
/// for it, where we seize one meanwhile.
#[test]
fn one_of_many_threads_executes_a_program() {
    const FLAGS: i32 = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    const MANY: usize = 300;
    let mut executed = 0;
    for round in 0..30 {
        let all = Killed(vec![fork(|| {
            let mut stacks = vec![0u8; (MANY + 1) * 32 * 1024];
            let mut tids = Vec::new();
            for (i, stack) in stacks.chunks_mut(32 * 1024).enumerate() {
                // A later one each time.
                let (work, of): (extern "C" fn(_) -> _, _) =
                    if i == MANY { (executes, tids[round * 7]) } else { (sleeps_on, 0) };
                // SAFETY: the stack is nobody else's, and stays: this thread ends with all others only.
                tids.push(unsafe {
                    libc::clone(
                        work,
                        stack.as_mut_ptr_range().end.cast(),
                        FLAGS,
                        std::ptr::without_provenance_mut(usize::try_from(of).unwrap_or(0)),
                    )
                });
            }
            sleeps();
        })]);
        let pid = all.0[0];
        let threads = move || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        until("threads", || (threads() == MANY + 2).then_some(()));
        std::thread::sleep(Duration::from_millis(5));
        let (done, result) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            let proc = std::fs::File::open("/proc").expect("/proc");
            let begin = Instant::now();
            let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pid), pid);
            let took = begin.elapsed();
            let tree = tree.expect("freeze");
            let tids: Vec<i32> = tree.threads().map(|thread| thread.tid()).collect();
            let all_stopped = tree.threads().all(|thread| thread.regs().is_ok());
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("alive");
            assert!(all_stopped && tids.len() == threads() && tids[0] == pid, "{name} {tids:?}");
            assert!((tids.len(), name.as_str()) == (1, "sleep\n") || tids.len() > MANY, "{name} {tids:?}");
            drop(tree);
            assert!(done.send((took, tids.len())).is_ok(), "too late");
        });
        let (took, left) = result.recv_timeout(Duration::from_secs(20)).expect("it hangs, or has failed");
        worker.join().expect("no panic");
        assert!(took < Duration::from_secs(3), "round {round}: {took:?}");
        executed += u32::from(left == 1);
        // It may execute the program now, and its first thread be gone for a moment.
        until("it goes on", || matches!(stat(pid)[0].as_str(), "S" | "R").then_some(()));
    }
    assert!(executed > 0, "nobody was in time");
}
