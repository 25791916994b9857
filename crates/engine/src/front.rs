//! The caller's side: ask whether there may be a container, hand everything to its keeper, hear what became of it.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use yendor_image::{Digest, Watcher};
use yendor_kinds::{Cause, Named};
use yendor_policy::host::Verb;
use yendor_sys::SysError;
use yendor_sys::wait::Event;
use yendor_task::Dead;

use crate::admit::{self, Admitted, admit};
use crate::blame;
use crate::claim::Claim;
use crate::contain::Given;
use crate::control::{Control, MAX_DESCRIPTORS};
use crate::error::{At, Error, Result, Step};
pub use crate::keeper::keeper_main;
use crate::label::Labels;
use crate::load::{Plain, Raised, open_directory};
pub use crate::outer::outer_main;
use crate::request::Request;
use crate::sign::Trust;
use crate::state::{self, Places, Status};
use crate::who::Surroundings;
pub use crate::wire::{Cloning, Lazy, Memory, Spec, Startup, Stdio};
use crate::wire::{More, Report};

/// A container to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Public keys, one of which must have signed the image; empty: any image.
    pub keys: Vec<String>,
    /// What the caller wants.
    pub request: Request,
    /// What runs in it.
    pub source: Source,
    /// Where its standard descriptors lead.
    pub stdio: Stdio,
    /// Where state is kept.
    pub places: Places,
    /// The image's name, for the record.
    pub image_ref: Option<String>,
    /// Whether its keeper removes its directory when it has ended.
    pub remove: bool,
    /// Who wants to see that it takes long.
    pub watcher: Watcher,
    /// Whether it is one of several from one image.
    pub cloning: Option<Cloning>,
    /// What lets memory of an image come later ([`crate::pager::device`]); none: all of it is there before anything runs.
    pub lazy: Option<(Arc<OwnedFd>, Lazy)>,
}

/// What runs in a container.
#[derive(Debug, Clone)]
pub enum Source {
    /// A program.
    Compose(Spec),
    /// An image, by its directory; and by content, where the caller has looked at it.
    Image(PathBuf, Option<Digest>),
}

/// A container that runs.
#[derive(Debug)]
pub struct Started {
    /// Its root task, as the caller sees it.
    pub main: i32,
    /// Its pid 1, as the caller sees it.
    pub init: i32,
    /// Its keeper and when that was started, as in its [`state::State`].
    pub keeper: (i32, u64),
    /// What could not be had in full.
    pub notes: Vec<String>,
    /// Phases and their microseconds.
    pub timings: Vec<(String, u64)>,
    /// Whether it has a terminal that nobody asked for: the image had one.
    pub terminal: bool,
    /// The memory that it has made for others to share.
    pub shared: Option<OwnedFd>,
    control: Control,
}

impl Started {
    /// Waits for the end of the root task: its wait status.
    ///
    /// # Errors
    /// The keeper died; its memory could not be had.
    pub fn wait(self) -> Result<i32> {
        loop {
            match self.control.receive::<Report>().at(Step::Thaw)? {
                Some((Report::Ended(status), _)) => return Ok(status),
                Some((Report::Failed(failure), _)) => return Err(failure.into()),
                Some(_) => {}
                None => return Err(keeper_gone(Step::Thaw)),
            }
        }
    }
}

/// Whether tasks could have the labels that a request names.
///
/// # Errors
/// A module that is not active here.
pub fn has_labels(request: &Request) -> Result<()> {
    Labels::look(request, None).map(drop)
}

fn keeper_gone(step: Step) -> Error {
    Error::new(step, Cause::Reported { message: "the keeper died".into(), code: 1 })
}

/// Starts a container: admit, then everything else in the keeper. Returns when its tasks run. `plain`: what is in an encrypted
/// or compressed image; the keeper alone has it then. `shared`: memory for a clone that is given it.
///
/// # Errors
/// Whatever forbade or hindered it; nothing is left.
pub fn launch(what: &Launch, plain: Option<Plain>, shared: Option<&OwnedFd>) -> Result<Started> {
    let begin = std::time::Instant::now();
    let verb = match what.source {
        Source::Compose(_) => Verb::Run,
        Source::Image(..) => Verb::Restore,
    };
    let admitted = admit(&what.request, verb)?;
    let admitted_us = us(begin);
    let pid = admitted.pid;
    let claim = match Claim::make(&what.places.container(&what.request.name)) {
        Ok(claim) => claim,
        Err(e) => {
            drop(admitted);
            admit::gone(pid);
            return Err(e);
        }
    };
    match hand_over(what, (plain, shared), &claim, admitted) {
        Ok(mut started) => {
            started.timings.insert(0, ("admit".into(), admitted_us));
            Ok(started)
        }
        Err(e) => {
            // Its tasks have been told to end with it. It cleans up behind itself, if it could; what stays without a state is
            // known for what it is.
            let ended = give_up(pid, &claim);
            let _ = std::fs::remove_file(claim.path().join(state::FILE));
            let _ = state::remove(claim.path());
            Err(fallen(e, pid, ended))
        }
    }
}

/// Waits for the end of a keeper that has been given up. Where only its word did not reach us, its container runs: that ends
/// first. How it ended.
fn give_up(keeper: i32, claim: &Claim) -> Option<Event> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let opened = Pid::from_raw(keeper).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    if let Some(Ok(ended)) = opened {
        while rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&moment))) == Ok(0) {
            let running = state::read(claim.path()).ok().filter(|s| s.keeper == keeper && s.status == Status::Running);
            // What has ended by itself meanwhile is nobody's child, or another's.
            let init =
                running.and_then(|s| Some((s.init, pidfd_open(Pid::from_raw(s.init)?, PidfdFlags::empty()).ok()?)));
            if let Some((init, pidfd)) = init
                && parent(init) == Some(keeper)
            {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
    admit::gone(keeper)
}

/// A keeper that a filter has ended has not said so.
fn fallen(e: Error, keeper: i32, ended: Option<Event>) -> Error {
    let Some(event) = ended.filter(|event| matches!(event, Event::Killed(_))) else { return e };
    let dead = blame::filter(Error::new(e.place.step, Dead { tid: keeper, event }), Surroundings::look().filter(false));
    if dead.by.is_some() { dead } else { e }
}

fn parent(pid: i32) -> Option<i32> {
    let text = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    yendor_proc::status::parse(&text).ok().map(|status| status.ppid)
}

fn us(since: std::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn hand_over(
    what: &Launch,
    (plain, shared): (Option<Plain>, Option<&OwnedFd>),
    claim: &Claim,
    admitted: Admitted,
) -> Result<Started> {
    let directory = claim.path();
    let Admitted { control, handed, granted, pid, .. } = admitted;
    // It waits for what it shall do.
    let keeper = (pid, state::start_of(pid).unwrap_or_default());
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let (stdin, log) = match what.stdio {
        Stdio::Log | Stdio::Terminal => {
            let log = directory.join("log");
            (open_null()?, Some(open_log(&log)?))
        }
        _ => (dup(std::io::stdin().as_fd())?, None),
    };
    let out = |own: BorrowedFd<'_>| match &log {
        Some(log) => dup(log.as_fd()),
        None => dup(own),
    };
    descriptors.push(stdin);
    descriptors.push(out(std::io::stdout().as_fd())?);
    descriptors.push(out(std::io::stderr().as_fd())?);
    let spec = match &what.source {
        Source::Compose(spec) => Some(spec.clone()),
        Source::Image(path, _) => {
            descriptors.push(open_directory(path)?);
            None
        }
    };
    let lazy = what.lazy.as_ref().map(|(device, _)| device.as_fd());
    let given = Given::new(handed, directory)?;
    let mut all: Vec<BorrowedFd<'_>> = claim.descriptors().into();
    all.extend(descriptors.iter().map(AsFd::as_fd));
    all.extend(lazy);
    all.extend(given.descriptors());
    // Where the caller has set no limit, the host's holds.
    let request = Request { memory: granted.memory, pids: granted.pids, ..what.request.clone() };
    let trust =
        Trust { caller: what.keys.clone(), host: granted.signed_by.clone(), place: granted.places.signed_by.clone() };
    let startup = Startup {
        request,
        granted,
        trust,
        spec,
        stdio: what.stdio,
        image: what.image_ref.clone(),
        seal: if let Source::Image(_, seal) = what.source { seal } else { None },
        remove: what.remove,
        cloning: what.cloning,
        lazy: what.lazy.as_ref().map(|(_, how)| *how),
        plain: plain.as_ref().map(|plain| (plain.descriptors().len(), plain.index())),
        window: window(),
    };
    // The usher sends them once more, with those of the limits: two for each of two hierarchies, and for the one aside.
    const OF_LIMITS: usize = 6;
    if all.len() + OF_LIMITS > MAX_DESCRIPTORS {
        let what = format!(
            "{} volumes: at most about {} can be handed over",
            what.request.volumes.len(),
            MAX_DESCRIPTORS - 16
        );
        return Err(Error::new(Step::Admit, Cause::Reported { message: what, code: 1 }));
    }
    control.send(&startup, &all).at(Step::Contain)?;
    if let Some(plain) = plain {
        // Descriptors on their way count too (ETOOMANYREFS, unix(7)).
        let _limit = Raised::raise();
        let descriptors = plain.descriptors();
        descriptors.chunks(MAX_DESCRIPTORS).try_for_each(|some| control.send(&More, some)).at(Step::Contain)?;
    }
    if let Some(shared) = shared {
        control.send(&More, &[shared.as_fd()]).at(Step::Contain)?;
    }
    be_patient(&control, &what.watcher);
    match control.receive::<Report>().at(Step::Contain)? {
        Some((Report::Started(s), descriptors)) => Ok(Started {
            shared: descriptors.into_iter().next(),
            main: s.main,
            init: s.init,
            keeper,
            notes: s.notes,
            timings: s.timings,
            terminal: s.terminal,
            control,
        }),
        Some((Report::Failed(failure), _)) => Err(failure.into()),
        Some((Report::Ended(_), _)) | None => Err(keeper_gone(Step::Contain)),
    }
}

/// Until the keeper has something to say, or the wait itself fails: then whoever reads hears why.
fn be_patient(control: &Control, watcher: &Watcher) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let moment = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    while rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(control, PollFlags::IN)], Some(&moment))) == Ok(0) {
        watcher.tell(0);
    }
}

fn window() -> Option<(u16, u16)> {
    let stdin = std::io::stdin();
    let size = rustix::termios::tcgetwinsize(stdin.as_fd()).ok()?;
    Some((size.ws_row, size.ws_col)).filter(|size| *size != (0, 0))
}

fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).named("fcntl", || "F_DUPFD_CLOEXEC".into()).at(Step::Admit)
}

fn open_null() -> Result<OwnedFd> {
    let null = File::open("/dev/null").map_err(|e| SysError::io("open", "/dev/null", &e)).at(Step::Admit)?;
    Ok(null.into())
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| SysError::io("open", path.display().to_string(), &e))
        .at(Step::Admit)
}
