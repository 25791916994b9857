//! What comes from the front behind its first message.

use std::os::fd::OwnedFd;

use yendor_kinds::Result;
use yendor_sys::SysError;

use crate::control::Control;
use crate::load::Plain;
use crate::wire::More;

/// What is in the files of an encrypted or compressed image, from the front.
pub(super) fn receive_plain(control: &Control, (count, records): (usize, Option<usize>)) -> Result<Plain> {
    let mut files = Vec::new();
    while files.len() < count {
        match control.receive::<More>()? {
            Some((More, more)) if !more.is_empty() => files.extend(more),
            _ => break,
        }
    }
    Plain::received(files, records)
}

/// Memory that another keeper has made.
pub(super) fn receive_shared(control: &Control) -> Result<OwnedFd> {
    let more = control.receive::<More>()?.and_then(|(More, more)| more.into_iter().next());
    more.ok_or_else(|| SysError::new("recvmsg", "a descriptor is missing", rustix::io::Errno::BADMSG).into())
}
