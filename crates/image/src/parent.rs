//! An earlier image: pages that it has need not be written again.
//!
//! Pages are found by what they hold, never by what the earlier image says of them: its records are not read, and a hash is a
//! hint only. What is found is compared, byte by byte, so the new image is right whatever the other one claims.

use crate::reader::HASH_BYTES;
use crate::tree::Tree;
use crate::{Digest, Error, FileEntry, PAGE_BYTES, PageRun, Reader, Result, Writer, pages_name};
use rustc_hash::{FxBuildHasher, FxHashMap};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hash::BuildHasher;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const PAGE: usize = 4096;
/// How many pages can be found by what they hold (28 GiB): their index is in memory, 17 to 34 bytes for each. Others are found
/// where they follow one that was found.
const MOST_PAGES: usize = (1 << 23) / 8 * 7;
/// How much of a file is read at once: who finds a page asks for the next one then.
const WINDOW: usize = 16 * PAGE;

/// The pages of an earlier image.
#[derive(Debug)]
pub struct Parent {
    directory: OwnedFd,
    files: Vec<Earlier>,
    /// By their hashes; of pages with equal hashes the first.
    index: FxHashMap<u64, Place>,
}

#[derive(Debug)]
struct Earlier {
    entry: FileEntry,
    /// What lies on the disk.
    stored: File,
    /// What is in it.
    content: File,
    /// What it is made of, where its image says so.
    tree: Option<Tree>,
}

impl Earlier {
    /// All files of pages of an image that is not encrypted, in the order of their numbers. Somebody has decoded those that are
    /// compressed.
    fn all(reader: &Reader) -> impl Iterator<Item = Result<Earlier>> + '_ {
        let mut trees = None;
        entries(reader).zip(0..).map(move |(entry, number)| {
            if reader.manifest().encryption.is_some() {
                return Err(Error::Encrypted { file: reader.manifest().stored_name(entry) });
            }
            let (content, _) = reader.open_file(&entry.name)?;
            let trees = match &mut trees {
                Some(trees) => trees,
                trees => trees.insert(reader.trees(0..u16::MAX)?),
            };
            let tree = trees.remove(&number);
            Ok(Earlier { stored: reader.open_stored(entry)?, content, entry: entry.clone(), tree })
        })
    }
}

fn entries(reader: &Reader) -> impl Iterator<Item = &FileEntry> {
    (0..u16::MAX).map(pages_name).map_while(|name| reader.manifest().file(&name))
}

/// What a file was like when its content was known: who writes to it, or gives it another name, changes the last of these times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Stamp> {
        let stat = file.metadata()?;
        Ok(Stamp {
            device: stat.dev(),
            inode: stat.ino(),
            bytes: stat.len(),
            modified: (stat.mtime(), stat.mtime_nsec()),
            changed: (stat.ctime(), stat.ctime_nsec()),
        })
    }

    /// Of all files of pages of an image, in the order of their numbers.
    pub fn of_pages(reader: &Reader) -> Result<Vec<Stamp>> {
        let stamp = |entry: &FileEntry| {
            Stamp::of(&reader.open_stored(entry)?).map_err(|source| Error::io(&entry.name, "stat", source))
        };
        entries(reader).map(stamp).collect()
    }
}

/// Where a page lies in a [`Parent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of its files of pages.
    pub file: u16,
    /// How many pages lie before it.
    page: u32,
}

impl Place {
    /// Where it begins in the file, in bytes.
    pub fn offset(&self) -> u64 {
        u64::from(self.page) * PAGE_BYTES
    }

    fn next(self) -> Option<Place> {
        Some(Place { page: self.page.checked_add(1)?, ..self })
    }
}

impl Parent {
    /// Reads all pages of an image, which must be what its table of contents says.
    pub fn read(reader: &Reader) -> Result<Parent> {
        let mut parent = Parent::empty(reader)?;
        for (number, earlier) in (0..).zip(Earlier::all(reader)) {
            let earlier = earlier?;
            parent.add(number, &earlier)?;
            parent.files.push(earlier);
        }
        Ok(parent)
    }

    fn empty(reader: &Reader) -> Result<Parent> {
        let directory = reader.directory().try_clone_to_owned().map_err(|source| Error::io(".", "dup", source))?;
        Ok(Parent { directory, files: Vec::new(), index: FxHashMap::default() })
    }

    /// The pages of an image whose files were right when they had these stamps. Those that have another one now are compared with
    /// their digests. Only pages in `runs` can be found by what they hold.
    pub fn known(reader: &Reader, stamps: &[Stamp], runs: &[PageRun]) -> Result<Parent> {
        let mut parent = Parent::empty(reader)?;
        for (number, earlier) in Earlier::all(reader).enumerate() {
            let earlier = earlier?;
            let Earlier { entry, stored, .. } = &earlier;
            let name = &entry.name;
            let failed = |op| move |source: io::Error| Error::io(name, op, source);
            let now = Stamp::of(stored).map_err(failed("stat"))?;
            if stamps.get(number) != Some(&now)
                && Digest::of_file(stored, entry.bytes).map_err(failed("read"))? != (entry.bytes, entry.blake3)
            {
                return Err(Error::Digest { file: name.clone(), bytes: entry.bytes });
            }
            parent.files.push(earlier);
        }
        let mut buffer = vec![0; HASH_BYTES];
        for run in runs {
            run.check(parent.pages(run.file).saturating_mul(PAGE_BYTES))?;
            parent.index_run(run, &mut buffer)?;
        }
        Ok(parent)
    }

    fn index_run(&mut self, run: &PageRun, buffer: &mut [u8]) -> Result<()> {
        let (mut at, end) = (run.offset, run.offset.saturating_add(run.pages.saturating_mul(PAGE_BYTES)));
        while at < end && self.index.len() < MOST_PAGES {
            let chunk = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let chunk = &mut buffer[..chunk];
            self.read_at(run.file, chunk, at)?;
            for content in chunk.chunks_exact(PAGE) {
                let Ok(page) = u32::try_from(at / PAGE_BYTES) else { return Ok(()) };
                self.index.entry(hash(content)).or_insert(Place { file: run.file, page });
                at += PAGE_BYTES;
            }
        }
        Ok(())
    }

    /// Compares a file with its digest, by a thread of its own where there can be one, and has its pages found.
    fn add(&mut self, number: u16, Earlier { entry, stored, content, .. }: &Earlier) -> Result<()> {
        let damaged = || Error::Digest { file: entry.name.clone(), bytes: entry.bytes };
        let failed = |source: io::Error| match source.kind() {
            // It became shorter.
            io::ErrorKind::UnexpectedEof => damaged(),
            _ => Error::io(&entry.name, "read", source),
        };
        let digest = || Digest::of_file(stored, entry.bytes);
        let (indexed, digest) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, digest).ok();
            let indexed = self.index(number, entry.content_bytes(), content);
            let join =
                |t: std::thread::ScopedJoinHandle<'_, _>| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            (indexed, thread.map_or_else(digest, join))
        });
        indexed.map_err(failed)?;
        if digest.map_err(failed)? != (entry.bytes, entry.blake3) {
            return Err(damaged());
        }
        Ok(())
    }

    fn index(&mut self, number: u16, bytes: u64, file: &File) -> io::Result<()> {
        let mut buffer = vec![0; HASH_BYTES];
        let pages = (bytes / PAGE_BYTES).min(u64::from(u32::MAX));
        self.index
            .reserve(usize::try_from(pages).unwrap_or(MOST_PAGES).min(MOST_PAGES.saturating_sub(self.index.len())));
        let mut page: u32 = 0;
        while u64::from(page) < pages && self.index.len() < MOST_PAGES {
            let left = usize::try_from(pages - u64::from(page)).unwrap_or(usize::MAX).min(HASH_BYTES / PAGE);
            let chunk = &mut buffer[..left * PAGE];
            file.read_exact_at(chunk, u64::from(page) * PAGE_BYTES)?;
            for content in chunk.chunks_exact(PAGE) {
                self.index.entry(hash(content)).or_insert(Place { file: number, page });
                page += 1;
            }
        }
        Ok(())
    }

    /// Looks for pages.
    pub fn search(&self) -> Search<'_> {
        Search { parent: self, likely: None, window: vec![0; WINDOW], at: None }
    }

    /// How many pages one of the files has.
    pub fn pages(&self, file: u16) -> u64 {
        self.files.get(usize::from(file)).map_or(0, |earlier| earlier.entry.content_bytes() / PAGE_BYTES)
    }

    /// Reads from one of the files, which was compared with its digest when it was opened.
    pub fn read_at(&self, file: u16, buffer: &mut [u8], offset: u64) -> Result<()> {
        let Some(Earlier { entry, content, .. }) = self.files.get(usize::from(file)) else {
            return Err(Error::missing(&pages_name(file)));
        };
        content.read_exact_at(buffer, offset).map_err(|source| Error::io(&entry.name, "read", source))
    }

    /// Why its files cannot be files of an image at `place`, too, if they cannot: only what nobody else can change, and where
    /// a file can have two names.
    pub fn is_foreign(&self, place: &Path) -> io::Result<Option<&'static str>> {
        let beside = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).metadata()?;
        let us = rustix::process::geteuid().as_raw();
        let directory = File::from(self.directory.try_clone()?).metadata()?;
        let files = self.files.iter().map(|earlier| earlier.stored.metadata());
        for file in files.chain([Ok(directory)]) {
            let file = file?;
            if file.uid() != us || file.mode() & 0o077 != 0 {
                return Ok(Some("somebody else can change it"));
            }
            if file.dev() != beside.dev() {
                return Ok(Some("it lies on another file system"));
            }
        }
        Ok(None)
    }

    /// Gives the image that is being written one of the files, as its file number `number`.
    pub fn share(&self, file: u16, writer: &Writer, number: u16) -> Result<()> {
        let Some(Earlier { entry, stored, tree, .. }) = self.files.get(usize::from(file)) else {
            return Err(Error::missing(&pages_name(file)));
        };
        writer.share(&pages_name(number), &self.directory, (entry, stored), tree.as_ref())
    }
}

fn hash(page: &[u8]) -> u64 {
    FxBuildHasher.hash_one(page)
}

/// A search for one page after the other.
#[derive(Debug)]
pub struct Search<'p> {
    parent: &'p Parent,
    /// Behind the last one that was found.
    likely: Option<Place>,
    /// What was read last, and where it begins: its file and byte.
    window: Vec<u8>,
    at: Option<(u16, u64)>,
}

impl Search<'_> {
    /// Where a page with this content lies, if there is one.
    pub fn find(&mut self, page: &[u8]) -> Result<Option<Place>> {
        let likely = self.likely.take();
        let found = match likely {
            Some(place) if self.is_at(place, page)? => Some(place),
            _ => match self.parent.index.get(&hash(page)) {
                Some(place) if self.is_at(*place, page)? => Some(*place),
                _ => None,
            },
        };
        // One that has changed is mostly followed by one that has not.
        self.likely = found.or(likely).and_then(Place::next);
        Ok(found)
    }

    fn is_at(&mut self, place: Place, page: &[u8]) -> Result<bool> {
        let Some(Earlier { entry, content, .. }) = self.parent.files.get(usize::from(place.file)) else {
            return Ok(false);
        };
        let bytes = entry.content_bytes();
        if place.offset() + PAGE_BYTES > bytes {
            return Ok(false);
        }
        let begin = place.offset() / WINDOW as u64 * WINDOW as u64;
        if self.at != Some((place.file, begin)) {
            self.at = None;
            let there = usize::try_from(bytes - begin).unwrap_or(WINDOW).min(WINDOW);
            let failed = |source: io::Error| Error::io(&entry.name, "read", source);
            content.read_exact_at(&mut self.window[..there], begin).map_err(failed)?;
            self.at = Some((place.file, begin));
        }
        let first = usize::try_from(place.offset() - begin).unwrap_or(0);
        Ok(self.window[first..first + PAGE] == *page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::PathBuf;
    use std::time::SystemTime;

    fn scratch(name: &str) -> PathBuf {
        let top = std::env::temp_dir().join(format!("yendor-parent-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir(&top).expect("mkdir");
        top
    }

    fn page(of: u64) -> Vec<u8> {
        (0..512u64).flat_map(|i| (of * 1000 + i).to_le_bytes()).collect()
    }

    fn write(at: &Path, pages: impl Iterator<Item = u64>) -> Reader {
        let writer = Writer::create(at).expect("create");
        let mut file = writer.file("pages-0").expect("file");
        pages.for_each(|n| file.write_all(&page(n)).expect("write"));
        file.finish().expect("finish");
        writer.records(&()).expect("records");
        writer.commit(SystemTime::now()).expect("commit");
        Reader::open(at).expect("open")
    }

    #[test]
    fn pages_are_found_wherever_they_are() {
        let top = scratch("find");
        let parent = Parent::read(&write(&top.join("a"), 0..100)).expect("read");
        let mut search = parent.search();
        let offset = |place: Option<Place>| place.map(|place| place.offset() / PAGE_BYTES);
        for n in [0, 1, 2, 50, 51, 99, 7, 7, 16, 15] {
            assert_eq!(offset(search.find(&page(n)).expect("find")), Some(n), "{n}");
        }
        assert_eq!(search.find(&page(100)).expect("find"), None);
        // Behind the last page is nothing.
        assert_eq!(offset(search.find(&page(99)).expect("find")), Some(99));
        assert_eq!(search.find(&page(100)).expect("find"), None);
        std::fs::remove_dir_all(&top).expect("rm");
    }

    #[test]
    fn equal_hashes_are_a_hint_only() {
        let top = scratch("hint");
        let mut parent = Parent::read(&write(&top.join("a"), 0..4)).expect("read");
        parent.index.insert(hash(&page(9)), Place { file: 0, page: 3 });
        parent.index.insert(hash(&page(8)), Place { file: 0, page: 4 });
        parent.index.insert(hash(&page(7)), Place { file: 1, page: 0 });
        let mut search = parent.search();
        for n in [9, 8, 7] {
            assert_eq!(search.find(&page(n)).expect("find"), None, "{n}");
        }
        std::fs::remove_dir_all(&top).expect("rm");
    }

    #[test]
    fn a_shared_file_is_a_file_of_both_images() {
        let top = scratch("share");
        let reader = write(&top.join("a"), 0..3);
        let parent = Parent::read(&reader).expect("read");
        let writer = Writer::create(&top.join("b")).expect("create");
        writer.file("pages-0").expect("file").finish().expect("finish");
        parent.share(0, &writer, 1).expect("share");
        assert!(matches!(parent.share(1, &writer, 2), Err(Error::Missing { .. })));
        writer.records(&()).expect("records");
        let manifest = writer.commit(SystemTime::now()).expect("commit");
        assert_eq!(manifest.file("pages-1").map(|f| f.blake3), reader.manifest().file("pages-0").map(|f| f.blake3));
        std::fs::remove_dir_all(top.join("a")).expect("rm");
        Reader::open(&top.join("b")).expect("open").verify_all().expect("whole");
        std::fs::remove_dir_all(&top).expect("rm");
    }

    #[test]
    fn what_was_exchanged_since_is_not_shared() {
        let top = scratch("exchange");
        let parent = Parent::read(&write(&top.join("a"), 0..3)).expect("read");
        let writer = Writer::create(&top.join("b")).expect("create");
        std::fs::remove_file(top.join("a/pages-0")).expect("rm");
        std::fs::write(top.join("a/pages-0"), [0; 3 * PAGE]).expect("write");
        // Its bytes are still what they were: they are copied.
        parent.share(0, &writer, 0).expect("a copy");
        writer.records(&()).expect("records");
        writer.commit(SystemTime::now()).expect("commit");
        Reader::open(&top.join("b")).expect("open").verify_all().expect("whole");
        std::fs::remove_dir_all(&top).expect("rm");
    }

    #[test]
    fn what_others_can_change_is_foreign() {
        use std::os::unix::fs::PermissionsExt;
        let top = scratch("foreign");
        let parent = Parent::read(&write(&top.join("a"), 0..3)).expect("read");
        let is_foreign = |place: &Path| parent.is_foreign(place).expect("stat").is_some();
        assert!(!is_foreign(&top.join("b")));
        assert!(is_foreign(Path::new("/proc/b")));
        for (name, mode, usual) in [("a", 0o755, 0o700), ("a/pages-0", 0o644, 0o600)] {
            let set = |mode| std::fs::set_permissions(top.join(name), PermissionsExt::from_mode(mode)).expect("chmod");
            set(mode);
            assert!(is_foreign(&top.join("b")), "{name}");
            set(usual);
        }
        assert!(!is_foreign(&top.join("b")));
        std::fs::remove_dir_all(&top).expect("rm");
    }

    #[test]
    fn what_is_known_is_compared_only_where_it_was_touched() {
        let top = scratch("known");
        let reader = write(&top.join("a"), 0..300);
        let stamps = Stamp::of_pages(&reader).expect("stamps");
        let run = PageRun { addr: crate::Addr(0), pages: 2, file: 0, offset: 7 * PAGE_BYTES };
        let parent = Parent::known(&reader, &stamps, &[run]).expect("known");
        let offset = |n: u64| parent.search().find(&page(n)).expect("find").map(|place| place.offset() / PAGE_BYTES);
        assert_eq!([7, 8, 6].map(offset), [Some(7), Some(8), None]);
        let mut some = page(0);
        parent.read_at(0, &mut some, 299 * PAGE_BYTES).expect("read");
        assert_eq!(some, page(299));
        let beyond = PageRun { offset: 299 * PAGE_BYTES, ..run };
        assert!(Parent::known(&reader, &stamps, &[beyond]).is_err());
        // One more name, or no stamp: it is read, and right.
        std::fs::hard_link(top.join("a/pages-0"), top.join("b")).expect("link");
        assert_ne!(Stamp::of_pages(&reader).expect("stamps"), stamps);
        for stamps in [&stamps[..], &[]] {
            assert_eq!(Parent::known(&reader, stamps, &[]).expect("right").pages(0), 300);
        }
        // Written to, and its time set back.
        let stamps = Stamp::of_pages(&reader).expect("stamps");
        let file = std::fs::OpenOptions::new().write(true).open(top.join("a/pages-0")).expect("open");
        let then = file.metadata().and_then(|m| m.modified()).expect("time");
        // Times are as coarse as the kernel's clock, where it has no finer ones.
        std::thread::sleep(std::time::Duration::from_millis(20));
        file.write_at(&[77], 200 * PAGE_BYTES).expect("write");
        file.set_modified(then).expect("utimensat");
        let said = Parent::known(&reader, &stamps, &[]).expect_err("damaged");
        assert!(matches!(&said, Error::Digest { file, .. } if file == "pages-0"), "{said}");
        std::fs::remove_dir_all(&top).expect("rm");
    }

    #[test]
    fn a_damaged_parent_is_none() {
        let top = scratch("damage");
        let reader = write(&top.join("a"), 0..300);
        std::fs::OpenOptions::new()
            .write(true)
            .open(top.join("a/pages-0"))
            .and_then(|f| f.write_at(&[77], 200 * PAGE_BYTES))
            .expect("write");
        let said = Parent::read(&reader).expect_err("damaged");
        assert!(matches!(&said, Error::Digest { file, .. } if file == "pages-0"), "{said}");
        std::fs::remove_dir_all(&top).expect("rm");
    }
}
