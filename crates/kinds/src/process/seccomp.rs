//! Seccomp filters of a thread: those that it, or a process it comes from, has installed itself, oldest first.
//! *Read from:* what was recorded when they were installed; as root of the host, PTRACE_SECCOMP_GET_FILTER.
//! *Made again by:* seccomp in the task, the last of its calls, with SECCOMP_FILTER_FLAG_TSYNC where all threads have it.
//! *Lost:* nothing of containers that Yendor starts; there a filter with a supervisor of its own
//! (SECCOMP_FILTER_FLAG_NEW_LISTENER) cannot be installed, elsewhere it is refused. Of other trees SECCOMP_FILTER_FLAG_SPEC_ALLOW,
//! which the kernel tells nobody: where filters switch speculation off, they do so again.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Flags of its installation, without `SECCOMP_FILTER_FLAG_TSYNC`.
    pub flags: u32,
    /// Its instructions, eight bytes each.
    pub program: Bytes,
}
