//! System V objects of an ipc namespace.
//!
//! Source: proc_sysvipc(5), svipc(7); `ipc/shm.c`, `ipc/sem.c`, `ipc/msg.c`, `sysvipc_*_proc_show`.

use crate::ParseError;
use crate::field::{Line, Result, lines};

/// What all three kinds have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Perm {
    /// Key; 0 is `IPC_PRIVATE`. Printed signed.
    pub key: i32,
    /// Id.
    pub id: i32,
    /// Mode; for shared memory also `SHM_DEST` (01000) and `SHM_LOCKED` (02000).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Creator.
    pub creator_uid: u32,
    /// Creator's group.
    pub creator_gid: u32,
}

/// A shared memory segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shm {
    /// Key, id, rights.
    pub perm: Perm,
    /// Bytes asked for.
    pub size: u64,
    /// Process that made it, in the reader's pid namespace; 0 if not there.
    pub creator_pid: i32,
    /// Process that used it last.
    pub last_pid: i32,
    /// Mappings.
    pub attached: u64,
    /// Last attach, seconds since 1970; 0 never. Here and below.
    pub attach_time: u64,
    /// Last detach.
    pub detach_time: u64,
    /// Last change.
    pub change_time: u64,
    /// Resident bytes.
    pub rss: u64,
    /// Swapped bytes.
    pub swap: u64,
    /// Words after these.
    pub leftover: Vec<Vec<u8>>,
}

/// A semaphore set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sem {
    /// Key, id, rights.
    pub perm: Perm,
    /// Semaphores.
    pub count: u32,
    /// Last semop(2).
    pub op_time: u64,
    /// Last change.
    pub change_time: u64,
    /// Words after these.
    pub leftover: Vec<Vec<u8>>,
}

/// A message queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msg {
    /// Key, id, rights.
    pub perm: Perm,
    /// Bytes queued.
    pub bytes: u64,
    /// Messages queued.
    pub count: u64,
    /// Process that sent last.
    pub last_sender: i32,
    /// Process that received last.
    pub last_receiver: i32,
    /// Last send.
    pub send_time: u64,
    /// Last receive.
    pub receive_time: u64,
    /// Last change.
    pub change_time: u64,
    /// Words after these.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/sysvipc/shm`.
///
/// # Errors
/// Another heading, a malformed line, or text that is cut off.
pub fn parse_shm(text: &[u8]) -> Result<Vec<Shm>> {
    const COLUMNS: [&str; 16] = [
        "key", "shmid", "perms", "size", "cpid", "lpid", "nattch", "uid", "gid", "cuid", "cgid", "atime", "dtime",
        "ctime", "rss", "swap",
    ];
    rows("sysvipc/shm", text, &COLUMNS, |mut line| {
        let (key, id, mode) = head(&mut line)?;
        let size = line.dec("size")?;
        let creator_pid = line.dec("cpid")?;
        let last_pid = line.dec("lpid")?;
        let attached = line.dec("nattch")?;
        Ok(Shm {
            perm: owners(&mut line, key, id, mode)?,
            size,
            creator_pid,
            last_pid,
            attached,
            attach_time: line.dec("atime")?,
            detach_time: line.dec("dtime")?,
            change_time: line.dec("ctime")?,
            rss: line.dec("rss")?,
            swap: line.dec("swap")?,
            leftover: line.leftover(),
        })
    })
}

/// Parses `/proc/sysvipc/sem`.
///
/// # Errors
/// As [`parse_shm`].
pub fn parse_sem(text: &[u8]) -> Result<Vec<Sem>> {
    const COLUMNS: [&str; 10] = ["key", "semid", "perms", "nsems", "uid", "gid", "cuid", "cgid", "otime", "ctime"];
    rows("sysvipc/sem", text, &COLUMNS, |mut line| {
        let (key, id, mode) = head(&mut line)?;
        let count = line.dec("nsems")?;
        Ok(Sem {
            perm: owners(&mut line, key, id, mode)?,
            count,
            op_time: line.dec("otime")?,
            change_time: line.dec("ctime")?,
            leftover: line.leftover(),
        })
    })
}

/// Parses `/proc/sysvipc/msg`.
///
/// # Errors
/// As [`parse_shm`].
pub fn parse_msg(text: &[u8]) -> Result<Vec<Msg>> {
    const COLUMNS: [&str; 14] = [
        "key", "msqid", "perms", "cbytes", "qnum", "lspid", "lrpid", "uid", "gid", "cuid", "cgid", "stime", "rtime",
        "ctime",
    ];
    rows("sysvipc/msg", text, &COLUMNS, |mut line| {
        let (key, id, mode) = head(&mut line)?;
        let bytes = line.dec("cbytes")?;
        let count = line.dec("qnum")?;
        let last_sender = line.dec("lspid")?;
        let last_receiver = line.dec("lrpid")?;
        Ok(Msg {
            perm: owners(&mut line, key, id, mode)?,
            bytes,
            count,
            last_sender,
            last_receiver,
            send_time: line.dec("stime")?,
            receive_time: line.dec("rtime")?,
            change_time: line.dec("ctime")?,
            leftover: line.leftover(),
        })
    })
}

/// Checks the heading, since the columns have no other name; one that is added at the end shows up as leftover.
fn rows<T>(
    file: &'static str,
    text: &[u8],
    columns: &[&'static str],
    row: impl Fn(Line<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut rest = lines(file, text)?.into_iter();
    let mut heading = rest.next().ok_or(ParseError { file, line: 1, what: "heading" })?;
    for column in columns {
        if heading.word() != Some(column.as_bytes()) {
            return Err(heading.bad(column));
        }
    }
    rest.map(row).collect()
}

fn head(line: &mut Line<'_>) -> Result<(i32, i32, u32)> {
    Ok((line.dec("key")?, line.dec("id")?, line.oct("perms")?))
}

fn owners(line: &mut Line<'_>, key: i32, id: i32, mode: u32) -> Result<Perm> {
    Ok(Perm {
        key,
        id,
        mode,
        uid: line.dec("uid")?,
        gid: line.dec("gid")?,
        creator_uid: line.dec("cuid")?,
        creator_gid: line.dec("cgid")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{parse_msg, parse_sem, parse_shm};
    use crate::hostile;

    const SHM: &[u8] = b"\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
     17185          0  3600                  8192  6036  6037      1     1     2     3     4 1795491027          5 1795491028                  4096                    12
";
    const SEM: &[u8] = b"\
       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime
         0          0   640          3     0     0     0     0          0 1795491027
";
    const MSG: &[u8] = b"\
       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      rtime      ctime
        -2          0   600           7          1     8     9 65534     0     0     0          0          0 1795491027
";

    #[test]
    fn captured() {
        let shm = &parse_shm(SHM).unwrap()[0];
        assert_eq!((shm.perm.key, shm.perm.mode, shm.size, shm.attached), (0x4321, 0o3600, 8192, 1));
        assert_eq!((shm.creator_pid, shm.last_pid, shm.rss, shm.swap), (6036, 6037, 4096, 12));
        assert_eq!([shm.perm.uid, shm.perm.gid, shm.perm.creator_uid, shm.perm.creator_gid], [1, 2, 3, 4]);
        assert_eq!((shm.attach_time, shm.detach_time, shm.change_time), (1_795_491_027, 5, 1_795_491_028));
        let sem = &parse_sem(SEM).unwrap()[0];
        assert_eq!((sem.perm.mode, sem.count, sem.op_time, sem.change_time), (0o640, 3, 0, 1_795_491_027));
        let msg = &parse_msg(MSG).unwrap()[0];
        assert_eq!((msg.perm.key, msg.bytes, msg.count, msg.perm.uid), (-2, 7, 1, 65534));
        assert_eq!((msg.last_sender, msg.last_receiver), (8, 9));
    }

    #[test]
    fn other_columns() {
        assert_eq!(parse_sem(SHM).unwrap_err().what, "semid");
        let more = [SEM.strip_suffix(b"\n").unwrap(), b" 42\n"].concat();
        assert_eq!(parse_sem(&more).unwrap()[0].leftover, [b"42"]);
        assert!(parse_shm(b"").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(SHM, parse_shm);
        hostile::survives(SEM, parse_sem);
        hostile::survives(MSG, parse_msg);
        hostile::refuses_cuts(MSG, parse_msg);
    }

    #[test]
    fn this_kernel() {
        let read = |name| std::fs::read(format!("/proc/sysvipc/{name}")).unwrap();
        assert!(parse_shm(&read("shm")).unwrap().iter().all(|s| s.leftover.is_empty()));
        assert!(parse_sem(&read("sem")).unwrap().iter().all(|s| s.leftover.is_empty()));
        assert!(parse_msg(&read("msg")).unwrap().iter().all(|s| s.leftover.is_empty()));
    }
}
