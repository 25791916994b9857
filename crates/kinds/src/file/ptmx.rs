//! The master of a pseudo-terminal, and with it all that both sides share.
//! *Read from:* ioctls on the master; what waits in it is taken out and put back at once, by a child that survives us.
//! *Made again by:* opening the container's /dev/ptmx until the number fits; bytes and settings as they were.
//! *Lost:* an erase or quote character that was typed and waits for the next; echoes not yet written.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, major, minor};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FileId};
use yendor_sys::Errno;
use yendor_sys::tty::{self, Queues};

use super::{Entry, FileKind, Gather, Seen, Workshop, pts, terminal};
use crate::{Cause, Named, Result};

/// More than the kernel's own default limit (kernel.pty.max): a number beyond is not worth the placeholders.
const HIGHEST: u32 = 4096;

/// A master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The number of the slave below /dev/pts.
    pub index: u32,
    /// Whether the slave may not be opened yet (unlockpt(3)).
    pub locked: bool,
    /// `TIOCPKT`.
    pub packet: bool,
    /// `TIOCEXCL` of the slave.
    pub exclusive: bool,
    /// Whether the slave was open once and is no more.
    pub hung_up: bool,
    /// Whether the slave's output is suspended (`^S`).
    pub suspended: bool,
    /// Permission bits, owner and group of the slave's inode; none while it is locked or nobody has it open.
    pub node: Option<(u32, u32, u32)>,
    /// Settings.
    pub terminal: terminal::Record,
    /// What the slave's side has written and the master's has not read.
    pub output: Bytes,
    /// What the master's side has written and the slave's has not read: finished lines, in canonical mode.
    pub lines: Vec<Bytes>,
    /// An unfinished line; when not in canonical mode, all of it.
    pub input: Bytes,
}

impl FileKind for Record {
    const NAME: &'static str = "ptmx";

    fn claims(seen: &Seen) -> bool {
        let number = (major(seen.stat.st_rdev), minor(seen.stat.st_rdev));
        let device = FileType::from_raw_mode(seen.stat.st_mode) == FileType::CharacterDevice;
        device && number == (5, 2) && seen.info.flags & OFlags::PATH.bits() == 0
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        let fd = seen.fd.as_fd();
        let now = tty::ready(fd, PollFlags::PRI)?;
        if now.contains(PollFlags::PRI) {
            return Err(Cause::unsupported("a pseudo-terminal in packet mode with an unread change of state"));
        }
        // What waits follows in `finish`: that needs the slave, too.
        Ok(Record {
            index: tty::index(fd)?,
            locked: tty::locked(fd)? != 0,
            packet: tty::packet(fd)? != 0,
            exclusive: false,
            hung_up: now.contains(PollFlags::HUP),
            suspended: false,
            node: None,
            terminal: terminal::collect(fd)?,
            output: Bytes::default(),
            lines: Vec::new(),
            input: Bytes::default(),
        })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        if self.index > HIGHEST {
            return Err(Cause::corrupt(format!("a pseudo-terminal with the number {}", self.index)));
        }
        let access = OFlags::from_bits_retain(entry.flags) & (OFlags::ACCMODE | OFlags::NONBLOCK);
        // The kernel gives the lowest free number: those below are held until this one comes.
        let mut placeholders = Vec::new();
        loop {
            let fd = workshop.open(b"/dev/ptmx", access | OFlags::NOCTTY, Mode::empty())?;
            let index = tty::index(fd.as_fd())?;
            if index == self.index {
                tty::set_locked(fd.as_fd(), false)?;
                return Ok(fd);
            }
            if index > self.index {
                let what = format!("/dev/pts/{}, which is in use", self.index);
                return Err(Cause::Hole { what, option: "a /dev/pts of the container's own".into() });
            }
            placeholders.push(fd);
        }
    }
}

/// A slave of a master, opened anew.
///
/// # Errors
/// `EIO` while it is locked.
pub fn peer(master: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
    // Those that open(2) leaves in fdinfo, and on which nothing of the rest depends.
    const O_LARGEFILE: u32 = 0o100_000;
    let kept = OFlags::ACCMODE | OFlags::NONBLOCK | OFlags::from_bits_retain(O_LARGEFILE);
    let wanted = OpenptFlags::NOCTTY | OpenptFlags::from_bits_retain((flags & kept).bits());
    let fd = ioctl_tiocgptpeer(master, wanted).named("ioctl", || format!("TIOCGPTPEER, {wanted:?}"))?;
    // Not by O_CLOEXEC: the kernel would keep that among the status flags, where F_GETFL shows it.
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).named("fcntl", || "F_SETFD, FD_CLOEXEC".into())?;
    Ok(fd)
}

/// Once all descriptions are known: which slave belongs to which master, and what waits in them.
///
/// # Errors
/// `Unsupported` for what waits and cannot be taken without harm.
pub fn finish(gather: &mut Gather<'_>) -> Result<()> {
    let masters: Vec<(FileId, Record)> = gather.entries.iter().filter_map(of_entry).collect();
    let mut slaves = pts::all(gather)?;
    let mut owners: BTreeMap<FileId, FileId> = BTreeMap::new();
    for (id, mut record) in masters {
        let master = gather.ours(id)?;
        // Where its slaves live shows only one of them; opening one when none is open would be seen.
        let candidates: Vec<&pts::Open> = slaves.iter().filter(|s| s.index == record.index).collect();
        let opened = if candidates.is_empty() { None } else { Some(a_slave(gather, master, &record, &candidates)?) };
        if let Some(slave) = &opened {
            let stat = rustix::fs::fstat(slave).named("fstat", || format!("/dev/pts/{}", record.index))?;
            let own = |s: &pts::Open| s.index == record.index && s.dev == stat.st_dev;
            owners.extend(slaves.iter().filter(|s| own(s)).map(|s| (s.id, id)));
            slaves.retain(|s| !own(s));
            record.node = Some((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid));
        }
        record.look(master, opened)?;
        if let Some(entry) = gather.entries.get_mut(id.0 as usize) {
            entry.record = super::Record::Ptmx(record);
        }
    }
    pts::assign(gather, &owners)
}

/// A slave of the master, to look at what both share.
fn a_slave(gather: &Gather<'_>, master: BorrowedFd<'_>, record: &Record, open: &[&pts::Open]) -> Result<OwnedFd> {
    if record.locked {
        return Err(Cause::unsupported(format!("/dev/pts/{} is open but locked", record.index)));
    }
    let e = match peer(master, OFlags::RDWR) {
        Err(e) if e.sys().is_some_and(|e| e.errno == Errno::BUSY) => e,
        other => return other,
    };
    // In exclusive mode (TIOCEXCL) nobody can open it: one of those that have it open must do, if there is no doubt.
    let one_place = open.iter().all(|s| Some(s.dev) == open.first().map(|s| s.dev));
    for slave in open.iter().filter(|_| one_place) {
        let fd = gather.ours(slave.id)?;
        let mode = rustix::fs::fcntl_getfl(fd).named("fcntl", || "F_GETFL".into())? & OFlags::ACCMODE;
        if mode == OFlags::RDWR {
            return Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into())?);
        }
    }
    Err(e)
}

fn of_entry(entry: &Entry) -> Option<(FileId, Record)> {
    match &entry.record {
        super::Record::Ptmx(record) => Some((entry.id, record.clone())),
        _ => None,
    }
}

impl Record {
    fn look(&mut self, master: BorrowedFd<'_>, opened: Option<OwnedFd>) -> Result<()> {
        let pending = tty::ready(master, PollFlags::IN)?.contains(PollFlags::IN);
        let slave = match opened {
            Some(slave) => slave,
            // Whoever wrote this has closed; it must be opened for a moment to write it again.
            None if self.hung_up && pending && !self.locked => peer(master, OFlags::RDWR)?,
            None if pending => return Err(Cause::unsupported("a locked pseudo-terminal with unread bytes")),
            None => return Ok(()),
        };
        self.exclusive = tty::exclusive(slave.as_fd())? != 0;
        let writable = tty::ready(slave.as_fd(), PollFlags::OUT)?.contains(PollFlags::OUT);
        self.suspended = !writable;
        if !writable && pending {
            let index = self.index;
            return Err(Cause::unsupported(format!("/dev/pts/{index} is full or suspended, with unread output")));
        }
        let Queues { output, input, ends } = tty::look(master, slave.as_fd())?;
        let mut from = 0;
        for end in &ends {
            let end = (*end as usize).min(input.len());
            self.lines.push(Bytes(input.get(from..end).unwrap_or_default().to_vec()));
            from = end;
        }
        self.input = Bytes(input.get(from..).unwrap_or_default().to_vec());
        self.output = Bytes(output);
        Ok(())
    }
}

/// Once all descriptions exist: settings and bytes of every pseudo-terminal.
///
/// # Errors
/// The kernel's.
pub fn fill_all(workshop: &Workshop<'_>) -> Result<()> {
    for entry in workshop.entries() {
        let super::Record::Ptmx(record) = &entry.record else { continue };
        let Record { index, locked, packet, exclusive, hung_up, suspended, node, terminal, output, lines, input } =
            record;
        let master = workshop.existing(entry.id)?;
        terminal.set_size(master)?;
        let used = workshop.entries().any(|e| pts::belongs(e, entry.id));
        let queued = !(output.0.is_empty() && input.0.is_empty() && lines.is_empty());
        if used || *hung_up || queued {
            let slave = peer(master, OFlags::RDWR)?;
            if let Some((mode, uid, gid)) = node {
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                rustix::fs::fchown(&slave, uid, gid).named("fchown", || format!("/dev/pts/{index}"))?;
                let mode = Mode::from_raw_mode(mode & 0o7777);
                rustix::fs::fchmod(&slave, mode).named("fchmod", || format!("/dev/pts/{index}"))?;
            }
            let mut queues = Queues { output: output.0.clone(), ..Queues::default() };
            for line in lines {
                queues.input.extend_from_slice(&line.0);
                queues.ends.push(u32::try_from(queues.input.len()).unwrap_or(u32::MAX));
            }
            queues.input.extend_from_slice(&input.0);
            tty::fill(master, slave.as_fd(), &terminal.termios()?, &queues)?;
            if *suspended {
                tty::suspend_output(master, slave.as_fd())?;
            }
            if *exclusive {
                tty::set_exclusive(slave.as_fd())?;
            }
        } else {
            tty::set_termios(master, &terminal.termios()?)?;
        }
        if *packet {
            tty::set_packet(master, true)?;
        }
        tty::set_locked(master, *locked)?;
    }
    Ok(())
}
