//! An area of an address space.
//! *Read from:* /proc/PID/smaps; the file behind it by its path, checked against device and inode; guarded pages by `PAGEMAP_SCAN`.
//! *Made again by:* mmap at the same address, madvise, mbind, mlock2, mprotect; the vdso by mremap.
//! *Lost:* protection keys that a program has allocated (pkey_alloc(2)) and no area has: the kernel tells nobody of them, and pkey_mprotect(2) with one fails after a restore.
//! Refused: areas that have one.

use serde::{Deserialize, Serialize};
use yendor_image::{Addr, Bytes, FileId, ShmId};
use yendor_proc::maps::Label;
use yendor_proc::smaps::{Smap, VmFlag};
use yendor_task::script::cstr;
use yendor_task::{Nr, Script, args};

use super::{inherit, policy};
use crate::{Cause, Named, Result};

/// One area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// First byte.
    pub start: Addr,
    /// One past the last.
    pub end: Addr,
    /// `PROT_*`.
    pub protection: u32,
    /// What is behind it.
    pub backing: Backing,
    /// Whether writes are seen by others.
    pub shared: bool,
    /// Settings beyond the protection, by name.
    pub flags: Vec<Flag>,
    /// The name that `PR_SET_VMA_ANON_NAME` gave it.
    pub name: Option<Bytes>,
    /// On which memory nodes its pages are put, where mbind(2) has said so.
    pub policy: Option<policy::Record>,
    /// Pages of it that nobody can touch (`MADV_GUARD_INSTALL`): start and end of each range.
    pub guards: Vec<(Addr, Addr)>,
}

/// What is behind an area.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// Nothing: zeros until written.
    Anonymous,
    /// A file, from this offset in bytes.
    File(FileId, u64),
    /// A shared object without a descriptor, from this offset in bytes.
    Object(ShmId, u64),
    /// A System V segment of the ipc namespace.
    Sysv {
        /// Its id.
        id: i32,
        /// From this offset in bytes.
        offset: u64,
        /// Whether it was attached with `SHM_RDONLY`, and can never be written here.
        read_only: bool,
    },
    /// The kernel's own code.
    Vdso,
    /// The kernel's own data.
    Vvar,
    /// Likewise, the clock pages of a hypervisor.
    VvarClock,
}

/// A setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// `MAP_GROWSDOWN`.
    GrowsDown,
    /// `MAP_NORESERVE`.
    NoReserve,
    /// `mlock`.
    Locked,
    /// `mlock2` with `MLOCK_ONFAULT`.
    LockedOnFault,
    /// `MADV_DONTFORK`.
    DontFork,
    /// `MADV_WIPEONFORK`.
    WipeOnFork,
    /// `MADV_DONTDUMP`.
    DontDump,
    /// `MADV_HUGEPAGE`.
    HugePage,
    /// `MADV_NOHUGEPAGE`.
    NoHugePage,
    /// `MADV_MERGEABLE`.
    Mergeable,
    /// `MADV_SEQUENTIAL`.
    Sequential,
    /// `MADV_RANDOM`.
    Random,
    /// `MAP_DROPPABLE`.
    Droppable,
    /// mseal(2).
    Sealed,
}

const PLAIN: &[(VmFlag, Flag)] = &[
    (VmFlag::GrowsDown, Flag::GrowsDown),
    (VmFlag::NoReserve, Flag::NoReserve),
    (VmFlag::DontCopy, Flag::DontFork),
    (VmFlag::WipeOnFork, Flag::WipeOnFork),
    (VmFlag::DontDump, Flag::DontDump),
    (VmFlag::HugePage, Flag::HugePage),
    (VmFlag::NoHugePage, Flag::NoHugePage),
    (VmFlag::Mergeable, Flag::Mergeable),
    (VmFlag::SeqRead, Flag::Sequential),
    (VmFlag::RandRead, Flag::Random),
    (VmFlag::Droppable, Flag::Droppable),
    (VmFlag::Sealed, Flag::Sealed),
];

const REFUSED: &[(VmFlag, &str)] = &[
    (VmFlag::HugeTlb, "hugetlb pages"),
    (VmFlag::ShadowStack, "a shadow stack"),
    (VmFlag::UffdMissing, "a userfaultfd"),
    (VmFlag::UffdWp, "a userfaultfd"),
    (VmFlag::UffdMinor, "a userfaultfd"),
    (VmFlag::Io, "a device's memory"),
    (VmFlag::PfnMap, "a device's memory"),
    (VmFlag::Sync, "synchronous page faults (MAP_SYNC)"),
];

/// Reads an area but for its [`policy`] and its guards; `file` is asked for what is behind a file or shared object. `None` for what is not the process's own.
///
/// # Errors
/// A flag that cannot be restored is refused by name.
pub fn collect(smap: &Smap, file: &mut impl FnMut(&Smap) -> Result<Backing>) -> Result<Option<Record>> {
    let map = &smap.map;
    let flags = &smap.vm_flags;
    let place = || format!("mapping {:x}-{:x}", map.start, map.end);
    let (backing, name) = match map.label() {
        Label::Vsyscall => return Ok(None),
        Label::Vdso => (Backing::Vdso, None),
        Label::Vvar => (Backing::Vvar, None),
        Label::VvarVclock => (Backing::VvarClock, None),
        Label::Special(s) => return Err(Cause::unsupported(format!("{}: {}", place(), s.escape_ascii()))),
        Label::File(_) if is_sysv(smap)? => {
            let id = i32::try_from(map.inode).map_err(|_| Cause::unsupported(format!("{}: its inode", place())))?;
            (Backing::Sysv { id, offset: map.offset, read_only: !flags.has(VmFlag::MayWrite) }, None)
        }
        Label::Anon(name) if map.inode == 0 => (Backing::Anonymous, Some(Bytes(name.to_vec()))),
        Label::AnonShmem(name) => (file(smap)?, Some(Bytes(name.to_vec()))),
        _ if map.inode == 0 && map.perms.shared => {
            return Err(Cause::unsupported(format!("{}: shared memory without an inode", place())));
        }
        _ if map.inode == 0 => (Backing::Anonymous, None),
        _ => (file(smap)?, None),
    };
    let own = !matches!(backing, Backing::Vdso | Backing::Vvar | Backing::VvarClock);
    let mut set = Vec::new();
    if own {
        if let Some((_, what)) = REFUSED.iter().find(|(flag, _)| flags.has(*flag)) {
            return Err(Cause::unsupported(format!("{}: {what}", place())));
        }
        // A key that stands for "execute only" comes with the protection.
        if smap.protection_key.is_some_and(|key| key != 0) && (map.perms.read || map.perms.write) {
            return Err(Cause::unsupported(format!("{}: a protection key (pkey_mprotect)", place())));
        }
        if !flags.leftover.is_empty() {
            let names: Vec<_> = flags.leftover.iter().map(|f| f.escape_ascii().to_string()).collect();
            return Err(Cause::unsupported(format!("{}: unknown flags {}", place(), names.join(" "))));
        }
        set.extend(PLAIN.iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, f)| *f));
        match (flags.has(VmFlag::Locked), flags.has(VmFlag::LockOnFault)) {
            (true, true) => set.push(Flag::LockedOnFault),
            (true, false) => set.push(Flag::Locked),
            _ => {}
        }
    }
    let protection = u32::from(map.perms.read) | u32::from(map.perms.write) << 1 | u32::from(map.perms.exec) << 2;
    Ok(Some(Record {
        start: Addr(map.start),
        end: Addr(map.end),
        protection,
        backing,
        shared: map.perms.shared,
        flags: set,
        name,
        policy: None,
        guards: Vec::new(),
    }))
}

/// Whether it is a System V segment: `/SYSV` and the key as a name, the id as inode, 0 too. A file could be called so.
fn is_sysv(smap: &Smap) -> Result<bool> {
    let map = &smap.map;
    let key = map.name.strip_prefix(b"/SYSV").filter(|key| key.len() == 8 && key.iter().all(u8::is_ascii_hexdigit));
    Ok(key.is_some() && map.deleted && map.perms.shared && map.dev.st_dev() == kernel_tmpfs()?)
}

/// The device of the tmpfs that the kernel itself mounts, for memfds and System V segments.
///
/// # Errors
/// The kernel's.
pub fn kernel_tmpfs() -> Result<u64> {
    let fd = rustix::fs::memfd_create("yendor", rustix::fs::MemfdFlags::CLOEXEC).named("memfd_create", String::new)?;
    Ok(rustix::fs::fstat(&fd).named("fstat", || "a memfd".into())?.st_dev)
}

const PROT_READ_WRITE: u32 = 3;
const MAP_SHARED: u32 = 0x01;
const MAP_PRIVATE: u32 = 0x02;
const MAP_DROPPABLE: u32 = 0x08;
const MAP_FIXED_NOREPLACE: u32 = 0x10_0000;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
const MAP_NORESERVE: u32 = 0x4000;
const MLOCK_ONFAULT: u32 = 1;
const MADV_GUARD_INSTALL: u32 = 102;
const SHM_RDONLY: u32 = 0o10000;
const PR_SET_VMA: u32 = 0x5356_4d41;

impl Record {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is the kernel's own (vdso, vvar).
    #[must_use]
    pub fn is_kernel(&self) -> bool {
        matches!(self.backing, Backing::Vdso | Backing::Vvar | Backing::VvarClock)
    }

    /// Whether fork gives a child a copy of it.
    #[must_use]
    pub fn is_copied_by_fork(&self) -> bool {
        let not = [Flag::DontFork, Flag::WipeOnFork, Flag::Droppable];
        !self.shared && !self.is_kernel() && !self.flags.iter().any(|flag| not.contains(flag))
    }

    /// Whether it is the process's own, and not one whose pages may be merged.
    #[must_use]
    pub fn is_own_unmerged(&self) -> bool {
        !self.shared && !self.is_kernel() && !self.has(Flag::Mergeable)
    }

    /// What of these ranges has no guards.
    #[must_use]
    pub fn without_guards(&self, ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let guards: Vec<_> = self.guards.iter().map(|(start, end)| (start.0, end.0)).collect();
        inherit::subtract(ranges, &guards)
    }

    fn has(&self, flag: Flag) -> bool {
        self.flags.contains(&flag)
    }

    /// Maps it. With `fill` it can be written, to be filled; [`Self::protect`] comes after. `fd`: the task's descriptor of
    /// what is behind it.
    pub fn map(&self, fd: Option<i32>, fill: bool, script: &mut Script) {
        let (offset, anonymous) = match self.backing {
            Backing::Anonymous => (0, MAP_ANONYMOUS),
            Backing::File(_, offset) | Backing::Object(_, offset) => (offset, 0),
            Backing::Sysv { id, offset, read_only } => return self.attach(id, offset, read_only, script),
            Backing::Vdso | Backing::Vvar | Backing::VvarClock => return,
        };
        let sharing = match (self.shared, self.has(Flag::Droppable)) {
            (_, true) => MAP_DROPPABLE,
            (true, _) => MAP_SHARED,
            (false, _) => MAP_PRIVATE,
        };
        let mut flags = sharing | anonymous | MAP_FIXED_NOREPLACE;
        for (flag, bit) in [(Flag::GrowsDown, MAP_GROWSDOWN), (Flag::NoReserve, MAP_NORESERVE)] {
            if self.has(flag) {
                flags |= bit;
            }
        }
        let protection = if fill { self.protection | PROT_READ_WRITE } else { self.protection };
        let start = self.start.0;
        let want = yendor_task::Want::Exactly(start);
        script.call_wanting(Nr::MMAP, args![start, self.len(), protection, flags, fd.unwrap_or(-1), offset], want);
    }

    /// Maps it from a file that has what is in it at an offset, and that nobody writes to: a page is the task's own when it has
    /// written to it.
    pub fn map_shared(&self, fd: i32, offset: u64, script: &mut Script) {
        let (start, flags) = (self.start.0, MAP_PRIVATE | MAP_FIXED_NOREPLACE);
        let want = yendor_task::Want::Exactly(start);
        script.call_wanting(Nr::MMAP, args![start, self.len(), self.protection, flags, fd, offset], want);
    }

    /// shmat(2) brings the whole segment; areas after the first come about by their protection, for which see
    /// [`Self::protect`].
    fn attach(&self, id: i32, offset: u64, read_only: bool, script: &mut Script) {
        let start = self.start.0;
        if offset == 0 {
            let flags = if read_only { SHM_RDONLY } else { 0 };
            script.call_wanting(Nr::SHMAT, args![id, start, flags], yendor_task::Want::Exactly(start));
        } else {
            // An area of its own, as it was, even if its protection is that of the one before.
            script.call(Nr::MPROTECT, args![start, self.len(), 0]);
        }
    }

    /// Settings that change what filling does: huge pages, memory nodes.
    pub fn advise_before(&self, script: &mut Script) {
        for (flag, advice) in [(Flag::HugePage, 14), (Flag::NoHugePage, 15)] {
            if self.has(flag) {
                script.call(Nr::MADVISE, args![self.start.0, self.len(), advice]);
            }
        }
        if let Some(policy) = &self.policy {
            policy.bind(self.start, self.len(), script);
        }
    }

    /// Everything that comes after filling; the protection unless it is what `map` gave.
    pub fn protect(&self, filled: bool, script: &mut Script) {
        let (start, len) = (self.start.0, self.len());
        let attached = matches!(self.backing, Backing::Sysv { .. });
        if attached || filled && self.protection & PROT_READ_WRITE != PROT_READ_WRITE {
            script.call(Nr::MPROTECT, args![start, len, self.protection]);
        }
        let advices = [
            (Flag::DontFork, 10),
            (Flag::WipeOnFork, 18),
            (Flag::DontDump, 16),
            (Flag::Mergeable, 12),
            (Flag::Sequential, 2),
            (Flag::Random, 1),
        ];
        for (flag, advice) in advices {
            if self.has(flag) && !(flag == Flag::WipeOnFork || flag == Flag::DontDump)
                || self.has(flag) && !self.has(Flag::Droppable)
            {
                script.call(Nr::MADVISE, args![start, len, advice]);
            }
        }
        self.guard(script);
        self.lock(script);
        if let Some(name) = &self.name {
            script.call(Nr::PRCTL, args![PR_SET_VMA, 0, start, len, cstr(&name.0)]);
        }
    }

    /// Guards pages again, which takes what is in them. It cannot be done to memory that is locked.
    pub fn guard(&self, script: &mut Script) {
        for (start, end) in &self.guards {
            script.call(Nr::MADVISE, args![start.0, end.0.saturating_sub(start.0), MADV_GUARD_INSTALL]);
        }
    }

    /// Locks it, as it was.
    pub fn lock(&self, script: &mut Script) {
        let (start, len) = (self.start.0, self.len());
        if self.has(Flag::Locked) {
            script.call(Nr::MLOCK, args![start, len]);
        }
        if self.has(Flag::LockedOnFault) {
            script.call(Nr::MLOCK2, args![start, len, MLOCK_ONFAULT]);
        }
    }
}

/// The task seals what was sealed, when nothing of it changes any more.
pub fn seal(areas: &[Record], script: &mut Script) {
    for area in areas.iter().filter(|a| a.has(Flag::Sealed)) {
        script.call(Nr::MSEAL, args![area.start.0, area.end.0 - area.start.0, 0]);
    }
}
