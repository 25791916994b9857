//! A checkpoint: freeze, collect, store; then the tasks run on, stay stopped, or end.
//!
//! It is done by the caller's own process, inside the container's user namespace, not by the keeper: its death harms
//! nobody (see docs/adr/0001).

mod before;
mod end;
mod gather;
mod groups;
mod guests;
pub mod hang;
mod marker;
mod stop;
mod store;
mod whole;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags};
use yendor_image::crypt::Recipients;
use yendor_image::upgrade::Version;
use yendor_image::{Compression, Digest, Durable, Parent, Watcher, Writer};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_policy::host::Verb;
use yendor_sys::SysError;
use yendor_sys::undo;
use yendor_task::tree::{self, FrozenTree, Top};

use crate::admit;
pub use crate::collect::rounds::{self, Round, Wanted};
use crate::collect::rounds::{Plan, Rounds};
use crate::collect::watch::Watch;
use crate::collect::{Done, Spared, Twins, Why};
use crate::error::{At, Error, Result, Step};
use crate::pager;
use crate::session::Gate;
use crate::setting;
use crate::shadow::Shadow;
use crate::sign::Signer;
use crate::state::State;
use crate::who::Surroundings;
use before::Before;
use end::End;
use store::new_writer;

/// What is checkpointed.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "one per process")]
pub enum Target {
    /// A container of ours, and its directory.
    Container(State, PathBuf),
    /// Any process tree that the caller may trace.
    Tree(i32),
}

/// How.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The tasks run on afterwards.
    pub leave_running: bool,
    /// How many bytes of memory copies of the tasks may take while they run on; none: what the machine has to spare.
    pub max_extra_memory: Option<u64>,
    /// An earlier image: pages that it has are not written again.
    pub parent: Option<PathBuf>,
    /// Not even the one that memory was tracked for.
    pub no_parent: bool,
    /// Writes are tracked from the stop on, for the next checkpoint.
    pub track: bool,
    /// What was tracked is compared all the same.
    pub verify_delta: bool,
    /// Memory is read before the tasks are stopped.
    pub rounds: Option<Wanted>,
    /// Who signs the image.
    pub sign: Option<Signer>,
    /// Who can open it; none: everybody.
    pub encrypt_to: Option<Recipients>,
    /// How it is compressed; none: not at all.
    pub compress: Option<Compression>,
    /// The tasks stay, stopped.
    pub leave_stopped: bool,
    /// Kinds whose loss the caller accepts.
    pub allow_lost: Vec<String>,
    /// Who wants to see how far it is.
    pub watcher: Watcher,
    /// Who is told that it hangs, just before this process ends; none: nobody.
    pub hung: Option<hang::Tell>,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Phases and their microseconds.
    pub timings: Vec<(String, u64)>,
    /// How long the tasks were stopped, in microseconds.
    pub stopped_us: u64,
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes of what is in it: more where it is compressed.
    pub content: u64,
    /// Bytes of memory that were read when the tasks ran again.
    pub read_later: u64,
    /// Bytes of memory that the parent had, and that were not written again.
    pub shared: u64,
    /// What tracking since the image before has spared.
    pub spared: Spared,
    /// Of how many processes writes are tracked now.
    pub tracked: usize,
    /// What was not used, or not done, though it might have been expected.
    pub notes: Vec<String>,
    /// Large processes, by their id inside, whose memory was read while they stood still though they were to run on.
    pub not_copied: Vec<(i32, Why)>,
    /// What was read before the tasks were stopped.
    pub rounds: Vec<Round>,
    /// Large processes, by their id inside, of which nothing was read before they were stopped though it was to be.
    pub not_tracked: Vec<(i32, rounds::Why)>,
    /// Processes.
    pub tasks: usize,
    /// Open files.
    pub files: usize,
    /// What was lost with the caller's consent.
    pub lost: Vec<(String, String)>,
    /// The image's name by content.
    pub seal: Option<Digest>,
}

/// For how long what passes by itself is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Checkpoints into the directory `output`, which must not exist.
///
/// # Errors
/// Whatever hindered it; the tasks run on and no image is left.
pub fn checkpoint(target: &Target, output: &Path, options: &Options) -> Result<Summary> {
    admit::may(Verb::Checkpoint)?;
    attempts(target, output, options).map_err(|e| Surroundings::look().name(e, None))
}

fn attempts(target: &Target, output: &Path, options: &Options) -> Result<Summary> {
    let proc = open_directory("/proc").at(Step::Freeze)?;
    refuse_old_kernel(&proc).at(Step::Freeze)?;
    raise_descriptor_limit();
    if let Target::Container(_, directory) = target {
        // What is missing must not be taken for zeros, nor what tells of it for the program's own.
        pager::wait(directory, || options.watcher.tell(0));
    }
    let reading = Instant::now();
    let mut before = Before::look(target, &proc, options, output)?;
    let read = us(reading);
    // Fails early where nothing can be written.
    let mut writer = new_writer(target, output, options)?;
    if let Target::Container(state, _) = target {
        join(state).at(Step::Freeze)?;
    }
    // From the first failure on.
    let mut begin: Option<Instant> = None;
    let mut pause = Duration::from_millis(5);
    let mut most = options.max_extra_memory;
    loop {
        let (less, held) = (most, before.held.take());
        let was_held = held.is_some();
        match attempt(target, &proc, output, (writer, before.parent.as_ref(), held), options, &mut most) {
            // Whether it has passed by itself, or is done in another way now.
            Err(e)
                if matches!(*e.cause, Cause::Passing { .. })
                    && !e.broken
                    && (begin.get_or_insert_with(Instant::now).elapsed() < PATIENCE || most != less) =>
            {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
                if was_held {
                    // Only what was tracked could do without a look at all of it.
                    before = Before::whole(options, output, before.note.take())?;
                }
                writer = new_writer(target, output, options)?;
            }
            Ok(mut summary) => {
                summary.notes.extend(before.note);
                if before.parent.is_some() {
                    summary.timings.insert(0, ("parent".into(), read));
                }
                return Ok(summary);
            }
            failed => return failed,
        }
    }
}

/// One attempt; whatever hinders it, the tree runs on and nothing is left.
fn attempt(
    target: &Target,
    proc: &OwnedFd,
    output: &Path,
    (writer, parent, held): (Writer, Option<&Parent>, Option<Shadow>),
    options: &Options,
    most: &mut Option<u64>,
) -> Result<Summary> {
    let (top, root) = top(target, proc)?;
    let mut summary = Summary::default();
    let own = if let Target::Container(state, _) = target { Some(setting::own(&state.request)) } else { None };
    let usual = own.map(|own| setting::usual(proc, own)).transpose().at(Step::Collect)?;
    let rounds = early(target, proc, top, (&writer, parent, held), options, &mut summary)?;
    // Commands that are about to begin are waited for, and then wait for us.
    let mut gate = match target {
        Target::Container(_, directory) => Some(Gate::close(directory)?),
        Target::Tree(_) => None,
    };
    let begin = Instant::now();
    // What must go when the tree runs again goes after it.
    let mut twins = if options.leave_running { Some(Twins::new(proc, *most).at(Step::Freeze)?) } else { None };
    let tree = FrozenTree::freeze(proc.as_fd(), top, root).map_err(|e| not_ours(e, proc, top));
    let mut tree = tree.at(Step::Freeze)?;
    let guests = match (&gate, target) {
        (Some(gate), Target::Container(state, _)) => guests::stop(gate, &mut tree, proc, state.init)?,
        _ => Vec::new(),
    };
    if let Some(pid) = tree.headless.first() {
        // Most are on their way out with all their threads.
        let what = format!("process {pid}, whose first thread has ended before the others");
        return Err(Error::new(Step::Freeze, Cause::passing(what)));
    }
    summary.tasks = tree.processes.len() + tree.zombies.len();
    summary.timings.push(("freeze".into(), us(begin)));
    let collecting = Instant::now();
    let tell = options.hung.unwrap_or(|e| e.exit_code());
    let (mut snapshot, rest, aside) = hang::bounded(&writer, tell, || {
        gather::gather(target, &tree, proc, (&writer, parent), options, (twins.as_mut(), rounds, usual))
    })?;
    summary.timings.push(("collect".into(), us(collecting)));
    snapshot.lost.extend(guests);
    let storing = Instant::now();
    summary.files = snapshot.files.len();
    summary.not_copied = twins.as_ref().map_or_else(Vec::new, |twins| twins.missing().to_vec());
    let mut tree = Some(tree);
    if options.leave_running {
        // All bytes are copied, or will be from copies of the tasks, which need not wait.
        drop(tree.take());
        drop(gate.take());
        summary.stopped_us = us(begin);
    }
    let done =
        rest.read(&mut snapshot, twins.as_mut()).map_err(|e| match twins.as_ref().is_some_and(Twins::is_short) {
            true => {
                // Without copies, then.
                *most = Some(0);
                Error::new(Step::Store, Cause::passing(format!("the copy of a task was killed ({e})")))
            }
            false => e,
        })?;
    let Done { later, shared, held, spared } = done;
    (summary.read_later, summary.shared, summary.spared) = (later, shared, spared);
    writer.records(&snapshot).at(Step::Store)?;
    let durable = make_durable(&writer, options)?;
    // Whatever can fail still, before there is an image.
    let end = tree.map(|tree| End::ready(target, tree, options)).transpose()?;
    let mut manifest = durable.publish().at(Step::Store)?;
    let mut seal = manifest.seal(Version::NEWEST).at(Step::Store)?;
    summary.timings.push(("store".into(), us(storing)));
    if let Some(end) = end {
        summary.stopped_us = us(begin);
        end.end(&writer, || {
            let Some((aside, mut gather)) = aside else { return Ok(()) };
            let _watch = undo::Watch::over(Vec::new());
            // The tree cannot be had back, but its image, which says what it lacks.
            let left = "connections not accepted yet (the tree has ended, and in its image they are reset)";
            let broken = |e: Error| Error { broken: true, ..e.kind("unix socket", left) };
            let Snapshot { files, lost, .. } = &mut snapshot;
            aside.look(&mut gather, files, lost).at(Step::Store).map_err(broken)?;
            let amended = writer.amended().at(Step::Store).map_err(broken)?;
            amended.records(&snapshot).at(Step::Store).map_err(broken)?;
            manifest = make_durable(&amended, options)
                .and_then(|durable| durable.publish().at(Step::Store))
                .map_err(broken)?;
            seal = manifest.seal(Version::NEWEST).at(Step::Store).map_err(broken)?;
            Ok(())
        })?;
    }
    summary.lost.clone_from(&snapshot.lost);
    summary.seal = Some(seal);
    (summary.bytes, summary.content) = (manifest.bytes(), manifest.content_bytes());
    if let (Target::Container(_, directory), Some(seal), true) = (target, summary.seal, options.track) {
        match before::leave((output, directory), (manifest, seal), &snapshot, held) {
            Ok(tracked) => summary.tracked = tracked,
            Err(e) => summary.notes.push(format!("writes are not tracked: {e}")),
        }
    }
    Ok(summary)
}

/// Makes the image durable.
fn make_durable<'w>(writer: &'w Writer, options: &Options) -> Result<Durable<'w>> {
    let sign = |manifest: &[u8]| options.sign.as_ref().map(|s| s.sign(manifest)).transpose();
    writer.durable(SystemTime::now(), sign).at(Step::Store)
}

/// What can be read before the tasks are stopped.
fn early<'w>(
    target: &Target,
    proc: &OwnedFd,
    top: Top,
    (writer, parent, held): (&'w Writer, Option<&'w Parent>, Option<Shadow>),
    options: &Options,
    summary: &mut Summary,
) -> Result<Rounds<'w>> {
    if options.rounds.is_none() && !options.track && held.is_none() {
        return Ok(Rounds::default());
    }
    let begin = Instant::now();
    let watch = match target {
        Target::Container(state, directory) => Watch::container(state, directory).at(Step::Store)?,
        Target::Tree(_) => Watch::default(),
    };
    let plan = Plan { rounds: options.rounds, track: options.track, held };
    let rounds = Rounds::make(plan, proc, top, &watch, (writer, parent), &options.watcher).at(Step::Store)?;
    summary.rounds.clone_from(&rounds.done);
    summary.not_tracked = rounds.missing();
    summary.timings.push(("rounds".into(), us(begin)));
    Ok(rounds)
}

fn open_directory(path: &str) -> std::result::Result<OwnedFd, SysError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).named("open", || path.into())
}

/// A task that a debugger holds is nothing that rights would help with.
fn not_ours(error: SysError, proc: &OwnedFd, top: Top) -> Cause {
    match error.errno {
        yendor_sys::Errno::PERM => {}
        yendor_sys::Errno::TIMEDOUT => {
            let what = format!("a task that cannot be stopped where it waits, as in vfork ({error})");
            return Cause::unsupported(what);
        }
        _ => return error.into(),
    }
    let mut left = match top {
        Top::Process(pid) => vec![pid],
        Top::Below(pid) => tree::children(proc.as_fd(), pid).unwrap_or_default(),
    };
    while let Some(pid) = left.pop() {
        let status = tree::read_proc(proc.as_fd(), &format!("{pid}/status")).ok();
        let tracer = status.and_then(|text| yendor_proc::status::parse(&text).ok()).map_or(0, |s| s.tracer_pid);
        if tracer > 0 {
            let name = |pid| tree::read_proc(proc.as_fd(), &format!("{pid}/comm")).unwrap_or_default();
            let [held, holder] = [pid, tracer].map(|pid| name(pid).trim_ascii_end().escape_ascii().to_string());
            return Cause::unsupported(format!("task {pid} ({held}) is traced by {tracer} ({holder})"));
        }
        left.extend(tree::children(proc.as_fd(), pid).unwrap_or_default());
    }
    error.into()
}

/// Without this call nobody can say which pages hold something; its absence would show late, and as something else.
fn refuse_old_kernel(proc: &OwnedFd) -> std::result::Result<(), Cause> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let pagemap = rustix::fs::openat(proc, "self/pagemap", flags, Mode::empty());
    let pagemap = pagemap.named("openat", || "/proc/self/pagemap".into())?;
    match yendor_sys::pagemap::scan(pagemap.as_fd(), 4096, 8192) {
        Err(e) if e.errno == yendor_sys::Errno::NOTTY => {
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            let what = format!("checkpoints under Linux {release}: PAGEMAP_SCAN came with 6.7");
            Err(Cause::unsupported(what))
        }
        other => Ok(other.map(drop)?),
    }
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    // Where it is refused, a tree with more files than the limit fails by name.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// Enters the container's namespaces but its pid and mount namespaces: ids, names and sockets are then seen as inside,
/// while processes and the image's place stay in sight.
fn join(state: &State) -> std::result::Result<(), Cause> {
    let namespaces = ["user", "uts", "ipc", "net"];
    let mut open = Vec::new();
    for name in namespaces {
        let path = format!("/proc/{}/ns/{name}", state.init);
        let theirs = rustix::fs::stat(path.as_str()).named("stat", || path.clone())?;
        let own = rustix::fs::stat(format!("/proc/self/ns/{name}").as_str()).named("stat", || name.into())?;
        if theirs.st_ino != own.st_ino {
            let fd = rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            open.push((name, fd.named("open", || path.clone())?));
        }
    }
    for (name, fd) in open {
        rustix::thread::move_into_link_name_space(fd.as_fd(), None).named("setns", || name.into())?;
    }
    Ok(())
}

/// The network that we have joined, by its number.
fn own_network() -> std::result::Result<u64, Cause> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    Ok(yendor_sys::sock::namespace_cookie(socket.named("socket", || "AF_UNIX".into())?.as_fd())?)
}

/// Where to begin to freeze, and the process that everything grows from.
fn top(target: &Target, proc: &OwnedFd) -> Result<(Top, i32)> {
    match target {
        Target::Tree(pid) => Ok((Top::Process(*pid), *pid)),
        Target::Container(state, _) if state.init == state.main => Ok((Top::Process(state.init), state.init)),
        Target::Container(state, _) => {
            let all = tree::children(proc.as_fd(), state.init).at(Step::Freeze)?;
            if !all.contains(&state.main) {
                let what = format!("container {} has ended", state.name);
                return Err(Error::new(Step::Freeze, Cause::Reported { message: what, code: 1 }));
            }
            Ok((Top::Below(state.init), state.main))
        }
    }
}
