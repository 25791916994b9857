//! First arguments that only Yendor itself uses.

use std::path::Path;

use yendor_engine::admit::KEEPER;
use yendor_image::Kind;

use crate::caller;
use crate::failure::{Failure, Outcome};

/// The first argument that makes this process look into an image on behalf of one with more rights.
pub const PEEK: &str = "peek";

/// Whether this process was started to be a container's keeper.
pub fn is_keeper() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == KEEPER)
}

/// What a restore has to know of an image before there is a container for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// It is a container.
    Container,
    /// It is a tree of processes; whether that had a network namespace of its own.
    Tree { own_network: bool },
}

const CONTAINER: &str = "container";
const TREE: &str = "tree";
const TREE_OWN_NETWORK: &str = "tree-own-network";

/// Looks into an image. Real root has it done by a child without its rights: whoever reads an image may have no more rights
/// than the container's root.
pub fn glance(image: &Path) -> Result<Glance, Failure> {
    if !caller::is_root() {
        return look(image);
    }
    let mut child = std::process::Command::new("/proc/self/exe");
    let output =
        child.arg(PEEK).arg(image).output().map_err(|e| Failure::io("run", Path::new("/proc/self/exe"), &e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match (output.status.code(), said.trim()) {
        (Some(0), CONTAINER) => Ok(Glance::Container),
        (Some(0), TREE) => Ok(Glance::Tree { own_network: false }),
        (Some(0), TREE_OWN_NETWORK) => Ok(Glance::Tree { own_network: true }),
        (code, _) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let code = code.and_then(|c| u8::try_from(c).ok()).filter(|c| *c > 0).unwrap_or(1);
            Err(Failure::Said { code, what: said.strip_prefix("yendor: ").unwrap_or(&said).to_owned() })
        }
    }
}

/// The child's part.
pub fn peek(image: &Path) -> Outcome {
    caller::give_up_rights(image)?;
    let word = match look(image)? {
        Glance::Container => CONTAINER,
        Glance::Tree { own_network: false } => TREE,
        Glance::Tree { own_network: true } => TREE_OWN_NETWORK,
    };
    println!("{word}");
    Ok(0)
}

fn look(image: &Path) -> Result<Glance, Failure> {
    let reader = yendor_image::Reader::open(image)?;
    if reader.manifest().kind != Kind::Tree {
        return Ok(Glance::Container);
    }
    let snapshot: yendor_kinds::snapshot::Snapshot = reader.records()?;
    Ok(Glance::Tree { own_network: snapshot.container.own_network })
}
