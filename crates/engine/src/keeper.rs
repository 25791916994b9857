//! The keeper: one small process per container, in its user namespace, parent of its pid 1. It makes the container, loads
//! and rebuilds what runs in it, then waits and remembers how it ended.

mod continued;
mod received;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use yendor_image::FileId;
use yendor_kinds::file::external::Filled;
use yendor_kinds::file::timerfd::Clocks;
use yendor_kinds::file::{Entry, Record, Workshop};
use yendor_kinds::namespace::ipc;
use yendor_kinds::namespace::network::Network;
use yendor_kinds::snapshot::{Bound, Snapshot};
use yendor_kinds::{Cause, Named};
use yendor_sys::SysError;

use crate::ark::{self, Ark};
use crate::blame;
use crate::claim;
use crate::collect::namespace;
use crate::compose;
use crate::console::{Console, Door};
use crate::contain::{self, Cgroup, Contained, Given, Usher};
use crate::control::Control;
use crate::error::{At, Error, Result, Step, With};
use crate::hole;
use crate::label::Labels;
use crate::layers;
use crate::load::{Front, Hashing, Loader};
use crate::log::Log;
use crate::nested::Nested;
pub use crate::outer::{Inherited, inherit};
use crate::pager::{Filling, Waiting};
use crate::processor;
use crate::rebuild::{Image, Later, Materials, Rebuilt, Running, rebuild};
use crate::recorder::{self, Recorder};
use crate::request::{Net, Request, Root};
use crate::setting;
use crate::state::{self, Standard, State, Status};
use crate::who::{self, Surroundings};
use crate::wire::{Failure, Memory, Report, Started, Startup, Stdio};

use continued::{check_seal, continue_clocks, mount_own, own_start, set_names};
use received::{receive_plain, receive_shared};

/// Phases and how long they took.
struct Clock {
    last: Instant,
    phases: Vec<(String, u64)>,
}

impl Clock {
    fn mark(&mut self, phase: &str) {
        let us = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phases.push((phase.into(), us));
        self.last = Instant::now();
    }
}

/// The keeper's whole life in the container's user namespace. Never returns.
pub fn keeper_main() -> ! {
    let code = match inherit() {
        Ok(inherited) => live(inherited),
        // Not started by a front: there is nobody to tell.
        Err(_) => 2,
    };
    std::process::exit(code)
}

fn live(inherited: Inherited) -> i32 {
    let Inherited { control, startup, descriptors: mut claim, cgroup, usher } = inherited;
    let descriptors = claim.split_off(claim.len().min(2));
    let [directory, parent] = claim.as_slice() else { return 1 };
    // Now: later /proc is the container's, or none.
    let around = Surroundings::look();
    let killed = cgroup.as_ref().map(Cgroup::killed);
    match start(&startup, descriptors, &control, (usher, cgroup)) {
        Err(e) => {
            // Where it is refused, or too early, the front removes what stays.
            let _ = contain::leave();
            claim::discard(&startup.request.name, directory, parent);
            let short = killed.is_some_and(|killed| killed.load(Relaxed));
            let e = if short { who::wants_memory(e, startup.request.memory) } else { e };
            let e = around.name(e, startup.request.pids);
            let e = blame::filter(e, around.filter(startup.request.bounds().contains(&Bound::Seccomp)));
            let e = if startup.spec.is_none() { blame::image(e, is_alone(&startup.request)) } else { e };
            // If the front is gone, nobody wants to know.
            let _ = control.send(&Report::Failed(Failure::from(&e)), &[]);
            1
        }
        Ok((mut kept, started)) => {
            // If the front has died since its tasks run: as if it had died a moment later, the container goes on. One that
            // lives and cannot be told must not take it for lost, nor wait for ever.
            let shared = kept.shared.take();
            let shared: Vec<_> = shared.iter().map(AsFd::as_fd).collect();
            if control.send(&Report::Started(started), &shared).is_err() && front_lives(&control).is_ok() {
                kept.running.end();
            }
            kept.watch(&control);
            0
        }
    }
}

/// Rows and columns of a terminal that nobody looks at.
const USUAL_SIZE: (u16, u16) = (24, 80);

/// A running container and what the keeper needs to see it to its end.
struct Kept {
    running: Running,
    directory: OwnedFd,
    state: State,
    door: Option<Door>,
    recorder: Option<Recorder>,
    console: Option<Console>,
    log: Option<Log>,
    /// Whether its directory goes with it.
    remove: bool,
    /// Memory for others to share, until the front has it.
    shared: Option<OwnedFd>,
    /// Memory that is on its way.
    filling: Option<Filling>,
    /// Kept open: checkpoints compare with them, and reach the container's layer through them.
    _open: Vec<OwnedFd>,
}

/// Whether addresses and names of sockets are the container's only.
fn is_alone(request: &Request) -> bool {
    request.net != Net::Host && request.root != Root::Caller
}

/// Whether somebody waits for this container still: a start whose front has died is undone.
fn front_lives(control: &Control) -> std::result::Result<(), Cause> {
    Front::of(control).lives()
}

/// Everything up to the point where the tasks run; whatever fails, fails before that.
fn start(
    startup: &Startup,
    descriptors: Vec<OwnedFd>,
    control: &Control,
    (usher, cgroup): (Usher, Option<Cgroup>),
) -> Result<(Kept, Started)> {
    let mut clock = Clock { last: Instant::now(), phases: Vec::new() };
    let mut descriptors = descriptors.into_iter();
    let mut next = || {
        descriptors.next().ok_or_else(|| SysError::new("recvmsg", "a descriptor is missing", rustix::io::Errno::BADMSG))
    };
    let stdio = [next().at(Step::Contain)?, next().at(Step::Contain)?, next().at(Step::Contain)?];
    let image = if startup.spec.is_none() { Some(next().at(Step::Load)?) } else { None };
    let device = startup.lazy.map(|_| next()).transpose().at(Step::Load)?;
    let mut labels = Labels::look(&startup.request, image.as_ref())?;
    let given = Given::received(&startup.request, &mut descriptors)?;
    // Now: later children are born into the container's pid namespace. It reads nothing before there is a container.
    let mut plain = startup.plain.map(|shape| receive_plain(control, shape)).transpose().at(Step::Load)?;
    let memory = startup.cloning.map(|cloning| cloning.memory);
    let given_memory = (memory == Some(Memory::Given)).then(|| receive_shared(control)).transpose().at(Step::Load)?;
    let start = |image: &OwnedFd| Loader::start(image.as_fd(), plain.as_ref(), &startup.trust);
    let loader = image.as_ref().map(start).transpose()?;
    let waiting = match (&image, &device) {
        (Some(image), Some(_)) if plain.is_none() => Some(Waiting::start(image.as_fd())?),
        _ => None,
    };
    let hashing = match &image {
        Some(image) if plain.is_none() && waiting.is_none() && memory != Some(Memory::Given) => {
            Hashing::start(image.as_fd())?
        }
        _ => None,
    };
    let mut contained = contain::prepare(&startup.request, &given, usher, cgroup)?;
    let mut request = startup.request.clone();
    // What a terminal shows while nobody looks goes to the log, too. The caller's own output is none.
    let log = (startup.stdio != Stdio::Inherit).then(|| stdio[1].try_clone()).transpose();
    let log = log.map_err(|e| SysError::io("dup", "log", &e)).at(Step::Contain)?;
    let console = (startup.stdio == Stdio::Terminal).then(Console::open).transpose().at(Step::Contain)?;
    let stdio = match (&console, stdio) {
        (Some(console), _) => console.thrice().at(Step::Contain)?,
        // The container's own, not the host's: it is the same device, but a file whose mode and owner can be changed.
        (None, [_, out, err]) if startup.stdio == Stdio::Log && startup.request.root != Root::Caller => {
            [open_null().at(Step::Contain)?, out, err]
        }
        (None, stdio) => stdio,
    };
    let directory = contained.state.try_clone().map_err(|e| SysError::io("dup", "state", &e)).at(Step::Contain)?;
    clock.mark("contain");
    front_lives(control).at(Step::Contain)?;
    let (reader, snapshot) = match (&startup.spec, loader.zip(image)) {
        (Some(spec), _) => (None, compose::compose(spec, &startup.request, &contained, console.is_some())?),
        (None, Some((loader, image))) => {
            let loaded = loader.load(Front::of(control))?;
            labels.still(&image)?;
            let (mut reader, snapshot) = loaded.open(image, plain.take())?;
            // Whoever made the image decides how long its files are.
            reader.read_for(control.as_fd()).at(Step::Load)?;
            check_seal(&reader, startup.seal).at(Step::Load)?;
            (Some(reader), snapshot)
        }
        (None, None) => return Err(Error::new(Step::Load, Cause::corrupt("neither a program nor an image"))),
    };
    let hashing = hashing.zip(reader.as_ref()).and_then(|(hashing, reader)| hashing.listed(reader.manifest()));
    let mut snapshot = if memory.is_some() { cloned(snapshot) } else { snapshot };
    if startup.request.policy.no_new_privs {
        snapshot.no_new_privs();
    }
    labels.admit(&snapshot, &startup.granted)?;
    let lacking = processor::check(&snapshot.machine, request.any_cpu)?;
    clock.mark("load");
    // A terminal that the image had is made again, asked for or not: its tasks sit at it.
    let late = console.is_none() && snapshot.files.iter().any(|f| matches!(f.record, Record::Console(_)));
    let console = if late { Some(Console::open().at(Step::Contain)?) } else { console };
    if let (Some(console), Some(size)) = (&console, startup.window.or(startup.spec.as_ref().map(|_| USUAL_SIZE))) {
        console.resize(size).at(Step::Contain)?;
    }
    let log = if late { Some(open_log(&directory).at(Step::Contain)?) } else { log };
    let keeper_start = own_start(&contained).at(Step::Contain)?;
    let generation = reader.as_ref().map_or(0, |r| r.manifest().generation);
    let (mut clocks, mut settings) = (Clocks::default(), None);
    let mut nested = Nested::default();
    let layers = layers::own(&startup.request, &directory).at(Step::Contain)?;
    setting::loopback(&snapshot, &request).at(Step::Contain)?;
    if let Some(reader) = &reader {
        hole::fill(&snapshot, &mut request, &contained)?;
        set_names(startup, &snapshot).at(Step::Rebuild)?;
        let ahead;
        (clocks, ahead) = continue_clocks(&mut contained, snapshot.container.clocks).at(Step::Rebuild)?;
        layers::fill(&snapshot, &request, reader).at(Step::Rebuild)?;
        mount_own(&mut contained, &snapshot, &request, reader)?;
        // Before settings say how many there may be.
        nested = Nested::make(&snapshot, &contained, reader, ahead).at(Step::Rebuild).kind("namespace", "nested")?;
        settings =
            setting::set(&snapshot, &request, &contained.host_proc).at(Step::Rebuild).kind("namespace", "settings")?;
        if let Some(record) = &snapshot.container.ipc {
            ipc::rebuild(record, contained.host_proc.as_fd(), reader).at(Step::Rebuild).kind("namespace", "ipc")?;
        }
        clock.mark("layers");
        front_lives(control).at(Step::Rebuild)?;
    }
    let slave = console.as_ref().map(|c| &c.slave);
    let outside = Outside { stdio: &stdio, console: slave };
    let proc = contained.host_proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Contain)?;
    let ark = match (memory, &reader, given_memory) {
        (Some(Memory::Made), Some(reader), _) => Some(Ark::make(&snapshot, reader).at(Step::Load)?),
        (Some(Memory::Given), _, Some(fd)) => Some(Ark::given(fd, &snapshot).at(Step::Load)?),
        _ => None,
    };
    // Outlives the tasks, also where this fails.
    let later = match (device.zip(waiting), &reader) {
        (Some((device, waiting)), Some(reader)) => {
            Later::new((reader, &snapshot), device, waiting, startup.lazy.unwrap_or_default())?
        }
        _ => None,
    };
    let image = reader.as_ref().map(|reader| {
        let (hashing, ark, later) = (hashing.as_ref(), ark.as_ref(), later.as_ref());
        Image { reader, hashing, ark, later }
    });
    let built = build(&snapshot, image, &startup.request, &mut labels, contained, &nested, (clocks, &outside));
    let mut rebuilt = built.map_err(|e| later.as_ref().and_then(Later::failure).unwrap_or(e))?;
    if let Some((later, reader)) = later.as_ref().zip(reader.as_ref()) {
        later.compare(&snapshot, reader)?;
    }
    if startup.lazy.is_some() && !later.as_ref().is_some_and(Later::is_filling) {
        rebuilt.notes.push(Later::WHY_NOT.into());
    }
    if let Some((hashing, reader)) = hashing.zip(reader.as_ref()) {
        // Tasks have read what must be right before they run.
        hashing.compare(reader.manifest(), Front::of(control))?;
    }
    let weaker = request.weaker_than(&snapshot.container.bounds);
    let mut state = state(startup, request, (rebuilt.init, rebuilt.main), generation, keeper_start);
    let (mut mounts, _) = namespace::mounts(proc.as_fd(), rebuilt.init).at(Step::Rebuild)?;
    namespace::look(&mut mounts, (proc.as_fd(), rebuilt.init), |_| true).at(Step::Rebuild)?;
    let own = startup.request.net != Net::Host;
    let network = own.then(|| Network::of(proc.as_fd(), rebuilt.init)).transpose().at(Step::Rebuild)?;
    let recorder;
    (state.filters, recorder) = recorder::start(&mut rebuilt, &snapshot, &directory, proc).at(Step::Confine)?;
    state.terminal = console.is_some();
    state.cgroups = rebuilt.cgroups();
    let kinds = [Standard::Stdin, Standard::Stdout, Standard::Stderr];
    // A terminal of the container's own is known by its master, which no task has.
    let stdio_kept = if console.is_some() && !late { &[][..] } else { &stdio[..] };
    state.standard = stdio_kept.iter().map(AsRawFd::as_raw_fd).zip(kinds).collect();
    state.layers = layers.iter().map(|(mount, fd)| (mount.clone(), fd.as_raw_fd())).collect();
    state.mounts = rebuilt.again.base(mounts);
    state.network = network;
    state::write(&directory, &state).at(Step::Thaw)?;
    let open = stdio.into_iter().chain(layers.into_iter().map(|(_, fd)| fd)).collect();
    let door = Door::open(&directory).at(Step::Thaw)?;
    clock.mark("rebuild");
    front_lives(control).at(Step::Thaw)?;
    if let Some(signal) = startup.cloning.and_then(|cloning| cloning.signal) {
        // It stands still: this is the first thing that it will see.
        tell(rebuilt.main, signal).at(Step::Thaw)?;
    }
    let running = rebuilt.thaw()?;
    clock.mark("thaw");
    let started = Started {
        main: running.main,
        init: running.init,
        notes: running.notes.iter().cloned().chain(settings).chain(weaker).chain(lacking).collect(),
        timings: clock.phases,
        terminal: late,
    };
    Ok((
        Kept {
            running,
            directory,
            state,
            door: Some(door),
            recorder,
            console,
            log: log.map(Log::new),
            remove: startup.remove,
            shared: ark.filter(|_| memory == Some(Memory::Made)).map(Ark::into_descriptor),
            filling: later.and_then(Later::into_filling),
            _open: open,
        },
        started,
    ))
}

fn tell(pid: i32, signal: i32) -> std::result::Result<(), SysError> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let opened = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    yendor_sys::process::send_signal(&opened.named("pidfd_open", || format!("{pid}"))?, signal)
}

fn cloned(mut snapshot: Snapshot) -> Snapshot {
    ark::forget(&mut snapshot);
    snapshot
}

/// What the container has of the world outside.
struct Outside<'a> {
    stdio: &'a [OwnedFd; 3],
    /// Its side of its terminal.
    console: Option<&'a OwnedFd>,
}

fn open_null() -> std::result::Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).named("open", || "\"/dev/null\"".into())
}

/// The container's log, where the front made none.
fn open_log(directory: &OwnedFd) -> std::result::Result<OwnedFd, SysError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, "log", flags, Mode::RUSR | Mode::WUSR).named("openat", || "log".into())
}

fn build(
    snapshot: &Snapshot,
    image: Option<Image<'_>>,
    request: &Request,
    labels: &mut Labels,
    contained: Contained,
    nested: &Nested,
    (clocks, outside): (Clocks, &Outside<'_>),
) -> Result<Rebuilt> {
    let [stdin, stdout, stderr] = outside.stdio;
    let dup = |fd: &OwnedFd| fd.try_clone().map(Some).map_err(|e| SysError::io("dup", "", &e)).at(Step::Rebuild);
    let console = outside.console.map(dup).transpose()?.flatten();
    let filled = Filled { stdin: dup(stdin)?, stdout: dup(stdout)?, stderr: dup(stderr)?, console };
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .named("open", || "/".into())
        .at(Step::Rebuild)?;
    let proc = || contained.host_proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Rebuild);
    let mut workshop = Workshop::new(image.map(|i| i.reader), root, proc()?, filled, &snapshot.files).at(Step::Load)?;
    workshop.clocks = clocks;
    let proc = proc()?;
    let finishing = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Rebuild)?;
    let rebuilt = rebuild(Materials { snapshot, image, request, labels, workshop, proc, contained, nested })?;
    if let Some(record) = &snapshot.container.ipc {
        ipc::finish(record, finishing.as_fd()).at(Step::Thaw).kind("namespace", "ipc")?;
    }
    nested.finish(snapshot, &finishing).at(Step::Thaw).kind("namespace", "nested")?;
    Ok(rebuilt)
}

fn state(
    startup: &Startup,
    request: Request,
    (init, main): (i32, i32),
    generation: u64,
    (keeper_start, keeper_ahead): (u64, i64),
) -> State {
    let keeper = rustix::process::getpid().as_raw_nonzero().get();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    State {
        name: startup.request.name.clone(),
        status: Status::Running,
        keeper,
        keeper_start,
        keeper_ahead: Some(keeper_ahead),
        init,
        main,
        started,
        request,
        image: startup.image.clone(),
        logged: startup.stdio == Stdio::Log,
        terminal: false,
        standard: Vec::new(),
        layers: Vec::new(),
        session_keyring: yendor_sys::raw::session_keyring().ok(),
        mounts: Vec::new(),
        network: None,
        filters: 0,
        failure: None,
        taken: None,
        generation,
        cgroups: Vec::new(),
    }
}

impl Kept {
    /// Waits for the end and tells everybody.
    fn watch(&mut self, control: &Control) {
        const SIGKILL: i32 = 9;
        let init = rustix::process::Pid::from_raw(self.running.init);
        let end = init.and_then(|p| rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok());
        if let (Some(door), Some(end)) = (self.door.take(), end) {
            let terminal = (self.console.as_ref(), self.log.as_mut());
            door.serve(end.as_fd(), terminal, self.recorder.as_mut(), self.filling.as_mut());
        }
        let mut status = self.running.wait().ok().flatten().unwrap_or(SIGKILL);
        let failure = self.filling.as_mut().and_then(Filling::failure);
        if let Some(failure) = &failure {
            // As an exit code.
            status = i32::from(Error::from(failure.clone()).exit_code()) << 8;
        }
        self.state.failure.clone_from(&failure);
        self.state.status = if self.is_checkpointed() { Status::Checkpointed } else { Status::Exited(status) };
        if self.state.status == Status::Checkpointed {
            self.state.taken = state::taken(&self.directory);
        }
        // Empty now.
        drop(self.running.cgroup.take());
        // The directory may be gone with its container (`rm -f`).
        let _ = state::write_last(&self.directory, &self.state);
        if self.remove {
            let _ = contain::leave();
            // What cannot be removed stays to be seen by `ps -a`, and `rm` says why.
            let _ = crate::state::remove_open(&self.directory, &self.state.name);
        }
        let _ = control.send(&failure.map_or(Report::Ended(status), Report::Failed), &[]);
    }

    /// Whether somebody holds the lock that says so; what one has left who died before does not count.
    fn is_checkpointed(&self) -> bool {
        use rustix::fs::{FlockOperation, flock, openat};
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(file) = openat(&self.directory, CHECKPOINTED, flags, Mode::empty()) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }
}

/// A checkpoint that ends a container holds a lock on this file of its directory, so that the keeper knows why it ended.
pub const CHECKPOINTED: &str = "checkpointed";

/// The file of a container that is composed with a terminal.
pub(crate) fn terminal_file() -> Entry {
    use yendor_kinds::file::console;
    const O_RDWR: u32 = 2;
    Entry {
        id: FileId(0),
        flags: O_RDWR,
        owner: None,
        labels: Vec::new(),
        mounts: None,
        network: None,
        record: Record::Console(console::Record { terminal: None }),
    }
}

/// The files of a container that is composed: the three standard ones.
pub(crate) fn standard_files() -> Vec<Entry> {
    use yendor_kinds::file::external;
    let kinds = [external::Record::Stdin, external::Record::Stdout, external::Record::Stderr];
    let entry = |(i, record): (usize, external::Record)| Entry {
        id: FileId(u32::try_from(i).unwrap_or(0)),
        flags: 0,
        owner: None,
        labels: Vec::new(),
        mounts: None,
        network: None,
        record: Record::External(record),
    };
    kinds.into_iter().enumerate().map(entry).collect()
}
