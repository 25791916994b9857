//! Images that are right, and writers that do not get to the end.

mod sample;

use sample::{Scratch, page, read, records, write};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::SystemTime;
use yendor_image::{Digest, Error, Kind, Reader, Writer, is_partial};

#[test]
fn what_is_written_is_read_back_from_a_descriptor_alone() {
    let scratch = Scratch::new();
    let manifest = write(&scratch.image());
    let (found, back) = read(&scratch.image()).unwrap();
    assert_eq!((found, back), (manifest.clone(), records()));
    assert_eq!((manifest.created, manifest.generation, manifest.kind), (1_767_225_600, 3, Kind::Container));
    let names: Vec<_> = manifest.files.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["empty", "pages-0", "pages-1", "records.cbor"]);

    let dir = OwnedFd::from(std::fs::File::open(scratch.image()).unwrap());
    std::fs::rename(scratch.image(), scratch.0.join("elsewhere")).unwrap();
    let reader = Reader::open(dir).unwrap();
    let (mut file, bytes) = reader.open_file("pages-1").unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!((bytes, content), (4096, page(3)));
    assert!(reader.has("pages-1") && !reader.has("pages-2") && !reader.has("format"));
    assert!(matches!(reader.open_file("../image/format"), Err(Error::Missing { .. })));
    assert!(matches!(reader.verify("nothing"), Err(Error::Missing { .. })));
}

#[test]
fn equal_images_are_equal_bytes_and_private() {
    let (one, two) = (Scratch::new(), Scratch::new());
    write(&one.image());
    write(&two.image());
    assert_eq!(std::fs::metadata(one.image()).unwrap().mode() & 0o7777, 0o700);
    for name in ["format", "manifest.json", "records.cbor", "pages-0", "pages-1", "empty"] {
        let path = one.image().join(name);
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(two.image().join(name)).unwrap(), "{name}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600, "{name}");
    }
    assert_eq!(one.names(), ["image"]);
}

#[test]
fn digests_are_those_of_the_whole_content_however_it_was_written() {
    let scratch = Scratch::new();
    let content: Vec<u8> =
        (0..1_000_000u32).map(|at| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    let writer = Writer::create(&scratch.image()).unwrap();
    let mut small = writer.file("small-steps").unwrap();
    let mut large = writer.file("one-step").unwrap();
    for chunk in content.chunks(777) {
        small.write_all(chunk).unwrap();
    }
    large.write_all(&content).unwrap();
    small.finish().unwrap();
    large.finish().unwrap();
    let mut raw = writer.raw("raw").unwrap();
    raw.write_all(&content).unwrap();
    writer.adopt("raw").unwrap();
    writer.records(&()).unwrap();
    let manifest = writer.commit(SystemTime::now()).unwrap();
    for name in ["small-steps", "one-step", "raw"] {
        let entry = manifest.file(name).unwrap();
        assert_eq!((entry.bytes, entry.blake3), (1_000_000, Digest::of(&content)), "{name}");
    }
    Reader::open(&scratch.image()).unwrap().verify_all().unwrap();
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let scratch = Scratch::new();
    let writer = Writer::create(&scratch.image()).unwrap();
    let mut file = writer.file("pages-0").unwrap();
    file.write_all(&page(0)).unwrap();
    drop(file);
    let _raw = writer.raw("pages-1").unwrap();
    writer.records(&records()).unwrap();
    assert_eq!(scratch.names().len(), 1);
    drop(writer);
    assert!(scratch.names().is_empty());
}

#[test]
fn what_a_killed_writer_leaves_is_no_image_and_in_nobodys_way() {
    let scratch = Scratch::new();
    let writer = Writer::create(&scratch.image()).unwrap();
    writer.records(&records()).unwrap();
    std::mem::forget(writer); // as kill -9 would
    let [left] = &scratch.names()[..] else { panic!("{:?}", scratch.names()) };
    assert!(is_partial(left.as_ref()) && !is_partial("image".as_ref()));
    assert!(matches!(Reader::open(&scratch.0.join(left)), Err(Error::Missing { .. })));
    assert!(matches!(Reader::open(&scratch.image()), Err(Error::Missing { .. })));
    // Its lock is held still: it may be alive, and the next one has another name.
    write(&scratch.image());
    read(&scratch.image()).unwrap();
    assert_eq!(scratch.names().len(), 2);
}

#[test]
fn what_a_killed_writer_leaves_goes_with_the_next_image_of_that_name() {
    let scratch = Scratch::new();
    for left in [".image.partial-1", ".image.partial-99-3", ".other.partial-1"] {
        std::fs::create_dir(scratch.0.join(left)).unwrap();
        std::fs::write(scratch.0.join(left).join("records.cbor"), b"half").unwrap();
    }
    let first = Writer::create(&scratch.image()).unwrap();
    assert_eq!(scratch.names().len(), 2, "{:?}", scratch.names());
    // A writer that lives is let be.
    let second = Writer::create(&scratch.image()).unwrap();
    assert_eq!(scratch.names().len(), 3, "{:?}", scratch.names());
    for writer in [&first, &second] {
        writer.records(&records()).unwrap();
    }
    second.commit(SystemTime::now()).unwrap();
    assert!(matches!(first.commit(SystemTime::now()), Err(Error::Exists { .. })));
    let mut names = scratch.names();
    names.sort();
    assert_eq!(names, [".other.partial-1", "image"]);
}

#[test]
fn a_commit_that_cannot_be_leaves_nothing() {
    let scratch = Scratch::new();
    type Fill = fn(&Writer);
    let cases: [(&str, Fill); 4] = [
        ("no records", |_| {}),
        ("file not finished", |writer| {
            writer.records(&()).unwrap();
            drop(writer.file("pages-0").unwrap());
        }),
        ("raw not adopted", |writer| {
            writer.records(&()).unwrap();
            drop(writer.raw("pages-0").unwrap());
        }),
        ("written to after it was adopted", |writer| {
            writer.records(&()).unwrap();
            let mut raw = writer.raw("pages-0").unwrap();
            writer.adopt("pages-0").unwrap();
            raw.write_all(b"more").unwrap();
        }),
    ];
    for (case, fill) in cases {
        let writer = Writer::create(&scratch.image()).unwrap();
        fill(&writer);
        let error = writer.commit(SystemTime::now()).unwrap_err();
        assert!(matches!(error, Error::Missing { .. } | Error::Unfinished { .. }), "{case}: {error}");
        assert!(scratch.names().is_empty(), "{case}");
    }
}

#[test]
fn a_place_that_is_taken_stays_as_it_is() {
    let scratch = Scratch::new();
    let taken = |path: &std::path::Path| matches!(Writer::create(path), Err(Error::Exists { .. }));
    write(&scratch.image());
    let before = std::fs::read(scratch.image().join("manifest.json")).unwrap();
    assert!(taken(&scratch.image()));
    std::fs::write(scratch.0.join("file"), "").unwrap();
    assert!(taken(&scratch.0.join("file")));
    symlink("nowhere", scratch.0.join("link")).unwrap();
    assert!(taken(&scratch.0.join("link")));
    assert_eq!(std::fs::read(scratch.image().join("manifest.json")).unwrap(), before);

    // Taken while we were writing: by a directory with content, by a file, by a link.
    for case in 0..3 {
        let late = scratch.0.join("late");
        let writer = Writer::create(&late).unwrap();
        writer.records(&()).unwrap();
        match case {
            0 => {
                std::fs::create_dir(&late).unwrap();
                std::fs::write(late.join("precious"), "x").unwrap();
            }
            1 => std::fs::write(&late, "precious").unwrap(),
            _ => symlink("image", &late).unwrap(),
        }
        assert!(matches!(writer.commit(SystemTime::now()), Err(Error::Exists { .. })), "{case}");
        match case {
            0 => {
                assert_eq!(std::fs::read(late.join("precious")).unwrap(), b"x");
                std::fs::remove_dir_all(&late).unwrap();
            }
            1 => {
                assert_eq!(std::fs::read(&late).unwrap(), b"precious");
                std::fs::remove_file(&late).unwrap();
            }
            _ => std::fs::remove_file(&late).unwrap(),
        }
        assert_eq!(scratch.names(), ["file", "image", "link"]);
    }

    let empty = scratch.0.join("empty");
    std::fs::create_dir(&empty).unwrap();
    write(&empty);
    read(&empty).unwrap();
}

#[test]
fn names_that_are_paths_or_reserved_are_refused() {
    let scratch = Scratch::new();
    let writer = Writer::create(&scratch.image()).unwrap();
    let long = "a".repeat(65);
    for name in ["", ".", "..", ".a", "../a", "a/b", "/a", "A", "a_b", "a b", "a\0", "\u{e9}", &long] {
        assert!(matches!(writer.file(name), Err(Error::Name { .. })), "{name:?}");
        assert!(matches!(writer.raw(name), Err(Error::Name { .. })), "{name:?}");
    }
    for name in ["format", "manifest.json", "records.cbor"] {
        assert!(matches!(writer.file(name), Err(Error::Name { .. })), "{name}");
    }
    writer.file("layer.tar").unwrap().finish().unwrap();
    assert!(matches!(writer.raw("layer.tar"), Err(Error::Exists { .. })));
    writer.records(&()).unwrap();
    assert!(matches!(writer.records(&()), Err(Error::Exists { .. })));
    assert!(matches!(writer.adopt("nothing"), Err(Error::Missing { .. })));
    assert!(matches!(Writer::create("/".as_ref()), Err(Error::Name { .. })));
    assert!(matches!(Writer::create(&scratch.0.join(".hidden")), Err(Error::Name { .. })));
    let nowhere = Writer::create(&scratch.0.join("no/where")).unwrap_err();
    assert!(matches!(nowhere, Error::Io { op: "open", .. }) && !nowhere.is_damage());
}

#[test]
fn a_disk_that_is_full_leaves_nothing() {
    // A file size limit acts like a full disk, for this process alone and without mounting anything; the signal must be
    // ignored for the call to come back. A child does it, because limits are the whole process's.
    if let Ok(dir) = std::env::var("YENDOR_IMAGE_FULL_DISK") {
        let writer = Writer::create(dir.as_ref()).unwrap();
        let mut file = writer.file("pages-0").unwrap();
        let written = file.write_all(&vec![7; 1 << 20]).and_then(|()| file.flush());
        assert!(written.is_err());
        drop(file);
        assert!(matches!(writer.commit(SystemTime::now()), Err(Error::Unfinished { .. })));
        return;
    }
    let scratch = Scratch::new();
    let test = std::env::current_exe().unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" --exact a_disk_that_is_full_leaves_nothing"])
        .arg(test)
        .env("YENDOR_IMAGE_FULL_DISK", scratch.image())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert!(scratch.names().is_empty());
}

#[test]
fn a_partial_directory_that_cannot_be_made_is_said() {
    let scratch = Scratch::new();
    let name = "x".repeat(250); // the hidden name is longer than names may be
    assert!(matches!(Writer::create(&scratch.0.join(name)), Err(Error::Io { op: "mkdir", .. })));
    assert!(scratch.names().is_empty());
}

#[test]
fn an_amended_image_takes_the_place_of_the_first_at_once() {
    let scratch = Scratch::new();
    let writer = Writer::create(&scratch.image()).unwrap();
    let mut pages = writer.file("pages-1").unwrap();
    pages.write_all(&page(3)).unwrap();
    pages.finish().unwrap();
    writer.records("first").unwrap();
    let first = writer.durable(SystemTime::UNIX_EPOCH, |_| Ok(Some(b"one".to_vec()))).unwrap().publish().unwrap();
    let said = || Reader::open(&*scratch.image()).unwrap().records::<String>().unwrap();
    assert_eq!(said(), "first");

    // One that is given up leaves the first as it is.
    let given_up = writer.amended().unwrap();
    given_up.records("never").unwrap();
    assert_eq!(scratch.names().len(), 2);
    drop(given_up);
    assert_eq!((said(), scratch.names()), ("first".into(), vec!["image".to_owned()]));

    // Nor can one be made without records.
    let without = writer.amended().unwrap();
    assert!(matches!(without.commit(SystemTime::UNIX_EPOCH), Err(Error::Missing { .. })));
    assert_eq!(said(), "first");

    // Another that was put in its place meanwhile is not ours to take away.
    let late = writer.amended().unwrap();
    late.records("late").unwrap();
    let moved = scratch.0.join("moved");
    std::fs::rename(scratch.image(), &moved).unwrap();
    std::fs::create_dir(scratch.image()).unwrap();
    std::fs::write(scratch.image().join("another's"), b"x").unwrap();
    assert!(matches!(late.commit(SystemTime::UNIX_EPOCH), Err(Error::Io { op: "exchange", .. })));
    assert!(scratch.image().join("another's").exists());
    assert_eq!(Reader::open(&*moved).unwrap().records::<String>().unwrap(), "first");
    std::fs::remove_dir_all(scratch.image()).unwrap();
    std::fs::rename(&moved, scratch.image()).unwrap();

    let inode = || std::fs::metadata(scratch.image().join("pages-1")).unwrap().ino();
    let before = inode();
    let amended = writer.amended().unwrap();
    amended.records("second").unwrap();
    let second = amended.commit(SystemTime::UNIX_EPOCH).unwrap();
    drop(writer);
    assert_eq!((said(), scratch.names()), ("second".into(), vec!["image".to_owned()]));
    assert_eq!(inode(), before, "the same file by one more name");
    assert!(!scratch.image().join("manifest.json.minisig").exists() && first != second);
    Reader::open(&*scratch.image()).unwrap().verify("pages-1").unwrap();
}
