//! Unix sockets of a network namespace.
//!
//! Source: proc_net(5) (`/proc/net/unix`), unix(7); `net/unix/af_unix.c`, `unix_seq_show`.
//!
//! The kernel prints names raw. A newline in a name starts what looks like a line of its own, and a name that holds a whole
//! such line is taken for a socket: whoever decides by this file must check the inode with sock_diag(7).

use crate::ParseError;
use crate::field::{Line, Result, lines};

const FILE: &str = "net/unix";

/// `__SO_ACCEPTCON`: the socket listens.
pub const LISTENING: u32 = 0x1_0000;

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Kernel address, hashed: differs from boot to boot, equal within one.
    pub address: u64,
    /// References.
    pub refs: u32,
    /// Always 0.
    pub protocol: u32,
    /// 0 or [`LISTENING`].
    pub flags: u32,
    /// `SOCK_STREAM` 1, `SOCK_DGRAM` 2, `SOCK_SEQPACKET` 5.
    pub kind: u32,
    /// 1 unconnected, 2 connecting, 3 connected, 4 disconnecting (`SS_*`).
    pub state: u32,
    /// Inode of the socket.
    pub inode: u64,
    /// Name; `None` if it is not bound. An abstract name has `@` for its first byte and for each NUL in it: a path that
    /// starts with `@` looks the same.
    pub path: Option<Vec<u8>>,
}

/// Parses `/proc/net/unix`.
///
/// # Errors
/// No heading, a first line that is not a socket, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Socket>> {
    let mut rest = lines(FILE, text)?.into_iter();
    let mut head = rest.next().ok_or(ParseError { file: FILE, line: 1, what: "heading" })?;
    for column in ["Num", "RefCount", "Protocol", "Flags", "Type", "St", "Inode", "Path"] {
        head.tag(column)?;
    }
    if head.word().is_some() {
        return Err(head.bad("heading"));
    }
    let mut out: Vec<Socket> = Vec::new();
    for line in rest {
        match (socket(line), out.last_mut().and_then(|last| last.path.as_mut())) {
            (Ok(socket), _) => out.push(socket),
            // Not a socket: the name of the last one had a newline.
            (Err(_), Some(path)) => {
                path.push(b'\n');
                path.extend_from_slice(line.rest());
            }
            (Err(error), None) => return Err(error),
        }
    }
    Ok(out)
}

fn socket(mut line: Line<'_>) -> Result<Socket> {
    let address = line.number_until(b':', 16, "address")?;
    let mut socket = Socket {
        address,
        refs: line.hex("reference count")?,
        protocol: line.hex("protocol")?,
        flags: line.hex("flags")?,
        kind: line.hex("type")?,
        state: line.hex("state")?,
        inode: line.dec("inode")?,
        path: None,
    };
    // One space, and the rest is the name even if it starts with spaces.
    socket.path = match line.rest().split_first() {
        None => None,
        Some((b' ', path)) => Some(path.to_vec()),
        Some(_) => return Err(line.bad("path")),
    };
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::{LISTENING, parse};
    use crate::hostile;

    const CAPTURED: &[u8] = b"Num       RefCount Protocol Flags    Type St Inode Path
000000003e0fdb88: 00000003 00000000 00000000 0001 03  9928
000000008c915a65: 00000002 00000000 00000000 0002 01  9948 /tmp/proc/s ock\n
000000004e43d56b: 00000003 00000000 00000000 0001 03  1676
00000000b9ee3730: 00000002 00000000 00000000 0005 01  9949 @3dafc
00000000280b4d9c: 00000002 00000000 00010000 0001 01  9947 @abs\xff x\n@y
";

    #[test]
    fn captured() {
        let sockets = parse(CAPTURED).unwrap();
        assert_eq!(sockets.len(), 5);
        assert_eq!((sockets[0].address, sockets[0].inode, &sockets[0].path), (0x3e0f_db88, 9928, &None));
        assert_eq!((sockets[0].refs, sockets[0].kind, sockets[0].state), (3, 1, 3));
        assert_eq!(sockets[1].path.as_deref(), Some(&b"/tmp/proc/s ock\n"[..]));
        assert_eq!((sockets[3].kind, sockets[3].path.as_deref()), (5, Some(&b"@3dafc"[..])));
        assert_eq!((sockets[4].flags, sockets[4].path.as_deref()), (LISTENING, Some(&b"@abs\xff x\n@y"[..])));
    }

    #[test]
    fn refused() {
        let head = &CAPTURED[..CAPTURED.iter().position(|b| *b == b'\n').unwrap() + 1];
        assert_eq!(parse(head).unwrap(), []);
        let lost = [head, b"@y\n"].concat();
        assert_eq!(parse(&lost).unwrap_err().line, 2);
        assert!(parse(b"").is_err());
        assert!(parse(b"Num RefCount Protocol Flags Type St Inode Path Extra\n").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_kernel() {
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!parse(&std::fs::read("/proc/net/unix").unwrap()).unwrap().is_empty());
    }
}
