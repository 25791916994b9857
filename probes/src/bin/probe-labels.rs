//! Security labels of a process and its threads, as each sees its own. They must be the same afterwards unless
//! `PROBE_LABELS=show`: then they are told, line by line. `PROBE_LABELS_THREAD=FILE TEXT` is what one thread writes
//! to its own, `PROBE_NO_NEW_PRIVS` sets what it says. With `PROBE_LABELS_CHILD` each thread has a child.
#![allow(unsafe_code)]

use probe::{expect, say};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Of every module; what is not there is not told.
const FILES: &[&str] =
    &["current", "exec", "fscreate", "keycreate", "sockcreate", "apparmor/current", "apparmor/exec", "smack/current"];

/// Lines `FILE LABEL`.
fn labels() -> Vec<String> {
    let line = |file: &&str| {
        let text = std::fs::read(format!("/proc/thread-self/attr/{file}")).ok()?;
        let text = String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_owned();
        (!text.is_empty()).then(|| format!("{file} {text}"))
    };
    FILES.iter().filter_map(line).collect()
}

struct Thread {
    before: Vec<String>,
    ask: Sender<()>,
    handle: JoinHandle<Vec<String>>,
}

/// A thread, with this label if it is given one.
fn thread(label: Option<String>) -> Thread {
    let (ask, asked): (Sender<()>, Receiver<()>) = channel();
    let (tell, told) = channel();
    let work = move || {
        probe::block_all();
        if let Some(label) = label {
            let (file, text) = label.split_once(' ').unwrap_or((&label, ""));
            let written = std::fs::write(format!("/proc/thread-self/attr/{file}"), text);
            expect("label of a thread", written.map_err(|error| error.to_string()), Ok(()));
        }
        if std::env::var_os("PROBE_LABELS_CHILD").is_some() {
            bear();
        }
        // Nobody else sends.
        let _ = tell.send(labels());
        let _ = asked.recv();
        labels()
    };
    let handle = std::thread::spawn(work);
    Thread { before: told.recv().unwrap_or_default(), ask, handle }
}

/// A child that ends with this thread.
fn bear() {
    // SAFETY: the child makes system calls only.
    unsafe {
        if probe::ok("fork", libc::fork()) == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            loop {
                libc::pause();
            }
        }
    }
}

fn compare(who: &str, before: &[String], after: &[String]) {
    if std::env::var("PROBE_LABELS").is_ok_and(|how| how == "show") {
        after.iter().for_each(|line| say(&format!("{who} {line}\n")));
    } else {
        expect(&format!("labels of the {who}"), after, before);
    }
}

fn setup() -> (Vec<String>, Vec<Thread>) {
    if std::env::var_os("PROBE_NO_NEW_PRIVS").is_some() {
        // SAFETY: plain numbers.
        probe::ok("prctl", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    }
    let count: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let mut label = std::env::var("PROBE_LABELS_THREAD").ok();
    (labels(), (0..count).map(|_| thread(label.take())).collect())
}

fn check((before, threads): (Vec<String>, Vec<Thread>)) {
    compare("leader", &before, &labels());
    for Thread { before, ask, handle } in threads {
        let _ = ask.send(());
        let after = handle.join().unwrap_or_else(|_| probe::fail("a thread panicked"));
        compare("thread", &before, &after);
    }
}

fn main() {
    probe::run(setup, check)
}
