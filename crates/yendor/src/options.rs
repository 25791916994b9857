//! Options that describe a container: the same for a new one and for a restored one.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use yendor_engine::bundle::{self, Bundle};
use yendor_engine::load::IdentityFile;
use yendor_engine::request::{self, Net, Policy, Profile, Request, Root, Rule, Seccomp, Userns, Volume};
use yendor_image::Bytes;
use yendor_policy::seccomp;

use crate::failure::Failure;
use crate::{name, parse};

/// What network a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetOption {
    /// A network of its own, with only the loopback
    Private,
    /// The caller's network
    Host,
    /// A network of its own with nothing up
    None,
}

/// Which user namespace a container lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UsernsOption {
    /// A new one
    Auto,
    /// The caller's own; only real root may
    Host,
}

/// Options of `run`, `restore` and `plan`.
#[derive(Debug, Args)]
pub struct ContainerOptions {
    /// Name of the container; without one, that of the image, if it is from one and the name is free, else two random words
    #[arg(long, value_name = "NAME", value_parser = name::parse)]
    pub name: Option<String>,
    /// Use this directory as the root file system, instead of the host's own below a private layer
    #[arg(long, value_name = "DIR", conflicts_with = "bundle")]
    pub rootfs: Option<PathBuf>,
    /// Root file system, mounts, limits and namespaces from an OCI bundle: a directory with a config.json
    #[arg(long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Network
    #[arg(long, value_enum)]
    pub net: Option<NetOption>,
    /// User namespace
    #[arg(long, value_enum, default_value = "auto")]
    pub userns: UsernsOption,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Capability that nobody in the container gets (NET_RAW, CAP_NET_RAW, ALL)
    #[arg(long, value_name = "CAP", value_parser = parse::capability)]
    pub cap_drop: Vec<String>,
    /// Security label of the container's tasks
    #[arg(long, value_name = "LSM:LABEL", value_parser = Profile::parse)]
    pub lsm_profile: Vec<Profile>,
    /// Landlock rule for the container: ro:PATH, rw:PATH, exec:PATH, connect:PORT, bind:PORT, scope:abstract-unix,
    /// scope:signal. What rules of a sort do not allow is forbidden
    #[arg(long, value_name = "RULE", value_parser = str::parse::<Rule>)]
    pub landlock: Vec<Rule>,
    /// Seccomp profile for the container: the JSON of an OCI configuration's linux.seccomp
    #[arg(long, value_name = "FILE")]
    pub seccomp: Option<PathBuf>,
    /// Memory limit in bytes (K, M, G, T)
    #[arg(long, value_name = "BYTES", value_parser = parse::size)]
    pub memory: Option<u64>,
    /// Limit of tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub pids: Option<u64>,
}

impl ContainerOptions {
    /// The bundle, read.
    pub fn bundle(&self) -> Result<Option<Bundle>, Failure> {
        let read = |dir: &PathBuf| bundle::read(&parse::absolute(dir), self.userns());
        Ok(self.bundle.as_ref().map(read).transpose()?)
    }

    /// The root file system, which is `root` when no option says.
    fn root(&self, root: Root) -> Root {
        match self.rootfs.as_deref() {
            None => root,
            // Whoever may have the caller's own view gets all of it, not a copy with mounts of its own.
            Some(dir) if dir == Path::new("/") && root == Root::Caller => root,
            Some(dir) => Root::Dir(parse::absolute(dir)),
        }
    }

    /// Whether an option says where the root file system comes from.
    pub fn names_root(&self) -> bool {
        self.rootfs.is_some() || self.bundle.is_some()
    }

    fn userns(&self) -> Userns {
        match self.userns {
            UsernsOption::Auto => Userns::Auto,
            UsernsOption::Host => Userns::Host,
        }
    }

    /// As a request. `root` and `net` are what holds when neither the options nor the bundle say.
    pub fn request(
        &self,
        name: String,
        volumes: &[Volume],
        bundle: Option<&Bundle>,
        root: Root,
        net: Net,
    ) -> Result<Request, Failure> {
        let mut request = Request {
            name,
            root: self.root(root),
            volumes: volumes.to_vec(),
            net: match self.net {
                Some(NetOption::Private) => Net::Private,
                Some(NetOption::Host) => Net::Host,
                Some(NetOption::None) => Net::None,
                None => bundle.map_or(net, |b| b.net),
            },
            userns: self.userns(),
            hostname: self.hostname.clone(),
            memory: self.memory,
            pids: self.pids,
            cap_drop: self.cap_drop.clone(),
            layout: None,
            any_cpu: false,
            policy: Policy {
                landlock: self.landlock.clone(),
                seccomp: self.seccomp.as_deref().map(profile).transpose()?,
                enforce: request::Enforce::Late,
                profiles: profiles(&self.lsm_profile)?,
                keep_lsm: false,
                no_new_privs: false,
            },
        };
        if let Some(bundle) = bundle {
            bundle.shape(&mut request);
        }
        Ok(request)
    }
}

/// One label for each module.
fn profiles(asked: &[Profile]) -> Result<Vec<Profile>, Failure> {
    for (i, profile) in asked.iter().enumerate() {
        if asked.iter().take(i).any(|other| other.module == profile.module) {
            return Err(Failure::Usage(format!("--lsm-profile: two labels of {}", profile.module)));
        }
    }
    Ok(asked.to_vec())
}

/// A seccomp profile from its file, compiled.
fn profile(path: &Path) -> Result<Seccomp, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("open", path, &e))?;
    let filter = seccomp::profile::compile(&text)
        .map_err(|e| Failure::Usage(format!("seccomp profile {}: {e}", path.display())))?;
    Ok(Seccomp { flags: filter.flags, program: Bytes(seccomp::to_bytes(&filter.program)) })
}

/// When the container's policy is put in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Enforce {
    /// After everything is made: what was allowed when it was opened stays open
    Late,
    /// Before anything is made: fails if the policy would not allow it any more
    Early,
}

/// Options of `restore` and `plan`.
#[derive(Debug, Args)]
pub struct RestoreOptions {
    #[command(flatten)]
    pub container: ContainerOptions,
    /// Host path for a volume that the image asks for
    #[arg(long = "volume", value_name = "NAME=HOSTPATH", value_parser = parse::filling)]
    pub volumes: Vec<Volume>,
    /// Give tasks, and sockets under SELinux, the security labels of the image, where the kernel permits it; no other files
    #[arg(long)]
    pub keep_lsm: bool,
    /// When the container's policy is put in force: after all is made, or early: open files and sockets are made under its Landlock rules, label (with --keep-lsm
    /// that of the image's tasks, which must be one) and dropped capabilities, and its seccomp filter is asked whether a program could have them
    #[arg(long, value_enum, default_value = "late")]
    pub enforce: Enforce,
    /// Also where this processor lacks what programs of the image may use: they die (SIGILL) if they do
    #[arg(long)]
    pub any_cpu: bool,
}

impl RestoreOptions {
    /// As a request; see [`ContainerOptions::request`].
    pub fn request(&self, name: String, bundle: Option<&Bundle>, root: Root, net: Net) -> Result<Request, Failure> {
        let mut request = self.container.request(name, &self.volumes, bundle, root, net)?;
        request.policy.enforce = match self.enforce {
            Enforce::Late => request::Enforce::Late,
            Enforce::Early => request::Enforce::Early,
        };
        request.policy.keep_lsm = self.keep_lsm;
        request.any_cpu = self.any_cpu;
        Ok(request)
    }
}

/// Options of verbs that read what is in an image.
#[derive(Debug, Args)]
pub struct Identities {
    /// File with a secret key of age (AGE-SECRET-KEY-1...) that opens an encrypted image; several: any of them
    #[arg(long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
}

impl Identities {
    /// Opens the files; they are read by nobody but the process that decrypts.
    pub fn open(&self) -> Result<Vec<IdentityFile>, Failure> {
        let open = |path: &PathBuf| IdentityFile::open(path).map_err(|e| Failure::io("open", path, &e));
        self.identity.iter().map(open).collect()
    }
}

/// Refuses the first option that was given.
pub fn refuse(options: &[(&str, bool)]) -> Result<(), Failure> {
    match options.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Failure::NotYet((*name).to_owned())),
        None => Ok(()),
    }
}
