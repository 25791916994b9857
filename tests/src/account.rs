//! With whose rights a test runs.

use std::ffi::CString;
use std::io::{Error, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The account without rights when the environment names none.
const NOBODY: u32 = 65_534;

/// The three flavours that every probe must survive in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Real root, `--userns host`.
    Root,
    /// Real root, in a new user namespace.
    RootUserns,
    /// This account, by name or number, without rights.
    User(String),
}

impl Flavour {
    /// The account of `YENDOR_TEST_USER`, else uid and gid 65534; who is not root can only be himself.
    pub fn user() -> Self {
        Self::User(std::env::var("YENDOR_TEST_USER").unwrap_or_else(|_| NOBODY.to_string()))
    }

    /// What `run` and `restore` need for it.
    pub fn options(&self) -> &'static [&'static str] {
        match self {
            Self::Root => &["--userns", "host"],
            Self::RootUserns | Self::User(_) => &[],
        }
    }
}

/// Ids that commands run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    uid: libc::uid_t,
    gid: libc::gid_t,
    other: bool,
}

impl Account {
    /// The account of a flavour; `None` when it takes root and we are not. Panics when there is no such account.
    pub fn of(flavour: &Flavour) -> Option<Self> {
        // SAFETY: no arguments, cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let own = Self { uid, gid, other: false };
        match flavour {
            Flavour::User(name) if uid == 0 => Some(Self::named(name)),
            Flavour::User(_) => Some(own),
            Flavour::Root | Flavour::RootUserns => (uid == 0).then_some(own),
        }
    }

    fn named(name: &str) -> Self {
        if let Ok(id) = name.parse() {
            return Self { uid: id, gid: id, other: true };
        }
        let text = CString::new(name).expect("an account's name has no NUL");
        // SAFETY: the name is a string; the entry is copied from at once, and tests look up one account only.
        let entry = unsafe { libc::getpwnam(text.as_ptr()).as_ref() };
        let entry = entry.unwrap_or_else(|| panic!("YENDOR_TEST_USER: no account {name}"));
        Self { uid: entry.pw_uid, gid: entry.pw_gid, other: true }
    }

    /// Makes a command run with these ids.
    pub fn runs(self, command: &mut Command) {
        if !self.other {
            return;
        }
        let become_it = move || {
            // SAFETY: system calls only.
            let failed = unsafe {
                libc::setgroups(1, &self.gid) != 0 || libc::setgid(self.gid) != 0 || libc::setuid(self.uid) != 0
            };
            if failed { Err(Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: the closure makes system calls only and takes no lock.
        unsafe { command.pre_exec(become_it) };
    }

    /// The words of setpriv(1) that make root this account; none for root itself.
    pub fn setpriv(self) -> Vec<String> {
        if !self.other {
            return Vec::new();
        }
        let Self { uid, gid, .. } = self;
        ["setpriv", "--reuid", &uid.to_string(), "--regid", &gid.to_string(), "--groups", &gid.to_string(), "--"]
            .map(str::to_owned)
            .to_vec()
    }

    /// Whether a task of the account's own user namespaces may have this id: its own, and its subordinate ones.
    pub fn may_be(self, id: u32) -> bool {
        let number = self.uid.to_string();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let is_own = |line: &&str| line.split(':').nth(2) == Some(&number);
        let name = passwd.lines().find(is_own).and_then(|line| line.split(':').next()).unwrap_or(&number).to_owned();
        let subordinate = |file: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines().any(|line| {
                let mut fields = line.split(':');
                let owner = fields.next();
                let mut next = || fields.next().and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
                let (first, count) = (next(), next());
                (owner == Some(&name) || owner == Some(&number)) && id.checked_sub(first).is_some_and(|n| n < count)
            })
        };
        id == self.uid || id == self.gid || subordinate("/etc/subuid") || subordinate("/etc/subgid")
    }

    /// Gives a file to the account.
    pub fn owns(self, path: &Path) {
        if self.other {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid)).expect("chown as root");
        }
    }
}

/// Says what is not tested, past the capture of libtest: `cargo xtask test` repeats it at its end.
pub fn skipped(what: &str) {
    // Nobody can be told when even stderr is closed.
    let _ = writeln!(std::io::stderr(), "skipped: {what}");
}
