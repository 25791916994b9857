//! The security modules of this machine, and which policy they have as far as the image's labels are concerned.

use yendor_kinds::process::{Record, State};
use yendor_kinds::snapshot::{Policy, Security};
use yendor_policy::lsm::Here;

/// What a restore compares with when it is asked to keep the labels.
pub fn collect(here: &Here, processes: &[Record]) -> Security {
    let policy = |module: yendor_policy::lsm::Module| {
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
