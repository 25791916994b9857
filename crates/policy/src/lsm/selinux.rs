//! SELinux: one policy, whose bytes the kernel gives back to whoever its rules let read them, and whose loads it counts for
//! everybody.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use yendor_sys::{Errno, SysError};

use super::{open, read, read_bytes};

/// The digest of the loaded policy, for whom may read it.
pub(super) fn parts(selinux: Option<&OwnedFd>) -> Option<BTreeMap<String, String>> {
    let policy = read_bytes(selinux?, "policy")?;
    let digest = format!("blake3 {}", blake3::hash(&policy).to_hex());
    Some(BTreeMap::from([("policy".to_owned(), digest)]))
}

/// How often a policy was loaded since the boot (struct selinux_kernel_status: version, sequence, enforcing, policyload).
pub(super) fn load(selinux: Option<&OwnedFd>) -> Option<String> {
    let status = read_bytes(selinux?, "status")?;
    let word = |n: usize| Some(u32::from_ne_bytes(status.get(n * 4..n * 4 + 4)?.try_into().ok()?));
    Some(word(3)?.to_string())
}

/// Asks the policy (security_compute_av(3)) whether `domain` may be entered through a file with the label `file`.
pub(super) fn is_entrypoint(selinux: Option<&OwnedFd>, file: &[u8], domain: &[u8]) -> yendor_sys::Result<bool> {
    let dir = selinux.ok_or_else(|| SysError::new("openat", "/sys/fs/selinux", Errno::NOENT))?;
    let number = |path: &str| -> yendor_sys::Result<u32> {
        let text = read(dir, path).ok_or_else(|| SysError::new("openat", path, Errno::NOENT))?;
        text.trim().parse().map_err(|_| SysError::new("read", path, Errno::INVAL))
    };
    let (class, bit) = (number("class/file/index")?, number("class/file/perms/entrypoint")?);
    let shown = |context: &[u8]| context.escape_ascii().to_string();
    // Contexts are words: one with a space in it would ask something else.
    if [file, domain].iter().any(|c| c.is_empty() || c.iter().any(u8::is_ascii_whitespace)) {
        return Err(SysError::new("write", format!("access, {} {}", shown(domain), shown(file)), Errno::INVAL));
    }
    let question = [domain, b" ", file, format!(" {class}\0").as_bytes()].concat();
    let access = open(dir.as_fd(), "access", OFlags::RDWR)?;
    let failed = |call: &'static str| {
        let what = format!("access, {} {} file", shown(domain), shown(file));
        move |e| SysError::new(call, what, e)
    };
    rustix::io::write(&access, &question).map_err(failed("write"))?;
    let mut answer = [0_u8; 256];
    let count = rustix::io::read(&access, &mut answer).map_err(failed("read"))?;
    let answer = String::from_utf8_lossy(answer.get(..count).unwrap_or_default()).into_owned();
    let allowed = answer.split_whitespace().next().and_then(|word| u32::from_str_radix(word, 16).ok());
    let allowed = allowed.ok_or_else(|| SysError::new("read", "access", Errno::INVAL))?;
    // Permissions are numbered from one.
    Ok(bit.checked_sub(1).and_then(|n| allowed.checked_shr(n)).is_some_and(|bits| bits & 1 == 1))
}
