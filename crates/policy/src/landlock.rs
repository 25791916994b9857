//! Landlock rules of a container: `ro:PATH`, `rw:PATH`, `exec:PATH`, `connect:PORT`, `bind:PORT`, `scope:abstract-unix`,
//! `scope:signal`.
//!
//! Rules of one sort are a list of what stays allowed: with any path rule, every access to files that no rule allows is
//! denied; with any `connect` rule, every TCP connection to other ports; likewise `bind`. What no rule speaks about is
//! not touched (ioctl on devices among it). Constants and their ABI versions: linux/landlock.h.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rule {
    /// Files at and below the path may be read, directories listed.
    ReadOnly(String),
    /// Also written, made, removed, renamed.
    ReadWrite(String),
    /// Read and executed.
    Execute(String),
    /// TCP connections to the port.
    Connect(u16),
    /// TCP sockets bound to the port.
    Bind(u16),
    /// No abstract unix sockets of others.
    ScopeAbstractUnix,
    /// No signals to others.
    ScopeSignal,
}

/// `LANDLOCK_ACCESS_FS_*`.
pub mod fs {
    /// Execute a file.
    pub const EXECUTE: u64 = 1;
    /// Open a file to write.
    pub const WRITE_FILE: u64 = 1 << 1;
    /// Open a file to read.
    pub const READ_FILE: u64 = 1 << 2;
    /// List a directory.
    pub const READ_DIR: u64 = 1 << 3;
    /// Link or rename between directories.
    pub const REFER: u64 = 1 << 13;
    /// Truncate.
    pub const TRUNCATE: u64 = 1 << 14;
    /// What can be allowed for a file that is no directory.
    pub const OF_FILE: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | 1 << 15;
    /// Everything of ABI 3: all but ioctl on devices.
    pub const ALL: u64 = (1 << 15) - 1;
    /// What `ro` allows.
    pub const READ: u64 = READ_FILE | READ_DIR;
    /// What `rw` allows: all but executing.
    pub const WRITE: u64 = ALL & !EXECUTE;
    /// What `exec` allows.
    pub const RUN: u64 = READ | EXECUTE;
}

/// `LANDLOCK_ACCESS_NET_BIND_TCP`.
pub const BIND_TCP: u64 = 1;
/// `LANDLOCK_ACCESS_NET_CONNECT_TCP`.
pub const CONNECT_TCP: u64 = 2;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`.
pub const SCOPE_ABSTRACT_UNIX: u64 = 1;
/// `LANDLOCK_SCOPE_SIGNAL`.
pub const SCOPE_SIGNAL: u64 = 2;

/// Rules together: what is restricted, and what stays allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domain {
    /// Restricted accesses to files.
    pub fs: u64,
    /// Restricted accesses to the network.
    pub net: u64,
    /// Restricted scopes.
    pub scoped: u64,
    /// Accesses that stay allowed at and below a path.
    pub paths: Vec<(u64, String)>,
    /// Accesses that stay allowed for a port.
    pub ports: Vec<(u64, u16)>,
}

impl Domain {
    /// The domain of these rules; none for no rules.
    #[must_use]
    pub fn of(rules: &[Rule]) -> Option<Domain> {
        if rules.is_empty() {
            return None;
        }
        let mut domain = Domain::default();
        for rule in rules {
            let (access, path) = match rule {
                Rule::ReadOnly(path) => (fs::READ, path),
                Rule::ReadWrite(path) => (fs::WRITE, path),
                Rule::Execute(path) => (fs::RUN, path),
                Rule::Connect(port) => {
                    domain.net |= CONNECT_TCP;
                    domain.ports.push((CONNECT_TCP, *port));
                    continue;
                }
                Rule::Bind(port) => {
                    domain.net |= BIND_TCP;
                    domain.ports.push((BIND_TCP, *port));
                    continue;
                }
                Rule::ScopeAbstractUnix => {
                    domain.scoped |= SCOPE_ABSTRACT_UNIX;
                    continue;
                }
                Rule::ScopeSignal => {
                    domain.scoped |= SCOPE_SIGNAL;
                    continue;
                }
            };
            domain.fs = fs::ALL;
            domain.paths.push((access, path.clone()));
        }
        Some(domain)
    }

    /// The first of the kernel's ABI versions that can do all of it.
    #[must_use]
    pub fn abi(&self) -> u32 {
        [(self.scoped != 0, 6), (self.net != 0, 4), (self.fs != 0, 3)]
            .into_iter()
            .find_map(|(asked, abi)| asked.then_some(abi))
            .unwrap_or(1)
    }
}

const FORM: &str =
    "a Landlock rule is ro:PATH, rw:PATH, exec:PATH, connect:PORT, bind:PORT, scope:abstract-unix or scope:signal";

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let (word, value) = text.split_once(':').ok_or(FORM)?;
        let path = || match value {
            _ if value.contains('\0') => Err(format!("{text:?}: {FORM}")),
            _ if value.starts_with('/') => Ok(value.to_owned()),
            _ => Err(format!("{text:?}: the path must be absolute, as seen inside the container")),
        };
        let port = || value.parse().map_err(|_| format!("{text:?}: a port is a number up to 65535"));
        Ok(match word {
            "ro" => Rule::ReadOnly(path()?),
            "rw" => Rule::ReadWrite(path()?),
            "exec" => Rule::Execute(path()?),
            "connect" => Rule::Connect(port()?),
            "bind" => Rule::Bind(port()?),
            "scope" if value == "abstract-unix" => Rule::ScopeAbstractUnix,
            "scope" if value == "signal" => Rule::ScopeSignal,
            _ => return Err(format!("{text:?}: {FORM}")),
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::ReadOnly(path) => write!(f, "ro:{path}"),
            Rule::ReadWrite(path) => write!(f, "rw:{path}"),
            Rule::Execute(path) => write!(f, "exec:{path}"),
            Rule::Connect(port) => write!(f, "connect:{port}"),
            Rule::Bind(port) => write!(f, "bind:{port}"),
            Rule::ScopeAbstractUnix => f.write_str("scope:abstract-unix"),
            Rule::ScopeSignal => f.write_str("scope:signal"),
        }
    }
}

impl TryFrom<String> for Rule {
    type Error = String;

    fn try_from(text: String) -> Result<Rule, String> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn rules_are_what_they_say() {
        for text in ["ro:/", "rw:/tmp/a b", "exec:/usr", "connect:443", "bind:0", "scope:abstract-unix", "scope:signal"]
        {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        for text in
            ["", "ro", "ro:", "ro:tmp", "rx:/", "connect:65536", "connect:-1", "bind:", "scope:", "scope:x", "ro:/\0"]
        {
            assert!(text.parse::<Rule>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_domain_restricts_only_what_its_rules_speak_about() {
        assert_eq!(Domain::of(&[]), None);
        let net = Domain::of(&rules(&["connect:443", "connect:80"])).unwrap();
        assert_eq!((net.fs, net.net, net.scoped, net.abi()), (0, CONNECT_TCP, 0, 4));
        let files = Domain::of(&rules(&["ro:/", "rw:/tmp"])).unwrap();
        assert_eq!((files.fs, files.net, files.scoped, files.abi()), (fs::ALL, 0, 0, 3));
        assert_eq!(files.paths, [(fs::READ, "/".to_owned()), (fs::WRITE, "/tmp".to_owned())]);
        let all = Domain::of(&rules(&["ro:/", "bind:1", "scope:signal"])).unwrap();
        assert_eq!((all.net, all.scoped, all.abi()), (BIND_TCP, SCOPE_SIGNAL, 6));
    }
}
