//! Parent, children, grandchildren with groups and sessions of their own; zombies; stopped children.
#![allow(unsafe_code)]

use probe::{Board, child, expect, expect_that, ok, succeeded};

const GO: usize = 0;
const UP: usize = 1;
const CONTINUED: usize = 2;

fn ids() -> [i32; 4] {
    // SAFETY: no memory involved.
    unsafe { [libc::getpid(), libc::getppid(), libc::getpgrp(), libc::getsid(0)] }
}

/// A member of the tree: its ids must stay.
fn stays(board: Board, what: &str) {
    let before = ids();
    board.add(UP, 1);
    board.wait(GO, 1);
    expect(what, ids(), before);
}

fn state_of(pid: i32) -> String {
    let text = probe::read_file(&format!("/proc/{pid}/stat"));
    text.rsplit(") ").next().unwrap_or("?")[..1].to_owned()
}

struct State {
    board: Board,
    ids: [i32; 4],
    living: Vec<i32>,
    exited: i32,
    /// The signal, real-time ones too, and whom it has killed.
    killed: [(i32, i32); 5],
    stopped: [i32; 2],
}

fn setup() -> State {
    let board = Board::new();
    let session = child(|| {
        ok("setsid", unsafe { libc::setsid() });
        let grandchild = child(|| {
            ok("setpgid", unsafe { libc::setpgid(0, 0) });
            let follower = child(|| stays(board, "member of a group in a session"));
            stays(board, "leader of a group in a session");
            succeeded("member of a group", follower);
        });
        stays(board, "leader of a session");
        succeeded("leader of a group", grandchild);
    });
    let group = child(|| {
        ok("setpgid", unsafe { libc::setpgid(0, 0) });
        stays(board, "leader of a group");
    });
    let plain = child(|| stays(board, "plain child"));
    board.wait(UP, 5);
    // Who will not be looked into: how it ends the kernel tells nobody but its parent.
    let exited = child(|| unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::_exit(37)
    });
    let killed = [libc::SIGKILL, libc::SIGABRT, 34, 40, 64].map(|signal| {
        let killed = child(|| unsafe {
            // No core, whose handler would be told.
            if signal == libc::SIGABRT {
                libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
            }
            libc::kill(libc::getpid(), signal);
            libc::pause();
        });
        (signal, killed)
    });
    // The stop of the first one is known to the parent, that of the second one not yet.
    let stopped = [0, 1].map(|_| {
        child(|| {
            let before = ids();
            unsafe { libc::raise(libc::SIGSTOP) };
            expect("stopped child", ids(), before);
            board.add(CONTINUED, 1);
        })
    });
    let mut status = 0;
    ok("waitpid", unsafe { libc::waitpid(stopped[0], &mut status, libc::WUNTRACED) });
    let killed_ones = killed.map(|(_, pid)| (pid, "Z"));
    for (pid, state) in killed_ones.into_iter().chain([(exited, "Z"), (stopped[0], "T"), (stopped[1], "T")]) {
        probe::wait_until("state of a child", || state_of(pid) == state);
    }
    State { board, ids: ids(), living: vec![session, group, plain], exited, killed, stopped }
}

fn check(state: State) {
    let [pid, parent, group, session] = ids();
    expect("ids", [pid, group, session], [state.ids[0], state.ids[2], state.ids[3]]);
    // A tree that lived outside of a container has another parent now: the container's init.
    expect_that("parent", [state.ids[1], 1].contains(&parent), parent);
    for pid in state.stopped {
        expect("state of a stopped child", state_of(pid), "T".into());
    }
    expect("stopped children that went on", state.board.get(CONTINUED), 0);
    let mut status = 0;
    let report =
        |pid, status: &mut i32| ok("waitpid", unsafe { libc::waitpid(pid, status, libc::WUNTRACED | libc::WNOHANG) });
    expect("report of a stop that is known", report(state.stopped[0], &mut status), 0);
    expect("report of a stop that is news", report(state.stopped[1], &mut status), state.stopped[1]);
    expect_that(
        "status of a stopped child",
        libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGSTOP,
        status,
    );
    for pid in state.stopped {
        ok("kill", unsafe { libc::kill(pid, libc::SIGCONT) });
        succeeded("stopped child", pid);
    }
    expect("stopped children that went on", state.board.get(CONTINUED), 2);
    expect("state of a zombie", state_of(state.exited), "Z".into());
    expect("status of the child that exited", probe::reaped(state.exited), 37 << 8);
    for (signal, killed) in state.killed {
        expect("status of a child that was killed", probe::reaped(killed), signal);
    }
    state.board.set(GO, 1);
    for pid in state.living {
        succeeded("child", pid);
    }
    expect("children left", unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) }, -1);
}

fn main() {
    probe::run(setup, check)
}
