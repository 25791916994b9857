//! What `run` and `restore` have in common: a launch, and staying with what was started or not.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use serde_json::{Value, json};
use yendor_engine::claim;
use yendor_engine::contain::userns::{self, Caller};
use yendor_engine::error::{Error, Step};
use yendor_engine::front::{Cloning, Launch, Lazy, Source, Spec, Started, Stdio, launch};
use yendor_engine::load::Plain;
use yendor_engine::request::Request;
use yendor_engine::state::{Places, Status};
use yendor_image::Watcher;
use yendor_kinds::Cause;

use crate::container::{Found, Now};
use crate::failure::{Failure, Outcome};
use crate::terminal::End;
use crate::verb::guard::GuardOptions;
use crate::{container, foreground, parse, print, progress, signal};

/// A container to start, and what to do with it then.
pub struct Start {
    /// Public keys, one of which must have signed the image.
    pub keys: Vec<String>,
    /// What the caller wants.
    pub request: Request,
    /// What runs in it.
    pub source: Source,
    /// What is in the image, where it is encrypted.
    pub plain: Option<Plain>,
    /// The image's name.
    pub image: Option<String>,
    /// Whether the caller goes on at once.
    pub detach: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether its directory goes with it.
    pub remove: bool,
    /// Who takes checkpoints of it while it runs.
    pub guard: GuardOptions,
    /// Where its root task's pid is written.
    pub pidfile: Option<PathBuf>,
    /// Whether the summary is JSON.
    pub json: bool,
    /// `started` or `restored`.
    pub done: &'static str,
    /// Whether it is one of several from one image.
    pub cloning: Option<Cloning>,
    /// The memory that it is given then.
    pub shared: Option<OwnedFd>,
    /// What lets its memory come later.
    pub lazy: Option<(Arc<OwnedFd>, Lazy)>,
}

impl Start {
    /// Starts it.
    pub fn go(self, places: Places) -> Outcome {
        self.with_memory(places).map(|(code, _)| code)
    }

    /// Starts it; also, the memory that it has made for others to share.
    pub fn with_memory(self, places: Places) -> Result<(u8, Option<OwnedFd>), Failure> {
        let begin = Instant::now();
        let name = self.request.name.clone();
        let stdio = match (self.tty, self.detach) {
            (true, _) => Stdio::Terminal,
            (false, true) => Stdio::Log,
            (false, false) => Stdio::Inherit,
        };
        let mut what = Launch {
            keys: self.keys,
            request: self.request,
            source: self.source,
            stdio,
            places: places.clone(),
            image_ref: self.image.clone(),
            remove: self.remove && self.detach,
            watcher: progress::watcher(&format!("starting {name}"), false),
            cloning: self.cloning,
            lazy: self.lazy,
        };
        let hidden = if self.detach { Some(Hidden::hide()?) } else { None };
        let launched = launch(&what, self.plain, self.shared.as_ref());
        what.watcher = Watcher::default();
        drop(hidden);
        let mut started = launched.map_err(|e| explain(e, &what))?;
        let total = print::since(begin);
        if let Some(path) = &self.pidfile
            && let Err(e) = write_pid(path, started.main)
        {
            undo(&places, &name);
            return Err(Failure::io("write", path, &e));
        }
        if let Err(failure) = self.guard.start(&places, &name) {
            undo(&places, &name);
            return Err(failure);
        }
        for note in &started.notes {
            print::note(&format!("note: {note}"));
        }
        let mut summary = json!({
            "phases": print::phases_json(&started.timings), "total_us": total, "name": name, "pid": started.main,
            "image": self.image, "notes": started.notes,
        });
        let sentence =
            format!("{} {name} in {} ({})", self.done, print::micros(total), print::phases(&started.timings));
        if !self.detach {
            let tty = self.tty || started.terminal;
            let drawn = self.image.is_some();
            let how = Stay { tty, remove: self.remove, json: self.json, drawn, sentence };
            return stay(started, &places, &name, &how, summary).map(|code| (code, None));
        }
        if self.json {
            print::out(&summary.take().to_string());
        } else {
            if self.image.is_some() {
                print::note(&sentence)
            } else {
                print::detail(&sentence)
            }
            print::out(&name);
        }
        Ok((0, started.shared.take()))
    }
}

/// The caller's standard descriptors, out of the way of a launch: a keeper that inherits them would keep
/// `$(yendor run -d ...)` waiting for as long as the container lives.
struct Hidden {
    kept: [OwnedFd; 3],
}

impl Hidden {
    fn hide() -> Result<Hidden, Failure> {
        let failed = |e: Errno| Failure::Failed(format!("standard descriptors: {e}"));
        let keep = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(failed);
        let kept = [keep(stdin())?, keep(stdout())?, keep(stderr())?];
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let hidden = Hidden { kept };
        place([&null, &null, &null]).map_err(failed)?;
        Ok(hidden)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // They were there before, so there is room for them.
        let _ = place(self.kept.each_ref());
    }
}

fn place([input, output, error]: [&OwnedFd; 3]) -> Result<(), Errno> {
    dup2_stdin(input)?;
    dup2_stdout(output)?;
    dup2_stderr(error)
}

struct Stay {
    tty: bool,
    remove: bool,
    json: bool,
    /// Whether its programs ran before: what they have drawn is to be seen again.
    drawn: bool,
    sentence: String,
}

fn stay(started: Started, places: &Places, name: &str, how: &Stay, summary: Value) -> Outcome {
    if how.json {
        // Standard output belongs to the container.
        print::error(&summary.to_string());
    } else {
        print::detail(&how.sentence);
    }
    // None: it has ended, and somebody has removed it; another may have its name by now.
    let looked = container::look(places, name);
    let ours = |found: &Found| (found.state.keeper, found.state.keeper_start) == started.keeper;
    let found = looked.inspect_err(|_| undo(places, name))?.filter(ours);
    match &found {
        Some(found) if how.tty => match foreground::show_terminal(found, true, how.drawn) {
            Ok(End::Closed) => {}
            Ok(End::Detached) => {
                print::note(&format!("\ndetached from {name}; come back with: yendor attach {name}"));
                return Ok(0);
            }
            Err(e) => {
                undo(places, name);
                return Err(e);
            }
        },
        Some(found) => foreground::see_to_its_end(found)?,
        None => {}
    }
    let code = container::exit_code(started.wait()?);
    let last = found.as_ref().map(Found::last);
    if let Some(found) = found.filter(|_| how.remove) {
        finish(places, &found)?;
    }
    match last.filter(|last| last.status == Status::Checkpointed) {
        Some(last) => Err(container::checkpointed(&last)),
        None => Ok(code),
    }
}

/// Removes a container that has ended, once its keeper is gone. What has got its name since stays.
fn finish(places: &Places, found: &Found) -> Result<(), Failure> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let name = &found.state.name;
    if let Some(keeper) = found.keeper()?
        && !container::ended(&keeper, Some(PATIENCE))?
    {
        return Err(Failure::Failed(format!("container {name} is left: its keeper does not end within {PATIENCE:?}")));
    }
    match container::look(places, name)? {
        Some(now) if found.is_same(&now.state) => container::remove(&now.directory),
        _ => Ok(()),
    }
}

/// Through no link but our own descriptors' (`/dev/stdout`, `/dev/fd/3`): in a directory that others may write, where it leads could be theirs to say.
fn write_pid(path: &Path, pid: i32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let own = ["/dev", "/proc/self/fd"].iter().any(|place| path.starts_with(place)) && !path.starts_with("/dev/shm");
    let flags = if own { 0 } else { rustix::fs::OFlags::NOFOLLOW.bits().cast_signed() };
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path);
    writeln!(file?, "{pid}")
}

/// Ends and removes a container that was started but cannot be had as asked.
pub fn undo(places: &Places, name: &str) {
    let undone = container::find(places, name).and_then(|found| {
        super::rm::end(&found)?;
        finish(places, &found)
    });
    if let Err(e) = undone {
        print::error(&format!("yendor: container {name} is left: {e}"));
    }
}

/// Says plainly what happens often.
fn explain(error: Error, what: &Launch) -> Failure {
    let Some(sys) = error.cause.sys() else { return error.into() };
    if let Source::Compose(spec) = &what.source
        && let Some(failure) = explain_program(&error, spec, what.request.layout.is_some())
    {
        return failure;
    }
    let takes_ids = matches!(sys.call, "setresuid" | "setresgid" | "setgroups");
    if error.place.step == Step::Confine && takes_ids && sys.errno == Errno::INVAL {
        let hint = ids(&what.request).or_else(|| error.hint()).unwrap_or_default();
        let cause = Box::new(Cause::Refused { error: sys.clone(), hint });
        return Error { cause, ..error }.into();
    }
    if error.place.kind == Some("container") && sys.errno == Errno::EXIST {
        return in_use(&what.places, &what.request.name);
    }
    error.into()
}

/// What hinders the program of a new container, where that is its caller's to mend.
fn explain_program(error: &Error, spec: &Spec, bundle: bool) -> Option<Failure> {
    let sys = error.cause.sys()?;
    if error.place.kind == Some("program") && sys.call == "execve" {
        let command = spec.command.first().map(ToString::to_string).unwrap_or_default();
        return match sys.errno {
            Errno::NOENT | Errno::NOTDIR => {
                Some(Failure::Said { code: 127, what: format!("{command}: command not found in the container") })
            }
            Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR => {
                Some(Failure::Said { code: 126, what: format!("{command}: not executable in the container") })
            }
            _ => None,
        };
    }
    let cwd = spec.cwd.as_ref().filter(|cwd| sys.call == "openat2" && sys.args.contains(&format!("\"{cwd}\"")))?;
    let option = if bundle { "working directory" } else { "-w" };
    match sys.errno {
        Errno::NOENT => Some(Failure::Failed(format!("{option} {cwd}: no such directory in the container"))),
        Errno::NOTDIR => Some(Failure::Failed(format!("{option} {cwd}: no directory in the container"))),
        _ => None,
    }
}

/// Which ids there are in a container of this caller; none where that is but one.
fn ids(request: &Request) -> Option<String> {
    let maps = userns::plan(request, &Caller::look().ok()?);
    let last = |ranges: &[userns::Range]| ranges.iter().filter_map(|r| r.inside.checked_add(r.count - 1)).max();
    let (users, groups) = (last(&maps.uids)?, last(&maps.gids)?);
    (maps.uids.iter().map(|r| r.count).sum::<u32>() > 1)
        .then(|| format!("this container has users 0 to {users} and groups 0 to {groups}"))
}

/// The name of another container.
pub fn in_use(places: &Places, name: &str) -> Failure {
    let runs = container::find(places, name).is_ok_and(|found| found.now() == Now::Running);
    let remove = if runs { format!("rm -f {name} ends and removes it") } else { format!("rm {name} removes it") };
    Failure::Failed(format!(
        "the name {name} is in use by another container\n  hint: choose another with --name, or yendor {remove}"
    ))
}

/// Makes sure that a name is free.
pub fn check_free(places: &Places, name: &str) -> Result<(), Failure> {
    let path = places.container(name);
    let taken = std::fs::symlink_metadata(&path).is_ok() && !claim::is_left_over(&path);
    if taken { Err(in_use(places, name)) } else { Ok(()) }
}

/// An absolute path for a file that must be writable later.
pub fn pidfile(path: Option<&Path>) -> Option<PathBuf> {
    path.map(parse::absolute)
}

/// Asks pid 1 of a container to end at once.
pub fn kill_init(found: &container::Found) -> Result<(), Failure> {
    match found.init()? {
        Some(init) => container::send(&init, signal::KILL).map(|_| ()),
        None => Ok(()),
    }
}
