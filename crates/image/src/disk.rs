//! The disk's side of a file that is written: early, and for a long file by a thread of its own.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::{Advice, fadvise};

/// Bytes from which on a thread that writes is worth its while.
const LONG: u64 = 128 << 20;
/// Chunks that may wait for that thread.
const WAITING: usize = 8;

/// A file that is written from its beginning to its end.
#[derive(Debug)]
pub struct Disk {
    side: Side,
    bytes: u64,
}

#[derive(Debug)]
enum Side {
    Here(Pushing),
    Behind(Behind),
    /// Writing has failed.
    Lost,
}

impl Disk {
    /// An empty file.
    pub fn new(file: File) -> Disk {
        Disk { side: Side::Here(Pushing { file, bytes: 0, pushed: 0 }), bytes: 0 }
    }

    /// Writes all of `chunk`, now or soon: an error may be told later, at the latest by [`Disk::finish`].
    pub fn write_all(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(u64::try_from(chunk.len()).map_err(io::Error::other)?);
        self.side = match std::mem::replace(&mut self.side, Side::Lost) {
            Side::Here(pushing) if self.bytes >= LONG => Behind::start(pushing),
            side => side,
        };
        match &mut self.side {
            Side::Here(pushing) => return pushing.write_all(chunk),
            Side::Behind(behind) if behind.send(chunk) => return Ok(()),
            Side::Behind(_) | Side::Lost => {}
        }
        // The thread has ended, so it has failed, and says how.
        self.end()?;
        Err(io::Error::other("who writes has ended"))
    }

    /// Waits until everything is written.
    pub fn finish(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.side, Side::Lost) {
            Side::Here(_) => Ok(()),
            Side::Behind(behind) => behind.join(),
            Side::Lost => Err(io::Error::other("an earlier write has failed")),
        }
    }
}

/// A file whose bytes the kernel sends to the disk while more come: the fsync at the end finds less to do.
#[derive(Debug)]
struct Pushing {
    file: File,
    bytes: u64,
    /// How many of them the disk has been told of.
    pushed: u64,
}

impl Pushing {
    /// Bytes that the disk is sent away with at once.
    const AHEAD: u64 = 8 << 20;

    fn write_all(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(chunk.len()).map_err(io::Error::other)?);
        let more = self.bytes.saturating_sub(self.pushed);
        if more >= Self::AHEAD {
            // Only advice: without it everything is slower and as right. It starts writing (`generic_fadvise`,
            // mm/fadvise.c) and forgets pages that are clean: these are not yet.
            let _ = fadvise(&self.file, self.pushed, NonZeroU64::new(more), Advice::DontNeed);
            self.pushed = self.bytes;
        }
        Ok(())
    }
}

/// A thread that writes while the next bytes are made.
#[derive(Debug)]
struct Behind {
    chunks: SyncSender<Vec<u8>>,
    /// Chunks that it has written, to be filled again.
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Behind {
    /// Where no thread can be had, whoever makes the bytes goes on writing them.
    fn start(pushing: Pushing) -> Side {
        let Pushing { file, bytes, pushed } = pushing;
        let Ok(theirs) = file.try_clone() else { return Side::Here(Pushing { file, bytes, pushed }) };
        let (chunks, to_write) = sync_channel::<Vec<u8>>(WAITING);
        let (written, empty) = channel();
        let mut writing = Pushing { file: theirs, bytes, pushed };
        let thread = std::thread::Builder::new().name("yendor-disk".into()).spawn(move || {
            for chunk in to_write {
                writing.write_all(&chunk)?;
                // Nobody may want it any more.
                let _ = written.send(chunk);
            }
            Ok(())
        });
        match thread {
            Ok(thread) => Side::Behind(Behind { chunks, empty, thread }),
            Err(_) => Side::Here(Pushing { file, bytes, pushed }),
        }
    }

    /// Whether it still takes chunks.
    fn send(&self, chunk: &[u8]) -> bool {
        let mut room = self.empty.try_recv().unwrap_or_default();
        room.clear();
        room.extend_from_slice(chunk);
        self.chunks.send(room).is_ok()
    }

    fn join(self) -> io::Result<()> {
        drop(self.chunks);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        File::from(rustix::fs::memfd_create("disk", flags).expect("memfd"))
    }

    #[test]
    fn a_long_file_is_written_in_order() {
        use std::os::unix::fs::FileExt;
        let file = scratch();
        let mut disk = Disk::new(file.try_clone().expect("dup"));
        let chunk = 300_000;
        let rounds = usize::try_from(LONG).expect("size") / chunk + 40;
        for round in 0..rounds {
            disk.write_all(&vec![u8::try_from(round % 251).expect("small"); chunk]).expect("write");
        }
        assert!(matches!(disk.side, Side::Behind(_)));
        disk.finish().expect("finish");
        assert_eq!(file.metadata().expect("stat").len(), (rounds * chunk) as u64);
        for round in 0..rounds {
            let mut ends = [0; 2];
            file.read_exact_at(&mut ends[..1], (round * chunk) as u64).expect("read");
            file.read_exact_at(&mut ends[1..], ((round + 1) * chunk - 1) as u64).expect("read");
            assert_eq!(ends.map(usize::from), [round % 251; 2]);
        }
    }

    #[test]
    fn an_error_is_told() {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        assert_eq!(Disk::new(full).write_all(&[1]).expect_err("full").kind(), io::ErrorKind::StorageFull);
        // Later, when a thread writes.
        let file = scratch();
        let mut disk = Disk { bytes: LONG, ..Disk::new(file.try_clone().expect("dup")) };
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::GROW).expect("seal");
        let first = (0..100).find_map(|_| disk.write_all(&[1; 4096]).err());
        let said = first.or_else(|| disk.finish().err()).expect("it cannot grow");
        assert_eq!(said.kind(), io::ErrorKind::PermissionDenied, "{said}");
    }
}
