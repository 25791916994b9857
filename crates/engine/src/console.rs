//! The container's terminal: the keeper holds its master and lends it to whoever attaches. While nobody does, what is
//! written to it goes to the container's log, so that no program waits for a reader.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use yendor_kinds::{Cause, Named};
use yendor_sys::{Errno, SysError};

use crate::exec;
use crate::log::Log;
use crate::pager::{self, Filling};
use crate::recorder::Recorder;
use crate::shadow;

/// A pseudo-terminal of the devpts that the container sees.
#[derive(Debug)]
pub struct Console {
    /// The side of whoever attaches.
    pub master: OwnedFd,
    /// The container's side.
    pub slave: OwnedFd,
}

impl Console {
    /// A new one, inside the container's root.
    ///
    /// # Errors
    /// What open or the terminal's ioctls say.
    pub fn open() -> Result<Console, Cause> {
        use rustix::pty::{ptsname, unlockpt};
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        // All who have it read from one open file: none must wait for what another has taken.
        let open = |name: &str| {
            rustix::fs::open(name, flags | OFlags::NONBLOCK, Mode::empty()).named("open", || name.to_owned())
        };
        let master = match open("/dev/pts/ptmx") {
            // Where the root is the caller's own, the instance may be one whose ptmx nobody may open (ptmxmode=000, the kernel's default).
            Err(e) if matches!(e.errno, Errno::ACCESS | Errno::NOENT) => open("/dev/ptmx")?,
            other => other?,
        };
        unlockpt(&master).named("ioctl", || "TIOCSPTLCK".into())?;
        let name = ptsname(&master, Vec::new()).named("ioctl", || "TIOCGPTN".into())?;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).named("open", || format!("{name:?}"))?;
        Ok(Console { master, slave })
    }
}

impl Console {
    /// Gives it this many rows and columns.
    ///
    /// # Errors
    /// The ioctl's.
    pub fn resize(&self, (ws_row, ws_col): (u16, u16)) -> Result<(), Cause> {
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.slave, size).named("ioctl", || "TIOCSWINSZ".into())?;
        Ok(())
    }

    /// The container's side for standard input, output and error.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn thrice(&self) -> Result<[OwnedFd; 3], Cause> {
        let dup = || rustix::io::fcntl_dupfd_cloexec(&self.slave, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into());
        Ok([dup()?, dup()?, dup()?])
    }
}

/// What descriptors are that somebody sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parcel {
    /// The listener of the filter of one more command in the container.
    Listener,
    /// What a checkpoint leaves for the next one.
    Held,
}

/// The socket on which attaching is asked for.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    guests: Vec<UnixStream>,
    /// Who has been told to send descriptors, and may take its time.
    senders: Vec<(UnixStream, Parcel)>,
    /// What a checkpoint has left for the next one.
    held: Vec<OwnedFd>,
}

impl Door {
    /// Listens at `control.sock` of the container's directory.
    ///
    /// # Errors
    /// What bind says.
    pub fn open(directory: &OwnedFd) -> Result<Door, Cause> {
        // By a relative name: a socket's address holds 108 bytes, and the directory is not below our root.
        rustix::process::fchdir(directory).named("fchdir", || "the container's directory".into())?;
        let listener = UnixListener::bind("control.sock");
        rustix::process::chdir("/").named("chdir", || "/".into())?;
        let listener = listener.map_err(|e| SysError::io("bind", "control.sock", &e))?;
        listener.set_nonblocking(true).map_err(|e| SysError::io("fcntl", "O_NONBLOCK", &e))?;
        Ok(Door { listener, guests: Vec::new(), senders: Vec::new(), held: Vec::new() })
    }

    /// Serves until `end` can be read: lends the terminal, and writes to `log` what nobody else reads; keeps it short.
    /// `recorder` answers tasks that restrict themselves; memory may be on its way to them.
    pub fn serve(
        mut self,
        end: BorrowedFd<'_>,
        (console, mut log): (Option<&Console>, Option<&mut Log>),
        mut recorder: Option<&mut Recorder>,
        mut filling: Option<&mut Filling>,
    ) {
        if let Some((recorder, filling)) = recorder.as_deref_mut().zip(filling.as_deref()) {
            recorder.forks().filling(filling.pids());
        }
        filling.iter().for_each(|filling| filling.run());
        loop {
            let lent = console.filter(|_| self.guests.is_empty());
            let patience = log.as_deref_mut().map(Log::look);
            let ready = match self.wait((end, patience), lent, recorder.as_deref(), filling.as_deref()) {
                Ok(ready) => ready,
                // Only our own arguments could be wrong: then nobody can attach, but the container goes on.
                Err(_) => return,
            };
            if ready.output {
                drain(console, log.as_deref());
            }
            let filled = filling.as_deref_mut().filter(|_| ready.pager).and_then(Filling::hear);
            if let Some(recorder) = recorder.as_deref_mut() {
                for index in &ready.calls {
                    recorder.serve(*index);
                }
                filled.into_iter().for_each(|pid| recorder.filled(pid));
                if let Some(filling) = filling.as_deref().filter(|_| !ready.calls.is_empty()) {
                    recorder.forks().wanted().for_each(|pid| filling.first(pid));
                }
                recorder.hung_up(|index| ready.hung_up.contains(&index));
            }
            for index in ready.senders.iter().rev() {
                let (stream, parcel) = self.senders.swap_remove(*index);
                self.take(&stream, parcel, recorder.as_deref_mut());
            }
            if ready.guest {
                self.admit(console, recorder.is_some(), filling.as_deref());
            }
            self.guests.retain(is_open);
            if ready.end {
                // A guest reads to the end for itself: of two readers, one would wait for what the other has taken.
                drain(console.filter(|_| self.guests.is_empty()), log.as_deref());
                log.into_iter().for_each(Log::shorten);
                return;
            }
        }
    }

    fn wait(
        &self,
        (end, patience): (BorrowedFd<'_>, Option<Duration>),
        console: Option<&Console>,
        recorder: Option<&Recorder>,
        filling: Option<&Filling>,
    ) -> rustix::io::Result<Ready> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(end, PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(self.guests.iter().map(|g| PollFd::from_borrowed_fd(g.as_fd(), PollFlags::IN)));
        let senders_at = fds.len();
        fds.extend(self.senders.iter().map(|(s, _)| PollFd::from_borrowed_fd(s.as_fd(), PollFlags::IN)));
        let others_at = fds.len();
        let output = console.map(|c| PollFd::from_borrowed_fd(c.master.as_fd(), PollFlags::IN));
        let output_at = output.as_ref().map(|_| fds.len());
        fds.extend(output);
        let pager = filling.and_then(Filling::socket).map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN));
        let pager_at = pager.as_ref().map(|_| fds.len());
        fds.extend(pager);
        let listeners_at = fds.len();
        fds.extend(recorder.iter().flat_map(|r| r.listeners()).map(|l| PollFd::from_borrowed_fd(l, PollFlags::IN)));
        let patience = patience.map(|left| Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
        loop {
            match poll(&mut fds, patience.as_ref()) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        let hit = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let senders = fds[senders_at..others_at].iter().enumerate().filter(|(_, fd)| hit(fd));
        let listeners = |wanted: PollFlags| -> Vec<usize> {
            let with = fds[listeners_at..].iter().enumerate().filter(|(_, fd)| fd.revents().intersects(wanted));
            with.map(|(index, _)| index).collect()
        };
        Ok(Ready {
            end: hit(&fds[0]),
            guest: hit(&fds[1]),
            senders: senders.map(|(index, _)| index).collect(),
            output: output_at.is_some_and(|at| hit(&fds[at])),
            pager: pager_at.is_some_and(|at| hit(&fds[at])),
            calls: listeners(PollFlags::IN),
            hung_up: listeners(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
        })
    }

    /// Takes what has been sent.
    fn take(&mut self, stream: &UnixStream, parcel: Parcel, recorder: Option<&mut Recorder>) {
        let sent = shadow::receive(stream);
        match (parcel, recorder) {
            (Parcel::Listener, Some(recorder)) => sent.into_iter().for_each(|listener| recorder.add(listener)),
            (Parcel::Listener, None) => {}
            (Parcel::Held, _) => {
                self.held = sent;
                // Who does not read it is gone.
                let _ = (&*stream).write_all(b"\n");
            }
        }
    }

    /// Lends the master to one who asks; whoever asks for something else, or for what is not there, gets nothing.
    fn admit(&mut self, console: Option<&Console>, records: bool, filling: Option<&Filling>) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        // The directory is closed to others, and nobody may keep the keeper waiting.
        let limit = Some(Duration::from_millis(500));
        let mut line = String::new();
        let asked = stream.set_nonblocking(false).is_ok()
            && stream.set_read_timeout(limit).is_ok()
            && BufReader::new(&stream).read_line(&mut line).is_ok();
        let wish = serde_json::from_str::<Wish>(&line).ok().filter(|_| asked);
        let verb = wish.as_ref().map_or("", |wish| wish.verb.as_str());
        let parcel = match verb {
            "record" if records => Some(Parcel::Listener),
            shadow::HOLD => Some(Parcel::Held),
            _ => None,
        };
        if let Some(parcel) = parcel {
            // It may have much to do before it sends anything, or no processor to do it on.
            if parcel == Parcel::Held {
                self.held.clear();
            }
            if writeln!(&stream, "{}", exec::YES).is_ok() {
                self.senders.push((stream, parcel));
            }
            return;
        }
        match verb {
            pager::FILLED => {
                let _ = writeln!(&stream, "{}", pager::answer(filling));
                return;
            }
            shadow::RELEASE => {
                let held = std::mem::take(&mut self.held);
                let fds: Vec<BorrowedFd<'_>> = held.iter().map(AsFd::as_fd).collect();
                // Whoever asked and is gone: then nothing is tracked any more.
                let _ = shadow::send(&stream, &fds);
                return;
            }
            _ => {}
        }
        let ("attach", Some(console)) = (verb, console) else {
            // An answer without a descriptor says no.
            let _ = (&stream).write_all(b"\n");
            return;
        };
        if shadow::send(&stream, &[console.master.as_fd()]).is_ok() {
            self.guests.push(stream);
        }
    }
}

#[derive(serde::Deserialize)]
struct Wish {
    verb: String,
}

struct Ready {
    end: bool,
    guest: bool,
    /// Those whose descriptors have come, or who are gone.
    senders: Vec<usize>,
    output: bool,
    /// Who brings memory has something to say.
    pager: bool,
    /// Listeners of the recorder with a call, and those that nobody can call any more.
    calls: Vec<usize>,
    hung_up: Vec<usize>,
}

/// Whether a guest is still there: it never sends anything after its wish.
fn is_open(guest: &UnixStream) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::DONTWAIT | rustix::net::RecvFlags::PEEK;
    !matches!(rustix::net::recv(guest, &mut byte[..], flags), Ok((0, _)))
}

/// Moves what has been written to the terminal to the log.
fn drain(console: Option<&Console>, log: Option<&Log>) {
    let Some(console) = console else { return };
    let mut buffer = [0u8; 16 * 1024];
    loop {
        let mut ready = [PollFd::from_borrowed_fd(console.master.as_fd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if !matches!(poll(&mut ready, Some(&now)), Ok(1)) || !ready[0].revents().contains(PollFlags::IN) {
            return;
        }
        let Ok(n) = rustix::io::read(&console.master, &mut buffer) else { return };
        if let Some(log) = log {
            log.write(&buffer[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::os::unix::net::UnixStream;

    fn console() -> Console {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a terminal of our own");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("its other side");
        Console { master, slave }
    }

    /// What is in the log after a container has written a line and ended.
    fn logged(guests: Vec<UnixStream>) -> (Vec<u8>, Console) {
        let directory = std::env::temp_dir().join(format!("yendor-door-{}-{}", std::process::id(), guests.len()));
        std::fs::create_dir(&directory).expect("a directory");
        let listener = UnixListener::bind(directory.join("control.sock")).expect("a socket");
        let log = std::fs::File::create(directory.join("log")).expect("a log");
        let console = console();
        rustix::io::write(&console.slave, b"last words").expect("a line");
        let (end, ended) = rustix::pipe::pipe().expect("a pipe");
        rustix::io::write(&ended, b"x").expect("the end");
        let door = Door { listener, guests, senders: Vec::new(), held: Vec::new() };
        door.serve(end.as_fd(), (Some(&console), Some(&mut Log::new(log.into()))), None, None);
        let text = std::fs::read(directory.join("log")).expect("the log");
        std::fs::remove_dir_all(&directory).expect("gone");
        (text, console)
    }

    /// The keeper waited for ever for what the guest had read between its poll and its read.
    #[test]
    fn what_a_guest_reads_is_left_to_it() {
        assert_eq!(logged(Vec::new()).0, b"last words");
        let (guest, theirs) = UnixStream::pair().expect("a guest");
        let (text, console) = logged(vec![theirs]);
        assert_eq!(text, b"");
        let mut buffer = [0; 64];
        let n = rustix::io::read(&console.master, &mut buffer).expect("the guest's part");
        assert_eq!(&buffer[..n], b"last words");
        drop(guest);
    }

    /// The keeper gave it half a second: on a busy machine whoever ran one more command got EPIPE.
    #[test]
    fn who_sends_descriptors_may_take_its_time() {
        let directory = std::env::temp_dir().join(format!("yendor-door-{}-late", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let path = directory.join("control.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let door = Door { listener, guests: Vec::new(), senders: Vec::new(), held: Vec::new() };
        let (end, ended) = rustix::pipe::pipe().expect("a pipe");
        let ask = |verb: &str| {
            let mut stream = UnixStream::connect(&path).expect("a guest");
            writeln!(stream, "{{\"verb\":\"{verb}\"}}").expect("a wish");
            stream
        };
        std::thread::scope(|scope| {
            scope.spawn(|| door.serve(end.as_fd(), (None, None), None, None));
            let mut stream = ask(shadow::HOLD);
            let mut word = [0; 4];
            std::io::Read::read_exact(&mut stream, &mut word).expect("an answer");
            assert_eq!(&word, b"yes\n");
            std::thread::sleep(Duration::from_millis(700));
            // Others are served meanwhile.
            assert!(shadow::receive(&ask(shadow::RELEASE)).is_empty());
            shadow::send(&stream, &[end.as_fd()]).expect("somebody listens still");
            std::io::Read::read_exact(&mut stream, &mut word[..1]).expect("it has come");
            assert_eq!(shadow::receive(&ask(shadow::RELEASE)).len(), 1);
            rustix::io::write(&ended, b"x").expect("the end");
        });
        std::fs::remove_dir_all(&directory).expect("gone");
    }
}
