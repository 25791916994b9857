//! The auxiliary vector that the kernel gave to the program.
//!
//! Source: proc_pid_auxv(5), getauxval(3); `fs/proc/base.c`, `auxv_read`. Binary: pairs of words of the process, here of
//! 64 bits. Empty for a kernel thread and a zombie.

use crate::ParseError;
use crate::field::Result;

const FILE: &str = "auxv";

/// One entry: `AT_*` and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// `AT_*`.
    pub key: u64,
    /// Value.
    pub value: u64,
}

/// Parses `/proc/PID/auxv` of a 64-bit process of this machine's byte order, without the `AT_NULL` at the end.
///
/// # Errors
/// No `AT_NULL`, or anything after it. `line` counts entries.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut out = Vec::new();
    if bytes.is_empty() {
        return Ok(out);
    }
    let (words, tail) = bytes.as_chunks::<8>();
    let mut entries = words.chunks_exact(2).zip(1..);
    // The words are the process' own, so the byte order is this machine's.
    while let Some(([key, value], line)) = entries.next() {
        let (key, value) = (u64::from_ne_bytes(*key), u64::from_ne_bytes(*value));
        if key != 0 {
            out.push(Entry { key, value });
        } else if value == 0 && tail.is_empty() && words.len().is_multiple_of(2) && entries.next().is_none() {
            return Ok(out);
        } else {
            return Err(ParseError { file: FILE, line, what: "end: bytes after AT_NULL" });
        }
    }
    Err(ParseError { file: FILE, line: out.len().saturating_add(1), what: "AT_NULL" })
}

#[cfg(test)]
mod tests {
    use super::{Entry, parse};
    use crate::hostile;

    fn sample() -> Vec<u8> {
        [33, 0x7fff_0000_1000, 6, 4096, 16, u64::MAX, 0, 0].iter().flat_map(|word: &u64| word.to_ne_bytes()).collect()
    }

    #[test]
    fn entries() {
        let entries = parse(&sample()).unwrap();
        assert_eq!(entries[1], Entry { key: 6, value: 4096 });
        assert_eq!((entries.len(), entries[2].value), (3, u64::MAX));
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn every_cut_is_refused() {
        let bytes = sample();
        for end in 1..bytes.len() {
            assert!(parse(&bytes[..end]).is_err(), "{end}");
        }
        for extra in [1, 8, 16] {
            let more = [bytes.as_slice(), &vec![0; extra]].concat();
            assert!(parse(&more).is_err(), "{extra}");
        }
    }

    #[test]
    fn hostile_input() {
        hostile::survives(&sample(), parse);
    }

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn this_process() {
        let entries = parse(&std::fs::read("/proc/self/auxv").unwrap()).unwrap();
        assert!(entries.contains(&Entry { key: 6, value: 4096 }), "AT_PAGESZ");
    }
}
