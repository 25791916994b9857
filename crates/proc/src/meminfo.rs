//! Memory of the machine.
//!
//! Source: proc_meminfo(5); `fs/proc/meminfo.c`, `meminfo_proc_show`. One number is read of it.

use crate::field::{Result, keyed, kib, lines};

const FILE: &str = "meminfo";

keyed! {
    /// The file, as far as it is read.
    Meminfo
    required {
        /// KiB that programs could still get without swapping (Linux 3.14).
        available: u64 = "MemAvailable" via kib,
    }
    optional {}
}

/// Parses `/proc/meminfo`.
///
/// # Errors
/// A missing or malformed line, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Meminfo> {
    let lines = lines(FILE, text)?;
    let end = lines.last().copied().ok_or(crate::ParseError { file: FILE, line: 1, what: "MemAvailable" })?;
    Meminfo::from_lines(lines.into_iter(), end)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::hostile;

    const CAPTURED: &[u8] = b"MemTotal:       24689204 kB\nMemFree:        18934300 kB\nMemAvailable:   23101512 kB\n\
Active(anon):      12345 kB\nHugePages_Total:       0\nDirectMap2M:    24117248 kB\n";

    #[test]
    fn captured() {
        assert_eq!(parse(CAPTURED).expect("a capture").available, 23_101_512);
        assert!(parse(b"MemTotal: 1 kB\n").is_err());
    }

    #[test]
    fn hostile() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }
}
