//! File locks and leases.
//!
//! Source: proc_locks(5); `fs/locks.c`, `lock_get_status`. The `lock:` lines of `fdinfo` have the same form.

use crate::Dev;
use crate::field::{Line, Result, lines, number};

const FILE: &str = "locks";

/// Kind of lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// fcntl(2) `F_SETLK`: belongs to the process.
    Posix,
    /// fcntl(2) `F_OFD_SETLK`: belongs to the open file description.
    Ofd,
    /// flock(2).
    Flock,
    /// fcntl(2) `F_SETLEASE`.
    Lease,
    /// Delegation (nfsd).
    Deleg,
    /// A test for a lock, in passing.
    Access,
}

/// Second column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Of a lock: binds those who ask.
    Advisory,
    /// Of a lock, before Linux 5.15.
    Mandatory,
    /// Of a lease: held.
    Active,
    /// Of a lease: the holder is being told to give it up.
    Breaking,
    /// Of a lease: the opener who waits for that.
    Breaker,
    /// The lock's file has gone.
    NoInode,
}

/// What is locked against whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// Being given up.
    Unlock,
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// Number in the list; those who wait carry the number of the lock they wait for.
    pub id: i64,
    /// 0 for a lock that is held, 1 and deeper for one that waits.
    pub waiting: usize,
    /// Kind.
    pub kind: Kind,
    /// Second column.
    pub mode: Mode,
    /// Shared or exclusive.
    pub access: Access,
    /// Owner, in the reader's pid namespace; -1 for an open file description.
    pub pid: i32,
    /// Device and inode; `None` if the file has gone or the record is a breaker's.
    pub inode: Option<(Dev, u64)>,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` to the end of the file, however long.
    pub end: Option<u64>,
    /// Words after these.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/locks`.
///
/// # Errors
/// A line that is not a lock, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Lock>> {
    lines(FILE, text)?.into_iter().map(lock).collect()
}

pub(crate) fn lock(mut line: Line<'_>) -> Result<Lock> {
    let id = line.number_until(b':', 10, "lock id")?;
    line.advance(1);
    let indent = line.rest().iter().take_while(|b| **b == b' ').count();
    let arrow = line.rest().iter().skip(indent).take(2).eq(b"->");
    let waiting = if arrow { indent.saturating_add(1) } else { 0 };
    if arrow {
        line.tag("->")?;
    }
    let kind = kind(&mut line)?;
    let mode = mode(&mut line)?;
    let access = match line.token("lock access")? {
        b"READ" => Access::Read,
        b"WRITE" => Access::Write,
        b"UNLCK" => Access::Unlock,
        _ => return Err(line.bad("lock access")),
    };
    let pid = line.dec("lock pid")?;
    let inode = inode(&mut line)?;
    let start = line.dec("lock start")?;
    let end = match line.token("lock end")? {
        b"EOF" => None,
        digits => Some(number(digits, 10).ok_or_else(|| line.bad("lock end"))?),
    };
    Ok(Lock { id, waiting, kind, mode, access, pid, inode, start, end, leftover: line.leftover() })
}

fn kind(line: &mut Line<'_>) -> Result<Kind> {
    Ok(match line.token("lock kind")? {
        b"POSIX" => Kind::Posix,
        b"OFDLCK" => Kind::Ofd,
        b"FLOCK" => Kind::Flock,
        b"LEASE" => Kind::Lease,
        b"DELEG" => Kind::Deleg,
        b"ACCESS" => Kind::Access,
        _ => return Err(line.bad("lock kind")),
    })
}

fn mode(line: &mut Line<'_>) -> Result<Mode> {
    Ok(match line.token("lock mode")? {
        b"ADVISORY" => Mode::Advisory,
        b"MANDATORY" => Mode::Mandatory,
        b"ACTIVE" => Mode::Active,
        b"BREAKING" => Mode::Breaking,
        b"BREAKER" => Mode::Breaker,
        b"*NOINODE*" => Mode::NoInode,
        _ => return Err(line.bad("lock mode")),
    })
}

/// `maj:min:inode` with a hexadecimal device, or `<none>:0`.
fn inode(line: &mut Line<'_>) -> Result<Option<(Dev, u64)>> {
    let word = line.token("lock inode")?;
    if word == b"<none>:0" {
        return Ok(None);
    }
    let mut parts = word.splitn(3, |b| *b == b':');
    let mut part =
        |radix| parts.next().and_then(|digits| number::<u64>(digits, radix)).ok_or_else(|| line.bad("lock inode"));
    let (major, minor, inode) = (part(16)?, part(16)?, part(10)?);
    let small = |number: u64| u32::try_from(number).map_err(|_| line.bad("lock inode"));
    Ok(Some((Dev { major: small(major)?, minor: small(minor)? }, inode)))
}

#[cfg(test)]
mod tests {
    use super::{Access, Kind, Mode, parse};
    use crate::{Dev, hostile};

    const CAPTURED: &[u8] = b"\
1: LEASE  BREAKING  UNLCK 6374 fe:00:10010746 0 EOF
1: -> LEASE  BREAKER   WRITE 6418 <none>:0 0 EOF
2: FLOCK  ADVISORY  WRITE 6374 fe:00:10010745 0 EOF
2: -> FLOCK  ADVISORY  READ 6417 fe:00:10010745 0 EOF
3: POSIX  ADVISORY  WRITE 6374 fe:00:10010745 0 9
3: -> POSIX  ADVISORY  WRITE 6415 fe:00:10010745 0 9
3:  -> POSIX  ADVISORY  WRITE 6416 fe:00:10010745 0 9
4: OFDLCK ADVISORY  WRITE -1 fe:00:10010706 20 EOF
5: LEASE  ACTIVE    READ 6036 fe:00:10010707 0 EOF
";

    #[test]
    fn captured() {
        let locks = parse(CAPTURED).unwrap();
        assert_eq!(locks.iter().map(|l| l.waiting).collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1, 2, 0, 0]);
        assert_eq!((locks[0].mode, locks[0].access, locks[1].inode), (Mode::Breaking, Access::Unlock, None));
        assert_eq!((locks[4].kind, locks[4].start, locks[4].end), (Kind::Posix, 0, Some(9)));
        assert_eq!(locks[4].inode, Some((Dev { major: 254, minor: 0 }, 10_010_745)));
        assert_eq!((locks[7].kind, locks[7].pid, locks[7].start, locks[7].end), (Kind::Ofd, -1, 20, None));
        assert!(locks.iter().all(|l| l.leftover.is_empty()));
    }

    #[test]
    fn refused() {
        for bad in [
            &b"1: MAGIC  ADVISORY  READ 1 fe:00:1 0 EOF\n"[..],
            b"1: POSIX  ADVISORY  READ 1 fe:00 0 EOF\n",
            b"1: POSIX  ADVISORY  READ 1 fe:00:1 0\n",
            b"POSIX  ADVISORY  READ 1 fe:00:1 0 EOF\n",
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
    fn this_kernel() {
        let locks = parse(&std::fs::read("/proc/locks").unwrap()).unwrap();
        assert!(locks.iter().all(|l| l.leftover.is_empty()));
    }
}
