//! Every target over a few thousand mutations of its seeds, the same every time. `YENDOR_SOAK` asks for more; `cargo xtask fuzz`
//! finds what this does not.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use yendor_fuzz::{TARGETS, Target, changed, seeds, seeds::Seed, target};
use yendor_tests::Dice;

/// Far longer than a target may take for all of its mutations, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn rounds() -> u64 {
    if std::env::var_os("YENDOR_SOAK").is_some() { 20_000 } else { 400 }
}

/// Runs a target over its seeds, which it must accept, and over mutations of them. Says which bytes it panicked on.
fn run(target: &'static Target, seeds: Vec<Vec<u8>>) {
    let (done, wait) = mpsc::channel();
    let begin = move || {
        for seed in &seeds {
            assert!((target.run)(seed), "{}: a seed is not accepted: {}", target.name, shown(seed));
        }
        for number in 0..rounds() {
            let mut dice = Dice::new(number);
            let Some(seed) = seeds.get(dice.below(seeds.len())) else { break };
            let bytes = changed(seed, target.shape, &mut dice);
            let caught = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(caught.is_ok(), "{}: mutation {number}: {}", target.name, shown(&bytes));
        }
        // Nobody listens any more when it took too long.
        let _ = done.send(());
    };
    let thread = std::thread::spawn(begin);
    match wait.recv_timeout(PATIENCE) {
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{}: does not end in {PATIENCE:?}", target.name),
    }
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn all(seeds: &[Seed], targets: impl Iterator<Item = &'static Target>) {
    for target in targets {
        let own: Vec<Vec<u8>> = seeds.iter().filter(|(of, ..)| of == target.name).map(|seed| seed.2.clone()).collect();
        assert!(!own.is_empty(), "{}: no seeds", target.name);
        run(target, own);
    }
}

fn is_made(target: &&Target) -> bool {
    ["image_directory", "image_manifest", "image_records", "image_snapshot", "loader_answer"].contains(&target.name)
}

#[test]
fn text_is_a_value_or_an_error() {
    let seeds = seeds::kept();
    for (of, name, _) in &seeds {
        assert!(target(of).is_some(), "{of}/{name} is a seed of no target");
    }
    all(&seeds, TARGETS.iter().filter(|target| !is_made(target)));
}

#[test]
fn an_image_is_an_image_or_an_error() {
    all(&seeds::made(&["tree", "unix-sockets", "posix-timers"]), TARGETS.iter().filter(is_made));
}

#[test]
fn targets_have_names_of_their_own() {
    let names: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len());
}

#[test]
#[should_panic(expected = "broken: mutation")]
fn a_parser_that_panics_on_some_of_them_is_found() {
    const BROKEN: Target = Target {
        name: "broken",
        shape: yendor_fuzz::Shape::Bytes,
        run: |bytes| {
            assert!(!bytes.ends_with(b"unlimited"));
            true
        },
    };
    run(&BROKEN, vec![b"Max cpu time   0   0".to_vec()]);
}
