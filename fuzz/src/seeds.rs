//! What fuzzing begins with: a few bytes for each target that it accepts.

use std::fs;
use std::path::{Path, PathBuf};

use yendor_image::upgrade::Version;
use yendor_image::{Digest, FORMAT_FILE, FileEntry, Kind, Limits, MANIFEST_FILE, Manifest, RECORDS_FILE, cbor};
use yendor_kinds::snapshot::Snapshot;
use yendor_tests::{Flavour, PATIENCE, Yendor, probe};

/// A seed: the name of its target, a name of its own, and its bytes.
pub type Seed = (String, String, Vec<u8>);

/// The seeds in files.
///
/// # Panics
/// They cannot be read.
#[must_use]
pub fn kept() -> Vec<Seed> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let list = |path: &Path| -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = fs::read_dir(path).expect("seeds").map(|e| e.expect("a seed").path()).collect();
        paths.sort_unstable();
        paths
    };
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let of = |directory: &PathBuf| list(directory).into_iter().map(|path| (name(directory), path)).collect::<Vec<_>>();
    let files = list(&top).iter().flat_map(of).collect::<Vec<_>>();
    files.into_iter().map(|(target, path)| (target, name(&path), fs::read(&path).expect("a seed"))).collect()
}

/// Probes whose records have something of every sort that fuzzing should know of.
pub const PROBES: &[&str] = &[
    "tree",
    "unix-sockets",
    "threads",
    "pipes",
    "epoll",
    "inotify",
    "posix-timers",
    "locks",
    "shared-memory",
    "seccomp-filter",
    "landlock",
    "tty",
    "inet-listen",
    "sigqueue",
    "regular",
    "eventfd",
    "timerfd",
    "signalfd",
    "sealed",
    "cwd-deleted",
    "orphan",
    "creds",
];

/// Seeds of what the format makes too unwieldy to keep in files: records and what goes with them, of these probes, checkpointed
/// now.
///
/// # Panics
/// A checkpoint fails.
#[must_use]
pub fn made(probes: &[&str]) -> Vec<Seed> {
    let yendor = Yendor::new(Flavour::user()).expect("any account will do");
    let mut seeds = Vec::new();
    for name in probes {
        let container = yendor.fresh(name);
        let program = probe(name);
        let program = program.to_str().expect("paths of tests are UTF-8");
        yendor.run_detached_with(&container, &["-e", "PROBE_SET_NAMES=1"], &[program]).exits(0);
        yendor.wait_for_log(&container, "ready", PATIENCE);
        let image = yendor.path(name);
        yendor.checkpoint(&container, &image);
        yendor.call(&["rm", "--force", &container]).exits(0);
        of_image(name, &image, &mut seeds);
    }
    seeds
}

fn of_image(name: &str, image: &Path, seeds: &mut Vec<Seed>) {
    let read = |file: &str| fs::read(image.join(file)).expect("a file of an image");
    let document = read(RECORDS_FILE);
    let snapshot: Snapshot = cbor::decode(&document, &Limits::default()).expect("our own records");
    let bytes = u64::try_from(document.len()).expect("a length");
    let files = vec![FileEntry {
        name: RECORDS_FILE.into(),
        bytes,
        blake3: Digest::of(&document),
        content: None,
        compressed: None,
    }];
    let bare = Manifest { created: 1, generation: 1, kind: Kind::Container, encryption: None, files };
    let body = sealed_part(&bare.encode(Version::V1).expect("a manifest"));
    let whole = [(0, read(FORMAT_FILE)), (0x81, body), (2, document.clone())];
    let whole = whole.iter().flat_map(|(which, content)| piece(*which, content)).collect();
    let mut seed = |target: &str, bytes: Vec<u8>| seeds.push((target.to_owned(), name.to_owned(), bytes));
    seed("image_directory", whole);
    seed("image_manifest", sealed_part(&read(MANIFEST_FILE)));
    seed("loader_answer", answer(&(Version::V1.line().to_vec(), &bare, &snapshot, None::<String>)));
    seed("image_records", document.clone());
    seed("image_snapshot", document);
}

/// What the seal of a manifest covers.
fn sealed_part(document: &[u8]) -> Vec<u8> {
    let seal = b",\n  \"blake3\": \"";
    let at = document.windows(seal.len()).rposition(|window| window == seal).expect("a seal");
    document[..at].to_vec()
}

/// A piece of what [`crate::image::directory`] reads.
fn piece(which: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a length").to_le_bytes();
    [&[which], &length[..], content].concat()
}

/// As `postcard` writes what [`yendor_engine::load::decode`] reads.
fn answer(value: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_stdvec(&Ok::<_, ()>(value)).expect("an answer")
}
