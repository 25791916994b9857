//! The file systems of the kernel in a new root: /dev, /sys, /tmp, /run; /proc is left to the first task.

use std::ffi::CStr;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat, symlinkat};
use rustix::mount::{MountAttrFlags, MountFlags, mount};
use yendor_kinds::{Cause, Named};
use yendor_sys::Errno;

use super::Caused;
use super::place::{Rootfs, by_number, copy_tree};
use crate::request::Net;

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

/// Mounts them all; `wanted` says of /tmp and /run whether the root has them.
pub(super) fn all(root: &Rootfs, net: Net, wanted: impl Fn(&str) -> bool) -> Caused<()> {
    root.directory(Path::new("/proc"))?;
    refuse_symlink(root, "proc")?;
    devices(root)?;
    system(root, net)?;
    if wanted("/tmp") {
        root.mount("tmpfs", "/tmp", NO_SUID_DEV, c"mode=1777")?;
    }
    if wanted("/run") {
        root.mount("tmpfs", "/run", NO_SUID_DEV, c"mode=755")?;
        let lock = root.directory(Path::new("/run/lock"))?;
        rustix::fs::chmod(by_number(&lock), Mode::from_raw_mode(0o1777)).named("chmod", || "\"/run/lock\"".into())?;
    }
    Ok(())
}

/// The first task mounts /proc by name: the name has to be the directory itself.
fn refuse_symlink(root: &Rootfs, name: &str) -> Caused<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&root.fd, name, flags, Mode::empty()).named("openat", || format!("root, {name:?}, O_NOFOLLOW"))?;
    Ok(())
}

fn devices(root: &Rootfs) -> Caused<()> {
    root.mount("tmpfs", "/dev", MountFlags::NOSUID, c"mode=755,size=64k")?;
    for name in DEVICES {
        let host = format!("/dev/{name}");
        let tree = copy_tree(&CWD, host.as_bytes(), MountAttrFlags::empty())?;
        root.attach(&tree, Path::new(&host))?;
    }
    let dev = root.directory(Path::new("/dev"))?;
    for (to, name) in LINKS {
        symlinkat(to, &dev, name).named("symlinkat", || format!("{to:?}, {name:?}"))?;
    }
    root.mount("tmpfs", "/dev/shm", NO_SUID_DEV, c"mode=1777")?;
    root.mount("mqueue", "/dev/mqueue", NOTHING, c"")?;
    let terminals = |data: &CStr| root.mount("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, data);
    // Group 5 is `tty` everywhere, but it may not exist in the container.
    match terminals(c"newinstance,ptmxmode=0666,mode=0620,gid=5") {
        Err(Cause::Sys(e)) if e.errno == Errno::INVAL => terminals(c"newinstance,ptmxmode=0666,mode=0620"),
        other => other,
    }
}

fn system(root: &Rootfs, net: Net) -> Caused<()> {
    let flags = NOTHING | MountFlags::RDONLY;
    // sysfs shows a network namespace and can be mounted by its owner only.
    let own = if net == Net::Host { false } else { allowed(root.mount("sysfs", "/sys", flags, c""))? };
    if !own {
        let tree = copy_tree(&CWD, b"/sys", MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        root.attach(&tree, Path::new("/sys"))?;
    }
    let cgroups = Path::new("/sys/fs/cgroup");
    let Some(target) = root.find(cgroups)? else { return Ok(()) };
    let on_it = |fs: &str| mount(fs, by_number(&target).as_str(), fs, flags, None);
    let cgroup2 = on_it("cgroup2").named("mount", || format!("\"cgroup2\", {cgroups:?}")).map_err(Cause::from);
    // Without it the place is empty: never the host's.
    if !allowed(cgroup2)? {
        on_it("tmpfs").named("mount", || format!("\"tmpfs\", {cgroups:?}"))?;
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
