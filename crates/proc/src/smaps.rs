//! Memory mappings with sizes and flags.
//!
//! Source: proc_pid_smaps(5); `fs/proc/task_mmu.c`, `show_smap` and `show_smap_vma_flags`.

use crate::field::{Line, Result, keyed, lines, number};
use crate::maps::{self, Map};

const FILE: &str = "smaps";

/// One mapping with its details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smap {
    /// The line that `maps` has too.
    pub map: Map,
    /// The lines below it.
    pub detail: Detail,
}

keyed! {
    /// Sizes and flags of a mapping; sizes in KiB.
    Detail
    required {
        /// Length of the mapping.
        size: u64 = "Size" via kib,
        /// Page size of the mapping: larger than 4 for hugetlb.
        kernel_page_size: u64 = "KernelPageSize" via kib,
        /// Resident.
        rss: u64 = "Rss" via kib,
        /// Flags of the mapping.
        vm_flags: VmFlags = "VmFlags" via flag_letters,
    }
    optional {
        /// Page size of the page tables.
        mmu_page_size: u64 = "MMUPageSize" via kib,
        /// Resident, shared pages divided by their users.
        pss: u64 = "Pss" via kib,
        /// The dirty part of `pss`.
        pss_dirty: u64 = "Pss_Dirty" via kib,
        /// The anonymous part of `pss` (`smaps_rollup`).
        pss_anon: u64 = "Pss_Anon" via kib,
        /// The file part of `pss` (`smaps_rollup`).
        pss_file: u64 = "Pss_File" via kib,
        /// The shared memory part of `pss` (`smaps_rollup`).
        pss_shmem: u64 = "Pss_Shmem" via kib,
        /// Resident, mapped more than once, clean.
        shared_clean: u64 = "Shared_Clean" via kib,
        /// Resident, mapped more than once, dirty.
        shared_dirty: u64 = "Shared_Dirty" via kib,
        /// Resident, mapped once, clean.
        private_clean: u64 = "Private_Clean" via kib,
        /// Resident, mapped once, dirty.
        private_dirty: u64 = "Private_Dirty" via kib,
        /// Marked as referenced.
        referenced: u64 = "Referenced" via kib,
        /// Anonymous pages, also those of a private file mapping.
        anonymous: u64 = "Anonymous" via kib,
        /// Merged by KSM.
        ksm: u64 = "KSM" via kib,
        /// Given up by `MADV_FREE`.
        lazy_free: u64 = "LazyFree" via kib,
        /// Anonymous transparent huge pages.
        anon_huge_pages: u64 = "AnonHugePages" via kib,
        /// Shared memory in huge mappings.
        shmem_pmd_mapped: u64 = "ShmemPmdMapped" via kib,
        /// Files in huge mappings.
        file_pmd_mapped: u64 = "FilePmdMapped" via kib,
        /// hugetlb pages, shared.
        shared_hugetlb: u64 = "Shared_Hugetlb" via kib,
        /// hugetlb pages, private.
        private_hugetlb: u64 = "Private_Hugetlb" via kib,
        /// Swapped out.
        swap: u64 = "Swap" via kib,
        /// Swapped out, divided by users.
        swap_pss: u64 = "SwapPss" via kib,
        /// The part of `pss` in a locked mapping.
        locked: u64 = "Locked" via kib,
        /// May be given transparent huge pages.
        thp_eligible: u32 = "THPeligible" via Line::dec,
        /// Protection key; only where the CPU has them.
        protection_key: u32 = "ProtectionKey" via Line::dec,
    }
}

/// A flag of a mapping, called as in `include/linux/mm.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the mnemonics are in the table below, the meanings in proc_pid_smaps(5)")]
#[rustfmt::skip]
pub enum VmFlag {
    Read, Write, Exec, Shared, MayRead, MayWrite, MayExec, MayShare, GrowsDown, PfnMap, Locked, Io, SeqRead, RandRead,
    DontCopy, DontExpand, LockOnFault, Account, NoReserve, HugeTlb, Sync, Arch1, WipeOnFork, DontDump, SoftDirty, MixedMap,
    HugePage, NoHugePage, Mergeable, UffdMissing, UffdWp, UffdMinor, ShadowStack, Sealed, Droppable, Guard, ArmBti, ArmMte,
}

#[rustfmt::skip]
const MNEMONICS: [(&[u8; 2], VmFlag); 38] = [
    (b"rd", VmFlag::Read), (b"wr", VmFlag::Write), (b"ex", VmFlag::Exec), (b"sh", VmFlag::Shared),
    (b"mr", VmFlag::MayRead), (b"mw", VmFlag::MayWrite), (b"me", VmFlag::MayExec), (b"ms", VmFlag::MayShare),
    (b"gd", VmFlag::GrowsDown), (b"pf", VmFlag::PfnMap), (b"lo", VmFlag::Locked), (b"io", VmFlag::Io),
    (b"sr", VmFlag::SeqRead), (b"rr", VmFlag::RandRead), (b"dc", VmFlag::DontCopy), (b"de", VmFlag::DontExpand),
    (b"lf", VmFlag::LockOnFault), (b"ac", VmFlag::Account), (b"nr", VmFlag::NoReserve), (b"ht", VmFlag::HugeTlb),
    (b"sf", VmFlag::Sync), (b"ar", VmFlag::Arch1), (b"wf", VmFlag::WipeOnFork), (b"dd", VmFlag::DontDump),
    (b"sd", VmFlag::SoftDirty), (b"mm", VmFlag::MixedMap), (b"hg", VmFlag::HugePage), (b"nh", VmFlag::NoHugePage),
    (b"mg", VmFlag::Mergeable), (b"um", VmFlag::UffdMissing), (b"uw", VmFlag::UffdWp), (b"ui", VmFlag::UffdMinor),
    (b"ss", VmFlag::ShadowStack), (b"sl", VmFlag::Sealed), (b"dp", VmFlag::Droppable), (b"gu", VmFlag::Guard),
    (b"bt", VmFlag::ArmBti), (b"mt", VmFlag::ArmMte),
];

/// The `VmFlags` line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmFlags {
    /// Every mnemonic, in printed order.
    pub raw: Vec<[u8; 2]>,
    /// Those that are known.
    pub known: Vec<VmFlag>,
    /// Those that are not.
    pub leftover: Vec<[u8; 2]>,
}

impl VmFlags {
    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: VmFlag) -> bool {
        self.known.contains(&flag)
    }
}

impl VmFlag {
    /// The two letters that the kernel prints.
    #[must_use]
    pub fn mnemonic(self) -> [u8; 2] {
        MNEMONICS.iter().find(|(_, flag)| *flag == self).map_or(*b"??", |(letters, _)| **letters)
    }
}

/// Parses all of `/proc/PID/smaps`.
///
/// # Errors
/// A line out of place, a mapping without its sizes and flags, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Smap>> {
    let lines = lines(FILE, text)?;
    let mut out = Vec::new();
    let mut rest = lines.as_slice();
    while let Some((head, tail)) = rest.split_first() {
        let map = maps::map(*head)?;
        let count = tail.iter().position(maps::is_head).unwrap_or(tail.len());
        let (own, after) = tail.split_at_checked(count).ok_or_else(|| head.bad("details"))?;
        let end = own.last().unwrap_or(head);
        out.push(Smap { map, detail: Detail::from_lines(own.iter().copied(), *end)? });
        rest = after;
    }
    Ok(out)
}

fn kib(line: &mut Line<'_>, what: &'static str) -> Result<u64> {
    let value = line.token(what)?;
    if line.token(what)? != b"kB" {
        return Err(line.bad(what));
    }
    number(value, 10).ok_or_else(|| line.bad(what))
}

fn flag_letters(line: &mut Line<'_>, what: &'static str) -> Result<VmFlags> {
    let mut flags = VmFlags::default();
    while let Some(word) = line.word() {
        let letters: [u8; 2] = word.try_into().map_err(|_| line.bad(what))?;
        flags.raw.push(letters);
        match MNEMONICS.iter().find(|(known, _)| **known == letters) {
            Some((_, flag)) => flags.known.push(*flag),
            None => flags.leftover.push(letters),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::{MNEMONICS, VmFlag, parse};
    use crate::hostile;
    use crate::maps::Label;

    const CAPTURED: &[u8] = b"\
7f02627c7000-7f02627c9000 rw-s 00000000 fe:00 10010706                   /tmp/Size: 4 kB \\012(x) (deleted)
Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   4 kB
Pss:                   4 kB
Pss_Dirty:             4 kB
Shared_Clean:          0 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         4 kB
Referenced:            4 kB
Anonymous:             0 kB
KSM:                   0 kB
LazyFree:              0 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
THPeligible:           0
ProtectionKey:         3
VmFlags: rd wr sh mr mw me ms sl 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size:                  4 kB
KernelPageSize:        4 kB
Rss:                   0 kB
VmFlags: ex 
";

    #[test]
    fn captured() {
        let smaps = parse(CAPTURED).unwrap();
        assert_eq!(smaps.len(), 2);
        let first = &smaps[0];
        assert_eq!((first.map.name.as_slice(), first.map.deleted), (&b"/tmp/Size: 4 kB \n(x)"[..], true));
        assert_eq!((first.detail.size, first.detail.rss, first.detail.kernel_page_size), (8, 4, 4));
        assert_eq!((first.detail.private_dirty, first.detail.protection_key), (Some(4), Some(3)));
        assert_eq!(first.detail.thp_eligible, Some(0));
        assert!(first.detail.vm_flags.has(VmFlag::Sealed) && !first.detail.vm_flags.has(VmFlag::Exec));
        assert_eq!(first.detail.vm_flags.raw.last(), Some(b"sl"));
        assert_eq!(smaps[1].map.label(), Label::Vsyscall);
        assert_eq!((smaps[1].detail.pss, smaps[1].detail.protection_key), (None, None));
        assert!(smaps.iter().all(|s| s.detail.leftover.is_empty() && s.detail.vm_flags.leftover.is_empty()));
    }

    #[test]
    fn every_flag_seen_on_this_kernel_and_an_unknown_one() {
        let text = |flags: &str| {
            format!("1-2 rw-p 0 00:00 0 \nSize: 1 kB\nKernelPageSize: 4 kB\nRss: 0 kB\nNew: 5 kB\nVmFlags: {flags} \n")
        };
        for (flags, flag) in [
            ("rd wr mr mw me gd ac", VmFlag::GrowsDown),
            ("rd mr pf io de dd", VmFlag::DontDump),
            ("rd wr mr mw me dc ac", VmFlag::DontCopy),
            ("rd wr mr mw me lo ac", VmFlag::Locked),
            ("rd wr mr mw me ac wf", VmFlag::WipeOnFork),
            ("rd wr mr mw me ac hg", VmFlag::HugePage),
            ("rd wr mr mw me ac nh", VmFlag::NoHugePage),
            ("rd wr mr mw me ac mg", VmFlag::Mergeable),
            ("rd wr mr mw me sr ac", VmFlag::SeqRead),
        ] {
            let parsed = parse(text(flags).as_bytes()).unwrap();
            assert!(parsed[0].detail.vm_flags.has(flag), "{flags}");
            assert_eq!(parsed[0].detail.leftover, [b"New: 5 kB"]);
        }
        let parsed = parse(text("rd zz").as_bytes()).unwrap();
        assert_eq!(parsed[0].detail.vm_flags.leftover, [*b"zz"]);
        assert!(parse(text("rdx").as_bytes()).is_err());
    }

    #[test]
    fn mnemonics_are_told_apart() {
        for (letters, flag) in MNEMONICS {
            assert_eq!(flag.mnemonic(), *letters, "{flag:?} stands twice in the table");
            assert_eq!(MNEMONICS.iter().filter(|(other, _)| *other == letters).count(), 1);
        }
    }

    #[test]
    fn refused() {
        let cut = CAPTURED.strip_suffix(b"VmFlags: ex \n").unwrap();
        assert_eq!(parse(cut).unwrap_err().what, "VmFlags");
        assert!(parse(b"Size: 8 kB\n").is_err());
        assert!(parse(b"1-2 rw-p 0 00:00 0 \nSize: 1 MB\n").is_err());
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_process() {
        let smaps = parse(&std::fs::read("/proc/self/smaps").unwrap()).unwrap();
        assert!(!smaps.is_empty());
        for smap in smaps {
            assert_eq!(smap.detail.leftover, Vec::<Vec<u8>>::new());
            assert_eq!(smap.detail.vm_flags.leftover, Vec::<[u8; 2]>::new());
        }
    }
}
