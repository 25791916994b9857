//! Memory that comes when it is touched (docs/adr/0018): who brings it, and what the keeper knows of that.
//!
//! The pager is a copy of the keeper, as the loader is one: it has the files of pages, the userfaultfds of the processes and a
//! connection with the keeper, and no right but to put pages in their place. The keeper holds the same userfaultfds, so that whoever
//! waits for a page goes on waiting when the pager dies; then the container is ended.

mod left;
mod serve;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use yendor_image::{FileEntry, PageRun, Tree, open_regular, pages_name, tree_name};
use yendor_kinds::{Cause, Named};
use yendor_sys::sandbox::{self, Copy};
use yendor_sys::userfault::missing;
use yendor_sys::{Errno, SysError};

use self::left::Left;
use self::serve::{Server, Space};
use crate::control::{Control, MAX_DESCRIPTORS};
use crate::error::{At, Error, Result, Step};
use crate::exec::YES;
use crate::shadow;
use crate::wire::{Failure, Lazy, More};

/// The most processes whose memory comes later: each takes a descriptor of the keeper's.
pub const MOST: usize = 200;

/// What the keeper asks of it: is all memory there?
pub(crate) const FILLED: &str = "filled";

/// What a pager needs to begin. Descriptors: the container's pid 1, the book with the runs of each process; with [`More`] their
/// userfaultfds.
#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    how: Lazy,
    files: Vec<(u16, FileEntry)>,
    spaces: usize,
    book: u64,
}

/// What the keeper says then, of a process by its place in the book.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Somebody waits for all of its memory.
    First(usize),
    /// The keeper has let its userfaultfd go.
    Close(usize),
    /// Tasks run: what nobody touches may come, too.
    Run,
    /// Somebody waits for everything.
    Hurry,
}

/// What the pager says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// All of a process's memory is there.
    Filled(usize),
    /// It cannot go on, and has ended the container.
    Broken(Failure),
}

/// Opens the device for whoever calls: what it gives does not depend on who uses it then. `Err`: why memory cannot come later, for
/// people.
///
/// # Errors
/// That.
pub fn device() -> std::result::Result<OwnedFd, String> {
    let path = missing::DEVICE;
    let open = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = open.map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => {
            format!("you may not open {path} (who may is its owner's, mode's and group's to say)")
        }
        Errno::NOENT | Errno::NODEV | Errno::NXIO => format!("there is no {path} (Linux 6.1 has it)"),
        errno => SysError::new("open", path, errno).to_string(),
    })?;
    // A kernel that cannot tell what is needed says so now.
    let tried = missing::own(device.as_fd()).and_then(missing::Pager::begin);
    tried.map(drop).map_err(|e| e.to_string())?;
    Ok(device)
}

/// One that waits for its work.
#[derive(Debug)]
pub struct Waiting {
    copy: Copy,
    control: Control,
}

/// A process whose memory comes: its id as the keeper sees it, who is told of its faults, what comes.
pub struct Wanting {
    /// The process.
    pub pid: i32,
    /// Registered.
    pub pager: missing::Pager,
    /// What comes.
    pub runs: Vec<PageRun>,
}

impl Waiting {
    /// Starts one for the image in a directory. As [`crate::load::Loader::start`], it is to be called before the caller's pid
    /// namespace for children is another one, and with one thread only.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(directory: BorrowedFd<'_>) -> Result<Waiting> {
        let (control, theirs) = Control::pair().at(Step::Load)?;
        let mut files: BTreeMap<u16, (File, File)> = BTreeMap::new();
        let open = |name: &str| open_regular(directory, name).map(|(file, _)| file);
        for number in 0..u16::MAX {
            let name = pages_name(number);
            // Whoever needs them says what is wrong with them.
            let Ok(pages) = open(&name) else { break };
            if let Ok(tree) = open(&tree_name(&name)) {
                files.insert(number, (pages, tree));
            }
        }
        let mut keep = vec![theirs.as_fd()];
        keep.extend(files.values().flat_map(|(pages, tree)| [pages.as_fd(), tree.as_fd()]));
        let copy = sandbox::fork(&keep, || {
            let server = sandbox::give_up_all_but_paging().map_err(Cause::from).and_then(|()| receive(&theirs, &files));
            match server {
                Ok(Some(work)) => Server::new(&theirs, work).serve(),
                // There is nothing to do.
                Ok(None) => 0,
                Err(cause) => {
                    let error = Error::new(Step::Load, cause);
                    let _ = theirs.send(&Said::Broken(Failure::from(&error)), &[]);
                    1
                }
            }
        });
        Ok(Waiting { copy: copy.at(Step::Load)?, control })
    }

    /// Gives it its work. `init`: the container's pid 1; `files`: those that have a tree.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn begin(self, init: i32, how: Lazy, files: Vec<(u16, FileEntry)>, wanting: Vec<Wanting>) -> Result<Filling> {
        self.begin_with(init, how, files, wanting).at(Step::Rebuild)
    }

    fn begin_with(
        self,
        init: i32,
        how: Lazy,
        files: Vec<(u16, FileEntry)>,
        wanting: Vec<Wanting>,
    ) -> std::result::Result<Filling, Cause> {
        let Waiting { copy, control } = self;
        let opened = Pid::from_raw(init).ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let init = opened.named("pidfd_open", || format!("{init}"))?;
        let runs: Vec<&[PageRun]> = wanting.iter().map(|one| one.runs.as_slice()).collect();
        let bytes = postcard::to_stdvec(&runs).map_err(|_| SysError::new("write", "the book", Errno::INVAL))?;
        let book = rustix::fs::memfd_create("yendor-book", MemfdFlags::CLOEXEC);
        let mut book = File::from(book.named("memfd_create", || "yendor-book".into())?);
        book.write_all(&bytes).map_err(|e| SysError::io("write", "yendor-book", &e))?;
        let begin = Begin { how, files, spaces: wanting.len(), book: bytes.len() as u64 };
        control.send(&begin, &[init.as_fd(), book.as_fd()])?;
        let fds: Vec<BorrowedFd<'_>> = wanting.iter().map(|one| one.pager.as_fd()).collect();
        fds.chunks(MAX_DESCRIPTORS).try_for_each(|some| control.send(&More, some))?;
        let spaces = wanting.into_iter().map(|one| Some((one.pid, one.pager))).collect();
        Ok(Filling { spaces, control: Some(control), copy: Some(copy), init, broken: None })
    }
}

type Work<'f> = (OwnedFd, Vec<Space>, BTreeMap<u16, (&'f File, Tree)>, Lazy);

/// In the pager: what it is to do.
fn receive<'f>(
    control: &Control,
    files: &'f BTreeMap<u16, (File, File)>,
) -> std::result::Result<Option<Work<'f>>, Cause> {
    let short = || SysError::new("recvmsg", "a descriptor is missing", Errno::BADMSG);
    let Some((begin, descriptors)) = control.receive::<Begin>()? else { return Ok(None) };
    let Ok([init, book]) = <[OwnedFd; 2]>::try_from(descriptors) else { return Err(short().into()) };
    let mut bytes = vec![0; usize::try_from(begin.book).unwrap_or(0)];
    File::from(book).read_exact_at(&mut bytes, 0).map_err(|e| SysError::io("pread64", "yendor-book", &e))?;
    let runs: Vec<Vec<PageRun>> = postcard::from_bytes(&bytes).map_err(|_| short())?;
    let mut pagers = Vec::new();
    while pagers.len() < begin.spaces {
        match control.receive::<More>()? {
            Some((More, some)) if !some.is_empty() => pagers.extend(some),
            _ => return Ok(None),
        }
    }
    let mut trees = BTreeMap::new();
    for (number, entry) in &begin.files {
        let (pages, tree) = files.get(number).ok_or_else(short)?;
        let tree = Tree::read(entry, tree)?;
        trees.insert(*number, (pages, tree));
    }
    let space = |(fd, runs): (OwnedFd, Vec<PageRun>)| Space {
        pager: Some(missing::Pager::again(fd)),
        left: Left::new(&runs),
        told: false,
        stuck: false,
        nowhere: None,
        touched: Vec::new(),
    };
    Ok(Some((init, pagers.into_iter().zip(runs).map(space).collect(), trees, begin.how)))
}

/// Memory that is on its way.
#[derive(Debug)]
pub struct Filling {
    /// Of each process its id and its userfaultfd, until all of its memory is there.
    spaces: Vec<Option<(i32, missing::Pager)>>,
    control: Option<Control>,
    copy: Option<Copy>,
    init: OwnedFd,
    broken: Option<Failure>,
}

impl Filling {
    /// Processes whose memory is on its way.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.spaces.iter().flatten().map(|(pid, _)| *pid)
    }

    /// What to wait for; none: all of it is there, or nothing comes any more.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// Whether all of it is there.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.spaces.iter().all(Option::is_none)
    }

    /// The tasks run.
    pub fn run(&self) {
        self.say(&Word::Run);
    }

    /// Somebody waits for everything.
    pub fn hurry(&self) {
        self.say(&Word::Hurry);
    }

    fn say(&self, word: &Word) {
        // One that is gone is heard of.
        let _ = self.control.as_ref().map(|control| control.send(word, &[]));
    }

    /// Somebody waits for all memory of a process.
    pub fn first(&self, pid: i32) {
        let at = self.spaces.iter().position(|space| space.as_ref().is_some_and(|(own, _)| *own == pid));
        at.into_iter().for_each(|index| self.say(&Word::First(index)));
    }

    /// Hears what the pager says: the process whose memory is all there now. If it is gone, so is the container soon.
    pub fn hear(&mut self) -> Option<i32> {
        let control = self.control.as_ref()?;
        let died = || {
            let message = "the process that brings its memory has died".into();
            Failure::from(&Error::new(Step::Thaw, Cause::Reported { message, code: 1 }))
        };
        let failure = match control.receive::<Said>() {
            Ok(Some((Said::Filled(index), _))) => {
                let (pid, own) = self.spaces.get_mut(index)?.take()?;
                drop(own);
                // The pager has the last one.
                let _ = control.send(&Word::Close(index), &[]);
                if self.is_over() {
                    self.control = None;
                    // It ends by itself.
                    let _ = self.copy.take().map(Copy::wait);
                }
                return Some(pid);
            }
            Ok(Some((Said::Broken(failure), _))) => failure,
            Ok(None) | Err(_) => died(),
        };
        self.control = None;
        self.broken = Some(failure);
        // Before anybody is let go on without memory: the userfaultfds are still held here.
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        None
    }

    /// Why it did not go on, if the pager has said so; nothing runs any more.
    pub fn failure(&mut self) -> Option<Failure> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        while let Some(control) = self.control.as_ref().filter(|_| self.broken.is_none()) {
            if poll(&mut [PollFd::new(control, PollFlags::IN)], Some(&now)) != Ok(1) {
                break;
            }
            match control.receive::<Said>() {
                Ok(Some((Said::Broken(failure), _))) => self.broken = Some(failure),
                Ok(Some((Said::Filled(_), _))) => {}
                Ok(None) | Err(_) => self.control = None,
            }
        }
        self.broken.take()
    }
}

/// Waits until all memory of a container is there, or it has none that comes later, or it is gone. `tell` is called now and then.
pub fn wait(container: &Path, mut tell: impl FnMut()) {
    use std::io::{BufRead, BufReader};
    loop {
        let mut line = String::new();
        let asked = shadow::ask(container, FILLED).ok().map(|stream| BufReader::new(stream).read_line(&mut line));
        // A keeper that does not know the word has nothing to wait for.
        if asked.is_none() || line.trim() != NO {
            return;
        }
        tell();
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// What is said while it is not.
pub(crate) const NO: &str = "no";

/// The answer to [`FILLED`].
pub(crate) fn answer(filling: Option<&Filling>) -> &'static str {
    filling.into_iter().for_each(Filling::hurry);
    if filling.is_none_or(Filling::is_over) { YES } else { NO }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::entry;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// To open a FIFO lets those go on who wait for that; a device may do anything.
    #[test]
    fn what_is_no_file_is_not_opened() {
        let top = std::env::temp_dir().join(format!("yendor-fifo-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir(&top).expect("mkdir");
        std::fs::write(top.join("pages-0"), [0; 4096]).expect("write");
        std::fs::write(top.join("pages-0.tree"), []).expect("write");
        let fifo = top.join("pages-1");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("mkfifo");
        let directory = rustix::fs::open(&top, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let directory = directory.expect("open");
        static OPENED: AtomicBool = AtomicBool::new(false);
        let path = fifo.clone();
        let writer = std::thread::spawn(move || {
            let open = std::fs::OpenOptions::new().write(true).open(path);
            OPENED.store(true, Ordering::SeqCst);
            drop(open);
        });
        std::thread::sleep(Duration::from_millis(100));
        let was_opened = || {
            std::thread::sleep(Duration::from_millis(100));
            OPENED.load(Ordering::SeqCst)
        };
        drop(Waiting::start(directory.as_fd()).expect("a pager"));
        let by_pager = was_opened();
        assert!(crate::load::Hashing::start(directory.as_fd()).expect("nothing to do").is_none());
        let by_hashing = was_opened();
        // Alone: nothing before it ends the look.
        std::fs::create_dir(top.join("alone")).expect("mkdir");
        std::fs::hard_link(&fifo, top.join("alone/pages-1")).expect("link");
        let alone = rustix::fs::open(top.join("alone"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open");
        assert_eq!(entry::files(&alone), None);
        let by_labels = was_opened();
        // It waits no longer.
        let both = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("open");
        writer.join().expect("it ends");
        drop(both);
        std::fs::remove_dir_all(&top).expect("gone");
        assert_eq!([by_pager, by_hashing, by_labels], [false; 3]);
    }
}
