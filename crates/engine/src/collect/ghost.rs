//! Mappings of deleted files that no descriptor leads to: the file is put together from what tasks have mapped of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write as _;

use rustix::fs::FileType;
use yendor_image::{Bytes, FileId, FileWriter, Writer};
use yendor_kinds::Result;
use yendor_kinds::file::{Gather, Record, regular};
use yendor_kinds::memory::inherit;
use yendor_kinds::memory::source::Source;
use yendor_proc::maps::Map;
use yendor_sys::SysError;

use super::object::Ranges;
use super::sparse::Readable;

const PAGE: u64 = 4096;
/// Bytes that are read at once.
const CHUNK: usize = 256 * 1024;
const O_RDWR: u32 = 2;

/// Files that were put together so far.
#[derive(Default)]
pub struct Ghosts<'w> {
    files: BTreeMap<(u64, u64), Ghost<'w>>,
}

struct Ghost<'w> {
    id: FileId,
    number: u64,
    path: Bytes,
    name: String,
    out: FileWriter<'w>,
    extents: Vec<(u64, u64)>,
    /// What of it mappings have shown.
    seen: Ranges,
    size: u64,
}

impl<'w> Ghosts<'w> {
    /// The file behind a mapping; takes from the task's memory what was not taken before. `hidden`: ranges of the mapping
    /// where it does not show what is in the file: private copies, guarded pages.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn mapped(
        &mut self,
        map: &Map,
        source: &Source<'_>,
        (readable, hidden): (&Readable<'_>, &[(u64, u64)]),
        writer: &'w Writer,
        gather: &mut Gather<'_>,
    ) -> Result<FileId> {
        let key = (gather.device_of(map), map.inode);
        let ghost = match self.files.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let number = gather.ghost(key.0, key.1);
                let name = format!("ghost-map-{number}");
                let out = writer.file(&name)?;
                let id = gather.reserve(O_RDWR)?;
                let path = Bytes(map.name.clone());
                place.insert(Ghost {
                    id,
                    number,
                    path,
                    name,
                    out,
                    extents: Vec::new(),
                    seen: Ranges::default(),
                    size: 0,
                })
            }
        };
        ghost.take(map, source, (readable, hidden))?;
        Ok(ghost.id)
    }

    /// All are complete: their records.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn finish(self, gather: &mut Gather<'_>) -> Result<()> {
        for ghost in self.files.into_values() {
            let Ghost { id, number, path, name, out, extents, size, .. } = ghost;
            out.finish()?;
            let mode = FileType::RegularFile.as_raw_mode() | 0o600;
            let ghost = regular::Ghost { number, blob: Some(name), extents, owner: (own_uid(), own_gid()) };
            let record = regular::Record { path, mode, position: 0, size, ghost: Some(ghost) };
            gather.fill(id, Record::Regular(record));
        }
        Ok(())
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn own_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

impl Ghost<'_> {
    fn take(
        &mut self,
        map: &Map,
        source: &Source<'_>,
        (readable, hidden): (&Readable<'_>, &[(u64, u64)]),
    ) -> Result<()> {
        let offset = |at: u64| map.offset + (at - map.start);
        if readable.end > map.start {
            // The file reaches to here, though nobody may see what it holds.
            self.size = self.size.max(offset(readable.end));
        }
        let mut buffer = Vec::new();
        for (start, end) in inherit::subtract(&[(map.start, map.end)], hidden) {
            for (from, to) in self.seen.add(offset(start), offset(end)) {
                let at = |offset: u64| map.start + (offset - map.offset);
                for (from, to) in readable.within(at(from), at(to)) {
                    for at in (from..to).step_by(CHUNK) {
                        buffer.resize(CHUNK.min(usize::try_from(to - at).unwrap_or(CHUNK)), 0);
                        source.read(at, &mut buffer)?;
                        self.keep(offset(at), &buffer)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Pages from an offset on, but for those that hold only zeros.
    fn keep(&mut self, mut offset: u64, bytes: &[u8]) -> Result<()> {
        for page in bytes.chunks(usize::try_from(PAGE).unwrap_or(usize::MAX)) {
            if page.iter().any(|b| *b != 0) {
                self.out.write_all(page).map_err(|e| SysError::io("write", self.name.clone(), &e))?;
                match self.extents.last_mut() {
                    Some((from, len)) if *from + *len == offset => *len += PAGE,
                    _ => self.extents.push((offset, PAGE)),
                }
            }
            offset += PAGE;
        }
        Ok(())
    }
}
