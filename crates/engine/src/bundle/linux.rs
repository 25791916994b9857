//! `linux`: namespaces, id maps, limits, covers.

use std::path::PathBuf;

use oci_spec::runtime::{self, LinuxIdMapping, LinuxNamespaceType as Ns};

use super::support::value;
use super::{Caused, unsupported, wrong};
use crate::contain::sysctl;
use crate::contain::userns::{self, Caller, Range};
use crate::request::{Net, Userns};

pub(super) struct Linux {
    pub(super) net: Net,
    pub(super) memory: Option<u64>,
    pub(super) pids: Option<u64>,
    pub(super) masked: Vec<PathBuf>,
    pub(super) read_only: Vec<PathBuf>,
    pub(super) sysctls: Vec<(String, String)>,
}

impl Linux {
    pub(super) fn read(linux: Option<&runtime::Linux>, userns: Userns) -> Caused<Linux> {
        let linux = linux.ok_or_else(|| wrong("there is no linux: its namespaces are needed"))?;
        let net = namespaces(linux.namespaces().as_deref().unwrap_or_default())?;
        let caller = Caller::look()?;
        for (field, wanted, uids) in
            [("uidMappings", linux.uid_mappings(), true), ("gidMappings", linux.gid_mappings(), false)]
        {
            id_maps(field, wanted.as_deref().unwrap_or_default(), &caller, userns, uids)?;
        }
        if let Some(word) = linux.rootfs_propagation().as_deref().filter(|w| !matches!(*w, "" | "private" | "rprivate"))
        {
            return Err(value("linux.rootfsPropagation", word));
        }
        let (memory, pids) = limits(linux.resources().as_ref(), userns)?;
        let mut sysctls: Vec<(String, String)> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
        sysctls.sort_unstable();
        if let Some((name, _)) = sysctls.iter().find(|(name, _)| !sysctl::is_own(name, net)) {
            return Err(unsupported(
                &format!("linux.sysctl.{name}"),
                "not a setting of the container's own namespaces",
            ));
        }
        let paths = |list: &Option<Vec<String>>| list.iter().flatten().map(PathBuf::from).collect();
        Ok(Linux {
            net,
            memory,
            pids,
            masked: paths(linux.masked_paths()),
            read_only: paths(linux.readonly_paths()),
            sysctls,
        })
    }
}

/// A container always has namespaces of its own but for its network.
fn namespaces(list: &[runtime::LinuxNamespace]) -> Caused<Net> {
    for (typ, name) in [(Ns::Pid, "pid"), (Ns::Mount, "mount"), (Ns::Ipc, "ipc"), (Ns::Uts, "uts")] {
        if !list.iter().any(|n| n.typ() == typ) {
            let why = format!("no {name} namespace: a container has its own, never the caller's");
            return Err(unsupported("linux.namespaces", &why));
        }
    }
    let mut net = None;
    for (n, namespace) in list.iter().enumerate() {
        if list[..n].iter().any(|other| other.typ() == namespace.typ()) {
            return Err(wrong(format!("linux.namespaces[{n}]: the same type twice")));
        }
        let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty());
        match (namespace.typ(), path) {
            (Ns::Network, None) => net = Some(Net::Private),
            (Ns::Network, Some(path)) if is_own_network(path) => net = Some(Net::Host),
            (_, None) => {}
            (_, Some(path)) => return Err(value(&format!("linux.namespaces[{n}].path"), &path.display().to_string())),
        }
    }
    Ok(net.unwrap_or(Net::Host))
}

fn is_own_network(path: &std::path::Path) -> bool {
    let inode = |path: &std::path::Path| rustix::fs::stat(path).map(|s| (s.st_dev, s.st_ino)).ok();
    let own = inode("/proc/self/ns/net".as_ref());
    own.is_some() && inode(path) == own
}

/// Id maps are the caller's and the host's: a bundle may say what they are anyway.
fn id_maps(field: &str, wanted: &[LinuxIdMapping], caller: &Caller, userns: Userns, uids: bool) -> Caused<()> {
    let maps = userns::plan_for(false, caller);
    let ours = match userns {
        Userns::Auto if uids => maps.uids,
        Userns::Auto => maps.gids,
        Userns::Host => vec![Range { inside: 0, outside: 0, count: u32::MAX }],
    };
    for (n, one) in wanted.iter().enumerate() {
        let (inside, outside, count) = (one.container_id(), one.host_id(), one.size());
        let holds = |range: &Range| {
            let from = inside.checked_sub(range.inside);
            from.is_some_and(|from| {
                from.checked_add(count).is_some_and(|end| end <= range.count)
                    && range.outside.checked_add(from) == Some(outside)
            })
        };
        if !ours.iter().any(holds) {
            let shown: Vec<String> =
                ours.iter().map(|r| format!("{} -> {} ({})", r.inside, r.outside, r.count)).collect();
            let why = format!(
                "{inside} -> {outside} ({count}) is not among the ids that this caller has: {}",
                shown.join(", ")
            );
            return Err(unsupported(&format!("linux.{field}[{n}]"), &why));
        }
    }
    Ok(())
}

fn limits(resources: Option<&runtime::LinuxResources>, userns: Userns) -> Caused<(Option<u64>, Option<u64>)> {
    let Some(resources) = resources else { return Ok((None, None)) };
    for (n, rule) in resources.devices().iter().flatten().enumerate() {
        // Nobody in a user namespace can make a device node, and the container has only those that Yendor gives it: "no
        // other devices" is what it gets. Real root in its own could make one.
        let all = rule.access().as_deref().is_none_or(|access| matches!(access, "" | "rwm"));
        if rule.allow() || !all || userns == Userns::Host {
            let why = "only \"allow\": false of all devices, in a user namespace, is supported";
            return Err(unsupported(&format!("linux.resources.devices[{n}]"), why));
        }
    }
    // Below zero there is no limit (config-linux.md); so is a limit of no tasks.
    let some = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
    let memory = resources.memory().as_ref().and_then(|m| m.limit()).and_then(some);
    Ok((memory, resources.pids().as_ref().and_then(|p| some(p.limit()))))
}
