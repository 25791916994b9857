//! State of a process or thread, by name.
//!
//! Source: proc_pid_status(5); `fs/proc/array.c`, `proc_pid_status`; `fs/proc/task_mmu.c`, `task_mem`. Zombies and kernel
//! threads have no memory lines, zombies no `Umask`.

use crate::field::{Line, Result, keyed, kib, lines, number, split_once};

const FILE: &str = "status";

keyed! {
    /// The whole file. Memory sizes in KiB.
    Status
    required {
        /// Name, escapes undone: any bytes but NUL.
        name: Vec<u8> = "Name" via escaped_name,
        /// State letter, as in `stat`.
        state: u8 = "State" via state_letter,
        /// Process.
        tgid: i32 = "Tgid" via Line::dec,
        /// Thread.
        pid: i32 = "Pid" via Line::dec,
        /// Parent process.
        ppid: i32 = "PPid" via Line::dec,
        /// The process that traces this one; 0 for none.
        tracer_pid: i32 = "TracerPid" via Line::dec,
        /// Real, effective, saved, file system user, in the reader's user namespace.
        uid: [u32; 4] = "Uid" via four,
        /// Likewise the group.
        gid: [u32; 4] = "Gid" via four,
        /// Slots of the descriptor table.
        fd_size: u32 = "FDSize" via Line::dec,
        /// Supplementary groups, sorted.
        groups: Vec<u32> = "Groups" via Line::list,
        /// Threads of the process.
        threads: u32 = "Threads" via Line::dec,
        /// Queued signals of the user, and the limit.
        sig_q: (u64, u64) = "SigQ" via pair,
        /// Pending for the thread; bit 0 is signal 1, here and below.
        sig_pnd: u64 = "SigPnd" via Line::hex,
        /// Pending for the process.
        shd_pnd: u64 = "ShdPnd" via Line::hex,
        /// Blocked.
        sig_blk: u64 = "SigBlk" via Line::hex,
        /// Ignored.
        sig_ign: u64 = "SigIgn" via Line::hex,
        /// Caught.
        sig_cgt: u64 = "SigCgt" via Line::hex,
        /// Inheritable capabilities.
        cap_inh: u64 = "CapInh" via Line::hex,
        /// Permitted capabilities.
        cap_prm: u64 = "CapPrm" via Line::hex,
        /// Effective capabilities.
        cap_eff: u64 = "CapEff" via Line::hex,
        /// Bounding set.
        cap_bnd: u64 = "CapBnd" via Line::hex,
        /// Ambient capabilities.
        cap_amb: u64 = "CapAmb" via Line::hex,
        /// `PR_SET_NO_NEW_PRIVS`.
        no_new_privs: bool = "NoNewPrivs" via flag,
        /// CPUs that it may use, as 32-bit words, lowest CPUs first.
        cpus_allowed: Vec<u32> = "Cpus_allowed" via mask,
        /// The same as ranges, both ends included.
        cpus_allowed_list: Vec<(u32, u32)> = "Cpus_allowed_list" via ranges,
        /// Voluntary context switches.
        voluntary_ctxt_switches: u64 = "voluntary_ctxt_switches" via Line::dec,
        /// Involuntary context switches.
        nonvoluntary_ctxt_switches: u64 = "nonvoluntary_ctxt_switches" via Line::dec,
    }
    optional {
        /// File creation mask; not for a zombie.
        umask: u32 = "Umask" via Line::oct,
        /// NUMA group; 0 for none.
        ngid: i32 = "Ngid" via Line::dec,
        /// Process id in every pid namespace from the reader's inwards.
        ns_tgid: Vec<i32> = "NStgid" via Line::list,
        /// Thread id likewise.
        ns_pid: Vec<i32> = "NSpid" via Line::list,
        /// Process group likewise.
        ns_pgid: Vec<i32> = "NSpgid" via Line::list,
        /// Session likewise.
        ns_sid: Vec<i32> = "NSsid" via Line::list,
        /// A kernel thread (Linux 6.9).
        kthread: bool = "Kthread" via flag,
        /// Peak virtual size.
        vm_peak: u64 = "VmPeak" via kib,
        /// Virtual size.
        vm_size: u64 = "VmSize" via kib,
        /// Locked.
        vm_lck: u64 = "VmLck" via kib,
        /// Pinned.
        vm_pin: u64 = "VmPin" via kib,
        /// Peak resident.
        vm_hwm: u64 = "VmHWM" via kib,
        /// Resident.
        vm_rss: u64 = "VmRSS" via kib,
        /// Resident, anonymous.
        rss_anon: u64 = "RssAnon" via kib,
        /// Resident, files.
        rss_file: u64 = "RssFile" via kib,
        /// Resident, shared memory.
        rss_shmem: u64 = "RssShmem" via kib,
        /// Data.
        vm_data: u64 = "VmData" via kib,
        /// Stack.
        vm_stk: u64 = "VmStk" via kib,
        /// Code.
        vm_exe: u64 = "VmExe" via kib,
        /// Library code.
        vm_lib: u64 = "VmLib" via kib,
        /// Page tables.
        vm_pte: u64 = "VmPTE" via kib,
        /// Second-level page tables (Linux 4.0 to 4.14).
        vm_pmd: u64 = "VmPMD" via kib,
        /// Swapped out.
        vm_swap: u64 = "VmSwap" via kib,
        /// hugetlb pages.
        hugetlb_pages: u64 = "HugetlbPages" via kib,
        /// Dumping core at this moment.
        core_dumping: bool = "CoreDumping" via flag,
        /// May use transparent huge pages (`PR_SET_THP_DISABLE`).
        thp_enabled: bool = "THP_enabled" via flag,
        /// Address bits that are not a tag (LAM).
        untag_mask: u64 = "untag_mask" via Line::hex0x,
        /// 0 none, 1 strict, 2 filter.
        seccomp: u32 = "Seccomp" via Line::dec,
        /// Attached filters.
        seccomp_filters: u32 = "Seccomp_filters" via Line::dec,
        /// Mitigation of speculative store bypass, in words.
        speculation_store_bypass: Vec<u8> = "Speculation_Store_Bypass" via text,
        /// Mitigation of indirect branch speculation, in words.
        speculation_indirect_branch: Vec<u8> = "SpeculationIndirectBranch" via text,
        /// Memory nodes that it may use, as `cpus_allowed`.
        mems_allowed: Vec<u32> = "Mems_allowed" via mask,
        /// The same as ranges.
        mems_allowed_list: Vec<(u32, u32)> = "Mems_allowed_list" via ranges,
        /// `shstk`, `wrss`: shadow stack features that are on.
        x86_thread_features: Vec<Vec<u8>> = "x86_Thread_features" via words,
        /// Those that are locked.
        x86_thread_features_locked: Vec<Vec<u8>> = "x86_Thread_features_locked" via words,
    }
}

/// Parses `/proc/PID/status` or `/proc/PID/task/TID/status`.
///
/// # Errors
/// A missing or malformed line, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Status> {
    let lines = lines(FILE, text)?;
    let end = lines.last().copied().ok_or(crate::ParseError { file: FILE, line: 1, what: "Name" })?;
    Status::from_lines(lines.into_iter(), end)
}

/// The kernel escapes the newline as `\n` and the backslash as `\\`, nothing else.
fn escaped_name(line: &mut Line<'_>, what: &'static str) -> Result<Vec<u8>> {
    // Only the tab: the name itself may start with blanks.
    if !line.until(b'\t', what)?.is_empty() {
        return Err(line.bad(what));
    }
    let mut out = Vec::new();
    let mut bytes = line.rest().iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'\\') => b'\\',
                _ => return Err(line.bad(what)),
            },
            _ => *byte,
        });
    }
    line.advance(line.rest().len());
    Ok(out)
}

fn state_letter(line: &mut Line<'_>, what: &'static str) -> Result<u8> {
    let [letter] = *line.token(what)? else { return Err(line.bad(what)) };
    let words = text(line, what)?;
    if words.starts_with(b"(") && words.ends_with(b")") { Ok(letter) } else { Err(line.bad(what)) }
}

fn four(line: &mut Line<'_>, what: &'static str) -> Result<[u32; 4]> {
    Ok([line.dec(what)?, line.dec(what)?, line.dec(what)?, line.dec(what)?])
}

fn pair(line: &mut Line<'_>, what: &'static str) -> Result<(u64, u64)> {
    Ok((line.number_until(b'/', 10, what)?, line.dec(what)?))
}

fn flag(line: &mut Line<'_>, what: &'static str) -> Result<bool> {
    match line.token(what)? {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(line.bad(what)),
    }
}

fn text(line: &mut Line<'_>, _what: &'static str) -> Result<Vec<u8>> {
    line.skip_blanks();
    let rest = line.rest();
    line.advance(rest.len());
    Ok(rest.to_vec())
}

fn words(line: &mut Line<'_>, _what: &'static str) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    while let Some(word) = line.word() {
        out.push(word.to_vec());
    }
    Ok(out)
}

/// Hexadecimal words of 32 bits with commas, the highest first.
fn mask(line: &mut Line<'_>, what: &'static str) -> Result<Vec<u32>> {
    let word = line.token(what)?;
    word.rsplit(|b| *b == b',').map(|part| number(part, 16).ok_or_else(|| line.bad(what))).collect()
}

/// `0-1,4`; nothing at all for an empty set.
fn ranges(line: &mut Line<'_>, what: &'static str) -> Result<Vec<(u32, u32)>> {
    let Some(word) = line.word() else { return Ok(Vec::new()) };
    let range = |part: &[u8]| match split_once(part, b'-') {
        Some((low, high)) => Some((number(low, 10)?, number(high, 10)?)),
        None => number(part, 10).map(|one| (one, one)),
    };
    word.split(|b| *b == b',').map(|part| range(part).ok_or_else(|| line.bad(what))).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::hostile;

    const CAPTURED: &[u8] = b"\
Name:\t a) R (\\n\xffx\\\\ y \nUmask:\t0022\nState:\tt (tracing stop)\nTgid:\t6036\nNgid:\t0\nPid:\t6036\nPPid:\t6032\nTracerPid:\t77
Uid:\t0\t1000\t4294967294\t65534\nGid:\t0\t0\t0\t0\nFDSize:\t256\nGroups:\t4 5 70000 \nNStgid:\t6036\t2\nNSpid:\t6036\t2
NSpgid:\t6032\t0\nNSsid:\t4120\t0\nKthread:\t0\nVmPeak:\t   35696 kB\nVmSize:\t   35696 kB\nVmLck:\t       8 kB\nVmPin:\t       0 kB
VmHWM:\t   15760 kB\nVmRSS:\t   15760 kB\nRssAnon:\t    8736 kB\nRssFile:\t    7024 kB\nRssShmem:\t       0 kB\nVmData:\t   26600 kB
VmStk:\t     140 kB\nVmExe:\t       4 kB\nVmLib:\t    4872 kB\nVmPTE:\t      84 kB\nVmSwap:\t       0 kB\nHugetlbPages:\t       0 kB
CoreDumping:\t0\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\nThreads:\t1\nSigQ:\t4/96365\nSigPnd:\t0000000000000000
ShdPnd:\t8000000000000001\nSigBlk:\t0000000000000000\nSigIgn:\t0000000001001000\nSigCgt:\t0000000000000002\nCapInh:\t0000000000000000
CapPrm:\t000001fffeffffff\nCapEff:\t000001fffeffffff\nCapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1
Seccomp:\t2\nSeccomp_filters:\t3\nSpeculation_Store_Bypass:\tthread vulnerable\nSpeculationIndirectBranch:\talways enabled
Cpus_allowed:\t3,ffffffff\nCpus_allowed_list:\t0-31,33\nMems_allowed:\t00000000,00000001\nMems_allowed_list:\t0
voluntary_ctxt_switches:\t134\nnonvoluntary_ctxt_switches:\t12\nx86_Thread_features:\tshstk wrss \nx86_Thread_features_locked:\t\n";

    const ZOMBIE: &[u8] = b"Name:\tx\nState:\tZ (zombie)\nTgid:\t6080\nNgid:\t0\nPid:\t6080\nPPid:\t6036\nTracerPid:\t0
Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t0\nGroups:\t \nNStgid:\t6080\nNSpid:\t6080\nNSpgid:\t6032\nNSsid:\t4120\nKthread:\t0
Threads:\t1\nSigQ:\t4/96365\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\nSigBlk:\t0000000000000000
SigIgn:\t0000000001001000\nSigCgt:\t0000000000000002\nCapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\nCapEff:\t000001fffeffffff
CapBnd:\t000001fffeffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\nSeccomp_filters:\t0
Speculation_Store_Bypass:\tvulnerable\nSpeculationIndirectBranch:\talways enabled\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1
Mems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t0\n";

    #[test]
    fn captured() {
        let status = parse(CAPTURED).unwrap();
        assert_eq!(status.name, b" a) R (\n\xffx\\ y ");
        assert_eq!((status.umask, status.state, status.tracer_pid), (Some(0o22), b't', 77));
        assert_eq!(status.uid, [0, 1000, 4_294_967_294, 65534]);
        assert_eq!(status.groups, [4, 5, 70000]);
        assert_eq!((status.ns_pid, status.ns_sid), (Some(vec![6036, 2]), Some(vec![4120, 0])));
        assert_eq!((status.vm_size, status.vm_lib, status.thp_enabled), (Some(35696), Some(4872), Some(true)));
        assert_eq!((status.untag_mask, status.sig_q, status.shd_pnd), (Some(u64::MAX), (4, 96365), (1 << 63) | 1));
        assert_eq!((status.cap_prm, status.no_new_privs, status.seccomp_filters), (0x1ff_feff_ffff, true, Some(3)));
        assert_eq!(status.cpus_allowed, [0xffff_ffff, 3]);
        assert_eq!(status.cpus_allowed_list, [(0, 31), (33, 33)]);
        assert_eq!(status.speculation_store_bypass.as_deref(), Some(&b"thread vulnerable"[..]));
        assert_eq!(status.x86_thread_features, Some(vec![b"shstk".to_vec(), b"wrss".to_vec()]));
        assert_eq!(status.x86_thread_features_locked, Some(Vec::new()));
        assert!(status.leftover.is_empty(), "{:?}", status.leftover);
    }

    #[test]
    fn a_zombie_has_no_memory() {
        let status = parse(ZOMBIE).unwrap();
        assert_eq!((status.state, status.umask, status.vm_size, status.groups.len()), (b'Z', None, None, 0));
        assert!(status.leftover.is_empty());
    }

    #[test]
    fn unknown_lines_are_kept() {
        let mut more = ZOMBIE.to_vec();
        more.extend_from_slice(b"New:\tx y\nThreads:\t2\nodd\n");
        let status = parse(&more).unwrap();
        assert_eq!(status.threads, 1);
        assert_eq!(status.leftover, [&b"New:\tx y"[..], b"Threads:\t2", b"odd"]);
        let five = String::from_utf8(ZOMBIE.to_vec()).unwrap().replace("Uid:\t0\t0\t0\t0", "Uid:\t0\t0\t0\t0\t9");
        assert_eq!(parse(five.as_bytes()).unwrap().leftover, [b"Uid:\t0\t0\t0\t0\t9"]);
        assert_eq!(parse(b"").unwrap_err().what, "Name");
        let cut = ZOMBIE.strip_suffix(b"nonvoluntary_ctxt_switches:\t0\n").unwrap();
        assert_eq!(parse(cut).unwrap_err().what, "nonvoluntary_ctxt_switches");
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
        hostile::survives(ZOMBIE, parse);
    }

    #[test]
    fn processes_of_this_kernel() {
        let mut seen = 0;
        for entry in std::fs::read_dir("/proc").unwrap() {
            // A process may end between the listing and the read.
            if let Ok(text) = std::fs::read(entry.unwrap().path().join("status"))
                && !text.is_empty()
            {
                assert_eq!(parse(&text).unwrap().leftover, Vec::<Vec<u8>>::new());
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
}
