//! Memory mappings of a process.
//!
//! Source: proc_pid_maps(5); `fs/proc/task_mmu.c`, `show_map_vma`. Empty for a zombie and a kernel thread.

use crate::Dev;
use crate::field::{Line, Result, lines, unescape_newline};

const FILE: &str = "maps";

/// Access of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Perms {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub exec: bool,
    /// `s` instead of `p`: the mapping may be shared (`VM_MAYSHARE`).
    pub shared: bool,
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// First address.
    pub start: u64,
    /// Address after the last byte.
    pub end: u64,
    /// Access.
    pub perms: Perms,
    /// Offset in the file in bytes; 0 without a file.
    pub offset: u64,
    /// Device of the file, as its superblock has it: may differ from stat(2) on btrfs and overlay.
    pub dev: Dev,
    /// Inode number; 0 without a file.
    pub inode: u64,
    /// Name, with `\012` turned to a newline and without the ` (deleted)` that the kernel appends.
    ///
    /// The kernel escapes the newline but not the backslash, so a name that really holds `\012` reads the same as one
    /// with a newline (see [`Map::ambiguous`]).
    pub name: Vec<u8>,
    /// The name ended in ` (deleted)`. A living file may be called that: check the inode behind the name.
    pub deleted: bool,
    /// The name was printed with a `\012` that may stand for a newline or for itself.
    pub ambiguous: bool,
}

/// What the name of a mapping says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label<'a> {
    /// No name: private anonymous memory.
    Anonymous,
    /// `[heap]`: overlaps the brk area.
    Heap,
    /// `[stack]`: holds the initial stack.
    Stack,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`.
    Vvar,
    /// `[vvar_vclock]`: clock pages of hypervisors, split from vvar in Linux 6.13.
    VvarVclock,
    /// `[vsyscall]`: in kernel addresses, not a mapping of the process.
    Vsyscall,
    /// `[anon:NAME]`: private anonymous memory named by `PR_SET_VMA_ANON_NAME`.
    Anon(&'a [u8]),
    /// `[anon_shmem:NAME]`: shared anonymous memory named likewise; it hides the file name.
    AnonShmem(&'a [u8]),
    /// Any other name in brackets (`[uprobes]`, `[sigpage]`).
    Special(&'a [u8]),
    /// A file, as its path is seen from the reader's root.
    File(&'a [u8]),
}

/// Parses all of `/proc/PID/maps`.
///
/// # Errors
/// A line that is not a mapping, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Map>> {
    lines(FILE, text)?.into_iter().map(map).collect()
}

impl Map {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Never so: a mapping has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the name says.
    #[must_use]
    pub fn label(&self) -> Label<'_> {
        let name = self.name.as_slice();
        let Some(inner) = name.strip_prefix(b"[").and_then(|n| n.strip_suffix(b"]")) else {
            return if name.is_empty() { Label::Anonymous } else { Label::File(name) };
        };
        match inner {
            b"heap" => Label::Heap,
            b"stack" => Label::Stack,
            b"vdso" => Label::Vdso,
            b"vvar" => Label::Vvar,
            b"vvar_vclock" => Label::VvarVclock,
            b"vsyscall" => Label::Vsyscall,
            _ => match (inner.strip_prefix(b"anon:"), inner.strip_prefix(b"anon_shmem:")) {
                (Some(given), _) => Label::Anon(given),
                (_, Some(given)) => Label::AnonShmem(given),
                _ => Label::Special(inner),
            },
        }
    }
}

/// One line; `smaps` has the same.
pub(crate) fn map(mut line: Line<'_>) -> Result<Map> {
    let start = line.number_until(b'-', 16, "start address")?;
    let end = line.hex("end address")?;
    if start >= end {
        return Err(line.bad("end address"));
    }
    let perms = perms(&mut line)?;
    let offset = line.hex("offset")?;
    let dev = line.dev(16)?;
    // The inode ends in a space even where no name follows, and a name may hold spaces: only the padding is dropped.
    let inode = line.number_until(b' ', 10, "inode")?;
    line.skip_blanks();
    let printed = line.rest();
    let (name, deleted) = printed.strip_suffix(b" (deleted)").map_or((printed, false), |name| (name, true));
    let unescaped = unescape_newline(name);
    let ambiguous = unescaped.len() != name.len();
    Ok(Map { start, end, perms, offset, dev, inode, name: unescaped, deleted, ambiguous })
}

/// Whether a line of `smaps` is the head of a mapping: it starts with an address, keys start with a capital.
pub(crate) fn is_head(line: &Line<'_>) -> bool {
    line.rest().first().is_some_and(|first| matches!(first, b'0'..=b'9' | b'a'..=b'f'))
}

fn perms(line: &mut Line<'_>) -> Result<Perms> {
    let word = line.token("permissions")?;
    let flag = |printed: u8, on: u8, off: u8| match printed {
        p if p == on => Ok(true),
        p if p == off => Ok(false),
        _ => Err(line.bad("permissions")),
    };
    let [r, w, x, s] = *word else { return Err(line.bad("permissions")) };
    Ok(Perms {
        read: flag(r, b'r', b'-')?,
        write: flag(w, b'w', b'-')?,
        exec: flag(x, b'x', b'-')?,
        shared: flag(s, b's', b'p')?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Label, parse};
    use crate::{Dev, hostile};

    pub(crate) const CAPTURED: &[u8] = b"\
55a482313000-55a48259a000 rw-p 00000000 00:00 0                          [heap]
7f026279f000-7f02627a0000 ---s 00000000 00:01 1025                       /dev/zero (deleted)
7f02627a0000-7f02627a1000 r--s 00000000 fe:00 10010712                   /tmp/proc/q (deleted)
7f02627a1000-7f02627a2000 r--s 00000000 fe:00 10010711                   /tmp/proc/de l\xff\\012 (deleted) (deleted)
7f02627c7000-7f02627c9000 r--s 00000000 fe:00 10010706                   /tmp/proc/lk \\012(x)
7f02627dc000-7f0262b3e000 rw-p 00000000 00:00 0 
7f0262ef5000-7f0263131000 r-xp 000f5000 fe:00 18714                      /usr/lib/libpython3.11.so.1.0
7f0263417000-7f0263419000 rw-p 00000000 00:01 1024                       /memfd:na me\\012\xff (deleted)
7f0263422000-7f0263426000 r--p 00000000 00:00 0                          [vvar]
7f0263426000-7f0263428000 r--p 00000000 00:00 0                          [vvar_vclock]
7f0263428000-7f026342a000 r-xp 00000000 00:00 0                          [vdso]
7fff62bf2000-7fff62c13000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn captured() {
        let maps = parse(CAPTURED).unwrap();
        assert_eq!(maps.len(), 13);
        assert_eq!((maps[0].start, maps[0].end, maps[0].label()), (0x55a4_8231_3000, 0x55a4_8259_a000, Label::Heap));
        assert!(maps[1].perms.shared && !maps[1].perms.read && maps[1].deleted);
        assert_eq!(maps[1].label(), Label::File(b"/dev/zero"));
        assert_eq!((maps[3].name.as_slice(), maps[3].deleted), (&b"/tmp/proc/de l\xff\n (deleted)"[..], true));
        assert!(maps[3].ambiguous);
        assert_eq!((maps[4].name.as_slice(), maps[4].deleted), (&b"/tmp/proc/lk \n(x)"[..], false));
        assert_eq!((maps[5].label(), maps[5].inode, maps[5].dev), (Label::Anonymous, 0, Dev { major: 0, minor: 0 }));
        assert_eq!((maps[6].offset, maps[6].inode, maps[6].dev), (0xf5000, 18714, Dev { major: 254, minor: 0 }));
        assert!(maps[6].perms.exec && !maps[6].perms.write && !maps[6].perms.shared && !maps[6].ambiguous);
        assert_eq!(maps[7].name, b"/memfd:na me\n\xff");
        let labels: Vec<Label<'_>> = maps[8..].iter().map(super::Map::label).collect();
        assert_eq!(labels, [Label::Vvar, Label::VvarVclock, Label::Vdso, Label::Stack, Label::Vsyscall]);
        assert_eq!(maps[12].len(), 0x1000);
    }

    #[test]
    fn given_names() {
        let text = b"7f00-7f01 rw-p 00000000 00:00 0                          [anon:my name (deleted)]\n\
            7f01-7f02 rw-s 00000000 00:01 5 [anon_shmem:x]\n7f02-7f03 --xp 00000000 00:00 0 [uprobes]\n\
            7f03-7f04 r--p 00000000 00:0f 5 anon_inode:[io_uring]\n";
        let maps = parse(text).unwrap();
        assert_eq!(maps[0].label(), Label::Anon(b"my name (deleted)"));
        assert!(!maps[0].deleted);
        assert_eq!(maps[1].label(), Label::AnonShmem(b"x"));
        assert_eq!(maps[2].label(), Label::Special(b"uprobes"));
        assert_eq!(maps[3].label(), Label::File(b"anon_inode:[io_uring]"));
    }

    #[test]
    fn refused() {
        for bad in [
            &b"7f01-7f01 rw-p 00000000 00:00 0 \n"[..],
            b"7f00-7f01 rw-q 00000000 00:00 0 \n",
            b"7f00-7f01 rwxps 00000000 00:00 0 \n",
            b"7f00-7f01 rw-p 00000000 00:00 0\n",
            b"17f00000000000000-7f01 rw-p 00000000 00:00 0 \n",
            b"\n",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }

    #[test]
    fn this_process() {
        let maps = parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        assert!(maps.iter().any(|m| m.label() == Label::Stack));
        assert!(maps.is_sorted_by_key(|m| m.start));
    }
}
