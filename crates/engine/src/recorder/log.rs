//! What tasks forbid themselves, in the order in which they did: a file of lines in the container's directory, written by
//! the keeper alone, read by checkpoints.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use yendor_kinds::process::landlock::Layer;
use yendor_kinds::process::seccomp::Filter;
use yendor_sys::{Errno, SysError};

/// The file's name.
pub const NAME: &str = "restrictions";

/// Bytes of a log beyond which nothing more is remembered.
const LIMIT: u64 = 64 << 20;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What the tasks of a restored image had: referred to by [`What::State`].
    Table {
        /// Filters, by number.
        filters: Vec<Filter>,
        /// Domains, by id.
        domains: Vec<Placed>,
    },
    /// A thread did something.
    Event(Event),
    /// There was too much to remember.
    Overflow,
}

/// Something that a thread did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The thread, as the keeper sees it.
    pub tid: i32,
    /// When it was born, in clock ticks of the host's boot time (/proc/PID/stat).
    pub start: u64,
    /// Its process.
    pub pid: i32,
    /// When, on the same clock.
    pub time: u64,
    /// The last id that was given to a task before.
    pub cursor: i32,
    /// How many filters it had then, all counted (/proc/PID/status, `Seccomp_filters`).
    pub depth: u32,
    /// What.
    pub what: What,
}

/// What a thread did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// It called the kernel to install a filter; whether it succeeded shows in the next `depth`.
    Filter {
        /// The filter.
        filter: Filter,
        /// For all threads of its process.
        tsync: bool,
    },
    /// It entered a Landlock domain.
    Domain {
        /// The domain's id: processes with one id are in one domain.
        id: u32,
        /// What it forbids.
        layer: Placed,
    },
    /// It has been restored with these, by number and id.
    State {
        /// Filters, oldest first.
        filters: Vec<u32>,
        /// Domains, outermost first.
        domains: Vec<u32>,
    },
    /// It has ended, now or before.
    Ended,
    /// It did something that cannot be recorded.
    Unknown(String),
}

/// A layer, and which files its paths led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The layer.
    pub layer: Layer,
    /// Device and inode for each rule, zeros for ports.
    pub files: Vec<(u64, u64)>,
}

/// The log of a running container.
#[derive(Debug)]
pub struct Log {
    file: std::fs::File,
    bytes: u64,
}

impl Log {
    /// A new log.
    pub fn new(file: std::fs::File) -> Log {
        Log { file, bytes: 0 }
    }

    /// Whether nothing more is remembered.
    pub fn is_full(&self) -> bool {
        self.bytes > LIMIT
    }

    /// Appends a line.
    ///
    /// # Errors
    /// What write says.
    pub fn append(&mut self, line: &Line) -> Result<(), SysError> {
        if self.is_full() {
            return Ok(());
        }
        let mut text = serde_json::to_vec(line).map_err(|_| SysError::new("write", NAME, Errno::INVAL))?;
        self.bytes = self.bytes.saturating_add(text.len() as u64 + 1);
        if self.bytes > LIMIT {
            text = b"\"overflow\"".to_vec();
        }
        text.push(b'\n');
        self.file.write_all(&text).map_err(|e| SysError::io("write", NAME, &e))
    }
}

/// Reads a container's log; none where nobody records.
///
/// # Errors
/// What read says, `EBADMSG` for a line that is none.
pub fn read(container: &Path) -> Result<Option<Vec<Line>>, SysError> {
    let file = match std::fs::File::open(container.join(NAME)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(SysError::io("open", NAME, &e)),
    };
    let mut out = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| SysError::io("read", NAME, &e))?;
        let bad = |e: serde_json::Error| SysError::new("read", format!("{NAME}: {e}"), Errno::BADMSG);
        out.push(serde_json::from_slice(&line).map_err(bad)?);
    }
    Ok(Some(out))
}
