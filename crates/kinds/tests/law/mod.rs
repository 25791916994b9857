//! The law of every kind: collect(rebuild(collect(x))) == collect(x).
#![allow(dead_code)]

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};
use yendor_image::{FileId, Reader, Writer};
use yendor_kinds::Cause;
use yendor_kinds::file::external::Filled;
use yendor_kinds::file::{Entry, Gather, Workshop, unix};

/// A directory that goes away.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("yendor-law-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Place(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether this is root. Where it is not, what is skipped is said.
pub fn root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Where everybody sees it: what a test that passes prints nobody does.
        let _ = writeln!(std::io::stderr(), "skipped: needs root: {what}");
    }
    root
}

pub fn directory(path: &str) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub fn twin(fd: impl AsFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).unwrap()
}

/// An image of some descriptions.
pub struct Image {
    pub entries: Vec<Entry>,
    pub ids: Vec<FileId>,
    reader: Reader,
    _place: Place,
}

pub fn try_collect(fds: &[BorrowedFd<'_>]) -> Result<Image, Cause> {
    collect_from(fds, true)
}

/// `ends`: as in a checkpoint that ends the tree.
pub fn collect_from(fds: &[BorrowedFd<'_>], ends: bool) -> Result<Image, Cause> {
    let place = Place::new();
    let writer = Writer::create(&place.0.join("image")).unwrap();
    let mut gather = Gather::new(&writer, directory("/proc"), directory("/"));
    let me = rustix::process::getpid().as_raw_nonzero().get();
    gather.pids.insert(me, yendor_image::NsPid(me));
    gather.ends_tree = ends;
    gather.queues = true;
    let mut ids = Vec::new();
    for fd in fds {
        ids.push(gather.own(twin(fd))?);
    }
    gather.finish()?;
    let mut entries = std::mem::take(&mut gather.entries);
    let mut lost = Vec::new();
    if let Some(aside) = unix::set_aside(&mut gather, &mut entries, &mut lost)? {
        assert!(!lost.is_empty(), "what is set aside is said");
        aside.look(&mut gather, &mut entries, &mut lost)?;
    }
    assert_eq!(lost, []);
    drop(gather);
    writer.records(&entries).unwrap();
    writer.commit(std::time::SystemTime::now()).unwrap();
    let reader = Reader::open(&*place.0.join("image")).unwrap();
    let read: Vec<Entry> = reader.records().unwrap();
    assert_eq!(read, entries, "the image gives back what was stored");
    Ok(Image { entries, ids, reader, _place: place })
}

pub fn collect(fds: &[BorrowedFd<'_>]) -> Image {
    try_collect(fds).unwrap_or_else(|e| panic!("collect: {e}"))
}

impl Image {
    pub fn try_rebuild(&self, filled: Filled) -> Result<Vec<OwnedFd>, Cause> {
        let mut workshop =
            Workshop::new(Some(&self.reader), directory("/"), directory("/proc"), filled, &self.entries)?;
        // Tests have threads.
        workshop.maker = unix::Maker::Ourselves;
        let me = rustix::process::getpid().as_raw_nonzero().get();
        workshop.tasks.insert(yendor_image::NsPid(me), me);
        let mut made = Vec::new();
        for entry in &self.entries {
            made.push(twin(workshop.fd(entry.id)?));
        }
        workshop.finish()?;
        workshop.finish_late()?;
        workshop.seal()?;
        Ok(made)
    }

    /// All descriptions made again, by id.
    pub fn rebuild(&self) -> Vec<OwnedFd> {
        self.try_rebuild(Filled::default()).unwrap_or_else(|e| panic!("rebuild: {e}"))
    }
}

/// Collects, closes the originals, rebuilds, collects again: both must be equal. What was rebuilt, in the order of `fds`.
pub fn law(fds: Vec<OwnedFd>) -> Vec<OwnedFd> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let first = collect(&borrowed);
    drop(fds);
    again(&first)
}

/// The second half of [`law`].
pub fn again(first: &Image) -> Vec<OwnedFd> {
    let made = first.rebuild();
    let borrowed: Vec<_> = made.iter().map(AsFd::as_fd).collect();
    let second = collect(&borrowed);
    assert_eq!(second.entries, first.entries);
    let index = |id: &FileId| usize::try_from(id.0).unwrap();
    first.ids.iter().map(|id| twin(&made[index(id)])).collect()
}

/// What the refusal of a collect says.
pub fn refusal(fds: &[BorrowedFd<'_>]) -> String {
    match try_collect(fds) {
        Ok(image) => panic!("collected: {:?}", image.entries),
        Err(e) => e.to_string(),
    }
}
