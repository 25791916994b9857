//! /dev/null, zero, full, random, urandom, tty: devices without a state of their own.
//! *Read from:* the device number.
//! *Made again by:* opening the container's own device of that number.
//! *Lost:* nothing.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, major, minor};
use serde::{Deserialize, Serialize};
use yendor_image::Bytes;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

/// Memory devices (major 1) by minor number, as in Documentation/admin-guide/devices.txt.
const MEMORY: &[(u32, &str)] = &[(3, "null"), (5, "zero"), (7, "full"), (8, "random"), (9, "urandom")];

/// A stateless device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its path in the container.
    pub path: Bytes,
    /// Major and minor number, checked again after opening.
    pub number: (u32, u32),
}

impl FileKind for Record {
    const NAME: &'static str = "device";

    fn claims(seen: &Seen) -> bool {
        FileType::from_raw_mode(seen.stat.st_mode) == FileType::CharacterDevice
            && stateless((major(seen.stat.st_rdev), minor(seen.stat.st_rdev))).is_some()
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        let number = (major(seen.stat.st_rdev), minor(seen.stat.st_rdev));
        let path = match stateless(number) {
            // The usual name, wherever the file that was opened lies.
            Some(name) if !gather.leads_to(&seen.link.0, &seen.stat) => format!("/dev/{name}").into_bytes(),
            _ => seen.link.0.clone(),
        };
        Ok(Record { path: Bytes(path), number })
    }

    fn rebuild(&self, entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { path, number } = self;
        let Some(name) = stateless(*number) else {
            return Err(Cause::corrupt(format!("{path}: {number:?} is no device that an image may name")));
        };
        let flags = OFlags::from_bits_retain(entry.flags) | OFlags::NOCTTY;
        // The image's path first; it may lie in a place that this container does not have.
        let usual = format!("/dev/{name}");
        let fd = workshop
            .open(&path.0, flags | OFlags::PATH, Mode::empty())
            .or_else(|_| workshop.find(usual.as_bytes(), flags | OFlags::PATH))?;
        let stat = rustix::fs::fstat(&fd).named("fstat", || path.to_string())?;
        let found = (major(stat.st_rdev), minor(stat.st_rdev));
        let right = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && found == *number;
        let path = if right { path.0.as_slice() } else { usual.as_bytes() };
        workshop.find(path, flags)
    }
}

fn stateless(number: (u32, u32)) -> Option<&'static str> {
    match number {
        (1, n) => MEMORY.iter().find(|(m, _)| *m == n).map(|(_, name)| *name),
        _ => None,
    }
}
