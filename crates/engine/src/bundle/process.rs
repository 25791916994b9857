//! `process`: who runs what, and within which bounds.

use std::collections::HashSet;

use oci_spec::runtime::{self, Capability, LinuxCapabilities, PosixRlimitType};
use yendor_image::Bytes;

use super::{Caused, wrong};
use crate::wire::Spec;
use yendor_policy::capability;

pub(super) fn read(process: &runtime::Process) -> Caused<Spec> {
    let bytes = |list: Option<&Vec<String>>| -> Vec<Bytes> {
        list.into_iter().flatten().map(|text| Bytes(text.clone().into_bytes())).collect()
    };
    if !process.cwd().is_absolute() {
        return Err(wrong(format!("process.cwd: {:?} is not an absolute path", process.cwd())));
    }
    let cwd = process.cwd().to_str().ok_or_else(|| wrong("process.cwd: not UTF-8"))?;
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    let mut limits: Vec<(usize, u64, u64)> = Vec::new();
    for (n, limit) in process.rlimits().iter().flatten().enumerate() {
        let resource = resource(limit.typ());
        if limits.iter().any(|known| known.0 == resource) {
            return Err(wrong(format!("process.rlimits[{n}]: {} twice", limit.typ())));
        }
        limits.push((resource, limit.soft(), limit.hard()));
    }
    Ok(Spec {
        command: bytes(process.args().as_ref()),
        env: bytes(process.env().as_ref()),
        cwd: Some(Bytes(cwd.as_bytes().to_vec())),
        user: Some((user.uid(), user.gid())),
        groups: Some(groups),
        // Where none are named, the process has none.
        capabilities: Some(process.capabilities().as_ref().map_or(Ok([0; 5]), capabilities)?),
        limits,
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        umask: user.umask(),
    })
}

/// In the order of `credential::Record`.
fn capabilities(sets: &LinuxCapabilities) -> Caused<[u64; 5]> {
    let mask = |set: &Option<HashSet<Capability>>| -> Caused<u64> {
        let names: Vec<String> = set.iter().flatten().map(ToString::to_string).collect();
        capability::mask(&names).map_err(|e| wrong(format!("process.capabilities: {e}")))
    };
    Ok([
        mask(sets.inheritable())?,
        mask(sets.permitted())?,
        mask(sets.effective())?,
        mask(sets.bounding())?,
        mask(sets.ambient())?,
    ])
}

/// Its number (asm-generic/resource.h).
fn resource(typ: PosixRlimitType) -> usize {
    use PosixRlimitType as T;
    match typ {
        T::RlimitCpu => 0,
        T::RlimitFsize => 1,
        T::RlimitData => 2,
        T::RlimitStack => 3,
        T::RlimitCore => 4,
        T::RlimitRss => 5,
        T::RlimitNproc => 6,
        T::RlimitNofile => 7,
        T::RlimitMemlock => 8,
        T::RlimitAs => 9,
        T::RlimitLocks => 10,
        T::RlimitSigpending => 11,
        T::RlimitMsgqueue => 12,
        T::RlimitNice => 13,
        T::RlimitRtprio => 14,
        T::RlimitRttime => 15,
    }
}
