//! Execution domain of a process.
//!
//! Source: proc_pid_personality(5), personality(2); `fs/proc/base.c`, `proc_pid_personality`.

use crate::field::{Result, only_line};

/// Parses `/proc/PID/personality`: the domain and its `ADDR_*` flags.
///
/// # Errors
/// Anything but one hexadecimal number, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<u32> {
    let mut line = only_line("personality", text)?;
    let value = line.hex("personality")?;
    if line.word().is_some() { Err(line.bad("personality")) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::hostile;

    #[test]
    fn captured() {
        assert_eq!(parse(b"00000000\n"), Ok(0));
        assert_eq!(parse(b"fe040000\n"), Ok(0xfe04_0000));
        for bad in [&b"00000000"[..], b"\n", b"1 2\n", b"100000000\n", b"1\n2\n"] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn hostile_input() {
        hostile::survives(b"00040000\n", parse);
    }

    #[test]
    fn this_process() {
        parse(&std::fs::read("/proc/self/personality").unwrap()).unwrap();
    }
}
