//! The security modules of this machine, and which policy they have as far as the image's labels are concerned.

use std::os::fd::OwnedFd;

use yendor_kinds::Result;
use yendor_kinds::file::Gather;
use yendor_kinds::namespace::ipc;
use yendor_kinds::process::{Record, State, label};
use yendor_kinds::snapshot::{Policy, Security, Snapshot};
use yendor_policy::lsm::{Attribute, Here, Module, apparmor};

/// What a restore compares with when it is asked to keep the labels.
pub fn collect(here: &Here, processes: &[Record]) -> Security {
    let policy = |module: Module| {
        let identity = here.identity(module, &labels(processes, module.name(), None));
        Policy {
            module: module.name().to_owned(),
            parts: identity.parts.map(|parts| parts.into_iter().collect()),
            load: identity.load,
        }
    };
    Security { active: here.active.clone(), policies: here.modules().into_iter().map(policy).collect() }
}

/// Every label of the image that a module knows, of one attribute or of all.
pub fn labels<'p>(processes: &'p [Record], module: &str, attribute: Option<&str>) -> Vec<&'p [u8]> {
    let mut out: Vec<&[u8]> = Vec::new();
    for process in processes {
        if let State::Alive(alive) = &process.state {
            let labels = alive.threads.iter().flat_map(|t| &t.labels).filter(|l| l.module == module);
            let labels = labels.filter(|l| attribute.is_none_or(|a| l.attribute == a));
            out.extend(labels.filter_map(|l| l.label.as_ref()).map(|l| l.0.as_slice()));
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// The kind of what [`untold`] says, among what is lost.
pub const KIND: &str = "label";

const SOCKETS: &[&str] = &["unix socket", "internet socket", "netlink socket"];

/// How many, of what, and why their labels are lost; `foreign` sockets have another label than the caller.
fn counted(module: Module, snapshot: &Snapshot, foreign: usize) -> [(usize, &'static str, &'static str); 4] {
    const UNTOLD: &str = "tells nobody";
    const MAKERS: &str = "gives what is new that of its maker";
    const ADMIN: &str = "lets nobody give them without CAP_MAC_ADMIN of the host";
    let of = |kinds: &[&str]| snapshot.files.iter().filter(|entry| kinds.contains(&entry.record.kind())).count();
    let ipc = |ipc: &ipc::Record| ipc.shm.len() + ipc.sem.len() + ipc.msg.len();
    let objects = snapshot.container.ipc.as_ref().map_or(0, ipc);
    // AppArmor gives neither objects nor pipes any; SELinux lets a socket's be chosen.
    let (objects, pipes) = if module == Module::AppArmor { (0, 0) } else { (objects, of(&["pipe", "mqueue"])) };
    let (sockets, why) = match module {
        Module::SELinux => (0, MAKERS),
        Module::Smack => (foreign, ADMIN),
        Module::AppArmor | Module::Tomoyo => (of(SOCKETS), MAKERS),
    };
    [
        (snapshot.files.len(), "under which label # files were opened", UNTOLD),
        (objects, "the labels of # System V objects", UNTOLD),
        (pipes, "the labels of # ends of pipes and queues", MAKERS),
        (sockets, "the labels of # sockets", why),
    ]
}

/// The tokens of hats: what is in one comes back in it, and stays.
fn hats(snapshot: &Snapshot) -> Option<String> {
    let alive =
        snapshot.processes.iter().filter_map(|p| if let State::Alive(alive) = &p.state { Some(alive) } else { None });
    let current = |l: &&label::Label| l.module == Module::AppArmor.name() && l.attribute == Attribute::Current.name();
    let labels = alive.flat_map(|alive| &alive.threads).filter_map(|t| t.labels.iter().find(current)?.label.as_ref());
    match labels.filter(|label| apparmor::is_in_hat(&label.0)).count() {
        0 => None,
        count => Some(format!(
            "the tokens of hats (aa_change_hat) of {count} threads with a label of a hat or a child profile: AppArmor tells \
             nobody, and with --keep-lsm such a thread cannot leave its hat"
        )),
    }
}

/// Labels that no kernel tells, those of System V objects, and under which files were opened; and those that nobody can give again, of
/// pipes, and of sockets where the module is not SELinux. A restore gives all of them its caller's, so there is nothing to say where every
/// task has the label of whoever takes the image, but of sockets that somebody has given others under Smack.
///
/// # Errors
/// What /proc says of ourselves, and what a socket says.
pub fn untold(here: &Here, proc: &OwnedFd, snapshot: &Snapshot, gather: &Gather<'_>) -> Result<Vec<(String, String)>> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let modules: Vec<Module> = here.modules().into_iter().filter(|m| *m != Module::Tomoyo).collect();
    let own = label::collect(proc, (me, me), &modules, |_| None)?;
    let mut out: Vec<_> = hats(snapshot).into_iter().map(|what| (KIND.to_owned(), what)).collect();
    for module in modules {
        let of = |l: &&label::Label| l.module == module.name() && l.attribute == Attribute::Current.name();
        let own = own.iter().find(of).and_then(|l| l.label.as_ref()).map(|l| l.0.as_slice());
        let theirs = labels(&snapshot.processes, module.name(), Some(Attribute::Current.name()));
        let sockets = snapshot.files.iter().filter(|e| SOCKETS.contains(&e.record.kind()));
        let mut foreign = 0;
        for socket in sockets.filter(|_| module == Module::Smack) {
            let labels = label::under_smack(gather.ours(socket.id)?)?;
            foreign += usize::from(labels.iter().any(|label| own != Some(label)));
        }
        if theirs.iter().all(|label| own == Some(*label)) && foreign == 0 {
            continue;
        }
        let title = module.title();
        for (count, what, why) in counted(module, snapshot, foreign) {
            if count > 0 {
                let what = what.replace('#', &count.to_string());
                out.push((KIND.to_owned(), format!("{what}: {title} {why}, and a restore gives its caller's")));
            }
        }
    }
    Ok(out)
}
