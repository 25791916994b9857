//! The types of file systems that are made again, and which of them is one of the container's, mounted once more.
//! *Read from:* mountinfo.
//! *Made again by:* nothing here: see `build`.
//! *Lost:* as `super` says.

use serde::{Deserialize, Serialize};
use yendor_proc::mountinfo::Mount as Line;

use super::{Home, Whose, join, rest_of};

/// The types of file systems that are made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// tmpfs(5).
    Tmpfs,
    /// The same without limits, and without attributes of files.
    Ramfs,
    /// proc(5).
    Proc,
    /// pts(4).
    Devpts,
    /// mq_overview(7): that of the container's ipc namespace, mounted once more.
    Mqueue,
    /// sysfs(5): that of the container's network, likewise.
    Sysfs,
}

impl Type {
    pub(super) fn name(self) -> &'static str {
        match self {
            Type::Tmpfs => "tmpfs",
            Type::Ramfs => "ramfs",
            Type::Proc => "proc",
            Type::Devpts => "devpts",
            Type::Mqueue => "mqueue",
            Type::Sysfs => "sysfs",
        }
    }

    /// Options that are given again.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            Type::Tmpfs => &["ro", "size", "nr_blocks", "nr_inodes", "mode", "huge", "inode64", "inode32", "noswap"],
            Type::Ramfs => &["ro", "mode"],
            Type::Proc => &["ro", "hidepid", "subset"],
            Type::Devpts => &["ro", "mode", "ptmxmode", "max"],
            Type::Mqueue | Type::Sysfs => &[],
        }
    }

    /// Options that say what the content says, or what nobody can choose.
    pub(super) fn other_options(self) -> &'static [&'static str] {
        match self {
            Type::Tmpfs => &["rw", "uid", "gid", "seclabel"],
            Type::Proc => &["rw"],
            Type::Ramfs | Type::Devpts => &["rw", "seclabel"],
            Type::Mqueue | Type::Sysfs => &["rw", "ro", "seclabel"],
        }
    }

    /// Whether it begins empty, and has what was written there.
    pub(super) fn is_filled(self) -> bool {
        matches!(self, Type::Tmpfs | Type::Ramfs)
    }
}

/// Of what the container's root has mounted, not bound: a file system of its namespaces that the container has, too. A bind would keep flags that are
/// locked, and bring what is mounted on it.
pub(super) fn once_more(line: &Line, own: &[Line], home: &Home<'_>) -> Option<Type> {
    let fs_type = match line.fs_type.as_slice() {
        b"mqueue" => Type::Mqueue,
        b"sysfs" => Type::Sysfs,
        _ => return None,
    };
    let whole = |l: &&Line| l.dev == line.dev && l.root == b"/";
    let theirs = home.lines.iter().find(whole).filter(|_| home.whose == Whose::Own && line.root == b"/")?;
    let freer = theirs.options.iter().any(|option| option != b"rw" && !line.options.contains(option));
    let bare = |below: &&Line| {
        let rest = rest_of(&below.mount_point, &theirs.mount_point);
        let here = rest.map(|rest| join(&line.mount_point, &rest));
        below.parent == theirs.id && !own.iter().any(|l| l.parent == line.id && Some(&l.mount_point) == here.as_ref())
    };
    (freer || home.lines.iter().any(|below| bare(&below))).then_some(fs_type)
}
