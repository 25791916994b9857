//! A System V shared memory segment.
//! *Read from:* /proc/sysvipc/shm; its bytes by attaching it read-only.
//! *Made again by:* shmget, filling it, `IPC_SET`, `SHM_LOCK`; tasks attach it at the same addresses; `IPC_RMID` afterwards
//! for one that was removed while attached.
//! *Lost:* times and pids of attaching and detaching; `SHM_NORESERVE`; the key that /proc/PID/maps shows of a removed one.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_image::{NsId, Reader, Writer};
use yendor_proc::sysvipc;
use yendor_sys::SysError;
use yendor_sys::ipc::{self, Attached, Writable};

use super::{Limits, Perm, Scope};
use crate::memory::vma::{self, Backing};
use crate::{Cause, Named, Result};

const DEST: u32 = 0o1000;
const LOCKED: u32 = 0o2000;
const PAGE: usize = 4096;
/// Bytes that are copied at once.
const CHUNK: usize = 256 * 1024;

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Key, id, rights.
    pub perm: Perm,
    /// Bytes asked for; what is mapped ends with a page.
    pub size: u64,
    /// `SHM_LOCK`.
    pub locked: bool,
    /// Removed, and kept only by those who have it attached.
    pub removed: bool,
    /// Where it holds data, `(offset, bytes)`; these follow each other in the blob `shm-ID`, of
    /// a nested namespace `shm-NAMESPACE-ID`.
    pub extents: Vec<(u64, u64)>,
}

/// What the tasks of a tree have attached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapped(BTreeMap<i32, Attachments>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Attachments {
    /// Areas, each of which the kernel counts as an attachment.
    areas: u64,
    /// Bytes of each attachment, all its areas together.
    lengths: Vec<u64>,
}

impl Mapped {
    /// Whether nothing is attached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what an address space has attached.
    ///
    /// # Errors
    /// An attachment of which parts were unmapped or moved is refused: shmat(2) cannot make it.
    pub fn add(&mut self, areas: &[vma::Record]) -> Result<()> {
        let mut before: Option<(&vma::Record, i32, u64)> = None;
        for area in areas {
            let Backing::Sysv { id, offset, .. } = area.backing else { continue };
            let whole = self.0.entry(id).or_default();
            whole.areas += 1;
            if offset == 0 {
                whole.lengths.push(area.len());
            } else {
                let follows =
                    before.is_some_and(|(last, last_id, end)| last_id == id && end == offset && last.end == area.start);
                match whole.lengths.last_mut() {
                    Some(length) if follows => *length += area.len(),
                    _ => {
                        let what = format!("a part of System V segment {id} at {}", area.start);
                        return Err(Cause::unsupported(format!("{what}: the part before it was unmapped or moved")));
                    }
                }
            }
            before = Some((area, id, offset + area.len()));
        }
        Ok(())
    }
}

pub(super) fn collect(
    proc: BorrowedFd<'_>,
    table: Vec<sysvipc::Shm>,
    blobs: (&Writer, Option<NsId>),
    scope: Scope<'_>,
    mapped: &Mapped,
    limits: &Limits,
) -> Result<Vec<Record>> {
    if let Some(id) = mapped.0.keys().find(|id| table.iter().all(|row| row.perm.id != **id)) {
        return Err(Cause::unsupported(format!("System V segment {id} of another ipc namespace")));
    }
    let mut out = Vec::new();
    for row in table {
        let attachments = mapped.0.get(&row.perm.id);
        let shown = || format!("System V segment {}", row.perm.id);
        if attachments.is_none() && !scope.takes(proc, &[row.creator_pid, row.last_pid], None, shown)? {
            continue;
        }
        check(&row, attachments, limits)?;
        let (perm, attached) = (row.perm, attachments.is_some());
        out.extend(scope.unless_foreign(&perm, attached, one(proc, row, blobs))?);
    }
    Ok(out)
}

fn check(row: &sysvipc::Shm, attachments: Option<&Attachments>, limits: &Limits) -> Result<()> {
    let shown = || format!("System V segment {}", row.perm.id);
    let none = Attachments::default();
    let Attachments { areas, lengths } = attachments.unwrap_or(&none);
    if row.attached > *areas {
        let others = row.attached - areas;
        return Err(Cause::unsupported(format!("{}: attached {others} times outside of the tree", shown())));
    }
    if row.attached < *areas {
        return Err(Cause::unsupported(format!("{} of another ipc namespace", shown())));
    }
    let whole = row.size.checked_next_multiple_of(PAGE as u64);
    if lengths.iter().any(|length| Some(*length) != whole) {
        return Err(Cause::unsupported(format!("{}: a part of an attachment was unmapped or moved", shown())));
    }
    if limits.shm_rmid_forced && row.attached == 0 {
        // Our own detaching would destroy it.
        return Err(Cause::unsupported(format!("{}: not attached, with kernel.shm_rmid_forced", shown())));
    }
    if !row.leftover.is_empty() {
        return Err(Cause::unsupported(format!("{}: unknown columns in /proc/sysvipc/shm", shown())));
    }
    Ok(())
}

fn one(proc: BorrowedFd<'_>, row: sysvipc::Shm, (writer, of): (&Writer, Option<NsId>)) -> Result<Record> {
    let sysvipc::Shm {
        perm,
        size,
        creator_pid: _,
        last_pid: _,
        attached: _,
        attach_time: _,
        detach_time: _,
        change_time: _,
        rss,
        swap,
        leftover: _,
    } = row;
    let whole = size.next_multiple_of(PAGE as u64);
    let attached = Attached::new(perm.id, whole, false)?;
    check_device(proc, perm.id, &attached)?;
    let resident = attached.resident(rss / PAGE as u64)?;
    let present: usize = resident.iter().map(|(start, end)| end - start).sum();
    // Reading a hole would make a page of it. But only if nothing was swapped out until we looked is the rest holes.
    let known = swap == 0 && present as u64 == rss;
    let ranges = if known { resident } else { vec![(0, usize::try_from(whole).unwrap_or(0))] };
    let extents = copy(blob(of, perm.id), &attached, &ranges, writer)?;
    let (locked, removed) = (perm.mode & LOCKED != 0, perm.mode & DEST != 0);
    Ok(Record { perm: Perm::collect(&perm), size, locked, removed, extents })
}

/// Writes the pages that are not zero.
fn copy(name: String, attached: &Attached, ranges: &[(usize, usize)], writer: &Writer) -> Result<Vec<(u64, u64)>> {
    let mut out = None;
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut page = [0u8; PAGE];
    for at in ranges.iter().flat_map(|(start, end)| (*start..*end).step_by(PAGE)) {
        attached.read(at, &mut page);
        if page == [0; PAGE] {
            continue;
        }
        let file = match &mut out {
            Some(file) => file,
            none => none.insert(writer.file(&name)?),
        };
        file.write_all(&page).map_err(|e| SysError::io("write", name.as_str(), &e))?;
        let (offset, bytes) = (at as u64, PAGE as u64);
        match extents.last_mut() {
            Some((start, len)) if *start + *len == offset => *len += bytes,
            _ => extents.push((offset, bytes)),
        }
    }
    if let Some(file) = out {
        file.finish()?;
    }
    Ok(extents)
}

fn blob(of: Option<NsId>, id: i32) -> String {
    of.map_or_else(|| format!("shm-{id}"), |of| format!("shm-{of}-{id}"))
}

/// A segment of ordinary pages lies in the kernel's own tmpfs, one of huge pages (`SHM_HUGETLB`) does not.
fn check_device(proc: BorrowedFd<'_>, id: i32, attached: &Attached) -> Result<()> {
    let maps = yendor_proc::maps::parse(&super::read(proc, "self/maps")?)?;
    let map = maps.iter().find(|m| m.start == attached.address());
    let map = map.ok_or_else(|| Cause::unsupported(format!("System V segment {id}: its mapping is not shown")))?;
    if map.dev.st_dev() != vma::kernel_tmpfs()? {
        return Err(Cause::unsupported(format!("System V segment {id}: huge pages (SHM_HUGETLB)")));
    }
    if u64::try_from(id).ok() != Some(map.inode) {
        return Err(super::changed(format!("segment {id}")));
    }
    Ok(())
}

pub(super) fn rebuild(record: &Record, proc: BorrowedFd<'_>, (reader, of): (&Reader, Option<NsId>)) -> Result<()> {
    let Record { perm, size, locked, removed: _, extents } = record;
    perm.make(proc, "shm", || ipc::shm_create(perm.key, *size, perm.mode))?;
    if !extents.is_empty() {
        fill(perm.id, &blob(of, perm.id), (*size, extents), reader)?;
    }
    ipc::shm_set(perm.id, perm.rights())?;
    if *locked {
        ipc::shm_lock(perm.id)?;
    }
    Ok(())
}

fn fill(id: i32, name: &str, (size, extents): (u64, &[(u64, u64)]), reader: &Reader) -> Result<()> {
    let outside = || Cause::corrupt(format!("System V segment {id} has data outside of its blob or itself"));
    reader.verify(name)?;
    let (file, bytes) = reader.open_file(name)?;
    let whole = size.checked_next_multiple_of(PAGE as u64).ok_or_else(outside)?;
    let mut attached = Writable::new(id, whole)?;
    let mut buffer = vec![0u8; CHUNK];
    let mut from = 0u64;
    for (offset, len) in extents {
        let end = offset.checked_add(*len).filter(|end| *end <= whole).ok_or_else(outside)?;
        let mut to = *offset;
        while to < end {
            let want = CHUNK.min(usize::try_from(end - to).unwrap_or(CHUNK));
            let chunk = buffer.get_mut(..want).ok_or_else(outside)?;
            let n = rustix::io::pread(&file, &mut *chunk, from).named("pread64", || format!("{name}, {from}"))?;
            let read = chunk.get(..n).filter(|read| !read.is_empty()).ok_or_else(outside)?;
            attached.write(usize::try_from(to).map_err(|_| outside())?, read);
            to += n as u64;
            from += n as u64;
        }
    }
    if from == bytes { Ok(()) } else { Err(outside()) }
}

pub(super) fn finish(record: &Record) -> Result<()> {
    if record.removed { Ok(ipc::shm_remove(record.perm.id)?) } else { Ok(()) }
}
