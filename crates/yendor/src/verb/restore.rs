//! `yendor restore`: an image runs on in a new container.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use yendor_engine::admit;
use yendor_engine::ark;
use yendor_engine::bundle::Bundle;
use yendor_engine::claim;
use yendor_engine::front::{Cloning, Lazy, Memory, Source};
use yendor_engine::load::{self, Glance, Seen};
use yendor_engine::pager;
use yendor_engine::request::{Net, Root};
use yendor_engine::sign::{Trust, key_line};
use yendor_engine::state::Places;
use yendor_image::Digest;
use yendor_policy::host::{Granted, Verb};

use crate::container::{self, Now};
use crate::failure::{Denied, Failure, Outcome};
use crate::options::{ContainerOptions, Identities, RestoreOptions};
use crate::reference::{self, Image, Reference};
use crate::verb::clone::Clones;
use crate::verb::guard::GuardOptions;
use crate::verb::start::{self, Start};
use crate::{name, parse, print};

/// Let an image run on in a new container
///
/// Without -d it stays in the foreground, forwards signals, and exits with the container's status.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  yendor restore web -d\n  yendor restore ./web.image --name web2 --pidfile web2.pid -d\n  yendor restore web -d --count 20 --on-resume 'reseed'\n  yendor restore web -d --identity ~/.config/age/key.txt\n  yendor restore web -d --lazy"
)]
pub struct Restore {
    #[command(flatten)]
    asked: Asked,
    /// Print the summary as JSON (to standard error in the foreground: standard output is the container's)
    #[arg(long)]
    pub json: bool,
}

/// What a restore is asked for; `plan` is asked the same.
#[derive(Debug, Args)]
pub struct Asked {
    /// A path with a '/', or NAME or NAME@N of the store
    pub image: Reference,
    #[command(flatten)]
    pub options: RestoreOptions,
    #[command(flatten)]
    pub guard: GuardOptions,
    /// Return when it runs
    #[arg(short, long)]
    pub detach: bool,
    /// Write the pid of the root task, as the caller sees it, into this file
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Only an image that this minisign public key has signed: a file, or the key itself; several: any of them
    #[arg(long, value_name = "KEY")]
    pub verify: Vec<String>,
    #[command(flatten)]
    pub identities: Identities,
    /// Let it run at once: memory comes when it is touched, and all of it soon
    #[arg(long, conflicts_with = "count")]
    pub lazy: bool,
    /// With --lazy: how much comes in a second without being touched (64M); 0: nothing before it is waited for
    #[arg(long, value_name = "BYTES", value_parser = parse::size_or_none, requires = "lazy")]
    pub lazy_rate: Option<u64>,
    #[command(flatten)]
    pub clones: Clones,
}

impl Restore {
    /// Runs it.
    pub fn run(self) -> Outcome {
        // With the caller's own rights, before there is anything else.
        let lazy = self.asked.lazy.then(pager::device).transpose().unwrap_or_else(|why| {
            print::note(&format!("note: --lazy: all memory is filled before anything runs: {why}"));
            None
        });
        let lazy = lazy.map(|device| (Arc::new(device), Lazy { rate: self.asked.lazy_rate }));
        let places = Places::from_environment()?;
        let image = reference::find(&places, &self.asked.image)?;
        let keys: Vec<String> = self.asked.keys()?;
        let identities = self.asked.identities.open()?;
        let bundle = self.asked.options.container.bundle()?;
        let granted = self.asked.ask(bundle.as_ref())?;
        let trust = Trust { caller: keys.clone(), host: granted.signed_by, place: granted.places.signed_by };
        let Seen { glance, seal, plain } = load::glance(&image.path, &trust, &identities)?;
        let (root, net) = surroundings(&places, glance, seal, &self.asked.options.container)?;
        if let Some(count) = self.asked.clones.count {
            if plain.as_ref().is_some_and(|plain| plain.index().is_some()) {
                return Err(Failure::Usage(ENCRYPTED_COUNT.into()));
            }
            let own = choose(&places, self.asked.options.container.name.as_deref(), &image)?;
            let start = |name: String, cloning: &Cloning, shared: Option<OwnedFd>| -> Result<Start, Failure> {
                let mut request = self.asked.options.request(name, bundle.as_ref(), root.clone(), net)?;
                if cloning.memory != Memory::Copied {
                    request.policy.seccomp = Some(ark::filter());
                }
                Ok(Start {
                    keys: keys.clone(),
                    request,
                    source: Source::Image(image.path.clone(), Some(seal)),
                    plain: plain
                        .as_ref()
                        .map(|plain| plain.again().map_err(|e| Failure::Failed(format!("dup: {e}"))))
                        .transpose()?,
                    image: Some(image.reference.to_string()),
                    detach: true,
                    tty: false,
                    remove: false,
                    guard: self.asked.guard,
                    pidfile: None,
                    json: self.json,
                    done: "restored",
                    cloning: Some(*cloning),
                    shared,
                    lazy: None,
                })
            };
            let filtered = self.asked.options.request(own.clone(), bundle.as_ref(), root.clone(), net)?.policy.seccomp;
            return self.asked.clones.start(&places, (&own, count), filtered.is_some(), start);
        }
        let name = choose(&places, self.asked.options.container.name.as_deref(), &image)?;
        let aside = Aside::make_room(&places, &name)?;
        let outcome = Start {
            keys,
            request: self.asked.options.request(name, bundle.as_ref(), root, net)?,
            source: Source::Image(image.path.clone(), Some(seal)),
            plain,
            image: Some(image.reference.to_string()),
            detach: self.asked.detach,
            tty: false,
            remove: false,
            guard: self.asked.guard,
            pidfile: start::pidfile(self.asked.pidfile.as_deref()),
            json: self.json,
            done: "restored",
            cloning: None,
            shared: None,
            lazy,
        }
        .go(places);
        aside.settle();
        outcome
    }
}

impl Asked {
    /// The keys, one of which must have signed the image.
    pub fn keys(&self) -> Result<Vec<String>, Failure> {
        self.verify.iter().map(|key| public_key(key)).collect()
    }

    /// Whether the caller may have a container at all, before anything of the image is opened.
    pub fn ask(&self, bundle: Option<&Bundle>) -> Result<Granted, Failure> {
        let container = &self.options.container;
        // What the image will say about root and network is not known yet, and is asked again when it is.
        let request = container.request(String::new(), &self.options.volumes, bundle, Root::Layered, Net::Private)?;
        Ok(admit::ask(&request, Verb::Restore, container.net.is_some())?)
    }
}

/// A key, as it is or from its file. What is a key is that one, whatever file has it as its name: that may be another's choice.
fn public_key(given: &str) -> Result<String, Failure> {
    if let Some(key) = key_line(given) {
        return Ok(key);
    }
    let none = |what: &str| format!("--verify {given}: no minisign public key, {what}");
    match std::fs::read_to_string(given) {
        Ok(text) => key_line(&text).ok_or_else(|| Failure::Usage(none("nor a file with one"))),
        Err(e) if e.kind() == ErrorKind::InvalidData => Err(Failure::Usage(none("nor a file with one"))),
        // As of other keys that are not there.
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Failure::Failed(none("and no such file"))),
        Err(e) => Err(Failure::io("open", Path::new(given), &e)),
    }
}

/// What a container for this image is like when the options do not say. A tree that was taken by its pid had a user's own
/// view of the files, and that user's network if it had none of its own. It gets the caller's without being asked
/// only where the caller took the image here: an image may not say by itself that it is to see the caller's files.
pub fn surroundings(
    places: &Places,
    glance: Glance,
    seal: Digest,
    options: &ContainerOptions,
) -> Result<(Root, Net), Failure> {
    let own = places.took_tree(seal);
    match glance {
        Glance::Container => Ok((Root::Layered, Net::Private)),
        Glance::Tree { .. } if !own && !options.names_root() => Err(foreign_tree()),
        Glance::Tree { own_network } => Ok((Root::Caller, if own && !own_network { Net::Host } else { Net::Private })),
    }
}

/// What several containers are not made from.
pub const ENCRYPTED_COUNT: &str = "--count with an encrypted image: flatten it first, or restore it one by one";

fn foreign_tree() -> Failure {
    let what = "the image is of a process tree that was not taken here by this user, and needs a file system";
    let hint = "give it one with --rootfs DIR; --rootfs / lets it see, and change, what you can";
    Denied::by_rule(what, hint, "yendor: nobody's image has all that you have, unless you say so")
}

/// The name of the container: as asked; else that of the image, if it is free; else any.
pub fn choose(places: &Places, asked: Option<&str>, image: &Image) -> Result<String, Failure> {
    if let Some(name) = asked {
        return Ok(name.to_owned());
    }
    let own = match &image.reference {
        Reference::Stored(name, _) => name.clone(),
        Reference::Path(path) => {
            path.file_name().and_then(|n| n.to_str()).filter(|n| name::is_valid(n)).unwrap_or_default().to_owned()
        }
    };
    let free = name::is_valid(&own) && (!places.container(&own).exists() || may_replace(places, &own));
    if free { Ok(own) } else { name::generate(places) }
}

/// A container that a checkpoint has ended gives its name to its successor.
pub fn may_replace(places: &Places, name: &str) -> bool {
    container::find(places, name).is_ok_and(|found| found.now() == Now::Checkpointed)
}

/// The directory of a container that was checkpointed, out of the way until its successor runs.
struct Aside {
    moved: Option<Moved>,
}

struct Moved {
    aside: PathBuf,
    place: PathBuf,
    /// Shows everybody that somebody will settle this.
    _lock: OwnedFd,
}

impl Aside {
    fn make_room(places: &Places, name: &str) -> Result<Aside, Failure> {
        if !may_replace(places, name) {
            start::check_free(places, name)?;
            return Ok(Aside { moved: None });
        }
        let place = places.container(name);
        let aside = claim::aside(&places.run, name);
        let Some(lock) = claim::lock_soon(&place) else { return Err(start::in_use(places, name)) };
        std::fs::rename(&place, &aside).map_err(|e| Failure::io("rename", &place, &e))?;
        Ok(Aside { moved: Some(Moved { aside, place, _lock: lock }) })
    }

    /// Puts it back if nobody has taken its place; else it is of no use any more.
    fn settle(self) {
        let Some(Moved { aside, place, _lock }) = self.moved else { return };
        let settled = if place.exists() {
            container::remove(&aside)
        } else {
            std::fs::rename(&aside, &place).map_err(|e| Failure::io("rename", &aside, &e))
        };
        if let Err(e) = settled {
            print::note(&format!("note: {e}"));
        }
    }
}
