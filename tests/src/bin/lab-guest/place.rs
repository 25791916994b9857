//! Where the tests are: which security modules the machine has.

use std::fs;

/// What the machine is.
pub struct Place {
    /// The name of its configuration (`lab.machine=`).
    pub machine: String,
    /// Only tests with this word (`lab.test=`).
    pub only: Option<String>,
    /// Of AppArmor's and SELinux's only what `cargo xtask test` has time for (`lab.daily`).
    pub daily: bool,
    /// Its security modules, in order.
    pub modules: Vec<String>,
    /// Major and minor number of the kernel.
    pub kernel: (u32, u32),
}

impl Place {
    /// Reads it from /proc and /sys.
    pub fn read() -> Self {
        let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let word = |key: &str| words.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
        Self {
            machine: word("lab.machine=").unwrap_or_default(),
            only: word("lab.test="),
            daily: words.split_whitespace().any(|word| word == "lab.daily"),
            modules: modules.trim().split(',').map(str::to_owned).collect(),
            kernel: (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)),
        }
    }

    /// Whether the module is active.
    pub fn has(&self, module: &str) -> bool {
        self.modules.iter().any(|one| one == module)
    }
}
