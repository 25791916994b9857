//! `yendor guard`: checkpoints of a running container, again and again.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use yendor_engine::state::Places;

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
/// such a guard with --checkpoint-every. After a crash, `yendor restore NAME` goes on from the last one.
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
}

impl GuardOptions {
    /// Starts the guard of a container that runs, if one is asked for: a process of its own that outlives us.
    pub fn start(&self, places: &Places, name: &str) -> Result<(), Failure> {
        let Some(every) = self.checkpoint_every else { return Ok(()) };
        let path = places.container(name).join(LOG);
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log = log.map_err(|e| Failure::io("open", &path, &e))?;
        let mut command = itself()?;
        command.args(["-q", "guard", name, "--every", &format!("{}ms", every.as_millis())]);
        command.args(["--keep-last", &self.keep_last.to_string()]);
        // What is typed at a terminal to end the container is not for its guard.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/").process_group(0);
        command.spawn().map_err(|e| Failure::Failed(format!("the guard of {name}: {e}")))?;
        Ok(())
    }
}

fn itself() -> Result<Command, Failure> {
    let path = std::env::current_exe().map_err(|e| Failure::Failed(format!("/proc/self/exe: {e}")))?;
    Ok(Command::new(path))
}

impl Guard {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let places = Places::from_environment();
        let found = container::find_running(&places, &self.container)?;
        let Some(keeper) = found.keeper()? else { return Ok(0) };
        let mut made = VecDeque::new();
        let mut wait = self.every;
        while !container::ended(&keeper, Some(wait))? {
            let begin = Instant::now();
            match self.checkpoint(made.back()) {
                Ok(Some(image)) => {
                    print::out(&image.to_string());
                    made.push_back(image);
                }
                // One that cannot be built upon is not.
                Ok(None) => made.clear(),
                Err(_) if !is_there(&places, &found)? => break,
                // It may be possible later: what hinders it is said each time.
                Err(failure) => print::error(&format!("yendor: guard of {}: {failure}", self.container)),
            }
            while made.len() > usize::try_from(self.keep_last).unwrap_or(usize::MAX) {
                let Some(old) = made.pop_front() else { break };
                forget(&places, &old);
            }
            // The program has the time to itself at least as often as not.
            wait = self.every.saturating_sub(begin.elapsed()).max(begin.elapsed());
        }
        Ok(0)
    }

    /// One checkpoint, by a process of its own, which goes into the container's namespaces. None: its parent is damaged.
    fn checkpoint(&self, parent: Option<&Reference>) -> Result<Option<Reference>, Failure> {
        let mut command = itself()?;
        command.args(["-q", "checkpoint", &self.container, "--leave-running"]);
        if let Some(parent) = parent {
            command.args(["--parent", &parent.to_string()]);
        }
        let done = command.stdin(Stdio::null()).output();
        let done = done.map_err(|e| Failure::Failed(format!("yendor checkpoint: {e}")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match done.status.code() {
            Some(0) => {
                let said = text(&done.stdout);
                let image = said.parse().map_err(|_| Failure::Failed(format!("yendor checkpoint said {said:?}")))?;
                Ok(Some(image))
            }
            Some(4) if parent.is_some() => {
                print::error(&text(&done.stderr));
                Ok(None)
            }
            _ => Err(Failure::Failed(text(&done.stderr))),
        }
    }
}

/// Whether it is still the same container.
fn is_there(places: &Places, found: &Found) -> Result<bool, Failure> {
    match container::find_running(places, &found.state.name) {
        Ok(now) => Ok(now.state.keeper == found.state.keeper && now.keeper()?.is_some()),
        Err(_) => Ok(false),
    }
}

/// An image that somebody else has removed is no error.
fn forget(places: &Places, old: &Reference) {
    let gone = reference::resolve(places, old).and_then(|Image { path, .. }| rmi::remove(&path, true));
    if let Err(failure) = gone {
        print::error(&format!("yendor: {old} is left: {failure}"));
    }
}
