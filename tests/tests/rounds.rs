//! `checkpoint --rounds`: memory is read before the tasks are stopped, again where they have written meanwhile. The probe `writer`
//! finds what is not of one instant, or was there before and is not any more.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use yendor_tests::{Flavour, PATIENCE, Random, Started, Yendor, probe, rounds, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// The probe in a container that it runs in.
fn writer(yendor: &Yendor, arguments: &[&str]) -> String {
    let container = yendor.fresh("writer");
    yendor.run_detached(&container, &[&[text(&probe("writer"))], arguments].concat());
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

/// It finds nothing wrong.
fn ends_well(yendor: &Yendor, container: &str) {
    yendor.kill(container, "USR1");
    assert_eq!(yendor.wait(container), 0, "{}", yendor.logs(container));
}

/// What was taken goes on from its instant and finds nothing wrong.
fn lives(yendor: &Yendor, image: &Path) {
    let restored = yendor.fresh("copy");
    yendor.restore(image, &restored);
    std::thread::sleep(Duration::from_millis(100));
    ends_well(yendor, &restored);
    yendor.call(&["rm", &restored]).exits(0);
}

/// Bytes that each round has read.
fn read(json: &Value) -> Vec<u64> {
    json["rounds"].as_array().into_iter().flatten().filter_map(|round| round["bytes"].as_u64()).collect()
}

/// Why processes were not tracked.
fn why(json: &Value) -> Vec<&str> {
    json["not_tracked"].as_array().into_iter().flatten().flat_map(|one| one["why"].as_str()).collect()
}

fn checkpoint(yendor: &Yendor, container: &str, image: &Path, options: &[&str]) -> Value {
    let words = ["checkpoint", "--json", "-o", text(image), container];
    yendor.call(&[&words[..], options].concat()).exits(0).json()
}

/// Nothing of the container's memory is tracked, and no copy of a task is left.
fn is_untouched(yendor: &Yendor) {
    for pid in yendor.tasks_left() {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let tracked = |line: &str| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "uw");
        assert!(!smaps.lines().any(tracked), "{pid} is tracked");
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            assert!(!text(&link).contains("userfaultfd"), "{pid} has {}", entry.path().display());
        }
    }
}

fn of_one_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = writer(&yendor, &["alone"]);
    let image = yendor.path("image");
    let many = rounds(4, 100);
    for round in 0..many {
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        let wanted = ["auto", "1", "3", "7"][usize::try_from(round % 4).expect("small")];
        let json = checkpoint(&yendor, &container, &image, &["--leave-running", "--rounds", wanted]);
        assert_eq!(why(&json), [""; 0], "{json}");
        let read = read(&json);
        assert!(wanted == "auto" || read.len().to_string() == wanted, "{json}");
        // Two areas that are large, at least.
        assert!(read.first().is_some_and(|bytes| *bytes > 20 << 20), "{json}");
        is_untouched(&yendor);
        lives(&yendor, &image);
        fs::remove_dir_all(&image).expect("an image of our own");
    }
    // With a parent, of which little is left; and one that stops it.
    let parent = yendor.path("parent");
    checkpoint(&yendor, &container, &parent, &["--leave-running", "--rounds", "2"]);
    let options = ["--leave-running", "--rounds", "2", "--parent", text(&parent)];
    checkpoint(&yendor, &container, &image, &options);
    fs::remove_dir_all(&parent).expect("an image of our own");
    lives(&yendor, &image);
    fs::remove_dir_all(&image).expect("an image of our own");
    checkpoint(&yendor, &container, &image, &["--rounds", "2"]);
    lives(&yendor, &image);
    yendor.call(&["checkpoint", "--rounds", "auto", "--encrypt-to", "age1", &container]).exits(2);
}

/// Who cannot be tracked is read when it stands still, or from a copy, and the summary says so.
fn who_cannot_be_tracked(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = writer(&yendor, &[]);
    let image = yendor.path("image");
    let json = checkpoint(&yendor, &container, &image, &["--leave-running", "--rounds", "auto"]);
    assert_eq!(why(&json), ["it shares memory with a parent or a child"; 2], "{json}");
    assert!(read(&json).is_empty() && json["read_later"].as_u64().is_some_and(|n| n > 0), "{json}");
    lives(&yendor, &image);
    ends_well(&yendor, &container);
    let direct = yendor.fresh("direct");
    let program = "
import os, time
held = bytearray(os.urandom(16 << 20))
open('/tmp/direct', 'wb').write(bytes(4096))
try: os.open('/tmp/direct', os.O_RDONLY | os.O_DIRECT)
except OSError as e: print('refused')
print('ready', flush=True)
while True: time.sleep(1000)
";
    yendor.run_detached(&direct, &["python3", "-c", program]);
    yendor.wait_for_log(&direct, "ready", PATIENCE);
    fs::remove_dir_all(&image).expect("an image of our own");
    let json = checkpoint(&yendor, &direct, &image, &["--leave-running", "--rounds", "auto"]);
    match yendor.logs(&direct).contains("refused") {
        true => yendor_tests::skipped("a file system without O_DIRECT"),
        false => assert!(why(&json).len() == 1 && why(&json)[0].contains("O_DIRECT"), "{json}"),
    }
}

/// A program that tracks its own memory in the same way cannot be checkpointed, and loses nothing of what it has to see.
fn who_tracks_itself(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "
import ctypes, fcntl, mmap, os, signal, struct
call = ctypes.CDLL(None).syscall
size = 16 << 20
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held[:] = os.urandom(4096) * (size >> 12)
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
fault = call(323, os.O_CLOEXEC | 1)
fcntl.ioctl(fault, 0xc018aa3f, bytearray(struct.pack('3Q', 0xaa, 1 | 1 << 13 | 1 << 15, 0)))
fcntl.ioctl(fault, 0xc020aa00, bytearray(struct.pack('4Q', at, size, 2, 0)))
pagemap = os.open('/proc/self/pagemap', os.O_RDONLY)
found = (ctypes.c_uint64 * 192)()
def scan(flags, all):
    scan = struct.pack('12Q', 96, flags, at, at + size, 0, ctypes.addressof(found), 64, 0, 0, all, 24, 26)
    return [found[3 * i] - at for i in range(fcntl.ioctl(pagemap, 0xc0606610, bytearray(scan)))]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
scan(1, 0)
held[5 << 12] = 7
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
print(scan(0, 2), flush=True)
os._exit(scan(0, 2) != [5 << 12])
";
    let container = yendor.fresh("itself");
    yendor.run_detached(&container, &["python3", "-c", program]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("image");
    let words = ["checkpoint", "--leave-running", "--rounds", "auto", "-o", text(&image), &container];
    let said = yendor.call(&words).exits(3).stderr;
    assert!(said.contains("userfaultfd"), "{said}");
    ends_well(&yendor, &container);
}

/// Guarded pages (MADV_GUARD_INSTALL) in memory that is large enough to be tracked: they cannot be read, and are guarded again.
fn guarded_pages(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "
import ctypes, os, signal
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
pages = 16 << 8
at = libc.mmap(None, pages << 12, 3, 0x22, -1, 0)
page = lambda n: ctypes.c_void_p(at + (n << 12))
for n in range(pages): ctypes.memmove(page(n), n.to_bytes(4, 'little') * 1024, 4096)
for first, count in [(0, 1), (7, 3), (pages // 2, 900), (pages - 1, 1)]: libc.madvise(page(first), count << 12, 102)
ends = os.pipe()
def look():
    seen = []
    for n in range(pages):
        got = libc.write(ends[1], page(n), 4)
        seen.append(int.from_bytes(os.read(ends[0], 4), 'little') if got == 4 else None)
    return seen
before = look()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
os._exit(look() != before)
";
    let container = yendor.fresh("guarded");
    yendor.run_detached(&container, &["python3", "-c", program]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let (early, copied, plain) = (yendor.path("early"), yendor.path("copied"), yendor.path("plain"));
    checkpoint(&yendor, &container, &early, &["--leave-running", "--rounds", "3"]);
    checkpoint(&yendor, &container, &copied, &["--leave-running"]);
    checkpoint(&yendor, &container, &plain, &["--rounds", "2"]);
    for image in [early, copied, plain] {
        lives(&yendor, &image);
    }
}

/// What a killed checkpoint leaves for a moment, at its slowest: a child that is a copy, tells nobody of its end, and dies soon.
fn a_copy_that_is_dying_is_no_relative(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "
import ctypes, os, signal, time
held = bytearray(os.urandom(20 << 20))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
copy = ctypes.CDLL(None).syscall(56, 0, 0, 0, 0, 0)
while copy == 0: signal.pause()
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
time.sleep(0.4)
os.kill(copy, signal.SIGKILL)
os.waitpid(copy, 0x40000000)
while True: time.sleep(1000)
";
    let container = yendor.fresh("copied");
    yendor.run_detached(&container, &["python3", "-c", program]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    yendor.kill(&container, "USR1");
    let json = checkpoint(&yendor, &container, &yendor.path("image"), &["--leave-running", "--rounds", "2"]);
    assert_eq!((why(&json), read(&json).len()), (Vec::new(), 2), "{json}");
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// SIGKILL for the checkpoint, mostly while it reads: nothing of it is left in the program.
fn killed_at_any_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = writer(&yendor, &["alone", "killed"]);
    let image = yendor.path("image");
    let words = ["checkpoint", "--leave-running", "--rounds", "3", "-o", text(&image), &container];
    let begin = Instant::now();
    yendor.call(&words).exits(0);
    let duration = u64::try_from(begin.elapsed().as_micros()).expect("a short time");
    for _ in 0..rounds(8, 300) {
        // What the last one has made, or not.
        let _ = fs::remove_dir_all(&image);
        let mut started = Started::new(yendor.command(&words).stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(Duration::from_micros(random.below(duration)));
        started.kill();
        is_untouched(&yendor);
    }
    let _ = fs::remove_dir_all(&image);
    let json = checkpoint(&yendor, &container, &image, &["--leave-running", "--rounds", "3"]);
    assert_eq!(read(&json).len(), 3, "{json}");
    let tree = yendor.call(&["inspect", "--tree", text(&image)]).exits(0).stdout;
    assert!(!tree.contains("scratch") && !tree.contains("zombie"), "{tree}");
    lives(&yendor, &image);
    ends_well(&yendor, &container);
}

/// What a program of some size, of which little changes, waits for: less than for its memory. With a parent little is written.
fn it_is_stopped_for_less(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "
import mmap, os, signal, time
held = mmap.mmap(-1, 192 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
pages = len(held) >> 12
fill = lambda page: page.to_bytes(8, 'little') * 511
for page in range(pages): held[(page << 12) + 8:(page + 1) << 12] = fill(page)
def check(*_):
    wrong = [page for page in range(pages) if held[(page << 12) + 8:(page + 1) << 12] != fill(page)]
    wrong += [page for page in range(pages) if int.from_bytes(held[page << 12:(page << 12) + 8], 'little') != written[page]]
    print('wrong', wrong[:9], len(wrong), flush=True)
    os._exit(bool(wrong))
written = [0] * pages
page = 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print('ready', flush=True)
while signal.SIGUSR1 not in signal.sigpending():
    written[page] += 1
    held[page << 12:(page << 12) + 8] = written[page].to_bytes(8, 'little')
    page = (page + 7919) % pages
    time.sleep(0.001)
check()
";
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", program]);
    assert!(wait_until(PATIENCE, || yendor.logs(&container).contains("ready")));
    let image = yendor.path("image");
    let stopped = |options: &[&str]| {
        let mut all: Vec<u64> = (0..3)
            .map(|_| {
                let _ = fs::remove_dir_all(&image);
                let json = checkpoint(&yendor, &container, &image, &[&["--leave-running"], options].concat());
                json["phases"]["stopped_us"].as_u64().expect("a number")
            })
            .collect();
        all.sort_unstable();
        // Whatever else the machine does makes it longer.
        all[0]
    };
    let without = stopped(&["--max-extra-memory", "0"]);
    let with = stopped(&["--rounds", "auto"]);
    assert!(with < without / 2, "{with} us with rounds, {without} us without");
    let next = yendor.path("next");
    let options = ["--leave-running", "--rounds", "auto", "--parent", text(&image)];
    let json = checkpoint(&yendor, &container, &next, &options);
    assert!(json["shared"].as_u64().is_some_and(|bytes| bytes > 150 << 20), "{json}");
    fs::remove_dir_all(&image).expect("an image of our own");
    lives(&yendor, &next);
    // Too much was read to leave it for the stop: the rest comes from a copy, whether there was time for it or not.
    fs::remove_dir_all(&next).expect("an image of our own");
    let json = checkpoint(&yendor, &container, &next, &["--leave-running", "--rounds", "1"]);
    assert!(json["read_later"].as_u64().is_some_and(|bytes| bytes > 0), "{json}");
    lives(&yendor, &next);
    ends_well(&yendor, &container);
}

yendor_tests::flavours! {
    who_cannot_be_tracked
    who_tracks_itself
    guarded_pages
    a_copy_that_is_dying_is_no_relative
    killed_at_any_instant
}

yendor_tests::root_and_user! {
    of_one_instant
    it_is_stopped_for_less
}
