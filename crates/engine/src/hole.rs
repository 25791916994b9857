//! What an image leaves open: host paths, and the directory it lived in. The caller fills it by name, or is told how.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
use yendor_kinds::namespace::layer;
use yendor_kinds::snapshot::{Root, Snapshot};
use yendor_kinds::{Cause, Named};
use yendor_sys::SysError;

use crate::contain::Contained;
use crate::error::{At, Result, Step, With};
use crate::request::{self, Request};

/// Puts the volumes of the request where the image has them, and notes the places there.
///
/// # Errors
/// The first hole that the request leaves open, with the option that fills it.
pub(crate) fn fill(snapshot: &Snapshot, request: &mut Request, contained: &Contained) -> Result<()> {
    root(snapshot.container.root, request).at(Step::Load)?;
    for hole in &snapshot.container.volumes {
        let shown = hole.name.escape_default().to_string();
        let mut place = || -> Result<()> {
            let given = request.volumes.iter_mut().find(|v| v.name == hole.name);
            let Some(given) = given else {
                let what = format!("a host path for the volume that the image has at {}", hole.inside);
                return Err(Cause::Hole { what, option: format!("--volume {shown}=HOSTPATH") }).at(Step::Load);
            };
            if given.inside.is_some() {
                // The caller has another place for it.
                return Ok(());
            }
            let inside = PathBuf::from(std::ffi::OsString::from_vec(hole.inside.0.clone()));
            if !inside.is_absolute() {
                return Err(Cause::corrupt(format!("a volume at {}", hole.inside))).at(Step::Load);
            }
            contained.attach_volume(&hole.name, &inside, hole.read_only)?;
            given.inside = Some(inside);
            given.read_only |= hole.read_only;
            Ok(())
        };
        place().kind("volume", shown.clone())?;
    }
    match request.volumes.iter().find(|v| v.inside.is_none()) {
        None => Ok(()),
        Some(left) => {
            let known: Vec<&str> = snapshot.container.volumes.iter().map(|v| v.name.as_str()).collect();
            let known = if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) };
            let message = format!(
                "the image has no volume {}: {}; say where it belongs: --volume {}={}:PATH",
                left.name,
                known.escape_default(),
                left.name,
                left.host.display()
            );
            Err(Cause::Reported { message, code: 1 }).at(Step::Load)
        }
    }
}

/// Where the volumes really are, whatever symbolic links lead there: absolute paths inside.
pub(crate) fn places(request: &Request) -> std::result::Result<Vec<Vec<u8>>, Cause> {
    let real = |path: &PathBuf| -> std::result::Result<Vec<u8>, Cause> {
        let real = std::fs::canonicalize(path).map_err(|e| SysError::io("realpath", format!("{path:?}"), &e))?;
        Ok(real.into_os_string().into_vec())
    };
    request.volumes.iter().filter_map(|v| v.inside.as_ref()).map(real).collect()
}

/// A directory that the image lived in is the caller's to give.
fn root(was: Root, request: &Request) -> std::result::Result<(), Cause> {
    let given = matches!(request.root, request::Root::Dir(_));
    let hole = |what: &str, option: &str| Err(Cause::Hole { what: what.into(), option: option.into() });
    match was {
        Root::Dir if !given => hole("the directory that was its root file system", "--rootfs DIR"),
        Root::Bundle if !given || request.layout.is_none() => {
            hole("the bundle that it was started from: its root file system and mounts", "--bundle DIR")
        }
        _ => Ok(()),
    }
}

/// The content of a tmpfs must not end in the directory below it.
pub(crate) fn check_layer(layer: &layer::Record, top: &OwnedFd) -> std::result::Result<(), Cause> {
    if layer.mount.0 == b"/" {
        return Ok(());
    }
    let shown = || layer.mount.to_string();
    let stat = statx(top.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).named("statx", shown)?;
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(());
    }
    let what = format!("a tmpfs at {}, where the image had one", layer.mount);
    Err(Cause::Hole { what, option: "--bundle DIR, with a mount of type tmpfs there".into() })
}
