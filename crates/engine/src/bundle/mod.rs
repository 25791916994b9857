//! An OCI bundle (runtime-spec, config.md): a directory with a root file system and a `config.json` that says what runs
//! in it. It is a request of whoever names it, read with the caller's rights, and turned into the words of our own.
//!
//! What a bundle asks for and cannot be had is an error that names the field by its JSON path; nothing is left out.

mod linux;
mod mounts;
mod process;
mod support;

use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime;
use yendor_image::Bytes;
use yendor_kinds::Cause;
use yendor_policy::lsm::Profile;
use yendor_policy::{capability, seccomp};
use yendor_sys::SysError;

use crate::error::{At, Result, Step, With};
use crate::request::{Layout, Net, Request, Root, Seccomp, Userns, Volume};
use crate::wire::Spec;

/// The most bytes of a `config.json`.
const MOST: u64 = 4 << 20;

/// What a bundle asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Its root file system, absolute.
    pub root: PathBuf,
    /// What is mounted there.
    pub layout: Layout,
    /// Host paths that it wants to see, each with its place inside.
    pub volumes: Vec<Volume>,
    /// Its network.
    pub net: Net,
    /// Its host name.
    pub hostname: Option<String>,
    /// Limit of memory in bytes.
    pub memory: Option<u64>,
    /// Limit of tasks.
    pub pids: Option<u64>,
    /// Its seccomp filter.
    pub seccomp: Option<Seccomp>,
    /// The security labels of its tasks.
    pub profiles: Vec<Profile>,
    /// Whether its process sits at a terminal.
    pub terminal: bool,
    /// What runs; none in a bundle that is only a place (for a restore).
    pub spec: Option<Spec>,
}

type Caused<T> = std::result::Result<T, Cause>;

/// Reads a bundle.
///
/// # Errors
/// The file, its syntax, and by its JSON path the first field that cannot be had.
pub fn read(directory: &Path, userns: Userns) -> Result<Bundle> {
    let path = directory.join("config.json");
    let text = text(&path).at(Step::Admit).kind("bundle", directory.display().to_string())?;
    parse(&text, directory, userns).at(Step::Admit).kind("bundle", path.display().to_string())
}

fn text(path: &Path) -> Caused<Vec<u8>> {
    let failed = |e: std::io::Error| SysError::io("open", format!("{path:?}"), &e);
    let mut text = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(MOST + 1).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).is_ok_and(|n| n > MOST) {
        return Err(wrong(format!("more than {MOST} bytes")));
    }
    Ok(text)
}

fn wrong(message: impl Into<String>) -> Cause {
    Cause::Reported { message: message.into(), code: 1 }
}

fn unsupported(path: &str, why: &str) -> Cause {
    Cause::unsupported(format!("{path}: {why}"))
}

fn parse(text: &[u8], directory: &Path, userns: Userns) -> Caused<Bundle> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    support::check(&value)?;
    // From the text, so that an error names the line.
    let config: runtime::Spec = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
    if !config.version().starts_with("1.") {
        return Err(unsupported("ociVersion", &format!("{:?} is not 1.x", config.version())));
    }
    let root = config.root().as_ref().ok_or_else(|| wrong("there is no root"))?;
    let linux = linux::Linux::read(config.linux().as_ref(), userns)?;
    let (mounts, volumes) = mounts::read(config.mounts().as_deref().unwrap_or_default(), directory)?;
    let process = config.process().as_ref();
    Ok(Bundle {
        root: directory.join(root.path()),
        layout: Layout {
            mounts,
            masked: linux.masked,
            read_only: linux.read_only,
            read_only_root: root.readonly().unwrap_or(false),
            domainname: config.domainname().clone(),
            sysctls: linux.sysctls,
        },
        volumes,
        net: linux.net,
        hostname: config.hostname().clone(),
        memory: linux.memory,
        pids: linux.pids,
        seccomp: seccomp(&value)?,
        profiles: process.map(profiles).transpose()?.unwrap_or_default(),
        terminal: process.and_then(runtime::Process::terminal).unwrap_or(false),
        spec: process.map(process::read).transpose()?,
    })
}

fn seccomp(config: &serde_json::Value) -> Caused<Option<Seccomp>> {
    let Some(profile) = config.pointer("/linux/seccomp").filter(|p| !p.is_null()) else { return Ok(None) };
    let filter = seccomp::profile::compile(&profile.to_string()).map_err(|e| unsupported("linux.seccomp", &e))?;
    Ok(Some(Seccomp { flags: filter.flags, program: Bytes(seccomp::to_bytes(&filter.program)) }))
}

/// A label that its module does not have, or a module that is not active, is found when the container is confined.
fn profiles(process: &runtime::Process) -> Caused<Vec<Profile>> {
    let asked = [
        ("process.apparmorProfile", "apparmor", process.apparmor_profile()),
        ("process.selinuxLabel", "selinux", process.selinux_label()),
    ];
    let asked = asked.into_iter().filter_map(|(path, module, label)| Some((path, module, label.as_ref()?)));
    asked
        .filter(|(_, _, label)| !label.is_empty())
        .map(|(path, module, label)| Profile::parse(&format!("{module}:{label}")).map_err(|e| unsupported(path, &e)))
        .collect()
}

impl Bundle {
    /// Makes a request that of this bundle. What the caller has asked for in words of its own holds.
    pub fn shape(&self, request: &mut Request) {
        request.root = Root::Dir(self.root.clone());
        request.layout = Some(self.layout.clone());
        request.memory = request.memory.or(self.memory);
        request.pids = request.pids.or(self.pids);
        if let Some([_, _, _, bounding, _]) = self.spec.as_ref().and_then(|spec| spec.capabilities) {
            request.cap_drop.extend(capability::names(capability::ALL & !bounding));
        }
        request.policy.no_new_privs |= self.spec.as_ref().is_some_and(|spec| spec.no_new_privs);
        request.policy.seccomp = request.policy.seccomp.take().or_else(|| self.seccomp.clone());
        for profile in &self.profiles {
            if request.policy.profiles.iter().all(|own| own.module != profile.module) {
                request.policy.profiles.push(profile.clone());
            }
        }
        for volume in &self.volumes {
            match request.volumes.iter_mut().find(|own| own.name == volume.name) {
                // The caller fills it otherwise; where it belongs, the bundle knows.
                Some(own) if own.inside.is_none() => own.inside.clone_from(&volume.inside),
                Some(_) => {}
                None => request.volumes.push(volume.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
