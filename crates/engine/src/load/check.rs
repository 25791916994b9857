//! What the records claim, checked as a whole before anybody acts on it: ids, numbers, places, sizes.
//!
//! Runs in the loader. A kind checks what only it knows when it is made again, and the kernel has the last word; what is
//! here is what the planner relies on, and what would otherwise be refused late and in words that blame nobody.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::OFlags;
use yendor_image::{FileId, Manifest, NsId, PAGE_BYTES, PageRun, RECORDS_FILE, ShmId, pages_name};
use yendor_kinds::extent::are_apart;
use yendor_kinds::file::{self, Descriptor, Entry};
use yendor_kinds::memory::vma::{self, Backing};
use yendor_kinds::memory::{self, layout};
use yendor_kinds::namespace::nested::{self, Content};
use yendor_kinds::namespace::{mount, user};
use yendor_kinds::process::{self, Alive, State, Thread, credential};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, namespace};
use yendor_sys::xstate;

use crate::error::{Error, Result, Step};
use crate::processor;
use crate::rebuild::{is_status, plan};

/// Where user space ends on x86_64 with four levels of page tables; an address behind it is the kernel's.
const USER_END: u64 = 0x7fff_ffff_f000;
/// The default of /proc/sys/fs/nr_open, which nobody raises by accident.
const MOST_DESCRIPTORS: i32 = 1 << 20;
/// More than any address space can hold: no honest object is larger.
const MOST_BYTES: u64 = 1 << 47;
/// -1, by which calls that set ids mean "as it is": nobody has it.
const NOBODY: u32 = u32::MAX;
/// NGROUPS_MAX of the kernel.
const MOST_GROUPS: usize = 1 << 16;
/// PID_MAX_LIMIT of the kernel.
const MOST_PID: i32 = 4 << 20;
/// `SECCOMP_FILTER_FLAG_LOG`, `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: the others are about its installation.
const FILTER_FLAGS: u32 = 2 | 4;
/// The clocks of a time namespace cannot be further ahead (KTIME_MAX / 2).
const MOST_NANOSECONDS: u64 = 1 << 62;
/// More than an honest container has: each takes a system call and memory of the kernel.
const MOST_NAMESPACES: usize = 1024;

/// More than `fs.aio-max-nr` allows anywhere: of requests, each of 32 bytes.
const MOST_OF_RING: u64 = 1 << 32;

/// Checks.
///
/// # Errors
/// `Corrupt` with the record that claims what cannot be.
pub fn check(snapshot: &Snapshot, manifest: &Manifest) -> Result<()> {
    let Snapshot { machine, container, processes, files, objects, restrictions, namespaces, lost: _ } = snapshot;
    let inside = namespaces.iter().filter_map(|one| match &one.content {
        Content::Mount(record) => Some(&record.mounts),
        _ => None,
    });
    let inside = inside.chain(std::iter::once(&container.mounts.mounts)).flatten();
    let inside = inside.filter_map(|mount| match &mount.what {
        mount::What::New(system) => system.content.as_ref(),
        _ => None,
    });
    let layers: Vec<&namespace::layer::Record> = container.layers.iter().chain(inside).collect();
    for layer in &layers {
        let plain = layer.mount.0.split(|b| *b == b'/').all(|part| part != b".." && part != b".");
        if !layer.mount.0.starts_with(b"/") || !plain || layer.mount.0.contains(&0) {
            return Err(wrong("file system", layer.mount.to_string(), "its place is no absolute path"));
        }
        let size = |e: &namespace::layer::Entry| match &e.what {
            namespace::layer::What::File { size, .. } => *size,
            _ => 0,
        };
        let lies = |e: &&namespace::layer::Entry| size(e) > MOST_BYTES || e.owner.0 == NOBODY || e.owner.1 == NOBODY;
        if let Some(entry) = layer.entries.iter().find(lies) {
            return Err(wrong("file", entry.path.to_string(), "its size or owner cannot be"));
        }
    }
    if !processor::is_possible(&machine.processor) {
        return Err(wrong("machine", "processor", "it has what no processor has"));
    }
    if container.clocks.0 > MOST_NANOSECONDS || container.clocks.1 > MOST_NANOSECONDS {
        return Err(wrong("namespace", "time", "its clocks cannot be"));
    }
    if namespaces.len() > MOST_NAMESPACES {
        return Err(wrong("namespace", "nested", "there are too many"));
    }
    namespaces.iter().enumerate().try_for_each(|(number, one)| owned(number, one, namespaces))?;
    let nested = namespaces.iter().filter_map(|one| match &one.content {
        Content::Ipc { objects, .. } => Some(objects),
        _ => None,
    });
    for shm in container.ipc.iter().chain(nested).flat_map(|ipc| &ipc.shm) {
        if shm.size > MOST_BYTES || !are_apart(shm.extents.iter().copied()) {
            return Err(wrong(
                "shared memory",
                shm.perm.id.to_string(),
                "its size cannot be, or what is in it overlaps",
            ));
        }
    }
    let known = Known {
        files: unique(files.iter().map(|f| f.id), "file")?,
        objects: unique(objects.iter().map(|o| o.id), "shared object")?,
        manifest,
    };
    files.iter().try_for_each(|entry| {
        check_file(entry)?;
        let (blob, extents) = content_of(entry);
        if !are_apart(extents.iter().copied()) {
            return Err(wrong(entry.record.kind(), format!("file {}", entry.id), "what is in it overlaps"));
        }
        known.blob(blob).map_err(|e| e.kind(entry.record.kind(), format!("file {}", entry.id)))
    })?;
    mount::own::check(&container.mounts).map_err(|e| Error::new(Step::Load, e))?;
    for layer in layers {
        let checked = namespace::layer::check(layer).map_err(|e| Error::new(Step::Load, e));
        let checked = checked.and_then(|()| known.blob(layer.blob.as_ref()));
        checked.map_err(|e| e.kind("file system", layer.mount.to_string()))?;
    }
    let is_mount = |id: &NsId| {
        let record = usize::try_from(id.0).ok().and_then(|n| namespaces.get(n));
        record.is_some_and(|record| record.kind() == nested::Kind::Mount)
    };
    if let Some(file) = files.iter().find(|file| file.mounts.is_some_and(|id| !is_mount(&id))) {
        return Err(wrong("file", file.id.to_string(), "it was opened in a mount namespace that is not there"));
    }
    for object in objects {
        let name = object.id.to_string();
        if object.size > MOST_BYTES {
            return Err(wrong("shared object", name, "its size cannot be"));
        }
        object.pages.iter().try_for_each(|run| known.run(run)).map_err(|e| e.kind("shared object", name.clone()))?;
        // In the order of the mappings that have shown them.
        if !are_apart(object.pages.iter().map(|run| (run.addr.0, run.bytes().unwrap_or(u64::MAX)))) {
            return Err(wrong("shared object", name, "its pages overlap"));
        }
    }
    if let Some(n) = restrictions.filters.iter().position(|filter| filter.flags & !FILTER_FLAGS != 0) {
        return Err(wrong("seccomp filter", n.to_string(), "its flags are about more than the filter"));
    }
    if let Some(n) = restrictions.domains.iter().position(|domain| !domain.is_possible()) {
        return Err(wrong("Landlock domain", n.to_string(), "it allows what it does not handle"));
    }
    let restricted =
        processes.iter().filter_map(|p| if let State::Alive(a) = &p.state { Some(&a.threads) } else { None });
    for thread in restricted.flatten() {
        lives(thread, namespaces)?;
        let there = |number: &u32, table: usize| usize::try_from(*number).is_ok_and(|n| n < table);
        let (filters, domains) = (restrictions.filters.len(), restrictions.domains.len());
        let own = &thread.restricted;
        if !own.filters.iter().all(|n| there(n, filters)) || !own.domains.iter().all(|n| there(n, domains)) {
            return Err(wrong("thread", thread.tid.to_string(), "it refers to a restriction that is not there"));
        }
    }
    // Ids of processes in all pid namespaces, parents, and that nobody is his own ancestor.
    plan::plan(processes, namespaces).map_err(|e| Error::new(Step::Load, e.claimed()))?;
    let mut tids = BTreeSet::new();
    for process in processes {
        let pid = process.pid.0;
        match &process.state {
            State::Zombie(status) if is_status(*status) => {}
            State::Zombie(status) => {
                return Err(wrong("wait status", format!("{status:#x}"), "nobody ends with it")).map_err(at(pid));
            }
            // Only what is composed begins with a program.
            State::Exec(exec) => {
                return Err(wrong("program", exec.path.to_string(), "no checkpoint writes one")).map_err(at(pid));
            }
            State::Alive(alive) => known.alive(pid, alive, &mut tids).map_err(at(pid))?,
        }
    }
    notified(processes, files)
}

/// A message queue notifies one process at most, which has it open.
fn notified(processes: &[process::Record], files: &[Entry]) -> Result<()> {
    let queues: BTreeMap<FileId, _> = files
        .iter()
        .filter_map(|entry| match &entry.record {
            file::Record::Mqueue(record) => Some((entry.id, record.queue)),
            _ => None,
        })
        .collect();
    let mut seen = BTreeSet::new();
    for process in processes {
        let State::Alive(alive) = &process.state else { continue };
        for one in &alive.notifications {
            // They are ascending, as was found.
            let held = alive.descriptors.binary_search_by_key(&one.number.0, |d| d.number.0).ok();
            let held = held.and_then(|index| alive.descriptors.get(index));
            if !held.and_then(|d| queues.get(&d.file)).is_some_and(|queue| seen.insert(*queue)) {
                let error =
                    wrong("message queue", one.number.to_string(), "it is none, or notifies another one already");
                return Err(at(process.pid.0)(error));
            }
        }
    }
    Ok(())
}

/// The owner of a namespace is a user namespace that comes before it.
fn owned(number: usize, record: &nested::Record, table: &[nested::Record]) -> Result<()> {
    let bad = |what| Err(wrong("namespace", number.to_string(), what));
    if let Content::User(record) = &record.content {
        user::check(record).map_err(|e| Error::new(Step::Load, e))?;
    }
    if let Content::Mount(record) = &record.content {
        mount::check(record).map_err(|e| Error::new(Step::Load, e))?;
        let shown = record.mounts.iter().filter_map(|mount| match &mount.what {
            mount::What::New(system) => system.pids,
            _ => None,
        });
        let is_pid = |id: NsId| {
            let record = usize::try_from(id.0).ok().and_then(|n| table.get(n));
            record.is_some_and(|record| record.kind() == nested::Kind::Pid)
        };
        if !shown.into_iter().all(is_pid) {
            return bad("a mount of it shows a pid namespace that is not there");
        }
    }
    let Some(owner) = record.owner else { return Ok(()) };
    let owner = usize::try_from(owner.0).ok().filter(|owner| *owner < number).and_then(|owner| table.get(owner));
    match owner.map(nested::Record::kind) {
        Some(nested::Kind::User) => Ok(()),
        _ => bad("it belongs to no user namespace before it"),
    }
}

/// One namespace of a kind at most.
fn lives(thread: &Thread, table: &[nested::Record]) -> Result<()> {
    let mut kinds = BTreeSet::new();
    for id in &thread.namespaces {
        let record = usize::try_from(id.0).ok().and_then(|n| table.get(n));
        let kind = record.map(nested::Record::kind).filter(|kind| *kind != nested::Kind::Pid);
        if !kind.is_some_and(|kind| kinds.insert(kind)) {
            let what = "it is in a namespace that is not there, or in two of a kind";
            return Err(wrong("thread", thread.tid.to_string(), what));
        }
    }
    Ok(())
}

fn at(pid: i32) -> impl Fn(Error) -> Error {
    move |e| e.task(pid)
}

fn wrong(kind: &'static str, object: impl Into<String>, what: &str) -> Error {
    Error::new(Step::Load, Cause::corrupt(what)).kind(kind, object)
}

fn unique<T: Ord + Copy + std::fmt::Display>(ids: impl Iterator<Item = T>, kind: &'static str) -> Result<BTreeSet<T>> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(wrong(kind, id.to_string(), "its id is another one's too"));
        }
    }
    Ok(seen)
}

/// Where the content of an open file is, and where in the file that goes: in any order, that of the mappings which have shown it.
fn content_of(entry: &file::Entry) -> (Option<&String>, &[(u64, u64)]) {
    match &entry.record {
        file::Record::Memfd(memfd) => (memfd.blob.as_ref(), &memfd.extents),
        file::Record::Regular(regular) => {
            regular.ghost.as_ref().map_or((None, &[]), |ghost| (ghost.blob.as_ref(), &ghost.extents))
        }
        _ => (None, &[]),
    }
}

fn check_file(entry: &file::Entry) -> Result<()> {
    let (size, position) = match &entry.record {
        file::Record::Memfd(m) => (m.size, m.position),
        file::Record::Regular(r) => (r.size, r.position),
        _ => (0, 0),
    };
    if let file::Record::Regular(r) = &entry.record
        && let Some(owner) = r.ghost.as_ref().map(|g| g.owner)
        && (owner.0 == NOBODY || owner.1 == NOBODY)
    {
        return Err(wrong(entry.record.kind(), format!("file {}", entry.id), "its owner cannot be"));
    }
    if let file::Record::Regular(r) = &entry.record
        && !r.is_possible(entry.flags)
    {
        return Err(wrong(
            entry.record.kind(),
            format!("file {}", entry.id),
            "nothing that is opened so is of this kind",
        ));
    }
    const PATH: u32 = OFlags::PATH.bits();
    let beside = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::LARGEFILE;
    if entry.flags & PATH != 0 && entry.flags & !(PATH | beside.bits()) != 0 {
        return Err(wrong(entry.record.kind(), format!("file {}", entry.id), "a path (O_PATH) has no other flags"));
    }
    // A position may lie behind the end, but not where no file has bytes.
    if size > MOST_BYTES || i64::try_from(position).is_err() {
        return Err(wrong(entry.record.kind(), format!("file {}", entry.id), "its size or position cannot be"));
    }
    Ok(())
}

/// Ids are ids, and capabilities that no kernel has are not left out in silence.
fn credentials(record: &credential::Record) -> Result<()> {
    let ids = record.uids.iter().chain(&record.gids).chain(&record.groups);
    if record.groups.len() > MOST_GROUPS || ids.copied().any(|id| id == NOBODY) {
        return Err(wrong("credentials", "ids", "there are too many, or one that nobody can have"));
    }
    const KNOWN: u64 = (1 << 41) - 1;
    match record.capabilities.iter().fold(0, |all, set| all | set) & !KNOWN {
        0 => Ok(()),
        more => Err(Error::new(
            Step::Load,
            Cause::Denied {
                what: format!("capabilities {more:#x}, which are more than the container's root has"),
                hint: "the image is not one that yendor wrote".into(),
            },
        )
        .kind("credentials", "capabilities")),
    }
}

struct Known<'a> {
    files: BTreeSet<FileId>,
    objects: BTreeSet<ShmId>,
    manifest: &'a Manifest,
}

impl Known<'_> {
    fn alive(&self, pid: i32, alive: &Alive, tids: &mut BTreeSet<i32>) -> Result<()> {
        if alive.threads.first().map(|t| t.tid.0) != Some(pid) {
            return Err(wrong("thread", pid.to_string(), "the first thread is not the leader"));
        }
        for thread in &alive.threads {
            let tid = thread.tid.0;
            if !(2..=MOST_PID).contains(&tid) || !tids.insert(tid) {
                return Err(wrong("thread", tid.to_string(), "its id is another one's too, or none"));
            }
            credentials(&thread.credentials)?;
        }
        if alive.controls.large.iter().any(|components| components & !xstate::LARGE != 0) {
            return Err(wrong("registers", "", "there is no permission for these"));
        }
        if !alive.controls.is_possible() || !alive.threads.iter().all(|thread| thread.controls.is_possible()) {
            return Err(wrong("controls", "", "no kernel would have told these"));
        }
        self.descriptors(&alive.descriptors)?;
        if alive.terminal.is_some_and(|t| !self.files.contains(&t.file)) {
            return Err(wrong("terminal", "", "no file has its id"));
        }
        self.memory(&alive.memory)?;
        alive.contexts.iter().try_for_each(|context| ring(&context.area, &alive.memory.areas))
    }

    fn descriptors(&self, list: &[Descriptor]) -> Result<()> {
        let mut next = 0;
        for d in list {
            let n = d.number.0;
            if !(next..MOST_DESCRIPTORS).contains(&n) {
                return Err(wrong("descriptor", n.to_string(), "its number is out of order or out of range"));
            }
            if !self.files.contains(&d.file) {
                return Err(wrong("descriptor", n.to_string(), &format!("no file has the id {}", d.file)));
            }
            next = n + 1;
        }
        Ok(())
    }

    fn memory(&self, memory: &memory::Record) -> Result<()> {
        let mut last = 0;
        for area in &memory.areas {
            let (start, end) = (area.start.0, area.end.0);
            let name = || format!("{start:#x}-{end:#x}");
            let aligned = start % PAGE_BYTES == 0 && end % PAGE_BYTES == 0;
            if start < last || end <= start || end > USER_END || !aligned || area.protection > 7 {
                return Err(wrong("mapping", name(), "it overlaps, is out of order, or is where no task has memory"));
            }
            self.behind(area).map_err(|e| e.kind("mapping", name()))?;
            last = end;
        }
        let mut last = 0;
        for run in &memory.pages {
            self.run(run)?;
            if run.addr.0 < last {
                return Err(wrong("pages", run.addr.to_string(), "they overlap others, or are out of order"));
            }
            last = run.end().map_or(USER_END, |end| end.0);
        }
        layout(&memory.layout)?;
        match memory.layout.exe {
            Some(id) if !self.files.contains(&id) => Err(wrong("program", id.to_string(), "no file has its id")),
            _ => Ok(()),
        }
    }

    fn behind(&self, area: &vma::Record) -> Result<()> {
        let (there, offset) = match &area.backing {
            Backing::File(id, offset) => (self.files.contains(id), *offset),
            Backing::Object(id, offset) => (self.objects.contains(id), *offset),
            Backing::Sysv { offset, .. } => (true, *offset),
            Backing::Anonymous | Backing::Vdso | Backing::Vvar | Backing::VvarClock => (true, 0),
        };
        let end = offset.checked_add(area.end.0 - area.start.0).and_then(|end| i64::try_from(end).ok());
        if !there || end.is_none() || offset % PAGE_BYTES != 0 {
            return Err(Error::new(Step::Load, Cause::corrupt("what is behind it does not exist, or not so far")));
        }
        Ok(())
    }

    /// A file of the image.
    fn blob(&self, name: Option<&String>) -> Result<()> {
        match name.filter(|name| self.manifest.file(name).is_none()) {
            None => Ok(()),
            Some(name) => Err(Error::new(Step::Load, yendor_image::Error::Missing { file: name.clone() })),
        }
    }

    /// Within a pages file of the image.
    fn run(&self, run: &PageRun) -> Result<()> {
        let name = pages_name(run.file);
        let entry = self.manifest.file(&name).ok_or(yendor_image::Error::Missing { file: name });
        entry
            .and_then(|entry| run.check(entry.content_bytes()))
            .map_err(|e| Error::new(Step::Load, e).kind("pages", RECORDS_FILE))
    }
}

/// The ring of a context of asynchronous I/O, where nothing else is.
fn ring(ring: &vma::Record, areas: &[vma::Record]) -> Result<()> {
    let (start, end) = (ring.start.0, ring.end.0);
    // They are ascending, as was found.
    let behind = areas.get(areas.partition_point(|area| area.end.0 <= start));
    if end > USER_END || end.saturating_sub(start) > MOST_OF_RING || behind.is_some_and(|area| area.start.0 < end) {
        let name = format!("{start:#x}-{end:#x}");
        return Err(wrong(
            "asynchronous I/O",
            name,
            "its ring is too large, is where something else is, or where no task has memory",
        ));
    }
    Ok(())
}

/// What `PR_SET_MM_MAP` would refuse without saying why.
fn layout(record: &layout::Record) -> Result<()> {
    let layout::Record { code, data, brk, stack, arguments, environment, auxv, exe: _ } = record;
    let ranges = [code, data, brk, arguments, environment];
    let outside = ranges.iter().flat_map(|r| [r.0, r.1]).chain([*stack]).any(|a| a > USER_END);
    let reversed = [code, data, arguments, environment, brk].iter().any(|r| r.0 > r.1);
    if outside || reversed || auxv.0.len() > 1024 {
        return Err(wrong("memory", "layout", "its addresses cannot be"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_image::Addr;

    fn area(start: u64, end: u64) -> vma::Record {
        let (start, end) = (Addr(start * PAGE_BYTES), Addr(end * PAGE_BYTES));
        let (flags, guards) = (Vec::new(), Vec::new());
        let backing = Backing::Anonymous;
        vma::Record { start, end, protection: 3, backing, shared: false, flags, name: None, policy: None, guards }
    }

    #[test]
    fn a_ring_is_where_nothing_else_is_however_much_that_is() {
        let few = [area(1, 2), area(4, 6), area(6, 7), area(10, 12)];
        for start in 0..14 {
            for end in start + 1..15 {
                let free = few.iter().all(|a| a.end.0 <= start * PAGE_BYTES || end * PAGE_BYTES <= a.start.0);
                assert_eq!(ring(&area(start, end), &few).is_ok(), free, "{start}-{end}");
            }
        }
        let begin = std::time::Instant::now();
        let many: Vec<vma::Record> = (1..60_001).map(|n| area(2 * n, 2 * n + 1)).collect();
        assert!((1..60_001).all(|n| ring(&area(2 * n + 1, 2 * n + 2), &many).is_ok()));
        assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    }
}
