//! `yendor run`: a new container.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use yendor_engine::bundle::Bundle;
use yendor_engine::front::{Source, Spec};
use yendor_engine::request::{Net, Root, Volume};
use yendor_engine::state::Places;
use yendor_image::Bytes;

use crate::failure::{Failure, Outcome};
use crate::options::{ContainerOptions, refuse};
use crate::verb::guard::GuardOptions;
use crate::verb::start::{self, Start};
use crate::{name, parse};

/// Run a command in a new container
///
/// Without --rootfs the container sees the host's own root, read-only below a private copy-on-write layer.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor run --rm -- sh -c 'id; hostname'\n  yendor run -d --name counter -- \
    sh -c 'i=0; while :; do echo $((i+=1)); sleep 1; done'")]
pub struct Run {
    #[command(flatten)]
    container: ContainerOptions,
    /// Return at once; output goes to the container's log
    #[arg(short, long)]
    detach: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keep standard input open (it always is, in the foreground)
    #[arg(short, long)]
    interactive: bool,
    /// Make a host path visible inside
    #[arg(long = "volume", value_name = "NAME=HOSTPATH:PATH[:ro]", value_parser = parse::volume)]
    volumes: Vec<Volume>,
    /// Set a variable of the environment, or take it over from the caller
    #[arg(short, long = "env", value_name = "K=V")]
    env: Vec<OsString>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// User and group inside, in numbers
    #[arg(short, long, value_name = "UID[:GID]", value_parser = parse::user)]
    user: Option<(u32, u32)>,
    #[command(flatten)]
    guard: GuardOptions,
    /// Remove the container when it has ended
    #[arg(long)]
    rm: bool,
    /// Print the summary as JSON (to standard error in the foreground: standard output is the command's)
    #[arg(long)]
    pub json: bool,
    /// The command and its arguments
    #[arg(required_unless_present = "bundle", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Run {
    /// Runs it.
    pub fn run(self) -> Outcome {
        refuse(&[("--interactive with --detach", self.interactive && self.detach && !self.tty)])?;
        let mut bundle = self.container.bundle()?;
        let home = if self.user.is_none_or(|(uid, _)| uid == 0) { "/root" } else { "/" };
        let spec = Spec {
            command: self.command.iter().map(|word| Bytes(word.as_bytes().to_vec())).collect(),
            env: parse::environment(&self.env, self.tty, home).map_err(Failure::Usage)?,
            cwd: self.workdir.as_deref().map(|dir| absolute(dir.as_os_str())).transpose()?,
            user: self.user,
            ..Spec::default()
        };
        let spec = match &mut bundle {
            Some(bundle) => self.in_bundle(bundle, spec)?,
            None => spec,
        };
        let tty = self.tty || bundle.as_ref().is_some_and(|b| b.terminal);
        let places = Places::from_environment()?;
        let name = match &self.container.name {
            Some(name) => name.clone(),
            None => name::generate(&places)?,
        };
        start::check_free(&places, &name)?;
        let mut request = self.container.request(name, &self.volumes, bundle.as_ref(), Root::Layered, Net::Private)?;
        request.hostname = request.hostname.or(bundle.and_then(|b| b.hostname));
        Start {
            keys: Vec::new(),
            request,
            source: Source::Compose(spec),
            plain: None,
            image: None,
            detach: self.detach,
            tty,
            remove: self.rm,
            guard: self.guard,
            pidfile: None,
            json: self.json,
            done: "started",
            cloning: None,
            shared: None,
            lazy: None,
        }
        .go(places)
    }
}

impl Run {
    /// The bundle's process; what the command line says goes first.
    fn in_bundle(&self, bundle: &mut Bundle, own: Spec) -> Result<Spec, Failure> {
        let mut spec = bundle.spec.take().unwrap_or_default();
        if !own.command.is_empty() {
            spec.command = own.command;
        }
        if spec.command.is_empty() {
            return Err(Failure::Usage("neither the bundle's process.args nor the command line has a command".into()));
        }
        for line in parse::asked(&self.env).map_err(Failure::Usage)? {
            let name = line.0.split_inclusive(|b| *b == b'=').next().unwrap_or_default().to_vec();
            spec.env.retain(|known| !known.0.starts_with(&name));
            spec.env.push(line);
        }
        spec.cwd = own.cwd.or(spec.cwd);
        spec.user = own.user.or(spec.user);
        Ok(spec)
    }
}

fn absolute(dir: &OsStr) -> Result<Bytes, Failure> {
    if dir.as_bytes().starts_with(b"/") {
        return Ok(Bytes(dir.as_bytes().to_vec()));
    }
    Err(Failure::Usage(format!("the working directory {dir:?} must be an absolute path inside the container")))
}
