//! The file systems of the kernel in a new root: a list of mounts, and one interpreter. /proc comes later.

use std::ffi::CString;
use std::path::Path;

use rustix::fs::{CWD, Mode, symlinkat};
use rustix::mount::{MountAttrFlags, MountFlags, mount};
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;

use super::Caused;
use super::cover;
use super::place::{Rootfs, by_number, copy_tree};
use crate::request::{Mount, Net};

/// Device nodes that a container gets: those that hold no state of the host.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

const NO_SUID_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NOTHING: MountFlags = NO_SUID_DEV.union(MountFlags::NOEXEC);

fn entry(fs_type: &str, target: &str, flags: MountFlags, data: &str) -> Mount {
    Mount { fs_type: fs_type.into(), target: target.into(), flags: flags.bits(), data: data.into() }
}

/// The device directory that every container has.
pub(super) fn dev() -> Mount {
    entry("tmpfs", "/dev", MountFlags::NOSUID, "mode=755,size=64k")
}

/// What a container has when nobody says otherwise; `wanted` says of /tmp and /run whether the root has them.
pub(super) fn usual(wanted: impl Fn(&str) -> bool) -> Vec<Mount> {
    let mut out = vec![
        dev(),
        entry("tmpfs", "/dev/shm", NO_SUID_DEV, "mode=1777"),
        entry("mqueue", "/dev/mqueue", NOTHING, ""),
        // Group 5 is `tty` everywhere.
        entry(
            "devpts",
            "/dev/pts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        entry("sysfs", "/sys", NOTHING | MountFlags::RDONLY, ""),
        entry("cgroup", "/sys/fs/cgroup", NOTHING | MountFlags::RDONLY, ""),
    ];
    let places = [("/tmp", "mode=1777"), ("/run", "mode=755")];
    out.extend(places.into_iter().filter(|p| wanted(p.0)).map(|(path, data)| entry("tmpfs", path, NO_SUID_DEV, data)));
    out
}

/// Whether a file system has files of the host, which its root may write.
pub(super) fn shows_the_host(mount: &Mount) -> bool {
    matches!(mount.fs_type.as_str(), "sysfs" | "cgroup" | "cgroup2")
}

/// Mounts one. `guarded`: for a container whose root has the id of the host's.
pub(super) fn make(root: &Rootfs, net: Net, what: &Mount, guarded: bool) -> Caused<()> {
    let target = what.target.as_path();
    match what.fs_type.as_str() {
        "sysfs" => {
            system(root, net, what)?;
            if guarded { cover::system(root, target) } else { Ok(()) }
        }
        "cgroup" | "cgroup2" => control_groups(root, what),
        "devpts" => terminals(root, what),
        "tmpfs" => {
            plain(root, what)?;
            if target == Path::new("/dev") {
                devices(root)?;
            } else if target == Path::new("/run") {
                let lock = root.directory(Path::new("/run/lock"))?;
                rustix::fs::chmod(by_number(&lock), Mode::from_raw_mode(0o1777))
                    .named("chmod", || "\"/run/lock\"".into())?;
            }
            Ok(())
        }
        _ => plain(root, what),
    }
}

fn plain(root: &Rootfs, what: &Mount) -> Caused<()> {
    on(root, what, &what.fs_type, &what.data)
}

fn on(root: &Rootfs, what: &Mount, fs_type: &str, data: &str) -> Caused<()> {
    let data = c_string(data)?;
    root.mount(fs_type, &what.target, MountFlags::from_bits_retain(what.flags), &data)
}

fn c_string(text: &str) -> Caused<CString> {
    Ok(CString::new(text).map_err(|_| Errno::INVAL).named("mount", || format!("{text:?}"))?)
}

fn devices(root: &Rootfs) -> Caused<()> {
    for name in DEVICES {
        let host = format!("/dev/{name}");
        // They can be written all the same; their modes and owners, which are the host's, cannot be changed.
        let tree = copy_tree(&CWD, host.as_bytes(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        root.attach(&tree, Path::new(&host))?;
    }
    let dev = root.directory(Path::new("/dev"))?;
    for (to, name) in LINKS {
        symlinkat(to, &dev, name).named("symlinkat", || format!("{to:?}, {name:?}"))?;
    }
    Ok(())
}

/// The group of terminals may not exist in the container.
fn terminals(root: &Rootfs, what: &Mount) -> Caused<()> {
    match plain(root, what) {
        Err(Cause::Sys(e)) if e.errno == Errno::INVAL => {
            let rest: Vec<&str> = what.data.split(',').filter(|option| !option.starts_with("gid=")).collect();
            on(root, what, "devpts", &rest.join(","))
        }
        other => other,
    }
}

fn system(root: &Rootfs, net: Net, what: &Mount) -> Caused<()> {
    // sysfs shows a network namespace and can be mounted by its owner only.
    let own = if net == Net::Host { false } else { allowed(plain(root, what))? };
    if !own {
        let tree = copy_tree(&CWD, b"/sys", MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        root.attach(&tree, &what.target)?;
    }
    Ok(())
}

fn control_groups(root: &Rootfs, what: &Mount) -> Caused<()> {
    let Some(target) = root.find(&what.target)? else { return Ok(()) };
    let flags = MountFlags::from_bits_retain(what.flags);
    let on_it = |fs: &str| mount(fs, by_number(&target).as_str(), fs, flags, None);
    let cgroup2 = on_it("cgroup2").named("mount", || format!("\"cgroup2\", {:?}", what.target));
    // Without it the place is empty: never the host's.
    if !allowed(cgroup2.map_err(Cause::from))? {
        on_it("tmpfs").named("mount", || format!("\"tmpfs\", {:?}", what.target))?;
    }
    Ok(())
}

/// Whether something that the kernel may refuse was done.
fn allowed(result: Caused<()>) -> Caused<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Cause::Sys(e)) if matches!(e.errno, Errno::PERM | Errno::ACCESS | Errno::BUSY | Errno::NODEV) => Ok(false),
        Err(e) => Err(e),
    }
}
