//! `restore --count` and `clone`: several containers from one, which share their memory until they write to it.

use std::fs;
use std::path::Path;

use serde_json::Value;
use yendor_tests::{Flavour, PATIENCE, Yendor, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Holds 64 MiB, of which it says at SIGUSR1 what they are, and changes them at SIGUSR2 to what its name in the directory /tmp says; what is given back
/// with madvise reads as zeros, or cannot be given back.
const HOLDER: &str = "
import ctypes, hashlib, mmap, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
size = 64 << 20
held = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held[:] = os.urandom(size)
wiped = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
libc.madvise(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(wiped))), 1 << 20, 18)
wiped[:] = b'x' * (1 << 20)
at = ctypes.addressof(ctypes.c_char.from_buffer(held))
say = lambda *words: print(*words, flush=True)
def digest(*_): say('digest', hashlib.sha256(held).hexdigest(), 'wiped', wiped[0], wiped[-1])
def change(*_):
    for page in range(0, size, 4096): held[page:page + 8] = os.getpid().to_bytes(4, 'little') + os.urandom(4)
    back = libc.madvise(ctypes.c_void_p(at + (8 << 20)), 1 << 20, 4), ctypes.get_errno()
    byte = held[(8 << 20) + 100]
    say('given back', back[0] == 0 and byte == 0 or back == (-1, 22))
    libc.mremap.restype = ctypes.c_void_p
    new = libc.mremap(ctypes.c_void_p(at), ctypes.c_size_t(size), ctypes.c_size_t(size + (8 << 20)), 1)
    ends = [ctypes.string_at(new + size + n, 1) for n in (0, 4096, (8 << 20) - 1)] if new != 2**64 - 1 else None
    say('grown', ends == [bytes(1)] * 3)
    os._exit(0)
def told(*_): say('told', held[0])
signal.signal(signal.SIGHUP, told)
signal.signal(signal.SIGUSR1, digest)
signal.signal(signal.SIGUSR2, change)
say('ready')
while True: time.sleep(1000)
";

fn holder(yendor: &Yendor) -> String {
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", HOLDER]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn line(yendor: &Yendor, container: &str, first: &str) -> String {
    let mut found = None;
    wait_until(PATIENCE, || {
        found = yendor.logs(container).lines().rfind(|line| line.starts_with(first)).map(str::to_owned);
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("no {first} in {container}: {}", yendor.logs(container)))
}

fn digest(yendor: &Yendor, container: &str) -> String {
    yendor.kill(container, "USR1");
    line(yendor, container, "digest")
}

fn pid(yendor: &Yendor, container: &str) -> u64 {
    let all = yendor.call(&["ps", "--json"]).exits(0).json();
    let own = all.as_array().into_iter().flatten().find(|one| one["name"] == container);
    own.and_then(|one| one["pid"].as_u64()).unwrap_or_else(|| panic!("{container}: {all}"))
}

/// KiB of memory that a task has for itself, and that it has with others.
fn memory(pid: u64) -> (u64, u64) {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let sum = |names: &[&str]| {
        let of = |line: &str| names.iter().any(|name| line.starts_with(name));
        let number = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
        rollup.lines().filter(|line| of(line)).filter_map(number).sum()
    };
    (sum(&["Private_Clean:", "Private_Dirty:"]), sum(&["Shared_Clean:", "Shared_Dirty:"]))
}

fn several(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let expected = digest(&yendor, &container);
    let (held, wiped) = expected.split_once(" wiped ").expect("a line of its own");
    assert_eq!(wiped, "120 120");
    let image = yendor.path("image");
    yendor.call(&["checkpoint", "-o", text(&image), &container]).exits(0);
    let base = yendor.fresh("many");
    let names: Vec<String> = (1..=4).map(|n| format!("{base}-{n}")).collect();
    let hook = "echo $YENDOR_CLONE/$YENDOR_CLONES $YENDOR_NAME > /tmp/hook; cat /tmp/hook >&2";
    let words =
        ["restore", text(&image), "-d", "--name", &base, "--count", "4", "--notify", "HUP", "--on-resume", hook];
    names.iter().for_each(|name| yendor.will_remove(name));
    let said = yendor.call(&words).exits(0);
    assert_eq!(said.stdout.lines().collect::<Vec<_>>(), names);
    for (number, name) in (1..).zip(&names) {
        assert!(said.stderr.contains(&format!("{number}/4 {name}")), "{}", said.stderr);
        assert!(line(&yendor, name, "told").starts_with("told"));
    }
    // Nothing can reach them through the image any more.
    fs::remove_dir_all(&image).expect("an image of our own");
    for name in &names {
        assert_eq!(digest(&yendor, name), format!("{held} wiped 0 0"));
    }
    for name in &names {
        let (own, with) = memory(pid(&yendor, name));
        assert!(own < 6 << 10 && with > 60 << 10, "{own} KiB of its own, {with} shared");
    }
    // What one writes is nobody else's.
    for name in &names[..2] {
        yendor.kill(name, "USR2");
        assert_eq!(yendor.wait(name), 0, "{}", yendor.logs(name));
        let log = yendor.logs(name);
        assert!(log.contains("given back True") && log.contains("grown True"), "{log}");
    }
    // And can be checkpointed like any other.
    for (name, options) in [(&names[2], &["--leave-running"][..]), (&names[3], &[])] {
        let image = yendor.path(name);
        yendor.call(&[&["checkpoint", "-o", text(&image), name], options].concat()).exits(0);
        let again = yendor.fresh("again");
        yendor.restore(&image, &again);
        assert_eq!(digest(&yendor, &again), format!("{held} wiped 0 0"));
        yendor.kill(&again, "USR2");
        assert_eq!(yendor.wait(&again), 0, "{}", yendor.logs(&again));
        let log = yendor.logs(&again);
        assert!(log.contains("given back True") && log.contains("grown True"), "{log}");
    }
}

/// What a clone has for itself, with its keeper, its pid 1 and their page tables, is next to nothing of memory that nobody writes; to read it changes that
/// by what reading takes.
fn untouched_memory_costs_little(flavour: Flavour) {
    const HELD: u64 = 256 << 10;
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", &HOLDER.replace("64 << 20", "256 << 20")]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("image");
    yendor.call(&["checkpoint", "-o", text(&image), &container]).exits(0);
    let base = yendor.fresh("cheap");
    let names: Vec<String> = (1..=3).map(|n| format!("{base}-{n}")).collect();
    names.iter().for_each(|name| yendor.will_remove(name));
    yendor.call(&["restore", text(&image), "-d", "--name", &base, "--count", "3"]).exits(0);
    let status = |pid: u64, name: &str| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    };
    let cost = |name: &String| {
        let main = pid(&yendor, name);
        let init = status(main, "PPid:");
        let all = [main, init, status(init, "PPid:")];
        all.map(|pid| memory(pid).0 + status(pid, "VmPTE:")).iter().sum::<u64>()
    };
    let untouched: Vec<u64> = names.iter().map(cost).collect();
    let held = digest(&yendor, &names[0]);
    assert!(names[1..].iter().all(|name| digest(&yendor, name) == held));
    let read: Vec<u64> = names.iter().map(cost).collect();
    let shared: Vec<u64> = names.iter().map(|name| memory(pid(&yendor, name)).1).collect();
    println!("KiB: untouched {untouched:?}, read {read:?}, shared {shared:?}");
    assert!(untouched.iter().chain(&read).all(|cost| cost * 20 < HELD), "{untouched:?}, read {read:?}");
    assert!(shared.iter().all(|shared| *shared > HELD * 9 / 10), "{shared:?}");
}

fn of_a_container(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let expected = digest(&yendor, &container);
    let held = expected.split(" wiped").next().expect("a word");
    let base = yendor.fresh("clone");
    let names: Vec<String> = (1..=3).map(|n| format!("{base}-{n}")).collect();
    names.iter().for_each(|name| yendor.will_remove(name));
    let said =
        yendor.call(&["clone", &container, "--count", "2", "--name", &base, "--", "--hostname", "twin"]).exits(0);
    assert_eq!(said.stdout.lines().collect::<Vec<_>>(), names[..2]);
    for name in &names[..2] {
        assert!(digest(&yendor, name).starts_with(held));
        assert_eq!(yendor.call(&["exec", name, "--", "hostname"]).exits(0).stdout.trim(), "twin");
    }
    // It is as it was, and there is no image.
    assert_eq!(digest(&yendor, &container), expected);
    let images = yendor.call(&["images", "--json"]).exits(0).json();
    assert_eq!(images.as_array().map(Vec::len), Some(0), "{images}");
    // Memory of their own.
    let other = yendor.fresh("copied");
    yendor.will_remove(&format!("{other}-1"));
    yendor.call(&["clone", &container, "--name", &other, "--copy-memory"]).exits(0);
    assert!(memory(pid(&yendor, &format!("{other}-1"))).0 > 60 << 10);
    // A name that is taken: none at all.
    let said = yendor.call(&["clone", &container, "--count", "3", "--name", &base]).exits(1).stderr;
    assert!(said.contains("in use"), "{said}");
    let all = yendor.call(&["ps", "-a", "--json"]).exits(0).json();
    assert!(!all.to_string().contains(&names[2]), "{all}");
}

/// A process and one that it has forked: the second has most of its memory from the first, changes some and gives some back.
fn a_family(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "
import hashlib, mmap, os, signal, sys, time
held = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held[:] = os.urandom(len(held))
who = 'child' if os.fork() == 0 else 'parent'
if who == 'child':
    for page in range(0, 4 << 20, 8192): held[page] = 255 - held[page]
    if sys.argv[1] == 'drops': held.madvise(mmap.MADV_DONTNEED, 8 << 20, 1 << 20)
digest = lambda: hashlib.sha256(held).hexdigest()
first = digest()
def look(*_):
    print(who, digest() == first, flush=True)
signal.signal(signal.SIGUSR1, look)
def change(*_):
    held[0:len(held):4096] = bytes(len(held) >> 12)
    print(who, 'changed', flush=True)
signal.signal(signal.SIGUSR2, change)
print('ready', who, flush=True)
while True: time.sleep(1000)
";
    for what in ["drops", "keeps"] {
        let container = yendor.fresh("family");
        yendor.run_detached(&container, &["python3", "-c", program, what]);
        ["ready parent", "ready child"].iter().for_each(|line| yendor.wait_for_log(&container, line, PATIENCE));
        let base = yendor.fresh("kin");
        let names: Vec<String> = (1..=2).map(|n| format!("{base}-{n}")).collect();
        names.iter().for_each(|name| yendor.will_remove(name));
        yendor.call(&["clone", &container, "--count", "2", "--name", &base]).exits(0);
        // The second one's memory stays what it was, whatever the first one does.
        let all = |container: &str, signal: &str| {
            let word = format!("kill -{signal} $(pgrep python3)");
            yendor.call(&["exec", container, "--", "sh", "-c", &word]).exits(0);
        };
        all(&names[0], "USR2");
        // Of two signals that are pending, Python handles the one with the lower number first.
        ["parent changed", "child changed"].iter().for_each(|line| yendor.wait_for_log(&names[0], line, PATIENCE));
        all(&names[0], "USR1");
        all(&names[1], "USR1");
        for (name, wanted) in names.iter().zip(["False", "True"]) {
            for who in ["parent", "child"] {
                yendor.wait_for_log(name, &format!("{who} {wanted}"), PATIENCE);
            }
        }
        yendor.call(&["rm", "-f", &container]).exits(0);
    }
}

/// All or none: where the hook of one fails, none is left.
fn all_or_none(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let image = yendor.path("image");
    yendor.call(&["checkpoint", "-o", text(&image), &container, "--leave-running"]).exits(0);
    let base = yendor.fresh("none");
    let words =
        ["restore", text(&image), "-d", "--name", &base, "--count", "3", "--on-resume", "test $YENDOR_CLONE != 3"];
    let said = yendor.call(&words).exits(1).stderr;
    assert!(said.contains(&format!("{base}-3")), "{said}");
    let left = |all: &Value| all.to_string().contains(&base);
    assert!(!left(&yendor.call(&["ps", "-a", "--json"]).exits(0).json()));
    // A damaged image: the digest is compared before anything runs.
    let pages = image.join("pages-0");
    let mut bytes = fs::read(&pages).expect("pages");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pages, bytes).expect("pages");
    yendor.call(&["restore", text(&image), "-d", "--name", &base, "--count", "3"]).exits(4);
    assert!(!left(&yendor.call(&["ps", "-a", "--json"]).exits(0).json()));
}

yendor_tests::flavours! {
    several
    of_a_container
    a_family
    all_or_none
}

yendor_tests::root_and_user! {
    untouched_memory_costs_little
}
