//! One more command in a running container is confined as the container's tasks are: recorder, Landlock, capabilities,
//! seccomp. The process that calls this is confined with it, and so is everything that it starts.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use yendor_kinds::process::label::{self, Label};
use yendor_kinds::{Cause, Named};
use yendor_policy::lsm::{Attribute, Entry, Here, Profile};
use yendor_sys::{Errno, SysError, seccomp};

use crate::confine::Confine;
use crate::error::{At, Result, Step, With};
use crate::recorder;
use crate::request::Request;
use crate::state::State;

/// A keeper that records what tasks forbid themselves, and waits for a listener.
#[derive(Debug)]
pub struct Keeper(UnixStream);

/// What a keeper that records answers.
pub(crate) const YES: &str = "yes";

/// Asks the keeper of a container, by its directory, whether it records. `None`: it does not, or it is gone.
///
/// # Errors
/// A keeper that does not answer: what joins its container then would not be recorded.
pub fn ask(container: &Path) -> Result<Option<Keeper>> {
    ask_within(container, Duration::from_secs(10))
}

fn ask_within(container: &Path, limit: Duration) -> Result<Option<Keeper>> {
    let failed = |e: std::io::Error| SysError::io("read", "control.sock: the container's keeper does not answer", &e);
    let mut stream = match UnixStream::connect(container.join("control.sock")) {
        // It has gone.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        stream => stream.map_err(failed).at(Step::Contain)?,
    };
    stream.set_read_timeout(Some(limit)).map_err(failed).at(Step::Contain)?;
    if stream.write_all(b"{\"verb\":\"record\"}\n").is_err() {
        return Ok(None);
    }
    let mut line = String::new();
    match BufReader::new(&stream).read_line(&mut line) {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(failed(e)).at(Step::Contain),
        Err(_) => Ok(None),
        Ok(_) => Ok((line.trim() == YES).then_some(Keeper(stream))),
    }
}

/// The labels that the container's tasks have, to be entered: those that its caller has asked for, and with `--keep-lsm` the root
/// task's own, which the image has brought. While the host's file systems are in sight.
///
/// # Errors
/// A permission error for a label that cannot be known: what joins a container is not less confined than it.
pub fn labels(state: &State) -> Result<Vec<Entry>> {
    let policy = &state.request.policy;
    let mut wanted = policy.profiles.clone();
    let here = Here::look();
    if policy.keep_lsm && !here.modules().is_empty() {
        let proc = open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let proc = proc.named("open", || "/proc".into()).at(Step::Confine)?;
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let of = |task: i32, own: bool| {
            let domain = |tid| if own { here.tomoyo_own() } else { here.tomoyo_domain(tid) };
            label::collect(&proc, (task, task), &here.modules(), domain).at(Step::Confine)
        };
        wanted.extend(unlike(&of(me, true)?, &of(state.main, false)?, &policy.profiles).at(Step::Confine)?);
    }
    let entry = |profile: &Profile| Entry::new(profile).at(Step::Confine).kind("label", profile.to_string());
    wanted.iter().map(entry).collect()
}

/// Labels of a task that the caller has not, beside those that are asked for anyway.
fn unlike(own: &[Label], theirs: &[Label], asked: &[Profile]) -> std::result::Result<Vec<Profile>, Cause> {
    let current = |l: &&Label| l.attribute == Attribute::Current.name() && asked.iter().all(|p| p.module != l.module);
    let mut out = Vec::new();
    for label in theirs.iter().filter(current).filter(|label| label.label.is_none() || !own.contains(label)) {
        let module = label.module.clone();
        let text = label.label.as_ref().and_then(|text| String::from_utf8(text.0.clone()).ok());
        let label = text.ok_or_else(|| Cause::Denied {
            what: format!("which {module} label the container's root task has cannot be read"),
            hint: "only with that label a command may join it: try as root".into(),
        })?;
        out.push(Profile { module, label });
    }
    Ok(out)
}

/// What the caller has open beside its standard descriptors is not for the container: neither for the command, nor while it is looked for,
/// where a link of the container's (to `/proc/self/fd`) could lead through it. Before anything is opened here.
///
/// # Errors
/// `ENOSYS` before Linux 5.9.
pub fn keep_to_ourselves() -> Result<()> {
    yendor_sys::spawn::close_inherited(3).at(Step::Contain)
}

/// A program of the container's can be a link to `/proc/self/exe`: then it is this one, outside of the container, and tasks inside that
/// may change its file could do so. Where they may, this process is executed anew from a copy that nobody can change. Before anything
/// else is done.
///
/// # Errors
/// The kernel's, as `EACCES` where `vm.memfd_noexec` forbids programs without a name.
pub fn from_a_copy(init: i32) -> Result<()> {
    const PROGRAM: &str = "/proc/self/exe";
    let failed = |call: &'static str| move |e: std::io::Error| Cause::from(SysError::io(call, PROGRAM, &e));
    let program = File::open(PROGRAM).map_err(failed("openat")).at(Step::Contain)?;
    if fcntl_get_seals(&program).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) || !may_change(&program, init)? {
        return Ok(());
    }
    let copy = copy(program).at(Step::Contain)?;
    let mut again = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let e = again.arg0("yendor").args(std::env::args_os().skip(1)).exec();
    Err(failed("execve")(e)).at(Step::Contain)
}

/// Whether its owner is somebody in the container's user namespace, or others than its owner may write to it.
fn may_change(program: &File, init: i32) -> Result<bool> {
    const BY_OTHERS: u32 = 0o022;
    let namespace = |of: &str| {
        let path = format!("/proc/{of}/ns/user");
        rustix::fs::stat(path.as_str()).map(|s| s.st_ino).named("newfstatat", || path).at(Step::Contain)
    };
    if namespace(&init.to_string())? == namespace("self")? {
        // Nothing is in the way of its root, or it is the account that owns the file.
        return Ok(false);
    }
    let about = program.metadata().map_err(|e| SysError::io("fstat", "/proc/self/exe", &e)).at(Step::Contain)?;
    let path = format!("/proc/{init}/uid_map");
    let map = std::fs::read(&path).map_err(|e| SysError::io("read", path, &e)).at(Step::Contain)?;
    let ranges = yendor_proc::id_map::parse(&map).at(Step::Contain)?;
    let owner = about.uid();
    let known = ranges.iter().any(|range| owner.checked_sub(range.outside).is_some_and(|n| n < range.count));
    Ok(known || about.mode() & BY_OTHERS != 0)
}

/// Sealed, without a name.
fn copy(mut program: File) -> std::result::Result<File, Cause> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create("yendor", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 all of them are programs.
        Err(Errno::INVAL) => memfd_create("yendor", flags),
        made => made,
    };
    let mut copy = File::from(made.named("memfd_create", || "\"yendor\", MFD_EXEC".into())?);
    std::io::copy(&mut program, &mut copy).map_err(|e| SysError::io("write", "a copy of this program", &e))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals).named("fcntl", || format!("F_ADD_SEALS, {seals:?}"))?;
    Ok(copy)
}

/// Confines the calling process, which is in the container's namespaces already, with the container's policy.
///
/// # Errors
/// What hindered it.
pub fn confine(request: &Request, keeper: Option<Keeper>) -> Result<()> {
    // Rulesets are used from here: they need no number in other processes.
    let confine = Confine::prepare(request, &[], |_| Ok(-1))?;
    confine.allow()?;
    if let Some(keeper) = keeper {
        listen(&keeper, confine.cookie).at(Step::Confine)?;
    }
    confine.this_process().at(Step::Confine)
}

/// Installs the recorder's filter and hands its listener to the keeper.
fn listen(keeper: &Keeper, cookie: u64) -> std::result::Result<(), Cause> {
    let program = recorder::filter(cookie, false);
    let installed = seccomp::install_listener(recorder::flags(true), &program);
    let listener: OwnedFd = installed.or_else(|_| seccomp::install_listener(recorder::flags(false), &program))?;
    let fds = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(SysError::new("sendmsg", "a listener", rustix::io::Errno::MSGSIZE).into());
    }
    let sent = rustix::net::sendmsg(&keeper.0, &[IoSlice::new(b"\n")], &mut ancillary, SendFlags::NOSIGNAL);
    sent.named("sendmsg", || "a listener".into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was taken for one that does not record.
    #[test]
    fn a_keeper_that_does_not_answer_is_an_error() {
        let place = std::env::temp_dir().join(format!("yendor-exec-{}", std::process::id()));
        std::fs::create_dir(&place).expect("mkdir");
        let limit = Duration::from_millis(50);
        assert!(ask_within(&place, limit).expect("there is none").is_none());
        let listener = std::os::unix::net::UnixListener::bind(place.join("control.sock")).expect("bind");
        ask_within(&place, limit).expect_err("it does not answer");
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask_within(&place, Duration::from_secs(60)));
            // The first is that of before.
            let streams: Vec<_> = listener.incoming().take(2).map(|stream| stream.expect("accept")).collect();
            (&streams[1]).write_all(b"\n").expect("no");
            assert!(asked.join().expect("thread").expect("an answer").is_none());
        });
        std::fs::remove_dir_all(&place).expect("remove");
    }

    #[test]
    fn who_joins_has_the_labels_of_the_root_task() {
        let label = |module: &str, attribute: &str, text: Option<&str>| Label {
            module: module.into(),
            attribute: attribute.into(),
            label: text.map(|t| yendor_image::Bytes(t.into())),
        };
        let profile = |module: &str, label: &str| Profile { module: module.into(), label: label.into() };
        let own = [label("apparmor", "current", Some("unconfined")), label("smack", "current", Some("_"))];
        let theirs = [
            label("apparmor", "current", Some("web//&x")),
            label("apparmor", "exec", Some("other")),
            label("smack", "current", Some("_")),
        ];
        assert_eq!(unlike(&own, &theirs, &[]).unwrap(), [profile("apparmor", "web//&x")]);
        assert!(unlike(&own, &theirs, &[profile("apparmor", "asked")]).unwrap().is_empty());
        assert!(unlike(&own, &own, &[]).unwrap().is_empty());
        let untold = [label("tomoyo", "current", None)];
        for mine in [&own[..], &untold] {
            assert!(unlike(mine, &untold, &[]).unwrap_err().is_denied());
        }
    }
}
