//! Working directory, root and umask of a process.
//! *Read from:* /proc/PID/cwd and root, the umask in /proc/PID/status.
//! *Made again by:* chroot, chdir, umask in the task; a deleted directory is made, entered and removed.
//! *Lost:* a deleted working directory becomes another deleted directory.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_task::script::cstr;
use yendor_task::{Nr, Script, args};

/// The three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Absolute path, as seen from the container's root.
    pub cwd: Bytes,
    /// Whether no name leads to it any more.
    pub cwd_deleted: bool,
    /// The process's own root, where it is not the container's.
    pub root: Option<Bytes>,
    /// The file mode creation mask.
    pub umask: u32,
}

const AT_FDCWD: i32 = -100;
const AT_REMOVEDIR: u32 = 0x200;

/// Enters them; `place`: where a deleted directory can be made for a moment.
pub fn rebuild(record: &Record, place: &[u8], script: &mut Script) {
    let Record { cwd, cwd_deleted, root, umask } = record;
    if *cwd_deleted {
        script.call(Nr::MKDIRAT, args![AT_FDCWD, cstr(place), 0o700u32]);
        script.call(Nr::CHDIR, args![cstr(place)]);
        script.call(Nr::UNLINKAT, args![AT_FDCWD, cstr(place), AT_REMOVEDIR]);
    } else {
        script.call(Nr::CHDIR, args![cstr(&cwd.0)]);
    }
    if let Some(root) = root {
        script.call(Nr::CHROOT, args![cstr(&root.0)]);
    }
    script.call(Nr::UMASK, args![*umask]);
}
