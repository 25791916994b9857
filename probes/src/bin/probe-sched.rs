//! Scheduling: policy, nice, reset on fork, affinity, I/O priority, timer slack, oom_score_adj; two threads differ.
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

type State = (Own, String, Arc<AtomicU32>, JoinHandle<()>);

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
    become_awkward(libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK, 7, None, 3 << 13, 123_456);
    // Whatever is set already may only grow without privilege.
    let score: i32 = read_file("/proc/self/oom_score_adj").trim().parse().unwrap_or(0);
    let score = std::fs::write("/proc/self/oom_score_adj", score.max(345).to_string());
    expect_that("oom_score_adj", score.is_ok(), &score);
    (own(), read_file("/proc/self/oom_score_adj"), word, thread)
}

fn check((before, score, word, thread): State) {
    expect("scheduling", own(), before);
    expect("oom_score_adj", read_file("/proc/self/oom_score_adj"), score);
    word.store(2, SeqCst);
    expect("thread", thread.join().is_ok(), true);
}

fn main() {
    probe::run(setup, check)
}
