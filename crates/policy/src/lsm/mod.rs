//! Security modules: which are active, what policy they have, and whether an image's labels may be kept.
//!
//! The rules (from the discussion of Linux-CR): what a restore makes gets the label that the module gives to whatever the
//! caller makes; recorded labels are used on request only, under the same modules with the same policy, and only as far as
//! the kernel permits each.

pub mod apparmor;
mod entry;
mod keep;
mod selinux;
mod smack;
mod tomoyo;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
pub use yendor_sys::SysError;
pub use yendor_sys::lsm::{Attribute, MODULES, Module};

pub use entry::Entry;
pub use keep::{Refusal, compare};

/// What is known of the security modules of this kernel. Made before a mount namespace is left: it keeps what it needs of
/// securityfs and selinuxfs open.
#[derive(Debug)]
pub struct Here {
    /// Names of all active modules, in their order.
    pub active: Vec<String>,
    boot: String,
    security: Option<OwnedFd>,
    selinux: Option<OwnedFd>,
    smack: Option<OwnedFd>,
}

/// Which policy a module has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Digests by what they are of; none where the caller may not read them.
    pub parts: Option<BTreeMap<String, String>>,
    /// Which load of a policy since which boot: says that two policies are the same to whom nothing else is readable.
    pub load: Option<String>,
}

/// A label that the caller wants for a container (`apparmor:my-profile`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The module's name.
    pub module: String,
    /// The label, as the module spells it.
    pub label: String,
}

/// The longest label that is taken from anywhere: the kernel's own limit for a write to /proc/PID/attr.
pub const LONGEST: usize = 4095;

impl Here {
    /// Looks.
    #[must_use]
    pub fn look() -> Here {
        let security = directory("/sys/kernel/security");
        let active = yendor_sys::lsm::active().unwrap_or_else(|_| {
            let list = security.as_ref().and_then(|dir| read(dir, "lsm")).unwrap_or_default();
            list.trim().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        });
        Here {
            active,
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
            security,
            selinux: directory("/sys/fs/selinux"),
            smack: directory("/sys/fs/smackfs"),
        }
    }

    /// The active modules that label tasks.
    #[must_use]
    pub fn modules(&self) -> Vec<Module> {
        self.active.iter().filter_map(|name| Module::named(name)).collect()
    }

    /// Which policy a module has, as far as these labels are concerned.
    #[must_use]
    pub fn identity(&self, module: Module, labels: &[&[u8]]) -> Identity {
        let (parts, load) = match module {
            Module::AppArmor => {
                (apparmor::parts(self.security.as_ref(), labels), apparmor::load(self.security.as_ref()))
            }
            Module::SELinux => (selinux::parts(self.selinux.as_ref()), selinux::load(self.selinux.as_ref())),
            Module::Smack => (smack::parts(self.smack.as_ref()), None),
            Module::Tomoyo => (tomoyo::parts(self.security.as_ref(), labels), None),
        };
        // A load without its boot would say nothing.
        let load = load.filter(|_| !self.boot.is_empty()).map(|load| format!("{} {load}", self.boot));
        Identity { parts, load }
    }

    /// The domain of a task under TOMOYO, which /proc does not tell; none where the caller may not ask.
    #[must_use]
    pub fn tomoyo_domain(&self, tid: i32) -> Option<Vec<u8>> {
        tomoyo::domain(self.security.as_ref()?, tid)
    }

    /// The domain of the caller under TOMOYO.
    #[must_use]
    pub fn tomoyo_own(&self) -> Option<Vec<u8>> {
        read_bytes(self.security.as_ref()?, "tomoyo/self_domain")
    }

    /// A descriptor through which a task sets its own domain under TOMOYO.
    ///
    /// # Errors
    /// `ENOENT` where the caller sees no securityfs, else the call's own.
    pub fn tomoyo_door(&self) -> yendor_sys::Result<OwnedFd> {
        tomoyo::door(self.security.as_ref())
    }

    /// Whether the caller may read which policy a module has.
    #[must_use]
    pub fn can_compare(&self, module: Module) -> bool {
        // A label that is surely no profile: all profiles are looked through.
        self.identity(module, &[b"?"]).parts.is_some()
    }

    /// Whether a file with the label `file` is an entry point of the SELinux domain `domain`: an image that may not be
    /// executed as a domain may not become it.
    ///
    /// # Errors
    /// What the policy cannot be asked for.
    pub fn is_entrypoint(&self, file: &[u8], domain: &[u8]) -> yendor_sys::Result<bool> {
        selinux::is_entrypoint(self.selinux.as_ref(), file, domain)
    }
}

impl Profile {
    /// Reads `MODULE:LABEL`.
    ///
    /// # Errors
    /// What is wrong with it, for the caller.
    pub fn parse(text: &str) -> Result<Profile, String> {
        let (module, label) = text.split_once(':').ok_or("a label is MODULE:LABEL, like apparmor:my-profile")?;
        if Module::named(module).is_none() {
            let known: Vec<&str> = MODULES.iter().map(|m| m.name()).collect();
            return Err(format!("{module:?} labels no tasks: {}", known.join(", ")));
        }
        if label.is_empty() || label.len() > LONGEST || label.chars().any(char::is_control) {
            return Err(format!("{label:?} is no label"));
        }
        Ok(Profile { module: module.to_owned(), label: label.to_owned() })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.module, self.label)
    }
}

/// What is written to give a task this label.
#[must_use]
pub fn spelt(module: Module, attribute: Attribute, label: &[u8]) -> Vec<u8> {
    let verb: &[u8] = match (module, attribute) {
        (Module::AppArmor, Attribute::Exec) => b"exec ",
        (Module::AppArmor, _) => b"changeprofile ",
        _ => b"",
    };
    [verb, label].concat()
}

fn directory(path: &str) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn open(dir: impl AsFd, path: &str, flags: OFlags) -> yendor_sys::Result<OwnedFd> {
    rustix::fs::openat(dir, path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| yendor_sys::SysError::new("openat", path, e))
}

/// A small text file of a kernel file system; none when it cannot be read.
fn read(dir: impl AsFd, path: &str) -> Option<String> {
    String::from_utf8(read_bytes(dir, path)?).ok()
}

fn read_bytes(dir: impl AsFd, path: &str) -> Option<Vec<u8>> {
    use std::io::Read;
    /// No policy that a kernel has loaded is larger.
    const MOST: u64 = 1 << 28;
    let file = std::fs::File::from(open(dir, path, OFlags::RDONLY).ok()?);
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_and_nonsense_is_not() {
        let profile = Profile::parse("selinux:system_u:system_r:container_t:s0:c1,c2").unwrap();
        assert_eq!(
            (profile.module.as_str(), profile.label.as_str()),
            ("selinux", "system_u:system_r:container_t:s0:c1,c2")
        );
        assert_eq!(profile.to_string(), "selinux:system_u:system_r:container_t:s0:c1,c2");
        for bad in ["", "apparmor", "apparmor:", "landlock:x", "smack:a\nb", "apparmor:a\0b"] {
            assert!(Profile::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Profile::parse(&format!("smack:{}", "x".repeat(LONGEST + 1))).is_err());
    }

    #[test]
    fn only_apparmor_wants_a_verb() {
        assert_eq!(spelt(Module::AppArmor, Attribute::Current, b"a//&b"), b"changeprofile a//&b");
        assert_eq!(spelt(Module::AppArmor, Attribute::Exec, b"a"), b"exec a");
        assert_eq!(spelt(Module::SELinux, Attribute::Exec, b"u:r:t"), b"u:r:t");
    }
}
