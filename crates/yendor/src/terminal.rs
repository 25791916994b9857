//! The caller's terminal in raw mode, connected with one in a container.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use yendor_engine::process::Signals;

use crate::failure::Failure;
use crate::modes::Modes;
use crate::{container, signal};

/// Why a relay came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The other side is closed.
    Closed,
    /// The caller left with ctrl-p ctrl-q.
    Detached,
}

/// The caller's terminal while it is raw; as before when this goes.
struct Raw {
    fd: OwnedFd,
    before: Termios,
}

impl Raw {
    /// `None` where there is no terminal.
    fn enter(fd: BorrowedFd<'_>) -> Result<Option<Raw>, Failure> {
        if !isatty(fd) {
            return Ok(None);
        }
        let failed = |e: Errno| Failure::Failed(format!("the caller's terminal: {e}"));
        let before = tcgetattr(fd).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        let kept = rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(failed)?;
        tcsetattr(fd, OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Some(Raw { fd: kept, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done if the terminal has gone away.
        let _ = tcsetattr(&self.fd, OptionalActions::Drain, &self.before);
    }
}

/// Finds the keys that leave a terminal among what is typed.
#[derive(Debug, Default)]
struct DetachKeys {
    /// ctrl-p has come, and is held back.
    begun: bool,
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

impl DetachKeys {
    /// Appends what is for the other side; true when the keys came.
    fn take(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (self.begun, byte) {
                (true, CTRL_Q) => return true,
                (true, CTRL_P) => out.push(CTRL_P),
                (true, _) => {
                    self.begun = false;
                    out.extend([CTRL_P, byte]);
                }
                (false, CTRL_P) => self.begun = true,
                (false, _) => out.push(byte),
            }
        }
        false
    }
}

/// A connection between the caller's descriptors and a terminal's master.
pub struct Relay<'a> {
    /// The other side.
    pub master: &'a OwnedFd,
    /// The caller's signals, SIGWINCH among them.
    pub signals: &'a Signals,
    /// Who gets them, SIGWINCH aside.
    pub target: &'a OwnedFd,
    /// A pidfd that becomes readable when nothing more will come.
    pub ended: &'a OwnedFd,
    /// Whether ctrl-p ctrl-q leaves.
    pub detachable: bool,
    /// Whether programs have drawn on it already.
    pub drawn: bool,
}

impl Relay<'_> {
    /// Relays until the other side is closed, or the caller leaves. What the caller's terminal was told to be is noted.
    pub fn run(&self, input: BorrowedFd<'_>, output: BorrowedFd<'_>, modes: &mut Modes) -> Result<End, Failure> {
        let _raw = Raw::enter(input)?;
        take_over(input, self.master, self.drawn);
        let mut keys = DetachKeys::default();
        let mut pending: Vec<u8> = Vec::new();
        let mut listening = true;
        loop {
            let wants = if pending.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let hear = if listening && pending.len() < 4096 { PollFlags::IN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::from_borrowed_fd(self.master.as_fd(), wants),
                PollFd::new(self.signals, PollFlags::IN),
                PollFd::new(self.ended, PollFlags::IN),
                PollFd::from_borrowed_fd(input, hear),
            ];
            // A closed input would be reported for ever.
            let watched = if listening { &mut fds[..] } else { &mut fds[..3] };
            match poll(watched, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(Failure::Failed(format!("poll: {e}"))),
            }
            let [master, signals, ended, typed] = fds.map(|fd| fd.revents());
            if master.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !show(self.master, output, modes)?
            {
                return Ok(End::Closed);
            }
            if !signals.is_empty() {
                self.signalled(input)?;
            }
            if listening && typed.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                let mut buffer = [0; 1024];
                let got = rustix::io::retry_on_intr(|| rustix::io::read(input, &mut buffer)).unwrap_or(0);
                listening = got > 0;
                let typed = buffer.get(..got).unwrap_or_default();
                if !self.detachable {
                    pending.extend_from_slice(typed);
                } else if keys.take(typed, &mut pending) {
                    return Ok(End::Detached);
                }
            }
            if master.contains(PollFlags::OUT) && !pending.is_empty() {
                let some = pending.get(..pending.len().min(256)).unwrap_or_default();
                match rustix::io::write(self.master, some) {
                    Ok(n) => drop(pending.drain(..n)),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(_) => return Ok(End::Closed),
                }
            }
            if !ended.is_empty() && !master.contains(PollFlags::IN) {
                return Ok(End::Closed);
            }
        }
    }

    fn signalled(&self, input: BorrowedFd<'_>) -> Result<(), Failure> {
        while let Some(number) = self.signals.next().map_err(|e| Failure::Failed(e.to_string()))? {
            if number == signal::WINCH {
                resize(input, self.master);
            } else {
                container::send(self.target, number)?;
            }
        }
        Ok(())
    }
}

/// What has come, to the caller; false when the other side is closed.
fn show(master: &OwnedFd, output: BorrowedFd<'_>, modes: &mut Modes) -> Result<bool, Failure> {
    let mut buffer = [0; 16 << 10];
    let got = match rustix::io::read(master, &mut buffer) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        Ok(got) => got,
        Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
        Err(e) => return Err(Failure::Failed(format!("read from the container's terminal: {e}"))),
    };
    let mut rest = buffer.get(..got).unwrap_or_default();
    modes.see(rest);
    while !rest.is_empty() {
        match rustix::io::write(output, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Failure::Failed(format!("write to standard output: {e}"))),
        }
    }
    Ok(true)
}

/// The size for a terminal that is shown from now on. Where it has that size already, as after a restore, it gets another for
/// a moment: programs draw their screen anew when the size changes.
fn take_over(from: BorrowedFd<'_>, master: &OwnedFd, drawn: bool) {
    // Long enough for those that look themselves whether it has changed.
    const MOMENT: Duration = Duration::from_millis(50);
    if let (true, Ok(mut size), Ok(now)) = (drawn, tcgetwinsize(from), tcgetwinsize(master))
        && (size.ws_row, size.ws_col) == (now.ws_row, now.ws_col)
        && size.ws_row > 1
    {
        size.ws_row -= 1;
        let _ = tcsetwinsize(master, size);
        std::thread::sleep(MOMENT);
    }
    resize(from, master);
}

/// Gives the other side the size of the caller's terminal, if there is one.
pub fn resize(from: BorrowedFd<'_>, master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(from) {
        // The other side may be closing; then its size is of no interest.
        let _ = tcsetwinsize(master, size);
    }
}

/// A terminal's master, lent by a container's keeper.
#[derive(Debug)]
pub struct Lent {
    /// The master.
    pub master: OwnedFd,
    /// While this is open, the keeper leaves the terminal's output to us.
    _keeper: UnixStream,
}

/// Asks a container's keeper for the master of its terminal: `{"verb":"attach"}` and a newline to its `control.sock`, which
/// answers with the descriptor.
pub fn borrow_master(directory: &Path) -> Result<Lent, Failure> {
    let socket = directory.join("control.sock");
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            Failure::NotYet("attach: the container's keeper does not answer".into())
        }
        _ => Failure::io("connect to", &socket, &e),
    };
    // Through a descriptor: a socket's address holds 108 bytes, a path may be longer.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let at = rustix::fs::open(directory, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/control.sock", at.as_raw_fd())).map_err(failed)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed)?;
    (&stream).write_all(b"{\"verb\":\"attach\"}\n").map_err(failed)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 256];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    received.map_err(|e| failed(e.into()))?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let master = descriptors.flatten().next();
    let none = || Failure::Failed("the container has no terminal: it was started without -t".into());
    Ok(Lent { master: master.ok_or_else(none)?, _keeper: stream })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_nothing_else_is_lost() {
        let feed = |typed: &[&[u8]]| {
            let (mut keys, mut out) = (DetachKeys::default(), Vec::new());
            let left = typed.iter().any(|t| keys.take(t, &mut out));
            (left, out)
        };
        assert_eq!(feed(&[b"ab\x10", b"\x11cd"]), (true, b"ab".to_vec()));
        assert_eq!(feed(&[b"\x10", b"x\x11"]), (false, b"\x10x\x11".to_vec()));
        assert_eq!(feed(&[b"\x10\x10\x11"]), (true, b"\x10".to_vec()));
    }

    #[test]
    fn a_keeper_hands_out_its_terminal() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
        use std::io::{BufRead, BufReader, IoSlice};
        let top = std::env::temp_dir().join(format!("yendor-cli-attach-{}", std::process::id()));
        std::fs::create_dir_all(&top).unwrap();
        assert_eq!(borrow_master(&top).unwrap_err().exit_code(), 3);
        let listener = std::os::unix::net::UnixListener::bind(top.join("control.sock")).unwrap();
        let keeper = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            let fds = [null.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            rustix::net::sendmsg(&stream, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::empty()).unwrap();
            line
        });
        let got = borrow_master(&top).unwrap().master;
        assert_eq!(rustix::fs::fstat(&got).unwrap().st_rdev, rustix::fs::stat("/dev/null").unwrap().st_rdev);
        assert_eq!(keeper.join().unwrap(), "{\"verb\":\"attach\"}\n");
        std::fs::remove_dir_all(&top).unwrap();
    }
}
