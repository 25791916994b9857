//! Files and directories by their names, and without.

mod law;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};

use law::{Place, collect, law};
use rustix::fs::{Dir, Mode, OFlags};
use yendor_kinds::file::Record;

fn open(path: &std::path::Path, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).unwrap()
}

fn path_of(fd: &OwnedFd) -> Vec<u8> {
    match &collect(&[fd.as_fd()]).entries[0].record {
        Record::Regular(file) => file.path.0.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn renamed_files_follow_their_names() {
    let place = Place::new();
    let fd = open(&place.0.join("old"), OFlags::CREATE | OFlags::RDWR);
    std::fs::rename(place.0.join("old"), place.0.join("new\n\u{fc}")).unwrap();
    // Another file has the old name now.
    std::fs::write(place.0.join("old"), b"other").unwrap();
    let made = law(vec![fd]);
    assert!(path_of(&made[0]).ends_with("/new\n\u{fc}".as_bytes()));
}

#[test]
fn a_removed_name_of_a_file_that_has_others() {
    let place = Place::new();
    std::fs::create_dir_all(place.0.join("a/b")).unwrap();
    let fd = open(&place.0.join("first"), OFlags::CREATE | OFlags::RDWR);
    let mut file = std::fs::File::from(fd);
    file.write_all(b"content").unwrap();
    file.seek(SeekFrom::Start(3)).unwrap();
    std::fs::hard_link(place.0.join("first"), place.0.join("a/b/second")).unwrap();
    std::fs::remove_file(place.0.join("first")).unwrap();
    let made = law(vec![file.into()]);
    assert!(path_of(&made[0]).ends_with(b"/a/b/second"));
    let mut file = std::fs::File::from(made.into_iter().next().unwrap());
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "tent");
    file.write_all(b"!").unwrap();
    assert_eq!(std::fs::read(place.0.join("a/b/second")).unwrap(), b"content!");
}

#[test]
fn a_replaced_file_travels_with_the_image() {
    let place = Place::new();
    let fd = open(&place.0.join("file"), OFlags::CREATE | OFlags::RDWR);
    rustix::io::pwrite(&fd, b"mine", 1 << 20).unwrap();
    std::fs::write(place.0.join("next"), b"theirs").unwrap();
    std::fs::rename(place.0.join("next"), place.0.join("file")).unwrap();
    let image = collect(&[fd.as_fd()]);
    drop(fd);
    // Its old name is taken: it has another one when it is collected again.
    let made = image.rebuild();
    let mut text = [0u8; 9];
    assert_eq!(rustix::io::pread(&made[0], &mut text[..], 1 << 20).unwrap(), 4);
    assert_eq!(&text[..4], b"mine");
    assert_eq!(std::fs::read(place.0.join("file")).unwrap(), b"theirs");
}

#[test]
fn a_directory_goes_on_where_it_was_read() {
    let place = Place::new();
    for n in 0..300 {
        std::fs::write(place.0.join(format!("file {n}")), b"").unwrap();
    }
    let fd = open(&place.0, OFlags::RDONLY | OFlags::DIRECTORY);
    let names = |fd: &OwnedFd, most: usize| -> Vec<String> {
        let mut dir = Dir::new(rustix::io::fcntl_dupfd_cloexec(fd, 3).unwrap()).unwrap();
        let text = |e: rustix::io::Result<rustix::fs::DirEntry>| e.unwrap().file_name().to_string_lossy().into_owned();
        std::iter::from_fn(|| dir.read().map(text)).take(most).collect()
    };
    // One getdents call takes some of them, and the position moves on.
    let first = names(&fd, 1);
    let made = law(vec![fd]);
    let rest = names(&made[0], usize::MAX);
    assert!(!first.is_empty() && rest.len() < 302 && !rest.contains(&first[0]), "{first:?} {}", rest.len());
}
