//! x86_64 registers: what a system call that was interrupted looks like, and how it goes on.

pub use yendor_sys::ptrace::Regs;

use crate::nr::Nr;

/// Values that the kernel leaves in rax of a system call that a stop interrupted (include/linux/errno.h).
mod restart {
    pub const SYS: i64 = -512;
    pub const NOINTR: i64 = -513;
    pub const NOHAND: i64 = -514;
    pub const BLOCK: i64 = -516;
}

const EINTR: i64 = -4;

/// restart_syscall(2) itself.
const RESUME: u64 = 219;

/// Calls that restart_syscall(2) goes on with.
mod resumed {
    pub const POLL: u64 = 7;
    pub const NANOSLEEP: u64 = 35;
    pub const FUTEX: u64 = 202;
    pub const CLOCK_NANOSLEEP: u64 = 230;
}

/// Whether the task was stopped in a call before, and goes on with that by restart_syscall(2).
#[must_use]
pub fn is_resumed(regs: &Regs) -> bool {
    regs.orig_rax == RESUME && regs.rax.cast_signed() == restart::BLOCK
}

/// Then puts the call itself in the place of that: the kernel keeps its number to itself, but the code before the instruction pointer
/// most often says it, and where it does not, some arguments can be those of one call only. Where it is not clear nothing
/// changes. `code` and `memory`, two words from an address on: what can be read of it.
pub fn name_resumed(regs: &mut Regs, code: &[u8], memory: impl Fn(u64) -> Option<[u64; 2]>) {
    if let Some(nr) = said(code) {
        regs.orig_rax = nr;
        return;
    }
    let all = [resumed::POLL, resumed::NANOSLEEP, resumed::FUTEX, resumed::CLOCK_NANOSLEEP];
    let mut possible = all.into_iter().filter(|nr| could_be(*nr, regs, &memory));
    if let (Some(nr), None) = (possible.next(), possible.next()) {
        regs.orig_rax = nr;
    }
}

/// Whether these arguments make sense with a time limit, so that the call can be one that is gone on with.
fn could_be(nr: u64, regs: &Regs, memory: impl Fn(u64) -> Option<[u64; 2]>) -> bool {
    const INT: u64 = 1 << 32;
    const MOST_CLOCKS: u64 = 16;
    // struct timespec; what is further off nobody waits for.
    let time = |at: u64| memory(at).is_some_and(|[seconds, ns]| seconds < INT && ns < 1_000_000_000);
    match nr {
        // Of no file: it would write to what it is given, so one of files has to be said.
        resumed::POLL => memory(regs.rdi).is_none() && regs.rsi == 0 && (1..INT).contains(&regs.rdx),
        resumed::NANOSLEEP => time(regs.rdi) && (regs.rsi == 0 || memory(regs.rsi).is_some()),
        // FUTEX_WAIT and FUTEX_WAIT_BITSET, with FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME or not (futex(2)).
        resumed::FUTEX => matches!(regs.rsi & !(128 | 256), 0 | 9) && memory(regs.rdi).is_some() && time(regs.r10),
        // A clock by number, or one of a thread's or a device's, which is negative (clock_getres(2)). Not until a time: that is no rest.
        _ => {
            let negative = (INT / 2..INT).contains(&regs.rdi) || regs.rdi.cast_signed() < 0;
            (regs.rdi < MOST_CLOCKS || negative) && regs.rsi == 0 && time(regs.rdx)
        }
    }
}

/// The number that the code before a `syscall` instruction loads last, if it is one of those: `mov eax, N` or `mov rax, N`.
fn said(code: &[u8]) -> Option<u64> {
    let code = code.strip_suffix(&[0x0f, 0x05])?;
    let all = [resumed::POLL, resumed::NANOSLEEP, resumed::FUTEX, resumed::CLOCK_NANOSLEEP];
    (0..code.len()).rev().find_map(|at| {
        let number = match &code[at..] {
            // With the prefix it is another register's.
            [0xb8, a, b, c, d, ..] if at == 0 || code[at - 1] != 0x41 => [*a, *b, *c, *d],
            [0x48, 0xc7, 0xc0, a, b, c, d, ..] => [*a, *b, *c, *d],
            _ => return None,
        };
        Some(u64::from(u32::from_le_bytes(number))).filter(|nr| all.contains(nr))
    })
}

/// What a stopped task was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// Its own code.
    Nothing,
    /// A call that the kernel would start again as it was.
    Call(u64),
    /// A call that the kernel would go on with for its remaining time (`restart_syscall`); that time is not readable.
    Timed(u64),
    /// A call that returned `EINTR` only because of our stop.
    Bare(u64),
}

/// What the task with these registers was doing. `signal_pending`: an unblocked signal waits, so an `EINTR` is its own.
#[must_use]
pub fn interrupted(regs: &Regs, signal_pending: bool) -> Interrupted {
    if regs.orig_rax.cast_signed() < 0 {
        return Interrupted::Nothing;
    }
    match regs.rax.cast_signed() {
        restart::SYS | restart::NOINTR | restart::NOHAND => Interrupted::Call(regs.orig_rax),
        restart::BLOCK => Interrupted::Timed(regs.orig_rax),
        EINTR if !signal_pending && is_bare(regs.orig_rax) => Interrupted::Bare(regs.orig_rax),
        _ => Interrupted::Nothing,
    }
}

/// Whether it was in a call that says that something has interrupted it.
pub(crate) fn has_failed_interrupted(regs: &Regs) -> bool {
    regs.orig_rax.cast_signed() >= 0 && regs.rax.cast_signed() == EINTR
}

/// Then makes it one that is made again, unless a handler comes before.
pub(crate) fn make_again(regs: &mut Regs) {
    regs.rax = restart::NOHAND.cast_unsigned();
}

/// Calls that answer `EINTR` after any stop, even one without a signal (signal(7)).
fn is_bare(nr: u64) -> bool {
    const EPOLL_WAIT: u64 = 232;
    const EPOLL_PWAIT: u64 = 281;
    const EPOLL_PWAIT2: u64 = 441;
    const SEMOP: u64 = 65;
    const SEMTIMEDOP: u64 = 220;
    const SIGTIMEDWAIT: u64 = 128;
    const IO_GETEVENTS: u64 = 208;
    const IO_PGETEVENTS: u64 = 333;
    const IO_URING_ENTER: u64 = 426;
    const MSGRCV: u64 = 70;
    const MSGSND: u64 = 69;
    matches!(
        nr,
        EPOLL_WAIT
            | EPOLL_PWAIT
            | EPOLL_PWAIT2
            | SEMOP
            | SEMTIMEDOP
            | SIGTIMEDWAIT
            | IO_GETEVENTS
            | IO_PGETEVENTS
            | IO_URING_ENTER
            | MSGRCV
            | MSGSND
    )
}

/// Registers with which the task, wherever it is let go by `PTRACE_DETACH`, goes on as if it had not been stopped: the kernel makes
/// an interrupted call again or, when a signal with a handler comes before, ends it with `EINTR` as it would have done. A call
/// with a time limit starts with the whole of it (its remaining time is in the kernel only).
#[must_use]
pub fn portable(regs: &Regs, signal_pending: bool) -> Regs {
    let mut r = *regs;
    match interrupted(regs, signal_pending) {
        Interrupted::Nothing => r.orig_rax = u64::MAX,
        // rax says whether a handler with SA_RESTART lets it go on.
        Interrupted::Call(_) => {}
        Interrupted::Bare(_) => r.rax = restart::NOHAND.cast_unsigned(),
        // Nobody knows which: what the kernel answers where there is nothing to go on with.
        Interrupted::Timed(RESUME) => (r.rax, r.orig_rax) = (EINTR.cast_unsigned(), u64::MAX),
        Interrupted::Timed(nr) => {
            r.rax = restart::NOHAND.cast_unsigned();
            // nanosleep(req, rem) wrote what is left into rem: go on with that.
            if nr == Nr::NANOSLEEP.raw() && r.rsi != 0 {
                r.rdi = r.rsi;
            }
            // clock_nanosleep(clock, flags, req, rem), relative.
            if nr == Nr::CLOCK_NANOSLEEP.raw() && r.rsi & 1 == 0 && r.r10 != 0 {
                r.rdx = r.r10;
            }
        }
    }
    r
}

/// The same for a task that goes on by itself, by rt_sigreturn(2): it makes the call again, whatever comes before.
#[must_use]
pub fn resumable(regs: &Regs) -> Regs {
    let mut r = portable(regs, false);
    if let Some(nr) = call(&r) {
        (r.rip, r.rax) = (r.rip.wrapping_sub(2), nr);
    }
    r.orig_rax = u64::MAX;
    r
}

/// The interrupted call that a task with [`portable`] registers is in.
#[must_use]
pub fn call(regs: &Regs) -> Option<u64> {
    match interrupted(regs, true) {
        Interrupted::Call(nr) => Some(nr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(orig: i64, rax: i64) -> Regs {
        // A stopped task's registers, from this process's own: only these matter.
        let mut r = blank();
        r.orig_rax = orig.cast_unsigned();
        r.rax = rax.cast_unsigned();
        r.rip = 0x1002;
        r.rdi = 1;
        r.rsi = 2;
        r
    }

    fn blank() -> Regs {
        Regs {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            rbp: 0,
            rbx: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rax: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            orig_rax: 0,
            rip: 0,
            cs: 0,
            eflags: 0,
            rsp: 0,
            ss: 0,
            fs_base: 0,
            gs_base: 0,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        }
    }

    #[test]
    fn own_code_is_left_alone() {
        let r = regs(-1, -514);
        assert_eq!(interrupted(&r, false), Interrupted::Nothing);
        assert_eq!(resumable(&r).rip, 0x1002);
        assert_eq!((portable(&r, false).rax.cast_signed(), call(&portable(&r, false))), (-514, None));
    }

    #[test]
    fn a_read_is_made_again() {
        let r = resumable(&regs(0, -512));
        assert_eq!((r.rip, r.rax, r.orig_rax), (0x1000, 0, u64::MAX));
        let r = portable(&regs(0, -512), false);
        assert_eq!((r.rip, r.rax.cast_signed(), r.orig_rax), (0x1002, -512, 0));
        assert_eq!(call(&regs(0, -512)), Some(0));
    }

    #[test]
    fn nanosleep_goes_on_with_the_rest() {
        assert_eq!((resumable(&regs(35, -516)).rdi, resumable(&regs(35, -516)).rax), (2, 35));
        let r = portable(&regs(35, -516), false);
        assert_eq!((r.rdi, r.rax.cast_signed(), r.orig_rax, r.rip), (2, -514, 35, 0x1002));
    }

    #[test]
    fn a_call_that_was_gone_on_with_is_found_by_what_it_was_given() {
        const AT: u64 = 0x7fff_1234_5678;
        let found = |words: [u64; 4], code: &[u8]| {
            let mut r = regs(219, -516);
            (r.rdi, r.rsi, r.rdx, r.r10) = (words[0], words[1], words[2], words[3]);
            assert!(is_resumed(&r));
            name_resumed(&mut r, code, |at| (at == AT).then_some([7, 999_999_999]));
            r.orig_rax
        };
        assert_eq!(found([AT, AT, 0, 0], b""), 35);
        assert_eq!(found([AT, 0, 77, 0], b""), 35);
        assert_eq!(found([0, 0, AT, 0], b""), 230);
        assert_eq!(found([0xffff_fffa, 0, AT, AT], b""), 230);
        assert_eq!(found([AT, 128, 5, AT], b""), 202);
        assert_eq!(found([0, 0, 5000, 0], b""), 7);
        // The kernel would write to what is no array of files.
        assert_eq!(found([AT, 2, 5000, 0], b""), 219);
        assert_eq!(found([AT, 128, 5, 0], b""), 219);
        assert_eq!(found([AT, 2, 5000, 0], b"\xb8\x07\0\0\0\x0f\x05"), 7);
        // One of several, which the code tells apart.
        assert_eq!(found([AT, 0, 7, AT], b""), 219);
        assert_eq!(found([AT, 0, 7, AT], b"\xb8\xca\0\0\0\x0f\x05"), 202);
        assert_eq!(found([AT, 0, 7, AT], b"\x48\xc7\xc0\x23\0\0\0\x90\x0f\x05"), 35);
        assert_eq!(found([AT, 0, 7, AT], b"\xb8\xca\0\0\0"), 219);
        // Into r8, after eax.
        assert_eq!(found([AT, 0, 7, AT], b"\xb8\xca\0\0\0\x41\xb8\x07\0\0\0\x0f\x05"), 202);
        let r = portable(&regs(219, -516), false);
        assert_eq!((r.rax.cast_signed(), r.orig_rax, resumable(&regs(219, -516)).rip), (-4, u64::MAX, 0x1002));
    }

    #[test]
    fn epoll_wait_does_not_see_our_stop_but_sees_a_signal() {
        assert_eq!(resumable(&regs(232, -4)).rax, 232);
        assert_eq!(portable(&regs(232, -4), false).rax.cast_signed(), -514);
        let own = portable(&regs(232, -4), true);
        assert_eq!((own.rax.cast_signed(), own.orig_rax), (-4, u64::MAX));
        assert_eq!(portable(&regs(0, -4), false).rax.cast_signed(), -4, "read never returns EINTR for a stop");
    }
}
