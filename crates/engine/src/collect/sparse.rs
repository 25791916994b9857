//! What is there of memory of a tmpfs that no descriptor leads to: shared, of memfds, of deleted files, and private mappings of such. To
//! read a hole of it makes a page, which counts for the container: a mapping of many GiB with little in it would meet its limit by its
//! checkpoint. Page tables do not tell, since each task has its own; a task that has it mapped may ask (mincore(2)), of what is not
//! swapped out. Of other file systems what is not in memory is no hole.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, statat};
use yendor_image::Addr;
use yendor_kinds::file::Gather;
use yendor_kinds::memory::source::{self, Source};
use yendor_kinds::memory::vma;
use yendor_kinds::process::Restricted;
use yendor_kinds::{Cause, Named, Result};
use yendor_proc::maps::{Label, Map};
use yendor_proc::smaps::{self, Smap, VmFlag};
use yendor_proc::{Dev, mountinfo};
use yendor_sys::SysError;
use yendor_task::live::Borrowed;
use yendor_task::script::out;
use yendor_task::tree::read_proc;
use yendor_task::{Nr, Script, Want, args};

use super::object::Ranges;
use super::watch::Watch;

const PAGE: u64 = 4096;
/// Pages that one call is asked of: what a slot of scratch memory has room for.
const AT_ONCE: u64 = 16 * 1024;
/// Calls of one script.
const CALLS: usize = 64;
/// Bytes of a mapping from which on it pays to look first whether a descriptor leads to what is in it.
const LARGE: u64 = 64 << 20;

/// What is there of mappings, by where they start, as addresses; of those that are not here nobody knows.
pub type Present = BTreeMap<u64, Vec<(u64, u64)>>;

/// Ranges of offsets that were asked for already, by device and inode.
pub type Asked = BTreeMap<(u64, u64), Ranges>;

/// What is known of where the memory of a process is.
struct Places<'p, P> {
    proc: &'p P,
    pid: i32,
    /// The kernel's own tmpfs, of memfds and of what never had a name.
    kernels: u64,
    /// Devices of the mounted ones, once they were looked for.
    mounted: Option<BTreeSet<Dev>>,
    /// What its descriptors lead to, likewise: device and inode.
    held: Option<BTreeSet<(u64, u64)>>,
}

impl<P: AsFd> Places<'_, P> {
    /// Whether a mapping is of a tmpfs, and nobody but its tasks shows what is in it.
    fn may_be_sparse(&mut self, map: &Map) -> Result<bool> {
        if map.dev.st_dev() == self.kernels {
            // All of a segment is asked for elsewhere.
            let may = !map.name.starts_with(b"/SYSV");
            return Ok(may && (map.len() < LARGE || !self.holds(map)?));
        }
        if !map.deleted {
            return Ok(false);
        }
        if self.mounted.is_none() {
            let lines = mountinfo::parse(&read_proc(self.proc.as_fd(), &format!("{}/mountinfo", self.pid))?)?;
            let tmpfs = lines.into_iter().filter(|line| line.fs_type == b"tmpfs").map(|line| line.dev);
            self.mounted = Some(tmpfs.collect());
        }
        let is_tmpfs = self.mounted.as_ref().is_some_and(|mounted| mounted.contains(&map.dev));
        Ok(is_tmpfs && (map.len() < LARGE || !self.holds(map)?))
    }

    /// Whether a descriptor of its leads to what is mapped: then nobody reads the mapping.
    fn holds(&mut self, map: &Map) -> Result<bool> {
        if self.held.is_none() {
            let path = format!("{}/fd", self.pid);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fds = openat(self.proc, path.as_str(), flags, Mode::empty()).named("openat", || path.clone())?;
            let entries = Dir::read_from(&fds).named("getdents64", || path.clone())?;
            let stats = entries.flatten().filter_map(|entry| statat(&fds, entry.file_name(), AtFlags::empty()).ok());
            self.held = Some(stats.map(|stat| (stat.st_dev, stat.st_ino)).collect());
        }
        Ok(self.held.as_ref().is_some_and(|held| held.contains(&(map.dev.st_dev(), map.inode))))
    }
}

/// Asks a borrowed process, unless its filter might end it for that.
///
/// # Errors
/// It cannot be asked.
pub fn look(
    borrowed: &mut Borrowed<'_>,
    (smaps, proc, pid): (&[Smap], &impl AsFd, i32),
    (watch, restricted): (&Watch, &[Restricted]),
    asked: &mut Asked,
) -> Result<Present> {
    let mut found = Present::new();
    let is_nameless = |map: &Map| map.inode != 0 && (map.deleted || matches!(map.label(), Label::AnonShmem(_)));
    let ours: Vec<_> = smaps.iter().filter(|smap| is_nameless(&smap.map) && smap.swap == 0).map(|s| &s.map).collect();
    if ours.is_empty() {
        return Ok(found);
    }
    let mut places = Places { proc, pid, kernels: vma::kernel_tmpfs()?, mounted: None, held: None };
    for map in ours {
        if !places.may_be_sparse(map)? {
            continue;
        }
        if !restricted.first().is_some_and(|restricted| watch.may(restricted, &[Nr::MINCORE])) {
            break;
        }
        // What others have copied of it is another's.
        let is_new = !map.perms.shared || {
            let known = asked.entry((map.dev.st_dev(), map.inode)).or_default();
            !known.add(map.offset, map.offset + map.len()).is_empty()
        };
        if is_new {
            found.insert(map.start, present(borrowed, map.start, map.end)?);
        }
    }
    if !found.is_empty() {
        // What was swapped out before it was asked for is not told.
        let now = smaps::parse(&read_proc(proc.as_fd(), &format!("{pid}/smaps"))?)?;
        let whole: BTreeMap<u64, u64> = now.iter().map(|smap| (smap.map.start, smap.swap)).collect();
        found.retain(|start, _| whole.get(start) == Some(&0));
    }
    Ok(found)
}

fn present(borrowed: &mut Borrowed<'_>, start: u64, end: u64) -> Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    let mut at = start;
    while at < end {
        let mut script = Script::new();
        let mut until = at;
        while until < end && script.calls.len() < CALLS {
            let pages = ((end - until) / PAGE).min(AT_ONCE);
            let room = usize::try_from(pages).unwrap_or(0);
            script.call_wanting(Nr::MINCORE, args![until, pages * PAGE, out(room)], Want::Exactly(0));
            until += pages * PAGE;
        }
        for done in borrowed.run(0, &script)? {
            let answer =
                done.out.first().ok_or_else(|| SysError::new("mincore", "no answer", yendor_sys::Errno::IO))?;
            for page in answer.iter() {
                if page & 1 == 1 {
                    match found.last_mut().filter(|last| last.1 == at) {
                        Some(last) => last.1 += PAGE,
                        None => found.push((at, at + PAGE)),
                    }
                }
                at += PAGE;
            }
        }
        if at != until {
            return Err(Cause::from(SysError::new("mincore", format!("{at:#x}"), yendor_sys::Errno::IO)));
        }
    }
    Ok(found)
}

/// What of a mapping can be read, and what of it is there: the rest is the same for all who have it mapped.
pub struct Readable<'p> {
    /// Where what is mapped ends, as an address: beyond it there is nothing.
    pub end: u64,
    /// Ranges that cannot be read here though they are there: guarded pages.
    pub guarded: Vec<(u64, u64)>,
    /// What is there, where that is known; the rest are holes, and stay holes.
    pub present: Option<&'p [(u64, u64)]>,
}

impl<'p> Readable<'p> {
    /// Of a mapping that no descriptor leads to.
    ///
    /// # Errors
    /// It cannot be found out.
    pub fn of(smap: &Smap, source: &Source<'_>, present: &'p Present, gather: &mut Gather<'_>) -> Result<Readable<'p>> {
        let map = &smap.map;
        let guards = if smap.vm_flags.has(VmFlag::Guard) { guards(source, map)? } else { Vec::new() };
        let guarded: Vec<_> = guards.into_iter().map(|(start, end)| (start.0, end.0)).collect();
        let present = present.get(&map.start).map(Vec::as_slice);
        let end = end(map, source, (&guarded, present.is_some()), gather)?;
        Ok(Readable { end, guarded, present })
    }

    /// What is there of a range.
    pub fn within(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let end = end.min(self.end);
        let Some(present) = self.present else { return Vec::from_iter((start < end).then_some((start, end))) };
        let first = present.partition_point(|(_, to)| *to <= start);
        let some = present[first..].iter().take_while(|(from, _)| *from < end);
        some.map(|(from, to)| (start.max(*from), end.min(*to))).filter(|(from, to)| from < to).collect()
    }
}

/// The pages of a mapping that its task has guarded.
///
/// # Errors
/// What the scan says; in shared memory they are refused.
pub fn guards(source: &Source<'_>, map: &Map) -> Result<Vec<(Addr, Addr)>> {
    let guards = source::guards(source, map.start, map.end)?;
    if map.perms.shared && !guards.is_empty() {
        let what = "guard regions (MADV_GUARD_INSTALL) in shared memory";
        return Err(Cause::unsupported(format!("mapping {:x}-{:x}: {what}", map.start, map.end)));
    }
    Ok(guards)
}

/// Where what is mapped ends. Only who has the rights of the host's root is told; to others pages that cannot be read up to the end of the
/// mapping are beyond it, which is said. `known`: nothing is read of what is not there.
fn end(
    map: &Map,
    source: &Source<'_>,
    (guarded, known): (&[(u64, u64)], bool),
    gather: &mut Gather<'_>,
) -> Result<u64> {
    let path = format!("{}/map_files/{:x}-{:x}", source.pid, map.start, map.end);
    if let Ok(stat) = statat(&gather.proc, path.as_str(), AtFlags::empty()) {
        let size = u64::try_from(stat.st_size).unwrap_or(0).next_multiple_of(PAGE);
        return Ok(map.start + size.saturating_sub(map.offset).min(map.len()));
    }
    // What never was a file is as long as its mapping, unless that has grown; to find out would make a page of it.
    if known && (map.name == b"/dev/zero" || matches!(map.label(), Label::AnonShmem(_))) {
        return Ok(map.end);
    }
    let mut page = vec![0u8; usize::try_from(PAGE).unwrap_or(0)];
    // Nobody can read a guarded page; what is before it tells as much.
    let last = guarded.last().filter(|guard| guard.1 == map.end).map_or(map.end, |guard| guard.0);
    if last == map.start || source.read(last - PAGE, &mut page).is_ok() {
        return Ok(map.end);
    }
    let shown = map.name.escape_ascii();
    if !guarded.is_empty() {
        return Err(Cause::unsupported(format!("{shown}: whether pages beside guarded ones are beyond its end")));
    }
    let (mut within, mut beyond) = (0, map.len() / PAGE - 1);
    while within < beyond {
        let middle = within.midpoint(beyond);
        match source.read(map.start + middle * PAGE, &mut page) {
            Ok(()) => within = middle + 1,
            Err(_) => beyond = middle,
        }
    }
    let end = map.start + within * PAGE;
    let what = format!("{shown}, mapped: its last {:#x} bytes, unless they are beyond its end", map.end - end);
    gather.lost.push(("regular".into(), what));
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::Readable;

    #[test]
    fn what_is_there_of_a_range() {
        let present = [(10, 20), (30, 40), (50, 60)];
        let known = Readable { end: 55, guarded: Vec::new(), present: Some(&present) };
        assert_eq!(known.within(0, 100), [(10, 20), (30, 40), (50, 55)]);
        assert_eq!(known.within(15, 35), [(15, 20), (30, 35)]);
        assert_eq!(known.within(20, 30), []);
        assert_eq!(known.within(55, 60), []);
        let unknown = Readable { end: 55, guarded: Vec::new(), present: None };
        assert_eq!(unknown.within(10, 70), [(10, 55)]);
        assert_eq!(unknown.within(60, 70), []);
    }
}
