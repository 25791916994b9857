//! What a keeper holds between two checkpoints: descriptors that track which memory is written, and a book of where the rest of it
//! is in the image that was taken when they were armed (docs/adr/0011).
//!
//! The keeper understands nothing of it. It gives it away once, to the next checkpoint, and whatever becomes of that, nothing is
//! tracked any more unless a new shadow is left. If keeper or checkpoint die, the kernel forgets.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use yendor_image::{Digest, PageRun, Reader, Stamp};
use yendor_kinds::{Cause, Named};
use yendor_sys::userfault::Userfault;
use yendor_sys::{Errno, SysError};

use crate::control::MAX_DESCRIPTORS;
use crate::exec::YES;

/// How many processes are held at most: each takes a descriptor of the keeper's, and one message carries all.
pub const MOST: usize = 200;
/// The largest book.
const MOST_BYTES: u64 = 512 << 20;

/// The words to the keeper.
pub(crate) const HOLD: &str = "hold";
pub(crate) const RELEASE: &str = "release";

/// A process whose writes are tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// As the tracer saw it.
    pub pid: i32,
    /// When it started, and where its program lies: after execve there is another one.
    pub identity: [u64; 3],
    /// What of its memory was protected when the image was taken.
    pub ranges: Vec<(u64, u64)>,
    /// Where that is in the image; what is in no run held zeros.
    pub runs: Vec<PageRun>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Book {
    /// In which pid namespace the ids are.
    namespace: u64,
    /// The image, and which it is.
    image: PathBuf,
    seal: Digest,
    /// Its files of pages, as they were then.
    stamps: Vec<Stamp>,
    /// Runs of all other memory.
    others: Vec<PageRun>,
    processes: Vec<Process>,
}

/// Tracked memory, and the image that it was armed for.
#[derive(Debug)]
pub struct Shadow {
    book: Book,
    faults: Vec<Userfault>,
}

fn namespace() -> Option<u64> {
    rustix::fs::stat("/proc/self/ns/pid").ok().map(|stat| stat.st_ino)
}

impl Shadow {
    /// Of an image that is there, at a path. `processes`: with what tracks each; `others`: runs of the image that are not theirs.
    ///
    /// # Errors
    /// The image cannot be looked at.
    pub fn new(
        place: &Path,
        (reader, seal): (&Reader, Digest),
        processes: Vec<(Process, Userfault)>,
        others: Vec<PageRun>,
    ) -> Result<Shadow, Cause> {
        let image = std::path::absolute(place).map_err(|e| SysError::io("getcwd", "", &e))?;
        let namespace = namespace().ok_or_else(|| SysError::new("stat", "/proc/self/ns/pid", Errno::NOENT))?;
        let stamps = Stamp::of_pages(reader)?;
        let (processes, faults) = processes.into_iter().unzip();
        Ok(Shadow { book: Book { namespace, image, seal, stamps, others, processes }, faults })
    }

    /// The image that it was armed for.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.book.image
    }

    /// Which image that was.
    #[must_use]
    pub fn seal(&self) -> Digest {
        self.book.seal
    }

    /// What the files of the image were like.
    #[must_use]
    pub fn stamps(&self) -> &[Stamp] {
        &self.book.stamps
    }

    /// Runs of the image that no tracked memory has.
    #[must_use]
    pub fn others(&self) -> &[PageRun] {
        &self.book.others
    }

    /// Whether nothing is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// Forgets processes of which that is not true. What it knows of their memory is no more than others then.
    pub fn retain(&mut self, mut keep: impl FnMut(&Process) -> bool) {
        let all = std::mem::take(&mut self.book.processes).into_iter().zip(std::mem::take(&mut self.faults));
        for (process, fault) in all {
            if keep(&process) {
                self.book.processes.push(process);
                self.faults.push(fault);
                continue;
            }
            end(&fault, &process.ranges);
            self.book.others.extend(process.runs);
        }
    }

    /// The processes, and what tracks them.
    pub fn into_processes(self) -> impl Iterator<Item = (Process, Userfault)> {
        self.book.processes.into_iter().zip(self.faults)
    }

    /// Nothing is tracked any more.
    pub fn end(mut self) {
        self.retain(|_| false);
    }

    /// Has the keeper of a container hold it.
    ///
    /// # Errors
    /// The keeper does not want it, or is gone: then nothing is tracked any more.
    pub fn leave(self, container: &Path) -> Result<(), Cause> {
        let bytes = postcard::to_stdvec(&self.book).map_err(|_| SysError::new("write", "the book", Errno::INVAL))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("yendor-book", flags).named("memfd_create", || "yendor-book".into())?;
        let mut file = File::from(fd);
        file.write_all(&bytes).map_err(|e| SysError::io("write", "yendor-book", &e))?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).named("fcntl", || "F_ADD_SEALS".into())?;
        let mut stream = ask(container, HOLD)?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).map_err(|e| SysError::io("read", "from the keeper", &e))?;
        if line.trim() != YES {
            return Err(
                SysError::new("read", "the keeper of this container knows no tracking", Errno::OPNOTSUPP).into()
            );
        }
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::once(file.as_fd()).chain(self.faults.iter().map(AsFd::as_fd)).collect();
        send(&stream, &fds)?;
        // It has them when it says so.
        stream.read_exact(&mut [0]).map_err(|e| SysError::io("read", "from the keeper", &e))?;
        Ok(())
    }

    /// Takes what the keeper of a container holds, if it holds anything.
    #[must_use]
    pub fn take(container: &Path) -> Option<Shadow> {
        let stream = ask(container, RELEASE).ok()?;
        let mut descriptors = receive(&stream).into_iter();
        let mut bytes = Vec::new();
        let book = File::from(descriptors.next()?);
        // Where its writer has left the file's place is behind the last byte.
        let mut at = 0;
        let mut chunk = vec![0; 1 << 16];
        while let Some(n) = std::os::unix::fs::FileExt::read_at(&book, &mut chunk, at).ok().filter(|n| *n > 0) {
            bytes.extend_from_slice(chunk.get(..n)?);
            at = u64::try_from(bytes.len()).ok().filter(|bytes| *bytes <= MOST_BYTES)?;
        }
        let book: Book = postcard::from_bytes(&bytes).ok()?;
        let faults: Vec<Userfault> = descriptors.map(Userfault::again).collect();
        let ours = Some(book.namespace) == namespace() && faults.len() == book.processes.len();
        ours.then_some(Shadow { book, faults })
    }
}

/// Bytes that are given back at once: the program must never wait for all.
const WINDOW: u64 = 32 << 20;

/// Ranges of memory are not tracked any more, little by little.
pub fn end(fault: &Userfault, ranges: &[(u64, u64)]) {
    for (start, end) in ranges {
        let mut at = *start;
        while at < *end {
            let to = window(at, *end);
            // What is unmapped is not tracked; what is left goes with the descriptor.
            let _ = fault.unregister(at, to);
            at = to;
        }
    }
}

/// Where the window ends that begins at `at`: no huge page is cut in two.
pub fn window(at: u64, end: u64) -> u64 {
    ((at / WINDOW + 1) * WINDOW).min(end)
}

/// A word to the keeper of a container.
///
/// # Errors
/// It is gone.
pub(crate) fn ask(container: &Path, verb: &str) -> Result<UnixStream, Cause> {
    let failed = |call: &'static str| move |e: std::io::Error| SysError::io(call, "control.sock", &e);
    let mut stream = UnixStream::connect(container.join("control.sock")).map_err(failed("connect"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed("setsockopt"))?;
    stream.write_all(format!("{{\"verb\":\"{verb}\"}}\n").as_bytes()).map_err(failed("write"))?;
    Ok(stream)
}

/// Sends a byte with descriptors.
///
/// # Errors
/// What sendmsg says.
pub(crate) fn send(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> Result<(), Cause> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(SysError::new("sendmsg", "descriptors", Errno::MSGSIZE).into());
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::NOSIGNAL);
    sent.named("sendmsg", || "descriptors".into())?;
    Ok(())
}

/// Descriptors that come with the next byte.
pub(crate) fn receive(stream: &UnixStream) -> Vec<OwnedFd> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8; 1];
    let mut into = [IoSliceMut::new(&mut byte)];
    let got = rustix::net::recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let whole = got.is_ok_and(|got| !got.flags.contains(rustix::net::ReturnFlags::CTRUNC));
    let rights =
        ancillary.drain().filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None });
    let all = rights.flatten().collect();
    if whole { all } else { Vec::new() }
}
