//! Why a verb did not do what it was asked, and the exit code that says what is true now.

use std::fmt;
use std::path::Path;

use serde_json::{Value, json};

/// What a verb returns: an exit code, or why not.
pub type Outcome = Result<u8, Failure>;

/// What stands before what to do about a failure.
const HINT: &str = "\n  hint: ";

/// A failure.
#[derive(Debug)]
pub enum Failure {
    /// The engine's.
    Engine(Box<yendor_engine::Error>),
    /// An image cannot be read.
    Image(yendor_image::Error),
    /// Asked wrongly (exit code 2).
    Usage(String),
    /// Asked for something that is not there yet (exit code 3, nothing touched).
    NotYet(String),
    /// Not done; everything is as it was (exit code 1).
    Failed(String),
    /// Permission or policy refuses (exit code 5).
    Denied(Box<Denied>),
    /// With an exit code of its own.
    Said {
        /// The exit code.
        code: u8,
        /// What happened.
        what: String,
    },
}

/// What is refused, by whom, and at which call.
#[derive(Debug, Default)]
pub struct Denied {
    /// What is refused.
    what: String,
    /// What would allow it.
    hint: Option<String>,
    /// The call, its arguments and the error number, where the kernel refused one.
    call: Option<(&'static str, String, i32)>,
    /// Who it was, where that is known.
    by: Option<String>,
}

impl Denied {
    /// By a rule of ours.
    pub fn by_rule(what: &str, hint: &str, by: &str) -> Failure {
        let (what, hint, by) = (what.to_owned(), Some(hint.to_owned()), Some(by.to_owned()));
        Failure::Denied(Box::new(Denied { what, hint, call: None, by }))
    }

    /// By the kernel, which refused a call.
    pub fn by_kernel(what: String, call: &'static str, args: String, errno: i32) -> Failure {
        let by = yendor_engine::admit::who_denied(call, &args, errno);
        Failure::Denied(Box::new(Denied { what, hint: None, call: Some((call, args, errno)), by }))
    }
}

impl Failure {
    /// A call on a path that failed.
    pub fn io(does: &'static str, path: &Path, error: &std::io::Error) -> Failure {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let what = format!("{does} {}: {text}", path.display());
        let call = match does {
            "run" => "execve",
            "remove" | "rmdir" => "unlinkat",
            "connect to" => "connect",
            call => call,
        };
        match (error.kind(), error.raw_os_error()) {
            (std::io::ErrorKind::PermissionDenied, errno) => {
                let errno = errno.unwrap_or(rustix::io::Errno::ACCESS.raw_os_error());
                Denied::by_kernel(what, call, path.display().to_string(), errno)
            }
            _ => Failure::Failed(what),
        }
    }

    /// With what would allow it, if it is a denial.
    pub fn hint(mut self, hint: String) -> Failure {
        if let Failure::Denied(denied) = &mut self {
            denied.hint = Some(hint);
        }
        self
    }

    /// The exit code (DESIGN.md section 6).
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Engine(e) => e.exit_code(),
            Failure::Image(yendor_image::Error::Missing { file }) if file.starts_with('/') => 1,
            Failure::Image(e) if e.is_damage() => 4,
            Failure::Image(_) | Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NotYet(_) => 3,
            Failure::Denied(_) => 5,
            Failure::Said { code, .. } => *code,
        }
    }

    /// What happened, and what to do about it where that is known.
    fn said(&self) -> (String, Option<String>) {
        if let Failure::Engine(error) = self {
            return (error.what(), error.hint());
        }
        if let Failure::Denied(denied) = self {
            return (denied.what.clone(), denied.hint.clone());
        }
        let text = self.to_string();
        match text.split_once(HINT) {
            Some((what, hint)) => (what.to_owned(), Some(hint.to_owned())),
            None => (text, None),
        }
    }

    /// The same as fields: always all of them (docs/json.md), null where there is nothing to say.
    pub fn to_json(&self) -> Value {
        let error = if let Failure::Engine(error) = self { Some(error) } else { None };
        let place = error.map(|error| &error.place);
        let denied = if let Failure::Denied(denied) = self { Some(denied) } else { None };
        let by = error.map_or_else(|| denied.and_then(|denied| denied.by.as_ref()), |error| error.by.as_ref());
        let of_engine = error.and_then(|error| error.cause.sys());
        let of_engine = of_engine.map(|sys| (sys.call, sys.args.as_str(), sys.errno.raw_os_error()));
        let of_kernel =
            denied.and_then(|denied| denied.call.as_ref()).map(|(call, args, errno)| (*call, &**args, *errno));
        let call = of_engine.or(of_kernel);
        let spot = match self {
            Failure::Engine(error) => error.cause.spot(),
            Failure::Image(error) => error.spot(),
            _ => None,
        };
        let (message, hint) = self.said();
        json!({ "error": {
            "message": message,
            "hint": hint,
            "exit_code": self.exit_code(),
            "step": place.map(|place| place.step.name()),
            "task": place.and_then(|place| place.task),
            "kind": place.and_then(|place| place.kind),
            "object": place.and_then(|place| place.object.as_ref()),
            "by": by,
            "call": call.map(|(call, _, _)| call),
            "args": call.map(|(_, args, _)| args),
            "errno": call.map(|(_, _, errno)| errno),
            "file": spot.as_ref().map(|spot| &spot.file),
            "offset": spot.as_ref().and_then(|spot| spot.offset),
            "bytes": spot.as_ref().and_then(|spot| spot.bytes),
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Engine(e) => e.fmt(f),
            Failure::Image(yendor_image::Error::Missing { file }) if file.starts_with('/') => {
                write!(f, "there is no image at {file}")
            }
            Failure::Image(e) => e.fmt(f),
            Failure::NotYet(what) => write!(f, "not supported yet: {what}"),
            Failure::Denied(denied) => {
                let by = denied.by.iter().map(|by| format!("\n  denied by: {by}"));
                let hint = denied.hint.iter().map(|hint| format!("{HINT}{hint}"));
                f.write_str(&denied.what)?;
                by.chain(hint).try_for_each(|line| f.write_str(&line))
            }
            Failure::Usage(what) | Failure::Failed(what) | Failure::Said { what, .. } => f.write_str(what),
        }
    }
}

impl From<yendor_engine::Error> for Failure {
    fn from(e: yendor_engine::Error) -> Self {
        Failure::Engine(Box::new(e))
    }
}

impl From<yendor_image::Error> for Failure {
    fn from(e: yendor_image::Error) -> Self {
        match &e {
            yendor_image::Error::Io { file, op, source } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                let errno = source.raw_os_error().unwrap_or(rustix::io::Errno::ACCESS.raw_os_error());
                Denied::by_kernel(e.to_string(), op, file.clone(), errno)
            }
            _ => Failure::Image(e),
        }
    }
}
