//! Who calls, and how real root reads an image without its rights.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::failure::Failure;

/// Whether this process has root's user id.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Before an image is read by this process: real root becomes the image's owner and loses every capability. Whatever the
/// bytes do to the reader, it then has no more than the image's owner has. Others have nothing to give up.
pub fn give_up_rights(image: &Path) -> Result<(), Failure> {
    if !is_root() {
        return Ok(());
    }
    let Ok(owner) = std::fs::metadata(image) else {
        // Not there: the reader says so.
        return Ok(());
    };
    let refused = |call: &str| {
        let call = call.to_owned();
        move |e: rustix::io::Errno| Failure::Failed(format!("{call} before reading an image: {e}"))
    };
    rustix::thread::set_no_new_privs(true).map_err(refused("PR_SET_NO_NEW_PRIVS"))?;
    if owner.uid() != 0 {
        let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        rustix::thread::set_thread_groups(&[]).map_err(refused("setgroups"))?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(refused("setresgid"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(refused("setresuid"))?;
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(refused("capset"))
}
