//! One more command in a running container is confined as the container's tasks are: recorder, Landlock, capabilities,
//! seccomp. The process that calls this is confined with it, and so is everything that it starts.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use yendor_kinds::{Cause, Named};
use yendor_sys::{SysError, seccomp};

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
    let program = recorder::filter(cookie);
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
