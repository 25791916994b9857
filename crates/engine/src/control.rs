//! Messages with descriptors between front, usher and keeper: JSON behind a length, over a stream socket.
//!
//! Only these speak here; what comes from an image travels inside a message as a value, never as a message.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use yendor_kinds::{Cause, Named};
use yendor_sys::{Errno, SysError, spawn};

type Result<T> = std::result::Result<T, Cause>;

/// The longest message, in bytes: twice what execve takes as arguments and environment, and some for the rest.
pub const MAX_MESSAGE: usize = 16 << 20;

/// The most descriptors with one message (`SCM_MAX_FD`, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;

/// One end of the connection.
#[derive(Debug)]
pub struct Control {
    socket: UnixStream,
}

impl Control {
    /// Both ends.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn pair() -> Result<(Control, Control)> {
        let (a, b) = UnixStream::pair().map_err(|e| SysError::io("socketpair", "AF_UNIX", &e))?;
        Ok((Control { socket: a }, Control { socket: b }))
    }

    /// An end that this process was started with, by its descriptor's number.
    ///
    /// # Errors
    /// `EBADF` when there is none, `EBUSY` when it was taken before.
    pub fn inherited(number: i32) -> Result<Control> {
        Ok(Control { socket: UnixStream::from(spawn::inherited(number)?) })
    }

    /// The socket, to wait for it or to give it a time limit.
    #[must_use]
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends a message and descriptors.
    ///
    /// # Errors
    /// `EMSGSIZE` for too much of either, `EPIPE` when the other side is gone.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let size = || SysError::new("sendmsg", "control", Errno::MSGSIZE);
        let bytes = serde_json::to_vec(message).map_err(|_| SysError::new("sendmsg", "control", Errno::INVAL))?;
        if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
            return Err(size().into());
        }
        let header = u32::try_from(bytes.len()).map_err(|_| size())?.to_ne_bytes();
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(size().into());
        }
        let iov = [IoSlice::new(&header)];
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.socket, &iov, &mut ancillary, SendFlags::NOSIGNAL))
                .named("sendmsg", || "control".into())?;
        (&self.socket)
            .write_all(&header[sent.min(header.len())..])
            .and_then(|()| (&self.socket).write_all(&bytes))
            .map_err(|e| SysError::io("write", "control", &e))?;
        Ok(())
    }

    /// Receives a message and its descriptors; `None` when the other side is gone.
    ///
    /// # Errors
    /// `EBADMSG` for what is no message of this type, `EMSGSIZE` for one that is too long, `EAGAIN` after the socket's
    /// time limit.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let mut header = [0; 4];
        let mut descriptors = Vec::new();
        let mut got = 0;
        while got < header.len() {
            match self.receive_some(&mut header[got..], &mut descriptors)? {
                0 if got == 0 => return Ok(None),
                0 => return Err(bad("cut off")),
                n => got += n,
            }
        }
        let length = usize::try_from(u32::from_ne_bytes(header)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(SysError::new("recvmsg", "control", Errno::MSGSIZE).into());
        }
        let mut bytes = vec![0; length];
        (&self.socket).read_exact(&mut bytes).map_err(|e| SysError::io("read", "control", &e))?;
        let message = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
        Ok(Some((message, descriptors)))
    }

    fn receive_some(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(into)];
        let got = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.socket, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        })
        .named("recvmsg", || "control".into())?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        if got.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
            return Err(bad("descriptors were lost (too many open files?)"));
        }
        Ok(got.bytes)
    }
}

impl From<UnixStream> for Control {
    fn from(socket: UnixStream) -> Control {
        Control { socket }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bad(what: &str) -> Cause {
    SysError::new("recvmsg", format!("control: {what}"), Errno::BADMSG).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_descriptors() {
        let (a, b) = Control::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        a.send(&("one", 1), &[null.as_fd(), null.as_fd()]).unwrap();
        a.send(&("two", 2), &[]).unwrap();
        drop(a);
        let ((word, number), fds): ((String, u8), _) = b.receive().unwrap().unwrap();
        assert_eq!((word.as_str(), number, fds.len()), ("one", 1, 2));
        let ((word, number), fds): ((String, u8), _) = b.receive().unwrap().unwrap();
        assert_eq!((word.as_str(), number, fds.len()), ("two", 2, 0));
        assert!(b.receive::<u8>().unwrap().is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        let (a, b) = Control::pair().unwrap();
        a.send(&"text", &[]).unwrap();
        assert!(matches!(b.receive::<u8>(), Err(Cause::Sys(e)) if e.errno == Errno::BADMSG));
        a.socket().write_all(&u32::MAX.to_ne_bytes()).unwrap();
        assert!(matches!(b.receive::<u8>(), Err(Cause::Sys(e)) if e.errno == Errno::MSGSIZE));
        a.socket().write_all(&[9, 0]).unwrap();
        drop(a);
        assert!(matches!(b.receive::<u8>(), Err(Cause::Sys(e)) if e.errno == Errno::BADMSG));
    }
}
