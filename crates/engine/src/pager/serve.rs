//! The pager's own life: a process without rights that puts pages of the image where somebody waits for them, and all others after
//! that, by address.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use yendor_image::{PAGE_BYTES, TREE_BYTES, Tree};
use yendor_kinds::Cause;
use yendor_sys::userfault::missing::{Message, Pager, Placed};
use yendor_sys::{Errno, SysError};

use super::left::{Left, Piece};
use super::{Said, Word, Work};
use crate::control::Control;
use crate::error::{Error, Step};
use crate::wire::{Failure, Lazy};

/// For how long what should pass by itself is waited for: memory that the kernel has none of, a mapping on its way.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many messages are read at a time.
const MESSAGES: usize = 1024;

/// A process whose memory comes.
pub(super) struct Space {
    pub pager: Option<Pager>,
    pub left: Left,
    /// Whether the keeper knows that nothing is left.
    pub told: bool,
    /// Nothing could be put there just now: others come first.
    pub stuck: bool,
    /// The page that has no mapping, as long as that is so, and since when.
    pub nowhere: Option<(u64, Instant)>,
    /// Faults that were read while something else was looked for. Whoever waits is not woken for that: it would be back before
    /// what is told of changes could be read, which the kernel tells after all faults.
    pub touched: Vec<u64>,
}

/// All that it has.
pub(super) struct Server<'c> {
    control: &'c Control,
    init: OwnedFd,
    files: BTreeMap<u16, (&'c File, Tree)>,
    spaces: Vec<Space>,
    /// The block that was read last, which is what it should be.
    block: Option<(u16, u64)>,
    content: Vec<u8>,
    /// Those that somebody waits for to be whole.
    first: Vec<usize>,
    /// Whether the keeper is there, and the tasks run.
    kept: bool,
    running: bool,
    how: Lazy,
    /// When something may come next that nobody has touched.
    due: Instant,
}

/// What became of an attempt to put pages somewhere.
enum Put {
    Done,
    /// The memory is being changed: messages come first.
    Again,
    /// There is no mapping at this address that something could be put in.
    Nowhere(u64),
}

impl<'c> Server<'c> {
    /// Of a container's pid 1, files of pages, and processes.
    pub(super) fn new(control: &'c Control, (init, spaces, files, how): Work<'c>) -> Server<'c> {
        let (block, content, first, due) = (None, Vec::new(), Vec::new(), Instant::now());
        Server { control, init, files, spaces, block, content, first, kept: true, running: false, how, due }
    }

    /// Until nothing is left. Whatever goes wrong ends the container before anybody is let go on without its memory.
    pub(super) fn serve(mut self) -> i32 {
        match self.work() {
            Ok(()) => 0,
            Err(cause) => {
                let error = Error::new(Step::Load, cause);
                let code = i32::from(error.exit_code());
                let _ = self.control.send(&Said::Broken(Failure::from(&error)), &[]);
                // Where it is refused, the keeper does it; all wait meanwhile.
                let _ = pidfd_send_signal(&self.init, Signal::KILL);
                let mut ended = [PollFd::new(&self.init, PollFlags::IN)];
                let _ = rustix::io::retry_on_intr(|| poll(&mut ended, None));
                code
            }
        }
    }

    fn work(&mut self) -> Result<(), Cause> {
        loop {
            let idle = !self.fill()?;
            if self.spaces.iter().all(|space| space.pager.is_none()) {
                return Ok(());
            }
            self.listen(idle)?;
        }
    }

    /// Waits for messages where there is nothing else to do, and answers those that are there.
    fn listen(&mut self, idle: bool) -> Result<(), Cause> {
        let stuck = self.spaces.iter().any(|space| space.stuck);
        let idle = idle && self.spaces.iter().all(|space| space.touched.is_empty());
        let left = self.spaces.iter().any(|space| !space.left.is_empty());
        let paced = left && self.running && self.how.rate.is_some_and(|rate| rate > 0);
        let limit = match (idle, stuck || paced) {
            (true, false) => None,
            (true, true) => Some(Timespec { tv_sec: 0, tv_nsec: 1_000_000 }),
            _ => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
        };
        let open: Vec<usize> =
            self.spaces.iter().enumerate().filter(|(_, s)| s.pager.is_some()).map(|(i, _)| i).collect();
        let mut fds: Vec<PollFd<'_>> =
            open.iter().filter_map(|i| self.spaces[*i].pager.as_ref()).map(|p| PollFd::new(p, PollFlags::IN)).collect();
        if self.kept {
            fds.push(PollFd::new(self.control, PollFlags::IN));
        }
        rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref())).map_err(|e| SysError::new("poll", "", e))?;
        let hit: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (index, hit) in open.iter().zip(&hit) {
            if *hit {
                self.read(*index)?;
            }
            self.touched(*index)?;
        }
        if self.kept && hit.last() == Some(&true) {
            self.word()?;
        }
        Ok(())
    }

    /// What the keeper wants.
    fn word(&mut self) -> Result<(), Cause> {
        match self.control.receive::<Word>() {
            Ok(Some((Word::First(index), _))) if !self.first.contains(&index) => self.first.push(index),
            Ok(Some((Word::First(_), _))) => {}
            Ok(Some((Word::Run, _))) => self.running = true,
            Ok(Some((Word::Hurry, _))) => self.how.rate = None,
            Ok(Some((Word::Close(index), _))) => {
                if let Some(space) = self.spaces.get_mut(index) {
                    // The last one: the kernel forgets that anything was missing.
                    space.pager = None;
                }
            }
            // It has died, and the container ends with it: what is whole needs nobody any more.
            Ok(None) | Err(_) => {
                (self.kept, self.running, self.how.rate) = (false, true, None);
                self.spaces.iter_mut().filter(|space| space.left.is_empty()).for_each(|space| space.pager = None);
            }
        }
        Ok(())
    }

    /// Reads what a process is told of; of faults, who waits is remembered. Whether its memory has changed.
    fn read(&mut self, index: usize) -> Result<bool, Cause> {
        let mut changed = false;
        for _ in 0..MESSAGES {
            let Some(Space { pager: Some(pager), left, touched, nowhere, .. }) = self.spaces.get_mut(index) else {
                break;
            };
            match pager.next()? {
                None => break,
                Some(Message::Moved { from, to, len }) => left.moved(from, to, len),
                Some(Message::Dropped(start, end)) => left.cut(start, end),
                Some(Message::Fault(address)) => {
                    touched.push(address & !(PAGE_BYTES - 1));
                    continue;
                }
            }
            (changed, *nowhere) = (true, None);
        }
        Ok(changed)
    }

    /// Answers those of a process who wait.
    fn touched(&mut self, index: usize) -> Result<(), Cause> {
        let touched = self.spaces.get_mut(index).map(|space| std::mem::take(&mut space.touched)).unwrap_or_default();
        touched.into_iter().try_for_each(|address| self.answer(index, address))
    }

    /// Somebody waits for the page at this address.
    fn answer(&mut self, index: usize, address: u64) -> Result<(), Cause> {
        let begin = Instant::now();
        loop {
            let Some(Space { pager: Some(pager), left, .. }) = self.spaces.get_mut(index) else { return Ok(()) };
            let done = match left.at(address) {
                Some(piece) => self.put(index, &piece, address)?,
                None => match pager.zeros(address, PAGE_BYTES).stopped {
                    None | Some(Errno::SRCH) => Put::Done,
                    // It has come meanwhile, or is no memory any more: whoever waits sees for itself.
                    Some(Errno::EXIST | Errno::NOENT) => {
                        let _ = pager.wake(address, PAGE_BYTES);
                        Put::Done
                    }
                    Some(Errno::AGAIN) => Put::Again,
                    Some(Errno::NOMEM) if begin.elapsed() < PATIENCE => Put::Again,
                    Some(errno) => return Err(SysError::new("ioctl", "UFFDIO_ZEROPAGE", errno).into()),
                },
            };
            match done {
                Put::Done => return Ok(()),
                Put::Again | Put::Nowhere(_) => self.changes(index)?,
            };
            if begin.elapsed() > PATIENCE {
                // It is still waited for, and will be told of again if it is still to come.
                let Some(Space { pager: Some(pager), .. }) = self.spaces.get(index) else { return Ok(()) };
                let _ = pager.wake(address, PAGE_BYTES);
                return Ok(());
            }
        }
    }

    /// Memory is being changed: what is told of it is to be known before anything else is put there. Whether it was told of.
    fn changes(&mut self, index: usize) -> Result<bool, Cause> {
        let Some(Space { pager: Some(pager), .. }) = self.spaces.get(index) else { return Ok(false) };
        // Who was told already may not have gone on yet.
        let moment = Timespec { tv_sec: 0, tv_nsec: 200_000 };
        let mut fds = [PollFd::new(pager, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&moment)));
        if ready.map_err(|e| SysError::new("poll", "", e))? == 0 {
            return Ok(false);
        }
        self.read(index)
    }

    /// Puts what comes next somewhere; false: nothing can be put anywhere now.
    fn fill(&mut self) -> Result<bool, Cause> {
        let Server { first, spaces, .. } = self;
        first.retain(|index| spaces.get(*index).is_some_and(|space| !space.left.is_empty()));
        let now = Instant::now();
        if first.is_empty() && (!self.running || self.how.rate == Some(0) || self.how.rate.is_some() && now < self.due)
        {
            return self.tell().map(|()| false);
        }
        let any = spaces.iter().position(|space| !space.left.is_empty() && !space.stuck);
        let stuck = || spaces.iter().position(|space| !space.left.is_empty());
        let Some(index) = first.first().copied().or(any).or_else(stuck) else {
            return self.tell().map(|()| false);
        };
        let Some(space) = self.spaces.get_mut(index) else { return Ok(false) };
        let Some(piece) = space.left.next() else { return Ok(false) };
        match self.put(index, &piece, piece.at)? {
            Put::Done => {
                if let Some(space) = self.spaces.get_mut(index) {
                    (space.stuck, space.nowhere) = (false, None);
                }
                if let Some(rate) = self.how.rate.filter(|rate| *rate > 0) {
                    self.due = now + Duration::from_nanos(TREE_BYTES.saturating_mul(1_000_000_000) / rate);
                }
                self.tell()?;
                Ok(true)
            }
            Put::Again => {
                self.changes(index)?;
                if let Some(space) = self.spaces.get_mut(index) {
                    (space.stuck, space.nowhere) = (true, None);
                }
                Ok(false)
            }
            Put::Nowhere(address) => {
                let changed = self.changes(index)?;
                let Some(space) = self.spaces.get_mut(index) else { return Ok(false) };
                space.stuck = true;
                let (page, since) = *space.nowhere.get_or_insert_with(|| (address, Instant::now()));
                if changed || page != address {
                    space.nowhere = None;
                } else if since.elapsed() > PATIENCE {
                    // Whenever it was tried no mapping of ours was there, and no change was told of: nobody can touch what was to come.
                    space.left.cut(address, address + PAGE_BYTES);
                    (space.stuck, space.nowhere) = (false, None);
                }
                Ok(false)
            }
        }
    }

    /// Tells the keeper which processes have all of their memory.
    fn tell(&mut self) -> Result<(), Cause> {
        for (index, space) in self.spaces.iter_mut().enumerate() {
            if space.left.is_empty() && !space.told {
                space.told = true;
                if !self.kept {
                    space.pager = None;
                } else if self.control.send(&Said::Filled(index), &[]).is_err() {
                    // Its end is heard of where its words are.
                }
            }
        }
        Ok(())
    }

    /// Puts a piece in its place, as far as that is in the same block of its file as what is to come to `address`, which lies in it.
    fn put(&mut self, index: usize, piece: &Piece, address: u64) -> Result<Put, Cause> {
        let place = piece.offset + (address - piece.at);
        let number = place / TREE_BYTES;
        self.load(piece.file, number)?;
        let begin = number * TREE_BYTES;
        // Where the block would begin and end in memory, if all of it came there.
        let before = (place - begin).min(address - piece.at);
        let after = (begin + TREE_BYTES).saturating_sub(place);
        let Some(part) = piece.within(address - before, address.saturating_add(after)) else {
            return Ok(Put::Done);
        };
        // First what is waited for.
        for (start, end) in [(address, u64::MAX), (0, address)] {
            let Some(some) = part.within(start, end) else { continue };
            let put = self.place(index, &some)?;
            if !matches!(put, Put::Done) {
                return Ok(put);
            }
        }
        Ok(Put::Done)
    }

    /// Puts what is in the block that was read last in its place.
    fn place(&mut self, index: usize, some: &Piece) -> Result<Put, Cause> {
        let Server { spaces, content, init, .. } = self;
        let Some(Space { pager: Some(pager), left, .. }) = spaces.get_mut(index) else { return Ok(Put::Done) };
        let outside = || Cause::corrupt(format!("pages-{}: pages behind its end", some.file));
        let begin = usize::try_from(some.offset % TREE_BYTES).map_err(|_| outside())?;
        let (mut at, mut pages) = (some.at, content.get(begin..).ok_or_else(outside)?);
        pages = usize::try_from(some.bytes).ok().and_then(|bytes| pages.get(..bytes)).ok_or_else(outside)?;
        let patience = Instant::now();
        let mut most = pages.len();
        while !pages.is_empty() {
            let now = pages.get(..most.min(pages.len())).unwrap_or(pages);
            let Placed { bytes, stopped } = pager.copy(at, now);
            let there = match stopped {
                None => bytes,
                // What is there already was written by the program, or by whoever was asked before.
                Some(Errno::EXIST) => {
                    let _ = pager.wake(at, PAGE_BYTES);
                    PAGE_BYTES
                }
                // The process is gone, or runs another program.
                Some(Errno::SRCH) => {
                    *left = Left::default();
                    return Ok(Put::Done);
                }
                // One call fills one mapping, and these may be two: by pages, then.
                Some(Errno::NOENT) if now.len() as u64 > PAGE_BYTES => {
                    most = usize::try_from(PAGE_BYTES).unwrap_or(most);
                    continue;
                }
                Some(Errno::AGAIN) => return Ok(Put::Again),
                Some(Errno::NOENT) => return Ok(Put::Nowhere(at)),
                Some(Errno::NOMEM) if patience.elapsed() < PATIENCE => {
                    let moment = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                    let _ = poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&moment));
                    continue;
                }
                Some(errno) => return Err(SysError::new("ioctl", format!("UFFDIO_COPY, {at:#x}"), errno).into()),
            };
            left.cut(at, at + there);
            at += there;
            left.go_on(at);
            pages = usize::try_from(there).ok().and_then(|there| pages.get(there..)).unwrap_or_default();
        }
        Ok(Put::Done)
    }

    /// Reads a block, which must be what was written.
    fn load(&mut self, file: u16, number: u64) -> Result<(), Cause> {
        if self.block == Some((file, number)) {
            return Ok(());
        }
        self.block = None;
        let missing = || Cause::corrupt(format!("pages-{file}: missing"));
        let (pages, tree) = self.files.get(&file).ok_or_else(missing)?;
        tree.load(pages, number, &mut self.content)?;
        self.block = Some((file, number));
        Ok(())
    }
}
