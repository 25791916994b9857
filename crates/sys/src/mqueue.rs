//! POSIX message queues (mq_overview(7)).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::child::{forked, reap, spawn};
use crate::{Errno, Result, SysError};

/// `struct mq_attr`: longs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Attributes {
    pub flags: i64,
    /// Messages at most.
    pub most: i64,
    /// Bytes of a message at most.
    pub size: i64,
    /// Messages that wait.
    pub waiting: i64,
    reserved: [i64; 4],
}

/// A message: its priority and its bytes.
pub type Message = (u32, Vec<u8>);

/// Makes a queue, which must not exist, for reading and writing without waiting.
///
/// # Errors
/// `EEXIST`; `EINVAL` beyond `fs.mqueue.msg_max` or `msgsize_max`, `ENOSPC` beyond `queues_max`, `EMFILE` beyond `RLIMIT_MSGQUEUE`.
pub fn create(name: &[u8], most: u32, size: u32) -> Result<OwnedFd> {
    let path = path(name)?;
    let attributes = Attributes { most: i64::from(most), size: i64::from(size), ..Attributes::default() };
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a string that ends and attributes of the kernel's layout, which outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_mq_open, path.as_ptr(), flags, 0o600, &raw const attributes) };
    match i32::try_from(ret) {
        // SAFETY: the kernel has just made this descriptor; nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(SysError::last("mq_open", format!("{path:?}, O_CREAT|O_EXCL, {most} of {size} bytes"))),
    }
}

/// Opens a queue that exists; `flags` as for open(2).
///
/// # Errors
/// `ENOENT`, `EACCES`.
pub fn open(name: &[u8], flags: u32) -> Result<OwnedFd> {
    let path = path(name)?;
    let flags = (flags.cast_signed() & !libc::O_CREAT) | libc::O_CLOEXEC;
    // SAFETY: a string that ends; nothing is made, so there are no attributes.
    let ret = unsafe { libc::syscall(libc::SYS_mq_open, path.as_ptr(), flags, 0, std::ptr::null::<Attributes>()) };
    match i32::try_from(ret) {
        // SAFETY: the kernel has just made this descriptor; nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(SysError::last("mq_open", format!("{path:?}, {flags:#o}"))),
    }
}

/// Removes a name.
///
/// # Errors
/// `ENOENT`.
pub fn unlink(name: &[u8]) -> Result<()> {
    let path = path(name)?;
    // SAFETY: a string that ends.
    let ret = unsafe { libc::syscall(libc::SYS_mq_unlink, path.as_ptr()) };
    if ret < 0 { Err(SysError::last("mq_unlink", format!("{path:?}"))) } else { Ok(()) }
}

/// What a queue is like.
///
/// # Errors
/// `EBADF` for something else.
pub fn attributes(queue: BorrowedFd<'_>) -> Result<Attributes> {
    let (raw, mut now) = (queue.as_raw_fd(), Attributes::default());
    // SAFETY: attributes of the kernel's layout, which outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_mq_getsetattr, raw, std::ptr::null::<Attributes>(), &raw mut now) };
    if ret < 0 { Err(SysError::last("mq_getsetattr", raw.to_string())) } else { Ok(now) }
}

/// Adds a message.
///
/// # Errors
/// `EAGAIN` when the queue is full, `EMSGSIZE`, `EINVAL` for a priority that is none.
pub fn send(queue: BorrowedFd<'_>, priority: u32, bytes: &[u8]) -> Result<()> {
    let shown = |errno| SysError::new("mq_timedsend", format!("{} bytes, {priority}", bytes.len()), errno);
    put(queue.as_raw_fd(), priority, bytes).map_err(shown)
}

/// The messages of a queue, in the order in which they will be received. They are taken and put back at once, by a child that survives us:
/// the kernel shows them to nobody else. Nobody else may use the queue meanwhile, nor wait to be notified. `queue`: for reading and writing,
/// without waiting; `bytes`: of all messages.
///
/// # Errors
/// What receiving and sending say; `EAGAIN` when messages come or go meanwhile.
pub fn look(queue: BorrowedFd<'_>, bytes: usize) -> Result<Vec<Message>> {
    let attributes = attributes(queue)?;
    let length = |n: i64| usize::try_from(n).unwrap_or(0);
    let (count, size, raw) = (length(attributes.waiting), length(attributes.size), queue.as_raw_fd());
    if count == 0 {
        return Ok(Vec::new());
    }
    // All memory that the child needs: it must not allocate.
    let mut data = vec![0_u8; bytes.saturating_add(size)];
    let mut heads: Vec<(u32, usize)> = Vec::with_capacity(count);
    let mut told: Vec<u8> = Vec::with_capacity(count * 8 + bytes);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SysError::new("pipe2", "O_CLOEXEC", e))?;
    let child = forked(|done| {
        let taken = take_all(raw, count, &mut data, &mut heads);
        let back = put_all(raw, &data, &heads);
        done();
        match taken.and(back) {
            Ok(()) => tell(write.as_fd(), &data, &heads, &mut told),
            Err(e) => e.raw_os_error(),
        }
    })?;
    drop(write);
    let mut heard = Vec::new();
    let hearing = std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut heard);
    let status = child.reap()?;
    hearing.map_err(|e| SysError::io("read", "a pipe", &e))?;
    if status != 0 {
        let errno = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EIO };
        return Err(SysError::said("mq_timedreceive", "the messages of a queue", errno));
    }
    parse(&heard)
        .filter(|all| all.len() == count)
        .ok_or_else(|| SysError::new("mq_timedreceive", "the messages of a queue", Errno::AGAIN))
}

/// A child that sends an empty message to an empty queue and takes it back, as soon as it is told to: whoever waits to be notified is. It survives us
/// once it is told; before, it ends with us.
#[derive(Debug)]
pub struct Nudge {
    child: i32,
    go: OwnedFd,
}

impl Nudge {
    /// `queue`: for reading and writing, without waiting.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(queue: BorrowedFd<'_>) -> Result<Nudge> {
        let size = usize::try_from(attributes(queue)?.size).unwrap_or(0);
        let mut data = vec![0_u8; size];
        let mut heads: Vec<(u32, usize)> = Vec::with_capacity(1);
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| SysError::new("pipe2", "O_CLOEXEC", e))?;
        let (raw, other) = (queue.as_raw_fd(), write.as_raw_fd());
        let child = spawn(libc::CLONE_UNTRACED, || {
            // SAFETY: the child's own copy, which nobody in it uses: else it would never see our end.
            unsafe { libc::close(other) };
            let mut told = [0_u8; 1];
            if rustix::io::read(&read, &mut told) != Ok(1) {
                return 0;
            }
            match put(raw, 0, &[]).and_then(|()| take_all(raw, 1, &mut data, &mut heads)) {
                Ok(()) => 0,
                Err(e) => e.raw_os_error(),
            }
        })?;
        Ok(Nudge { child, go: write })
    }

    /// Tells it.
    ///
    /// # Errors
    /// What sending and receiving say.
    pub fn go(self) -> Result<()> {
        let told = rustix::io::write(&self.go, &[1]).map_err(|e| SysError::new("write", "a pipe", e));
        drop(self.go);
        let status = reap(self.child)?;
        told?;
        match libc::WEXITSTATUS(status) {
            0 if libc::WIFEXITED(status) => Ok(()),
            errno => {
                Err(SysError::said("mq_timedsend", "an empty message", if errno == 0 { libc::EIO } else { errno }))
            }
        }
    }
}

fn take_all(
    queue: i32,
    count: usize,
    data: &mut [u8],
    heads: &mut Vec<(u32, usize)>,
) -> std::result::Result<(), Errno> {
    let mut from = 0;
    for _ in 0..count {
        let room = data.get_mut(from..).ok_or(Errno::AGAIN)?;
        let mut priority = 0_u32;
        // SAFETY: the buffer is as long as is said, and the priority outlives the call.
        let got = unsafe {
            libc::syscall(
                libc::SYS_mq_timedreceive,
                queue,
                room.as_mut_ptr(),
                room.len(),
                &raw mut priority,
                std::ptr::null::<libc::timespec>(),
            )
        };
        let got = usize::try_from(got).map_err(|_| last())?;
        heads.push((priority, got));
        from += got;
    }
    Ok(())
}

fn put_all(queue: i32, data: &[u8], heads: &[(u32, usize)]) -> std::result::Result<(), Errno> {
    let mut from = 0;
    for (priority, length) in heads {
        put(queue, *priority, data.get(from..from + length).unwrap_or_default())?;
        from += length;
    }
    Ok(())
}

fn put(queue: i32, priority: u32, bytes: &[u8]) -> std::result::Result<(), Errno> {
    // SAFETY: the buffer is as long as is said.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mq_timedsend,
            queue,
            bytes.as_ptr(),
            bytes.len(),
            priority,
            std::ptr::null::<libc::timespec>(),
        )
    };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Priority, length, bytes of each, into `told`, which has room for them, and through the pipe.
fn tell(pipe: BorrowedFd<'_>, data: &[u8], heads: &[(u32, usize)], told: &mut Vec<u8>) -> i32 {
    let mut from = 0;
    for (priority, length) in heads {
        told.extend_from_slice(&priority.to_ne_bytes());
        told.extend_from_slice(&u32::try_from(*length).unwrap_or(u32::MAX).to_ne_bytes());
        told.extend_from_slice(data.get(from..from + length).unwrap_or_default());
        from += length;
    }
    let mut rest = told.as_slice();
    while !rest.is_empty() {
        match rustix::io::write(pipe, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return e.raw_os_error(),
        }
    }
    0
}

fn parse(mut rest: &[u8]) -> Option<Vec<Message>> {
    let mut out = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| rest.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (priority, end) = (word(0)?, 8 + usize::try_from(word(4)?).ok()?);
        out.push((priority, rest.get(8..end)?.to_vec()));
        rest = rest.get(end..)?;
    }
    Some(out)
}

/// The system calls take names without the slash.
fn path(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| SysError::new("mq_open", name.escape_ascii().to_string(), Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_where_they_are() {
        let name = format!("yendor-mqueue-{}", std::process::id());
        let queue = match create(name.as_bytes(), 10, 100) {
            // A kernel, or an account, without queues.
            Err(e) if matches!(e.errno, Errno::NOSYS | Errno::MFILE) => return,
            queue => queue.unwrap(),
        };
        assert_eq!(create(name.as_bytes(), 10, 100).unwrap_err().errno, Errno::EXIST);
        unlink(name.as_bytes()).unwrap();
        assert_eq!(look(queue.as_fd(), 0).unwrap(), []);
        let sent: [Message; 5] =
            [(0, b"last".to_vec()), (7, vec![1; 100]), (7, Vec::new()), (32767, b"first".to_vec()), (0, vec![0])];
        for (priority, bytes) in &sent {
            send(queue.as_fd(), *priority, bytes).unwrap();
        }
        let order = [3, 1, 2, 0, 4].map(|i: usize| sent[i].clone());
        for _ in 0..2 {
            assert_eq!(look(queue.as_fd(), 110).unwrap(), order);
        }
        assert_eq!(attributes(queue.as_fd()).unwrap().waiting, 5);
        assert_eq!(send(queue.as_fd(), 1, &[0; 101]).unwrap_err().errno, Errno::MSGSIZE);
    }

    #[test]
    fn what_a_pipe_says_is_taken_apart_or_not_at_all() {
        let one = [3_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat();
        assert_eq!(parse(&[&one[..], b"ab"].concat()), Some(vec![(3, b"ab".to_vec())]));
        assert!(parse(&[&one[..], b"a"].concat()).is_none() && parse(&one[..5]).is_none());
        assert_eq!(parse(&[]), Some(Vec::new()));
    }
}
