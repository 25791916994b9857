//! `checkpoint --parent`: memory that an earlier image has is not written again, and either image can be removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use yendor_tests::{Flavour, PATIENCE, Yendor, copy_image, probe, rounds, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// A checkpoint of a container that runs on; what it says of itself.
fn checkpoint(yendor: &Yendor, container: &str, image: &Path, parent: Option<&Path>) -> Value {
    let mut words = vec!["checkpoint", "--json", "--leave-running", "-o", text(image), container];
    words.extend(parent.iter().flat_map(|parent| ["--parent", text(parent)]));
    yendor.call(&words).exits(0).json()
}

/// Holds 48 MiB that nothing else holds, changes one page in a hundred of it at SIGUSR2, and says at SIGUSR1 what it is.
const HOLDER: &str = "
import hashlib, os, signal, time
held, round = bytearray(os.urandom(48 << 20)), 0
def change(*_):
    global round
    round += 1
    for page in range(round, len(held) >> 12, 100):
        held[page << 12] = (held[page << 12] + 1) & 255
    print('changed', round, flush=True)
signal.signal(signal.SIGUSR2, change)
signal.signal(signal.SIGUSR1, lambda *_: print('digest', hashlib.sha256(held).hexdigest(), round, flush=True))
print('ready', flush=True)
while True:
    time.sleep(1000)
";

fn digest(yendor: &Yendor, container: &str, round: usize) -> String {
    let said = |log: &str| {
        let last = log.lines().rfind(|line| line.starts_with("digest"))?;
        last.ends_with(&format!(" {round}")).then(|| last.to_owned())
    };
    yendor.kill(container, "USR1");
    let mut found = None;
    wait_until(PATIENCE, || {
        found = said(&yendor.logs(container));
        found.is_some()
    });
    found.unwrap_or_else(|| panic!("no digest: {}", yendor.logs(container)))
}

fn holder(yendor: &Yendor) -> String {
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", HOLDER]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

/// Of what has changed little is written little; the first image is gone when the second is restored.
fn little_that_changed(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let (first, second) = (yendor.path("first"), yendor.path("second"));
    let whole = checkpoint(&yendor, &container, &first, None);
    assert_eq!(whole["shared"], 0, "{whole}");
    yendor.kill(&container, "USR2");
    yendor.wait_for_log(&container, "changed 1", PATIENCE);
    let little = checkpoint(&yendor, &container, &second, Some(&first));
    assert!(little["shared"].as_u64().expect("a number") > 45 << 20, "{little}");
    assert!(little["phases"]["parent_us"].as_u64().is_some_and(|us| us > 0), "{little}");
    let size = |image: &Path| fs::metadata(image.join("pages-0")).expect("pages").len();
    assert!(size(&second) * 20 < size(&first), "{} of {}", size(&second), size(&first));
    // One file, two names.
    let shared = fs::metadata(second.join("pages-1")).expect("shared pages");
    assert_eq!((shared.nlink(), shared.ino()), (2, fs::metadata(first.join("pages-0")).expect("pages").ino()));
    let expected = digest(&yendor, &container, 1);
    yendor.call(&["rm", "-f", &container]).exits(0);
    fs::remove_dir_all(&first).expect("an image of our own");
    let restored = yendor.fresh("again");
    yendor.restore(&second, &restored);
    assert_eq!(digest(&yendor, &restored, 1), expected);
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

/// A long chain, each image the parent of the next and gone soon after; what comes of it lives on.
fn a_chain(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("writer");
    yendor.run_detached(&container, &[text(&probe("writer"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = |round: u64| yendor.path(&format!("image-{round}"));
    let last = rounds(10, 40);
    for round in 0..=last {
        let parent = round.checked_sub(1).map(image);
        checkpoint(&yendor, &container, &image(round), parent.as_deref());
        if let Some(old) = round.checked_sub(2) {
            fs::remove_dir_all(image(old)).expect("an image of our own");
        }
    }
    // Files of which little is needed are not kept, and never many.
    let files = fs::read_dir(image(last)).expect("an image").flatten();
    let pages: Vec<u64> = files
        .filter(|file| file.file_name().to_string_lossy().starts_with("pages-"))
        .map(|file| file.metadata().expect("stat").len())
        .collect();
    let first = fs::metadata(image(last).join("pages-0")).expect("pages").len();
    assert!(pages.len() <= 16 && pages.iter().sum::<u64>() <= 3 * (first + (24 << 20)), "{pages:?}");
    for round in [last, last - 1] {
        let restored = yendor.fresh("copy");
        yendor.restore(&image(round), &restored);
        std::thread::sleep(Duration::from_millis(100));
        yendor.kill(&restored, "USR1");
        let code = yendor.wait(&restored);
        assert_eq!(code, 0, "{}", yendor.logs(&restored));
        yendor.call(&["rm", &restored]).exits(0);
    }
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

/// Twenty increments of one image: what is restored of any is what was then, whether the others are there or not.
fn twenty_in_a_row(flavour: Flavour) {
    const LAST: usize = 20;
    let Some(yendor) = Yendor::new(flavour) else { return };
    // One sort for each flavour: each takes a while.
    let track = matches!(yendor.flavour(), Flavour::User(_));
    let container = yendor.fresh("holder");
    yendor.run_detached(&container, &["python3", "-c", &HOLDER.replace("48 << 20", "12 << 20")]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = |round: usize| yendor.path(&format!("image-{track}-{round}"));
    let mut expected = BTreeMap::new();
    for round in 0..=LAST {
        if [0, 1, LAST / 2, LAST - 1, LAST].contains(&round) {
            expected.insert(round, digest(&yendor, &container, round));
        }
        let (to, before) = (image(round), round.checked_sub(1).map(image));
        let mut words = vec!["checkpoint", "--json", "--leave-running", "-o", text(&to), &container];
        match &before {
            _ if track => words.push("--track"),
            Some(before) => words.extend(["--parent", text(before)]),
            None => {}
        }
        let json = yendor.call(&words).exits(0).json();
        let shared = json["shared"].as_u64().expect("a number");
        assert!(round == 0 || shared > 10 << 20, "{round}: {json}");
        if round < LAST {
            yendor.kill(&container, "USR2");
            yendor.wait_for_log(&container, &format!("changed {}", round + 1), PATIENCE);
        }
    }
    yendor.call(&["rm", "-f", &container]).exits(0);
    for round in (0..=LAST).filter(|round| !expected.contains_key(round)) {
        fs::remove_dir_all(image(round)).expect("an image of our own");
    }
    for (round, expected) in expected {
        let restored = yendor.fresh("again");
        yendor.restore(&image(round), &restored);
        assert_eq!(digest(&yendor, &restored, round), expected, "{round}, tracked: {track}");
        yendor.call(&["rm", "-f", &restored]).exits(0);
        fs::remove_dir_all(image(round)).expect("an image of our own");
    }
}

/// Written anew, an image has its own pages and no others, whatever becomes of those that it shared them with.
fn flattened(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let image = |round: u32| yendor.path(&format!("image-{round}"));
    let mut expected = String::new();
    for round in 0..3u32 {
        expected = digest(&yendor, &container, round as usize);
        let parent = round.checked_sub(1).map(image);
        checkpoint(&yendor, &container, &image(round), parent.as_deref());
        yendor.kill(&container, "USR2");
        yendor.wait_for_log(&container, &format!("changed {}", round + 1), PATIENCE);
    }
    yendor.call(&["rm", "-f", &container]).exits(0);
    let whole = yendor.path("whole");
    yendor.call(&["flatten", text(&image(2)), "-o", text(&whole)]).exits(0);
    yendor.call(&["flatten", text(&image(2))]).exits(2);
    yendor.call(&["flatten", text(&image(2)), "-o", text(&whole)]).exits(1);
    let bytes = |image: &Path, name: &str| fs::metadata(image.join(name)).map_or(0, |file| file.len());
    assert!(bytes(&image(2), "pages-2") > 0 && !whole.join("pages-1").exists());
    assert!(bytes(&whole, "pages-0") < bytes(&image(0), "pages-0") + (1 << 20));
    let shown = |image: &Path| {
        let words = ["inspect", "--tree", "--files", "--security", text(image)];
        yendor.call(&words).exits(0).stdout.replace(text(image), "")
    };
    let (before, after) = (shown(&image(2)), shown(&whole));
    let details =
        |text: &str| text.lines().skip_while(|line| !line.contains("python3")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(details(&before), details(&after));
    for round in 0..3 {
        fs::remove_dir_all(image(round)).expect("an image of our own");
    }
    let restored = yendor.fresh("again");
    yendor.restore(&whole, &restored);
    assert_eq!(digest(&yendor, &restored, 2), expected);
    yendor.kill(&restored, "USR2");
    yendor.wait_for_log(&restored, "changed 3", PATIENCE);
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

/// What is restored from such an image has it as a parent again.
fn generations(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut container = holder(&yendor);
    let mut parent = None;
    for round in 1..=3 {
        yendor.kill(&container, "USR2");
        yendor.wait_for_log(&container, &format!("changed {round}"), PATIENCE);
        let expected = digest(&yendor, &container, round);
        let image = yendor.path(&format!("image-{round}"));
        let json = checkpoint(&yendor, &container, &image, parent.as_deref());
        let shared = json["shared"].as_u64().expect("a number");
        assert_eq!(shared > 45 << 20, round > 1, "{json}");
        yendor.call(&["rm", "-f", &container]).exits(0);
        container = yendor.fresh("next");
        yendor.restore(&image, &container);
        assert_eq!(digest(&yendor, &container, round), expected);
        parent = Some(image);
    }
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// Another program's image helps nothing, and nothing of what that program had goes into this one's.
fn of_another_program(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let first = yendor.path("first");
    checkpoint(&yendor, &container, &first, None);
    yendor.call(&["rm", "-f", &container]).exits(0);
    let sleeper = yendor.fresh("sleeper");
    yendor.run_detached(&sleeper, &["sleep", "1000"]);
    let (alone, beside) = (yendor.path("alone"), yendor.path("beside"));
    checkpoint(&yendor, &sleeper, &alone, None);
    let json = checkpoint(&yendor, &sleeper, &beside, Some(&first));
    assert_eq!(json["shared"], 0, "{json}");
    let size = |image: &Path| fs::metadata(image.join("pages-0")).expect("pages").len();
    assert!(!beside.join("pages-1").exists() && size(&beside) == size(&alone));
    fs::remove_dir_all(&first).expect("an image of our own");
    yendor.call(&["rm", "-f", &sleeper]).exits(0);
    yendor.restore(&beside, &sleeper);
    yendor.call(&["rm", "-f", &sleeper]).exits(0);
}

/// A directory for everybody on another file system than a path's.
fn other_file_system(path: &Path) -> &'static Path {
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    let places = ["/dev/shm", "/tmp", "/var/tmp"].map(Path::new);
    places.into_iter().find(|place| device(place) != device(path)).expect("two file systems")
}

/// A parent that is missing, damaged, locked, elsewhere or open to others is refused by name; the program does not notice.
fn bad_parents(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = holder(&yendor);
    let image = yendor.path("image");
    checkpoint(&yendor, &container, &image, None);
    let next = yendor.path("next");
    let refused = |parent: &str, code: i32, says: &[&str]| {
        let words = ["checkpoint", "--leave-running", "-o", text(&next), &container, "--parent", parent];
        let said = yendor.call(&words).exits(code).stderr;
        assert!(says.iter().all(|what| said.contains(what)), "{parent}: {said}");
        assert!(!next.exists(), "{parent}");
    };
    refused("never-made", 1, &["never-made"]);
    let nowhere = yendor.path("nowhere");
    refused(text(&nowhere), 1, &[text(&nowhere)]);
    for (name, change) in [("flipped", 1u8), ("short", 0)] {
        let bad = yendor.path(name);
        copy_image(&image, &bad);
        yendor.give(&bad);
        let pages = bad.join("pages-0");
        let mut content = fs::read(&pages).expect("read");
        if change == 0 {
            content.truncate(content.len() - 4096);
        } else {
            let middle = content.len() / 2;
            content[middle] ^= change;
        }
        fs::write(&pages, content).expect("write");
        refused(text(&bad), 4, &[text(&bad), "pages-0"]);
    }
    let elsewhere = other_file_system(&image).join(yendor.fresh("parent"));
    copy_image(&image, &elsewhere);
    yendor.give(&elsewhere);
    refused(text(&elsewhere), 3, &["file system", text(&elsewhere)]);
    fs::remove_dir_all(&elsewhere).expect("an image of our own");
    let open = yendor.path("open");
    copy_image(&image, &open);
    yendor.give(&open);
    fs::set_permissions(open.join("pages-0"), PermissionsExt::from_mode(0o666)).expect("chmod");
    refused(text(&open), 3, &["somebody else", text(&open)]);
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let locked = yendor.path("locked");
    let words = ["checkpoint", "--leave-running", "-o", text(&locked), &container, "--encrypt-to", &recipient];
    yendor.call(&words).exits(0);
    refused(text(&locked), 3, &["encrypted", text(&locked)]);
    let both = [&words[..], &["--parent", text(&image)]].concat();
    yendor.call(&both).exits(2);
    yendor.kill(&container, "USR2");
    yendor.wait_for_log(&container, "changed 1", PATIENCE);
    yendor.call(&["rm", "-f", &container]).exits(0);
}

yendor_tests::flavours! {
    little_that_changed
    generations
    flattened
    of_another_program
    bad_parents
}

yendor_tests::root_and_user! {
    a_chain
    twenty_in_a_row
}
