//! `checkpoint --leave-running`: large memory is read while the program goes on, from a copy that fork makes. The probe
//! `writer` writes all the time and finds what is not of one instant.

use std::fs;
use std::path::Path;
use std::time::Duration;

use yendor_tests::{Flavour, PATIENCE, Random, Started, Yendor, lead_a_session, probe, rounds, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Processes called as a copy is.
fn copies() -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let comm = |path: &Path| fs::read_to_string(path.join("comm")).unwrap_or_default();
    processes.filter(|path| comm(path) == "yendor-scratch\n").map(|path| path.display().to_string()).collect()
}

/// A checkpoint of what runs on; it must have been read later.
fn read_later(yendor: &Yendor, what: &[&str], image: &Path) {
    let words = [&["checkpoint", "--json", "--leave-running", "-o", text(image)], what].concat();
    let json = yendor.call(&words).exits(0).json();
    let bytes = json["read_later"].as_u64().expect("a number");
    // The memory of both processes but for what they share, and what fork does not copy.
    assert!(bytes > 40 << 20, "{json}");
}

/// What was taken goes on from its instant and finds nothing wrong.
fn lives(yendor: &Yendor, image: &Path) {
    let restored = yendor.fresh("copy");
    yendor.restore(image, &restored);
    std::thread::sleep(Duration::from_millis(100));
    yendor.kill(&restored, "USR1");
    assert_eq!(yendor.wait(&restored), 0, "{}", yendor.logs(&restored));
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
        // Nothing is left of it but the child that the program itself has made.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("children");
        assert_eq!(children.split_whitespace().count(), 1, "{children}; {:?}", copies());
        lives(&yendor, &image);
    }
    assert!(started.ended(Duration::ZERO).is_none(), "{}", said());
    started.kill();
}

yendor_tests::flavours! {
    of_one_instant
    a_tree_of_one_instant
}
