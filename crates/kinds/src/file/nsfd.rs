//! A descriptor of a namespace (/proc/PID/ns/...) that a process of the tree lives in.
//! *Read from:* the link in /proc/PID/fd, compared with those of all processes.
//! *Made again by:* opening the same of a process that is born.
//! *Lost:* the inode number, which is another for another namespace. One that no process lives in is refused.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use yendor_image::NsPid;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// What the links below /proc/PID/ns can be named.
const NAMES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `net`, `mnt` ...
    pub name: String,
    /// A process inside that lives in it.
    pub process: NsPid,
}

impl FileKind for Record {
    const NAME: &'static str = "namespace";
    const LATE: bool = true;

    fn claims(seen: &Seen) -> bool {
        name(&seen.link.0).is_some()
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let Some(name) = name(&seen.link.0) else {
            return Err(Cause::unsupported(format!("{}: no namespace", seen.link)));
        };
        let lives = |pid: &i32| gather.link(&format!("{pid}/ns/{name}")).is_ok_and(|link| link == seen.link);
        match gather.pids.iter().find(|(pid, _)| lives(pid)) {
            Some((_, process)) => Ok(Record { name: name.to_owned(), process: *process }),
            None => Err(Cause::unsupported(format!("{}: a namespace that no process of the tree lives in", seen.link))),
        }
    }

    fn rebuild(&self, _entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { name, process } = self;
        let Some(name) = NAMES.iter().find(|known| *known == name) else {
            return Err(Cause::corrupt(format!("a namespace of the kind {name:?}")));
        };
        let path = format!("{}/ns/{name}", workshop.born(*process)?);
        let fd = rustix::fs::openat(&workshop.proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok(fd.named("openat", || format!("/proc/{path}"))?)
    }
}

/// The name before `:[inode]`.
fn name(link: &[u8]) -> Option<&'static str> {
    let colon = link.windows(2).position(|w| w == b":[")?;
    NAMES.iter().find(|n| n.as_bytes() == &link[..colon]).copied()
}
