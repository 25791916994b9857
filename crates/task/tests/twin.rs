//! Twins: copies of a process's memory, made by fork, that nobody notices.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, Stdio};

use yendor_sys::futex::RobustList;
use yendor_task::live::twin::{self, Twin};
use yendor_task::live::{self, Borrowed, Loan, Region, RegionKind};
use yendor_task::tree::{FrozenTree, Top};

/// Says where its memory is; for every line that it reads, it writes all of it, and says whether it is alone.
const PROGRAM: &str = "
import ctypes, mmap, os, sys, threading
memory = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
number = 1
memory[:] = bytes([number]) * len(memory)
threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
read, write = os.pipe()
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    number += 1
    memory[:] = bytes([number]) * len(memory)
    try: alone = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError: alone = 'alone'
    os.close(write)
    ended = os.read(read, 1)
    read, write = os.pipe()
    print(alone, ended, flush=True)
";

struct Program {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
    at: u64,
}

impl Program {
    fn new() -> Program {
        let mut command = Command::new("python3");
        let mut child =
            command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("its memory");
        Program { at: line.trim().parse().expect("an address"), child, said }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    fn ask(&mut self) -> String {
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(b"go\n").expect("a line");
        let mut line = String::new();
        self.said.read_line(&mut line).expect("an answer");
        line.trim().to_owned()
    }

    fn children(&self) -> String {
        let pid = self.pid();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children")
    }
}

fn fork(pid: i32) -> Option<Twin> {
    let proc = fs::File::open("/proc").expect("/proc");
    let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pid), pid).expect("freeze");
    let mut robust = RobustList::register().expect("robust list");
    let regions = live::regions(proc.as_fd(), pid).expect("maps");
    let before = stack(pid, &regions);
    let loan = Loan::new(pid, &tree.processes[&pid], &regions, 0x5959_0000_0000).expect("a loan");
    let all = Borrowed::all(vec![loan], &mut robust).expect("borrow");
    let mut born = None;
    Borrowed::give_back(all, &[true], |_, twin| born = Some(twin), &mut robust).expect("give back");
    // What was written over to come back is nowhere: not in the copy, nor in the process.
    let now = stack(pid, &regions);
    assert!(now == before, "the stack has changed");
    if let Some(twin) = &born {
        assert!(stack(twin.tid(), &regions) == before, "the copy has another stack");
    }
    born
}

fn stack(tid: i32, regions: &[Region]) -> Vec<u8> {
    let stack = regions.iter().find(|r| r.what == RegionKind::Stack).expect("a stack");
    let mut bytes = vec![0; usize::try_from(stack.end - stack.start).expect("its size")];
    let mem = fs::File::open(format!("/proc/{tid}/mem")).expect("its memory");
    mem.read_exact_at(&mut bytes, stack.start).expect("its stack");
    bytes
}

fn first_byte(tid: i32, at: u64) -> u8 {
    let mut byte = [0];
    fs::File::open(format!("/proc/{tid}/mem")).and_then(|mem| mem.read_exact_at(&mut byte, at)).expect("its memory");
    byte[0]
}

#[test]
fn a_twin_keeps_what_was_and_nobody_notices() {
    let mut program = Program::new();
    let proc = fs::File::open("/proc").expect("/proc");
    let mut number = 1;
    for _ in 0..20 {
        let twin = fork(program.pid()).expect("a twin");
        let (tid, inside) = (twin.tid(), twin.inside());
        assert_eq!(fs::read_to_string(format!("/proc/{tid}/comm")).expect("comm"), "yendor-scratch\n");
        assert_eq!(fs::read_dir(format!("/proc/{tid}/fd")).expect("fd").count(), 0, "it holds something open");
        // No child for wait(2), and a pipe whose end was closed ends.
        assert_eq!(program.ask(), "alone b''");
        assert_eq!(first_byte(tid, program.at), number);
        assert_eq!(first_byte(program.pid(), program.at), number + 1);
        assert_eq!(program.children().trim(), tid.to_string());
        drop(twin);
        assert_eq!(program.ask(), "alone b''");
        twin::bury(proc.as_fd(), program.pid(), inside, || true).expect("bury");
        assert_eq!(program.children(), "", "a zombie is left");
        number += 2;
    }
    drop(program.child.stdin.take());
    assert!(program.child.wait().expect("wait").success());
}
