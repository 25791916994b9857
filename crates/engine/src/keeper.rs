//! The keeper: one small process per container, in its user namespace, parent of its pid 1. It makes the container, loads
//! and rebuilds what runs in it, then waits and remembers how it ended.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use yendor_image::{Digest, FileId, Reader};
use yendor_kinds::file::external::Filled;
use yendor_kinds::file::timerfd::Clocks;
use yendor_kinds::file::{Entry, Record, Workshop};
use yendor_kinds::namespace::ipc;
use yendor_kinds::namespace::network::Network;
use yendor_kinds::snapshot::Snapshot;
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
use crate::load::{Hashing, Loader, Plain};
use crate::nested::Nested;
pub use crate::outer::{Inherited, inherit};
use crate::rebuild::{Image, Materials, Rebuilt, Running, rebuild};
use crate::recorder::{self, Recorder};
use crate::request::{Net, Request, Root};
use crate::setting;
use crate::state::{self, Standard, State, Status};
use crate::who::Surroundings;
use crate::wire::{Failure, Memory, More, Report, Started, Startup, Stdio};

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
    match start(&startup, descriptors, &control, (usher, cgroup)) {
        Err(e) => {
            // Where it is refused, or too early, the front removes what stays.
            let _ = contain::leave();
            claim::discard(&startup.request.name, directory, parent);
            let e = around.name(e, startup.request.pids);
            let e = if startup.spec.is_none() { blame::image(e) } else { e };
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
    log: OwnedFd,
    /// Whether its directory goes with it.
    remove: bool,
    /// Memory for others to share, until the front has it.
    shared: Option<OwnedFd>,
    /// Kept open: checkpoints compare with them, and reach the container's layer through them.
    _open: Vec<OwnedFd>,
}

/// Whether somebody waits for this container still: a start whose front has died is undone.
fn front_lives(control: &Control) -> std::result::Result<(), Cause> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(control, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut fds, Some(&now)).named("poll", || "control".into())? {
        0 => Ok(()),
        _ => Err(Cause::Reported { message: "the caller has died".into(), code: 1 }),
    }
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
    let mut labels = Labels::look(&startup.request, image.as_ref())?;
    let given = Given::received(&startup.request, &mut descriptors)?;
    // Now: later children are born into the container's pid namespace. It reads nothing before there is a container.
    let mut plain = startup.plain.map(|shape| receive_plain(control, shape)).transpose().at(Step::Load)?;
    let memory = startup.cloning.map(|cloning| cloning.memory);
    let given_memory = (memory == Some(Memory::Given)).then(|| receive_shared(control)).transpose().at(Step::Load)?;
    let start = |image: &OwnedFd| Loader::start(image.as_fd(), plain.as_ref(), &startup.trust);
    let loader = image.as_ref().map(start).transpose()?;
    let hashing = match &image {
        Some(image) if plain.is_none() && memory != Some(Memory::Given) => Hashing::start(image.as_fd())?,
        _ => None,
    };
    let mut contained = contain::prepare(&startup.request, &given, usher, cgroup)?;
    let mut request = startup.request.clone();
    // What a terminal shows while nobody looks goes to the log.
    let log = stdio[1].try_clone().map_err(|e| SysError::io("dup", "log", &e)).at(Step::Contain)?;
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
            let (reader, snapshot) = loader.load()?.open(image, plain.take())?;
            check_seal(&reader, startup.seal).at(Step::Load)?;
            (Some(reader), snapshot)
        }
        (None, None) => return Err(Error::new(Step::Load, Cause::corrupt("neither a program nor an image"))),
    };
    let snapshot = if memory.is_some() { cloned(snapshot) } else { snapshot };
    labels.admit(&snapshot, &startup.granted)?;
    clock.mark("load");
    // A terminal that the image had is made again, asked for or not: its tasks sit at it.
    let late = console.is_none() && snapshot.files.iter().any(|f| matches!(f.record, Record::Console(_)));
    let console = if late { Some(Console::open().at(Step::Contain)?) } else { console };
    if let (Some(console), Some(size)) = (&console, startup.window.or(startup.spec.as_ref().map(|_| USUAL_SIZE))) {
        console.resize(size).at(Step::Contain)?;
    }
    let log = if late { open_log(&directory).at(Step::Contain)? } else { log };
    let keeper_start = own_start(&contained).at(Step::Contain)?;
    let generation = reader.as_ref().map_or(0, |r| r.manifest().generation);
    let (mut clocks, mut settings) = (Clocks::default(), None);
    let mut nested = Nested::default();
    let layers = layers::own(&startup.request, &directory).at(Step::Contain)?;
    if let Some(reader) = &reader {
        hole::fill(&snapshot, &mut request, &contained)?;
        set_names(startup, &snapshot).at(Step::Rebuild)?;
        clocks = continue_clocks(&mut contained, snapshot.container.clocks);
        layers::fill(&snapshot, &request, reader).at(Step::Rebuild)?;
        // Before settings say how many there may be.
        nested = Nested::make(&snapshot, contained.host_proc.as_fd(), reader)
            .at(Step::Rebuild)
            .kind("namespace", "nested")?;
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
    let image = reader.as_ref().map(|reader| Image { reader, hashing: hashing.as_ref(), ark: ark.as_ref() });
    let mut rebuilt = build(&snapshot, image, &startup.request, &mut labels, contained, &nested, (clocks, &outside))?;
    if let Some((hashing, reader)) = hashing.zip(reader.as_ref()) {
        // Tasks have read what must be right before they run.
        hashing.compare(reader.manifest())?;
    }
    let mut state = state(startup, request, (rebuilt.init, rebuilt.main), generation, keeper_start);
    let mounts = namespace::mounts(proc.as_fd(), rebuilt.init).at(Step::Rebuild)?;
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
    state.mounts = mounts;
    state.network = network;
    write_state(&directory, &state).at(Step::Thaw)?;
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
        notes: running.notes.iter().cloned().chain(settings).collect(),
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
            log,
            remove: startup.remove,
            shared: ark.filter(|_| memory == Some(Memory::Made)).map(Ark::into_descriptor),
            _open: open,
        },
        started,
    ))
}

/// What is in the files of an encrypted or compressed image, from the front.
fn receive_plain(control: &Control, (count, records): (usize, Option<usize>)) -> std::result::Result<Plain, Cause> {
    let mut files = Vec::new();
    while files.len() < count {
        match control.receive::<More>()? {
            Some((More, more)) if !more.is_empty() => files.extend(more),
            _ => break,
        }
    }
    Plain::received(files, records)
}

/// Memory that another keeper has made.
fn receive_shared(control: &Control) -> std::result::Result<OwnedFd, Cause> {
    let more = control.receive::<More>()?.and_then(|(More, more)| more.into_iter().next());
    more.ok_or_else(|| SysError::new("recvmsg", "a descriptor is missing", rustix::io::Errno::BADMSG).into())
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

/// The caller chose the container's surroundings for an image that it looked at: it must be that one still.
fn check_seal(reader: &Reader, wanted: Option<Digest>) -> std::result::Result<(), Cause> {
    let Some(wanted) = wanted else { return Ok(()) };
    if reader.seal()? == wanted { Ok(()) } else { Err(Cause::corrupt("it was changed while it was being restored")) }
}

/// The names that the image's tasks knew, unless the caller wants another.
fn set_names(startup: &Startup, snapshot: &Snapshot) -> std::result::Result<(), Cause> {
    let container = &snapshot.container;
    if startup.request.hostname.is_none() {
        let name = &container.hostname;
        rustix::system::sethostname(&name.0).named("sethostname", || name.to_string())?;
    }
    let name = &container.domainname;
    rustix::system::setdomainname(&name.0).named("setdomainname", || name.to_string())?;
    Ok(())
}

/// The container's clocks go on from where they stood.
fn continue_clocks(contained: &mut Contained, (monotonic, boottime): (u64, u64)) -> Clocks {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let distance = |saved: u64, clock| -> i128 {
        let now = clock_gettime(clock);
        i128::from(saved) - (i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec))
    };
    let time = |ns: i128| Timespec {
        tv_sec: i64::try_from(ns.div_euclid(1_000_000_000)).unwrap_or(0),
        tv_nsec: i64::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0),
    };
    let (monotonic, boottime) = (distance(monotonic, ClockId::Monotonic), distance(boottime, ClockId::Boottime));
    contained.set_time_offsets(time(monotonic), time(boottime));
    let ahead = |ns: i128| i64::try_from(ns).unwrap_or(0);
    Clocks { monotonic: ahead(monotonic), boottime: ahead(boottime) }
}

/// Start time of this process, as /proc shows it.
fn own_start(contained: &Contained) -> std::result::Result<u64, Cause> {
    use std::os::fd::AsFd as _;
    let text = yendor_task::tree::read_proc(contained.host_proc.as_fd(), "self/stat")?;
    Ok(yendor_proc::stat::parse(&text)?.starttime)
}

fn state(startup: &Startup, request: Request, (init, main): (i32, i32), generation: u64, keeper_start: u64) -> State {
    let keeper = rustix::process::getpid().as_raw_nonzero().get();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    State {
        name: startup.request.name.clone(),
        status: Status::Running,
        keeper,
        keeper_start,
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
        generation,
        cgroups: Vec::new(),
    }
}

/// Writes state.json beside itself, then renames.
fn write_state(directory: &OwnedFd, state: &State) -> std::result::Result<(), Cause> {
    let text =
        serde_json::to_vec_pretty(state).map_err(|_| SysError::new("write", "state.json", rustix::io::Errno::INVAL))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, "state.json.new", flags, Mode::RUSR | Mode::WUSR)
        .named("openat", || "state.json.new".into())?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, &text).map_err(|e| SysError::io("write", "state.json.new", &e))?;
    rustix::fs::renameat(directory, "state.json.new", directory, state::FILE)
        .named("renameat", || "state.json".into())?;
    Ok(())
}

impl Kept {
    /// Waits for the end and tells everybody.
    fn watch(&mut self, control: &Control) {
        const SIGKILL: i32 = 9;
        let init = rustix::process::Pid::from_raw(self.running.init);
        let end = init.and_then(|p| rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok());
        if let (Some(door), Some(end)) = (self.door.take(), end) {
            door.serve(end.as_fd(), self.console.as_ref(), Some(&self.log), self.recorder.as_mut());
        }
        let status = self.running.wait().ok().flatten().unwrap_or(SIGKILL);
        self.state.status = if self.is_checkpointed() { Status::Checkpointed } else { Status::Exited(status) };
        // Empty now.
        drop(self.running.cgroup.take());
        // The directory may be gone with its container (`rm -f`).
        let _ = write_state(&self.directory, &self.state);
        if self.remove {
            let _ = contain::leave();
            // What cannot be removed stays to be seen by `ps -a`, and `rm` says why.
            let _ = crate::state::remove_open(&self.directory, &self.state.name);
        }
        let _ = control.send(&Report::Ended(status), &[]);
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
