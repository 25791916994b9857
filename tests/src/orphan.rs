//! What killed commands leave: their children become ours (`PR_SET_CHILD_SUBREAPER`, prctl(2)), so that none is overlooked.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::task::wait_until;

/// Whoever has lost its parent comes to this process.
pub struct Orphans(());

impl Orphans {
    /// From now on, for the whole test process.
    pub fn adopt() -> Self {
        // SAFETY: takes no pointer.
        let set = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        assert_eq!(set, 0, "prctl: {}", std::io::Error::last_os_error());
        Self(())
    }

    /// Waits until no orphan is left that is `of` a container (its keeper by its command line, and those that have no
    /// command line any more); what is left in the end.
    pub fn left(&self, of: &str, limit: Duration) -> Vec<String> {
        Self::that(limit, |line| line.is_empty() || line.contains(of))
    }

    /// The same, and of other containers what has lost its keeper: whatever it is called now.
    pub fn left_or_lost(&self, of: &str, limit: Duration) -> Vec<String> {
        Self::that(limit, |line| !line.starts_with("yendor ") || line.contains(of))
    }

    fn that(limit: Duration, is_left: impl Fn(&str) -> bool) -> Vec<String> {
        let mut left = Vec::new();
        wait_until(limit, || {
            let ours = orphans().into_iter().filter(|(_, line)| is_left(line));
            left = ours.map(|(pid, line)| format!("{pid} {line}")).collect();
            left.is_empty()
        });
        left
    }
}

/// Adopted processes that live, with what their command lines say; the dead ones are buried.
fn orphans() -> Vec<(libc::pid_t, String)> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse::<libc::pid_t>().ok()) {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // Children of our own making are in our session; keepers and what they leave have left it.
            let session = fields.get(3).copied().unwrap_or_default();
            if session == own_session() || fields.get(1).copied() != Some(own.as_str()) {
                continue;
            }
            if fields.first() == Some(&"Z") {
                // SAFETY: takes no pointer; nobody else waits for an orphan.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
            } else {
                found.push((pid, line));
            }
        }
    }
    found
}

fn own_session() -> String {
    // SAFETY: takes no pointer, cannot fail for ourselves.
    unsafe { libc::getsid(0) }.to_string()
}

/// The cgroups of a container, in every hierarchy.
pub fn cgroups(container: &str) -> Vec<PathBuf> {
    fn below(directory: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
        let all = fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in all.filter(|entry| depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            if entry.file_name().to_string_lossy().starts_with(name) {
                found.push(entry.path());
            }
            below(&entry.path(), name, depth - 1, found);
        }
    }
    let mut found = Vec::new();
    below(Path::new("/sys/fs/cgroup"), &format!("yendor-{container}-"), 6, &mut found);
    found
}

/// How many rounds of a sweep are made: `few`, or `many` when there is time (`cargo xtask soak`).
pub fn rounds(few: u64, many: u64) -> u64 {
    if std::env::var_os("YENDOR_SOAK").is_some() { many } else { few }
}

/// Numbers that can be had again: the seed is printed, and taken from `YENDOR_SEED`.
pub struct Random(u64);

impl Random {
    /// The same each time, so that what a short run finds does not depend on luck; others each time with `YENDOR_SOAK`.
    pub fn new() -> Self {
        if std::env::var_os("YENDOR_SOAK").is_some() { Self::fresh() } else { Self::seeded(|| 1) }
    }

    /// Others each time.
    pub fn fresh() -> Self {
        Self::seeded(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.subsec_nanos().into()))
    }

    /// Says its seed, which a failed test shows.
    fn seeded(usual: impl FnOnce() -> u64) -> Self {
        let chosen = std::env::var("YENDOR_SEED").ok().and_then(|text| text.parse().ok());
        let seed: u64 = chosen.unwrap_or_else(usual);
        println!("YENDOR_SEED={seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end.max(1)
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
