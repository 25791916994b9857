//! A file on its way to the disk: hashed and written, of a long one by several threads.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{Advice, fadvise};

use crate::Digest;
use crate::pieces::{self, PIECE, Value};

/// Pieces from which on threads are worth their while.
const LONG: u64 = (16 << 20) / PIECE as u64;
/// Pieces that may wait for them: what is held is bounded, and few of them leave the cache.
const WAITING: usize = 8;
/// Threads at most: the disk wants no more.
const MOST: usize = 4;
/// Pieces that the disk is sent away with at once.
const GROUP: u64 = (8 << 20) / PIECE as u64;

/// A file that is written from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Disk {
    file: Arc<File>,
    /// What is not yet a whole piece, or may be the last one, and how much of it that is: it has the size of a piece, or none.
    piece: Vec<u8>,
    filled: usize,
    /// How many pieces were given away before it.
    index: u64,
    /// The values of those that were stored here: the first ones.
    values: Vec<Value>,
    side: Side,
}

#[derive(Debug)]
enum Side {
    Here,
    Crew(Crew),
    /// Storing has failed.
    Lost,
}

impl Disk {
    /// An empty file.
    pub(crate) fn new(file: File) -> Disk {
        Disk { file: Arc::new(file), piece: Vec::new(), filled: 0, index: 0, values: Vec::new(), side: Side::Here }
    }

    /// Takes all of `bytes`, to be written now or soon: an error may be told later, at the latest by [`Disk::finish`].
    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.filled == PIECE {
                self.give()?;
            }
            self.piece.resize(PIECE, 0);
            let (now, rest) = bytes.split_at((PIECE - self.filled).min(bytes.len()));
            let end = self.filled + now.len();
            if let Some(room) = self.piece.get_mut(self.filled..end) {
                room.copy_from_slice(now);
            }
            self.filled = end;
            bytes = rest;
        }
        Ok(())
    }

    /// The same, for a buffer that may be exchanged for another one, of any content, which spares a copy.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if self.filled == PIECE {
            self.give()?;
        }
        if self.filled != 0 || bytes.len() != PIECE {
            return self.write_all(bytes);
        }
        std::mem::swap(&mut self.piece, bytes);
        self.filled = PIECE;
        Ok(())
    }

    /// Waits until everything is written: how many bytes, their digest, and the values of its pieces if there are several.
    pub(crate) fn finish(mut self) -> io::Result<(u64, Digest, Vec<Value>)> {
        let last = u64::try_from(self.filled).map_err(io::Error::other)?;
        let bytes = self.index.saturating_mul(PIECE as u64).saturating_add(last);
        self.piece.truncate(self.filled);
        if self.index == 0 {
            self.file.write_all_at(&self.piece, 0)?;
            return Ok((bytes, Digest::of(&self.piece), Vec::new()));
        }
        self.give()?;
        match std::mem::replace(&mut self.side, Side::Lost) {
            Side::Here => {}
            Side::Crew(crew) => self.values.extend(crew.join()?),
            Side::Lost => return Err(lost()),
        }
        Ok((bytes, pieces::whole(&self.values), self.values))
    }

    /// Gives the piece away.
    fn give(&mut self) -> io::Result<()> {
        let side = match std::mem::replace(&mut self.side, Side::Lost) {
            // Where no thread can be had, whoever makes the bytes goes on.
            Side::Here if self.index == LONG => Crew::start(&self.file).map_or(Side::Here, Side::Crew),
            side => side,
        };
        self.side = match side {
            Side::Here => {
                self.values.push(store(&self.file, self.index, &self.piece)?);
                Side::Here
            }
            Side::Crew(crew) => match crew.send(self.index, std::mem::take(&mut self.piece)) {
                Some(empty) => {
                    self.piece = empty;
                    Side::Crew(crew)
                }
                // All have ended, so they have failed, and one says how.
                None => return Err(crew.join().err().unwrap_or_else(lost)),
            },
            Side::Lost => return Err(lost()),
        };
        self.filled = 0;
        self.index += 1;
        Ok(())
    }
}

fn lost() -> io::Error {
    io::Error::other("an earlier write has failed")
}

/// Writes and hashes a piece of a file that has more than one.
fn store(file: &File, index: u64, piece: &[u8]) -> io::Result<Value> {
    const BYTES: u64 = PIECE as u64;
    file.write_all_at(piece, index.saturating_mul(BYTES))?;
    if index % GROUP == GROUP - 1
        && let Some(before) = (index / GROUP).checked_sub(1)
    {
        // Only advice: the fsync at the end finds less to do. It starts writing (`generic_fadvise`, mm/fadvise.c) and forgets pages
        // that are clean. Others may still be at pieces of this group; the one before it is there.
        let _ = fadvise(file, before * GROUP * BYTES, NonZeroU64::new(GROUP * BYTES), Advice::DontNeed);
    }
    Ok(pieces::value(index, piece))
}

/// Threads that store pieces while the next ones are made.
#[derive(Debug)]
struct Crew {
    pieces: SyncSender<(u64, Vec<u8>)>,
    /// Buffers of pieces that were stored, to be filled again.
    empty: Receiver<Vec<u8>>,
    threads: Vec<JoinHandle<io::Result<Stored>>>,
}

/// Values of pieces, by their numbers.
type Stored = Vec<(u64, Value)>;

impl Crew {
    /// As many as there are processors. None where not one can be had.
    fn start(file: &Arc<File>) -> Option<Crew> {
        let (pieces, to_store) = sync_channel(WAITING);
        let (stored, empty) = channel();
        let to_store = Arc::new(Mutex::new(to_store));
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let start = |_| {
            let (file, to_store, stored) = (file.clone(), to_store.clone(), stored.clone());
            let thread = std::thread::Builder::new().name("yendor-disk".into());
            thread.spawn(move || store_all(&file, &to_store, &stored)).ok()
        };
        let threads: Vec<_> = (0..workers).filter_map(start).collect();
        (!threads.is_empty()).then_some(Crew { pieces, empty, threads })
    }

    /// Gives a piece away for an empty buffer; none when nobody takes it any more.
    fn send(&self, index: u64, piece: Vec<u8>) -> Option<Vec<u8>> {
        let sent = self.pieces.send((index, piece)).is_ok();
        sent.then(|| self.empty.try_recv().unwrap_or_default())
    }

    /// Waits for all of them: the values of the pieces, in order.
    fn join(self) -> io::Result<Vec<Value>> {
        drop(self.pieces);
        let ended = self.threads.into_iter().map(JoinHandle::join);
        let stored: io::Result<Vec<Stored>> =
            ended.map(|one| one.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        let mut stored = stored?.concat();
        stored.sort_unstable_by_key(|(index, _)| *index);
        Ok(stored.into_iter().map(|(_, value)| value).collect())
    }
}

fn store_all(file: &File, pieces: &Mutex<Receiver<(u64, Vec<u8>)>>, stored: &Sender<Vec<u8>>) -> io::Result<Stored> {
    let mut values = Stored::new();
    loop {
        let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((index, piece)) = next else { return Ok(values) };
        values.push((index, store(file, index, &piece)?));
        // Nobody may want it any more.
        let _ = stored.send(piece);
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
        let file = scratch();
        let mut disk = Disk::new(file.try_clone().expect("dup"));
        let chunk = 300_000;
        let rounds = usize::try_from(LONG).expect("size") * PIECE / chunk + 40;
        let mut whole = blake3::Hasher::new();
        for round in 0..rounds {
            let chunk = vec![u8::try_from(round % 251).expect("small"); chunk];
            disk.write_all(&chunk).expect("write");
            whole.update(&chunk);
        }
        // Whole pieces, of which the first ends one that is begun.
        let mut pieces = 0;
        for value in 0..40 {
            let mut piece = vec![value; PIECE];
            whole.update(&piece);
            disk.take(&mut piece).expect("take");
            pieces += PIECE;
        }
        assert!(matches!(disk.side, Side::Crew(_)));
        let bytes = (rounds * chunk + pieces) as u64;
        let (written, digest, values) = disk.finish().expect("finish");
        assert_eq!((written, digest), (bytes, whole.finalize().into()));
        assert_eq!(pieces::whole(&values), digest);
        assert_eq!(file.metadata().expect("stat").len(), bytes);
        for round in 0..rounds {
            let mut ends = [0; 2];
            file.read_exact_at(&mut ends[..1], (round * chunk) as u64).expect("read");
            file.read_exact_at(&mut ends[1..], ((round + 1) * chunk - 1) as u64).expect("read");
            assert_eq!(ends.map(usize::from), [round % 251; 2]);
        }
    }

    #[test]
    fn a_short_file_has_its_digest() {
        for bytes in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let content: Vec<u8> = (0..bytes).map(|i| u8::try_from(i / 7 % 251).expect("small")).collect();
            for step in [100_000, PIECE] {
                let file = scratch();
                let mut disk = Disk::new(file.try_clone().expect("dup"));
                // Whole pieces are exchanged.
                content.chunks(step).for_each(|chunk| disk.take(&mut chunk.to_vec()).expect("take"));
                let (written, digest, _) = disk.finish().expect("finish");
                assert_eq!((written, digest), (bytes as u64, Digest::of(&content)), "{bytes}");
                let mut found = vec![0; bytes];
                file.read_exact_at(&mut found, 0).expect("read");
                assert!(found == content && file.metadata().expect("stat").len() == bytes as u64, "{bytes}");
            }
        }
    }

    #[test]
    fn an_error_is_told() {
        let full = || Disk::new(File::options().write(true).open("/dev/full").expect("/dev/full"));
        let mut short = full();
        short.write_all(&[1]).expect("it waits");
        assert_eq!(short.finish().expect_err("full").kind(), io::ErrorKind::StorageFull);
        let mut longer = full();
        assert_eq!(longer.write_all(&vec![1; PIECE + 1]).expect_err("full").kind(), io::ErrorKind::StorageFull);
        longer.write_all(&vec![1; PIECE + 1]).expect_err("no more after that");
        longer.finish().expect_err("nor is it a file");
        // Later, when threads write.
        let file = scratch();
        let mut disk = Disk { index: LONG, ..Disk::new(file.try_clone().expect("dup")) };
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::GROW).expect("seal");
        let first = (0..100).find_map(|_| disk.write_all(&[1; PIECE]).err());
        let said = first.or_else(|| disk.finish().err()).expect("it cannot grow");
        assert_eq!(said.kind(), io::ErrorKind::PermissionDenied, "{said}");
    }
}
