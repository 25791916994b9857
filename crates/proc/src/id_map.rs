//! Id maps of a user namespace.
//!
//! Source: user_namespaces(7); `kernel/user_namespace.c`, `uid_m_show`. `uid_map`, `gid_map` and `projid_map` are alike.

use crate::field::{Line, Result, lines};

const FILE: &str = "uid_map";

/// A range of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// First id in the namespace of the process.
    pub inside: u32,
    /// First id in the namespace of the reader; of the parent, if the reader is in the same namespace. 4294967295 if the
    /// ids do not exist there.
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
    /// Words after these.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/PID/uid_map` or `gid_map`; empty if nothing was mapped yet.
///
/// # Errors
/// A line that is not three numbers, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Range>> {
    lines(FILE, text)?.into_iter().map(range).collect()
}

fn range(mut line: Line<'_>) -> Result<Range> {
    Ok(Range {
        inside: line.dec("first id inside")?,
        outside: line.dec("first id outside")?,
        count: line.dec("count")?,
        leftover: line.leftover(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Range, parse};
    use crate::hostile;

    const CAPTURED: &[u8] =
        b"         0       1000          1\n         1     100000      65536\n     70000 4294967295          2\n";

    #[test]
    fn captured() {
        let map = parse(CAPTURED).unwrap();
        assert_eq!(map[1], Range { inside: 1, outside: 100_000, count: 65536, leftover: Vec::new() });
        assert_eq!((map.len(), map[2].outside), (3, u32::MAX));
        assert_eq!(parse(b"0 0 4294967295\n").unwrap()[0].count, u32::MAX);
        assert_eq!(parse(b"0 0 1 x\n").unwrap()[0].leftover, [b"x"]);
        assert_eq!(parse(b"").unwrap(), []);
        assert!(parse(b"0 0\n").is_err());
        assert!(parse(b"0 0 4294967296\n").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_process() {
        for file in ["uid_map", "gid_map"] {
            let map = parse(&std::fs::read(format!("/proc/self/{file}")).unwrap()).unwrap();
            assert!(map.iter().all(|r| r.leftover.is_empty()));
        }
    }
}
