//! Control groups of a process.
//!
//! Source: cgroups(7); `kernel/cgroup/cgroup.c`, `proc_cgroup_show`. Group names cannot hold a newline.

use crate::field::{Line, Result, lines};

const FILE: &str = "cgroup";

/// Membership in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// Hierarchy; 0 is version 2.
    pub hierarchy: u32,
    /// Controllers, or `name=NAME`; none for version 2.
    pub controllers: Vec<Vec<u8>>,
    /// Group, from the root of the reader's cgroup namespace: starts with `/..` if it is outside.
    pub path: Vec<u8>,
    /// The group has been removed (version 2; a group may also be called that).
    pub deleted: bool,
}

/// Parses `/proc/PID/cgroup`.
///
/// # Errors
/// A line without its three parts, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Membership>> {
    lines(FILE, text)?.into_iter().map(membership).collect()
}

fn membership(mut line: Line<'_>) -> Result<Membership> {
    let hierarchy = line.number_until(b':', 10, "hierarchy")?;
    let names = line.until(b':', "controllers")?;
    let controllers = names.split(|b| *b == b',').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let path = line.rest();
    if !path.starts_with(b"/") {
        return Err(line.bad("path"));
    }
    let (path, deleted) = path.strip_suffix(b" (deleted)").map_or((path, false), |path| (path, true));
    Ok(Membership { hierarchy, controllers, path: path.to_vec(), deleted })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::hostile;

    const CAPTURED: &[u8] = b"9:name=systemd:/\n4:memory:/a b:c\xff\n2:cpu,cpuacct:/../x\n0::/gone (deleted)\n";

    #[test]
    fn captured() {
        let groups = parse(CAPTURED).unwrap();
        assert_eq!((groups[0].hierarchy, &groups[0].controllers), (9, &vec![b"name=systemd".to_vec()]));
        assert_eq!((groups[1].path.as_slice(), groups[1].deleted), (&b"/a b:c\xff"[..], false));
        assert_eq!(groups[2].controllers, [&b"cpu"[..], b"cpuacct"]);
        assert_eq!(groups[2].path, b"/../x");
        assert_eq!((groups[3].hierarchy, groups[3].controllers.len()), (0, 0));
        assert_eq!((groups[3].path.as_slice(), groups[3].deleted), (&b"/gone"[..], true));
        for bad in [&b"0:/\n"[..], b"x::/\n", b"0::\n", b"\n"] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_process() {
        assert!(!parse(&std::fs::read("/proc/self/cgroup").unwrap()).unwrap().is_empty());
    }
}
