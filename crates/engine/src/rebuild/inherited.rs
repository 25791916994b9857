//! What stubs inherit from the keeper: files, shared memory and pages, under numbers above all of the image.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use yendor_image::{FileId, Reader, ShmId};
use yendor_kinds::file::{Entry, Workshop};
use yendor_kinds::memory::shared;
use yendor_kinds::process::State;
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_sys::SysError;

use super::Image;
use crate::ark::Ark;
use crate::error::{At, Result, Step, With};
use crate::label::Labels;

/// Moves a descriptor above all numbers of the image.
pub fn lift(fd: impl AsFd, above: i32, held: &mut Vec<OwnedFd>) -> std::result::Result<i32, SysError> {
    let lifted = rustix::io::fcntl_dupfd_cloexec(fd, above).named("fcntl", || format!("F_DUPFD_CLOEXEC, {above}"))?;
    let number = lifted.as_raw_fd();
    held.push(lifted);
    Ok(number)
}

/// Places outside the container that the keeper itself reads from while it makes files.
pub fn own_places(reader: Option<&Reader>, proc: &OwnedFd) -> Result<Vec<OwnedFd>> {
    let image = reader.map(Reader::directory);
    [image, Some(proc.as_fd())]
        .into_iter()
        .flatten()
        .map(|fd| fd.try_clone_to_owned().map_err(|e| SysError::io("dup", "", &e)).at(Step::Confine))
        .collect()
}

/// Those of the image's files that are `wanted`; `making`: the one that hinders it, if one does.
pub fn make_files(
    workshop: &mut Workshop<'_>,
    labels: &Labels,
    snapshot: &Snapshot,
    above: i32,
    held: &mut Vec<OwnedFd>,
    making: &mut Option<FileId>,
    wanted: &dyn Fn(&Entry) -> bool,
) -> Result<BTreeMap<FileId, i32>> {
    let mut out = BTreeMap::new();
    for entry in snapshot.files.iter().filter(|e| wanted(e)) {
        *making = Some(entry.id);
        let bench = &mut *workshop;
        let fd = labels.made(entry, move || bench.fd(entry.id))?;
        let lifted = lift(fd, above, held).at(Step::Rebuild).kind(entry.record.kind(), format!("file {}", entry.id));
        out.insert(entry.id, lifted?);
    }
    *making = None;
    Ok(out)
}

/// What needs all of them.
pub fn finish(workshop: &mut Workshop<'_>, labels: &Labels) -> Result<()> {
    workshop.finish().at(Step::Rebuild).kind("file", "relations between files")?;
    labels.check_sockets(workshop)
}

/// Shared memory.
pub fn make_objects(
    snapshot: &Snapshot,
    reader: Option<&Reader>,
    above: i32,
    held: &mut Vec<OwnedFd>,
) -> Result<BTreeMap<ShmId, i32>> {
    let mut out = BTreeMap::new();
    for object in &snapshot.objects {
        let reader = reader.ok_or_else(|| Cause::corrupt("shared memory without an image")).at(Step::Rebuild)?;
        let made = shared::rebuild(object, reader).at(Step::Rebuild).kind("shared memory", object.name.to_string())?;
        out.insert(object.id, lift(&made, above, held).at(Step::Rebuild)?);
    }
    Ok(out)
}

/// Files of pages, compared with their digests unless somebody does that later.
pub fn open_pages(
    image: Option<Image<'_>>,
    snapshot: &Snapshot,
    above: i32,
    held: &mut Vec<OwnedFd>,
) -> Result<BTreeMap<u16, i32>> {
    let mut out = BTreeMap::new();
    let Some(Image { reader, hashing, ark, later }) = image else { return Ok(out) };
    // Who has made shared memory of these files has compared them, too; only objects are still read from there.
    if ark.is_some_and(Ark::is_given) && snapshot.objects.iter().all(|object| object.pages.is_empty()) {
        return Ok(out);
    }
    for number in 0..u16::MAX {
        let name = yendor_image::pages_name(number);
        if !reader.has(&name) {
            break;
        }
        if !hashing.is_some_and(|h| h.covers(&name)) && !later.is_some_and(|l| l.covers(number)) {
            reader.verify(&name).at(Step::Load)?;
        }
        let (file, _) = reader.open_file(&name).at(Step::Load)?;
        out.insert(number, lift(&file, above, held).at(Step::Rebuild)?);
    }
    Ok(out)
}

/// An address range that is free in every process of the image, and in the keeper.
pub fn hole(snapshot: &Snapshot, size: u64) -> std::result::Result<u64, Cause> {
    const FIRST: u64 = 0x5b5b_0000_0000;
    const LAST: u64 = 0x7000_0000_0000;
    let mut taken: Vec<(u64, u64)> = Vec::new();
    for p in &snapshot.processes {
        if let State::Alive(a) = &p.state {
            taken.extend(a.memory.areas.iter().map(|a| (a.start.0, a.end.0)));
        }
    }
    taken.sort_unstable();
    let mut at = FIRST;
    for (start, end) in taken {
        if start < at + size && at < end {
            at = end.next_multiple_of(1 << 21);
        }
    }
    if at + size > LAST {
        return Err(Cause::unsupported("no address range is free in all processes of the image"));
    }
    Ok(at)
}
