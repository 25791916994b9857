//! x86_64. Registers: rbx the next record, r12 the slot, r13 the word that says whether the tracer lives, r14 the
//! `ucontext` to return to when it does not, r15 (pid 1 only) the main task.

/// Offset in [`CODE`] where a task starts that waits for scripts.
pub const WAIT: u64 = 0;
/// Offset in [`CODE`] where pid 1 starts: reap until the main task has ended, note its status, exit.
pub const INIT: u64 = 0xc0;

/// Offset in [`CODE`] where a borrowed task starts: it closes the descriptor in r8, then waits for scripts.
pub const ENTER: u64 = 0xf3;

/// Offset in [`CODE`] where the flags are loaded from the stack, and then one system call is made.
pub const FLAGS: u64 = 0xb3;

/// Offset in [`CODE`] where tiles are shaped as the memory at rdi says, one is used, all are given back, and then one system
/// call is made.
pub const TILES: u64 = 0x102;

/// One tile of one row of four bytes (Intel SDM, volume 1, 18.2): palette, columns in bytes, rows.
pub const TILE_SHAPE: [u8; 64] = {
    let mut shape = [0; 64];
    shape[0] = 1;
    shape[16] = 4;
    shape[48] = 1;
    shape
};

/// The code.
#[rustfmt::skip]
pub const CODE: &[u8] = &[
    // wait: has the tracer died?
    0x41, 0x8b, 0x45, 0x00,                         // mov eax, [r13]
    0x0f, 0xba, 0xe0, 0x1e,                         // bt eax, 30          FUTEX_OWNER_DIED
    0x0f, 0x82, 0x87, 0x00, 0x00, 0x00,             // jc dead
    // sleep until a script is there or the tracer dies
    0x49, 0x8d, 0x7c, 0x24, 0x10,                   // lea rdi, [r12+16]   WAITERS
    0xbe, 0x02, 0x00, 0x00, 0x00,                   // mov esi, 2
    0x31, 0xd2,                                     // xor edx, edx
    0x45, 0x31, 0xd2,                               // xor r10d, r10d
    0x45, 0x31, 0xc0,                               // xor r8d, r8d
    0xb8, 0xc1, 0x01, 0x00, 0x00,                   // mov eax, 449        futex_waitv
    0x0f, 0x05,                                     // syscall
    0x41, 0x8b, 0x04, 0x24,                         // mov eax, [r12]      GO
    0x41, 0x3b, 0x44, 0x24, 0x10,                   // cmp eax, [r12+16]
    0x74, 0xce,                                     // je wait
    0x41, 0x89, 0x44, 0x24, 0x10,                   // mov [r12+16], eax
    0x49, 0x8d, 0x5c, 0x24, 0x40,                   // lea rbx, [r12+64]   RECORDS
    // run: one record
    0x48, 0x8b, 0x03,                               // mov rax, [rbx]
    0x48, 0x83, 0xf8, 0xff,                         // cmp rax, -1         END
    0x74, 0x2c,                                     // je finish
    0x48, 0x8b, 0x7b, 0x08,                         // mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10,                         // mov rsi, [rbx+16]
    0x48, 0x8b, 0x53, 0x18,                         // mov rdx, [rbx+24]
    0x4c, 0x8b, 0x53, 0x20,                         // mov r10, [rbx+32]
    0x4c, 0x8b, 0x43, 0x28,                         // mov r8, [rbx+40]
    0x4c, 0x8b, 0x4b, 0x30,                         // mov r9, [rbx+48]
    0x0f, 0x05,                                     // syscall
    0x48, 0x89, 0x43, 0x38,                         // mov [rbx+56], rax
    0x48, 0x2b, 0x43, 0x40,                         // sub rax, [rbx+64]
    0x48, 0x3b, 0x43, 0x48,                         // cmp rax, [rbx+72]
    0x48, 0x8d, 0x5b, 0x50,                         // lea rbx, [rbx+80]
    0x76, 0xcb,                                     // jbe run
    // finish: tell the tracer
    0x41, 0xc7, 0x44, 0x24, 0x04, 0x01, 0x00, 0x00, 0x00, // mov dword [r12+4], 1   DONE
    0x49, 0x8d, 0x7c, 0x24, 0x04,                   // lea rdi, [r12+4]
    0xbe, 0x01, 0x00, 0x00, 0x00,                   // mov esi, 1          FUTEX_WAKE
    0xba, 0xff, 0xff, 0xff, 0x7f,                   // mov edx, INT_MAX
    0xb8, 0xca, 0x00, 0x00, 0x00,                   // mov eax, 202        futex
    0x0f, 0x05,                                     // syscall
    0xe9, 0x6b, 0xff, 0xff, 0xff,                   // jmp wait
    // dead: wake the other waiters, then return to the task's own state
    0x4c, 0x89, 0xef,                               // mov rdi, r13
    0xbe, 0x01, 0x00, 0x00, 0x00,                   // mov esi, 1          FUTEX_WAKE
    0xba, 0xff, 0xff, 0xff, 0x7f,                   // mov edx, INT_MAX
    0xb8, 0xca, 0x00, 0x00, 0x00,                   // mov eax, 202        futex
    0x0f, 0x05,                                     // syscall
    0x4c, 0x89, 0xf4,                               // mov rsp, r14
    0xb8, 0x0f, 0x00, 0x00, 0x00,                   // mov eax, 15         rt_sigreturn
    0x0f, 0x05,                                     // syscall
    // flags
    0x9d,                                           // popfq
    0x0f, 0x05,                                     // syscall
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
    // init: reap
    0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff,       // mov rdi, -1
    0x49, 0x8d, 0x74, 0x24, 0x08,                   // lea rsi, [r12+8]    STATUS
    0x31, 0xd2,                                     // xor edx, edx
    0x45, 0x31, 0xd2,                               // xor r10d, r10d
    0xb8, 0x3d, 0x00, 0x00, 0x00,                   // mov eax, 61         wait4
    0x0f, 0x05,                                     // syscall
    0x44, 0x39, 0xf8,                               // cmp eax, r15d
    0x74, 0x04,                                     // je ended
    0x85, 0xc0,                                     // test eax, eax
    0x79, 0xdf,                                     // jns init
    // ended: the main task, or nobody is left
    0x41, 0xc7, 0x44, 0x24, 0x0c, 0x01, 0x00, 0x00, 0x00, // mov dword [r12+12], 1  ENDED
    0x31, 0xff,                                     // xor edi, edi
    0xb8, 0xe7, 0x00, 0x00, 0x00,                   // mov eax, 231        exit_group
    0x0f, 0x05,                                     // syscall
    // enter
    0x4c, 0x89, 0xc7,                               // mov rdi, r8
    0xb8, 0x03, 0x00, 0x00, 0x00,                   // mov eax, 3          close
    0x0f, 0x05,                                     // syscall
    0xe9, 0xfe, 0xfe, 0xff, 0xff,                   // jmp wait
    // tiles
    0xc4, 0xe2, 0x78, 0x49, 0x07,                   // ldtilecfg [rdi]
    0xc4, 0xe2, 0x7b, 0x49, 0xc0,                   // tilezero tmm0
    0xc4, 0xe2, 0x78, 0x49, 0xc0,                   // tilerelease
    0x0f, 0x05,                                     // syscall
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_start_where_they_say() {
        let at = usize::try_from(ENTER).expect("offset");
        assert_eq!(&CODE[at..at + 3], &[0x4c, 0x89, 0xc7]);
        let at = usize::try_from(TILES).expect("offset");
        assert_eq!(&CODE[at..at + 5], &[0xc4, 0xe2, 0x78, 0x49, 0x07]);
        assert_eq!(at + 0xffff_fefe - 0x1_0000_0000, usize::try_from(WAIT).expect("offset"));
        let at = usize::try_from(FLAGS).expect("offset");
        assert_eq!(&CODE[at..at + 3], &[0x9d, 0x0f, 0x05]);
        let at = usize::try_from(INIT).expect("offset");
        assert_eq!(&CODE[at..at + 3], &[0x48, 0xc7, 0xc7]);
    }
}
