//! One more command in a running container is confined as the container's tasks are: recorder, Landlock, capabilities,
//! seccomp. The process that calls this is confined with it, and so is everything that it starts.

use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use yendor_kinds::{Cause, Named};
use yendor_sys::{Errno, SysError, seccomp};

use crate::confine::Confine;
use crate::error::{At, Result, Step};
use crate::recorder;
use crate::request::Request;

/// A keeper that records what tasks forbid themselves, and waits for a listener.
#[derive(Debug)]
pub struct Keeper(UnixStream);

/// What a keeper that records answers.
pub(crate) const YES: &str = "yes";

/// Asks the keeper of a container, by its directory, whether it records. `None`: it does not, or it is gone.
#[must_use]
pub fn ask(container: &Path) -> Option<Keeper> {
    let mut stream = UnixStream::connect(container.join("control.sock")).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(b"{\"verb\":\"record\"}\n").ok()?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).ok()?;
    (line.trim() == YES).then_some(Keeper(stream))
}

/// What the caller has open beside its standard descriptors is not for the container.
///
/// # Errors
/// `EINVAL` before Linux 5.11.
pub fn keep_to_ourselves() -> Result<()> {
    yendor_sys::spawn::close_on_exec(3).at(Step::Contain)
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
