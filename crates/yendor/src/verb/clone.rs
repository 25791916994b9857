//! `yendor clone`, and `restore --count`: several containers from one.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use clap::Args;
use yendor_engine::front::{Cloning, Memory};
use yendor_engine::state::Places;

use super::guard::itself;
use super::start::{self, Start};
use crate::failure::{Failure, Outcome};
use crate::reference::{self, Reference};
use crate::{print, signal};

/// How many containers one command makes at most.
const MOST: i64 = 1000;

/// What several containers are called.
pub fn names(base: &str, count: u32) -> Vec<String> {
    (1..=count).map(|n| format!("{base}-{n}")).collect()
}

/// Options for several containers from one image.
#[derive(Debug, Args)]
pub struct Clones {
    /// Start so many containers, NAME-1, NAME-2, ...: all of them or none. They share their memory until they write to it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST), requires = "detach",
          conflicts_with = "pidfile")]
    pub count: Option<u32>,
    /// A signal for the root task of each, which it has when it begins to run
    #[arg(long, value_name = "SIGNAL", value_parser = signal::parse, requires = "count")]
    notify: Option<i32>,
    /// A command of the shell in each of them as soon as it runs, with YENDOR_CLONE (1, 2, ...), YENDOR_CLONES and YENDOR_NAME set
    #[arg(long, value_name = "COMMAND", requires = "count")]
    on_resume: Option<OsString>,
    /// Each has all memory of its own from the beginning (docs/adr/0012 says what a program can see of shared memory)
    #[arg(long, requires = "count")]
    copy_memory: bool,
}

impl Clones {
    /// Starts them. `filtered`: whether the caller has a seccomp filter for them.
    pub fn start(
        &self,
        places: &Places,
        (base, count): (&str, u32),
        filtered: bool,
        start: impl Fn(String, &Cloning, Option<OwnedFd>) -> Result<Start, Failure>,
    ) -> Outcome {
        let names = names(base, count);
        names.iter().try_for_each(|name| start::check_free(places, name))?;
        if filtered && !self.copy_memory {
            print::note("note: memory is not shared: the containers have a seccomp filter of your own");
        }
        let mut begun = Vec::new();
        let mut all = || {
            let mut shared: Option<OwnedFd> = None;
            for (number, name) in (1..).zip(&names) {
                let memory = match &shared {
                    _ if filtered || self.copy_memory => Memory::Copied,
                    Some(_) => Memory::Given,
                    None => Memory::Made,
                };
                let theirs = shared.as_ref().map(OwnedFd::try_clone).transpose();
                let theirs = theirs.map_err(|e| Failure::Failed(format!("dup: {e}")))?;
                let cloning = Cloning { memory, signal: self.notify };
                let (_, made) = start(name.clone(), &cloning, theirs)?.with_memory(places.clone())?;
                begun.push(name);
                shared = shared.or(made);
                self.hook(name, number, count)?;
            }
            Ok(0)
        };
        let done = all();
        if done.is_err() {
            begun.into_iter().for_each(|name| start::undo(places, name));
        }
        done
    }

    /// Tells a clone that it is one.
    fn hook(&self, name: &str, number: u32, count: u32) -> Result<(), Failure> {
        let Some(command) = &self.on_resume else { return Ok(()) };
        let mut exec = itself();
        exec.args(["exec", name]);
        exec.args(["-e", &format!("YENDOR_CLONE={number}"), "-e", &format!("YENDOR_CLONES={count}")]);
        exec.args(["-e", &format!("YENDOR_NAME={name}"), "--", "sh", "-c"]).arg(command);
        // Standard output is for the names.
        let done = exec.stdin(Stdio::null()).stdout(std::io::stderr()).status();
        let status = done.map_err(|e| Failure::Failed(format!("yendor exec: {e}")))?;
        match status.success() {
            true => Ok(()),
            false => Err(Failure::Failed(format!("--on-resume in {name}: {status}"))),
        }
    }
}

/// Start copies of a running container, which runs on
///
/// Takes an image of it into the store, restores that as often as asked, and removes it. Each copy is a container like any other: what it writes
/// is its own, and so is its network. They share their memory until they write to it. What a program should do when it finds itself
/// doubled, new random numbers above all, `--on-resume` and `--notify` are for.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor clone web --count 20\n  yendor clone web --name test --notify USR1\n  \
    yendor clone web --on-resume 'redis-cli config rewrite' -- --net host")]
pub struct CloneContainer {
    /// The container
    container: String,
    /// How many copies
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST), default_value_t = 1)]
    count: u32,
    /// What they are called, each with its number behind; else as the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A signal for the root task of each, which it has when it begins to run
    #[arg(long, value_name = "SIGNAL")]
    notify: Option<String>,
    /// A command of the shell in each of them as soon as it runs, with YENDOR_CLONE (1, 2, ...), YENDOR_CLONES and YENDOR_NAME set
    #[arg(long, value_name = "COMMAND")]
    on_resume: Option<OsString>,
    /// Each has all memory of its own from the beginning
    #[arg(long)]
    copy_memory: bool,
    /// Options of `restore` for them
    #[arg(last = true)]
    options: Vec<OsString>,
}

impl CloneContainer {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let places = Places::from_environment()?;
        let mut checkpoint = itself();
        checkpoint.args(["-q", "checkpoint", &self.container, "--leave-running"]);
        let done = checkpoint.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let done = done.map_err(|e| Failure::Failed(format!("yendor checkpoint: {e}")))?;
        if !done.status.success() {
            let code = done.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(code);
        }
        let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        let image: Reference = said.parse().map_err(|_| Failure::Failed(format!("yendor checkpoint said {said:?}")))?;
        let restored = self.restore(&image).status();
        let gone = reference::resolve(&places, &image).and_then(|image| super::rmi::remove(&image.path, true));
        let status = restored.map_err(|e| Failure::Failed(format!("yendor restore: {e}")))?;
        gone?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    fn restore(&self, image: &Reference) -> Command {
        let mut restore = itself();
        let name = self.name.as_ref().unwrap_or(&self.container);
        restore.args(["restore", &image.to_string(), "-d", "--count", &self.count.to_string(), "--name", name]);
        restore.args(self.notify.iter().flat_map(|signal| ["--notify", signal]));
        restore.args(self.on_resume.iter().flat_map(|command| ["--on-resume".into(), command.clone()]));
        restore.args(self.copy_memory.then_some("--copy-memory"));
        restore.args(&self.options);
        restore
    }
}
