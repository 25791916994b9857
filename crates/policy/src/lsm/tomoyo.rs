//! TOMOYO: policy and domains are texts in securityfs; those of others only root may read.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use yendor_sys::{Errno, SysError};

use super::{open, read_bytes};

/// Digests of what holds for these domains: their own rules, the exceptions, and what the profiles mean.
pub(super) fn parts(security: Option<&OwnedFd>, labels: &[&[u8]]) -> Option<BTreeMap<String, String>> {
    let text = |name: &str| read_bytes(security?, &format!("tomoyo/{name}"));
    let mut parts = BTreeMap::new();
    for name in ["exception_policy", "profile"] {
        parts.insert(name.to_owned(), digest(&text(name)?));
    }
    // Domains of others come and go with every program that starts.
    let policy = text("domain_policy")?;
    for domain in domains(&policy).filter(|domain| labels.contains(&domain.name)) {
        parts.insert(format!("domain {}", String::from_utf8_lossy(domain.name)), digest(domain.rules));
    }
    Some(parts)
}

fn digest(text: &[u8]) -> String {
    format!("blake3 {}", blake3::hash(text).to_hex())
}

/// A domain of `domain_policy`.
struct Domain<'p> {
    name: &'p [u8],
    rules: &'p [u8],
}

/// Domains: a line that begins with the `<` of their namespace, and everything up to the next one.
fn domains(policy: &[u8]) -> impl Iterator<Item = Domain<'_>> {
    let begins = |at: usize| policy.get(at) == Some(&b'<') && (at == 0 || policy.get(at - 1) == Some(&b'\n'));
    let starts: Vec<usize> = (0..policy.len()).filter(|at| begins(*at)).collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([policy.len()]).collect();
    starts.into_iter().zip(ends).filter_map(|(start, end)| {
        let whole = policy.get(start..end)?;
        let (name, rules) = whole.split_at_checked(whole.iter().position(|byte| *byte == b'\n')?)?;
        Some(Domain { name, rules })
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &[u8] = b"<kernel>\nuse_profile 0\nuse_group 0\n\ntask manual_domain_transition <kernel> /a\n\n\
        <kernel> /a\nuse_profile 1\nuse_group 0\n\nfile read /b\n\n";

    #[test]
    fn domains_are_told_apart() {
        let found: Vec<_> = domains(POLICY).map(|d| (d.name, d.rules)).collect();
        assert_eq!(found.iter().map(|d| d.0).collect::<Vec<_>>(), [&b"<kernel>"[..], b"<kernel> /a"]);
        // The name of a domain in a rule begins none.
        assert!(found[0].1.ends_with(b"<kernel> /a\n\n"));
        assert_eq!(found[1].1, b"\nuse_profile 1\nuse_group 0\n\nfile read /b\n\n");
        assert_eq!(domains(b"").count() + domains(b"x\ny <z>\n").count() + domains(b"<cut").count(), 0);
    }
}
