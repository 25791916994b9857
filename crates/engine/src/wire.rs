//! What front and keeper say to each other.

use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, Digest, Spot};
use yendor_kinds::Cause;
use yendor_policy::host::Granted;
use yendor_sys::SysError;

use crate::error::{Error, Place, Step};
use crate::request::Request;
use crate::sign::Trust;

/// The front's first message, and its only one but for [`More`]. Descriptors: the container's directory with its lock and the one it lies in; standard
/// input, output and error; for an image its directory; then what the request needs (see [`crate::contain::Given`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Startup {
    /// What the caller wants.
    pub request: Request,
    /// What the host's policy gives.
    pub granted: Granted,
    /// Whose signature an image must have.
    pub trust: Trust,
    /// A program to start; none: an image to restore.
    pub spec: Option<Spec>,
    /// Where standard input, output and error lead.
    pub stdio: Stdio,
    /// The image's name, for the record.
    pub image: Option<String>,
    /// Which image it is, by content, where the caller has looked.
    pub seal: Option<Digest>,
    /// Of an image that is encrypted or compressed: how many files it has in clear, and which of them are the records, if these were
    /// encrypted. They come with [`More`].
    pub plain: Option<(usize, Option<usize>)>,
    /// Rows and columns of the caller's terminal, where there is one.
    pub window: Option<(u16, u16)>,
    /// Whether the container's directory goes when it has ended.
    pub remove: bool,
    /// Whether it is one of several from one image.
    pub cloning: Option<Cloning>,
    /// Whether memory may come later; the device for that follows the image's directory.
    pub lazy: Option<Lazy>,
}

/// How memory comes later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lazy {
    /// How many bytes of it come in a second without being touched, as long as nobody waits for all; none: as many as can.
    pub rate: Option<u64>,
}

/// One of several containers from one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloning {
    /// How it comes by its memory.
    pub memory: Memory,
    /// A signal that its root task has when it begins to run.
    pub signal: Option<i32>,
}

/// How a clone comes by its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Memory {
    /// From the image, for itself.
    Copied,
    /// It makes what others will share, and shares it ([`crate::ark`]).
    Made,
    /// It shares what another has made, which comes with [`More`].
    Given,
}

/// Descriptors that did not go with the first message: the files of an encrypted or compressed image in clear, or shared memory.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct More;

/// A program to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Program and arguments; a program without a slash is looked for in the `PATH` of `env`.
    pub command: Vec<Bytes>,
    /// `K=V`.
    pub env: Vec<Bytes>,
    /// Working directory; none: `/`.
    pub cwd: Option<Bytes>,
    /// User and group; none: the container's root.
    pub user: Option<(u32, u32)>,
    /// Supplementary groups; none: as the container has them.
    pub groups: Option<Vec<u32>>,
    /// Inheritable, permitted, effective, bounding, ambient, each at most what there is to be had; none: all for the
    /// container's root.
    pub capabilities: Option<[u64; 5]>,
    /// Resource limits by `RLIMIT_*` number, soft and hard; the others as the caller's.
    pub limits: Vec<(usize, u64, u64)>,
    /// Whether no program may give it more rights.
    pub no_new_privs: bool,
    /// How readily the kernel kills it for want of memory; none: as the caller.
    pub oom_score_adj: Option<i32>,
    /// File mode creation mask; none: 022.
    pub umask: Option<u32>,
}

/// Where a container's standard descriptors lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// To the caller's own.
    Inherit,
    /// From /dev/null, to the file `log` of the container's directory.
    Log,
    /// To a terminal in the container, whose other side the keeper holds.
    Terminal,
}

/// What the keeper reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Report {
    /// All tasks run.
    Started(Started),
    /// Nothing runs, nothing is left.
    Failed(Failure),
    /// The root task has ended with this wait status.
    Ended(i32),
}

/// A container that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its root task, as the caller sees it.
    pub main: i32,
    /// Its pid 1, as the caller sees it.
    pub init: i32,
    /// What could not be had in full.
    pub notes: Vec<String>,
    /// Phases and their microseconds.
    pub timings: Vec<(String, u64)>,
    /// Whether it has a terminal that nobody asked for: the image had one.
    pub terminal: bool,
}

/// An [`Error`] as a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    step: Step,
    task: Option<i32>,
    kind: Option<String>,
    object: Option<String>,
    by: Option<String>,
    why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Why {
    Call { call: String, args: String, errno: i32, hint: Option<String> },
    Unsupported(String),
    Corrupt(String),
    Denied { what: String, hint: String },
    Hole { what: String, option: String },
    Other { message: String, code: u8 },
    Damaged { spot: Spot, what: String },
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Failure {
        let why = match &*e.cause {
            Cause::Unsupported { what } | Cause::Passing { what } => Why::Unsupported(what.clone()),
            Cause::Corrupt { what } => Why::Corrupt(what.clone()),
            Cause::Denied { what, hint } => Why::Denied { what: what.clone(), hint: hint.clone() },
            Cause::Hole { what, option } => Why::Hole { what: what.clone(), option: option.clone() },
            cause => match (cause.sys(), cause.spot()) {
                (Some(SysError { call, args, errno }), _) => {
                    let hint = if let Cause::Refused { hint, .. } = cause { Some(hint.clone()) } else { None };
                    Why::Call { call: (*call).to_owned(), args: args.clone(), errno: errno.raw_os_error(), hint }
                }
                (None, Some(spot)) => Why::Damaged { spot, what: cause.to_string() },
                (None, None) => Why::Other { message: cause.to_string(), code: e.exit_code() },
            },
        };
        let Place { step, task, kind, object } = &e.place;
        Failure {
            step: *step,
            task: *task,
            kind: kind.map(str::to_owned),
            object: object.clone(),
            by: e.by.clone(),
            why,
        }
    }
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Error {
        // Names are static in our types; a failure is received once in the life of a process.
        let name = |s: String| -> &'static str { Box::leak(s.into_boxed_str()) };
        let cause = match f.why {
            Why::Call { call, args, errno, hint } => match (SysError::said(name(call), args, errno), hint) {
                (error, Some(hint)) => Cause::Refused { error, hint },
                (error, None) => error.into(),
            },
            Why::Unsupported(what) => Cause::Unsupported { what },
            Why::Corrupt(what) => Cause::Corrupt { what },
            Why::Damaged { spot, what } => Cause::Damaged { spot, what },
            Why::Denied { what, hint } => Cause::Denied { what, hint },
            Why::Hole { what, option } => Cause::Hole { what, option },
            // A reader that an image has taken over says what it likes, but not that all is well.
            Why::Other { message, code } => Cause::Reported { message, code: if code == 0 { 1 } else { code } },
        };
        let place = Place { step: f.step, task: f.task, kind: f.kind.map(name), object: f.object };
        Error { place, cause: Box::new(cause), broken: false, by: f.by }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_sys::Errno;

    #[test]
    fn a_failure_keeps_its_meaning_on_the_way() {
        let e = Error::new(Step::Thaw, SysError::new("execve", "\"/x\"", Errno::NOENT)).task(2).kind("program", "/x");
        let text = serde_json::to_string(&Failure::from(&e)).expect("json");
        let back = Error::from(serde_json::from_str::<Failure>(&text).expect("failure"));
        assert_eq!((back.to_string(), back.exit_code()), (e.to_string(), e.exit_code()));
        let e = Error::new(Step::Load, yendor_image::Error::Truncated { file: "pages-0".into(), offset: 7 });
        let text = serde_json::to_string(&Failure::from(&e)).expect("json");
        let back = Error::from(serde_json::from_str::<Failure>(&text).expect("failure"));
        assert_eq!((back.to_string(), back.exit_code()), (e.to_string(), 4));
        assert_eq!(back.cause.spot(), Some(Spot { file: "pages-0".into(), offset: Some(7), bytes: None }));
        let error = SysError::new("unshare", "", Errno::NOSPC);
        let mut e = Error::new(Step::Contain, Cause::Refused { error, hint: "raise it".into() });
        e.by = Some("sysctl".into());
        let text = serde_json::to_string(&Failure::from(&e)).expect("json");
        let back = Error::from(serde_json::from_str::<Failure>(&text).expect("failure"));
        assert_eq!((back.to_string(), back.exit_code()), (e.to_string(), 5));
    }

    /// Found by fuzzing what a loader may send.
    #[test]
    fn a_failure_that_cannot_be_is_one_all_the_same() {
        let failure = |why| Failure { step: Step::Load, task: None, kind: None, object: None, by: None, why };
        for errno in [0, -1, 4096, i32::MIN, i32::MAX] {
            let call = Why::Call { call: "open".into(), args: String::new(), errno, hint: None };
            let error = Error::from(failure(call));
            assert_eq!(error.cause.sys().map(|e| e.errno), Some(Errno::IO), "{errno}");
        }
        assert_eq!(Error::from(failure(Why::Other { message: "well".into(), code: 0 })).exit_code(), 1);
    }
}
