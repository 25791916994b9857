//! admit: may this user create a container and be root in it? The kernel answers, then the host's policy, which can only
//! say no more often; both before any image is opened.
//!
//! The answer is a process: the keeper, in a user namespace whose id maps are written, executed anew there so that its
//! memory belongs to that namespace.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use yendor_kinds::{Cause, Named};
use yendor_policy::host::{Ask, Denial, Granted, HostPath, Person, Policy, Verb};
use yendor_sys::namespace::Namespaces;
use yendor_sys::spawn::{Spawn, spawn};
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};

use crate::contain::userns::{self, Caller};
use crate::contain::{Handed, volume};
use crate::control::Control;
use crate::error::{At, Error, Result, Step};
use crate::request::{Net, Request, Root, Userns};
use crate::who::Surroundings;
pub use crate::who::is_filtered;
pub use yendor_sys::landlock::abi as landlock;

/// The first argument that makes the program a keeper.
pub const KEEPER: &str = "keeper";

/// The first argument of what becomes the keeper, and leaves the usher behind.
pub const OUTER: &str = "usher";

/// Proof that the kernel lets the caller have a container: the keeper that waits for its first message.
#[derive(Debug)]
pub struct Admitted {
    /// The keeper's pid.
    pub pid: i32,
    /// The same without the danger of reuse.
    pub pidfd: OwnedFd,
    /// The front's end of the connection.
    pub control: Control,
    /// What the request names on the host.
    pub handed: Handed,
    /// What the host's policy gives.
    pub granted: Granted,
}

/// Asks before anything is known of the image: the kernel, then the policy about as much as the caller has said. Returns what
/// the policy gives, whose signature on an image it wants among it.
///
/// # Errors
/// A permission error that says which file or sysctl forbids it.
pub fn ask(request: &Request, verb: Verb, network_is_asked_for: bool) -> Result<Granted> {
    root_for_host(request)?;
    let auto = request.userns == Userns::Auto;
    let steps = namespaces(auto, network_is_asked_for && request.net != Net::Host);
    yendor_sys::clone::trial(auto, &steps)
        .map_err(why_no_namespace)
        .at(Step::Admit)
        .map_err(|e| Surroundings::look().name(e, None))?;
    policy(request, verb, network_is_asked_for, &handed(request)?)
}

/// What a container leaves for new namespaces, call by call, after its first user namespace: `outer`, then `contain`. Limits count each of
/// them, also in the namespaces above.
fn namespaces(auto: bool, network: bool) -> Vec<Namespaces> {
    let mut steps = vec![Namespaces::NEWNS];
    if auto {
        steps.push(Namespaces::NEWUSER);
    }
    let mut own = Namespaces::NEWIPC | Namespaces::NEWUTS;
    own.set(Namespaces::NEWNET, network);
    steps.extend([own, Namespaces::NEWNS, Namespaces::NEWPID | Namespaces::NEWTIME]);
    steps
}

/// What the request names on the host.
fn handed(request: &Request) -> Result<Handed> {
    Handed::open(request).map_err(|e| Surroundings::look().name(e, None))
}

/// Who denied a call to this process, where that is known.
#[must_use]
pub fn who_denied(call: &'static str, args: &str, errno: i32) -> Option<String> {
    let error = SysError::new(call, args, Errno::from_raw_os_error(errno));
    Surroundings::look().name(Error::new(Step::Admit, error), None).by
}

/// Whether the host lets the caller do this at all.
///
/// # Errors
/// A permission error that names the line of the policy.
pub fn may(verb: Verb) -> Result<()> {
    Policy::load().and_then(|policy| policy.admits(&Person::caller(), verb)).map_err(denied)
}

/// Asks the kernel, then the policy. The keeper inherits descriptors 0, 1, 2 and its end of the connection, nothing else.
///
/// # Errors
/// A permission error that says which file or sysctl forbids it.
pub fn admit(request: &Request, verb: Verb) -> Result<Admitted> {
    let caller = root_for_host(request)?;
    let started = start(request, &caller).at(Step::Admit).map_err(|e| Surroundings::look().name(e, None));
    let (pid, pidfd, control) = started?;
    let answer = handed(request).and_then(|handed| {
        let granted = policy(request, verb, true, &handed)?;
        Ok((handed, granted))
    });
    match answer {
        Ok((handed, granted)) => Ok(Admitted { pid, pidfd, control, handed, granted }),
        Err(e) => {
            drop(control);
            gone(pid);
            Err(e)
        }
    }
}

/// Waits until a keeper whose connection is closed has ended: what is refused leaves nothing. How it ended.
pub(crate) fn gone(pid: i32) -> Option<Event> {
    // Our own child; whoever else has waited for it is right too.
    yendor_sys::wait::wait(Some(pid), true).ok().flatten().map(|(_, event)| event)
}

fn policy(request: &Request, verb: Verb, network_is_known: bool, handed: &Handed) -> Result<Granted> {
    let policy = Policy::load().map_err(denied)?;
    let volume = |(volume, fd): (&crate::request::Volume, &OwnedFd)| {
        let path = volume::real_path(fd).at(Step::Admit)?;
        Ok(HostPath { name: volume.name.clone(), path, read_only: volume.read_only })
    };
    let volumes = request.volumes.iter().zip(&handed.volumes).map(volume).collect::<Result<Vec<_>>>()?;
    let rootfs = match (&request.root, &handed.root) {
        (Root::Dir(_), Some(fd)) => Some(volume::real_path(fd).at(Step::Admit)?),
        _ => None,
    };
    let ask = Ask {
        verb,
        network: network_is_known.then_some(match request.net {
            Net::Private => "private",
            Net::Host => "host",
            Net::None => "none",
        }),
        userns_host: request.userns == Userns::Host,
        volumes: &volumes,
        rootfs: rootfs.as_deref(),
        own_view: request.root == Root::Caller,
        memory: request.memory,
        pids: request.pids,
    };
    policy.decide(&Person::caller(), &ask).map_err(denied)
}

fn denied(Denial { what, place, hint }: Denial) -> Error {
    let by = Some(format!("the host's policy, {place}"));
    Error { by, ..Error::new(Step::Admit, Cause::Denied { what, hint }) }
}

fn root_for_host(request: &Request) -> Result<Caller> {
    let caller = Caller::look().at(Step::Admit)?;
    if request.userns == Userns::Host && !caller.privileged {
        let by = Surroundings::look().hides(&["SETUID", "SETGID"]);
        let cause = Cause::Denied {
            what: "only root can have a container in its own user namespace".into(),
            hint: "leave out --userns host".into(),
        };
        return Err(Error { by, ..Error::new(Step::Admit, cause) });
    }
    Ok(caller)
}

fn start(request: &Request, caller: &Caller) -> std::result::Result<(i32, OwnedFd, Control), Cause> {
    let auto = request.userns == Userns::Auto;
    let maps = userns::plan(request, caller);
    let (control, theirs) = Control::pair()?;
    let arguments = [cstring("yendor")?, cstring(OUTER)?, cstring(&request.name)?];
    let environment = environment()?;
    let descriptors: [BorrowedFd<'_>; 1] = [theirs.as_fd()];
    let waiting = spawn(&Spawn {
        program: c"/proc/self/exe",
        arguments: &arguments,
        environment: &environment,
        user_namespace: auto,
        ids: auto.then_some(maps.root),
        descriptors: &descriptors,
    })
    .map_err(why_no_namespace)?;
    if auto {
        userns::write(waiting.pid(), &maps)?;
    }
    let (pid, pidfd) = waiting.release()?;
    Ok((pid, pidfd, control))
}

fn cstring(text: impl AsRef<OsStr>) -> std::result::Result<CString, Cause> {
    let text = text.as_ref();
    CString::new(text.as_bytes()).map_err(|_| Errno::INVAL).named("execve", || format!("{text:?}")).map_err(Cause::from)
}

/// The keeper's environment. Its memory is copied into the container's first task: what is not there cannot leak.
fn environment() -> std::result::Result<Vec<CString>, Cause> {
    let wanted = |name: &OsStr| {
        let name = name.as_bytes();
        name.starts_with(b"YENDOR_") || name.starts_with(b"RUST_") || name == b"PATH" || name == b"LD_LIBRARY_PATH"
    };
    let line = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut text = name;
        text.push("=");
        text.push(value);
        cstring(text)
    };
    std::env::vars_os().filter(|(name, _)| wanted(name)).map(line).collect()
}

/// Says what forbids user namespaces (user_namespaces(7), and the switches of distributions).
fn why_no_namespace(error: SysError) -> Cause {
    let hint = match error.errno {
        Errno::NOSPC => format!(
            "a limit is reached, here or in a user namespace above: raise {} (a container takes two user and two mount namespaces)",
            limit(&error)
        ),
        Errno::USERS => "user namespaces are nested 32 deep already: start the container further out".to_owned(),
        Errno::INVAL | Errno::NOSYS => "the kernel was built without CONFIG_USER_NS".to_owned(),
        Errno::PERM | Errno::ACCESS => switched_off().unwrap_or_else(|| {
            "a seccomp filter or a security module of the caller forbids user namespaces, or the caller is in a chroot".to_owned()
        }),
        _ => return error.into(),
    };
    Cause::Refused { error, hint }
}

/// The setting that a call for new namespaces ran into.
fn limit(error: &SysError) -> String {
    let kinds = [("NEWUSER", "user"), ("NEWNS", "mnt"), ("NEWNET", "net"), ("NEWIPC", "ipc"), ("NEWUTS", "uts")];
    let kinds = kinds.into_iter().chain([("NEWPID", "pid"), ("NEWTIME", "time")]);
    let asked = kinds.filter(|(flag, _)| error.args.contains(flag));
    asked.map(|(_, kind)| format!("/proc/sys/user/max_{kind}_namespaces")).collect::<Vec<_>>().join(" or ")
}

pub(crate) fn switched_off() -> Option<String> {
    let switches = [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("/proc/sys/user/max_user_namespaces", "0", "a number above zero"),
    ];
    let off = |(path, bad, good): (&str, &str, &str)| {
        let text = std::fs::read_to_string(path).ok()?;
        (text.trim() == bad).then(|| format!("{path} is {bad}: set it to {good}"))
    };
    switches.into_iter().find_map(off)
}
