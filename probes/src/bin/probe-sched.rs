//! Scheduling: policy, nice, reset on fork, affinity, I/O priority, timer slack, oom_score_adj; threads differ: one that is
//! idle, and where that is allowed real-time ones, one with a deadline, one with a negative nice value.
#![allow(unsafe_code)]

use probe::{block_all, expect, expect_that, ok, read_file, sleep_ms};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

#[derive(Debug, PartialEq)]
struct Own {
    policy: i32,
    nice: i32,
    affinity: Vec<usize>,
    ioprio: i64,
    slack: i32,
}

fn affinity() -> Vec<usize> {
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        ok("sched_getaffinity", libc::sched_getaffinity(0, size_of_val(&set), &mut set));
        (0..1024).filter(|&cpu| libc::CPU_ISSET(cpu, &set)).collect()
    }
}

fn own() -> Own {
    unsafe {
        let slack = ok("slack", libc::prctl(libc::PR_GET_TIMERSLACK));
        let ioprio = ok("ioprio_get", libc::syscall(libc::SYS_ioprio_get, 1, 0));
        Own {
            policy: libc::sched_getscheduler(0),
            nice: libc::getpriority(libc::PRIO_PROCESS, 0),
            affinity: affinity(),
            ioprio,
            slack,
        }
    }
}

fn become_awkward(policy: i32, nice: i32, cpu: Option<usize>, ioprio: i32, slack: u64) {
    unsafe {
        let parameter = libc::sched_param { sched_priority: 0 };
        ok("sched_setscheduler", libc::sched_setscheduler(0, policy, &parameter));
        ok("setpriority", libc::setpriority(libc::PRIO_PROCESS, 0, nice));
        if let Some(cpu) = cpu {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            ok("sched_setaffinity", libc::sched_setaffinity(0, size_of_val(&set), &set));
        }
        ok("ioprio_set", libc::syscall(libc::SYS_ioprio_set, 1, 0, ioprio));
        ok("slack", libc::prctl(libc::PR_SET_TIMERSLACK, slack));
    }
    let now = own();
    expect(
        "awkward enough",
        (now.policy, now.nice, now.ioprio, now.slack),
        (policy, nice, i64::from(ioprio), slack as i32),
    );
}

/// `struct sched_attr` (sched_setattr(2)): size and policy, flags, nice and priority, runtime, deadline, period.
type Attributes = [u64; 6];

fn attributes() -> Attributes {
    let mut got = [0; 6];
    ok("sched_getattr", unsafe { libc::syscall(libc::SYS_sched_getattr, 0, got.as_mut_ptr(), size_of_val(&got), 0) });
    got
}

fn wanted(policy: i32, nice: i32, priority: u32, times: [u64; 3]) -> Attributes {
    let nice = u64::from(nice.cast_unsigned()) | u64::from(priority) << 32;
    [size_of::<Attributes>() as u64 | (policy as u64) << 32, 0, nice, times[0], times[1], times[2]]
}

/// A thread with these attributes; none where it may not have them.
fn scheduled(what: &'static str, wanted: Attributes, word: Arc<AtomicU32>) -> Option<JoinHandle<()>> {
    let set = Arc::new(AtomicU32::new(0));
    let thread = spawn({
        let set = set.clone();
        move || {
            block_all();
            if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, wanted.as_ptr(), 0) } != 0 {
                set.store(2, SeqCst);
                return;
            }
            // A nice value that does not count for this policy stays, too.
            let all = || (attributes(), unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) });
            let before = all();
            expect(what, before.0[0], wanted[0]);
            set.store(1, SeqCst);
            while word.load(SeqCst) == 1 {
                sleep_ms(3);
            }
            expect(what, all(), before);
        }
    });
    probe::wait_until(what, || set.load(SeqCst) != 0);
    (set.load(SeqCst) == 1).then_some(thread)
}

type State = (Own, String, Arc<AtomicU32>, Vec<JoinHandle<()>>);

fn setup() -> State {
    let word = Arc::new(AtomicU32::new(0));
    let last = affinity().last().copied();
    let thread = spawn({
        let word = word.clone();
        move || {
            block_all();
            // I/O class best effort, level 6
            become_awkward(libc::SCHED_OTHER, 11, last, 2 << 13 | 6, 7_654_321);
            let before = own();
            word.store(1, SeqCst);
            while word.load(SeqCst) == 1 {
                sleep_ms(3);
            }
            expect("scheduling of a thread", own(), before);
        }
    });
    probe::wait_until("thread", || word.load(SeqCst) == 1);
    const MS: u64 = 1_000_000;
    let idle = scheduled("an idle thread", wanted(libc::SCHED_IDLE, 0, 0, [0; 3]), word.clone());
    expect("everybody may be idle", idle.is_some(), true);
    let mut threads = vec![thread];
    threads.extend(idle);
    // What a tree of root's may be outside of a container it may not be in one with users of its own.
    let alone = std::env::var_os("PROBE_SET_NAMES").is_some();
    for (what, wanted) in [
        ("a thread of SCHED_FIFO", wanted(libc::SCHED_FIFO, 0, 3, [0; 3])),
        ("a thread of SCHED_RR", wanted(libc::SCHED_RR, 0, 2, [0; 3])),
        ("a thread of SCHED_DEADLINE", wanted(libc::SCHED_DEADLINE, 0, 0, [5 * MS, 90 * MS, 100 * MS])),
        ("a thread with a negative nice value", wanted(libc::SCHED_OTHER, -7, 0, [0; 3])),
    ] {
        threads.extend(alone.then(|| scheduled(what, wanted, word.clone())).flatten());
    }
    become_awkward(libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK, 7, None, 3 << 13, 123_456);
    // Whatever is set already may only grow without privilege.
    let score: i32 = read_file("/proc/self/oom_score_adj").trim().parse().unwrap_or(0);
    let score = std::fs::write("/proc/self/oom_score_adj", score.max(345).to_string());
    expect_that("oom_score_adj", score.is_ok(), &score);
    (own(), read_file("/proc/self/oom_score_adj"), word, threads)
}

fn check((before, score, word, threads): State) {
    expect("scheduling", own(), before);
    expect("oom_score_adj", read_file("/proc/self/oom_score_adj"), score);
    word.store(2, SeqCst);
    for thread in threads {
        expect("thread", thread.join().is_ok(), true);
    }
}

fn main() {
    probe::run(setup, check)
}
