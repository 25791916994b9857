//! Images that nobody thought of: good ones, changed at random, all digests right. The same number makes the same change.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use yendor_tests::{Dice, Machine, mutate_image, probe};

use crate::{Field, PROGRAM, nothing, root};

/// Of these probes a container consists that has something of nearly every kind.
const MENAGERIE: &[&str] = &[
    "unix-sockets",
    "pipes",
    "epoll",
    "eventfd",
    "timerfd",
    "signalfd",
    "inotify",
    "locks",
    "posix-timers",
    "shared-memory",
    "sealed",
    "cow",
    "threads",
    "sigqueue",
    "seccomp-filter",
    "landlock",
    "inet-listen",
    "multicast",
    "controls",
    "tree",
];

/// Far longer than a restore takes here, and no hang.
const PATIENCE: Duration = Duration::from_secs(30);

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|n| n.parse().unwrap_or_else(|e| panic!("{variable}={n}: {e}")))
}

fn menagerie() -> Field {
    let script: String = MENAGERIE.iter().map(|name| format!("{} & ", probe(name).display())).collect();
    Field::of(&(script + "wait"), MENAGERIE.len())
}

/// What came of some images.
#[derive(Default)]
struct Report {
    images: u64,
    /// How many ended with which exit code in which step.
    ends: BTreeMap<(i32, String), u64>,
    slowest: (Duration, u64),
    wrong: Vec<String>,
}

impl Report {
    fn add(&mut self, other: Report) {
        self.images += other.images;
        other.ends.into_iter().for_each(|(end, count)| *self.ends.entry(end).or_insert(0) += count);
        self.slowest = self.slowest.max(other.slowest);
        self.wrong.extend(other.wrong);
    }

    fn print(&self) {
        let Report { images, ends, slowest, wrong } = self;
        println!("{images} images, {} findings, slowest {slowest:?}: {ends:?}", wrong.len());
    }
}

fn restore(field: &Field, seed: u64, report: &mut Report) {
    let mut forge = field.good.clone();
    let records = mutate_image(&mut forge, &mut Dice::new(seed));
    let image = field.yendor.path(&format!("mutated-{seed}"));
    forge.write_with(&image, &records);
    field.yendor.give(&image);
    let begin = Instant::now();
    // Of what no restore can do yet, an image may hold more than a checkpoint that knows itself has written.
    let may = |code: i32, said: &str| matches!(code, 0 | 4 | 5) || code == 3 && said.contains("not supported");
    let (outcome, mut found) = field.restored(&format!("seed {seed}"), &image, &[], &may);
    let took = begin.elapsed();
    if took > PATIENCE {
        found.push(format!("seed {seed}: takes {took:?}"));
    }
    // "yendor: STEP: ...", or nothing of that sort when it was restored.
    let said = outcome.stderr.lines().find_map(|line| line.strip_prefix("yendor: ")).unwrap_or("restored");
    let step = said.split(':').next().unwrap_or("").to_owned();
    if let (false, Some(keep)) = (found.is_empty(), std::env::var_os("YENDOR_FUZZ_KEEP")) {
        fs::create_dir_all(&keep).expect("a directory of our own");
        yendor_tests::copy_image(&image, &PathBuf::from(keep).join(format!("mutated-{seed}-{}", std::process::id())));
    }
    fs::remove_dir_all(&image).expect("our own");
    found.iter().for_each(|what| println!("{what}"));
    *report.ends.entry((outcome.code, step)).or_insert(0) += 1;
    report.images += 1;
    report.slowest = report.slowest.max((took, seed));
    report.wrong.extend(found);
}

/// `YENDOR_FUZZ_IMAGES` says how many, `YENDOR_FUZZ_SEED` which is the first, `YENDOR_FUZZ_KEEP` where those are kept that do
/// harm.
#[test]
fn mutated_images_do_no_harm() {
    if !root() {
        return;
    }
    let first = number("YENDOR_FUZZ_SEED").unwrap_or(1);
    let count = number("YENDOR_FUZZ_IMAGES").unwrap_or(30);
    // Even numbers are changes of one image, odd ones of the other. The kernel makes us wait more than work.
    let workers = if count > 100 { 4 } else { 2 };
    let work = |worker: u64| {
        let field = if worker.is_multiple_of(2) { Field::of(PROGRAM, 1) } else { menagerie() };
        let mut report = Report::default();
        for seed in (first..first + count).filter(|seed| seed % workers == worker) {
            restore(&field, seed, &mut report);
            if report.images.is_multiple_of(100) {
                report.print();
            }
            if report.wrong.len() > 20 {
                break;
            }
        }
        report
    };
    let machine = Machine::now();
    let mut all = Report::default();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        for worker in started {
            all.add(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    all.print();
    all.wrong.extend(machine.differs(&Machine::now()));
    nothing(&all.wrong);
    assert_eq!(all.images, count);
}
