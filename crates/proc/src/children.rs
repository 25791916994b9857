//! Children of a thread.
//!
//! Source: proc_tid_children(5); `fs/proc/array.c`, `children_seq_show`. Only reliable while the children are stopped.

use crate::ParseError;
use crate::field::{Result, number};

const FILE: &str = "children";

/// Parses `/proc/PID/task/TID/children`: process ids in the reader's pid namespace.
///
/// # Errors
/// Anything but numbers, each with a blank after it.
pub fn parse(text: &[u8]) -> Result<Vec<i32>> {
    let bad = || ParseError { file: FILE, line: 1, what: "child pid" };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let body = text.strip_suffix(b" ").ok_or_else(bad)?;
    body.split(|b| *b == b' ').map(|word| number(word, 10).filter(|pid| *pid > 0).ok_or_else(bad)).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::hostile;

    #[test]
    fn captured() {
        assert_eq!(parse(b"6078 6079 ").unwrap(), [6078, 6079]);
        assert_eq!(parse(b"").unwrap(), [0; 0]);
        for bad in [&b"6078 607"[..], b"6078", b"6078  6079 ", b" ", b"-1 ", b"0 ", b"2147483648 ", b"1\n"] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn hostile_input() {
        hostile::survives(b"6078 6079 ", parse);
    }

    #[test]
    fn this_thread() {
        parse(&std::fs::read("/proc/thread-self/children").unwrap()).unwrap();
    }
}
