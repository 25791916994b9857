//! The system call that a task is in.
//!
//! Source: proc_pid_syscall(5); `fs/proc/base.c`, `proc_pid_syscall`. Only meaningful while the task is stopped.

use crate::field::{Result, only_line};

/// Where the task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Syscall {
    /// On a CPU: the kernel could not look.
    Running,
    /// Blocked, but not in a system call (a page fault, a stop); also a zombie, with zeros.
    Outside {
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        pc: u64,
    },
    /// In a system call. A kernel thread shows zeros throughout.
    Inside {
        /// Number.
        nr: i64,
        /// Arguments, as registers.
        args: [u64; 6],
        /// Stack pointer.
        sp: u64,
        /// Instruction pointer.
        pc: u64,
        /// Words after these.
        leftover: Vec<Vec<u8>>,
    },
}

/// Parses `/proc/PID/syscall` or `/proc/PID/task/TID/syscall`.
///
/// # Errors
/// Any other form, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Syscall> {
    let mut line = only_line("syscall", text)?;
    if line.rest() == b"running" {
        return Ok(Syscall::Running);
    }
    let nr = line.dec("system call number")?;
    if nr == -1 {
        let (sp, pc) = (line.hex0x("stack pointer")?, line.hex0x("instruction pointer")?);
        // The short form has nowhere to keep a stray word; a call numbered -1 would have been this long form.
        return if line.word().is_some() {
            Err(line.bad("instruction pointer"))
        } else {
            Ok(Syscall::Outside { sp, pc })
        };
    }
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = line.hex0x("argument")?;
    }
    let (sp, pc) = (line.hex0x("stack pointer")?, line.hex0x("instruction pointer")?);
    Ok(Syscall::Inside { nr, args, sp, pc, leftover: line.leftover() })
}

#[cfg(test)]
mod tests {
    use super::{Syscall, parse};
    use crate::hostile;

    const CAPTURED: &[u8] = b"61 0xffffffff 0x7ffd95ccf560 0x0 0x0 0x1 0x8 0x7ffd95ccf538 0x7f5f69f20bd3\n";

    #[test]
    fn captured() {
        let inside = Syscall::Inside {
            nr: 61,
            args: [0xffff_ffff, 0x7ffd_95cc_f560, 0, 0, 1, 8],
            sp: 0x7ffd_95cc_f538,
            pc: 0x7f5f_69f2_0bd3,
            leftover: Vec::new(),
        };
        assert_eq!(parse(CAPTURED), Ok(inside));
        assert_eq!(parse(b"running\n"), Ok(Syscall::Running));
        assert_eq!(parse(b"-1 0x0 0x10\n"), Ok(Syscall::Outside { sp: 0, pc: 16 }));
        assert!(matches!(parse(b"0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n"), Ok(Syscall::Inside { nr: 0, .. })));
        for bad in [&b"running"[..], b"61 0x0\n", b"61 1 2 3 4 5 6 7 8\n", b"-1 0x0 0x0 0x0\n", b"\n", b""] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_thread() {
        // Asking about itself, the thread is in read(2) of this very file.
        let own = parse(&std::fs::read("/proc/thread-self/syscall").unwrap()).unwrap();
        assert!(matches!(own, Syscall::Inside { leftover, .. } if leftover.is_empty()));
    }
}
