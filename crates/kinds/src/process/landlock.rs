//! Landlock domains of a thread: what it, or a process it comes from, has forbidden itself.
//! *Read from:* nothing; the kernel does not tell. Recorded when they are made, in containers that Yendor starts; where nobody records (a container in a container), and of other trees, a task that may be in one refuses the checkpoint.
//! *Made again by:* landlock_create_ruleset and landlock_add_rule in the keeper, landlock_restrict_self in the task.
//! *Lost:* logging flags of kernels that do not know them any more are refused, not lost; nothing else.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_sys::landlock;
use yendor_task::{Nr, Script, args};

use crate::{Cause, Result};

/// One domain: a layer on top of those that the thread had.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// `handled_access_fs`.
    pub fs: u64,
    /// `handled_access_net`.
    pub net: u64,
    /// `scoped`.
    pub scoped: u64,
    /// Flags of landlock_restrict_self.
    pub flags: u32,
    /// What stays allowed.
    pub rules: Vec<Rule>,
}

/// What a layer allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Accesses at and below a path, as seen from the container's root.
    Beneath {
        /// `allowed_access`.
        access: u64,
        /// The path.
        path: Bytes,
    },
    /// Accesses to a TCP port.
    Port {
        /// `allowed_access`.
        access: u64,
        /// The port.
        port: u64,
    },
}

/// What fills a hole that is the kernel's.
const KERNEL: &str = "a kernel that has it";

/// Accesses that a file which is no directory can have (linux/landlock.h).
const OF_FILE: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;

impl Layer {
    /// Whether a kernel can have taken its rules.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.rules.iter().all(|rule| match rule {
            Rule::Beneath { access, .. } => access & !self.fs == 0,
            Rule::Port { access, .. } => access & !self.net == 0,
        })
    }

    /// The layer's ruleset, without its rules.
    ///
    /// # Errors
    /// `Hole` when this kernel does not know all of it: nothing is left out in silence.
    pub fn ruleset(&self) -> Result<OwnedFd> {
        landlock::create_ruleset(self.fs, self.net, self.scoped).map_err(|e| {
            let abi = landlock::abi();
            match e.errno {
                _ if abi == 0 => Cause::of_machine("Landlock, which this kernel does not have or that is off", KERNEL),
                yendor_sys::Errno::INVAL | yendor_sys::Errno::TOOBIG => {
                    let what = format!("Landlock that can do all of {}, and not only ABI {abi}", e.args);
                    Cause::of_machine(what, KERNEL)
                }
                _ => e.into(),
            }
        })
    }

    /// Adds its rules. `open` opens a path as `O_PATH`.
    ///
    /// # Errors
    /// `open`'s, or the kernel's.
    pub fn fill(&self, ruleset: &impl AsFd, open: impl Fn(&[u8]) -> Result<OwnedFd>) -> Result<()> {
        for rule in &self.rules {
            match rule {
                Rule::Beneath { access, path } => {
                    let parent = open(&path.0)?;
                    let stat = rustix::fs::fstat(&parent)
                        .map_err(|e| yendor_sys::SysError::new("fstat", format!("\"{}\"", path.0.escape_ascii()), e))?;
                    let directory = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
                    let access = if directory { *access } else { access & OF_FILE };
                    landlock::allow_beneath(ruleset, access, &parent)?;
                }
                Rule::Port { access, port } => landlock::allow_port(ruleset, *access, *port)?,
            }
        }
        Ok(())
    }

    /// The task enters the domain; `ruleset` is its descriptor of it. The kernel ignores the cookie (the sixth argument);
    /// the recorder does not.
    pub fn enter(&self, ruleset: i32, cookie: u64, script: &mut Script) {
        script.call(Nr::LANDLOCK_RESTRICT_SELF, args![ruleset, self.flags, 0, 0, 0, cookie]);
    }
}
