//! File systems for which a process answers. One that does not, because it stands still with the tree, would have us wait for ever.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use yendor_image::FdNum;
use yendor_proc::mountinfo;
use yendor_sys::patience;

use super::Gather;
use crate::{Cause, Result};

/// How long a server may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Mounts by their ids: whether a process answers for them that has not been asked yet.
pub type Servers = BTreeMap<i32, bool>;

impl Gather<'_> {
    /// Refuses a file of a mount for which nobody answers; each is asked once.
    pub(super) fn is_served(&mut self, pid: i32, pidfd: BorrowedFd<'_>, number: FdNum, mount: i32) -> Result<()> {
        if !self.servers.contains_key(&mount) {
            let lines = mountinfo::parse(&self.read(&format!("{pid}/mountinfo"))?)?;
            for line in lines {
                let is_served = line.fs_type.starts_with(b"fuse") && line.fs_type != b"fusectl";
                self.servers.entry(line.id).or_insert(is_served);
            }
            // One that is not to be seen from its root; of pipes, sockets and the like nobody sees one.
            let has_path = self.link(&format!("{pid}/fd/{number}"))?.0.starts_with(b"/");
            self.servers.entry(mount).or_insert(has_path);
        }
        if self.servers.insert(mount, false) == Some(true) && !patience::answers(pidfd, number.0, LIMIT)? {
            let what = "a file of a FUSE file system whose server does not answer, perhaps because it stands still with the tree";
            return Err(Cause::unsupported(format!("{what} (file descriptor {number} of process {pid})")));
        }
        Ok(())
    }
}
