//! `checkpoint --track`: what was not written since an image is neither read nor written by the next checkpoint.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use yendor_tests::{Flavour, PATIENCE, Random, Started, Yendor, copy_image, probe, rounds, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn checkpoint(yendor: &Yendor, container: &str, image: &Path, options: &[&str]) -> Value {
    let words = ["checkpoint", "--json", "-o", text(image), container];
    yendor.call(&[&words[..], options].concat()).exits(0).json()
}

const TRACK: &[&str] = &["--leave-running", "--track"];
const VERIFY: &[&str] = &["--leave-running", "--track", "--verify-delta"];

fn number(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap_or_else(|| panic!("{name}: {json}"))
}

fn notes(json: &Value) -> String {
    json["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

/// Mappings of the container's tasks that are tracked.
fn tracked(yendor: &Yendor) -> usize {
    let of = |pid: &i32| {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let is = |line: &&str| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "uw");
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            assert!(!text(&link).contains("userfaultfd") || is_keeper(*pid), "{pid} has {}", entry.path().display());
        }
        smaps.lines().filter(is).count()
    };
    yendor.tasks_left().iter().map(of).sum()
}

fn is_keeper(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.windows(6).any(|word| word == b"keeper"))
}

/// Holds 48 MiB that nothing else holds, changes one page in a hundred of it at SIGUSR2, and says at SIGUSR1 what it is.
const HOLDER: &str = "
import hashlib, mmap, os, signal, sys, time
held, round = mmap.mmap(-1, 48 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
held[:] = os.urandom(48 << 20)
kept = []
def direct():
    open('/tmp/direct', 'wb').write(bytes(4096))
    try: kept.append(os.open('/tmp/direct', os.O_RDONLY | os.O_DIRECT))
    except OSError: print('refused', flush=True)
def change(*_):
    global round
    round += 1
    for page in range(round, len(held) >> 12, 100):
        held[page << 12] = (held[page << 12] + 1) & 255
    eval(sys.argv[round])
    print('changed', round, flush=True)
signal.signal(signal.SIGUSR2, change)
signal.signal(signal.SIGUSR1, lambda *_: print('digest', hashlib.sha256(held).hexdigest(), round, flush=True))
print('ready', flush=True)
while True:
    time.sleep(1000)
";

/// What it does at each change beside.
fn holder(yendor: &Yendor, besides: &[&str]) -> String {
    let container = yendor.fresh("holder");
    let nothing = ["None"; 8];
    yendor.run_detached(&container, &[&["python3", "-c", HOLDER], besides, &nothing].concat());
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn change(yendor: &Yendor, container: &str, round: usize) {
    yendor.kill(container, "USR2");
    yendor.wait_for_log(container, &format!("changed {round}"), PATIENCE);
}

fn digest(yendor: &Yendor, container: &str, round: usize) -> String {
    yendor.kill(container, "USR1");
    let mut found = None;
    wait_until(PATIENCE, || {
        let log = yendor.logs(container);
        found = log.lines().rfind(|line| line.starts_with("digest")).map(str::to_owned);
        found.as_ref().is_some_and(|last| last.ends_with(&format!(" {round}")))
    });
    found.filter(|last| last.ends_with(&format!(" {round}"))).unwrap_or_else(|| panic!("{}", yendor.logs(container)))
}

/// An image goes on from where it was taken.
fn lives(yendor: &Yendor, image: &Path, expected: &str, round: usize) {
    let restored = yendor.fresh("again");
    yendor.restore(image, &restored);
    assert_eq!(digest(yendor, &restored, round), expected);
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

/// Of what has changed little is read, and little written; each image is whole, and each goes when the next is there.
fn little_is_read(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor, &[]);
    let image = |round: usize| yendor.path(&format!("image-{round}"));
    let first = checkpoint(&yendor, &container, &image(0), TRACK);
    assert_eq!((number(&first, "unread"), number(&first, "tracked"), number(&first, "shared")), (0, 1, 0), "{first}");
    assert!(tracked(&yendor) > 0);
    for round in 1..=3 {
        change(&yendor, &container, round);
        let expected = digest(&yendor, &container, round);
        let named = ["--parent", text(&image(round - 1)), "--leave-running", "--track"].map(str::to_owned);
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        let options = [VERIFY, &named, TRACK][round - 1];
        let json = checkpoint(&yendor, &container, &image(round), options);
        assert_eq!((notes(&json), number(&json, "tracked")), (String::new(), 1), "{json}");
        assert!(number(&json, "unread") > 45 << 20 && number(&json, "shared") > 45 << 20, "{json}");
        let verified = if round == 1 { number(&json, "unread") } else { 0 };
        assert_eq!(number(&json, "verified"), verified, "{json}");
        let size = |image: &Path, name: &str| fs::metadata(image.join(name)).expect("pages").len();
        let written = size(&image(round), "pages-0") + size(&image(round), "pages-1");
        assert!(written < 12 << 20, "{written}");
        // A file that has one name less is compared with its digest: it is right.
        fs::remove_dir_all(image(round - 1)).expect("an image of our own");
        lives(&yendor, &image(round), &expected, round);
    }
    // The last one ends it, and need not read either.
    change(&yendor, &container, 4);
    let expected = digest(&yendor, &container, 4);
    let json = checkpoint(&yendor, &container, &image(4), &[]);
    assert!(number(&json, "unread") > 45 << 20 && number(&json, "tracked") == 0, "{json}");
    lives(&yendor, &image(4), &expected, 4);
}

/// Only the very image that memory was tracked for is trusted, and only as long as it is what it was.
fn no_other_parent(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor, &[]);
    let path = |name: &str| yendor.path(name);
    let mut round = 0;
    let mut after = |name: &str, spoil: &dyn Fn(&Path) -> Vec<&'static str>| -> Result<Value, String> {
        let (parent, image) = (path(&format!("{name}-parent")), path(name));
        let armed = checkpoint(&yendor, &container, &parent, &["--leave-running", "--track", "--no-parent"]);
        assert_eq!((number(&armed, "tracked"), number(&armed, "unread")), (1, 0), "{armed}");
        round += 1;
        change(&yendor, &container, round);
        let expected = digest(&yendor, &container, round);
        let mut words = vec!["checkpoint", "--json", "-o", text(&image), &container, "--leave-running"];
        let more = spoil(&parent);
        let found = text(&parent).to_owned();
        words.extend(more.iter().map(|word| if *word == "PARENT" { found.as_str() } else { word }));
        let said = yendor.call(&words);
        // Whatever becomes of it, nothing is tracked any more: nobody has asked for it.
        assert_eq!(tracked(&yendor), 0, "{name}");
        if said.code == 4 {
            assert!(!image.exists());
            return Err(said.stderr);
        }
        let json = said.exits(0).json();
        lives(&yendor, &image, &expected, round);
        Ok(json)
    };
    let unread = |json: &Value| number(json, "unread");
    let alter = |parent: &Path| {
        let file = fs::OpenOptions::new().read(true).write(true).open(parent.join("pages-0")).expect("pages");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 9 << 20).expect("read");
        file.write_all_at(&[byte[0] ^ 1], 9 << 20).expect("write");
    };
    let json = after("same", &|_| vec![]).expect("an image");
    assert!(unread(&json) > 45 << 20, "{json}");
    let json = after("unwanted", &|_| vec!["--no-parent"]).expect("an image");
    assert_eq!((unread(&json), number(&json, "shared")), (0, 0), "{json}");
    let json = after("altered", &|parent| {
        alter(parent);
        vec![]
    })
    .expect("an image");
    assert!(unread(&json) == 0 && notes(&json).contains("damaged"), "{json}");
    let said = after("named", &|parent| {
        alter(parent);
        vec!["--parent", "PARENT"]
    })
    .expect_err("it is damaged");
    assert!(said.contains("named-parent"), "{said}");
    let json = after("missing", &|parent| {
        fs::remove_dir_all(parent).expect("an image of our own");
        vec![]
    })
    .expect("an image");
    assert!(unread(&json) == 0 && notes(&json).contains("no image"), "{json}");
    // Another image of the same program, which is as good as any parent.
    let other = yendor.path("same");
    let json = after("other", &|parent| {
        fs::remove_dir_all(parent).expect("an image of our own");
        fs::rename(&other, parent).expect("rename");
        vec!["--parent", "PARENT"]
    })
    .expect("an image");
    assert!(unread(&json) == 0 && number(&json, "shared") > 40 << 20, "{json}");
    assert!(notes(&json).contains("is not the image"), "{json}");
    // The same image, but not the same files: they are compared.
    let json = after("copied", &|parent| {
        let copy = parent.with_extension("copy");
        copy_image(parent, &copy);
        fs::remove_dir_all(parent).expect("an image of our own");
        fs::rename(&copy, parent).expect("rename");
        vec![]
    })
    .expect("an image");
    assert!(unread(&json) > 45 << 20, "{json}");
}

/// What happens to a program between two checkpoints: what nobody can be sure of is read.
fn what_happens_meanwhile(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    // (What it does, whether what was tracked is used still, whether it is tracked afterwards.)
    let cases = [
        (
            "kept.append(mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).write(os.urandom(8 << 20)))",
            true,
            1,
        ),
        ("held.resize(64 << 20)", false, 1),
        ("held.madvise(mmap.MADV_DONTNEED, 0, 8 << 20)", true, 1),
        ("os.fork() or time.sleep(1000)", false, 0),
        ("direct()", false, 0),
        ("os.execvp('python3', ['python3', '-c', sys.orig_argv[2], *['None'] * 9])", false, 1),
    ];
    for (what, used, after) in cases {
        let container = holder(&yendor, &[what]);
        let (parent, image) = (yendor.path("parent"), yendor.path("image"));
        checkpoint(&yendor, &container, &parent, TRACK);
        yendor.kill(&container, "USR2");
        let done =
            || yendor.logs(&container).contains("changed 1") || yendor.logs(&container).matches("ready").count() > 1;
        assert!(wait_until(PATIENCE, done), "{what}: {}", yendor.logs(&container));
        let round = usize::from(yendor.logs(&container).contains("changed 1"));
        let expected = digest(&yendor, &container, round);
        let json = checkpoint(&yendor, &container, &image, VERIFY);
        if yendor.logs(&container).contains("refused") {
            yendor_tests::skipped("a file system without O_DIRECT");
        } else {
            assert_eq!(number(&json, "unread") > 35 << 20, used, "{what}: {json}");
            assert_eq!(number(&json, "tracked"), after, "{what}: {json}");
        }
        lives(&yendor, &image, &expected, round);
        yendor.call(&["rm", "-f", &container]).exits(0);
        [parent, image].iter().for_each(|image| fs::remove_dir_all(image).expect("an image of our own"));
    }
}

/// Memory that is written, moved, dropped and protected all the time, over a chain of images.
fn a_chain(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = yendor.fresh("writer");
    yendor.run_detached(&container, &[text(&probe("writer")), "alone"]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = |round: u64| -> PathBuf { yendor.path(&format!("image-{round}")) };
    let ends_well = |container: &str| {
        yendor.kill(container, "USR1");
        assert_eq!(yendor.wait(container), 0, "{}", yendor.logs(container));
    };
    let last = rounds(3, 20);
    for round in 0..=last {
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        let how = [VERIFY, &["--leave-running", "--track", "--rounds", "2"]][usize::from(round % 5 == 4)];
        let json = checkpoint(&yendor, &container, &image(round), how);
        assert_eq!((notes(&json), number(&json, "tracked")), (String::new(), 1), "{json}");
        if let Some(old) = round.checked_sub(2) {
            fs::remove_dir_all(image(old)).expect("an image of our own");
        }
        let restored = yendor.fresh("copy");
        yendor.restore(&image(round), &restored);
        std::thread::sleep(Duration::from_millis(100));
        ends_well(&restored);
        yendor.call(&["rm", &restored]).exits(0);
    }
    ends_well(&container);
}

/// SIGKILL for the checkpoint at any instant: the program goes on, and so do its images.
fn killed_at_any_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = holder(&yendor, &[]);
    let image = yendor.path("image-0");
    let words = ["checkpoint", "--leave-running", "--track", "-o", text(&image), &container];
    let begin = Instant::now();
    yendor.call(&words).exits(0);
    let duration = u64::try_from(begin.elapsed().as_micros()).expect("a short time");
    for round in 1..=rounds(8, 200) {
        let image = yendor.path(&format!("image-{round}"));
        let words = ["checkpoint", "--leave-running", "--track", "-o", text(&image), &container];
        let mut started = Started::new(yendor.command(&words).stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(Duration::from_micros(random.below(duration)));
        started.kill();
    }
    change(&yendor, &container, 1);
    let expected = digest(&yendor, &container, 1);
    for name in ["last", "very-last"] {
        let image = yendor.path(name);
        checkpoint(&yendor, &container, &image, VERIFY);
        lives(&yendor, &image, &expected, 1);
    }
    let json = checkpoint(&yendor, &container, &yendor.path("compressed"), &["--leave-running", "--compress", "lz4"]);
    assert_eq!(notes(&json), "memory is not tracked any longer: a compressed image ends that");
    assert_eq!(tracked(&yendor), 0);
}

yendor_tests::flavours! {
    little_is_read
    killed_at_any_instant
}

yendor_tests::root_and_user! {
    what_happens_meanwhile
    no_other_parent
    a_chain
}
