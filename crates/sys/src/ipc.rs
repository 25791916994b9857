//! System V shared memory, semaphores and message queues (svipc(7)).

use std::ptr::NonNull;

use rustix::io::Errno;

use crate::{Result, SysError};

/// Owner and permission bits of an object, as `IPC_SET` takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Owner, as this user namespace counts.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// `rwxrwxrwx`.
    pub mode: u16,
}

const EXCLUSIVELY: i32 = libc::IPC_CREAT | libc::IPC_EXCL;

fn id(ret: i32, call: &'static str, args: impl FnOnce() -> String) -> Result<i32> {
    if ret < 0 { Err(SysError::last(call, args())) } else { Ok(ret) }
}

fn perm(rights: Rights) -> libc::ipc_perm {
    // SAFETY: integers only, for which zero is a value.
    let mut perm: libc::ipc_perm = unsafe { std::mem::zeroed() };
    perm.uid = rights.uid;
    perm.gid = rights.gid;
    perm.mode = rights.mode;
    perm
}

/// A new segment of `bytes`; its id (shmget(2)).
///
/// # Errors
/// `EEXIST` when the key is taken, `EINVAL` and `ENOSPC` at the limits in /proc/sys/kernel/shm*. Of one larger than what there is of memory
/// the kernel sets none aside (`SHM_NORESERVE`): its pages count as they come.
pub fn shm_create(key: i32, bytes: u64, mode: u16) -> Result<i32> {
    let shown = || format!("{key:#x}, {bytes}, IPC_CREAT|IPC_EXCL|{mode:#o}");
    let size = usize::try_from(bytes).map_err(|_| SysError::new("shmget", shown(), Errno::INVAL))?;
    // SAFETY: takes no pointer.
    let make =
        |more: i32| id(unsafe { libc::shmget(key, size, EXCLUSIVELY | i32::from(mode) | more) }, "shmget", shown);
    make(0).or_else(|e| if e.errno == Errno::NOMEM { make(libc::SHM_NORESERVE) } else { Err(e) })
}

/// Sets owner and mode of a segment (shmctl(2), `IPC_SET`).
///
/// # Errors
/// `EPERM`; `EINVAL` for an owner that this user namespace does not know.
pub fn shm_set(shmid: i32, rights: Rights) -> Result<()> {
    // SAFETY: integers and padding only.
    let mut set: libc::shmid_ds = unsafe { std::mem::zeroed() };
    set.shm_perm = perm(rights);
    // SAFETY: `set` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::shmctl(shmid, libc::IPC_SET, &raw mut set) };
    id(ret, "shmctl", || format!("{shmid}, IPC_SET, {rights:?}")).map(drop)
}

/// Keeps a segment out of swap (shmctl(2), `SHM_LOCK`).
///
/// # Errors
/// `EPERM`, `ENOMEM` at `RLIMIT_MEMLOCK`.
pub fn shm_lock(shmid: i32) -> Result<()> {
    // SAFETY: this command takes no pointer.
    let ret = unsafe { libc::shmctl(shmid, libc::SHM_LOCK, std::ptr::null_mut()) };
    id(ret, "shmctl", || format!("{shmid}, SHM_LOCK")).map(drop)
}

/// Removes a segment, at once or when nobody has it attached (shmctl(2), `IPC_RMID`).
///
/// # Errors
/// `EPERM`, `EINVAL` when there is none.
pub fn shm_remove(shmid: i32) -> Result<()> {
    // SAFETY: this command takes no pointer.
    let ret = unsafe { libc::shmctl(shmid, libc::IPC_RMID, std::ptr::null_mut()) };
    id(ret, "shmctl", || format!("{shmid}, IPC_RMID")).map(drop)
}

/// A segment, attached here, detached on drop. Others may write it, so it is only ever copied in and out.
#[derive(Debug)]
pub struct Attached {
    start: NonNull<u8>,
    len: usize,
}

impl Attached {
    /// Attaches a segment whose size, rounded up to whole pages, is `len` (shmat(2)).
    ///
    /// # Errors
    /// `EACCES`, `EINVAL` when there is none, `EIDRM`. `EFBIG` when `len` is larger than what the segment has.
    pub fn new(shmid: i32, len: u64, writable: bool) -> Result<Self> {
        let shown = || format!("{shmid}, NULL, {}", if writable { "0" } else { "SHM_RDONLY" });
        let bytes = usize::try_from(len).map_err(|_| SysError::new("shmat", shown(), Errno::INVAL))?;
        // SAFETY: integers and padding only.
        let mut now: libc::shmid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: `now` has the kernel's layout and outlives the call.
        id(unsafe { libc::shmctl(shmid, libc::IPC_STAT, &raw mut now) }, "shmctl", || format!("{shmid}, IPC_STAT"))?;
        if now.shm_segsz.checked_next_multiple_of(4096).is_none_or(|has| has < bytes) {
            return Err(SysError::new("shmat", shown(), Errno::FBIG));
        }
        // SAFETY: at an address of the kernel's choice it aliases no Rust object.
        let p = unsafe { libc::shmat(shmid, std::ptr::null(), if writable { 0 } else { libc::SHM_RDONLY }) };
        if p.addr() == usize::MAX {
            return Err(SysError::last("shmat", shown()));
        }
        let start = NonNull::new(p.cast()).ok_or_else(|| SysError::new("shmat", shown(), Errno::NOMEM))?;
        Ok(Self { start, len: bytes })
    }

    /// Where it is, as /proc/self/maps shows it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.addr().get() as u64
    }

    /// Which of its pages are in memory (mincore(2)): neither holes nor swapped out. As runs of bytes, start and end; it looks no further
    /// than to the page with which there are `most`. A segment may be of any size, and have next to nothing in it.
    ///
    /// # Errors
    /// `EAGAIN` when the kernel has no memory for the answer.
    pub fn resident(&self, most: u64) -> Result<Vec<(usize, usize)>> {
        const PAGE: usize = 4096;
        let mut answer = vec![0u8; 1 << 16];
        let mut out: Vec<(usize, usize)> = Vec::new();
        let (mut found, mut at) = (0, 0);
        while at < self.len && found < most {
            let bytes = (self.len - at).min(answer.len() * PAGE);
            // SAFETY: the range is mapped by us; `answer` has a byte for each page of it.
            let ret = unsafe { libc::mincore(self.start.as_ptr().add(at).cast(), bytes, answer.as_mut_ptr()) };
            id(ret, "mincore", || format!("{bytes} bytes of a segment"))?;
            let pages = answer.iter().take(bytes.div_ceil(PAGE)).enumerate();
            for (index, _) in pages.filter(|(_, page)| **page & 1 == 1) {
                let start = at + index * PAGE;
                found += 1;
                match out.last_mut().filter(|last| last.1 == start) {
                    Some(last) => last.1 += PAGE,
                    None => out.push((start, start + PAGE)),
                }
            }
            at += bytes;
        }
        Ok(out)
    }

    /// Copies out from `at`.
    ///
    /// # Panics
    /// When the range does not lie inside: our own arithmetic was wrong.
    pub fn read(&self, at: usize, buf: &mut [u8]) {
        assert!(at <= self.len && buf.len() <= self.len - at, "read outside the segment");
        // SAFETY: the range was checked; other processes may race, so no reference is made.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(at), buf.as_mut_ptr(), buf.len()) }
    }
}

/// A segment attached for writing.
#[derive(Debug)]
pub struct Writable(Attached);

impl Writable {
    /// As [`Attached::new`].
    ///
    /// # Errors
    /// As there.
    pub fn new(shmid: i32, len: u64) -> Result<Self> {
        Attached::new(shmid, len, true).map(Self)
    }

    /// Makes a hole (madvise(2), `MADV_REMOVE`); `at` and `len` are whole pages.
    ///
    /// # Errors
    /// `EINVAL` when the pages are locked.
    ///
    /// # Panics
    /// When the range does not lie inside: our own arithmetic was wrong.
    pub fn punch(&self, at: usize, len: usize) -> Result<()> {
        assert!(at <= self.0.len && len <= self.0.len - at, "a hole outside the segment");
        // SAFETY: the range was checked; no reference to it exists.
        let ret = unsafe { libc::madvise(self.0.start.as_ptr().add(at).cast(), len, libc::MADV_REMOVE) };
        id(ret, "madvise", || format!("{len} bytes of a segment, MADV_REMOVE")).map(drop)
    }

    /// Copies `bytes` in at `at`.
    ///
    /// # Panics
    /// When the range does not lie inside: our own arithmetic was wrong.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.0.len && bytes.len() <= self.0.len - at, "write outside the segment");
        // SAFETY: the range was checked, and the attachment is for writing.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.start.as_ptr().add(at), bytes.len()) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: attached by us; nothing refers to it any more.
        unsafe { libc::shmdt(self.start.as_ptr().cast()) };
    }
}

/// A new set of semaphores; its id (semget(2)).
///
/// # Errors
/// `EEXIST` when the key is taken, `EINVAL` and `ENOSPC` at the limits in /proc/sys/kernel/sem.
pub fn sem_create(key: i32, count: u32, mode: u16) -> Result<i32> {
    let shown = || format!("{key:#x}, {count}, IPC_CREAT|IPC_EXCL|{mode:#o}");
    let n = i32::try_from(count).map_err(|_| SysError::new("semget", shown(), Errno::INVAL))?;
    // SAFETY: takes no pointer.
    id(unsafe { libc::semget(key, n, EXCLUSIVELY | i32::from(mode)) }, "semget", shown)
}

fn sem_count(semid: i32) -> Result<usize> {
    // SAFETY: integers and padding only.
    let mut now: libc::semid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `now` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::semctl(semid, 0, libc::IPC_STAT, &raw mut now) };
    id(ret, "semctl", || format!("{semid}, IPC_STAT"))?;
    usize::try_from(now.sem_nsems).map_err(|_| SysError::new("semctl", format!("{semid}, IPC_STAT"), Errno::OVERFLOW))
}

/// The values of a set (semctl(2), `GETALL`).
///
/// # Errors
/// `EACCES`, `EINVAL` when there is none.
pub fn sem_values(semid: i32) -> Result<Vec<u16>> {
    let mut values = vec![0u16; sem_count(semid)?];
    // SAFETY: the number of semaphores of a set never changes, and while the id's sequence number lasts it is this set.
    let ret = unsafe { libc::semctl(semid, 0, libc::GETALL, values.as_mut_ptr()) };
    id(ret, "semctl", || format!("{semid}, GETALL"))?;
    Ok(values)
}

/// The process that changed each semaphore of a set last, 0 for none (semctl(2), `GETPID`).
///
/// # Errors
/// As [`sem_values`].
pub fn sem_pids(semid: i32) -> Result<Vec<i32>> {
    let one = |n| {
        // SAFETY: this command takes no pointer.
        let ret = unsafe { libc::semctl(semid, n, libc::GETPID) };
        id(ret, "semctl", || format!("{semid}, {n}, GETPID"))
    };
    (0..i32::try_from(sem_count(semid)?).unwrap_or(i32::MAX)).map(one).collect()
}

/// Sets the values of a set (semctl(2), `SETALL`).
///
/// # Errors
/// `ERANGE` above 32767; `EINVAL` when the set has another number of semaphores.
pub fn sem_set_values(semid: i32, values: &[u16]) -> Result<()> {
    if sem_count(semid)? != values.len() {
        return Err(SysError::new("semctl", format!("{semid}, SETALL, {} values", values.len()), Errno::INVAL));
    }
    // SAFETY: `values` has an element for each semaphore and is only read.
    let ret = unsafe { libc::semctl(semid, 0, libc::SETALL, values.as_ptr()) };
    id(ret, "semctl", || format!("{semid}, SETALL, {} values", values.len())).map(drop)
}

/// Sets owner and mode of a set (semctl(2), `IPC_SET`).
///
/// # Errors
/// As [`shm_set`].
pub fn sem_set(semid: i32, rights: Rights) -> Result<()> {
    // SAFETY: integers and padding only.
    let mut set: libc::semid_ds = unsafe { std::mem::zeroed() };
    set.sem_perm = perm(rights);
    // SAFETY: `set` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::semctl(semid, 0, libc::IPC_SET, &raw mut set) };
    id(ret, "semctl", || format!("{semid}, IPC_SET, {rights:?}")).map(drop)
}

/// Does `(semaphore, change)` operations, all or none, without waiting (semop(2)).
///
/// # Errors
/// `EAGAIN` when one would wait, `ERANGE` above 32767, `EFBIG` for a semaphore that the set does not have.
pub fn sem_op(semid: i32, changes: &[(u16, i16)]) -> Result<()> {
    const IPC_NOWAIT: i16 = 0o4000;
    let one = |(n, op): &(u16, i16)| libc::sembuf { sem_num: *n, sem_op: *op, sem_flg: IPC_NOWAIT };
    let mut ops: Vec<libc::sembuf> = changes.iter().map(one).collect();
    // SAFETY: `ops` outlives the call and its length is given.
    let ret = unsafe { libc::semop(semid, ops.as_mut_ptr(), ops.len()) };
    id(ret, "semop", || format!("{semid}, {changes:?}")).map(drop)
}

/// A new message queue; its id (msgget(2)).
///
/// # Errors
/// `EEXIST` when the key is taken, `ENOSPC` at /proc/sys/kernel/msgmni.
pub fn msg_create(key: i32, mode: u16) -> Result<i32> {
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::msgget(key, EXCLUSIVELY | i32::from(mode)) };
    id(ret, "msgget", || format!("{key:#x}, IPC_CREAT|IPC_EXCL|{mode:#o}"))
}

/// How many bytes a queue takes: `msg_qbytes` (msgctl(2), `IPC_STAT`).
///
/// # Errors
/// `EACCES`, `EINVAL` when there is none.
pub fn msg_limit(msqid: i32) -> Result<u64> {
    // SAFETY: integers and padding only.
    let mut now: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: `now` has the kernel's layout and outlives the call.
    id(unsafe { libc::msgctl(msqid, libc::IPC_STAT, &raw mut now) }, "msgctl", || format!("{msqid}, IPC_STAT"))?;
    Ok(now.msg_qbytes)
}

/// Sets owner, mode and the bytes that a queue takes (msgctl(2), `IPC_SET`).
///
/// # Errors
/// As [`shm_set`]; `EPERM` for a limit above /proc/sys/kernel/msgmnb.
pub fn msg_set(msqid: i32, rights: Rights, limit: u64) -> Result<()> {
    // SAFETY: integers and padding only.
    let mut set: libc::msqid_ds = unsafe { std::mem::zeroed() };
    set.msg_perm = perm(rights);
    set.msg_qbytes = limit;
    // SAFETY: `set` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::msgctl(msqid, libc::IPC_SET, &raw mut set) };
    id(ret, "msgctl", || format!("{msqid}, IPC_SET, {rights:?}, {limit} bytes")).map(drop)
}

const TYPE: usize = std::mem::size_of::<libc::c_long>();

/// The type and body of message number `index`, which stays; `None` behind the last (msgrcv(2), `MSG_COPY`).
///
/// # Errors
/// `E2BIG` when it has more than `most` bytes, `ENOSYS` without `CONFIG_CHECKPOINT_RESTORE`, `EINVAL` when it has more
/// than /proc/sys/kernel/msgmax.
pub fn msg_peek(msqid: i32, index: u32, most: usize) -> Result<Option<(i64, Vec<u8>)>> {
    let mut buffer = vec![0u8; TYPE + most];
    let flags = libc::MSG_COPY | libc::IPC_NOWAIT;
    // SAFETY: `buffer` has room for the type and `most` bytes; the kernel does not mind its alignment.
    let n = unsafe { libc::msgrcv(msqid, buffer.as_mut_ptr().cast(), most, libc::c_long::from(index), flags) };
    let Ok(n) = usize::try_from(n) else {
        let error = SysError::last("msgrcv", format!("{msqid}, {most}, {index}, MSG_COPY|IPC_NOWAIT"));
        return if error.errno == Errno::NOMSG { Ok(None) } else { Err(error) };
    };
    let body = buffer.split_off(TYPE);
    let kind = buffer.try_into().map(i64::from_ne_bytes).unwrap_or(0);
    Ok(Some((kind, body.get(..n).unwrap_or_default().to_vec())))
}

/// Sends a message without waiting (msgsnd(2)).
///
/// # Errors
/// `EAGAIN` when the queue is full, `EINVAL` for a type below 1 or more than /proc/sys/kernel/msgmax bytes.
pub fn msg_send(msqid: i32, kind: i64, body: &[u8]) -> Result<()> {
    let message = [&kind.to_ne_bytes(), body].concat();
    // SAFETY: `message` holds the type and the body, and is only read.
    let ret = unsafe { libc::msgsnd(msqid, message.as_ptr().cast(), body.len(), libc::IPC_NOWAIT) };
    id(ret, "msgsnd", || format!("{msqid}, {kind}, {} bytes, IPC_NOWAIT", body.len())).map(drop)
}
