//! Compression of an image's files while they are written: by several threads, of a long one.

use crate::Codec;
use crate::block::{self, HEAD, LZ4_BEGIN, LZ4_END, LZ4_PLAIN, MOST_FRAME};
use crate::pieces::PIECE;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use zstd_safe::{CCtx, CParameter};

/// Levels of zstd that can be asked for: those beyond take memory and time that no checkpoint should.
const LEVELS: std::ops::RangeInclusive<u8> = 1..=19;
/// The level that zstd is used with when none is named.
const USUAL: u8 = 3;
/// Blocks from which on threads are worth their while.
const LONG: u64 = 8;
/// Blocks that may be on their way: what is held is bounded.
const WAITING: u64 = 16;
/// Threads at most.
const MOST: usize = 8;

/// How files are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// By lz4.
    Lz4,
    /// By zstd, at this level.
    Zstd(u8),
}

impl Compression {
    /// What decodes it.
    pub fn codec(self) -> Codec {
        match self {
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd(_) => Codec::Zstd,
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    /// `lz4`, `zstd`, `zstd:LEVEL`.
    fn from_str(text: &str) -> Result<Compression, String> {
        let level = match text {
            "lz4" => return Ok(Compression::Lz4),
            "zstd" => return Ok(Compression::Zstd(USUAL)),
            text => text.strip_prefix("zstd:").ok_or("lz4, zstd or zstd:LEVEL")?,
        };
        let level = level.parse().ok().filter(|level| LEVELS.contains(level));
        level.map(Compression::Zstd).ok_or_else(|| format!("levels of zstd are {} to {}", LEVELS.start(), LEVELS.end()))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// A file on its way through compression.
pub(crate) struct Press {
    compression: Compression,
    /// What is not yet a whole block.
    piece: Vec<u8>,
    /// How many blocks were given away before it.
    given: u64,
    side: Side,
}

enum Side {
    Here(Encoder),
    Crew(Crew),
}

impl fmt::Debug for Press {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Press").field(&self.compression).finish()
    }
}

impl Press {
    pub(crate) fn new(compression: Compression) -> io::Result<Press> {
        let side = Side::Here(Encoder::new(compression)?);
        Ok(Press { compression, piece: Vec::new(), given: 0, side })
    }

    /// Takes all of `bytes`; what they become goes to `out` now or soon.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at((PIECE - self.piece.len()).min(bytes.len()));
            self.piece.extend_from_slice(now);
            bytes = rest;
            if self.piece.len() == PIECE {
                self.give(out)?;
            }
        }
        Ok(())
    }

    /// The same, for a buffer that may be exchanged for another one, of any content, which spares a copy.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>, out: &mut impl Write) -> io::Result<()> {
        if !self.piece.is_empty() || bytes.len() != PIECE {
            return self.write_all(bytes, out);
        }
        std::mem::swap(&mut self.piece, bytes);
        self.give(out)
    }

    /// Gives everything to `out`.
    pub(crate) fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.piece.is_empty() {
            self.give(out)?;
        }
        match self.side {
            Side::Here(_) => Ok(()),
            Side::Crew(crew) => crew.finish(out),
        }
    }

    fn give(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.given == LONG
            && let Some(crew) = Crew::start(self.compression)
        {
            self.side = Side::Crew(crew);
        }
        self.given += 1;
        match &mut self.side {
            Side::Here(encoder) => out.write_all(encoder.encode(&self.piece)?)?,
            Side::Crew(crew) => self.piece = crew.send(std::mem::take(&mut self.piece), out)?,
        }
        self.piece.clear();
        Ok(())
    }
}

/// Threads that compress blocks while the next ones are made.
struct Crew {
    jobs: SyncSender<(u64, Vec<u8>)>,
    done: Receiver<Done>,
    given: u64,
    written: u64,
    /// Blocks that were ready before their turn.
    early: BTreeMap<u64, Vec<u8>>,
    /// Buffers to be filled again.
    empty: Vec<Vec<u8>>,
}

struct Done {
    number: u64,
    piece: Vec<u8>,
    block: io::Result<Vec<u8>>,
}

fn lost() -> io::Error {
    io::Error::other("a thread that compresses has ended")
}

impl Crew {
    /// As many as there are processors. None where not one can be had.
    fn start(compression: Compression) -> Option<Crew> {
        let (jobs, to_do) = sync_channel(usize::try_from(WAITING).unwrap_or(0));
        let (finished, done) = channel();
        let to_do = Arc::new(Mutex::new(to_do));
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
        let start = |_| {
            let mut encoder = Encoder::new(compression).ok()?;
            let (to_do, finished) = (to_do.clone(), finished.clone());
            let thread = std::thread::Builder::new().name("yendor-press".into());
            thread.spawn(move || encode_all(&mut encoder, &to_do, &finished)).ok()
        };
        let threads = (0..workers).filter_map(start).count();
        let crew = Crew { jobs, done, given: 0, written: 0, early: BTreeMap::new(), empty: Vec::new() };
        (threads > 0).then_some(crew)
    }

    /// Gives a piece away for an empty buffer.
    fn send(&mut self, piece: Vec<u8>, out: &mut impl Write) -> io::Result<Vec<u8>> {
        while self.given - self.written >= WAITING {
            let done = self.done.recv().map_err(|_| lost())?;
            self.settle(done, out)?;
        }
        loop {
            match self.done.try_recv() {
                Ok(done) => self.settle(done, out)?,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(lost()),
            }
        }
        self.jobs.send((self.given, piece)).map_err(|_| lost())?;
        self.given += 1;
        Ok(self.empty.pop().unwrap_or_default())
    }

    /// Writes what is ready, as far as it is its turn.
    fn settle(&mut self, Done { number, piece, block }: Done, out: &mut impl Write) -> io::Result<()> {
        self.early.insert(number, block?);
        self.empty.push(piece);
        while let Some(block) = self.early.remove(&self.written) {
            out.write_all(&block)?;
            self.written += 1;
        }
        Ok(())
    }

    fn finish(mut self, out: &mut impl Write) -> io::Result<()> {
        while self.written < self.given {
            let done = self.done.recv().map_err(|_| lost())?;
            self.settle(done, out)?;
        }
        Ok(())
    }
}

fn encode_all(encoder: &mut Encoder, jobs: &Mutex<Receiver<(u64, Vec<u8>)>>, done: &Sender<Done>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, piece)) = next else { return };
        // Somebody waits for just this block.
        let block = catch_unwind(AssertUnwindSafe(|| encoder.encode(&piece).map(<[u8]>::to_vec)));
        let block = block.unwrap_or_else(|_| Err(lost()));
        if done.send(Done { number, piece, block }).is_err() {
            return;
        }
    }
}

/// Makes blocks.
struct Encoder {
    how: How,
    block: Vec<u8>,
}

enum How {
    Lz4(CompressTable),
    Zstd(CCtx<'static>),
}

impl Encoder {
    fn new(compression: Compression) -> io::Result<Encoder> {
        let said = |code| io::Error::other(zstd_safe::get_error_name(code));
        let (how, room) = match compression {
            Compression::Lz4 => {
                let most = LZ4_BEGIN.len() + 4 + get_maximum_output_size(PIECE) + LZ4_END.len();
                (How::Lz4(CompressTable::large()), most)
            }
            Compression::Zstd(level) => {
                let mut zstd = CCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
                zstd.set_parameter(CParameter::CompressionLevel(level.into())).map_err(said)?;
                // Of the content: what was decoded is what was encoded.
                zstd.set_parameter(CParameter::ChecksumFlag(true)).map_err(said)?;
                (How::Zstd(zstd), MOST_FRAME)
            }
        };
        Ok(Encoder { how, block: vec![0; HEAD + room] })
    }

    /// The block of a piece, head and all.
    fn encode(&mut self, piece: &[u8]) -> io::Result<&[u8]> {
        let room = self.block.get_mut(HEAD..).unwrap_or_default();
        let frame = match &mut self.how {
            How::Zstd(zstd) => zstd.compress2(room, piece).map_err(|code| {
                let said = zstd_safe::get_error_name(code);
                io::Error::other(format!("zstd: {said}"))
            })?,
            How::Lz4(table) => lz4(room, piece, table)?,
        };
        let block = self.block.get_mut(..HEAD + frame).unwrap_or_default();
        block::seal(block, piece.len());
        Ok(block)
    }
}

/// A frame of one block, which is left as it is where it would not become smaller. Its length.
fn lz4(room: &mut [u8], piece: &[u8], table: &mut CompressTable) -> io::Result<usize> {
    let (begin, rest) = room.split_at_mut(LZ4_BEGIN.len());
    begin.copy_from_slice(&LZ4_BEGIN);
    let (size, data) = rest.split_at_mut(4);
    let mut length = compress_into_with_table(piece, data, table).map_err(io::Error::other)?;
    let mut said = u32::try_from(length).map_err(io::Error::other)?;
    if length >= piece.len() {
        length = piece.len();
        data[..length].copy_from_slice(piece);
        said = u32::try_from(length).map_err(io::Error::other)? | LZ4_PLAIN;
    }
    size.copy_from_slice(&said.to_le_bytes());
    data[length..length + LZ4_END.len()].copy_from_slice(&LZ4_END);
    Ok(LZ4_BEGIN.len() + 4 + length + LZ4_END.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_as_it_is_spelled() {
        for (text, choice) in
            [("lz4", Compression::Lz4), ("zstd:1", Compression::Zstd(1)), ("zstd:19", Compression::Zstd(19))]
        {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(3)));
        for wrong in ["", "lz4:1", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:+1x", "gzip", "LZ4", "zstd:1 "] {
            assert!(wrong.parse::<Compression>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_of_the_disk_is_told_and_nobody_hangs() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for some in [0, 3, 12] {
            let (mut press, mut full) = (Press::new(Compression::Lz4).expect("press"), Full(some));
            let first = (0..100).find_map(|_| press.take(&mut vec![1; PIECE], &mut full).err());
            assert_eq!(first.expect("it is full").kind(), io::ErrorKind::StorageFull);
        }
    }
}
