//! `checkpoint --leave-running`: large memory is read while the program goes on, from a copy that fork makes. The probe
//! `writer` writes all the time and finds what is not of one instant.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use yendor_tests::{Flavour, PATIENCE, Random, Started, Yendor, kill, lead_a_session, probe, rounds, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// What copies are called that processes of a test have as children, dead ones too.
fn copies(yendor: &Yendor) -> usize {
    all_copies(yendor).len()
}

fn copy_of(yendor: &Yendor) -> Option<libc::pid_t> {
    all_copies(yendor).first().copied()
}

fn all_copies(yendor: &Yendor) -> Vec<libc::pid_t> {
    let children =
        |pid: &libc::pid_t| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all: String = yendor.tasks_left().iter().map(children).collect();
    let comm = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    all.split_whitespace().filter(|pid| comm(pid) == "yendor-scratch\n").flat_map(str::parse).collect()
}

/// A checkpoint of what runs on; it must have been read later.
fn read_later(yendor: &Yendor, what: &[&str], image: &Path) {
    let words = [&["checkpoint", "--json", "--leave-running", "-o", text(image)], what].concat();
    let json = yendor.call(&words).exits(0).json();
    let bytes = json["read_later"].as_u64().expect("a number");
    // Much of the memory of both processes: a thread may have just begun.
    assert!(bytes > 20 << 20, "{json}");
}

/// What was taken goes on from its instant and finds nothing wrong.
fn lives(yendor: &Yendor, image: &Path) {
    let restored = yendor.fresh("copy");
    yendor.restore(image, &restored);
    std::thread::sleep(Duration::from_millis(100));
    yendor.kill(&restored, "USR1");
    let code = yendor.wait(&restored);
    let said = fs::read_to_string(yendor.path("output")).unwrap_or_default() + &yendor.logs(&restored);
    assert_eq!(code, 0, "{said}");
    yendor.call(&["rm", &restored]).exits(0);
}

fn of_one_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = yendor.fresh("writer");
    yendor.run_detached(&container, &[text(&probe("writer"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    for round in 0..rounds(3, 100) {
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        let image = yendor.path(&format!("image-{round}"));
        read_later(&yendor, &[&container], &image);
        lives(&yendor, &image);
        fs::remove_dir_all(&image).expect("an image of our own");
    }
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

fn a_tree_of_one_instant(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut command = yendor.program(&probe("writer"));
    command.env("TMPDIR", yendor.path("tmp")).stdout(yendor.output("output")).stderr(yendor.output("output"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let pid = started.pid();
    for round in 0..3 {
        let image = yendor.path(&format!("image-{round}"));
        read_later(&yendor, &["--pid", &pid.to_string()], &image);
        assert_eq!(copies(&yendor), 0);
        lives(&yendor, &image);
    }
    assert!(started.ended(Duration::ZERO).is_none(), "{}", said());
    started.kill();
}

/// Where copies may take no memory, or are killed for it, the tasks wait; the image is as good.
fn without_copies(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("writer");
    yendor.run_detached(&container, &[text(&probe("writer"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("image");
    let words = ["checkpoint", "--json", "--leave-running", "-o", text(&image), &container];
    let json = yendor.call(&[&words[..], &["--max-extra-memory", "0"]].concat()).exits(0).json();
    assert_eq!(json["read_later"], 0, "{json}");
    lives(&yendor, &image);
    let mut killed = 0;
    for _ in 0..20 {
        fs::remove_dir_all(&image).expect("an image of our own");
        let mut command = yendor.command(&words);
        let mut started = Started::new(command.stdout(yendor.output("json")).stderr(yendor.output("json")));
        let copy = || copy_of(&yendor);
        if wait_until(PATIENCE, || copy().is_some() || started.ended(Duration::ZERO).is_some())
            && let Some(copy) = copy()
        {
            kill(copy);
            killed += 1;
        }
        let said = || fs::read_to_string(yendor.path("json")).unwrap_or_default();
        let code = started.ended(PATIENCE).map(Started::code);
        assert_eq!(code, Some(0), "{}", said());
        if killed > 2 {
            break;
        }
    }
    assert!(killed > 0, "no copy was seen");
    lives(&yendor, &image);
    assert_eq!(copies(&yendor), 0);
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

/// SIGKILL for the checkpoint, mostly while it reads from copies: they go with it, and the next one finds nothing of them.
fn killed_while_it_reads(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let container = yendor.fresh("writer");
    yendor.run_detached(&container, &[text(&probe("writer"))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("image");
    let begin = Instant::now();
    read_later(&yendor, &[&container], &image);
    let duration = u64::try_from(begin.elapsed().as_micros()).expect("a short time");
    for _ in 0..rounds(10, 200) {
        // What the last one has made, or not.
        let _ = fs::remove_dir_all(&image);
        let mut command = yendor.command(&["checkpoint", "--leave-running", "-o", text(&image), &container]);
        let mut started = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(Duration::from_micros(random.below(duration)));
        started.kill();
    }
    let _ = fs::remove_dir_all(&image);
    read_later(&yendor, &[&container], &image);
    let tree = yendor.call(&["inspect", "--tree", text(&image)]).exits(0).stdout;
    assert!(!tree.contains("scratch") && !tree.contains("zombie"), "{tree}");
    lives(&yendor, &image);
    assert_eq!(copies(&yendor), 0);
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

yendor_tests::flavours! {
    killed_while_it_reads
    without_copies
    of_one_instant
    a_tree_of_one_instant
}
