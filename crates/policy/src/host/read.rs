//! From the file to the rules, or to a denial of everything.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat, readlink};
use rustix::io::Errno;

use yendor_sys::namespace::ids_are_the_hosts;

use super::{Denial, FILE, Policy, Rules};

/// More is no policy.
const MOST_BYTES: u64 = 1 << 20;

impl Policy {
    /// Reads [`FILE`].
    ///
    /// # Errors
    /// Everything is denied: the file is there but cannot be read, others than root may write it or its directory, or it
    /// says what is not known.
    pub fn load() -> Result<Policy, Denial> {
        Policy::load_from(Path::new(FILE), &roots())
    }

    pub(super) fn load_from(path: &Path, roots: &[u32]) -> Result<Policy, Denial> {
        let others = |file: &File, it: &str| {
            let stat = fstat(file).map_err(|e| why(&e.into()))?;
            if stat.st_mode & 0o022 != 0 {
                return Err(format!("others than its owner may write {it}"));
            }
            if roots.contains(&stat.st_uid) { Ok(()) } else { Err(format!("{it} does not belong to root")) }
        };
        if let Some(directory) = path.parent().and_then(|directory| directory_of(directory).ok()) {
            others(&directory, "its directory").map_err(|why| unusable(path, &why))?;
        }
        let file = match open(path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Policy::default()),
            Err(e) => return Err(unusable(path, &why(&e))),
        };
        others(&file, "it").map_err(|why| unusable(path, &why))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| unusable(path, &why(&e)))?;
        if u64::try_from(bytes.len()).is_ok_and(|n| n > MOST_BYTES) {
            return Err(unusable(path, "it is larger than a MiB"));
        }
        Policy::parse(&bytes)
    }

    /// Reads the text of a policy.
    ///
    /// # Errors
    /// What it says is not known, with line and column.
    pub fn parse(bytes: &[u8]) -> Result<Policy, Denial> {
        let text = String::from_utf8(bytes.to_vec()).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            invalid(&String::from_utf8_lossy(bytes.get(..at).unwrap_or_default()), at, "not UTF-8")
        })?;
        let rules: Rules =
            toml::from_str(&text).map_err(|e| invalid(&text, e.span().map_or(0, |span| span.start), e.message()))?;
        let policy = Policy { rules, text, present: true };
        policy.check()?;
        Ok(policy)
    }

    /// What the types cannot say.
    fn check(&self) -> Result<(), Denial> {
        let rules = &self.rules;
        let volumes = rules.volumes.iter().flat_map(|places| {
            let all = places.get_ref().read_only.iter().chain(&places.get_ref().read_write);
            all.map(|path| (places.span().start, path))
        });
        let roots = rules.rootfs.iter().flat_map(|list| list.get_ref().iter().map(|path| (list.span().start, path)));
        for (at, path) in volumes.chain(roots) {
            let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
            if !path.is_absolute() || !path.components().all(plain) {
                return Err(invalid(&self.text, at, &format!("{path:?} is no absolute path without ..")));
            }
        }
        if let Some(labels) = &rules.keep_labels
            && let Some(bad) = labels.get_ref().iter().find(|l| l.split_once(':').is_none_or(|(lsm, _)| lsm.is_empty()))
        {
            return Err(invalid(&self.text, labels.span().start, &format!("{bad:?} is not LSM:LABEL")));
        }
        if let Some(keys) = &rules.signed_by
            && keys.get_ref().is_empty()
        {
            return Err(invalid(&self.text, keys.span().start, "without a key nothing could ever be restored"));
        }
        Ok(())
    }
}

/// Who root is, by owners of files: in a user namespace the host's root may be nobody, or whom the namespace takes for root.
fn roots() -> Vec<u32> {
    const OVERFLOW: u32 = 65534;
    if ids_are_the_hosts() {
        return vec![0];
    }
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let overflow = read("/proc/sys/kernel/overflowuid").trim().parse().unwrap_or(OVERFLOW);
    let map = read("/proc/self/uid_map");
    let mapped = map.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let inside = words.next()?.parse().ok()?;
        words.next().filter(|outside| *outside == "0").map(|_| inside)
    });
    [0, overflow].into_iter().chain(mapped).collect()
}

fn directory_of(path: &Path) -> rustix::io::Result<File> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

/// `None`: there is no such file. A link that leads nowhere is a file that cannot be read.
fn open(path: &Path) -> Result<Option<File>, Error> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => {
            let stat = fstat(&fd)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
            }
            Ok(Some(File::from(fd)))
        }
        Err(Errno::NOENT) => match (readlink(path, Vec::new()), path.parent().map(|p| readlink(p, Vec::new()))) {
            (Err(Errno::NOENT), None | Some(Err(_))) => Ok(None),
            _ => Err(Error::new(ErrorKind::NotFound, "a symbolic link that leads nowhere")),
        },
        Err(e) => Err(e.into()),
    }
}

fn why(error: &Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn unusable(path: &Path, why: &str) -> Denial {
    Denial {
        what: format!("host policy {}: {why}", path.display()),
        place: path.display().to_string(),
        hint: "a policy that cannot be read denies everything; root has to repair it or remove it".into(),
    }
}

fn invalid(text: &str, at: usize, message: &str) -> Denial {
    let (line, column) = position(text, at);
    let place = format!("{FILE}:{line}:{column}");
    // The parser quotes what it found: shown so that it cannot steer a terminal.
    let message = message.trim().escape_debug().to_string().replace("\\\"", "\"");
    Denial {
        what: format!("host policy {place}: {message}"),
        place,
        hint: "an invalid policy denies everything; root has to repair it or remove it".into(),
    }
}

/// Line and column of a byte, from 1.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}
