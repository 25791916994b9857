//! Clock offsets of the time namespace for children.
//!
//! Source: time_namespaces(7); `kernel/time/namespace.c`, `proc_timens_show_offsets`.

use crate::ParseError;
use crate::field::{Line, Result, lines};

const FILE: &str = "timens_offsets";

/// Added to a clock: may be negative, the nanoseconds are 0 to 999999999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds.
    pub nanoseconds: u32,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offsets {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: Offset,
    /// `CLOCK_BOOTTIME`.
    pub boottime: Offset,
    /// Lines of clocks that are not known, as printed.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/PID/timens_offsets`.
///
/// # Errors
/// A clock that is missing or malformed, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Offsets> {
    let (mut monotonic, mut boottime, mut leftover) = (None, None, Vec::new());
    for line in lines(FILE, text)? {
        let mut words = line;
        match words.word() {
            Some(b"monotonic") if monotonic.is_none() => monotonic = Some(offset(words)?),
            Some(b"boottime") if boottime.is_none() => boottime = Some(offset(words)?),
            _ => leftover.push(line.rest().to_vec()),
        }
    }
    let missing = |what| move || ParseError { file: FILE, line: 1, what };
    Ok(Offsets {
        monotonic: monotonic.ok_or_else(missing("monotonic"))?,
        boottime: boottime.ok_or_else(missing("boottime"))?,
        leftover,
    })
}

fn offset(mut line: Line<'_>) -> Result<Offset> {
    let offset = Offset { seconds: line.dec("seconds")?, nanoseconds: line.dec("nanoseconds")? };
    if offset.nanoseconds >= 1_000_000_000 || line.word().is_some() {
        return Err(line.bad("nanoseconds"));
    }
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::{Offset, parse};
    use crate::hostile;

    const CAPTURED: &[u8] = b"monotonic           0         0\nboottime         -86400 999999999\n";

    #[test]
    fn captured() {
        let offsets = parse(CAPTURED).unwrap();
        assert_eq!(offsets.monotonic, Offset { seconds: 0, nanoseconds: 0 });
        assert_eq!(offsets.boottime, Offset { seconds: -86400, nanoseconds: 999_999_999 });
        assert_eq!(parse(b"monotonic 0 0\nboottime 1 2\ntai 0 0\n").unwrap().leftover, [b"tai 0 0"]);
        assert_eq!(parse(b"monotonic 0 0\n").unwrap_err().what, "boottime");
        assert!(parse(b"monotonic 0 1000000000\nboottime 0 0\n").is_err());
        assert!(parse(b"monotonic 0 1 2\nboottime 0 0\n").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_process() {
        assert!(parse(&std::fs::read("/proc/self/timens_offsets").unwrap()).unwrap().leftover.is_empty());
    }
}
