//! Capabilities by name (linux/capability.h).

use thiserror::Error;

/// All that this version knows of, up to `CAP_CHECKPOINT_RESTORE`.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// A word that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no capability (NET_RAW, CAP_NET_RAW, ALL)")]
pub struct Unknown(pub String);

/// The mask of a list of names; `ALL` is all of them.
///
/// # Errors
/// A word that is no capability.
pub fn mask<T: AsRef<str>>(names: &[T]) -> Result<u64, Unknown> {
    names.iter().try_fold(0, |mask, name| Ok(mask | one(name.as_ref())?))
}

/// `CAP_NET_RAW` and the like, in either case, with or without the prefix.
///
/// # Errors
/// A word that is no capability.
pub fn one(name: &str) -> Result<u64, Unknown> {
    let lower = name.to_ascii_lowercase();
    let plain = lower.strip_prefix("cap_").unwrap_or(&lower);
    if plain == "all" {
        return Ok(ALL);
    }
    let number = NAMES.iter().position(|c| *c == plain).ok_or_else(|| Unknown(name.to_owned()))?;
    Ok(1 << number)
}

/// The names of a mask, as [`one`] reads them.
pub fn names(mask: u64) -> impl Iterator<Item = String> {
    let of = move |(number, name): (usize, &&str)| {
        (mask & 1 << number != 0).then(|| format!("CAP_{}", name.to_ascii_uppercase()))
    };
    NAMES.iter().enumerate().filter_map(of)
}

/// By number.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        assert_eq!(mask(&["chown", "CAP_NET_RAW", "Checkpoint_Restore"]), Ok(1 | 1 << 13 | 1 << 40));
        assert_eq!(mask(&["all"]), Ok((1 << 41) - 1));
        assert_eq!(mask::<&str>(&[]), Ok(0));
        assert!(mask(&["chown", "raw"]).is_err());
    }
}
