//! A probe is started, checkpointed, killed, restored, and asked how it is.

use crate::account::Flavour;
use crate::binary::probe;
use crate::same::differences;
use crate::task::{Started, lead_a_session, wait_until};
use crate::yendor::{PATIENCE, Yendor};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What is checkpointed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A container that Yendor has started.
    Container,
    /// A tree of processes that it has not: `checkpoint --pid`.
    PidTree,
}

/// What probes want in their environment when they are alone in a container.
const ALONE: &[&str] = &["-e", "PROBE_SET_NAMES=1"];

/// Runs the probe, checkpoints it when it is ready, restores it, and asks it: it must find nothing changed.
#[track_caller]
pub fn probe_survives(name: &str, flavour: Flavour, via: Via) {
    // A tree wants the number that its terminal has on the host: one at a time.
    static TERMINALS: Mutex<()> = Mutex::new(());
    let _one = (via == Via::PidTree && name == "tty").then(|| TERMINALS.lock().unwrap_or_else(PoisonError::into_inner));
    // Trees on a disk, containers where all tests are: file systems differ in what they tell.
    let yendor = if via == Via::PidTree { Yendor::on_disk(flavour) } else { Yendor::new(flavour) };
    let Some(yendor) = yendor else { return };
    let image = yendor.path("image");
    let mut outlived = None;
    let mut log = match via {
        Via::Container => {
            let container = yendor.fresh(name);
            start(&yendor, name, &container);
            yendor.checkpoint(&container, &image);
            yendor.logs(&container)
        }
        Via::PidTree => {
            outlived = Some(checkpoint_tree(&yendor, name));
            String::new()
        }
    };
    let left = yendor.tasks_left();
    assert!(left.is_empty(), "tasks that outlive their checkpoint: {left:?}");
    let restored = yendor.fresh(name);
    yendor.restore(&image, &restored);
    let restored = match (yendor.flavour(), via) {
        (Flavour::User(_), Via::Container) => obeys_the_law(&yendor, name, &image, restored, &mut log),
        _ => restored,
    };
    yendor.kill(&restored, "USR1");
    let code = yendor.wait(&restored);
    let said = yendor.logs(&restored) + &fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert_eq!(code, 0, "exit code of probe {name}:\n{said}");
    assert!(said.lines().any(|line| line == "ok"), "probe {name} does not say ok:\n{said}");
    log.push_str(&said);
    assert_eq!(tick_gap(&log), None, "numbers are missing or twice");
    outlived.into_iter().for_each(remove_what_outlives);
}

/// What was just restored is checkpointed and restored once more, and both images say the same. The container that lives then.
fn obeys_the_law(yendor: &Yendor, name: &str, image: &Path, restored: String, log: &mut String) -> String {
    let again = yendor.path("again");
    yendor.checkpoint(&restored, &again);
    log.push_str(&yendor.logs(&restored));
    let differences = differences(name, image, &again);
    assert!(differences.is_empty(), "images of one state differ:\n{}", differences.join("\n"));
    let third = yendor.fresh(name);
    yendor.restore(&again, &third);
    third
}

fn start(yendor: &Yendor, name: &str, container: &str) {
    let program = probe(name);
    let program = program.to_str().expect("paths of tests are UTF-8");
    yendor.run_detached_with(container, ALONE, &[program]).exits(0);
    yendor.wait_for_log(container, "ready", PATIENCE);
}

/// Starts the probe as a session leader of no container, and checkpoints it when it is ready. The id that it had.
fn checkpoint_tree(yendor: &Yendor, name: &str) -> libc::pid_t {
    let mut command = yendor.program(&probe(name));
    // In a container it uses the container's /tmp; here nothing of it may stay.
    command.env("TMPDIR", yendor.path("tmp")).stdout(yendor.output("output")).stderr(yendor.output("errors"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let output = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || output().lines().any(|line| line == "ready")), "probe {name}: {}", output());
    yendor.checkpoint_pid(started.pid(), &yendor.path("image"));
    assert!(started.ended(PATIENCE).is_some(), "the tree of probe {name} outlives its checkpoint");
    started.pid()
}

/// What a probe that has ended leaves in the host's ipc namespace and in /dev/shm: named by its pid, which somebody else gets one
/// day. A restored tree has the host's /dev/shm.
fn remove_what_outlives(pid: libc::pid_t) {
    let _ = fs::remove_file(format!("/dev/shm/probe-named-{pid}"));
    for key in [0x5eed_0000 + pid, 0x7eed_0000 + pid] {
        // SAFETY: no pointers are taken. An error means that it has left none.
        unsafe {
            libc::shmctl(libc::shmget(key, 0, 0), libc::IPC_RMID, std::ptr::null_mut());
            libc::semctl(libc::semget(key, 0, 0), 0, libc::IPC_RMID);
            libc::msgctl(libc::msgget(key, 0), libc::IPC_RMID, std::ptr::null_mut());
        }
    }
}

/// Checkpoints and restores a probe `count` times; it checks itself and sets everything up anew in between.
#[track_caller]
pub fn generations(name: &str, flavour: Flavour, count: u32) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut container = yendor.fresh(name);
    start(&yendor, name, &container);
    for generation in 1..=count {
        let image = yendor.path(&format!("image-{generation}"));
        yendor.checkpoint(&container, &image);
        container = yendor.fresh(name);
        yendor.restore(&image, &container);
        if generation < count {
            yendor.kill(&container, "USR2");
            yendor.wait_for_log(&container, "ok", PATIENCE);
        }
    }
    yendor.kill(&container, "USR1");
    let code = yendor.wait(&container);
    assert_eq!(code, 0, "exit code of probe {name} in generation {count}:\n{}", yendor.logs(&container));
}

/// The first two `tick N` lines of a ticker's log that do not follow each other.
pub fn tick_gap(log: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = log.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect();
    ticks.windows(2).map(|pair| (pair[0], pair[1])).find(|(first, second)| first + 1 != *second)
}

#[cfg(test)]
mod tests {
    use super::tick_gap;

    #[test]
    fn a_gap_is_found() {
        assert_eq!(tick_gap("ready\ntick 1\ntick 2\nok\ntick 3\n"), None);
        assert_eq!(tick_gap("tick 1\ntick 3\n"), Some((1, 3)));
        assert_eq!(tick_gap("tick 7\ntick 7\n"), Some((7, 7)));
        assert_eq!(tick_gap(""), None);
    }
}
