//! Images that are not right: each is an error that says so, never a panic, never other data.

mod sample;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use sample::{Records, Scratch, read, records, write};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use yendor_image::upgrade::Version;
use yendor_image::{Digest, Error, Limits, Manifest, Reader};

const FILES: [&str; 6] = ["format", "manifest.json", "records.cbor", "pages-0", "pages-1", "empty"];

fn damaged(path: &Path, what: &str) -> Error {
    let error = read(path).expect_err(what);
    assert!(error.is_damage(), "{what}: {error}");
    error
}

/// Writes `content` to the file `name` and makes size, digest and seal right for it.
fn forge(image: &Path, name: &str, content: &[u8]) {
    let mut manifest = Reader::open(image).unwrap().manifest().clone();
    fs::write(image.join(name), content).unwrap();
    let entry = manifest.files.iter_mut().find(|entry| entry.name == name).unwrap();
    entry.bytes = u64::try_from(content.len()).unwrap();
    entry.blake3 = Digest::of(content);
    fs::write(image.join("manifest.json"), manifest.encode(Version::V1).unwrap()).unwrap();
}

#[test]
fn every_truncation_of_every_file() {
    let scratch = Scratch::new();
    write(&scratch.image());
    for name in FILES {
        let path = scratch.image().join(name);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = damaged(&scratch.image(), name);
            assert!(
                matches!(&error, Error::Truncated { file, offset } if file == name && *offset == cut as u64),
                "{name} cut at {cut}: {error}"
            );
        }
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(read(&scratch.image()).unwrap().1, records());
}

#[test]
fn every_flipped_bit_of_every_file() {
    let scratch = Scratch::new();
    write(&scratch.image());
    for name in FILES {
        let path = scratch.image().join(name);
        let whole = fs::read(&path).unwrap();
        // In place: a file that is truncated and written anew costs a disk a thousand times as much.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let put = |at: usize, byte: u8| file.write_all_at(&[byte], at.try_into().unwrap()).unwrap();
        for (at, &byte) in whole.iter().enumerate() {
            // All bits of the small files, one of each byte of a page.
            let bits = if name.starts_with("pages") { at % 8..at % 8 + 1 } else { 0..8 };
            for bit in bits {
                put(at, byte ^ 1 << bit);
                damaged(&scratch.image(), &format!("{name} byte {at} bit {bit}"));
            }
            put(at, byte);
        }
    }
    assert_eq!(read(&scratch.image()).unwrap().1, records());
}

#[test]
fn a_file_that_is_missing_or_longer_is_named() {
    let scratch = Scratch::new();
    write(&scratch.image());
    for name in FILES {
        let path = scratch.image().join(name);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(damaged(&scratch.image(), name), Error::Missing { file } if file == name));
        fs::write(&path, [&whole[..], b"\n"].concat()).unwrap();
        let error = damaged(&scratch.image(), name);
        assert!(error.to_string().starts_with(name), "{name}: {error}");
        fs::write(&path, &whole).unwrap();
    }
    fs::write(scratch.image().join("unlisted"), "never read").unwrap();
    assert_eq!(read(&scratch.image()).unwrap().1, records());
}

#[test]
fn two_files_that_changed_places() {
    let scratch = Scratch::new();
    write(&scratch.image());
    let other = Scratch::new();
    write(&other.image());
    forge(&other.image(), "pages-1", &sample::page(9));
    fs::copy(other.image().join("pages-1"), scratch.image().join("pages-1")).unwrap();
    assert!(matches!(damaged(&scratch.image(), "swapped"), Error::Digest { file, .. } if file == "pages-1"));
}

#[test]
fn a_future_version_is_said() {
    let scratch = Scratch::new();
    write(&scratch.image());
    fs::write(scratch.image().join("format"), "yendor image 2\n").unwrap();
    let error = damaged(&scratch.image(), "version 2");
    assert!(matches!(error, Error::Version { found: 2 }));
    assert_eq!(error.to_string(), "format: image version 2 is unknown, this program reads versions up to 1");
}

#[test]
fn nothing_but_regular_files_is_opened() {
    let scratch = Scratch::new();
    write(&scratch.image());
    for name in FILES {
        let path = scratch.image().join(name);
        let aside = scratch.0.join("aside");
        fs::rename(&path, &aside).unwrap();
        for case in 0..5 {
            match case {
                0 => symlink(&aside, &path).unwrap(), // to the very same content
                1 => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
                2 => fs::create_dir(&path).unwrap(),
                3 => drop(UnixListener::bind(&path).unwrap()),
                _ => symlink("/dev/zero", &path).unwrap(),
            }
            let image = scratch.image();
            let (done, wait) = mpsc::channel();
            std::thread::spawn(move || done.send(read(&image).map(drop)));
            let result = wait.recv_timeout(Duration::from_secs(20)).expect("a reader that hangs");
            assert!(matches!(&result, Err(Error::Format { file, .. }) if file == name), "{name} {case}: {result:?}");
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
    }
    read(&scratch.image()).unwrap();
}

#[test]
fn sizes_that_are_claimed_take_no_memory() {
    let scratch = Scratch::new();
    write(&scratch.image());
    let whole = fs::read(scratch.image().join("manifest.json")).unwrap();
    for bytes in [1 << 40, 1 << 63, u64::MAX] {
        for name in ["pages-0", "records.cbor"] {
            let mut manifest = Manifest::decode(&whole, Version::V1, &Limits::default()).unwrap();
            manifest.files.iter_mut().find(|entry| entry.name == name).unwrap().bytes = bytes;
            fs::write(scratch.image().join("manifest.json"), manifest.encode(Version::V1).unwrap()).unwrap();
            assert!(matches!(damaged(&scratch.image(), name), Error::Truncated { file, .. } if file == name));
        }
    }
    // Files that really have the size, but no content.
    fs::write(scratch.image().join("manifest.json"), &whole).unwrap();
    for name in ["format", "manifest.json"] {
        let path = scratch.image().join(name);
        let before = fs::read(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(damaged(&scratch.image(), name), Error::TooLarge { file, .. } if file == name));
        fs::write(&path, before).unwrap();
    }
    let mut manifest = Manifest::decode(&whole, Version::V1, &Limits::default()).unwrap();
    manifest.files.iter_mut().find(|entry| entry.name == "records.cbor").unwrap().bytes = 1 << 40;
    fs::write(scratch.image().join("manifest.json"), manifest.encode(Version::V1).unwrap()).unwrap();
    OpenOptions::new().write(true).open(scratch.image().join("records.cbor")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(damaged(&scratch.image(), "sparse"), Error::TooLarge { file, .. } if file == "records.cbor"));
}

#[test]
fn records_with_a_right_digest_are_still_not_believed() {
    let scratch = Scratch::new();
    write(&scratch.image());
    let whole = fs::read(scratch.image().join("records.cbor")).unwrap();
    for cut in 0..whole.len() {
        forge(&scratch.image(), "records.cbor", &whole[..cut]);
        damaged(&scratch.image(), &format!("records cut at {cut}"));
    }
    forge(&scratch.image(), "records.cbor", &[&whole[..], &[0]].concat());
    damaged(&scratch.image(), "a byte behind the records");
    // A flipped bit with a right digest may be another right document; it must not be a panic, and never the
    // same records in another spelling.
    let limits = Limits::default();
    for at in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        match yendor_image::cbor::decode::<Records>(&flipped, &limits) {
            Ok(other) => assert_ne!(other, records(), "bit {at}"),
            Err(error) => assert!(error.is_damage(), "bit {at}: {error}"),
        }
    }
}

#[test]
fn page_runs_outside_their_file() {
    let scratch = Scratch::new();
    write(&scratch.image());
    let change = |name: &str, edit: fn(&mut Records)| {
        let mut changed = records();
        edit(&mut changed);
        let document = yendor_image::cbor::encode(&changed, &Limits::default()).unwrap();
        forge(&scratch.image(), "records.cbor", &document);
        damaged(&scratch.image(), name)
    };
    change("too long", |records| records.tasks[0].runs[0].pages = 3);
    change("2^63", |records| records.tasks[0].runs[0].pages = 1 << 63);
    change("behind the end", |records| records.tasks[0].runs[0].offset = 8192);
    let error = change("no such file", |records| records.tasks[0].runs[0].file = 77);
    assert!(matches!(error, Error::Missing { file } if file == "pages-77"));
}

#[test]
fn no_image_at_all() {
    let scratch = Scratch::new();
    assert!(matches!(damaged(&scratch.image(), "nothing"), Error::Missing { .. }));
    fs::write(scratch.image(), "a file").unwrap();
    assert!(matches!(damaged(&scratch.image(), "file"), Error::Format { .. }));
    let file = fs::File::open(scratch.image()).unwrap();
    assert!(Reader::open(std::os::fd::OwnedFd::from(file)).unwrap_err().is_damage());
    assert!(matches!(damaged(&scratch.0, "empty directory"), Error::Missing { file } if file == "format"));
}
