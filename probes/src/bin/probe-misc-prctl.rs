//! What prctl(2) and its relatives keep for a process: comm, subreaper, parent's death, THP, dumps, personality, umask,
//! membarrier registrations, memory policy.
#![allow(unsafe_code)]

use probe::{Board, Dir, child, expect, ok, read_file, succeeded};

const GO: usize = 0;
const UP: usize = 1;
const NAME: &[u8] = b"pr\xffbe \n) x 1";

#[derive(Debug, PartialEq)]
struct Own {
    comm: Vec<u8>,
    subreaper: i32,
    death: i32,
    huge: i32,
    dump: String,
    personality: i32,
    umask: String,
    barriers: i64,
    memory: (i32, u64),
}

/// Mode and nodes; a kernel without NUMA has none.
fn memory_policy() -> (i32, u64) {
    let (mut mode, mut nodes) = (0_i32, [0_u64; 16]);
    unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, &mut nodes, 1024, 0, 0) };
    (mode, nodes[0])
}

fn own() -> Own {
    let (mut subreaper, mut death, mut comm) = (0, 0, vec![0_u8; 16]);
    unsafe {
        ok("prctl", libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &mut subreaper));
        ok("prctl", libc::prctl(libc::PR_GET_PDEATHSIG, &mut death));
        ok("prctl", libc::prctl(libc::PR_GET_NAME, comm.as_mut_ptr()));
        let huge = ok("prctl", libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0));
        let (dump, umask) = (read_file("/proc/self/coredump_filter"), probe::status("Umask"));
        let barriers = libc::syscall(libc::SYS_membarrier, 1 << 9, 0, 0);
        let (personality, memory) = (libc::personality(0xffff_ffff), memory_policy());
        Own { comm, subreaper, death, huge, dump, personality, umask, barriers, memory }
    }
}

fn become_awkward() {
    unsafe {
        ok("prctl", libc::prctl(libc::PR_SET_NAME, [NAME, b"\0"].concat().as_ptr()));
        ok("prctl", libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1));
        ok("prctl", libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGURG));
        ok("prctl", libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0));
        ok("personality", libc::personality((libc::ADDR_NO_RANDOMIZE | libc::SHORT_INODE) as _));
        libc::umask(0o153);
        // Private expedited, and the one that serialises cores.
        ok("membarrier", libc::syscall(libc::SYS_membarrier, 1 << 4, 0, 0));
        ok("membarrier", libc::syscall(libc::SYS_membarrier, 1 << 6, 0, 0));
        // Interleave over node 0; ENOSYS without NUMA.
        libc::syscall(libc::SYS_set_mempolicy, 3, &1_u64, 64);
    }
    let filter = std::fs::write("/proc/self/coredump_filter", "0x15d");
    expect("coredump_filter", filter.is_ok(), true);
    let own = own();
    expect(
        "awkward enough",
        (&own.comm[..NAME.len()], own.subreaper, own.huge, own.umask.as_str()),
        (NAME, 1, 1, "0153"),
    );
    expect("dump filter", own.dump.trim(), "0000015d");
}

/// Huge pages only where they are advised (Linux 6.18), and a thread with another personality than its process.
fn apart(board: Board) {
    let some = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 2, 0, 0) } == 0;
    let huge = || unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) };
    expect("huge pages", huge(), if some { 3 } else { 1 });
    let personality = || unsafe { libc::personality(0xffff_ffff) };
    let (before, own) = (personality(), libc::ADDR_NO_RANDOMIZE | libc::STICKY_TIMEOUTS);
    let thread = std::thread::spawn(move || {
        probe::block_all();
        ok("personality", unsafe { libc::personality(own as _) });
        board.add(UP, 1);
        board.wait(GO, 1);
        expect("personality of a thread", personality(), own);
    });
    board.wait(GO, 1);
    expect("personality of its process", (personality(), before == own), (before, false));
    expect("huge pages", huge(), if some { 3 } else { 1 });
    expect("thread", thread.join().is_ok(), true);
}

fn setup() -> (Own, Board, [i32; 2], Dir) {
    let dir = Dir::new();
    let board = Board::new();
    become_awkward();
    let inherits = child(|| {
        // A child gets most of it, but neither the subreaper's duty nor the signal.
        let before = own();
        expect("what a child inherits", (before.subreaper, before.death), (0, 0));
        board.add(UP, 1);
        board.wait(GO, 1);
        expect("child", own(), before);
    });
    let apart = child(|| apart(board));
    board.wait(UP, 2);
    (own(), board, [inherits, apart], dir)
}

fn check((before, board, [inherits, apart], dir): (Own, Board, [i32; 2], Dir)) {
    expect("process", own(), before);
    let file = dir.at("file");
    expect("creation", std::fs::write(&file, "x").is_ok(), true);
    let mode = std::fs::metadata(&file).map(|data| std::os::unix::fs::MetadataExt::mode(&data) & 0o777).ok();
    expect("mode of a new file", mode, Some(0o624));
    unsafe { libc::umask(0o022) };
    board.set(GO, 1);
    succeeded("child", inherits);
    succeeded("child apart", apart);
}

fn main() {
    probe::run(setup, check)
}
