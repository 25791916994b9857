//! What rustix lacks of terminals (ioctl_tty(2), termios(3), pty(7)), and a look at what waits in a pseudo-terminal.
//!
//! Nothing peeks into a terminal's queues. To know what waits there it must be read and written back; whoever does that
//! must not be killed in between. So a child does it, with all signals blocked, which outlives us if need be: it takes,
//! puts back, and only then tells.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::child::{forked, reap, spawn};
use crate::{Result, SysError};

const ICANON: u32 = 0o2;
const IEXTEN: u32 = 0o100_000;
const OPOST: u32 = 1;
const IXON: u32 = 0o2000;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VEOF: usize = 4;
const VSTART: usize = 8;
const VSTOP: usize = 9;
const VEOL: usize = 11;
const VEOL2: usize = 16;

/// `struct termios2`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Termios {
    pub iflag: u32,
    pub oflag: u32,
    pub cflag: u32,
    pub lflag: u32,
    pub line: u8,
    pub cc: [u8; 19],
    pub ispeed: u32,
    pub ospeed: u32,
}

/// What waits in a pseudo-terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queues {
    /// Written by the slave's side, for the master to read.
    pub output: Vec<u8>,
    /// Written by the master's side, for the slave to read.
    pub input: Vec<u8>,
    /// In canonical mode, where each line of `input` ends; what is behind the last is a line not finished yet.
    pub ends: Vec<u32>,
}

fn control<T>(fd: BorrowedFd<'_>, request: u64, value: &mut T) -> std::result::Result<(), Errno> {
    // SAFETY: every caller pairs a request with the type that the kernel reads or writes for it.
    let ret = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(value)) };
    if ret < 0 { Err(last()) } else { Ok(()) }
}

fn last() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error().filter(|e| *e != 0);
    Errno::from_raw_os_error(raw.unwrap_or(libc::EIO))
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident $request:literal $shown:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// `ENOTTY`, `EIO` after a hang-up.
        pub fn $name(fd: BorrowedFd<'_>) -> Result<u32> {
            let mut value = 0u32;
            control(fd, $request, &mut value).map_err(|e| SysError::new("ioctl", concat!($shown), e))?;
            Ok(value)
        }
    )*};
}

numbers! {
    /// The number of a master's slave below /dev/pts (`TIOCGPTN`).
    index 0x8004_5430 "TIOCGPTN";
    /// Whether a master's slave is locked (`TIOCGPTLCK`).
    locked 0x8004_5439 "TIOCGPTLCK";
    /// Whether a master is in packet mode (`TIOCGPKT`).
    packet 0x8004_5438 "TIOCGPKT";
    /// Whether a terminal is in exclusive mode (`TIOCGEXCL`).
    exclusive 0x8004_5440 "TIOCGEXCL";
    /// The device number of the terminal behind /dev/tty, as tty_nr in proc_pid_stat(5) (`TIOCGDEV`).
    device 0x8004_5432 "TIOCGDEV";
    /// The line discipline, 0 for `N_TTY` (`TIOCGETD`).
    discipline 0x5424 "TIOCGETD";
}

/// Locks or unlocks a master's slave (`TIOCSPTLCK`).
///
/// # Errors
/// `ENOTTY`.
pub fn set_locked(fd: BorrowedFd<'_>, locked: bool) -> Result<()> {
    control(fd, 0x4004_5431, &mut i32::from(locked)).map_err(|e| SysError::new("ioctl", "TIOCSPTLCK", e))
}

/// Packet mode of a master (`TIOCPKT`).
///
/// # Errors
/// `ENOTTY`.
pub fn set_packet(fd: BorrowedFd<'_>, packet: bool) -> Result<()> {
    control(fd, 0x5420, &mut i32::from(packet)).map_err(|e| SysError::new("ioctl", "TIOCPKT", e))
}

/// Exclusive mode (`TIOCEXCL`).
///
/// # Errors
/// `ENOTTY`.
pub fn set_exclusive(fd: BorrowedFd<'_>) -> Result<()> {
    control(fd, 0x540c, &mut 0i32).map_err(|e| SysError::new("ioctl", "TIOCEXCL", e))
}

/// `TCGETS2`; of a master, those of its slave.
///
/// # Errors
/// `EIO` for a slave whose master has gone.
pub fn termios(fd: BorrowedFd<'_>) -> Result<Termios> {
    let mut termios = Termios::default();
    control(fd, 0x802c_542a, &mut termios).map_err(|e| SysError::new("ioctl", "TCGETS2", e))?;
    Ok(termios)
}

/// `TCSETS2`.
///
/// # Errors
/// `EIO` for a slave whose master has gone.
pub fn set_termios(fd: BorrowedFd<'_>, termios: &Termios) -> Result<()> {
    set(fd, termios).map_err(|e| SysError::new("ioctl", "TCSETS2", e))
}

fn set(fd: BorrowedFd<'_>, termios: &Termios) -> std::result::Result<(), Errno> {
    let mut termios = *termios;
    control(fd, 0x402c_542b, &mut termios)
}

/// What poll says now of those `events`, errors and hang-ups.
///
/// # Errors
/// What poll(2) says.
pub fn ready(fd: BorrowedFd<'_>, events: PollFlags) -> Result<PollFlags> {
    polled(fd, events).map_err(|e| SysError::new("poll", format!("{events:?}"), e))
}

fn polled(fd: BorrowedFd<'_>, events: PollFlags) -> std::result::Result<PollFlags, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents())
}

/// Suspends output as `^S` would, or, where that has no meaning, as tcflow(3).
///
/// # Errors
/// The kernel's.
pub fn suspend_output(master: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<()> {
    const TCXONC: u64 = 0x540a;
    let named = |e| SysError::new("ioctl", "TCXONC, TCOOFF", e);
    let termios = termios(slave)?;
    if termios.iflag & IXON == 0 {
        // SAFETY: takes a number, no pointer.
        let ret = unsafe { libc::ioctl(slave.as_raw_fd(), TCXONC, libc::TCOOFF) };
        return if ret < 0 { Err(named(last())) } else { Ok(()) };
    }
    let mut own = termios;
    own.lflag = 0;
    own.cc[VSTOP] = 0x13;
    set_termios(slave, &own)?;
    let stopped = write_all(master, &[0x13]).and_then(|()| {
        for _ in 0..200 {
            if !polled(slave, PollFlags::OUT)?.contains(PollFlags::OUT) {
                return Ok(());
            }
            pause_a_moment();
        }
        Err(Errno::TIMEDOUT)
    });
    set_termios(slave, &termios)?;
    stopped.map_err(named)
}

/// What waits in a pseudo-terminal. It waits there afterwards as before, even if we die meanwhile.
///
/// # Errors
/// What fork and the terminal's calls say; `EIO` when the child was killed.
pub fn look(master: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<Queues> {
    let termios = termios(slave)?;
    let canonical = termios.lflag & ICANON != 0;
    let has = |fd| ready(fd, PollFlags::IN).map(|r| r.contains(PollFlags::IN));
    // Only an unfinished line is not told by poll, and short of VMIN bytes, which can be counted.
    if !canonical && waiting(slave) == 0 && !has(master)? && !has(slave)? {
        return Ok(Queues::default());
    }
    let packet = packet(master)? != 0;
    // All memory that the child needs: it must not allocate.
    let mut queues = Queues {
        output: Vec::with_capacity(1 << 18),
        input: Vec::with_capacity(1 << 18),
        ends: Vec::with_capacity(1 << 17),
    };
    let mut chunk = vec![0u8; 8192];
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SysError::new("pipe2", "O_CLOEXEC", e))?;
    let child = forked(|done| {
        let packet_off = if packet { control(master, 0x5420, &mut 0i32) } else { Ok(()) };
        let taken = packet_off.and_then(|()| take(master, slave, &termios, &mut queues, &mut chunk));
        let back = put(master, slave, &termios, &queues);
        if packet {
            let _ = control(master, 0x5420, &mut 1i32);
        }
        done();
        match taken.and(back) {
            Ok(()) => tell(write.as_fd(), &queues),
            Err(e) => e.raw_os_error(),
        }
    })?;
    drop(write);
    let mut told = Vec::new();
    let heard = std::io::Read::read_to_end(&mut std::fs::File::from(read), &mut told);
    let status = child.reap()?;
    heard.map_err(|e| SysError::io("read", "a pipe", &e))?;
    if status != 0 {
        let errno = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EIO };
        return Err(SysError::new("read", "the queues of a terminal", Errno::from_raw_os_error(errno)));
    }
    heard_of(&told).ok_or_else(|| SysError::new("read", "the queues of a terminal", Errno::IO))
}

/// Puts `queues` into an empty pseudo-terminal and leaves it with these settings.
///
/// # Errors
/// What the terminal's calls say; `EAGAIN` when it does not take all.
pub fn fill(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, termios: &Termios, queues: &Queues) -> Result<()> {
    put(master, slave, termios, queues).map_err(|e| SysError::new("write", "to the queues of a terminal", e))
}

fn waiting(fd: BorrowedFd<'_>) -> usize {
    let mut n = 0i32;
    control(fd, libc::FIONREAD, &mut n).map_or(0, |()| usize::try_from(n).unwrap_or(0))
}

fn take(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    termios: &Termios,
    queues: &mut Queues,
    chunk: &mut [u8],
) -> std::result::Result<(), Errno> {
    let Queues { output, input, ends } = queues;
    if termios.lflag & ICANON != 0 {
        while readable(slave)? && ends.len() < ends.capacity() {
            let n = rustix::io::read(slave, &mut *chunk)?;
            input.extend_from_slice(&chunk[..n]);
            ends.push(u32::try_from(input.len()).unwrap_or(u32::MAX));
        }
    }
    let mut raw = *termios;
    raw.lflag &= !ICANON;
    (raw.cc[VMIN], raw.cc[VTIME]) = (0, 0);
    set(slave, &raw)?;
    take_all(slave, input, chunk)?;
    take_all(master, output, chunk)
}

fn readable(fd: BorrowedFd<'_>) -> std::result::Result<bool, Errno> {
    Ok(polled(fd, PollFlags::IN)?.contains(PollFlags::IN))
}

fn take_all(fd: BorrowedFd<'_>, into: &mut Vec<u8>, chunk: &mut [u8]) -> std::result::Result<(), Errno> {
    while readable(fd)? && into.len() + chunk.len() <= into.capacity() {
        let n = rustix::io::read(fd, &mut *chunk)?;
        if n == 0 {
            break;
        }
        into.extend_from_slice(&chunk[..n]);
    }
    Ok(())
}

/// Writes back with all processing off, and sets `termios`. Goes on after an error: settings come back in any case.
fn put(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    termios: &Termios,
    queues: &Queues,
) -> std::result::Result<(), Errno> {
    let Queues { output, input, ends } = queues;
    let canonical = termios.lflag & ICANON != 0;
    let mut raw = *termios;
    // Without IXON suspended output would go on; with it, its characters must not be among those written.
    raw.iflag = termios.iflag & IXON;
    raw.oflag &= !OPOST;
    raw.lflag = if canonical { ICANON | termios.lflag & IEXTEN } else { 0 };
    raw.cc = [0; 19];
    (raw.cc[VEOL], raw.cc[VEOL2]) = (termios.cc[VEOL], termios.cc[VEOL2]);
    let mut absent = (1..=255u8).filter(|b| !input.contains(b) && *b != b'\n' && !raw.cc.contains(b));
    let [eof, start, stop] = [4, 0x11, 0x13].map(|usual| absent.next().unwrap_or(usual));
    (raw.cc[VEOF], raw.cc[VSTART], raw.cc[VSTOP]) = (eof, start, stop);
    let done = set(slave, &raw).and_then(|()| {
        let mut from = 0;
        for end in ends {
            let line = input.get(from..*end as usize).unwrap_or_default();
            write_all(master, line)?;
            let ends_itself = |b: &u8| *b == b'\n' || *b != 0 && [raw.cc[VEOL], raw.cc[VEOL2]].contains(b);
            if !line.last().is_some_and(ends_itself) {
                write_all(master, &[eof])?;
            }
            from = *end as usize;
        }
        let rest = input.get(from..).unwrap_or_default();
        write_all(master, rest)?;
        settle(slave, if canonical { from } else { input.len() }, !input.is_empty() || !ends.is_empty());
        write_all(slave, output)
    });
    let restored = set(slave, termios);
    done.and(restored)
}

/// Bytes written to the master reach the slave's queue a moment later; the settings must not change before.
fn settle(slave: BorrowedFd<'_>, expected: usize, any: bool) {
    for _ in 0..200 {
        if !any {
            return;
        }
        // With nothing to read, poll waits for the bytes on their way.
        let _ = polled(slave, PollFlags::IN);
        if waiting(slave) >= expected.min(4095) {
            break;
        }
        pause_a_moment();
    }
    // An unfinished line behind finished ones cannot be seen to arrive.
    pause_a_moment();
    pause_a_moment();
}

fn pause_a_moment() {
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let _ = poll(&mut [], Some(&moment));
}

/// Never blocks, whatever the description's flags are.
fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
    let mut patience = 500;
    while !bytes.is_empty() {
        if !polled(fd, PollFlags::OUT)?.contains(PollFlags::OUT) {
            patience -= 1;
            if patience == 0 {
                return Err(Errno::AGAIN);
            }
            pause_a_moment();
            continue;
        }
        let n = rustix::io::write(fd, &bytes[..bytes.len().min(256)])?;
        bytes = &bytes[n..];
    }
    Ok(())
}

fn tell(pipe: BorrowedFd<'_>, queues: &Queues) -> i32 {
    let Queues { output, input, ends } = queues;
    let whole = |mut bytes: &[u8]| {
        while !bytes.is_empty() {
            match rustix::io::write(pipe, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    };
    let lengths = [output.len(), input.len(), ends.len()];
    let told = lengths.iter().all(|n| whole(&n.to_ne_bytes()))
        && whole(output)
        && whole(input)
        && ends.iter().all(|e| whole(&e.to_ne_bytes()));
    if told { 0 } else { libc::EPIPE }
}

fn heard_of(told: &[u8]) -> Option<Queues> {
    let (lengths, rest) = told.split_at_checked(24)?;
    let length = |i: usize| Some(usize::from_ne_bytes(lengths.get(i * 8..i * 8 + 8)?.try_into().ok()?));
    let (output, rest) = rest.split_at_checked(length(0)?)?;
    let (input, rest) = rest.split_at_checked(length(1)?)?;
    let (ends, _) = rest.as_chunks::<4>();
    let ends: Vec<u32> = ends.iter().map(|e| u32::from_ne_bytes(*e)).collect();
    (ends.len() == length(2)?).then(|| Queues { output: output.to_vec(), input: input.to_vec(), ends })
}

/// `path` opened by a process whose controlling terminal is `slave`: for /dev/tty, which is somebody else's for each.
///
/// # Errors
/// `EPERM` when the terminal controls another session already; what openat says.
pub fn open_controlling(
    slave: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    path: &std::ffi::CStr,
    flags: u32,
) -> Result<OwnedFd> {
    let shown = || format!("{}, {flags:#x}", path.to_string_lossy());
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SysError::new("pipe2", "O_CLOEXEC", e))?;
    let (slave, root) = (slave.as_raw_fd(), root.as_raw_fd());
    // The child shares our descriptor table: what it opens is ours.
    let child = spawn(libc::CLONE_FILES, || {
        let flags = flags.cast_signed() | libc::O_CLOEXEC;
        // SAFETY: plain system calls with numbers and one string that outlives them.
        let number: RawFd = unsafe {
            if libc::setsid() < 0 || libc::ioctl(slave, libc::TIOCSCTTY, 0) < 0 {
                return last().raw_os_error();
            }
            libc::openat(root, path.as_ptr(), flags)
        };
        if number < 0 {
            return last().raw_os_error();
        }
        let told = rustix::io::write(&write, &number.to_ne_bytes());
        told.map_or(libc::EPIPE, |_| 0)
    })?;
    let status = reap(child)?;
    drop(write);
    if status != 0 {
        let errno = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EIO };
        return Err(SysError::new("openat", shown(), Errno::from_raw_os_error(errno)));
    }
    let mut number = [0; 4];
    rustix::io::read(read.as_fd(), &mut number).map_err(|e| SysError::new("read", "a pipe", e))?;
    // SAFETY: the child opened this descriptor in our table and told nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) })
}
