//! Compressed files: a sequence of blocks, each of which can be decoded alone. `docs/format.md` has every byte.
//!
//! What decodes is meant for a process that can do nothing else: of zstd it is a library in C.

use crate::manifest::stored_name;
use crate::pieces::PIECE;
use crate::{Codec, Digest, Error, FileEntry, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use zstd_safe::DCtx;

/// Bytes of content in each block but the last, which may have less.
pub const BLOCK_BYTES: u64 = PIECE as u64;
/// The longest frame: what zstd makes of a block that nothing can be made of (`ZSTD_compressBound`).
pub(crate) const MOST_FRAME: usize = PIECE + 1024;
/// Bytes of a block's head.
pub(crate) const HEAD: usize = 24;
/// What begins one: to zstd and lz4 it is a frame to be skipped, whose content is 16 bytes.
const SKIP: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 16, 0, 0, 0];
/// How a frame of lz4 begins here: version 1, independent blocks of at most 256 KiB, no checksums, and the checksum of that.
pub(crate) const LZ4_BEGIN: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x50, 0xfb];
/// Of the size of lz4's own block: that it is not compressed.
pub(crate) const LZ4_PLAIN: u32 = 1 << 31;
/// How a frame of lz4 ends: a block of no bytes.
pub(crate) const LZ4_END: [u8; 4] = [0; 4];

/// Writes the head before a frame: `block` is both, `content` the size of what is in it.
pub(crate) fn seal(block: &mut [u8], content: usize) {
    let Some((head, frame)) = block.split_at_mut_checked(HEAD) else { return };
    let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes();
    let parts = [&SKIP[..], &size(frame.len()), &size(content), &check(frame)].concat();
    head.copy_from_slice(&parts);
}

/// What tells a damaged frame: the first bytes of its digest.
fn check(frame: &[u8]) -> [u8; 8] {
    let Digest(all) = Digest::of(frame);
    let [a, b, c, d, e, f, g, h, ..] = all;
    [a, b, c, d, e, f, g, h]
}

/// How many bytes a file of compressed blocks may have for so much content: nothing, or something that is not absurd.
pub(crate) fn can_be(bytes: u64, content: u64) -> bool {
    let blocks = content.div_ceil(BLOCK_BYTES);
    let least = blocks.checked_mul(HEAD as u64 + 1);
    let most = blocks.checked_mul((HEAD + MOST_FRAME) as u64);
    least.zip(most).is_some_and(|(least, most)| (least..=most).contains(&bytes))
}

/// Decodes every `step`th block of a file, from number `first` on, into `output`, at its place. `file` has what the entry says after it
/// was decrypted, if it was. Nothing is called but `pread` and `pwrite`, and no more is written than the entry says.
///
/// # Errors
/// Which block is wrong, and what is; what the system says.
pub fn decode(entry: &FileEntry, file: &File, (first, step): (u64, u64), output: &File) -> Result<()> {
    let mut blocks = Blocks::of(entry, file)?;
    let mut decoder = Decoder::default();
    while let Some(block) = blocks.next()? {
        if block.number % step.max(1) != first {
            continue;
        }
        blocks.load(&block)?;
        let frame = blocks.frame.get(..block.frame).unwrap_or_default();
        let content = decoder.decode(blocks.codec, frame, block.content).map_err(|what| blocks.wrong(&block, &what))?;
        output.write_all_at(content, block.place).map_err(|source| Error::io(&entry.name, "write", source))?;
    }
    Ok(())
}

/// Looks which block of a file is damaged, without decoding any.
///
/// # Errors
/// The first that is.
pub fn find_damage(entry: &FileEntry, file: &File) -> Result<()> {
    let mut blocks = Blocks::of(entry, file)?;
    while let Some(block) = blocks.next()? {
        blocks.load(&block)?;
    }
    Ok(())
}

/// A block whose head was read.
struct Block {
    number: u64,
    /// Where its head begins in the file.
    at: u64,
    /// Where its content begins in the content.
    place: u64,
    frame: usize,
    content: usize,
    check: [u8; 8],
}

struct Blocks<'f> {
    file: &'f File,
    codec: Codec,
    name: String,
    end: u64,
    content: u64,
    /// The next one.
    number: u64,
    at: u64,
    place: u64,
    /// What was loaded last, and room behind it.
    frame: Vec<u8>,
}

impl<'f> Blocks<'f> {
    fn of(entry: &FileEntry, file: &'f File) -> Result<Blocks<'f>> {
        let Some(compressed) = entry.compressed else {
            return Err(Error::format(&entry.name, 0, "is not compressed"));
        };
        Ok(Blocks {
            file,
            codec: compressed.codec,
            name: stored_name(&entry.name, Some(compressed.codec), false),
            end: entry.decrypted_bytes(),
            content: compressed.content,
            number: 0,
            at: 0,
            place: 0,
            frame: Vec::new(),
        })
    }

    fn error(&self, number: u64, at: u64, what: &str) -> Error {
        Error::format(&self.name, at, format!("block {number}: {what}"))
    }

    fn wrong(&self, block: &Block, what: &str) -> Error {
        self.error(block.number, block.at, what)
    }

    fn read(&self, number: u64, buffer: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(buffer, at).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.error(number, at, "the file ends in it"),
            _ => Error::io(&self.name, "read", source),
        })
    }

    fn next(&mut self) -> Result<Option<Block>> {
        let Blocks { number, at, place, .. } = *self;
        let left = self.content.saturating_sub(place);
        if left == 0 {
            return if at == self.end { Ok(None) } else { Err(self.error(number, at, "more than there is to be")) };
        }
        let mut head = [0; HEAD];
        self.read(number, &mut head, at)?;
        let [skip @ .., c0, c1, c2, c3, c4, c5, c6, c7] = head;
        let [skip @ .., f0, f1, f2, f3, p0, p1, p2, p3] = skip;
        if skip != SKIP {
            return Err(self.error(number, at, "does not begin as one"));
        }
        let (frame, claimed) = (u32::from_le_bytes([f0, f1, f2, f3]), u32::from_le_bytes([p0, p1, p2, p3]));
        let frame = usize::try_from(frame).unwrap_or(usize::MAX);
        if frame == 0 || frame > MOST_FRAME {
            return Err(self.error(number, at, &format!("cannot have {frame} bytes")));
        }
        let content = usize::try_from(left.min(BLOCK_BYTES)).unwrap_or(PIECE);
        if usize::try_from(claimed) != Ok(content) {
            return Err(self.error(number, at, &format!("claims {claimed} bytes of content, not {content}")));
        }
        let next = at.saturating_add((HEAD + frame) as u64);
        if next > self.end {
            return Err(self.error(number, at, "ends behind its file"));
        }
        (self.number, self.at, self.place) = (number + 1, next, place + content as u64);
        Ok(Some(Block { number, at, place, frame, content, check: [c0, c1, c2, c3, c4, c5, c6, c7] }))
    }

    /// Reads the frame of a block, which must be what was written.
    fn load(&mut self, block: &Block) -> Result<()> {
        let mut room = std::mem::take(&mut self.frame);
        room.resize(MOST_FRAME, 0);
        let frame = room.get_mut(..block.frame).unwrap_or_default();
        self.read(block.number, frame, block.at.saturating_add(HEAD as u64))?;
        if check(frame) != block.check {
            return Err(self.wrong(block, "digest differs, content is damaged"));
        }
        self.frame = room;
        Ok(())
    }
}

#[derive(Default)]
struct Decoder {
    zstd: Option<DCtx<'static>>,
    content: Vec<u8>,
}

impl Decoder {
    /// What is in a frame: exactly so many bytes, or what is wrong.
    fn decode(&mut self, codec: Codec, frame: &[u8], bytes: usize) -> std::result::Result<&[u8], String> {
        self.content.resize(PIECE, 0);
        let content = self.content.get_mut(..bytes).unwrap_or_default();
        let got = match codec {
            Codec::Lz4 => lz4(frame, content)?,
            Codec::Zstd => {
                let said = |code| format!("zstd: {}", zstd_safe::get_error_name(code));
                if zstd_safe::find_frame_compressed_size(frame).map_err(said)? != frame.len() {
                    return Err("more than a frame of zstd".into());
                }
                let decoder = self.zstd.get_or_insert_with(DCtx::create);
                decoder.decompress(&mut *content, frame).map_err(said)?
            }
        };
        if got != bytes {
            return Err(format!("has {got} bytes of content, not {bytes}"));
        }
        Ok(content)
    }
}

/// Decodes a frame as it is written here: one block, in the spelling of [`LZ4_BEGIN`].
fn lz4(frame: &[u8], content: &mut [u8]) -> std::result::Result<usize, String> {
    let other = || "not a frame of lz4 as it is written here".to_owned();
    let rest = frame.strip_prefix(&LZ4_BEGIN).and_then(|rest| rest.strip_suffix(&LZ4_END)).ok_or_else(other)?;
    let (size, data) = rest.split_first_chunk().ok_or_else(other)?;
    let size = u32::from_le_bytes(*size);
    if usize::try_from(size & !LZ4_PLAIN) != Ok(data.len()) {
        return Err(other());
    }
    if size & LZ4_PLAIN == 0 {
        return lz4_flex::block::decompress_into(data, content).map_err(|error| format!("lz4: {error}"));
    }
    match content.get_mut(..data.len()) {
        Some(place) => {
            place.copy_from_slice(data);
            Ok(data.len())
        }
        None => Err(format!("has {} bytes of content, not {}", data.len(), content.len())),
    }
}
