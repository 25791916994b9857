//! `yendor guard`: checkpoints of a running container, again and again.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use yendor_engine::state::Places;
use yendor_image::{Compression, Digest, MANIFEST_FILE};

use super::rmi;
use crate::container::{self, Found};
use crate::failure::{Failure, Outcome};
use crate::reference::{self, Image, Reference};
use crate::{parse, print};

/// What the guard of a container says of checkpoints that fail, in the container's directory.
const LOG: &str = "guard.log";

/// Take a checkpoint of a running container again and again, for as long as it runs
///
/// Each goes into the store and has the one before as its parent, so only what has changed is written. `run` and `restore` start
/// such a guard with --checkpoint-every. After a crash, `yendor restore NAME` goes on from the last one. What fails is said once, by a guard
/// of `run` in `guard.log` in the container's directory. Images that somebody else has made it leaves alone.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor guard web --every 5m --keep-last 3")]
pub struct Guard {
    /// The container
    container: String,
    /// How long to wait from one to the next: 30s, 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "5m")]
    every: Duration,
    /// How many of its images to keep; older ones that it has made go
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = KEEP)]
    keep_last: u32,
    /// Track which memory is written in between: only that is read and written then (checkpoint --track)
    #[arg(long)]
    track: bool,
    /// Compress the images (checkpoint --compress)
    #[arg(long, value_name = "lz4|zstd[:LEVEL]", value_parser = parse::compression, conflicts_with = "track")]
    compress: Option<Compression>,
    /// In a session of its own
    #[arg(long, hide = true)]
    apart: bool,
}

const KEEP: u32 = 5;

/// Options of what starts a container, for its guard.
#[derive(Debug, Clone, Copy, Args)]
pub struct GuardOptions {
    /// Take a checkpoint again and again while it runs, into the store: 30s, 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    checkpoint_every: Option<Duration>,
    /// How many of these images to keep
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = KEEP,
          requires = "checkpoint_every")]
    keep_last: u32,
    /// Track which memory is written in between: only that is read and written then
    #[arg(long, requires = "checkpoint_every")]
    track: bool,
    /// Compress these images (checkpoint --compress)
    #[arg(long, value_name = "lz4|zstd[:LEVEL]", value_parser = parse::compression, requires = "checkpoint_every",
          conflicts_with = "track")]
    compress: Option<Compression>,
}

impl GuardOptions {
    /// Whether there is to be one.
    pub fn is_asked_for(&self) -> bool {
        self.checkpoint_every.is_some()
    }

    /// Starts the guard of a container that runs, if one is asked for: a process of its own that outlives us.
    pub fn start(&self, places: &Places, name: &str) -> Result<(), Failure> {
        let Some(every) = self.checkpoint_every else { return Ok(()) };
        let path = places.container(name).join(LOG);
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log = log.map_err(|e| Failure::io("open", &path, &e))?;
        let mut command = itself();
        command.args(["-q", "guard", name, "--apart", "--every", &format!("{}ms", every.as_millis())]);
        command.args(["--keep-last", &self.keep_last.to_string()]);
        command.args(self.track.then_some("--track"));
        command.args(self.compress.iter().flat_map(|how| ["--compress".to_owned(), how.to_string()]));
        // It goes on in another directory.
        for name in ["YENDOR_ROOT", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "HOME"] {
            if let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) {
                command.env(name, parse::absolute(Path::new(&value)));
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
        // What the caller has open is not the guard's: who reads from a pipe would wait for its end.
        yendor_engine::process::close_on_exec().map_err(|e| Failure::Failed(format!("the guard of {name}: {e}")))?;
        command.spawn().map_err(|e| Failure::Failed(format!("the guard of {name}: {e}")))?;
        Ok(())
    }
}

/// This program, also when another one lies at its path by now.
pub fn itself() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("yendor");
    command
}

/// An image that a guard has made, and what it is: a number can be given again.
struct Made {
    reference: Reference,
    manifest: Option<Digest>,
}

impl Made {
    fn new(places: &Places, reference: Reference) -> Made {
        let manifest = Made::look(places, &reference);
        Made { reference, manifest }
    }

    fn look(places: &Places, reference: &Reference) -> Option<Digest> {
        let path = reference::resolve(places, reference).ok()?.path;
        Some(Digest::of(&std::fs::read(path.join(MANIFEST_FILE)).ok()?))
    }

    fn is_there(&self, places: &Places) -> bool {
        self.manifest.is_some() && self.manifest == Made::look(places, &self.reference)
    }

    /// An image that somebody else has removed, or made anew, is not ours to remove.
    fn forget(self, places: &Places) {
        if !self.is_there(places) {
            return;
        }
        let gone = reference::resolve(places, &self.reference).and_then(|Image { path, .. }| rmi::remove(&path, true));
        if let Err(failure) = gone {
            print::error(&format!("yendor: {} is left: {failure}", self.reference));
        }
    }
}

impl Guard {
    /// Runs it.
    pub fn run(self) -> Outcome {
        if self.apart {
            // Refused to the leader of a group, which a shell's job is; a terminal that goes away ends it then.
            let _ = rustix::process::setsid();
        }
        let places = Places::from_environment()?;
        let found = container::find_running(&places, &self.container)?;
        let Some(keeper) = found.keeper()? else { return Ok(0) };
        let mut made: VecDeque<Made> = VecDeque::new();
        let mut wait = self.every;
        let mut said = String::new();
        while !container::ended(&keeper, Some(wait))? && is_there(&places, &found)? {
            let begin = Instant::now();
            let parent = made.back().filter(|made| made.is_there(&places)).map(|made| &made.reference);
            // Whatever is wrong with a parent, there can be an image without one.
            let done = match (self.checkpoint(parent), parent) {
                (Err(_), Some(_)) if is_there(&places, &found)? => self.checkpoint(None),
                (done, _) => done,
            };
            match done {
                Ok(image) => {
                    said.clear();
                    print::out(&image.to_string());
                    made.push_back(Made::new(&places, image));
                }
                Err(_) if !is_there(&places, &found)? => break,
                // It may be possible later: what hinders it is said once.
                Err(failure) if failure.to_string() != said => {
                    said = failure.to_string();
                    print::error(&format!("yendor: guard of {}: {said}", self.container));
                }
                Err(_) => {}
            }
            while made.len() > usize::try_from(self.keep_last).unwrap_or(usize::MAX) {
                made.pop_front().into_iter().for_each(|old| old.forget(&places));
            }
            // The program has the time to itself at least as often as not.
            wait = self.every.saturating_sub(begin.elapsed()).max(begin.elapsed());
        }
        Ok(0)
    }

    /// One checkpoint, by a process of its own, which goes into the container's namespaces.
    fn checkpoint(&self, parent: Option<&Reference>) -> Result<Reference, Failure> {
        let mut command = itself();
        command.args(["-q", "checkpoint", &self.container, "--leave-running"]);
        command.args(self.track.then_some("--track"));
        command.args(self.compress.iter().flat_map(|how| ["--compress".to_owned(), how.to_string()]));
        command.args(parent.iter().flat_map(|parent| ["--parent".to_owned(), parent.to_string()]));
        let done = command.stdin(Stdio::null()).output();
        let done = done.map_err(|e| Failure::Failed(format!("yendor checkpoint: {e}")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !done.status.success() {
            return Err(Failure::Failed(text(&done.stderr)));
        }
        let image = text(&done.stdout);
        image.parse().map_err(|_| Failure::Failed(format!("yendor checkpoint said {image:?}")))
    }
}

/// Whether it is still the same container.
fn is_there(places: &Places, found: &Found) -> Result<bool, Failure> {
    match container::find_running(places, &found.state.name) {
        Ok(now) => Ok(now.state.keeper == found.state.keeper && now.keeper()?.is_some()),
        Err(_) => Ok(false),
    }
}
