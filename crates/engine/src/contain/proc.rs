//! The container's /proc, and what lies on it so that it shows less, or shows it read-only.
//!
//! Most settings below /proc ask for no capability but for a user id: their owner, the host's root, may write them. Where that
//! is the container's root too, everything there that is not a process is read-only, but for the settings of its own network; and
//! what it alone may read shows nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};
use rustix::mount::{MountAttrFlags, MountFlags, mount};
use yendor_kinds::Named;

use super::cover::{self, Cover};
use super::place::{Rootfs, copy_tree, put_on};
use super::{Caused, open_directory};

/// Directories whose files say who may do what, not only who owns them.
const HARMLESS: [&[u8]; 2] = [b"pressure", b"sysvipc"];

/// What everybody may read, and runtimes mask all the same (containerd's default specification): keys of the reader's id, and what tells of
/// the whole machine.
const MASKED: [&[u8]; 7] = [b"acpi", b"asound", b"keys", b"latency_stats", b"sched_debug", b"scsi", b"timer_stats"];

/// Settings of a network namespace; the kernel shows those of the reader's.
const NETWORK: &str = "/sys/net";

/// What /proc will be.
#[derive(Debug)]
pub(super) struct Plan {
    /// Where; none: in the caller's own view of the file system, over the caller's.
    pub(super) place: Option<OwnedFd>,
    /// How it is mounted.
    pub(super) flags: MountFlags,
    /// What lies on it, by paths beneath it.
    pub(super) covers: Vec<(PathBuf, Cover)>,
    /// Whether the container has a network of its own.
    pub(super) own_network: bool,
}

impl Plan {
    /// Nothing but /proc.
    pub(super) fn bare(place: Option<OwnedFd>, own_network: bool) -> Plan {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Plan { place, flags, covers: Vec::new(), own_network }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.place.iter().map(AsFd::as_fd)
    }
}

/// The place of /proc in a root: the name has to be the directory itself.
pub(super) fn place(root: &Rootfs) -> Caused<OwnedFd> {
    root.directory(Path::new("/proc"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(&root.fd, "proc", flags, Mode::empty()).named("openat", || "root, \"proc\", O_NOFOLLOW".into())?)
}

/// Mounts it, as a process of the container's pid namespace.
pub(super) fn mount_it(plan: &Plan, guarded: bool) -> Caused<()> {
    mount("proc", "/proc", "proc", plan.flags, None).named("mount", || "\"proc\", \"/proc\", \"proc\"".into())?;
    let Some(place) = &plan.place else { return Ok(()) };
    // Complete before it is shown: what is put on it later would not be locked to it.
    let root = Rootfs { fd: open_directory("/proc")? };
    if guarded {
        guard(&root, plan.own_network)?;
    }
    for (path, cover) in &plan.covers {
        cover::put(&root, path, *cover)?;
    }
    put_on(&copy_tree(&root.fd, b"", MountAttrFlags::empty())?, place, Path::new("/proc"))
}

fn guard(root: &Rootfs, own_network: bool) -> Caused<()> {
    let network = if own_network { root.find(Path::new(NETWORK))? } else { None };
    let network = network.map(|found| copy_tree(&found, b"", MountAttrFlags::empty())).transpose()?;
    for entry in Dir::read_from(&root.fd).named("getdents64", || "\"/proc\"".into())? {
        let entry = entry.named("getdents64", || "\"/proc\"".into())?;
        let name = entry.file_name().to_bytes();
        let is_process = name.iter().all(u8::is_ascii_digit);
        let path = Path::new("/").join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
        let made = match entry.file_type() {
            FileType::Directory | FileType::RegularFile if MASKED.contains(&name) => Some(Cover::Masked),
            FileType::Directory if !is_process && !name.starts_with(b".") && !HARMLESS.contains(&name) => {
                Some(Cover::ReadOnly)
            }
            FileType::RegularFile => cover::of_file(root, &path)?,
            // Into the reader's own process.
            _ => None,
        };
        if let Some(made) = made {
            cover::put(root, &path, made)?;
        }
    }
    cover::put(root, Path::new("/tty/driver"), Cover::Masked)?;
    match network {
        Some(tree) => root.attach(&tree, Path::new(NETWORK)),
        // The host's: a key of its connections is among its settings.
        None => cover::put(root, &Path::new(NETWORK).join("ipv4/tcp_fastopen_key"), Cover::Masked),
    }
}
