//! Memory mappings with sizes and flags.
//!
//! Source: proc_pid_smaps(5); `fs/proc/task_mmu.c`, `show_smap` and `show_smap_vma_flags`.

use crate::field::{Line, Result, each_line};
use crate::maps::{self, Map};

const FILE: &str = "smaps";

/// One mapping with its details. Of its sizes one is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smap {
    /// The line that `maps` has too.
    pub map: Map,
    /// Flags of the mapping.
    pub vm_flags: VmFlags,
    /// Protection key; only where the CPU has them.
    pub protection_key: Option<u32>,
    /// KiB that are swapped out, of shared memory all that are in the range.
    pub swap: u64,
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
    /// Those that are known, bit `n` for number `n` of [`VmFlag`].
    known: u64,
    /// Those that are not.
    pub leftover: Vec<[u8; 2]>,
}

impl VmFlags {
    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: VmFlag) -> bool {
        self.known & 1 << flag as u32 != 0
    }

    /// Takes a flag away.
    pub fn remove(&mut self, flag: VmFlag) {
        self.known &= !(1 << flag as u32);
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
/// A line out of place, a mapping without its flags, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Smap>> {
    const FLAGS: &str = "VmFlags";
    let mut out = Vec::new();
    let mut open: Option<(Map, Line<'_>)> = None;
    let (mut protection_key, mut swap) = (None, 0);
    for line in each_line(FILE, text)? {
        if maps::is_head(&line) {
            if let Some((_, head)) = open {
                return Err(head.bad(FLAGS));
            }
            open = Some((maps::map(line)?, line));
            (protection_key, swap) = (None, 0);
            continue;
        }
        // Of two dozen lines three are looked at.
        if let Some(mut value) = line.after(FLAGS) {
            let (map, _) = open.take().ok_or_else(|| line.bad("a mapping"))?;
            out.push(Smap { map, vm_flags: flag_letters(&mut value, FLAGS)?, protection_key, swap });
        } else if open.is_none() || !line.has_key() {
            return Err(line.bad("a mapping"));
        } else if let Some(mut value) = line.after("ProtectionKey") {
            protection_key = Some(value.dec("ProtectionKey")?);
        } else if let Some(mut value) = line.after("Swap") {
            swap = value.dec("Swap")?;
        }
    }
    match open {
        Some((_, head)) => Err(head.bad(FLAGS)),
        None => Ok(out),
    }
}

fn flag_letters(line: &mut Line<'_>, what: &'static str) -> Result<VmFlags> {
    let mut flags = VmFlags::default();
    while let Some(word) = line.word() {
        let letters: [u8; 2] = word.try_into().map_err(|_| line.bad(what))?;
        match MNEMONICS.iter().find(|(known, _)| **known == letters) {
            Some((_, flag)) => flags.known |= 1 << *flag as u32,
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
        assert!(first.vm_flags.has(VmFlag::Sealed) && !first.vm_flags.has(VmFlag::Exec));
        assert_eq!(smaps[1].map.label(), Label::Vsyscall);
        assert_eq!([&smaps[0], &smaps[1]].map(|s| s.protection_key), [Some(3), None]);
        assert!(smaps.iter().all(|s| s.vm_flags.leftover.is_empty()));
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
            assert!(parsed[0].vm_flags.has(flag), "{flags}");
        }
        let parsed = parse(text("rd zz").as_bytes()).unwrap();
        assert_eq!(parsed[0].vm_flags.leftover, [*b"zz"]);
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
        assert!(parse(b"1-2 rw-p 0 00:00 0 \n1-2 rw-p 0 00:00 0 \nVmFlags: rd \n").is_err());
        assert!(parse(b"1-2 rw-p 0 00:00 0 \nVmFlags: rd \nVmFlags: rd \n").is_err());
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
            assert_eq!(smap.vm_flags.leftover, Vec::<[u8; 2]>::new());
        }
    }
}
