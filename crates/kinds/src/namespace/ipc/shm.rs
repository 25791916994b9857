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
use yendor_sys::ipc::{self, Attached, Writable};
use yendor_sys::{Errno, SysError};

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
    let mut taken = BTreeMap::new();
    for row in table {
        let attachments = mapped.0.get(&row.perm.id);
        let shown = || format!("System V segment {}", row.perm.id);
        let last = row.attach_time.max(row.detach_time).max(row.change_time);
        let users = [row.creator_pid, row.last_pid];
        if attachments.is_none() && !scope.takes(proc, (&users, last), None, shown)? {
            continue;
        }
        check(&row, attachments, limits)?;
        let (perm, attached, had) = (row.perm, attachments.is_some(), (row.attached, row.rss + row.swap));
        let collected = scope.unless_foreign(&perm, attached, one(proc, row, blobs))?;
        taken.extend(collected.is_some().then_some((perm.id, had)));
        out.extend(collected);
    }
    unchanged(proc, &taken)?;
    Ok(out)
}

/// Nobody else may have attached or filled a segment meanwhile: a page that came after they were counted is in no image.
fn unchanged(proc: BorrowedFd<'_>, taken: &BTreeMap<i32, (u64, u64)>) -> Result<()> {
    if taken.is_empty() {
        return Ok(());
    }
    let now = sysvipc::parse_shm(&super::read(proc, "sysvipc/shm")?)?;
    for (id, (attached, bytes)) in taken {
        let row = now.iter().find(|row| row.perm.id == *id);
        if row.is_none_or(|row| row.attached != *attached || row.rss + row.swap > *bytes) {
            return Err(super::changed(format!("segment {id}")));
        }
    }
    Ok(())
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
    let (name, all) = (blob(of, perm.id), [(0, usize::try_from(whole).unwrap_or(0))]);
    // Reading a hole would make a page of it. But only if nothing was swapped out until we looked is the rest holes.
    let extents = if swap == 0 && present as u64 == rss {
        copy(name, &attached, &resident, writer, |_| Ok(()))?
    } else {
        let writable = writable(perm.id, whole)?;
        let was_there = |at: usize| {
            let after = resident.partition_point(|(start, _)| *start <= at);
            resident.get(after.wrapping_sub(1)).is_some_and(|(_, end)| at < *end)
        };
        let back = |at| if was_there(at) { Ok(()) } else { Ok(writable.punch(at, PAGE)?) };
        copy(name, &attached, &all, writer, back)?
    };
    let (locked, removed) = (perm.mode & LOCKED != 0, perm.mode & DEST != 0);
    Ok(Record { perm: Perm::collect(&perm), size, locked, removed, extents })
}

/// For making a hole again of each page that was one until it was read.
fn writable(id: i32, whole: u64) -> Result<Writable> {
    match Writable::new(id, whole) {
        Err(e) if e.errno == Errno::ACCESS => Err(Cause::unsupported(format!(
            "System V segment {id}: a part of it is swapped out, and reading it would fill its holes, which only who may write it can empty"
        ))),
        other => Ok(other?),
    }
}

/// Writes the pages that are not zero; `zero` is told of each other one.
fn copy(
    name: String,
    attached: &Attached,
    ranges: &[(usize, usize)],
    writer: &Writer,
    zero: impl Fn(usize) -> Result<()>,
) -> Result<Vec<(u64, u64)>> {
    let mut out = None;
    let mut extents: Vec<(u64, u64)> = Vec::new();
    let mut page = [0u8; PAGE];
    for at in ranges.iter().flat_map(|(start, end)| (*start..*end).step_by(PAGE)) {
        attached.read(at, &mut page);
        if page == [0; PAGE] {
            zero(at)?;
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
            reader.wanted(name)?;
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// As if a page were swapped out: nobody can tell it from a hole without reading both.
    #[test]
    fn what_is_swapped_out_is_read_without_filling_the_holes() {
        const PAGES: usize = 4096;
        let id = ipc::shm_create(0, (PAGES * PAGE) as u64, 0o600).expect("shmget");
        let mut filled = Writable::new(id, (PAGES * PAGE) as u64).expect("shmat");
        for (page, bytes) in [(1, b"one"), (7, b"two"), (4095, b"end")] {
            filled.write(page * PAGE, bytes);
        }
        filled.write(9 * PAGE, &[0]);
        drop(filled);
        // What of it is removed lives as long as it is attached, and no longer than this test.
        let here = Attached::new(id, (PAGES * PAGE) as u64, false).expect("shmat");
        ipc::shm_remove(id).expect("shmctl");
        let row = || {
            let table = sysvipc::parse_shm(&std::fs::read("/proc/sysvipc/shm").expect("read")).expect("parse");
            table.into_iter().find(|row| row.perm.id == id).expect("our segment")
        };
        let place = std::env::temp_dir().join(format!("yendor-test-shm-{}", std::process::id()));
        let writer = Writer::create(&place).expect("create");
        let proc = rustix::fs::open("/proc", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).expect("open");
        let before = row();
        let record = one(proc.as_fd(), sysvipc::Shm { swap: PAGE as u64, ..row() }, (&writer, None)).expect("collect");
        drop(writer);
        let page = |n: u64| (n * PAGE as u64, PAGE as u64);
        assert_eq!(record.extents, [page(1), page(7), page(4095)]);
        assert_eq!((row().rss, row().swap, before.rss), (4 * PAGE as u64, 0, 4 * PAGE as u64));
        // What comes later is in no image.
        let taken = BTreeMap::from([(id, (1, before.rss))]);
        unchanged(proc.as_fd(), &taken).expect("as it was");
        Writable::new(id, PAGE as u64).expect("shmat").write(0, b"late");
        let said = unchanged(proc.as_fd(), &taken).expect_err("a page more").to_string();
        assert!(said.contains(&format!("segment {id} changes")), "{said}");
        drop(here);
    }
}
