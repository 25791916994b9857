//! First arguments that only Yendor itself uses.

use std::path::Path;

use yendor_engine::admit::KEEPER;
use yendor_image::{Digest, Kind};
use yendor_kinds::snapshot::Snapshot;

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

impl Glance {
    /// What an image shows.
    pub fn at(kind: Kind, snapshot: &Snapshot) -> Glance {
        match kind {
            Kind::Container => Glance::Container,
            Kind::Tree => Glance::Tree { own_network: snapshot.container.own_network },
        }
    }

    /// A word for it, from the child to its parent.
    fn word(self) -> &'static str {
        match self {
            Glance::Container => "container",
            Glance::Tree { own_network: false } => "tree",
            Glance::Tree { own_network: true } => "tree-own-network",
        }
    }

    fn of(word: &str) -> Option<Glance> {
        let all = [Glance::Container, Glance::Tree { own_network: false }, Glance::Tree { own_network: true }];
        all.into_iter().find(|g| g.word() == word)
    }
}

/// What was seen, and of which image, by content: the image that is restored then must be the same.
pub type Seen = (Glance, Digest);

/// Looks into an image. Real root has it done by a child without its rights: whoever reads an image may have no more rights
/// than the container's root.
pub fn glance(image: &Path) -> Result<Seen, Failure> {
    if !caller::is_root() {
        return look(image);
    }
    let mut child = std::process::Command::new("/proc/self/exe");
    let output =
        child.arg(PEEK).arg(image).output().map_err(|e| Failure::io("run", Path::new("/proc/self/exe"), &e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let seen = said.trim().split_once(' ').and_then(|(word, seal)| Some((Glance::of(word)?, Digest::parse(seal)?)));
    match (output.status.code(), seen) {
        (Some(0), Some(seen)) => Ok(seen),
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
    let (glance, seal) = look(image)?;
    println!("{} {seal}", glance.word());
    Ok(0)
}

fn look(image: &Path) -> Result<Seen, Failure> {
    let reader = yendor_image::Reader::open(image)?;
    let seal = reader.seal()?;
    match reader.manifest().kind {
        // Its records are read once, later, in the container.
        Kind::Container => Ok((Glance::Container, seal)),
        kind => Ok((Glance::at(kind, &reader.records()?), seal)),
    }
}
