//! Extended attributes of files in a layer: what programs have noted (`user.`), file capabilities, access control lists; and the flags that
//! chattr(1) sets.
//! *Read from:* flistxattr and fgetxattr, in the container's user namespace, so that ids are those inside; `FS_IOC_GETFLAGS`.
//! *Made again by:* fsetxattr, once owner and permissions are there: a change of owner takes capabilities away; `FS_IOC_SETFLAGS` last.
//! *Lost:* flags that say only how a file system stores a file (compressed, no copy on write, journalled); labels of security modules and the digests of IMA and EVM: a new file gets what the module gives to new files.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{IFlags, Mode, OFlags, XattrFlags, ioctl_getflags, ioctl_setflags, openat};
use yendor_image::Bytes;
use yendor_sys::{Errno, SysError};

use crate::{Cause, Named, Result};

/// What a file carries: names and values.
pub type Attributes = Vec<(Bytes, Bytes)>;

/// Where the names of an overlay's own begin, which are no file's.
const OVERLAY: [&[u8]; 2] = [b"user.overlay.", b"trusted.overlay."];
const LOST: [&[u8]; 5] =
    [b"security.selinux", b"security.SMACK64", b"security.apparmor", b"security.ima", b"security.evm"];

/// What is kept of a file.
fn is_kept(name: &[u8]) -> bool {
    const ALL: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
    name.starts_with(b"user.") && !is_overlays(name) || ALL.contains(&name)
}

fn is_overlays(name: &[u8]) -> bool {
    OVERLAY.iter().any(|prefix| name.starts_with(prefix))
}

/// Reads a file's; and whether the overlay marks a directory opaque.
///
/// # Errors
/// `Unsupported` for an attribute that is neither kept nor among those that this module says are lost.
pub fn collect(fd: impl AsFd) -> Result<(Attributes, bool)> {
    let (kept, opaque, unknown) = look(fd)?;
    unknown.map_or(Ok((kept, opaque)), |name| Err(Cause::unsupported(format!("the extended attribute {name}"))))
}

/// What is kept, whether the directory is opaque, and one that is neither kept nor lost nor the overlay's.
fn look(fd: impl AsFd) -> Result<(Attributes, bool, Option<Bytes>)> {
    let mut names = vec![0u8; 64 * 1024];
    let n = match rustix::fs::flistxattr(&fd, &mut names) {
        Ok(n) => n,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(SysError::new("flistxattr", "", e).into()),
    };
    let mut kept = Vec::new();
    let (mut opaque, mut unknown) = (false, None);
    for name in names[..n].split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let text = name.to_bytes();
        // All that begins so: Smack has several.
        if LOST.iter().any(|lost| text.starts_with(lost)) {
            continue;
        }
        let mut value = vec![0u8; 64 * 1024];
        let len = rustix::fs::fgetxattr(&fd, name, &mut value).named("fgetxattr", || format!("{name:?}"))?;
        value.truncate(len);
        if is_overlays(text) {
            opaque |= text.ends_with(b".opaque") && value == b"y";
        } else if is_kept(text) {
            kept.push((Bytes(text.to_vec()), Bytes(value)));
        } else {
            unknown = Some(Bytes(text.to_vec()));
        }
    }
    Ok((kept, opaque, unknown))
}

/// Flags that say what may be done with a file, or when: written at once, fixed, only appended to, not dumped, no times of access,
/// a directory written at once.
const FLAGS: IFlags = IFlags::SYNC
    .union(IFlags::IMMUTABLE)
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::DIRSYNC);

/// Reads a file's flags.
///
/// # Errors
/// What the file system says, but that it has none.
pub fn flags(fd: impl AsFd) -> Result<u32> {
    match ioctl_getflags(fd) {
        Ok(flags) => Ok((flags & FLAGS).bits()),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
        Err(e) => Err(SysError::new("ioctl", "FS_IOC_GETFLAGS", e).into()),
    }
}

/// Gives a file in a directory these flags, and leaves its others.
///
/// # Errors
/// The kernel's, also that the file system has none; `Corrupt` for flags that are not kept.
pub fn set_flags(parent: &OwnedFd, name: &[u8], flags: u32) -> Result<()> {
    let shown = || name.escape_ascii().to_string();
    let wanted = IFlags::from_bits_retain(flags);
    if !FLAGS.contains(wanted) {
        return Err(Cause::corrupt(format!("{}: a file with the flags {flags:#x}", shown())));
    }
    let how = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(parent, name, how, Mode::empty()).named("openat", shown)?;
    let now = ioctl_getflags(&file).named("ioctl", || format!("{}, FS_IOC_GETFLAGS", shown()))?;
    if now & FLAGS == wanted {
        return Ok(());
    }
    let all = (now - FLAGS) | wanted;
    Ok(ioctl_setflags(&file, all).named("ioctl", || format!("{}, FS_IOC_SETFLAGS, {flags:#x}", shown()))?)
}

/// Gives a file these and no others. A directory may have been there before, with its own.
///
/// # Errors
/// The kernel's; `Corrupt` for an attribute that no image has.
pub fn rebuild(fd: impl AsFd, attributes: &Attributes) -> Result<()> {
    if let Some((name, _)) = attributes.iter().find(|(name, _)| !is_kept(&name.0)) {
        return Err(Cause::corrupt(format!("the extended attribute {name} of a file")));
    }
    let (now, ..) = look(&fd)?;
    for (name, _) in now.iter().filter(|(name, _)| !attributes.iter().any(|(wanted, _)| wanted == name)) {
        rustix::fs::fremovexattr(&fd, name.0.as_slice()).named("fremovexattr", || name.to_string())?;
    }
    for (name, value) in attributes.iter().filter(|wanted| !now.contains(wanted)) {
        rustix::fs::fsetxattr(&fd, name.0.as_slice(), &value.0, XattrFlags::empty())
            .named("fsetxattr", || name.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        for kept in ["user.x", "user.overlayed", "security.capability", "system.posix_acl_default"] {
            assert!(is_kept(kept.as_bytes()), "{kept}");
        }
        let others =
            ["user.overlay.redirect", "trusted.overlay.opaque", "security.selinux", "trusted.x", "system.nfs4_acl", ""];
        for other in others {
            assert!(!is_kept(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn what_no_image_has_is_refused_before_the_kernel_is_asked() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        for name in ["security.selinux", "trusted.overlay.redirect", "user.overlay.opaque"] {
            let refused = rebuild(&file, &vec![(Bytes(name.into()), Bytes(b"x".to_vec()))]);
            assert!(matches!(refused, Err(Cause::Corrupt { .. })), "{name}: {refused:?}");
        }
    }
}
