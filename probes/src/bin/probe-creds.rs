//! Credentials: ids, groups, capability sets, securebits, no_new_privs, dumpable, keepcaps.
//!
//! Several children take on as awkward credentials as they are permitted to.
#![allow(unsafe_code)]

use probe::{Board, caps, child, expect, ok, status, succeeded};

const GO: usize = 0;
const UP: usize = 1;
const SETPCAP: i32 = 8;
const SYS_PTRACE: u64 = 19;

fn snapshot() -> Vec<String> {
    let names = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    let mut all: Vec<String> = names.iter().map(|name| format!("{name} {}", status(name))).collect();
    for (name, option) in [
        ("dumpable", libc::PR_GET_DUMPABLE),
        ("keepcaps", libc::PR_GET_KEEPCAPS),
        ("securebits", libc::PR_GET_SECUREBITS),
    ] {
        all.push(format!("{name} {}", unsafe { libc::prctl(option, 0, 0, 0, 0) }));
    }
    all
}

fn stays(board: Board) {
    let before = snapshot();
    board.add(UP, 1);
    board.wait(GO, 1);
    for (now, before) in snapshot().into_iter().zip(before) {
        expect("credential", now, before);
    }
}

fn groups() {
    let wanted = [1_u32, 5, 7, 65_534];
    unsafe { libc::setgroups(4, wanted.as_ptr()) };
}

/// Real, effective, saved and file system ids all different, and one capability kept across.
fn ids() {
    groups();
    unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1);
        if libc::setresgid(11, 12, 13) == 0 {
            libc::setfsgid(14);
        }
        if libc::setresuid(21, 22, 23) == 0 {
            libc::setfsuid(24);
        }
        // Without SYS_PTRACE nobody of the same user could checkpoint it otherwise.
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
    }
}

#[repr(C)]
struct Sets([[u32; 3]; 2]);

/// Effective, permitted and inheritable sets that all differ; one capability is inheritable, and in the bounding set no more.
fn capabilities() {
    let header = [0x2008_0522_u32, 0];
    let mut sets = Sets([[0; 3]; 2]);
    unsafe {
        ok("capget", libc::syscall(libc::SYS_capget, &header, &mut sets));
        let mine = sets.0[0][1];
        sets.0[0][2] = mine & 0x0100_04f3;
        ok("capset", libc::syscall(libc::SYS_capset, &header, &sets));
        for number in [2, 3, 24] {
            libc::prctl(libc::PR_CAPBSET_DROP, number);
        }
        sets.0[0] = [mine & 0x0000_05ff, mine & 0x0000_5fff, mine & 0x0100_04f3];
        sets.0[1] = [0, 0, 0];
        ok("capset", libc::syscall(libc::SYS_capset, &header, &sets));
        for number in [4, 5] {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0);
        }
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
    }
}

fn securebits() {
    // NOROOT and its lock, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE
    if caps() & (1 << SETPCAP) != 0 {
        ok("securebits", unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 0x47) });
    }
}

fn no_new_privileges() {
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    ok("prctl", unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1) });
}

fn undumpable() {
    if caps() & (1 << SYS_PTRACE) != 0 {
        ok("prctl", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) });
    }
}

const VARIANTS: [fn(); 6] = [groups, ids, capabilities, securebits, no_new_privileges, undumpable];

fn setup() -> (Board, Vec<String>, Vec<i32>) {
    let board = Board::new();
    let children = VARIANTS.map(|variant| {
        child(|| {
            variant();
            stays(board);
        })
    });
    board.wait(UP, VARIANTS.len() as u64);
    (board, snapshot(), children.to_vec())
}

fn check((board, before, children): (Board, Vec<String>, Vec<i32>)) {
    expect("credentials of the parent", snapshot(), before);
    board.set(GO, 1);
    for (number, pid) in children.into_iter().enumerate() {
        succeeded(&format!("variant {number}"), pid);
    }
}

fn main() {
    probe::run(setup, check)
}
