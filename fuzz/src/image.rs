//! What an image consists of.

use std::cell::OnceCell;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use yendor_engine::load::{Glance, Loaded, check, decode, open_directory};
use yendor_engine::sign::Trust;
use yendor_image::upgrade::Version;
use yendor_image::{Codec, Compressed, Digest, FileEntry, Kind, Limits, Manifest, Reader};
use yendor_image::{FORMAT_FILE, MANIFEST_FILE, RECORDS_FILE, SIGNATURE_FILE};
use yendor_image::{cbor, manifest as seals, pages_name};
use yendor_kinds::snapshot::Snapshot;

/// `records.cbor`: refused, or the only spelling of a value.
pub fn records(document: &[u8]) -> bool {
    let limits = Limits::default();
    match cbor::decode::<ciborium::Value>(document, &limits) {
        Ok(value) => assert_eq!(cbor::encode(&value, &limits).expect("what was decoded"), document),
        Err(error) => {
            assert!(error.is_damage(), "{error}");
            return false;
        }
    }
    true
}

/// The same as what it stands for: refused, or a snapshot whose claims can be checked and planned.
pub fn snapshot(document: &[u8]) -> bool {
    let limits = Limits::default();
    let Ok(snapshot) = cbor::decode::<Snapshot>(document, &limits) else { return false };
    assert_eq!(cbor::encode(&snapshot, &limits).expect("what was decoded"), document);
    check::check(&snapshot, &listing_pages()).is_ok()
}

/// A table of contents in which every run of pages that is checked against it can be.
fn listing_pages() -> Manifest {
    let pages = (0..4).map(|n| (pages_name(n), 1 << 30));
    let files =
        pages.map(|(name, bytes)| FileEntry { name, bytes, blake3: Digest::of(b""), content: None, compressed: None });
    Manifest { created: 0, generation: 0, kind: Kind::Container, encryption: None, files: files.collect() }
}

/// `format` and `manifest.json`: as they come, and with a right seal, which nobody would guess.
pub fn manifest(bytes: &[u8]) -> bool {
    if let Err(error) = Version::parse(bytes) {
        assert!(error.is_damage(), "{error}");
    }
    let mut accepted = false;
    for document in [bytes.to_vec(), seals::seal(Version::V1, bytes)] {
        match Manifest::decode(&document, Version::V1, &Limits::default()) {
            Ok(manifest) => {
                assert_eq!(manifest.encode(Version::V1).expect("what was decoded"), document);
                assert!(manifest.files.iter().all(|entry| yendor_image::is_file_name(&entry.name)));
                accepted = true;
            }
            Err(error) => assert!(error.is_damage(), "{error}"),
        }
    }
    accepted
}

/// A public key, as minisign prints it.
const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

/// `manifest.json.minisig`: of a document that nobody has signed, so denied whatever it is.
pub fn signature(bytes: &[u8]) -> bool {
    let trust = Trust { caller: vec![KEY.into()], ..Trust::default() };
    assert!(trust.check(b"nobody's", Some(bytes)).is_err());
    // A key comes from a file of the caller's, but a file all the same.
    let key = String::from_utf8_lossy(bytes);
    yendor_engine::sign::key_line(&key).is_some()
}

/// What a loader sends that an image has taken over.
pub fn answer(bytes: &[u8]) -> bool {
    drop(decode::<(Glance, Digest)>(bytes));
    drop(decode::<Manifest>(bytes));
    let Ok(loaded) = decode::<Loaded>(bytes) else { return false };
    // An image whose files are not there: every claim of the records is looked at before.
    in_our_directory(|place| {
        for name in NAMES.iter().filter_map(|name| name()) {
            let _ = fs::remove_file(place.join(name));
        }
        assert!(loaded.open(open_directory(place).expect("a directory of our own"), None).is_err());
    });
    true
}

/// A compressed file: its codec, four bytes of how much is in it, and its bytes, as they come and with right digests, which nobody
/// would guess.
pub fn blocks(bytes: &[u8]) -> bool {
    const MOST: u32 = 1 << 20;
    let Some(([codec, content @ ..], file)) = bytes.split_first_chunk::<5>() else { return false };
    let codec = if codec & 1 == 0 { Codec::Lz4 } else { Codec::Zstd };
    let content = u64::from(u32::from_le_bytes(*content) % MOST);
    let decoded = |file: &[u8]| {
        let bytes = u64::try_from(file.len()).expect("a length");
        let compressed = Some(Compressed { codec, content });
        let entry = FileEntry { name: "a".into(), bytes, blake3: Digest::of(b""), content: None, compressed };
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let [from, to] = [(); 2].map(|()| fs::File::from(rustix::fs::memfd_create("fuzz", flags).expect("memfd")));
        from.write_all_at(file, 0).expect("memory");
        let done = yendor_image::decode(&entry, &from, (0, 1), &to);
        let there = to.metadata().expect("fstat").len();
        match &done {
            Ok(()) => assert_eq!(there, content),
            Err(error) => assert!(error.is_damage() && there <= content, "{error}"),
        }
        assert!(done.is_err() || yendor_image::find_damage(&entry, &from).is_ok());
        done.is_ok()
    };
    let sealed = sealed(file);
    decoded(file) | decoded(&sealed)
}

/// With the right digest before each frame, as far as there are frames.
fn sealed(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let mut rest = &mut file[..];
    while let Some((head, tail)) = rest.split_first_chunk_mut::<24>() {
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = *head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).map_or(tail.len(), |n| n.min(tail.len()));
        let (frame, tail) = tail.split_at_mut(length);
        head[16..].copy_from_slice(&Digest::of(frame).0[..8]);
        rest = tail;
    }
    file
}

/// The files that [`directory`] writes, by number.
const NAMES: [fn() -> Option<String>; 5] = [
    || Some(FORMAT_FILE.into()),
    || Some(MANIFEST_FILE.into()),
    || Some(RECORDS_FILE.into()),
    || Some(SIGNATURE_FILE.into()),
    || Some(pages_name(0)),
];

/// A whole image: pieces of a byte (the number of the file, 0x80 for a manifest that is to be sealed), four bytes of length, and
/// content. Read as a restore reads it.
pub fn directory(bytes: &[u8]) -> bool {
    in_our_directory(|place| {
        let mut there: Vec<String> = Vec::new();
        let mut rest = bytes;
        while let Some(([which, length @ ..], tail)) = rest.split_first_chunk::<5>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).map_or(tail.len(), |n| n.min(tail.len()));
            let (content, tail) = tail.split_at(length);
            rest = tail;
            let Some(name) = NAMES.get(usize::from(which & 0x7f)).and_then(|name| name()) else { continue };
            let sealed = (which & 0x80 != 0).then(|| seals::seal(Version::V1, content));
            fs::write(place.join(&name), sealed.as_deref().unwrap_or(content)).expect("a file of our own");
            there.push(name);
        }
        let accepted = read(place);
        for name in there {
            // The same file may have been written twice.
            let _ = fs::remove_file(place.join(name));
        }
        accepted
    })
}

fn read(place: &Path) -> bool {
    let reader = match Reader::open(place) {
        Ok(reader) => reader,
        Err(error) => {
            assert!(error.is_damage(), "{error}");
            return false;
        }
    };
    for error in [reader.verify_all().err(), reader.records::<Snapshot>().err()].into_iter().flatten() {
        assert!(error.is_damage(), "{error}");
    }
    true
}

/// Calls with a directory that this thread alone writes to and that goes with it.
fn in_our_directory<T>(call: impl FnOnce(&Path) -> T) -> T {
    struct Place(PathBuf);
    impl Drop for Place {
        fn drop(&mut self) {
            // Nobody can be told when a thread ends, and it is in a directory for what may be lost.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
    thread_local!(static PLACE: OnceCell<Place> = const { OnceCell::new() });
    PLACE.with(|place| {
        let place = place.get_or_init(|| {
            let memory = Path::new("/dev/shm");
            let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
            let id = format!("yendor-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
            let path = parent.join(id);
            fs::create_dir(&path).expect("make a directory of our own");
            Place(path)
        });
        call(&place.0)
    })
}
