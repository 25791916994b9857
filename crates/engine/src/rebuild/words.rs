//! Words of a process's memory that the kernel touches without waiting for what is missing: it fails, or goes on without them.
//!
//! These are futexes with priority inheritance, of which the kernel writes what a waiter has not touched (kernel/futex/core.c,
//! `fault_in_user_writeable`), and what it looks at for a thread that exits (`exit_robust_list`, `mm_release`). Where they are is read from the
//! image as it lies there: what is put there is compared, and a wrong place makes nothing worse.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use yendor_image::{PAGE_BYTES, PageRun, RECORDS_FILE, Reader, pages_name};
use yendor_kinds::Result;
use yendor_kinds::process::Thread;

/// As many entries of a robust list as the kernel looks at (`ROBUST_LIST_LIMIT`).
const ENTRIES: usize = 2048;
/// Words that are looked for in a process at most.
const MOST: usize = 1 << 16;

/// The pages of all such words, by address. `runs`: by address, too.
///
/// # Errors
/// Nobody waits for them any more.
pub(super) fn pages(reader: &Reader, runs: &[PageRun], threads: &[Thread]) -> Result<BTreeSet<u64>> {
    let mut image = Image { reader, runs, open: None, left: MOST };
    let mut words: BTreeSet<u64> = threads.iter().filter_map(waited_for).collect();
    for thread in threads {
        reader.wanted(RECORDS_FILE)?;
        words.insert(thread.rseq.tid_address);
        robust(&mut image, thread.rseq.robust.0, &mut words);
    }
    Ok(words.into_iter().map(|word| word / PAGE_BYTES * PAGE_BYTES).collect())
}

/// The futex that a thread in futex(2) waits for as its next owner.
fn waited_for(thread: &Thread) -> Option<u64> {
    const CALL: u64 = 202;
    /// `FUTEX_PRIVATE_FLAG`, `FUTEX_CLOCK_REALTIME`.
    const FLAGS: u64 = 128 | 256;
    const LOCK_PI: u64 = 6;
    const WAIT_REQUEUE_PI: u64 = 11;
    const LOCK_PI2: u64 = 13;
    let register = |number: usize| thread.regs.general.get(number).copied();
    let [r8, rsi, rdi, call] = [9, 13, 14, 15].map(register);
    match rsi.filter(|_| call == Some(CALL))? & 0xffff_ffff & !FLAGS {
        LOCK_PI | LOCK_PI2 => rdi,
        WAIT_REQUEUE_PI => r8,
        _ => None,
    }
}

/// The list of a thread (`struct robust_list_head`): the first entry, where its word is from there, an entry that is about to be one.
fn robust(image: &mut Image<'_>, head: u64, words: &mut BTreeSet<u64>) {
    let mut word = |at: u64| image.word(at);
    let field = |number: u64| head.wrapping_add(8 * number);
    words.extend([field(0), field(2)].into_iter().filter(|_| head != 0));
    let (Some(mut next), Some(distance)) = (word(field(0)).filter(|_| head != 0), word(field(1))) else { return };
    let entry = |at: u64, words: &mut BTreeSet<u64>| words.extend([at, at.wrapping_add(distance)]);
    // The lowest bit is another matter.
    if let Some(pending) = word(field(2)).filter(|pending| *pending != 0) {
        entry(pending & !1, words);
    }
    for _ in 0..ENTRIES {
        let at = next & !1;
        if at == head || at == 0 {
            return;
        }
        entry(at, words);
        let Some(after) = word(at) else { return };
        next = after;
    }
}

/// Memory as an image has it.
struct Image<'r> {
    reader: &'r Reader,
    runs: &'r [PageRun],
    open: Option<(u16, File)>,
    /// So many words may be read still.
    left: usize,
}

impl Image<'_> {
    fn word(&mut self, at: u64) -> Option<u64> {
        let run = run_at(self.runs, at)?;
        self.left = self.left.checked_sub(1)?;
        let file = match self.open.take() {
            Some((number, file)) if number == run.file => file,
            _ => self.reader.open_file(&pages_name(run.file)).ok()?.0,
        };
        let mut bytes = [0; 8];
        let read = file.read_exact_at(&mut bytes, run.offset + (at - run.addr.0));
        self.open = Some((run.file, file));
        read.ok().map(|()| u64::from_ne_bytes(bytes))
    }
}

/// The run that an address lies in.
pub(super) fn run_at(runs: &[PageRun], at: u64) -> Option<&PageRun> {
    let run = runs.get(runs.partition_point(|run| run.addr.0 <= at).checked_sub(1)?)?;
    run.end().is_some_and(|end| at < end.0).then_some(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use yendor_image::{Addr, Writer};

    const AT: u64 = 0x10_0000;

    /// What is found of a list in memory of these words, which begins with the list's head.
    fn found(name: &str, words: &[u64], left: usize) -> BTreeSet<u64> {
        let top = std::env::temp_dir().join(format!("yendor-words-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        let writer = Writer::create(&top).expect("create");
        let mut file = writer.file("pages-0").expect("file");
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        file.write_all(&bytes).expect("write");
        file.finish().expect("finish");
        writer.records(&0_u8).expect("records");
        writer.commit(std::time::SystemTime::now()).expect("commit");
        let reader = Reader::open(&top).expect("open");
        let runs = [PageRun { addr: Addr(AT), pages: bytes.len() as u64 / PAGE_BYTES, file: 0, offset: 0 }];
        let mut out = BTreeSet::new();
        robust(&mut Image { reader: &reader, runs: &runs, open: None, left }, AT, &mut out);
        std::fs::remove_dir_all(&top).expect("gone");
        out
    }

    #[test]
    fn a_robust_list_is_followed_as_the_kernel_does() {
        let [head, first, second, pending] = [AT, AT + 32, AT + 64, AT + 96];
        // Back by 8 to the word; the second has priority inheritance.
        let back = 8_u64.wrapping_neg();
        let words = [first, back, pending, 0, second | 1, 0, 0, 0, head];
        let all = [head, head + 16, first, first - 8, second, second - 8, pending, pending - 8];
        assert_eq!(found("right", &words, MOST), all.into());
        assert_eq!(found("empty", &[head, 0, 0], MOST), [head, head + 16].into());
        // One that leads nowhere, in a circle, or on and on.
        assert_eq!(found("nowhere", &[0x5000, 16, 0], MOST), [head, head + 16, 0x5000, 0x5010].into());
        assert_eq!(found("circle", &[first, 0, 0, 0, first], MOST), [head, head + 16, first].into());
        let endless: Vec<u64> = [AT + 24, 0, 0].into_iter().chain((1..5000).map(|n| AT + 24 + 8 * n)).collect();
        assert_eq!(found("endless", &endless, MOST).len(), 2 + ENTRIES);
        assert_eq!(found("many", &endless, 100).len(), 2 + 98);
    }
}
