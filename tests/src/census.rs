//! What is outside a container and must be the same before and after.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::Yendor;

/// A directory of the host that containers see below their layer, with files that invite to be changed. Removed when
/// dropped.
pub struct Bait {
    path: PathBuf,
}

impl Bait {
    /// Lays it out; everything in it belongs to the account but `secret`.
    pub fn new(yendor: &Yendor) -> Self {
        let id = yendor.path("").file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let path = PathBuf::from(format!("/var/tmp/bait-{id}"));
        fs::create_dir(&path).expect("mkdir");
        for (name, mode) in [("mine", 0o644), ("writable", 0o666), ("program", 0o755)] {
            fs::write(path.join(name), format!("{name} as it was\n")).expect("write");
            fs::set_permissions(path.join(name), PermissionsExt::from_mode(mode)).expect("chmod");
        }
        fs::create_dir(path.join("directory")).expect("mkdir");
        fs::write(path.join("directory/inner"), "inner as it was\n").expect("write");
        symlink("mine", path.join("link")).expect("symlink");
        yendor.give(&path);
        fs::write(path.join("secret"), "root's own\n").expect("write");
        fs::set_permissions(path.join("secret"), PermissionsExt::from_mode(0o600)).expect("chmod");
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        // What a failed test leaves is looked at by nobody.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Every file beneath some directories with all that is known of it, and the mount table.
#[derive(Debug, PartialEq, Eq)]
pub struct Census {
    files: BTreeMap<PathBuf, String>,
    mounts: String,
}

impl Census {
    /// Takes it.
    pub fn of(directories: &[&Path]) -> Self {
        let mut files = BTreeMap::new();
        for directory in directories {
            walk(directory, &mut files);
        }
        Self { files, mounts: fs::read_to_string("/proc/self/mountinfo").expect("mountinfo") }
    }

    /// What differs, in words; empty when nothing does. Mounts that other tests make in their places are theirs.
    pub fn differs(&self, now: &Self, ours: &str) -> Vec<String> {
        let mut out = Vec::new();
        for path in self.files.keys().chain(now.files.keys()) {
            let (before, after) = (self.files.get(path), now.files.get(path));
            if before != after {
                out.push(format!("{}: {before:?} became {after:?}", path.display()));
            }
        }
        // Who logs in or puts a disk in has mounts made, too.
        const OTHERS: [&str; 4] = ["/yendor-test-", "/bait-", " /run/", " /media/"];
        let others = |line: &str| OTHERS.iter().any(|place| line.contains(place));
        let is_mine = |line: &&str| line.contains(ours) || !others(line);
        let mine = |text: &str| text.lines().filter(is_mine).map(str::to_owned).collect::<Vec<_>>();
        if mine(&self.mounts) != mine(&now.mounts) {
            out.push(format!("mounts: {:?} became {:?}", mine(&self.mounts), mine(&now.mounts)));
        }
        out
    }
}

fn walk(path: &Path, files: &mut BTreeMap<PathBuf, String>) {
    let Ok(data) = fs::symlink_metadata(path) else { return };
    let content = if data.is_file() {
        blake3::hash(&fs::read(path).expect("a file of our own")).to_hex().to_string()
    } else if data.is_symlink() {
        fs::read_link(path).expect("a link of our own").display().to_string()
    } else {
        String::new()
    };
    let (mode, uid, gid) = (data.mode(), data.uid(), data.gid());
    let facts = format!("{mode:o} {uid}:{gid} {} {}.{} {content}", data.nlink(), data.mtime(), data.mtime_nsec());
    files.insert(path.to_owned(), facts);
    if data.is_dir() {
        for entry in fs::read_dir(path).expect("a directory of our own").flatten() {
            walk(&entry.path(), files);
        }
    }
}

/// What a machine is made of, where nothing changes while tests run: what each file is, not what is in it, which costs a minute.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    facts: BTreeMap<PathBuf, String>,
    settings: BTreeMap<PathBuf, String>,
}

impl Machine {
    /// As it is now.
    pub fn now() -> Self {
        let (mut facts, mut settings) = (BTreeMap::new(), BTreeMap::new());
        let places = ["/bin", "/boot", "/etc", "/lib", "/lib64", "/opt", "/sbin", "/srv", "/usr", "/var/spool"];
        for place in places {
            each(Path::new(place), &mut |path, data| {
                let what = (data.mode(), data.uid(), data.gid(), data.nlink(), data.size(), data.ino());
                let times = (data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
                facts.insert(path.to_owned(), format!("{what:?} {times:?}"));
            });
        }
        for place in ["/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs", "/proc/sys/user", "/proc/sys/net"] {
            each(Path::new(place), &mut |path, data| {
                let varies =
                    ["random", "pty", "-nr", "-state", "inode", "dentry", "ns_last_pid", "_kbytes", "tainted", "perf_"];
                let name = path.to_string_lossy().into_owned();
                // Who may write it can be harmed by it.
                if data.mode() & 0o200 != 0 && !varies.iter().any(|word| name.contains(word)) {
                    settings.insert(path.to_owned(), fs::read_to_string(path).unwrap_or_default());
                }
            });
        }
        Self { facts, settings }
    }

    /// What differs, in words.
    pub fn differs(&self, now: &Self) -> Vec<String> {
        let mut out = Vec::new();
        for (before, after) in [(&self.facts, &now.facts), (&self.settings, &now.settings)] {
            for path in before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)) {
                out.push(format!("{}: {:?} became {:?}", path.display(), before.get(path), after.get(path)));
            }
        }
        out
    }
}

fn each(path: &Path, look: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let Ok(data) = fs::symlink_metadata(path) else { return };
    look(path, &data);
    if data.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            each(&entry.path(), look);
        }
    }
}
