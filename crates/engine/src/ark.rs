//! Memory that several containers from one image have together, until they write to it (docs/adr/0012): a sealed memfd that nobody
//! can change, mapped privately by each. The keeper of the first container fills it from the image and hands it to the front; the
//! keepers of the others get it from there.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use yendor_image::{PAGE_BYTES, PageRun, Reader, pages_name};
use yendor_kinds::memory::Record;
use yendor_kinds::memory::vma::{self, Backing, Flag};
use yendor_kinds::process::State;
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named, Result};
use yendor_policy::seccomp::bpf::op;
use yendor_policy::seccomp::{ARCH, Instruction, action, to_bytes};
use yendor_sys::SysError;

use crate::request::Seccomp;

/// Areas that are smaller are read, as everything is elsewhere.
const LEAST: u64 = 1 << 20;
/// The distance of areas in the memfd: what an area grows by (mremap) holds zeros, and nothing of another area.
const APART: u64 = 1 << 40;
/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;

const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// Where everything is: the same for the same image.
#[derive(Debug, Default)]
struct Layout {
    /// Areas that are mapped, by process and start.
    areas: BTreeMap<(i32, u64), u64>,
    /// All other runs, by process and address: these are read.
    runs: BTreeMap<(i32, u64), u64>,
    bytes: u64,
}

/// Shared memory of an image's processes.
#[derive(Debug)]
pub struct Ark {
    fd: OwnedFd,
    layout: Layout,
    given: bool,
}

impl Ark {
    /// Fills one. The digests of the files of pages are somebody else's business, before anything runs.
    ///
    /// # Errors
    /// Memory, or an image whose runs lie outside its files.
    pub fn make(snapshot: &Snapshot, reader: &Reader) -> Result<Ark> {
        let layout = Layout::of(snapshot);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("yendor-shared", flags).named("memfd_create", || "yendor-shared".into())?;
        rustix::fs::ftruncate(&fd, layout.bytes).named("ftruncate", || format!("yendor-shared, {}", layout.bytes))?;
        let to = File::from(fd);
        let mut files: BTreeMap<u16, File> = BTreeMap::new();
        let mut buffer = vec![0; CHUNK];
        for (pid, memory) in memories(snapshot) {
            for run in &memory.pages {
                reader.check_run(run)?;
                let from = match files.entry(run.file) {
                    std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
                    std::collections::btree_map::Entry::Vacant(place) => {
                        place.insert(reader.open_file(&pages_name(run.file))?.0)
                    }
                };
                let place = (&to, layout.place(pid, memory, run)?);
                copy(reader, (from, run), place, &mut buffer)?;
            }
        }
        rustix::fs::fcntl_add_seals(&to, SEALS).named("fcntl", || "F_ADD_SEALS".into())?;
        Ok(Ark { fd: to.into(), layout, given: false })
    }

    /// One that another keeper has made of the same image.
    ///
    /// # Errors
    /// `Corrupt` if it cannot be that, or somebody could change it.
    pub fn given(fd: OwnedFd, snapshot: &Snapshot) -> Result<Ark> {
        let layout = Layout::of(snapshot);
        let seals = rustix::fs::fcntl_get_seals(&fd).named("fcntl", || "F_GET_SEALS".into())?;
        let stat = rustix::fs::fstat(&fd).named("fstat", || "yendor-shared".into())?;
        if !seals.contains(SEALS) || u64::try_from(stat.st_size).ok() != Some(layout.bytes) {
            return Err(Cause::corrupt("the memory that was made of it is not sealed, or another image's"));
        }
        Ok(Ark { fd, layout, given: true })
    }

    /// Whether another keeper has made it, and compared the files of pages with their digests.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given
    }

    /// The memfd.
    #[must_use]
    pub fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }

    /// The same, alone.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.fd
    }

    /// Where an area of a process is to be mapped from, if it is.
    #[must_use]
    pub fn area(&self, pid: i32, area: &vma::Record) -> Option<u64> {
        self.layout.areas.get(&(pid, area.start.0)).copied()
    }

    /// Where a run of a process is to be read from, if it is.
    #[must_use]
    pub fn run(&self, pid: i32, run: &PageRun) -> Option<u64> {
        self.layout.runs.get(&(pid, run.addr.0)).copied()
    }
}

fn memories(snapshot: &Snapshot) -> impl Iterator<Item = (i32, &Record)> {
    snapshot.processes.iter().filter_map(|process| match &process.state {
        State::Alive(alive) => Some((process.pid.0, &alive.memory)),
        State::Zombie(_) | State::Exec(_) => None,
    })
}

/// The area that a run lies in.
fn area_of<'m>(memory: &'m Record, run: &PageRun) -> Option<&'m vma::Record> {
    let after = memory.areas.partition_point(|area| area.start.0 <= run.addr.0);
    memory.areas.get(after.checked_sub(1)?).filter(|area| run.end().is_some_and(|end| end <= area.end))
}

impl Layout {
    fn of(snapshot: &Snapshot) -> Layout {
        let mut layout = Layout::default();
        // A child that has dropped what it has inherited would get it back.
        let dropped = memories(snapshot).any(|(_, m)| m.inherits.as_ref().is_some_and(|i| !i.dropped.is_empty()));
        let mut next = APART;
        for (pid, memory) in memories(snapshot) {
            let mut filled: BTreeMap<u64, u64> = BTreeMap::new();
            for run in &memory.pages {
                if let Some(area) = area_of(memory, run) {
                    *filled.entry(area.start.0).or_default() += run.pages.saturating_mul(PAGE_BYTES);
                }
            }
            for area in memory.areas.iter().filter(|_| memory.inherits.is_none() && !dropped) {
                // Of one that is mostly empty little is saved, and a later checkpoint would read all of it.
                let much = filled.get(&area.start.0).is_some_and(|bytes| *bytes >= area.len() / 2);
                if much && can_be_shared(area) {
                    layout.areas.insert((pid, area.start.0), next);
                    next = next.saturating_add(APART);
                }
            }
            for run in &memory.pages {
                let is_mapped =
                    area_of(memory, run).is_some_and(|area| layout.areas.contains_key(&(pid, area.start.0)));
                if !is_mapped {
                    layout.runs.insert((pid, run.addr.0), layout.bytes);
                    layout.bytes = layout.bytes.saturating_add(run.pages.saturating_mul(PAGE_BYTES));
                }
            }
        }
        layout.bytes = next.max(layout.bytes);
        layout
    }

    fn place(&self, pid: i32, memory: &Record, run: &PageRun) -> Result<u64> {
        let lost = || Cause::corrupt(format!("pages at {} outside private memory", run.addr));
        let area = area_of(memory, run).ok_or_else(lost)?;
        match self.areas.get(&(pid, area.start.0)) {
            Some(place) => Ok(place + (run.addr.0 - area.start.0)),
            None => self.runs.get(&(pid, run.addr.0)).copied().ok_or_else(lost),
        }
    }
}

/// Whether nobody can tell an area from a mapping of a file, but by what [`filter`] forbids.
fn can_be_shared(area: &vma::Record) -> bool {
    const PROT_EXEC: u32 = 4;
    const PLAIN: [Flag; 5] = [Flag::NoReserve, Flag::DontFork, Flag::DontDump, Flag::HugePage, Flag::NoHugePage];
    area.backing == Backing::Anonymous
        && !area.shared
        && area.protection & PROT_EXEC == 0
        && (LEAST..APART / 2).contains(&area.len())
        && area.flags.iter().all(|flag| PLAIN.contains(flag))
        && area.name.is_none()
        && area.policy.is_none()
        && area.guards.is_empty()
}

fn copy(
    reader: &Reader,
    (from, run): (&File, &PageRun),
    (to, mut place): (&File, u64),
    buffer: &mut [u8],
) -> Result<()> {
    let (mut at, mut left) = (run.offset, run.pages * PAGE_BYTES);
    while left > 0 {
        reader.wanted(&pages_name(run.file))?;
        let some = usize::try_from(left).unwrap_or(CHUNK).min(buffer.len());
        let chunk = &mut buffer[..some];
        from.read_exact_at(chunk, at).map_err(|e| SysError::io("pread64", "pages", &e))?;
        to.write_all_at(chunk, place).map_err(|e| SysError::io("pwrite64", "yendor-shared", &e))?;
        let some = some as u64;
        (at, place, left) = (at + some, place + some, left - some);
    }
    Ok(())
}

/// A clone begins as a child does: what fork would have wiped, and what the kernel may drop at any time, is empty. Generators of
/// random numbers keep their state there, so that no two of them go on alike.
pub fn forget(snapshot: &mut Snapshot) {
    for process in &mut snapshot.processes {
        let State::Alive(alive) = &mut process.state else { continue };
        let memory = &mut alive.memory;
        let wiped = |area: &vma::Record| area.flags.iter().any(|f| matches!(f, Flag::WipeOnFork | Flag::Droppable));
        let gone: Vec<(u64, u64)> =
            memory.areas.iter().filter(|area| wiped(area)).map(|area| (area.start.0, area.end.0)).collect();
        memory.pages.retain(|run| !gone.iter().any(|(start, end)| (*start..*end).contains(&run.addr.0)));
    }
}

/// What keeps a task from learning what of its memory is shared by what would bring it back: calls that promise zeros where memory is
/// anonymous (madvise with `MADV_DONTNEED`, `MADV_FREE`, `MADV_DONTNEED_LOCKED`, `MADV_GUARD_INSTALL`, mremap with `MREMAP_DONTUNMAP`)
/// fail with `EINVAL`, as they do for memory that is locked, or of older kernels.
#[must_use]
pub fn filter() -> Seccomp {
    const I386: u32 = 0x4000_0003;
    const X32: u32 = 0x4000_0000;
    const EINVAL: u32 = 22;
    let i = |code, jt, jf, k| Instruction { code, jt, jf, k };
    let program = to_bytes(&[
        i(op::LD_ABS, 0, 0, 4),
        i(op::JEQ, 1, 0, ARCH),
        i(op::JEQ, 5, 20, I386),
        // 3: x86_64, and x32.
        i(op::LD_ABS, 0, 0, 0),
        i(op::AND, 0, 0, !X32),
        i(op::JEQ, 7, 0, 28),
        i(op::JEQ, 8, 0, 440),
        i(op::JEQ, 12, 15, 25),
        // 8: i386.
        i(op::LD_ABS, 0, 0, 0),
        i(op::JEQ, 3, 0, 219),
        i(op::JEQ, 4, 0, 440),
        i(op::JEQ, 8, 0, 163),
        i(op::JA, 0, 0, 10),
        // 13: madvise's third argument, process_madvise's fourth.
        i(op::LD_ABS, 0, 0, 32),
        i(op::JA, 0, 0, 1),
        i(op::LD_ABS, 0, 0, 40),
        i(op::JEQ, 7, 0, 4),
        i(op::JEQ, 6, 0, 8),
        i(op::JEQ, 5, 0, 24),
        i(op::JEQ, 4, 3, 102),
        // 20: mremap's fourth.
        i(op::LD_ABS, 0, 0, 40),
        i(op::AND, 0, 0, 4),
        i(op::JEQ, 1, 0, 4),
        i(op::RET, 0, 0, action::ALLOW),
        i(op::RET, 0, 0, action::ERRNO | EINVAL),
    ]);
    Seccomp { flags: 0, program: program.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use yendor_image::{Addr, Writer};
    use yendor_policy::seccomp::{Call, program, verdict};

    #[test]
    fn nothing_is_copied_for_nobody() {
        let place = std::env::temp_dir().join(format!("yendor-ark-{}", std::process::id()));
        let writer = Writer::create(&place).expect("create");
        let mut file = writer.file("pages-0").expect("file");
        file.write_all(&[7; 4096]).expect("write");
        file.finish().expect("finish");
        writer.records(&()).expect("records");
        writer.commit(std::time::SystemTime::now()).expect("commit");
        let mut reader = Reader::open(&*place).expect("open");
        let from = reader.open_file("pages-0").expect("open").0;
        std::fs::remove_dir_all(&place).expect("our own");
        let (front, ours) = UnixStream::pair().expect("a pair");
        reader.read_for(ours.as_fd()).expect("dup");
        let to = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd_create"));
        let run = PageRun { addr: Addr(0), pages: 1, file: 0, offset: 0 };
        copy(&reader, (&from, &run), (&to, 0), &mut [0; 4096]).expect("somebody waits for it");
        drop(front);
        let said = copy(&reader, (&from, &run), (&to, 0), &mut [0; 4096]).expect_err("nobody does").to_string();
        assert!(said.contains("pages-0: read"), "{said}");
    }

    #[test]
    fn the_filter_forbids_what_would_show_what_is_shared() {
        let filter = program(&filter().program.0).expect("a program");
        let ask = |arch, nr, third: u64, fourth: u64| {
            let args = [Some(0), Some(0), Some(third), Some(fourth), None, None];
            verdict([filter.as_slice()], &Call { nr, arch, ip: None, args }).expect("a verdict")
        };
        let refused = action::ERRNO | 22;
        for (arch, madvise, mremap, flag) in
            [(ARCH, 28, 25, 0), (ARCH, 28, 25, 0x4000_0000), (0x4000_0003, 219, 163, 0)]
        {
            for advice in 0..200 {
                let wanted = if [4, 8, 24, 102].contains(&advice) { refused } else { action::ALLOW };
                assert_eq!(ask(arch, madvise | flag, advice, 4), wanted, "{arch:x} {advice}");
                assert_eq!(ask(arch, 440 | flag, 4, advice), wanted, "{arch:x} {advice}");
            }
            for flags in 0..8 {
                let wanted = if flags & 4 != 0 { refused } else { action::ALLOW };
                assert_eq!(ask(arch, mremap | flag, 0, flags), wanted, "{arch:x} {flags}");
            }
            for call in (0..600).filter(|call| ![madvise, mremap, 440].contains(call)) {
                assert_eq!(ask(arch, call | flag, 4, 4), action::ALLOW, "{arch:x} {call}");
            }
        }
    }
}
