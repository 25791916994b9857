//! `run --checkpoint-every`: a container that can be had again after a crash.

use std::fs;

use yendor_tests::{Flavour, PATIENCE, Yendor, wait_until};

const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";

/// The images of a container in the store, and whether each can be read.
fn images(yendor: &Yendor, container: &str) -> Vec<String> {
    let all = yendor.call(&["images", "--json"]).exits(0).json();
    let all = all.as_array().expect("a list").iter();
    let own = all.filter(|image| image["error"].is_null()).filter_map(|image| image["image"].as_str());
    own.filter(|image| image.starts_with(&format!("{container}@"))).map(str::to_owned).collect()
}

/// The last number that it has counted to, and the first.
fn counted(log: &str) -> (u64, u64) {
    let numbers: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
    (numbers.first().copied().unwrap_or(0), numbers.last().copied().unwrap_or(0))
}

fn guards(container: &str) -> usize {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = all.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let ours = format!("guard\0{container}\0");
    lines.filter(|line| String::from_utf8_lossy(line).contains(&ours)).count()
}

/// The container is gone from one moment to the next; the newest image goes on where it was, and there are no more images than asked for.
fn after_a_crash(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("counter");
    let options = ["--checkpoint-every", "300ms", "--keep-last", "2", "--track"];
    yendor.run_detached_with(&container, &options, &["sh", "-c", COUNTER]).exits(0);
    // Until it has executed its program it looks like its parent.
    assert!(wait_until(PATIENCE, || guards(&container) == 1));
    let newest = |n: usize| format!("{container}@{n}");
    let log = || fs::read_to_string(yendor.path(&format!("run/{container}/guard.log"))).unwrap_or_default();
    assert!(wait_until(PATIENCE, || images(&yendor, &container).contains(&newest(5))), "{}", log());
    let before = counted(&yendor.logs(&container)).1;
    assert_eq!(log(), "");
    yendor.call(&["rm", "-f", &container]).exits(0);
    assert!(wait_until(PATIENCE, || guards(&container) == 0));
    let left = images(&yendor, &container);
    assert!((1..=2).contains(&left.len()), "{left:?}");
    let words = ["restore", &container, "-d", "--checkpoint-every", "300ms", "--keep-last", "1"];
    yendor.call(&words).exits(0);
    yendor.will_remove(&container);
    assert!(wait_until(PATIENCE, || counted(&yendor.logs(&container)).1 > before));
    let (first, _) = counted(&yendor.logs(&container));
    assert!(first > 1, "it has begun anew");
    // The guard of a restored container has images of its own; the older ones are not its business.
    assert!(wait_until(PATIENCE, || images(&yendor, &container).iter().any(|image| !left.contains(image))));
    yendor.call(&["rm", "-f", &container]).exits(0);
    assert!(wait_until(PATIENCE, || guards(&container) == 0));
    assert!(left.iter().all(|image| images(&yendor, &container).contains(image)));
    for image in images(&yendor, &container) {
        yendor.call(&["rmi", &image]).exits(0);
    }
}

/// A guard removes what it has made, and nothing that somebody else has made, whatever it is called.
fn images_of_others(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("counter");
    let options = ["--checkpoint-every", "1s", "--keep-last", "1"];
    yendor.run_detached_with(&container, &options, &["sh", "-c", COUNTER]).exits(0);
    let newest = || images(&yendor, &container).last().cloned();
    let mut own = None;
    for _ in 0..20 {
        assert!(wait_until(PATIENCE, || newest().is_some()));
        let Some(guards) = newest() else { continue };
        let gone = yendor.call(&["rmi", &guards]).code == 0;
        let made = yendor.call(&["checkpoint", &container, "--leave-running"]).exits(0).stdout.trim().to_owned();
        if gone && made == guards {
            own = Some(made);
            break;
        }
        yendor.call(&["rmi", &made]);
    }
    let own = own.expect("the same number again");
    let number = |image: &str| image.rsplit_once('@').and_then(|(_, n)| n.parse::<u32>().ok()).expect("a number");
    assert!(wait_until(PATIENCE, || newest().is_some_and(|image| number(&image) > number(&own) + 3)));
    assert!(images(&yendor, &container).contains(&own), "{own}");
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// Checkpoints of one container wait for each other.
fn side_by_side(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("counter");
    yendor.run_detached(&container, &["sh", "-c", COUNTER]);
    let start = |_| yendor.command(&["-q", "checkpoint", &container, "--leave-running"]).spawn().expect("spawn");
    let all: Vec<_> = (0..5).map(start).collect();
    for mut checkpoint in all {
        assert_eq!(checkpoint.wait().expect("wait").code(), Some(0));
    }
    assert_eq!(images(&yendor, &container).len(), 5);
    yendor.call(&["rm", "-f", &container]).exits(0);
}

/// What hinders a checkpoint is said, and the container runs on.
fn that_cannot_be(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("refused");
    let program = "import socket, time; s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); print('ready', flush=True); time.sleep(1000)";
    yendor.run_detached(&container, &["python3", "-c", program]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let mut command = yendor.command(&["guard", &container, "--every", "100ms"]);
    let mut guard = command.stderr(yendor.output("said")).stdout(yendor.output("said")).spawn().expect("spawn");
    let said = || fs::read_to_string(yendor.path("said")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("not supported")), "{}", said());
    assert!(guard.try_wait().expect("wait").is_none());
    yendor.call(&["rm", "-f", &container]).exits(0);
    assert!(wait_until(PATIENCE, || guard.try_wait().expect("wait").is_some()), "{}", said());
    assert_eq!(guard.wait().expect("wait").code(), Some(0), "{}", said());
    assert_eq!(images(&yendor, &container), [""; 0]);
    yendor.call(&["guard", &container]).exits(1);
    yendor.call(&["run", "--keep-last", "2", "--", "true"]).exits(2);
    yendor.call(&["run", "--checkpoint-every", "soon", "--", "true"]).exits(2);
}

yendor_tests::flavours! {
    after_a_crash
    images_of_others
    side_by_side
    that_cannot_be
}
