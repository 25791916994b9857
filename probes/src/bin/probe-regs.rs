//! Every register of a thread: general, flags, stack pointer, x87, SSE, AVX, AVX-512, MXCSR, fs and gs base.
//!
//! Two threads spin in assembly with awkward values everywhere, one of them on a stack pointer that points nowhere.
#![allow(unsafe_code)]

use probe::{block_all, expect, wait_until, word};
use std::arch::{asm, global_asm};
use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

const WORDS: usize = 16 + 32 * 8 + 8 + 16;

/// Layout known to the assembly: 16 general words, 32 vectors of 64 bytes, 8 masks, MXCSR, FSAVE area.
#[repr(C, align(64))]
struct Bank([u64; WORDS]);

#[unsafe(no_mangle)]
static mut PROBE_IN: Bank = Bank([0; WORDS]);
#[unsafe(no_mangle)]
static mut PROBE_OUT: Bank = Bank([0; WORDS]);
#[unsafe(no_mangle)]
static mut PROBE_STACK: u64 = 0;
#[unsafe(no_mangle)]
static PROBE_RELEASE: AtomicU8 = AtomicU8::new(0);
#[unsafe(no_mangle)]
static PROBE_SPINS: AtomicU8 = AtomicU8::new(0);

// Order in the general words: flags, rax rcx rdx rbx rsp rbp rsi rdi r8..r14; r15 is tested with the gs base.
global_asm!(
    ".macro probe_all what",
    "\\what rax, 1",
    "\\what rcx, 2",
    "\\what rdx, 3",
    "\\what rbx, 4",
    "\\what rsp, 5",
    "\\what rbp, 6",
    "\\what rsi, 7",
    "\\what rdi, 8",
    "\\what r8, 9",
    "\\what r9, 10",
    "\\what r10, 11",
    "\\what r11, 12",
    "\\what r12, 13",
    "\\what r13, 14",
    "\\what r14, 15",
    ".endm",
    ".macro probe_load reg, at",
    "mov \\reg, [rip + PROBE_IN + 8 * \\at]",
    ".endm",
    ".macro probe_keep reg, at",
    "mov [rip + PROBE_OUT + 8 * \\at], \\reg",
    ".endm",
    ".globl probe_hold",
    "probe_hold:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + PROBE_STACK], rsp",
    "mov r15, 0x5a5a0000ffff1234",
    "push qword ptr [rip + PROBE_IN]",
    "popfq",
    "probe_all probe_load",
    "mov byte ptr [rip + PROBE_SPINS], 1",
    "2: pause",
    "cmp byte ptr [rip + PROBE_RELEASE], 0",
    "je 2b",
    "probe_all probe_keep",
    "mov rsp, [rip + PROBE_STACK]",
    "pushfq",
    "pop qword ptr [rip + PROBE_OUT]",
    "cld",
    "push 0x202",
    "popfq",
    "mov rax, r15",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".globl probe_hold_vectors",
    "probe_hold_vectors:",
    // rdi: 0 ymm only, 1 zmm
    "ldmxcsr [rip + PROBE_IN + 2240]",
    "frstor [rip + PROBE_IN + 2248]",
    "lea rsi, [rip + PROBE_IN + 128]",
    "lea rdx, [rip + PROBE_OUT + 128]",
    "test edi, edi",
    "jz 3f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 zmm\\n, [rsi + 64 * \\n]",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "kmovq k\\n, [rsi + 2048 + 8 * \\n]",
    ".endr",
    "jmp 4f",
    "3:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\n, [rsi + 64 * \\n]",
    ".endr",
    "4: mov byte ptr [rip + PROBE_SPINS], 2",
    "5: pause",
    "cmp byte ptr [rip + PROBE_RELEASE], 2",
    "jne 5b",
    "test edi, edi",
    "jz 6f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "vmovdqu64 [rdx + 64 * \\n], zmm\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "kmovq [rdx + 2048 + 8 * \\n], k\\n",
    ".endr",
    "jmp 7f",
    "6:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu [rdx + 64 * \\n], ymm\\n",
    ".endr",
    "7: stmxcsr [rip + PROBE_OUT + 2240]",
    "fnsave [rip + PROBE_OUT + 2248]",
    "fninit",
    "vzeroupper",
    "mov dword ptr [rsp - 4], 0x1f80",
    "ldmxcsr [rsp - 4]",
    "ret",
);

unsafe extern "C" {
    fn probe_hold() -> u64;
    fn probe_hold_vectors(zmm: u64);
}

thread_local!(static LOCAL: Cell<u64> = const { Cell::new(0) });

fn general() {
    block_all();
    LOCAL.set(0xfeed_0000_1111_2222);
    // SAFETY: only this thread uses gs, and the assembly keeps what the ABI wants kept.
    unsafe {
        // ARCH_SET_GS, ARCH_GET_GS (arch_prctl(2))
        libc::syscall(libc::SYS_arch_prctl, 0x1001, 0x7abc_def0_1238_u64);
        let mut before = 0_u64;
        libc::syscall(libc::SYS_arch_prctl, 0x1003, &mut before);
        let r15 = probe_hold();
        expect("r15", r15, 0x5a5a_0000_ffff_1234);
        let (mut fs, mut gs) = (0_u64, 0_u64);
        libc::syscall(libc::SYS_arch_prctl, 0x1003, &mut fs);
        libc::syscall(libc::SYS_arch_prctl, 0x1004, &mut gs);
        expect("fs base", fs, before);
        expect("gs base", gs, 0x7abc_def0_1238);
        let itself: u64;
        asm!("mov {}, fs:0", out(reg) itself);
        expect("word at fs:0", itself, fs);
    }
    expect("thread local", LOCAL.get(), 0xfeed_0000_1111_2222);
}

fn bank(bank: *const Bank) -> &'static [u64; WORDS] {
    // SAFETY: read while no thread is in the assembly.
    unsafe { &(*bank).0 }
}

fn prepare() {
    // SAFETY: no other thread runs yet.
    let input = unsafe { (&raw mut PROBE_IN.0).as_mut() }.unwrap();
    for (at, value) in input.iter_mut().enumerate() {
        *value = word(at as u64);
    }
    // Direction, alignment check and identification flag, and carry, which the loop's comparison will change.
    input[0] = 0x24_0602;
    input[16 + 256 + 8] = 0xdfc0; // MXCSR: flush, denormals are zero, round up, all masked
    let fsave: Vec<u8> =
        [0x0b7f_u32, 0x4020 | (5 << 11), 0x0000, 0, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let at: *mut u8 = (&raw mut input[16 + 256 + 8 + 1]).cast();
    for (offset, byte) in fsave.iter().enumerate() {
        // SAFETY: within the bank.
        unsafe { at.add(offset).write(*byte) };
    }
    for number in 0..8 {
        let value: [u8; 10] = (u128::from(word(number)) | (1 << 63) | (u128::from(0x4001 + number) << 64))
            .to_le_bytes()[..10]
            .try_into()
            .unwrap();
        // SAFETY: within the bank.
        unsafe { at.add(28 + 10 * number as usize).cast::<[u8; 10]>().write(value) };
    }
}

fn setup() -> (JoinHandle<()>, JoinHandle<()>, bool) {
    prepare();
    let wide = is_x86_feature_detected!("avx512bw");
    PROBE_RELEASE.store(0, SeqCst);
    PROBE_SPINS.store(0, SeqCst);
    let first = spawn(general);
    wait_until("first thread", || PROBE_SPINS.load(SeqCst) == 1);
    let second = spawn(move || {
        block_all();
        // SAFETY: the assembly clobbers only what a call may.
        unsafe { probe_hold_vectors(u64::from(wide)) };
    });
    wait_until("second thread", || PROBE_SPINS.load(SeqCst) == 2);
    (first, second, wide)
}

fn check((first, second, wide): (JoinHandle<()>, JoinHandle<()>, bool)) {
    PROBE_RELEASE.store(1, SeqCst);
    expect("first thread ended well", first.join().is_ok(), true);
    PROBE_RELEASE.store(2, SeqCst);
    expect("second thread ended well", second.join().is_ok(), true);
    let (input, output) = (bank(&raw const PROBE_IN), bank(&raw const PROBE_OUT));
    // The arithmetic flags belong to the loop.
    expect("flags", output[0] & 0x24_0400, 0x24_0400);
    let names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14"];
    for (at, name) in names.iter().enumerate() {
        expect(name, output[at + 1], input[at + 1]);
    }
    let (vectors, length) = if wide { (32, 8) } else { (16, 4) };
    for number in 0..vectors {
        let range = 16 + 8 * number..16 + 8 * number + length;
        expect(&format!("vector {number}"), &output[range.clone()], &input[range]);
    }
    if wide {
        expect("mask registers", &output[272..280], &input[272..280]);
    }
    expect("mxcsr", output[280] & 0xffff_ffff, 0xdfc0);
    let bytes = |bank: &[u64; WORDS]| bank[281..].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let (input, output) = (bytes(input), bytes(output));
    for (what, range) in [("x87 control", 0..2), ("x87 status", 4..6), ("x87 tag", 8..10), ("x87 stack", 28..108)] {
        expect(what, &output[range.clone()], &input[range]);
    }
}

fn main() {
    probe::run(setup, check)
}
