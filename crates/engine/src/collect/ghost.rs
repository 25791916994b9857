//! Mappings of deleted files that no descriptor leads to: the file is put together from what tasks have mapped of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write as _;

use rustix::fs::FileType;
use yendor_image::{Bytes, FileId, FileWriter, Writer};
use yendor_kinds::Result;
use yendor_kinds::file::{Gather, Record, regular};
use yendor_kinds::memory::source::Source;
use yendor_proc::maps::Map;
use yendor_sys::SysError;

const PAGE: u64 = 4096;
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
    size: u64,
}

impl<'w> Ghosts<'w> {
    /// The file behind a mapping; takes from the task's memory what was not taken before. `copied`: ranges of the mapping
    /// that are private copies, so not the file's.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn mapped(
        &mut self,
        map: &Map,
        source: &Source<'_>,
        copied: &[(u64, u64)],
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
                place.insert(Ghost { id, number, path, name, out, extents: Vec::new(), size: 0 })
            }
        };
        ghost.take(map, source, copied)?;
        Ok(ghost.id)
    }

    /// All are complete: their records.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn finish(self, gather: &mut Gather<'_>) -> Result<()> {
        for ghost in self.files.into_values() {
            let Ghost { id, number, path, name, out, extents, size } = ghost;
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
    fn take(&mut self, map: &Map, source: &Source<'_>, copied: &[(u64, u64)]) -> Result<()> {
        let mut page = vec![0u8; usize::try_from(PAGE).unwrap_or(0)];
        for at in (map.start..map.end).step_by(4096) {
            let offset = map.offset + (at - map.start);
            let is_copy = copied.iter().any(|(start, end)| (*start..*end).contains(&at));
            let is_known = self.extents.iter().any(|(from, len)| (*from..from + len).contains(&offset));
            if is_copy || is_known {
                // The file reached to here when the copy was made, though nobody can see what it holds.
                self.size = self.size.max(offset + PAGE);
                continue;
            }
            if source.read(at, &mut page).is_err() {
                // Beyond the end of the file: the mapping is longer.
                break;
            }
            self.size = self.size.max(offset + PAGE);
            if page.iter().all(|b| *b == 0) {
                continue;
            }
            self.out.write_all(&page).map_err(|e| SysError::io("write", self.name.clone(), &e))?;
            match self.extents.last_mut() {
                Some((from, len)) if *from + *len == offset => *len += PAGE,
                _ => self.extents.push((offset, PAGE)),
            }
        }
        Ok(())
    }
}
