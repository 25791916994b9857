//! Security labels of a thread: its own, and those of what it is going to make.
//! *Read from:* /proc/PID/task/TID/attr; a TOMOYO domain from securityfs, by root; of a socket under SELinux its attribute.
//! *Made again by:* lsm_set_self_attr or /proc/thread-self/attr in the task itself, on request only (`--keep-lsm`); a socket by
//! whoever makes it, with its label as `sockcreate`.
//! *Lost:* without that request all of it: the task has the label of whoever restores, or the one that the container was
//! asked to have. The token of an AppArmor hat, which the kernel tells nobody: the task is confined by its hat and cannot
//! leave it. Under which label a file was opened, the label of a System V object, and what a socket knows of its peer's: no
//! kernel tells the first two, and the last is what the new peer has. The label of a socket under Smack, which takes a capability of
//! the host to give. A checkpoint says so where labels are in use.

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::Errno;
use yendor_sys::lsm::{Attribute, Module, context};
use yendor_task::script::{Want, bytes, cstr};
use yendor_task::tree::read_proc;
use yendor_task::{Nr, Script, args};

use crate::{Cause, Result};

/// One label of a thread.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The module that knows it (`apparmor`).
    pub module: String,
    /// What carries it: `current`, `exec`, `fscreate`, `keycreate`, `sockcreate`; of a socket, `socket`.
    pub attribute: String,
    /// The label; none: it was there and could not be read.
    pub label: Option<Bytes>,
}

/// How a task sets its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By calls made for it (Linux 6.8).
    Call,
    /// By /proc; the number of a descriptor that is free, and the lowest.
    Proc(i32),
}

/// Reads a thread's. `domain`: its TOMOYO domain, where somebody may know it.
///
/// # Errors
/// The thread is gone.
pub fn collect(
    proc: impl AsFd,
    (pid, tid): (i32, i32),
    modules: &[Module],
    domain: impl Fn(i32) -> Option<Vec<u8>>,
) -> Result<Vec<Label>> {
    let mut out = Vec::new();
    for module in modules {
        for attribute in module.attributes() {
            let label = match module {
                Module::Tomoyo => Some(domain(tid)),
                _ => read(proc.as_fd(), &format!("{pid}/task/{tid}/attr/{}", module.file(*attribute)))?,
            };
            let Some(label) = label else { continue };
            let label = label.map(|text| Bytes(plain(*module, &text).to_vec()));
            // An empty label of what is to come is none.
            if *attribute == Attribute::Current || label.as_ref().is_none_or(|l| !l.0.is_empty()) {
                out.push(Label { module: module.name().into(), attribute: attribute.name().into(), label });
            }
        }
    }
    Ok(out)
}

/// What a socket's label is an attribute of, in a record.
pub const SOCKET: &str = "socket";

/// What Smack labels with, of what comes in at a socket and of what goes out.
const SMACK: [&str; 2] = ["security.SMACK64IPIN", "security.SMACK64IPOUT"];

/// The labels of a socket under Smack, none where it is not active. Everybody may read them (`smack_inode_getsecurity`), and only who
/// has CAP_MAC_ADMIN in the first user namespace may give them (`smack_inode_setxattr`).
///
/// # Errors
/// What fgetxattr says.
pub fn under_smack(socket: impl AsFd) -> Result<Vec<Vec<u8>>> {
    /// The kernel's limit for a label (`SMK_LONGLABEL`).
    const LONGEST: usize = 256;
    let mut out = Vec::new();
    for name in SMACK {
        let mut text = vec![0_u8; LONGEST];
        match rustix::fs::fgetxattr(&socket, name, &mut text) {
            Ok(len) => out.push(plain(Module::Smack, &text[..len]).to_vec()),
            Err(Errno::OPNOTSUPP | Errno::NODATA) => {}
            Err(e) => return Err(yendor_sys::SysError::new("fgetxattr", name, e).into()),
        }
    }
    Ok(out)
}

/// Reads a socket's. SELinux alone gives them any that can be read and, by a container's root, given again.
///
/// # Errors
/// What fgetxattr says.
pub fn of_socket(socket: impl AsFd, modules: &[Module]) -> Result<Vec<Label>> {
    if !modules.contains(&Module::SELinux) {
        return Ok(Vec::new());
    }
    const NAME: &str = "security.selinux";
    /// The kernel's limit for a label is a page.
    const LONGEST: usize = 4096;
    let mut text = vec![0_u8; LONGEST];
    let label = match rustix::fs::fgetxattr(&socket, NAME, &mut text) {
        Ok(len) => {
            text.truncate(len);
            Some(Bytes(plain(Module::SELinux, &text).to_vec()))
        }
        Err(Errno::ACCESS | Errno::PERM) => None,
        Err(Errno::OPNOTSUPP | Errno::NODATA) => return Ok(Vec::new()),
        Err(e) => return Err(yendor_sys::SysError::new("fgetxattr", NAME, e).into()),
    };
    Ok(vec![Label { module: Module::SELinux.name().into(), attribute: SOCKET.into(), label }])
}

/// Sets one label. `text` is what the module wants to be written; `door` the descriptor for TOMOYO.
pub fn set(module: Module, attribute: Attribute, text: &[u8], way: Way, door: Option<i32>, script: &mut Script) {
    const O_WRONLY_CLOEXEC: u32 = 1 | 0o2_000_000;
    const AT_FDCWD: i32 = -100;
    if let (Module::Tomoyo, Some(door)) = (module, door) {
        script.call_wanting(Nr::WRITE, args![door, bytes(text), text.len()], exactly(text.len()));
        return;
    }
    match way {
        Way::Call => {
            let context = context(module, text);
            let len = context.len();
            script.call(Nr::LSM_SET_SELF_ATTR, args![attribute.id(), bytes(context), len, 0]);
        }
        Way::Proc(free) => {
            let path = format!("/proc/thread-self/attr/{}", module.file(attribute));
            let open = args![AT_FDCWD, cstr(path.as_bytes()), O_WRONLY_CLOEXEC, 0];
            script.call_wanting(Nr::OPENAT, open, Want::Exactly(u64::from(free.unsigned_abs())));
            script.call_wanting(Nr::WRITE, args![free, bytes(text), text.len()], exactly(text.len()));
            script.call(Nr::CLOSE, args![free]);
        }
    }
}

fn exactly(len: usize) -> Want {
    Want::Exactly(u64::try_from(len).unwrap_or(u64::MAX))
}

/// A label by its file: `None` when there is none, `Some(None)` when there is one and it may not be read.
fn read(proc: impl AsFd, path: &str) -> Result<Option<Option<Vec<u8>>>> {
    match read_proc(proc.as_fd(), path) {
        Ok(text) => Ok(Some(Some(text))),
        // What AppArmor says when nothing is set, and the kernel for a module that has no such attribute.
        Err(e) if matches!(e.errno, Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(e) if matches!(e.errno, Errno::ACCESS | Errno::PERM) => Ok(Some(None)),
        Err(e) => Err(Cause::from(e)),
    }
}

/// The label alone: without the ends that modules give it, and without the mode that AppArmor appends. Names may
/// have spaces and parentheses in them: only the end of the line says what is a mode.
fn plain(module: Module, text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if module != Module::AppArmor || text.last() != Some(&b')') {
        return text;
    }
    match text.windows(2).rposition(|pair| pair == b" (") {
        Some(at) => &text[..at],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_from_what_surrounds_them() {
        for (text, label) in [
            (&b"unconfined\n"[..], &b"unconfined"[..]),
            (b"/usr/bin/a (b) c (enforce)\n", b"/usr/bin/a (b) c"),
            (b"a//&b//hat (complain)\n", b"a//&b//hat"),
            (b"a (mixed)", b"a"),
            (b"", b""),
        ] {
            assert_eq!(plain(Module::AppArmor, text), label);
        }
        assert_eq!(plain(Module::SELinux, b"u:r:t:s0\0"), b"u:r:t:s0");
        assert_eq!(plain(Module::Smack, b"a (b)\n"), b"a (b)");
    }

    #[test]
    fn scripts_can_be_read() {
        let mut script = Script::new();
        set(Module::SELinux, Attribute::FsCreate, b"u:r:t", Way::Proc(3), None, &mut script);
        set(Module::Tomoyo, Attribute::Current, b"<kernel> /a", Way::Call, Some(9), &mut script);
        set(Module::Smack, Attribute::Current, b"a", Way::Call, None, &mut script);
        assert_eq!(
            script.to_string(),
            "openat(-100, \"/proc/thread-self/attr/fscreate\", 0x80001, 0) = 3\n\
             write(3, <753a723a74>, 5) = 5\n\
             close(3)\n\
             write(9, <3c6b65726e656c3e202f61>, 11) = 11\n\
             lsm_set_self_attr(100, <66000000000000000000000000000000280000000000000002000000000000006100000000000000>, 40, 0)\n"
        );
    }

    #[test]
    fn whatever_this_kernel_has_is_read() {
        let proc = rustix::fs::open("/proc", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let labels = collect(&proc, (me, me), &yendor_sys::lsm::MODULES, |_| None).unwrap();
        // TOMOYO was asked for and could not be read; of the others there is what there is.
        let tomoyo = labels.iter().find(|l| l.module == "tomoyo").unwrap();
        assert_eq!((tomoyo.attribute.as_str(), &tomoyo.label), ("current", &None));
        assert!(labels.iter().all(|l| l.label.is_some() || l.module == "tomoyo"));
    }
}
