//! Settings of the container's own namespaces below /proc/sys (sysctl(8)): what is not namespaced is never touched.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;

use super::Caused;
use crate::request::Net;

/// Settings of an IPC namespace (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Whether a setting belongs to a namespace that a container with this network has for itself.
#[must_use]
pub fn is_own(name: &str, net: Net) -> bool {
    let plain = !name.is_empty() && name.split(['.', '/']).all(|part| !part.is_empty() && part != "..");
    let network = name.starts_with("net.") && net != Net::Host;
    plain && (network || name.starts_with("fs.mqueue.") || IPC.contains(&name))
}

/// Sets them, in the namespaces of this process. Through the host's /proc: it shows whose namespaces its reader is in.
pub(super) fn set(host_proc: &OwnedFd, settings: &[(String, String)]) -> Caused<()> {
    for (name, value) in settings {
        let path = format!("sys/{}", name.replace('.', "/"));
        let shown = || format!("/proc/{path}, {value:?}");
        let open = openat(host_proc, path.as_str(), OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let written = open.and_then(|fd| rustix::io::write(&fd, value.as_bytes())).named("write", shown);
        written.map_err(|e| match e.errno {
            Errno::ACCESS | Errno::PERM | Errno::ROFS => {
                let hint = format!("this kernel does not let a container's root set {name}: leave it out");
                Cause::Refused { error: e, hint }
            }
            _ => e.into(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_settings_are_a_containers_own() {
        for name in ["net.ipv4.ip_forward", "kernel.shmmax", "fs.mqueue.msg_max"] {
            assert!(is_own(name, Net::Private), "{name}");
        }
        for name in ["kernel.core_pattern", "vm.swappiness", "fs.file-max", "net", "net..x", "", "kernel.sem.x"] {
            assert!(!is_own(name, Net::Private), "{name}");
        }
        assert!(!is_own("net.ipv4.ip_forward", Net::Host) && !is_own("net./../../kernel.core_pattern", Net::Private));
    }
}
