//! `restore --lazy`: tasks run at once, and their memory comes when it is touched.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use yendor_tests::{Flavour, Forge, PATIENCE, Yendor, skipped, wait_until};

/// Holds some MiB of which each page is known. As soon as it is restored, which it sees by its clocks, it looks at them in all ways.
const HOLDER: &str = "
import ctypes, mmap, os, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = libc.mmap.restype = ctypes.c_void_p
PAGE, PAGES, what = 4096, int(sys.argv[1]) << 8, sys.argv[2]
size = PAGES * PAGE
say = lambda *words: print(*words, flush=True)
page = lambda n: (n * 2654435761 % 2**32).to_bytes(4, 'little') * 1024
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for n in range(PAGES): held[n * PAGE:(n + 1) * PAGE] = page(n)
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
call = lambda name, *words: getattr(libc, name)(*[ctypes.c_void_p(w) for w in words])
def missing():
    there = (ctypes.c_ubyte * PAGES)()
    libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), there)
    return PAGES - sum(there)
def wrong(first, end, less=()):
    return [n for n in range(first, end) if n not in less and held[n * PAGE:(n + 1) * PAGE] != page(n)]
def check(name, ok): say(name, 'right' if ok else 'WRONG')
def forked(body):
    child = os.fork()
    if child == 0:
        body()
        os._exit(0)
    return child
distance = lambda: time.time() - time.monotonic()
def turns(word):
    first = distance()
    say(word)
    while abs(distance() - first) < 0.2: time.sleep(0.001)
Q = PAGES // 8
gone = set()
def by_calls():
    r, w = os.pipe()
    n = 3 * Q
    check('call', call('write', w, at + n * PAGE, 2 * PAGE) == 2 * PAGE and os.read(r, 2 * PAGE) == page(n) + page(n + 1))
    f = os.memfd_create('f')
    os.write(f, b'x' * PAGE)
    check('into', call('pread', f, at + (n + 9) * PAGE + 100, 200, 0) == 200 and held[(n + 9) * PAGE:(n + 10) * PAGE] == page(n + 9)[:100] + b'x' * 200 + page(n + 9)[300:])
    gone.add(n + 9)
def by_threads():
    bad = [None] * 4
    def one(i): bad[i] = wrong(4 * Q + i * Q // 4, 4 * Q + (i + 1) * Q // 4)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    check('threads', bad == [[]] * 4)
def dropped():
    n = 5 * Q + 3
    call('madvise', at + n * PAGE, 90 * PAGE, 4)
    check('dropped', held[n * PAGE:(n + 90) * PAGE] == bytes(90 * PAGE) and not wrong(n - 3, n) and not wrong(n + 90, n + 99))
    gone.update(range(n, n + 90))
def moved():
    n, m = 6 * Q, 6 * Q + 200
    room = libc.mremap(ctypes.c_void_p(at + n * PAGE), ctypes.c_size_t(40 * PAGE), ctypes.c_size_t(80 * PAGE), 1)
    got = ctypes.string_at(room, 80 * PAGE)
    check('moved', got == b''.join(page(i) for i in range(n, n + 40)) + bytes(40 * PAGE))
    call('munmap', at + m * PAGE, 30 * PAGE)
    for start, pages in ((n, 40), (m, 30)):
        back = libc.mmap(ctypes.c_void_p(at + start * PAGE), ctypes.c_size_t(pages * PAGE), 3, 0x32, -1, ctypes.c_long(0))
        check('mapped again', back == at + start * PAGE and held[start * PAGE:(start + pages) * PAGE] == bytes(pages * PAGE))
        gone.update(range(start, start + pages))
    call('mprotect', at + (n + 100) * PAGE, 5 * PAGE, 1)
    check('protected', not wrong(n + 90, n + 120))
    call('mprotect', at + (n + 100) * PAGE, 5 * PAGE, 3)
def all_of_it(name): check(name, not wrong(0, PAGES, gone))
turns('ready')
say('missing', missing() > PAGES // 2)
check('one', held[7 * PAGE:8 * PAGE] == page(7))
if what == 'touch':
    for n in range(PAGES): held[n * PAGE]
by_calls(); by_threads(); dropped(); moved()
if what == 'idle':
    while True: time.sleep(1000)
if what == 'again':
    turns('waits')
    all_of_it('after another')
    sys.exit(0)
def by_sharer(_):
    FORK = 57
    child = libc.syscall(FORK)
    if child == 0:
        all_of_it('child of a sharer')
        os._exit(0)
    os.waitpid(child, 0)
    return 0
entry, stack = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(by_sharer), mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
VFORK_VM_SIGCHLD = 0x4111
top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + (1 << 20)
os.waitpid(libc.clone(entry, ctypes.c_void_p(top), VFORK_VM_SIGCHLD, None), 0)
os.waitpid(forked(lambda: all_of_it('child')), 0)
all_of_it('all')
check('there', missing() == 0)
sys.exit(0)
";

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// An image of the holder.
fn image(yendor: &Yendor, mib: u32, what: &str) -> PathBuf {
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", HOLDER, &mib.to_string(), what]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path(&format!("image-{what}"));
    yendor.checkpoint(&container, &image);
    image
}

/// A restored container, at whose clocks time has passed, and what was said.
fn restored(yendor: &Yendor, image: &Path, options: &[&str]) -> (String, String) {
    std::thread::sleep(std::time::Duration::from_millis(300));
    let container = yendor.fresh("lazy");
    let said = yendor.restore_with(image, &container, &[&["--lazy"], options].concat()).exits(0);
    (container, said.stderr)
}

/// Nothing is wrong, and what had to be looked at was.
fn right(log: &str, words: &[&str]) {
    assert!(!log.contains("WRONG"), "{log}");
    for word in words {
        assert!(log.lines().any(|line| line == *word || line == format!("{word} right")), "{word}: {log}");
    }
}

/// What a container's keeper has written down.
fn state(yendor: &Yendor, container: &str) -> Value {
    let state = fs::read(yendor.path(&format!("state/run/{container}/state.json"))).expect("state");
    serde_json::from_slice(&state).expect("JSON")
}

fn keeper(yendor: &Yendor, container: &str) -> i64 {
    state(yendor, container)["keeper"].as_i64().expect("a keeper")
}

fn main_of(yendor: &Yendor, container: &str) -> i64 {
    state(yendor, container)["main"].as_i64().expect("a root task")
}

/// The pager of a container, by its keeper's children.
fn pager(yendor: &Yendor, container: &str) -> i32 {
    let keeper = keeper(yendor, container);
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("children");
    let is_pager =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|n| n.trim() == "yendor-pager");
    let found = children.split_whitespace().find(is_pager).expect("a pager");
    found.parse().expect("a number")
}

const WAYS: [&str; 9] =
    ["missing True", "one", "call", "into", "threads", "dropped", "moved", "mapped again", "protected"];

#[test]
fn memory_comes_when_it_is_touched_and_then_all_of_it() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let taken = image(&yendor, 64, "all");
    // Nothing but what is touched, until it forks; and all of it, meanwhile.
    for options in [&["--lazy-rate", "0"][..], &[], &["--lazy-rate", "200M"]] {
        let (container, said) = restored(&yendor, &taken, options);
        assert!(!said.contains("--lazy"), "{said}");
        assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
        let log = yendor.logs(&container);
        right(&log, if options.contains(&"0") { &WAYS } else { &WAYS[1..] });
        right(&log, &["child of a sharer", "child", "all", "there"]);
    }
}

#[test]
fn a_checkpoint_waits_for_all_memory() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let taken = image(&yendor, 64, "again");
    let (container, _) = restored(&yendor, &taken, &["--lazy-rate", "0"]);
    yendor.wait_for_log(&container, "waits", PATIENCE);
    let running = yendor.path("running");
    yendor.call(&["checkpoint", &container, "-o", text(&running), "--leave-running"]).exits(0);
    let tracked = yendor.path("tracked");
    yendor.call(&["checkpoint", &container, "-o", text(&tracked), "--leave-running", "--track"]).exits(0);
    let last = yendor.path("last");
    yendor.checkpoint(&container, &last);
    right(&yendor.logs(&container), &WAYS);
    for (image, options) in [(&running, &["--lazy"][..]), (&tracked, &[]), (&last, &["--lazy"])] {
        let (container, said) = restored(&yendor, image, options.get(1..).unwrap_or_default());
        assert!(!said.contains("--lazy"), "{said}");
        assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
        right(&yendor.logs(&container), &["after another"]);
    }
}

#[test]
fn a_damaged_block_ends_the_container_before_anybody_sees_it() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let taken = image(&yendor, 64, "touch");
    let pages = OpenOptions::new().read(true).write(true).open(taken.join("pages-0")).expect("pages");
    let blocks = pages.metadata().expect("stat").len() / (256 << 10);
    let damaged = blocks / 2;
    let mut byte = [0];
    pages.read_exact_at(&mut byte, damaged * (256 << 10) + 5000).expect("read");
    pages.write_all_at(&[byte[0] ^ 4], damaged * (256 << 10) + 5000).expect("write");
    let (container, _) = restored(&yendor, &taken, &["--lazy-rate", "0"]);
    let ended = yendor.call(&["wait", &container]).exits(4);
    assert!(
        ended.stderr.contains("pages-0") && ended.stderr.contains(&format!("block {damaged}:")),
        "{}",
        ended.stderr
    );
    assert!(!yendor.logs(&container).contains("WRONG"), "{}", yendor.logs(&container));
    // In the foreground too, where nobody has touched it.
    let attached = yendor.call(&["restore", "--name", &yendor.fresh("near"), "--lazy", text(&taken)]).exits(4);
    assert!(attached.stderr.contains(&format!("block {damaged}:")), "{}", attached.stderr);
    // Without the option nothing runs.
    yendor.restore_with(&taken, &yendor.fresh("whole"), &[]).exits(4);
    // Of what says what blocks are, nothing is believed.
    let tree = taken.join("pages-0.tree");
    let mut values = fs::read(&tree).expect("tree");
    values[40] ^= 1;
    fs::write(&tree, values).expect("tree");
    let said = yendor.restore_with(&taken, &yendor.fresh("tree"), &["--lazy"]).exits(4);
    assert!(said.stderr.contains("pages-0.tree"), "{}", said.stderr);
}

#[test]
fn nobody_goes_on_without_memory_when_those_who_bring_it_die() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let taken = image(&yendor, 64, "idle");
    let (container, _) = restored(&yendor, &taken, &["--lazy-rate", "0"]);
    yendor.wait_for_log(&container, "protected right", PATIENCE);
    let pid = pager(&yendor, &container);
    // It has no capability, and the descriptors that it needs.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    for line in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    // Nobody else has a userfaultfd, or the device.
    let main = main_of(&yendor, &container);
    for entry in fs::read_dir(format!("/proc/{main}/fd")).expect("descriptors").flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        assert!(!link.to_string_lossy().contains("userfaultfd"), "{}", link.display());
    }
    let killed = Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("kill");
    assert!(killed.success());
    let ended = yendor.call(&["wait", &container]).exits(1);
    assert!(ended.stderr.contains("brings its memory"), "{}", ended.stderr);
    assert!(wait_until(PATIENCE, || !Path::new(&format!("/proc/{main}")).exists()));
    right(&yendor.logs(&container), &WAYS);
    // With the keeper the container ends, and then the pager.
    let (container, _) = restored(&yendor, &taken, &["--lazy-rate", "0"]);
    yendor.wait_for_log(&container, "protected right", PATIENCE);
    let (pid, main) = (pager(&yendor, &container), main_of(&yendor, &container));
    let killed = Command::new("kill").args(["-KILL", &keeper(&yendor, &container).to_string()]).status().expect("kill");
    assert!(killed.success());
    for pid in [i64::from(pid), main] {
        assert!(wait_until(PATIENCE, || !Path::new(&format!("/proc/{pid}")).exists()), "{pid}");
    }
    let log = yendor.path(&format!("state/run/{container}/log"));
    right(&fs::read_to_string(log).expect("its log"), &WAYS);
}

/// A plain user's, with the device or without.
fn of_a_user(device: bool) {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let taken = image(&yendor, if device { 64 } else { 8 }, "all");
    let container = yendor.fresh("lazy");
    yendor.will_remove(&container);
    let node = if device { "chown --reference=$PLACE/home $PLACE/dev/uffd" } else { "chmod 0 $PLACE/dev/uffd" };
    let script = format!(
        "mkdir -p $PLACE/dev; mount -t tmpfs dev $PLACE/dev; chmod 755 $PLACE/dev; \
         mknod -m 600 $PLACE/dev/uffd c $(stat -c '0x%t 0x%T' /dev/userfaultfd); {node}; \
         mount --bind $PLACE/dev/uffd /dev/userfaultfd; exec \"$@\""
    );
    std::thread::sleep(std::time::Duration::from_millis(300));
    let words = ["restore", "-d", "--name", &container, "--lazy", "--lazy-rate", "0", text(&taken)];
    let said = yendor.to_its_end(yendor.sheltered(&script, &words), words.join(" ")).exits(0).stderr;
    assert_eq!(said.contains("--lazy") && said.contains("/dev/userfaultfd"), !device, "{said}");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
    let log = yendor.logs(&container);
    right(&log, if device { &WAYS } else { &WAYS[1..] });
    right(&log, &["child of a sharer", "child", "all", "there"]);
}

#[test]
fn who_may_open_the_device_has_it_too_and_who_may_not_waits_for_all() {
    if Yendor::new(Flavour::RootUserns).is_none() {
        return;
    }
    if !Path::new("/dev/userfaultfd").exists() {
        return skipped("a kernel without /dev/userfaultfd");
    }
    of_a_user(true);
    of_a_user(false);
}

/// Adds a file of pages of 8 TiB to an image, and what says what its blocks are: nothing but holes, and right. Its name, size and digest, and
/// those of the other one.
fn huge(image: &Path, number: u16) -> [(String, u64, String); 2] {
    use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};
    const HALVINGS: u32 = 25;
    let bytes = (256 << 10) << HALVINGS;
    let half = (1..HALVINGS).fold([0; 32], |below, _| merge_subtrees_non_root(&below, &below, Mode::Hash));
    let digest = merge_subtrees_root(&half, &half, Mode::Hash).to_hex().to_string();
    let (name, tree) = (format!("pages-{number}"), format!("pages-{number}.tree"));
    for (name, bytes) in [(&name, bytes), (&tree, 32 << HALVINGS)] {
        fs::File::create(image.join(name)).expect("create").set_len(bytes).expect("a hole");
    }
    // Nobody compares the other one: what it must give is the file's digest.
    [(name, bytes, digest.clone()), (tree, 32 << HALVINGS, digest)]
}

#[test]
fn what_is_held_of_all_files_of_an_image_is_bounded() {
    // Holes of this size take a file system that has them.
    let Some(yendor) = Yendor::new(Flavour::RootUserns).filter(|y| y.path("").starts_with("/dev/shm")) else { return };
    let taken = image(&yendor, 16, "idle");
    let forge = Forge::open(&taken);
    let forged = |name: &str, used: u16| {
        let (mut forge, image) = (forge.clone(), yendor.path(name));
        for number in 0..used {
            for (field, value) in [("file", u64::from(number + 1)), ("offset", 0)] {
                forge.set(&format!("processes/0/state/alive/memory/pages/{number}/{field}"), value);
            }
        }
        forge.write(&image);
        Forge::list_also(&image, &[huge(&image, 1), huge(&image, 2)].concat());
        yendor.give(&image);
        image
    };
    let said = yendor.restore_with(&forged("two", 2), &yendor.fresh("two"), &["--lazy"]).exits(4).stderr;
    assert!(said.contains(".tree: ") && said.contains("beyond the limit"), "{said}");
    // Of those that nothing is in, nothing is read.
    let (container, _) = restored(&yendor, &forged("none", 0), &["--lazy-rate", "0"]);
    yendor.wait_for_log(&container, "protected right", PATIENCE);
    let status = fs::read_to_string(format!("/proc/{}/status", keeper(&yendor, &container))).expect("status");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory").trim();
    assert!(most.trim_end_matches(" kB").parse::<u64>().is_ok_and(|kib| kib < 256 << 10), "{most}");
}

/// Words in memory that comes later which the kernel touches without waiting: a futex with priority inheritance that a thread waits for, the
/// robust list of another, and the word that is cleared when that exits. Each is in a page that nobody touches before.
const WORDS: &str = "
import ctypes, mmap, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
size, PAGE = 64 << 20, 4096
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for n in range(size // PAGE): held[n * PAGE + 2048] = 1
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
FUTEX, SET_ROBUST, SET_TID, GETTID, LOCK, UNLOCK = 202, 273, 218, 186, 6 | 128, 7 | 128
call = lambda number, *words: libc.syscall(ctypes.c_long(number), *[ctypes.c_void_p(w) for w in words])
def word(address, value=None, kind=ctypes.c_uint64):
    it = kind.from_address(address)
    if value is not None: it.value = value
    return it.value
say = lambda *words: print(*words, flush=True)
distance = lambda: time.time() - time.monotonic()
first = distance()
def restored():
    while abs(distance() - first) < 0.2: time.sleep(0.001)
futex, head, entry, tid = (at + size - n * 1000 * PAGE for n in (1, 2, 3, 4))
assert call(FUTEX, futex, LOCK, 0, 0) == 0
def waits(): say('lock', call(FUTEX, futex, LOCK, 0, 0), ctypes.get_errno())
def exits():
    own = call(GETTID)
    word(head, entry), word(head + 8, 64), word(head + 16, 0), word(entry, head), word(entry + 64, own), word(tid, own)
    assert call(SET_ROBUST, head, 24) == 0
    call(SET_TID, tid)
    restored()
threads = [threading.Thread(target=f) for f in (waits, exits)]
[t.start() for t in threads]
time.sleep(0.5)
say('ready')
restored()
time.sleep(0.5)
say('unlock', call(FUTEX, futex, UNLOCK, 0, 0))
[t.join() for t in threads]
time.sleep(0.5)
say('robust', hex(word(entry + 64, kind=ctypes.c_uint32) & 0x40000000))
say('cleared', word(tid, kind=ctypes.c_uint32))
";

#[test]
fn words_that_the_kernel_does_not_wait_for_are_there() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let container = yendor.fresh("words");
    yendor.run_detached(&container, &["python3", "-c", WORDS]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let taken = yendor.path("image");
    yendor.checkpoint(&container, &taken);
    let (container, said) = restored(&yendor, &taken, &["--lazy-rate", "0"]);
    assert!(!said.contains("--lazy"), "{said}");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
    let log = yendor.logs(&container);
    for line in ["lock 0 0", "unlock 0", "robust 0x40000000", "cleared 0"] {
        assert!(log.lines().any(|one| one == line), "{line}: {log}");
    }
}

/// Three robust lists in memory that could come later, with two thousand entries each, every one in a page of its own.
const MANY_WORDS: &str = "
import ctypes, mmap, threading, time
libc = ctypes.CDLL(None)
size, PAGE, MANY = 64 << 20, 4096, 2000
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for n in range(size // PAGE): held[n * PAGE + 2048] = 1
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
def word(address, value): ctypes.c_uint64.from_address(address).value = value
distance = lambda: time.time() - time.monotonic()
first = distance()
def restored():
    while abs(distance() - first) < 0.2: time.sleep(0.001)
def exits(number):
    head = at + number * (MANY + 1) * PAGE
    for n in range(MANY): word(head + n * PAGE, head + (n + 1) * PAGE)
    word(head + MANY * PAGE, head), word(head + 8, 64)
    assert libc.syscall(ctypes.c_long(273), ctypes.c_void_p(head), ctypes.c_void_p(24)) == 0
    restored()
threads = [threading.Thread(target=exits, args=(n,)) for n in range(3)]
[t.start() for t in threads]
time.sleep(0.5)
print('ready', flush=True)
[t.join() for t in threads]
print('right' if all(held[n * PAGE + 2048] for n in range(size // PAGE)) else 'WRONG', flush=True)
";

/// Each page of such a word costs that a block is compared before anything runs: by the keeper, who would do it for an hour if an image said so.
#[test]
fn what_has_very_many_such_words_is_filled_at_once() {
    let Some(yendor) = Yendor::new(Flavour::RootUserns) else { return };
    let container = yendor.fresh("many");
    yendor.run_detached(&container, &["python3", "-c", MANY_WORDS]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let taken = yendor.path("image");
    yendor.checkpoint(&container, &taken);
    let (container, said) = restored(&yendor, &taken, &[]);
    assert!(said.contains("--lazy: all memory was filled"), "{said}");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
    let log = yendor.logs(&container);
    assert!(log.lines().any(|line| line == "right"), "{log}");
}
