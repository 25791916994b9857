//! Files that cannot be checkpointed, by the names that people know them by.
//! *Read from:* the link in /proc/PID/fd, the name of a mapping; the type of the file system; the family of a socket.
//! *Made again by:* nothing: each refuses the checkpoint.
//! *Lost:* nothing.

use rustix::fs::{FileType, OFlags, fstatfs};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::Seen;
use crate::{Cause, Result};

/// What `anon_inode:` links and the like are, and why not.
const NAMED: &[(&[u8], &str)] = &[
    (b"anon_inode:[io_uring]", "an io_uring: its rings and requests are the kernel's"),
    (b"anon_inode:[userfaultfd]", "a userfaultfd of the program's own"),
    (b"anon_inode:[perf_event]", "a perf event"),
    (b"anon_inode:[fanotify]", "a fanotify group"),
    (b"anon_inode:seccomp notify", "a seccomp listener"),
    (b"anon_inode:bpf-map", "a BPF map"),
    (b"anon_inode:bpf-prog", "a BPF program"),
    (b"anon_inode:bpf_link", "a BPF link"),
    (b"anon_inode:bpf_iter", "a BPF iterator"),
    (b"anon_inode:bpf_token", "a BPF token"),
    (b"anon_inode:btf", "BPF type data"),
    (b"anon_inode:kvm-vm", "a virtual machine (KVM)"),
    (b"anon_inode:kvm-vcpu", "a virtual machine (KVM)"),
    (b"anon_inode:[landlock-ruleset]", "a Landlock ruleset that is not in force yet"),
    (b"anon_inode:[fscontext]", "a mount that is being configured (fsopen)"),
    (b"anon_inode:[vfio", "a device (VFIO)"),
    (b"anon_inode:dma-buf", "a device's buffer (dma-buf)"),
    (b"/dmabuf:", "a device's buffer (dma-buf)"),
    (b"anon_inode:sync_file", "a device's fence (sync_file)"),
];

/// File systems whose files are no content: magic numbers as statfs(2) tells them.
const FILE_SYSTEMS: &[(i64, &str)] = &[
    (0x5345_434d, "secret memory (memfd_secret), which nobody but the program can read"),
    (0xcafe_4a11, "a file of bpffs"),
    (0x444d_4142, "a device's buffer (dma-buf)"),
];

/// Refuses what is known to be impossible.
///
/// # Errors
/// `Unsupported`, by name.
pub fn check(seen: &Seen) -> Result<()> {
    let refuse = |what: &str| Err(Cause::unsupported(format!("{}: {what}", seen.link)));
    if let Some((_, what)) = NAMED.iter().find(|(link, _)| seen.link.0.starts_with(link)) {
        return refuse(what);
    }
    let kind = FileType::from_raw_mode(seen.stat.st_mode);
    if seen.info.flags & OFlags::PATH.bits() != 0 {
        return Ok(());
    }
    if kind == FileType::Socket
        && let Ok(family) = sockopt::socket_domain(&seen.fd)
        && ![AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6, AddressFamily::NETLINK].contains(&family)
    {
        return refuse(&format!("a socket of the family {}", family_name(family)));
    }
    if kind == FileType::Socket
        && matches!(sockopt::socket_domain(&seen.fd), Ok(AddressFamily::INET | AddressFamily::INET6))
        && let Some(what) = internet(seen)
    {
        return refuse(&what);
    }
    let magic = fstatfs(&seen.fd).map_or(0, |s| s.f_type);
    match FILE_SYSTEMS.iter().find(|(known, _)| *known == magic) {
        Some((_, what)) => refuse(what),
        None => Ok(()),
    }
}

/// What is behind a mapping that no image can hold, by its name in /proc/PID/maps: the descriptor may be closed.
#[must_use]
pub fn mapping(name: &[u8], deleted: bool) -> Option<&'static str> {
    if let Some((_, what)) = NAMED.iter().find(|(link, _)| name.starts_with(link)) {
        return Some(what);
    }
    match name {
        b"/secretmem" if deleted => Some("secret memory (memfd_secret), which nobody but the program can read"),
        other if other.starts_with(b"anon_inode:") => Some("an object of the kernel that no kind knows"),
        _ => None,
    }
}

/// What an internet socket is that is neither of TCP nor of UDP.
fn internet(seen: &Seen) -> Option<String> {
    let protocol = sockopt::socket_protocol(&seen.fd).ok()?.map_or(0, |p| p.as_raw().get());
    let kind = sockopt::socket_type(&seen.fd).ok()?;
    let name = match (kind, protocol) {
        (SocketType::STREAM, 6 | 262) | (SocketType::DGRAM, 17) => return None,
        (SocketType::RAW, protocol) => return Some(format!("a raw socket (SOCK_RAW, protocol {protocol})")),
        (SocketType::DGRAM, 1 | 58) => "ICMP (ping)",
        (_, 33) => "DCCP",
        (_, 115) => "L2TP",
        (_, 132) => "SCTP",
        (_, 136) => "UDP-Lite",
        _ => return Some(format!("an internet socket of the protocol {protocol}")),
    };
    Some(format!("a socket of {name}"))
}

/// The name in socket(2) of those that programs use.
fn family_name(family: AddressFamily) -> String {
    let name = match family.as_raw() {
        15 => "AF_KEY",
        17 => "AF_PACKET",
        29 => "AF_CAN",
        30 => "AF_TIPC",
        31 => "AF_BLUETOOTH",
        38 => "AF_ALG",
        40 => "AF_VSOCK",
        43 => "AF_SMC",
        44 => "AF_XDP",
        number => return format!("{number}"),
    };
    name.to_owned()
}
