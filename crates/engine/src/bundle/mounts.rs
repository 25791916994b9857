//! `mounts`: file systems of the kernel, and host paths, which become volumes.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime;
use rustix::mount::MountFlags;
use yendor_sys::SysError;

use super::support::value;
use super::{Caused, unsupported, wrong};
use crate::request::{Mount, Placed, Volume};

/// File systems that a container's root may mount.
const KERNEL: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// Options of every mount: the word, the flag that it sets or clears.
const FLAGS: [(&str, MountFlags, bool); 18] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("async", MountFlags::SYNCHRONOUS, false),
];

/// What all mounts of a container are, so that these words ask for nothing else.
const PRIVATE: [&str; 2] = ["private", "rprivate"];

pub(super) fn read(mounts: &[runtime::Mount], bundle: &Path) -> Caused<(Vec<Placed>, Vec<Volume>)> {
    let mut names = BTreeSet::new();
    let (mut out, mut volumes) = (Vec::new(), Vec::new());
    for (n, mount) in mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{n}].{name}");
        let target = target(mount.destination()).ok_or_else(|| {
            wrong(format!("{}: {:?} is not an absolute path", field("destination"), mount.destination()))
        })?;
        if target == Path::new("/") || target.starts_with("/proc") && target != Path::new("/proc") {
            return Err(value(&field("destination"), &target.display().to_string()));
        }
        let options: Vec<&str> = mount.options().iter().flatten().map(String::as_str).collect();
        let bind = mount.typ().as_deref() == Some("bind") || options.iter().any(|o| matches!(*o, "bind" | "rbind"));
        if bind {
            let volume = volume(mount, &target, &options, bundle, n, &mut names)?;
            out.push(Placed::Volume(volume.name.clone()));
            volumes.push(volume);
        } else {
            out.push(Placed::FileSystem(file_system(mount, target, &options, n)?));
        }
    }
    Ok((out, volumes))
}

/// Without `.`, `..` and double slashes.
fn target(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => return None,
            _ => {}
        }
    }
    Some(out)
}

fn file_system(mount: &runtime::Mount, target: PathBuf, options: &[&str], n: usize) -> Caused<Mount> {
    let fs_type = mount.typ().as_deref().unwrap_or_default();
    if !KERNEL.contains(&fs_type) {
        return Err(value(&format!("mounts[{n}].type"), fs_type));
    }
    if (fs_type == "proc") != (target == Path::new("/proc")) {
        let why = format!("{fs_type} at {}: proc is mounted at /proc, and only there", target.display());
        return Err(unsupported(&format!("mounts[{n}]"), &why));
    }
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        if let Some((_, flag, set)) = FLAGS.iter().find(|f| f.0 == *option) {
            flags.set(*flag, *set);
        } else if !PRIVATE.contains(option) {
            if is_word_of_runtimes(option) {
                return Err(value(&format!("mounts[{n}].options"), option));
            }
            // The file system knows, or says that it does not.
            data.push(*option);
        }
    }
    let data = data.join(",");
    if fs_type == "proc" && !data.is_empty() {
        return Err(value(&format!("mounts[{n}].options"), &data));
    }
    Ok(Mount { fs_type: fs_type.into(), target, flags: flags.bits(), data })
}

/// Options that are not the kernel's: a runtime has to act on them (config.md, "Linux mount options").
fn is_word_of_runtimes(option: &str) -> bool {
    const WORDS: [&str; 13] = [
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
        "remount",
        "defaults",
        "tmpcopyup",
        "idmap",
        "ridmap",
        "mand",
        "silent",
    ];
    let recursive = option.strip_prefix('r').is_some_and(|rest| FLAGS.iter().any(|f| f.0 == rest));
    WORDS.contains(&option) || recursive
}

fn volume(
    mount: &runtime::Mount,
    target: &Path,
    options: &[&str],
    bundle: &Path,
    n: usize,
    names: &mut BTreeSet<String>,
) -> Caused<Volume> {
    let source = mount.source().as_ref().ok_or_else(|| wrong(format!("mounts[{n}]: a bind without a source")))?;
    let host = bundle.join(source);
    let (mut read_only, mut recursive) = (false, false);
    for option in options {
        match *option {
            "ro" | "rro" => read_only = true,
            "rw" => read_only = false,
            "rbind" => recursive = true,
            // No volume has set-user-id programs or devices.
            "bind" | "nosuid" | "nodev" | "private" | "rprivate" => {}
            other => return Err(value(&format!("mounts[{n}].options"), other)),
        }
    }
    if !recursive && has_mounts_below(&host)? {
        let why = format!("{} has mounts below it, and a volume shows them: say \"rbind\"", host.display());
        return Err(unsupported(&format!("mounts[{n}].options"), &why));
    }
    Ok(Volume { name: name(target, names), host, inside: Some(target.to_path_buf()), read_only })
}

fn has_mounts_below(path: &Path) -> Caused<bool> {
    use std::os::unix::ffi::OsStrExt;
    // Where it is not there, opening it says so.
    let Ok(real) = std::fs::canonicalize(path) else { return Ok(false) };
    let file = "/proc/self/mountinfo";
    let text = std::fs::read(file).map_err(|e| SysError::io("open", file, &e))?;
    let below = |mount: &[u8]| {
        let mount = Path::new(std::ffi::OsStr::from_bytes(mount));
        mount != real && mount.starts_with(&real)
    };
    Ok(yendor_proc::mountinfo::parse(&text)?.iter().any(|m| below(&m.mount_point)))
}

/// The name by which a later restore asks for it: of its place, the same every time. `/var/lib/data` is `var-lib-data`.
fn name(target: &Path, names: &mut BTreeSet<String>) -> String {
    let plain: String = target
        .to_string_lossy()
        .trim_start_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let plain = plain.trim_matches('-').chars().take(48).collect::<String>();
    let plain = if plain.is_empty() { "volume".to_owned() } else { plain };
    let mut name = plain.clone();
    for n in 2.. {
        if names.insert(name.clone()) {
            break;
        }
        name = format!("{plain}-{n}");
    }
    name
}
