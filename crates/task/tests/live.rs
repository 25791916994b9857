//! Borrowing real processes.

use std::io::{BufRead as _, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use yendor_sys::futex::RobustList;
use yendor_task::live::{self, Borrowed, Loan, RegionKind};
use yendor_task::script::{bytes, out};
use yendor_task::tree::{self, FrozenTree, Top};
use yendor_task::{Nr, RunError, Script, args};

const BASE: u64 = 0x5959_0000_0000;

fn child(script: &str) -> Child {
    let child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh");
    std::thread::sleep(Duration::from_millis(50));
    child
}

fn proc() -> std::fs::File {
    std::fs::File::open("/proc").expect("/proc")
}

fn borrow_and<T>(pid: i32, f: impl FnOnce(&mut Borrowed<'_>) -> T) -> T {
    borrow_all_and(&[pid], |all| f(&mut all[0]))
}

fn borrow_all_and<T>(pids: &[i32], f: impl FnOnce(&mut [Borrowed<'_>]) -> T) -> T {
    let proc = proc();
    let trees: Vec<_> =
        pids.iter().map(|pid| FrozenTree::freeze(proc.as_fd(), Top::Process(*pid), *pid).expect("freeze")).collect();
    let mut robust = RobustList::register().expect("robust list");
    let mut loans = Vec::new();
    for FrozenTree { root, processes, .. } in &trees {
        let regions = live::regions(proc.as_fd(), *root).expect("maps");
        loans.push(Loan::new(*root, &processes[root], &regions, BASE).expect("a loan"));
    }
    let mut all = Borrowed::all(loans, &mut robust).expect("borrow");
    let result = f(&mut all);
    Borrowed::give_back(all, &[], |_, _| (), &mut robust).expect("give back");
    result
}

#[test]
fn a_sleeping_shell_answers_and_goes_on() {
    let mut c = child("sleep 0.4; echo done");
    let pid = i32::try_from(c.id()).expect("pid");
    let before = std::fs::read(format!("/proc/{pid}/maps")).expect("maps");
    let rets = borrow_and(pid, |b| {
        let mut s = Script::new();
        for _ in 0..1500 {
            s.call(Nr::GETPID, []);
        }
        s.call(Nr::SIGALTSTACK, args![0, out(24)]);
        b.run(0, &s).expect("run")
    });
    assert_eq!(rets.len(), 1501);
    assert!(rets[..1500].iter().all(|d| d.returned == i64::from(pid)));
    assert_eq!(rets[1500].out[0].len(), 24);
    assert_eq!(std::fs::read(format!("/proc/{pid}/maps")).expect("maps"), before, "nothing is left in its memory");
    let out = c.wait_with_output().expect("wait");
    assert_eq!(out.stdout, b"done\n");
    c = child("exit 0");
    assert!(c.wait().expect("wait").success());
}

#[test]
fn a_failed_call_stops_the_script_and_is_named() {
    let mut c = child("sleep 0.3");
    let pid = i32::try_from(c.id()).expect("pid");
    let error = borrow_and(pid, |b| {
        let mut s = Script::new();
        s.call(Nr::GETPID, []);
        s.call(Nr::CLOSE, args![9999]);
        s.call(Nr::KILL, args![0, 9]);
        b.run(0, &s).expect_err("close must fail")
    });
    let RunError::Call { index, error } = error else { panic!("{error}") };
    assert_eq!((index, error.to_string().as_str()), (1, "close(9999) = EBADF (Bad file descriptor)"));
    assert!(c.wait().expect("wait").success());
}

#[test]
fn several_are_borrowed_side_by_side() {
    let mut children: Vec<_> = (0..5).map(|i| child(&format!("sleep 0.4; echo {i}"))).collect();
    let pids: Vec<i32> = children.iter().map(|c| i32::try_from(c.id()).expect("pid")).collect();
    borrow_all_and(&pids, |all| {
        let mut s = Script::new();
        s.call(Nr::GETPID, []);
        let started: Vec<usize> = all.iter_mut().map(|b| b.start(0, &s).expect("start")).collect();
        for ((borrowed, started), pid) in all.iter_mut().zip(started).zip(&pids) {
            assert_eq!(borrowed.finish(0, &s, started).expect("finish")[0].returned, i64::from(*pid));
        }
    });
    for (i, c) in children.drain(..).enumerate() {
        assert_eq!(c.wait_with_output().expect("wait").stdout, format!("{i}\n").as_bytes());
    }
}

/// Nobody can block SIGSTOP: one that comes while a process is borrowed stops it when it is given back.
#[test]
fn a_stop_from_outside_waits() {
    let c = child("sleep 0.2; echo done");
    let pid = i32::try_from(c.id()).expect("pid");
    let signal = |signal: &str| {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill").success());
    };
    let mut s = Script::new();
    s.call(Nr::GETPID, []);
    // In the gadget; then before the call that unmaps the scratch memory.
    borrow_and(pid, |b| {
        b.run(0, &s).expect("run");
        signal("-STOP");
        b.run(0, &s).expect("run again");
        signal("-STOP");
    });
    let state = || std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let until = Instant::now() + Duration::from_secs(5);
    while !state().contains("State:\tT") {
        assert!(Instant::now() < until, "{}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
    signal("-CONT");
    assert_eq!(c.wait_with_output().expect("wait").stdout, b"done\n");
}

/// Who stops in the middle of a restartable sequence goes on at its abort handler, as if the kernel had interrupted it.
#[test]
fn a_restartable_sequence_is_aborted() {
    let Some(pid) = spins_in_a_sequence() else { return };
    for _ in 0..200 {
        borrow_and(pid, |b| {
            let mut s = Script::new();
            s.call(Nr::GETPID, []);
            b.run(0, &s).expect("run");
        });
        std::thread::sleep(Duration::from_micros(300));
    }
    let state = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    kill_and_wait(pid);
    assert!(!state.contains("State:\tZ"), "it went on in a sequence that the kernel had forgotten:\n{state}");
}

/// A process that is nearly always in a restartable sequence, and ends when it is in one that is not registered any more.
#[allow(unsafe_code)]
fn spins_in_a_sequence() -> Option<i32> {
    // SAFETY: looks a name up.
    let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) };
    if offset.is_null() {
        let _ = writeln!(std::io::stderr(), "skipped: a C library that registers restartable sequences");
        return None;
    }
    let pid = yendor_sys_fork();
    if pid == 0 {
        /// `struct rseq_cs`: version and flags, start, length, abort handler.
        #[repr(align(32))]
        struct Section([u64; 4]);
        let mut section = Section([0; 4]);
        // SAFETY: the C library's variable. `fs:0` holds the thread pointer; its rseq area lies at that offset, and the
        // pointer to the section 8 bytes into it. The child does nothing else.
        unsafe {
            let offset = *offset.cast::<isize>();
            std::arch::asm!(
                "mov {area}, fs:0",
                "add {area}, {offset}",
                "lea {word}, [rip + 5f]",
                "mov [{section} + 8], {word}",
                "neg {word}",
                "mov [{section} + 16], {word}",
                "lea {word}, [rip + 6f]",
                "add [{section} + 16], {word}",
                "lea {word}, [rip + 7f]",
                "mov [{section} + 24], {word}",
                "jmp 7f",
                ".long 0x53053053",
                "7:",
                "mov [{area} + 8], {section}",
                "5:",
                "cmp [{area} + 8], {section}",
                "je 5b",
                "6:",
                area = out(reg) _,
                word = out(reg) _,
                section = in(reg) section.0.as_mut_ptr(),
                offset = in(reg) offset,
            );
            libc::_exit(1);
        }
    }
    std::thread::sleep(Duration::from_millis(20));
    Some(pid)
}

/// One of several that cannot be borrowed, because something is in the way, is named, and all of them go on.
#[test]
fn who_cannot_be_borrowed_is_named() {
    let mut children: Vec<_> = (0..3).map(|i| child(&format!("sleep 0.3; echo {i}"))).collect();
    let pids: Vec<i32> = children.iter().map(|c| i32::try_from(c.id()).expect("pid")).collect();
    let proc = proc();
    let trees: Vec<_> =
        pids.iter().map(|pid| FrozenTree::freeze(proc.as_fd(), Top::Process(*pid), *pid).expect("freeze")).collect();
    let maps = || pids.iter().map(|pid| std::fs::read(format!("/proc/{pid}/maps")).expect("maps")).collect::<Vec<_>>();
    let before = maps();
    let mut robust = RobustList::register().expect("robust list");
    let mut loans = Vec::new();
    for (i, FrozenTree { root, processes, .. }) in trees.iter().enumerate() {
        let regions = live::regions(proc.as_fd(), *root).expect("maps");
        // Its first page alone is free, in the second process.
        let base = if i == 1 { regions[0].start - 4096 } else { BASE };
        loans.push(Loan::new(*root, &processes[root], &regions, base).expect("a loan"));
    }
    let (index, error) = Borrowed::all(loans, &mut robust).expect_err("something is there");
    assert_eq!(index, 1);
    assert!(error.to_string().contains("EEXIST"), "{error}");
    drop(trees);
    assert!(maps() == before, "nothing is left in their memory");
    for (i, c) in children.drain(..).enumerate() {
        assert_eq!(c.wait_with_output().expect("wait").stdout, format!("{i}\n").as_bytes());
    }
}

/// A process of three threads, and what waits for its end.
fn of_three_threads() -> (i32, Killed) {
    three_threads(
        "import threading
for _ in range(2): threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Event().wait()",
    )
}

// `Killed` waits.
#[allow(clippy::zombie_processes)]
fn three_threads(program: &str) -> (i32, Killed) {
    let child = Command::new("python3").args(["-c", program]).spawn().expect("python3");
    let pid = i32::try_from(child.id()).expect("pid");
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let until = Instant::now() + Duration::from_secs(20);
    while threads() < 3 {
        assert!(Instant::now() < until, "{} threads", threads());
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(10));
    (pid, Killed(pid))
}

/// By a thread of its own, so that one that never returns is a failure.
fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || done.send(work()));
    let result = result.recv_timeout(Duration::from_secs(20)).expect("it hangs");
    let _ = worker.join();
    result
}

#[allow(unsafe_code)]
fn kill(pid: i32) {
    // SAFETY: a plain system call on a process that this test started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Nobody hears of the first thread's end as long as the others' is not taken, which only the tracer can do.
#[test]
fn who_is_killed_while_it_is_borrowed_is_dead_at_once() {
    for asleep in [true, false] {
        let (pid, killed) = of_three_threads();
        in_time(move || {
            let proc = proc();
            let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pid), pid).expect("freeze");
            let mut robust = RobustList::register().expect("robust list");
            let regions = live::regions(proc.as_fd(), pid).expect("maps");
            let loan = Loan::new(pid, &tree.processes[&pid], &regions, BASE).expect("a loan");
            let mut all = Borrowed::all(vec![loan], &mut robust).expect("borrow");
            let mut s = Script::new();
            let seconds = if asleep { 60u64 } else { 0 };
            s.call(Nr::NANOSLEEP, args![bytes([seconds.to_ne_bytes(), [0; 8]].concat()), 0]);
            let started: Vec<usize> = (0..3).map(|i| all[0].start(i, &s).expect("start")).collect();
            std::thread::sleep(Duration::from_millis(20));
            kill(pid);
            let begin = Instant::now();
            for (i, started) in started.into_iter().enumerate().filter(|_| asleep) {
                let error = all[0].finish(i, &s, started).expect_err("killed");
                assert!(matches!(error, RunError::Died { .. }), "thread {i}: {error}");
            }
            let (_, error) = Borrowed::give_back(all, &[true], |_, _| (), &mut robust).expect_err("killed");
            assert!(matches!(error, RunError::Died { .. }), "{error}");
            drop(tree);
            assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        });
        drop(killed);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
    }
}

#[test]
fn who_is_killed_while_it_is_being_borrowed_is_dead_at_once() {
    for round in 0..20 {
        let (pid, killed) = of_three_threads();
        in_time(move || {
            let proc = proc();
            let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pid), pid).expect("freeze");
            let mut robust = RobustList::register().expect("robust list");
            let regions = live::regions(proc.as_fd(), pid).expect("maps");
            let loan = Loan::new(pid, &tree.processes[&pid], &regions, BASE).expect("a loan");
            let begin = Instant::now();
            let killer = std::thread::spawn(move || {
                while begin.elapsed() < Duration::from_micros(50 + 37 * round) {}
                kill(pid);
            });
            let outcome = Borrowed::all(vec![loan], &mut robust).and_then(|all| {
                killer.join().expect("no panic");
                Borrowed::give_back(all, &[true], |_, _| (), &mut robust)
            });
            let (_, error) = outcome.expect_err("killed");
            assert!(matches!(error, RunError::Died { .. }), "round {round}: {error}");
            assert!(begin.elapsed() < Duration::from_secs(2), "round {round}: {:?}", begin.elapsed());
        });
        drop(killed);
    }
}

/// A filter of the second thread's sends SIGSYS instead of making the call. Nobody but us gets it, whether we have looked at what the thread
/// does or not.
#[test]
fn who_gets_a_signal_for_a_call_is_given_back() {
    const PROGRAM: &str = "import ctypes, struct, threading
libc, ready = ctypes.CDLL(None, use_errno=True), threading.Event()
def filtered():
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, 121), (6, 0, 0, 0x30000), (6, 0, 0, 0x7fff0000)]
    code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *one) for one in code))
    all = struct.pack('=H6xQ', 4, ctypes.addressof(code))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, all): raise OSError(ctypes.get_errno())
    ready.set(); threading.Event().wait()
threading.Thread(target=filtered, daemon=True).start()
ready.wait()
threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Event().wait()";
    for looks in [true, false] {
        let (pid, killed) = three_threads(PROGRAM);
        let statuses = move || {
            let all = std::fs::read_dir(format!("/proc/{pid}/task")).expect("alive").map(|entry| {
                let text = std::fs::read_to_string(entry.expect("an entry").path().join("status")).expect("alive");
                let kept =
                    |line: &&str| ["Pid:", "State:", "SigBlk:", "SigPnd:"].iter().any(|name| line.starts_with(name));
                text.lines().filter(kept).map(str::to_owned).collect::<Vec<_>>()
            });
            all.collect::<Vec<_>>()
        };
        let before = statuses();
        in_time(move || {
            borrow_and(pid, |b| {
                let (mut trapped, mut s) = (Script::new(), Script::new());
                trapped.call(Nr::GETPGID, args![0]);
                s.call(Nr::GETPID, []);
                let started = b.start(1, &trapped).expect("start");
                std::thread::sleep(Duration::from_millis(20));
                if looks {
                    let error = b.finish(1, &trapped, started).expect_err("trapped");
                    assert!(matches!(error, RunError::Signal { signal: 31, .. }), "{error}");
                    assert_eq!(b.run(1, &s).expect("run")[0].returned, i64::from(pid));
                    let error = b.run(1, &trapped).expect_err("trapped");
                    assert!(matches!(error, RunError::Signal { signal: 31, .. }), "{error}");
                }
                assert_eq!(b.run(2, &s).expect("run")[0].returned, i64::from(pid));
            });
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(statuses(), before);
        drop(killed);
    }
}

/// The kernel makes no call again that keeps to a time limit of its socket (signal(7)).
#[test]
fn calls_with_a_time_limit_go_on() {
    const PROGRAM: &str = "import ctypes, os, socket, struct, sys, threading, time
libc, said = ctypes.CDLL(None, use_errno=True), {}
def limited(s, option): s.setsockopt(socket.SOL_SOCKET, option, struct.pack('ll', 30, 0)); return s.fileno()
def waits(name, call, *args):
    def work():
        got = call(*args)
        said[name] = got if got >= 0 else -ctypes.get_errno()
    thread = threading.Thread(target=work); thread.start(); return thread
received, sent, read = socket.socketpair(), socket.socketpair(), socket.socketpair()
sent[0].setblocking(False)
try:
    while True: sent[0].send(bytes(1000))
except BlockingIOError: sent[0].setblocking(True)
accepting = socket.create_server(('127.0.0.1', 0))
full = socket.create_server(('127.0.0.1', 0), backlog=0)
first, second = socket.create_connection(full.getsockname()), socket.socket()
address = struct.pack('=H', 2) + struct.pack('>H', full.getsockname()[1]) + bytes([127, 0, 0, 1]) + bytes(8)
buffer = ctypes.create_string_buffer(9)
threads = [
    waits('recv', libc.recv, limited(received[0], socket.SO_RCVTIMEO), buffer, 9, 0),
    waits('read', libc.read, limited(read[0], socket.SO_RCVTIMEO), buffer, 9),
    waits('send', libc.send, limited(sent[0], socket.SO_SNDTIMEO), buffer, 9, 0),
    waits('accept', libc.accept, limited(accepting, socket.SO_RCVTIMEO), None, None),
    waits('connect', libc.connect, limited(second, socket.SO_SNDTIMEO), address, 16),
]
time.sleep(0.1)
print('ready', flush=True)
sys.stdin.readline()
early = dict(said)
received[1].send(b'x'); read[1].send(b'x')
sent[1].setblocking(False)
client = socket.create_connection(accepting.getsockname())
while threads[2].is_alive():
    try: sent[1].recv(100000)
    except BlockingIOError: time.sleep(0.01)
full.accept(); full.accept()
for thread in threads: thread.join()
said['accept'] = min(said['accept'], 0)
print(early, sorted(said.items()), flush=True)";
    for borrows in [false, true] {
        let mut command = Command::new("python3");
        let mut child =
            command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut line = || said.next().expect("a line").expect("UTF-8");
        assert_eq!(line(), "ready");
        let pid = i32::try_from(child.id()).expect("pid");
        for _ in 0..3 {
            if borrows {
                borrow_and(pid, |_| ());
            } else {
                FrozenTree::freeze(proc().as_fd(), Top::Process(pid), pid).expect("freeze");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        child.stdin.take().expect("piped").write_all(b"go\n").expect("a line");
        assert_eq!(line(), "{} [('accept', 0), ('connect', 0), ('read', 1), ('recv', 1), ('send', 9)]");
        assert!(child.wait().expect("wait").success());
    }
}

/// Pid 1 of a pid namespace does not end before all others in it.
#[test]
#[allow(unsafe_code)]
fn who_is_killed_with_a_namespace_is_dead_at_once() {
    // SAFETY: plain system calls, and processes that do nothing else.
    let outer = unsafe {
        let outer = libc::fork();
        if outer == 0 {
            if libc::unshare(libc::CLONE_NEWPID) < 0 {
                libc::_exit(9);
            }
            if libc::fork() == 0 {
                libc::fork();
            }
            libc::alarm(60);
            while libc::pause() < 0 {}
        }
        outer
    };
    let killed = Killed(outer);
    let proc = proc();
    let child = |pid| tree::children(proc.as_fd(), pid).expect("children").first().copied();
    let until = Instant::now() + Duration::from_secs(5);
    let pids = loop {
        if let Some((first, second)) = child(outer).and_then(|first| Some((first, child(first)?))) {
            break [first, second];
        }
        if Instant::now() > until {
            let _ = writeln!(std::io::stderr(), "skipped: unshare(CLONE_NEWPID)");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    in_time(move || {
        let proc = self::proc();
        let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pids[0]), pids[0]).expect("freeze");
        let mut robust = RobustList::register().expect("robust list");
        let loan = |pid: i32| {
            let regions = live::regions(proc.as_fd(), pid).expect("maps");
            Loan::new(pid, &tree.processes[&pid], &regions, BASE).expect("a loan")
        };
        let mut all = Borrowed::all(pids.map(loan).into(), &mut robust).expect("borrow");
        let mut s = Script::new();
        s.call(Nr::GETPID, []);
        all.iter_mut().for_each(|b| drop(b.run(0, &s).expect("run")));
        kill(pids[0]);
        let begin = Instant::now();
        let (_, error) = Borrowed::give_back(all, &[], |_, _| (), &mut robust).expect_err("killed");
        assert!(matches!(error, RunError::Died { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    });
    drop(killed);
}

/// Who has no stack at all is refused, and goes on.
#[test]
#[allow(unsafe_code)]
fn who_has_no_stack_cannot_be_borrowed() {
    let regions = live::regions(proc().as_fd(), i32::try_from(std::process::id()).expect("pid")).expect("maps");
    let stack = regions.iter().find(|r| r.what == RegionKind::Stack).expect("a stack");
    let pid = yendor_sys_fork();
    if pid == 0 {
        // SAFETY: nothing is left but a loop that needs no stack.
        unsafe {
            std::arch::asm!(
                "xor esp, esp",
                "syscall",
                "2: pause",
                "jmp 2b",
                in("eax") libc::SYS_munmap,
                in("rdi") stack.start,
                in("rsi") stack.end - stack.start,
                options(noreturn)
            );
        }
    }
    let _killed = Killed(pid);
    std::thread::sleep(Duration::from_millis(20));
    let proc = proc();
    let tree = FrozenTree::freeze(proc.as_fd(), Top::Process(pid), pid).expect("freeze");
    let regions = live::regions(proc.as_fd(), pid).expect("maps");
    let mut robust = RobustList::register().expect("robust list");
    let loan = Loan::new(pid, &tree.processes[&pid], &regions, BASE).expect("a loan");
    Borrowed::all(vec![loan], &mut robust).expect_err("no room for a frame");
    drop(tree);
    std::thread::sleep(Duration::from_millis(20));
    let state = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    assert!(state.contains("State:\tR"), "{state}");
}

/// A program that sees any harm: counts in a loop with checks of its own arithmetic, floating point included.
const COUNTER: &str = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo $i";

#[test]
fn it_survives_our_death_at_any_instant() {
    let rounds = if std::env::var_os("YENDOR_SOAK").is_some() { 400 } else { 40 };
    let target = child("while :; do sleep 0.001; done & sleep 1000");
    let busy = child(&format!("while :; do {COUNTER}; done >/dev/null"));
    let vectors = keeps_a_vector();
    for pid in [&target, &busy].map(|c| i32::try_from(c.id()).expect("pid")).into_iter().chain(vectors) {
        for round in 0..rounds {
            // The tracer is a process of its own: it forks here and is killed at some instant.
            let tracer = yendor_sys_fork();
            if tracer == 0 {
                loop {
                    borrow_and(pid, |b| {
                        let mut s = Script::new();
                        for _ in 0..50 {
                            s.call(Nr::GETPID, []);
                        }
                        b.run(0, &s).expect("run");
                    });
                }
            }
            let until = Instant::now() + Duration::from_micros(500 + round * 137);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            kill_and_wait(tracer);
            let state = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
            assert!(state.contains("TracerPid:\t0"), "round {round}: {state}");
            assert!(!state.contains("State:\tZ"), "round {round}: it died\n{state}");
        }
    }
    vectors.into_iter().for_each(kill_and_wait);
    for mut c in [target, busy] {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", c.id())).unwrap_or_default();
        c.kill().expect("kill");
        c.wait().expect("wait");
        for pid in children.split_ascii_whitespace() {
            kill_and_wait(pid.parse().expect("pid"));
        }
    }
}

/// A process that has something in the upper half of an AVX register, and ends once it is something else.
#[allow(unsafe_code)]
fn keeps_a_vector() -> Option<i32> {
    if !std::arch::is_x86_feature_detected!("avx") {
        let _ = writeln!(std::io::stderr(), "skipped: a processor with AVX");
        return None;
    }
    let pid = yendor_sys_fork();
    if pid == 0 {
        let wanted: [u64; 4] = [1, 2, 3, 0x1234_5678_9abc_def0];
        let mut seen = [0u64; 4];
        // SAFETY: loads and stores within the two arrays; the process does nothing else.
        unsafe {
            std::arch::asm!(
                "vmovdqu ymm15, [{wanted}]",
                "2:",
                "vmovdqu [{seen}], ymm15",
                "mov {word}, [{seen} + 24]",
                "cmp {word}, [{wanted} + 24]",
                "je 2b",
                wanted = in(reg) wanted.as_ptr(),
                seen = in(reg) seen.as_mut_ptr(),
                word = out(reg) _,
                out("ymm15") _,
            );
            libc::_exit(1);
        }
    }
    Some(pid)
}

#[allow(unsafe_code)]
fn yendor_sys_fork() -> i32 {
    // SAFETY: the child only traces and is killed; it shares nothing with the test but copied memory.
    unsafe { libc::fork() }
}

#[allow(unsafe_code)]
fn kill_and_wait(pid: i32) {
    // SAFETY: plain system calls on a process that this test started.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}

/// A process that this test started.
struct Killed(i32);

impl Drop for Killed {
    fn drop(&mut self) {
        kill_and_wait(self.0);
    }
}
