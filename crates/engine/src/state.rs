//! Where containers and images are kept between commands: `run/NAME/` for each container, `images/NAME/N` for each image.
//!
//! `state.json` of a container is written by its keeper alone, by rename, so that a reader never sees half of it. Its last word is added to the
//! file before it, too, behind what is there: whoever has that open hears it, also when the directory is gone, and reads the one or the other at any
//! instant.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use yendor_image::{Bytes, Digest};
use yendor_kinds::Cause;
pub use yendor_kinds::file::external::Record as Standard;
use yendor_kinds::namespace::clock;
use yendor_kinds::namespace::network::Network;
use yendor_proc::stat::Stat;
use yendor_sys::SysError;
use yendor_task::tree::read_proc;

use crate::collect::namespace::Mount;
use crate::error::{At, Error, Step};
use crate::request::Request;
pub use crate::wire::Failure;

/// The file of a container's directory that holds its [`State`].
pub const FILE: &str = "state.json";

const NEW_FILE: &str = "state.json.new";

/// The file of a container's directory that a checkpoint locks, with the name of the image that it makes if it ends the container.
pub const CHECKPOINT: &str = "checkpoint.lock";

/// Where state lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `run/NAME` lie here.
    pub run: PathBuf,
    /// `images/NAME/N` lie here.
    pub images: PathBuf,
    /// Seals of the images that this user took of process trees here: an empty file each.
    pub trees: PathBuf,
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub status: Status,
    /// Its keeper, in the caller's pid namespace.
    pub keeper: i32,
    /// Start time of the keeper in clock ticks of the machine (/proc/PID/stat field 22), to tell it from a later process.
    pub keeper_start: u64,
    /// By how many nanoseconds its clock since boot is ahead of the machine's: starts that it has written down are told by that.
    #[serde(default)]
    pub keeper_ahead: Option<i64>,
    /// Its pid 1, in the caller's pid namespace.
    pub init: i32,
    /// Its root task, in the caller's pid namespace.
    pub main: i32,
    /// Seconds since 1970 when it began to run.
    pub started: u64,
    /// How it was asked for.
    pub request: Request,
    /// The image it was restored from.
    pub image: Option<String>,
    /// Whether its standard output goes to `log`.
    pub logged: bool,
    /// Whether it has a terminal of its own.
    pub terminal: bool,
    /// The keeper's descriptors that are the caller's own (standard input, output, error), and which.
    #[serde(default)]
    pub standard: Vec<(i32, Standard)>,
    /// The keeper's descriptors of the container's file system: the copy-on-write layer, and its tmpfs mounts by path.
    #[serde(default)]
    pub layers: Vec<(Bytes, i32)>,
    /// The session keyring that it was started with.
    #[serde(default)]
    pub session_keyring: Option<i32>,
    /// The container's mounts when it began to run.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Its network, where that is its own, when it began to run.
    #[serde(default)]
    pub network: Option<Network>,
    /// How many seccomp filters every task has from outside, and for the recorder.
    #[serde(default)]
    pub filters: u32,
    /// How many checkpoints lie behind it: 0 for a new one, else the image's.
    pub generation: u64,
    /// Why it was ended by what runs it, if it was.
    #[serde(default)]
    pub failure: Option<Failure>,
    /// The image that a checkpoint has made of it as it ended it, by name.
    #[serde(default)]
    pub taken: Option<String>,
    /// The cgroups that were made for it. Its keeper removes them; who removes a container that has lost its keeper does.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It runs.
    Running,
    /// Its root task has ended, with this wait status.
    Exited(i32),
    /// A checkpoint ended it.
    Checkpointed,
}

impl Places {
    /// From the environment: `YENDOR_ROOT`, else /run/yendor and /var/lib/yendor for root, else `$XDG_RUNTIME_DIR/yendor` and
    /// `$XDG_DATA_HOME/yendor`, else a directory of this user's in /tmp.
    ///
    /// # Errors
    /// A permission error where one of them is somebody else's: what lies there says which processes to signal and what to remove.
    pub fn from_environment() -> Result<Places, Error> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(root) = var("YENDOR_ROOT") {
            return Places::below(&root.join("run"), &root);
        }
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return Places::below(Path::new("/run/yendor"), Path::new("/var/lib/yendor"));
        }
        let own = || own_directory(format!("/tmp/yendor-{}", uid.as_raw()).into(), uid.as_raw());
        let run = var("XDG_RUNTIME_DIR").map_or_else(own, Ok)?;
        let data = var("XDG_DATA_HOME").or_else(|| Some(var("HOME")?.join(".local/share")));
        let data = data.map_or_else(own, Ok)?;
        Places::below(&run.join("yendor"), &data.join("yendor"))
    }

    fn below(run: &Path, data: &Path) -> Result<Places, Error> {
        // Where both are one, containers are not among the rest.
        let run = if run == data { run.join("run") } else { run.to_owned() };
        let places = Places { run, images: data.join("images"), trees: data.join("trees") };
        let uid = rustix::process::geteuid().as_raw();
        check_owner(data, uid, Whose::OursOrRoots)?;
        check_owner(&places.run, uid, Whose::Ours)?;
        for place in [&places.images, &places.trees] {
            check_owner(place, uid, Whose::OursByLink)?;
        }
        Ok(places)
    }

    /// Notes that this user took the image with this seal, of a process tree, here.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn note_tree(&self, seal: Digest) -> io::Result<()> {
        let mut private = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
        private.recursive(true).create(&self.trees)?;
        std::fs::write(self.trees.join(seal.to_string()), b"")
    }

    /// Whether this user took the image with this seal, of a process tree, here.
    #[must_use]
    pub fn took_tree(&self, seal: Digest) -> bool {
        self.trees.join(seal.to_string()).exists()
    }

    /// The directory of a container.
    #[must_use]
    pub fn container(&self, name: &str) -> PathBuf {
        self.run.join(name)
    }
}

/// Reads a container's state.
///
/// # Errors
/// `NotFound` when there is none of that name; `InvalidData` for one that cannot be read.
pub fn read(container: &Path) -> io::Result<State> {
    open(container).map(|(state, _)| state)
}

/// The same, and the file: when the keeper has ended, its last word can be [`again`] read from it.
///
/// # Errors
/// As [`read`].
pub fn open(container: &Path) -> io::Result<(State, File)> {
    let file = File::open(container.join(FILE))?;
    Ok((again(&file)?, file))
}

/// Reads a state that is open: its last word, where that has been added in whole.
///
/// # Errors
/// `InvalidData` for one that cannot be read.
pub fn again(mut file: &File) -> io::Result<State> {
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let mut words = serde_json::Deserializer::from_slice(&text).into_iter();
    let damaged = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    let first = words.next().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is empty"))?;
    match (first.map_err(damaged)?, words.next()) {
        (_, Some(Ok(last))) => Ok(last),
        (_, Some(Err(e))) if !e.is_eof() => Err(damaged(e)),
        (first, _) => Ok(first),
    }
}

/// Writes a state beside the one that is there, then renames.
pub(crate) fn write(directory: &OwnedFd, state: &State) -> Result<(), Cause> {
    let text = serde_json::to_vec_pretty(state).map_err(|_| SysError::new("write", FILE, Errno::INVAL))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(directory, NEW_FILE, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| SysError::new("openat", NEW_FILE, e))?;
    File::from(file).write_all(&text).map_err(|e| SysError::io("write", NEW_FILE, &e))?;
    renameat(directory, NEW_FILE, directory, FILE).map_err(|e| SysError::new("renameat", FILE, e))?;
    Ok(())
}

/// The same for the last time: those who wait have the one before open, and may come too late for this one. Nothing that they may be reading is
/// changed.
pub(crate) fn write_last(directory: &OwnedFd, state: &State) -> Result<(), Cause> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let before = openat(directory, FILE, flags, Mode::empty());
    let written = write(directory, state);
    let mut before = File::from(before.map_err(|e| SysError::new("openat", FILE, e))?);
    let mut text = b"\n".to_vec();
    serde_json::to_writer_pretty(&mut text, state).map_err(|_| SysError::new("write", FILE, Errno::INVAL))?;
    before.write_all(&text).map_err(|e| SysError::io("write", FILE, &e))?;
    written
}

/// The name of the image that the checkpoint makes, or has made, that was the last to lock a container.
pub(crate) fn taken(directory: &OwnedFd) -> Option<String> {
    const LONGEST: u64 = 4096;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut name = String::new();
    File::from(openat(directory, CHECKPOINT, flags, Mode::empty()).ok()?)
        .take(LONGEST)
        .read_to_string(&mut name)
        .ok()?;
    Some(name).filter(|name| !name.is_empty())
}

/// Removes a container's directory with everything below. Files of subordinate ids can be removed only in a user
/// namespace that maps them.
///
/// # Errors
/// What is left, and why.
pub fn remove(container: &Path) -> io::Result<()> {
    crate::contain::cgroup::remove_noted(container);
    match crate::clear::all(container) {
        Err(Errno::ACCESS | Errno::PERM) => remove_mapped(container),
        other => other.map_err(io::Error::from),
    }
}

/// By `unshare` and `rm` of the host, in a user namespace with all of the caller's ids.
fn remove_mapped(directory: &Path) -> io::Result<()> {
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--map-auto", "--", "rm", "-rf", "--"]).arg(directory);
    let said = match command.output() {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(e) => format!("unshare: {e}"),
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("files of subordinate ids are left ({said})")))
}

/// Removes a container's directory from within: its descriptor is all that its keeper has of the host. For who has left the
/// container's root ([`crate::contain::leave`]), where it is full of mount points.
pub(crate) fn remove_open(directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    let above = openat(directory, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    crate::clear::below(directory.as_fd(), false)?;
    unlinkat(above, name, AtFlags::REMOVEDIR)
}

/// A directory in /tmp that nobody else can change. The name is known to everybody, so somebody may have been there before.
fn own_directory(path: PathBuf, uid: u32) -> Result<PathBuf, Error> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(SysError::io("mkdir", path.display().to_string(), &e)).at(Step::Admit);
        }
        _ => {}
    }
    check_owner(&path, uid, Whose::Ours)?;
    Ok(path)
}

/// Whose a directory may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    /// Likewise, or a link of ours to one: images may lie on another disk.
    OursByLink,
    /// One that root lends to everybody (/tmp, where nobody takes another's away), or a link to one.
    OursOrRoots,
}

/// Whether nobody else decides what lies in a directory, if it is there. Who shares his own group shares what it may write.
fn check_owner(path: &Path, uid: u32, whose: Whose) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt;
    const BY_GROUP: u32 = 0o020;
    const BY_OTHERS: u32 = 0o002;
    const STICKY: u32 = 0o1000;
    let found = match whose {
        Whose::Ours => std::fs::symlink_metadata(path),
        Whose::OursByLink if std::fs::symlink_metadata(path).is_ok_and(|link| link.uid() != uid) => {
            std::fs::symlink_metadata(path)
        }
        Whose::OursByLink | Whose::OursOrRoots => std::fs::metadata(path),
    };
    let found = match found {
        // What we do not reach leads us nowhere; who needs it is told then.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(());
        }
        found => found.map_err(|e| SysError::io("stat", path.display().to_string(), &e)).at(Step::Admit)?,
    };
    let lent = whose == Whose::OursOrRoots && found.uid() == 0;
    let own_group = found.gid() == rustix::process::getegid().as_raw();
    let shared = found.mode() & BY_OTHERS != 0 || found.mode() & BY_GROUP != 0 && !own_group;
    if found.is_dir() && (found.uid() == uid || lent) && (!shared || lent && found.mode() & STICKY != 0) {
        return Ok(());
    }
    let cause = Cause::Denied {
        what: format!("{} is not a directory that this user alone can change", path.display()),
        hint: "what lies there says which processes are signalled and what is removed: set YENDOR_ROOT, or XDG_RUNTIME_DIR and XDG_DATA_HOME, to one that is, \
               or mend its owner and mode"
            .into(),
    };
    Err(Error::new(Step::Admit, cause))
}

impl State {
    /// Whether its keeper still lives; when not, `status` may be out of date.
    #[must_use]
    pub fn keeper_lives(&self) -> bool {
        stat(self.keeper).is_some_and(|stat| {
            // Clocks need not be ahead by whole ticks.
            stat.starttime.abs_diff(self.keeper_start) <= 1 && !matches!(stat.state, b'Z' | b'X')
        })
    }
}

/// Its start is as [`State::keeper_start`] says it.
fn stat(pid: i32) -> Option<Stat> {
    let proc = File::open("/proc").ok()?;
    let stat = yendor_proc::stat::parse(&read_proc(proc.as_fd(), &format!("{pid}/stat")).ok()?).ok()?;
    Some(Stat { starttime: on_machine(stat.starttime, proc.as_fd()), ..stat })
}

/// When a process was started, as [`State::keeper_start`] says it.
#[must_use]
pub fn start_of(pid: i32) -> Option<u64> {
    stat(pid).map(|stat| stat.starttime)
}

/// A start by the machine's clock: `proc` tells it by that of the time namespace that its reader lives in.
pub(crate) fn on_machine(start: u64, proc: BorrowedFd<'_>) -> u64 {
    /// Nanoseconds of a tick (`USER_HZ`).
    const TICK: i64 = 10_000_000;
    start.saturating_add_signed(ahead(proc).div_euclid(TICK).saturating_neg())
}

/// By how many nanoseconds the clock of whoever calls is ahead of the machine's.
pub(crate) fn ahead(proc: BorrowedFd<'_>) -> i64 {
    // Without time namespaces there is one clock.
    clock::own(proc).map_or(0, |own| own.boottime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_somebody_else_can_change_is_refused() {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
        let top = std::env::temp_dir().join(format!("yendor-state-own-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&top).expect("mkdir");
        let uid = rustix::process::geteuid().as_raw();
        let own = top.join("own");
        assert_eq!(own_directory(own.clone(), uid).expect("a new one"), own);
        own_directory(own.clone(), uid).expect("the same again");
        let refused = |path: &Path, uid| own_directory(path.to_owned(), uid).expect_err("not private").exit_code() == 5;
        assert!(refused(&own, uid + 1), "another's");
        symlink(&own, top.join("link")).expect("symlink");
        assert!(refused(&top.join("link"), uid));
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o722)).expect("chmod");
        assert!(refused(&own, uid), "everybody may write");
        let denied = |path: &Path, whose| check_owner(path, uid, whose).is_err();
        assert!(denied(&own, Whose::OursOrRoots) && !denied(Path::new("/tmp"), Whose::OursOrRoots));
        assert!(denied(Path::new("/tmp"), Whose::Ours) && !denied(&top.join("nothing"), Whose::Ours));
        assert!(denied(&top.join("link"), Whose::Ours));
        // What would be the same lies apart.
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o700)).expect("chmod");
        let places = Places::below(&own, &own).expect("ours");
        assert_eq!((places.run, places.images), (own.join("run"), own.join("images")));
        // Images may lie elsewhere, where that is ours too.
        std::fs::DirBuilder::new().mode(0o700).create(top.join("disk")).expect("mkdir");
        symlink(top.join("disk"), own.join("images")).expect("symlink");
        Places::below(&own, &own).expect("a link of ours to what is ours");
        std::fs::remove_file(own.join("images")).expect("unlink");
        symlink("/tmp", own.join("images")).expect("symlink");
        assert_eq!(Places::below(&own, &own).expect_err("to what is everybody's").exit_code(), 5);
        std::fs::remove_file(own.join("images")).expect("unlink");
        assert!(check_owner(&own.join("file/below"), uid, Whose::Ours).is_ok());
        symlink("/", own.join("run")).expect("symlink");
        assert_eq!(Places::below(&own, &own).expect_err("it leads elsewhere").exit_code(), 5);
        remove(&top).expect("remove");
    }

    fn running() -> State {
        let request = Request {
            name: "web".into(),
            root: crate::request::Root::Layered,
            volumes: Vec::new(),
            net: crate::request::Net::None,
            userns: crate::request::Userns::Auto,
            hostname: None,
            memory: None,
            pids: None,
            // As long as mounts can make it: more than a page.
            cap_drop: vec!["CAP_NET_RAW".into(); 2000],
            policy: crate::request::Policy::default(),
            layout: None,
            any_cpu: false,
        };
        State {
            name: "web".into(),
            status: Status::Running,
            keeper: 7,
            keeper_start: 8,
            keeper_ahead: Some(0),
            init: 9,
            main: 10,
            started: 11,
            request,
            image: None,
            logged: false,
            terminal: false,
            standard: Vec::new(),
            layers: Vec::new(),
            session_keyring: None,
            mounts: Vec::new(),
            network: None,
            filters: 0,
            generation: 0,
            failure: None,
            taken: None,
            cgroups: Vec::new(),
        }
    }

    #[test]
    fn the_last_word_is_never_read_half() {
        use std::time::{Duration, Instant};
        let top = std::env::temp_dir().join(format!("yendor-state-last-{}", std::process::id()));
        std::fs::create_dir(&top).expect("mkdir");
        let directory = OwnedFd::from(File::open(&top).expect("open"));
        let alive = running();
        let last = State { status: Status::Exited(256), ..alive.clone() };
        write(&directory, &alive).expect("written");
        let end = Instant::now() + Duration::from_millis(1500);
        std::thread::scope(|scope| {
            let reader = || {
                while Instant::now() < end {
                    let (found, file) = open(&top).expect("one of the two");
                    assert!(found == alive || found == last, "{found:?}");
                    let later = again(&file).expect("one of the two");
                    assert!(later == last || found == alive && later == alive, "{later:?}");
                }
            };
            let readers = [scope.spawn(reader), scope.spawn(reader), scope.spawn(reader)];
            while Instant::now() < end && !readers.iter().any(|reader| reader.is_finished()) {
                write(&directory, &alive).expect("written");
                let (_, before) = open(&top).expect("it runs");
                write_last(&directory, &last).expect("written");
                assert_eq!(again(&before).expect("what was open"), last);
            }
        });
        // Who cannot add all of it has harmed nothing.
        std::fs::write(
            top.join(FILE),
            [serde_json::to_vec(&alive).expect("JSON"), b"\n{ \"name\": \"we".into()].concat(),
        )
        .expect("written");
        assert_eq!(read(&top).expect("the one before"), alive);
        for damaged in ["", "{ \"name\": \"we", "[]"] {
            std::fs::write(top.join(FILE), damaged).expect("written");
            assert_eq!(read(&top).expect_err(damaged).kind(), io::ErrorKind::InvalidData);
        }
        // Whoever has it open hears it also where it cannot be written beside.
        write(&directory, &alive).expect("written");
        let (_, before) = open(&top).expect("it runs");
        std::fs::create_dir(top.join(NEW_FILE)).expect("mkdir");
        write_last(&directory, &last).expect_err("there is no room beside it");
        assert_eq!(again(&before).expect("what was open"), last);
        remove(&top).expect("remove");
    }
}
