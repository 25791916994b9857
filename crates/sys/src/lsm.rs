//! Security modules, as the kernel itself names them (Documentation/userspace-api/lsm.rst, Linux 6.8).

use rustix::io::Errno;

use crate::{Result, SysError};

/// A security module that labels tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Module {
    /// AppArmor: profiles.
    AppArmor,
    /// SELinux: contexts.
    SELinux,
    /// Smack: labels.
    Smack,
    /// TOMOYO: domains.
    Tomoyo,
}

/// All of them.
pub const MODULES: [Module; 4] = [Module::AppArmor, Module::SELinux, Module::Smack, Module::Tomoyo];

/// What of a task carries a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Attribute {
    /// The task itself.
    Current,
    /// The task after its next execve.
    Exec,
    /// Files that it makes.
    FsCreate,
    /// Keys that it makes.
    KeyCreate,
    /// Sockets that it makes.
    SockCreate,
}

impl Module {
    /// Its name, as in /sys/kernel/security/lsm.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Module::AppArmor => "apparmor",
            Module::SELinux => "selinux",
            Module::Smack => "smack",
            Module::Tomoyo => "tomoyo",
        }
    }

    /// Its name as its people write it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Module::AppArmor => "AppArmor",
            Module::SELinux => "SELinux",
            Module::Smack => "Smack",
            Module::Tomoyo => "TOMOYO",
        }
    }

    /// The module of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Module> {
        MODULES.into_iter().find(|m| m.name() == name)
    }

    /// Its number (linux/lsm.h).
    #[must_use]
    pub fn id(self) -> u64 {
        match self {
            Module::SELinux => 101,
            Module::Smack => 102,
            Module::Tomoyo => 103,
            Module::AppArmor => 104,
        }
    }

    /// Where it has an attribute, below /proc/PID/attr.
    #[must_use]
    pub fn file(self, attribute: Attribute) -> String {
        match self {
            // The first module that uses the old names has them.
            Module::SELinux => attribute.name().to_owned(),
            other => format!("{}/{}", other.name(), attribute.name()),
        }
    }

    /// What carries a label with it, in the order in which a task is given them: its own label first, since it is with
    /// that one that it was once permitted to set the others.
    #[must_use]
    pub fn attributes(self) -> &'static [Attribute] {
        use Attribute::{Current, Exec, FsCreate, KeyCreate, SockCreate};
        match self {
            Module::SELinux => &[Current, Exec, FsCreate, KeyCreate, SockCreate],
            Module::AppArmor => &[Current, Exec],
            Module::Smack | Module::Tomoyo => &[Current],
        }
    }
}

impl Attribute {
    /// Its number (linux/lsm.h).
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Attribute::Current => 100,
            Attribute::Exec => 101,
            Attribute::FsCreate => 102,
            Attribute::KeyCreate => 103,
            Attribute::SockCreate => 105,
        }
    }

    /// Its file below /proc/PID/attr.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Attribute::Current => "current",
            Attribute::Exec => "exec",
            Attribute::FsCreate => "fscreate",
            Attribute::KeyCreate => "keycreate",
            Attribute::SockCreate => "sockcreate",
        }
    }
}

/// Names by number (linux/lsm.h), for the modules that label no tasks, too.
const NAMES: &[(u64, &str)] = &[
    (100, "capability"),
    (101, "selinux"),
    (102, "smack"),
    (103, "tomoyo"),
    (104, "apparmor"),
    (105, "yama"),
    (106, "loadpin"),
    (107, "safesetid"),
    (108, "lockdown"),
    (109, "bpf"),
    (110, "landlock"),
    (111, "ima"),
    (112, "evm"),
    (113, "ipe"),
];

/// The names of the active modules in their order; one that has no name here is shown by its number.
///
/// # Errors
/// `ENOSYS` before Linux 6.8: then /sys/kernel/security/lsm says it.
pub fn active() -> Result<Vec<String>> {
    const LSM_LIST_MODULES: libc::c_long = 461;
    const MOST: u32 = 64;
    let mut ids = [0_u64; MOST as usize];
    let mut size = MOST * 8;
    // SAFETY: the kernel writes at most `size` bytes to `ids`, and one word to `size`.
    let count = unsafe { libc::syscall(LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0) };
    let count = usize::try_from(count).map_err(|_| SysError::last("lsm_list_modules", format!("{MOST}")))?;
    let name = |id: &u64| {
        let known = NAMES.iter().find(|(number, _)| number == id);
        known.map_or_else(|| format!("module {id}"), |(_, name)| (*name).to_owned())
    };
    Ok(ids
        .get(..count)
        .ok_or_else(|| SysError::new("lsm_list_modules", "", Errno::OVERFLOW))?
        .iter()
        .map(name)
        .collect())
}

/// Whether a task can set its attributes by a call of its own, without /proc (Linux 6.8).
#[must_use]
pub fn has_calls() -> bool {
    active().is_ok()
}

/// Sets an attribute of the calling thread: `text` is what the module wants to be written.
///
/// # Errors
/// The module's: `EACCES` or `EPERM` when it forbids it, `ENOENT` or `EINVAL` for a label that there is not.
pub fn set_self(module: Module, attribute: Attribute, text: &[u8]) -> Result<()> {
    const LSM_SET_SELF_ATTR: libc::c_long = 460;
    let shown = || format!("{}, {}", attribute.name(), text.escape_ascii());
    if !has_calls() {
        let path = format!("/proc/thread-self/attr/{}", module.file(attribute));
        return std::fs::write(&path, text).map_err(|e| SysError::io("write", format!("{path}, {}", shown()), &e));
    }
    let context = context(module, text);
    let size = u32::try_from(context.len()).map_err(|_| SysError::new("lsm_set_self_attr", shown(), Errno::TOOBIG))?;
    // SAFETY: the context says its own lengths, which are those of the vector, and outlives the call.
    let done = unsafe { libc::syscall(LSM_SET_SELF_ATTR, attribute.id(), context.as_ptr(), size, 0) };
    if done == 0 { Ok(()) } else { Err(SysError::last("lsm_set_self_attr", shown())) }
}

/// What `lsm_set_self_attr` takes (struct lsm_ctx): id, flags, length of all, length of the text, text.
#[must_use]
pub fn context(module: Module, text: &[u8]) -> Vec<u8> {
    const HEAD: usize = 32;
    // With a zero of its own: AppArmor copies text that has none, the others do not count it.
    let all = (HEAD + text.len() + 1).next_multiple_of(8);
    let word = |n: usize| u64::try_from(n).unwrap_or(u64::MAX).to_ne_bytes();
    let mut out = module.id().to_ne_bytes().to_vec();
    out.extend_from_slice(&0_u64.to_ne_bytes());
    out.extend_from_slice(&word(all));
    // Smack wants it counted.
    out.extend_from_slice(&word(text.len() + usize::from(module == Module::Smack)));
    out.extend_from_slice(text);
    out.resize(all, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for module in MODULES {
            assert!(NAMES.contains(&(module.id(), module.name())));
            assert_eq!(Module::named(module.name()), Some(module));
            assert!(module.attributes().contains(&Attribute::Current));
        }
        assert_eq!(Module::named("landlock"), None);
    }

    #[test]
    fn the_kernel_names_its_modules_or_cannot() {
        match active() {
            // Capabilities are always there.
            Ok(names) => assert!(names.contains(&"capability".to_owned()), "{names:?}"),
            Err(e) => assert_eq!(e.errno, Errno::NOSYS),
        }
    }

    #[test]
    fn a_context_says_its_lengths() {
        let context = context(Module::AppArmor, b"changeprofile x");
        let word = |n: usize| u64::from_ne_bytes(context[n * 8..n * 8 + 8].try_into().unwrap());
        assert_eq!((word(0), word(1), word(2), word(3)), (104, 0, 48, 15));
        assert_eq!((context.len(), &context[32..47]), (48, &b"changeprofile x"[..]));
    }
}
