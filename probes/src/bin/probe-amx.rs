//! Large registers (AMX): eight tiles of awkward shapes in two threads and a child, and the permission to use them in a thread
//! that has not yet, and in one that is born later. On a processor without them nobody has permission, and that stays so.
#![allow(unsafe_code)]

use probe::{Board, block_all, child, expect, succeeded, word};
use std::arch::asm;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

const TILES: u64 = 18;
const GO: usize = 0;
const UP: usize = 1;
static RELEASE: AtomicBool = AtomicBool::new(false);

/// Palette and shapes (Intel SDM, volume 1, 18.2).
#[repr(C, align(64))]
struct Shapes([u8; 64]);

/// The bytes of eight tiles, 64 bytes for a row.
#[repr(C, align(64))]
struct Content([[u8; 1024]; 8]);

fn arch(code: u64, argument: u64) -> i64 {
    unsafe { libc::syscall(libc::SYS_arch_prctl, code, argument) }
}

/// What the process may use: itself and virtual machines of it.
fn permission() -> [u64; 2] {
    [0x1022, 0x1024].map(|get| {
        let mut mask = 0_u64;
        arch(get, (&raw mut mask).cast::<u8>() as u64);
        mask
    })
}

/// Tile n has n+1 rows, and columns of 4 (n+1) bytes but for the last, which is as wide as can be.
fn shapes() -> Shapes {
    let mut shapes = [0; 64];
    shapes[0] = 1;
    for n in 0..8_u8 {
        shapes[16 + 2 * usize::from(n)] = if n == 7 { 64 } else { 4 * (n + 1) };
        shapes[48 + usize::from(n)] = if n == 7 { 16 } else { n + 1 };
    }
    Shapes(shapes)
}

fn content(seed: u64) -> Content {
    let mut content = Content([[0; 1024]; 8]);
    let Shapes(shapes) = shapes();
    for n in 0..8 {
        for row in 0..usize::from(shapes[48 + n]) {
            for column in 0..usize::from(shapes[16 + 2 * n]) {
                let at = 64 * row + column;
                content.0[n][at] = word(seed + (1024 * n + at) as u64).to_le_bytes()[3];
            }
        }
    }
    content
}

fn load(seed: u64) {
    let (shapes, content) = (shapes(), content(seed));
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const shapes);
        asm!(
            "tileloadd tmm0, [{at} + {row}]", "add {at}, 1024", "tileloadd tmm1, [{at} + {row}]", "add {at}, 1024",
            "tileloadd tmm2, [{at} + {row}]", "add {at}, 1024", "tileloadd tmm3, [{at} + {row}]", "add {at}, 1024",
            "tileloadd tmm4, [{at} + {row}]", "add {at}, 1024", "tileloadd tmm5, [{at} + {row}]", "add {at}, 1024",
            "tileloadd tmm6, [{at} + {row}]", "add {at}, 1024", "tileloadd tmm7, [{at} + {row}]",
            at = inout(reg) &raw const content => _, row = in(reg) 64_u64,
        );
    }
}

/// Everything in the tiles, and their shapes, are still those of `load`.
fn there(who: &str, seed: u64) {
    let (mut now, mut shape) = (Content([[0; 1024]; 8]), Shapes([0xff; 64]));
    unsafe {
        asm!("sttilecfg [{}]", in(reg) &raw mut shape);
        expect(&format!("{who}: shapes"), &shape.0[..], &shapes().0[..]);
        asm!(
            "tilestored [{at} + {row}], tmm0", "add {at}, 1024", "tilestored [{at} + {row}], tmm1", "add {at}, 1024",
            "tilestored [{at} + {row}], tmm2", "add {at}, 1024", "tilestored [{at} + {row}], tmm3", "add {at}, 1024",
            "tilestored [{at} + {row}], tmm4", "add {at}, 1024", "tilestored [{at} + {row}], tmm5", "add {at}, 1024",
            "tilestored [{at} + {row}], tmm6", "add {at}, 1024", "tilestored [{at} + {row}], tmm7",
            at = inout(reg) &raw mut now => _, row = in(reg) 64_u64,
        );
    }
    for (n, (now, before)) in now.0.iter().zip(&content(seed).0).enumerate() {
        expect(&format!("{who}: tile {n}"), &now[..], &before[..]);
    }
    load(seed + 1);
}

/// A thread that has tiles loaded; one that will.
fn thread(who: &'static str, seed: u64, loads: bool) -> JoinHandle<()> {
    let up = std::sync::Arc::new(AtomicBool::new(false));
    let own = up.clone();
    let thread = spawn(move || {
        block_all();
        if loads {
            load(seed);
        }
        own.store(true, SeqCst);
        while !RELEASE.load(SeqCst) {
            if loads { std::hint::spin_loop() } else { probe::sleep_ms(2) }
        }
        if !loads {
            load(seed);
        }
        there(who, seed);
    });
    probe::wait_until("thread", || up.load(SeqCst));
    thread
}

struct Held {
    permission: [u64; 2],
    board: Board,
    tasks: Option<(Vec<JoinHandle<()>>, i32, i32)>,
}

fn setup() -> Held {
    RELEASE.store(false, SeqCst);
    let board = Board::new();
    let without = child(|| {
        let own = permission();
        board.set(UP, 1);
        board.wait(GO, 1);
        expect("a child from before", permission(), own);
    });
    board.wait(UP, 1);
    let tasks = (arch(0x1023, TILES) == 0).then(|| {
        // For virtual machines it takes KVM in some kernels.
        arch(0x1025, TILES);
        load(7);
        let own = child(|| {
            load(70_000);
            board.set(UP, 2);
            board.wait(GO, 1);
            there("child", 70_000);
        });
        board.wait(UP, 2);
        (vec![thread("loaded", 700_000, true), thread("not yet", 7_000_000, false)], own, without)
    });
    if tasks.is_none() {
        board.set(GO, 1);
        succeeded("a child from before", without);
    }
    Held { permission: permission(), board, tasks }
}

fn check(held: Held) {
    let Held { permission: before, board, tasks } = held;
    expect("permission", permission(), before);
    let Some((threads, own, without)) = tasks else { return };
    there("main", 7);
    board.set(GO, 1);
    RELEASE.store(true, SeqCst);
    for thread in threads {
        expect("thread", thread.join().is_ok(), true);
    }
    expect("later", spawn(|| (load(5), there("later", 5))).join().is_ok(), true);
    succeeded("child", own);
    succeeded("a child from before", without);
}

fn main() {
    probe::run(setup, check)
}
