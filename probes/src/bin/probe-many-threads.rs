//! A process with many threads (first argument, 1000 unless told).
#![allow(unsafe_code)]

use probe::{block_all, expect, tid};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{Builder, JoinHandle};

thread_local!(static LOCAL: Cell<u64> = const { Cell::new(0) });

#[derive(Default)]
struct Gate {
    inside: Mutex<(BTreeSet<i32>, bool)>,
    open: Condvar,
}

fn work(gate: &Gate, number: u64) {
    block_all();
    LOCAL.set(probe::word(number));
    let before = tid();
    let mut inside = gate.inside.lock().unwrap();
    inside.0.insert(before);
    while !inside.1 {
        inside = gate.open.wait(inside).unwrap();
    }
    expect("tid", tid(), before);
    expect("thread local", LOCAL.get(), probe::word(number));
}

fn threads() -> BTreeSet<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|&one| one != tid()).collect()
}

fn setup() -> (Arc<Gate>, Vec<JoinHandle<()>>) {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1000);
    let gate = Arc::new(Gate::default());
    let all = (0..count)
        .map(|number| {
            let gate = gate.clone();
            let thread = Builder::new().stack_size(64 << 10).spawn(move || work(&gate, number));
            thread.unwrap_or_else(|error| probe::fail(&format!("thread {number}: {error}")))
        })
        .collect();
    probe::wait_until("threads", || gate.inside.lock().unwrap().0.len() as u64 == count);
    (gate, all)
}

fn check((gate, all): (Arc<Gate>, Vec<JoinHandle<()>>)) {
    let mut inside = gate.inside.lock().unwrap();
    expect("tids", threads(), inside.0.clone());
    inside.1 = true;
    drop(inside);
    gate.open.notify_all();
    for thread in all {
        expect("thread", thread.join().is_ok(), true);
    }
}

fn main() {
    probe::run(setup, check)
}
