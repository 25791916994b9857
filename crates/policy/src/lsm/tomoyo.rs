//! TOMOYO: policy and domains are texts in securityfs; those of others only root may read.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use yendor_sys::{Errno, SysError};

use super::{open, read_bytes};

/// Digests of the policy's files.
pub(super) fn parts(security: Option<&OwnedFd>) -> Option<BTreeMap<String, String>> {
    let digest = |name: &str| {
        let text = read_bytes(security?, &format!("tomoyo/{name}"))?;
        Some((name.to_owned(), format!("blake3 {}", blake3::hash(&text).to_hex())))
    };
    // Domains come and go by themselves while a policy learns; what is permitted in them is the policy.
    ["domain_policy", "exception_policy", "profile"].into_iter().map(digest).collect()
}

/// `PID PROFILE DOMAIN`, for a task that was written there before.
pub(super) fn domain(security: &OwnedFd, tid: i32) -> Option<Vec<u8>> {
    let status = open(security.as_fd(), "tomoyo/.process_status", OFlags::RDWR).ok()?;
    rustix::io::write(&status, format!("{tid}\n").as_bytes()).ok()?;
    let mut text = vec![0_u8; 8192];
    let count = rustix::io::read(&status, &mut text).ok()?;
    text.truncate(count);
    let line = text.split(|byte| *byte == b'\n').next()?;
    line.splitn(3, |byte| *byte == b' ').nth(2).map(<[u8]>::to_vec)
}

/// The file by which a task changes its own domain.
pub(super) fn door(security: Option<&OwnedFd>) -> yendor_sys::Result<OwnedFd> {
    let dir = security.ok_or_else(|| SysError::new("openat", "/sys/kernel/security", Errno::NOENT))?;
    open(dir, "tomoyo/self_domain", OFlags::RDWR)
}
