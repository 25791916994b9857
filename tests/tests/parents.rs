//! Whose children tasks are: where somebody adopted them.

use std::process::Stdio;

use yendor_tests::{Flavour, PATIENCE, Started, Yendor, lead_a_session, wait_until};

/// The leader of a session that pid 1 did not make; a grandchild of that is pid 1's, in the same session.
const PROGRAM: &str = r"
import os, time
def wait():
    while True: time.sleep(0.05)
if os.fork(): wait()
os.setsid()
if os.fork():
    os.wait()
    wait()
if os.fork() == 0:
    while os.getppid() != 1: time.sleep(0.01)
    print(os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), flush=True)
    print('ready', flush=True)
    wait()
os._exit(0)
";

/// It was refused by the restore, when the program was gone.
fn of_a_daemon_come_back(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, restored, image) = (yendor.fresh("parents"), yendor.fresh("restored"), yendor.path("image"));
    yendor.run_detached(&name, &["python3", "-c", PROGRAM]);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let said = yendor.logs(&name);
    let ids: Vec<&str> = said.split_whitespace().take(4).collect();
    yendor.checkpoint(&name, &image);
    yendor.restore(&image, &restored);
    let stat = yendor.call(&["exec", &restored, "--", "cat", &format!("/proc/{}/stat", ids[0])]).exits(0).stdout;
    let now: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').skip(1).take(3).collect();
    assert_eq!(now, ids[1..], "{stat}");
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

/// An orphan's adopter that adopts no more, so that the leader of the orphan's session came to pid 1 later: no births lead there.
const APART: &str = r"
import ctypes, os, time
adopt = lambda yes: ctypes.CDLL(None).prctl(36, yes, 0, 0, 0)
top = os.getpid()
adopt(1)
come, go = os.pipe()
between = os.fork()
def wait():
    while True: time.sleep(0.05)
if between:
    os.close(go)
    assert os.read(come, 1) == b'c'
    adopt(0)
    os.kill(between, 9)
    os.wait()
    print('ready', flush=True)
    wait()
if os.fork(): wait()
os.setsid()
if os.fork():
    os.wait()
    wait()
if os.fork() == 0:
    while os.getppid() != top: time.sleep(0.01)
    os.write(go, b'c')
    wait()
os._exit(0)
";

/// It was refused by the restore.
fn that_cannot_come_back_refuse_the_checkpoint(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let (name, image) = (yendor.fresh("apart"), yendor.path("image"));
    yendor.run_detached(&name, &["python3", "-c", APART]);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let said = yendor.call(&["checkpoint", &name, "-o", image.to_str().expect("UTF-8")]).exits(3);
    assert!(said.stderr.contains("whose leader has another parent"), "{}", said.stderr);
    assert!(!image.exists());
    yendor.call(&["rm", "-f", &name]).exits(0);
}

/// A shell that leads no session has a pipeline whose first process, the leader of the group, has ended. Its restore waited for one of others.
fn of_a_pipeline_come_back(flavour: Flavour) {
    const SHELL: &str = "set -m; true | sleep 1000 & sleep 0.3; echo $$ ready; while :; do sleep 0.1; done";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut command = yendor.program("/bin/bash".as_ref());
    command.args(["-c", "bash -c \"$1\"; true", "bash", SHELL]);
    lead_a_session(&mut command);
    let _started =
        Started::new(command.stdin(Stdio::null()).stdout(yendor.output("said")).stderr(yendor.output("errors")));
    let said = || std::fs::read_to_string(yendor.path("said")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let shell = said().split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid");
    let (image, restored) = (yendor.path("image"), yendor.fresh("restored"));
    yendor.checkpoint_pid(shell, &image);
    yendor.restore(&image, &restored);
    assert!(yendor.call(&["ps"]).exits(0).stdout.contains("running"));
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

yendor_tests::flavours! { of_a_pipeline_come_back of_a_daemon_come_back that_cannot_come_back_refuse_the_checkpoint }
