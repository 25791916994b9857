//! Why a verb did not do what it was asked, and the exit code that says what is true now.

use std::fmt;
use std::path::Path;

use serde_json::json;
use yendor_engine::error::Place;

/// What a verb returns: an exit code, or why not.
pub type Outcome = Result<u8, Failure>;

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
    Denied(String),
    /// With an exit code of its own.
    Said {
        /// The exit code.
        code: u8,
        /// What happened.
        what: String,
    },
}

impl Failure {
    /// A call on a path that failed.
    pub fn io(call: &str, path: &Path, error: &std::io::Error) -> Failure {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let what = format!("{call} {}: {text}", path.display());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::Denied(what),
            _ => Failure::Failed(what),
        }
    }

    /// The exit code (DESIGN.md section 6).
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Engine(e) => e.exit_code(),
            Failure::Image(yendor_image::Error::Missing { file }) if file.starts_with('/') => 1,
            Failure::Image(e) if e.is_damage() => 4,
            Failure::Image(yendor_image::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                5
            }
            Failure::Image(_) | Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NotYet(_) => 3,
            Failure::Denied(_) => 5,
            Failure::Said { code, .. } => *code,
        }
    }

    /// The same as fields.
    pub fn to_json(&self) -> serde_json::Value {
        let mut fields = json!({ "message": self.to_string(), "exit_code": self.exit_code() });
        if let (Failure::Engine(error), Some(fields)) = (self, fields.as_object_mut()) {
            let Place { step, task, kind, object } = &error.place;
            fields.insert("step".into(), json!(step.name()));
            fields.insert("task".into(), json!(task));
            fields.insert("kind".into(), json!(kind));
            fields.insert("object".into(), json!(object));
            fields.insert("by".into(), json!(error.by));
            fields.insert("hint".into(), json!(error.hint()));
            if let Some(sys) = error.cause.sys() {
                fields.insert("call".into(), json!(sys.call));
                fields.insert("args".into(), json!(sys.args));
                fields.insert("errno".into(), json!(sys.errno.raw_os_error()));
            }
        }
        let spot = match self {
            Failure::Engine(error) => error.cause.spot(),
            Failure::Image(error) => error.spot(),
            _ => None,
        };
        if let (Some(spot), Some(fields)) = (spot, fields.as_object_mut()) {
            fields.insert("file".into(), json!(spot.file));
            fields.insert("offset".into(), json!(spot.offset));
            fields.insert("bytes".into(), json!(spot.bytes));
        }
        json!({ "error": fields })
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
            Failure::Usage(what) | Failure::Failed(what) | Failure::Denied(what) | Failure::Said { what, .. } => {
                f.write_str(what)
            }
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
        Failure::Image(e)
    }
}
