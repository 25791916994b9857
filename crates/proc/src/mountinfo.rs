//! Mounts of a mount namespace, as far as the process' root reaches.
//!
//! Source: proc_pid_mountinfo(5); `fs/proc_namespace.c`, `show_mountinfo`. Names are escaped without loss: blank, tab,
//! newline, backslash (and `#` in type and source) become octal.

use crate::Dev;
use crate::field::{Line, Result, lines, number, unescape_octal};

const FILE: &str = "mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Id, unique while the mount lives.
    pub id: i32,
    /// Mount that it sits on; its own id at the top of the tree, or one that the reader cannot see.
    pub parent: i32,
    /// Device of the file system.
    pub dev: Dev,
    /// Directory of the file system that is mounted; `net:[4026531833]` for namespaces.
    pub root: Vec<u8>,
    /// That directory has been deleted since.
    pub root_deleted: bool,
    /// Where, relative to the process' root.
    pub mount_point: Vec<u8>,
    /// Options of the mount.
    pub options: Vec<Vec<u8>>,
    /// Peer group.
    pub shared: Option<i32>,
    /// Peer group that events come from.
    pub master: Option<i32>,
    /// Nearest group under the process' root that events come from, if that is not the master.
    pub propagate_from: Option<i32>,
    /// Cannot be bound.
    pub unbindable: bool,
    /// Type, with a subtype after a dot.
    pub fs_type: Vec<u8>,
    /// Source; may be empty.
    pub source: Vec<u8>,
    /// Options of the file system.
    pub super_options: Vec<Vec<u8>>,
    /// Optional fields that are not known.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/PID/mountinfo`.
///
/// # Errors
/// A line that is not a mount, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>> {
    lines(FILE, text)?.into_iter().map(mount).collect()
}

fn mount(mut line: Line<'_>) -> Result<Mount> {
    let id = line.number_until(b' ', 10, "mount id")?;
    let parent = line.number_until(b' ', 10, "parent id")?;
    let dev = line.dev(10)?;
    line.advance(1);
    let root = line.until(b' ', "root")?;
    let (root, root_deleted) = root.strip_suffix(b"//deleted").map_or((root, false), |root| (root, true));
    let mut mount = Mount {
        id,
        parent,
        dev,
        root: unescape_octal(root),
        root_deleted,
        mount_point: unescape_octal(line.until(b' ', "mount point")?),
        options: options(line.until(b' ', "mount options")?),
        shared: None,
        master: None,
        propagate_from: None,
        unbindable: false,
        fs_type: Vec::new(),
        source: Vec::new(),
        super_options: Vec::new(),
        leftover: Vec::new(),
    };
    loop {
        match line.until(b' ', "separator")? {
            b"-" => break,
            field => optional(&mut mount, field),
        }
    }
    // The source may be empty, which leaves two spaces: words will not do here.
    mount.fs_type = unescape_octal(line.until(b' ', "file system type")?);
    mount.source = unescape_octal(line.until(b' ', "source")?);
    mount.super_options = options(line.rest());
    Ok(mount)
}

fn optional(mount: &mut Mount, field: &[u8]) {
    let group = |name: &[u8]| field.strip_prefix(name).and_then(|digits| number::<i32>(digits, 10));
    if field == b"unbindable" {
        mount.unbindable = true;
    } else if let Some(group) = group(b"shared:") {
        mount.shared = Some(group);
    } else if let Some(group) = group(b"master:") {
        mount.master = Some(group);
    } else if let Some(group) = group(b"propagate_from:") {
        mount.propagate_from = Some(group);
    } else {
        mount.leftover.push(field.to_vec());
    }
}

/// Splits before undoing escapes, since a comma inside a value is printed as `\054`. Security labels instead stand in
/// quotes and keep their commas.
fn options(printed: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = printed;
    loop {
        let end = option_end(rest);
        let (option, tail) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        out.push(unescape_octal(option));
        match tail.split_first() {
            Some((_, after)) => rest = after,
            None => return out,
        }
    }
}

fn option_end(rest: &[u8]) -> usize {
    let comma = |from: usize| {
        let tail = rest.get(from..).unwrap_or_default();
        tail.iter().position(|b| *b == b',').map_or(rest.len(), |at| at.saturating_add(from))
    };
    let plain = comma(0);
    let Some(open) = rest.get(..plain).and_then(|option| option.windows(2).position(|pair| pair == b"=\"")) else {
        return plain;
    };
    let inner = open.saturating_add(2);
    let close = rest.get(inner..).and_then(|tail| tail.iter().position(|b| *b == b'"'));
    close.map_or(plain, |at| comma(inner.saturating_add(at)))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::{Dev, hostile};

    const CAPTURED: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resuid=65534
63 43 0:39 / /tmp/proc/m\\0402 rw,relatime shared:1 - tmpfs so\\043ur\\040ce rw,size=4k
64 43 0:39 /d\\134q//deleted /tmp/proc/m3 rw,relatime shared:2 master:1 - tmpfs  rw
65 43 0:39 /s\\011u\\134b#x /a\\134040\xff rw,relatime unbindable - tmpfs  rw
66 43 0:4 net:[4026531833] /tmp/proc/nsf rw master:7 propagate_from:2 new:x - nsfs nsfs rw
67 43 0:50 / /sel rw - fuse.sshfs x rw,context=\"s:c0,c1\",lowerdir=/a\\054b:/c\\134,d
";

    #[test]
    fn captured() {
        let mounts = parse(CAPTURED).unwrap();
        assert_eq!((mounts[1].id, mounts[1].parent, mounts[1].dev), (27, 1, Dev { major: 254, minor: 0 }));
        assert_eq!(mounts[1].super_options, [&b"rw"[..], b"discard", b"resuid=65534"]);
        assert_eq!(
            (mounts[2].mount_point.as_slice(), mounts[2].source.as_slice()),
            (&b"/tmp/proc/m 2"[..], &b"so#ur ce"[..])
        );
        assert_eq!((mounts[3].root.as_slice(), mounts[3].root_deleted), (&b"/d\\q"[..], true));
        assert_eq!((mounts[3].shared, mounts[3].master, mounts[3].source.len()), (Some(2), Some(1), 0));
        assert_eq!((mounts[4].root.as_slice(), mounts[4].root_deleted), (&b"/s\tu\\b#x"[..], false));
        assert_eq!(mounts[4].mount_point, b"/a\\040\xff");
        assert!(mounts[4].unbindable && mounts[4].shared.is_none());
        assert_eq!((mounts[5].root.as_slice(), mounts[5].propagate_from), (&b"net:[4026531833]"[..], Some(2)));
        assert_eq!(mounts[5].leftover, [b"new:x"]);
        assert_eq!(mounts[6].fs_type, b"fuse.sshfs");
        assert_eq!(mounts[6].super_options, [&b"rw"[..], b"context=\"s:c0,c1\"", b"lowerdir=/a,b:/c\\", b"d"]);
    }

    #[test]
    fn an_open_quote_eats_nothing() {
        let mounts = parse(b"1 1 0:1 / / rw - t s a=\"b,c,d\n").unwrap();
        assert_eq!(mounts[0].super_options, [&b"a=\"b"[..], b"c", b"d"]);
    }

    #[test]
    fn refused() {
        for bad in [
            &b"22 27 0:21 / /proc rw,relatime proc proc rw\n"[..],
            b"22 27 0 / /proc rw - proc proc rw\n",
            b"x 27 0:21 / /proc rw - proc proc rw\n",
            b"22 27 0:21 / /proc rw - proc proc\n",
            b"\n",
        ] {
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
        let mounts = parse(&std::fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        assert!(mounts.iter().any(|m| m.fs_type == b"proc"));
        assert!(mounts.iter().all(|m| m.leftover.is_empty()));
    }
}
