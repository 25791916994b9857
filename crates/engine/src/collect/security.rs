//! The security modules of this machine, and which policy they have as far as the image's labels are concerned.

use std::os::fd::OwnedFd;

use yendor_kinds::Result;
use yendor_kinds::process::{Record, State, label};
use yendor_kinds::snapshot::{Policy, Security, Snapshot};
use yendor_policy::lsm::{Attribute, Here, Module};

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

/// Labels that no kernel tells: those of System V objects, and under which files were opened. A restore gives them its caller's,
/// so there is nothing to say where every task has the label of whoever takes the image.
///
/// # Errors
/// What /proc says of ourselves.
pub fn untold(here: &Here, proc: &OwnedFd, snapshot: &Snapshot) -> Result<Vec<(String, String)>> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let modules: Vec<Module> = here.modules().into_iter().filter(|m| *m != Module::Tomoyo).collect();
    let own = label::collect(proc, (me, me), &modules, |_| None)?;
    let mut out = Vec::new();
    for module in modules {
        let of = |l: &&label::Label| l.module == module.name() && l.attribute == Attribute::Current.name();
        let own = own.iter().find(of).and_then(|l| l.label.as_ref()).map(|l| l.0.as_slice());
        let theirs = labels(&snapshot.processes, module.name(), Some(Attribute::Current.name()));
        if theirs.iter().all(|label| own == Some(*label)) {
            continue;
        }
        let files = snapshot.files.len();
        let objects = snapshot.container.ipc.as_ref().map_or(0, |ipc| ipc.shm.len() + ipc.sem.len() + ipc.msg.len());
        let mut say = |what: String| {
            let title = module.title();
            out.push((KIND.to_owned(), format!("{what}: {title} tells nobody, and a restore gives its caller's")));
        };
        if files > 0 {
            say(format!("under which label {files} files were opened"));
        }
        // AppArmor gives them none.
        if objects > 0 && module != Module::AppArmor {
            say(format!("the labels of {objects} System V objects"));
        }
    }
    Ok(out)
}
