//! Working directory, root and umask of a process.
//! *Read from:* /proc/PID/cwd and root, the umask in /proc/PID/status.
//! *Made again by:* openat2, fchdir, chroot, umask in the task; a deleted directory is made, entered and removed.
//! *Lost:* a deleted working directory becomes another deleted directory.

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_task::script::{Want, bytes, cstr};
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
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;

/// Enters them; `place`: where a deleted directory can be made for a moment. Nobody needs the task's descriptors 0 and 1 yet.
pub fn rebuild(record: &Record, place: &[u8], script: &mut Script) {
    let Record { cwd, cwd_deleted, root, umask } = record;
    script.call(Nr::CLOSE_RANGE, args![0, 1, 0]);
    let at = if *cwd_deleted {
        let slash = place.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let (parent, name) = (&place[..slash.max(1)], place.get(slash + 1..).unwrap_or_default());
        open(0, (AT_FDCWD, parent), RESOLVE_NO_MAGICLINKS, script);
        script.call(Nr::MKDIRAT, args![0, cstr(name), 0o700u32]);
        open(1, (0, name), RESOLVE_NO_SYMLINKS, script);
        script.call(Nr::UNLINKAT, args![0, cstr(name), AT_REMOVEDIR]);
        script.call(Nr::CLOSE, args![0]);
        1
    } else {
        open(0, (AT_FDCWD, &cwd.0), RESOLVE_NO_MAGICLINKS, script);
        0
    };
    if let Some(root) = root {
        open(1 - at, (AT_FDCWD, &root.0), RESOLVE_NO_MAGICLINKS, script);
        script.call(Nr::FCHDIR, args![1 - at]);
        script.call(Nr::CHROOT, args![cstr(b".")]);
    }
    script.call(Nr::FCHDIR, args![at]);
    script.call(Nr::CLOSE_RANGE, args![0, 1, 0]);
    script.call(Nr::UMASK, args![*umask]);
}

/// Opens a directory as `number`, the lowest that is free. What an image says, or a link in a root file system that nobody vouches for, must
/// lead through no magic link (proc(5)): those go to whatever a process has open, also outside of the container.
fn open(number: u64, (from, path): (i32, &[u8]), resolve: u64, script: &mut Script) {
    const O_PATH_DIRECTORY_CLOEXEC: u64 = 0o12_200_000;
    let how = [O_PATH_DIRECTORY_CLOEXEC, 0, resolve].map(u64::to_ne_bytes).concat();
    let size = how.len();
    script.call_wanting(Nr::OPENAT2, args![from, cstr(path), bytes(how), size], Want::Exactly(number));
}
