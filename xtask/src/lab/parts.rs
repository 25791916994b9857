//! What a machine of the lab is made of: qemu, kernels of Debian, and policies compiled here. Nothing is installed but
//! programs of the host stage; kernels are downloaded once, into cargo's target directory.

use crate::Outcome;
use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Something that cannot be had here, and why: what needs it is skipped.
pub struct Missing(pub String);

/// A kernel with its modules.
#[derive(Clone)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// What qemu boots.
    pub image: PathBuf,
    /// Modules that the guest loads, in that order.
    pub modules: Vec<PathBuf>,
}

/// Modules that Yendor needs and the cloud kernels do not have built in, in the order of their needs.
const MODULES: &[&str] = &["inet_diag", "tcp_diag", "udp_diag", "unix_diag", "overlay"];

/// The program, where it is installed.
///
/// # Errors
/// Only through the inner result: the package that has it.
pub fn program(name: &str, package: &str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut found = places.map(|directory| directory.join(name)).filter(|path| path.is_file());
    found.next().ok_or_else(|| Missing(format!("no {name} here (package {package})")))
}

/// The newest kernel of a series (`6.12`) that is in the cache, else that apt knows.
///
/// # Errors
/// Files of our own cannot be made. That it cannot be had is the inner error.
pub fn kernel(cache: &Path, series: &str) -> Outcome<Result<Kernel, Missing>> {
    fs::create_dir_all(cache)?;
    if let Some(there) = cached(cache, series)? {
        return Ok(Ok(there));
    }
    let packages = output(&["apt-cache", "search", "--names-only", "linux-image-.*cloud-amd64-unsigned"]);
    let packages = packages.unwrap_or_default();
    let Some(package) = newest(&packages, series) else {
        return Ok(Err(Missing(format!("apt knows no kernel {series} for clouds"))));
    };
    let fetch = cache.join(format!("fetch-{}", std::process::id()));
    fs::create_dir_all(&fetch)?;
    let fetched = fetch_into(&fetch, &package, &cache.join(format!("kernel-{series}")));
    fs::remove_dir_all(&fetch)?;
    match fetched {
        Ok(()) => Ok(cached(cache, series)?.ok_or_else(|| Missing(format!("{package} holds no kernel")))),
        Err(error) => Ok(Err(Missing(format!("{package}: {error}")))),
    }
}

fn output(words: &[&str]) -> Option<String> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A package's files, unpacked below a directory of our own.
///
/// # Errors
/// What apt or dpkg said.
pub fn unpacked(fetch: &Path, package: &str) -> Outcome<PathBuf> {
    println!("downloading {package}");
    run(Command::new("apt-get").args(["-q", "download", package]).current_dir(fetch))?;
    let archive = fs::read_dir(fetch)?.flatten().map(|entry| entry.path()).find(|path| path.is_file());
    let archive = archive.ok_or("apt-get download left no file")?;
    let unpacked = fetch.join("unpacked");
    run(Command::new("dpkg").arg("-x").arg(archive).arg(&unpacked))?;
    Ok(unpacked)
}

fn fetch_into(fetch: &Path, package: &str, kernel: &Path) -> Outcome {
    let unpacked = unpacked(fetch, package)?;
    // By rename, so that a run that is interrupted leaves no half kernel.
    Ok(fs::rename(&unpacked, kernel)?)
}

/// Runs a command without input, and shows what it said only when it failed.
pub fn run(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// The kernel that the cache has under this name.
///
/// # Errors
/// Files of our own cannot be read.
pub fn cached(cache: &Path, series: &str) -> Outcome<Option<Kernel>> {
    let top = cache.join(format!("kernel-{series}"));
    let boot = top.join("boot");
    if !boot.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&boot)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            let tree = top.join("lib/modules").join(release).join("kernel");
            let tree = if tree.is_dir() { tree } else { top.join("usr/lib/modules").join(release).join("kernel") };
            let modules = modules(&tree)?;
            return Ok(Some(Kernel { release: release.to_owned(), image: entry.path(), modules }));
        }
    }
    Ok(None)
}

fn modules(tree: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut ahead = vec![tree.to_path_buf()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(&directory)?.flatten() {
            if entry.file_type()?.is_dir() {
                ahead.push(entry.path());
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name.split('.').next().unwrap_or_default();
            if let Some(place) = MODULES.iter().position(|module| *module == stem) {
                found.push((place, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The package of the newest kernel of a series, from lines `NAME - DESCRIPTION`.
fn newest(packages: &str, series: &str) -> Option<String> {
    let names = packages.lines().filter_map(|line| line.split_whitespace().next());
    let release = |name: &str| {
        let release = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64-unsigned")?;
        let rest = release.strip_prefix(series)?;
        rest.starts_with('.').then(|| release.to_owned())
    };
    let releases = names.filter_map(|name| Some((release(name)?, name.to_owned())));
    releases.max_by(|(a, _), (b, _)| compare(a, b)).map(|(_, name)| name)
}

/// Compares by the numbers in a version.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|sign: char| !sign.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

/// A policy source compiled by the tool of its module: `.aa` by apparmor_parser, `.te` by checkpolicy.
///
/// # Errors
/// The source is wrong. That the compiler is not there is the inner error.
pub fn policy(source: &Path, into: &Path) -> Outcome<Result<Vec<u8>, Missing>> {
    fs::create_dir_all(into)?;
    let name = source.file_name().ok_or("a policy without a name")?;
    let target = into.join(name).with_extension("bin");
    let apparmor = source.extension().is_some_and(|extension| extension == "aa");
    let tool = if apparmor { program("apparmor_parser", "apparmor") } else { program("checkpolicy", "checkpolicy") };
    let tool = match tool {
        Ok(tool) => tool,
        Err(missing) => return Ok(Err(missing)),
    };
    let mut command = Command::new(tool);
    if apparmor {
        // Neither loaded here nor cached: the kernel that it is for is another.
        command.args(["--quiet", "--skip-kernel-load", "--skip-cache"]);
        // What this kernel mediates says nothing of the guest's.
        let features = "/etc/apparmor.d/abi/3.0";
        command.arg(format!("--policy-features={features}")).arg(format!("--kernel-features={features}"));
        command.arg("--ofile").arg(&target);
    } else {
        // What the policy does not speak of is allowed: it need not repeat the kernel's whole list of permissions.
        command.args(["-U", "allow", "-c", "33", "-o"]).arg(&target);
    }
    run(command.arg(source))?;
    Ok(Ok(fs::read(target)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_series_is_chosen() {
        let packages = "\
linux-image-6.1.0-9-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.1.0-47-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.12.9+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.117+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.200+deb12-amd64-unsigned - not for clouds
";
        assert_eq!(newest(packages, "6.1").as_deref(), Some("linux-image-6.1.0-47-cloud-amd64-unsigned"));
        assert_eq!(newest(packages, "6.12").as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64-unsigned"));
        assert_eq!(newest(packages, "6.6"), None);
    }
}
